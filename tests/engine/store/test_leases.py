"""Owners that promise to say that they live: who is frozen loses its runs, and commits nothing when it wakes; who beats keeps them."""

import asyncio
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.checkpoint.log import BEATS, SegmentLog
from engine.errors import RunBusy
from engine.ports import Claim, Row, RunKey
from engine.store import open_log
from tests.acceptance.marks import until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

KEY = RunKey("w", "s", 1)
ROOT = Path(__file__).parents[3]
LEASE = 1.0
OWNING = """
import asyncio, os, sys
from engine.errors import GeckoError
from engine.ports import Row, RunKey
from engine.store import open_log
async def main(lease, steady):
    log = open_log(sys.argv[1])
    if lease:
        log.keep_lease(lease)
    claim = await log.claim(RunKey("w", "s", 1))
    await log.append(claim, [Row(1, 1.0, "run_started", info=b"old")])
    print(os.getpid(), flush=True)
    seq = 1
    try:
        while steady or await asyncio.to_thread(sys.stdin.readline):
            seq += 1
            await log.append(claim, [Row(seq, 1.0, "note", info=b"old")])
            if not steady:
                print(seq, flush=True)
    except GeckoError as error:
        print(type(error).__name__, flush=True)
        await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main(float(sys.argv[2]), sys.argv[3] == "steady"))
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def log(store: Path) -> SegmentLog:
    made = open_log(store)
    assert isinstance(made, SegmentLog)
    return made


@contextmanager
def owning_process(store: Path, lease: float, *, steady: bool = False) -> Iterator[subprocess.Popen[str]]:
    """Another process that drives the run; `steady` appends to it all the time, others at each line that they are sent."""
    command = [sys.executable, "-c", OWNING, str(store), str(lease), "steady" if steady else "asked"]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert answer(process) == str(process.pid)
        yield process
    finally:
        process.kill()
        process.communicate()


def answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def append(process: subprocess.Popen[str]) -> str:
    """Have a process append a row; returns what it says of that."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return answer(process)


def owner_file(store: Path, process: subprocess.Popen[str]) -> Path:
    (found,) = (path for path in (store / "owners").iterdir() if json.loads(path.read_text())["pid"] == process.pid)
    return found


async def claimed(log: SegmentLog) -> Claim:
    """Return the claim as soon as it is granted."""
    end = time.monotonic() + 30
    while True:
        try:
            return await log.claim(KEY)
        except RunBusy:
            assert time.monotonic() < end
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("steady", [False, True])
async def test_a_frozen_owner_loses_its_run_after_its_lease_and_commits_nothing_when_it_wakes(log: SegmentLog, store: Path, steady: bool):
    with owning_process(store, LEASE, steady=steady) as process:
        said = owner_file(store, process)
        if steady:
            seen = await log.read(KEY)
            await until(lambda: said.stat().st_mtime_ns > 0 and (store / "runs/w/s/1/1.arrows").stat().st_size > 1 << 16)
            assert len(await log.read(KEY)) > len(seen)
        process.send_signal(signal.SIGSTOP)
        os.utime(said)
        with pytest.raises(RunBusy, match=f"process {process.pid} "):
            await log.claim(KEY)
        claim = await claimed(log)
        assert time.time() - said.stat().st_mtime > LEASE
        before = len(claim.rows)
        assert [row.seq for row in claim.rows] == list(range(1, before + 1))
        await log.append(claim, [Row(before + 1, 2.0, "note", info=b"new")])
        process.send_signal(signal.SIGCONT)
        assert (answer(process) if steady else append(process)) == "LeaseLost"
        await until(lambda: time.time() - said.stat().st_mtime < LEASE)
        await log.append(claim, [Row(before + 2, 2.0, "note", info=b"new")])
        assert [(row.seq, row.info) for row in await log.read(KEY)] == [
            *((seq, b"old") for seq in range(1, before + 1)),
            *((seq, b"new") for seq in (before + 1, before + 2)),
        ]
        await log.release(claim)


async def test_a_frozen_owner_without_a_lease_keeps_its_run(log: SegmentLog, store: Path):
    with owning_process(store, 0.0) as process:
        process.send_signal(signal.SIGSTOP)
        os.utime(owner_file(store, process), (0.0, 0.0))
        with pytest.raises(RunBusy):
            await log.claim(KEY)
        (run,) = await log.scan()
        assert run.owner is not None
        assert run.owner.pid == process.pid
        process.send_signal(signal.SIGCONT)
        assert append(process) == "2"


async def test_an_owner_that_says_that_it_lives_keeps_its_run_for_many_leases_and_its_lock(log: SegmentLog, store: Path):
    with owning_process(store, LEASE) as process:
        said = owner_file(store, process)
        times = {said.stat().st_mtime}
        while max(times) - min(times) < 3 * LEASE:
            with pytest.raises(RunBusy):
                await log.claim(KEY)
            await asyncio.sleep(0.02)
            times.add(said.stat().st_mtime)
        assert len(times) > 3 * (BEATS - 2)
        assert append(process) == "2"
        with said.open() as file, pytest.raises(BlockingIOError):
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert said.stat().st_ino == owner_file(store, process).stat().st_ino
        process.kill()
        process.wait()
        claim = await log.claim(KEY)  # at once: who is dead need not be waited for
        assert time.time() - said.stat().st_mtime < LEASE
        await log.release(claim)


async def test_a_lease_that_is_over_shows_in_the_list_of_runs(log: SegmentLog, store: Path):
    with owning_process(store, 3600.0) as process:
        said = owner_file(store, process)
        (run,) = await log.scan()
        assert run.owner is not None
        assert run.owner.pid == process.pid
        process.send_signal(signal.SIGSTOP)
        os.utime(said, (0.0, 0.0))
        (run,) = await log.scan()
        assert (run.owner, run.status) == (None, "running")
        process.send_signal(signal.SIGCONT)


async def test_a_log_that_was_closed_keeps_its_lease_when_it_is_used_again(log: SegmentLog, store: Path):
    log.keep_lease(LEASE)
    for n in (1, 2):
        claim = await log.claim(RunKey("w", "s", n))
        (owner,) = (store / "owners").iterdir()
        assert json.loads(owner.read_text())["lease"] == LEASE
        os.utime(owner, (0.0, 0.0))
        await until(lambda owner=owner: time.time() - owner.stat().st_mtime < LEASE)
        await log.release(claim)
        await log.close()
        assert not owner.exists()


async def test_a_forked_child_has_no_lease_that_it_does_not_keep(store: Path):
    script = f"""
import asyncio, json, os
from pathlib import Path
from engine.ports import RunKey
from engine.store import open_log
log = open_log({str(store)!r})
log.keep_lease(5.0)
asyncio.run(log.claim(RunKey("w", "parent", 1)))
def leases():
    found = map(json.loads, (path.read_text() for path in Path({str(store)!r}, "owners").iterdir()))
    return {{told["pid"]: told["lease"] for told in found}}
if os.fork() == 0:
    asyncio.run(log.claim(RunKey("w", "child", 1)))
    assert leases() == {{os.getppid(): 5.0, os.getpid(): None}}, leases()
    asyncio.run(log.close())
    print("as it should be", flush=True)
    os._exit(0)
os.wait()
"""
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert "as it should be" in done.stdout, done.stderr
