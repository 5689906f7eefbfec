"""Teams in the table of the conformance suite: who wins is never a matter of some milliseconds.

A loser sleeps for half a minute, fails, or never starts; where several succeed, their number or their order decides nothing, or they come
one after the other. So every executor has to come to the same end, and no case waits for what it stops.
"""

import asyncio
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from engine.core.context import Context
from engine.core.policy import Retry
from engine.core.routing import Next
from engine.core.team import ALL, BEST, HEDGE, QUORUM, RACE, VOTE, Member
from engine.team import Team
from engine.testing.conformance import Case
from engine.workflow import Workflow

Make = Callable[[], Workflow]


async def sleep(given: Any) -> str:
    """Lose every race."""
    await asyncio.sleep(30)
    return "overslept"


async def increase(given: int) -> int:
    """Add 1, in an async body."""
    await asyncio.sleep(0)
    return given + 1


def double(given: int) -> int:
    """Double, in a sync body."""
    return given * 2


def show(given: Any) -> Any:
    """Return the input."""
    return given


def fail(given: Any) -> None:
    """Raise."""
    raise ValueError(f"cannot take {given!r}")


async def fail_later(given: Any) -> None:
    """Raise, in an async body."""
    await asyncio.sleep(0)
    raise KeyError("no such thing")


def size(result: int) -> int:
    """Judge: the greater the better."""
    return result


async def closeness(result: int) -> float:
    """Judge: the nearer to 5 the better; no number at all for a 3."""
    return float("nan") if result == 3 else -abs(result - 5)


async def cancel_itself(*given: Any) -> None:
    """Do as user code that misuses asyncio."""
    running = asyncio.current_task()
    assert running is not None
    running.cancel()
    await asyncio.sleep(30)


async def cancel_for_one(result: int) -> int:
    """Judge: cancels its own task over a 9, else the greater the better."""
    return result if result != 9 else await cancel_itself()  # type: ignore[return-value]


def penalty(result: Any) -> float:
    """Judge: a jump to `other` is best, a plain result worst."""
    return 0 if not isinstance(result, Next) else 2 if result.node == "other" and result.input == 8 else 1


async def signal(result: int) -> Any:
    """Judge: gives what cannot be compared, or not be kept."""
    return {1: Decimal("sNaN"), 2: Decimal("NaN"), 3: Fraction(1, 2), 4: complex(1)}.get(result, result)


async def share(raw: list[int], index: int) -> int:
    """Give each member its own number; there is none for some."""
    return raw[index]


def gave(member: int, result: Any) -> dict[str, Any]:
    """Return a success as data."""
    return {"member_index": member, "result": result, "error": None, "is_success": True}


def lost(member: int, error: str) -> dict[str, Any]:
    """Return a failure as data."""
    return {"member_index": member, "result": None, "error": error, "is_success": False}


def giving(value: Any) -> Callable[[Any], Any]:
    """Return a body that is a closure."""

    def body(given: Any) -> Any:
        return value

    return body


def team_of(members: Sequence[Any], *, reducers: dict[Any, Any] | None = None, on_conflict: str = "warn", policy: Any = None,
            **options: Any) -> Make:  # fmt: skip
    """Return what makes a workflow `team > end`, whose last node shows what the team gave."""

    def make() -> Workflow:
        flow = Workflow("teams", reducers=reducers, on_conflict=on_conflict)  # type: ignore[arg-type]
        flow.add_node("team", Team(members, "panel", **options), **(policy or {})).add_node("end", show)
        return flow.add_edge("team", "end").set_entry_point("team")

    return make


def writer(n: int) -> Callable[[Any, Context], int]:
    """Return a member that writes a sum, a list, and a key of its own."""

    def body(given: Any, ctx: Context) -> int:
        ctx.state["sum"] = ctx.state.get("sum", 0) + n
        ctx.state.setdefault("list", []).append(n)
        ctx.state[f"own {n}"] = n
        return n

    return body


