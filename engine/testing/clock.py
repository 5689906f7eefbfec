"""Virtual time: an event loop whose clock jumps to the next timer as soon as nothing else can be done.

Sync functions still run in threads. They are performed one at a time, their answers are taken in when the loop has nothing else to
do, and the clock stands still meanwhile, so that the same program makes the same moves every time. A thread that takes longer
than the next timer and a little real time loses against that timer, as it would in a real run. This module knows nothing of runs.
"""

import asyncio
import functools
import selectors
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, TypeVar

from engine.core.current import carried
from engine.errors import WorkflowError
from engine.runtime.bulk import HELPERS
from engine.runtime.raised import holdable

T = TypeVar("T")

PATIENCE = 1.0
"""Real seconds that the clock waits for a thread, or for anybody else who could wake the loop, before it goes on."""
EPOCH = 1_735_689_600.0
"""Wall time at the loop's second 0, in seconds since 1970: the first of January 2025."""
_FAREWELL = 10.0
"""Virtual seconds in which cancelled tasks must end when the loop is torn down."""


class _Jumping(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    """Never waits for time: hands idle moments to the loop."""

    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        return self.loop.idle(timeout, super().select)


class _Work:
    """A sync function in a thread."""

    __slots__ = ("error", "function", "future", "value")

    def __init__(self, function: Callable[[], Any], future: "asyncio.Future[Any]") -> None:
        self.function = function
        self.future = future
        self.value: Any = None
        self.error: BaseException | None = None


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time. Use `run_to_end`, which leaves nothing behind."""

    def __init__(self, begin: float = 0.0, *, patience: float = PATIENCE, on_stuck: Callable[[], None] | None = None) -> None:
        """Start the clock at `begin` seconds.

        Args:
            patience: Real seconds to wait for a thread before the next timer goes off.
            on_stuck: Called when nothing can ever happen again; default: WorkflowError.
        """
        selector = _Jumping()
        selector.loop = self
        self._seconds = begin
        self._patience = patience
        self._on_stuck = on_stuck
        self._waiting: deque[_Work] = deque()
        self._busy: _Work | None = None
        self._finished: deque[_Work] = deque()
        super().__init__(selector)
        # A timer that is due is taken where its time is less than now and this: it must not vanish beside a time of years.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        """Return the virtual seconds."""
        return self._seconds

    def perform(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Return a future for what a sync function gives in a thread; cancelling it leaves the thread behind."""
        future: asyncio.Future[Any] = self.create_future()
        work = _Work(carried(function), future)
        future.add_done_callback(lambda _: self._let_go(work))
        self._waiting.append(work)
        self._next()
        return future

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """Perform a function in a thread that the clock waits for, unless an executor of a body's own is given."""
        if executor is not None and executor is not HELPERS:
            return super().run_in_executor(executor, func, *args)
        return self.perform(functools.partial(func, *args))

    def idle(self, timeout: float | None, wait: Callable[[float | None], Any]) -> Any:
        """Take in what a thread finished, wait for one, or jump; called by the selector when nothing is ready."""
        if self._finished:
            while self._finished:
                self._take_in(self._finished.popleft())
            return []
        if self._busy is not None or timeout is None:
            events = wait(self._patience if timeout is None else max(timeout, self._patience))
            if events or self._finished or (self._busy is not None and timeout is None):
                return events
        if timeout is not None:
            self._seconds += timeout
        elif self._on_stuck is not None:
            self._on_stuck()
        else:
            raise WorkflowError("the simulated run waits for something that never comes: no timer, thread or socket can wake it")
        return []

    def run_to_end(self, main: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine, then cancel whatever is left of its world and close the loop."""
        try:
            return self.run_until_complete(main)
        finally:
            self._tear_down()

    def _next(self) -> None:
        while self._busy is None and self._waiting:
            work = self._waiting.popleft()
            if not work.future.done():
                self._busy = work
                threading.Thread(target=self._serve, args=(work,), name="gecko-simulated", daemon=True).start()

    def _serve(self, work: _Work) -> None:
        try:
            work.value = work.function()
        except BaseException as error:  # noqa: BLE001 - handed to whoever awaits it
            work.error = error
        self._finished.append(work)
        self._write_to_self()  # type: ignore[attr-defined]

    def _take_in(self, work: _Work) -> None:
        if work.future.done():
            return
        error = work.error
        if error is None:
            work.future.set_result(work.value)
        else:
            work.future.set_exception(holdable(error))

    def _let_go(self, work: _Work) -> None:
        if self._busy is work:
            self._busy = None
            self._next()

    def _tear_down(self) -> None:
        self.set_exception_handler(lambda loop, context: None)
        tasks = asyncio.all_tasks(self)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run_until_complete(asyncio.wait(tasks, timeout=_FAREWELL))
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()


class VirtualClock:
    """The `Clock` of a virtual loop, with chance from a seed."""

    def __init__(self, loop: VirtualLoop, random: Random) -> None:
        """Follow a loop."""
        self._loop = loop
        self.chance = random.random

    def now(self) -> float:
        """Return the seconds since 1970."""
        return EPOCH + self._loop.time()

    def monotonic(self) -> float:
        """Return the loop's seconds."""
        return self._loop.time()

    async def sleep(self, delay: float) -> None:
        """Wait in virtual time."""
        await asyncio.sleep(delay)


def apart(function: Callable[[], T]) -> T:
    """Call a function that runs an event loop of its own; inside a running loop it gets a thread."""
    if asyncio._get_running_loop() is None:
        return function()
    answer: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(function())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="gecko-simulation")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]
