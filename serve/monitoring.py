"""Whether what the service stands on answers, and what there is, counted. Everything is really asked, within a time limit."""

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from engine.errors import DefinitionError, GeckoError, Unavailable
from engine.ports import Log
from engine.records import Records, Statistics
from serve.runs import Cluster, Runs

PATIENCE = 3.0
"""Seconds that each has to answer in."""
BELIEVED = 1.0
"""Seconds for which an answer is believed, so that asking often costs little."""
_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0}


class Monitoring:
    """What is asked of the parts of the service."""

    def __init__(self, runs: Runs, cluster: Cluster, log: Log, records: Records) -> None:
        """Ask nobody anything yet."""
        self._runs = runs
        self._cluster = cluster
        self._log = log
        self._records = records
        self._asking = asyncio.Lock()
        self._checks: dict[str, bool] = {}
        self._checked = 0.0

    async def health(self) -> dict[str, bool]:
        """Return whether each part answers, by name."""
        loop = asyncio.get_running_loop()
        async with self._asking:
            if not self._checks or loop.time() > self._checked + BELIEVED:
                storage, records, cluster = await asyncio.gather(
                    _answers(self._storage), _answers(self._records.list_keys), self._coordinators()
                )
                self._checks = {"storage": storage, "records": records, **cluster}
                self._checked = loop.time()
            return self._checks

    async def _storage(self) -> None:
        """Look into the storage, and write where it is a folder. Raises: OSError, GeckoError."""
        await self._log.scan(workflow="gecko health", session="check")
        if self._log.url.startswith("file://"):
            await asyncio.to_thread(_write_into, self._log.url.removeprefix("file://"))

    async def _coordinators(self) -> dict[str, bool]:
        try:
            found = await asyncio.wait_for(self._cluster.survey(PATIENCE / 2), PATIENCE)
        except (GeckoError, OSError, TimeoutError):
            return {"cluster": False, "coordinators": False}
        return {"cluster": True, "coordinators": bool(found) and None not in found.values()}

    async def figures(self) -> tuple[Mapping[str, int], Mapping[str, Mapping[str, Any] | None]]:
        """Return (runs by status, what each coordinator tells); what cannot be asked now is left out."""
        runs: Mapping[str, int] = {}
        coordinators: Mapping[str, Mapping[str, Any] | None] = {}
        try:
            async with asyncio.timeout(PATIENCE):
                runs = (await self._counted(0.0)).runs
        except (Unavailable, TimeoutError):
            pass
        try:
            async with asyncio.timeout(PATIENCE):
                coordinators = await self._cluster.survey(PATIENCE / 2)
        except (Unavailable, TimeoutError):
            pass
        return runs, coordinators

    async def counted(self, time_range: str) -> Statistics:
        """Return what there is, with failures and times since so long ago, as in `24h`, `30m`, `7d`."""
        return await self._counted(time.time() - _seconds(time_range))

    async def _counted(self, since: float) -> Statistics:
        await self._runs.refresh()
        return await self._records.statistics(since=since)


async def _answers(ask: Callable[[], Awaitable[Any]]) -> bool:
    try:
        await asyncio.wait_for(ask(), PATIENCE)
    except (GeckoError, OSError, TimeoutError):
        return False
    return True


def _write_into(folder: str) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".health-") as file:
        file.write(b"?")
        file.flush()
        os.fsync(file.fileno())


def _seconds(text: str) -> float:
    """Return a time range in seconds. Raises: DefinitionError."""
    if text[-1:] not in _UNITS or not (text.isascii() and text[:-1].isdecimal() and len(text) <= 6):
        raise DefinitionError(f"a time range is digits and h, d or m, as 24h, not {text!r:.40}", where="time_range")
    return int(text[:-1]) * _UNITS[text[-1]]
