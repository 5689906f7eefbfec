"""Races of teams over a fake cluster: who is performed where, how losers stop, and when they are said to have. No Ray."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from cluster import dispatch, executor, lane, members, progress
from cluster.code import RemoteBody, parcel
from cluster.lane import Lane
from cluster.opened import Home, Opened
from cluster.progress import Progress, Watch, answer
from cluster.started import Owned
from cluster.wire import PackWire, read_pack
from cluster.worker import perform_calls
from engine import BEST, RACE, Event, Member, Team, Workflow
from engine.core.policy import Resources
from engine.errors import DefinitionError
from engine.local import LocalRun
from engine.runtime import team
from engine.runtime.control import Halt
from tests.acceptance.marks import until
from tests.cluster.test_dispatch import drive, fetched, turns
from tests.cluster.test_lane import Laned, end_of

pytestmark = pytest.mark.anyio

WITHIN = 10.0
gate = threading.Event()
seen: list[str] = []


@pytest.fixture(autouse=True)
def enough_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What listens is not killed on a machine that is busy."""
    monkeypatch.setattr(team, "STUBBORN", 60.0)
    monkeypatch.setattr(executor, "FORCE", 60.0)


@pytest.fixture(autouse=True)
def closed_gate() -> Iterator[None]:
    seen.clear()
    gate.clear()
    yield
    gate.set()


class Process:
    """An actor of one member at a time. What it performs is a thread, so that its end is that nobody hears of it any more."""

    def __init__(self, number: int, resources: Resources | None) -> None:
        self.number = number
        self.resources = resources
        self.packs: list[PackWire] = []
        self.ended = 0.0
        """When it ended, seconds since 1970."""
        self.answers: list[asyncio.Future[Any]] = []


class Seated(Laned):
    """A cluster of one lane, and actors for members."""

    def __init__(self) -> None:
        super().__init__()
        self.actors: list[Process] = []
        self.lane_packs: list[PackWire] = []
        self.before_end: Callable[[], Any] = lambda: None
        """Waited for before a process ends."""
        self.held: list[bytes] | None = None
        """Where it is a list: what processes have sent of their results, which is on its way and not there yet."""

    def send_to_lane(self, lane: int, data: bytes, refs: list[Any]) -> Any:
        self.lane_packs.append(read_pack(data))
        return super().send_to_lane(lane, data, refs)

    def renew_lane(self, lane: int, old: Any) -> None:
        gate.set()  # the threads of the lane's process end with it
        super().renew_lane(lane, old)

    def start_member(self, resources: Resources | None) -> Process:
        self.actors.append(Process(len(self.actors), resources))
        return self.actors[-1]

    async def where_member(self, actor: Process) -> tuple[str, int]:
        return "here", actor.number

    async def size_member(self, actor: Process) -> int:
        return 1

    def prepare_member(self, actor: Process, kit: Any) -> None:
        pass

    def drain_member(self, actor: Process) -> None:
        actor.ended = time.time()

    def lives_member(self, place: tuple[str, int] | None) -> bool:
        return place is None or not self.actors[place[1]].ended

    def send_to_member(self, actor: Process, data: bytes, refs: list[Any]) -> Any:
        pack, answered = read_pack(data), self.loop.create_future()
        actor.packs.append(pack)
        actor.answers.append(answered)
        threading.Thread(target=self._perform_on, args=(actor, pack, data, refs, answered), daemon=True).start()
        return answered

    def _perform_on(self, actor: Process, pack: PackWire, data: bytes, refs: list[Any], answered: "asyncio.Future[Any]") -> None:
        def send(name: str, report: bytes) -> None:
            if self.held is not None:
                self.held.append(report)
            elif not actor.ended:
                self._tell(self.pool.take_report, report)

        def call(name: str, *given: Any) -> bool | None:
            if name == "report":
                return send(name, *given)
            self.told.append(name)
            return asyncio.run_coroutine_threadsafe(self.pool.may_go(*given[:2]), self.loop).result(WITHIN)

        home = Home(call, self._answer, send, fetched, None)  # type: ignore[arg-type]
        if pack.kind == "async":
            given = asyncio.run(Lane(home).perform(data, refs))
        else:
            mine, ready = Progress(pack, home), Opened(pack, refs, home)
            with Watch().over(mine):
                perform_calls(ready, mine)
                if self.held is not None:
                    mine.look()
            given = answer(mine)
        self._tell(lambda: answered.done() or answered.set_result(given))

    def _tell(self, function: Callable[..., Any], *args: Any) -> None:
        with suppress(RuntimeError):  # the test is over
            self.loop.call_soon_threadsafe(function, *args)

    async def end_member(self, actor: Process, place: tuple[str, int] | None) -> None:
        self.told.append("end")
        waited = self.before_end()
        if waited is not None:
            await waited
        actor.ended = time.time()
        for future in actor.answers:
            if not future.done():
                future.cancel()

    def at_rest(self) -> bool:
        """Whether nothing is under way any more."""
        return not self.pool._entries and not self.pool._flights and self.pool.races.seats.statistics()[1] == 0


