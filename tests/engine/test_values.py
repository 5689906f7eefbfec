"""Values: data, private to whoever reads them, storable or refused by name, the same in a live run and a resumed one."""

import dataclasses
import datetime as dt
import decimal
import enum
import itertools
import logging
import pathlib
import re
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pydantic
import pytest

from engine import Context, Engine, Next, Retry, Workflow
from engine.errors import DefinitionError, NotStorable, StepFailed

pytestmark = pytest.mark.anyio


class Order(pydantic.BaseModel):
    item: str
    parts: list["Order"] = []


@dataclasses.dataclass
class Place:
    city: str


@dataclasses.dataclass(frozen=True)
class Spot:
    x: int


class Colour(enum.Enum):
    RED = "red"


def chain(*bodies: Any, **options: Any) -> Workflow:
    flow = Workflow("chain", **options)
    names = [f"n{i}" for i in range(len(bodies))]
    for name, body in zip(names, bodies, strict=True):
        flow.add_node(name, body)
    for source, target in itertools.pairwise(names):
        flow.add_edge(source, target)
    return flow.set_entry_point("n0")


async def test_models_and_dataclasses_enter_as_their_data_form_in_lists_too():
    flow = chain(lambda: [Order(item="tea", parts=[Order(item="leaf")]), {"at": Place("Rome")}], lambda x: x)
    assert await flow.execute() == [{"item": "tea", "parts": [{"item": "leaf", "parts": []}]}, {"at": {"city": "Rome"}}]


async def test_models_in_state_and_in_jumps_enter_as_their_data_form():
    def first(ctx: Context) -> Any:
        ctx.state["order"] = Order(item="tea")
        return Next("n1", input=Place("Rome"), update_state={"place": Place("Bonn")})

    flow = chain(first, lambda x, ctx: [x, ctx.state["order"], ctx.state["place"]])
    assert await flow.execute() == [{"city": "Rome"}, {"item": "tea", "parts": []}, {"city": "Bonn"}]


async def test_the_runs_input_enters_as_its_data_form():
    assert await chain(lambda x, ctx: [x, ctx.input]).execute(Place("Rome")) == [{"city": "Rome"}, {"city": "Rome"}]


async def test_enums_enter_as_their_value():
    assert await chain(lambda: [Colour.RED, {Colour.RED: 1}]).execute() == ["red", {"red": 1}]


@pytest.mark.parametrize("storage", [None, "memory://keys"])
async def test_state_keys_enter_as_their_data_form_too(storage: str | None):
    def first(ctx: Context) -> Any:
        ctx.state[Colour.RED] = [1]
        return Next("n1", update_state={(1, Colour.RED): 2})

    def second(ctx: Context) -> Any:
        assert Colour.RED not in ctx.state
        return [(type(key).__name__, value) for key, value in ctx.state.items()] + list(ctx.state)

    assert await chain(first, second, storage=storage).execute() == [("str", [1]), ("tuple", 2), "red", (1, "red")]


async def test_reducers_and_maps_find_a_state_key_by_its_data_form():
    def write(ctx: Context) -> None:
        ctx.state[Colour.RED] = ["more"]

    flow = Workflow(reducers={Colour.RED: "extend"}).add_node("a", write).add_node("b", lambda ctx: ctx.state.update(red=["and more"]))
    flow.add_map("m", lambda x: x, over=Colour.RED).add_edge("a", "m").add_edge("b", "m").set_entry_point("a", "b")  # type: ignore[arg-type]
    assert await flow.execute() == ["more", "and more"]


