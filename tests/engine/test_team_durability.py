"""A race is run once: whatever write the process dies at, who had won has won, and what had finished is not performed again."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine import BEST, HEDGE, QUORUM, RACE, VOTE, Context, Engine, Event, Next, Retry, RunHandle, Team, Workflow
from engine.core.state import opened
from engine.errors import DefinitionError, StepFailed
from engine.store import open_log
from engine.testing.crash import check_same, crash_everywhere
from engine.testing.faults import Crash, Slow
from engine.testing.medium import MOMENTS
from engine.testing.simulate import Report, simulate
from tests.engine.racing_bodies import sleep

pytestmark = pytest.mark.anyio

DIED = "the process that performed it ended"


async def quick(given: Any, ctx: Context) -> str:
    ctx.state["k"] = "quick"
    return "quick"


def fail(given: Any) -> None:
    raise ValueError(f"cannot take {given!r}")


def after(seconds: float, value: Any, **written: Any) -> Callable[[Any, Context], Any]:
    """A member that takes some virtual seconds, and writes."""

    async def body(given: Any, ctx: Context) -> Any:
        await asyncio.sleep(seconds)
        ctx.state.update(written)
        return value

    return body


def adding(n: int) -> Callable[[Any, Context], Any]:
    async def body(given: Any, ctx: Context) -> int:
        ctx.state["sum"] = ctx.state.get("sum", 0) + n
        ctx.state.setdefault("log", []).append(n)
        return n

    return body


def between(team: Any, **options: Any) -> Workflow:
    """A team between two nodes."""
    flow = Workflow("durable", **options).add_node("before", lambda x: x + 1).add_node("panel", team)
    flow.add_node("after", lambda given, ctx: [given, dict(ctx.state)])
    return flow.add_edge("before", "panel").add_edge("panel", "after").set_entry_point("before")


def race() -> Workflow:
    return between(Team([sleep, fail, after(1, "won", k="won"), sleep], strategy=RACE))


def hedge() -> Workflow:
    return between(Team([sleep, after(3, "won", k="won"), sleep], strategy=HEDGE(1)))


def quorum() -> Workflow:
    members = [after(3, "c", c=1), sleep, after(1, "a", a=1), fail, after(2, "b", b=1)]
    return between(Team(members, strategy=QUORUM(2)))


def quorum_out_of_reach() -> Workflow:
    async def fail_later(given: Any) -> None:
        await asyncio.sleep(1)
        raise KeyError("later")

    return between(Team([fail_later, fail, sleep], strategy=QUORUM(2)))


def vote() -> Workflow:
    return between(Team([after(2, "a", a=1), after(1, "b", b=1), fail, after(3, "b", late=1)], strategy=VOTE))


def best() -> Workflow:
    return between(Team([after(2, 5, five=1), after(1, 9, nine=1), fail, after(3, 7)], strategy=BEST(lambda r: r)))


def all_with_reducers() -> Workflow:
    return between(Team([adding(3), fail, adding(1), adding(2)], max_concurrent=2), reducers={"sum": "add", "log": "append"})


def with_a_mapper() -> Workflow:
    return between(Team([lambda x: x, lambda x: x * 2, sleep], strategy=QUORUM(2), input_mapper=lambda raw, index: [raw, index]))


def of_workflows() -> Workflow:
    def steps(name: str, *bodies: Any) -> Workflow:
        flow = Workflow(name)
        for i, body in enumerate(bodies):
            flow.add_node(f"s{i}", body)
            if i:
                flow.add_edge(f"s{i - 1}", f"s{i}")
        return flow.set_entry_point("s0")

    return between(Team([steps("slow", quick, sleep), steps("quick", after(1, 1), after(1, 2, inner=1))], strategy=RACE))


def of_teams() -> Workflow:
    inner = Team([after(1, i, k=f"inner {i}") for i in range(3)], "inner")
    return between(Team([inner, after(2, "outer", k="outer"), Team([sleep, after(1, "raced", raced=1)], strategy=RACE)]))


def in_a_map() -> Workflow:
    async def add(given: int, ctx: Context) -> int:
        ctx.state["sum"] = ctx.state.get("sum", 0) + given
        return given * 10

    flow = Workflow("durable", reducers={"sum": "add"}).add_node("list", lambda x: [x, x + 1, x + 2])
    flow.add_map("each", Team([sleep, add], strategy=RACE), max_concurrency=2).add_node("end", lambda x: x)
    return flow.add_edge("list", "each").add_edge("each", "end").set_entry_point("list")


def in_a_sub_workflow() -> Workflow:
    return Workflow("durable").add_node("sub", race()).add_node("end", lambda x: x).add_edge("sub", "end").set_entry_point("sub")


def jumping() -> Workflow:
    def again(given: int, ctx: Context) -> Any:
        return Next("panel", given + 1, {"rounds": given}) if given < 4 else "done"

    return between(Team([sleep, again], strategy=RACE))


def large() -> Workflow:
    """Results that stay in their bytes when they are read back."""

    def size(result: list[int]) -> int:
        return len(result)

    members = [after(1, list(range(30_000))), after(2, list(range(40_000))), after(3, [1])]
    flow = between(Team(members, strategy=BEST(size)))
    return flow.add_node("last", lambda given: len(given[0][0]["result"])).add_edge("after", "last")


EVERY = [
    race, hedge, quorum, quorum_out_of_reach, vote, best, all_with_reducers, with_a_mapper, of_workflows, of_teams, in_a_map,
    in_a_sub_workflow, jumping, large,
]  # fmt: skip


def member_steps(events: tuple[Event, ...], kind: str) -> list[str]:
    return [e.step_id.partition("/")[2] for e in events if e.kind == kind]


def crashed(make: Callable[[], Workflow]) -> Iterator[tuple[Crash, Report]]:
    """A run for each place to die at: before, amid and after each write of the undisturbed run."""
    calm = simulate(make, 1)
    for write in calm.writes:
        for when in MOMENTS if write.verb == "write" else ("before", "after"):
            point = Crash(write=write.number, when=when)
            report = simulate(make, 1, faults=[point])
            check_same(calm, report, str(point))
            yield point, report


@pytest.mark.slow
@pytest.mark.parametrize("make", EVERY, ids=lambda make: make.__name__)
@pytest.mark.parametrize("strategy", ["always", "async", "final"])
def test_a_crash_at_any_write_changes_nothing(make: Callable[[], Workflow], strategy: str):
    def with_strategy() -> Workflow:
        flow = make()
        flow.checkpoint_strategy = strategy  # type: ignore[assignment]
        return flow

    report = crash_everywhere(with_strategy, 1)
    assert report.calm.status == "completed"
    assert {point.write for point in report.points} == {write.number for write in report.calm.writes}


@pytest.mark.slow
@pytest.mark.parametrize("make", [race, hedge, quorum, vote, best, of_workflows, in_a_sub_workflow], ids=lambda make: make.__name__)
def test_a_race_whose_winner_is_committed_is_never_run_again(make: Callable[[], Workflow]):
    calm = simulate(make, 1)
    winners = member_steps(calm.events, "member_won")
    teams = {winner.rpartition("/")[0] for winner in winners}
    after_winning = 0
    for point, report in crashed(make):
        assert member_steps(report.events, "member_won") == winners, f"{point}: the same members win, each once"
        won = {e.step_id.partition("/")[2].rpartition("/")[0]: e.seq for e in report.events if e.kind == "member_won"}
        assert set(won) == teams
        for e in report.events:
            step = e.step_id.partition("/")[2]
            team = next((team for team in teams if step.startswith(f"{team}/")), None)
            late = e.kind == "step_started" and team is not None and e.seq > won[team]
            assert not late, f"{point}: {step} was started after its team had its answer"
        resumed = [e.seq for e in report.events if e.kind == "run_resumed"]
        if resumed and any(seq < resumed[0] for seq in won.values()):
            after_winning += 1
            again = {step for step, count in report.performed.items() if count > calm.performed.get(step, 0)}
            assert not {step for step in again if any(step.startswith(f"{team}/") for team in teams)}, f"{point}: {again}"
    assert after_winning > 3


@pytest.mark.slow
@pytest.mark.parametrize("make", [race, quorum, of_workflows, in_a_map], ids=lambda make: make.__name__)
def test_every_member_that_started_and_did_not_win_is_told_as_lost_once(make: Callable[[], Workflow]):
    died = 0
    for point, report in crashed(make):
        started = set(member_steps(tuple(e for e in report.events if "member" in e.data), "step_started"))
        won = member_steps(report.events, "member_won")
        lost = member_steps(report.events, "member_lost")
        assert Counter(lost) == Counter(started - set(won)), str(point)
        died += sum(e.kind == "member_lost" and e.data["reason"] == DIED for e in report.events)
    assert died > 0, "no crash fell between a win and the stop of a loser"


def test_a_loser_whose_process_died_is_told_by_the_next_life():
    calm = simulate(race, 1)
    won = next(e for e in calm.events if e.kind == "member_won")
    for _, report in crashed(race):
        resumed = next((e.seq for e in report.events if e.kind == "run_resumed"), None)
        if resumed is not None and any(e.kind == "member_won" and e.seq < resumed for e in report.events):
            told = [e for e in report.events if e.kind == "member_lost" and e.seq == resumed + 1]
            if told:
                assert told[0].data == {"reason": DIED}
                assert told[0].step_id.rpartition("/")[0] == won.step_id.rpartition("/")[0]
                return
    pytest.fail("no crash fell between the commit of the win and the stop of a loser")


@pytest.mark.slow
def test_a_second_crash_in_the_resumed_life_changes_nothing():
    calm = simulate(quorum, 1)
    count = 0
    for write in calm.writes:
        first = Crash(write=write.number, when="after")
        for other in simulate(quorum, 1, faults=[first]).writes[write.number :][:4]:
            for when in MOMENTS:
                report = simulate(quorum, 1, faults=[first, Crash(write=other.number, when=when)])
                check_same(calm, report, f"{first}, then {when} {other.number}")
                assert member_steps(report.events, "member_won") == ["panel/1/2", "panel/1/4"]
                count += 1
    assert count > 20


@pytest.mark.parametrize("seed", range(8))
def test_the_order_of_arrival_is_that_of_the_log(seed: int):
    def make() -> Workflow:
        return between(Team([adding(n) for n in range(5)], strategy=QUORUM(3)), reducers={"sum": "add", "log": "append"})

    report = simulate(make, 1, seed=seed, spread=1.0)
    succeeded = [int(step.rpartition("/")[2]) for step in member_steps(report.events, "step_succeeded") if step.count("/") == 2]
    assert [r["member_index"] for r in report.history["panel"]] == succeeded[:3]
    assert report.state["log"] == sorted(succeeded[:3]), "diffs merge in member order, whoever came first"


def test_a_slow_favourite_loses_its_hedge():
    report = simulate(hedge, 1, faults=[Slow("panel[1]", 60.0)])
    assert report.output[0][0]["result"] == "overslept"
    assert report.duration < 40


# The log.


async def recorded(flow: Workflow, place: str, value: Any = 1) -> tuple[Engine, RunHandle]:
    engine = Engine(place)
    handle = await engine.start(flow, value, session_id="s")
    await handle.wait()
    return engine, handle


async def test_the_state_of_a_recorded_team_is_read_from_its_log_alone():
    flow = between(Team([adding(3), fail, adding(1)]), reducers={"sum": "add", "log": "append"})
    engine, handle = await recorded(flow, "memory://state-of-a-team")
    assert await engine.state(handle.run_id) == handle.state == {"sum": 4, "log": [3, 1]}
    run, _ = await engine.look(handle.run_id)
    assert opened(run.last) == handle.output
    ends = [e.seq async for e in engine.events(handle.run_id) if e.kind == "step_succeeded" and e.step_id.endswith("/panel/1")]
    (before,) = ends
    assert await engine.state(handle.run_id, at=before - 1) == {}
    assert await engine.state(handle.run_id, at=before) == {"sum": 4, "log": [3, 1]}


async def test_the_state_of_a_team_of_teams_is_read_as_it_was():
    members = [Team([after(0, i, k=f"inner {i}") for i in range(3)], "inner"), after(0, "outer", k="outer")]
    engine, handle = await recorded(between(Team(members)), "memory://state-of-teams")
    assert await engine.state(handle.run_id) == handle.state == {"k": "outer"}


async def test_the_events_of_a_recorded_team_are_those_that_were_told():
    engine, handle = await recorded(between(Team([fail, quick], strategy=RACE, max_concurrent=1)), "memory://events-of-a-team")
    seen = [(e.kind, e.step_id.partition("/")[2]) async for e in engine.events(handle.run_id) if "panel" in e.step_id]
    assert seen == [
        ("step_started", "panel/1"), ("step_started", "panel/1/0"), ("step_failed", "panel/1/0"), ("step_started", "panel/1/1"),
        ("step_succeeded", "panel/1/1"), ("member_won", "panel/1/1"), ("member_lost", "panel/1/0"), ("step_succeeded", "panel/1"),
    ]  # fmt: skip


async def test_the_result_of_a_member_is_stored_once():
    engine, handle = await recorded(between(Team([after(0, "x" * 5_000), sleep], strategy=RACE)), "memory://stored-once")
    rows = await engine.log.read(await engine.find(handle.run_id))  # type: ignore[union-attr]
    holders = [row.step for row in rows if b"x" * 5_000 in (row.output or b"")]
    assert holders == ["panel/1/0", "after/1"], "the team's own event names its members; the node behind it returned it anew"


@pytest.mark.slow  # it imports pyarrow
async def test_the_table_has_members_as_rows():
    engine, handle = await recorded(between(Team([quick, fail])), "memory://table-of-a-team")
    table = engine.table()
    rows = [row for row in table.to_pylist() if row["run_id"] == handle.run_id]
    kinds = Counter(row["kind"] for row in rows)
    assert (kinds["step_started"], kinds["step_failed"], kinds["step_succeeded"]) == (5, 1, 4)


async def test_a_finished_team_is_not_performed_again():
    calls: Counter[str] = Counter()

    async def member(given: Any) -> str:
        calls["member"] += 1
        return "done"

    broken = between(Team([member, fail])).add_node("last", fail).add_edge("after", "last")
    broken.storage = "memory://finished-team"
    with pytest.raises(StepFailed, match="'last'"):
        await broken.execute(1, session_id="s")
    mended = between(Team([member, fail])).add_node("last", lambda x: x[0]).add_edge("after", "last")
    mended.storage = "memory://finished-team"
    output = await mended.execute(session_id="s")
    assert [(r["result"], r["error"]) for r in output] == [("done", None), (None, "ValueError: cannot take 2")]
    assert calls == {"member": 1}


# Changed teams.


class Broken:
    """A member that fails, or waits, until it is mended."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, given: Any) -> str:
        self.started.set()
        await self.release.wait()
        return "mended"


