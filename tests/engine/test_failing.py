"""Failing steps: the error, siblings, retries, skips and fallbacks."""

import asyncio
import threading
from typing import Any

import pytest

import engine.runtime.loop
import engine.runtime.step
from engine import Context, Engine, Event, Limits, Next, Retry, RunHandle, Workflow
from engine.errors import StepFailed, StepTimedOut, WorkflowError
from engine.testing.simulate import simulate
from tests.engine.racing_bodies import cancel_itself

pytestmark = pytest.mark.anyio

NOW = {"delay": 0.0}


def boom(*_: Any) -> None:
    raise ValueError("boom")


def failing(times: int, answer: Any = "ok", kind: type[Exception] = ValueError) -> Any:
    calls = [0]

    def body() -> Any:
        calls[0] += 1
        if calls[0] <= times:
            raise kind(f"boom {calls[0]}")
        return answer

    return body


def one(body: Any, **policy: Any) -> Workflow:
    return Workflow("one").add_node("a", body, **policy).set_entry_point("a")


async def stopped(flow: Workflow) -> tuple[RunHandle, list[Event]]:
    handle = await Engine(None).start(flow)
    try:
        await handle.wait()
    except WorkflowError:
        pass
    return handle, [e async for e in handle.events()]


# The error.


async def test_a_failed_step_fails_the_run_with_node_attempt_and_the_original_text():
    with pytest.raises(StepFailed, match=r"^Workflow execution failed.*'a'.*attempt 1.*ValueError: boom") as caught:
        await one(boom).execute()
    error = caught.value
    assert isinstance(error, WorkflowError)
    assert (error.node, error.attempt) == ("a", 1)
    assert error.run_id is not None
    assert isinstance(error.__cause__, ValueError)
    assert error.__cause__.__traceback__ is not None
    assert "in boom" in (error.traceback_text or "")


async def test_a_failed_run_says_so_everywhere():
    handle, events = await stopped(one(boom))
    assert handle.status == "failed"
    failed = next(e for e in events if e.kind == "step_failed")
    assert (failed.data["error"]["type"], failed.data["error"]["message"]) == ("ValueError", "boom")
    assert "Traceback" in failed.data["error"]["traceback"]
    assert failed.data["duration"] >= 0
    assert events[-1].kind == "run_failed"
    assert events[-1].data["finished"] == 0


async def test_siblings_that_run_finish_and_are_kept():
    both = threading.Barrier(2, timeout=5)
    finished: list[int] = []

    async def slow() -> str:
        await asyncio.to_thread(both.wait)
        for _ in range(10):
            await asyncio.sleep(0)
        finished.append(1)
        return "kept"

    flow = Workflow().add_node("a", lambda: boom(both.wait())).add_node("b", slow).set_entry_point("a", "b")
    _, events = await stopped(flow)
    assert finished == [1]
    assert ("step_succeeded", "b") in [(e.kind, e.node) for e in events]


async def test_queued_siblings_do_not_start():
    started: list[str] = []
    flow = Workflow(max_concurrency=1)
    for name in "abc":
        flow.add_node(name, lambda ctx: started.append(ctx.node) or boom())
    with pytest.raises(StepFailed, match="'a'"):
        await flow.set_entry_point("a", "b", "c").execute()
    assert started == ["a"]


async def test_the_error_names_the_first_failed_node_in_declared_order_whichever_failed_first():
    failed = threading.Event()

    def late() -> None:
        failed.wait(5)
        boom()

    def early() -> None:
        failed.set()
        boom()

    with pytest.raises(StepFailed, match="step 'a'"):
        await Workflow().add_node("a", late).add_node("b", early).set_entry_point("a", "b").execute()


@pytest.mark.parametrize(("seconds", "kind"), [(4.9, "step_succeeded"), (5.1, "step_stopped")])
def test_siblings_have_five_seconds_to_finish(seconds: float, kind: str):
    async def sibling() -> None:
        await asyncio.sleep(seconds)

    report = simulate(Workflow().add_node("a", sibling).add_node("b", boom).set_entry_point("a", "b"), spread=0)
    assert [e.kind for e in report.events if e.node == "a"] == ["step_started", kind]


async def test_siblings_that_outlast_the_grace_are_stopped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.runtime.loop, "GRACE", 0.02)
    cancelled: list[int] = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(1)

    handle, events = await stopped(Workflow().add_node("a", endless).add_node("b", boom).set_entry_point("a", "b"))
    assert cancelled == [1]
    assert [e.node for e in events if e.kind == "step_stopped"] == ["a"]
    assert handle.status == "failed"


async def test_a_step_that_waits_for_a_retry_counts_as_queued():
    flow = Workflow().add_node("a", failing(1), retry=Retry(2, delay=1000, max_delay=1000)).add_node("b", boom).set_entry_point("a", "b")
    with pytest.raises(StepFailed, match="'b'"):
        await asyncio.wait_for(flow.execute(), 5)


