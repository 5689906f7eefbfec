"""Every write of the log is a place to die at: before it, in the middle of it, after it. None is left out, none is sampled."""

import asyncio
import itertools
from collections import Counter
from functools import partial
from typing import Any

import pytest

from engine import RACE, CheckpointStrategy, Context, Next, Retry, Team, Workflow
from engine.checkpoint import record
from engine.checkpoint.log import SegmentLog
from engine.core.state import StateDiff
from engine.engine import Engine
from engine.ports import Owner
from engine.runtime import ledger
from engine.runtime.layer import LayerWork
from engine.store.memory import MemoryMedium
from engine.testing.cases import CASES
from engine.testing.conformance import Case
from engine.testing.crash import check_same, crash_everywhere
from engine.testing.faults import Crash
from engine.testing.medium import MOMENTS, Fate, FaultyMedium, Write
from engine.testing.simulate import simulate

STRATEGIES = ["always", "async", "final", "manual"]


def make_inner() -> Workflow:
    """A workflow that is a step of another: a chain with a fan-out and state of its own."""

    async def double(given: int, ctx: Context) -> int:
        ctx.state["doubled"] = given * 2
        return given * 2

    flow = Workflow("Inner").add_node("double", double).add_node("left", lambda n: n + 1).add_node("right", lambda n: n + 2)
    flow.add_node("sum", lambda given, ctx: sum(given.values()) + ctx.state["doubled"], join="all")
    flow.add_edge("double", "left").add_edge("double", "right").add_edge("left", "sum").add_edge("right", "sum")
    return flow.set_entry_point("double")


def make_everything(strategy: str, effects: Counter[str], *, storage: Any = None, delay: float = 1.0) -> Workflow:
    """Fan-out, condition, join, jump, cycle, retry, sub-workflow, map, team, `once`, a skip, a reducer, sync and async bodies."""

    def plan(ctx: Context) -> list[int]:
        ctx.state["plans"] = ctx.state.get("plans", 0) + 1
        return [1, 2, 3]

    async def count(given: list[int], ctx: Context) -> int:
        ctx.state["total"] = ctx.state.get("total", 0) + len(given)
        return len(given)

    async def add(given: list[int], ctx: Context) -> int:
        ctx.state["total"] = ctx.state.get("total", 0) + sum(given)
        ctx.state.setdefault("log", []).append("added")
        return sum(given)

    def flaky(given: list[int], ctx: Context) -> str:
        if ctx.attempt < 3:
            raise OSError(f"attempt {ctx.attempt}")
        return "at last"

    async def pay(given: list[int], ctx: Context) -> str:
        async def charge() -> str:
            effects[f"charge {ctx.step_id}"] += 1
            return "paid"

        return await ctx.once("charge", charge, again=True)

    def square(item: int, ctx: Context) -> int:
        ctx.state[f"square {item}"] = item * item
        return item * item

    async def late(given: list[int], ctx: Context) -> None:
        ctx.state["won"] = "late"
        await asyncio.sleep(3600)

    async def soon(given: list[int], ctx: Context) -> int:
        ctx.state["won"] = "soon"
        await asyncio.sleep(0.5)
        return len(given)

    def refuse(given: Any) -> None:
        raise ValueError("never works")

    def decide(given: dict[str, Any], ctx: Context) -> Any:
        return Next("plan") if ctx.state["plans"] < 2 else sorted(given)

    def round_(ctx: Context) -> int:
        ctx.state["rounds"] = ctx.state.get("rounds", 0) + 1
        return ctx.state["rounds"]

    reducers: dict[Any, Any] = {"total": "add"}
    flow = Workflow("Everything", storage=storage, checkpoint_strategy=strategy, allow_cycles=True, reducers=reducers)
    flow.add_node("plan", plan).add_node("count", count).add_node("add", add).add_node("pay", pay)
    flow.add_node("flaky", flaky, retry=Retry(attempts=3, delay=delay)).add_node("refuse", refuse, on_error="skip")
    flow.add_node("never", lambda: "not performed").add_map("squares", square).add_node("inner", make_inner())
    flow.add_node("race", Team([refuse, late, soon], strategy=RACE))
    flow.add_node("join", decide, join=6).add_node("round", round_).add_node("again", lambda n: n).add_node("end", lambda ctx: ctx.input)
    for branch in ("count", "add", "pay", "flaky", "refuse", "squares", "race"):
        flow.add_edge("plan", branch)
    flow.add_edge("plan", "never", condition=lambda ctx: ctx.state["plans"] > 5).add_edge("never", "join")
    for branch in ("add", "pay", "flaky", "refuse", "squares", "race"):
        flow.add_edge(branch, "join")
    flow.add_edge("count", "inner").add_edge("inner", "join").add_edge("join", "round").add_edge("round", "again")
    flow.add_edge("again", "round", condition=lambda ctx: ctx.state["rounds"] < 3)
    flow.add_edge("again", "end", condition=lambda ctx: ctx.state["rounds"] >= 3)
    return flow.set_entry_point("plan")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_crash_at_any_write_changes_nothing(strategy: str):
    report = crash_everywhere(lambda: make_everything(strategy, Counter()), {"asked": 7})
    calm = report.calm
    assert calm.status == "completed"
    assert calm.output == {"asked": 7}
    assert calm.state == {
        "plans": 2,
        "log": ["added", "added"],
        "square 1": 1,
        "square 2": 4,
        "square 3": 9,
        "total": 18,
        "rounds": 3,
        "won": "soon",
    }
    assert calm.history["join"] == ["add", "flaky", "inner", "pay", "race", "refuse", "squares"]
    assert {point.write for point in report.points} == {write.number for write in calm.writes}
    kinds = Counter(event.kind for event in calm.events)
    for kind in ("jumped", "condition_decided", "step_retrying", "step_skipped", "once_done"):
        assert kinds[kind] > 0, f"the workflow has no {kind}"
    assert any("/inner/1/" in event.step_id for event in calm.events), "the workflow has no sub-workflow"