def quick(x: Any) -> str:
    return "quick"


async def quick_async(x: Any) -> str:
    return "quick"


def same(x: Any) -> Any:
    return x


async def same_async(x: Any) -> Any:
    return x


def hold(x: Any) -> str:
    seen.append("holds")
    gate.wait(WITHIN)
    return "held"


async def hold_async(x: Any) -> None:
    seen.append("holds")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        seen.append("cancelled")
        raise


async def stubborn(x: Any) -> str:
    seen.append("holds")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        seen.append("goes on")
    return "late"


async def deaf(x: Any) -> None:
    while not gate.is_set():
        try:
            await until(gate.is_set)
        except asyncio.CancelledError:
            seen.append("cancelled")


async def begins(x: Any) -> None:
    seen.append("begun")


async def slow_for_one(raw: Any, index: int) -> Any:
    if index == 0:
        await hold_async(raw)
    return raw


async def after_hold(x: Any) -> str:
    await until(lambda: "holds" in seen)
    return "first"


async def after_two(x: Any) -> str:
    await until(lambda: seen.count("holds") == 2)
    return "first"


def noded(body: Team, **policy: Any) -> Workflow:
    return Workflow("teams").add_node("panel", body, **policy).set_entry_point("panel")


def shown(run: LocalRun) -> list[tuple[int, Any]]:
    """Who gave what: the result of a success, the error of a failure."""
    return [(r["member_index"], r["result"] if r["is_success"] else r["error"]) for r in run.output()]


async def of_member(run: LocalRun, member: int) -> Event:
    """Return the last that was told of a member."""
    told = [e async for e in run.events(after=0, transient=False)]
    return [e for e in told if e.step_id.endswith(f"panel/1/{member}")][-1]


# Who is performed where.


async def test_async_members_go_to_the_lane_in_one_pack_and_sync_ones_to_seats():
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([quick_async, quick, quick_async, quick]))))
    assert shown(run) == [(number, "quick") for number in range(4)]
    assert [(pack.kind, [call.ordinal for call in pack.calls]) for pack in remote.lane_packs] == [("race", [0, 2])]
    assert [[(pack.kind, pack.calls[0].ordinal) for pack in actor.packs] for actor in remote.actors] == [[("sync", 1)], [("sync", 3)]]
    assert remote.packs == []
    await until(remote.at_rest)
    assert remote.pool.races.seats.statistics() == (2, 0)


async def test_what_asks_for_resources_has_a_seat_of_its_own_also_if_it_is_async():
    remote = Seated()
    panel = Team([Member(quick_async, num_gpus=1), quick_async, Member(quick, num_cpus=2)])
    run = await end_of(await drive(remote, noded(panel)))
    assert shown(run) == [(number, "quick") for number in range(3)]
    assert [(actor.resources and (actor.resources.num_gpus, actor.resources.num_cpus)) for actor in remote.actors] == [(1, None), (None, 2)]
    assert [actor.packs[0].kind for actor in remote.actors] == ["async", "sync"]
    assert len(remote.lane_packs) == 1


async def test_members_of_a_node_that_is_performed_in_a_lane_need_no_seat():
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([quick, quick_async]), executor="inline")))
    assert shown(run) == [(0, "quick"), (1, "quick")]
    assert (len(remote.lane_packs), remote.actors) == (1, [])


