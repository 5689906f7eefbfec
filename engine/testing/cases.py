"""The table of the conformance suite: small workflows over all of the semantics, each with how its run ends."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from engine.core.context import Context
from engine.core.policy import Limits, Retry
from engine.core.routing import Next
from engine.testing.cancel_cases import CANCEL_CASES
from engine.testing.conformance import Case
from engine.testing.team_cases import TEAM_CASES
from engine.workflow import Workflow


@dataclass
class Point:
    """A value that becomes data."""

    x: int
    y: int = 0


class Doubler:
    """A body that is an object."""

    def run(self, given: int) -> int:
        """Double."""
        return given * 2


def one() -> int:
    """Return 1."""
    return 1


def increase(given: int) -> int:
    """Add 1, in a sync body."""
    return given + 1


async def increase_later(given: int) -> int:
    """Add 1, in an async body."""
    await asyncio.sleep(0)
    return given + 1


def numbers() -> list[int]:
    """Return a list to map over."""
    return [3, 1, 2]


def nothing() -> list[int]:
    """Return an empty list."""
    return []


def show(given: Any) -> Any:
    """Return the input."""
    return given


def fail(given: Any) -> None:
    """Raise."""
    raise ValueError(f"cannot take {given!r}")


def only_odd(given: int) -> int:
    """Raise for even numbers."""
    if given % 2 == 0:
        raise ValueError(f"{given} is even")
    return given


def never(ctx: Context) -> bool:
    """Say no."""
    return False


def _chain(name: str, *bodies: Any, **options: Any) -> Workflow:
    flow = Workflow(name, **options)
    names = [f"n{i}" for i in range(1, len(bodies) + 1)]
    for node, body in zip(names, bodies, strict=True):
        flow.add_node(node, body)
    for source, target in itertools.pairwise(names):
        flow.add_edge(source, target)
    return flow.set_entry_point("n1")


def _fan(name: str, *bodies: Callable[..., Any], join: Any = "any", last: Any = show, **options: Any) -> Workflow:
    """start > w1..wn > end."""
    flow = Workflow(name, **options).add_node("start", one).add_node("end", last, join=join)
    for i, body in enumerate(bodies, start=1):
        flow.add_node(f"w{i}", body).add_edge("start", f"w{i}").add_edge(f"w{i}", "end")
    return flow.set_entry_point("start")


def shapes() -> Workflow:
    """Sync, async, object, closure, and a lambda that gives a coroutine."""
    extra = 100

    async def slow(given: int) -> int:
        return given + extra

    return _chain("shapes", increase, increase_later, Doubler(), lambda given: given + extra, lambda given: slow(given))


PLAIN: dict[Any, Any] = {
    5: (1, 2), "set": {1, 2}, "bytes": b"\x00", "when": datetime(2026, 1, 2, tzinfo=UTC), "big": 10**30, "none": None,
}  # fmt: skip


def values() -> Workflow:
    """Values of many types come through as data; a parameter's type builds them anew."""

    def make() -> dict[Any, Any]:
        return {"point": Point(1, 2), **PLAIN}

    def take(given: dict[Any, Any]) -> Any:
        return given["point"]

    def build(point: Point) -> int:
        return point.x + point.y

    return _chain("values", make, take, build)


def context() -> Workflow:
    """What a body is told of itself."""

    def look(given: Any, ctx: Context) -> Any:
        step = ctx.step_id.removeprefix(ctx.run_id)
        past = [ctx.get_last_output(), list(ctx.history)]
        return [ctx.node, step, ctx.attempt, ctx.input, ctx.step_input, *past, ctx.session_id is not None]

    return _chain("context", one, look)


def private_copies() -> Workflow:
    """A body that edits its input or reads from the state edits its own copy."""

    def edit(given: list[int], ctx: Context) -> int:
        given.append(9)
        ctx.history["start"].append(9)
        return len(given)

    def write(ctx: Context) -> None:
        ctx.state["kept"] = [1]
        ctx.state["gone"] = 1

    def change(ctx: Context) -> list[Any]:
        ctx.state["kept"].append(2)
        del ctx.state["gone"]
        return [len(ctx.state), "gone" in ctx.state]

    flow = Workflow("private").add_node("start", numbers).add_node("edit", edit).add_node("write", write).add_node("change", change)
    flow.add_edge("start", "edit").add_edge("start", "write").add_edge("write", "change").set_entry_point("start")
    return flow


