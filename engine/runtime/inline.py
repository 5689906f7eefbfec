"""The in-process executor: async bodies as asyncio tasks, sync bodies on daemon threads of our own.

Neither the loop's end nor the process's waits for a thread whose body was abandoned, which the standard library's pool would do.
"""

import asyncio
import contextlib
import contextvars
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter, time
from typing import Any

from engine.core.current import carried
from engine.core.run import Answer, Apply, Ask
from engine.core.state import Combine
from engine.runtime.asking import ask, reduce
from engine.runtime.raised import holdable, told
from engine.runtime.step import Call, Moment, Outcome, attempt

THREADS = 32
"""How many sync bodies of one run at once, unless `max_concurrency` says otherwise."""
AHEAD = 32
"""How many tasks stand by to go on where a body waits: so many waiting bodies start in one turn of the event loop. As many as there are
threads, so that a failure finds everything begun that has a place, however soon it comes."""
TURN = 0.005
"""Seconds after which bodies that never wait give the event loop its turn."""


class Idle:
    """The daemon threads of this process that perform sync bodies, whichever run they are of; there are as many as are busy at once."""

    STAY = 10.0
    """Seconds after which a thread without work ends."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._busy = 0
        """Functions on their way to a thread or in one: there are never fewer threads."""

    def perform(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]") -> None:
        """Let a thread that is idle, or a new one, perform a function and settle a future of a loop."""
        with self._lock:
            self._busy += 1
            grow = self._busy > self._threads
            self._threads += grow
        if grow:
            try:
                threading.Thread(target=self._serve, name="gecko-body", daemon=True).start()
            except RuntimeError:  # the system has no thread to spare
                with self._lock:
                    self._busy -= 1
                    self._threads -= 1
                raise
        self._work.put((function, loop, future))

    def _serve(self) -> None:
        while True:
            try:
                function, loop, future = self._work.get(timeout=self.STAY)
            except queue.Empty:
                with self._lock:
                    if self._threads == self._busy:
                        continue  # what it is for is on its way
                    self._threads -= 1
                return
            try:
                value, error = None if future.cancelled() else function(), None
            except BaseException as caught:  # noqa: BLE001 - handed to whoever awaits it
                value, error = None, caught
            with self._lock:
                self._busy -= 1
            try:
                loop.call_soon_threadsafe(_settle, future, value, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass
            del function, loop, future, value, error


IDLE = Idle()
os.register_at_fork(after_in_child=IDLE.__init__)  # a forked process has none of the threads


class Threads:
    """Performs the sync bodies of a run on threads, one in each of `size` places; who finds no place free waits for one, in order.

    A place is free again when its function has ended, or when nobody waits for that any more: then the thread goes on without one. All
    of it happens on one event loop, so who has a place and who waits for one never depends on how fast a thread wakes up.
    """

    def __init__(self, size: int, idle: Idle = IDLE) -> None:
        """Start nothing yet."""
        self._idle = idle
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()

    def perform(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Return a future of the running loop for what a function gives, in a place of its own. Cancelling it stops no thread."""
        if self._free:
            self._free -= 1
            return self._begin(function)
        return asyncio.get_running_loop().create_task(self._perform_later(function))

    async def _perform_later(self, function: Callable[[], Any]) -> Any:
        await self._wait()
        return await self._begin(function)

    async def place(self) -> "Place":
        """Return a place as soon as there is one: whoever has it begins when it likes."""
        if self._free:
            self._free -= 1
        else:
            await self._wait()
        return Place(self)

    async def _wait(self) -> None:
        mine = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if not mine.cancelled():
                self._leave()  # it came, and nobody is there to take it
            raise

    def _leave(self, _: object = None) -> None:
        """Hand a place on."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():
                first.set_result(None)
                return
        self._free += 1

    def _begin(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        future.add_done_callback(self._leave)
        self._idle.perform(carried(function), loop, future)
        return future


class Place:
    """A place among threads, for one function; a body that was given one does not wait any more."""

    __slots__ = ("_threads", "_used")

    def __init__(self, threads: Threads) -> None:
        """Made by `Threads.place`."""
        self._threads = threads
        self._used = False

    def perform(self, function: Callable[[], Any]) -> asyncio.Future[Any]:
        """Perform a function in this place; what comes after it waits for another."""
        if self._used:
            return self._threads.perform(function)
        self._used = True
        return self._threads._begin(function)

    def leave(self) -> None:
        """Hand the place on, unless it is or was made use of: then it is handed on when that ends."""
        if not self._used:
            self._used = True
            self._threads._leave()


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(holdable(error))


def _cancelled_itself(call: Call, error: asyncio.CancelledError) -> Outcome:
    """Return how a body ended that cancelled its own task: with an error, as any other."""
    outcome = Outcome(call, time())
    outcome.error = told(error)
    return outcome


def _needs_no_thread(call: Call) -> bool:
    return call.binding.is_async or (call.limit is not None and call.limit <= 0)


class InlineExecutor:
    """Performs the calls of one run in this process."""

    name = "inline"
    keeps_copies = False
    ahead = False
    patience = 0.0

    def __init__(self, width: int | None = None) -> None:
        """Let `width` bodies of the run perform at once, those of its sub-workflows included."""
        self._threads = Threads(width or THREADS)
        self._slots = None if width is None else asyncio.Semaphore(width)
        self._queue: deque[tuple[deque[Call], Moment, Callable[[Outcome], None]]] = deque()
        """What was submitted together and has not begun."""
        self._coming: set[asyncio.Task[None]] = set()
        """Tasks that go on with the queue where those before them wait; there is one while anything is queued."""
        self._running: dict[str, asyncio.Task[None]] = {}
        """Step id of what has begun, or waits for a thread, to the task that performs it."""
        self._threadless: set[str] = set()
        """Step ids of what waits for a thread, and so has not begun."""

    async def one(self, call: Call, moment: Moment) -> Outcome | None:
        """Perform a single call in the caller's own task: the fast way through a chain. None where the run stops while it waits."""
        try:
            if self._slots is not None:
                async with self._slots:
                    return await self._attempt_alone(call, moment)
            if (call.spare or call.node).body.is_async:
                return await attempt(call, moment, self._threads.perform)
            return await self._attempt_alone(call, moment)
        except asyncio.CancelledError as error:
            me = asyncio.current_task()
            assert me is not None
            if moment.owner.control.halt or not moment.owner.live:
                raise
            while me.cancelling():
                me.uncancel()
            return _cancelled_itself(call, error)

    async def _attempt_alone(self, call: Call, moment: Moment) -> Outcome | None:
        place = None if _needs_no_thread(call) else await self._threads.place()
        try:
            if moment.owner.control.halt:
                return None
            return await attempt(call, moment, self._threads.perform if place is None else place.perform)
        finally:
            if place is not None:
                place.leave()

    def submit(self, calls: Sequence[Call], moment: Moment, report: Callable[[Outcome], None]) -> None:
        """Start all calls; `report` is called on the event loop as each one ends, and not at all for one that was stopped."""
        self._queue.append((deque(calls), moment, report))
        self._hand_on()

    def _hand_on(self) -> None:
        while len(self._coming) < AHEAD and len(self._coming) < sum(len(calls) for calls, _, _ in self._queue):
            self._coming.add(asyncio.get_running_loop().create_task(self._serve()))

    async def _serve(self) -> None:
        """Perform what is queued, one body after the other; where a body waits, another task goes on with the rest.

        So a thousand bodies that wait do so in a thousand tasks, and a thousand that never wait share one: a task for each is most of
        what they would cost. A body that did something to its task is the last one in it, so that none sees what another did.
        """
        me = asyncio.current_task()
        assert me is not None
        async with self._slots or contextlib.nullcontext():
            self._coming.discard(me)
            variables, turn = contextvars.copy_context(), perf_counter()
            while self._queue:
                calls, moment, report = self._queue[0]
                call = calls.popleft()
                if not calls:
                    self._queue.popleft()
                self._hand_on()
                step_id = call.step_id
                self._running[step_id] = me
                try:
                    if (call.spare or call.node).body.is_async:
                        outcome = await attempt(call, moment, self._threads.perform)
                    else:
                        outcome = await self._attempt(call, moment)
                except asyncio.CancelledError as error:
                    if self._running.get(step_id) is not me:
                        raise
                    outcome = _cancelled_itself(call, error)
                finally:
                    if self._running.get(step_id) is me:
                        del self._running[step_id]
                report(outcome)
                touched = me.cancelling() or contextvars.copy_context() != variables
                if touched or perf_counter() - turn > TURN:
                    return

    async def _attempt(self, call: Call, moment: Moment) -> Outcome:
        """Perform one attempt, which begins when a sync body has its thread: to wait for one is not the body's time."""
        if _needs_no_thread(call):
            return await attempt(call, moment, self._threads.perform)
        self._threadless.add(call.step_id)
        try:
            place = await self._threads.place()
        finally:
            self._threadless.discard(call.step_id)
        try:
            return await attempt(call, moment, place.perform)
        finally:
            place.leave()

    def take(self, step_id: str) -> Outcome | None:
        """Nothing is performed ahead here."""
        return None

    async def finished(self, step_id: str) -> bool:
        """Nothing is performed ahead here."""
        return False

    def withdraw(self, calls: Sequence[Call]) -> list[Call]:
        """Take back calls that wait for a thread or a slot; one that has them has begun, whether or not its thread is awake."""
        meant = {c.step_id for c in calls}
        queued = {call.step_id for waiting, _, _ in self._queue for call in waiting if call.step_id in meant}
        left = [(deque(c for c in waiting if c.step_id not in queued), moment, report) for waiting, moment, report in self._queue]
        self._queue = deque(batch for batch in left if batch[0])
        for step_id in self._threadless & meant:
            queued.add(step_id)
            self._running.pop(step_id).cancel()
        return [c for c in calls if c.step_id in queued]

    async def stop(self, calls: Sequence[Call], grace: float) -> list[Call]:
        """Cancel calls; return those whose bodies go on unattended: sync ones, and async ones that ignore it for `grace` seconds."""
        self.withdraw(calls)
        running = {self._running.pop(c.step_id): c for c in calls if c.step_id in self._running}
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=grace)
        return [c for task, c in running.items() if not task.done() or not c.binding.is_async]

    async def ask(self, questions: Sequence[Ask | Combine | Apply], moment: Moment) -> list[Answer]:
        """Answer all questions at once."""
        if len(questions) == 1:
            return [await self._ask(questions[0], moment)]
        return await asyncio.gather(*(self._ask(question, moment) for question in questions))

    async def _ask(self, question: Ask | Combine | Apply, moment: Moment) -> Answer:
        if isinstance(question, (Combine, Apply)):
            return await reduce(question, moment, self._threads.perform)
        if moment.plan.edges[question.edge].condition.is_async:  # type: ignore[union-attr]
            return await ask(question, moment, self._threads.perform, moment.scene.run_id)
        place = await self._threads.place()  # a condition's limit begins when it has its thread
        try:
            return await ask(question, moment, place.perform, moment.scene.run_id)
        finally:
            place.leave()

    async def close(self) -> None:
        """Let go of everything; nothing of ours waits for threads."""
        for task in self._coming:
            task.cancel()
