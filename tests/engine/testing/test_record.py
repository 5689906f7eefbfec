"""A recorded position is what a crash or a pause would have left: the run goes on from there."""

from typing import Any

import pytest

from engine import Context, Engine, Next, Workflow
from engine.errors import DefinitionError, RunCancelled, StepFailed, WrongState
from engine.testing.record import Done, record

STORAGE = "memory://recorded-positions"


def make(performed: list[str]) -> Workflow:
    def fetch() -> list[int]:
        performed.append("fetch")
        return [1, 2, 3]

    async def measure(item: int) -> int:
        performed.append(f"measure {item}")
        return item * 10

    def report(given: list[int], ctx: Context) -> Any:
        performed.append("report")
        return {"sum": sum(given), "note": ctx.state.get("note")}

    def decide(ctx: Context) -> bool:
        performed.append("decide")
        return True

    flow = Workflow("Recorded", storage=STORAGE).add_node("fetch", fetch).add_map("measure", measure).add_node("report", report)
    flow.add_node("end", lambda given: given).add_edge("fetch", "measure").add_edge("measure", "report").add_edge("report", "end", decide)
    return flow.set_entry_point("fetch")


async def kinds(run_id: str) -> list[tuple[str, str]]:
    found = [event async for event in Engine(STORAGE).events(run_id)]
    return [(event.kind, event.step_id.removeprefix(f"{run_id}/")) for event in found]


@pytest.mark.anyio
async def test_a_run_goes_on_from_the_items_that_are_not_finished():
    performed: list[str] = []
    flow = make(performed)
    run_id = await record(flow, "items", storage=STORAGE, finished={"fetch": [5, 6, 7], "measure[1]": 61})
    assert performed == []
    assert await kinds(run_id) == [
        ("run_started", ""),
        ("step_started", "fetch/1"),
        ("step_succeeded", "fetch/1"),
        ("step_started", "measure/1"),
        ("step_succeeded", "measure/1/1"),
    ]
    assert await flow.resume("items") == {"sum": 50 + 61 + 70, "note": None}
    assert performed == ["measure 5", "measure 7", "report", "decide"]


@pytest.mark.anyio
async def test_a_run_is_recorded_with_state_and_verdicts():
    performed: list[str] = []
    flow = make(performed)
    finished = {"fetch": [5], "measure": [50], "report": Done("reported", {"note": "kept"})}
    run_id = await record(flow, "state", storage=STORAGE, finished=finished, verdicts={("report", "end"): True})
    assert await Engine(STORAGE).state(run_id) == {"note": "kept"}
    assert await flow.resume("state") == "reported"
    assert performed == []


@pytest.mark.anyio
@pytest.mark.parametrize("left", ["paused", "timed_out"])
async def test_a_run_is_left_stopped(left: Any):
    flow = make([])
    run_id = await record(flow, left, storage=STORAGE, finished={"fetch": [5]}, left=left)
    assert [run.status for run in await Engine(STORAGE).runs() if run.key.session == left] == [left]
    assert run_id.endswith(f".{left}.1")
    assert await flow.resume(left) == {"sum": 50, "note": None}


@pytest.mark.anyio
async def test_a_cancelled_run_stays_cancelled():
    flow = make([])
    await record(flow, "cancelled", storage=STORAGE, left="cancelled")
    with pytest.raises(RunCancelled):
        await flow.resume("cancelled")


@pytest.mark.anyio
async def test_an_exception_as_an_answer_fails_the_step():
    performed: list[str] = []
    flow = make(performed)
    run_id = await record(flow, "failed", storage=STORAGE, finished={"fetch": [5], "measure[0]": OSError("broken")})
    assert (await kinds(run_id))[-1] == ("run_failed", "")
    assert [run.status for run in await Engine(STORAGE).runs() if run.key.session == "failed"] == ["failed"]
    assert await flow.resume("failed") == {"sum": 50, "note": None}


@pytest.mark.anyio
async def test_a_jump_is_an_answer_and_a_pass_has_its_own():
    def refuse(given: Any) -> None:
        raise StepFailed("not to be performed")

    flow = Workflow("Jumping", storage=STORAGE).add_node("a", refuse).add_node("b", refuse).add_edge("a", "b").set_entry_point("a")
    run_id = await record(flow, "s", storage=STORAGE, input=1, finished={"a": "x", "b/1": Next("a", 2)})
    assert [step for kind, step in await kinds(run_id) if kind == "step_succeeded"] == ["a/1", "b/1", "a/2"]
    assert (await kinds(run_id))[-1] == ("step_started", "b/2")


@pytest.mark.anyio
async def test_steps_of_a_sub_workflow_are_named_by_their_path():
    inner = Workflow("Inner").add_node("first", lambda n: n + 1).add_node("second", lambda n: n * 2)
    inner.add_edge("first", "second").set_entry_point("first")
    flow = Workflow("Outer", storage=STORAGE).add_node("sub", inner).set_entry_point("sub")
    await record(flow, "s", storage=STORAGE, input=1, finished={"sub/first": 100})
    assert await flow.resume("s") == 200


@pytest.mark.anyio
async def test_a_position_that_no_run_reaches_is_refused():
    with pytest.raises(DefinitionError, match=r"no step starts .* 'report'"):
        await record(make([]), "unreached", storage=STORAGE, finished={"fetch": [1], "report": 1})
    with pytest.raises(WrongState, match="ends by itself"):
        await record(make([]), "ended", storage=STORAGE, finished={"fetch": [1], "measure": [1], "report": 1, "end": 1}, left="paused")


@pytest.mark.anyio
async def test_a_session_is_recorded_once():
    await record(make([]), "once", storage=STORAGE)
    with pytest.raises(WrongState, match="has a run already"):
        await record(make([]), "once", storage=STORAGE)