def conditions() -> Workflow:
    """One branch is taken, one refused, one's condition fails; what hangs on those is skipped."""

    def broken(ctx: Context) -> bool:
        raise KeyError("no such thing")

    async def taken(ctx: Context) -> bool:
        return ctx.step_input == 1 and ctx.node == "start"

    flow = Workflow("conditions").add_node("start", one)
    for name in ("yes", "no", "broken", "after", "all", "strict", "any"):
        flow.add_node(name, show, join="all" if name in ("all", "strict") else "any")
    flow.add_edge("start", "strict").add_edge("yes", "strict", never)
    flow.add_edge("start", "yes", taken).add_edge("start", "no", never).add_edge("start", "broken", broken)
    flow.add_edge("no", "after").add_edge("yes", "all").add_edge("no", "all").add_edge("after", "any").add_edge("yes", "any")
    return flow.set_entry_point("start")


def dependencies() -> Workflow:
    """A dependency is waited for and hands nothing on."""

    def write(ctx: Context) -> str:
        ctx.state["ready"] = True
        return "written"

    flow = Workflow("dependencies").add_node("start", one).add_node("write", write)
    flow.add_node("late", lambda given, ctx: [given, ctx.state["ready"]])
    return flow.add_edge("start", "write").add_edge("start", "late").set_dependency("late", "write").set_entry_point("start")


def jumps() -> Workflow:
    """Jump back twice with an input and a state, then on to a node that no edge reaches."""

    def decide(given: int, ctx: Context) -> Any:
        if given < 3:
            return Next("increase", given, {"tries": ctx.state.get("tries", 0) + 1})
        return Next("end")

    flow = Workflow("jumps").add_node("increase", increase).add_node("decide", decide).add_node("end", show).add_node("unused", one)
    return flow.add_edge("increase", "decide").add_edge("decide", "unused").set_entry_point("increase")


def jump_with_none() -> Workflow:
    """`Next.none` sends a real None; a fan-out of which one jumps is joined after the jump alone."""

    def plan(given: Any, ctx: Context) -> Any:
        ctx.state["plans"] = ctx.state.get("plans", 0) + 1
        return given

    def again(ctx: Context) -> Any:
        return Next("plan", Next.none) if ctx.state["plans"] == 1 else "done"

    flow = Workflow("none").add_node("plan", plan).add_node("again", again).add_node("side", show).add_node("join", show, join="all")
    flow.add_edge("plan", "again").add_edge("plan", "side").add_edge("again", "join").add_edge("side", "join")
    return flow.set_entry_point("plan")


def cycle() -> Workflow:
    """A loop drawn with edges."""
    flow = Workflow("cycle", allow_cycles=True).add_node("a", increase).add_node("b", show).add_node("end", show)
    flow.add_edge("a", "b").add_edge("b", "a", lambda ctx: ctx.step_input < 3).add_edge("b", "end", lambda ctx: ctx.step_input >= 3)
    return flow.set_entry_point("a")


def endless() -> Workflow:
    """A jump to oneself without an end."""
    return Workflow("endless", max_steps=5).add_node("a", lambda: Next("a")).set_entry_point("a")


def maps() -> Workflow:
    """Items are performed apart; one that fails leaves None, and diffs merge in item order."""

    def odd(item: int, ctx: Context) -> int:
        ctx.state["last"] = item
        return only_odd(item)

    flow = Workflow("maps").add_node("start", numbers).add_map("odd", odd, on_error="skip")
    flow.add_map("more", lambda n: n or 0, max_concurrency=2)
    return flow.add_edge("start", "odd").add_edge("odd", "more").set_entry_point("start")


def map_over_state() -> Workflow:
    """A map over a state key, and one over an empty list."""

    def write(ctx: Context) -> None:
        ctx.state["items"] = [1, 2]

    flow = Workflow("over").add_node("write", write).add_map("each", increase, over="items").add_map("none", increase)
    flow.add_node("empty", nothing).add_edge("write", "each").add_edge("each", "empty").add_edge("empty", "none")
    return flow.set_entry_point("write")


