"""Coordinators that outlive scripts: what they record, take over, let in, refuse, and tell of any run in their storage."""

import asyncio
import gc
import pickle
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from cluster import detached as module
from engine import Engine, Workflow
from engine.checkpoint.codec import decode, encode
from engine.errors import (
    LeaseLost,
    NeedsCode,
    QueueFull,
    RunBusy,
    RunCancelled,
    RunNotFound,
    RunPaused,
    RunTimedOut,
    SessionInUse,
    StepFailed,
    WrongState,
)
from engine.ports import Row, RunKey
from engine.runtime.control import Halt
from tests.acceptance.marks import until
from tests.cluster.fleet import Fleet, end_of, failing, gate, held, note, parcelled, performed, quick, told

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(autouse=True)
def own_collector() -> Iterator[None]:
    threshold = gc.get_threshold()
    performed.clear()
    gate.clear()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


@pytest.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> AsyncIterator[Fleet]:
    monkeypatch.setattr(module, "ROUND", 0.2)
    made = Fleet(monkeypatch, (tmp_path / "runs").as_uri())
    yield made
    await made.end_all()


async def kinds(one: Any, run_id: str) -> list[str]:
    return [row.kind for row in await one._log.read(await one._engine.find(run_id))]


async def busy(of: str = "hold") -> None:
    """Wait until a step is held."""
    await until(lambda: any(name.startswith(of) for name in performed))


# Submitting.


@pytest.mark.parametrize("place", ["file", "memory"])
async def test_a_run_is_on_storage_with_how_it_was_submitted_when_submit_returns(fleet: Fleet, place: str):
    if place == "memory":
        fleet.place = "memory://submitted"
    one = fleet.begin(runs=1)
    for session in ("first", "second"):
        run_id, status = await fleet.submit(one, held(), 1, session=session, ticket=f"t {session}", priority=3)
        recorded = await fleet.recorded(one, run_id)
        assert recorded.status == "running"
        assert recorded.started is not None
        assert (recorded.started["submission"]["ticket"], recorded.started["submission"]["priority"]) == (f"t {session}", 3)
        assert status == ("running" if session == "first" else "pending")
    gate.set()
    assert await end_of(one, run_id) == "completed"


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("moment", ["driven", "ended", "restarted", "restarted after its end"])
async def test_the_same_ticket_is_the_same_run(fleet: Fleet, new: bool, moment: str):
    one = fleet.begin()
    first, _ = await fleet.submit(one, held(), 1, new=new)
    if "end" in moment:
        gate.set()
        assert await end_of(one, first) == "completed"
    else:
        await busy()
    if "restarted" in moment:
        await fleet.end(one)
        one = fleet.begin()
    again, _ = await fleet.submit(one, held(), 1, new=new)
    assert again == first
    gate.set()
    assert await end_of(one, first) == "completed"
    assert len(await one._log.scan()) == 1
    assert performed["hold 1"] == (2 if moment == "restarted" else 1)
    assert performed["note 1"] == 2


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_ticket_is_known_also_behind_newer_runs_of_its_session(fleet: Fleet, new: bool, restarted: bool):
    one = fleet.begin()
    gate.set()
    first, _ = await fleet.submit(one, held(), 1, ticket="first", new=new)
    second, _ = await fleet.submit(one, held(), 2, ticket="second", new=True)
    assert second != first
    if restarted:
        await fleet.end(one)
        one = fleet.begin()
    assert (await fleet.submit(one, held(), 1, ticket="first", new=new))[0] == first
    assert (await fleet.submit(one, held(), 2, ticket="second", new=True))[0] == second
    assert len(await one._log.scan()) == 2


async def test_tickets_that_come_at_once_are_one_run_each(fleet: Fleet):
    one = fleet.begin()
    gate.set()
    found = await asyncio.gather(*(fleet.submit(one, held(), 1, ticket=f"t{n % 3}", new=True) for n in range(12)))
    assert len({run_id for run_id, _ in found}) == 3


