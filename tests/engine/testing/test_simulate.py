"""A simulation tells what happened: how the run ended, what was performed, where it crashed, how long it took."""

import asyncio
import dataclasses
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from engine import Context, Engine, Limits, Retry, Workflow
from engine.core.events import Event
from engine.errors import DefinitionError, InvalidGraph, StepFailed, UnknownName
from engine.testing import conformance
from engine.testing.conformance import Case, Observed, check_executor, check_simulated
from engine.testing.crash import crash_everywhere
from engine.testing.faults import Chaos, Crash, Fail, Lose, Refuse, Slow
from engine.testing.simulate import simulate


def make_pair() -> Workflow:
    async def wait(given: int) -> int:
        await asyncio.sleep(3600)
        return given + 1

    return Workflow("Pair").add_node("a", lambda n: n * 2).add_node("b", wait).add_edge("a", "b").set_entry_point("a")


def test_a_report_tells_how_the_run_ended_and_what_was_performed():
    report = simulate(make_pair(), 5, seed=3)
    assert (report.seed, report.run_id, report.status, report.output) == (3, "Pair.simulated.1", "completed", 11)
    assert report.history == {"a": 10, "b": 11}
    assert report.performed == {"a/1": 1, "b/1": 1}
    assert (report.repeated, report.crashes, report.lives, report.error) == ((), (), 1, None)
    assert 3600.0 < report.duration < 3600.1
    assert [event.kind for event in report.events][-1] == "run_completed"


def test_every_life_has_objects_of_its_own_from_a_maker():
    made: list[Workflow] = []

    def make() -> Workflow:
        made.append(make_pair())
        return made[-1]

    report = simulate(make, 5, faults=[Crash(at=60.0), Crash(at=120.0)])
    assert len(made) == report.lives == 3
    assert report.performed == {"a/1": 1, "b/1": 3}
    assert report.repeated == ()


def test_a_crash_is_named_with_its_life_and_moment():
    report = simulate(make_pair, 5, faults=[Crash(write=4, when="torn")])
    assert len(report.crashes) == 1
    assert report.crashes[0].startswith("life 1, ")
    assert report.crashes[0].endswith("at its write 4")
    assert [write.number for write in report.writes] == list(range(1, len(report.writes) + 1))


def test_a_run_that_fails_by_itself_is_not_resumed():
    def fail() -> None:
        raise ValueError("always")

    report = simulate(Workflow("Fails").add_node("a", fail).set_entry_point("a"))
    assert (report.status, report.lives) == ("failed", 1)
    assert isinstance(report.error, StepFailed)
    assert isinstance(report.error.__cause__, ValueError)


def test_a_workflow_that_cannot_run_raises():
    with pytest.raises(InvalidGraph):
        simulate(Workflow("Empty").add_node("a", lambda: 1))


def test_a_run_meets_its_limit_in_virtual_time():
    report = simulate(make_pair(), 5, timeout=60.0)
    assert report.status == "timed_out"
    assert 60.0 <= report.duration < 61.0


def test_a_start_node_begins_in_the_middle():
    assert simulate(make_pair(), 5, start_node="b").history == {"b": 6}


def test_sync_bodies_run_in_threads():
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert simulate(Workflow("Where").add_node("a", where).set_entry_point("a")).output is False


def test_a_slow_sync_body_is_late_in_virtual_time_alone():
    flow = Workflow("Late").add_node("a", lambda: "done").set_entry_point("a")
    real = time.perf_counter()
    report = simulate(flow, faults=[Slow("a", 7200.0)])
    assert (report.output, report.duration > 7200.0) == ("done", True)
    assert time.perf_counter() - real < 5.0


@pytest.mark.anyio
async def test_a_simulation_runs_inside_a_running_loop_too():
    assert simulate(make_pair(), 5).output == 11


def test_faults_find_items_and_steps_of_sub_workflows():
    inner = Workflow("Inner").add_node("first", lambda n: n + 1).set_entry_point("first")
    flow = Workflow("Outer").add_node("list", lambda: [1, 2, 3]).add_map("each", lambda n: n).add_node("sub", lambda given: len(given))
    flow.add_node("inner", inner).add_edge("list", "each").add_edge("each", "sub").add_edge("sub", "inner").set_entry_point("list")
    report = simulate(flow, faults=[Lose("each[1]", times=3), Lose("inner/first", times=3), Fail("each/1/2")])
    assert report.output == 4
    assert (report.performed["each/1/0"], report.performed["each/1/1"]) == (1, 4)
    assert report.performed["inner/1/0"] == 4


