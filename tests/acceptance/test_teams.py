"""Teams on Ray: who loses is stopped whatever it does, a race that was won is never run again, and nothing is left behind."""

import asyncio
import hashlib
import os
import signal
import subprocess
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import runner
from engine import BEST, HEDGE, QUORUM, RACE, Context, Engine, Event, Member, MemberResult, Team, Workflow
from engine.errors import StepFailed, TeamTimedOut
from tests.acceptance import marks, records

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio, pytest.mark.usefixtures("ray_cluster")]

STOPPED = 0.5
"""Seconds within which a blocking loser has stopped."""


def engine() -> Engine:
    return Engine(str(Path.cwd() / "runs"), executor="ray")


def folder(name: str = "marks") -> str:
    path = Path.cwd() / name
    path.mkdir(exist_ok=True)
    return str(path)


def lone(team: Team, *, mapped: bool = False) -> Workflow:
    made = Workflow("teams", executor="ray")
    made = made.add_map("panel", team, max_concurrency=5) if mapped else made.add_node("panel", team)
    return made.set_entry_point("panel")


async def run(team: Team, given: Any = None, *, session: str = "s") -> tuple[list[dict[str, Any]], list[Event]]:
    handle = await engine().start(lone(team), given, session_id=session)
    return await handle.wait(), [event async for event in handle.events()]


