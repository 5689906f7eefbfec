"""One attempt of one step, performed here: what it costs the event loop that others share."""

import asyncio
from typing import Any

import pytest

from engine import Workflow
from engine.checkpoint.codec import decode, private
from engine.core.context import Scene
from engine.core.history import Window
from engine.runtime.step import Call, Moment, attempt


@pytest.mark.anyio
async def test_a_large_output_is_encoded_in_slices_between_which_others_have_their_turn():
    large = list(range(300_000))
    turns = [0, 0]

    async def body() -> Any:
        turns[1] = turns[0]
        return large

    async def others() -> None:
        while True:
            turns[0] += 1
            await asyncio.sleep(0)

    plan = Workflow("one").add_node("a", body).set_entry_point("a").compiled()
    scene = Scene(run_id="r", session_id=None, input=None, private=private, rows=list, services=None)
    call = Call(plan.nodes[0], 0, 1, None, 1, None, Window.of({}, None), "r/a/1")
    counting = asyncio.get_running_loop().create_task(others())
    outcome = await attempt(call, Moment(scene, plan, {}, 0, True), lambda _: asyncio.sleep(0))
    counting.cancel()
    assert outcome.error is None
    assert outcome.output_data is not None
    assert len(outcome.output_data) > 1_000_000
    assert decode(outcome.output_data) == large
    assert turns[0] - turns[1] >= 4
