"""Use cases without a command line."""

import asyncio
import shutil
import time
from pathlib import Path

import pytest

from engine import ALL, BEST, HEDGE, QUORUM, RACE, VOTE, Engine, Member, Strategy, Team, Workflow
from engine.core.ids import make_run_id
from engine.errors import DefinitionError, InvalidDocument, StepFailed
from engine.ports import Row, RunKey
from engine.store import open_log
from engine.testing.record import record
from serve import service


def make(name: str = "w", **options: object) -> Workflow:
    return Workflow(name, **options).add_node("a", lambda x: x).set_entry_point("a")  # type: ignore[arg-type]


def test_a_place_is_what_was_said_else_configured_else_the_workflow_s_else_the_default():
    assert service.find_place("said", "configured", make(storage="own")).url == "said"
    assert service.find_place(None, "configured", make(storage="own")).url == "configured"
    assert service.find_place(None, None, make(storage="own")) == ("own", False)
    assert service.find_place(None, None, make(storage=False)) == ("./.gecko", True)
    assert service.find_place(None, None).option is None
    assert service.find_place("x", None).option == "x"


@pytest.mark.parametrize("session", ["../x", "..", "", "a/b", "a\0b", "x" * 600])
def test_a_session_that_cannot_be_a_name_is_refused(session: str):
    with pytest.raises(DefinitionError):
        service.check_session(session)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1.5h", 5400), ("30D", 2592000), ("2 w", 1209600), ("0", 0)])
def test_an_age_is_a_number_and_a_unit(text: str, seconds: float):
    assert service.parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1d", "1y", "1d2h"])
def test_what_is_no_age_is_refused(text: str):
    with pytest.raises(InvalidDocument):
        service.parse_age(text)


@pytest.mark.anyio
async def test_a_run_that_nobody_drives_is_shown_as_interrupted():
    log = open_log("memory://interrupted")
    claim = await log.claim(RunKey("w", "s", 1))
    await log.append(claim, [Row(1, time.time(), "run_started")])
    engine = Engine(log)
    (driven,) = await service.list_runs(engine)
    assert (driven.run_id, service.shown_status(driven)) == ("w.s.1", "running")
    await log.release(claim)
    (left,) = await service.list_runs(engine, status="interrupted")
    assert (service.shown_status(left), left.status) == ("interrupted", "running")
    assert await service.list_runs(engine, status="completed") == []


@pytest.mark.anyio
async def test_a_report_tells_steps_of_sub_workflows_and_the_items_that_failed():
    def shaky(x: int) -> int:
        if x == 1:
            raise ValueError("one")
        return x

    inner = make("inner")
    flow = (
        Workflow("outer", storage="memory://report")
        .add_node("list", lambda: [0, 1, 2])
        .add_map("each", shaky, on_error="skip")
        .add_node("sub", inner)
        .add_edge("list", "each")
        .add_edge("each", "sub")
        .set_entry_point("list")
    )
    assert await flow.execute(session_id="s") == [0, None, 2]
    report = await service.report_of(Engine("memory://report"), "s")
    assert (report.run_id, report.status, report.output, report.error) == ("outer.s.1", "completed", [0, None, 2], None)
    assert [(step.node, step.status, step.done, step.items) for step in report.steps] == [
        ("list", "success", 0, None), ("each", "success", 2, 3), ("sub", "success", 0, None), ("sub/a", "success", 0, None),
    ]  # fmt: skip
    assert [item[:2] for item in report.steps[1].failed_items] == [("1", "ValueError: one")]
    assert str(report.steps[1].failed_items[0][2]).startswith(f"{__file__}:")


async def quick(x: object) -> str:
    return "quick"


async def never(x: object) -> None:
    await asyncio.Event().wait()


async def broken(x: object) -> None:
    raise ValueError("no luck")


@pytest.mark.anyio
async def test_a_report_tells_of_members_who_won_who_lost_and_who_failed_and_why():
    place = "memory://report-team"
    flow = (
        Workflow("teams", storage=place)
        .add_node("race", Team([never, broken, quick], "race", strategy=RACE))
        .add_node("best", Team([quick, Workflow("inner").add_node("a", quick).set_entry_point("a")], "best", strategy=BEST(len)))
        .add_node("limit", Team([never, quick, 7], "limit", timeout=0.01))
        .add_edge("race", "best")
        .add_edge("best", "limit")
        .set_entry_point("race")
    )
    await flow.execute(session_id="s")
    report = await service.report_of(Engine(place), "s")
    assert [(step.node, step.members) for step in report.steps if step.members] == [("race", 3), ("best", 2), ("limit", 3)]
    members = {step.step: step for step in report.steps if step.member}
    assert {text: (step.member, step.status) for text, step in members.items()} == {
        "race/1/0": ("never", "lost"), "race/1/1": ("broken", "failed"), "race/1/2": ("quick", "won"),
        "best/1/0": ("quick", "won"), "best/1/1": ("inner", "lost"),
        "limit/1/0": ("never", "timed_out"), "limit/1/1": ("quick", "finished"), "limit/1/2": ("int", "failed"),
    }  # fmt: skip
    assert members["race/1/0"].told.startswith("lost, stopped after ")
    assert members["race/1/1"].why == "ValueError: no luck"
    assert str(members["race/1/1"].place).startswith(f"{__file__}:")
    assert members["best/1/0"].score == 5
    assert "not executable: 7 is no body" in members["limit/1/2"].told
    assert next(step.node for step in report.steps if step.step == "best/1/1/0") == "best/a"