async def test_the_state_of_a_failed_layer_is_applied_on_resume_as_a_whole():
    runs: list[str] = []
    broken = [True]

    def maybe(ctx: Context) -> str:
        runs.append("b")
        if broken[0]:
            boom()
        return "b"

    flow = Workflow("w", storage="memory://failed-layer").add_node("a", lambda ctx: runs.append("a") or ctx.state.update(k=1) or "a")
    flow.add_node("b", maybe).add_node("c", lambda x, ctx: [x, dict(ctx.state)]).add_edge("a", "c").add_edge("b", "c").set_entry_point(
        "a", "b"
    )
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    assert await Engine("memory://failed-layer").state("s") == {}
    broken[0] = False
    assert await flow.execute(session_id="s") == [{"a": "a", "b": "b"}, {"k": 1}]
    assert runs == ["a", "b", "b"]


@pytest.mark.parametrize("policy", [{}, {"timeout": 5}, {"retry": Retry(2, **NOW)}], ids=["plain", "limit", "retry"])
@pytest.mark.parametrize("beside", [False, True])
async def test_a_body_that_cancels_its_own_task_fails_as_any_other(policy: dict[str, Any], *, beside: bool):
    async def body() -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.Event().wait()

    flow = one(body, **policy).add_node("b", lambda x: x)
    with pytest.raises(StepFailed, match=r"step 'a', attempt .: CancelledError"):
        await asyncio.wait_for(flow.set_entry_point(*("ab" if beside else "a")).execute(), 5)


# Retry.


async def test_retry_counts_the_first_attempt_and_tells_its_number():
    attempts: list[int] = []
    flow = one(lambda ctx: attempts.append(ctx.attempt) or boom(), retry=Retry(3, **NOW))
    with pytest.raises(StepFailed, match="attempt 3") as caught:
        await flow.execute()
    assert (attempts, caught.value.attempt) == ([1, 2, 3], 3)


