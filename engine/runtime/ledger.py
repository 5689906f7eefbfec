"""What a driver writes down: events get their numbers, go to storage as the strategy says, and to whoever watches after that.

    always   what a layer stands on is on storage before it starts
    async    commits follow the work in order; a crash loses at most 50 ms or 64 commits
    final    at the end, a pause, a failure
    manual   at `ctx.checkpoint()` alone

At most one append is under way; rows that come meanwhile make up the next one, so nothing can overtake. A group of rows that is told
without waiting in between lands in one append, whole.

Under `async` the run's own turns do what timers would: whoever wakes an event loop in the middle of a body's `asyncio.sleep` makes that
sleep up to a millisecond longer, since epoll counts in whole ones. So rows are handed over at the commit after which the next one would
come too late, and an append is found to be durable at a later commit. A timer is there for bodies that take longer.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from engine.checkpoint.codec import encode
from engine.checkpoint.record import CALLED, event_of
from engine.core.events import Event
from engine.errors import LeaseLost, StoreUnavailable
from engine.ports import Appended, Claim, Clock, Log, Row
from engine.runtime.clock import SystemClock

logger = logging.getLogger(__name__)

GROUP = 0.02
"""Seconds that a finished step is away from storage at most, under `always`."""
LAG = 0.04
"""The same under `async`; the append itself takes the rest of the 50 ms."""
COMMITS = 32
"""How many commits wait for one append under `async`; as many may be under way."""
ROWS = 2 * COMMITS
"""How many rows wait for one where none is under way: what a worker performed ahead is written while it performs what follows."""
PAUSES = (0.05, 0.2, 0.8, 2.0)
"""Seconds between attempts to append while the storage refuses."""

_TELL_A_VALUE = frozenset(["run_started", "run_completed", "step_succeeded", "once_done"])

_INSTEAD = frozenset(["items", "answer"])
"""What a map and a team tell in place of a value."""

Listener = Callable[[Event], object]


class _Handed:
    """Rows that the log has, and does not confirm yet."""

    __slots__ = ("append", "begun", "rows")

    def __init__(self, rows: list[Row], append: Appended) -> None:
        self.rows = rows
        self.append = append
        self.begun = time.perf_counter()


class Ledger:
    """The events of one run, on their way out."""

    def __init__(
        self, run_id: str, log: Log | None, claim: Claim | None, *, strategy: str = "always", on_failure: str = "stop", seq: int = 0
    ) -> None:
        """Go on after event number `seq`; without a log, events are only shown."""
        self.run_id = run_id
        self.log = log
        self.claim = claim
        self.strategy = strategy
        self.seq = seq
        self.durable = seq
        self.failures = 0
        self.finished = 0
        """How many steps succeeded, items and steps of sub-workflows among them: as many as the log has `step_succeeded`."""
        self.clock: Clock = SystemClock()
        """Time for the driver too; the simulator puts its own here before the run is driven."""
        self.listeners: list[Listener] = []
        self.loop: asyncio.AbstractEventLoop
        """The event loop that the run is driven on; set when it starts."""
        self.intents: set[tuple[str, str]] = set()
        """(step, key) of the effects that were begun."""
        self.receipts: dict[tuple[str, str], bytes] = {}
        """(step, key) to the value of the effects that are done."""
        self._on_failure = on_failure
        self._rows: list[Row] = []
        self._commits = 0
        self._first_commit = self._last_commit = 0.0
        """When the first of them was, and the newest of all."""
        self._ordinal = 0
        self._handed: _Handed | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        """When rows that wait are handed over at the latest."""
        self._check: asyncio.TimerHandle | None = None
        """When somebody waits for the append under way at the latest."""
        self.failed: BaseException | None = None
        """Why nothing more can be written: the run stops."""
        self.on_failed: Callable[[], object] = lambda: None
        """Called when that is found out: bodies need not be performed whose ends nobody can record."""
        self._closed = False

    @property
    def stores(self) -> bool:
        """Whether there is a log."""
        return self.log is not None

    @property
    def quiet(self) -> bool:
        """Whether nobody would see an event."""
        return self.log is None and not self.listeners

    def tell(
        self, kind: str, node: str = "", step: str = "", data: dict[str, Any] | None = None, *,
        attempt: int = 0, output: bytes | None = None, value: Any = None, diff: bytes | None = None,
    ) -> None:  # fmt: skip
        """Write down a durable event.

        Args:
            step: The step id without the run's.
            data: Small data; big values are `output` and `diff`, already in their bytes (`value` is the output itself, for a run without
                a log).
        """
        if self._closed:
            return
        self.seq += 1
        if self.log is not None:
            if attempt > 1:
                data = {**(data or {}), "attempt": attempt}
            self._rows.append(Row(self.seq, self.clock.now(), kind, node, step, output, diff, encode(data, where=kind) if data else None))
        elif self.listeners:
            step_id = f"{self.run_id}/{step}" if step else ""
            told = data or {}
            if value is not None or (kind in _TELL_A_VALUE and not told.keys() & _INSTEAD):  # None is a value too
                told = {**told, CALLED.get(kind, "output"): value}
            attempt = attempt or (1 if step else 0)
            self._show(Event(self.run_id, self.seq, datetime.now(UTC), kind, node, step_id, attempt, told))

    def show(self, kind: str, node: str = "", step: str = "", data: dict[str, Any] | None = None) -> None:
        """Show a transient event to whoever watches now."""
        if self.listeners:
            self._ordinal += 1
            step_id = f"{self.run_id}/{step}" if step else ""
            seq = self.durable if self.stores else self.seq
            self._show(Event(self.run_id, seq, datetime.now(UTC), kind, node, step_id, 0, data or {}, self._ordinal))

    def _show(self, event: Event) -> None:
        for listener in tuple(self.listeners):
            listener(event)

    def soon(self) -> None:
        """See to it that what was told reaches the storage within the group's time, without waiting for it."""
        if self._rows and self._timer is None and self.strategy in ("always", "async"):
            self._timer = asyncio.get_running_loop().call_later(GROUP if self.strategy == "always" else LAG, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._write()

    async def commit(self) -> None:
        """End a commit: return when the strategy allows the work to go on.

        Raises: StoreUnavailable, LeaseLost.
        """
        if self.log is None:
            return
        if self.strategy == "always":
            await self.checkpoint()
        elif self.strategy == "async":
            self._commits += 1
            full, handed = self._commits >= COMMITS, self._handed
            if handed is not None and (full or handed.append.done()):
                await self._finish(handed)
            if self._is_time() or full or (len(self._rows) >= ROWS and self._handed is None):
                self._follow()
            else:
                self.soon()
            if self.failed is not None:
                raise self.failed

    def _is_time(self) -> bool:
        """Whether the next commit, if it takes as long as this one did, would come too late for the rows that wait."""
        now = self.clock.monotonic()
        if self._commits == 1:
            self._first_commit = now
        pace = now - self._last_commit if self._last_commit else 0.0
        self._last_commit = now
        return now + pace - self._first_commit >= LAG

    def _follow(self) -> None:
        """Hand over what waits. Where nobody watches, a later commit sees that it is durable, or a timer if that is long in coming."""
        if self._handed is None and self._hand_over() is not None and not self.listeners:
            self._check = asyncio.get_running_loop().call_later(LAG, self._write)
        else:
            self._write()

    async def checkpoint(self) -> None:
        """Return when everything told is on storage, whatever the strategy.

        Raises: StoreUnavailable, LeaseLost.
        """
        wanted = self.seq
        while self.log is not None and self.durable < wanted and self.failed is None:
            handed = self._handed or self._hand_over()
            if handed is None or not await self._finish(handed):
                break
        if self.failed is not None:
            raise self.failed

    def _hand_over(self) -> "_Handed | None":
        """Give all rows that wait to the log, as one append."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._rows or self.failed is not None or self._closed:
            return None
        assert self.log is not None
        assert self.claim is not None
        rows, self._rows, self._commits = self._rows, [], 0
        self._handed = _Handed(rows, self.log.append(self.claim, rows))
        return self._handed

    async def _finish(self, handed: "_Handed") -> bool:
        """Wait for an append and show its events; False where storage refuses and the run goes on all the same.

        Whoever waits may be cancelled: the append goes on, and the next who waits for it finds it.
        """
        try:
            stored = await self._durable(handed)
        except (LeaseLost, StoreUnavailable) as error:
            self.failed = self.failed or error
            if self._handed is handed:
                self._handed = None  # given up: who closes the run must not try it all over again
            self.on_failed()
            return False
        if self._handed is not handed:
            return True  # somebody else waited for it too
        self._handed = None
        if self._check is not None:
            self._check.cancel()
            self._check = None
        if not stored:
            self._rows = handed.rows + self._rows
            return False
        self.durable = handed.rows[-1].seq
        if self.listeners:
            for row in handed.rows:
                self._show(event_of(self.run_id, row))
            self.show("commit_succeeded", data={"rows": len(handed.rows), "seconds": time.perf_counter() - handed.begun})
        return True

    async def _durable(self, handed: "_Handed") -> bool:
        for attempt, pause in enumerate((*PAUSES, None), start=1):
            try:
                await handed.append
                return True
            except StoreUnavailable as error:
                self.failures += 1
                self.show("commit_failed", data={"error": str(error), "attempt": attempt})
                logger.warning("A commit failed", extra={"run_id": self.run_id, "attempt": attempt, "error": str(error)})
                if pause is None:
                    if self._on_failure == "warn":
                        return False
                    raise
                await asyncio.sleep(pause)
                assert self.log is not None
                assert self.claim is not None
                handed.append = self.log.append(self.claim, handed.rows)  # a repeated call passes by what is there
        return False

    def _write(self) -> None:
        """See to it that what waits is written, by a task beside the run."""
        if self._flushing is None and (self._rows or self._handed is not None):
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while (handed := self._handed or self._hand_over()) is not None and await self._finish(handed):
                pass
        finally:
            self._flushing = None

    def fence(self) -> None:
        """Tell and write nothing more: a driver that was left behind may still be running."""
        self._closed = True

    async def close(self) -> None:
        """Release the run; what was told before is on storage or, under `manual`, given up."""
        for timer in (self._timer, self._check):
            if timer is not None:
                timer.cancel()
        if self.log is not None and self.claim is not None:
            if self._handed is not None:
                await self._finish(self._handed)
            self._closed = True
            await self.log.release(self.claim)
