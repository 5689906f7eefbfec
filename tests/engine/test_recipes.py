"""Remote and distributed parallel steps of other systems, as recipes over Team, retry and limits; docs/submitting.md shows them."""

import asyncio
from typing import Any

import pytest

from engine import Context, Engine, MemberResult, RunHandle, Team, Workflow
from engine.errors import StepFailed

pytestmark = pytest.mark.anyio

KEYS = ("a", "b", "c")


class Bodies:
    """Three bodies that count their starts, and how many of them run at once."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.most = self.now = 0

    def body(self, number: int) -> Any:
        async def perform(given: Any) -> str:
            self.started.append(number)
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1
            return f"{number}: {given}"

        return perform


def flow_of(bodies: Bodies, inputs: Any, workers: int = 0) -> Workflow:
    """One input to each body, outputs under named keys, the first one's as the result."""

    def prepare(ctx: Context) -> list[Any]:
        made = inputs(ctx.state)
        if len(made) != len(KEYS):
            raise ValueError(f"{len(made)} inputs for {len(KEYS)} bodies")
        return made

    def keep(results: list[MemberResult], ctx: Context) -> Any:
        ctx.state.update({key: result.value for key, result in zip(KEYS, results, strict=True)})
        return results[0].value

    team = Team([bodies.body(n) for n in range(3)], input_mapper=lambda made, index: made[index], max_concurrent=workers)
    flow = Workflow("parallel").add_node("prepare", prepare).add_node("bodies", team).add_node("keep", keep)
    return flow.add_edge("prepare", "bodies").add_edge("bodies", "keep").set_entry_point("prepare")


async def ended(flow: Workflow) -> RunHandle:
    handle = await Engine(None).start(flow)
    await handle.wait()
    return handle


async def test_each_body_gets_its_own_input_and_its_output_goes_under_its_key():
    handle = await ended(flow_of(Bodies(), lambda state: ["x", "y", "z"]))
    assert handle.state == {"a": "0: x", "b": "1: y", "c": "2: z"}
    assert handle.output == "0: x"


@pytest.mark.parametrize("given", [[], ["x"], ["x", "y", "z", "w"]])
async def test_a_wrong_count_is_an_error_before_any_body_starts(given: list[str]):
    bodies = Bodies()
    with pytest.raises(StepFailed, match=f"{len(given)} inputs for 3 bodies"):
        await flow_of(bodies, lambda state: given).execute()
    assert bodies.started == []


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (2, 2), (0, 3)])
async def test_no_more_bodies_than_workers_run_at_once(workers: int, most: int):
    bodies = Bodies()
    await flow_of(bodies, lambda state: ["x", "y", "z"], workers).execute()
    assert bodies.started == [0, 1, 2]
    assert bodies.most == most
