"""The engine and its handles: starting, looking, stopping, removing; and the errors callers match on."""

import asyncio
import itertools
import os
import pickle
import re
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import engine.errors
import engine.local
from engine import Context, Engine, Retry, Workflow
from engine.errors import (
    ConfigurationError,
    DefinitionError,
    GeckoError,
    RunBusy,
    RunCancelled,
    RunNotFound,
    StepFailed,
    UnknownName,
    WrongState,
)

pytestmark = pytest.mark.anyio
NUMBERS = itertools.count()


@pytest.fixture
def place() -> str:
    """A storage of its own."""
    return f"memory://engine-{next(NUMBERS)}"


def chain(*bodies: Any, name: str = "flow", **options: Any) -> Workflow:
    flow = Workflow(name, **options)
    for i, body in enumerate(bodies):
        flow.add_node(f"n{i}", body)
        if i:
            flow.add_edge(f"n{i - 1}", f"n{i}")
    return flow.set_entry_point("n0")


# Handles.


async def test_a_handle_shows_a_run_while_it_goes_on_and_at_its_end():
    started, release = asyncio.Event(), asyncio.Event()

    async def gate(x: Any) -> str:
        started.set()
        await release.wait()
        return f"{x} gate"

    handle = await Engine(None).start(chain(lambda ctx: ctx.state.update(k=1) or "first", gate), "in", session_id="s")
    assert handle.run_id == "flow.s.1"
    await started.wait()
    assert (handle.status, handle.state, handle.history, handle.output) == ("running", {"k": 1}, {"n0": "first"}, "first")
    release.set()
    assert await handle.wait() == await handle.wait() == "first gate"
    assert (handle.status, handle.output) == ("completed", "first gate")


async def test_a_handle_raises_the_same_error_each_time():
    handle = await Engine(None).start(chain(lambda: int("boom")))
    for _ in range(2):
        with pytest.raises(StepFailed, match="boom"):
            await handle.wait()
    assert handle.status == "failed"


async def test_a_handle_that_nobody_awaits_runs_all_the_same():
    done = asyncio.Event()

    async def body() -> None:
        done.set()

    await Engine(None).start(chain(body))
    await asyncio.wait_for(done.wait(), 5)


async def test_cancelling_one_who_waits_drains_the_run_for_all():
    started, release = asyncio.Event(), asyncio.Event()

    async def gate() -> None:
        started.set()
        await release.wait()

    handle = await Engine(None).start(chain(gate, lambda: 1))
    waiting = asyncio.get_running_loop().create_task(handle.wait())
    await started.wait()
    waiting.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert handle.status == "paused"


async def test_start_takes_an_output_type():
    assert await (await Engine(None).start(chain(lambda: "5"), output_type=int)).wait() == 5


# Looking.


async def test_start_refuses_an_argument_that_it_does_not_have():
    for argument in ("sesion_id", "n", "resume", "metadata"):
        with pytest.raises(TypeError, match=rf"start\(\) got an unexpected keyword argument '{argument}'"):
            await Engine(None).start(chain(lambda: 1), **{argument: 1})


async def test_a_status_that_is_none_is_refused_with_the_nearest(place: str):
    with pytest.raises(UnknownName, match="status 'complete' not found; did you mean 'completed'"):
        await Engine(place).runs(status="complete")
    with pytest.raises(UnknownName, match=r"status 'nope' not found; there are 'pending', 'running', .*'timed_out'"):
        await Engine(place).runs(status="nope")


async def test_a_run_that_another_process_drives_is_stopped_there(place: str, monkeypatch: pytest.MonkeyPatch):
    started, release = asyncio.Event(), asyncio.Event()

    async def gate() -> str:
        started.set()
        await release.wait()
        return "done"

    handle = await Engine(place).start(chain(gate), session_id="s")
    await started.wait()
    monkeypatch.setattr(engine.local, "driven", {})  # what this process drives; the log knows that the owner lives
    for stop, status in ((Engine(place).pause, "paused"), (Engine(place).cancel, "cancelled")):
        told = rf"'flow\.s\.1' cannot be {status} from here, since process {os.getpid()} on .* drives it; stop it there"
        with pytest.raises(RunBusy, match=told) as caught:
            await stop("s")
        assert caught.value.pid == os.getpid()
        assert "takeover" not in str(caught.value)
    release.set()
    assert await handle.wait() == "done"