async def test_teams_within_teams_and_workflows_race_on_the_same_seats():
    remote = Seated()
    inner = Workflow("inner").add_node("n", Team([quick, quick])).set_entry_point("n")
    run = await end_of(await drive(remote, noded(Team([Team([quick, quick_async]), inner, quick]))))
    assert run.error is None
    assert [number for number, _ in shown(run)] == [0, 1, 2]
    assert sum(len(actor.packs) for actor in remote.actors) == 4
    await until(remote.at_rest)


async def test_a_seat_is_used_again_by_the_next_member():
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([quick, quick, quick], max_concurrent=1))))
    assert shown(run) == [(number, "quick") for number in range(3)]
    await until(remote.at_rest)
    assert len(remote.actors) <= 2  # a result may come a turn before the process is free


# How losers stop.


async def test_a_loser_in_the_lane_is_cancelled_and_the_lane_lives():
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([hold_async, after_hold], strategy=RACE))))
    assert shown(run) == [(1, "first")]
    assert (seen, remote.kills) == (["holds", "cancelled"], 0)
    told = await of_member(run, 0)
    assert told.kind == "member_lost"
    assert told.data["reason"] == "stopped, since the team had its answer"
    assert told.data["stopped_after"] > 0
    assert remote.at_rest()


async def test_a_loser_on_a_seat_is_ended_with_it_and_another_is_started_behind():
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([hold, after_hold], strategy=RACE))))
    assert shown(run) == [(1, "first")]
    assert remote.told.count("end") == 1
    await until(remote.at_rest)
    assert [bool(actor.ended) for actor in remote.actors] == [True, False]
    assert remote.pool.races.seats.statistics() == (1, 0)


async def test_a_loser_has_stopped_when_its_process_is_gone_and_no_sooner():
    remote, gone = Seated(), asyncio.Event()
    remote.before_end = gone.wait
    run = await drive(remote, noded(Team([hold, after_hold], strategy=RACE)))
    await until(lambda: "end" in remote.told)
    began = time.time()
    await turns(50)
    assert run.task is not None
    assert not run.task.done()
    gone_at = time.time()
    gone.set()
    await end_of(run)
    told = await of_member(run, 0)
    assert told.kind == "member_lost"
    assert told.at.timestamp() >= remote.actors[0].ended >= gone_at
    assert told.data["stopped_after"] >= gone_at - began


async def test_a_member_that_is_stopped_before_its_lane_has_opened_it_never_begins(monkeypatch: pytest.MonkeyPatch):
    opening = threading.Event()

    def opened_later(*args: Any) -> Opened:
        seen.append("opening")
        opening.wait(WITHIN)
        return Opened(*args)

    monkeypatch.setattr(lane, "Opened", opened_later)
    remote = Seated()
    run = await drive(remote, noded(Team([begins, quick], strategy=RACE)))
    await until(lambda: "stop" in remote.told)
    opening.set()
    await end_of(run)
    assert shown(run) == [(1, "quick")]
    await until(remote.at_rest)
    assert (seen, remote.kills) == (["opening"], 0)


async def test_what_could_not_be_opened_in_the_lane_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any) -> Opened:
        raise MemoryError

    monkeypatch.setattr(lane, "Opened", broken)
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([begins, quick], strategy=RACE))))
    assert shown(run) == [(1, "quick")]
    await until(remote.at_rest)
    assert remote.living._calls == {}


async def test_members_that_wait_for_a_seat_never_begin_once_they_are_stopped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(members, "LEAST_ROOM", 2)
    monkeypatch.setattr(members, "ROOM", 1)
    remote = Seated()
    run = await drive(remote, noded(Team([hold, hold, hold, hold, after_two], strategy=RACE)))
    await end_of(run)
    assert shown(run) == [(4, "first")]
    assert sum(len(actor.packs) for actor in remote.actors) == 2
    await until(remote.at_rest)
    assert (seen.count("holds"), remote.pool.races.seats.statistics()) == (2, (2, 0))


async def test_a_member_that_cannot_be_sent_is_one_failure_and_gives_its_seat_back(monkeypatch: pytest.MonkeyPatch):
    wire = dispatch.wire_of

    def broken(flight: Any, *args: Any) -> PackWire:
        if any(entry.call.ordinal == 0 for entry in flight.entries.values()):
            raise TypeError("it cannot travel")
        return wire(flight, *args)

    monkeypatch.setattr(dispatch, "wire_of", broken)
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([quick, quick]))))
    assert shown(run)[1] == (1, "quick")
    assert shown(run)[0][1].startswith("step 'panel[0]' could not be sent to a worker: TypeError: it cannot travel")
    await until(remote.at_rest)


