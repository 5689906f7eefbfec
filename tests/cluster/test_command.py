"""What the commands share: session names, exit statuses, errors as lines, and the command that goes on."""

import errno
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster.attend import Interrupted
from cluster.command import Told, command_text, failure_of, free_session, result_text
from cluster.notices import failure_text
from engine import Engine, Workflow
from engine.core.events import Event
from engine.core.ids import check_name
from engine.errors import (
    ClusterUnavailable,
    ConfigurationError,
    CorruptCheckpoint,
    GeckoError,
    InDoubt,
    LeaseLost,
    NotStorable,
    RunBusy,
    RunCancelled,
    RunNotFound,
    RunPaused,
    RunTimedOut,
    StateConflict,
    StepFailed,
    StepLimitReached,
    StoreUnavailable,
    WorkerLost,
)
from engine.observe.progress import Progress
from engine.ports import Row, RunKey


@pytest.mark.parametrize("place", ["memory://free", False])
@pytest.mark.anyio
async def test_a_free_session_is_a_name_that_nothing_is_recorded_under(place: Any):
    engine = Engine(place)
    taken = {await free_session("My flow & x", engine.log) for _ in range(20)}
    assert all(name.startswith("my-flow-x-") for name in taken)
    assert len(taken) > 1
    assert check_name(taken.pop(), "a session id") is None


@pytest.mark.anyio
async def test_a_free_session_is_none_that_a_run_has(monkeypatch: pytest.MonkeyPatch):
    engine = Engine("memory://taken")
    flow = Workflow("w").add_node("a", lambda x: x).set_entry_point("a")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0123456789abcdef")
    for name in ("w-0123", "w-01234", "w-012345"):
        assert await free_session("w", engine.log) == name
        await (await engine.start(flow, session_id=name)).wait()


async def begun(place: Any = "told") -> Told:
    """Tell of a run that has begun."""
    told = Told(Engine(place), "gecko run x --session s")
    handle = await Engine(place).start(Workflow("w").add_node("a", lambda x: x).set_entry_point("a"), session_id="s")
    await handle.wait()
    told.begun(handle)
    return told


@pytest.mark.parametrize("kind", [RunTimedOut, RunPaused, StoreUnavailable, WorkerLost, ClusterUnavailable])
@pytest.mark.anyio
async def test_what_stopped_a_run_from_outside_says_the_command_that_goes_on(kind: type[GeckoError]):
    error = kind("it ended\nhere")
    (await begun()).explain(error)
    assert failure_text(error) == "it ended here; go on with: gecko run x --session s"


@pytest.mark.parametrize("kind", [StepFailed, StateConflict, NotStorable, StepLimitReached, InDoubt])
@pytest.mark.anyio
async def test_what_comes_again_while_its_cause_is_there_says_to_mend_that_first(kind: type[GeckoError]):
    error = kind("it failed")
    (await begun()).explain(error)
    input_first = "if the input is the cause, give another one with another session or --new (of `run`)"
    assert failure_text(error) == f"it failed; {input_first}; else mend the cause, then go on with: gecko run x --session s"


@pytest.mark.parametrize("error", [RunCancelled("no"), LeaseLost("no"), RunBusy("no"), ConfigurationError("no")])
@pytest.mark.anyio
async def test_an_end_that_a_command_does_not_mend_is_left_as_it_is(error: GeckoError):
    (await begun()).explain(error)
    assert failure_text(error) == "no"


@pytest.mark.anyio
async def test_a_run_that_is_not_recorded_or_has_not_begun_goes_on_with_nothing():
    error = StepFailed("no")
    (await begun(False)).explain(error)
    (await begun("memory://told")).explain(error)
    Told(Engine("told"), "again").explain(error)
    assert failure_text(error) == "no"


@pytest.mark.anyio
async def test_the_last_line_tells_the_time_and_the_steps_of_the_progress(capsys: pytest.CaptureFixture[str]):
    told, progress, now = await begun(), Progress(["a"]), datetime.now(UTC) + timedelta(seconds=1)
    events = [("run_started", "", ""), ("step_succeeded", "a", "r/a/1"), ("step_succeeded", "a", "r/a/2"), ("run_resumed", "", "")]
    events += [("step_succeeded", "a", "r/a/3"), ("run_completed", "", "")]
    capsys.readouterr()
    for number, (kind, node, step) in enumerate(events, 1):
        progress.take(Event("r", number, now + timedelta(seconds=number), kind, node, step, 1, {}))
    told.ended(progress)
    assert capsys.readouterr().err == "completed in 2.0 s, 3 steps, 2 of them before\n"
    assert progress.line(0.0).startswith("2.0 s, completed, 1/1 nodes, 3 steps")


@pytest.mark.anyio
async def test_nothing_is_said_of_the_time_of_a_run_that_had_completed_before(capsys: pytest.CaptureFixture[str]):
    told, progress = await begun(), Progress()
    capsys.readouterr()
    for number, kind in enumerate(("run_started", "run_completed"), 1):
        progress.take(Event("r", number, datetime.fromtimestamp(number, UTC), kind))
    told.ended(progress)
    assert capsys.readouterr().err == ""


