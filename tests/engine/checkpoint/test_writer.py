"""The writer thread: order, grouping, hurry, failing disks, several loops and threads, and the end of a process."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.log import SegmentLog
from engine.checkpoint.writer import OpenClaim
from engine.errors import LeaseLost, StoreUnavailable
from engine.ports import Owner, Row, RunKey
from engine.store.memory import MemoryMedium, MemoryPlace

KEY = RunKey("w", "s", 1)
ROOT = Path(__file__).parents[3]


class Gate:
    """Holds writes up, counts them, and lets them fail."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.reached = threading.Event()
        self.writes: list[int] = []
        self.failures = 0


class GatedPlace(MemoryPlace):
    gate: Gate

    def write(self, n: int, at: int, data: bytes) -> None:
        self.gate.reached.set()
        assert self.gate.open.wait(10)
        if self.gate.failures:
            self.gate.failures -= 1
            raise OSError(28, "No space left on device")
        self.gate.writes.append(len(data))
        super().write(n, at, data)


class GatedMedium(MemoryMedium):
    def __init__(self) -> None:
        super().__init__("memory://gated", Owner(id="o", host="h", pid=1))
        self.gate = Gate()

    def place(self, key: RunKey) -> MemoryPlace:
        place = GatedPlace(self, key)
        place.gate = self.gate
        return place


@pytest.fixture
def medium() -> GatedMedium:
    return GatedMedium()


@pytest.fixture
def log(medium: GatedMedium) -> Iterator[SegmentLog]:
    made = SegmentLog(medium)
    yield made
    medium.gate.open.set()
    made.finish(5.0)


def row(seq: int, **cells: Any) -> Row:
    return Row(seq, float(seq), "note", **cells)


async def seqs(log: SegmentLog) -> list[int]:
    return [row.seq for row in await log.read(KEY)]


@pytest.mark.anyio
async def test_rows_that_come_during_a_write_share_the_next_batch(log: SegmentLog, medium: GatedMedium) -> None:
    claim = await log.claim(KEY)
    gate = medium.gate
    gate.writes.clear()
    gate.open.clear()
    gate.reached.clear()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(_wait(log.append(claim, [row(1)])))
        await asyncio.get_running_loop().run_in_executor(None, gate.reached.wait, 5)
        rest = [log.append(claim, [row(seq)]) for seq in range(2, 30)]
        assert not first.done()
        gate.open.set()
    await rest[-1]
    assert len(gate.writes) == 2
    assert await seqs(log) == list(range(1, 30))
    await log.release(claim)


@pytest.mark.anyio
async def test_rows_nobody_awaits_become_durable_by_themselves(log: SegmentLog, medium: GatedMedium) -> None:
    claim = await log.claim(KEY)
    medium.gate.reached.clear()
    log.append(claim, [row(1)])
    assert await asyncio.get_running_loop().run_in_executor(None, medium.gate.reached.wait, 5)
    log._writer.flush(5.0)
    assert await seqs(log) == [1]
    await log.release(claim)