@pytest.mark.parametrize("storage", [None, "memory://keys"])
async def test_state_keys_that_are_the_same_as_data_or_cannot_be_keys_as_data_are_refused(storage: str | None):
    def both(ctx: Context) -> None:
        ctx.state.update({Colour.RED: 1, "red": 2})

    with pytest.raises(StepFailed, match=r"'n0'.*state key 'red' of 'n0' and another are the same as data"):
        await chain(both, storage=storage).execute()
    with pytest.raises(StepFailed, match=r"'n0'.*state key Spot\(x=1\) of 'n0' is of type .*Spot and cannot be stored: its data form"):
        await chain(lambda ctx: ctx.state.update({Spot(1): 1}), storage=storage).execute()
    with pytest.raises(DefinitionError, match=r"a key of reducers must be a state key, not Spot\(x=1\)"):
        Workflow(reducers={Spot(1): "add"})


STORABLE = [
    {"a": [1, 2.5, None, True, "text"]},
    10**40,
    b"bytes",
    bytearray(b"more"),
    (1, (2, 3)),
    {1, 2},
    frozenset({"a"}),
    {(1, 2): "tuple key", 3: "int key", None: "none key"},
    dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
    dt.date(2020, 1, 2),
    dt.timedelta(seconds=3),
    decimal.Decimal("1.10"),
    uuid.UUID(int=5),
    pathlib.Path("a/b"),
    np.float32(1.5),
]


