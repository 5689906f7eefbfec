"""`make demo` as a newcomer types it, and the same audit by the command: killed or stopped in the middle, it repeats next to nothing.

The example runs as it is, but for lines that leave a mark for each file it measures and work for a while, in processes and on a local Ray
of their own.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster import remote
from cluster.runner import script
from engine import Engine, Workflow
from tests.acceptance import marks

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

FILES = 500 * max(2, os.cpu_count() or 1)
FEW = 300
"""Files where what is repeated is none, not a share."""
SPENT = 0.02
"""Seconds of a processor for each file: a kill costs each CPU the file under way and what 20 to 50 ms hold."""
SHARE = FILES // 100
"""Files that may be measured again: one in a hundred."""
WITHIN = 240
"""Seconds after which another process is taken for one that hangs; a demo takes 20 on two idle cores."""
MEASURE = "    measured, imports, findings = measure_file("
GECKO = [sys.executable, "-c", "from serve.cli import main; main()"]


@pytest.fixture
def environment(root: Path) -> Iterator[dict[str, str]]:
    """Give an environment in which a local Ray starts in a folder of its own."""
    folder = tempfile.mkdtemp(prefix="gecko", dir="/tmp" if Path("/tmp").is_dir() else None)
    yield os.environ | {"PYTHONPATH": str(root), "RAY_TMPDIR": folder, "PYTHONUNBUFFERED": "1"}
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def example(root: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Copy the example, with a mark for each file that is measured, and make a tree of `request.param` files for it."""
    files = getattr(request, "param", FILES)
    (tmp_path / "tree").mkdir()
    (tmp_path / "marks").mkdir()
    for number in range(files):
        (tmp_path / "tree" / f"m{number}.py").write_text(f"import m{(number + 1) % files}\n")
    (tmp_path / "examples").mkdir()
    shutil.copy(root / "examples" / "audit_report.py", tmp_path / "examples")
    source = (root / "examples" / "audit.py").read_text()
    assert source.count(MEASURE) == 1
    mark = f'    __import__("tests.acceptance.marks").acceptance.marks.leave({str(tmp_path / "marks")!r}, file["path"])\n'
    work = f"    until = time.thread_time() + {SPENT}\n    while time.thread_time() < until:\n        pass\n"
    path = tmp_path / "examples" / "audit.py"
    path.write_text(source.replace(MEASURE, mark + work + MEASURE))
    return path


def wait_for(condition: Callable[[], object]) -> None:
    """Return when a condition holds; another process makes it true."""
    until, pause = time.monotonic() + WITHIN, threading.Event()
    while not condition():
        assert time.monotonic() < until, f"what another process was to do did not happen within {WITHIN} s"
        pause.wait(0.01)


def demo(example: Path, environment: dict[str, str], *options: str) -> tuple[int, str]:
    """Run the demo to its end; return its status and what it said."""
    done = subprocess.run(typed(example, *options), env=environment, capture_output=True, text=True, check=False, timeout=WITHIN)
    return done.returncode, done.stdout + done.stderr


def typed(example: Path, *options: str) -> list[str]:
    """Return the demo's command."""
    return [sys.executable, str(example), "--path", str(example.parents[1] / "tree"), *options]


def names(files: int = FILES) -> set[str]:
    """Return the names of all files."""
    return {f"m{number}.py" for number in range(files)}


def test_a_demo_killed_at_90_percent_goes_on_and_repeats_one_file_in_a_hundred_at_most(
    example: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    status, said = demo(example, environment, "--kill-at", "0.9")
    assert status == -signal.SIGKILL, said
    assert "Run audit.demo.1 starts." in said
    status, said = demo(example, environment)
    assert status == 0, said
    found = re.search(r"goes on: ([\d,]+) of ([\d,]+) files were measured before", said)
    assert found is not None, said
    before, files = (int(number.replace(",", "")) for number in found.groups())
    assert 0.9 * FILES <= before <= files == FILES
    assert f"\n{FILES:,} files, " in said
    assert "1 cycle\n" in said
    assert set(marks.names(tmp_path / "marks")) == names()
    assert marks.again(tmp_path / "marks") <= SHARE, marks.repeated(tmp_path / "marks")

    assert os.listdir(environment["RAY_TMPDIR"])
    nowhere = environment | {"RAY_TMPDIR": environment["RAY_TMPDIR"] + "/other"}
    performed = marks.names(tmp_path / "marks")
    status, said = demo(example, nowhere)
    assert status == 0, said
    assert "Run audit.demo.1 finished already" in said
    assert "make demo NEW=1" in said
    assert marks.names(tmp_path / "marks") == performed
    assert not Path(nowhere["RAY_TMPDIR"]).exists()  # no Ray was started for that


def test_a_demo_whose_coordinator_is_killed_at_90_percent_goes_on_and_repeats_one_file_in_a_hundred_at_most(
    example: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    running = subprocess.Popen(typed(example), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(lambda: len(os.listdir(tmp_path / "marks")) >= 0.1 * FILES or running.poll() is not None)
        (run,) = asyncio.run(Engine(str(tmp_path / ".gecko")).runs())
        assert run.owner is not None
        wait_for(lambda: len(os.listdir(tmp_path / "marks")) >= 0.9 * FILES or running.poll() is not None)
        os.kill(run.owner.pid, signal.SIGKILL)
        said, _ = running.communicate(timeout=WITHIN)
    finally:
        running.kill()
    assert running.returncode == 0, said
    assert f"\n{FILES:,} files, " in said
    assert "1 cycle\n" in said
    assert set(marks.names(tmp_path / "marks")) == names()
    assert marks.again(tmp_path / "marks") <= SHARE, marks.repeated(tmp_path / "marks")


@pytest.mark.parametrize("example", [FEW], indirect=True)
def test_an_audit_stopped_by_ctrl_c_goes_on_in_another_process_without_measuring_a_file_twice(
    example: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    given = json.dumps({"path": str(tmp_path / "tree")})
    command = [*GECKO, "run", f"{example}:flow", "--input", given, "--session", "s", "--executor", "ray"]
    running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(os.listdir(tmp_path / "marks")) >= FEW // 5 or running.poll() is not None)
        running.send_signal(signal.SIGINT)
        output, said = running.communicate(timeout=WITHIN)
    finally:
        running.kill()
    assert (running.returncode, output) == (1, ""), said
    assert "go on with: gecko run" in said
    again = subprocess.run(
        [*GECKO, "runs", "resume", "audit.s.1"], env=environment, capture_output=True, text=True, check=False, timeout=WITHIN
    )
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["files"] == FEW
    assert marks.names(tmp_path / "marks") == dict.fromkeys(names(FEW), 1)


@pytest.mark.anyio
async def test_a_stream_goes_on_through_a_coordinator_that_dies(ray_cluster: str, tmp_path: Path) -> None:
    def nap(item: int) -> int:
        time.sleep(0.02)
        return item

    flow = Workflow("stream", storage=str(tmp_path / "runs"), executor="ray").add_map("nap", nap).set_entry_point("nap")
    seen: list[str] = []
    async for event in flow.stream(list(range(200)), session_id="s"):
        if not event.ordinal:
            seen.append(f"{event.kind} {event.step_id}")
        if len(seen) == 30:
            remote.kill(script.coordinator)
    assert seen[-1] == "run_completed "
    assert [name for name in seen if name.startswith("run_")] == ["run_started ", "run_resumed ", "run_completed "]
    assert sorted(name for name in seen if "/nap/1/" in name) == sorted(f"step_succeeded stream.s.1/nap/1/{n}" for n in range(200))
