"""Virtual time jumps over every pause, waits for threads, and makes the same moves each time."""

import asyncio
import threading
import time
from random import Random
from typing import Any

import pytest

from engine.errors import WorkflowError
from engine.testing.clock import EPOCH, VirtualClock, VirtualLoop, apart


def run(main: Any, **options: Any) -> Any:
    return VirtualLoop(**options).run_to_end(main)


def test_the_clock_jumps_to_the_next_timer():
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.sleep(86_400.0 * 400)
        return begun, loop.time()

    real = time.perf_counter()
    assert run(main(), begin=5.0) == (5.0, 5.0 + 86_400.0 * 400)
    assert time.perf_counter() - real < 1.0


def test_timers_go_off_in_their_order():
    async def main() -> list[int]:
        seen: list[int] = []

        async def note(n: int) -> None:
            await asyncio.sleep(n)
            seen.append(n)

        await asyncio.gather(*(note(n) for n in (3, 1, 2)))
        return seen

    assert run(main()) == [1, 2, 3]


def test_a_thread_takes_no_virtual_time():
    async def main() -> tuple[str, float]:
        loop = asyncio.get_running_loop()
        answer = await asyncio.to_thread(lambda: time.sleep(0.02) or "done")
        return answer, loop.time()

    assert run(main()) == ("done", 0.0)


def test_threads_perform_one_at_a_time_and_in_order():
    async def main() -> tuple[list[int], int]:
        seen: list[int] = []
        inside: list[int] = []
        most = 0

        def body(n: int) -> None:
            nonlocal most
            inside.append(n)
            most = max(most, len(inside))
            seen.append(n)
            inside.remove(n)

        await asyncio.gather(*(asyncio.to_thread(body, n) for n in range(5)))
        return seen, most

    assert run(main()) == ([0, 1, 2, 3, 4], 1)


def test_a_thread_that_hangs_loses_against_the_next_timer():
    released = threading.Event()

    async def main() -> str:
        try:
            await asyncio.wait_for(asyncio.to_thread(released.wait), timeout=0.01)
        except TimeoutError:
            return "gave up"
        return "came back"

    assert run(main(), patience=0.02) == "gave up"
    released.set()


def test_a_thread_left_behind_holds_up_nobody():
    released = threading.Event()

    async def main() -> str:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(released.wait), timeout=0.01)
        return await asyncio.to_thread(lambda: "next")

    assert run(main(), patience=0.02) == "next"
    released.set()


def test_an_error_in_a_thread_is_raised_where_it_is_awaited():
    def fail() -> None:
        raise KeyError("missing")

    async def main() -> None:
        await asyncio.to_thread(fail)

    with pytest.raises(KeyError, match="missing"):
        run(main())


def test_an_exit_in_a_thread_becomes_an_error():
    def leave() -> None:
        raise SystemExit(3)

    async def main() -> None:
        await asyncio.to_thread(leave)

    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        run(main())


def test_waiting_for_nothing_is_an_error():
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(WorkflowError, match="something that never comes"):
        run(main(), patience=0.01)


def test_another_thread_may_wake_the_loop():
    async def main() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        threading.Thread(target=lambda: loop.call_soon_threadsafe(answer.set_result, "woken"), daemon=True).start()
        return await answer

    assert run(main()) == "woken"


def test_tasks_that_refuse_to_end_are_dropped():
    ended: list[str] = []

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                ended.append("refused")

    async def main() -> str:
        keep = asyncio.get_running_loop().create_task(stubborn())
        await asyncio.sleep(1)
        return str(keep.done())

    assert run(main()) == "False"
    assert ended == ["refused"]


def test_the_clock_tells_the_loops_time_and_draws_from_its_seed():
    async def main(loop: VirtualLoop) -> tuple[float, float, float]:
        clock = VirtualClock(loop, Random(1))
        await clock.sleep(7.0)
        return clock.now(), clock.monotonic(), clock.chance()

    loop = VirtualLoop()
    assert loop.run_to_end(main(loop)) == (EPOCH + 7.0, 7.0, Random(1).random())


@pytest.mark.anyio
async def test_a_loop_of_ones_own_runs_apart_from_the_running_one():
    async def main() -> str:
        return "inside"

    assert apart(lambda: run(main())) == "inside"
    with pytest.raises(ZeroDivisionError):
        apart(lambda: 1 // 0)