def setter(value: Any, *, then: Any = None) -> Callable[[Any, Context], Any]:
    """Return an async member that writes one key, and then does as another one does."""

    async def body(given: Any, ctx: Context) -> Any:
        ctx.state["key"] = value
        return value if then is None else await then(given)

    return body


def steps(*bodies: Any) -> Workflow:
    """Return a chain as a workflow that is a member."""
    flow = Workflow("member")
    for i, body in enumerate(bodies):
        flow.add_node(f"s{i}", body)
        if i:
            flow.add_edge(f"s{i - 1}", f"s{i}")
    return flow.set_entry_point("s0")


def in_map() -> Workflow:
    """A race for every item, whose diffs merge in item order."""

    async def add(given: int, ctx: Context) -> int:
        ctx.state["sum"] = ctx.state.get("sum", 0) + given
        return given * 10

    flow = Workflow("in_map", reducers={"sum": "add"}).add_node("start", giving([3, 1, 2]))
    flow.add_map("race", Team([sleep, add], strategy=RACE), max_concurrency=2)
    return flow.add_edge("start", "race").set_entry_point("start")


def in_sub_workflow() -> Workflow:
    """A team in a workflow that is a step, beside another step."""
    inner = Workflow("inner").add_node("first", increase).add_node("team", Team([increase, double]))
    inner.add_edge("first", "team").set_entry_point("first")
    flow = Workflow("outer").add_node("sub", inner).add_node("beside", show).add_node("end", show, join="all")
    return flow.add_edge("sub", "end").add_edge("beside", "end").set_entry_point("sub", "beside")


def of_workflows() -> Workflow:
    """Workflows as members: one wins, one is stopped in its second step."""
    quick, slow = steps(increase, double), steps(increase, sleep)
    return team_of([slow, quick], strategy=RACE)()


def of_teams() -> Workflow:
    """A team as a member of a team: its diffs stand in its place."""
    inner = Team([setter("inner 0"), setter("inner 1"), setter("inner 2")], "inner")
    return team_of([inner, setter("outer")])()


def jumping(strategy: Any, *members: Any) -> Make:
    """Return what makes a workflow whose team jumps over the node behind it."""

    def make() -> Workflow:
        flow = Workflow("jumping").add_node("team", Team(members, strategy=strategy or ALL)).add_node("next", fail)
        flow.add_node("target", show).add_node("other", show)
        return flow.add_edge("team", "next").set_entry_point("team")

    return make


def leaping(target: str, value: Any) -> Callable[[Any], Next]:
    """Return a member that jumps, with an input and a state."""

    def body(given: Any) -> Next:
        return Next(target, value, {f"from {value}": True})

    return body


def fallback() -> Workflow:
    """A node whose fallback's body is a team."""
    flow = Workflow("fallback").add_node("start", giving(4)).add_node("spare", Team([sleep, double], strategy=RACE))
    flow.add_node("a", fail, on_error="fallback", fallback="spare").add_node("end", show).add_edge("start", "a").add_edge("a", "end")
    return flow.set_entry_point("start")


def again() -> Workflow:
    """A node around a race that nobody wins in its time: tried again, then skipped."""
    team = Team([sleep, sleep], strategy=RACE, timeout=0.05)
    return Workflow("again").add_node("race", team, retry=Retry(2, delay=0.01), on_error="skip").set_entry_point("race")


_CANNOT = "ValueError: cannot take 3"
_NO_KEY = "KeyError: 'no such thing'"
_NO_BODY = "is no body: pass a function, an object with run(), a Workflow or a Team"