async def test_runs_are_listed_newest_first_and_filtered(place: str):
    await chain(lambda: 1, name="one", storage=place).execute(session_id="a")
    with pytest.raises(StepFailed):
        await chain(lambda: int("x"), name="two", storage=place).execute(session_id="b")
    await chain(lambda: 1, name="one", storage=place).execute(session_id="c")
    found = Engine(place)
    assert [(s.key.workflow, s.key.session, s.status) for s in await found.runs()] == [
        ("one", "c", "completed"),
        ("two", "b", "failed"),
        ("one", "a", "completed"),
    ]
    assert [s.key.session for s in await found.runs(status="failed")] == ["b"]
    assert [s.key.session for s in await found.runs(workflow="one")] == ["c", "a"]
    assert all(s.owner is None and s.started_at <= s.updated_at for s in await found.runs())


async def test_the_state_of_a_run_at_any_committed_event_without_its_code(place: str):
    await chain(lambda ctx: ctx.state.update(k=[1]), lambda ctx: ctx.state["k"].append(2), storage=place).execute(session_id="s")
    found = Engine(place)
    at = {e.node: e.seq async for e in found.events("s") if e.kind == "step_succeeded"}
    assert await found.state("s") == {"k": [1, 2]}
    assert await found.state("s", at=at["n0"]) == {"k": [1]}
    assert await found.state("s", at=1) == {}
    newest = [event.seq async for event in found.events("s")][-1]
    assert (await found.state("s", at=0), await found.state("s", at=newest)) == ({}, {"k": [1, 2]})
    for wrong in (-1, newest + 1, "1", 1.0, True):
        told = f"at must be the number of an event of run 'flow.s.1', from 0 to {newest}, not {wrong!r}"
        with pytest.raises(DefinitionError, match=re.escape(told)) as caught:
            await found.state("s", at=wrong)  # type: ignore[arg-type]
        assert caught.value.where == "at"
    assert await found.state("flow.s.1", at=at["n1"]) == {"k": [1, 2]}


async def test_the_state_of_a_run_with_conditions_maps_jumps_and_sub_workflows_without_its_code(place: str):
    inner = Workflow("inner").add_node("i", lambda x: x).set_entry_point("i")
    flow = Workflow("flow", storage=place, reducers={"n": "add"}).add_node("a", lambda ctx: ctx.state.update(items=[1, 2], n=0))
    flow.add_map("m", lambda x, ctx: ctx.state.update(n=x), over="items").add_node("sub", inner).add_node(
        "no", lambda ctx: ctx.state.update(no=1)
    )
    flow.add_node("z", lambda ctx: ctx.state.update(z=1))
    flow.add_edge("a", "m").add_edge("a", "no", lambda ctx: False).add_edge("m", "sub").add_edge("sub", "z").set_entry_point("a")
    handle = await Engine(place).start(flow, session_id="s")
    await handle.wait()
    assert await Engine(place).state("s") == handle.state == {"items": [1, 2], "n": 3, "z": 1}


async def test_looking_at_an_unknown_run_says_so(place: str):
    found = Engine(place)
    for look in (found.state("none"), found.find("none"), found.delete("none"), anext(found.events("none"))):
        with pytest.raises(RunNotFound, match="'none' not found"):
            await look


async def test_events_can_be_followed_until_the_run_ends(place: str):
    release = asyncio.Event()
    started = asyncio.Event()

    async def gate() -> None:
        started.set()
        await release.wait()

    handle = await Engine(place).start(chain(gate, storage=place), session_id="s")
    await started.wait()
    kinds: list[str] = []
    async with asyncio.timeout(5):
        async for event in Engine(place).events("s", follow=True):
            kinds.append(event.kind)
            release.set()
    assert kinds == ["run_started", "step_started", "step_succeeded", "run_completed"]
    await handle.wait()


async def test_looking_at_a_run_that_waits_for_a_retry_waits_for_nothing(place: str):
    flow = chain(lambda ctx: ctx.state.update(k=1), storage=place)
    flow.add_node("a", lambda: int("x"), retry=Retry(2, delay=1000, max_delay=1000)).add_edge("n0", "a")
    handle = await Engine(place).start(flow, session_id="s")
    async for event in handle.events():
        if event.kind == "step_retrying":
            break
    assert await Engine(place).state("s") == {"k": 1}
    await handle.cancel()


@pytest.mark.parametrize("after", [-1, "1", 1.0, None, True])
async def test_events_after_what_is_no_number_are_refused_at_once(place: str, after: Any):
    handle = await Engine(place).start(chain(lambda: 1), session_id="s")
    await handle.wait()
    for look in (handle.events, partial(Engine(place).events, "s"), partial(Engine(place).events, "s", follow=True)):
        with pytest.raises(DefinitionError, match=re.escape(f"after must be the number of an event, from 0, not {after!r}")):
            look(after=after)
    assert [event async for event in Engine(place).events("s", after=99)] == []


