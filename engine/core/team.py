"""Bodies that are performed together: how many successes are needed, how the starts are staggered, which is picked.

`settle` alone decides about a race: who may start now, whether it is over, whose results are its answer. It is told how members ended, in
the order in which that was committed, so a race that is brought back from its log is settled as it was and never run again.

    ALL          every result, failures among them     RACE        the first success; the others are stopped
    HEDGE(delay) the next starts when the one before   QUORUM(k)   the first k successes
                 is late, or has failed
    VOTE         the most frequent answer              BEST(judge) the answer that scores highest
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, NoReturn, cast

from engine.core.graph import PLAIN, Node
from engine.core.policy import Policy, check_count, check_limit
from engine.core.state import opened, same
from engine.errors import DefinitionError, MemberFailed

Judge = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Strategy:
    """When a team has its answer, and what it is: a value, not a function. Six have names of their own.

    ALL            every result in member order, failures among them
    RACE           the first success
    HEDGE(delay)   a race in which the next member starts after `delay` seconds, or as soon as the one before it fails
    QUORUM(k)      the first `k` successes, in the order in which they ended
    VOTE           the most frequent answer; of several the one that a member gave who stands further ahead
    BEST(judge)    the result that `judge(result)` gives the highest number; of several that of the member further ahead

    Under all but ALL the other members are stopped, and what they wrote is dropped. Where nobody can win any more the answer is one failure
    for each member, and the team's node has succeeded all the same: `.value` of a result raises, a limit raises TeamTimedOut.
    """

    need: int | None = None
    """How many successes settle it; None: everybody is waited for."""
    stagger: float = 0.0
    """Seconds after which the next member starts, at once where the one before it failed; 0: all start together."""
    pick: Literal["vote"] | Judge | None = None
    """Which of the successes is the answer: the most frequent one, the one that a judge (sync or async, of the result) scores highest, or
    all of them."""

    def __post_init__(self) -> None:
        need, pick = cast("object", self.need), cast("object", self.pick)
        if need is not None and (not isinstance(need, int) or isinstance(need, bool) or need < 1):
            raise DefinitionError(f"Strategy(need={need!r}): a number of successes from 1, or None for everybody", where="need")
        if check_limit(self.stagger, "Strategy(stagger=...)") is None:
            raise DefinitionError("Strategy(stagger=None): a number of seconds, 0 for all at once", where="stagger")
        if pick is not None and pick != "vote" and not callable(pick):
            raise DefinitionError(f"Strategy(pick={pick!r}) is neither 'vote' nor a judge of one result, nor None", where="pick")

    def __call__(self, *given: Any, **options: Any) -> NoReturn:
        """Refuse, and say where a strategy goes. Raises: DefinitionError."""
        text = f"{self.text} is a strategy as it is, and is not called: write Team(members, strategy={self.text})"
        raise DefinitionError(text, where="strategy")

    @property
    def judge(self) -> Judge | None:
        """Who scores the results, if anybody does."""
        return None if self.pick is None or isinstance(self.pick, str) else self.pick

    @property
    def chooses(self) -> bool:
        """Whether there are winners and losers."""
        return self.need is not None or self.pick is not None

    @property
    def text(self) -> str:
        """The strategy as people write it: `QUORUM(2)`."""
        judged = getattr(self.judge, "__name__", type(self.judge).__name__)
        match self.need, self.stagger, self.pick:
            case None, 0, None:
                return "ALL"
            case 1, 0, None:
                return "RACE"
            case 1, stagger, None:
                return f"HEDGE({stagger:g})"
            case int(need), 0, None:
                return f"QUORUM({need})"
            case None, 0, pick if pick is not None:
                return "VOTE" if pick == "vote" else f"BEST({judged})"
            case _:
                picked = judged if callable(self.pick) else repr(self.pick)
                return f"Strategy(need={self.need}, stagger={self.stagger:g}, pick={picked})"


ALL: Final = Strategy()
RACE: Final = Strategy(1)
VOTE: Final = Strategy(pick="vote")


def HEDGE(delay: float) -> Strategy:
    """Race, with each further member starting only after `delay` seconds, or as soon as the one before it fails."""
    if check_limit(delay, "HEDGE(delay): the delay") is None:
        raise DefinitionError("HEDGE(delay): the delay must be a number of seconds, 0 or more, not None", where="strategy")
    return Strategy(1, delay)


def QUORUM(k: int) -> Strategy:
    """Take the first `k` successes."""
    check_count("QUORUM(k): how many successes are needed", k, 1)
    return Strategy(k)


def BEST(judge: Judge) -> Strategy:
    """Take the result that `judge(result)`, sync or async, gives the highest number; of a member that jumps the result is its `Next`."""
    if not callable(judge) or isinstance(judge, Strategy):
        raise DefinitionError(f"BEST(judge): the judge must be a function of one result, not {judge!r:.80}", where="strategy")
    return Strategy(pick=judge)


class ExecutionStrategy:
    """The strategies by one name."""

    ALL = ALL
    RACE = RACE
    VOTE = VOTE
    HEDGE = staticmethod(HEDGE)
    QUORUM = staticmethod(QUORUM)
    BEST = staticmethod(BEST)


@dataclass(frozen=True, slots=True)
class Member:
    """A body of a team with what is to hold for it alone; a body that needs nothing of that is a member as it is."""

    body: Any
    timeout: float | None = None
    """Seconds that it may take."""
    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: float | None = None
    """Bytes."""
    resources: Mapping[str, float] = field(default_factory=dict[str, float])


@dataclass(frozen=True, slots=True)
class MemberResult:
    """How one member of a team ended. As data, in history and state, it is its first four fields."""

    member_index: int
    result: Any = None
    error: str | None = None
    is_success: bool = True
    exception: Any = None
    """What a member that failed raised, where it is known in this process."""
    started: float | None = None
    """Seconds since 1970; None for one that never started."""
    stopped_after: float | None = None
    """Seconds from its start to its end, also of one that was stopped."""

    @property
    def value(self) -> Any:
        """The result. Raises: MemberFailed with the error's text and, as its cause, what the member raised."""
        if not self.is_success:
            raise MemberFailed(self.error, member_index=self.member_index) from self.exception
        return self.result

    def data(self) -> dict[str, Any]:
        """Return it as it enters history and state."""
        return {"member_index": self.member_index, "result": self.result, "error": self.error, "is_success": self.is_success}


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamPlan:
    """A team compiled for running."""

    name: str
    members: tuple[Node, ...]
    """Body and policy of each, under its own name."""
    lacks: Mapping[int, str] = field(default_factory=dict[int, str])
    """Of members that are no body: why."""
    strategy: Strategy = ALL
    width: int | None = None
    """How many members at once at most."""
    mapper: Any = None
    """Makes a member's input of the team's: `mapper(raw, index)`."""
    judge: Any = None
    """The strategy's, as whoever performs it wants it."""
    timeout: float | None = None
    full: bool = False
    """Whether an output with a text `content` is kept whole."""
    alone: bool = False
    """Whether it is no node of a user's workflow, so that a jump leads nowhere."""

    def shape(self) -> tuple[Any, ...]:
        """Return what a recorded run leans on: who is who, and what settles."""
        pick = self.strategy.pick if isinstance(self.strategy.pick, str) else self.strategy.pick is not None
        return (*(member.name for member in self.members), self.strategy.need, pick)


