"""The thread that makes rows durable, one for all runs of a log: the event loop never syncs.

Rows are written as soon as the thread is free; those that arrive while a sync is under way share the next batch of their run. To wait
for more of them is up to whoever hands them over. It owns open claims and what is handed over but not durable; when a claim may be
made, and what is read, is log.py's, and the order of disk operations is journal.py's.
"""

import asyncio
import itertools
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from engine.checkpoint.batch import RELEASING, BatchFormat
from engine.checkpoint.journal import Held, Place, append, commit, perform
from engine.errors import GeckoError, LeaseLost, StoreUnavailable
from engine.ports import Row, RunKey

logger = logging.getLogger(__name__)

#: Bytes of values that one batch holds, unless a single call brings more.
_BATCH_BYTES = 1 << 24
#: Segments kept open; a run that waits gives its file back.
_MOST_OPEN = 200


class WritingPlace(Place, Protocol):
    """A run's folder as the writer uses it."""

    def path(self, n: int) -> str: ...
    def cut(self, n: int, end: int) -> None: ...
    def rest(self) -> None: ...


class OpenClaim:
    """The right to append to a run, while this process holds it. Everything but `rows` and `key` belongs to the writer's lock."""

    def __init__(self, key: RunKey, place: WritingPlace, held: Held, rows: Sequence[Row]) -> None:
        self.key = key
        self.rows = rows
        self.place = place
        self.held = held
        self.form = BatchFormat(key, place.path)
        self.seq = held.tail.seq
        self.waiting: list[Sequence[Row]] = []
        self.calls = 0
        """How many calls of `append` there were, and how many of them are durable."""
        self.durable = 0
        self.waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.queued = False
        """Whether the thread will come to the claim without being asked again."""
        self.ended: GeckoError | None = None
        """Why no more may be appended."""
        self.told = False
        """Whether anybody who waited was told so."""

    def forget(self) -> None:
        self.rows = ()

    @property
    def epoch(self) -> int:
        return self.held.record.epoch

    @property
    def driving(self) -> bool:
        """Whether this claim still keeps others from the run."""
        return self.ended is None and self.held.tail.status not in RELEASING


class Commit:
    """The answer to one call of `append`: awaitable, by anybody, any number of times, or never. Only who awaits it wakes an event loop."""

    __slots__ = ("_call", "_claim", "_writer")

    def __init__(self, writer: "Writer", claim: OpenClaim, call: int) -> None:
        self._writer, self._claim, self._call = writer, claim, call

    def __await__(self) -> Generator[Any, None, None]:
        if self._claim.durable < self._call:
            future = self._writer.expect(self._claim, self._call)
            if future is not None:
                yield from future

    def done(self) -> bool:
        return self._claim.durable >= self._call or self._claim.ended is not None


#: What the thread is handed: a claim with rows, an errand, or None to stop.
_Item = OpenClaim | Callable[[], None] | None