async def timed_out(team: Team, body: Broken, place: str) -> None:
    """Record a run that ends at its limit in the middle of its team."""
    flow = between(team, storage=place)
    handle = await Engine(place).start(flow, 1, session_id="s", timeout=0.4)  # long enough for the body to begin on a busy machine
    await body.started.wait()
    with pytest.raises(Exception, match="timed out"):
        await handle.wait()


@pytest.mark.slow
async def test_a_member_that_is_added_to_a_recorded_team_has_to_be_accepted():
    body, place = Broken(), "memory://added-member"
    await timed_out(Team([quick, body]), body, place)
    body.release.set()
    changed = between(Team([quick, body, after(0, "new")]), storage=place)
    with pytest.raises(DefinitionError, match=r"gone or rewired now: 'panel'; resume it with accept=True"):
        await changed.execute(session_id="s")
    handle = await Engine(place).resume("s", flow=changed, accept=True)
    output = await handle.wait()
    assert [r["result"] for r in output[0]] == ["quick", "mended", "new"]


@pytest.mark.slow
async def test_a_member_that_is_taken_from_a_recorded_team_has_to_be_accepted():
    body, place = Broken(), "memory://removed-member"
    await timed_out(Team([quick, after(0, 2), body]), body, place)
    changed = between(Team([quick]), storage=place)
    with pytest.raises(DefinitionError, match="'panel'"):
        await changed.execute(session_id="s")
    handle = await Engine(place).resume("s", flow=changed, accept=True)
    assert [r["result"] for r in (await handle.wait())[0]] == ["quick"]