class Jumped(NamedTuple):
    """What a member answers that jumps, as votes are compared: another target is another answer, and so is another input."""

    target: str
    sent: bool
    """Whether with an input of its own."""
    input: Any


class End(NamedTuple):
    """How a member ended, for `settle`."""

    member: int
    success: bool
    value: Any = None
    """Of a success; compared with others where the team votes."""
    score: float | None = None
    """What the judge gave it, a whole number of any size too; None: not asked yet."""


class Standing(NamedTuple):
    """Where a race stands."""

    start: tuple[int, ...] = ()
    """Who is to start now."""
    judge: tuple[int, ...] = ()
    """Whose results have to be scored before more can be said."""
    over: bool = False
    answer: tuple[int, ...] = ()
    """Whose results are the answer, in its order, once it is over."""
    won: bool = False
    """Whether they are the successes that were asked for; else the answer is how everybody ended."""


def settle(
    strategy: Strategy, count: int, ends: Sequence[End], *, running: Sequence[int] = (), waited: float = 0.0, width: int | None = None,
) -> Standing:  # fmt: skip
    """Decide what is to be done about a race.

    Args:
        count: How many members there are.
        ends: How members ended, in the order in which that was committed.
        running: Who has started and not ended.
        waited: Seconds since the newest start.
        width: How many may run at once.
    """
    ended = {end.member: end for end in ends}
    successes = [end for end in ends if end.success]
    need = strategy.need
    complete = len(ends) == count if need is None else len(successes) >= need
    if complete and (successes or strategy.pick is None):
        chosen = successes if need is None else successes[:need]
        unscored = tuple(end.member for end in chosen if end.score is None) if strategy.judge is not None else ()
        if unscored:
            return Standing(judge=unscored)
        return Standing(over=True, answer=_picked(strategy, count, chosen), won=True)
    if complete or (need is not None and len(successes) + count - len(ends) < need):
        return Standing(over=True, answer=tuple(range(count)))
    left = [member for member in range(count) if member not in ended and member not in running]
    room = len(left) if width is None else max(0, width - len(running))
    if strategy.stagger and running and left:
        before = ended.get(left[0] - 1)
        due = waited >= strategy.stagger or (before is not None and not before.success)
        room = min(room, int(due))
    elif strategy.stagger:
        room = min(room, 1)
    return Standing(start=tuple(left[:room]))


