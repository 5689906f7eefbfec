"""One event loop of a worker, which performs async calls, many at once; conditions and custom reducers too.

A limit ends a call that listens; of one that holds the loop or a thread the coordinator is told, which ends the process. A call that was
stopped has not, as long as something goes on that it has started: its coordinator waits for a while, then ends the process.
"""

import asyncio
import logging
import threading
import time
from asyncio import tasks
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from math import inf
from typing import Any

from cluster.ending import ending
from cluster.opened import Home, Opened
from cluster.progress import EVERY, HELD, Progress, answer, outcome_wire, unopened, worker_name
from cluster.started import Started, attend, calling
from cluster.wire import AnswerWire, CallWire, read_pack, to_wire
from engine.checkpoint.codec import encode
from engine.core.context import Question
from engine.core.current import carried
from engine.errors import NotStorable
from engine.local import inside_step
from engine.runtime.bulk import encoded
from engine.runtime.inline import Threads
from engine.runtime.raised import told
from engine.runtime.step import Call, Moment, OffLoop, Outcome, attempt, combined, judged, out_of_time

logger = logging.getLogger(__name__)

LOOK = 0.05
"""Seconds between two looks at the loop of a lane."""
THREADS = 64
"""So many functions of a lane's calls are performed in threads at once."""


