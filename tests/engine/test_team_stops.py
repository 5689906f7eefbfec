"""How a team stops in the middle: what it was about to start, what runs inside of its members, and what does not listen."""

import asyncio
import threading
from collections import Counter
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from engine import BEST, RACE, Engine, Event, Member, RunHandle, Team, Workflow
from engine.errors import RunPaused, RunTimedOut, StepFailed, TeamTimedOut
from engine.runtime.ledger import Ledger
from tests.engine.racing_bodies import Gate, chain, swallow

pytestmark = pytest.mark.anyio


async def start(team: Team, place: str, **options: Any) -> tuple[Workflow, RunHandle]:
    flow = Workflow("stops", storage=f"memory://{place}").add_node("panel", team).set_entry_point("panel")
    return flow, await Engine(flow.storage).start(flow, 1, session_id="s", **options)


async def pause(handle: RunHandle) -> None:
    async with asyncio.timeout(10):
        await handle.pause()
    with pytest.raises(RunPaused):
        await handle.wait()


async def begun_to(work: Coroutine[Any, Any, None]) -> "asyncio.Future[Any]":
    """Return work that everybody has heard of: from the run to what is inside of its members takes some turns of the event loop."""
    pausing = asyncio.gather(work)
    for _ in range(50):
        await asyncio.sleep(0)
    return pausing


async def told(handle: RunHandle) -> list[Event]:
    return [event async for event in handle.events()]


@pytest.mark.parametrize("nested", [False, True], ids=["function", "workflow"])
async def test_a_member_whose_input_is_made_when_the_run_pauses_does_not_start(nested: bool):
    mapping, performed = Gate(), Counter[str]()

    async def mapper(raw: Any, index: int) -> str:
        return await mapping(raw)

    def body(given: Any) -> str:
        performed["body"] += 1
        return given

    flow, handle = await start(Team([chain(body) if nested else body], input_mapper=mapper), f"mapping-{nested}")
    await mapping.started.wait()
    pausing = await begun_to(pause(handle))
    mapping.release.set()
    await pausing
    assert performed == {}
    assert [r["result"] for r in await flow.execute(session_id="s")] == ["through"]
    assert performed == {"body": 1}


async def test_a_member_that_is_a_workflow_pauses_between_its_steps():
    first, performed = Gate(), Counter[str]()

    def second(given: Any) -> str:
        performed["second"] += 1
        return "second"

    flow, handle = await start(Team([chain(first, second)]), "inside")
    await first.started.wait()
    pausing = await begun_to(pause(handle))
    first.release.set()
    await pausing
    assert performed == {}
    assert [r["result"] for r in await flow.execute(session_id="s")] == ["second"]


async def test_a_team_in_a_team_starts_nobody_after_a_pause():
    first, performed = Gate(), Counter[str]()

    async def second(given: Any) -> None:
        performed["second"] += 1

    flow, handle = await start(Team([Team([first, second], max_concurrent=1)]), "inner-team")
    await first.started.wait()
    pausing = await begun_to(pause(handle))
    first.release.set()
    await pausing
    assert performed == {}
    await flow.execute(session_id="s")
    assert performed == {"second": 1}


async def test_who_ends_after_the_team_s_limit_has_not_won():
    with pytest.raises(TeamTimedOut) as caught:
        await Team([swallow, swallow], strategy=RACE, timeout=0.02).run()
    assert [(r.is_success, r.error) for r in caught.value.results] == [(False, "Timed out after 0.02 s")] * 2
    _, handle = await start(Team([swallow], strategy=RACE, timeout=0.02), "late-limit")
    with pytest.raises(StepFailed, match="timed out"):
        await handle.wait()
    (stop,) = [event for event in await told(handle) if event.kind == "step_stopped"]
    assert stop.data["reason"] == "the team's limit"


