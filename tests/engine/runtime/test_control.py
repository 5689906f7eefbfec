"""Requests to a run: which goes before which, and who is woken."""

import asyncio

import pytest

from engine.runtime.control import Control, Halt

pytestmark = pytest.mark.anyio


async def test_a_greater_request_goes_before_a_lesser():
    control = Control()
    for asked, standing in [(Halt.PAUSE, Halt.PAUSE), (Halt.CANCEL, Halt.CANCEL), (Halt.TIMEOUT, Halt.CANCEL), (Halt.DRAIN, Halt.CANCEL)]:
        control.request(asked)
        assert control.halt is standing


async def test_everybody_who_waits_is_woken_by_a_new_request_alone():
    control = Control()
    control.request(Halt.DRAIN)
    waiters = [control.waiter(), control.waiter()]
    control.request(Halt.PAUSE)
    await asyncio.sleep(0)
    assert [w.done() for w in waiters] == [False, False]
    control.request(Halt.CANCEL)
    assert [w.done() for w in waiters] == [True, True]


async def test_a_waiter_that_gave_up_is_forgotten():
    control = Control()
    waiter = control.waiter()
    waiter.cancel()
    await asyncio.sleep(0)
    assert control._waiters == set()
    control.wake()


@pytest.mark.parametrize(("halt", "hard"), [(Halt.PAUSE, False), (Halt.DRAIN, False), (Halt.TIMEOUT, True), (Halt.CANCEL, True)])
def test_a_limit_and_a_cancel_stop_running_steps_at_once(halt: Halt, hard: bool):
    assert halt.hard is hard
