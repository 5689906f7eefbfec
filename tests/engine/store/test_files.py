"""Runs in a folder: names, locks of living and dead processes, forks, damage, space, and what is refused."""

import asyncio
import json
import logging
import os
import resource
import shutil
import signal
import string
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint.log import SegmentLog
from engine.errors import ConfigurationError, CorruptCheckpoint, LeaseLost, RunBusy, RunNotFound, StoreUnavailable
from engine.ports import Owner, Row, RunKey
from engine.store import files, open_log
from engine.store.files import FileMedium, FilePlace, decode_name, encode_name

KEY = RunKey("w", "s", 1)
ROOT = Path(__file__).parents[3]
OWNING = """
import asyncio, os, sys
from engine.ports import Row, RunKey
from engine.store import open_log
async def main():
    log = open_log(sys.argv[1])
    claim = await log.claim(RunKey("w", "s", 1))
    await log.append(claim, [Row(1, 1.0, "run_started")])
    print(os.getpid(), flush=True)
    sys.stdin.read()
asyncio.run(main())
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
def owning_process(store: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that drives the run until it is killed."""
    process = _start(OWNING, str(store))
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == str(process.pid)
        yield process
    finally:
        process.kill()
        process.communicate()


def row(seq: int, kind: str = "note", size: int = 10) -> Row:
    return Row(seq, float(seq), kind, info=b"x" * size)


async def write(log: SegmentLog, *rows: Row, key: RunKey = KEY, release: bool = True) -> None:
    claim = await log.claim(key)
    for each in rows:
        await log.append(claim, [each])
    if release:
        await log.release(claim)


def segment(store: Path, epoch: int = 1, run: str = "w/s/1") -> Path:
    return store / "runs" / run / f"{epoch}.arrows"


@pytest.mark.anyio
async def test_a_segment_is_a_plain_arrow_stream_cut_to_its_size_at_the_release(log: SegmentLog, store: Path) -> None:
    claim = await log.claim(KEY)
    await log.append(claim, [row(1), row(2)])
    assert segment(store).stat().st_size >= 1 << 16, "space is taken ahead"
    with pa.OSFile(str(segment(store))) as file:
        assert pa.ipc.open_stream(file).read_all()["seq"].to_pylist() == [1, 2]
    await log.release(claim)
    assert segment(store).stat().st_size < 1 << 13
    assert (store / ".gitignore").read_text() == "*\n"


@pytest.mark.anyio
async def test_space_ahead_doubles(log: SegmentLog, store: Path) -> None:
    claim = await log.claim(KEY)
    sizes = set()
    for seq in range(1, 40):
        await log.append(claim, [row(seq, size=10_000)])
        sizes.add(segment(store).stat().st_size)
    assert sizes == {1 << 16, 1 << 17, 1 << 18, 1 << 19}
    await log.release(claim)
    assert [found.seq for found in await log.read(KEY)] == list(range(1, 40))