@pytest.mark.parametrize("moment", ["driven", "waiting", "ended", "restarted"])
async def test_another_input_for_a_session_is_refused_and_none_means_its_run(fleet: Fleet, moment: str):
    one = fleet.begin(runs=1)
    if moment == "waiting":
        await fleet.submit(one, held(), 0, session="other", ticket="other")
    first, _ = await fleet.submit(one, held(), {"a": [1]})
    if moment == "ended":
        gate.set()
        await end_of(one, first)
    if moment == "restarted":
        await fleet.end(one)
        one = fleet.begin()
    with pytest.raises(SessionInUse, match="with another input"):
        await fleet.submit(one, held(), {"a": [2]}, ticket="another")
    assert (await fleet.submit(one, held(), None, ticket="none"))[0] == first
    assert (await fleet.submit(one, held(), {"a": [1]}, ticket="equal"))[0] == first
    assert (await fleet.submit(one, held(), {"a": [2]}, ticket="new", new=True))[0] != first


async def test_a_run_that_another_coordinator_drives_is_found_by_its_ticket_at_once(fleet: Fleet):
    one, two = fleet.begin(), fleet.begin()
    first, _ = await fleet.submit(one, held(), 1)
    begun = time.monotonic()
    assert (await fleet.submit(two, held(), 1))[0] == first
    with pytest.raises(SessionInUse):
        await fleet.submit(two, held(), 2, ticket="another")
    assert time.monotonic() - begun < 5.0


async def test_a_cancelled_session_says_so(fleet: Fleet):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    assert told(await one.ask_to(run_id, "cancel")) == "cancelled"
    with pytest.raises(RunCancelled, match="new=True"):
        await fleet.submit(one, held(), 1, ticket="another")


# Taking over.


async def test_runs_whose_owner_is_gone_go_on_and_nothing_finished_is_done_again(fleet: Fleet):
    one = fleet.begin()
    ids = [(await fleet.submit(one, held(), n, session=f"s{n}", ticket=f"t{n}"))[0] for n in range(3)]
    await until(lambda: sum(name.startswith("hold") for name in performed) == 2)
    await fleet.end(one)
    two = fleet.begin()
    assert told(await two.recover_stale()) == 3
    assert told(await two.recover_stale()) == 0
    gate.set()
    for n, run_id in enumerate(ids):
        assert await end_of(two, run_id) == "completed"
        assert performed[f"note {n}"] == 2
    assert (await two.figures())["recovered"] == 3
    assert told(await two.recover_stale()) == 0


