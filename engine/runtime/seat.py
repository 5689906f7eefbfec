"""What a team knows of one member, and what that is to others: a result, an end for `settle`, a question to the judge."""

import asyncio
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from engine.core.routing import ABSENT, Next
from engine.core.state import opened
from engine.core.team import End, Jumped, MemberResult
from engine.errors import GeckoError
from engine.runtime.spill import LARGE
from engine.runtime.step import Call, Outcome
from engine.runtime.unit import size_of


@dataclass(slots=True)
class Seat:
    """What a team knows of one member."""

    call: Call | None = None
    """Once it has started."""
    since: float = 0.0
    """When that was, seconds since 1970."""
    mapping: "asyncio.Task[None] | None" = None
    """What makes its input, before its body starts."""
    outcome: Outcome | None = None
    """Of a success."""
    error: BaseException | None = None
    text: str = ""
    """Why it failed."""
    score: float | None = None
    stopped_after: float | None = None

    def result(self, member: int) -> MemberResult:
        """Return how it stands, as whoever asked the team gets it."""
        started = self.since or None
        if self.outcome is None:
            return MemberResult(member, None, self.text, False, self.error, started, self.stopped_after)
        return MemberResult(member, value_of(self.outcome), None, True, None, started, self.stopped_after)

    def end(self, member: int) -> End:
        """Return how it ended, for `settle`."""
        if self.outcome is None:
            return End(member, False)
        jump = self.outcome.jump
        value = value_of(self.outcome)
        return End(member, True, value if jump is None else Jumped(jump.node, jump.sent is not ABSENT, value))

    def judged(self) -> tuple[Any, Any]:
        """Return what its judge is asked of, as `engine.runtime.step.judge_of` takes it."""
        jump = None if self.outcome is None else self.outcome.jump
        return value_of(self.outcome), None if jump is None else (jump.node, jump.sent is not ABSENT)


def score_of(value: Any) -> Any:
    """Return a judge's answer as a number that can be kept, and compared with any other; None for what is none."""
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "size", 0) == 1:
        value = value.item()  # numbers of arrays do not compare with all others
    if isinstance(value, Decimal):
        return None if value.is_nan() else value  # one that signals could not even be compared with itself
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and value == value else None  # NaN is not


def value_of(outcome: Outcome | None) -> Any:
    """A member's result: of one that jumps, the jump's input; a large one stays in its bytes."""
    if outcome is None:
        return None
    jump: Next | None = outcome.jump
    if jump is not None:
        return None if jump.sent is ABSENT else jump.sent
    return outcome.output if size_of(outcome) >= LARGE else opened(outcome.output)


def text_of(error: BaseException) -> str:
    """Return an error as a result tells it."""
    kind = getattr(error, "type_name", type(error).__name__)  # of an error from another process: the original's
    return str(error) if isinstance(error, GeckoError) else f"{kind}: {error}"


def known_text(results: list[MemberResult]) -> str:
    """Say how each member stood."""
    return "; ".join(f"{r.member_index}: {'succeeded' if r.is_success else r.error}" for r in results)
