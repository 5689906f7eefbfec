"""The simulated disk: counted writes that tear, are refused, or are the last of their process; and the log over it."""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from engine.errors import LeaseLost, StoreUnavailable
from engine.ports import Row, RunKey
from engine.testing.clock import VirtualClock, VirtualLoop
from engine.testing.medium import Fate, FaultyMedium, SimulatedLog, committed, make_memory

KEY = RunKey("w", "s", 1)
ROWS = [Row(1, 1.0, "run_started"), Row(2, 2.0, "note", output=b"x" * 100), Row(3, 3.0, "note")]


def run(disk: Any, use: Callable[[SimulatedLog], Awaitable[Any]], fates: dict[int, Fate] | None = None) -> Any:
    """Use the log in a life of its own; None where the process died."""
    loop = VirtualLoop()

    async def main() -> Any:
        crashed = asyncio.Event()
        medium = FaultyMedium(disk, lambda write: (fates or {}).get(write.number, Fate()), on_crash=crashed.set)
        using = loop.create_task(use(SimulatedLog(medium, VirtualClock(loop, Random(0)))))
        dying = loop.create_task(crashed.wait())
        await asyncio.wait({using, dying}, return_when=asyncio.FIRST_COMPLETED)
        return None if medium.dead else await using

    return loop.run_to_end(main())


async def write_all(log: SimulatedLog) -> str:
    claim = await log.claim(KEY)
    for row in ROWS[len(claim.rows) :]:
        await log.append(claim, [row])
    await log.release(claim)
    return "ended"


def test_rows_come_back():
    disk = make_memory("rows")
    assert run(disk, write_all) == "ended"
    assert committed(disk, KEY) == ROWS
    assert committed(disk, KEY, after=2) == ROWS[2:]


@pytest.mark.parametrize("number", range(1, 7))
@pytest.mark.parametrize("when", ["before", "torn", "after"])
def test_what_a_crash_leaves_is_a_whole_beginning(number: int, when: Any):
    disk = make_memory("crash")
    assert run(disk, write_all, {number: Fate(when)}) is None
    landed = max(0, number - 2 - (when != "after"))  # the first two writes are the claim
    if number > 2 or (number, when) == (2, "after"):
        assert committed(disk, KEY) == ROWS[:landed]
    assert run(disk, write_all) == "ended"
    assert committed(disk, KEY) == ROWS


def test_a_refused_write_may_be_repeated():
    async def use(log: SimulatedLog) -> str:
        claim = await log.claim(KEY)
        with pytest.raises(StoreUnavailable, match="full"):
            await log.append(claim, ROWS[:1])
        await log.append(claim, ROWS[:1])
        await log.append(claim, ROWS)
        return "ended"

    disk = make_memory("full")
    assert run(disk, use, {number: Fate(refused=True) for number in range(3, 6)}) == "ended"
    assert committed(disk, KEY) == ROWS


def test_appends_take_effect_in_their_order_and_may_be_awaited_by_many():
    async def use(log: SimulatedLog) -> str:
        claim = await log.claim(KEY)
        first, second = log.append(claim, ROWS[:2]), log.append(claim, ROWS[2:])
        await second
        await first
        await first
        return "ended"

    disk = make_memory("order")
    assert run(disk, use) == "ended"
    assert committed(disk, KEY) == ROWS


def test_a_claim_that_was_overtaken_is_told():
    async def use(log: SimulatedLog) -> str:
        old = await log.claim(KEY)
        await log.append(old, ROWS[:1])
        new = await log.claim(KEY)
        assert list(new.rows) == ROWS[:1]
        with pytest.raises(LeaseLost):
            await log.append(old, ROWS[1:])
        await log.append(new, ROWS[1:])
        return "ended"

    disk = make_memory("overtaken")
    assert run(disk, use) == "ended"
    assert committed(disk, KEY) == ROWS