@pytest.mark.parametrize(
    "step", ["slow", "nested", "nested/inner", "items[3]", "items/1/3", "slow/1", "nested/1/0", "nested/spare", "spare/1/fallback/0"]
)
def test_a_fault_may_name_whatever_is_a_step(step: str):
    inner = Workflow("inner").add_node("inner", lambda: 1).set_entry_point("inner")
    other = Workflow("other").add_node("spare", lambda: 1).set_entry_point("spare")
    flow = Workflow("Named").add_node("slow", lambda: [1]).add_map("items", lambda x: x).add_edge("slow", "items").set_entry_point("slow")
    flow.add_node("nested", inner, on_error="fallback", fallback="spare").add_node("spare", other)
    assert simulate(flow, faults=[Slow(step, 1.0)], must_strike=False).status == "completed"


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (Slow("slwo", 3.0), r"Slow\('slwo'\): node 'slwo' not found; did you mean 'slow'"),
        (Fail("nested/iner"), "node 'iner' not found; did you mean 'inner'"),
        (Lose("item[3]"), "node 'item' not found; did you mean 'items'"),
        (Fail("slow/inner"), "node 'inner' not found; there are none"),
    ],
)
def test_a_fault_that_names_no_step_is_refused(fault: Any, told: str):
    ran: list[int] = []
    inner = Workflow("inner").add_node("inner", lambda: 1).set_entry_point("inner")
    flow = Workflow("Named").add_node("slow", lambda: ran.append(1)).add_map("items", lambda x: x).add_node("nested", inner)
    with pytest.raises(UnknownName, match=told):
        simulate(flow.set_entry_point("slow"), faults=[fault])
    assert ran == []


@pytest.mark.parametrize(
    "fault", [Crash(write=99), Crash(at=99.0), Refuse(write=99), Fail("each[99]"), Lose("each/1/77"), Slow("each/9", 1.0)]
)
def test_a_fault_that_strikes_nothing_is_an_error_unless_it_may(fault: Any):
    def make() -> Workflow:
        flow = Workflow("Mapped").add_node("list", lambda: [1, 2]).add_map("each", lambda n: n).add_edge("list", "each")
        return flow.set_entry_point("list")

    some = Fail("each[1]")
    told = re.escape(f"{fault!r} struck nothing in a simulated run that completed after ")
    with pytest.raises(DefinitionError, match=rf"^{told}\d+ writes .* performed each/1/0, each/1/1, list/1; name what happens"):
        simulate(make, faults=[some, fault])
    report = simulate(make, faults=[some, fault, Chaos(crash=0.0)], must_strike=False)
    assert (report.status, report.unused) == ("completed", (fault,))
    assert f"unused=({fault!r},)" in str(report)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Crash(), r"must name one moment: Crash\(write=1\)"),
        (lambda: Crash(write=1, at=1.0), "must name one moment"),
        (lambda: Crash(write=0), "write must be at least 1, not 0"),
        (lambda: Crash(at=0.0), "at must be virtual seconds above 0"),
        (lambda: Crash(write=1, when="afterwards"), "when must be one of 'before', 'torn', 'after', not 'afterwards'"),  # type: ignore[arg-type]
        (lambda: Refuse(write=0), "write must be at least 1, not 0"),
        (lambda: Refuse(write=1, times=0), "times must be at least 1, not 0"),
        (lambda: Fail("a", times=0), r"Fail\(step='a'.*: times must be at least 1"),
    ],
)
def test_a_fault_that_could_strike_nowhere_is_refused(make: Callable[[], Any], told: str):
    with pytest.raises(DefinitionError, match=told):
        make()


def test_crashing_everywhere_is_one_call():
    report = crash_everywhere(make_pair, 5)
    assert report.calm.output == 11
    assert len(report.points) == 3 * sum(write.verb == "write" for write in report.calm.writes) + 2
    assert report.performed_again > 0


def counts(ctx: Context) -> int:
    ctx.state["n"] = 1
    return 1


def make_counting() -> Workflow:
    return Workflow("Counting").add_node("a", counts).set_entry_point("a")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ({"output": 2, "state": {"n": 1}}, "output is 1, not 2"),
        ({"output": 1}, "state is"),
        ({"output": True, "state": {"n": 1}}, "other types"),
        ({"output": 1, "state": {"n": 1}, "history": {}}, "history is"),
        ({"output": 1, "state": {"n": 1}, "kinds": {"jumped": 1}}, "0 events jumped, not 1"),
        ({"status": "failed", "state": {"n": 1}}, "status is completed, not failed"),
    ],
)
def test_the_conformance_check_finds_what_differs(wrong: dict[str, Any], what: str):
    with pytest.raises(AssertionError, match=what):
        check_simulated(Case("counting", make_counting, **wrong))