def failing_map() -> Workflow:
    """The error names the item."""
    return Workflow("failing_map").add_node("start", numbers).add_map("odd", only_odd).add_edge("start", "odd").set_entry_point("start")


def retries() -> Workflow:
    """The third attempt succeeds; a failed one leaves no writes."""

    def flaky(ctx: Context) -> str:
        ctx.state[f"attempt {ctx.attempt}"] = True
        if ctx.attempt < 3:
            raise OSError(f"attempt {ctx.attempt}")
        return "at last"

    return Workflow("retries").add_node("flaky", flaky, retry=Retry(attempts=3, delay=0.01)).set_entry_point("flaky")


def given_up() -> Workflow:
    """An error that is not retried, and one whose attempts are used up and whose fallback answers."""
    flow = Workflow("given_up").add_node("start", one).add_node("spare", lambda given: f"instead of {given}")
    flow.add_node("a", fail, retry=Retry(attempts=3, delay=0.01, give_up_on=ValueError), on_error="skip")
    flow.add_node("b", fail, retry=Retry(attempts=2, delay=0.01), on_error="fallback", fallback="spare")
    flow.add_node("end", show, join="all").add_edge("start", "a").add_edge("start", "b").add_edge("a", "end").add_edge("b", "end")
    return flow.set_entry_point("start")


def failures() -> Workflow:
    """Two of a layer fail: the first in declared order is named, and what finished beside them is kept."""
    return _fan("failures", show, fail, only_odd, fail)


def conflicts(**options: Any) -> Callable[[], Workflow]:
    """Two write one key."""

    def make() -> Workflow:
        def write(value: int) -> Callable[[Context], int]:
            def body(ctx: Context) -> int:
                ctx.state["key"] = value
                return value

            return body

        return _fan("conflicts", write(1), write(2), **options)

    return make


def reducers() -> Workflow:
    """Concurrent writes combine."""

    def start(ctx: Context) -> None:
        ctx.state.update({"sum": 10, "list": ["x"], "dict": {"x": 0}, "top": 1})

    def writer(n: int) -> Callable[[Context], None]:
        def body(ctx: Context) -> None:
            ctx.state["sum"] += n
            ctx.state["list"].append(n)
            ctx.state["dict"][f"k{n}"] = n
            ctx.state["top"] = n
            ctx.state["own"] = n

        return body

    def own(base: Any, writes: list[int]) -> Any:
        return [base, *writes]

    kinds: dict[Any, Any] = {"sum": "add", "list": "append", "dict": "merge", "top": "max", "own": own}
    flow = Workflow("reducers", reducers=kinds).add_node("start", start)
    for n in (3, 2):
        flow.add_node(f"w{n}", writer(n)).add_edge("start", f"w{n}")
    return flow.set_entry_point("start")


def step_limit() -> Workflow:
    """An async body over its limit."""

    async def forever() -> None:
        await asyncio.Event().wait()

    return Workflow("limit").add_node("slow", forever, timeout=0.05).set_entry_point("slow")


def node_limit() -> Workflow:
    """A limit over all attempts: no pause that would outlast it is begun."""
    return (
        Workflow("node_limit")
        .add_node("a", fail, retry=Retry(attempts=9, delay=30.0), timeout=Limits(node=20.0), on_error="skip")
        .set_entry_point("a")
    )


def run_limit() -> Workflow:
    """A run over its limit."""

    async def forever(given: Any) -> None:
        await asyncio.Event().wait()

    return _chain("run_limit", one, forever)


def unstorable() -> Workflow:
    """A value that is no data."""
    return _chain("unstorable", one, lambda given: {"inner": [object()]})


def unstorable_state() -> Workflow:
    """A state value that is no data."""

    def write(ctx: Context) -> None:
        ctx.state["handle"] = object()

    return _chain("unstorable_state", write)


