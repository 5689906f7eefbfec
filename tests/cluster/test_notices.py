"""What commands write on standard error: one line each, with hints in the flags that one types."""

import logging
from pathlib import Path

import pytest

import engine
from cluster.notices import LONGEST_LINE, Notices, failure_text, in_flags, one_line, place_of, trace_text
from engine.errors import RunBusy, RunPaused, StepFailed


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        ("pass new=True to run again", "pass --new (of `run`) to run again"),
        ("resume it with accept=True", "resume it with --accept (of `gecko runs resume`)"),
        ("or resume with takeover=True", "or resume with --takeover (of `gecko runs resume`)"),
        ("or say executor='inline'", "or say --executor inline"),
        ("pass storage=... with a path", "pass --storage with a path"),
        ("give it a session_id and storage", "give it a --session and storage"),
        ("Workflow(max_steps=...), renew=True", "Workflow(max_steps=...), renew=True"),
    ],
)
def test_hints_for_programs_are_turned_into_flags(hint: str, told: str):
    assert in_flags(hint) == told


def test_what_user_code_said_is_not_taken_for_a_hint(capsys: pytest.CaptureFixture[str]):
    assert failure_text(RunBusy("wait, or resume with takeover=True")) == "wait, or resume with --takeover (of `gecko runs resume`)"
    assert failure_text(StepFailed("step 'a': ValueError: new=True is no option")) == "step 'a': ValueError: new=True is no option"
    for name in ("engine.body", "my.flows"):
        Notices().handle(logging.makeLogRecord({"name": name, "levelno": 30, "levelname": "WARNING", "msg": "new=True"}))
    assert capsys.readouterr().err == "warning: new=True\n" * 2


def test_an_error_is_one_line_without_control_characters():
    assert one_line("a\n  b\t\x1b[31mc\r\n") == "a b [31mc"
    assert one_line("x" * 50, limit=10) == "xxxxxxxxxx... (40 characters more)"
    assert one_line("na\udcffme") == r"na\udcffme"


def test_what_is_noted_on_an_error_is_told_whole_however_long_its_text_is():
    error = StepFailed("x" * 2 * LONGEST_LINE)
    error.add_note("go on with: gecko run y")
    assert failure_text(error).endswith(" characters more); go on with: gecko run y")
    paused = RunPaused("it was paused; resume it to go on")
    assert failure_text(paused) == "it was paused; resume it to go on"
    paused.add_note("go on with: gecko run y")
    assert failure_text(paused) == "it was paused; go on with: gecko run y"


def test_a_notice_tells_what_was_put_beside_it(capsys: pytest.CaptureFixture[str]):
    record = logging.makeLogRecord(
        {"name": "n", "levelno": 30, "levelname": "WARNING", "msg": "Steps wrote %s key", "args": ("one",), "key": "k", "run_id": "r"}
    )
    record._ray_timestamp_ns = 1  # as the record factory of an imported Ray does
    Notices().handle(record)
    assert capsys.readouterr().err == "warning: Steps wrote one key, key 'k'\n"


def test_a_notice_says_nothing_twice_and_hints_in_flags(capsys: pytest.CaptureFixture[str]):
    told = {"levelno": 30, "levelname": "WARNING", "msg": "%r had ended: new=True runs it again", "args": ("k",), "key": "k", "number": 1}
    Notices().handle(logging.makeLogRecord({"name": "engine.runtime.session", **told}))
    assert capsys.readouterr().err == "warning: 'k' had ended: --new (of `run`) runs it again, number 1\n"


def frames(*files: str) -> str:
    return "".join(f'  File "{file}", line {number}, in f\n    x = 1\n' for number, file in enumerate(files, 1))


OURS = f"{Path(engine.__file__).parent}/runtime/step.py"


@pytest.mark.parametrize(
    ("trace", "place"),
    [
        (frames(OURS, "/my/flow.py", "/my/other.py"), "/my/other.py:3"),
        (frames(OURS, "/my/flow.py", "/usr/lib/python3.11/json/decoder.py", "/v/lib/python3.11/site-packages/x.py"), "/my/flow.py:2"),
        (frames("/v/lib/python3.11/site-packages/engine/runtime/step.py", "/my/flow.py", "<frozen os>", "<string>"), "/my/flow.py:2"),
        (frames("/my/flow.py") + "KeyError: 1\n\nThe above ...\n\n" + frames("/my/a.py", "/my/flow.py"), "/my/flow.py:2"),
        (
            frames(OURS, "/v/site-packages/engine/x.py", "/v/site-packages/flows.py", "/usr/lib/python3.11/os.py"),
            "/v/site-packages/flows.py:3",
        ),
        (frames(OURS, "/usr/lib/python3.11/os.py"), None),
        ("  | " + frames("/my/group.py").strip(), "/my/group.py:1"),
        ("", None),
        (None, None),
    ],
)
def test_the_place_of_an_error_is_the_innermost_frame_of_the_user_s_code(trace: str | None, place: str | None):
    assert place_of(trace) == place


def test_a_traceback_does_not_say_the_error_that_the_line_says():
    try:
        raise StepFailed("no\nluck")
    except StepFailed as error:
        error.add_note("go on")
        text = trace_text(error)
    assert text.startswith("Traceback")
    assert "luck" not in text.partition("raise StepFailed")[2].partition("\n")[2]
    assert "go on" not in text