@pytest.mark.slow
async def test_another_strategy_has_to_be_accepted_and_another_pace_has_not():
    body, place = Broken(), "memory://other-strategy"
    await timed_out(Team([body, fail], strategy=QUORUM(1)), body, place)
    body.release.set()
    with pytest.raises(DefinitionError, match="'panel'"):
        await between(Team([body, fail], strategy=VOTE), storage=place).execute(session_id="s")
    paced = Team([body, fail], strategy=HEDGE(5), max_concurrent=1, timeout=60)
    output = await between(paced, storage=place).execute(session_id="s")
    assert [r["result"] for r in output[0]] == ["mended"]


# What the log says while a team runs.


async def begun(engine: Engine, run_id: str, count: int) -> list[str]:
    """The members that have started, as the log says; returns when there are so many."""
    async with asyncio.timeout(5):
        while True:
            rows = await engine.log.read(await engine.find(run_id))  # type: ignore[union-attr]
            found = [row.step for row in rows if row.kind == "step_started" and row.step.startswith("panel/1/")]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("strategy", ["always", "async"])
async def test_who_runs_is_in_the_log_while_nobody_has_ended(strategy: Any):
    place = f"memory://starts-{strategy}"
    flow = between(Team([sleep, sleep, Team([sleep])], input_mapper=lambda raw, index: raw), storage=place, checkpoint_strategy=strategy)
    handle = await Engine(place).start(flow, 1, session_id="s")
    assert set(await begun(Engine(place), handle.run_id, 4)) == {"panel/1/0", "panel/1/1", "panel/1/2", "panel/1/2/0"}
    await handle.cancel()


