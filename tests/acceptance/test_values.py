"""Values on Ray.

Big ones travel as objects of the cluster, what cannot be stored is named, and what a body prints goes nowhere near the run.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine import Context, Engine, Next, Workflow
from engine.errors import NotStorable, StepFailed

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio, pytest.mark.usefixtures("ray_cluster")]

BIG = {
    "text": "x" * 300_000,
    "bytes": b"x" * 300_000,
    "list": list(range(60_000)),
    "dict": {str(n): [n, {"deep": "y" * 20}] for n in range(4_000)},
    "array": np.arange(60_000, dtype=np.float64),
    "table": pa.table({"n": list(range(40_000))}),
}


def flow(name: str, **options) -> Workflow:
    return Workflow(name, executor="ray", storage=str(Path.cwd() / "runs"), **options)


def same(a, b) -> bool:
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


@pytest.mark.parametrize("kind", BIG)
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_big_value_comes_through_unchanged(kind, is_async):
    """As the run's input, an output, state, history, an item of a map, the input of a jump, and the run's output."""

    def make(given, ctx: Context):
        ctx.state["kept"] = given
        return given

    def items(given, ctx: Context):
        return [given, ctx.state["kept"], ctx.history["make"], ctx.input]

    def item(given, ctx: Context):
        return given

    def jump(given, ctx: Context):
        return Next("last", given[2])

    def last(given, ctx: Context):
        checks = [type(given) is type(ctx.state["kept"]), type(ctx.history["item"][1]) is type(given)]
        return {"given": given, "checks": checks}

    def bound(function):
        async def async_body(given, ctx: Context):
            return function(given, ctx)

        return async_body if is_async else function

    big = flow("big").add_node("make", bound(make)).add_node("items", bound(items)).add_map("item", bound(item))
    big.add_node("jump", bound(jump)).add_node("last", bound(last)).set_entry_point("make")
    big.add_edge("make", "items").add_edge("items", "item").add_edge("item", "jump").add_edge("jump", "last")
    handle = await Engine("runs", executor="ray").start(big, BIG[kind], session_id="s")
    output = await handle.wait()
    assert same(output["given"], BIG[kind])
    assert output["checks"] == [True, True]
    assert same(handle.state["kept"], BIG[kind])
    assert same((await Workflow.resume(big, "s"))["given"], BIG[kind])


async def test_an_array_of_50_mb_is_read_without_a_copy_and_does_not_stay_in_the_coordinator():
    def memory() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6

    def make():
        return np.ones(50_000_000 // 8)

    def look(given: object, ctx: Context):
        before = memory()
        array = ctx.history["make"]
        total = float(array.sum())
        return [array.flags.owndata, array.flags.writeable, total, memory() - before < 90]

    chain = Workflow("array", executor="ray").add_node("make", make).set_entry_point("make")
    for n in range(3):
        chain.add_node(f"look{n}", look, num_cpus=1).add_edge(f"look{n - 1}" if n else "make", f"look{n}")
    handle = await Engine(None, executor="ray").start(chain)
    assert await handle.wait() == [False, False, 6_250_000.0, True]
    assert handle.history["look0"] == [False, False, 6_250_000.0, True]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_a_table_of_50_mb_is_read_without_a_copy(is_async):
    def make():
        return pa.table({"a": np.arange(3_125_000, dtype=np.int64), "b": np.ones(3_125_000)})

    def look(given: object, ctx: Context):
        before = pa.total_allocated_bytes()
        table = ctx.history["make"]
        first, last = table["a"][0].as_py(), table["a"][-1].as_py()
        return [table.nbytes, table.num_rows, first, last, pa.total_allocated_bytes() - before < 1_000_000]

    async def async_look(given: object, ctx: Context):
        return look(given, ctx)

    chain = Workflow("table", executor="ray").add_node("make", make).set_entry_point("make")
    for n in range(2):  # apart from each other and from what made the table
        body = async_look if is_async else look
        chain.add_node(f"look{n}", body, num_cpus=1).add_edge(f"look{n - 1}" if n else "make", f"look{n}")
    handle = await Engine(None, executor="ray").start(chain)
    assert await handle.wait() == handle.history["look0"] == [50_000_000, 3_125_000, 0, 3_124_999, True]


async def test_a_reducer_that_gives_no_data_is_named_with_its_key():
    def write(x, ctx: Context):
        ctx.state["kept"] = x

    def broken(base, writes):
        return object()

    two = flow("reduced", reducers={"kept": broken}).add_node("a", write).add_node("b", write).set_entry_point("a", "b")
    with pytest.raises(Exception, match="broken of state key 'kept'") as caught:
        await two.execute(1, session_id="s")
    assert "reducer a" not in str(caught.value)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_what_cannot_be_stored_is_named_with_its_node_and_key(is_async):
    def output():
        return object()

    def state(ctx: Context):
        ctx.state["handle"] = object()

    async def async_output():
        return object()

    async def async_state(ctx: Context):
        ctx.state["handle"] = object()

    for body, name in ((async_output if is_async else output, "output"), (async_state if is_async else state, "handle")):
        with pytest.raises(StepFailed, match=f"{name}.*culprit|culprit.*{name}") as caught:
            await flow(name).add_node("culprit", body).set_entry_point("culprit").execute(session_id="s")
        assert isinstance(caught.value.__cause__, NotStorable)


async def test_an_item_that_cannot_be_stored_fails_alone():
    def item(n):
        return {"odd": object()} if n == 13 else n

    output = await flow("items").add_map("m", item, on_error="skip").set_entry_point("m").execute(list(range(50)), session_id="s")
    assert output == [None if n == 13 else n for n in range(50)]


async def test_a_body_may_print_100_mb():
    def talk():
        for _ in range(100):
            sys.stdout.write("x" * 999_999 + "\n")
        return "said"

    assert await flow("talk").add_node("a", talk).set_entry_point("a").execute(session_id="s") == "said"


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError])
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
async def test_whatever_a_body_raises_fails_its_step(kind, is_async):
    def body():
        raise kind("of its own")

    async def async_body():
        raise kind("of its own")

    with pytest.raises(StepFailed, match=r"of its own"):
        await flow("raises").add_node("a", async_body if is_async else body, timeout=20).set_entry_point("a").execute(session_id="s")
