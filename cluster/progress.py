"""A pack under way in a worker, and its results as they travel.

A side thread sends finished results while the main thread is inside a body, and gives back what has not started: when the pack exceeds its
budget, so that a wrong guess about costs holds nobody up, and when the coordinator wants it, since the run pauses or a sibling failed.
"""

import asyncio
import gc
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import msgspec

from cluster.opened import Home
from cluster.wire import BIG, AnswerWire, CallWire, OutcomeWire, PackWire, pack_error, put_together, take_apart, to_wire
from engine.core.graph import Node
from engine.core.history import Window
from engine.core.routing import ABSENT
from engine.runtime.step import Call, Outcome

EVERY = 0.01
"""Seconds between two looks of the side thread."""
CHAIN_EVERY = 0.003
"""The same for a chain, whose coordinator works on what has come while the worker goes on."""
WORTH = 0.005
"""Seconds of a call after which its result is sent before the next begins."""
ASK = 0.05
"""Seconds of a pack after which its coordinator is asked to say when it wants back what has not started."""
HELD = 0.25
"""Seconds past its limit after which a call is taken for one that cannot be interrupted."""


class Progress:
    """A pack under way: what waits, what is done, what runs since when. Shared with the side thread; deque operations are atomic."""

    def __init__(self, pack: PackWire, home: Home) -> None:
        """Begin with all calls waiting."""
        self.id = pack.id
        self.home = home
        self.waiting: deque[CallWire] = deque(pack.calls)
        self.done: deque[OutcomeWire] = deque()
        self.stopped: deque[int] = deque()
        """Calls that were cancelled by request: they come back unperformed."""
        self.hit: deque[int] = deque()
        """Calls that another body of their process cancelled."""
        self.bigs: list[bytes] = []
        self.running: tuple[CallWire, float] | None = None
        self.until = time.perf_counter() + pack.budget if pack.budget is not None else None
        self._ask_at = time.perf_counter() + ASK
        self._recalled: Future[bool] | None = None
        """What the coordinator will say."""
        self.told_overdue: int | None = None
        self.every = CHAIN_EVERY if pack.kind == "chain" else EVERY
        self._next = time.perf_counter() + self.every
        self.eager = pack.kind == "race"
        """Whether what ends is told at once, since others wait for each."""
        self._looking = False
        self.left = 0
        self.over: asyncio.Future[None] | None = None
        """Of a pack in a lane: done when no call is left."""

    def pulse(self, spent: float) -> None:
        """Look, between two calls, where it is time: bodies that never wait would let the side thread in every 5 ms at best.

        A result that took long goes at once, since the next body may be C code that keeps the side thread out for as long as it runs.
        """
        if spent >= WORTH or time.perf_counter() > self._next:
            self.look()

    def look_soon(self) -> None:
        """Look at the end of this turn of the event loop."""
        if not self._looking:
            self._looking = True
            asyncio.get_running_loop().call_soon(self.look)

    def look(self) -> None:
        """Send what is finished; give back what is over the budget; tell of a call that cannot be interrupted."""
        self._looking = False
        self._next = time.perf_counter() + self.every
        done = take_all(self.done)
        back: list[int] = take_all(self.stopped)
        hit: list[int] = take_all(self.hit)
        try:
            self._tell(done, back, hit)
        except BaseException:  # an interrupt that struck here: whoever ends the pack tells it
            self.done.extendleft(reversed(done))
            self.stopped.extendleft(reversed(back))
            self.hit.extendleft(reversed(hit))
            raise

    def _tell(self, done: list[OutcomeWire], back: list[int], hit: list[int]) -> None:
        if self._is_recalled() or (self.until is not None and time.perf_counter() > self.until and self.running is not None):
            back = [*back, *(wire.id for wire in take_all(self.waiting))]
        overdue = None
        running = self.running
        if running is not None and running[0].id != self.told_overdue:
            (wire, since), now = running, time.perf_counter()
            if wire.limit is not None and now - since > wire.limit + HELD:
                overdue = self.told_overdue = wire.id
        if done or back or hit or overdue is not None:
            done = [self._whole(wire) for wire in done]
            self.home.send("report", to_wire(AnswerWire(self.id, worker_name(), done, back, overdue, hit)))

    def _is_recalled(self) -> bool:
        """Tell whether the coordinator wants back what has not started: one question, which it answers when it is so."""
        if self._recalled is None:
            if not self.waiting or time.perf_counter() < self._ask_at:
                return False
            self._recalled = self.home.ask("recalled", self.id)
        return self._recalled.done() and self._recalled.exception() is None and self._recalled.result()

    def finished(self) -> bytes:
        """Take out what is finished, to be sent."""
        done = [self._whole(wire) for wire in take_all(self.done)]
        return to_wire(AnswerWire(self.id, worker_name(), done, []))

    def hand_over(self) -> None:
        """Send what is finished, and return when it has arrived."""
        self.home.call("report", self.finished())

    def give_back(self) -> None:
        """Let what waits go back unperformed."""
        self.stopped.extend(wire.id for wire in take_all(self.waiting))

    def _whole(self, wire: OutcomeWire) -> OutcomeWire:
        """A big value beside the answer comes with the answer's end; what is sent before carries it."""
        if isinstance(wire.output, int):
            wire = msgspec.structs.replace(wire, output=self._big(wire.output))
        if wire.apart and wire.diff is not None:
            wire = msgspec.structs.replace(wire, diff=put_together(wire.diff, self._big), apart=False)
        return wire

    def _big(self, index: int) -> bytes:
        data, self.bigs[index - 1] = self.bigs[index - 1], b""
        return data


