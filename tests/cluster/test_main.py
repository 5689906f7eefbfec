"""`python -m cluster run`: what a Ray job starts. Here without Ray; the tests on Ray are elsewhere."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.__main__ import main
from cluster.connect import IN_A_JOB

FLOW = "from engine import Workflow\nflow = Workflow('w').add_node('a', lambda x: [x, print('printed')]).set_entry_point('a')\n"
OWN = "own = Workflow('own', storage='own').add_node('a', lambda x: x).set_entry_point('a')\n"


@pytest.fixture(autouse=True)
def flow_file() -> None:
    Path("flow.py").write_text(FLOW + "bad = Workflow('bad').add_node('a', lambda x: 1 / 0).set_entry_point('a')\n" + OWN)


def test_the_result_is_alone_on_standard_output(capsys: pytest.CaptureFixture[str]):
    assert main(["run", "flow.py:flow", "--input", "1", "--session", "s", "--executor", "inline"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [1, None]
    assert "run w.s.1, recorded in file://" in err
    assert re.search(r"^completed in .*, 1 step$", err, re.MULTILINE)


@pytest.mark.parametrize(
    "words", [["flow.py:flow"], ["flow.py:flow", "--storage", "there"], ["flow.py:flow", "--storage", "file:there"], ["flow.py:own"]]
)
def test_a_ray_job_does_not_record_in_its_own_folder(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]):
    monkeypatch.setenv(IN_A_JOB, "{}")
    before = set(Path.cwd().iterdir())
    assert main(["run", *words, "--executor", "inline"]) == 2
    assert "lies in the folder of this Ray job, which is Ray's cache and goes away; pass --storage with a path" in capsys.readouterr().err
    assert {path.name for path in set(Path.cwd().iterdir()) - before} <= {"__pycache__"}


@pytest.mark.parametrize("place", ["{here}/there", "file://{here}/there", "~/there", "memory://there"])
def test_a_ray_job_records_in_a_place_that_does_not_depend_on_its_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
):
    monkeypatch.setenv(IN_A_JOB, "{}")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert main(["run", "flow.py:flow", "--executor", "inline", "--storage", place.format(here=Path.cwd())]) == 0
    assert "there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["flow.py:nothing"], 2, "error: workflow in 'flow.py': 'nothing' not found"),
        (["flow.py:flow", "--input", "{"], 2, "error: --input is no JSON"),
        (["flow.py:bad"], 1, "error: Workflow execution failed: step 'a', attempt 1: ZeroDivisionError"),
        (["flow.py:flow", "--session", "../x"], 2, "must not contain '/'"),
        (["flow.py:flow", "--timeout", "-1"], 2, "error: --timeout must be a number of seconds"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_status(capsys: pytest.CaptureFixture[str], words: list[str], status: int, told: str):
    assert main(["run", *words, "--executor", "inline"]) == status
    out, err = capsys.readouterr()
    assert (out, len([line for line in err.splitlines() if told in line])) == ("", 1)


@pytest.mark.parametrize("words", [["--timeout", "0"], []])
def test_a_run_that_ends_early_says_the_command_that_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str]
):
    Path("stuck.py").write_text(
        "import os\nfrom engine import Workflow\n"
        "flow = Workflow('Stuck').add_node('a', lambda x: x if 'MENDED' in os.environ else 1 / 0).set_entry_point('a')\n"
    )
    assert main(["run", "stuck.py:flow", "--input", "7", "--storage", "my place", "--executor", "inline", *words]) == 1
    found = re.search(
        r"(?:; |mend the cause, then )go on with: python -m (cluster run stuck.py:flow --session stuck-\w+ .*)", capsys.readouterr().err
    )
    assert found is not None
    monkeypatch.setenv("MENDED", "1")
    assert main(shlex.split(found[1])[1:]) == 0
    assert capsys.readouterr().out == "7\n"


def test_an_error_of_the_system_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "flow.py")

    monkeypatch.setattr("cluster.__main__.load_target", refuse)
    assert main(["run", "flow.py:flow"]) == 3
    assert capsys.readouterr().err == "error: flow.py: Permission denied\n"


def test_wrong_usage_is_status_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["run"])
    assert left.value.code == 2
    assert "TARGET" in capsys.readouterr().err


def test_a_lone_surrogate_is_printed_as_its_escape(capsys: pytest.CaptureFixture[str]):
    Path("lone.py").write_text(
        "from engine import Workflow\n"
        "def fail(x):\n    raise ValueError('cannot open na\\udcffme')\n"
        "flow = Workflow('w').add_node('a', lambda x: ['na\\udcffme']).set_entry_point('a')\n"
        "bad = Workflow('bad').add_node('a', fail).set_entry_point('a')\n"
    )
    assert main(["run", "lone.py:flow", "--executor", "inline"]) == 0
    out = capsys.readouterr().out
    assert out == '["na\\udcffme"]\n'
    assert json.loads(out) == ["na\udcffme"]
    assert main(["run", "lone.py:bad", "--executor", "inline"]) == 1
    assert "ValueError: cannot open na\\udcffme" in capsys.readouterr().err


def test_hints_are_in_flags(capsys: pytest.CaptureFixture[str]):
    words = ["run", "flow.py:flow", "--executor", "inline", "--session", "s", "--input"]
    assert main([*words, "1"]) == 0
    assert main([*words, "2"]) == 2
    assert "leave the input out to go on, or pass --new (of `run`) for a new run" in capsys.readouterr().err


@pytest.mark.slow
def test_warnings_are_lines_with_hints_in_flags():
    words = ["run", "flow.py:flow", "--executor", "inline", "--session", "s", "--input", "1"]
    assert main(words) == 0
    done = subprocess.run([sys.executable, "-m", "cluster", *words], capture_output=True, text=True, check=True)
    assert done.stdout == "[1,null]\n"
    assert "this is its result; --new (of `run`) runs it again" in done.stderr
    assert "completed in" not in done.stderr


def test_a_traceback_comes_with_debug_alone(capsys: pytest.CaptureFixture[str]):
    for words, shown in (([], False), (["--debug"], True)):
        assert main(["run", "flow.py:bad", "--executor", "inline", *words]) == 1
        assert ("Traceback" in capsys.readouterr().err) is shown