async def test_a_coordinator_looks_for_runs_by_itself_and_once_only(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LOOK", 0.01)
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await busy()
    await fleet.end(one)
    two = fleet.begin()
    await two.attend()
    attending = two._attending
    await two.attend()
    assert two._attending is attending
    gate.set()
    await until(lambda: two._recovered == 1)
    assert await end_of(two, run_id) == "completed"


async def test_who_comes_second_to_stale_runs_is_not_held_up_by_them(fleet: Fleet):
    one = fleet.begin()
    for n in range(40):
        await fleet.submit(one, held(), n, session=f"s{n}", ticket=f"t{n}")
    await fleet.end(one)
    two, three = fleet.begin(), fleet.begin()
    begun = time.monotonic()
    taken = [told(answer) for answer in await asyncio.gather(two.recover_stale(), three.recover_stale())]
    assert sum(taken) == 40
    assert time.monotonic() - begun < 8.0, "no second caller waits for an owner that lives"


async def test_a_script_s_run_is_left_to_its_script(fleet: Fleet):
    one = fleet.begin()
    key = RunKey("script", "s", 1)
    claim = await one._log.claim(key)
    await one._log.append(claim, [Row(1, time.time(), "run_started", info=encode({"workflow": "script", "session": "s"}))])
    await one._log.release(claim)
    assert told(await one.recover_stale()) == 0
    assert one._foreign == {"script.s.1": 1}
    assert told(await one.status("script.s.1")) == "running"
    assert await kinds(one, "script.s.1") == ["run_started"]


async def test_a_storage_that_fails_for_a_moment_leaves_no_run_behind(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    from engine.errors import StoreUnavailable

    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await fleet.end(one)
    two = fleet.begin()
    with monkeypatch.context() as patch:

        async def refuse(*_: Any, **__: Any) -> Any:
            raise StoreUnavailable("not now")

        patch.setattr(two._log, "claim", refuse)
        assert told(await two.recover_stale()) == 0
    assert told(await two.recover_stale()) == 1
    gate.set()
    assert await end_of(two, run_id) == "completed"


async def test_a_run_without_its_code_is_paused_with_the_reason_and_goes_on_when_the_code_is_there(fleet: Fleet):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await busy()
    await fleet.end(one)
    kept, fleet.shelf.parcels = fleet.shelf.parcels, {}
    two = fleet.begin()
    assert told(await two.recover_stale()) == 0
    assert told(await two.status(run_id)) == "paused"
    status, error, *_ = told(await two.outcome(run_id))
    assert status == "paused"
    assert error is not None
    assert isinstance(raised := pickle.loads(error), RunPaused)
    assert "NeedsCode" in str(raised)
    assert told(await two.recover_stale()) == 0
    with pytest.raises(NeedsCode, match="no import path"):
        told(await two.go_on(run_id, False, False))
    fleet.shelf.parcels = kept
    assert told(await two.go_on(run_id, False, False)) == "running"
    gate.set()
    assert await end_of(two, run_id) == "completed"
    assert performed["note 1"] == 2


async def test_code_is_found_again_by_its_import_path_and_kept(fleet: Fleet):
    one = fleet.begin()
    flow = held()
    run_id, _ = await fleet.submit(one, flow, 1, target="some.module:flow")
    await busy()
    await fleet.end(one)
    fleet.shelf.parcels.clear()
    two = fleet.begin()
    assert told(await two.recover_stale()) == 0
    with pytest.raises(NeedsCode, match=r"some\.module:flow.*not found any more: there is no such module"):
        told(await two.go_on(run_id, False, False))
    _, packed = parcelled(flow)
    fleet.shelf.modules["some.module:flow"] = packed, "its hash now"
    assert told(await two.go_on(run_id, False, False)) == "running"
    assert list(fleet.shelf.parcels.values()) == [packed], "and kept for the next coordinator"
    gate.set()
    assert await end_of(two, run_id) == "completed"


async def test_a_run_whose_workflow_was_rewired_is_paused_until_that_is_accepted(fleet: Fleet):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1, target="some.module:flow")
    await busy()
    await fleet.end(one)
    fleet.shelf.parcels.clear()
    other = Workflow("held").add_node("before", note).add_node("after", note).add_edge("before", "after").set_entry_point("before")
    fleet.shelf.modules["some.module:flow"] = parcelled(other)[1], "other"
    two = fleet.begin()
    assert told(await two.recover_stale()) == 0
    assert "DefinitionError" in str((await fleet.recorded(two, run_id)).ended["reason"])
    assert told(await two.go_on(run_id, False, True)) == "running"
    assert await end_of(two, run_id) == "completed"


async def test_the_limit_of_a_run_counts_through_coordinators(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1, limit=3600.0)
    await busy()
    await fleet.end(one)
    two = fleet.begin()
    now = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "time", lambda: now + 3601)
        assert told(await two.recover_stale()) == 1
    gate.set()
    assert await end_of(two, run_id) == "timed_out"
    _, error, *_ = told(await fleet.begin().outcome(run_id))
    assert error is not None
    assert isinstance(pickle.loads(error), RunTimedOut)


@pytest.mark.parametrize("strategy", ["always", "async", "final", "manual"])
async def test_a_run_that_has_ended_is_not_performed_again_whatever_its_strategy(fleet: Fleet, strategy: str):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, quick(checkpoint_strategy=strategy), 1)
    assert await end_of(one, run_id) == "completed"
    assert told(await one.recover_stale()) == 0
    assert told(await fleet.begin().recover_stale()) == 0
    assert performed["note 1"] == 1


# Stopping.


@pytest.mark.parametrize(("action", "status"), [("pause", "paused"), ("cancel", "cancelled")])
async def test_what_was_asked_is_recorded_first_and_done_by_the_next_coordinator(fleet: Fleet, action: str, status: str):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await busy()
    key = RunKey("held", "s", 1)
    claim_kept = one._live(key)
    assert claim_kept is not None
    requested: list[list[str]] = []
    original = claim_kept.request
    loop = asyncio.get_running_loop()

    def dying(halt: Any) -> None:
        requested.append([row.kind for row in one._log._read(key, 0)])  # type: ignore[attr-defined]
        assert claim_kept.task is not None
        loop.call_soon(claim_kept.task.cancel)  # the process ends just then

    claim_kept.request = dying  # type: ignore[method-assign]
    await asyncio.wait({asyncio.ensure_future(one.ask_to(run_id, action))})  # noqa: TID251
    assert original is not None
    assert requested == [["run_started", "step_started", "step_succeeded", "step_started", "signal_received"]]
    await fleet.end(one)
    assert (await fleet.recorded(one, run_id)).asked == action
    two = fleet.begin()
    assert told(await two.recover_stale()) == 1
    gate.set()
    assert await end_of(two, run_id) == status
    assert "after" not in [row.node for row in (await fleet.recorded(two, run_id)).rows if row.kind == "step_succeeded"]
    assert told(await two.ask_to(run_id, action)) == status