def take_all(waiting: deque[Any]) -> list[Any]:
    """Empty a deque that another thread may be emptying too."""
    found: list[Any] = []
    while True:
        try:
            found.append(waiting.popleft())
        except IndexError:
            return found


class Watch:
    """The side thread of a worker process."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._change = threading.Condition()
        self._progress: Progress | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, progress: Progress) -> Iterator[None]:
        """Watch a pack while it is performed."""
        with self._change:
            self._progress = progress
            if self._thread is None:
                gc.freeze()  # what Ray and the engine brought along stays: going through it again and again costs more than small bodies
                self._thread = threading.Thread(target=self._run, name="gecko-watch", daemon=True)
                self._thread.start()
            self._change.notify()
        try:
            yield
        finally:
            with self._change:  # after this the side thread sends nothing more of the pack
                self._progress = None

    def _run(self) -> None:
        while True:
            with self._change:
                while self._progress is None:
                    self._change.wait()
                progress = self._progress
                self._change.wait(progress.every)
                if self._progress is progress and not progress.bigs:  # with big values the pack ends now, and takes them along uncopied
                    progress.look()


watch = Watch()


def worker_name() -> str:
    """Return what names this process in events."""
    return f"{os.uname().nodename}:{os.getpid()}"


def answer(progress: Progress) -> Any:
    """Return a pack's last results."""
    done, back, hit = take_all(progress.done), take_all(progress.stopped), take_all(progress.hit)
    last = to_wire(AnswerWire(progress.id, worker_name(), done, back, None, hit))
    if not progress.bigs:
        return last
    from pickle import PickleBuffer

    return [last, *(PickleBuffer(big) for big in progress.bigs)]


def unopened(wire: CallWire, error: BaseException) -> Outcome:
    """The outcome of a call whose body could not be opened."""
    outcome = Outcome(
        Call(Node(name=wire.node, body=None), wire.number, wire.at, wire.ordinal, wire.attempt, None, Window.of({}, None), ""), time.time()
    )
    outcome.error = error
    return outcome


def outcome_wire(number: int, outcome: Outcome, progress: Progress | None) -> OutcomeWire:
    """Return an outcome as it travels; a big output is put beside the answer."""
    error = outcome.error
    if error is not None:
        text = "".join(traceback.format_exception(error))[-20_000:]
        return OutcomeWire(number, None, None, None, False, pack_error(error, text), outcome.started, outcome.duration)
    output: bytes | int | None = outcome.output_data
    if progress is not None and isinstance(output, bytes) and len(output) > BIG:
        progress.bigs.append(output)
        output = len(progress.bigs)
    diff, apart = outcome.diff_data, None
    if progress is not None and diff is not None and len(diff) > BIG:
        apart = take_apart(diff, progress.bigs)
    jump = outcome.jump
    return OutcomeWire(
        number,
        output,
        diff if apart is None else apart,
        None if jump is None else jump.node if isinstance(jump.node, str) else f"/{jump.node!r}",  # which names no node
        bool(jump and jump.sent is not ABSENT),
        None,
        outcome.started,
        outcome.duration,
        apart is not None,
    )
