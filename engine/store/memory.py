"""The log's medium in memory: the same protocol over bytes in dictionaries, for tests and for runs that need not outlive a process."""

from collections.abc import Iterator

from engine.ports import Owner, RunKey


class MemoryPlace:
    """One run's segments."""

    def __init__(self, medium: "MemoryMedium", key: RunKey) -> None:
        self._medium = medium
        self._key = key

    @property
    def _segments(self) -> dict[int, bytearray]:
        return self._medium.runs.get(self._key, {})

    def path(self, n: int) -> str:
        return f"{self._medium.url}#{'.'.join(map(str, self._key))}/{n}"

    def present(self) -> list[int]:
        return sorted(self._segments)

    def create(self, n: int) -> bool:
        segment = bytearray()
        return self._medium.runs.setdefault(self._key, {}).setdefault(n, segment) is segment

    def sync(self, n: int) -> None:
        return

    def sync_folder(self) -> None:
        return

    def read(self, n: int, start: int = 0) -> bytes | None:
        segment = self._segments.get(n)
        return None if segment is None else bytes(memoryview(segment)[start:])

    def write(self, n: int, at: int, data: bytes) -> None:
        segment = self._segments.get(n)
        if segment is None:
            raise FileNotFoundError(2, "the segment was removed", self.path(n))
        segment[at : at + len(data)] = data

    def exists(self, n: int) -> bool:
        return n in self._segments

    def remove(self, n: int) -> None:
        self._segments.pop(n, None)

    def cut(self, n: int, end: int) -> None:
        segment = self._segments.get(n)
        if segment is not None:
            del segment[end:]

    def size(self, n: int) -> int:
        return len(self._segments.get(n, b""))

    def read_from(self, n: int, start: int, count: int) -> bytes:
        return bytes(self._segments.get(n, b"")[start : start + count])

    def rest(self) -> None:
        return

    def vanish(self) -> None:
        if not self._segments:
            self._medium.runs.pop(self._key, None)


class MemoryMedium:
    """Runs in this process, gone with it."""

    def __init__(self, url: str, owner: Owner) -> None:
        self.url = url
        self.owner = owner
        self.runs: dict[RunKey, dict[int, bytearray]] = {}
        self._entered = False

    def enter(self) -> None:
        self._entered = True

    def leave(self) -> None:
        self._entered = False

    def lives(self, owner: Owner) -> bool:
        return self._entered and owner.id == self.owner.id

    def lease(self, seconds: float) -> None:
        return

    def beat(self) -> None:
        return

    def prune_owners(self) -> None:
        return

    def place(self, key: RunKey) -> MemoryPlace:
        return MemoryPlace(self, key)

    def places(self, workflow: str | None, session: str | None) -> Iterator[tuple[RunKey | None, MemoryPlace]]:
        for key in list(self.runs):
            if workflow in (None, key.workflow) and session in (None, key.session):
                yield key, MemoryPlace(self, key)

    def after_fork(self, owner: Owner) -> None:
        self._entered, self.owner = False, owner