class CallTask:
    """The task of one call, and what it has in threads: nothing stops that but the end of the process."""

    def __init__(self, threads: Threads) -> None:
        """Perform in places of `threads`; the task is to be given."""
        self.task: asyncio.Task[None]
        self.begun = False
        self.started = Started()
        self._threads = threads
        self._in_threads = 0
        self.unwanted = False
        """Whether it was stopped, maybe before it began."""

    @property
    def busy(self) -> bool:
        """Whether something of it is in a thread, also where nobody waits for that any more."""
        return self._in_threads > 0

    async def off_loop(self, function: Callable[[], Any]) -> Any:
        """Perform a function in a thread; to wait for a free one can be cancelled."""
        place, loop = await self._threads.place(), asyncio.get_running_loop()

        def perform() -> Any:
            try:
                return function()
            finally:
                with suppress(RuntimeError):  # the loop is closed: nobody asks any more
                    loop.call_soon_threadsafe(self._leave_thread)

        self._in_threads += 1
        performing = carried(perform)
        token = calling.set(None)  # a thread of the lane's that starts for it is not the call's
        try:
            done = place.perform(performing)
        finally:
            calling.reset(token)
        return await done

    def _leave_thread(self) -> None:
        self._in_threads -= 1
        if self.unwanted:
            self.stop()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Perform the call, in a task that it knows for its own; one that was stopped before begins not at all."""
        token = calling.set(self.started)
        try:
            self.task = asyncio.get_running_loop().create_task(work)
        finally:
            calling.reset(token)
        self.begun = True

    def stop(self) -> None:
        """Cancel the call, as soon as nothing of it is in a thread."""
        self.unwanted = True
        if self.begun and not self.busy:
            self.task.cancel()

    async def goes_on(self, seconds: float) -> bool:
        """Give what the call has started so many seconds to end; tell whether it goes on."""
        until = time.perf_counter() + seconds
        while going := self.started.at_work():
            if time.perf_counter() >= until:
                break
            await asyncio.sleep(EVERY)
        return going


class Lane:
    """Performs async calls, many at once in one event loop; conditions, reducers and `inline` nodes too. Holds no CPU of the cluster's."""

    def __init__(self, home: Home) -> None:
        """Serve one coordinator."""
        self._home = home
        self._threads = Threads(THREADS)
        self._calls: dict[int, CallTask] = {}
        self._limits: dict[asyncio.Task[Any], tuple[str, int, float]] = {}
        """Of calls with a limit: (pack, call, when it is over)."""
        self._watcher: threading.Thread | None = None

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell of a call past its limit that holds the loop, which then can do nothing about it."""
        holding: asyncio.Task[Any] | None = None
        since = 0.0
        while True:
            time.sleep(LOOK)
            now, current = time.perf_counter(), asyncio.current_task(loop)
            if current is None or current is not holding:
                holding, since = current, now
                continue
            late = self._limits
            if current not in late and now > since + HELD:  # a task that some body started: the limit that was over first is taken for its
                late = dict(sorted(self._limits.items(), key=_by_limit)[:1])
                current = next(iter(late), current)
            if current in late and now > late[current][2] + HELD:
                pack, number, _ = self._limits.pop(current)
                self._tell_overdue(pack, number)

    def _tell_overdue(self, pack: str, number: int) -> None:
        """Have this process ended: nothing else stops the call."""
        self._home.send("report", to_wire(AnswerWire(pack, worker_name(), [], [], number)))

    async def perform(self, data: bytes, refs: list[Any]) -> Any:
        """Perform all calls of a pack at once; finished ones are sent while others go on."""
        settle_in()
        pack = read_pack(data)
        inside_step.set(True)
        running = {wire.id: CallTask(self._threads) for wire in pack.calls}
        self._calls.update(running)  # before anything is waited for: a race may be over before its last member has begun
        progress = Progress(pack, self._home)
        loop = asyncio.get_running_loop()
        try:
            place = await self._threads.place()  # not a task, which a body could find and cancel
            ready = await place.perform(lambda: Opened(pack, refs, self._home))
            progress.waiting.clear()
            progress.left = len(pack.calls)
            progress.over = loop.create_future()
            for wire in pack.calls:
                mine = running[wire.id]
                mine.begin(self._one(ready, wire, progress, mine))
                mine.task.add_done_callback(partial(self._ended, wire.id, progress, mine))
                if mine.unwanted:
                    mine.stop()
            while not progress.over.done():
                await asyncio.wait({progress.over}, timeout=EVERY)
                ending.heed(EVERY)
                if not progress.over.done() and (progress.done or progress.stopped or progress.hit):
                    progress.look()
        finally:
            for number, call in running.items():
                call.stop()
                if not call.begun:
                    del self._calls[number]
            left = [call for call in running.values() if call.begun and not call.task.done()]
            if left:  # the worker of a pack with a process of its own is given another, beside which no thread of this one is to run
                await asyncio.wait([call.task for call in left])
            for call in left:
                await call.goes_on(inf)
        return answer(progress)

    async def _one(self, ready: Opened, wire: CallWire, progress: Progress, mine: CallTask) -> None:
        try:
            try:
                call, moment = ready.call(wire)
            except Exception as error:  # noqa: BLE001 - opening a body runs the user's module
                outcome = unopened(wire, error)
            else:
                perform = _PERFORM.get(ready.pack.kind, attempt)
                if call.limit is None:
                    outcome = await perform(call, moment, mine.off_loop)
                else:
                    self._limits[mine.task] = ready.pack.id, wire.id, time.perf_counter() + call.limit
                    self._watch_limits()
                    outcome = await self._within(call, perform(call._replace(limit=None), moment, mine.off_loop), mine)
        except asyncio.CancelledError as error:
            if mine.unwanted:
                raise
            outcome = unopened(wire, told(error))
        except KeyboardInterrupt as error:  # the body's own: nothing interrupts a lane
            outcome = unopened(wire, error)
        if mine.unwanted:  # it ended after all: its stop is not told while anything of it goes on
            await mine.goes_on(inf)
        if mine.started.hit and isinstance(outcome.error, asyncio.CancelledError):
            progress.hit.append(wire.id)
        else:
            progress.done.append(outcome_wire(wire.id, outcome, progress))

    def _ended(self, number: int, progress: Progress, mine: CallTask, task: "asyncio.Task[None]") -> None:
        """Take note that a call has ended; beside its task, since one that is cancelled before its first turn never has one."""
        if mine.unwanted and mine.started.at_work():
            asyncio.get_running_loop().call_later(EVERY, self._ended, number, progress, mine, task)
            return
        if task.cancelled():
            (progress.stopped if mine.unwanted else progress.hit).append(number)
        elif (error := task.exception()) is not None:
            logger.error("A call could not be performed", exc_info=error)
        self._calls.pop(number, None)
        self._limits.pop(task, None)
        progress.left -= 1
        if progress.eager and progress.left:
            progress.look_soon()
        if not progress.left and progress.over is not None and not progress.over.done():
            progress.over.set_result(None)

    def _watch_limits(self) -> None:
        if self._watcher is None:
            loop = asyncio.get_running_loop()
            self._watcher = threading.Thread(target=self._watch, args=(loop,), name="gecko-lane", daemon=True)
            self._watcher.start()

    async def _within(self, call: Call, work: Coroutine[Any, Any, Outcome], mine: CallTask) -> Outcome:
        """Perform a call in its limit, in the task that is known by its number."""
        assert call.limit is not None
        pack, number, _ = self._limits[mine.task]
        begun, outcome, limit = time.time(), None, asyncio.timeout(call.limit)
        if call.limit <= 0:
            work.close()
        else:
            try:
                async with limit:
                    outcome = await work
            except TimeoutError:
                if mine.busy or await mine.goes_on(HELD):
                    self._tell_overdue(pack, number)
                    await asyncio.Event().wait()
        if outcome is None or limit.expired():
            outcome = Outcome(call, begun)
            outcome.duration = time.time() - begun
            outcome.error = out_of_time(call.label, call.limit)
        return outcome

    async def stop(self, numbers: list[int]) -> None:
        """Cancel calls; whoever cannot wait for what they have in threads has to end the process."""
        for number in numbers:
            if number in self._calls:
                self._calls[number].stop()


def settle_in() -> None:
    """Make the running event loop a lane's: what calls start is known for theirs, and none of them finds the present task."""
    attend(asyncio.get_running_loop())
    if (current := asyncio.current_task()) is not None:
        tasks._unregister_task(current)


def _by_limit(item: tuple[Any, tuple[str, int, float]]) -> float:
    return item[1][2]


async def answered(call: Call, moment: Moment, off_loop: OffLoop) -> Outcome:
    """Ask a condition: the call's node is the source, its body the condition, its input the source's output."""
    outcome = Outcome(call, time.time())
    ctx = Question(moment.scene, moment.state, call.window, call.node.name, call.step_id)
    verdict, outcome.error = await judged(call.node.body, ctx, call.input, off_loop)
    outcome.output_data = encode(verdict)
    return outcome


async def reduced(call: Call, moment: Moment, off_loop: OffLoop) -> Outcome:
    """Let a custom reducer combine: the input is (base, writes)."""
    outcome = Outcome(call, time.time())
    where = call.node.name
    value, outcome.error = await combined(call.node.body, call.input.load, off_loop, where)
    if outcome.error is None:
        try:
            outcome.output_data = await encoded(value, where)
        except NotStorable as error:
            outcome.error = error
    return outcome


_PERFORM: dict[str, Callable[[Call, Moment, OffLoop], Coroutine[Any, Any, Outcome]]] = {"ask": answered, "reduce": reduced}
"""By kind of pack, where it is no attempt of a step."""
