"""Where scenarios run: sizes, an event loop, folders for storage on the checkout's disk, and one local Ray cluster.

The cluster starts when it is first asked for. It is this process's own; nothing else on the machine is looked at or stopped.
"""

import asyncio
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, TypeVar

from bench.harness import Checks

LONGEST = 120.0
"""Seconds after which one measured run is given up."""
T = TypeVar("T")


class Setting:
    """What a scenario is handed. A context manager: it leaves no process and no file behind."""

    def __init__(self, folder: Path, *, fast: bool = False) -> None:
        """Storage lies below `folder`, which should be on the disk whose syncs are meant."""
        self.fast = fast
        self.checks = Checks()
        self._folder = folder
        self._runner = asyncio.Runner()
        self._ray: ModuleType | None = None
        self._ray_folder: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self._runner.close()
        finally:
            if self._ray is not None:
                self._ray.shutdown()
            if self._ray_folder is not None:
                shutil.rmtree(self._ray_folder, ignore_errors=True)

    @property
    def rounds(self) -> int:
        """How many rounds a median stands on."""
        return 5 if self.fast else 11

    def size(self, full: int, fast: int) -> int:
        """Return the size for this run."""
        return fast if self.fast else full

    def run(self, work: Coroutine[Any, Any, T], *, limit: float = LONGEST) -> T:
        """Run a coroutine on the one event loop of all scenarios. Raises: TimeoutError."""

        async def limited() -> T:
            async with asyncio.timeout(limit):
                return await work

        return self._runner.run(limited())

    @contextmanager
    def storage(self) -> Iterator[Path]:
        """Give an empty folder for one scenario's logs; its log is closed and its files are removed afterwards."""
        from engine.store import open_log

        self._folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="storage-", dir=self._folder))
        try:
            yield folder
        finally:
            self.run(open_log(folder).close())
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def slots(self) -> int:
        """How many processors the cluster has."""
        return os.cpu_count() or 1

    def ray(self) -> ModuleType:
        """Return Ray, connected to this process's own local cluster."""
        if self._ray is None:
            # Ray reads its mode once, when it is imported, and its default depends on a file that an earlier start may have left.
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), RAY_USAGE_STATS_ENABLED="0")
            os.environ.pop("RAY_ADDRESS", None)
            # A socket's path has about 100 characters, which the usual temporary folders exceed.
            self._ray_folder = tempfile.mkdtemp(prefix="gecko", dir="/tmp" if Path("/tmp").is_dir() else None)
            import ray

            ray.init(
                address="local", num_cpus=self.slots, include_dashboard=False, object_store_memory=1024**3, log_to_driver=False,
                logging_level=logging.ERROR, _temp_dir=self._ray_folder,
            )  # fmt: skip
            self._ray = ray
        return self._ray