async def test_a_run_that_is_cancelled_stops_members_wherever_they_are():
    remote = Seated()
    run = await drive(remote, noded(Team([hold_async, hold])))
    await until(lambda: seen.count("holds") == 2)
    run.request(Halt.CANCEL)
    await end_of(run)
    assert run.status == "cancelled"
    assert seen.count("cancelled") == 1
    assert remote.told.count("end") == 1
    await until(remote.at_rest)


# Limits.


@pytest.mark.parametrize("tells", [True, False])
async def test_a_member_past_its_limit_that_does_not_listen_is_ended_with_its_seat(tells: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "HELD", 0.0 if tells else 60.0)
    monkeypatch.setattr(dispatch, "LIMIT_GRACE", 60.0 if tells else 0.0)  # who looks: the process itself, or the coordinator
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([Member(hold, timeout=0.05), quick]))))
    assert shown(run) == [(0, "step 'panel[0]' timed out after 0.05 s"), (1, "quick")]
    await until(remote.at_rest)
    assert [bool(actor.ended) for actor in remote.actors[:2]] == [True, False]
    assert remote.told.count("end") == 1
    assert (await of_member(run, 0)).kind == "step_failed"


@pytest.mark.slow
async def test_a_member_past_its_limit_in_the_lane_that_does_not_listen_costs_the_lane(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dispatch, "LIMIT_GRACE", 0.1)
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([Member(deaf, timeout=0.05), quick]))))
    assert shown(run) == [(0, "step 'panel[0]' timed out after 0.05 s"), (1, "quick")]
    assert (remote.kills, seen[0]) == (1, "cancelled")
    await until(remote.at_rest)


async def test_a_member_that_takes_its_process_along_is_one_failure():
    remote = Seated()
    panel = Team([hold, after_hold, quick])
    run = await drive(remote, noded(panel))
    await until(lambda: len(remote.actors) == 2 and "holds" in seen)
    holding = next(actor for actor in remote.actors if actor.packs[0].calls[0].ordinal == 0)
    holding.ended = time.time()
    holding.answers[0].cancel()
    await end_of(run)
    assert shown(run) == [(0, "the worker of step 'panel[0]' was lost: its process died"), (1, "first"), (2, "quick")]
    await until(remote.at_rest)
    assert remote.pool.races.seats.statistics() == (2, 0)
    assert len(remote.actors) == 3  # one was started in its place
    assert all(seat.actor is not holding for shelf in remote.pool.races.seats._shelves.values() for seat in shelf.idle)


async def cancels_all(x: Any) -> None:
    await until(lambda: "begun" in seen)
    for task in asyncio.all_tasks():
        if isinstance(task, Owned):  # beside the tasks of the test itself
            task.cancel()
    await asyncio.Event().wait()


async def begins_and_waits(x: Any) -> str:
    seen.append("begun")
    if seen.count("begun") == 1:
        await asyncio.Event().wait()
    return "done"


async def test_a_member_that_another_one_cancelled_is_performed_again_on_a_seat():
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([cancels_all, begins_and_waits]))))
    assert shown(run) == [(0, "CancelledError: cancelled by its own code"), (1, "done")]
    assert (seen, remote.kills, len(remote.lane_packs)) == (["begun", "begun"], 0, 1)
    assert [(pack.kind, pack.calls[0].ordinal) for actor in remote.actors for pack in actor.packs] == [("async", 1)]
    await until(remote.at_rest)


@pytest.mark.parametrize("members", [True, False])
async def test_who_loses_its_lane_to_others_again_and_again_has_a_process_for_itself(members: bool):
    remote = Seated()
    alone: list[PackWire] = []

    def send(data: bytes, refs: list[Any], resources: Any) -> Any:
        alone.append(read_pack(data))
        return remote.loop.create_future()

    remote.send = send  # type: ignore[method-assign]
    flow = noded(Team([hold_async])) if members else Workflow("lone").add_node("a", hold_async).set_entry_point("a")
    run = await drive(remote, flow)
    for lost in range(dispatch.MOVES):
        await until(lambda lost=lost: seen.count("holds") == lost + 1)  # type: ignore[misc]
        (flight,) = remote.pool._flights.values()
        remote.pool._give_up_lane(flight)
    await until(lambda: alone or remote.actors)
    assert (remote.kills, len(remote.lane_packs)) == (dispatch.MOVES, dispatch.MOVES)
    assert (len(remote.actors), [len(pack.calls) for pack in alone]) == ((1, []) if members else (0, [1]))
    assert run.task is not None
    run.task.cancel()