@pytest.mark.slow
def test_an_effect_is_repeated_only_between_its_intent_and_its_receipt():
    writes = simulate(lambda: make_everything("always", Counter()), {"asked": 7}).writes
    repeated = 0
    for write, when in itertools.product(writes, ("before", "after")):
        effects: Counter[str] = Counter()
        flow = partial(make_everything, "always", effects)
        report = simulate(flow, {"asked": 7}, faults=[Crash(write=write.number, when=when)])
        resumed = [event.seq for event in report.events if event.kind == "run_resumed"]
        places = {(event.kind, event.step_id): event.seq for event in report.events if event.kind.startswith("once_")}
        for effect, count in effects.items():
            step = effect.removeprefix("charge ")
            begun, done = places["once_intended", step], places["once_done", step]
            between = [seq for seq in resumed if begun < seq < done]
            assert count in (1, 1 + len(between)), f"{effect} was performed {count} times, crashed {when} write {write.number}"
            repeated += count - 1
        assert len(effects) == 2
    assert repeated > 0, "no crash fell between an intent and its receipt"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["always", "async"])
@pytest.mark.parametrize("case", [case for case in CASES if case.start_node is None and case.timeout is None], ids=lambda case: case.name)
def test_every_conformance_case_survives_every_crash(case: Case, strategy: str):
    def make() -> Workflow:
        flow = case.make()
        flow.checkpoint_strategy = CheckpointStrategy(strategy)
        return flow

    report = crash_everywhere(make, case.input, in_doubt=case.name in ("effects", "effects at once"))
    assert report.calm.status == case.status


def make_doubtful() -> Workflow:
    async def pay(ctx: Context) -> str:
        return await ctx.once("charge", lambda: "paid")

    return Workflow("Doubtful").add_node("pay", pay).set_entry_point("pay")


def test_an_intent_without_a_receipt_is_told_and_not_repeated():
    with pytest.raises(AssertionError, match="InDoubt"):
        crash_everywhere(make_doubtful)
    report = crash_everywhere(make_doubtful, in_doubt=True)
    kinds = [event.kind for event in report.calm.events]
    assert kinds.count("once_intended") == kinds.count("once_done") == 1
    assert len(report.in_doubt) == 3, "after the intent's write, and before or amid the receipt's"


def make_chain() -> Workflow:
    def write(ctx: Context) -> int:
        ctx.state["written"] = 1
        return 1

    return Workflow("Chain").add_node("a", write).add_node("b", lambda n: n + 1).add_edge("a", "b").set_entry_point("a")


