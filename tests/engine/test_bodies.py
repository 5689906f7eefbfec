"""Bodies: which shapes are taken and refused, how parameters are filled, and that a sync body holds nobody up."""

import asyncio
import contextvars
import dataclasses
import functools
import operator
import os
import threading
from typing import TYPE_CHECKING, Any, Optional

import pydantic
import pytest

from engine import Context, Next, Workflow, WorkflowContext, step
from engine.errors import DefinitionError, StepFailed

if TYPE_CHECKING:
    from nowhere import Missing

pytestmark = pytest.mark.anyio

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@dataclasses.dataclass
class Point:
    """A model for an annotation."""

    n: int


def one(body: Any, **options: Any) -> Workflow:
    return Workflow("one").add_node("a", body, **options).set_entry_point("a")


async def given(body: Any, value: Any = "in") -> Any:
    return await one(body).execute(value)


def show(*values: Any) -> list[Any]:
    return ["context" if isinstance(v, Context) else v for v in values]


# How parameters are filled.


async def test_a_body_without_parameters_is_called_without():
    assert await given(lambda: "called") == "called"


@pytest.mark.parametrize(
    "body",
    [
        lambda ctx: show(ctx),
        lambda context: show(context),
        lambda workflow_context: show(workflow_context),
    ],
)
async def test_a_parameter_with_a_name_of_the_context_receives_it(body: Any):
    assert await given(body) == ["context"]


async def test_a_parameter_annotated_context_receives_it():
    def body(c: Context) -> Any:
        return show(c)

    def by_other_name(c: WorkflowContext) -> Any:
        return show(c)

    def as_text(c: "WorkflowContext") -> Any:
        return show(c)

    assert [await given(b) for b in (body, by_other_name, as_text)] == [["context"]] * 3


async def test_context_and_input_come_in_any_order():
    assert await given(lambda ctx, x: show(ctx, x)) == ["context", "in"]
    assert await given(lambda x, ctx: show(x, ctx)) == ["in", "context"]


async def test_a_keyword_only_context_is_filled():
    def body(x: Any, *, ctx: Any) -> Any:
        return show(x, ctx)

    assert await given(body) == ["in", "context"]


async def test_parameters_with_defaults_are_left_alone():
    def body(x: Any, depth: int = 3, *, flag: bool = False) -> Any:
        return [x, depth, flag]

    assert await given(body) == ["in", 3, False]


async def test_a_first_parameter_with_a_default_is_left_alone():
    assert await given(lambda x="default": x) == "default"


async def test_a_context_after_a_parameter_with_a_default_is_filled():
    def body(x: Any, depth: int = 3, ctx: Any = None) -> Any:
        return show(x, depth, ctx)

    assert await given(body) == ["in", 3, "context"]


async def test_variable_arguments_receive_the_input():
    assert await given(lambda *values: list(values)) == ["in"]
    assert await given(lambda **values: values) == {}


async def test_a_second_required_parameter_is_refused_when_the_node_is_added():
    with pytest.raises(DefinitionError, match=r"'a'.*'y'.*defaults"):
        one(lambda x, y: x)
    with pytest.raises(DefinitionError, match="'y'"):
        one(lambda x, *, y: x)


async def test_a_parameter_that_may_be_none_instead_of_a_context_receives_it():
    def union(x: Any, c: Context | None = None) -> list[Any]:
        return show(x, c)

    def optional(x: Any, c: Optional[Context] = None) -> list[Any]:  # noqa: UP045 - as older code has it
        return show(x, c)

    def text(x: "Missing", c: "WorkflowContext | None" = None) -> list[Any]:
        return show(x, c)

    for body in (union, optional, text):
        assert await given(body) == ["in", "context"]


async def test_an_annotation_that_cannot_be_resolved_counts_as_none():
    def body(x: "Missing", ctx: "Context") -> "Missing":
        return show(x, ctx)

    assert await given(body) == ["in", "context"]


async def test_an_annotation_that_cannot_be_resolved_takes_no_other_with_it():
    def body(x: "Point", other: "Missing" = None) -> "Missing":
        return x.n

    assert await given(body, {"n": 3}) == 3


async def test_a_callable_without_a_readable_signature_gets_the_input():
    assert await given(max, [1, 3, 2]) == 3
    assert await given(operator.itemgetter("k"), {"k": 1}) == 1


# Shapes.


async def test_functions_sync_and_async_and_lambdas_are_bodies():
    async def late(x: Any) -> Any:
        await asyncio.sleep(0)
        return x

    assert await given(lambda x: x) == "in"
    assert await given(late) == "in"
    assert await given(len, "four") == 4