async def test_a_race_that_is_over_at_once_is_committed_as_often_as_if_nobody_told_of_starts():
    writes = [write for write in simulate(race_at_once, 1).writes if write.verb == "write"]
    assert len(writes) == len([write for write in simulate(plain, 1).writes if write.verb == "write"]) + 1, "the winner, before it is used"


def race_at_once() -> Workflow:
    return between(Team([sleep, quick], strategy=RACE))


def plain() -> Workflow:
    return between(quick)


# A log that ends in the middle of a race.


async def cut(flow: Workflow, place: str, kind: str, step: str) -> Engine:
    """Record a run, and copy its log up to an event to a place of its own."""
    engine, handle = await recorded(flow, f"{place}-whole")
    assert engine.log is not None
    key = await engine.find(handle.run_id)
    rows = list(await engine.log.read(key))
    last = next(i for i, row in enumerate(rows) if (row.kind, row.step) == (kind, step))
    log = open_log(place)
    claim = await log.claim(key)
    await log.append(claim, rows[: last + 1])
    await log.release(claim)
    return Engine(place)


async def ends(engine: Engine) -> list[tuple[str, str, Any]]:
    """How members that did not succeed ended, as the log has it."""
    kinds = ("member_won", "member_lost", "step_stopped")
    return [(e.kind, e.step_id.partition("/")[2], e.data.get("reason")) async for e in engine.events("durable.s.1") if e.kind in kinds]