@pytest.mark.parametrize("value", STORABLE, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("storage", [None, "memory://values"], ids=["unrecorded", "recorded"])
async def test_storable_values_pass_unchanged_with_their_type(value: Any, storage: str | None):
    seen: list[Any] = []

    def keep(x: Any, ctx: Context) -> Any:
        seen.extend([x, ctx.state["k"]])
        return x

    flow = chain(lambda ctx: ctx.state.update(k=value) or value, keep, storage=storage)
    seen.append(await flow.execute())
    assert seen == [value] * 3
    assert {type(x) for x in seen} == {type(value)}


@pytest.mark.slow
async def test_arrays_and_tables_are_shared_without_a_copy_and_read_only():
    seen: list[Any] = []

    def refuse(x: Any, ctx: Context) -> None:
        seen.append((x["table"], ctx.state["array"]))
        with pytest.raises(ValueError, match="read-only"):
            x["array"][0] = 5
        with pytest.raises(ValueError, match="read-only"):
            ctx.state["array"][0] = 5

    table = pa.table({"x": [1, 2]})
    array = np.zeros(4)
    flow = chain(
        lambda ctx: ctx.state.update(array=array) or {"array": array, "table": table}, refuse, lambda ctx: refuse(ctx.history["n0"], ctx)
    )
    await flow.execute()
    assert seen[0][0] is table
    assert seen[0][1] is seen[1][1]
    array[0] = 1  # the author's own array stays writeable, and changing it later reaches nobody
    assert seen[0][1][0] == 0


@pytest.mark.slow
async def test_what_offers_an_arrow_stream_comes_back_as_a_table_and_a_log_line_says_so(caplog: pytest.LogCaptureFixture):
    import pandas as pd

    with caplog.at_level(logging.INFO):
        answer = await chain(lambda: pd.DataFrame({"x": [1, 2]}), lambda x: x).execute()
    assert isinstance(answer, pa.Table)
    assert answer.column("x").to_pylist() == [1, 2]
    assert "Kept as Arrow data, and comes back as such" in caplog.messages


@pytest.mark.parametrize("strategy", ["always", "async", "final", "manual"])
async def test_an_output_that_cannot_be_stored_is_refused_at_the_step_that_wrote_it(strategy: str):
    flow = chain(lambda: {"a": [1, object()]}, lambda x: x, storage="memory://", checkpoint_strategy=strategy)
    with pytest.raises(StepFailed, match=r"step 'n0'.*\['a'\]\[1\].*object") as caught:
        await flow.execute()
    assert isinstance(caught.value.__cause__, NotStorable)
    assert isinstance(caught.value.__cause__, TypeError)


async def test_a_state_value_that_cannot_be_stored_is_refused_naming_its_key():
    flow = chain(lambda ctx: ctx.state.update(lock=object()), lambda: 1, storage="memory://")
    with pytest.raises(StepFailed, match=r"step 'n0'.*'lock'.*object"):
        await flow.execute()


async def test_a_jumps_input_that_cannot_be_stored_is_refused():
    with pytest.raises(StepFailed, match=r"step 'n0'.*object"):
        await chain(lambda: Next("n1", input=object()), lambda x: x, storage="memory://").execute()


async def test_an_input_that_cannot_be_stored_is_refused_before_anything_is_recorded():
    with pytest.raises(NotStorable, match="the run's input"):
        await chain(lambda: 1, storage="memory://refused-input").execute(object(), session_id="s")
    assert await Engine("memory://refused-input").runs() == []


async def test_a_value_that_contains_itself_fails_its_step():
    def body() -> Any:
        loop: list[Any] = []
        loop.append(loop)
        return loop

    with pytest.raises(StepFailed, match="'n0'"):
        await chain(body).execute()


def held(value: Any) -> Any:
    return {"deep": [{"in": value}]}


def ring() -> Any:
    found: dict[str, Any] = {}
    found["in"] = [(found,)]
    return found


def in_state(ctx: Context, value: Any) -> None:
    ctx.state["k"] = value


def in_a_list(ctx: Context, value: Any) -> None:
    ctx.state["list"].append(value)


GIVEN: dict[str, tuple[Any, str]] = {
    "output": (lambda ctx, value: value, "output{} of 'n1'"),
    "state": (in_state, "state['k']{} of 'n1'"),
    "list that grew": (in_a_list, "what was added to state['list'][0]{} of 'n1'"),
    "update_state": (lambda ctx, value: Next("n2", update_state={"k": value}), "state['k']{} of 'n1'"),
    "jump's input": (lambda ctx, value: Next("n2", input=value), "the jump's input{} of 'n1'"),
    "receipt": (lambda ctx, value: ctx.once("key", lambda: value), "once('key'){} of 'n1'"),
}
LOST: dict[str, tuple[Any, str]] = {
    "loop": (ring, "['deep'][0]['in'] is of type dict and cannot be stored: it contains itself"),
    "keys": (lambda: {Colour.RED: 1, "red": 2}, "['deep'][0]['in'] is of type dict and cannot be stored: two of its keys are the same"),
    "set": (lambda: {Spot(1)}, "['deep'][0]['in'] is of type set and cannot be stored: the data form (a dict) of one of its elements"),
    "object": (object, "['deep'][0]['in'] is of type object and cannot be stored: store plain data"),
}


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("given", GIVEN)
async def test_what_cannot_be_stored_is_named_with_its_place_and_type_however_deep_it_lies(given: str, lost: str):
    body, place = GIVEN[given]
    make, told = LOST[lost]
    flow = chain(lambda ctx: ctx.state.update(list=[0]), lambda ctx: body(ctx, held(make())), lambda: 1, storage="memory://")
    told = place.format(told.partition(" ")[0]) + " " + told.partition(" ")[2]
    with pytest.raises(StepFailed, match=re.escape(told)):
        await flow.execute()


async def test_an_input_that_cannot_be_stored_is_named_too():
    told = "the run's input['deep'][0]['in'] is of type dict and cannot be stored: it contains itself"
    for storage in (None, "memory://"):
        with pytest.raises(NotStorable, match=re.escape(told)):
            await chain(lambda x: x, storage=storage).execute(held(ring()))


async def test_a_loop_of_models_is_named_by_its_type():
    place, order = Place("Rome"), Order(item="tea")
    place.city = [place]  # type: ignore[assignment]
    order.parts = [order]
    for loop, why in ((place, "it contains itself"), (order, "its data form cannot be made: Circular reference")):
        with pytest.raises(StepFailed, match=rf"output of 'n0' is of type .*{type(loop).__name__} and cannot be stored: {why}"):
            await chain(lambda loop=loop: loop).execute()


@pytest.mark.parametrize("key", [object(), (1, print), Spot(1)])
async def test_a_state_key_that_cannot_be_stored_is_named(key: Any):
    with pytest.raises(StepFailed, match=rf"step 'n0'.*state key {re.escape(repr(key))}"):
        await chain(lambda ctx: ctx.state.update({"fine": 1, key: 1}), storage="memory://").execute()


async def test_objects_pass_unrecorded_runs_in_process():
    """In-process nothing is encoded without storage, so an object that is no data may still be handed on."""
    thing = object()
    assert await chain(lambda: thing, lambda x: x is thing).execute() is True


# Isolation.


@pytest.mark.parametrize("storage", [None, "memory://"])
async def test_a_body_that_edits_its_input_edits_a_private_copy(storage: str | None):
    def spoil(x: list[Any]) -> str:
        x[0]["k"].append("spoilt")
        x.clear()
        return "spoilt"

    flow = Workflow("w", storage=storage).add_node("a", lambda: [{"k": [1]}]).add_node("b", spoil).add_node("c", lambda x: x)
    flow.add_node("d", lambda ctx: ctx.history["a"]).add_edge("a", "b").add_edge("a", "c").add_edge("b", "d").add_edge("c", "d")
    assert await flow.set_entry_point("a").execute() == [{"k": [1]}]


async def test_a_retry_gets_its_input_as_it_was():
    def body(x: list[int], ctx: Context) -> Any:
        x.append(9)
        if ctx.attempt == 1:
            raise ValueError
        return x

    flow = Workflow().add_node("a", body, retry=Retry(2, delay=0)).set_entry_point("a")
    assert await flow.execute([1]) == [1, 9]


async def test_an_object_edited_after_it_was_returned_is_edited_by_nobody_else():
    kept: list[Any] = [1]

    def second(x: Any) -> Any:
        kept.append(2)
        return x

    assert await chain(lambda: kept, second, lambda x, ctx: [x, ctx.history["n0"]]).execute() == [[1], [1]]


async def test_a_value_put_into_state_and_edited_after_its_step_stays_as_it_was():
    kept: list[Any] = [1]

    def first(ctx: Context) -> None:
        ctx.state["k"] = kept

    def second(ctx: Context) -> Any:
        kept.append(2)
        return ctx.state["k"]

    assert await chain(first, second).execute() == [1]


async def test_a_jumps_input_edited_later_stays_as_it_was():
    kept: list[Any] = [1]

    def second(x: Any) -> Any:
        kept.append(2)
        return [x, kept]

    assert await chain(lambda: Next("n1", input=kept), second).execute() == [[1], [1, 2]]


async def test_containers_read_from_history_input_and_metadata_are_private():
    def spoil(ctx: Context) -> None:
        ctx.history["n0"].append("spoilt")
        ctx.history["last_output"].append("spoilt")
        ctx.get_last_output().append("spoilt")
        ctx.input.append("spoilt")
        ctx.metadata["session_id"] = "spoilt"

    def look(ctx: Context) -> Any:
        return [ctx.history["n0"], ctx.input, ctx.metadata["session_id"]]

    assert await chain(lambda: [1], spoil, look).execute([0]) == [[1], [0], None]


async def test_a_callers_input_edited_while_the_run_goes_on_reaches_nobody():
    given = {"k": [1]}

    def first() -> None:
        given["k"].append(2)

    assert await chain(first, lambda ctx: ctx.input).execute(given) == {"k": [1]}


async def test_what_the_caller_does_to_output_state_or_history_reaches_nobody():
    handle = await Engine(None).start(chain(lambda ctx: ctx.state.update(k=[1]) or [1]), None)
    (await handle.wait()).append(2)
    handle.state["k"].append(2)
    handle.history["n0"].append(2)
    assert (handle.output, handle.state, handle.history) == ([1], {"k": [1]}, {"n0": [1]})


async def test_a_body_may_return_its_state_or_its_history():
    flow = chain(lambda ctx: ctx.state.update(k=[1]), lambda ctx: ctx.state, lambda ctx: dict(ctx.history), storage="memory://")
    assert await flow.execute() == {"n0": None, "n1": {"k": [1]}}
