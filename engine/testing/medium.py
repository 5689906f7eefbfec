"""A disk for simulations: memory whose writes are counted and can be the last thing that their process does.

`FaultyMedium` wraps any medium; `SimulatedLog` is a `Log` over one, by the very protocol that files are written by (journal.py) and in
the same bytes (batch.py), but without threads: every write happens at its own moment of virtual time. Which write is to fail, and how,
is handed in; what follows from a crash is for the simulation to see.
"""

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from engine.checkpoint.batch import BatchFormat
from engine.checkpoint.journal import Held, append, claim, commit, perform, view
from engine.core.events import STATUS_AFTER
from engine.errors import GeckoError, LeaseLost, RunNotFound, StoreUnavailable
from engine.ports import Claim, Clock, Owner, Row, RunKey, RunSummary
from engine.store.memory import MemoryMedium

When = Literal["before", "torn", "after"]
MOMENTS: tuple[When, ...] = ("before", "torn", "after")
"""Where a process can die at a write: nothing of it landed, half of it, all of it while the writer does not know."""
_RELEASING = frozenset(status for status in STATUS_AFTER.values() if status != "running")


class Write(NamedTuple):
    """A change of the medium."""

    number: int
    """From 1, counted over all lives of a simulation."""
    verb: str
    """`create` (an empty segment) or `write`."""
    size: int
    """Bytes."""


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a write."""

    when: When | None = None
    """Where the process dies; None: it lives."""
    refused: bool = False
    """Whether the medium refuses the write, as a full disk would."""


Oracle = Callable[[Write], Fate]


class FaultyMedium:
    """A medium that asks an oracle what becomes of each write. After a crash nothing of this life reaches it any more."""

    def __init__(self, medium: Any, oracle: Oracle, *, written: int = 0, on_crash: Callable[[], None] | None = None) -> None:
        """Wrap a medium; writes are numbered on from `written`. `on_crash` is called where the process dies, in its thread."""
        self.inner = medium
        self.url: str = medium.url
        self.dead = False
        self.writes: list[Write] = []
        self._oracle = oracle
        self._written = written
        self._on_crash = on_crash

    @property
    def owner(self) -> Owner:
        """Who drives runs in this life."""
        return self.inner.owner

    def place(self, key: RunKey) -> "FaultyPlace":
        """Return the place of a run."""
        return FaultyPlace(self.inner.place(key), self)

    def places(self, workflow: str | None, session: str | None) -> Any:
        """Return the places of all runs."""
        return self.inner.places(workflow, session)

    def die(self) -> None:
        """Let nothing more of this life reach the medium."""
        if not self.dead:
            self.dead = True
            if self._on_crash is not None:
                self._on_crash()

    def change(self, verb: str, size: int, make: Callable[[int], Any]) -> Any:
        """Carry out a change as the oracle says; `make(count)` puts so many of its bytes in place."""
        if self.dead:
            raise OSError(errno.EIO, "this process has crashed")
        write = Write(self._written + len(self.writes) + 1, verb, size)
        self.writes.append(write)
        fate = self._oracle(write)
        if fate.refused:
            raise OSError(errno.ENOSPC, "the simulated disk is full")
        if fate.when in ("before", "torn"):
            if fate.when == "torn" and verb == "write":
                make(size // 2)
            self.die()
            raise OSError(errno.EIO, "this process crashed before the write landed")
        done = make(size)
        if fate.when == "after":
            self.die()
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class FaultyPlace:
    """A run's segments on a faulty medium."""

    def __init__(self, place: Any, medium: FaultyMedium) -> None:
        """Wrap a place."""
        self._place = place
        self._medium = medium

    def create(self, n: int) -> bool:
        """Make an empty segment."""
        return self._medium.change("create", 0, lambda _: self._place.create(n))

    def write(self, n: int, at: int, data: bytes) -> None:
        """Put data in place, or a part of it."""
        self._medium.change("write", len(data), lambda count: self._place.write(n, at, data[:count]))

    def path(self, n: int) -> str:
        """Name a segment, for messages."""
        return self._place.path(n)

    def cut(self, n: int, end: int) -> None:
        """Give back the space behind the end of a segment."""
        if not self._medium.dead:
            self._place.cut(n, end)

    def rest(self) -> None:
        """Let go of files."""
        self._place.rest()

    def __getattr__(self, name: str) -> Any:
        if self._medium.dead:
            raise OSError(errno.EIO, "this process has crashed")
        return getattr(self._place, name)


class Append:
    """The answer to one call of `append`: awaitable by anybody, any number of times, or never."""

    def __init__(self, task: "asyncio.Task[None]") -> None:
        """Stand for the task that writes."""
        self._task = task
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may ever ask

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.shield(self._task).__await__()

    def done(self) -> bool:
        """Whether it is written."""
        return self._task.done() and not self._task.cancelled() and self._task.exception() is None

    async def settled(self) -> None:
        """Return when it is written or refused."""
        await asyncio.wait({self._task})


class SimulatedClaim:
    """The right to append, in one life of the simulation."""

    def __init__(self, key: RunKey, place: FaultyPlace, held: Held, rows: Sequence[Row]) -> None:
        """Made by `SimulatedLog.claim`."""
        self.key = key
        self.rows: Sequence[Row] = rows
        self.place = place
        self.held = held
        self.form = BatchFormat(key)
        self.newest: Append | None = None

    @property
    def epoch(self) -> int:
        """The epoch that this claim opened."""
        return self.held.record.epoch

    def forget(self) -> None:
        """Let go of the rows."""
        self.rows = ()