async def test_a_winner_is_taken_from_the_log_without_performing_anybody():
    calls: Counter[str] = Counter()

    async def member(given: Any) -> str:
        calls["member"] += 1
        return "won"

    flow = between(Team([sleep, member], strategy=RACE))
    engine = await cut(flow, "memory://cut-at-win", "member_won", "panel/1/1")
    handle = await engine.resume("s", flow=flow)
    assert [r["result"] for r in (await handle.wait())[0]] == ["won"]
    assert calls == {"member": 1}
    assert await ends(engine) == [("member_won", "panel/1/1", None), ("member_lost", "panel/1/0", DIED)]


async def test_a_loser_that_the_next_life_need_not_start_is_told_as_lost_too():
    calls: Counter[str] = Counter()
    first = [after(0.05, "first"), after(0, "first")]

    async def favourite(given: Any, ctx: Context) -> str:
        calls["favourite"] += 1
        return await first[calls["favourite"] - 1](given, ctx)

    flow = between(Team([favourite, sleep], strategy=HEDGE(0.01)))
    engine = await cut(flow, "memory://cut-at-second-start", "step_started", "panel/1/1")
    flow = between(Team([favourite, sleep], strategy=HEDGE(20)))
    assert (await (await engine.resume("s", flow=flow)).wait())[0][0]["result"] == "first"
    assert await ends(engine) == [("member_won", "panel/1/0", None), ("member_lost", "panel/1/1", DIED)]