class Writer:
    """One daemon thread that commits what is appended to any number of open claims."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._open: OrderedDict[OpenClaim, None] = OrderedDict()

    def append(self, claim: OpenClaim, rows: Sequence[Row]) -> Commit:
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

    def expect(self, claim: OpenClaim, call: int) -> "asyncio.Future[None] | None":
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

    def ask(self, errand: Callable[[], None]) -> None:
        """Have something done by the thread after everything handed over was tried."""
        with self._lock:
            self._start().put(errand)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything handed over was tried; False when the time ran out."""
        done = threading.Event()
        self.ask(done.set)
        return done.wait(timeout)

    def stop(self) -> None:
        """Commit what is there and end the thread; a later call starts another."""
        with self._lock:
            thread, self._thread = self._thread, None
            former, self._queue = self._queue, queue.SimpleQueue()
        if thread is not None:
            former.put(None)
            thread.join()

    def end(self, claim: OpenClaim, why: GeckoError) -> None:
        """Take no more for a claim, and tell those who wait."""
        with self._lock:
            claim.ended = claim.ended or why
            claim.waiting.clear()
            waiters, claim.waiters = claim.waiters, []
            claim.told = claim.told or bool(waiters)
        _resolve([future for _, future in waiters], claim.ended)

    def release(self, claim: OpenClaim) -> None:
        """Write the end of an ownership, unless the run's status tells it already. An errand: the thread's own files are used."""
        held = claim.held
        try:
            if claim.ended is None and not held.broken:
                if held.tail.status not in RELEASING:
                    data = claim.form.release(held.record, held.seal.end, held.tail)
                    held.broken = True  # whatever happens to this write, nothing comes after it
                    perform(append(held.record.epoch, held.seal.end, data), claim.place)
                    claim.place.cut(held.record.epoch, held.seal.end + len(data))
                else:
                    claim.place.cut(held.record.epoch, held.seal.end)
        except OSError as error:
            logger.warning("the end of an ownership could not be written", extra={"run": claim.key, "error": str(error)})
        finally:
            self.end(claim, _RELEASED)
            self._open.pop(claim, None)
            claim.place.rest()

    def after_fork(self) -> None:
        """Begin anew in a forked child, which has neither the thread nor the claims."""
        self.__init__()

    def _start(self) -> "queue.SimpleQueue[_Item]":
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, args=(self._queue,), name="gecko-log", daemon=True)
            self._thread.start()
        return self._queue

    def _queue_up(self, claim: OpenClaim) -> None:
        if not claim.queued:
            claim.queued = True
            self._start().put(claim)

    def _run(self, items: "queue.SimpleQueue[_Item]") -> None:
        with self._turn:  # a thread that is told to stop finishes before its successor begins
            while (item := items.get()) is not None:
                if isinstance(item, OpenClaim):
                    self._commit_or_end(item)
                    continue
                try:
                    item()
                except OSError as error:  # one that fails must not end the thread for every other run
                    logger.warning("a file could not be let go of", extra={"error": str(error)})

    def _commit_or_end(self, claim: OpenClaim) -> None:
        try:
            self._commit(claim)
        except GeckoError as error:
            self.end(claim, error)
        except Exception as error:  # a row that cannot be written must not end the thread for every other run
            logger.exception("a batch could not be made", extra={"run": claim.key})
            self.end(claim, StoreUnavailable(f"rows of run {'.'.join(map(str, claim.key))!r} could not be written: {error!r}"))

    def _commit(self, claim: OpenClaim) -> None:
        with self._lock:
            taken, claim.waiting = claim.waiting, []
            calls, claim.queued = claim.calls, False
        if claim.ended is not None:
            return
        done = 0
        while done < len(taken):
            rows, many = _one_batch(taken, done)
            try:
                won = perform(commit(claim.form, claim.held, rows, since=time.time()), claim.place)
            except OSError as error:
                self._put_back(claim, taken[done:], error)
                return
            if not won:
                raise _lost(claim)
            done += many
        self._keep_open(claim)
        with self._lock:
            claim.durable = calls
            ready = [future for call, future in claim.waiters if call <= calls]
            claim.waiters = [waiter for waiter in claim.waiters if waiter[0] > calls]
        _resolve(ready, None)

    def _put_back(self, claim: OpenClaim, taken: Sequence[Sequence[Row]], error: OSError) -> None:
        """Keep what could not be written for the next try, which the next call or the next who waits asks for."""
        text = (
            f"{claim.place.path(claim.epoch)} cannot be written ({error.strerror or error}): see to space, permissions and the disk, "
            "then resume the run"
        )
        logger.warning("a commit failed", extra={"run": claim.key, "error": str(error)})
        with self._lock:
            claim.waiting = [*taken, *claim.waiting]
            waiters, claim.waiters = claim.waiters, []
        failure = StoreUnavailable(text)
        failure.__cause__ = error
        _resolve([future for _, future in waiters], failure)

    def _keep_open(self, claim: OpenClaim) -> None:
        self._open[claim] = None
        self._open.move_to_end(claim)  # the one that is let go of first comes first
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[0].place.rest()


_RELEASED = LeaseLost("the claim was released; claim the run again to append to it")


def _lost(claim: OpenClaim) -> LeaseLost:
    run = ".".join(map(str, claim.key))
    try:
        gone = not claim.place.present()
    except OSError:
        gone = False
    if gone:
        return LeaseLost(f"the log of run {run!r} is gone: {claim.place.path(claim.epoch)} was removed while the run went on")
    return LeaseLost(f"another owner drives run {run!r} now: it opened a newer epoch than {claim.epoch}; stop, and read what it commits")


def _again(error: GeckoError) -> GeckoError:
    """A fresh error of the same kind, since one that is raised twice collects the tracebacks of both."""
    return type(error)(str(error))


def _unseen(rows: Sequence[Row], last: int) -> Sequence[Row]:
    if any(a.seq >= b.seq for a, b in itertools.pairwise(rows)):
        raise ValueError("the rows of one append must ascend by seq")
    return [row for row in rows if row.seq > last]


def _one_batch(taken: Sequence[Sequence[Row]], first: int) -> tuple[Sequence[Row], int]:
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


def _resolve(futures: Sequence["asyncio.Future[None]"], error: GeckoError | None) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for future in futures:
        by_loop.setdefault(future.get_loop(), []).append(future)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle, waiting, error)
        except RuntimeError:  # the loop was closed, and nobody waits there any more
            continue


def _settle(futures: Sequence["asyncio.Future[None]"], error: GeckoError | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
