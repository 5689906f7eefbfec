"""Who is stopped on Ray does nothing after its recorded stop: not in a thread, not in a process, not in an orphan of one."""

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine import RACE, Engine, Event, Member, Team, Workflow
from engine.errors import StepFailed
from tests.acceptance import marks

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio, pytest.mark.usefixtures("ray_cluster")]

MARKING = 'while :; do : > "$0/loser@$$@$(date +%s%N)"; sleep 0.005; done'
ORPHANING = '(sh -c "$1" "$0") & exit 0'
AFTER = 0.5
"""Seconds after the end of a run in which something that goes on would show."""


def engine() -> Engine:
    return Engine(str(Path.cwd() / "runs"), executor="ray")


def folder() -> str:
    path = Path.cwd() / "marks"
    path.mkdir(exist_ok=True)
    return str(path)


def go_on(place: str) -> None:
    """Leave marks for some seconds, whatever becomes of whoever asked for it."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        marks.leave(place, "loser")
        time.sleep(0.005)


async def in_pool(place: str) -> None:
    await asyncio.to_thread(go_on, place)


async def in_pool_of_its_own(place: str) -> None:
    await asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(1), go_on, place)


async def in_thread(place: str) -> None:
    threading.Thread(target=go_on, args=(place,), daemon=True).start()
    await asyncio.sleep(30)


async def in_team(place: str) -> None:
    await Team([lambda given: go_on(given)]).run(place)


async def in_process(place: str) -> None:
    process = await asyncio.create_subprocess_exec("sh", "-c", MARKING, place)
    await process.wait()


async def in_process_of_a_thread(place: str) -> None:
    await asyncio.to_thread(subprocess.run, ["sh", "-c", MARKING, place])


async def in_orphan(place: str) -> None:
    process = await asyncio.create_subprocess_exec("sh", "-c", ORPHANING, place, MARKING)
    await process.wait()
    await asyncio.sleep(30)


def in_orphan_of_a_sync_body(place: str) -> None:
    subprocess.run(["sh", "-c", ORPHANING, place, MARKING], check=True)
    time.sleep(30)


async def wins(place: str) -> str:
    await marks.until(lambda: marks.names(place)["loser"] > 3, within=60)
    return "won"


LOSERS = [in_pool, in_pool_of_its_own, in_thread, in_team, in_process, in_process_of_a_thread, in_orphan, in_orphan_of_a_sync_body]


async def stopped_at(events: list[Event], kind: str) -> float:
    """Return when something was recorded as stopped, once whatever goes on has had time to show."""
    (stopped,) = [event.at.timestamp() for event in events if event.kind == kind]
    await asyncio.sleep(AFTER)
    return stopped


@pytest.mark.parametrize("loser", LOSERS)
async def test_a_loser_does_nothing_after_its_recorded_stop(loser: Callable[[str], Any]):
    place = folder()
    made = Workflow("race", executor="ray").add_node("panel", Team([loser, wins], strategy=RACE)).set_entry_point("panel")
    handle = await engine().start(made, place, session_id="s")
    assert [r["result"] for r in await handle.wait()] == ["won"]
    stopped = await stopped_at([event async for event in handle.events()], "member_lost")
    assert marks.late(place, {"loser": stopped}) == {}


@pytest.mark.parametrize("body", [in_pool, in_process])
async def test_a_node_past_its_limit_does_nothing_after_its_recorded_failure(body: Callable[[str], Any]):
    place = folder()
    made = Workflow("limited", executor="ray").add_node("n", body, timeout=0.5).set_entry_point("n")
    handle = await engine().start(made, place, session_id="s")
    with pytest.raises(StepFailed, match=r"timed out after 0\.5 s"):
        await handle.wait()
    failed = await stopped_at([event async for event in handle.events()], "step_failed")
    assert marks.names(place)["loser"] > 3
    assert marks.late(place, {"loser": failed}) == {}


async def test_a_run_that_is_cancelled_does_nothing_after_its_recorded_stop():
    place = folder()
    made = Workflow("cancelled", executor="ray").add_node("n", in_pool).set_entry_point("n")
    handle = await engine().start(made, place, session_id="s")
    await marks.until(lambda: marks.names(place)["loser"] > 3, within=60)
    await handle.cancel()
    stopped = await stopped_at([event async for event in handle.events()], "step_stopped")
    assert marks.late(place, {"loser": stopped}) == {}


async def test_what_shares_a_lane_with_such_a_loser_is_performed_again_and_comes_to_its_end():
    place = folder()

    async def waits(given: str) -> str:
        marks.leave(given, "neighbour")
        await asyncio.sleep(1.5)
        return "done"

    team = Team([in_pool, wins], strategy=RACE)
    made = Workflow("neighbours", executor="ray").add_node("race", team)
    for number in range(4):
        made.add_node(f"n{number}", waits)
    handle = await engine().start(made.set_entry_point("race", *(f"n{number}" for number in range(4))), place, session_id="s")
    answer = await handle.wait()
    assert [answer[f"n{number}"] for number in range(4)] == ["done"] * 4
    assert 4 < marks.names(place)["neighbour"] <= 8
    events = [event async for event in handle.events()]
    assert not [event for event in events if event.kind in ("step_failed", "step_retrying")]
    assert marks.late(place, {"loser": await stopped_at(events, "member_lost")}) == {}


async def cancels_all(place: str) -> None:
    await marks.until(lambda: marks.names(place)["other"] >= 2)
    for task in asyncio.all_tasks():
        task.cancel()
    await asyncio.sleep(30)


async def other(place: str) -> str:
    marks.leave(place, "other")
    await asyncio.sleep(0.5)
    return "done"


@pytest.mark.parametrize("members", [True, False])
async def test_a_body_that_cancels_all_tasks_fails_alone_and_leaves_nothing_behind(members: bool):
    from cluster import runner

    place, bodies = folder(), [cancels_all, *[other] * 6]
    made = Workflow("all_tasks", executor="ray")
    if members:
        made.add_node("panel", Team([*bodies, Member(cancels_all, num_cpus=1)])).set_entry_point("panel")
    else:
        for number, body in enumerate(bodies):
            made.add_node(f"n{number}", body, on_error="skip")
        made.set_entry_point(*(f"n{number}" for number in range(len(bodies))))
    answer = await (await engine().start(made, place, session_id="s")).wait()
    if members:
        alone = "CancelledError: cancelled by its own code"
        assert [r["error"] for r in answer] == [alone, *[None] * 6, alone]
    else:
        assert answer == {f"n{number}": "done" for number in range(1, 7)}
    await marks.until(lambda: marks.names(place)["other"] >= 6)
    found: dict[str, int] = await runner.script.coordinator.statistics.remote()
    assert (found["calls"], found["packs"], found["busy_seats"]) == (0, 0, 0)
