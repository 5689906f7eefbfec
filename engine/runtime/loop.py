"""Drives a run: while something is ready, perform it, apply it, commit it, show it. Starting is resuming with nothing to load.

`Driver` goes through the layers of one run, or of a sub-workflow inside its parent's log. How a whole run begins, stops and ends is not
its business: see `engine.runtime.conductor`.
"""

import asyncio
import logging
import traceback
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from time import perf_counter
from typing import Any

from engine.checkpoint.codec import Encoded, build, decode, encode, is_large, private
from engine.checkpoint.record import Finished, Recorded
from engine.core.context import Context, Scene
from engine.core.plan import Plan, shapes_of
from engine.core.routing import ABSENT, Step
from engine.core.run import Answer, Ask, Layer, News, Run, StepResult, apply, of_one_team, ready, start
from engine.core.state import Combine, opened
from engine.core.team import MemberResult, TeamPlan
from engine.errors import InDoubt
from engine.runtime.body_log import BodyLogger, body_logger
from engine.runtime.bulk import encoded
from engine.runtime.control import GRACE, Control
from engine.runtime.executor import Executor
from engine.runtime.layer import LayerWork
from engine.runtime.ledger import Ledger
from engine.runtime.nested import Child
from engine.runtime.spill import LARGE, Spill
from engine.runtime.step import Call, Moment, Outcome, perform_once
from engine.runtime.team import TeamWork
from engine.runtime.unit import Unit

logger = logging.getLogger(__name__)

SMALL = 4096
"""An output up to this many bytes is kept with `run_completed` too; a larger one is found at its step."""


TURN = 0.005
"""Seconds for which a run keeps the event loop at most, its bodies' own time apart."""


