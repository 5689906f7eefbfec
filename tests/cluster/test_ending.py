"""A worker's process ends with its owner, or when it is told to, before the next call and never in silence within one."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.ending import WORTH, Ending, descriptor_of, has_ended

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


def test_a_process_that_is_told_to_end_begins_no_further_call(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", TOLD], cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout.split("\n")) == (1, ["goes on", "finally", "swallowed", ""]), done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the end of any process")
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the end of any process")
def test_a_process_that_lives_has_not_ended() -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    descriptor = descriptor_of(other.pid)
    assert not has_ended(descriptor)
    other.communicate()
    assert has_ended(descriptor)