def test_a_command_is_written_as_it_is_typed():
    assert (
        command_text("gecko", "run", "a b.py", session="s", storage=None, executor="ray") == "gecko run 'a b.py' --session s --executor ray"
    )


def test_a_result_is_json_where_json_holds_it_and_data_elsewhere():
    assert result_text({"a": [1, "\u00e9"]}, wide=False) == '{"a":[1,"\u00e9"]}'
    assert result_text({"a": 1}, wide=True) == '{\n  "a": 1\n}'
    assert result_text({1: b"x"}, wide=False) == "{1: b'x'}"
    assert "\n" not in result_text({i: set(range(50)) for i in range(50)}, wide=False)
    text = "na\udcffme"
    assert result_text([text], wide=False) == r'["na\udcffme"]'
    assert json.loads(result_text([text], wide=True)) == [text]
    assert result_text({1: text}, wide=False) == r"{1: 'na\udcffme'}"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (StepFailed("it failed"), 1, "error: it failed"),
        (RunPaused("it paused"), 1, "stopped: it paused"),
        (ConfigurationError("no"), 2, "error: no"),
        (RunNotFound("no"), 2, "error: no"),
        (StoreUnavailable("no"), 3, "error: no"),
        (ClusterUnavailable("no"), 3, "error: no"),
        (CorruptCheckpoint("no"), 3, "error: no"),
        (Interrupted("early"), 130, "error: early"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 3, "error: /x: No space left on device"),
        (ModuleNotFoundError("No module named 'ray'"), 3, "error: No module named 'ray'; is gecko-ray installed"),
        (KeyError("x"), 1, "error: KeyError: 'x'; --debug shows where"),
    ],
)
def test_an_error_has_an_exit_status_and_a_line(error: BaseException, status: int, text: str):
    found = failure_of(error)
    assert found[0] == status
    assert found[1].startswith(text)


def test_what_was_traced_is_not_offered_again():
    error = StepFailed("it failed", traceback_text='  File "/my/flow.py", line 7, in f\n')
    assert failure_of(error)[1] == "error: it failed; raised at /my/flow.py:7 (--debug shows the traceback)"
    assert failure_of(error, traced=True)[1] == "error: it failed; raised at /my/flow.py:7"
    assert failure_of(KeyError("x"), traced=True)[1] == "error: KeyError: 'x'"


@pytest.mark.parametrize(("place", "gone"), [("told", False), ("memory://told", True), (False, False)])
@pytest.mark.anyio
async def test_a_storage_in_memory_is_said_to_end_with_the_command(capsys: pytest.CaptureFixture[str], place: Any, gone: bool):
    await begun(place)
    assert ("which is gone when this command ends" in capsys.readouterr().err) is gone


@pytest.mark.parametrize(("place", "goes_on"), [("told", "; go on with: gecko run x --session s"), ("memory://told", ""), (False, "")])
@pytest.mark.anyio
async def test_the_first_signal_is_answered_with_the_command_that_goes_on(capsys: pytest.CaptureFixture[str], place: Any, goes_on: str):
    (await begun(place)).noticed()
    assert capsys.readouterr().err.endswith(f"stopping at a checkpoint; once more leaves at once{goes_on}\n")


@pytest.mark.anyio
async def test_the_wait_for_an_owner_that_lives_is_announced_for_the_run_that_is_meant(capsys: pytest.CaptureFixture[str]):
    engine = Engine("told")
    assert engine.log is not None
    claim = await engine.log.claim(RunKey("w", "s", 1))
    await engine.log.append(claim, [Row(1, 1.0, "run_started")])
    told = Told(engine, "again")
    line = f"run 'w.s.1' is driven by process {os.getpid()} on {socket.gethostname()}: waiting up to 10.0 s for it to end\n"
    for session, n, said in (("s", None, line), ("s", 1, line), ("s", 2, ""), ("t", None, ""), (None, None, "")):
        await told.await_owner("w", session, n)
        assert capsys.readouterr().err == said
    told.noticed()
    assert capsys.readouterr().err == ""
    await engine.log.release(claim)
    await told.await_owner("w", "s")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("place", "told"), [("told", "; gecko runs show r says which"), (False, "")])
@pytest.mark.anyio
async def test_conditions_that_failed_are_told_at_the_end(capsys: pytest.CaptureFixture[str], place: Any, told: str):
    speaker, progress, now = await begun(place), Progress(), datetime.now(UTC) + timedelta(seconds=1)
    for number, kind in enumerate(("run_started", "condition_failed", "condition_failed", "run_completed"), 1):
        progress.take(Event("r", number, now, kind, "a" if kind == "condition_failed" else ""))
    capsys.readouterr()
    speaker.ended(progress)
    assert capsys.readouterr().err.endswith(f"\n2 conditions failed and counted as false{told}\n")
