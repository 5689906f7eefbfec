"""A fused chain: steps that follow each other with certainty, performed by one worker in one pack, ahead of their driver.

The driver asks for one step after the other as it always does; the chain answers from what the worker has sent. Under `always` the worker
asks before each step, and is let on when the driver, having committed what the step stands on, asks for it. Where the chain takes another
way (a jump, a failure), what would have followed is forgotten.
"""

import asyncio

from engine.core.plan import Plan
from engine.runtime.step import Call, Moment, Outcome

STEPS = 1024
"""Steps that one chain holds at most."""


def fusable(plan: Plan, number: int) -> bool:
    """Tell whether a node may share a worker with the one before it."""
    node = plan.nodes[number]
    return bool(plan.simple[number]) and not node.policy.resources and node.policy.executor is None


def chain_from(plan: Plan, number: int) -> list[int]:
    """Return the nodes that follow with certainty if each gives a plain answer, the first itself included; one alone is no chain."""
    following = [number]
    if not fusable(plan, number):
        return following
    seen = {number}
    is_async = plan.nodes[number].body.is_async
    while len(following) < STEPS:
        node = plan.step_after(following[-1])
        if node is None or node in seen or not fusable(plan, node) or plan.nodes[node].body.is_async is not is_async:
            break
        seen.add(node)
        following.append(node)
    return following


class Chain:
    """The steps of one pack that are performed ahead of their driver."""

    def __init__(self, nodes: list[int], first: Call, moment: Moment, *, gated: bool) -> None:
        """Begin with the call of the first node; `gated`: each further step waits to be let on."""
        driver = moment.owner
        plan, passes = moment.plan, driver.run.front.passes
        self.calls = [first]
        for number in nodes[1:]:
            node, at = plan.nodes[number], passes[number]
            step_id = f"{driver.log_id}/{driver.step_text(number, at)}"
            self.calls.append(Call(node, number, at, None, 1, None, first.window, step_id))
        self.gated = gated
        self.over = False
        self._done: dict[str, Outcome] = {}
        self._left = {call.step_id for call in self.calls}
        self._asked: tuple[str, asyncio.Future[Outcome | None]] | None = None
        self._let_on: set[str] = set()
        self._gates: dict[str, asyncio.Future[bool]] = {}

    def holds(self, step_id: str) -> bool:
        """Tell whether a step is performed, or will be, by this chain."""
        return not self.over and step_id in self._left

    async def settled(self, step_id: str) -> bool:
        """Tell whether a step has been performed; of one that its worker may have begun unasked, when it has ended or was given back."""
        if step_id in self._done or self.gated or not self.holds(step_id):
            return step_id in self._done
        self._asked = step_id, asyncio.get_running_loop().create_future()
        outcome = await self._asked[1]
        self._asked = None
        if outcome is not None:
            self._done[step_id] = outcome
        return outcome is not None

    def report(self, outcome: Outcome) -> None:
        """Take a step's outcome from the worker."""
        step_id = outcome.call.step_id
        if self._asked is not None and self._asked[0] == step_id and not self._asked[1].done():
            self._asked[1].set_result(outcome)
        else:
            self._done[step_id] = outcome

    def give_back(self, step_ids: set[str]) -> None:
        """Take note that the worker ended before these steps: whoever asks for them finds another way."""
        self._left -= step_ids
        if self._asked is not None and self._asked[0] in step_ids and not self._asked[1].done():
            self._asked[1].set_result(None)
        if not self._left and not self._done:
            self.over = True

    def take(self, step_id: str) -> Outcome | None:
        """Return the plain answer of a step that has been performed already; None where it ended otherwise, or is still to come."""
        outcome = self._done.get(step_id)
        if outcome is None or outcome.error is not None or outcome.jump is not None:
            return None
        del self._done[step_id]
        self._left.discard(step_id)
        if not self._left:
            self.stop()
        return outcome

    async def next(self, call: Call) -> Outcome | None:
        """Let the worker on to a step, and return its outcome; None where the worker ended before it."""
        if call.step_id in self._done:
            return self._taken(call, self._done.pop(call.step_id))
        self._let_on.add(call.step_id)
        gate = self._gates.pop(call.step_id, None)
        if gate is not None and not gate.done():
            gate.set_result(True)
        self._asked = call.step_id, asyncio.get_running_loop().create_future()
        outcome = await self._asked[1]
        self._asked = None
        if outcome is None:
            self.stop()
            return None
        return self._taken(call, outcome)

    def _taken(self, call: Call, outcome: Outcome) -> Outcome:
        self._left.discard(call.step_id)
        outcome.call = call
        if outcome.error is not None or outcome.jump is not None or not self._left:
            self.stop()
        return outcome

    async def may_go(self, step_id: str) -> bool:
        """Return when a step may start; False where the chain has ended."""
        if self.over or step_id in self._let_on:
            return not self.over
        gate: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._gates[step_id] = gate
        return await gate

    def stop(self) -> None:
        """Forget what would have followed."""
        self.over = True
        for gate in self._gates.values():
            if not gate.done():
                gate.set_result(False)
        self._gates.clear()
        self._done.clear()