class Far(Seated):
    """A cluster whose seats are on another node; so many of them die before they begin."""

    def __init__(self, dying: int) -> None:
        super().__init__()
        self.dying = dying

    def is_near(self, place: tuple[str, int] | None) -> bool:
        return False

    def send_to_member(self, actor: Process, data: bytes, refs: list[Any]) -> Any:
        if not self.dying:
            return super().send_to_member(actor, data, refs)
        self.dying -= 1
        actor.ended = time.time()
        dead = self.loop.create_future()
        dead.cancel()
        return dead


@pytest.mark.parametrize("dying", [0, 1, dispatch.MOVES])
async def test_a_member_whose_seat_elsewhere_was_gone_before_it_began_is_performed_on_another(dying: int):
    remote = Far(dying)
    run = await end_of(await drive(remote, noded(Team([quick]))))
    assert shown(run) == [(0, "quick")]
    assert remote.told == ["may_go"]
    assert len(remote.actors) == dying + 1
    await until(remote.at_rest)


async def test_a_member_whose_seats_are_gone_again_and_again_before_it_began_has_failed():
    remote = Far(9)
    run = await end_of(await drive(remote, noded(Team([quick]))))
    assert shown(run) == [(0, "the worker of step 'panel[0]' was lost: its process died")]
    assert (remote.dying, remote.told) == (9 - dispatch.MOVES - 1, [])
    await until(remote.at_rest)


async def test_a_member_that_had_begun_when_its_seat_elsewhere_died_has_failed():
    remote = Far(0)
    run = await drive(remote, noded(Team([hold])))
    await until(lambda: seen)
    remote.actors[0].ended = time.time()
    remote.actors[0].answers[0].cancel()
    await end_of(run)
    assert shown(run) == [(0, "the worker of step 'panel[0]' was lost: its process died")]
    assert remote.told == ["may_go"]


# Results that come after the race.


async def test_a_result_that_a_loser_in_the_lane_gives_after_the_race_is_told_as_such():
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([stubborn, after_hold], strategy=RACE))))
    assert shown(run) == [(1, "first")]
    told = await of_member(run, 0)
    assert (told.kind, told.data["reason"]) == ("member_lost", "it ended after the team had its answer")
    assert (seen, remote.kills) == (["holds", "goes on"], 0)


async def test_a_result_that_a_loser_on_a_seat_gives_after_the_race_is_told_as_such():
    remote = Seated()

    async def let_it_end() -> None:
        gate.set()
        await asyncio.wait(remote.actors[0].answers)
        await turns(5)

    remote.before_end = let_it_end
    run = await end_of(await drive(remote, noded(Team([hold, after_hold], strategy=RACE))))
    assert shown(run) == [(1, "first")]
    told = await of_member(run, 0)
    assert (told.kind, told.data["reason"]) == ("member_lost", "it ended after the team had its answer")
    await until(remote.at_rest)


async def test_a_loser_whose_result_is_on_its_way_takes_no_member_of_another_team_along():
    remote = Seated()
    remote.held = []
    first = await drive(remote, noded(Team([same, after_hold], strategy=RACE)))
    await until(lambda: remote.held and remote.actors[0].answers[0].done())
    await turns(20)
    remote.held, late = None, remote.held
    second = await drive(remote, noded(Team([hold])))
    await end_of(first)
    for report in late:
        remote.pool.take_report(report)
    gate.set()
    await end_of(second)
    assert (shown(first), shown(second)) == ([(1, "first")], [(0, "held")])
    await until(remote.at_rest)


# Mappers and judges.