@pytest.mark.anyio
async def test_the_conformance_check_finds_other_events():
    performed: list[int] = []

    async def pay(ctx: Context) -> int:
        performed.append(1)
        return 1 if len(performed) == 1 else await ctx.once("paid", lambda: 1)

    case = Case("changing", lambda: Workflow("Changing").add_node("a", pay).set_entry_point("a"), output=1)
    with pytest.raises(AssertionError, match=r"events differ: missing \[\], unexpected .*once_intended.*once_done"):
        await check_executor(case, executor="inline", storage="memory://changing")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("renumber", "told"),
    [(False, r"the numbers of the events do not ascend by one: \[.*, 2, 1\]"), (True, "events come in another order")],
)
async def test_the_conformance_check_finds_events_in_another_order(monkeypatch: pytest.MonkeyPatch, renumber: bool, told: str):
    real = Engine.events

    async def backwards(self: Engine, run: str) -> AsyncIterator[Event]:
        events = [event async for event in real(self, run)]
        for seq, event in enumerate(reversed(events), start=1):
            yield event._replace(seq=seq) if renumber else event

    case = Case("chain", lambda: make_counting().add_node("b", lambda n: n).add_edge("a", "b"), output=1, state={"n": 1})
    await check_executor(case, executor="inline", storage=f"memory://forwards-{renumber}")
    monkeypatch.setattr(Engine, "events", backwards)
    with pytest.raises(AssertionError, match=told):
        await check_executor(case, executor="inline", storage=f"memory://backwards-{renumber}")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"rows": [("a", "/a/1", "success", 2, None)]}, r"rows is .*'success', 2, None"),
        ({"history": {}}, r"history is \[\], not"),
        ({"error": StepFailed("a", node="a", attempt=2)}, r"node and attempt of the error is \('a', 2\), not \('a', 1\)"),
        ({"error": StepFailed("a", node="b", attempt=1)}, r"node and attempt of the error is \('b', 1\), not \('a', 1\)"),
    ],
    ids=["rows", "history", "attempt", "node"],
)
async def test_the_conformance_check_compares_what_the_case_does_not_say(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], told: str):
    def fail() -> None:
        raise OSError("a")

    case = Case("counting", make_counting, output=1, state={"n": 1})
    if "error" in wrong:
        flow = Workflow("Failing").add_node("a", fail).set_entry_point("a")
        case = Case("failing", lambda: flow, status="failed", error=("StepFailed", "", "a"))
    observe = conformance.observe

    async def misled(*args: Any, **options: Any) -> Observed:
        return dataclasses.replace(await observe(*args, **options), **wrong)

    monkeypatch.setattr(conformance, "observe", misled)
    with pytest.raises(AssertionError, match=told):
        await check_executor(case, executor="inline", storage=None)


# Limits of a node, which need a clock that jumps.

TRIES = Retry(2, delay=0)


def tired(tries: Counter[object]) -> Callable[[object], Coroutine[Any, Any, object]]:
    """A body that takes 2 s and fails the first time."""

    async def body(given: object) -> object:
        tries[given] += 1
        await asyncio.sleep(2)
        if tries[given] == 1:
            raise ValueError("first")
        return given

    return body


def test_a_node_limit_of_an_item_counts_from_its_own_start():
    flow = Workflow("w").add_map("m", tired(Counter()), timeout=Limits(node=9), retry=TRIES, max_concurrency=1).set_entry_point("m")
    report = simulate(flow, list(range(9)))
    assert (report.status, report.output) == ("completed", list(range(9)))


def test_a_node_limit_of_a_step_that_waited_for_a_slot_counts_from_its_own_start():
    flow = Workflow("w", max_concurrency=1).add_node("a", lambda: asyncio.sleep(20))
    body = tired(Counter())
    flow.add_node("b", lambda: body("b"), timeout=Limits(node=5), retry=TRIES)
    report = simulate(flow.set_entry_point("a", "b"))
    assert (report.status, report.output) == ("completed", {"a": None, "b": "b"})


def test_a_node_limit_still_bounds_all_attempts_of_an_item_together():
    flow = Workflow("w").add_map("m", tired(Counter()), timeout=Limits(node=3), retry=TRIES).set_entry_point("m")
    report = simulate(flow, [1])
    assert report.status == "failed"
    assert "timed out after 1 s" in str(report.error)