async def test_a_lambda_that_returns_a_coroutine_is_awaited():
    async def late(x: Any) -> str:
        return f"late {x}"

    assert await given(lambda x: late(x)) == "late in"


async def test_a_body_that_returns_a_future_is_awaited():
    async def outer() -> Any:
        loop = asyncio.get_running_loop()

        def body() -> Any:
            future = asyncio.run_coroutine_threadsafe(asyncio.sleep(0, "done"), loop)
            return asyncio.wrap_future(future, loop=loop)

        return await given(body)

    assert await outer() == "done"


async def test_partials_and_bound_methods_are_bodies():
    class Adder:
        def __init__(self, n: int) -> None:
            self.n = n

        def add(self, x: int) -> int:
            return x + self.n

    async def late(y: int, x: int) -> int:
        return y * x

    assert await given(functools.partial(operator.add, 3), 4) == 7
    assert await given(functools.partial(late, 3), 4) == 12
    assert await given(Adder(2).add, 4) == 6
    assert await given(functools.partial(Adder(2).add), 4) == 6


async def test_objects_with_run_are_bodies():
    class Sync:
        def run(self, x: Any, ctx: Any) -> Any:
            return show(x, ctx)

    class Async:
        async def run(self, x: Any) -> Any:
            return x

    assert await given(Sync()) == ["in", "context"]
    assert await given(Async()) == "in"


async def test_objects_with_call_are_bodies():
    class Sync:
        def __call__(self, x: Any) -> Any:
            return x

    class Async:
        async def __call__(self, ctx: Any, x: Any) -> Any:
            return show(ctx, x)

    assert await given(Sync()) == "in"
    assert await given(Async()) == ["context", "in"]


async def test_a_class_is_refused_with_advice():
    class Body:
        def run(self) -> None: ...

    for kind in (Body, dict, pydantic.BaseModel):
        with pytest.raises(DefinitionError, match="pass an instance"):
            one(kind)


def test_generator_functions_are_refused():
    def sync(x: Any) -> Any:
        yield x

    async def late(x: Any) -> Any:
        yield x

    class Runs:
        def run(self, x: Any) -> Any:
            yield x

    class Calls:
        def __call__(self, x: Any) -> Any:
            yield x

    for body in (sync, late, functools.partial(sync), Runs(), Calls()):
        with pytest.raises(DefinitionError, match="generator"):
            one(body)


async def test_a_generator_object_as_an_answer_is_refused_where_values_are_stored():
    flow = Workflow("w", storage="memory://").add_node("a", lambda: (x for x in [1])).set_entry_point("a")
    with pytest.raises(StepFailed, match=r"'a'.*generator"):
        await flow.execute()


# @step.


@step
def plain(x: int) -> int:
    """Document it."""
    return x + 1


@step("Named")
async def named(x: int) -> int:
    return x + 2


@step(name="Named too")
def named_too(x: int, ctx: Context) -> Any:
    return [x, ctx.node]


@step()
def called_empty(x: int) -> int:
    return x


async def test_step_marks_keep_what_the_function_was():
    assert (plain.__name__, plain.__doc__, plain._is_step, plain._step_name) == ("plain", "Document it.", True, "plain")
    assert (named._step_name, named_too._step_name, called_empty._step_name) == ("Named", "Named too", "called_empty")


async def test_every_form_of_step_is_a_body():
    assert [await given(b, 1) for b in (plain, named, named_too, called_empty)] == [2, 3, [1, "a"], 1]


async def test_a_step_is_awaitable_by_itself_and_lets_exceptions_pass():
    @step
    def broken() -> None:
        raise KeyError("k")

    assert await plain(1) == 2
    assert await named(1) == 3
    with pytest.raises(KeyError):
        await broken()


async def test_a_sync_step_runs_off_the_loop_alone_and_as_a_body():
    @step
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert await where() is False
    assert await given(where) is False


def test_step_refuses_what_is_no_function():
    with pytest.raises(DefinitionError):
        step(5)
    with pytest.raises(DefinitionError):
        step(dict)


# Typed input and output.


class Order(pydantic.BaseModel):
    item: str
    count: int = 1


@dataclasses.dataclass
class Place:
    city: str
    code: int


async def test_a_parameter_annotated_with_a_model_is_built_from_the_input():
    def body(order: Order) -> Any:
        return [type(order).__name__, order.item, order.count]

    assert await given(body, {"item": "tea", "count": "2"}) == ["Order", "tea", 2]


