"""When rows are handed to a log, and who waits for them: a log that notes it, and a loop in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from random import Random
from typing import Any, cast

import pytest

from engine.errors import LeaseLost
from engine.ports import Claim, Log, Row
from engine.runtime.ledger import COMMITS, LAG, ROWS, Ledger
from engine.testing.clock import VirtualClock, VirtualLoop


class Answer:
    """Becomes known after a while; notes whether anybody had to wait."""

    def __init__(self, log: "NotingLog") -> None:
        self.log = log
        self.future = log.loop.create_future()

    def done(self) -> bool:
        return self.future.done()

    def __await__(self) -> Generator[Any, None, None]:
        self.log.waits += not self.future.done()
        return self.future.__await__()


class NotingLog:
    """Makes every append durable after `delay` seconds, or fails it."""

    def __init__(self, *, delay: float = 0.001, failure: Exception | None = None) -> None:
        self.loop = cast(VirtualLoop, asyncio.get_running_loop())
        self.delay, self.failure = delay, failure
        self.appends: list[tuple[float, int]] = []
        self.waits = 0

    def append(self, claim: Claim, rows: Sequence[Row]) -> Answer:
        self.appends.append((round(self.loop.time(), 3), len(rows)))
        answer = Answer(self)
        self.loop.call_later(self.delay, self._settle, answer.future)
        return answer

    def _settle(self, future: "asyncio.Future[None]") -> None:
        if self.failure is not None:
            future.set_exception(self.failure)
        else:
            future.set_result(None)

    async def release(self, claim: Claim) -> None: ...


def begin(log: NotingLog) -> Ledger:
    made = Ledger("w.s.1", cast(Log, log), cast(Claim, object()), strategy="async")
    made.clock, made.loop = VirtualClock(log.loop, Random(1)), log.loop
    return made


def on_virtual_time(main: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        await main()

    VirtualLoop(begin=100.0).run_to_end(run())


async def walk(ledger: Ledger, pauses: Sequence[float]) -> None:
    """End a commit of two rows after each pause."""
    for pause in pauses:
        await asyncio.sleep(pause)
        ledger.tell("step_succeeded")
        ledger.tell("step_started")
        await ledger.commit()


@pytest.mark.parametrize(
    ("pace", "many", "appends"),
    [
        (0.01, 9, [(100.03, 8), (100.07, 8)]),
        (0.015, 6, [(100.03, 6), (100.075, 6)]),
        (0.03, 4, [(100.03, 4), (100.09, 4)]),
    ],
)
def test_async_hands_over_at_the_commit_after_which_the_next_would_come_too_late(pace: float, many: int, appends: list[Any]):
    async def main() -> None:
        log = NotingLog()
        await walk(begin(log), [0.0, *[pace] * (many - 1)])
        assert log.appends == appends

    on_virtual_time(main)


def test_async_wakes_nobody_for_an_append_that_a_later_commit_finds_durable():
    async def main() -> None:
        log = NotingLog()
        ledger = begin(log)
        await walk(ledger, [0.01] * 21)
        assert len(log.appends) == 5
        assert log.waits == 0
        assert ledger.durable >= 32
        ledger.tell("run_completed")
        await ledger.checkpoint()
        assert ledger.durable == ledger.seq

    on_virtual_time(main)


def test_async_hands_over_at_once_before_a_body_that_will_take_longer():
    async def main() -> None:
        log = NotingLog()
        await walk(begin(log), [0.1, 0.1, 0.1])
        assert [at for at, _ in log.appends] == [100.14, 100.2, 100.3], "the first pause is not known before it is over"

    on_virtual_time(main)


def test_async_is_never_further_behind_than_its_time_whatever_the_pace():
    async def main() -> None:
        log = NotingLog()
        ledger = begin(log)
        told: list[float] = []
        for pause in [0.001] * 7 + [0.02, 0.5, 0.003, 0.039, 0.041, 0.0, 0.2]:
            await asyncio.sleep(pause)
            ledger.tell("step_succeeded")
            told.append(log.loop.time())
            await ledger.commit()
        await asyncio.sleep(1.0)
        handed = [at for at, many in log.appends for _ in range(many)]
        assert len(handed) == len(told)
        assert all(at - since <= LAG + 0.001 for since, at in zip(told, handed, strict=True))
        assert ledger.durable == ledger.seq

    on_virtual_time(main)


def test_async_waits_for_the_append_before_the_last_when_too_many_commits_wait():
    async def main() -> None:
        log = NotingLog(delay=0.5)
        ledger = begin(log)
        for _ in range(2 * COMMITS):
            ledger.tell("step_succeeded")
            await ledger.commit()
        assert log.appends == [(100.0, COMMITS), (100.5, COMMITS)]

    on_virtual_time(main)


def test_async_hands_over_many_rows_at_their_first_commit_and_never_waits_for_them():
    async def main() -> None:
        log = NotingLog(delay=0.001)
        ledger = begin(log)
        for _ in range(3):
            for _ in range(ROWS):
                ledger.tell("step_succeeded")
            await ledger.commit()
        assert (log.appends, log.waits) == ([(100.0, ROWS)], 0)
        await asyncio.sleep(0.01)
        await ledger.checkpoint()
        assert sum(many for _, many in log.appends) == 3 * ROWS
        assert ledger.durable == ledger.seq

    on_virtual_time(main)


def test_async_shows_events_as_soon_as_they_are_durable_where_somebody_watches():
    async def main() -> None:
        log = NotingLog()
        ledger = begin(log)
        shown: list[float] = []
        ledger.listeners.append(lambda event: shown.append(round(log.loop.time(), 3)))
        await walk(ledger, [0.01] * 5)
        await asyncio.sleep(0.005)
        assert shown[:8] == [100.041] * 8

    on_virtual_time(main)


def test_async_stops_at_the_next_commit_after_the_lease_is_lost():
    async def main() -> None:
        log = NotingLog(failure=LeaseLost("another owner drives the run"))
        ledger = begin(log)
        with pytest.raises(LeaseLost):
            await walk(ledger, [0.01] * 6)
        assert len(log.appends) == 1
        assert log.loop.time() == pytest.approx(100.05)

    on_virtual_time(main)


def test_async_learns_in_a_long_body_that_the_lease_is_lost():
    async def main() -> None:
        log = NotingLog(failure=LeaseLost("another owner drives the run"))
        ledger = begin(log)
        await walk(ledger, [0.01] * 4)
        await asyncio.sleep(1.0)
        ledger.tell("step_succeeded")
        with pytest.raises(LeaseLost):
            await ledger.commit()
        assert len(log.appends) == 1

    on_virtual_time(main)