@pytest.mark.anyio
async def test_rows_nobody_awaits_are_written_at_once_and_wake_no_loop(
    log: SegmentLog, medium: GatedMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = await log.claim(KEY)
    woken: list[Any] = []
    monkeypatch.setattr(asyncio.get_running_loop(), "call_soon_threadsafe", lambda *call: woken.append(call))
    medium.gate.open.clear()
    answers = [log.append(claim, [row(seq)]) for seq in range(1, 4)]
    assert not any(answer.done() for answer in answers)
    medium.gate.open.set()
    assert log._writer.flush(5.0)
    assert all(answer.done() for answer in answers)
    await answers[-1]
    assert not woken
    monkeypatch.undo()
    await log.release(claim)


@pytest.mark.anyio
async def test_a_failure_nobody_awaited_is_tried_again_for_who_awaits_it(log: SegmentLog, medium: GatedMedium) -> None:
    claim = await log.claim(KEY)
    medium.gate.failures = 3
    answer = log.append(claim, [row(1)])
    assert log._writer.flush(5.0)
    assert not answer.done()
    await answer
    assert answer.done()
    assert await seqs(log) == [1]
    await log.release(claim)


@pytest.mark.anyio
async def test_the_answer_of_a_claim_that_ended_is_known(log: SegmentLog, medium: GatedMedium) -> None:
    old = await log.claim(KEY)
    new = await log.claim(KEY, takeover=True)
    answer = log.append(old, [row(1)])
    assert answer.done()
    with pytest.raises(LeaseLost):
        await answer
    await log.release(new)


@pytest.mark.anyio
async def test_a_large_backlog_is_cut_into_batches_and_no_call_is_divided(
    log: SegmentLog, medium: GatedMedium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.checkpoint.intake._BATCH_BYTES", 5000)
    claim = await log.claim(KEY)
    medium.gate.writes.clear()
    for seq in range(1, 20, 2):
        last = log.append(claim, [row(seq, output=bytes(1000)), row(seq + 1, output=bytes(1000))])
    await last
    assert len(medium.gate.writes) >= 5
    assert all(size < 7000 for size in medium.gate.writes)
    assert await seqs(log) == list(range(1, 21))
    await log.release(claim)


@pytest.mark.anyio
async def test_a_write_that_fails_once_is_repeated_in_a_new_segment(log: SegmentLog, medium: GatedMedium) -> None:
    claim = await log.claim(KEY)
    await log.append(claim, [row(1)])
    medium.gate.failures = 1
    await log.append(claim, [row(2)])
    assert claim.epoch == 2
    await log.append(claim, [row(3)])
    assert await seqs(log) == [1, 2, 3]
    await log.release(claim)


@pytest.mark.anyio
async def test_a_full_disk_is_named_and_nothing_is_lost_when_it_has_space_again(log: SegmentLog, medium: GatedMedium) -> None:
    claim = await log.claim(KEY)
    await log.append(claim, [row(1)])
    medium.gate.failures = 3
    with pytest.raises(StoreUnavailable, match="No space left on device"):
        await log.append(claim, [row(2)])
    await log.append(claim, [row(2)])
    medium.gate.failures = 3
    with pytest.raises(StoreUnavailable):
        await log.append(claim, [row(3)])
    await log.append(claim, [row(4)])
    assert await seqs(log) == [1, 2, 3, 4], "rows that failed go before later ones"
    medium.gate.failures = 3
    log.append(claim, [row(5)])
    with pytest.raises(StoreUnavailable):
        await log.release(claim)


@pytest.mark.anyio
async def test_rows_lost_unawaited_are_told_at_the_release(log: SegmentLog, medium: GatedMedium) -> None:
    old = await log.claim(KEY)
    medium.gate.open.clear()
    log.append(old, [row(1)])
    async with asyncio.TaskGroup() as group:
        claiming = group.create_task(log.claim(KEY, takeover=True))
        medium.gate.open.set()
    new = claiming.result()
    log.append(old, [row(2)])
    with pytest.raises(LeaseLost):
        await log.release(old)
    await log.release(new)


@pytest.mark.anyio
async def test_a_row_that_cannot_be_written_stops_its_run_and_no_other(log: SegmentLog) -> None:
    claim, other = await log.claim(KEY), await log.claim(RunKey("w", "t", 1))
    with pytest.raises(StoreUnavailable, match="could not be written"):
        await log.append(claim, [row(1, node="\ud800")])
    await log.append(other, [row(1)])
    await log.release(claim)
    await log.release(other)


@pytest.mark.anyio
async def test_rows_of_one_call_must_ascend(log: SegmentLog) -> None:
    claim = await log.claim(KEY)
    with pytest.raises(ValueError, match="ascend"):
        log.append(claim, [row(2), row(1)])
    await log.release(claim)


@pytest.mark.anyio
async def test_a_cancelled_wait_leaves_the_rows_to_be_written(log: SegmentLog, medium: GatedMedium) -> None:
    claim = await log.claim(KEY)
    medium.gate.open.clear()
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_wait(log.append(claim, [row(1)])))
        await asyncio.sleep(0)
        waiting.cancel()
    assert waiting.cancelled()
    medium.gate.open.set()
    await log.append(claim, [row(2)])
    assert await seqs(log) == [1, 2]
    await log.release(claim)


@pytest.mark.anyio
async def test_a_claim_nobody_waits_for_any_more_is_given_back(log: SegmentLog, medium: GatedMedium) -> None:
    medium.gate.open.clear()
    medium.gate.reached.clear()
    async with asyncio.TaskGroup() as group:
        claiming = group.create_task(log.claim(KEY))
        await asyncio.get_running_loop().run_in_executor(None, medium.gate.reached.wait, 5)
        claiming.cancel()
    medium.gate.open.set()
    await log.release(await log.claim(KEY, wait=10.0))


def test_several_loops_and_threads_share_one_log(log: SegmentLog) -> None:
    async def drive(session: str) -> list[int]:
        key = RunKey("w", session, 1)
        claim = await log.claim(key)
        for seq in range(1, 20):
            answer = log.append(claim, [row(seq)])
            if seq % 3 == 0:
                await answer
        await log.release(claim)
        return [row.seq for row in await log.read(key)]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: asyncio.run(drive(f"s{i}")), range(8)))
    assert found == [list(range(1, 20))] * 8


def test_a_loop_that_is_gone_does_not_stop_the_writer(log: SegmentLog, medium: GatedMedium) -> None:
    async def begin() -> OpenClaim:
        claim = await log.claim(KEY)
        assert isinstance(claim, OpenClaim)
        medium.gate.open.clear()
        log._writer.expect(claim, log._writer.append(claim, [row(1)])._call)
        return claim

    claim = asyncio.run(begin())
    medium.gate.open.set()

    async def go_on() -> list[int]:
        await log.append(claim, [row(2)])
        await log.release(claim)
        return await seqs(log)

    assert asyncio.run(go_on()) == [1, 2]


@pytest.mark.slow
def test_a_process_that_ends_without_a_close_writes_what_was_appended(tmp_path: Path) -> None:
    script = (
        "import asyncio, sys\n"
        "from engine.ports import Row, RunKey\n"
        "from engine.store import open_log\n"
        "async def main():\n"
        "    log = open_log(sys.argv[1])\n"
        "    claim = await log.claim(RunKey('w', 's', 1))\n"
        "    for seq in range(1, 50):\n"
        "        log.append(claim, [Row(seq, 1.0, 'note')])\n"
        "asyncio.run(main())\n"
        "assert not any(name.startswith(('pyarrow', 'numpy')) for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "store")], cwd=ROOT, check=True, timeout=20)
    from engine.store import open_log

    async def read() -> list[int]:
        log = open_log(tmp_path / "store")
        claim = await log.claim(KEY)
        await log.release(claim)
        return [row.seq for row in claim.rows]

    assert asyncio.run(read()) == list(range(1, 50))


async def _wait(answer: Any) -> None:
    await answer