async def test_a_parameter_annotated_with_a_dataclass_is_built_from_the_input():
    async def body(place: Place) -> Any:
        return [type(place).__name__, place.city, place.code]

    assert await given(body, {"city": "Rome", "code": 1}) == ["Place", "Rome", 1]


async def test_a_parameter_annotated_with_a_list_of_models_is_built_from_the_input():
    def body(orders: list[Order]) -> Any:
        return [o.item for o in orders]

    assert await given(body, [{"item": "tea"}, {"item": "rice"}]) == ["tea", "rice"]


async def test_a_parameter_annotated_with_a_model_or_none_is_built_from_the_input():
    def body(order: Order | None) -> Any:
        return order and order.item

    assert await given(body, {"item": "tea"}) == "tea"
    assert await given(body, None) is None


async def test_an_input_that_does_not_fit_its_annotation_fails_the_step_naming_both():
    def body(order: Order) -> Any:
        return order

    with pytest.raises(StepFailed, match=r"step 'a'.*int.*Order") as caught:
        await given(body, 5)
    assert isinstance(caught.value.__cause__, TypeError)


async def test_a_misfit_of_a_sync_body_fails_the_step_too():
    def body(place: Place) -> Any:
        return place

    with pytest.raises(StepFailed, match=r"list.*Place"):
        await given(body, [1])


async def test_output_type_builds_the_output():
    flow = one(lambda: {"item": "tea", "count": 3})
    assert await flow.execute(output_type=Order) == Order(item="tea", count=3)
    assert await one(lambda: {"city": "Rome", "code": 1}).execute(output_type=Place) == Place("Rome", 1)
    assert await one(lambda: "5").execute(output_type=int) == 5


async def test_an_output_that_does_not_fit_its_type_is_a_type_error():
    with pytest.raises(TypeError, match="int"):
        await one(lambda: "abc").execute(output_type=int)


async def test_get_last_output_as_builds_and_refuses():
    def body(ctx: Context) -> Any:
        with pytest.raises(TypeError, match="Place"):
            ctx.get_last_output_as(Place)
        return [ctx.get_last_output_as(Order).item, ctx.get_last_output_as(dict)]

    assert await given(body, {"item": "tea"}) == ["tea", {"item": "tea"}]


# Off the loop.


async def test_sync_bodies_of_a_layer_run_at_once_and_never_block_the_loop():
    barrier = threading.Barrier(3, timeout=5)
    ticks: list[int] = []

    async def ticker() -> None:
        while len(ticks) < 5:
            ticks.append(1)
            await asyncio.sleep(0)
        await asyncio.to_thread(barrier.wait)

    flow = Workflow().add_node("a", lambda: barrier.wait() >= 0).add_node("b", lambda: barrier.wait() >= 0).add_node("c", ticker)
    assert await flow.set_entry_point("a", "b", "c").execute() == {"a": True, "b": True, "c": None}
    assert len(ticks) == 5


async def test_the_callers_loop_goes_on_while_a_sync_body_waits():
    release = threading.Event()
    running = asyncio.get_running_loop().create_task(given(lambda: release.wait(5)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not running.done()
    release.set()
    assert await running is True


async def test_threads_carry_context_variables():
    VARIABLE.set("outside")
    assert await given(lambda: VARIABLE.get()) == "outside"


async def test_a_context_variable_set_in_a_body_does_not_reach_the_caller():
    async def late() -> None:
        VARIABLE.set("inside")

    flow = Workflow().add_node("a", lambda: VARIABLE.set("inside") and None).add_node("b", late).add_edge("a", "b").set_entry_point("a")
    VARIABLE.set("outside")
    await flow.execute()
    assert VARIABLE.get() == "outside"


async def test_conditions_and_reducers_that_are_sync_run_off_the_loop():
    here: list[bool] = []

    def note(value: Any) -> Any:
        here.append(threading.current_thread() is threading.main_thread())
        return value

    flow = Workflow(reducers={"k": lambda base, writes: note(sum(writes))})
    flow.add_node("a", lambda ctx: ctx.state.update(k=1)).add_node("b", lambda ctx: ctx.state.update(k=2)).add_node("c", lambda: "c")
    flow.add_edge("a", "c", lambda ctx: note(True)).set_entry_point("a", "b")
    assert await flow.execute() == "c"
    assert here == [False, False]


async def test_32_sync_bodies_of_a_run_perform_at_once():
    together = threading.Barrier(32, timeout=20)
    await Workflow().add_map("m", lambda x: together.wait()).set_entry_point("m").execute(list(range(64)))


async def test_no_33_sync_bodies_of_a_run_perform_at_once():
    together = threading.Barrier(33, timeout=0.3)
    with pytest.raises(StepFailed, match="BrokenBarrierError"):
        await Workflow().add_map("m", lambda x: together.wait()).set_entry_point("m").execute(list(range(33)))


async def test_more_sync_bodies_than_threads_all_run():
    flow = Workflow()
    for i in range(100):
        flow.add_node(f"n{i}", lambda i=i: i)
    assert len(await flow.set_entry_point(*[f"n{i}" for i in range(100)]).execute()) == 100


# Bodies that misbehave.


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, BaseException, GeneratorExit, StopIteration, asyncio.CancelledError])
async def test_whatever_a_sync_body_raises_fails_its_step_by_name(kind: type[BaseException]):
    def body() -> None:
        raise kind("out")

    with pytest.raises(StepFailed, match=f"step 'a'.*{kind.__name__}"):
        await given(body)