async def test_a_pause_takes_effect_when_the_running_step_has_ended_and_is_answered_before(fleet: Fleet):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await busy()
    assert told(await one.ask_to(run_id, "pause")) == "running"
    assert "signal_received" in await kinds(one, run_id)
    gate.set()
    assert await end_of(one, run_id) == "paused"
    assert told(await one.go_on(run_id, False, False)) in ("running", "completed")
    assert await end_of(one, run_id) == "completed"
    assert performed == {"note 1": 2, "hold 1": 1}


@pytest.mark.parametrize(("action", "status"), [("pause", "paused"), ("cancel", "cancelled")])
async def test_a_run_that_nobody_drives_is_stopped_all_the_same(fleet: Fleet, action: str, status: str):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await fleet.end(one)
    two = fleet.begin()
    assert told(await two.ask_to(run_id, action)) == status
    assert told(await two.recover_stale()) == 0


async def test_a_run_that_another_owner_drives_is_busy(fleet: Fleet):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await fleet.end(one)
    two = fleet.begin()
    claim = await two._log.claim(RunKey("held", "s", 1))
    assert told(await two.recover_stale()) == 0
    for action in ("pause", "cancel"):
        with pytest.raises(RunBusy):
            told(await two.ask_to(run_id, action))
    begun = time.monotonic()
    with pytest.raises(RunBusy):
        told(await two.go_on(run_id, False, False))
    assert time.monotonic() - begun < 5.0
    await two._log.release(claim)


async def test_what_cannot_be_done_any_more_is_refused(fleet: Fleet):
    one = fleet.begin()
    done, _ = await fleet.submit(one, quick(), 1, session="done")
    await end_of(one, done)
    for answer in (one.ask_to(done, "pause"), one.ask_to(done, "cancel"), one.go_on(done, False, False), one.go_on(done, True, False)):
        with pytest.raises(WrongState):
            told(await answer)
    paused, _ = await fleet.submit(one, held(), 1, session="paused", ticket="p")
    await one.ask_to(paused, "pause")
    gate.set()
    assert await end_of(one, paused) == "paused"
    with pytest.raises(WrongState, match="paused; it cannot be retried"):
        told(await one.go_on(paused, True, False))
    assert told(await one.ask_to(paused, "pause")) == "paused"
    assert told(await one.ask_to(paused, "cancel")) == "cancelled"
    with pytest.raises(WrongState, match="cancelled"):
        told(await one.go_on(paused, False, False))
    for wrong in ("quick.done.2", "nothing", "quick.done.0", "", "a.b.c"):
        for ask in (one.status, one.outcome, one.view):
            with pytest.raises(RunNotFound):
                told(await ask(wrong))
        for answer in (
            one.settled(wrong, 0.0),
            one.ask_to(wrong, "pause"),
            one.go_on(wrong, False, False),
            one.follow(wrong, "r", 0, False),
        ):
            with pytest.raises(RunNotFound):
                told(await answer)


@pytest.mark.parametrize("retry", [False, True])
async def test_a_run_that_failed_is_retried_from_what_failed(fleet: Fleet, retry: bool):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, failing(), 1)
    assert await end_of(one, run_id) == "failed"
    _, error, *_ = told(await one.outcome(run_id))
    assert error is not None
    assert isinstance(pickle.loads(error), StepFailed)
    gate.set()
    two = fleet.begin()
    assert told(await two.go_on(run_id, retry, False)) in ("running", "completed")
    assert await end_of(two, run_id) == "completed"
    assert performed == {"note 1": 1, "fail 1": 2}
    assert told(await one.outcome(run_id))[:2] == ("completed", None), "also where it failed before"


# Waiting for room.