def _picked(strategy: Strategy, count: int, chosen: Sequence[End]) -> tuple[int, ...]:
    """Return whose results are the answer, of those that come into question."""
    if strategy.pick is None:
        return tuple(range(count)) if strategy.need is None else tuple(end.member for end in chosen)
    by_member = sorted(chosen)
    if strategy.judge is not None:
        return (max(by_member, key=lambda end: (end.score or 0.0, -end.member)).member,)
    return (_most_frequent(by_member),)


def _most_frequent(ends: Sequence[End]) -> int:
    """Return who was the first, in the order given, to answer what most have answered."""
    boxes: dict[Hashable, list[list[Any]]] = {}
    ballots: list[list[Any]] = []
    for end in ends:
        value: Any = opened(end.value)
        if isinstance(value, Jumped):
            value = value._replace(input=opened(value.input))
        box = boxes.setdefault(_box(value), [])
        ballot = next((ballot for ballot in box if same(ballot[0], value)), None)
        if ballot is None:
            ballot = [value, 0, end.member]
            box.append(ballot)
            ballots.append(ballot)
        ballot[1] += 1
    return max(ballots, key=lambda ballot: ballot[1])[2]  # of several the first


def _box(value: Any) -> Hashable:
    """Return what is equal for values that are the same, so that few have to be compared."""
    kind: Hashable = cast("Hashable", type(value))
    if isinstance(value, (list, tuple)):
        return (kind, *map(_box, cast("Sequence[Any]", value)))
    if isinstance(value, dict):
        return kind, frozenset((key, _box(held)) for key, held in cast("dict[Any, Any]", value).items())
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(cast("set[Any]", value))
    try:
        return kind, hash(value) if value == value else None  # NaN is the same as NaN, and hashes by where it lies
    except Exception:  # noqa: BLE001 - an array has no hash; a foreign value may do as it likes
        return kind


def named(member: Node, label: str, policy: Policy = PLAIN) -> Node:
    """Return a member as it is performed in a step: under the team's label, with what its node says where it says nothing itself."""
    own = member.policy
    resources = own.resources or policy.resources
    merged = Policy(limits=own.limits, resources=resources, executor=own.executor or policy.executor)
    return Node(name=label, body=member.body, policy=merged, kind="member")