@pytest.mark.parametrize("kind", [BaseException, GeneratorExit, StopIteration, asyncio.CancelledError])
async def test_whatever_an_async_body_raises_fails_its_step_by_name(kind: type[BaseException]):
    async def body() -> None:
        raise kind("out")

    with pytest.raises(StepFailed, match=f"step 'a'.*{kind.__name__}"):
        await given(body)


async def test_a_sync_body_that_exits_fails_its_step_beside_another():
    def body() -> None:
        raise SystemExit(3)

    flow = Workflow().add_node("a", body).add_node("b", lambda: 1).set_entry_point("a", "b")
    with pytest.raises(StepFailed, match=r"step 'a'.*SystemExit"):
        await flow.execute()


async def test_an_exception_that_cannot_be_printed_fails_its_step_by_name():
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    def body() -> None:
        raise Unprintable

    with pytest.raises(StepFailed, match=r"step 'a'.*Unprintable"):
        await given(body)


@pytest.mark.slow
async def test_a_body_may_print_100_megabytes(capfd: pytest.CaptureFixture[str]):
    def body() -> int:
        line = "x" * 999_999
        for _ in range(100):
            print(line)
        return 100

    assert await given(body) == 100
    assert len(capfd.readouterr().out) >= 100 * 999_999


async def test_a_next_as_an_answer_of_a_plain_function_jumps():
    flow = Workflow().add_node("a", lambda: Next("b", input=1)).add_node("b", lambda x: x + 1).set_entry_point("a")
    assert await flow.execute() == 2


async def test_a_nested_execute_inside_a_step_runs_in_this_process():
    inner = one(lambda x: x * 2)

    async def late(x: int) -> int:
        return await inner.execute(x)

    assert await given(late, 4) == 8
    assert await given(lambda x: inner.execute(x), 5) == 10
    assert await given(lambda x: inner.run_sync(x), 6) == 12


async def test_a_nested_execute_stays_in_this_process_where_it_is_connected_to_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cluster.connect.connected", lambda: True)
    inner = Workflow("inner").add_node("pid", lambda: os.getpid()).set_entry_point("pid")
    outer = Workflow("outer", executor="inline").add_node("async", lambda: inner.execute()).add_node("sync", lambda: inner.run_sync())
    assert await outer.set_entry_point("async", "sync").execute() == {"async": os.getpid(), "sync": os.getpid()}


def test_run_sync_runs_without_a_loop():
    assert one(lambda x: x).run_sync(3) == 3


async def test_run_sync_inside_a_running_loop_uses_a_thread_of_its_own():
    threads: list[Any] = []

    async def body() -> None:
        threads.append(threading.current_thread())

    one(body).run_sync()
    assert threads[0] is not threading.main_thread()


async def test_run_sync_raises_what_the_run_raised():
    with pytest.raises(StepFailed, match="boom"):
        one(lambda: int("boom")).run_sync()


async def test_five_runs_of_one_workflow_do_not_mix():
    started = 0
    all_started = asyncio.Event()

    async def body(x: int, ctx: Context) -> int:
        nonlocal started
        started += 1
        if started == 5:
            all_started.set()
        await all_started.wait()
        ctx.state["mine"] = x
        return x

    flow = Workflow().add_node("a", body).add_node("b", lambda x, ctx: [x, ctx.state["mine"]]).add_edge("a", "b").set_entry_point("a")
    assert await asyncio.gather(*(flow.execute(i) for i in range(5))) == [[i, i] for i in range(5)]