@pytest.mark.parametrize("older_than", [-1, float("nan"), "1", None, True])
async def test_an_age_that_is_none_is_refused(place: str, older_than: Any):
    with pytest.raises(DefinitionError, match="older_than must be a number of seconds, 0 or more, not "):
        await Engine(place).prune(older_than)


async def test_an_engine_that_records_nothing_says_so_when_it_is_asked_for_runs():
    with pytest.raises(ConfigurationError, match="records nothing"):
        await Engine(False).runs()


async def test_an_engine_without_a_place_uses_that_of_the_workflow_and_else_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    own = Workflow("own", storage="there").add_node("a", lambda x: x).set_entry_point("a")
    plain = Workflow("plain").add_node("a", lambda x: x).set_entry_point("a")
    engine = Engine()
    await (await engine.start(own, 1, session_id="s")).wait()
    await (await engine.start(plain, 1)).wait()
    assert os.listdir(tmp_path) == ["there"]
    assert await (await engine.resume("s", flow=own)).wait() == 1
    await (await engine.start(plain, 2, session_id="s")).wait()
    assert [run.key.workflow for run in await Engine().runs()] == ["plain"]
    assert [run.key.workflow for run in await Engine("there").runs()] == ["own"]
    assert await (await Engine().resume("s", flow=plain)).wait() == 2


async def test_an_unknown_executor_is_answered_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="'rai' not found; did you mean 'ray'"):
        Engine(None, executor="rai")
    with pytest.raises(ConfigurationError, match="'rai' not found; did you mean 'ray'"):
        await chain(lambda: 1).execute(executor="rai")


@pytest.mark.slow
async def test_the_table_has_every_event_of_every_run(tmp_path: Path):
    place = str(tmp_path / "log")
    await chain(lambda: 1, storage=place).execute(session_id="a")
    await chain(lambda: 1, storage=place).execute(session_id="b")
    table = Engine(place).table()
    assert table.num_rows == 8
    assert {"kind", "node", "seq"} <= set(table.column_names)


# Removing.


async def test_delete_removes_one_run_by_name(place: str):
    for session in "ab":
        await chain(lambda: 1, storage=place).execute(session_id=session)
    await Engine(place).delete("flow.a.1")
    assert [s.key.session for s in await Engine(place).runs()] == ["b"]


async def test_prune_removes_old_finished_runs_and_never_an_unfinished_one(place: str):
    await chain(lambda: 1, storage=place).execute(session_id="done")
    started = asyncio.Event()

    async def gate() -> None:
        started.set()
        await asyncio.Event().wait()

    handle = await Engine(place).start(chain(gate, storage=place), session_id="open")
    await started.wait()
    assert await Engine(place).prune(older_than=3600) == 0
    assert await Engine(place).prune(older_than=0) == 1
    assert [s.key.session for s in await Engine(place).runs()] == ["open"]
    await handle.cancel()


async def test_prune_keeps_what_ended_within_30_days(place: str, monkeypatch: pytest.MonkeyPatch):
    await chain(lambda: 1, storage=place).execute(session_id="done")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 29.9 * 86400)
    assert await Engine(place).prune() == 0
    monkeypatch.setattr(time, "time", lambda: now + 30.1 * 86400)
    assert await Engine(place).prune() == 1


# Resuming by import path.


MODULE = """
from pathlib import Path

from engine import Workflow


def first():
    with open("calls.txt", "a") as file:
        file.write("first ")


def second():
    if not Path("mended").exists():
        raise ValueError("boom")
    return "end"


flow = Workflow("flow", storage="log").add_node("a", first).add_node("b", second).add_edge("a", "b").set_entry_point("a")
"""


async def test_an_engine_resumes_a_workflow_of_a_module_by_its_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "flow_of_a_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import flow_of_a_module  # type: ignore[import-not-found]

    with pytest.raises(StepFailed, match="boom"):
        await flow_of_a_module.flow.execute(session_id="s")
    (tmp_path / "mended").touch()
    handle = await Engine("log").resume("s")
    assert await handle.wait() == "end"
    assert (tmp_path / "calls.txt").read_text() == "first "


async def test_a_workflow_that_no_name_leads_to_has_to_be_given(place: str):
    with pytest.raises(StepFailed):
        await chain(lambda: int("x"), storage=place).execute(session_id="s")
    with pytest.raises(WrongState, match="resume it with its workflow"):
        await Engine(place).resume("s")


# Errors.


async def test_an_error_of_a_run_survives_being_sent_to_another_process():
    with pytest.raises(StepFailed) as caught:
        await chain(lambda: int("boom")).execute()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.node, again.attempt, again.run_id) == (
        StepFailed,
        str(caught.value),
        "n0",
        1,
        caught.value.run_id,
    )
    assert isinstance(again.__cause__, ValueError)
    assert "boom" in again.traceback_text


