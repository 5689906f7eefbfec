"""Runs on Ray that are recorded in a database: their coordinator opens it by its URL."""

import pytest

from engine import Context, Engine, Workflow
from engine.store import open_log

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio]


def make(storage: str) -> Workflow:
    async def add(given: int, ctx: Context) -> int:
        ctx.state["added"] = ctx.state.get("added", 0) + 1
        return (given or 0) + 1

    flow = Workflow("databases", storage=storage)
    for i in range(5):
        flow.add_node(f"n{i}", add)
        if i:
            flow.add_edge(f"n{i - 1}", f"n{i}")
    flow.add_map("squares", lambda n: n * n)
    flow.add_node("spread", lambda n: list(range(n))).add_edge("n4", "spread").add_edge("spread", "squares")
    return flow.set_entry_point("n0")


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
async def test_a_run_on_ray_is_recorded_in_a_database(kind: str, request: pytest.FixtureRequest, ray_cluster: str) -> None:
    url = request.getfixturevalue(kind)
    flow = make(url)
    assert await flow.execute(1, session_id="s") == [0, 1, 4, 9, 16, 25]
    engine = Engine(url)
    (run,) = await engine.runs()
    assert (run.status, run.run_id, run.owner) == ("completed", "databases.s.1", None)
    assert await engine.state(run.run_id) == {"added": 5}
    kinds = [event.kind async for event in engine.events(run.run_id, follow=True)]
    assert kinds[-1] == "run_completed"
    assert kinds.count("step_succeeded") == 13
    assert await flow.execute(1, session_id="s") == [0, 1, 4, 9, 16, 25]
    assert len(await open_log(url).read(run.key)) == len(kinds), "the second call found the result"