def outer() -> Workflow:
    """A workflow as a step, and in a map: its state is its own."""

    def remember(given: int, ctx: Context) -> int:
        ctx.state["inner"] = given
        return given * 10

    inner = Workflow("inner").add_node("first", increase).add_node("second", remember).add_edge("first", "second").set_entry_point("first")
    flow = Workflow("outer").add_node("start", one).add_node("sub", inner).add_node("list", lambda n: [n, n + 1]).add_map("each", inner)
    return flow.add_edge("start", "sub").add_edge("sub", "list").add_edge("list", "each").set_entry_point("start")


def failing_inner() -> Workflow:
    """A workflow that fails as a step."""
    return _chain("failing_outer", one, _chain("failing_inner", increase, fail))


def effects() -> Workflow:
    """An effect between intent and receipt, asked for twice; and a checkpoint."""

    async def pay(ctx: Context) -> list[Any]:
        async def charge() -> dict[str, int]:
            return {"paid": 5}

        first = await ctx.once("charge", charge)
        await ctx.checkpoint()
        return [first, await ctx.once("charge", lambda: "never performed")]

    return Workflow("effects").add_node("pay", pay).set_entry_point("pay")


def window() -> Workflow:
    """The history shows the newest entries, and rows tell what ran."""

    def look(ctx: Context) -> list[Any]:
        return [dict(ctx.history), [(row.node, row.status) for row in ctx.executions]]

    return _chain("window", one, increase, increase, look, max_history_retention=2)


def unknown_target() -> Workflow:
    """A jump to nowhere fails the run, whatever on_error says."""
    return Workflow("unknown").add_node("a", lambda: Next("b"), on_error="skip", retry=3).set_entry_point("a")


def leaving() -> Workflow:
    """What a sync body raises is judged by its own class, whatever that means to a loop or a thread."""

    def leave() -> None:
        raise SystemExit(3)

    def end(given: Any, ctx: Context) -> str:
        if ctx.attempt == 1:
            raise StopIteration(4)
        return "at last"

    retry = Retry(2, delay=0, retry_on=(SystemExit, StopIteration))
    flow = Workflow("leaving").add_node("end", end, retry=retry).add_node("leave", leave, retry=retry)
    return flow.add_edge("end", "leave").set_entry_point("end")


def effects_at_once() -> Workflow:
    """Two effects of one key that are asked for at once are one."""

    async def pay(ctx: Context) -> list[Any]:
        paid: list[int] = []

        async def charge() -> int:
            await asyncio.sleep(0.01)
            paid.append(1)
            return len(paid)

        return list(await asyncio.gather(ctx.once("charge", charge), ctx.once("charge", charge)))

    return Workflow("effects_at_once").add_node("pay", pay).set_entry_point("pay")


