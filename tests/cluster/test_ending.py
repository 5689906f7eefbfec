"""A worker's process ends with its owner, or when it is told to, before the next call and never in silence within one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster import ending
from cluster.ending import WORTH, Ending, children_of, descriptor_of, end_tree, group_of, has_ended, hold_children, kill, orphans_of

TOLD = """
import os, signal
from cluster.ending import ending
ending.serve(None)
ending.heed(1.0)
print("goes on", flush=True)
try:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        print("finally", flush=True)
except SystemExit:
    print("swallowed")
ending.heed(0.0)
print("begins another call", flush=True)
"""
SERVING = """
import sys
from cluster.ending import ending
ending.serve(int(sys.argv[1]))
for line in sys.stdin:
    ending.heed(float(line))
    print("goes on", flush=True)
"""

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the end of any process, and of its children")
WRITER = 'while :; do echo x >> "$0"/$$; sleep 0.001; done'
FAMILY = f"""
for n in 1 2; do sh -c '(sh -c "$1" "$0" & wait) & sh -c "$1" "$0"' "$0" '{WRITER}' & done
wait
"""
"""A shell with two children, each with a child that writes and one whose child does."""
FORKING = "f() { i=0; while [ $i -lt 150 ]; do sleep 60 & i=$((i+1)); done; wait; }; f & f & f"
OWNED = """
import subprocess, sys
from cluster.ending import end_with
children = [subprocess.Popen(["sh", "-c", sys.argv[2], sys.argv[3]]) for _ in range(2)]
end_with(int(sys.argv[1]))
print("serves", flush=True)
if sys.argv[4] == "waits":
    sys.stdin.read()
while True:
    pass
"""


def in_session(sid: int) -> list[int]:
    """Return the processes of a session that are there, whoever their parent is by now."""
    found: list[int] = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        with suppress(OSError):
            if os.getsid(pid) == sid and state(pid) not in "ZX":
                found.append(pid)
    return found


def state(pid: int) -> str:
    """Return R, S, T (stopped), Z (ended)... of a process; X where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def wait_for(true: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)


@contextmanager
def begun(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own, nothing of which is left."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        yield process
    finally:
        while left := in_session(process.pid):
            kill(left)
        process.wait()


def written(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.iterdir()}


def test_a_process_that_is_told_to_end_begins_no_further_call(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TOLD], cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split("\n")) == (1, ["goes on", "finally", "swallowed", ""]), done.stderr