@pytest.mark.parametrize(
    ("strategy", "text"),
    [
        (ALL, "ALL"), (RACE, "RACE"), (VOTE, "VOTE"), (HEDGE(0.05), "HEDGE(0.05)"), (QUORUM(2), "QUORUM(2)"), (BEST(len), "BEST(len)"),
        (Strategy(2, 0.5, "vote"), "Strategy(need=2, stagger=0.5, pick='vote')"),
        (Strategy(2, pick=len), "Strategy(need=2, stagger=0, pick=len)"),
    ],
)  # fmt: skip
def test_a_team_is_told_by_its_strategy_and_its_members(strategy: Strategy, text: str):
    assert service.team_text(Team([quick, broken], strategy=strategy)) == f"{text} of 2: quick, broken"


def test_of_a_large_team_and_an_empty_one_as_much_is_told_as_can_be_read():
    assert service.team_text(Team([quick] * 1000)) == f"ALL of 1,000: {', '.join(['quick'] * 6)}, 994 more"
    assert service.team_text(Team([])) == "ALL of nobody"


def test_a_plan_and_a_graph_say_who_is_in_a_team():
    inner = Team([quick, len], "inner", strategy=RACE)
    team = Team([quick, len, Member(len, num_gpus=1), inner, make(), 7], "outer", strategy=QUORUM(2))
    flow = Workflow("w").add_node("t", team).add_map("m", inner).add_edge("t", "m").set_entry_point("t")
    (node,), (items,) = service.plan_of(flow)
    assert (node.mode, node.strategy, items.mode, items.is_map) == ("team", "QUORUM(2)", "team", True)
    assert [(member.name, member.mode) for member in node.members] == [
        ("quick", "async"), ("len", "sync"), ("len", "own"), ("inner", "team"), ("w", "workflow"), ("int", "none"),
    ]  # fmt: skip
    assert node.members[2].why == "asks for 1 CPU, 1 GPU"
    told, mapped = service.graph_of(flow)["nodes"]
    assert (told["kind"], told["body"], told["team"]["strategy"], mapped["kind"]) == ("team", "outer", "QUORUM(2)", "map")
    assert [(member["name"], member["kind"]) for member in told["team"]["members"]] == [
        ("quick", "step"), ("len", "step"), ("len", "step"), ("inner", "team"), ("w", "workflow"), ("int", "step"),
    ]  # fmt: skip
    assert 'n0(("t<br/>QUORUM(2) of 6: quick, len, len, inner, w, int"))' in service.mermaid_of(flow)
    assert '"m<br/>RACE of 2: quick, &lt;lambda&gt;"' in service.mermaid_of(
        Workflow("w").add_node("m", Team([quick, lambda x: x], strategy=RACE)).set_entry_point("m")
    )


def test_a_team_with_a_member_that_is_broken_is_told_all_the_same():
    flow = Workflow("w").add_node("t", Team([quick, Workflow("empty")], strategy=RACE)).set_entry_point("t")
    assert service.mermaid_of(flow).endswith('"t<br/>RACE of 2: member 0, member 1"))')
    assert [problem.warning for problem in service.problems_of(flow)] == [False]


def copy_run(segment: Path, times: int) -> None:
    """Put a run under further sessions."""
    for number in range(times):
        folder = segment.parent.parent.with_name(f"t{number}") / "1"
        folder.mkdir(parents=True)
        shutil.copy(segment, folder)


@pytest.mark.slow
@pytest.mark.anyio
async def test_thousands_of_runs_are_listed_fast():
    log = open_log(Path("many"))
    claim = await log.claim(RunKey("w", "s", 1))
    await log.append(claim, [Row(1, 1000.0, "run_started"), Row(2, 1001.0, "run_completed")])
    await log.release(claim)
    copy_run(Path("many/runs/w/s/1/1.arrows"), 3000)
    begun = time.perf_counter()
    found = await service.list_runs(Engine(log), status="completed")
    took = time.perf_counter() - begun
    assert len(found) == 3001
    assert {make_run_id(*s.key) for s in found} >= {"w.s.1", "w.t2999.1"}
    assert took < 5.0  # 5,000 took 0.8 s beside a dozen busy processes


@pytest.mark.anyio
async def test_a_map_of_a_run_that_stopped_is_not_shown_as_running():
    place = "memory://stopped-map"
    flow = Workflow("m", storage=place).add_map("m", lambda x: 1 / x).set_entry_point("m")
    with pytest.raises(StepFailed):
        await flow.execute([1, 0, 2], session_id="failed")
    report = await service.report_of(Engine(place), "failed")
    assert [(step.node, step.status, step.failed_items[0][0]) for step in report.steps] == [("m", "failed", "1")]
    left = Workflow("m", storage=place).add_map("m", lambda ctx: ctx.sleep).set_entry_point("m")
    await record(left, "left", storage=place, input=[1, 2], finished={"m[0]": 10})
    report = await service.report_of(Engine(place), "left")
    assert [(step.node, step.status, step.done) for step in report.steps] == [("m", "stopped", 1)]


@pytest.mark.anyio
async def test_what_would_be_pruned_is_what_is_pruned():
    place = "memory://prunable"
    engine, flow = Engine(place), make()
    await record(flow, "killed", storage=place)
    await record(flow, "paused", storage=place, left="paused")
    await record(flow, "failed", storage=place, finished={"a": ValueError("no")})
    await (await engine.start(flow, session_id="completed")).wait()
    await record(flow, "cancelled", storage=place, left="paused")
    await engine.cancel("cancelled")
    assert [s.key.session for s in await service.prunable(engine, 3600.0)] == ["failed"]  # of a clock that stands still
    before = await engine.runs()
    would = {s.key for s in await service.prunable(engine, 0.0)}
    assert {key.session for key in would} == {"failed", "completed", "cancelled"}
    assert await engine.prune(0.0) == len(would)
    assert {s.key for s in before} - {s.key for s in await engine.runs()} == would