CASES: tuple[Case, ...] = (
    Case("shapes", shapes, 1, 206),
    Case("values", values, output=3, history={"n1": {"point": {"x": 1, "y": 2}, **PLAIN}, "n2": {"x": 1, "y": 2}, "n3": 3}),
    Case("context", context, {"q": 1}, ["n2", "/n2/1", 1, {"q": 1}, 1, 1, ["n1"], True]),
    Case("private copies", private_copies, output=[1, False], state={"kept": [1, 2]},
         history={"start": [3, 1, 2], "edit": 4, "write": None, "change": [1, False]}),
    Case("fan-out", lambda: _fan("fan", increase, increase_later), output={"w1": 2, "w2": 2},
         kinds={"step_started": 4, "step_succeeded": 4}),
    Case("join of two", lambda: _fan("two", increase, show, join=2), output={"w1": 2, "w2": 1}),
    Case("conditions", conditions, output={"all": 1, "any": 1}, kinds={"condition_decided": 4, "condition_failed": 1, "step_skipped": 4},
         history={"start": 1, "yes": 1, "all": 1, "any": 1}),
    Case("dependencies", dependencies, output=[1, True], state={"ready": True},
         history={"start": 1, "write": "written", "late": [1, True]}),
    Case("jumps", jumps, 0, 3, state={"tries": 2}, history={"increase": 3, "decide": 3, "end": 3}, kinds={"jumped": 3}),
    Case("jump with none", jump_with_none, 7, {"again": "done", "side": None}, state={"plans": 2},
         kinds={"jumped": 1, "step_succeeded": 7}),
    Case("cycle", cycle, 0, 3, kinds={"condition_decided": 6}),
    Case("max steps", endless, status="failed", error=("StepLimitReached", "", "Exceeded max steps", "max_steps=")),
    Case("unknown target", unknown_target, status="failed", error=("StepFailed", "", "'b'", "'a'"), kinds={"step_retrying": 0}),
    Case("maps", maps, output=[3, 1, 0], state={"last": 1}, history={"start": [3, 1, 2], "odd": [3, 1, None], "more": [3, 1, 0]},
         kinds={"conflict": 1, "step_skipped": 1}),
    Case("map over state", map_over_state, output=[], state={"items": [1, 2]},
         history={"write": None, "each": [2, 3], "empty": [], "none": []}),
    Case("failing map", failing_map, status="failed",
         error=("StepFailed", "ValueError", "Workflow execution failed", "'odd[2]'", "2 is even")),
    Case("map over no list", lambda: Workflow("no_list").add_map("m", increase).set_entry_point("m"), 5, status="failed",
         error=("StepFailed", "", "'m'", "list")),
    Case("retries", retries, output="at last", state={"attempt 3": True}, kinds={"step_retrying": 2, "step_succeeded": 1}),
    Case("leaving", leaving, status="failed", history={"end": "at last"}, kinds={"step_retrying": 2},
         error=("StepFailed", "SystemExit", "'leave'", "attempt 2", "SystemExit: 3")),
    Case("given up", given_up, output={"a": None, "b": "instead of 1"}, kinds={"step_retrying": 1, "step_skipped": 1}),
    Case("failures", failures, status="failed", error=("StepFailed", "ValueError", "'w2'", "attempt 1", "cannot take 1")),
    Case("conflict", conflicts(), output={"w1": 1, "w2": 2}, state={"key": 2}, kinds={"conflict": 1}),
    Case("conflict as error", conflicts(on_conflict="error"), status="failed", error=("StateConflict", "", "'key'", "'w1'", "'w2'")),
    Case("misfit", conflicts(reducers={"key": "append"}), status="failed", error=("StateConflict", "", "'key'", "'append'")),
    Case("reducers", reducers, output={"w3": None, "w2": None},
         state={"sum": 15, "list": ["x", 3, 2], "dict": {"x": 0, "k3": 3, "k2": 2}, "top": 3, "own": [None, 3, 2]}),
    Case("step limit", step_limit, status="failed", error=("StepFailed", "StepTimedOut", "'slow'", "timed out")),
    Case("node limit", node_limit, output=None, kinds={"step_retrying": 0, "step_skipped": 1}),
    Case("run limit", run_limit, status="timed_out", timeout=0.3, error=("RunTimedOut", "", "0.3 s", "1 finished step"),
         kinds={"step_stopped": 1}),
    Case("unstorable", unstorable, status="failed", error=("StepFailed", "NotStorable", "'n2'", "object"), stored=True),
    Case("unstorable state", unstorable_state, status="failed", error=("StepFailed", "NotStorable", "'handle'", "object"), stored=True),
    Case("sub-workflow", outer, output=[210, 220], history={"start": 1, "sub": 20, "list": [20, 21], "each": [210, 220]}),
    Case("failing sub-workflow", failing_inner, status="failed", error=("StepFailed", "StepFailed", "'n2'", "cannot take 2")),
    Case("effects", effects, output=[{"paid": 5}, {"paid": 5}], kinds={"once_intended": 1, "once_done": 1}),
    Case("effects at once", effects_at_once, output=[1, 1], kinds={"once_intended": 1, "once_done": 1}),
    Case("effect without text", lambda: _chain("no_text", lambda ctx: ctx.once(7, one)), status="failed",
         error=("StepFailed", "TypeError", "'n1'", "not 7"), kinds={"once_intended": 0}),
    Case("window", window, output=[{"n2": 2, "n3": 3}, [("n1", "success"), ("n2", "success"), ("n3", "success")]]),
    Case("start in the middle", lambda: _chain("middle", fail, increase, increase), 5, 7, start_node="n2"),
    *TEAM_CASES,
    *CANCEL_CASES,
)  # fmt: skip