@pytest.mark.anyio
async def test_small_appends_write_over_zeros_that_are_there_already(log: SegmentLog, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, int, bool]] = []
    pwrite = os.pwrite

    def noting(fd: int, data: bytes, at: int) -> int:
        written.append((at, at + len(data), not any(data)))
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", noting)
    claim = await log.claim(KEY)
    assert [zeros for _, _, zeros in written] == [False], "a run that appends nothing pays nothing"
    for seq in range(1, 60):
        await log.append(claim, [row(seq, size=1000)])
    zeros = [(begin, end) for begin, end, is_zero in written if is_zero]
    batches = [(begin, end) for begin, end, is_zero in written[1:] if not is_zero]
    assert len(batches) == 59
    over = [any(begin <= first and last <= end for begin, end in zeros) for first, last in batches]
    assert over.count(True) >= 50
    assert all(end <= 1 << 17 for _, end in zeros), "no further than the space that is there"
    await log.append(claim, [row(60, size=1 << 20)])
    assert len(zeros) == sum(is_zero for _, _, is_zero in written), "a large batch needs none"
    await log.release(claim)
    assert [found.seq for found in await log.read(KEY)] == list(range(1, 61))


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_run_of_a_living_process_is_busy_and_says_whose_it_is(log: SegmentLog, store: Path) -> None:
    began = datetime.now(UTC)
    with owning_process(store) as process:
        with pytest.raises(RunBusy, match=f"process {process.pid} on ") as caught:
            await log.claim(KEY)
        (run,) = await log.scan()
        assert run.owner is not None
        assert (caught.value.pid, caught.value.host) == (process.pid, run.owner.host)
        since = caught.value.since
        assert since is not None
        assert began < since < datetime.now(UTC)
        assert f"since {since:%Y-%m-%d %H:%M:%S} UTC" in str(caught.value)
        assert (run.status, run.owner.pid) == ("running", process.pid)
        assert [found.seq for found in await log.read(KEY)] == [1]
        taken = await log.claim(KEY, takeover=True)
        assert [found.seq for found in taken.rows] == [1]
        await log.release(taken)


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_killed_owner_is_waited_for_and_its_run_goes_on(log: SegmentLog, store: Path) -> None:
    with owning_process(store) as process:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(log.claim(KEY, wait=20.0))
            with pytest.raises(RunBusy):
                await log.claim(KEY)
            process.send_signal(signal.SIGKILL)
            process.wait()
        claim = waiting.result()
        assert [found.seq for found in claim.rows] == [1]
        (run,) = await log.scan()
        assert run.owner is not None
        assert run.owner.pid == os.getpid()
        await log.release(claim)
        await log.prune(older_than=1e9)
        assert len(list((store / "owners").iterdir())) == 1, "the files of dead owners are removed"


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_forked_child_neither_keeps_the_lock_nor_the_claims(log: SegmentLog, store: Path) -> None:
    claim = await log.claim(KEY)
    await log.append(claim, [row(1)])
    script = f"""
import asyncio, os, sys
from engine.errors import LeaseLost, RunBusy
from engine.ports import Row, RunKey
from engine.store import open_log
log = open_log({str(store)!r})
other = RunKey("w", "forked", 1)
claim = asyncio.run(log.claim(other))
read, write = os.pipe()
child = os.fork()
if child == 0:
    async def begin():
        try:
            await log.claim(other)
            return 2
        except RunBusy:
            pass
        try:
            await log.append(claim, [Row(1, 1.0, "note")])
            return 3
        except LeaseLost:
            pass
        mine = await log.claim(RunKey("w", "child", 1))
        await log.append(mine, [Row(1, 1.0, "note")])
        return 0
    code = asyncio.run(begin())
    os.write(write, bytes([code]))
    sys.stdin.read()
    os._exit(0)
code = os.read(read, 1)[0]
print(code, child, flush=True)
os._exit(0)
"""
    process = _start(script)
    assert process.stdout is not None
    code, child = process.stdout.readline().split()
    process.wait()
    try:
        assert code == "0"
        os.kill(int(child), 0)
        await write(log, row(1), key=RunKey("w", "forked", 1))
        with pytest.raises(RunBusy, match=f"process {child} "):
            await log.claim(RunKey("w", "child", 1))
    finally:
        process.communicate()
    await log.release(claim)


@pytest.mark.anyio
async def test_looking_at_ones_own_runs_does_not_drop_ones_own_lock(log: SegmentLog, store: Path) -> None:
    claim = await log.claim(KEY)
    await log.scan()
    with pytest.raises(RunBusy):
        await log.claim(KEY)
    await log.prune(older_than=0.0)
    (owner,) = (store / "owners").iterdir()
    process = _start(
        "import fcntl, os, sys\n"
        "try:\n"
        "    fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError:\n"
        "    print('locked')\n",
        str(owner),
    )
    assert process.communicate()[0] == "locked\n"
    assert json.loads(owner.read_text())["pid"] == os.getpid()
    await log.release(claim)