class Driver:
    """Goes through the layers of one run."""

    def __init__(
        self, plan: Plan, run: Run, scene: Scene, ledger: Ledger, executor: Executor, *, recorded: Recorded | None = None,
        control: Control | None = None, parent: "tuple[Driver, str, str] | None" = None,
    ) -> None:  # fmt: skip
        """Drive `run` from where it stands; `parent` is the driver around a sub-workflow, its path there, and how its steps' ids begin."""
        self.plan = plan
        self.run = run
        self.scene = scene
        self.ledger = ledger
        self.executor = executor
        self.recorded = recorded
        self.control = control or Control()
        self.grace = GRACE
        self.live = True
        """False once it was left behind: then it tells nothing more."""
        self.halted = False
        self._stopping = ""
        """Why the driver's own task was cancelled."""
        self.direct: tuple[Call | None, float] | None = None
        """The call, and since when, that runs in the driver's own asyncio task just now; without a call: conditions are asked."""
        self.spill: Spill | None = None
        if ledger.log is not None and ledger.claim is not None and ledger.strategy in ("always", "async"):
            self.spill = Spill(ledger.log, ledger.claim.key)
        self.nested = parent is not None
        self.before: Sequence[Mapping[str, Any]] = recorded.definitions if recorded else ()
        """The shapes that the plan had in earlier lives of the run, oldest first."""
        self.keeps = False
        """Whether what finishes is kept for another attempt: of a sub-workflow that is tried again."""
        self.ending: tuple[str, Any] | None = None
        """(step, output) of the newest step that alone made up its layer."""
        self.path = ""
        self.log_id = run.id
        self.at_once = plan.options.max_concurrency
        """How many steps at once; in a sub-workflow no more than around it."""
        self.prefix = ""
        self._ordinals: dict[tuple[int, int], int] | None = None
        self._numbered: dict[str, deque[int]] | None = None
        self._beyond = 0
        self._background: set[asyncio.Task[Any]] = set()
        self.stops: set[asyncio.Task[Any]] = set()
        """What stops the losers of teams, beside what comes after them; the run's end waits for it."""
        self.results: list[MemberResult] | None = None
        """Of a team that is performed alone: how its members ended."""
        if parent is not None:
            outer, self.path, self.prefix = parent
            self._ordinals, self.stops = {}, outer.stops
            self.log_id, self.grace = outer.log_id, outer.grace
            self.at_once = min((n for n in (self.at_once, outer.at_once) if n is not None), default=None)

    def step_text(self, node: int, at: int) -> str:
        """Return a step's id without the run's: `node/pass`, in a sub-workflow the outer step's and an ordinal."""
        if self._ordinals is None:
            return f"{self.plan.names[node]}/{at}"
        ordinal = self._ordinals.get((node, at))
        if ordinal is None:
            ordinal = self._ordinals[node, at] = self._next_ordinal(self.plan.names[node])
        return f"{self.prefix}{ordinal}"

    def _next_ordinal(self, name: str) -> int:
        """Number a step of a sub-workflow: as the log numbered the steps of this node, in order, and beyond them what it does not have."""
        if self._numbered is None:
            self._numbered = {}
            known = self.recorded.inner.get(self.prefix, {}) if self.recorded else {}
            for ordinal in sorted(known):
                self._numbered.setdefault(known[ordinal], deque()).append(ordinal)
            self._beyond = max(known, default=-1) + 1
        if self._numbered.get(name):
            return self._numbered[name].popleft()
        self._beyond += 1
        return self._beyond - 1

    def moment(self) -> Moment:
        """Return what the calls of the present layer share."""
        return Moment(self.scene, self.plan, self.run.state, self.run.version, self.ledger.stores, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run something beside the layers; kept until it ends."""
        running = asyncio.get_running_loop().create_task(work)
        self._background.add(running)
        running.add_done_callback(self._background.discard)
        return running

    def is_nested(self, call: Call) -> bool:
        """Tell whether a call is a sub-workflow or a team, driven here instead of performed by the executor."""
        return isinstance((call.spare or call.node).body, (Plan, TeamPlan))

    def child(self, unit: Unit, call: Call, *, text: str | None = None, before: Sequence[Mapping[str, Any]] | None = None) -> "Child":
        """Return what drives a sub-workflow or a team: its events and steps lie in this run's log.

        `text` is the id without the run's of a member that is one, `before` its shapes in earlier lives; else the id is that of the call's
        own step.
        """
        outer = text or (unit.text if call.ordinal is None else f"{unit.text}/{call.ordinal}")
        if call.spare is not None:
            outer = f"{outer}/fallback"
        if before is None:
            before = shapes_of(self.before, (call.spare or call.node).name)
        if isinstance((call.spare or call.node).body, TeamPlan):
            return TeamWork(self, unit, call, outer, [shape for shape in before if "team" in shape])
        child = self._sub_workflow(unit, call, outer)
        child.before = [shape for shape in before if "nodes" in shape]
        return child

    def _sub_workflow(self, unit: Unit, call: Call, text: str) -> "Driver":
        plan: Plan = (call.spare or call.node).body
        inside = text.removeprefix(unit.text).replace("/fallback", "").replace("/", ".")
        run_id = f"{self.run.id}.{unit.node.name}.{call.at}{inside}"
        run = start(plan, run_id, call.input)
        run.changes = None if self.run.changes is None else []
        scene = Scene(run_id=run_id, session_id=self.scene.session_id, input=call.input, private=private, rows=run.rows, services=None,
                      metadata={**self.scene.metadata, "parent_run_id": self.run.id}, deadline=self.scene.deadline)  # fmt: skip
        if unit.kept is None and (unit.node.policy.retry is not None or self.keeps):
            unit.kept = self.recorded or Recorded.empty()
        recorded = unit.kept or self.recorded
        driver = Driver(plan, run, scene, self.ledger, self.executor, recorded=recorded, parent=(self, f"{unit.name}/", f"{text}/"))
        driver.keeps = unit.kept is not None
        scene.services = driver
        driver.control.request(self.control.halt)
        return driver

    async def settle(self, outcome: Outcome) -> None:
        """Put what came of a sub-workflow into the outcome of its call."""
        outcome.error, outcome.output = self.run.error, self.run.last
        if outcome.error is None and not self.halted and self.ledger.stores:
            outcome.output_data = await encoded(outcome.output, f"output of {outcome.call.label!r}")

    async def drive(self) -> None:
        """Go on until the run has ended, or stops because it was asked to."""
        run, plan = self.run, self.plan
        turn = perf_counter()
        while True:
            if perf_counter() - turn > TURN:
                await asyncio.sleep(0)  # bodies that never wait must not keep limits, commits and other runs from their turn
                turn = perf_counter()
            layer = ready(plan, run)
            if layer.questions:
                apply(plan, run, await self._answer(layer))
            elif layer.steps:
                results = self._take_ahead(layer)
                if results is None and not (self.control.halt and await self._stops(layer)):
                    results = await self._perform(layer)
                if results is None:
                    self.halted = True
                    return
                apply(plan, run, results)
                if self.spill is not None:
                    self.spill.sweep(run, self.ledger.durable)
                if self.ledger.listeners:
                    self.ledger.show("layer_finished", data={"layer": layer.number})
            else:
                return
            if run.news:
                self._tell_news(run.news, layer.number)
                run.news = []

    def _perform(self, layer: Layer) -> Coroutine[Any, Any, Sequence[StepResult] | None]:
        alone = len(layer.steps) == 1 and self.plan.simple[layer.steps[0].node] and not self.keeps
        if alone and self.recorded is not None:
            alone = self.recorded.is_new(self.step_text(layer.steps[0].node, layer.steps[0].at))
        return self._perform_alone(layer) if alone else self._perform_layer(layer)

    def _take_ahead(self, layer: Layer) -> Sequence[StepResult] | None:
        """Take in a layer that is one call, where the executor has performed it ahead of us, in a chain.

        It is no commit of its own: nothing starts after it that is not done already. What it wrote leaves with the next commit.
        """
        step = layer.steps[0]
        if not self.executor.ahead or len(layer.steps) > 1 or self.control.halt:
            return None
        text = self.step_text(step.node, step.at)
        outcome = self.executor.take(f"{self.log_id}/{text}")
        if outcome is None:
            return None
        if not self.ledger.quiet:
            self.ledger.tell("step_started", self.path + self.plan.names[step.node], text)
            self._show_started(layer)
        return self._taken_in(step, text, outcome)

    async def _perform_layer(self, layer: Layer) -> Sequence[StepResult] | None:
        """Announce a layer, commit what it stands on, and perform it."""
        work = LayerWork(self, layer)
        work.announce()
        if not self.ledger.quiet:
            await self._commit(layer)
        return await work.perform()

    async def _stops(self, layer: Layer) -> bool:
        """Whether a request to stop holds before a layer. A step that was performed ahead, in a chain, is taken in first."""
        if self.control.halt.hard or len(layer.steps) != 1:
            return True
        step = layer.steps[0]
        self.direct = (None, 0.0)  # a body may be waited for, which a harder request ends
        try:
            return not await self.executor.finished(f"{self.log_id}/{self.step_text(step.node, step.at)}")
        finally:
            self.direct = None

    async def _commit(self, layer: Layer) -> None:
        await self.ledger.commit()
        self._show_started(layer)

    def _show_started(self, layer: Layer) -> None:
        if self.ledger.listeners:
            names = [self.plan.names[s.node] for s in layer.steps]
            self.ledger.show("layer_started", self.path.rstrip("/"), "", {"layer": layer.number, "nodes": names})

    async def _perform_alone(self, layer: Layer) -> Sequence[StepResult] | None:
        """Perform a layer that is one call: in this very task, which is the fast way through a chain."""
        step = layer.steps[0]
        node, text = self.plan.nodes[step.node], self.step_text(step.node, step.at)
        quiet = self.ledger.quiet
        if not quiet:
            self.ledger.tell("step_started", self.path + node.name, text)
            await self._commit(layer)
            if self.control.halt and await self._stops(layer):
                return None
        call = Call(node, step.node, step.at, None, 1, step.input, step.window, f"{self.log_id}/{text}")
        since = 0.0 if quiet else self.ledger.clock.now()
        self.direct = (call, since)
        try:
            outcome = await self.executor.one(call, self.moment())
        except asyncio.CancelledError:
            self._tell_stopped(call, since)
            raise
        finally:
            self.direct = None
        if outcome is None or not self.live:
            return None
        if outcome.error is not None or outcome.jump is not None:
            return await LayerWork(self, layer).go_on(outcome)
        return self._taken_in(step, text, outcome)

    def _taken_in(self, step: Step, text: str, outcome: Outcome) -> Sequence[StepResult]:
        """Write down the plain answer of a call that was its whole layer."""
        name = self.plan.names[step.node]
        if self.ledger.quiet:
            self.ledger.finished += 1
        else:
            self.tell_success(self.path + name, text, outcome)
            if outcome.output_data is not None and len(outcome.output_data) >= LARGE and self.spill is not None:
                self.spill.note(step.node, outcome.output, (outcome.seq,), whole=True)
        diffs = outcome.diffs(name)
        self.ending = (text, outcome.output)
        return (StepResult(step.node, "success", outcome.output, diffs, None, 1, outcome.started, outcome.duration),)

    async def _answer(self, layer: Layer) -> list[Answer]:
        """Answer the questions of a layer: from the log where it has them, else by asking."""
        answers: list[Answer] = []
        asked: list[Ask | Combine] = []
        for question in layer.questions:
            known = recorded_answer(self, layer.number, question)
            if known is None:
                asked.append(question)
            else:
                answers.append(known)
        if asked:
            self.ledger.soon()
            self.direct = (None, 0.0)
            try:
                found = await self.executor.ask(asked, self.moment())
            finally:
                self.direct = None
            for answer in found:
                await self._keep_answer(layer.number, answer)
            answers += found
        return answers

    async def _keep_answer(self, layer: int, answer: Answer) -> None:
        """Record what a custom reducer made, as verdicts are with their events: a run that is brought back asks no code again."""
        question = answer.question
        if isinstance(question, Ask):
            if self.keeps and self.recorded is not None:
                source = self.step_text(self.plan.source[question.edge], question.at)
                self.recorded.verdicts[source, self.plan.names[self.plan.target[question.edge]]] = bool(answer.value)
        elif isinstance(question, Combine) and self.live and not self.ledger.quiet and answer.error is None:
            text = f"{question.reducer} combined the writes of {', '.join(question.nodes)}"
            data = {"text": text, "reduced": repr(question.key), "layer": layer}
            kept = None
            if self.ledger.stores:
                kept = await encoded(answer.value, f"state[{question.key!r:.80}] of reducer {question.reducer!r}")
            self.ledger.tell("note", self.path.rstrip("/"), self.prefix.rstrip("/"), data, output=kept, value=answer.value)

    def stop_direct(self, inner: "asyncio.Task[Any]", reason: str) -> None:
        """Cancel the driver's own task where it waits for user code, and write down which step that stops."""
        if self.direct is None:
            return
        (call, since), self.direct = self.direct, None
        self._stopping = reason
        if call is not None and not self.executor.patience:
            why = reason if call.binding.is_async else f"{reason}; the body goes on unattended"
            data = {"reason": why, "stopped_after": self.ledger.clock.now() - since}
            self.tell("step_stopped", self.path + call.node.name, call.step_id.removeprefix(f"{self.log_id}/"), data)
        inner.cancel()

    def _tell_stopped(self, call: Call, since: float) -> None:
        """Write down when a call had really stopped, where the executor waits for that."""
        if self._stopping and self.executor.patience:
            data = {"reason": self._stopping, "stopped_after": self.ledger.clock.now() - since}
            self.tell("step_stopped", self.path + call.node.name, call.step_id.removeprefix(f"{self.log_id}/"), data)

    def tell(self, kind: str, node: str = "", step: str = "", data: dict[str, Any] | None = None, *, attempt: int = 0) -> None:
        """Write down an event of a step, unless this driver was left behind."""
        if self.live and not self.ledger.quiet:
            self.ledger.tell(kind, node, step, data, attempt=attempt)

    def tell_success(self, name: str, text: str, outcome: Outcome) -> None:
        """Write down that a step or item succeeded, with its output (of a jumper: the jump's input) and diff."""
        ledger = self.ledger
        if self.live:
            ledger.finished += 1
        outcome.seq = ledger.seq + 1
        if self.keeps and self.recorded is not None:
            jump = None if outcome.jump is None else (outcome.jump.node, outcome.jump.sent if outcome.jump.sent is not ABSENT else None)
            sent = outcome.jump is not None and outcome.jump.sent is not ABSENT
            self.recorded.keep(text, Finished("success", outcome.output, outcome.diff, jump, sent, outcome.call.attempt, outcome.started,
                                              outcome.duration, None, outcome.seq, outcome.parts))  # fmt: skip
        if ledger.quiet or not self.live:
            ledger.seq += 1
            return
        data: dict[str, Any] = {"duration": outcome.duration}
        value = outcome.output
        if outcome.jump is not None:
            sent = outcome.jump.sent
            data["jump"], data["sent"] = outcome.jump.node, sent is not ABSENT
            value = None if sent is ABSENT else sent
        if outcome.answer is not None:
            data, value = {**data, **outcome.answer}, None
        if outcome.worker:
            data["worker"] = outcome.worker
        if not ledger.stores and outcome.diff is not None:
            data["writes"], data["deletes"] = list(outcome.diff.written), list(outcome.diff.deleted)
        ledger.tell("step_succeeded", name, text, data, attempt=outcome.call.attempt, value=opened(value) if not ledger.stores else None,
                    output=outcome.output_data, diff=outcome.diff_data)  # fmt: skip

    def _tell_news(self, news: list[News], layer: int) -> None:
        if self.ledger.quiet:  # nobody sees events, but a log line is for whoever reads the log
            news = [n for n in news if n.kind in ("conflict", "condition_failed")]
        told = self.recorded.told if self.recorded else ()
        for kind, node, at, data in news:
            step = self.prefix.rstrip("/") if node is None else self.step_text(node, at)
            name = self.path.rstrip("/") if node is None else self.path + self.plan.names[node]
            detail = f"{layer} {data['key']!r}" if kind == "conflict" else data.get("target", "")
            if kind == "conflict":
                data = {**data, "layer": layer}
            if (kind, step, detail) in told:
                continue
            if kind == "conflict":
                text, nodes = "%s wrote one key, %r: %s; the later one wins", ", ".join(map(repr, data["nodes"]))
                who = "Members of one team" if of_one_team(self.plan, data["nodes"]) else "Steps of one layer"
                logger.warning(text, who, data["key"], nodes, extra={"run_id": self.run.id, "key": data["key"], "nodes": data["nodes"]})
            elif kind == "condition_failed":
                extra = {"run_id": self.run.id, **{f"condition_{k}": v for k, v in data.items()}}
                logger.error("Condition check failed, %r -> %r: %s", data["source"], data["target"], data["error"], extra=extra)
            elif kind == "jumped" and "input" in data:
                self._tell_jump(name, step, data)
                continue
            self.ledger.tell(kind, name, step, data)

    def _tell_jump(self, name: str, step: str, data: dict[str, Any]) -> None:
        """Write down a jump with its input; on storage a large one is kept once, as the output of the step that jumped."""
        value, told = data["input"], {"target": data["target"]}
        if not self.ledger.stores:
            self.ledger.tell("jumped", name, step, {**told, "input": opened(value)})
            return
        kept = b""
        if not is_large(value):  # else it has more bytes than are kept here anyway
            kept = bytes(value.data) if isinstance(value, Encoded) else encode(value, where=f"the jump's input of {name!r}")
        if not kept or len(kept) > SMALL:
            self.ledger.tell("jumped", name, step, {**told, "input_of": step})
        else:
            self.ledger.tell("jumped", name, step, told, output=kept)

    def error_data(self, error: BaseException) -> dict[str, Any]:
        """Return an error as an event tells it."""
        text = getattr(error, "traceback_text", None) or "".join(traceback.format_exception(error))
        return {"type": getattr(error, "type_name", type(error).__name__), "message": str(error), "traceback": text[-20_000:]}

    # What a Context asks of its run.

    def build(self, kind: Any, value: Any) -> Any:
        """Return the value as an instance of a type."""
        return build(kind, value)

    def logger(self, ctx: Context) -> BodyLogger:
        """Return a logger that tells run, node and step."""
        return body_logger(ctx)

    def progress(self, ctx: Context, done: float, total: float | None, note: str) -> None:
        """Show how far a step is; may be called from a body's thread."""
        data = {"done": done, "total": total, "note": note}
        step = ctx.step_id.removeprefix(f"{self.log_id}/")
        self.ledger.loop.call_soon_threadsafe(self.ledger.show, "progress", self.path + ctx.node, step, data)

    async def checkpoint(self, ctx: Context) -> None:
        """Put everything told on storage."""
        await self.ledger.checkpoint()

    async def once(self, ctx: Context, key: str, fn: Any, again: bool) -> Any:
        """Perform an effect between its intent and its receipt, those of one key in one attempt one after the other."""
        step, node = ctx.step_id.removeprefix(f"{self.log_id}/"), self.path + ctx.node

        async def withdraw() -> None:
            self.withdraw(step, key)

        return await perform_once(
            ctx, key, fn, intend=lambda: self.intend(step, node, key, again=again), withdraw=withdraw,
            receive=lambda data: self.receive(step, node, key, data),
        )  # fmt: skip

    async def intend(self, step: str, node: str, key: str, *, again: bool) -> bytes | None:
        """Commit the intent of an effect; the value's bytes where its receipt is there already.

        Raises: InDoubt where only the intent is there.
        """
        ledger, place = self.ledger, (step, key)
        if place in ledger.receipts:
            return ledger.receipts[place]
        if place not in ledger.intents:
            ledger.intents.add(place)
            ledger.tell("once_intended", node, step, {"key": key})
            await ledger.checkpoint()
        elif not again:
            text = f"once({key!r}) of step {node!r} was begun before and left no receipt: its effect may have happened; "
            raise InDoubt(text + "look, then pass again=True to repeat it", run_id=self.run.id, node=node)
        return None

    def withdraw(self, step: str, key: str) -> None:
        """Let an effect that failed before our eyes be tried again in this life of the run; after a crash it is in doubt."""
        self.ledger.intents.discard((step, key))

    async def receive(self, step: str, node: str, key: str, data: bytes) -> None:
        """Commit the receipt of an effect."""
        shown = None if self.ledger.stores or self.ledger.quiet else decode(data)
        self.ledger.tell("once_done", node, step, {"key": key}, output=data, value=shown)
        self.ledger.receipts[step, key] = data
        await self.ledger.checkpoint()


def recorded_answer(driver: Driver, layer: int, question: Ask | Combine) -> Answer | None:
    """Return what the log has as the answer to a question, None where it has to be asked."""
    recorded = driver.recorded
    if not recorded:
        return None
    if isinstance(question, Combine):
        data = recorded.reductions.get((driver.prefix.rstrip("/"), layer, repr(question.key)))
        return None if data is None else Answer(question, decode(data))
    source = driver.step_text(driver.plan.source[question.edge], question.at)
    verdict = recorded.verdicts.get((source, driver.plan.names[driver.plan.target[question.edge]]))
    return None if verdict is None else Answer(question, verdict)