async def test_each_member_that_a_run_s_limit_stops_has_its_end_written_down():
    flow, handle = await start(Team([swallow, swallow]), "run-limit", timeout=0.05)
    with pytest.raises(RunTimedOut):
        await handle.wait()
    events = await told(handle)
    begun = {e.step_id for e in events if e.kind == "step_started" and "member" in e.data}
    ended = {e.step_id for e in events if e.kind in ("step_succeeded", "step_stopped")}
    assert len(begun) == 2
    assert begun <= ended
    assert [r["result"] for r in await flow.execute(session_id="s")] == ["too late"] * 2


async def test_a_mapper_in_a_thread_that_is_left_behind_is_told_as_such():
    let_go, mapping = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def mapper(raw: Any, index: int) -> Any:
        if index:
            loop.call_soon_threadsafe(mapping.set)
            let_go.wait(10)
        return raw

    async def win(given: Any) -> str:
        await mapping.wait()
        return "won"

    _, handle = await start(Team([win, win], strategy=RACE, input_mapper=mapper), "mapper")
    assert [r["result"] for r in await handle.wait()] == ["won"]
    let_go.set()
    events = await told(handle)
    (lost,) = [event for event in events if event.kind == "member_lost"]
    assert "input mapper goes on unattended" in lost.data["reason"]
    assert lost.step_id in {event.step_id for event in events if event.kind == "step_started"}


async def test_a_losing_workflow_that_does_not_listen_is_told_as_such():
    release = asyncio.Event()

    async def deaf(given: Any) -> None:
        while not release.is_set():
            with suppress(asyncio.CancelledError):
                await release.wait()

    async def win(given: Any) -> str:
        return "won"

    _, handle = await start(Team([chain(deaf), win], strategy=RACE), "deaf")
    assert [r["result"] for r in await handle.wait()] == ["won"]
    release.set()
    (lost,) = [event for event in await told(handle) if event.kind == "member_lost"]
    assert "unattended" in lost.data["reason"]


async def test_a_judge_may_give_decimals():
    from decimal import Decimal

    async def seven() -> int:
        return 7

    async def nine() -> int:
        return 9

    assert [r.result for r in await Team([seven, nine], strategy=BEST(lambda value: Decimal(value))).run()] == [9]


async def test_a_loser_with_a_limit_of_its_own_that_does_not_listen_is_told_to_go_on_unattended():
    released = asyncio.Event()

    async def deaf(given: Any) -> None:
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()

    async def quick(given: Any) -> int:
        return 1

    team = Team([quick, Member(deaf, timeout=30)], strategy=RACE)
    handle = await Engine(None).start(Workflow("deaf").add_node("race", team).set_entry_point("race"))
    await handle.wait()
    (lost,) = [event async for event in handle.events() if event.kind == "member_lost"]
    assert "unattended" in lost.data["reason"]
    released.set()


async def test_a_run_ends_after_what_a_loser_with_a_limit_of_its_own_does_at_its_end():
    cleaned: list[bool] = []

    async def tidy(given: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned.append(True)

    async def quick(given: Any) -> int:
        await asyncio.sleep(0)
        return 1

    team = Team([quick, Member(tidy, timeout=30)], strategy=RACE)
    await Workflow("tidy").add_node("race", team).set_entry_point("race").execute()
    assert cleaned == [True]


async def test_a_mapper_that_fails_while_the_winner_is_committed_is_told_to_have_started_once(monkeypatch: pytest.MonkeyPatch):
    failing = asyncio.Event()
    checkpoint = Ledger.checkpoint

    async def slow(self: Ledger) -> None:
        if not failing.is_set() and any(row.kind == "member_won" for row in self._rows):
            failing.set()
            for _ in range(10):
                await asyncio.sleep(0)
        await checkpoint(self)

    async def mapped(raw: Any, index: int) -> Any:
        if index:
            await failing.wait()
            raise ValueError("too late")
        return raw

    async def quick(given: Any) -> Any:
        return given

    monkeypatch.setattr(Ledger, "checkpoint", slow)
    _, handle = await start(Team([quick, quick], strategy=RACE, input_mapper=mapped), "late-mapper")
    await handle.wait()
    assert failing.is_set()
    started = [event.step_id for event in await told(handle) if event.kind == "step_started"]
    assert len(started) == len(set(started)) == 3