class SimulatedLog:
    """A log over a faulty medium, driven on a virtual loop. Its owners are dead as soon as another life begins."""

    def __init__(self, medium: FaultyMedium, clock: Clock, *, latency: float = 0.0005) -> None:
        """Let every write take `latency` virtual seconds."""
        self.url = medium.url
        self._medium = medium
        self._clock = clock
        self._latency = latency

    async def claim(self, key: RunKey, *, takeover: bool = False, wait: float = 0.0) -> Claim:
        """Open the next epoch; whoever drove the run before is dead."""
        await self._clock.sleep(self._latency)
        place, form = self._medium.place(key), BatchFormat(key)
        with _Crash(self._medium):
            claimed = None
            while claimed is None:
                claimed = perform(claim(form, self._medium.owner, since=self._clock.now()), place)  # type: ignore[arg-type]
            held = Held(record=claimed.record, seal=claimed.seal, tail=claimed.tail)
            return SimulatedClaim(key, place, held, [row for segment in claimed.segments for row in segment.rows])
        return await _forever()

    def append(self, claim: Claim, rows: Sequence[Row]) -> "Append":
        """Write rows as one batch, after those that were handed over before."""
        assert isinstance(claim, SimulatedClaim)
        task = asyncio.get_running_loop().create_task(self._append(claim, rows, claim.newest))
        claim.newest = Append(task)
        return claim.newest

    async def _append(self, claim: SimulatedClaim, rows: Sequence[Row], before: "Append | None") -> None:
        if before is not None:
            await before.settled()
        await self._clock.sleep(self._latency)
        rows = [row for row in rows if row.seq > claim.held.tail.seq]  # a repeated call passes by what is there
        with _Crash(self._medium):
            won = not rows or perform(commit(claim.form, claim.held, rows, since=self._clock.now()), claim.place)  # type: ignore[arg-type]
            if not won:
                raise LeaseLost(f"run {'.'.join(map(str, claim.key))!r} was claimed again in this simulation")
        if self._medium.dead:
            await _forever()

    async def release(self, claim: Claim) -> None:
        """Write the end of the ownership, unless the run's status tells it."""
        assert isinstance(claim, SimulatedClaim)
        held = claim.held
        if claim.newest is not None:
            await claim.newest.settled()
        if self._medium.dead or held.broken or held.tail.status in _RELEASING:
            return
        with _Crash(self._medium):
            data = claim.form.release(held.record, held.seal.end, held.tail)
            perform(append(held.record.epoch, held.seal.end, data), claim.place)  # type: ignore[arg-type]
        if self._medium.dead:
            await _forever()

    async def read(self, key: RunKey, *, after: int = 0) -> Sequence[Row]:
        """Read what is committed."""
        return committed(self._medium.inner, key, after=after)

    def fetch(self, key: RunKey, seqs: Sequence[int]) -> Mapping[int, Row]:
        """Return rows by their numbers."""
        wanted = set(seqs)
        return {row.seq: row for row in committed(self._medium.inner, key) if row.seq in wanted}

    async def follow(self, key: RunKey, *, after: int = 0) -> AsyncIterator[Sequence[Row]]:
        """Yield what is committed now."""
        yield await self.read(key, after=after)

    async def scan(
        self, *, workflow: str | None = None, session: str | None = None, on_damage: Callable[[str, GeckoError], object] | None = None
    ) -> Sequence[RunSummary]:
        """List the runs; nothing is damaged here without a test saying so."""
        found: list[RunSummary] = []
        for key, _ in self._medium.places(workflow, session):
            tail = _view(self._medium.inner, key).tail
            found.append(
                RunSummary(key=key, status=tail.status, started_at=tail.started, updated_at=tail.updated, seq=tail.seq, owner=None)
            )
        return found

    async def delete(self, key: RunKey) -> None:
        """Forget a run."""
        self._medium.inner.runs.pop(key, None)

    async def prune(self, *, older_than: float) -> int:
        """Remove nothing: a simulation is short."""
        return 0

    def keep_lease(self, seconds: float) -> None:
        """Do nothing: who lives is the simulation's to say."""

    async def close(self) -> None:
        """Do nothing: every append is in place when it returns."""


def make_memory(name: str) -> MemoryMedium:
    """Return an empty disk, which outlives the lives of a simulation."""
    return MemoryMedium(f"memory://{name}", Owner(id="simulated", host="simulated", pid=0))


def committed(medium: Any, key: RunKey, *, after: int = 0) -> list[Row]:
    """Return what a medium holds of a run, as the next owner will find it. Raises: RunNotFound."""
    found = _view(medium, key)
    if found.record is None:
        raise RunNotFound(f"run {'.'.join(map(str, key))!r} was not found in {medium.url}")
    return [row for row in found.rows if row.seq > after]


def _view(medium: Any, key: RunKey) -> Any:
    # A claim that died before its record cuts nothing yet, so what the newest record shows is what there is.
    return perform(view(BatchFormat(key), provisional=True, sync=False), medium.place(key))  # type: ignore[arg-type]


class _Crash:
    """Holds back what a dead process would raise, so that no code goes on to see it; what a living one is refused is StoreUnavailable."""

    def __init__(self, medium: FaultyMedium) -> None:
        self._medium = medium

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, OSError) and not self._medium.dead:
            raise StoreUnavailable(f"the simulated disk refuses: {error.strerror}") from error
        return isinstance(error, OSError)


async def _forever() -> Any:
    """Wait until the dead process's tasks are dropped."""
    await asyncio.get_running_loop().create_future()
