"""The world as the engine sees it: protocols only, each method with its contract. Backends are chosen by URL or name."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from engine.core.ids import make_run_id
from engine.errors import GeckoError


class RunKey(NamedTuple):
    """Where a run lives: the n-th run (from 1) of a session of a workflow."""

    workflow: str
    session: str
    n: int


class Row(NamedTuple):
    """One durable event as a log keeps it: the codec's bytes where values are, so a log never looks inside them."""

    seq: int
    at: float
    """Seconds since 1970, UTC."""
    kind: str
    node: str = ""
    step: str = ""
    """The step id without the run's id: `node/pass[/ordinal...]`; empty for run events."""
    output: bytes | None = None
    diff: bytes | None = None
    info: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who drives a run: one process."""

    id: str
    """Random, made once a process; names the lock file by which others see that it lives."""
    host: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run as lists show it, read from the tail of its log."""

    key: RunKey
    status: str
    started_at: float
    updated_at: float
    seq: int
    owner: Owner | None
    """Its owner while one lives and drives it, else None."""
    size: int = 0
    """Bytes of its log, with space taken ahead."""

    @property
    def run_id(self) -> str:
        """`workflow.session.n`."""
        return make_run_id(*self.key)


class Claim(Protocol):
    """The right to append to a run, until a newer epoch exists or it is released."""

    @property
    def key(self) -> RunKey: ...
    @property
    def epoch(self) -> int: ...
    @property
    def rows(self) -> Sequence[Row]:
        """What was committed before this claim, in order; empty for a new run."""
        ...

    def forget(self) -> None:
        """Let go of `rows`: they have been read."""
        ...


class Appended(Awaitable[None], Protocol):
    """The answer to a call of `append`."""

    def done(self) -> bool:
        """Whether to await it would not wait; a failure that may pass is not known before somebody awaits."""
        ...


class Log(Protocol):
    """The committed events of runs. `check_log` in engine/testing tests every promise below."""

    url: str

    async def claim(self, key: RunKey, *, takeover: bool = False, wait: float = 0.0) -> Claim:
        """Open the next epoch of a run and seal what came before; the run is made where it is not there.

        While an owner lives and drives the run it is refused after `wait` seconds, unless `takeover`. Of two claimers one wins.

        Raises: RunBusy, CorruptCheckpoint, UnknownFormat, StoreUnavailable.
        """
        ...

    def append(self, claim: Claim, rows: Sequence[Row]) -> Appended:
        """Hand over rows, to be written without delay; durable, all or none of them, when the answer is awaited.

        Calls take effect in their order, from the call on. Rows that wait for the same sync share one batch. A failure waits
        for whoever awaits the answer; the same rows may then be handed over again.

        Raises (when awaited): LeaseLost, StoreUnavailable.
        """
        ...

    async def release(self, claim: Claim) -> None:
        """End the ownership after everything appended is durable; a released claim is used no more."""
        ...

    async def read(self, key: RunKey, *, after: int = 0) -> Sequence[Row]:
        """Every committed row with a greater `seq`, in order: nothing torn, nothing that a newer claim could still cut.

        Raises: RunNotFound, CorruptCheckpoint, UnknownFormat, StoreUnavailable.
        """
        ...

    def fetch(self, key: RunKey, seqs: Sequence[int]) -> Mapping[int, Row]:
        """Return committed rows by their numbers; blocks while it reads. For values that were too large to be kept in memory."""
        ...

    def follow(self, key: RunKey, *, after: int = 0) -> AsyncIterator[Sequence[Row]]:
        """Yield committed rows as they come, until the run ends or nobody drives it."""
        ...

    async def scan(
        self, *, workflow: str | None = None, session: str | None = None, on_damage: Callable[[str, GeckoError], object] | None = None
    ) -> Sequence[RunSummary]:
        """The runs, newest first, read from their tails.

        One whose log is damaged, or of a newer format, is left out: with a warning in the log of the program, or `on_damage` is called
        with its place and what is wrong, in any thread.
        """
        ...

    async def delete(self, key: RunKey) -> None:
        """Remove a run by name: claim it, remove its data, leave a tombstone. Raises: RunBusy, RunNotFound."""
        ...

    def keep_lease(self, seconds: float) -> None:
        """Let this process, as an owner of runs, be believed to live only while it says so again within so many seconds.

        It is said by a thread of the log, so an owner that is stopped, frozen or cut off loses its runs to whoever claims them after that
        time; the epoch keeps it from committing when it wakes. Called once, before the first claim; where owners have leases in any case
        it changes nothing.
        """
        ...

    async def prune(self, *, older_than: float) -> int:
        """Remove finished runs untouched for that many seconds, old tombstones and dead owners' files; how many runs."""
        ...

    async def close(self) -> None:
        """Make everything appended durable and let go of files and threads."""
        ...


class Clock(Protocol):
    """Time; the simulator's jumps."""

    def now(self) -> float:
        """Seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds of the event loop that runs are driven on."""
        ...

    def chance(self) -> float:
        """A number from 0 to 1, for jitter; the simulator's comes from its seed."""
        ...

    async def sleep(self, delay: float) -> None: ...
