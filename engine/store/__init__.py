"""Opens storage by URL. Which places there are is known here; a backend is imported only when a URL asks for it."""

import os
import re
import threading
from pathlib import Path
from typing import cast
from urllib.parse import parse_qs, quote, unquote, urlsplit

from engine.core.places import shown
from engine.errors import ConfigurationError
from engine.ports import Log
from engine.records import Records

#: Where runs go when nobody says where.
DEFAULT_PLACE = ".gecko"
_SCHEMES = {
    "file": "file:///path, ./path or /path",
    "memory": "memory:// or memory://name",
    "sqlite": "sqlite:///path.db",
    "postgresql": "postgresql://user@host/database",
}
_SQL = ("sqlite", "sqlite+aiosqlite", "postgresql", "postgres", "postgresql+asyncpg")
_LATER = {
    "s3": "object",
    "gs": "object",
    "redis": "Redis",
}

RECORDS = "records.db"
"""The file of the records of a folder."""

_opened: dict[str, Log] = {}
_records: dict[str, Records] = {}
_lock = threading.Lock()


def open_log(url: str | os.PathLike[str] | None = None) -> Log:
    """Return the log at a place: a folder (the default is `./.gecko`), this process's memory, or a database.

    A place is made absolute once, here, and is opened once in a process: whoever asks for it again shares its runs and its thread.
    `close` makes everything durable and lets go of thread and lock; a log that was closed may be used again.

    Raises: ConfigurationError for a scheme that is not known, and for a place that cannot hold a log.
    """
    text = os.fspath(url) if url is not None else DEFAULT_PLACE
    scheme = _scheme(text)
    if scheme == "memory":
        return _open_memory(text)
    if scheme in _SQL:
        return _open_sql(text)
    if scheme not in ("", "file"):
        raise _unknown(text, scheme)
    return _open_files(*_folder(text))


def open_records(url: str | os.PathLike[str] | None = None) -> Records:
    """Return the records of a place: those of a log in the same place, in `records.db` of a folder, in the database, or in memory.

    They are opened once in a process; nothing is looked at before the first call.

    Raises: ConfigurationError, as `open_log`.
    """
    from engine.store.database import Address, Database, read_address
    from engine.store.records import SqlRecords

    text = os.fspath(url) if url is not None else DEFAULT_PLACE
    scheme, folder = _scheme(text), None
    if scheme == "memory":
        address = Address("sqlite", text)
    elif scheme in ("", "file"):
        folder = Path(os.path.realpath(_folder(text)[0].expanduser()))
        if folder.exists() and not folder.is_dir():
            raise ConfigurationError(f"storage {str(folder)!r} is a file: name a folder", where=str(folder))
        address = Address("sqlite", f"sqlite:///{quote(str(folder / RECORDS))}", folder / RECORDS)
    else:
        address = read_address(_without_options(text))
    with _lock:
        if address.url not in _records:
            _records[address.url] = cast(Records, SqlRecords(Database(address), folder=folder))
        return _records[address.url]


def _without_options(url: str) -> str:
    """Leave out what a URL says of a log alone."""
    start, _, options = url.partition("?")
    kept = [option for option in options.split("&") if option and option.partition("=")[0] not in ("lease", "trust")]
    return f"{start}?{'&'.join(kept)}" if kept else start


def is_relative(url: str | os.PathLike[str]) -> bool:
    """Tell whether a place is a folder or file whose meaning depends on where this process works.

    Raises: ConfigurationError, as `open_log`.
    """
    text = os.fspath(url)
    if _scheme(text).startswith("sqlite"):
        return not text.partition(":///")[2].startswith(("/", "~"))
    return _scheme(text) in ("", "file") and not _folder(text)[0].expanduser().is_absolute()


async def create_storage(url: str | os.PathLike[str] | None = None) -> Log:
    """Return the log at a place, as `open_log` does; to be awaited, as workflows of earlier versions do."""
    return open_log(url)


def _scheme(text: str) -> str:
    """The scheme of a URL, empty for a plain path."""
    found = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):", text)
    return found[1].lower() if found else ""


def _folder(url: str) -> tuple[Path, bool]:
    if not _scheme(url):
        return Path(url.partition("?trust=")[0]), url.endswith("?trust=1")
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ConfigurationError(f"storage {url!r} names a host, {parts.netloc!r}: write file:///path, with three slashes", where=url)
    if not parts.path:
        raise ConfigurationError(f"storage {url!r} names no folder: write file:///path", where=url)
    options = parse_qs(parts.query, keep_blank_values=True)
    if unknown := options.keys() - {"trust"}:
        raise ConfigurationError(f"storage {url!r} has the unknown option {sorted(unknown)[0]!r}; known: 'trust'", where=url)
    return Path(unquote(parts.path)), options.get("trust") == ["1"]


def _open_files(path: Path, trust: bool) -> Log:
    from engine.checkpoint.log import SegmentLog, process_owner
    from engine.store.files import FileMedium

    root = os.path.realpath(path.expanduser())
    with _lock:
        if root not in _opened:
            if os.path.exists(root) and not os.path.isdir(root):
                raise ConfigurationError(f"storage {root!r} is a file: name a folder", where=root)
            _opened[root] = cast(Log, SegmentLog(FileMedium(Path(root), process_owner(), trust=trust)))
        return _opened[root]


def _open_memory(url: str) -> Log:
    from engine.checkpoint.log import SegmentLog, process_owner
    from engine.store.memory import MemoryMedium

    with _lock:
        if url not in _opened:
            _opened[url] = cast(Log, SegmentLog(MemoryMedium(url, process_owner())))
        return _opened[url]


def _open_sql(url: str) -> Log:
    from engine.store.database import open_database, read_address
    from engine.store.files import refuse_remote
    from engine.store.sql import LEASE, SqlLog

    bare, options = _take_options(url, ("lease", "trust"))
    address = read_address(bare)
    if address.path is not None and options.get("trust") != "1":
        refuse_remote(address.path)
    lease = _seconds(options.get("lease"), LEASE, url)
    again = "&".join(f"{name}={value}" for name, value in options.items())
    full = address.url + (("&" if "?" in address.url else "?") + again if again else "")
    with _lock:
        if full not in _opened:
            _opened[full] = SqlLog(open_database(bare), url=full, lease=lease)
        return _opened[full]


def _take_options(url: str, names: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """Part a URL from options of ours; others are the driver's."""
    bare, _, query = url.partition("?")
    parts = [part for part in query.split("&") if part]
    ours = {name: value for name, _, value in (part.partition("=") for part in parts) if name in names}
    left = "&".join(part for part in parts if part.partition("=")[0] not in names)
    return bare + ("?" + left if left else ""), ours


def _seconds(text: str | None, default: float, url: str) -> float:
    if text is None:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 3600:
        raise ConfigurationError(f"storage {shown(url)!r}: lease is a number of seconds from 1 to 3600, not {text!r}", where="lease")
    return seconds


def _unknown(url: str, scheme: str) -> ConfigurationError:
    known = ", ".join(_SCHEMES.values())
    later = f"; {_LATER[scheme]} storage is not part of this version" if scheme in _LATER else ""
    return ConfigurationError(f"storage {shown(url)!r} has the unknown scheme {scheme!r}: known are {known}{later}", where=scheme)
