"""The log's medium over a folder of a local file system.

    <root>/.gitignore                                 holds `*`
    <root>/owners/<id>                                a process that drives runs; it holds a POSIX lock on its file while it lives
    <root>/runs/<workflow>/<session>/<n>/<epoch>.arrows

It owns names, locks, syncs and space; the order of operations is journal.py's. Names are encoded so that no text leads out of the
folder and none collide where letter case is folded. `fcntl.lockf`, not `flock`: forked children do not inherit it. A process drops
its lock when it closes any descriptor of that file, so it never opens its own owner file a second time.
"""

import hashlib
import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from engine.errors import ConfigurationError
from engine.ports import Owner, RunKey

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

_SAFE = re.compile(rb"[a-z0-9_.-]")
_SEGMENT = re.compile(r"([1-9][0-9]{0,17})\.arrows")
_LONGEST = 100
_FIRST_SPACE, _MOST_SPACE = 1 << 16, 1 << 22
_ZEROS = bytes(1 << 15)
_REMOTE = re.compile(r"(nfs\d?|cifs|smb\d?|smbfs|9p|fuse|fuse\..*|virtiofs|vboxsf|prl_fs|drvfs|ceph|glusterfs|lustre|afs|gpfs|beegfs)")


def sync(fd: int) -> None:
    """Make what was written to a file durable."""
    if sys.platform == "darwin":
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(fd)


def encode_name(name: str) -> str:
    """Return a file name for any text: percent-encoded, capitals too; a prefix and a hash where that is over 100 bytes."""
    parts = [chr(byte) if _SAFE.match(bytes([byte])) else f"%{byte:02x}" for byte in name.encode("utf-8", "surrogatepass")]
    if parts and parts[0] == ".":
        parts[0] = "%2e"
    text = "".join(parts) or "%"
    if len(text) <= _LONGEST:
        return text
    while len("".join(parts)) > 60:
        del parts[60:]
        parts.pop()
    return "".join(parts) + "~" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def decode_name(text: str) -> str | None:
    """Return the text that a file name stands for; None where only the log itself knows."""
    if "~" in text:
        return None
    return "" if text == "%" else unquote(text, encoding="utf-8", errors="surrogatepass")