async def test_a_quorum_that_was_out_of_reach_before_a_crash_says_the_same_after_it():
    async def fail_later(given: Any) -> None:
        await asyncio.sleep(0.05)
        raise KeyError("later")

    flow = between(Team([fail_later, fail, sleep], strategy=QUORUM(2)))
    engine = await cut(flow, "memory://cut-at-failure", "step_failed", "panel/1/0")
    output = (await (await engine.resume("s", flow=flow)).wait())[0]
    assert [r["error"] for r in output] == [
        "KeyError: 'later'", "ValueError: cannot take 2", "Stopped: too many others had failed",
    ]  # fmt: skip
    assert await ends(engine) == [("step_stopped", "panel/1/2", DIED)]


async def test_a_failure_that_was_committed_is_not_performed_again_after_a_kill():
    calls: Counter[str] = Counter()

    async def failing(given: Any) -> None:
        calls["failing"] += 1
        raise ValueError(f"number {calls['failing']}")

    async def other(given: Any) -> str:
        await asyncio.sleep(0.01)
        calls["other"] += 1
        return f"other {calls['other']}"

    flow = between(Team([failing, other]))
    engine = await cut(flow, "memory://cut-at-committed-failure", "step_failed", "panel/1/0")
    handle = await engine.resume("s", flow=flow)
    assert [r["result"] or r["error"] for r in (await handle.wait())[0]] == ["ValueError: number 1", "other 2"]
    assert calls == {"failing": 1, "other": 2}


async def test_a_retry_that_is_due_after_a_kill_runs_again_who_had_failed_and_keeps_who_had_not():
    calls: Counter[str] = Counter()

    async def second_time(given: Any, ctx: Context) -> str:
        calls["failing"] += 1
        if ctx.attempt == 1:
            raise ValueError("at first")
        return f"attempt {ctx.attempt}"

    async def member(given: Any) -> str:
        calls["member"] += 1
        return "kept"

    def make() -> Workflow:
        flow = Workflow("durable").add_node("panel", Team([second_time, member, after(60, 0)], strategy=QUORUM(2), timeout=0.05),
                                            retry=Retry(2, delay=0))  # fmt: skip
        return flow.set_entry_point("panel")

    engine = await cut(make(), "memory://cut-at-retry", "step_retrying", "panel/1")
    calls.clear()
    handle = await engine.resume("s", flow=make())
    assert [r["result"] for r in await handle.wait()] == ["kept", "attempt 2"]
    assert calls == {"failing": 1}


async def test_a_winner_that_is_no_member_any_more_has_won_nothing():
    flow = between(Team([sleep, quick], strategy=RACE))
    engine = await cut(flow, "memory://cut-at-gone-winner", "member_won", "panel/1/1")
    handle = await engine.resume("s", flow=between(Team([after(0, "only")], strategy=RACE)), accept=True)
    assert [r["result"] for r in (await handle.wait())[0]] == ["only"]


async def test_the_state_of_a_race_that_is_not_over_is_that_before_it():
    engine = await cut(between(Team([sleep, quick], strategy=RACE)), "memory://cut-state", "member_won", "panel/1/1")
    assert await engine.state("s") == {}
    run, _ = await engine.look("s")
    assert [row.node for row in run.rows()] == ["before"]