async def test_limits_hold_over_three_hundred_runs(fleet: Fleet):
    one = fleet.begin(runs=5)
    ids = [(await fleet.submit(one, held(), n, session=f"s{n}", ticket=f"t{n}"))[0] for n in range(300)]
    assert (one._admission.statistics().running, one._admission.statistics().queued) == (5, 295)
    gate.set()
    most = 0
    while (told_now := one._admission.statistics()).ended < 300:
        most = max(most, told_now.running)
        assert told_now.running <= 5
        await asyncio.sleep(0.001)
    assert most == 5
    assert [await end_of(one, run_id) for run_id in ids] == ["completed"] * 300
    assert set(performed.values()) == {1, 2}
    figures = await one.figures()
    assert (figures["admitted"], figures["ended"], figures["queued"], figures["running"], figures["runs"]) == (300, 300, 0, 0, 0)


async def test_runs_go_on_by_priority_also_after_a_restart(fleet: Fleet):
    one = fleet.begin(runs=1)
    await fleet.submit(one, held(), "first", session="first", ticket="first")
    for n in range(6):
        await fleet.submit(one, quick(), n, session=f"s{n}", ticket=f"t{n}", priority=n % 3)
    await busy()
    await fleet.end(one)
    performed.clear()
    two = fleet.begin(runs=1)
    await fleet.submit(two, held(), "second", session="second", ticket="second", priority=9)
    await busy()
    assert told(await two.recover_stale()) == 7
    assert told(await two.status("quick.s0.1")) == "pending"
    gate.set()
    for n in range(6):
        assert await end_of(two, f"quick.s{n}.1") == "completed"
    order = [int(name.removeprefix("note ")) for name in performed if name.removeprefix("note ").isdigit()]
    assert [n % 3 for n in order] == [2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(("action", "status"), [("pause", "paused"), ("cancel", "cancelled")])
async def test_a_run_that_waits_is_pending_and_can_be_stopped(fleet: Fleet, action: str, status: str):
    one = fleet.begin(runs=1)
    first, _ = await fleet.submit(one, held(), 1, session="first", ticket="first")
    waits, shown = await fleet.submit(one, held(), 2, session="waits", ticket="waits")
    last, _ = await fleet.submit(one, quick(), 3, session="last", ticket="last")
    assert shown == told(await one.status(waits)) == told(await one.settled(waits, 0.0)) == "pending"
    assert told(await one.ask_to(waits, action)) == status
    assert (await one.figures())["queued"] == 1
    gate.set()
    assert await end_of(one, first) == await end_of(one, last) == "completed"
    assert performed["note 2"] == 0
    if action == "pause":
        told(await one.go_on(waits, False, False))
        assert await end_of(one, waits) == "completed"


async def test_a_full_queue_refuses_and_still_answers_for_what_it_has(fleet: Fleet):
    one = fleet.begin(runs=1, queued=2)
    ids = [(await fleet.submit(one, held(), n, session=f"s{n}", ticket=f"t{n}"))[0] for n in range(3)]
    with pytest.raises(QueueFull) as caught:
        await fleet.submit(one, held(), 3, session="s3", ticket="t3")
    assert 1.0 <= caught.value.retry_after <= 60.0
    assert (await fleet.submit(one, held(), 2, session="s2", ticket="t2"))[0] == ids[2]
    assert len(await one._log.scan()) == 3, "what was refused is not recorded"
    gate.set()
    for run_id in ids:
        await end_of(one, run_id)
    assert (await fleet.submit(one, held(), 3, session="s3", ticket="t3"))[1] in ("running", "pending")
    assert (await one.figures())["refused"] == 1


async def test_coordinators_share_the_limits(fleet: Fleet):
    both = [fleet.begin(parts=2, runs=4) for _ in range(2)]
    for n in range(8):
        await fleet.submit(both[n % 2], held(), n, session=f"s{n}", ticket=f"t{n}")
    await busy()
    assert [one._admission.statistics().running for one in both] == [2, 2]


# Looking.


async def test_runs_driven_elsewhere_and_finished_long_ago_are_told_from_the_log(fleet: Fleet):
    one, two = fleet.begin(), fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await busy()
    assert told(await two.status(run_id)) == told(await two.settled(run_id, 0.05)) == "running"
    here, there = decode(told(await one.view(run_id))), decode(told(await two.view(run_id)))
    assert here[:2] == there[:2] == ["running", 1]
    waiting = asyncio.ensure_future(end_of(two, run_id))  # noqa: TID251
    gate.set()
    assert await end_of(one, run_id) == await waiting == "completed"
    three = fleet.begin()
    for any_of_them in (one, two, three):
        assert told(await any_of_them.status(run_id)) == "completed"
        status, error, output, _ = told(await any_of_them.outcome(run_id))
        assert (status, error) == ("completed", None)
        assert output is not None
        assert decode(output) == 1
        shown = decode(told(await any_of_them.view(run_id)))
        assert shown[:2] == ["completed", 1]
        assert [name for name, _ in shown[3]] == ["before", "hold", "after"]


async def follow(one: Any, run_id: str, after: int = 0) -> list[tuple[int, str]]:
    """Return number and kind of the events, asked for until none follows."""
    seen: list[tuple[int, str]] = []
    while (found := told(await one.follow(run_id, f"reader of {id(one)}", after, False))) is not None:
        seen += [(event[1], event[3]) for event in found if event[1] > after]
        after = seen[-1][0] if seen else after
    return seen


async def test_events_of_a_run_are_told_each_once_wherever_it_is_driven(fleet: Fleet):
    one, two = fleet.begin(), fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    reading = [asyncio.ensure_future(follow(who, run_id)) for who in (one, two)]  # noqa: TID251
    await busy()
    gate.set()
    here, there = await asyncio.gather(*reading)
    expected = list(enumerate(["run_started", *["step_started", "step_succeeded"] * 3, "run_completed"], start=1))
    assert here == there == expected
    assert await follow(fleet.begin(), run_id) == expected
    assert await follow(one, run_id, after=3) == expected[3:]
    assert await follow(one, run_id, after=8) == []


async def test_a_coordinator_that_lost_a_run_tells_nothing_of_its_own_of_it(fleet: Fleet):
    one, two = fleet.begin(), fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await busy()
    reading = asyncio.ensure_future(follow(one, run_id))  # noqa: TID251
    waiting = asyncio.ensure_future(end_of(one, run_id))  # noqa: TID251
    key = RunKey("held", "s", 1)
    lost = one._live(key)
    assert lost is not None
    claim = await one._log.claim(key, takeover=True)
    gate.set()
    await lost.wait()
    assert isinstance(lost.error, LeaseLost)
    assert told(await one.status(run_id)) == told(await one.settled(run_id, 0.0)) == "running"
    await one._log.release(claim)
    assert told(await two.recover_stale()) == 1
    assert await end_of(two, run_id) == "completed"
    assert await waiting == "completed"
    assert told(await one.outcome(run_id))[:2] == ("completed", None)
    events = await reading
    assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
    assert events[-1][1] == "run_completed"


async def test_the_end_of_a_run_that_went_on_elsewhere_is_the_newest(fleet: Fleet):
    one, two = fleet.begin(), fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await busy()
    await one.ask_to(run_id, "pause")
    gate.set()
    assert await end_of(one, run_id) == "paused"
    told(await two.go_on(run_id, False, False))
    assert await end_of(two, run_id) == "completed"
    assert told(await one.outcome(run_id))[:2] == ("completed", None)


async def test_what_a_coordinator_records_an_engine_reads(fleet: Fleet):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, quick(), {"a": 1})
    await end_of(one, run_id)
    engine = Engine(fleet.place)
    assert [run.status for run in await engine.runs()] == ["completed"]
    assert [event.kind async for event in engine.events(run_id)] == ["run_started", "step_started", "step_succeeded", "run_completed"]


async def test_a_resume_right_behind_a_pause_goes_on_with_the_run_when_its_steps_have_ended(fleet: Fleet):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await busy()
    run = one._runs[run_id]
    run.request(Halt.PAUSE)
    gate.set()
    assert told(await one.go_on(run_id, False, False)) in ("running", "completed")
    assert await end_of(one, run_id) == "completed"


async def test_whoever_resumes_a_run_that_was_to_be_paused_takes_that_back_for_good(fleet: Fleet):
    one = fleet.begin()
    run_id, _ = await fleet.submit(one, held(), 1)
    await busy()
    await one._runs[run_id].tell("signal_received", {"name": "pause"})
    await fleet.end(one)
    two = fleet.begin()
    assert told(await two.go_on(run_id, False, False)) == "running"
    await fleet.end(two)
    three = fleet.begin()
    assert told(await three.recover_stale()) == 1
    gate.set()
    assert await end_of(three, run_id) == "completed"
