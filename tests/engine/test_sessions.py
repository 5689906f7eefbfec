"""Sessions: which run a session names, what goes on, what is refused, on memory and on files."""

import asyncio
import itertools
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import engine.runtime.session
from engine import Context, Engine, Event, Next, Retry, Workflow
from engine.errors import (
    ConfigurationError,
    DefinitionError,
    LeaseLost,
    RunBusy,
    RunCancelled,
    RunNotFound,
    SessionInUse,
    StepFailed,
    UnknownName,
    WrongState,
)
from engine.testing.clock import VirtualLoop

pytestmark = pytest.mark.anyio
NUMBERS = itertools.count()


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of its own, in memory and in files."""
    return f"memory://sessions-{next(NUMBERS)}" if request.param == "memory" else str(tmp_path / "log")


class Part:
    """A body that counts its calls and can be told to fail."""

    def __init__(self, answer: Any = "done", *, broken: bool = False) -> None:
        self.answer = answer
        self.broken = broken
        self.calls: list[Any] = []

    def __call__(self, x: Any) -> Any:
        self.calls.append(x)
        if self.broken:
            raise ValueError("boom")
        return self.answer


def chain(place: Any, *parts: Any, name: str = "flow", **options: Any) -> Workflow:
    flow = Workflow(name, storage=place, **options)
    for i, part in enumerate(parts):
        flow.add_node(f"n{i}", part)
        if i:
            flow.add_edge(f"n{i - 1}", f"n{i}")
    return flow.set_entry_point("n0")


async def events_of(place: str, run: str = "s") -> list[Event]:
    return [e async for e in Engine(place).events(run)]


# Where runs are recorded.


async def test_without_session_and_storage_nothing_is_written(tmp_path: Path):
    await chain(None, Part()).execute()
    assert os.listdir(tmp_path) == []


async def test_a_session_without_storage_uses_the_default_place_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO):
        for session in ("one", "two"):
            await chain(None, Part()).execute(session_id=session)
    assert (tmp_path / ".gecko").is_dir()
    lines = [m for m in caplog.messages if "recorded in" in m]
    assert len(lines) == 1
    assert str(tmp_path / ".gecko") in lines[0]


async def test_storage_false_turns_the_default_place_off(tmp_path: Path):
    part = Part()
    flow = chain(False, part)
    for _ in range(2):
        await flow.execute(session_id="s")
    assert len(part.calls) == 2
    assert os.listdir(tmp_path) == []


async def test_a_run_without_a_session_is_recorded_where_there_is_storage(place: str):
    await chain(place, Part()).execute()
    assert [s.status for s in await Engine(place).runs()] == ["completed"]


async def test_a_relative_place_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "elsewhere").mkdir()

    def move() -> None:
        monkeypatch.chdir(tmp_path / "elsewhere")

    await chain("log", move, Part()).execute(session_id="s")
    assert (tmp_path / "log").is_dir()
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_a_runs_id_is_workflow_session_and_number(place: str):
    handle = await Engine(place).start(chain(place, Part(), name="audit"), session_id="mine")
    assert handle.run_id == "audit.mine.1"
    await handle.wait()


@pytest.mark.parametrize("session", ["../x", "a/b", "", "..", "a\\b", "a\nb", "x" * 600, 5])
async def test_a_session_id_that_could_leave_the_folder_is_refused_and_nothing_touched(session: Any, tmp_path: Path):
    part = Part()
    with pytest.raises(DefinitionError, match="session"):
        await chain(str(tmp_path / "log"), part).execute(session_id=session)
    assert part.calls == []
    assert os.listdir(tmp_path) == []


async def test_names_of_every_kind_may_be_sessions(place: str):
    part = Part("x")
    for session in ("Ä ö", "a:b*c?", "CON", "UPPER", "upper", "100%", "." * 3, "n" * 300):
        assert await chain(place, part).execute(session_id=session) == "x"
    assert len(part.calls) == 8


# The same session again.


async def test_a_completed_session_gives_its_result_with_a_warning(place: str, caplog: pytest.LogCaptureFixture):
    part = Part({"k": [1]})
    flow = chain(place, part)
    assert await flow.execute("in", session_id="s") == {"k": [1]}
    with caplog.at_level(logging.WARNING):
        assert await flow.execute("in", session_id="s") == {"k": [1]}
    assert len(part.calls) == 1
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "finished at" in warning.getMessage()
    assert "new=True" in warning.getMessage()


async def test_a_completed_session_gives_its_result_whatever_became_of_the_workflow(place: str):
    def flow(*names: str) -> Workflow:
        made = Workflow("edited", storage=place)
        for name in names:
            made.add_node(name, Part(name))
        return made.set_entry_point(*names)

    assert await flow("a", "b").execute("in", session_id="s") == {"a": "a", "b": "b"}
    assert await flow("c").execute("in", session_id="s") == {"a": "a", "b": "b"}
    handle = await Engine(place).start(flow("b", "a", "c"), session_id="s")
    assert (await handle.wait(), handle.history) == ({"a": "a", "b": "b"}, {"a": "a", "b": "b"})


async def test_names_with_dots_give_no_two_runs_one_id(place: str):
    flows = [Workflow(name, storage=place).add_node("a", lambda ctx: ctx.step_id).set_entry_point("a") for name in ("a", "a.b", "a%2Eb")]
    ids = [await flow.execute(session_id=session) for flow, session in zip(flows, ("b.c", "c", "c"), strict=True)]
    assert ids == ["a.b.c.1/a/1", "a%2Eb.c.1/a/1", "a%252Eb.c.1/a/1"]
    assert [await Engine(place).find(id.partition("/")[0]) for id in ids] == [("a", "b.c", 1), ("a.b", "c", 1), ("a%2Eb", "c", 1)]


async def test_a_strategy_may_be_changed_as_a_text(place: str):
    flow = chain(place, Part("x"))
    flow.checkpoint_strategy = "async"  # type: ignore[assignment]
    assert await flow.execute(session_id="s") == "x"


async def test_a_completed_runs_handle_shows_everything(place: str):
    flow = chain(place, lambda ctx: ctx.state.update(k=1) or "one", Part("two"))
    await flow.execute(session_id="s")
    handle = await Engine(place).start(flow, session_id="s")
    assert await handle.wait() == "two"
    assert (handle.status, handle.state, handle.history) == ("completed", {"k": 1}, {"n0": "one", "n1": "two"})
    assert [(r.node, r.status) for r in handle.executions] == [("n0", "success"), ("n1", "success")]
    assert [e.kind async for e in handle.events()][-1] == "run_completed"
    await handle.cancel()
    assert handle.status == "completed"


async def test_a_failed_session_goes_on_at_what_failed(place: str):
    first, second = Part("one"), Part("two", broken=True)
    with pytest.raises(StepFailed):
        await chain(place, first, second).execute("in", session_id="s")
    second.broken = False
    assert await chain(place, first, second).execute("in", session_id="s") == "two"
    assert (first.calls, second.calls) == (["in"], ["one", "one"])


async def test_a_failed_session_that_goes_on_has_all_its_attempts_again(place: str):
    part = Part("ok", broken=True)
    flow = Workflow("flow", storage=place).add_node("a", part, retry=Retry(3, delay=0)).set_entry_point("a")
    for calls in (3, 6):
        with pytest.raises(StepFailed, match="attempt 3"):
            await flow.execute(session_id="s")
        assert len(part.calls) == calls
    part.broken = False
    assert await flow.execute(session_id="s") == "ok"


async def test_another_input_under_a_session_is_refused(place: str):
    part = Part()
    await chain(place, part).execute({"k": 1}, session_id="s")
    for other in ({"k": 2}, {"k": 1.0}, {"k": True}, 0, False, ""):
        with pytest.raises(SessionInUse, match=r"'s'.*new=True"):
            await chain(place, part).execute(other, session_id="s")
    assert len(part.calls) == 1


async def test_no_input_never_conflicts_and_an_equal_one_neither(place: str):
    flow = chain(place, Part(broken=True))
    with pytest.raises(StepFailed):
        await flow.execute({"k": [1, (2,)]}, session_id="s")
    flow = chain(place, lambda x: x)
    assert await flow.execute(session_id="s") == {"k": [1, (2,)]}
    assert await flow.execute({"k": [1, (2,)]}, session_id="s") == {"k": [1, (2,)]}


async def test_new_starts_the_sessions_next_run(place: str):
    part = Part()
    flow = chain(place, part)
    await flow.execute(1, session_id="s")
    await flow.execute(2, session_id="s", new=True)
    assert part.calls == [1, 2]
    assert [s.key.n for s in await Engine(place).runs()] == [2, 1]
    assert await flow.execute(2, session_id="s") == "done"
    with pytest.raises(SessionInUse):
        await flow.execute(1, session_id="s")


@pytest.mark.parametrize("inputs", [(1, 2), (1, 1)], ids=["other inputs", "the same input"])
@pytest.mark.parametrize("before", [0, 1])
async def test_new_runs_that_begin_at_once_are_two(place: str, inputs: tuple[int, int], before: int):
    performed: list[int] = []
    both = asyncio.Event()

    async def body(x: int) -> int:
        performed.append(x)
        if len(performed) >= before + 2:
            both.set()
        if x:
            await both.wait()
        return x

    for _ in range(before):
        await chain(place, body).execute(0, session_id="s")
    async with asyncio.timeout(5):
        found = await asyncio.gather(*[chain(place, body).execute(x, session_id="s", new=True) for x in inputs])
    assert (found, sorted(performed)) == (list(inputs), [0] * before + sorted(inputs))
    assert sorted(s.key.n for s in await Engine(place).runs()) == list(range(1, before + 3))


async def test_a_new_run_takes_the_next_number_where_its_own_was_run_meanwhile(place: str, monkeypatch: pytest.MonkeyPatch):
    part = Part()
    find = engine.runtime.session.find_run

    async def find_late(log: Any, request: Any) -> Any:
        key = await find(log, request)
        monkeypatch.undo()
        await chain(place, part).execute(1, session_id="s")
        return key

    monkeypatch.setattr(engine.runtime.session, "find_run", find_late)
    await chain(place, part).execute(1, session_id="s", new=True)
    assert part.calls == [1, 1]
    assert [s.key.n for s in await Engine(place).runs()] == [2, 1]
    assert [s.owner for s in await Engine(place).runs()] == [None, None]


async def test_one_session_id_names_runs_of_each_workflow_apart(place: str):
    one, two = Part(1), Part(2)
    assert await chain(place, one, name="one").execute(session_id="s") == 1
    assert await chain(place, two, name="two").execute(session_id="s") == 2


async def test_a_second_caller_of_a_run_that_is_driven_gets_run_busy(place: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.runtime.session, "WAIT_FOR_OWNER", 0.05)
    started, release = asyncio.Event(), asyncio.Event()

    async def body() -> str:
        started.set()
        await release.wait()
        return "mine"

    flow = chain(place, body)
    running = asyncio.get_running_loop().create_task(flow.execute(session_id="s"))
    await started.wait()
    with pytest.raises(RunBusy):
        await flow.execute(session_id="s")
    (summary,) = await Engine(place).runs()
    assert summary.owner is not None
    release.set()
    assert await running == "mine"


def test_a_second_caller_waits_ten_seconds():
    place = f"memory://sessions-{next(NUMBERS)}"

    async def second() -> float:
        loop, started = asyncio.get_running_loop(), asyncio.Event()

        async def body() -> None:
            started.set()
            await asyncio.Event().wait()

        flow = chain(place, body)
        await Engine(place).start(flow, session_id="s")
        await started.wait()
        since = loop.time()
        with pytest.raises(RunBusy):
            await flow.execute(session_id="s")
        return loop.time() - since

    assert VirtualLoop().run_to_end(second()) == pytest.approx(10.0, abs=0.5)


async def test_a_second_caller_waits_for_an_owner_that_lets_go(place: str):
    started, release = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    async def body() -> str:
        calls.append(1)
        started.set()
        await release.wait()
        return "mine"

    flow = chain(place, body)
    loop = asyncio.get_running_loop()
    first = loop.create_task(flow.execute(session_id="s"))
    await started.wait()
    second = loop.create_task(flow.execute(session_id="s"))
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(first, second) == ["mine", "mine"]
    assert len(calls) == 1


async def test_a_takeover_forces_and_the_former_owner_stops(place: str):
    started, release = asyncio.Event(), asyncio.Event()
    calls: list[int] = []

    async def body() -> str:
        calls.append(1)
        started.set()
        if len(calls) == 1:
            await release.wait()
        return f"call {len(calls)}"

    flow = chain(place, body)
    first = asyncio.get_running_loop().create_task(flow.execute(session_id="s"))
    await started.wait()
    assert await flow.resume("s", takeover=True) == "call 2"
    release.set()
    with pytest.raises(LeaseLost):
        await first
    assert [e.kind for e in await events_of(place)].count("step_succeeded") == 1


# Resume.


@pytest.mark.parametrize("name", ["s", "flow.s.1", "flow.s"])
async def test_resume_by_session_by_run_id_and_by_its_beginning(place: str, name: str):
    part = Part("ok", broken=True)
    flow = chain(place, part)
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    part.broken = False
    assert await flow.resume(name) == "ok"


async def test_resume_of_a_finished_run_gives_its_result(place: str):
    part = Part("ok")
    flow = chain(place, part)
    await flow.execute(session_id="s")
    assert await flow.resume("s") == "ok"
    assert len(part.calls) == 1


async def test_resume_of_an_unknown_run_says_so(place: str):
    flow = chain(place, Part())
    await flow.execute(session_id="known")
    with pytest.raises(RunNotFound, match="not found") as caught:
        await flow.resume("knwon")
    assert isinstance(caught.value, ValueError)
    with pytest.raises(ValueError, match="not found"):
        await Engine(place).resume("unknown", flow=flow)


async def test_resume_of_a_run_that_was_not_recorded_says_what_records_one(tmp_path: Path):
    flow = chain(None, Part())
    handle = await Engine(None).start(flow)
    await handle.wait()
    with pytest.raises(RunNotFound, match=r"no run of workflow 'flow' is recorded in file://.*/\.gecko; a run is recorded where it has"):
        await flow.resume(handle.run_id)


async def test_a_unique_beginning_names_a_run_and_an_ambiguous_one_says_so(place: str):
    flow = chain(place, Part())
    for session in ("alpha", "alps"):
        await flow.execute(session_id=session)
    finder = Engine(place)
    assert (await finder.find("flow.alpha")).session == "alpha"
    with pytest.raises(RunNotFound, match=r"alpha.*alps|alps.*alpha"):
        await finder.find("flow.alp")


async def test_an_engine_resumes_what_has_an_import_path_and_asks_for_the_rest(place: str):
    part = Part(broken=True)
    with pytest.raises(StepFailed):
        await chain(place, part).execute(session_id="s")
    with pytest.raises(WrongState, match="import path"):
        await Engine(place).resume("s")


async def test_start_node_holds_for_the_resumed_run_too(place: str):
    first, second = Part("one"), Part("two", broken=True)
    flow = chain(place, first, Part("mid"), second)
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s", start_node="n1")
    with pytest.raises(WrongState, match="n1"):
        await flow.execute(session_id="s", start_node="n2")
    second.broken = False
    assert await flow.execute(session_id="s") == "two"
    assert first.calls == []


# Changed code.


async def test_a_mended_body_may_be_resumed(place: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    with pytest.raises(StepFailed):
        await chain(place, Part("one"), lambda x: int("boom")).execute(session_id="s")
    assert await chain(place, Part("one"), lambda x: f"mended {x}").execute(session_id="s") == "mended one"
    assert "Session 's' goes on with other code than it was driven with last" in caplog.messages


async def test_a_rewired_or_missing_node_is_an_error_unless_accepted(place: str):
    with pytest.raises(StepFailed):
        await chain(place, Part("one"), Part("two"), Part(broken=True)).execute(session_id="s")
    part = Part("three")
    rewired = Workflow("flow", storage=place).add_node("n0", Part("one")).add_node("n2", part).add_edge("n0", "n2").set_entry_point("n0")
    for go in (rewired.resume("s"), rewired.execute(session_id="s")):
        with pytest.raises(DefinitionError, match=r"'n1'.*accept=True"):
            await go
    assert part.calls == []
    assert await rewired.resume("s", accept=True) == "three"


async def test_a_node_that_was_added_may_be_resumed_and_an_event_says_that_the_definition_changed(place: str):
    with pytest.raises(StepFailed):
        await chain(place, Part("one"), Part(broken=True)).execute(session_id="s")
    assert await chain(place, Part("one"), Part("two"), Part("three")).execute(session_id="s") == "three"
    resumed = [e.data["changed"] for e in await events_of(place) if e.kind == "run_resumed"]
    assert resumed == [True]


async def test_an_unchanged_definition_is_no_change(place: str):
    part = Part(broken=True)
    for _ in range(2):
        with pytest.raises(StepFailed):
            await chain(place, part).execute(session_id="s")
    assert [e.data["changed"] for e in await events_of(place) if e.kind == "run_resumed"] == [False]


# What is not done again, and comes back as it was.


async def test_a_decided_condition_is_never_asked_again(place: str):
    asked: list[int] = []
    part = Part("end", broken=True)
    flow = chain(place, Part("one")).add_node("x", part).add_edge("n0", "x", lambda ctx: asked.append(1) or True)
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    part.broken = False
    assert await flow.execute(session_id="s") == "end"
    assert asked == [1]


async def test_a_condition_that_had_failed_is_not_asked_again_either(place: str):
    asked: list[int] = []

    def broken(ctx: Context) -> bool:
        asked.append(1)
        raise ValueError

    part = Part("end", broken=True)
    flow = chain(place, Part("one"), part).add_node("x", Part("x")).add_edge("n0", "x", broken)
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    part.broken = False
    assert await flow.execute(session_id="s") == "end"
    assert asked == [1]
    assert [e.kind for e in await events_of(place)].count("condition_failed") == 1


async def test_jumps_are_resumed_with_their_input(place: str):
    part = Part("end", broken=True)
    jumper = Part(Next("t", input={"k": None}))
    flow = chain(place, jumper).add_node("t", lambda x: x).add_node("u", part).add_edge("t", "u")
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    part.broken = False
    await flow.execute(session_id="s")
    assert (part.calls, len(jumper.calls)) == ([{"k": None}] * 2, 1)


@pytest.mark.parametrize("sent", [Next("t"), Next("t", input=Next.none), Next("t", input=0)], ids=repr)
async def test_every_kind_of_jump_input_comes_back_the_same(place: str, sent: Next):
    part = Part("end", broken=True)
    flow = chain(place, Part("one"), lambda: sent).add_node("t", part)
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    part.broken = False
    await flow.execute(session_id="s")
    assert len(part.calls) == 2
    assert part.calls[0] == part.calls[1]
    assert type(part.calls[0]) is type(part.calls[1])


async def test_live_and_resumed_runs_see_the_same(place: str):
    """All that a body can see: inputs of joins, last output, history in order, state, rows."""
    seen: list[Any] = []
    broken = [True]

    def look(x: Any, ctx: Context) -> str:
        rows = [(r.node, r.step_id, r.status, r.attempt) for r in ctx.executions]
        seen.append([x, ctx.input, ctx.get_last_output(), list(ctx.history.items()), dict(ctx.state), rows, ctx.step_id])
        if broken[0]:
            raise ValueError
        return "end"

    flow = Workflow("flow", storage=place, reducers={"all": "extend", "sum": "add"})
    flow.add_node("a", lambda x, ctx: ctx.state.update(all=["a"], sum=1, gone=1, tuple=(1, {2})) or [x])
    for name in "bc":
        flow.add_node(
            name, lambda x, ctx: ctx.state["all"].append(ctx.node) or ctx.state.update(sum=ctx.state["sum"] + 2) or {"from": ctx.node}
        )
    flow.add_node("d", lambda ctx: ctx.state.pop("gone") and None).add_node("skipped", lambda: 1).add_map("m", lambda x: [x, b"b"])
    flow.add_node("e", look)
    flow.add_edge("a", "b").add_edge("a", "c").add_edge("a", "d").add_edge("a", "m").add_edge("a", "skipped", lambda ctx: False)
    for name in ("b", "c", "d", "m"):
        flow.add_edge(name, "e")
    flow.set_entry_point("a")
    with pytest.raises(StepFailed):
        await flow.execute("in", session_id="s")
    broken[0] = False
    assert await flow.execute("in", session_id="s") == "end"
    assert seen[0] == seen[1]
    assert seen[0][0] == {"b": {"from": "b"}, "c": {"from": "c"}, "d": None, "m": [["in", b"b"]]}
    assert seen[0][4] == {"all": ["a", "b", "c"], "sum": 5, "tuple": (1, {2})}


async def test_the_step_id_is_the_same_in_a_resumed_run(place: str):
    ids: list[str] = []
    broken = [True]
    flow = chain(place, lambda ctx: ids.append(ctx.step_id) or (int("boom") if broken[0] else "ok"))
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    broken[0] = False
    await flow.execute(session_id="s")
    assert ids == ["flow.s.1/n0/1"] * 2


async def test_an_error_on_step_skip_is_not_performed_again(place: str):
    part, end = Part(broken=True), Part("end", broken=True)
    flow = Workflow("flow", storage=place).add_node("a", part, on_error="skip").add_node("b", end).add_edge("a", "b").set_entry_point("a")
    with pytest.raises(StepFailed, match="'b'"):
        await flow.execute(session_id="s")
    end.broken = False
    assert await flow.execute(session_id="s") == "end"
    assert (len(part.calls), end.calls) == (1, [None, None])


async def test_a_cancelled_session_is_an_error_and_new_runs_again(place: str):
    part = Part(broken=True)
    with pytest.raises(StepFailed):
        await chain(place, part).execute(session_id="s")
    await Engine(place).cancel("s")
    part.broken = False
    with pytest.raises(RunCancelled, match="new=True"):
        await chain(place, part).execute(session_id="s")
    assert await chain(place, part).execute(session_id="s", new=True) == "done"


async def test_max_steps_counts_over_a_resume(place: str):
    rounds: list[int] = []
    broken = [True]

    def body(x: int) -> Any:
        rounds.append(x)
        if x == 2 and broken[0]:
            raise ValueError
        return Next("n0", input=x + 1) if x < 3 else "end"

    with pytest.raises(StepFailed):
        await chain(place, body, max_steps=3).execute(0, session_id="s")
    broken[0] = False
    assert await chain(place, body, max_steps=3).execute(session_id="s") == "end"
    assert rounds == [0, 1, 2, 2, 3]


def nested(place: str, *names: str, broken: list[bool], inside: int = 1) -> Workflow:
    """A workflow `flow` whose node `sub` is a chain (or a workflow that holds the chain) of which the last node may fail."""
    inner = Workflow("inner")
    for i, name in enumerate(names):
        inner.add_node(name, lambda x, ctx: int("boom") if broken[0] and ctx.node == names[-1] else [*(x or []), ctx.node])
        if i:
            inner.add_edge(names[i - 1], name)
    inner.set_entry_point(names[0])
    for _ in range(inside - 1):
        inner = Workflow("between").add_node("deeper", inner).set_entry_point("deeper")
    return Workflow("flow", storage=place).add_node("sub", inner).set_entry_point("sub")


@pytest.mark.parametrize("inside", [1, 2])
@pytest.mark.parametrize("names", ["xynz", "xwz", "xnyz"], ids=["inserted before what failed", "renamed", "inserted before what finished"])
async def test_a_changed_sub_workflow_is_rewired_by_the_name_of_its_outer_node(place: str, names: str, inside: int):
    broken = [True]
    with pytest.raises(StepFailed):
        await nested(place, *"xyz", broken=broken, inside=inside).execute(session_id="s")
    with pytest.raises(DefinitionError, match="gone or rewired now: 'sub'") as caught:
        await nested(place, *names, broken=broken, inside=inside).execute(session_id="s")
    assert caught.value.where == "sub"


@pytest.mark.parametrize("inside", [1, 2])
@pytest.mark.parametrize(("names", "output"), [("xynz", "xynz"), ("xwz", "xwz"), ("xnyz", "xyz")], ids=["xynz", "xwz", "y had finished"])
async def test_a_changed_sub_workflow_that_is_accepted_goes_on(place: str, names: str, output: str, inside: int):
    broken = [True]
    with pytest.raises(StepFailed):
        await nested(place, *"xyz", broken=broken, inside=inside).execute(session_id="s")
    broken[0] = False
    assert await nested(place, *names, broken=broken, inside=inside).resume("s", accept=True) == list(output)


async def test_changed_entries_are_rewired(place: str):
    broken = [True]

    def flow(*entries: str) -> Workflow:
        made = Workflow("flow", storage=place)
        for name in "ab":
            made.add_node(name, lambda ctx: int("boom") if broken[0] else ctx.node)
        return made.add_edge("a", "b").set_entry_point(*entries)

    with pytest.raises(StepFailed):
        await flow("a").execute(session_id="s")
    broken[0] = False
    with pytest.raises(DefinitionError, match="gone or rewired now: 'b'"):
        await flow("a", "b").execute(session_id="s")
    assert await flow("a", "b").resume("s", accept=True) == "b"


async def test_what_was_accepted_is_what_the_next_resume_is_compared_with(place: str):
    first, second = Part("one"), Part("two", broken=True)

    def rewired() -> Workflow:
        return chain(place, first, second).add_node("between", Part()).add_edge("n0", "between").add_edge("between", "n1")

    with pytest.raises(StepFailed):
        await chain(place, first, second).execute(session_id="s")
    with pytest.raises(DefinitionError):
        await rewired().execute(session_id="s")
    with pytest.raises(StepFailed):
        await rewired().resume("s", accept=True)
    second.broken = False
    assert await rewired().execute(session_id="s") == "two"
    assert [e.data["changed"] for e in await events_of(place) if e.kind == "run_resumed"] == [True, False]


async def test_a_mended_body_is_told_and_the_same_graph_is_no_change(place: str):
    def told(events: list[Event]) -> list[tuple[bool, bool]]:
        return [(e.data["changed"], e.data["mended"]) for e in events if e.kind == "run_resumed"]

    def flow(body: Any) -> Workflow:
        return chain(place, Part("first"), body)

    def broken(x: Any) -> Any:
        raise ValueError(x)

    def mended(x: Any) -> Any:
        return [x]

    for _ in range(2):
        with pytest.raises(StepFailed):
            await flow(broken).execute(session_id="s")
    assert await flow(mended).execute(session_id="s") == ["first"]
    assert told(await events_of(place)) == [(False, False), (False, True)]


async def test_an_unknown_start_node_is_an_unknown_name_and_nothing_is_recorded(place: str):
    with pytest.raises(UnknownName, match="'n9' not found; did you mean 'n0'") as caught:
        await chain(place, Part()).execute(session_id="s", start_node="n9")
    assert isinstance(caught.value, ValueError)
    assert await Engine(place).runs() == []


async def test_asking_for_a_session_that_has_ended_writes_nothing(tmp_path: Path):
    flow, failing = chain(str(tmp_path), Part()), chain(str(tmp_path), Part(broken=True), name="broken")
    assert await flow.execute(1, session_id="s") == "done"
    with pytest.raises(StepFailed):
        await failing.execute(1, session_id="s")
    await Engine(str(tmp_path)).cancel("broken.s.1")

    def files() -> dict[str, int]:
        return {str(path): path.stat().st_size for path in (tmp_path / "runs").rglob("*.arrows")}

    before = files()
    for _ in range(3):
        assert await flow.execute(1, session_id="s") == "done"
        with pytest.raises(SessionInUse):
            await flow.execute(2, session_id="s")
        with pytest.raises(RunCancelled):
            await failing.execute(1, session_id="s")
    assert files() == before


async def test_storage_that_is_none_is_refused_by_what_it_is():
    with pytest.raises(ConfigurationError, match="storage is a folder, a URL, a Log or False, not 5"):
        await chain(5, Part()).execute(session_id="s")


async def test_a_log_that_is_removed_under_a_run_is_said_to_be_gone(tmp_path: Path):
    def remove() -> None:
        shutil.rmtree(tmp_path / "runs")

    with pytest.raises(LeaseLost, match=r"the log of run 'flow\.s\.1' is gone: .*1\.arrows was removed while the run went on"):
        await chain(str(tmp_path), remove, Part()).execute(session_id="s")


@pytest.mark.parametrize("is_async", [True, False])
async def test_an_owner_whose_run_was_taken_over_performs_no_more_of_its_layer(place: str, is_async: bool):
    ran: list[str] = []
    fifth, loop = asyncio.Event(), asyncio.get_running_loop()

    def note(who: str) -> float:
        ran.append(who)
        if ran.count("old") == 5:
            loop.call_soon_threadsafe(fifth.set)
        return 0.05 if who == "old" and ran.count("old") > 4 else 0.0

    def flow_of(who: str) -> Workflow:
        async def body(x: int) -> int:
            await asyncio.sleep(note(who))
            return x

        def body_now(x: int) -> int:
            time.sleep(note(who))
            return x

        return Workflow("taken", storage=place).add_map("each", body if is_async else body_now, max_concurrency=1).set_entry_point("each")

    old = await Engine(place).start(flow_of("old"), list(range(400)), session_id="s")
    await fifth.wait()
    new = await Engine(place).resume("s", flow=flow_of("new"), takeover=True)
    with pytest.raises(LeaseLost):
        await old.wait()
    assert await new.wait() == list(range(400))
    assert ran.count("old") < 100
