"""The simulator's executor: bodies as tasks of a virtual loop, late by chance, hit by faults, and counted.

It performs with the engine's own `attempt` and `ask`; what becomes of a failed attempt is decided elsewhere, as always.
"""

import asyncio
import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from engine.checkpoint.record import Recorded
from engine.core.graph import Node
from engine.core.run import Answer, Apply, Ask
from engine.core.state import Combine
from engine.runtime.asking import ask, reduce
from engine.runtime.bind import Binding
from engine.runtime.raised import told
from engine.runtime.step import Call, Moment, Outcome, attempt
from engine.testing.clock import VirtualLoop
from engine.testing.faults import Blow, Oracle


@dataclass(slots=True)
class Seen:
    """What the executors of all lives of a simulation saw."""

    performed: Counter[str] = field(default_factory=Counter[str])
    """Step id without the run's, to how often its body was started."""
    repeated: list[str] = field(default_factory=list[str])
    """What was performed or asked although its result had been committed."""
    injected: list[BaseException] = field(default_factory=list[BaseException])


class SimulatedExecutor:
    """Performs the calls of one life."""

    name = "simulated"
    keeps_copies = False
    ahead = False
    patience = 0.0

    def __init__(
        self, loop: VirtualLoop, seen: Seen, oracle: Oracle, done: Recorded, *, life: int, spread: float, alive: Callable[[], bool]
    ) -> None:
        """Perform on a virtual loop; `done` is what the log held when this life began, and nothing starts once it is not `alive`."""
        self._loop = loop
        self._seen = seen
        self._oracle = oracle
        self._done = done
        self._finished: set[str] = set()
        self._life = life
        self._spread = spread
        self._alive = alive
        self._running: dict[str, asyncio.Task[None]] = {}
        self._stopped: WeakSet[asyncio.Task[None]] = WeakSet()

    async def one(self, call: Call, moment: Moment) -> Outcome:
        """Perform a single call."""
        return await self._perform(call, moment)

    def submit(self, calls: Sequence[Call], moment: Moment, report: Callable[[Outcome], None]) -> None:
        """Start all calls, each a little late by chance."""
        for call in calls:
            self._running[call.step_id] = self._loop.create_task(self._serve(call, moment, report))

    def take(self, step_id: str) -> Outcome | None:
        """Nothing is performed ahead of the driver."""
        return None

    async def finished(self, step_id: str) -> bool:
        """Nothing is performed ahead of the driver."""
        return False

    def withdraw(self, calls: Sequence[Call]) -> list[Call]:
        """Nothing waits here: each call has a place of its own."""
        return []

    async def stop(self, calls: Sequence[Call], grace: float) -> list[Call]:
        """Cancel calls; return those whose bodies go on unattended."""
        running = {self._running[c.step_id]: c for c in calls if c.step_id in self._running}
        self._stopped.update(running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=grace)
        return [c for task, c in running.items() if not task.done() or not c.node.body.is_async]

    async def ask(self, questions: Sequence[Ask | Combine | Apply], moment: Moment) -> list[Answer]:
        """Answer all questions at once."""
        await self._stay_alive()
        run_id = moment.scene.run_id
        answers: list[Answer] = []
        for question in questions:
            if isinstance(question, (Combine, Apply)):
                answers.append(await reduce(question, moment, self._loop.perform))
            else:
                self._note_question(question, moment)
                answers.append(await ask(question, moment, self._loop.perform, run_id))
        return answers

    async def close(self) -> None:
        """Let go of everything."""

    async def _serve(self, call: Call, moment: Moment, report: Callable[[Outcome], None]) -> None:
        step, _, _ = names_of(call, moment)
        try:
            await asyncio.sleep(self._oracle.pause(step, life=self._life, most=self._spread))
            outcome = await self._perform(call, moment)
        finally:
            if self._running.get(call.step_id) is asyncio.current_task():
                del self._running[call.step_id]
        report(outcome)

    async def _perform(self, call: Call, moment: Moment) -> Outcome:
        """Perform one attempt with whatever hits it."""
        await self._stay_alive()
        names = names_of(call, moment)
        step = names[0]
        blow = self._oracle.of_attempt(names, step, life=self._life, attempt=call.attempt)
        started, begun = moment.owner.ledger.clock.now(), self._loop.time()
        if blow.error is None or blow.performed:
            self._note_step(step)
            outcome = await self._attempt(self._slowed(call, blow), moment)
        else:
            outcome = Outcome(call, started)
        if blow.error is not None:
            self._seen.injected.append(blow.error)
            lost, outcome = outcome, Outcome(call, started)
            outcome.error, outcome.abandoned = blow.error, lost.abandoned
        elif outcome.error is None:
            self._finished.add(step)
        outcome.call, outcome.started, outcome.duration = call, started, self._loop.time() - begun
        return outcome

    async def _attempt(self, call: Call, moment: Moment) -> Outcome:
        """Perform an attempt; a body that cancels its own task has failed, unless its run stops it."""
        started, me = moment.owner.ledger.clock.now(), asyncio.current_task()
        try:
            return await attempt(call, moment, self._loop.perform)
        except asyncio.CancelledError as error:
            if me is None or me in self._stopped or moment.owner.control.halt or not moment.owner.live:
                raise
            while me.cancelling():
                me.uncancel()
            outcome = Outcome(call, started)
            outcome.error = told(error)
            return outcome

    def _slowed(self, call: Call, blow: Blow) -> Call:
        """Return the call with a body that waits first, inside the limit of the attempt."""
        if not blow.seconds:
            return call
        node = call.spare or call.node
        binding = node.body

        async def body(ctx: Any, given: Any) -> Any:
            await asyncio.sleep(blow.seconds)
            if binding.is_async:
                return await binding.call(ctx, binding.prepare(given))
            value = await self._loop.perform(lambda: binding.call(ctx, binding.prepare(given)))
            return await value if inspect.isawaitable(value) else value

        slow = Node(name=node.name, body=Binding(binding.body, body, body, None, wants_context=True, asks=False), policy=node.policy)
        return call._replace(node=slow, spare=None)

    def _note_step(self, step: str) -> None:
        self._seen.performed[step] += 1
        if step in self._finished or self._done.finished(step) is not None:
            self._seen.repeated.append(step)

    def _note_question(self, question: Ask, moment: Moment) -> None:
        plan = moment.plan
        source = moment.owner.step_text(plan.source[question.edge], question.at)
        target = plan.names[plan.target[question.edge]]
        if (source, target) in self._done.verdicts:
            self._seen.repeated.append(f"{source} -> {target}")

    async def _stay_alive(self) -> None:
        """Return while the process lives; a dead one goes no further."""
        if not self._alive():
            await self._loop.create_future()


def names_of(call: Call, moment: Moment) -> tuple[str, str, str]:
    """Return by what a call is known: its step id without the run's, its label (`outer/inner[3]`), and its node."""
    driver = moment.owner
    return call.step_id.removeprefix(f"{driver.log_id}/"), f"{driver.path}{call.label}", f"{driver.path}{call.node.name}"