def test_the_names_of_earlier_versions_are_there():
    errors = engine.errors
    assert errors.WorkflowValidationError is errors.InvalidGraph
    assert issubclass(errors.WorkflowCycleError, errors.InvalidGraph)
    assert issubclass(errors.StepFailed, errors.WorkflowError)
    assert issubclass(errors.StepLimitReached, errors.WorkflowError)


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("DefinitionError", ValueError),
        ("InvalidGraph", ValueError),
        ("UnknownName", ValueError),
        ("RunNotFound", ValueError),
        ("NotStorable", TypeError),
        ("RunTimedOut", TimeoutError),
        ("StepTimedOut", TimeoutError),
    ],
)
def test_an_error_is_the_builtin_one_that_callers_catch(name: str, builtin: type[BaseException]):
    kind = getattr(engine.errors, name)
    assert issubclass(kind, builtin)
    assert issubclass(kind, GeckoError)


def test_an_errors_docstring_is_its_default_message():
    assert str(RunNotFound()) == "The run was not found."


# The quick start of the earlier version, as written but for its import lines and the storage URL.


async def test_the_quick_start_runs_as_written(capsys: pytest.CaptureFixture[str], place: str):
    from engine import CheckpointStrategy, create_storage, step

    @step("Step1")
    async def step_one(ctx):
        print("Executing Step 1...")
        return "Data from Step 1"

    @step("Step2")
    async def step_two(ctx):
        data = ctx.get_last_output()
        print(f"Executing Step 2 with {data}")
        return "Finish"

    async def main():
        storage = await create_storage(place)

        wf = Workflow(
            "MyFlow",
            storage=storage,
            checkpoint_strategy=CheckpointStrategy.ALWAYS,  # 每步保存
            enable_parallel=True,
        )

        wf.add_node("A", step_one)
        wf.add_node("B", step_two)
        wf.add_edge("A", "B")
        wf.set_entry_point("A")

        session_id = "uniq_session_id"

        # 首次执行（或发生 Crash 后）始终可以通过 execute / resume 恢复
        res = await wf.execute("init_input", session_id=session_id)
        print("Result:", res)

    await main()
    assert capsys.readouterr().out == "Executing Step 1...\nExecuting Step 2 with Data from Step 1\nResult: Finish\n"
    assert [s.status for s in await Engine(place).runs()] == ["completed"]


async def test_create_storage_gives_what_a_workflow_and_an_engine_take(tmp_path: Path):
    from engine import create_storage

    storage = await create_storage(str(tmp_path / "log"))
    await chain(lambda: 1, storage=storage).execute(session_id="s")
    assert len(await Engine(storage).runs()) == 1
    with pytest.raises(ConfigurationError, match="unknown scheme"):
        await create_storage("mysql://host")


async def test_the_ten_lines_of_the_readme_run():
    from engine import step

    @step
    def shout(text: str) -> str:
        return text.upper()

    flow = Workflow("hello").add_node("shout", shout).set_entry_point("shout")
    assert await flow.execute("hi") == "HI"


async def test_a_context_may_be_asked_for_by_every_public_name():
    def body(ctx: Context) -> Any:
        names = (
            "input",
            "step_input",
            "state",
            "history",
            "metadata",
            "executions",
            "run_id",
            "session_id",
            "node",
            "step_id",
            "attempt",
            "deadline",
            "logger",
        )
        return [n for n in names if not hasattr(ctx, n)]

    assert await chain(body).execute() == []


# A run that another thread's event loop drives.


async def test_a_run_of_another_event_loop_can_be_stopped_awaited_and_watched(place: str):
    started, release = threading.Event(), threading.Event()
    ended: list[BaseException] = []
    handles: list[Any] = []

    def body() -> None:
        started.set()
        release.wait(5)

    async def drive() -> None:
        handles.append(await Engine(place).start(chain(body, storage=place), session_id="s"))
        await handles[0].wait()

    def run() -> None:
        try:
            asyncio.run(drive())
        except RunCancelled as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    await asyncio.to_thread(started.wait, 5)
    kinds: list[str] = []
    async with asyncio.timeout(5):
        async for event in handles[0].events():
            kinds.append(event.kind)
            if event.kind == "step_started":
                await Engine(place).cancel("s")
    release.set()
    await asyncio.to_thread(thread.join, 5)
    assert kinds == ["run_started", "step_started", "step_stopped", "run_cancelled"]
    assert len(ended) == 1
    assert [s.status for s in await Engine(place).runs()] == ["cancelled"]