@pytest.mark.anyio
async def test_a_torn_end_is_cut_and_said(log: SegmentLog, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    await write(log, row(1), row(2, "run_completed"))
    whole = segment(store).read_bytes()
    segment(store).write_bytes(whole[:-10])
    with caplog.at_level(logging.WARNING):
        claim = await log.claim(KEY)
    assert [found.seq for found in claim.rows] == [1]
    assert "a torn end of a log was cut" in caplog.text
    await log.append(claim, [row(2, "run_failed")])
    assert [found.kind for found in await log.read(KEY)] == ["note", "run_failed"]
    await log.release(claim)


@pytest.mark.anyio
async def test_damage_in_the_middle_is_named_and_the_run_stays_as_it_is(log: SegmentLog, store: Path) -> None:
    await write(log, row(1), row(2), row(3))
    broken = bytearray(segment(store).read_bytes())
    broken[len(broken) // 2] ^= 4
    segment(store).write_bytes(broken)
    for asked in (log.read(KEY), log.claim(KEY), log.claim(KEY, takeover=True), log.delete(KEY)):
        with pytest.raises(CorruptCheckpoint, match=r"1\.arrows at byte") as caught:
            await asked
        assert caught.value.file == str(segment(store))
    assert os.listdir(segment(store).parent) == ["1.arrows"], "a refused claim leaves nothing behind"
    assert segment(store).read_bytes() == broken


@pytest.mark.anyio
async def test_a_process_that_died_in_a_claim_does_not_stop_the_next(
    log: SegmentLog, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("engine.checkpoint.log._READ_TIME", 0.02)
    monkeypatch.setattr("engine.checkpoint.log._CLAIM_TIME", 0.02)
    await write(log, row(1))
    segment(store, 2).touch()
    with caplog.at_level(logging.WARNING):
        assert [found.seq for found in await log.read(KEY)] == [1]
    assert "provisional" in caplog.text
    (run,) = await log.scan()
    assert (run.seq, run.owner) == (1, None)
    claim = await log.claim(KEY)
    assert (claim.epoch, [found.seq for found in claim.rows]) == (3, [1])
    await log.release(claim)
    assert [found.seq for found in await log.read(KEY)] == [1]


@pytest.mark.anyio
async def test_a_file_that_may_not_grow_is_a_named_error_and_the_record_stays_whole(
    log: SegmentLog, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.checkpoint.log._READ_TIME", 0.02)
    claim = await log.claim(KEY)
    await log.append(claim, [row(1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, hard))
    try:
        with pytest.raises(StoreUnavailable, match=r"cannot be written \((File too large|only)"):
            await log.append(claim, [row(2, size=1 << 18)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [found.seq for found in await log.read(KEY)] == [1]
    await log.append(claim, [row(3)])
    assert [found.seq for found in await log.read(KEY)] == [1, 2, 3]
    await log.release(claim)


@pytest.mark.anyio
async def test_an_owner_whose_run_was_deleted_elsewhere_stops(log: SegmentLog, store: Path) -> None:
    claim = await log.claim(KEY)
    await log.append(claim, [row(1)])
    segment(store).unlink()
    with pytest.raises(LeaseLost):
        await log.append(claim, [row(2)])
    await log.release(claim)


@pytest.mark.anyio
async def test_a_pruned_run_leaves_a_tombstone_and_then_nothing(log: SegmentLog, store: Path) -> None:
    await write(log, row(1), row(2, "run_completed"))
    assert await log.prune(older_than=0.0) == 1
    assert [path.name for path in segment(store).parent.iterdir()] == ["3.arrows"]
    assert segment(store, 3).stat().st_size < 1 << 12
    with pytest.raises(RunNotFound):
        await log.read(KEY)
    assert await log.prune(older_than=1e9) == 0
    assert segment(store, 3).exists()
    assert await log.prune(older_than=-1.0) == 0
    assert list((store / "runs").iterdir()) == []
    await write(log, row(1))
    assert [found.seq for found in await log.read(KEY)] == [1]


@pytest.mark.anyio
async def test_a_folder_that_was_removed_is_made_again(log: SegmentLog, store: Path) -> None:
    await write(log, row(1))
    shutil.rmtree(store)
    claim = await log.claim(KEY)
    assert claim.rows == []
    assert len(list((store / "owners").iterdir())) == 1
    await log.append(claim, [row(1)])
    shutil.rmtree(store)
    with pytest.raises(LeaseLost):
        await log.append(claim, [row(2)])
    await log.release(claim)


@pytest.mark.anyio
async def test_many_open_runs_do_not_keep_many_files_open(log: SegmentLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.checkpoint.writer._MOST_OPEN", 3)
    claims = [await log.claim(RunKey("w", f"s{i}", 1)) for i in range(8)]
    for seq in (1, 2):
        for claim in claims:
            await log.append(claim, [row(seq)])
    assert sum(target.endswith(".arrows") for target in _open_files()) <= 3
    for claim in claims:
        assert [found.seq for found in await log.read(claim.key)] == [1, 2]
        await log.release(claim)


@given(st.text(max_size=150))
def test_a_name_comes_back_and_stays_in_its_folder(name: str) -> None:
    encoded = encode_name(name)
    assert set(encoded) <= set(string.ascii_lowercase + string.digits + "_.-%~")
    assert 0 < len(encoded) <= 100
    assert not encoded.startswith(".")
    assert decode_name(encoded) == (None if "~" in encoded else name)


def test_names_that_differ_in_case_or_far_behind_get_different_files() -> None:
    names = ["a", "A", "%41", "%", "", ".", "..", "a" * 100, "a" * 101, "a" * 102, "A" * 40, "a~b"]
    assert len({encode_name(name).lower() for name in names}) == len(names)


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "fuse", "virtiofs"])
def test_a_file_system_that_may_show_an_old_state_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/a / ext4 rw 0 0\nhost:/x {tmp_path}/re\\040mote {kind} rw 0 0\n/dev/b {tmp_path}/re\\040mote/disk xfs rw 0 0\n"
    )
    refuse = files.refuse_remote
    monkeypatch.setattr(files, "refuse_remote", lambda root: refuse(root, str(mounts)))
    owner = Owner(id="o", host="h", pid=1)
    with pytest.raises(ConfigurationError, match=f"'{kind}' file system"):
        FileMedium(tmp_path / "re mote" / "store", owner)
    FileMedium(tmp_path / "re mote" / "store", owner, trust=True)
    FileMedium(tmp_path / "re mote" / "disk" / "store", owner)
    FileMedium(tmp_path / "store", owner)


def test_a_place_is_opened_once_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    names = ["./.gecko", ".gecko", None, tmp_path / ".gecko", f"file://{tmp_path}/.gecko", f"{tmp_path}/link/.gecko", "./.gecko?trust=1"]
    assert len({id(open_log(name)) for name in names}) == 1
    assert open_log(".gecko").url == f"file://{tmp_path}/.gecko"
    assert open_log("memory://a") is open_log("memory://a")
    assert open_log("memory://a") is not open_log("memory://b")
    assert not (tmp_path / ".gecko").exists(), "opening writes nothing"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://bucket/x", "object storage is not part of this version"),
        ("ftp://x", "known are file:///path"),
        ("file://host/path", "three slashes"),
        ("file:///path?sync=0", "unknown option 'sync'"),
        ("file:", "names no folder"),
    ],
)
def test_a_url_that_cannot_work_says_what_would(url: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        open_log(url)


@pytest.mark.anyio
async def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigurationError, match="is a file"):
        open_log(tmp_path / "file")
    with pytest.raises(StoreUnavailable, match="Not a directory"):
        await open_log(tmp_path / "file" / "below").claim(KEY)
    assert (tmp_path / "file").read_text() == "mine"


def test_windows_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigurationError, match="Windows"):
        FileMedium(tmp_path, Owner(id="o", host="h", pid=1))


def _start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _open_files() -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:  # the descriptor by which the list was read
            continue
    return found


@pytest.mark.anyio
async def test_a_follower_reads_what_came_and_not_the_whole_log_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    log, key = open_log(tmp_path / "log"), RunKey("w", "s", 1)
    claim = await log.claim(key)
    await log.append(claim, [row(seq, size=10_000) for seq in range(1, 301)])
    starts: list[int] = []
    read = FilePlace.read

    def noted(self: FilePlace, n: int, start: int = 0) -> bytes | None:
        starts.append(start)
        return read(self, n, start)

    monkeypatch.setattr(FilePlace, "read", noted)
    seen: list[int] = []
    async for rows in log.follow(key):
        seen += [found.seq for found in rows]
        if seen[-1] < 303:
            await log.append(claim, [row(seen[-1] + 1)])
        else:
            await log.release(claim)
    assert seen == list(range(1, 304))
    assert starts[0] == 0
    assert len(starts) > 3
    assert all(start > 3_000_000 for start in starts[1:])
