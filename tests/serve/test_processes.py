"""The command as a process: signals drain it, kills do not harm it, and another process watches. Finished steps are never repeated."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

FLOW = """
import os, time
from pathlib import Path
from engine import Workflow

def work(i):
    with open("done.txt", "a") as file:
        file.write(f"{i}\\n")
    if i == 3:
        Path("at three").touch()
        while not Path("gate").exists():
            time.sleep(0.005)
    return i * i

def shout(n):
    for _ in range(n):
        print("x" * 999)
    os.write(1, b"written to the descriptor\\n")
    return "quiet"

flow = (Workflow("w", max_concurrency=1).add_node("list", lambda n: list(range(n))).add_map("work", work).add_node("sum", sum)
        .add_edge("list", "work").add_edge("work", "sum").set_entry_point("list"))
shouting = Workflow("s").add_node("shout", shout).set_entry_point("shout")
"""
DEAF = """
import asyncio, time
from engine import RACE, Team, Workflow

async def deaf(x):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def threaded(x):
    await asyncio.to_thread(time.sleep, 60)

async def quick(x):
    await asyncio.sleep(0.05)
    return "won"

flow = Workflow("deaf").add_node("race", Team([deaf, quick], strategy=RACE)).set_entry_point("race")
threads = Workflow("threads").add_node("race", Team([threaded, quick], strategy=RACE)).set_entry_point("race")
"""
GECKO = [sys.executable, "-c", "from serve.cli import main; main()"]


def wait_for(condition: Callable[[], object]) -> None:
    """Return when a condition holds; another process makes it true."""
    until, pause = time.monotonic() + 60, threading.Event()
    while not condition():
        assert time.monotonic() < until, "what another process was to do did not happen within a minute"
        pause.wait(0.005)


class Started:
    """Starts commands, and sees to it that none outlives its test."""

    def __init__(self, root: Path) -> None:
        self.environment = os.environ | {"PYTHONPATH": str(root)}
        self.processes: list[subprocess.Popen[str]] = []

    def __call__(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*GECKO, *words], env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )
        self.processes.append(process)
        return process

    def end(self, *words: str) -> tuple[int, str, str]:
        """Perform a command to its end."""
        process = self(*words)
        out, err = process.communicate(timeout=90)
        return process.returncode, out, err


@pytest.fixture
def gecko(root: Path) -> Iterator[Started]:
    """Give the command as processes, in a folder with a workflow that waits at its fourth item until there is a file `gate`."""
    Path("flow.py").write_text(FLOW)
    started = Started(root)
    yield started
    for process in started.processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def blocked(gecko: Started) -> subprocess.Popen[str]:
    """A run that is in the middle of its fourth item of six."""
    process = gecko("run", "flow.py:flow", "--input", "6", "--session", "s")
    wait_for(lambda: Path("at three").exists() or process.poll() is not None)
    assert process.poll() is None
    return process


def performed() -> Counter[int]:
    return Counter(map(int, Path("done.txt").read_text().split()))


@pytest.mark.parametrize("name", ["flow", "threads"])
def test_the_command_does_not_wait_for_a_loser_that_does_not_stop(gecko: Started, name: str):
    Path("deaf.py").write_text(DEAF)
    begun = time.monotonic()
    status, out, err = gecko.end("run", f"deaf.py:{name}", "--session", "s")
    assert (status, json.loads(out)[0]["result"]) == (0, "won")
    assert time.monotonic() - begun < 30
    assert "left behind: a body that was stopped and goes on all the same" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_and_the_command_that_is_printed_goes_on(gecko: Started, number: signal.Signals):
    process = blocked(gecko)
    process.send_signal(number)
    assert process.stderr is not None
    for line in process.stderr:
        if "stopping at a checkpoint" in line:
            break
    Path("gate").touch()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    found = re.search(r"stopped: run 'w\.s\.1' was paused after 5 finished steps; go on with: gecko (.*)", err)
    assert found is not None, err
    assert performed() == {0: 1, 1: 1, 2: 1, 3: 1}
    status, out, err = gecko.end(*shlex.split(found[1]))
    assert (status, out) == (0, "55\n")
    assert ", 9 steps, 5 of them before" in err
    assert set(performed().values()) == {1}


def test_a_second_signal_leaves_at_once_and_the_run_goes_on(gecko: Started):
    process = blocked(gecko)
    wait_for(lambda: gecko.end("runs", "events", "s")[1].count("step_succeeded") >= 4)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    for line in process.stderr:
        if "once more leaves at once" in line:
            break
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 130
    Path("gate").touch()
    assert gecko.end("run", "flow.py:flow", "--session", "s")[:2] == (0, "55\n")
    assert performed() == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}


def test_a_killed_run_goes_on_and_repeats_only_what_was_running(gecko: Started):
    process = blocked(gecko)
    wait_for(lambda: gecko.end("runs", "events", "s")[1].count("step_succeeded") >= 4)
    process.kill()
    process.wait()
    listed = json.loads(gecko.end("runs", "list", "--json")[1])
    assert [(run["run_id"], run["status"], run["owner"]) for run in listed] == [("w.s.1", "interrupted", None)]
    assert "is interrupted" in gecko.end("runs", "watch", "s")[2]
    Path("gate").touch()
    assert gecko.end("run", "flow.py:flow", "--session", "s")[:2] == (0, "55\n")
    assert performed() == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}


def test_another_process_watches_a_run_to_its_end(gecko: Started):
    process = blocked(gecko)
    watching = gecko("runs", "watch", "w.s", "--json")
    assert watching.stdout is not None
    seen: list[dict[str, object]] = []
    for line in watching.stdout:
        seen.append(json.loads(line))
        if seen[-1]["step_id"] == "w.s.1/work/1/2":
            Path("gate").touch()
    assert watching.wait(timeout=60) == 0
    assert process.wait(timeout=60) == 0
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1]["kind"] == "run_completed"


def test_a_run_that_is_driven_refuses_a_second_driver(gecko: Started):
    process = blocked(gecko)
    for words in (("run", "flow.py:flow", "--session", "s"), ("runs", "resume", "s")):
        hurried = gecko(*words)
        assert hurried.stderr is not None
        assert hurried.stderr.readline().startswith(f"run 'w.s.1' is driven by process {process.pid} on ")
        hurried.send_signal(signal.SIGINT)
        assert (hurried.communicate(timeout=60)[1], hurried.returncode) == ("error: interrupted before the run had begun\n", 130)
    status, out, err = gecko.end("run", "flow.py:flow", "--session", "s")  # which waits ten seconds for an owner that may be dying
    assert (status, out) == (3, "")
    assert re.search(rf"error: run 'w\.s\.1' is driven .*{process.pid}", err), err
    Path("gate").touch()
    assert process.wait(timeout=60) == 0


def test_what_bodies_print_is_no_result_however_much_it_is(gecko: Started):
    status, out, err = gecko.end("run", "flow.py:shouting", "--input", "100000", "--session", "s")
    assert (status, out) == (0, '"quiet"\n')
    assert len(err) > 99_000_000
    assert "written to the descriptor" in err
    assert "shout" in gecko.end("runs", "show", "s")[1]


@pytest.mark.parametrize("command", [GECKO, [sys.executable, "-m", "cluster"]])
def test_what_is_printed_as_the_process_ends_is_no_result(root: Path, command: list[str]):
    body = "import atexit\natexit.register(print, 'printed late')\nfrom engine import Workflow\n"
    Path("late.py").write_text(f"{body}flow = Workflow('late').add_node('a', lambda: 1).set_entry_point('a')\n")
    words = [*command, "run", "late.py:flow", "--executor", "inline", "--storage", str(Path("runs").resolve())]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert "printed late" in done.stderr


def test_a_terminal_shows_a_tree_and_plain_output_shows_lines(gecko: Started):
    Path("gate").touch()
    import pty

    leader, follower = pty.openpty()
    command = [*GECKO, "run", "flow.py:flow", "--input", "6"]
    environment = gecko.environment | {"TERM": "xterm"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=follower, stdin=subprocess.DEVNULL, text=True)
    gecko.processes.append(process)
    os.close(follower)
    shown = b""
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the other end was closed
            break
        if not data:
            break
        shown += data
    os.close(leader)
    assert (process.wait(timeout=60), process.stdout.read() if process.stdout else "") == (0, "55\n")
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown.decode())
    assert "w  completed" in text
    assert re.search(r"\u2713 work  6 items", text)
    _, _, err = gecko.end("run", "flow.py:flow", "--input", "6")
    assert [line for line in err.splitlines() if "\x1b" in line or "\u2713" in line] == []


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_the_command_is_loaded_ends_without_a_traceback(gecko: Started, ignored: bool):
    Path("typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('went on')\n")
    handler = "SIG_IGN" if ignored else "default_int_handler"  # said, since whoever starts tests in the background ignores it for them
    begin = f"import signal; signal.signal(signal.SIGINT, signal.{handler})\n"
    command = [sys.executable, "-c", f"{begin}from serve.start import main; main()", "runs", "list"]
    done = subprocess.run(command, env=gecko.environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == ((1, "went on\n") if ignored else (130, "error: interrupted\n"))