@LINUX
def test_a_process_ends_before_its_next_call_when_its_owner_is_gone(root: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    command = [sys.executable, "-c", SERVING, str(owner.pid)]
    worker = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        print(1.0, file=worker.stdin, flush=True)
        assert worker.stdout.readline() == "goes on\n"
        owner.kill()
        owner.wait()
        print(WORTH / 2, file=worker.stdin, flush=True)  # what takes no time does not ask
        assert worker.stdout.readline() == "goes on\n"
        print(WORTH, file=worker.stdin, flush=True)
        assert worker.stdout.readline() == ""
        assert worker.wait(60) == 1
    finally:
        owner.kill()
        worker.kill()
        worker.communicate()
        owner.communicate()


def test_an_owner_that_cannot_be_seen_ends_nobody() -> None:
    assert descriptor_of(2**22 + 1) == -1
    before = signal.getsignal(signal.SIGTERM)
    try:
        ending = Ending()
        for owner in (None, 2**22 + 1, None):
            ending.serve(owner)
            ending.heed(1.0)
        assert not ending.told
    finally:
        signal.signal(signal.SIGTERM, before)


@LINUX
def test_a_process_that_lives_has_not_ended() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    descriptor = descriptor_of(other.pid)
    assert not has_ended(descriptor)
    other.communicate()
    assert has_ended(descriptor)


@LINUX
def test_what_a_process_started_has_no_further_effect_once_it_is_held(tmp_path: Path) -> None:
    with begun("sh", "-c", FAMILY, str(tmp_path)) as process:
        wait_for(lambda: len(written(tmp_path)) == 4)
        held = hold_children(process.pid)
        before = written(tmp_path)
        assert {state(pid) for pid in held} <= {"T", "Z"}
        assert set(map(int, before)) <= set(held)
        assert state(process.pid) == "S"
        assert set(in_session(process.pid)) <= {process.pid, *held}
        kill(held)
        wait_for(lambda: in_session(process.pid) in ([process.pid], []))
        assert written(tmp_path) == before


@LINUX
def test_what_has_lost_its_parent_ends_with_the_process_whose_group_it_is_in(tmp_path: Path) -> None:
    orphaning = f"({FAMILY}) & exit 0"
    with begun("sh", "-c", 'sh -c "$1" "$0"; sleep 60', str(tmp_path), orphaning) as process, begun("sleep", "60") as other:
        wait_for(lambda: len(written(tmp_path)) == 4)
        assert not set(map(int, written(tmp_path))) & set(children_of(process.pid))
        assert orphans_of(process.pid)
        end_tree(process.pid)
        wait_for(lambda: in_session(process.pid) == [])
        assert state(other.pid) == "S"


@LINUX
def test_the_group_of_another_is_nobody_s_family() -> None:
    with begun("sh", "-c", "sleep 60 & sleep 60") as process:
        wait_for(lambda: len(children_of(process.pid)) == 2)
        first, second = children_of(process.pid)
        assert sorted(group_of(process.pid)) == sorted([first, second])
        assert group_of(first) == []
        assert orphans_of(process.pid) == []
        end_tree(first)
        wait_for(lambda: state(first) in "ZX")
        assert state(second) in "RS"


@LINUX
def test_a_process_ends_with_all_that_it_started_and_none_acts_after(tmp_path: Path) -> None:
    with begun("sh", "-c", FAMILY, str(tmp_path)) as process, begun("sh", "-c", WRITER, str(tmp_path)) as other:
        wait_for(lambda: len(written(tmp_path)) == 5)
        end_tree(process.pid)
        wait_for(lambda: in_session(process.pid) == [])
        before = written(tmp_path)
        (other_before,) = (size for name, size in before.items() if int(name) == other.pid)
        wait_for(lambda: written(tmp_path)[str(other.pid)] > other_before + 10)  # who has nothing to do with it goes on
        assert {name for name, size in written(tmp_path).items() if size != before[name]} == {str(other.pid)}
        assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
@LINUX
def test_processes_that_are_starting_others_just_then_leave_none_behind() -> None:
    for _ in range(20):
        with begun("sh", "-c", FORKING) as process:
            wait_for(lambda: len(in_session(process.pid)) > 5)
            end_tree(process.pid)
            assert process.wait() == -signal.SIGKILL
            wait_for(lambda: in_session(process.pid) == [])


@LINUX
@pytest.mark.parametrize("does", ["waits", "is busy"])
def test_a_process_ends_with_its_owner_and_with_all_that_it_started(does: str, root: Path, tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    command = [sys.executable, "-c", OWNED, str(owner.pid), WRITER, str(tmp_path), does]
    worker = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    assert worker.stdout is not None
    try:
        assert worker.stdout.readline() == b"serves\n"
        wait_for(lambda: len(written(tmp_path)) == 2)
        assert len(children_of(worker.pid)) >= 2
        assert worker.poll() is None
        owner.kill()
        assert worker.wait(30) == 1
        wait_for(lambda: in_session(worker.pid) == [])
    finally:
        while left := in_session(worker.pid):
            kill(left)
        worker.communicate()
        owner.kill()
        owner.communicate()


@LINUX
def test_what_is_not_there_or_not_ours_keeps_nobody_from_being_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(3)]
    send = os.kill

    def refuse(pid: int, number: int) -> None:
        if pid == sleepers[0].pid:
            raise PermissionError(pid)
        send(pid, number)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(ending.os, "kill", refuse)
            patched.setattr(ending, "STOPPED", 0.01)
            patched.setattr(ending, "children_of", lambda pid: [s.pid for s in sleepers] if pid == 2**22 + 1 else [])
            end_tree(2**22 + 1)
        assert [sleeper.wait(30) for sleeper in sleepers[1:]] == [-signal.SIGKILL] * 2
        assert sleepers[0].poll() is None
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    end_tree(sleepers[0].pid)
    assert hold_children(sleepers[0].pid) == []