TEAM_CASES: tuple[Case, ...] = (
    Case("team of all", team_of([increase, double, fail, "no body"]), 3, [
        gave(0, 4), gave(1, 6), lost(2, _CANNOT),
        lost(3, f"not executable: 'no body' {_NO_BODY}"),
    ], kinds={"step_started": 6, "member_won": 0, "member_lost": 0, "step_failed": 2}),
    Case("empty team", team_of([]), 3, []),
    Case("team in turns", team_of([increase, fail_later, double], max_concurrent=1), 3, [gave(0, 4), lost(1, _NO_KEY), gave(2, 6)]),
    Case("race", team_of([sleep, increase, sleep], strategy=RACE), 3, [gave(1, 4)], kinds={"member_won": 1, "member_lost": 2}),
    Case("race of closures", team_of([sleep, giving({"a": [1]})], strategy=RACE), 3, [gave(1, {"a": [1]})]),
    Case("race in turns", team_of([fail, double, sleep], strategy=RACE, max_concurrent=1), 3, [gave(1, 6)],
         kinds={"step_failed": 1, "member_won": 1, "member_lost": 1, "step_started": 4}),
    Case("race that all lose", team_of([fail, fail_later, 5], strategy=RACE), 3, [
        lost(0, _CANNOT), lost(1, _NO_KEY), lost(2, f"not executable: 5 {_NO_BODY}"),
    ], kinds={"member_won": 0, "step_failed": 3}),
    Case("hedge", team_of([fail, increase, sleep], strategy=HEDGE(20)), 3, [gave(1, 4)], kinds={"step_started": 4, "member_lost": 1}),
    Case("hedge over a delay", team_of([sleep, double], strategy=HEDGE(0.05)), 3, [gave(1, 6)], kinds={"member_lost": 1}),
    Case("quorum", team_of([sleep, increase, double], strategy=QUORUM(2), max_concurrent=2), 3, [gave(1, 4), gave(2, 6)],
         kinds={"member_won": 2, "member_lost": 1}),
    Case("quorum out of reach", team_of([fail, fail_later, sleep], strategy=QUORUM(2), max_concurrent=1), 3, [
        lost(0, _CANNOT), lost(1, _NO_KEY), lost(2, "Never started: too many others had failed"),
    ], kinds={"member_won": 0, "step_started": 4}),
    Case("vote", team_of([giving("a"), giving([1, "b"]), fail, giving([1, "b"])], strategy=VOTE), 3, [gave(1, [1, "b"])],
         kinds={"member_won": 1, "member_lost": 3}),
    Case("tied vote", team_of([giving("b"), giving("a"), giving("a"), giving("b")], strategy=VOTE), 3, [gave(0, "b")]),
    Case("best", team_of([increase, double, fail], strategy=BEST(size)), 3, [gave(1, 6)], kinds={"member_won": 1, "member_lost": 2}),
    Case("best by a judge that fails for one", team_of([giving(3), giving(9), giving(2)], strategy=BEST(closeness)), 3, [gave(2, 2)],
         kinds={"member_won": 1, "member_lost": 2}),
    Case("judge that cancels itself", team_of([giving(3), giving(9), giving(4)], strategy=BEST(cancel_for_one)), 3, [gave(2, 4)],
         kinds={"member_won": 1, "member_lost": 2}),
    Case("judge of no numbers", team_of([giving(1), giving(2), giving(3), giving(4), giving(0)], strategy=BEST(signal)), 3, [gave(4, 0)]),
    Case("mapper that cancels itself", team_of([show, show], input_mapper=cancel_itself), 3, [
        lost(i, "Input mapping failed: CancelledError: cancelled by its own code") for i in range(2)
    ]),
    Case("mapper", team_of([increase, double, show], input_mapper=share), [5, 7], [
        gave(0, 6), gave(1, 14), lost(2, "Input mapping failed: IndexError: list index out of range"),
    ]),
    Case("member's limit", team_of([Member(sleep, timeout=0.05), show]), 3, [
        lost(0, "step 'team[0]' timed out after 0.05 s"), gave(1, 3),
    ]),
    Case("team's limit", team_of([sleep], strategy=RACE, timeout=0.05), 3, status="failed",
         error=("StepFailed", "TeamTimedOut", "'team'", "timed out after 0.05 s", "0: Timed out after 0.05 s")),
    Case("race again", again, 3, 3, history={}, kinds={"step_retrying": 1, "step_skipped": 1}),
    Case("team with reducers", team_of([writer(3), fail, writer(2)], reducers={"sum": "add", "list": "append"}), 3,
         [gave(0, 3), lost(1, _CANNOT), gave(2, 2)], state={"sum": 5, "list": [3, 2], "own 3": 3, "own 2": 2}, kinds={"conflict": 0}),
    Case("conflict in a team", team_of([setter("a"), setter("b")]), 3, [gave(0, "a"), gave(1, "b")], state={"key": "b"},
         kinds={"conflict": 1}),
    Case("conflict in a team as error", team_of([setter("a"), setter("b")], on_conflict="error"), 3, status="failed",
         error=("StateConflict", "", "'key'", "'team[0]' and 'team[1]'")),
    Case("conflict of a team in a team", team_of([setter("a"), Team([setter("b"), setter("c")])], on_conflict="error"), 3, status="failed",
         error=("StateConflict", "", "'key'", "more than one member of a team", "'team[0]' and 'team[1][0]' and 'team[1][1]'")),
    Case("diff of a winner", team_of([setter("loser", then=sleep), setter("winner")], strategy=RACE), 3, [gave(1, "winner")],
         state={"key": "winner"}, kinds={"conflict": 0}),
    Case("team in a map", in_map, output=[[gave(1, 30)], [gave(1, 10)], [gave(1, 20)]], state={"sum": 6}),
    Case("team in a sub-workflow", in_sub_workflow, 3, {"sub": [gave(0, 5), gave(1, 8)], "beside": 3}),
    Case("workflow as a member", of_workflows, 3, [gave(1, 8)], kinds={"member_won": 1, "member_lost": 1}),
    Case("failing workflow as a member", team_of([steps(increase, fail), show]), 3,
         [lost(0, "Workflow execution failed: step 's1', attempt 1: ValueError: cannot take 4"), gave(1, 3)]),
    Case("team as a member", of_teams, 3,
         [gave(0, [gave(0, "inner 0"), gave(1, "inner 1"), gave(2, "inner 2")]), gave(1, "outer")], state={"key": "outer"}),
    Case("team as a fallback", fallback, output=[gave(1, 8)], kinds={"member_won": 1}),
    Case("jump of a team", jumping(None, show, leaping("target", 7), leaping("other", 8)), 3, 7,
         state={"from 7": True, "from 8": True}, history={"team": 7, "target": 7}, kinds={"jumped": 1}),
    Case("vote of jumps", jumping(VOTE, leaping("target", 7), leaping("other", 8), leaping("other", 8)), 3, 8,
         state={"from 8": True}, history={"team": 8, "other": 8}, kinds={"jumped": 1}),
    Case("vote of jumps by input", jumping(VOTE, leaping("target", 7), leaping("target", 8), leaping("target", 8)), 3, 8,
         state={"from 8": True}, history={"team": 8, "target": 8}),
    Case("vote of jumps over nothing", jumping(VOTE, giving(None), giving(Next("other")), giving(Next("other"))), 3, 3,
         history={"team": 3, "other": 3}, kinds={"jumped": 1}),
    Case("best of jumps", jumping(BEST(penalty), giving(9), leaping("target", 8), leaping("other", 8), leaping("other", 9)), 3, 8,
         state={"from 8": True}, history={"team": 8, "other": 8}, kinds={"jumped": 1}),
    Case("jump of a winner", jumping(RACE, sleep, leaping("target", 7)), 3, 7, state={"from 7": True}, history={"team": 7, "target": 7},
         kinds={"jumped": 1, "member_lost": 1}),
)  # fmt: skip