@pytest.mark.parametrize("kind", [SystemExit, StopIteration, GeneratorExit, KeyboardInterrupt])
@pytest.mark.parametrize("policy", [{}, {"timeout": 5.0}], ids=["free", "limited"])
async def test_what_a_sync_body_raises_is_judged_by_its_own_class(kind: type[BaseException], policy: dict[str, Any]):
    attempts: list[int] = []

    def body(ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise kind("out")

    flow = one(body, retry=Retry(3, retry_on=kind, **NOW), **policy)
    with pytest.raises(StepFailed, match=f"attempt 3: {kind.__name__}: out") as caught:
        await flow.execute()
    assert (attempts, type(caught.value.__cause__)) == ([1, 2, 3], kind)
    with pytest.raises(StepFailed, match="attempt 1"):
        await one(body, retry=Retry(3, retry_on=RuntimeError, **NOW), **policy).execute()


async def test_what_ends_a_thread_and_cannot_be_printed_fails_its_step():
    class Unprintable(BaseException):
        def __str__(self) -> str:
            raise ValueError("no text")

    def body() -> None:
        raise Unprintable

    async with asyncio.timeout(5):
        with pytest.raises(StepFailed, match="Unprintable, whose text cannot be shown"):
            await one(body).execute()


async def test_a_number_as_retry_is_that_many_attempts():
    with pytest.raises(StepFailed, match="attempt 1"):
        await one(failing(1), retry=1).execute()


async def test_a_retry_succeeds_with_the_same_step_id_and_a_row_of_its_attempt():
    ids: list[str] = []
    body = failing(2)
    handle, events = await stopped(one(lambda ctx: ids.append(ctx.step_id) or body(), retry=Retry(3, **NOW)))
    assert handle.output == "ok"
    assert len(set(ids)) == 1
    assert [(r.status, r.attempt) for r in handle.executions] == [("success", 3)]
    retrying = [(e.attempt, e.data["delay"], e.data["error"]["message"]) for e in events if e.kind == "step_retrying"]
    assert retrying == [(1, 0.0, "boom 1"), (2, 0.0, "boom 2")]


@pytest.mark.parametrize(
    ("retry", "wanted"),
    [
        (Retry(4, "fixed", delay=2), [2, 2, 2]),
        (Retry(4, "linear", delay=2), [2, 4, 6]),
        (Retry(4, "exponential", delay=2), [2, 4, 8]),
        (Retry(4, "exponential", delay=2, max_delay=5), [2, 4, 5]),
    ],
)
def test_pauses_grow_as_the_backoff_says(retry: Retry, wanted: list[float]):
    assert [retry.pause(n) for n in (1, 2, 3)] == wanted


def test_jitter_stays_inside_the_cap():
    retry = Retry(3, "fixed", delay=2, max_delay=3, jitter=1.0)
    assert (retry.pause(1, 0.0), retry.pause(1, 0.25), retry.pause(1, 1.0)) == (2.0, 2.5, 3.0)


async def test_enable_retry_means_extra_attempts_after_powers_of_two():
    flow = Workflow(enable_retry=True, max_retries=1).add_node("a", boom).set_entry_point("a")
    handle = await Engine(None).start(flow)
    async for event in handle.events():
        if event.kind == "step_retrying":
            assert event.data["delay"] == 2.0
            await handle.cancel()
    assert handle.status == "cancelled"


async def test_a_nodes_own_retry_replaces_enable_retry():
    with pytest.raises(StepFailed, match="attempt 1"):
        await Workflow(enable_retry=True).add_node("a", boom, retry=1).set_entry_point("a").execute()


@pytest.mark.parametrize(
    ("retry", "kind", "attempts"),
    [
        (Retry(2, retry_on=(KeyError,), **NOW), ValueError, 1),
        (Retry(2, retry_on=LookupError, **NOW), KeyError, 2),
        (Retry(2, retry_on="LookupError", **NOW), KeyError, 2),
        (Retry(2, give_up_on=(LookupError,), **NOW), KeyError, 1),
        (Retry(2, retry_on=(Exception,), give_up_on=(ValueError,), **NOW), ValueError, 1),
        (Retry(2, retry_on="builtins.LookupError", **NOW), KeyError, 2),
    ],
)
async def test_errors_are_told_apart_by_class_along_their_bases(retry: Retry, kind: type[Exception], attempts: int):
    with pytest.raises(StepFailed) as caught:
        await one(failing(9, kind=kind), retry=retry).execute()
    assert caught.value.attempt == attempts


async def test_timeouts_may_be_retried():
    attempts: list[int] = []

    async def slow(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            await asyncio.Event().wait()
        return "in time"

    assert await one(slow, timeout=0.01, retry=Retry(2, retry_on=TimeoutError, **NOW)).execute() == "in time"
    assert attempts == [1, 2]


@pytest.mark.parametrize(
    "bad", [{"attempts": 0}, {"delay": -1}, {"delay": float("nan")}, {"jitter": -1}, {"backoff": "odd"}, {"max_delay": -1}]
)
def test_a_retry_that_cannot_work_is_a_value_error(bad: dict[str, Any]):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}="):
        Retry(**bad)


def test_what_is_no_error_class_is_a_type_error():
    with pytest.raises(TypeError, match="exception classes"):
        Retry(retry_on=(5,))  # type: ignore[arg-type]


# Skip and fallback.


async def test_skip_is_for_the_last_attempt_alone():
    assert await one(failing(1), retry=Retry(2, **NOW), on_error="skip").execute() == "ok"


async def test_skipped_over_its_error_the_run_completes():
    handle, events = await stopped(one(boom, on_error="skip"))
    assert (handle.status, handle.output, handle.history) == ("completed", None, {})
    assert [e.kind for e in events] == ["run_started", "step_started", "step_failed", "step_skipped", "run_completed"]
    assert "boom" in events[3].data["error"]


async def test_a_fallbacks_body_stands_in_with_the_same_input():
    flow = one(boom, on_error="fallback", fallback="spare").add_node("spare", lambda x, ctx: [x, ctx.node, ctx.attempt])
    handle = await Engine(None).start(flow, "in")
    assert await handle.wait() == ["in", "a", 2]
    assert handle.history == {"a": ["in", "a", 2]}
    assert [(r.node, r.status) for r in handle.executions] == [("a", "success")]


async def test_a_fallback_is_tried_once_after_all_attempts():
    calls: list[str] = []

    def spare() -> None:
        calls.append("spare")
        boom()

    flow = one(lambda: calls.append("a") or boom(), retry=Retry(2, **NOW), on_error="fallback", fallback="spare")
    flow.add_node("spare", spare, retry=Retry(5, **NOW))
    with pytest.raises(StepFailed, match="step 'a'"):
        await flow.execute()
    assert calls == ["a", "a", "spare"]


async def test_a_fallback_may_jump():
    flow = one(boom, on_error="fallback", fallback="spare").add_node("spare", lambda: Next("b", input=3)).add_node("b", lambda x: [x])
    assert await flow.execute() == [3]


async def test_a_fallback_leaves_no_writes_of_what_it_stands_in_for():
    def body(ctx: Context) -> None:
        ctx.state["k"] = 1
        boom()

    flow = one(body, on_error="fallback", fallback="spare").add_node("spare", lambda ctx: dict(ctx.state))
    assert await flow.execute() == {}


async def test_a_sync_fallback_of_an_async_body_and_the_other_way_round():
    async def late(x: Any) -> str:
        return f"late {x}"

    async def broken() -> None:
        boom()

    assert await one(boom, on_error="fallback", fallback="s").add_node("s", late).execute("x") == "late x"
    assert await one(broken, on_error="fallback", fallback="s").add_node("s", lambda x: f"sync {x}").execute("x") == "sync x"


# Limits.


async def test_a_body_that_hangs_is_stopped_at_its_limit_and_named():
    with pytest.raises(StepFailed, match=r"step 'a'.*timed out after 0\.01 s") as caught:
        await one(lambda: asyncio.Event().wait(), timeout=0.01).execute()
    assert isinstance(caught.value.__cause__, StepTimedOut)
    assert isinstance(caught.value.__cause__, TimeoutError)


async def test_an_abandoned_sync_body_goes_on_alone_its_result_discarded_and_an_event_says_so():
    release, done = threading.Event(), threading.Event()

    def body(ctx: Context) -> str:
        release.wait(5)
        ctx.state["late"] = True
        done.set()
        return "late"

    flow = one(body, timeout=0.01, on_error="skip").add_node("b", lambda ctx: dict(ctx.state)).add_edge("a", "b")
    handle, events = await stopped(flow)
    assert handle.output == {}
    (event,) = [e for e in events if e.kind == "step_stopped"]
    assert "unattended" in event.data["reason"]
    release.set()
    assert done.wait(5)
    assert handle.state == {}


async def test_abandoned_sync_bodies_do_not_use_up_the_threads():
    release = threading.Event()
    flow = Workflow(max_concurrency=1).add_node("a", lambda: release.wait(5), timeout=0.01, on_error="skip").add_node("b", lambda: "b")
    assert await flow.add_edge("a", "b").set_entry_point("a").execute() == "b"
    release.set()


async def test_an_async_body_that_ignores_being_cancelled_is_left_behind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.runtime.step, "STUBBORN", 0.01)
    release = asyncio.Event()

    async def stubborn() -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    handle, events = await stopped(one(stubborn, timeout=0.01))
    assert handle.status == "failed"
    assert [e.kind for e in events if e.kind == "step_stopped"] == ["step_stopped"]
    release.set()