class FilePlace:
    """The folder of one run. Used by one thread at a time; it keeps the segment that it writes open."""

    def __init__(self, medium: "FileMedium", folder: Path) -> None:
        self.folder = folder
        self._text = f"{folder}{os.sep}"
        self._medium = medium
        self._fd = -1
        self._n = 0
        self._space = 0
        """Up to where there is space, and up to where zeros are written there."""
        self._zeroed = 0

    def path(self, n: int) -> str:
        """Where a segment lies."""
        return f"{self._text}{n}.arrows"

    def present(self) -> list[int]:
        try:
            names = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(found[1]) for name in names if (found := _SEGMENT.fullmatch(name)))

    def create(self, n: int) -> bool:
        for _ in range(10):
            self._medium.make(self.folder)
            try:
                fd = os.open(self.path(n), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                return False
            except FileNotFoundError:  # another process removed the empty folder just now
                continue
            self.rest()
            self._fd, self._n, self._space, self._zeroed = fd, n, 0, 0
            return True
        raise OSError(f"the folder {self.folder} is removed again and again")

    def sync(self, n: int) -> None:
        if n == self._n and self._fd >= 0:
            sync(self._fd)
            return
        with _opened(self.path(n), os.O_RDONLY) as fd:
            sync(fd)

    def sync_folder(self) -> None:
        self._medium.sync_folders(self.folder)

    def read(self, n: int, start: int = 0) -> bytes | None:
        try:
            with open(self.path(n), "rb", buffering=0) as file:
                file.seek(start)
                return file.readall()
        except FileNotFoundError:
            return None

    def write(self, n: int, at: int, data: bytes) -> None:
        if self._n != n or self._fd < 0:
            self.rest()
            self._fd, self._n = os.open(self.path(n), os.O_RDWR | os.O_CLOEXEC), n
            self._space, self._zeroed = os.fstat(self._fd).st_size, 0
        end = at + len(data)
        if end > self._space:
            self._allocate(end)
        if end > self._zeroed and at > 0 and len(data) < len(_ZEROS):  # a claim may be all that a short run writes
            self._zero(end)
        written = os.pwrite(self._fd, data, at)
        if written != len(data):
            raise OSError(28, f"only {written} of {len(data)} bytes could be written", self.path(n))

    def _allocate(self, needed: int) -> None:
        """Take space ahead: appends into space that is there sync faster, and its zeros end an Arrow stream."""
        if not hasattr(os, "posix_fallocate"):
            self._space = 1 << 62
            return
        more = min(max(_FIRST_SPACE, self._space), _MOST_SPACE)
        try:
            os.posix_fallocate(self._fd, self._space, max(more, needed - self._space))
        except OSError:
            self._space = 1 << 62  # no such call here, or no space to spare: the write itself will tell
        else:
            self._space += max(more, needed - self._space)

    def _zero(self, end: int) -> None:
        """Write zeros behind a small batch: what is written over them syncs without the file system's journal, which all files share."""
        try:
            self._zeroed = end + os.pwrite(self._fd, _ZEROS[: self._space - end], end)
        except OSError:
            self._zeroed = 1 << 62  # no space to spare: the write itself will tell

    def exists(self, n: int) -> bool:
        if n == self._n and self._fd >= 0:
            return os.fstat(self._fd).st_nlink > 0
        try:
            os.stat(self.path(n))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def remove(self, n: int) -> None:
        try:
            os.unlink(self.path(n))
        except FileNotFoundError:
            pass

    def cut(self, n: int, end: int) -> None:
        """Give back the space behind the end of a segment."""
        if n == self._n and self._fd >= 0:
            os.ftruncate(self._fd, end)
        else:
            os.truncate(self.path(n), end)

    def size(self, n: int) -> int:
        """The size of a segment, with the space taken ahead; 0 where it is not there."""
        try:
            return os.stat(self.path(n)).st_size
        except FileNotFoundError:
            return 0

    def read_from(self, n: int, start: int, count: int) -> bytes:
        """At most `count` bytes of a segment from an offset on; nothing where it is not there."""
        try:
            with open(self.path(n), "rb", buffering=0) as file:
                return os.pread(file.fileno(), count, start)
        except FileNotFoundError:
            return b""

    def rest(self) -> None:
        """Let go of the file; the next operation opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def vanish(self) -> None:
        """Remove the empty folder, and those above it that are empty then."""
        for folder in (self.folder, self.folder.parent, self.folder.parent.parent):
            try:
                os.rmdir(folder)
            except OSError:
                return
            self._medium.forget(folder)


class FileMedium:
    """A folder that holds runs, and knows which processes that drive them live."""

    def __init__(self, root: Path, owner: Owner, *, trust: bool = False) -> None:
        if sys.platform == "win32":
            raise ConfigurationError(
                f"file storage at {str(root)!r} needs POSIX locks, which Windows lacks: use WSL, or the storage 'memory://'"
            )
        self.root = Path(os.path.realpath(root))
        self.url = self.root.as_uri()
        self.owner = owner
        self._runs, self._owners = self.root / "runs", self.root / "owners"
        self._lock_fd = -1
        self._lease: float | None = None
        self._durable: set[Path] = set()
        if not trust:
            refuse_remote(self.root)

    def enter(self) -> None:
        """Be seen to live from now on."""
        hidden, shown = self._owners / f".{self.owner.id}", self._owners / self.owner.id
        if self._lock_fd >= 0:
            if shown.exists():
                return
            os.close(self._lock_fd)  # somebody removed the folder: what was known of it is no more
            self._lock_fd = -1
            self._durable.clear()
        self.make(self._owners)
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            told = {"host": self.owner.host, "pid": self.owner.pid, "since": time.time(), "lease": self._lease}
            os.write(fd, json.dumps(told).encode())
            os.rename(hidden, shown)  # seen only when it is locked, so that nobody takes it for dead
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd

    def leave(self) -> None:
        """Be seen to live no more."""
        if self._lock_fd >= 0:
            (self._owners / self.owner.id).unlink(missing_ok=True)
            os.close(self._lock_fd)
            self._lock_fd = -1

    def lives(self, owner: Owner) -> bool:
        """Say whether another owner's process lives; the caller knows about itself."""
        if owner.id == self.owner.id:
            return self._lock_fd >= 0
        try:
            fd = os.open(self._owners / owner.id, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not take each other for the owner
        except BlockingIOError:
            return not _lease_is_over(fd)
        finally:
            os.close(fd)
        return False

    def lease(self, seconds: float) -> None:
        """Say, for the time from the next `enter` on, how long the lock alone is believed."""
        self._lease = seconds

    def beat(self) -> None:
        """Say that this process lives; by the file's time, since the file is not opened a second time."""
        if self._lock_fd >= 0:
            os.utime(self._lock_fd)

    def prune_owners(self) -> None:
        """Remove the files of owners that live no more."""
        for path in list(self._owners.glob("[!.]*")) + [p for p in self._owners.glob(".*") if time.time() - _changed(p) > 3600]:
            if path.name.lstrip(".") == self.owner.id:
                continue
            try:
                with _opened(path, os.O_RDWR) as fd:
                    fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)
            except (BlockingIOError, FileNotFoundError):
                continue

    def place(self, key: RunKey) -> FilePlace:
        """The folder of a run, which need not be there."""
        return FilePlace(self, self._runs / encode_name(key.workflow) / encode_name(key.session) / str(key.n))

    def places(self, workflow: str | None, session: str | None) -> Iterator[tuple[RunKey | None, FilePlace]]:
        """Every run's folder, with its key; None for the key where a name is too long to be told from the folder."""
        for first in _folders(self._runs, workflow):
            for second in _folders(first, session):
                for third in _folders(second, None):
                    if not third.name.isdecimal():
                        continue
                    names = (workflow or decode_name(first.name), session or decode_name(second.name))
                    key = RunKey(names[0], names[1], int(third.name)) if names[0] is not None and names[1] is not None else None
                    yield key, FilePlace(self, third)

    def make(self, folder: Path) -> None:
        """Make a folder of the storage, and the storage itself."""
        if folder.is_dir():
            return
        if not self.root.is_dir():
            self.root.mkdir(parents=True, exist_ok=True)
        if not (ignore := self.root / ".gitignore").exists():
            ignore.write_text("*\n")
        folder.mkdir(parents=True, exist_ok=True)

    def sync_folders(self, folder: Path) -> None:
        """Make the names in a folder durable, and the way to it where this process has not seen to that."""
        _sync_folder(folder)
        above = folder
        while above != self.root.parent and above not in self._durable:
            _sync_folder(above.parent)
            if len(self._durable) > 100_000:
                self._durable.clear()
            self._durable.add(above)
            above = above.parent

    def forget(self, folder: Path) -> None:
        """A folder was removed: its name is not durable when it is made again."""
        self._durable.discard(folder)

    def after_fork(self, owner: Owner) -> None:
        """Be a new process: the lock is the parent's, and stays so when its descriptor is closed here. So is what it promised."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd, self._lease, self.owner = -1, None, owner


def _folders(above: Path, name: str | None) -> Sequence[Path]:
    if name is not None:
        return [above / encode_name(name)]
    try:
        return sorted(Path(entry.path) for entry in os.scandir(above) if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _lease_is_over(fd: int) -> bool:
    """Tell whether an owner that promised to say that it lives has not said so in time."""
    try:
        lease = json.loads(os.pread(fd, 4096, 0)).get("lease")
    except ValueError:
        return False
    return lease is not None and time.time() - os.fstat(fd).st_mtime > lease


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


@contextmanager
def _opened(path: Path | str, flags: int) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _sync_folder(folder: Path) -> None:
    with _opened(folder, os.O_RDONLY) as fd:
        os.fsync(fd)


def refuse_remote(root: Path, mounts: str = "/proc/self/mounts") -> None:
    """Refuse a file system whose answers to `stat` may be old: a look there would be blind.

    Raises: ConfigurationError.
    """
    try:
        lines = Path(mounts).read_text(errors="surrogateescape").splitlines()
    except OSError:
        return
    kind, longest = "", -1
    for line in lines:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[1]))
        if (root == point or point in root.parents) and len(point.parts) >= longest:
            kind, longest = fields[2], len(point.parts)
    if _REMOTE.fullmatch(kind):
        raise ConfigurationError(
            f"the storage {str(root)!r} lies on a {kind!r} file system, which may show an old state of its files, so that two owners "
            f"of one run could both go on: use a local disk, or add ?trust=1 to the URL if only one machine writes there"
        )
