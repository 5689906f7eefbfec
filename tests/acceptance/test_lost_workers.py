"""Workers that die in the middle of a pack: what had finished stays, what was running is tried again, what waited is packed anew."""

import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from engine import Context, Engine, Workflow
from engine.errors import StepFailed, WorkerLost
from tests.acceptance import marks

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio, pytest.mark.usefixtures("ray_cluster")]


def flow(name: str, **options) -> Workflow:
    return Workflow(name, executor="ray", storage=str(Path.cwd() / "runs"), **options)


def folder() -> str:
    path = Path.cwd() / "marks"
    path.mkdir(exist_ok=True)
    return str(path)


async def kinds(handle) -> Counter:
    return Counter([(event.kind, event.step_id) async for event in handle.events()])


def committed_twice(found: Counter) -> list[str]:
    return [step for (kind, step), count in found.items() if kind == "step_succeeded" and count > 1]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_step_whose_process_dies_is_tried_again_under_the_same_id(is_async):
    place = folder()

    def body(ctx: Context):
        marks.leave(place, ctx.step_id)
        if ctx.attempt == 1:
            die()
        return ctx.attempt

    async def async_body(ctx: Context):
        return body(ctx)

    again = flow("again").add_node("a", async_body if is_async else body).set_entry_point("a")
    handle = await Engine("runs").start(again, executor="ray", session_id="s")
    assert await handle.wait() == 2
    assert marks.names(place) == {"again.s.1/a/1": 2}
    found = await kinds(handle)
    assert found["step_retrying", "again.s.1/a/1"] == 1
    assert found["step_succeeded", "again.s.1/a/1"] == 1


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_step_that_kills_its_process_each_time_fails_at_the_third(is_async):
    place = folder()

    def body(ctx: Context):
        marks.leave(place, ctx.step_id)
        die()

    async def async_body(ctx: Context):
        body(ctx)

    with pytest.raises(StepFailed, match="worker") as caught:
        await flow("poison").add_node("a", async_body if is_async else body).set_entry_point("a").execute(session_id="s")
    assert isinstance(caught.value.__cause__, WorkerLost)
    assert marks.names(place) == {"poison.s.1/a/1": 3}


async def test_one_item_of_two_thousand_kills_its_process():
    place = folder()

    def body(item, ctx: Context):
        if item == 1234 and ctx.attempt < 3:
            marks.leave(place, "died")
            die()
        return item * 2

    mapped = flow("map").add_map("m", body).set_entry_point("m")
    handle = await Engine("runs").start(mapped, list(range(2000)), executor="ray", session_id="s")
    assert await handle.wait() == [2 * n for n in range(2000)]
    found = await kinds(handle)
    assert not committed_twice(found)
    lost = [step for kind, step in found if kind == "step_retrying"]
    assert "map.s.1/m/1/1234" in lost
    assert len(lost) <= 2, "a step that did not run was blamed for the death of its worker"
    assert 2 <= marks.names(place)["died"] <= 3


async def test_one_item_of_two_thousand_fails_alone_where_errors_are_skipped():
    def body(item):
        if item == 777:
            die()
        return item

    output = await flow("skip").add_map("m", body, on_error="skip").set_entry_point("m").execute(list(range(2000)), session_id="s")
    assert output == [None if n == 777 else n for n in range(2000)]


@pytest.mark.parametrize("strategy", ["always", "async"])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_worker_that_dies_in_the_middle_of_a_chain_repeats_nothing_that_finished(strategy, is_async):
    place = folder()
    chain = flow("chain", checkpoint_strategy=strategy)

    def make(number: int):
        def body(given, ctx: Context):
            marks.leave(place, ctx.step_id)
            ctx.state["sum"] = ctx.state.get("sum", 0) + number
            if number == 13 and ctx.attempt == 1:
                time.sleep(0.1)
                die()
            return (given or 0) + 1

        async def async_body(given, ctx: Context):
            return body(given, ctx)

        return async_body if is_async else body

    for number in range(30):
        chain.add_node(f"n{number}", make(number))
        if number:
            chain.add_edge(f"n{number - 1}", f"n{number}")
    chain.set_entry_point("n0")
    handle = await Engine("runs").start(chain, executor="ray", session_id="s")
    assert await handle.wait() == 30
    assert handle.state == {"sum": sum(range(30))}
    assert marks.repeated(place) == {"chain.s.1/n13/1": 2}
    assert not committed_twice(await kinds(handle))


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_killed_workers_cost_what_they_were_running(is_async):
    place = folder()
    kills, at_once = (3, 40) if is_async else (5, None)

    def body(item, ctx: Context):
        marks.leave(place, ctx.step_id)
        time.sleep(0.02)
        return item

    async def async_body(item, ctx: Context):
        marks.leave(place, ctx.step_id)
        await asyncio.sleep(0.01 * (item % 40))
        return item

    mapped = flow("kills").add_map("m", async_body if is_async else body, max_concurrency=at_once).set_entry_point("m")
    engine = Engine("runs")
    handle = await engine.start(mapped, list(range(300)), executor="ray", session_id="s")
    committed: dict[str, int] = {}
    for kill in range(kills):
        await marks.until(lambda kill=kill: len(marks.names(place)) > 30 * (kill + 1))
        done = [event.step_id async for event in engine.events(handle.run_id) if event.kind == "step_succeeded"]
        committed |= {step: count for step, count in marks.names(place).items() if step in done}
        _, pid = marks.latest(place)
        os.kill(pid, signal.SIGKILL)
    assert await handle.wait() == list(range(300))
    assert not committed_twice(await kinds(handle))
    assert committed
    final = marks.names(place)
    assert committed == {step: final[step] for step in committed}, "what was committed before a worker died was performed again"
    # A sync worker had one body running and a few that it had not yet told of; an async one may have had all that run at once.
    assert marks.again(place) <= kills * (at_once or 3)
    assert max(marks.names(place).values()) <= 3