async def test_a_limit_of_zero_expires_at_once():
    calls: list[int] = []
    with pytest.raises(StepFailed, match="timed out"):
        await one(lambda: calls.append(1), timeout=0).execute()
    assert calls == []


async def test_a_limit_of_none_is_none():
    assert await one(lambda: "ok", timeout=None).execute(timeout=None) == "ok"


@pytest.mark.parametrize("limit", [-1, float("nan")])
async def test_a_negative_limit_or_nan_is_a_value_error(limit: float):
    with pytest.raises(ValueError, match="timeout"):
        one(boom, timeout=limit)
    with pytest.raises(ValueError, match="attempt"):
        Limits(attempt=limit)
    with pytest.raises(ValueError, match="node"):
        Limits(node=limit)
    with pytest.raises(ValueError, match="timeout"):
        await one(boom).execute(timeout=limit)


async def test_a_node_limit_bounds_all_attempts_and_pauses():
    attempts: list[int] = []
    flow = one(lambda ctx: attempts.append(1) or boom(), timeout=Limits(node=0.05), retry=Retry(9, delay=1000, max_delay=1000))
    with pytest.raises(StepFailed, match="attempt 1"):
        await asyncio.wait_for(flow.execute(), 5)
    assert attempts == [1]


async def test_a_node_limit_bounds_the_attempt_that_runs():
    with pytest.raises(StepFailed, match="timed out"):
        await one(lambda: asyncio.Event().wait(), timeout=Limits(node=0.01)).execute()


async def test_max_concurrency_bounds_the_steps_of_a_run():
    now, most = [0], [0]

    async def body() -> None:
        now[0] += 1
        most[0] = max(most[0], now[0])
        for _ in range(5):
            await asyncio.sleep(0)
        now[0] -= 1

    flow = Workflow(max_concurrency=2)
    for i in range(6):
        flow.add_node(f"n{i}", body)
    await flow.set_entry_point(*[f"n{i}" for i in range(6)]).execute()
    assert most == [2]


# What user code does to its own task.


async def test_a_condition_that_cancels_its_own_task_counts_as_false_and_stops_nothing():
    flow = one(lambda: 1).add_node("b", lambda: 2).add_edge("a", "b", cancel_itself)
    async with asyncio.timeout(10):
        handle, events = await stopped(flow)
    assert (handle.status, handle.output) == ("completed", 1)
    assert [e.data["target"] for e in events if e.kind == "condition_failed"] == ["b"]


async def test_a_body_that_cancels_its_own_task_has_failed():
    with pytest.raises(StepFailed, match="CancelledError: cancelled by its own code"):
        await one(cancel_itself).execute()
