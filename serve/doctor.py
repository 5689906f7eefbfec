"""Checks of an installation: Python, versions, where our packages come from, whether the storage does what a log needs, Ray, memory.

Each check says what it found and, where something is wrong, what to do. It changes nothing: what it writes into the storage it removes.
Only when it is asked to does it make the index of runs again.
"""

import asyncio
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast
from urllib.parse import unquote

from engine import __version__
from engine.core.places import shown
from engine.errors import GeckoError
from engine.ports import Log
from engine.store import index, open_log, open_records
from engine.store.index import Rebuilt
from serve.origin import hidden_here, shadows

_LEAST_MEMORY = 1 << 30
_SLOW_SYNC = 0.02
_LIBRARIES = ("ray", "pyarrow", "msgspec", "cloudpickle", "pydantic", "typer", "rich")


class Check(NamedTuple):
    """What one check found."""

    name: str
    ok: bool
    text: str


def examine(storage: str) -> list[Check]:
    """Perform all checks."""
    return [_python(), _versions(), _packages(), _storage(storage), _ray(), _memory()]


def rebuild(storage: str) -> Rebuilt:
    """Make the index of runs and dead letters again, from the logs of a storage.

    Raises: ConfigurationError, StoreUnavailable, UnknownFormat.
    """

    async def work() -> Rebuilt:
        log, records = open_log(storage), open_records(storage)
        try:
            return await index.rebuild(log, records)
        finally:
            await records.close()
            await log.close()

    return asyncio.run(work())


def _python() -> Check:
    text = ".".join(map(str, sys.version_info[:3]))
    return Check(
        "python", sys.version_info >= (3, 11), f"{text} at {sys.executable}" + ("" if sys.version_info >= (3, 11) else "; 3.11 is needed")
    )


def _versions() -> Check:
    found: list[str] = [f"gecko-ray {__version__}"]
    missing: list[str] = []
    for name in _LIBRARIES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("versions", False, f"{', '.join(missing)} not installed: pip install gecko-ray")
    return Check("versions", True, ", ".join(found))


def _packages() -> Check:
    wrong = shadows()
    if wrong:
        return Check("packages", False, "; ".join(wrong))
    hiding = hidden_here(Path.cwd())
    if hiding:
        text = f"{', '.join(hiding)} would hide a package of Gecko in programs started here: rename it"
        return Check("packages", False, text)
    return Check("packages", True, f"engine, cluster and serve from {Path(__file__).resolve().parent.parent}")


def _storage(storage: str) -> Check:
    try:
        log = open_log(storage)
        if log.url.startswith("postgresql:"):
            version, took = asyncio.run(_try_server(log))
            return Check("storage", True, f"{shown(log.url)}, PostgreSQL {version}, an answer takes {took * 1000:.2f} ms")
    except GeckoError as error:
        return Check("storage", False, str(error))
    url = shown(log.url)
    if url.startswith("memory:"):
        return Check("storage", True, url)
    root = Path(unquote(url.partition("://")[2].partition("?")[0]))
    above = next(path for path in (root, *root.parents) if path.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".gecko-doctor-", dir=above) as folder:
            took = _try_folder(Path(folder))
    except OSError as error:
        return Check(
            "storage", False, f"{url}: {error.strerror or error}: make {str(above)!r} writable, or name another place with --storage"
        )
    free = os.statvfs(above).f_bavail * os.statvfs(above).f_frsize
    text = f"{url}, a sync takes {took * 1000:.2f} ms, {free / 2**30:.1f} GiB free"
    if free < _LEAST_MEMORY // 4:
        return Check("storage", False, f"{text}: make room")
    return Check(
        "storage", True, text + ("; syncs are slow here, a run of many layers is faster on a local disk" if took > _SLOW_SYNC else "")
    )


async def _try_server(log: Log) -> tuple[str, float]:
    """Ask a database for its version; returns the seconds of an answer too. Raises: StoreUnavailable."""
    from sqlalchemy import text

    from engine.store.sql import SqlLog

    database = cast(SqlLog, log).database
    try:
        version = await database.do(lambda connection: connection.scalar(text("SHOW server_version")), reading=True)
        begun = time.perf_counter()
        await database.do(lambda connection: connection.scalar(text("SELECT 1")), reading=True)
        return str(version), time.perf_counter() - begun
    finally:
        await database.close()


def _try_folder(folder: Path) -> float:
    """Write, lock, sync, rename and take away a file; returns the seconds of a sync.

    Raises: OSError with what this folder cannot do.
    """
    import fcntl

    path, renamed = folder / "try", folder / "renamed"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        times: list[float] = []
        for _ in range(5):
            os.write(fd, bytes(512))
            begun = time.perf_counter()
            os.fsync(fd)
            times.append(time.perf_counter() - begun)
        os.rename(path, renamed)
        if path.exists() or renamed.stat().st_size != 5 * 512:
            raise OSError("a renamed file is not what it was")
    finally:
        os.close(fd)
    return sorted(times)[2]


class Cluster(NamedTuple):
    """What a run on Ray would meet."""

    address: str | None
    """None: nobody runs one, so that a local one would be started."""
    mode: str
    """The authentication mode."""
    problem: str | None = None
    """Why it cannot be joined."""


_LOOK = """
import json, os
from cluster.remote_head import find_cluster, meet
from engine.core.places import shown
from engine.errors import GeckoError
from engine.ports import Log
address, problem = find_cluster(), None
try:
    meet(address)
except GeckoError as error:
    problem = str(error)
print(json.dumps([address, os.environ.get("RAY_AUTH_MODE", ""), problem]))
"""


def _ray() -> Check:
    try:
        cluster = find_ray()
    except ImportError as error:
        return Check("ray", False, f"cannot be imported ({error}): pip install 'ray[default,serve]'")
    if cluster.problem is not None:
        return Check("ray", False, cluster.problem)
    where = "no cluster is here, so that a local one is started" if cluster.address is None else f"joins the cluster at {cluster.address}"
    return Check("ray", True, f"{importlib.metadata.version('ray')}, {where}, authentication mode {cluster.mode!r}")


def find_ray() -> Cluster:
    """Look which cluster would be met, in a process of its own: importing Ray here would take a second of every later command.

    Raises: ImportError where Ray cannot be imported.
    """
    import subprocess

    done = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ImportError(lines[-1] if lines else f"exit status {done.returncode}")
    return Cluster(*json.loads(done.stdout.splitlines()[-1]))


def _memory() -> Check:
    free = free_memory()
    if free is None:
        return Check("memory", True, "how much is free is not known on this system")
    text = f"{free / 2**30:.1f} GiB free"
    return Check("memory", free >= _LEAST_MEMORY, text if free >= _LEAST_MEMORY else f"{text}: a local Ray needs about 1 GiB")


def free_memory(read: Callable[[Path], str] = Path.read_text) -> int | None:
    """Return the bytes of memory that are free for new processes, within the limits of this container; None where nobody says."""
    free: list[int] = []
    try:
        fields = dict(line.split(":", 1) for line in read(Path("/proc/meminfo")).splitlines() if ":" in line)
        free.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit = read(Path("/sys/fs/cgroup/memory.max")).strip()
        if limit != "max":
            free.append(int(limit) - int(read(Path("/sys/fs/cgroup/memory.current"))))
    except (OSError, ValueError):
        pass
    return min(free) if free else None