def lives(pid: int) -> bool:
    """Tell whether a process is there; one that has ended and waits to be asked how does nothing any more."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def of_kind(events: list[Event], *kinds: str) -> list[Event]:
    return [event for event in events if event.kind in kinds]


class Service(BaseHTTPRequestHandler):
    """A slow local service, which counts who asked when."""

    asked: dict[str, float]

    def do_GET(self) -> None:
        type(self).asked[self.path] = time.time()
        time.sleep(0.05)
        with suppress(OSError):  # whoever asked is gone
            self.send_response(200)
            self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[str, dict[str, float]]]:
    asked: dict[str, float] = {}
    handler = type("Handler", (Service,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


async def test_fifty_losers_do_nothing_after_their_recorded_stop(service):
    url, asked = service
    place, children = folder(), folder("children")

    def lose(given: dict[str, Any], ctx: Context) -> None:
        line = f"import os, time\nwhile True: open(r'{children}/{given['number']}.' + str(os.getpid()), 'a').close(); time.sleep(0.005)"
        while True:
            marks.leave(place, ctx.step_id)
            match given["kind"]:
                case "sleep":
                    time.sleep(0.002)
                case "busy":
                    end = time.monotonic() + 0.002
                    while time.monotonic() < end:
                        pass
                case "native":
                    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2_000_000)
                case "http":
                    urllib.request.urlopen(f"{url}/{ctx.step_id}").read()
                case "process":
                    subprocess.run([os.sys.executable, "-c", line], check=True)

    async def win(given: dict[str, Any], ctx: Context) -> int:
        loser = ctx.step_id.rpartition("/")[0] + "/0"
        await marks.until(lambda: marks.names(place)[loser], within=60)
        if given["kind"] == "process":
            await marks.until(lambda: any(name.startswith(f"{given['number']}.") for name in os.listdir(children)), within=60)
        return given["number"]

    kinds = ["sleep", "busy", "native", "http", "process"]
    given = [{"number": n, "kind": kinds[n % 5]} for n in range(50)]
    handle = await engine().start(lone(Team([lose, win], strategy=RACE), mapped=True), given, session_id="s")
    answers = await handle.wait()
    assert [[r["result"] for r in answer] for answer in answers] == [[n] for n in range(50)]
    left = [pid for pid in marks.processes(place) if lives(pid)]
    assert not left, "losers outlived their races"
    assert all(not lives(int(name.partition(".")[2])) for name in os.listdir(children)), "what a loser had started outlived its race"
    assert len(os.listdir(children)) == 10
    lost = of_kind([event async for event in handle.events()], "member_lost")
    assert len(lost) == 50
    stopped = {event.step_id: event.at.timestamp() for event in lost}
    assert marks.late(place, stopped) == {}
    assert len(asked) == 10
    on_the_wire = 0.3  # a request that was sent before its process was gone is read after that
    assert all(at < stopped[path[1:]] + on_the_wire for path, at in asked.items())
    won = {e.step_id.rpartition("/")[0]: e.at.timestamp() for e in of_kind([e async for e in handle.events()], "member_won")}
    late = [event.at.timestamp() - won[event.step_id.rpartition("/")[0]] for event in lost]
    assert sorted(late)[25] < STOPPED


async def test_async_losers_are_cancelled_as_coroutines_and_their_neighbours_go_on():
    place = folder()

    async def lose(ctx: Context) -> None:
        try:
            while True:
                marks.leave(place, ctx.step_id)
                await asyncio.sleep(0.001)
        finally:
            marks.leave(place, "cancelled")

    async def win() -> int:
        await asyncio.sleep(0.05)
        return os.getpid()

    answer, events = await run(Team([lose, win, lose, lose], strategy=RACE))
    stopped = {event.step_id: event.at.timestamp() for event in of_kind(events, "member_lost")}
    assert len(stopped) == 3
    assert marks.names(place)["cancelled"] == 3
    assert marks.late(place, stopped) == {}
    assert lives(answer[0]["result"]), "the process of async members was ended with one of them"


async def test_a_coordinator_that_dies_takes_its_members_along_and_the_next_one_runs_the_race_anew():
    place, go = folder(), Path.cwd() / "go"

    def blocked(ctx: Context) -> None:
        marks.leave(place, f"sync {ctx.step_id}")
        while True:
            time.sleep(0.001)

    def starts(ctx: Context) -> None:
        child = subprocess.Popen(["sleep", "600"])
        (Path(place).parent / f"child {child.pid}").touch()
        marks.leave(place, f"child {ctx.step_id}")
        child.wait()

    async def waits(ctx: Context) -> str:
        marks.leave(place, f"async {ctx.step_id}")
        await marks.until(go.exists, within=100)
        return "done"

    handle = await engine().start(lone(Team([blocked, starts, waits], strategy=RACE)), session_id="s")
    await marks.until(lambda: len(marks.names(place)) == 3, within=60)
    old = [*marks.processes(place), *(int(path.name.split()[1]) for path in Path.cwd().glob("child *"))]
    os.kill(await records.owner(engine()), signal.SIGKILL)
    await marks.until(lambda: not any(map(lives, old)), within=10)
    await marks.until(lambda: set(marks.names(place).values()) == {2}, within=60)
    go.touch()
    assert [r["result"] for r in await handle.wait()] == ["done"]
    assert Counter(event.kind for event in [e async for e in handle.events()])["member_won"] == 1
    alone = [pid for name in marks.names(place) if "async" not in name for pid in marks.processes(place, name)]
    left = [*alone, *(int(path.name.split()[1]) for path in Path.cwd().glob("child *"))]
    await marks.until(lambda: not any(map(lives, left)), within=10)


@pytest.mark.parametrize("strategy", ["always", "async"])
async def test_a_race_that_was_won_is_not_run_again_by_the_next_coordinator(strategy):
    place, go = folder(), Path.cwd() / "go"

    async def win(ctx: Context) -> str:
        marks.leave(place, ctx.step_id)
        return "first"

    async def lose(ctx: Context) -> None:
        marks.leave(place, ctx.step_id)
        await asyncio.sleep(600)

    async def use(given: Any, ctx: Context) -> Any:
        marks.leave(place, "used")
        await marks.until(go.exists, within=100)
        return given[0]["result"]

    made = Workflow("won", executor="ray", checkpoint_strategy=strategy)
    made.add_node("panel", Team([lose, win], strategy=RACE)).add_node("use", use).add_edge("panel", "use").set_entry_point("panel")
    handle = await engine().start(made, session_id="s")
    await marks.until(lambda: marks.names(place)["used"] == 1, within=60)
    os.kill(await records.owner(engine()), signal.SIGKILL)
    await marks.until(lambda: marks.names(place)["used"] == 2, within=60)
    go.touch()
    assert await handle.wait() == "first"
    assert {name: count for name, count in marks.names(place).items() if name != "used"} == {f"won.s.1/panel/1/{m}": 1 for m in (0, 1)}
    kinds = Counter((event.kind, event.step_id) for event in [e async for e in handle.events()])
    assert [key for key in kinds if key[0] in ("member_won", "member_lost")] == [("member_won", "won.s.1/panel/1/1"),
                                                                                ("member_lost", "won.s.1/panel/1/0")]  # fmt: skip
    assert kinds["step_succeeded", "won.s.1/panel/1"] == kinds["step_succeeded", "won.s.1/panel/1/1"] == 1


async def test_ten_thousand_races_leave_no_actor_task_or_object_behind():
    import ray

    async def quick(given: int) -> int:
        return given

    async def slow(given: int) -> int:
        await asyncio.sleep(60)
        return -given

    def actors() -> int:
        return sum(actor["State"] == "ALIVE" for actor in ray._private.state.actors().values())

    made = Workflow("many", executor="ray", checkpoint_strategy="async")
    made.add_map("races", Team([slow, quick], strategy=RACE), max_concurrency=100).set_entry_point("races")

    async def race(count: int, session: str) -> list[Any]:
        handle = await engine().start(made, list(range(count)), session_id=session)
        return [answer[0]["result"] for answer in await handle.wait()]

    async def under_way() -> dict[str, int]:
        return await runner.script.coordinator.statistics.remote()

    await race(100, "warm")
    before, held = actors(), ray.available_resources().get("object_store_memory")
    assert await race(10_000, "s") == list(range(10_000))
    assert {name: count for name, count in (await under_way()).items() if count} == {}
    assert actors() <= before
    await marks.until(lambda: ray.available_resources().get("object_store_memory") == held, within=10)


def refuses() -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(BaseException):  # the worst that a body can do
            time.sleep(0.05)


async def ignores() -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with suppress(BaseException):
            await asyncio.sleep(0.05)


async def quick() -> str:
    await asyncio.sleep(0.05)
    return "quick"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def test_a_loser_that_does_not_listen_is_stopped_all_the_same():
    answer, events = await run(Team([refuses, ignores, quick], strategy=RACE))
    assert [r["member_index"] for r in answer] == [2]
    lost = of_kind(events, "member_lost")
    won = of_kind(events, "member_won")[0].at.timestamp()
    assert {event.step_id[-1] for event in lost} == {"0", "1"}
    assert all(event.at.timestamp() - won < 4 * STOPPED for event in lost)  # a lane that does not let go is replaced, which takes 0.3 s


async def test_members_that_never_return_die_or_give_no_data_fail_alone():
    class Handle:
        pass

    def forever() -> None:
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)

    async def no_data() -> Any:
        return Handle()

    answer, _ = await run(Team([Member(forever, timeout=0.5), Member(refuses, timeout=0.3), die, no_data, quick]))
    errors = [r["error"] or "" for r in answer]
    assert [r["is_success"] for r in answer] == [False, False, False, False, True]
    assert "timed out after 0.5 s" in errors[0]
    assert "timed out after 0.3 s" in errors[1]
    assert "panel[2]" in errors[2]
    assert "died" in errors[2]
    assert "panel[3]" in errors[3]
    assert "Handle" in errors[3]


async def test_a_team_s_limit_without_a_winner_says_how_each_member_stood():
    def bad() -> None:
        raise ValueError("no")

    with pytest.raises(StepFailed, match="timed out") as caught:
        await run(Team([bad, refuses, ignores], strategy=RACE, timeout=1.0))
    cause = caught.value.__cause__
    assert isinstance(cause, TeamTimedOut)
    assert isinstance(cause, RuntimeError)
    assert [r.error for r in cause.results] == ["ValueError: no", "Timed out after 1 s", "Timed out after 1 s"]
    assert all(r.stopped_after is not None for r in cause.results)


async def test_thirty_races_of_one_team_at_once_stay_separate():
    async def late(given: int) -> int:
        await asyncio.sleep(30)
        return -given

    async def soon(given: int) -> int:
        await asyncio.sleep(0.01 * (given % 5))
        return given

    team = Team([late, soon], strategy=RACE)
    Engine(str(Path.cwd() / "runs"))
    answers = await asyncio.gather(*(team.run(n) for n in range(30)))
    assert [[(r.member_index, r.result) for r in answer] for answer in answers] == [[(1, n)] for n in range(30)]


async def test_a_team_alone_gives_what_its_members_raised_and_when_they_ran():
    class Odd(Exception):
        pass

    def bad(given: int) -> None:
        raise Odd(given)

    def double(given: int) -> int:
        return given * 2

    answer = await Team([bad, double, quick]).run(4)
    assert all(isinstance(r, MemberResult) for r in answer)
    assert [r.result for r in answer] == [None, 8, "quick"]
    assert type(answer[0].exception).__name__ == "Odd"
    with pytest.raises(RuntimeError, match="Odd: 4") as caught:
        _ = answer[0].value
    assert type(caught.value.__cause__).__name__ == "Odd"
    assert answer[2].stopped_after >= 0.04


async def test_members_that_ask_for_resources_get_them_and_hold_none_afterwards():
    import ray

    def assigned() -> dict[str, float]:
        return ray.get_runtime_context().get_assigned_resources()

    async def assigned_too() -> dict[str, float]:
        return assigned()

    team = Team([Member(assigned, num_cpus=2), Member(assigned_too, num_cpus=1), assigned], max_concurrent=1)
    answer, _ = await run(team)
    assert [r["result"].get("CPU") for r in answer] == [2.0, 1.0, None]
    await marks.until(lambda: ray.available_resources()["CPU"] == 4, within=30)


async def test_a_member_that_is_a_workflow_is_stopped_with_all_that_it_runs():
    place = folder()

    def work(ctx: Context) -> None:
        while True:
            marks.leave(place, ctx.step_id)
            time.sleep(0.002)

    async def wait(ctx: Context) -> None:
        while True:
            marks.leave(place, ctx.step_id)
            await asyncio.sleep(0.002)

    async def win() -> str:
        await marks.until(lambda: len(marks.names(place)) == 2, within=60)
        return "won"

    inner = Workflow("inner").add_node("work", work).add_node("wait", wait).set_entry_point("work", "wait")
    answer, events = await run(Team([inner, win], strategy=RACE))
    assert [r["result"] for r in answer] == ["won"]
    stopped = {event.step_id: event.at.timestamp() for event in of_kind(events, "step_stopped")}
    assert len(stopped) == 2
    assert marks.late(place, stopped) == {}


async def test_the_other_strategies_settle_on_ray_as_in_process():
    async def after(given: float) -> float:
        await asyncio.sleep(given)
        return given

    def fail(given: float) -> None:
        raise ValueError(given)

    async def score(value: float) -> float:
        return -value

    for strategy, given, expected in [
        (HEDGE(0.05), [0.0, 30.0, 0.01], [2]),
        (QUORUM(2), [30.0, 0.1, 0.01], [2, 1]),
        (BEST(score), [0.1, 0.05, 0.2], [1]),
    ]:
        members = [fail if seconds == 0.0 else after for seconds in given]
        team = Team(members, strategy=strategy, input_mapper=lambda raw, index: raw[index])
        answer, _ = await run(team, given, session=f"s{strategy.need}{len(expected)}{expected[0]}")
        assert [r["member_index"] for r in answer] == expected
