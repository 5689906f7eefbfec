"""What a layer keeps of each of its steps until it has a result, and what it takes from the log.

A `Unit` holds; what happens to it is decided in `engine.runtime.layer`.
"""

from typing import TYPE_CHECKING

from engine.checkpoint.codec import Encoded
from engine.core.routing import Next, Step
from engine.core.run import StepResult
from engine.core.state import opened
from engine.errors import StepFailed
from engine.runtime.step import Call, Outcome

if TYPE_CHECKING:
    from engine.checkpoint.record import Finished, Recorded
    from engine.runtime.loop import Driver


class Unit:
    """One step of the layer on its way to a result; a map has one slot for each item."""

    running = 0
    """Calls that have started and not ended."""
    todo = 0
    """Items that have not settled."""
    outcomes: list[Outcome | None]
    """Of a map, by item."""
    result: StepResult | None = None
    kept: "Recorded | None" = None
    """Of a sub-workflow that may be tried again: what finished in it."""
    error: tuple[int, BaseException] | None = None
    """(item, error) of the failure that comes first in order."""
    until: dict[int | None, float] | None = None
    """By item, once its first attempt has ended: when its node's limit is over, counted from when that had started."""

    def __init__(self, driver: "Driver", step: Step, text: str, now: float) -> None:
        """`text` is the step id without the run's."""
        node = driver.plan.nodes[step.node]
        self.step = step
        self.text = text
        self.number = step.node
        self.node = node
        self.name = driver.path + node.name
        self.started = now
        self.width = node.width
        self.members: dict[str, dict[int, Outcome]] = {}
        """Of a team, by the id of its step: whose success an earlier attempt has."""

    def left(self, item: int | None, now: float) -> float | None:
        """Return the seconds left of the node's limit for an item (None: for the step); None without a limit."""
        whole = self.node.policy.limits.node
        return whole if whole is None or self.until is None or item not in self.until else max(0.0, self.until[item] - now)

    def limit(self, item: int | None, now: float) -> float | None:
        """Return the seconds that the next attempt has, None without a limit."""
        limits = [limit for limit in (self.node.policy.limits.attempt, self.left(item, now)) if limit is not None]
        return min(limits, default=None)

    def count(self, outcome: Outcome, now: float) -> None:
        """Let the node's limit run from the start of an attempt that failed, where it was the first."""
        whole = self.node.policy.limits.node
        if whole is not None:
            self.until = self.until or {}
            self.until.setdefault(outcome.call.ordinal, now - outcome.duration + whole)


def recalled(done: "Finished", call: Call) -> Outcome:
    """Return the outcome of a call that the log has as finished."""
    outcome = Outcome(call, done.started)
    outcome.output, outcome.diff, outcome.duration, outcome.seq = done.output, done.diff, done.duration, done.seq
    outcome.parts = done.parts
    if done.jump is not None:
        target, sent = done.jump
        outcome.jump = Next(target)
        outcome.jump.input = Next.none if done.sent and opened(sent) is None else sent if done.sent else None
        outcome.output = None
    if done.status == "skipped":
        outcome.error = StepFailed(done.error)
    return outcome


def size_of(outcome: Outcome) -> int:
    """Bytes of an output, as far as it is in its bytes."""
    if outcome.output_data is not None:
        return len(outcome.output_data)
    return len(outcome.output.data) if isinstance(outcome.output, Encoded) else 0
