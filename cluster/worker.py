"""What runs inside a Ray worker: a pack of calls, performed one after the other, and its results on their way back.

Async calls are performed by the lane of `cluster.lane`. A worker never writes a log: what it has to say goes through its coordinator.
"""

import asyncio
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

from cluster.ending import ending
from cluster.lane import Lane
from cluster.opened import Home, Opened, Trail, codes
from cluster.progress import Progress, answer, outcome_wire, unopened, watch
from cluster.wire import CallWire, PackWire, read_pack, to_wire
from engine.errors import StepTimedOut
from engine.local import inside_step
from engine.runtime.raised import told as own
from engine.runtime.step import Call, Moment, Outcome, attempt, attempt_now, out_of_time


def perform(data: bytes, refs: list[Any], home: Home, owner: int | None) -> Any:
    """Perform a pack of sync calls, or a chain, on the main thread; returns its last results, with big values beside them.

    Where the coordinator dies (`owner` is its process, None on another node) this one ends too, within the call or before the next.
    """
    pack = read_pack(data)
    inside_step.set(True)
    ending.serve(owner)
    if pack.kind in ("async", "ask", "reduce"):
        return asyncio.run(Lane(home).perform(data, refs))
    progress = Progress(pack, home)
    ready = Opened(pack, refs, home)
    with watch.over(progress):
        try:
            if pack.kind == "chain":
                perform_chain(ready, progress)
            else:
                perform_calls(ready, progress)
        except BaseException:  # soft cancel: what is finished is told before the pack ends
            progress.waiting.clear()
            progress.look()
            raise
    return answer(progress)


def rehearse(home: Home, owner: int | None) -> None:
    """Pay, before anybody waits for it, what only the first pack and the first call to the coordinator cost."""
    perform(to_wire(PackWire("", "sync", [], [], [], [], None)), [], home, owner)
    home.call("rows", 0)


def perform_calls(ready: Opened, progress: Progress) -> None:
    """Perform calls one after the other, until none waits (the side thread may give some back)."""
    pack = ready.pack
    if pack.gated and not progress.home.call("may_go", pack.id, pack.calls[0].id, progress.finished()):
        progress.give_back()
    while True:
        try:
            wire = progress.waiting.popleft()
        except IndexError:
            return
        try:
            outcome = perform_one(ready, wire, progress)
        except KeyboardInterrupt as error:  # a soft cancel, then nobody wants the outcome; or the body's own
            interrupted(wire, error, progress)
            return
        ending.heed(outcome.duration)
        progress.done.append(outcome_wire(wire.id, outcome, progress))
        progress.running = None
        if ready.pack.careful:
            progress.hand_over()
        elif progress.bigs:  # it comes back without a copy, with the end of its pack, which therefore is now
            progress.give_back()
        elif progress.waiting:  # what the last one gave comes with the end of the pack
            progress.pulse(outcome.duration)


def interrupted(wire: CallWire, error: BaseException, progress: Progress) -> None:
    """End a pack at a call that was interrupted; what waits goes back."""
    progress.done.append(outcome_wire(wire.id, unopened(wire, error), progress))
    progress.give_back()


def perform_one(ready: Opened, wire: CallWire, progress: Progress) -> Outcome:
    """Perform one sync call within its limit, which begins when its module has been imported."""
    try:
        call, moment = ready.call(wire)
    except Exception as error:  # noqa: BLE001 - opening a body runs the user's module
        return unopened(wire, error)
    progress.running = (wire, time.perf_counter())
    if call.limit is None:
        return attempt_now(call, moment)
    return limited(call, moment)


def limited(call: Call, moment: Moment) -> Outcome:
    """Perform a call whose limit is enforced by an alarm: it interrupts Python and sleeping; C code is left to the coordinator."""
    assert call.limit is not None
    label, limit = call.label, call.limit
    if limit <= 0:
        outcome = Outcome(call, time.time())
        outcome.error = out_of_time(label, limit)
        return outcome

    def expired(*_: Any) -> None:
        raise out_of_time(label, limit)

    if threading.current_thread() is not threading.main_thread():
        return attempt_now(call, moment)
    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        return attempt_now(call, moment)
    except StepTimedOut as error:  # it struck between the body and us
        outcome = Outcome(call, time.time())
        outcome.error = error
        return outcome
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def perform_chain(ready: Opened, progress: Progress) -> None:
    """Perform a chain: of async bodies in one event loop, of sync ones on this thread, where none runs."""
    if codes.body(ready.pack.calls[0].body).is_async:
        asyncio.run(async_chain(ready, progress))
        return

    async def now(call: Call, moment: Moment) -> Outcome:
        return limited(call, moment) if call.limit is not None else attempt_now(call, moment)

    async def ask(name: str, *args: Any) -> Any:
        return progress.home.call(name, *args)

    steps = chain_steps(ready, progress, now, ask)
    try:
        steps.send(None)
    except StopIteration:
        return
    raise RuntimeError("a chain of sync bodies cannot wait for an event loop")


async def async_chain(ready: Opened, progress: Progress) -> None:
    """Perform a chain of async bodies. One that cancels its own task has failed; it is not told of a soft cancel, which does that too."""
    told = False
    before = signal.getsignal(signal.SIGINT)

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True
        if callable(before):
            before(number, frame)

    async def perform(call: Call, moment: Moment) -> Outcome:
        try:
            return await attempt(call, moment, _direct)
        except asyncio.CancelledError as error:
            if told:
                raise
            outcome = Outcome(call, time.time())
            outcome.error = own(error)
            return outcome

    main = threading.current_thread() is threading.main_thread()
    if main:
        signal.signal(signal.SIGINT, hear)
    try:
        await chain_steps(ready, progress, perform, progress.home.acall)
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


async def chain_steps(
    ready: Opened, progress: Progress, perform: Callable[[Call, Moment], Awaitable[Outcome]], ask: Callable[..., Awaitable[Any]]
) -> None:
    """Perform steps one after the other, each with the output, state and history that the one before leaves.

    It ends at the first that does not give a plain answer, or that the coordinator does not let start.
    """
    pack = ready.pack
    trail: Trail | None = None
    try:
        while True:
            try:
                wire = progress.waiting.popleft()
            except IndexError:  # none is left, or the side thread gave them back
                return
            if pack.gated and wire is not pack.calls[0] and not await ask("may_go", pack.id, wire.id, progress.finished()):
                return
            progress.running = (wire, time.perf_counter())
            try:
                if trail is None:
                    trail = Trail(ready, wire)
                call = trail.call(wire)
            except Exception as error:  # noqa: BLE001 - opening a body runs the user's module
                progress.done.append(outcome_wire(wire.id, unopened(wire, error), None))
                return
            try:
                outcome = await perform(call, trail.moment)
            except KeyboardInterrupt as error:  # as in `perform_calls`
                interrupted(wire, error, progress)
                return
            ending.heed(outcome.duration)
            progress.done.append(outcome_wire(wire.id, outcome, progress))
            progress.running = None
            if outcome.error is not None or outcome.jump is not None:
                return
            if progress.bigs:  # as in `perform_calls`
                progress.give_back()
                return
            trail.follow(outcome)
            progress.pulse(outcome.duration)
    finally:
        progress.waiting.clear()


async def _direct(function: Callable[[], Any]) -> Any:
    return function()
