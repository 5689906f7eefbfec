"""What this machine knows of the heads that `gecko up` started: one file for each name, which only its owner may read.

It is the state of an operator's machine and no storage: what is lost with it is where the processes are, never a run. It starts and ends
nothing.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from cluster.processes import Process, boot, lives
from engine.errors import ClusterUnavailable, ConfigurationError

NAME = "local"
"""The name of a cluster that was given none."""
LAUNCHED = "launched"
"""The name under which the token of clusters from a `cluster.yaml` lies, which copies it from here to their machines."""
MARK = "GECKO_HEAD"
"""The variable that every process of a head has in its environment, with the head's folder."""
_ESSENTIAL = ("gcs_server", "raylet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What an operator may say of a head; None: nothing was said."""

    num_cpus: int | None = None
    port: int | None = None
    storage: str | None = None
    """Where the runs of this cluster are recorded."""
    redis: str | None = None
    """The Redis that keeps what the head knows; None: files beside the head's description."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A head that was started on this machine."""

    name: str
    address: str
    """`host:port`, as RAY_ADDRESS takes it."""
    dashboard: str
    """A URL, as RAY_API_SERVER_ADDRESS takes it."""
    token_file: str
    folder: str
    """Ray's sockets and logs."""
    kept: str
    """What the head knows of actors and names, with which it can start again: a folder, or a namespace in Redis."""
    options: Options
    settings: dict[str, str]
    """What Ray was told in its environment, authentication aside."""
    started_at: float
    boot: str = field(default_factory=boot)
    ray: str
    """Ray's version."""
    sessions: tuple[int, ...] = ()
    """The sessions (`setsid`) in which its processes were started."""
    processes: tuple[Process, ...] = ()
    """Those that were there when it had started; empty: it never had."""

    @property
    def mark(self) -> str:
        """What each of its processes has in its environment."""
        return f"{MARK}={self.folder}"

    @property
    def stale(self) -> bool:
        """Whether what makes it a head is gone."""
        essential = [process for process in self.processes if process.role in _ESSENTIAL]
        return self.boot != boot() or len(essential) < len(_ESSENTIAL) or not all(map(lives, essential))


def state_folder() -> Path:
    """Return where the heads of this user are described: `$GECKO_HOME`, else `$XDG_STATE_HOME/gecko`, else `~/.local/state/gecko`."""
    if said := os.environ.get("GECKO_HOME"):
        return Path(said).absolute()
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state).absolute() if state else Path.home() / ".local" / "state") / "gecko"


def file_of(name: str, ending: str = "json") -> Path:
    """Return the path of a head's description, or of what lies beside it.

    Raises: ConfigurationError for a name that cannot be one.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", name):
        raise ConfigurationError(f"{name!r} cannot name a cluster: small letters, digits and hyphens, at most 40", where="--name")
    return state_folder() / "clusters" / f"{name}.{ending}"


def find_head(name: str = NAME) -> Head | None:
    """Return the head of a name, which may be `stale`; None: there is none.

    Raises: ClusterUnavailable where its description cannot be read.
    """
    return _read(file_of(name))


def find_heads() -> list[Head]:
    """Return all heads that are described and can be read, by name."""
    found: list[Head] = []
    for path in sorted((state_folder() / "clusters").glob("*.json")):
        try:
            head = _read(path)
        except ClusterUnavailable:
            continue
        if head is not None:
            found.append(head)
    return found


def running_at(address: str) -> Head | None:
    """Return the head of ours that is to be found at an address."""
    return next((head for head in find_heads() if head.address == address and not head.stale), None)


def _read(path: Path) -> Head | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Head)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise ClusterUnavailable(f"{path}, which describes a cluster, cannot be read: {error}; remove it") from error


def write_head(head: Head) -> None:
    """Describe a head; whoever reads sees it whole or as it was."""
    write_private(file_of(head.name), msgspec.json.format(msgspec.json.encode(head), indent=2))


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # has mode 600
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Keep other commands from starting or ending the same head meanwhile."""
    import fcntl  # not on Windows, where drivers import this module too

    path = file_of(name, "lock")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def without_password(url: str | None) -> str | None:
    """Return a URL as it may be shown."""
    if url is None or "@" not in url:
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username or ''}@{parts.netloc.rpartition('@')[2]}").geturl()
