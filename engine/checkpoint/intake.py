"""What is handed over to a log and not durable yet: the calls of `append`, in their order, and who waits for them.

Rows that arrive while others are being written wait for the next batch. To write them is up to who takes them: a thread over segments
(writer.py), a coroutine over a database.
"""

import asyncio
import itertools
import threading
from collections.abc import Generator, Sequence
from typing import Any, Generic, TypeVar

from engine.errors import GeckoError
from engine.ports import Row, RunKey

#: Bytes of values that one batch holds, unless a single call brings more.
_BATCH_BYTES = 1 << 24


class Holding:
    """The right to append to a run, while this process holds it. Everything but `rows` and `key` belongs to the intake's lock."""

    def __init__(self, key: RunKey, rows: Sequence[Row], seq: int) -> None:
        self.key = key
        self.rows = rows
        self.seq = seq
        self.waiting: list[Sequence[Row]] = []
        self.calls = 0
        """How many calls of `append` there were, and how many of them are durable."""
        self.durable = 0
        self.waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.queued = False
        """Whether what waits will be come to without being asked again."""
        self.ended: GeckoError | None = None
        """Why no more may be appended."""
        self.told = False
        """Whether anybody who waited was told so."""

    def forget(self) -> None:
        self.rows = ()

    @property
    def epoch(self) -> int:
        raise NotImplementedError


H = TypeVar("H", bound=Holding)


class Commit:
    """The answer to one call of `append`: awaitable, by anybody, any number of times, or never. Only who awaits it wakes an event loop."""

    __slots__ = ("_call", "_claim", "_intake")

    def __init__(self, intake: "Intake[Any]", claim: Holding, call: int) -> None:
        self._intake, self._claim, self._call = intake, claim, call

    def __await__(self) -> Generator[Any, None, None]:
        if self._claim.durable < self._call:
            future = self._intake.expect(self._claim, self._call)
            if future is not None:
                yield from future

    def done(self) -> bool:
        return self._claim.durable >= self._call or self._claim.ended is not None


class Intake(Generic[H]):
    """Takes rows over for any number of claims, and answers when whoever writes them says how that went."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def _wake(self, claim: H) -> None:
        """Have a claim come to, soon. Called under the lock."""
        raise NotImplementedError

    def append(self, claim: H, rows: Sequence[Row]) -> Commit:
        """Take rows over; those whose `seq` was taken over before are passed by, so that a call may be repeated.

        Raises: ValueError when the rows of one call do not ascend.
        """
        with self._lock:
            last = claim.seq
            for row in rows:
                if row.seq <= last:
                    rows = _unseen(rows, claim.seq)
                    last = rows[-1].seq if rows else claim.seq
                    break
                last = row.seq
            claim.calls += 1
            call = claim.calls
            if claim.ended is None:
                if rows:
                    claim.waiting.append(rows)
                    claim.seq = last
                self._queue_up(claim)
        return Commit(self, claim, call)

    def expect(self, claim: H, call: int) -> "asyncio.Future[None] | None":
        """Return what resolves when that call of `append` is durable, and have what failed tried again; None where it is durable."""
        loop = asyncio.get_running_loop()
        with self._lock:
            if claim.durable >= call:
                return None
            if claim.ended is not None:
                claim.told = True
                raise _again(claim.ended)
            future = loop.create_future()
            claim.waiters.append((call, future))
            if claim.waiting:
                self._queue_up(claim)
        return future

    def end(self, claim: H, why: GeckoError) -> None:
        """Take no more for a claim, and tell those who wait."""
        with self._lock:
            claim.ended = claim.ended or why
            claim.waiting.clear()
            waiters, claim.waiters = claim.waiters, []
            claim.told = claim.told or bool(waiters)
        _resolve([future for _, future in waiters], claim.ended)

    def _queue_up(self, claim: H) -> None:
        if not claim.queued:
            claim.queued = True
            self._wake(claim)

    def _take(self, claim: H) -> tuple[list[Sequence[Row]], int]:
        """Take what waits, with the number of calls that it is the end of."""
        with self._lock:
            taken, claim.waiting = claim.waiting, []
            claim.queued = False
            return taken, claim.calls

    def _settle(self, claim: H, calls: int) -> None:
        """Say that so many calls are durable."""
        with self._lock:
            claim.durable = calls
            ready = [future for call, future in claim.waiters if call <= calls]
            claim.waiters = [waiter for waiter in claim.waiters if waiter[0] > calls]
        _resolve(ready, None)

    def _put_back(self, claim: H, taken: Sequence[Sequence[Row]], failure: GeckoError) -> None:
        """Keep what could not be written for the next try, which the next call or the next who waits asks for."""
        with self._lock:
            claim.waiting = [*taken, *claim.waiting]
            waiters, claim.waiters = claim.waiters, []
        _resolve([future for _, future in waiters], failure)


def one_batch(taken: Sequence[Sequence[Row]], first: int) -> tuple[Sequence[Row], int]:
    """Join as many calls as fit into one batch; a call is never divided. Returns the rows and how many calls they are."""
    if first == len(taken) - 1:
        return taken[first], 1
    rows: list[Row] = []
    size = many = 0
    for call in taken[first:]:
        size += sum(len(value) for row in call for value in row[5:] if value)
        if many and size > _BATCH_BYTES:
            break
        rows += call
        many += 1
    return rows, many


def _again(error: GeckoError) -> GeckoError:
    """A fresh error of the same kind, since one that is raised twice collects the tracebacks of both."""
    return type(error)(str(error))


def _unseen(rows: Sequence[Row], last: int) -> Sequence[Row]:
    if any(a.seq >= b.seq for a, b in itertools.pairwise(rows)):
        raise ValueError("the rows of one append must ascend by seq")
    return [row for row in rows if row.seq > last]


def _resolve(futures: Sequence["asyncio.Future[None]"], error: GeckoError | None) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in futures:
        by_loop.setdefault(future.get_loop(), []).append(future)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_answer, waiting, error)
        except RuntimeError:  # the loop was closed, and nobody waits there any more
            continue


def _answer(futures: Sequence["asyncio.Future[None]"], error: GeckoError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