def test_the_check_finds_a_step_that_is_done_again(monkeypatch: pytest.MonkeyPatch):
    crash_everywhere(make_chain)
    monkeypatch.setattr(LayerWork, "_recall", lambda self, unit, text, index: False)
    with pytest.raises(AssertionError, match=r"crashed .* write \d+ of \d+: finished work was done again: a/1"):
        crash_everywhere(make_chain)


def test_the_check_finds_a_state_that_was_lost(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(record, "decode_diff", lambda data: StateDiff({}, frozenset(), 0))
    with pytest.raises(AssertionError, match=r"state is \{\}, without a crash it is \{'written': 1\}"):
        crash_everywhere(make_chain)


def make_small(effects: Counter[str]) -> Workflow:
    """The smallest workflow with a fan-out, a jump, an effect and a state."""

    def plan(ctx: Context) -> int:
        ctx.state["plans"] = ctx.state.get("plans", 0) + 1
        return ctx.state["plans"]

    async def pay(given: int, ctx: Context) -> str:
        def charge() -> str:
            effects[ctx.step_id] += 1
            return f"paid {given}"

        return await ctx.once("charge", charge, again=True)

    def join(given: dict[str, Any], ctx: Context) -> Any:
        return Next("plan") if ctx.state["plans"] < 2 else given

    flow = Workflow("Small").add_node("plan", plan).add_node("pay", pay).add_node("side", lambda n: n).add_node("join", join, join="all")
    flow.add_edge("plan", "pay").add_edge("plan", "side").add_edge("pay", "join").add_edge("side", "join")
    return flow.set_entry_point("plan")


AGAIN = 3
"""At how many writes of the resumed life the process dies a second time: its claim, and what it writes first."""


@pytest.mark.slow
def test_a_second_crash_in_the_resumed_life_changes_nothing():
    calm = simulate(lambda: make_small(Counter()))
    assert calm.output == {"pay": "paid 2", "side": 2}
    places: Counter[int] = Counter()
    for write, when in itertools.product(calm.writes, MOMENTS):
        first = Crash(write=write.number, when=when)
        resumed = simulate(lambda: make_small(Counter()), faults=[first]).writes[write.number :][:AGAIN]
        for nth, (other, again) in enumerate(itertools.product(resumed, MOMENTS)):
            second = Crash(write=other.number, when=again)
            effects: Counter[str] = Counter()
            report = simulate(partial(make_small, effects), faults=[first, second])
            check_same(calm, report, f"{first}, then {second}")
            assert (report.lives, len(effects)) == (3, 2)
            assert max(effects.values()) <= 3
            places[nth // len(MOMENTS)] += 1
    assert len(places) == AGAIN
    assert sum(places.values()) > 100


def live(disk: dict[Any, Any], life: int, fates: dict[int, Fate], written: int) -> tuple[Any, list[Write]]:
    """Drive the workflow in real time over the log that files use; the output, or None where the process died."""
    memory = MemoryMedium("memory://crash-points", Owner(id=f"life {life}", host="here", pid=life))
    memory.runs = disk
    loop = asyncio.new_event_loop()
    crashed: asyncio.Future[None] = loop.create_future()

    def on_crash() -> None:
        loop.call_soon_threadsafe(lambda: crashed.done() or crashed.set_result(None))

    medium = FaultyMedium(memory, lambda write: fates.get(write.number, Fate()), written=written, on_crash=on_crash)
    flow = make_everything("always", Counter(), storage=SegmentLog(medium), delay=0.001)

    async def drive() -> Any:
        handle = await Engine(flow.storage).start(flow, {"asked": 7}, session_id="s")
        await handle.wait()
        return handle.output, handle.state, handle.history

    async def main() -> Any:
        driving = loop.create_task(drive())
        await asyncio.wait({driving, crashed}, return_when=asyncio.FIRST_COMPLETED)
        return None if medium.dead else await driving

    try:
        return loop.run_until_complete(main()), medium.writes
    finally:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=5.0))
        loop.close()


@pytest.mark.slow
def test_the_log_of_files_survives_a_crash_at_any_write(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ledger, "PAUSES", ())  # a dead process does not try again
    calm, writes = live({}, 1, {}, 0)
    assert len(writes) > 20
    for write, when in itertools.product(writes, MOMENTS):
        disk: dict[Any, Any] = {}
        end, before = live(disk, 1, {write.number: Fate(when)}, 0)
        if end is None:
            end, _ = live(disk, 2, {}, len(before))
        assert end == calm, f"crashed {when} write {write.number}"