async def test_a_mapper_and_a_judge_are_asked_in_the_lane():
    def times(raw: int, index: int) -> int:
        return raw * index

    async def closest(result: int) -> int:
        return -abs(result - 7)

    remote = Seated()
    panel = Team([same, same_async, same], strategy=BEST(closest), input_mapper=times)
    (node,) = parcel(noded(panel).compiled()).plan.nodes
    assert isinstance(node.body.mapper, RemoteBody)
    assert isinstance(node.body.judge, RemoteBody)
    run = await end_of(await drive(remote, noded(panel), 8))
    assert shown(run) == [(1, 8)]
    asked = [call.node for pack in remote.lane_packs if pack.kind == "reduce" for call in pack.calls]
    assert sorted(asked) == [f"the {what} of panel[{number}]" for what in ("input", "score") for number in range(3)]
    await until(remote.at_rest)


async def test_a_mapper_that_fails_is_the_failure_of_its_member_alone():
    def some(raw: int, index: int) -> int:
        return 10 // index

    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([same, same_async, same], input_mapper=some)), 1))
    assert shown(run)[1:] == [(1, 10), (2, 5)]
    assert "Input mapping failed: ZeroDivisionError" in shown(run)[0][1]
    assert len(remote.actors) == 1


@pytest.mark.parametrize("limit", [None, pytest.param(1.0, marks=pytest.mark.slow)])
async def test_the_question_to_a_judge_that_nobody_waits_for_is_stopped(limit: float | None):
    remote = Seated()
    run = await drive(remote, noded(Team([quick, quick_async], strategy=BEST(hold_async), timeout=limit)))
    await until(lambda: "holds" in seen)
    if limit is None:
        run.request(Halt.CANCEL)
    await end_of(run)
    assert set(seen) == {"holds", "cancelled"}
    assert seen.count("holds") == seen.count("cancelled")
    assert remote.kills == 0
    if limit is not None:
        assert shown(run) == [(number, "Timed out after 1 s") for number in range(2)]
    await until(remote.at_rest)


async def test_a_judge_that_does_not_listen_costs_the_lane(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executor, "FORCE", 0.05)
    remote = Seated()
    run = await drive(remote, noded(Team([quick], strategy=BEST(hold))))
    await until(lambda: "holds" in seen)
    run.request(Halt.CANCEL)
    await end_of(run)
    assert (run.status, remote.kills) == ("cancelled", 1)
    await until(remote.at_rest)


async def test_a_mapper_that_is_under_way_when_the_team_has_its_answer_is_stopped():
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([quick, after_hold], strategy=RACE, input_mapper=slow_for_one)), 3))
    assert shown(run) == [(1, "first")]
    assert (seen, remote.kills, remote.actors) == (["holds", "cancelled"], 0, [])
    await until(remote.at_rest)


# What cannot travel.


def closed(held: Any) -> Callable[..., Any]:
    return lambda x, index=0: held.locked()


@pytest.mark.parametrize(
    ("made", "where"),
    [
        (lambda bad: Team([quick, bad]), "node 'panel', member 1"),
        (lambda bad: Team([quick, Team([quick, quick, bad])]), "node 'panel', member 1, member 2"),
        (lambda bad: Team([quick, Workflow("in").add_node("n", bad).set_entry_point("n")]), "node 'n'"),
        (lambda bad: Team([quick], input_mapper=bad), "input_mapper of node 'panel'"),
        (lambda bad: Team([Team([quick], input_mapper=bad)]), "input_mapper of node 'panel', member 0"),
        (lambda bad: Team([quick], strategy=BEST(bad)), "judge of node 'panel'"),
    ],
)
def test_what_cannot_travel_is_named(made: Callable[[Any], Team], where: str):
    with pytest.raises(DefinitionError) as caught:
        parcel(noded(made(closed(threading.Lock()))).compiled())
    assert str(caught.value).startswith(f"{where} cannot be sent to a worker: it captured 'held' (lock)")
    assert caught.value.where == where


def test_a_member_that_is_no_body_travels_as_a_lack():
    (node,) = parcel(noded(Team([17, quick])).compiled()).plan.nodes
    assert node.body.members[0].body is None
    assert isinstance(node.body.members[1].body, RemoteBody)
    assert 0 in node.body.lacks


async def test_a_member_whose_plan_has_a_lack_is_one_failed_result():
    remote = Seated()
    run = await end_of(await drive(remote, noded(Team([17, quick]))))
    assert "not executable" in shown(run)[0][1]
    assert shown(run)[1] == (1, "quick")
    assert len(remote.actors) == 1
