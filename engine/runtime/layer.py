"""Performs one layer: starts its steps as slots allow, deals with failures as the policies say, and stops when it is asked to.

Every step, item and sub-workflow of the layer is a `Unit` that turns outcomes into one `StepResult`. What the log already holds is not
performed.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from engine.core.policy import Verdict, decide, lineage
from engine.core.registry import unknown
from engine.core.routing import Step
from engine.core.run import Layer, StepResult
from engine.core.state import StateDiff, opened
from engine.core.team import TeamPlan
from engine.errors import StepFailed
from engine.runtime.control import Halt
from engine.runtime.nested import Nested
from engine.runtime.spill import LARGE
from engine.runtime.step import STUBBORN, Call, Outcome
from engine.runtime.unit import Unit, recalled, size_of

if TYPE_CHECKING:
    from engine.runtime.loop import Driver

FAILED = "Workflow execution failed: "
"""How the text of a StepFailed starts; one that is told of in another says it once."""


class LayerWork:
    """The work of one layer."""

    def __init__(self, driver: "Driver", layer: Layer) -> None:
        """Prepare units; nothing starts yet."""
        self.driver = driver
        self.clock = driver.ledger.clock
        self.layer = layer
        self.moment = driver.moment()
        self.units: dict[int, Unit] = {}
        """By node. A step that is just one call has none until it fails or jumps: a wide layer is many of these."""
        self._results: list[StepResult] = []
        self._now = self.clock.now()
        self._running: dict[str, Call] = {}
        self._since: dict[str, float] = {}
        """When what runs was started."""
        self._nested = Nested(driver, driver.control, self._report, self._let_go)
        self._free = driver.at_once
        self._open = True
        self._failing = False
        self._timers: dict[asyncio.TimerHandle, Unit] = {}
        self._left = 0
        self._pumping = False
        self._queued: deque[Call] = deque()
        """Calls that start as soon as a slot is free."""
        self._parked: dict[int, deque[Call]] = {}
        """By unit: items beyond the width of a map."""
        self._broken: BaseException | None = None

    def announce(self) -> None:
        """Take finished steps from the log and write down that the others start."""
        driver, plan, log_id = self.driver, self.driver.plan, self.driver.log_id
        self._left = len(self.layer.steps)
        for step in self.layer.steps:
            if driver.recorded is None and plan.simple[step.node]:
                node, text = plan.nodes[step.node], driver.step_text(step.node, step.at)
                self._queued.append(Call(node, step.node, step.at, None, 1, step.input, step.window, f"{log_id}/{text}"))
                driver.tell("step_started", driver.path + node.name, text, attempt=1)
                continue
            unit = self._unit(step)
            if unit.node.kind == "map":
                self._announce_map(unit)
            elif not self._recall(unit, unit.text, 0):
                attempt = self._first_attempt(unit.text)
                at_once = self._enqueue(unit, None, attempt)
                told = {"members": len(body.members)} if isinstance(body := unit.node.body, TeamPlan) else None
                driver.tell("step_started", unit.name, unit.text, told, attempt=attempt if at_once else 1)

    def _unit(self, step: Step) -> Unit:
        unit = self.units[step.node] = Unit(self.driver, step, self.driver.step_text(step.node, step.at), self._now)
        return unit

    def _announce_map(self, unit: Unit) -> None:
        items = self._items(unit)
        if not isinstance(items, list):
            if self._recall(unit, unit.text, 0):
                return
            where = f"state key {unit.node.over!r}" if unit.node.over is not None else "its input"
            error = StepFailed(f"map {unit.name!r} needs a list, but {where} is {type(items).__name__}", node=unit.name)
            self.driver.tell("step_started", unit.name, unit.text)
            skipped = unit.node.policy.on_error == "skip"
            self._failed_event(unit, unit.text, unit.name, error, 1, 0.0, skipped=skipped)
            self._settle(
                unit, StepResult(unit.number, "skipped" if skipped else "failed", error=self._step_failed(unit.node.name, 1, error))
            )
            return
        unit.outcomes, unit.todo = list[Outcome | None]([None] * len(items)), len(items)
        recalled = bool(self.driver.recorded)
        again = 0
        for i in range(len(items)):
            text = f"{unit.text}/{i}"
            if not (recalled and self._recall(unit, text, i)):
                self._enqueue(unit, i, self._first_attempt(text), items[i])
                again += 1
        if again or (not items and not self._is_recorded(unit.text)):
            self.driver.tell("step_started", unit.name, unit.text, {"items": len(items)})
        if not unit.todo and unit.result is None:
            self._settle_map(unit)

    def _items(self, unit: Unit) -> Any:
        over = unit.node.over
        return opened(unit.step.input if over is None else self.driver.run.state.get(over))

    def _recall(self, unit: Unit, text: str, index: int) -> bool:
        """Take a finished step or item from the log."""
        recorded = self.driver.recorded
        done = recorded.finished(text) if recorded else None
        if done is None:
            return False
        outcome = recalled(done, self._call(unit, index if unit.node.kind == "map" else None, done.attempt, None))
        if recorded is not None and not self.driver.keeps:
            recorded.forget(text)
        if unit.node.kind == "map" and text != unit.text:
            self._settle_item(unit, index, outcome)
        elif done.status == "skipped":
            self._settle(
                unit,
                StepResult(unit.number, "skipped", attempt=done.attempt, started=done.started, duration=done.duration, error=outcome.error),
            )
        else:
            self._settle(unit, self._success(outcome))
        return True

    def _is_recorded(self, text: str) -> bool:
        recorded = self.driver.recorded
        return bool(recorded) and recorded.finished(text) is not None

    def _first_attempt(self, text: str) -> int:
        recorded = self.driver.recorded
        if recorded and text in recorded.due:
            return recorded.due[text][0] + 1
        return 1

    def _call(self, unit: Unit, ordinal: int | None, attempt: int, given: Any) -> Call:
        text = unit.text if ordinal is None else f"{unit.text}/{ordinal}"
        limit = unit.limit(ordinal, self.clock.monotonic())
        return Call(unit.node, unit.number, unit.step.at, ordinal, attempt, given, unit.step.window, f"{self.driver.log_id}/{text}", limit)

    def _enqueue(self, unit: Unit, ordinal: int | None, attempt: int, given: Any = None) -> bool:
        """Let a call start as soon as it can; False where it has to wait for a retry that an earlier life of the run announced."""
        call = self._call(unit, ordinal, attempt, given if ordinal is not None else unit.step.input)
        recorded = self.driver.recorded
        if attempt > 1 and recorded:
            text = unit.text if ordinal is None else f"{unit.text}/{ordinal}"
            if text in recorded.due:
                wait = recorded.due[text][1] - self.clock.now()
                if wait > 0:
                    self._later(unit, call, wait)
                    return False
        self._queued.append(call)
        return True

    async def perform(self) -> list[StepResult] | None:
        """Perform what is left.

        Returns all results, or None where the layer was stopped before its end; `failed` results among them end it.
        """
        control = self.driver.control
        self._pump()
        grace_until: float | None = None
        while not self._over():
            waiter = control.waiter()
            timeout = None if grace_until is None else max(0.0, grace_until - self.clock.monotonic())
            await asyncio.wait({waiter}, timeout=timeout)
            waiter.cancel()
            if self._broken is not None:
                raise self._broken
            if self._over():
                break
            if control.halt is not Halt.NONE or self._failing:
                self._close_gate(control.halt)
                if grace_until is None and (self._failing or control.halt is Halt.DRAIN):
                    grace_until = self.clock.monotonic() + self.driver.grace
            if control.halt.hard or (grace_until is not None and self.clock.monotonic() >= grace_until):
                await self._stop("cancelled" if control.halt.hard else "grace over")
                break
        for timer in self._timers:
            timer.cancel()
        for unit in self.units.values():
            if unit.result is None and unit.error is not None:
                self._settle(unit, StepResult(unit.number, "failed", error=unit.error[1], started=unit.started))
        if not self._left or any(r.status == "failed" for r in self._results):
            return self._results
        return None

    async def go_on(self, outcome: Outcome) -> list[StepResult] | None:
        """Take in the outcome of the layer's only call, which the driver performed itself, and perform what that asks for."""
        step = self.layer.steps[0]
        self._left = self._unit(step).running = 1
        self._take_in(outcome)
        return await self.perform()

    def _over(self) -> bool:
        if self._left == 0:
            return True
        return not self._open and not self._running and not self._nested

    def _close_gate(self, halt: Halt) -> None:
        """Let nothing more start: neither what waits here or for a retry, nor what the executor has and has not begun."""
        self._open = False
        waiting = list(self._running.values())
        for call in self.driver.executor.withdraw(waiting) if waiting else ():
            del self._running[call.step_id]
            if call.number in self.units:
                self.units[call.number].running -= 1
            if self._free is not None:
                self._free += 1
        self._parked.clear()
        self._queued.clear()
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._nested.request(halt or Halt.DRAIN)  # beside a failed step they are drained

    def _pump(self) -> None:
        """Start what may start now."""
        if not self._queued or not self._open or self._pumping:
            return
        if self.driver.control.halt is not Halt.NONE:
            self._close_gate(self.driver.control.halt)
            self.driver.control.wake()
            return
        calls: list[Call] = []
        now = self.clock.now()
        while self._queued and (self._free is None or self._free > 0):
            call = self._queued.popleft()
            unit = self.units.get(call.number)
            if unit is not None:
                if unit.width is not None and unit.running >= unit.width:
                    self._parked.setdefault(unit.number, deque()).append(call)
                    continue
                unit.running += 1
            if self._free is not None:
                self._free -= 1
            if unit is not None and self.driver.is_nested(call):
                self._nested.start(call, self.driver.child(unit, call))
            else:
                self._running[call.step_id], self._since[call.step_id] = call, now
                calls.append(call)
        if calls:
            self._pumping = True  # an executor may report from inside submit
            self.driver.executor.submit(calls, self.moment, self._report)
            self._pumping = False

    def _let_go(self, call: Call) -> None:
        """Take note of a sub-workflow or team that was stopped before its end."""
        self.units[call.number].running -= 1
        self.driver.control.wake()

    def _report(self, outcome: Outcome) -> None:
        """Take one outcome in; called on the event loop, by an executor that could do nothing about an error of ours."""
        try:
            self._take_in(outcome)
        except BaseException as error:
            self._broken = error
            self.driver.control.wake()
            raise

    def _take_in(self, outcome: Outcome) -> None:
        call = outcome.call
        unit = self.units.get(call.number)
        self._running.pop(call.step_id, None)
        if self._free is not None:
            self._free += 1
        if unit is None:
            if outcome.error is None and outcome.jump is None and self.driver.live:
                self._on_success(None, outcome)
                self._go_on()
                return
            unit = self._unit(self.layer.steps[bisect_left(self.layer.steps, call.number, key=attrgetter("node"))])
            unit.running = 1
        unit.running -= 1
        if self._parked.get(unit.number):
            self._queued.append(self._parked[unit.number].popleft())
        if unit.result is not None or not self.driver.live:
            return
        if outcome.jump is not None and outcome.error is None and not self.driver.plan.holds(outcome.jump.node):
            text = unknown(f"jump of {call.label!r}: target", outcome.jump.node, self.driver.plan.names)
            outcome.error, outcome.final = StepFailed(text, node=call.label), True
            self._fail(unit, outcome)
        elif outcome.error is not None:
            self._on_error(unit, outcome)
        else:
            self._on_success(unit, outcome)
        if unit.error is not None and unit.result is None and not unit.running:
            duration = self.clock.now() - unit.started
            self._settle(unit, StepResult(unit.number, "failed", None, (), None, call.attempt, unit.started, duration, unit.error[1]))
        self._go_on()

    def _go_on(self) -> None:
        """Start what may start now that a call has ended, or let whoever waits for the layer look."""
        if self._queued:
            self._pump()
        if not self._left or self._failing or self._over():
            self.driver.control.wake()

    def _text(self, call: Call) -> str:
        return call.step_id.removeprefix(f"{self.driver.log_id}/")

    def _on_success(self, unit: Unit | None, outcome: Outcome) -> None:
        call = outcome.call
        if not self.driver.ledger.quiet or self.driver.keeps:
            self.driver.tell_success(self.driver.path + call.node.name, self._text(call), outcome)
            self.driver.ledger.soon()
        else:
            self.driver.ledger.finished += 1
        if unit is None or call.ordinal is None:
            self._settle(unit, self._success(outcome))
        else:
            self._settle_item(unit, call.ordinal, outcome)

    def _on_error(self, unit: Unit, outcome: Outcome) -> None:
        call, error = outcome.call, outcome.error
        assert error is not None
        text = self._text(call)
        if outcome.abandoned:
            data = {"reason": "its limit; the body goes on unattended", "stopped_after": outcome.duration}
            self.driver.tell("step_stopped", unit.name, text, data, attempt=call.attempt)
        elif outcome.killed:
            data = {"reason": "its limit; its process was ended", "stopped_after": outcome.duration}
            self.driver.tell("step_stopped", unit.name, text, data, attempt=call.attempt)
        now = self.clock.monotonic()
        unit.count(outcome, now)
        left = unit.left(call.ordinal, now)
        final = outcome.final or call.spare is not None
        names = getattr(error, "lineage", None) or lineage(error)
        decision = decide(unit.node.policy, call.attempt, names, chance=self.clock.chance(), final=final, left=left)
        match decision.verdict:
            case Verdict.RETRY:
                data = {"error": self.driver.error_data(error), "delay": decision.delay, "due": self.clock.now() + decision.delay}
                self.driver.tell("step_retrying", unit.name, text, data, attempt=call.attempt)
                self.driver.ledger.soon()
                again = self._call(unit, call.ordinal, call.attempt + 1, call.input)
                if self._open:
                    self._later(unit, again, decision.delay)
            case Verdict.FALLBACK:
                spare = self.driver.plan.nodes[self.driver.plan.index[unit.node.policy.fallback or ""]]
                self._queued.append(self._call(unit, call.ordinal, call.attempt + 1, call.input)._replace(spare=spare))
            case Verdict.SKIP:
                self._failed_event(unit, text, call.label, error, call.attempt, outcome.duration, skipped=True)
                if call.ordinal is None:
                    result = StepResult(unit.number, "skipped", None, (), None, call.attempt, outcome.started, outcome.duration, error)
                    self._settle(unit, result)
                else:
                    self._settle_item(unit, call.ordinal, outcome)
            case Verdict.FAIL:
                self._fail(unit, outcome)

    def _later(self, unit: Unit, call: Call, delay: float) -> None:
        loop = asyncio.get_running_loop()

        def again() -> None:
            self._timers.pop(timer, None)
            if self._open:
                self._queued.append(self._call(unit, call.ordinal, call.attempt, call.input))
                self._pump()

        timer = loop.call_later(delay, again)
        self._timers[timer] = unit

    def _fail(self, unit: Unit, outcome: Outcome) -> None:
        call, error = outcome.call, outcome.error
        assert error is not None
        text = self._text(call)
        self._failed_event(unit, text, call.label, error, call.attempt, outcome.duration)
        place = call.ordinal or 0
        if unit.error is None or place < unit.error[0]:
            failed = self._step_failed(call.label, call.attempt, error)
            unit.error = (place, failed)
        self._failing = True
        self._close_gate(Halt.NONE)
        self.driver.ledger.soon()

    def _failed_event(
        self, unit: Unit, text: str, label: str, error: BaseException, attempt: int, duration: float, *, skipped: bool = False
    ) -> None:
        data = {"error": self.driver.error_data(error), "duration": duration}
        self.driver.tell("step_failed", unit.name, text, data, attempt=attempt)
        if skipped:
            self.driver.tell("step_skipped", unit.name, text, {"error": str(error), "duration": duration}, attempt=attempt)

    def _step_failed(self, label: str, attempt: int, error: BaseException) -> StepFailed:
        run_id = self.driver.run.id
        kind = getattr(error, "type_name", type(error).__name__)  # of an error from another process: the original's
        reason = str(error).removeprefix(FAILED) if isinstance(error, StepFailed) else f"{kind}: {error}"
        text = f"{FAILED}step {label!r}, attempt {attempt}: {reason}"
        failed = StepFailed(text, run_id=run_id, node=label, attempt=attempt, traceback_text=self.driver.error_data(error)["traceback"])
        failed.__cause__ = error
        return failed

    def _success(self, outcome: Outcome) -> StepResult:
        spill, call = self.driver.spill, outcome.call
        if spill is not None and outcome.jump is None and outcome.seq and size_of(outcome) >= LARGE:
            spill.note(call.number, outcome.output, (outcome.seq,), whole=True)
        diffs = outcome.diffs(call.node.name)
        return StepResult(call.number, "success", outcome.output, diffs, outcome.jump, call.attempt, outcome.started, outcome.duration)

    def _settle_item(self, unit: Unit, index: int, outcome: Outcome) -> None:
        unit.outcomes[index] = outcome
        unit.todo -= 1
        if not unit.todo:
            self._settle_map(unit)

    def _settle_map(self, unit: Unit) -> None:
        diffs: list[tuple[str, StateDiff]] = []
        outputs: list[Any] = []
        if unit.error is not None:
            return
        for i, outcome in enumerate(unit.outcomes):
            assert outcome is not None
            large = size_of(outcome) >= LARGE  # stays in its bytes until somebody reads it
            outputs.append(None if outcome.error is not None else outcome.output if large else opened(outcome.output))
            if outcome.error is None:
                diffs += outcome.diffs(f"{unit.node.name}[{i}]")
        duration = self.clock.now() - unit.started
        if not self._is_recorded(unit.text):
            self.driver.ledger.finished += 1
            self.driver.tell("step_succeeded", unit.name, unit.text, {"items": len(outputs), "duration": duration})
        if self.driver.spill is not None and sum(map(size_of, filter(None, unit.outcomes))) >= LARGE:
            seqs = tuple(o.seq if o is not None and o.error is None else 0 for o in unit.outcomes)
            self.driver.spill.note(unit.number, outputs, seqs, whole=False)
        self._settle(unit, StepResult(unit.number, "success", outputs, diffs, None, 1, unit.started, duration))

    def _settle(self, unit: Unit | None, result: StepResult) -> None:
        if unit is not None:
            unit.result = result
        self._results.append(result)
        self._left -= 1

    async def _stop(self, reason: str) -> None:
        """Stop what runs: calls through the executor, sub-workflows through their own control."""
        running = dict(self._running)
        self._open = False
        left = await self.driver.executor.stop(list(running.values()), STUBBORN) if running else []
        unattended = {call.step_id for call in left}
        for step_id, call in running.items():
            if step_id not in self._running:
                continue  # it ended after all
            why = f"{reason}; the body goes on unattended" if step_id in unattended else reason
            data = {"reason": why, "stopped_after": self.clock.now() - self._since[step_id]}
            self.driver.tell("step_stopped", self.driver.path + call.node.name, self._text(call), data, attempt=call.attempt)
        await self._nested.stop(reason)
