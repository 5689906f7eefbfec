"""The thread that makes rows durable, one for all runs of a log: the event loop never syncs.

Rows are written as soon as the thread is free; those that arrive while a sync is under way share the next batch of their run. To wait
for more of them is up to whoever hands them over. It owns open claims; what is handed over but not durable is intake.py's, when a claim
may be made, and what is read, is log.py's, and the order of disk operations is journal.py's.
"""

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from engine.checkpoint.batch import RELEASING, BatchFormat
from engine.checkpoint.intake import Holding, Intake, one_batch
from engine.checkpoint.journal import Held, Place, append, commit, perform
from engine.errors import GeckoError, LeaseLost, StoreUnavailable
from engine.ports import Row, RunKey

logger = logging.getLogger(__name__)

#: Segments kept open; a run that waits gives its file back.
_MOST_OPEN = 200


class WritingPlace(Place, Protocol):
    """A run's folder as the writer uses it."""

    def path(self, n: int) -> str: ...
    def cut(self, n: int, end: int) -> None: ...
    def rest(self) -> None: ...


class OpenClaim(Holding):
    """The right to append to a run's segments. Everything but `rows` and `key` belongs to the writer's lock."""

    def __init__(self, key: RunKey, place: WritingPlace, held: Held, rows: Sequence[Row]) -> None:
        super().__init__(key, rows, held.tail.seq)
        self.place = place
        self.held = held
        self.form = BatchFormat(key, place.path)

    @property
    def epoch(self) -> int:
        return self.held.record.epoch

    @property
    def driving(self) -> bool:
        """Whether this claim still keeps others from the run."""
        return self.ended is None and self.held.tail.status not in RELEASING


#: What the thread is handed: a claim with rows, an errand, or None to stop.
_Item = OpenClaim | Callable[[], None] | None


class Writer(Intake[OpenClaim]):
    """One daemon thread that commits what is appended to any number of open claims."""

    def __init__(self) -> None:
        super().__init__()
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._turn = threading.Lock()
        self._thread: threading.Thread | None = None
        self._open: OrderedDict[OpenClaim, None] = OrderedDict()

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

    def _wake(self, claim: OpenClaim) -> None:
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
        taken, calls = self._take(claim)
        if claim.ended is not None:
            return
        done = 0
        while done < len(taken):
            rows, many = one_batch(taken, done)
            try:
                won = perform(commit(claim.form, claim.held, rows, since=time.time()), claim.place)
            except OSError as error:
                self._refuse(claim, taken[done:], error)
                return
            if not won:
                raise _lost(claim)
            done += many
        self._keep_open(claim)
        self._settle(claim, calls)

    def _refuse(self, claim: OpenClaim, taken: Sequence[Sequence[Row]], error: OSError) -> None:
        text = (
            f"{claim.place.path(claim.epoch)} cannot be written ({error.strerror or error}): see to space, permissions and the disk, "
            "then resume the run"
        )
        logger.warning("a commit failed", extra={"run": claim.key, "error": str(error)})
        failure = StoreUnavailable(text)
        failure.__cause__ = error
        self._put_back(claim, taken, failure)

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
