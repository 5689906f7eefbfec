"""The log in a database: leases, killed and stale owners, lost answers, shared transactions, damage that is named."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, text, update

from engine.errors import ConfigurationError, CorruptCheckpoint, LeaseLost, RunBusy, RunNotFound, StoreUnavailable, UnknownFormat
from engine.ports import Row, RunKey
from engine.records import RunQuery
from engine.store import is_relative, open_log, open_records, transactions
from engine.store.alive import is_gone, mark_of
from engine.store.database import Database, read_address
from engine.store.index import rebuild
from engine.store.sql import SqlLog
from engine.store.tables import BATCHES, FORMATS, RUNS

KEY = RunKey("w", "s", 1)
BOTH = ["sqlite", pytest.param("postgresql", marks=pytest.mark.services)]


@pytest.fixture(params=BOTH)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of an empty database, of each kind in turn."""
    return request.getfixturevalue("postgres") if request.param == "postgresql" else f"sqlite:///{tmp_path}/log.db"


class Others:
    """Opens the database again and again, as other processes would: each with a thread and an owner of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.logs: list[SqlLog] = []

    def __call__(self, lease: float = 60.0) -> SqlLog:
        log = SqlLog(Database(read_address(self.url)), lease=lease)
        self.logs.append(log)
        return log

    def far(self, lease: float) -> SqlLog:
        """Return one that seems to run on another machine."""
        log = self(lease)
        log._mark = "another boot"
        return log


@pytest.fixture
def other(url: str) -> Iterator[Others]:
    made = Others(url)
    yield made
    for log in made.logs:
        log.finish(5)
        asyncio.run(log.database.close())


def row(seq: int, kind: str = "note", **cells: Any) -> Row:
    return Row(seq, float(seq), kind, **cells)


async def seqs(log: SqlLog) -> list[int]:
    return [found.seq for found in await log.read(KEY)]


async def stop_renewing(log: SqlLog) -> None:
    """Have a log seem to stand still, so that its lease runs out."""
    assert log._beating is not None
    log._beating.cancel()


async def change(log: SqlLog, statement: Any) -> None:
    """Change the database behind the log's back."""
    await log.database.do(lambda connection: connection.execute(statement))


@pytest.mark.slow
@pytest.mark.anyio
async def test_an_owner_that_is_not_heard_of_is_dead_when_its_lease_has_run_out_and_stops_when_it_wakes(other: Others) -> None:
    old, new = other.far(1.0), other()
    claim = await old.claim(KEY)
    await old.append(claim, [row(1)])
    await stop_renewing(old)
    with pytest.raises(RunBusy, match="is driven by process"):
        await new.claim(KEY)
    taken = await new.claim(KEY, wait=20.0)
    assert [found.seq for found in taken.rows] == [1]
    with pytest.raises(LeaseLost, match="another owner"):
        await old.append(claim, [row(2, output=b"old")])
    await new.append(taken, [row(2, output=b"new")])
    await old.release(claim)
    assert [found.output for found in await new.read(KEY)] == [None, b"new"]
    with pytest.raises(RunBusy):
        await old.claim(KEY)
    await new.release(taken)


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_lease_is_renewed_for_as_long_as_a_run_is_driven(other: Others) -> None:
    old, new = other.far(1.0), other()
    claim = await old.claim(KEY)
    with pytest.raises(RunBusy):
        await new.claim(KEY, wait=2.5)
    await old.release(claim)
    await new.release(await new.claim(KEY))


@pytest.mark.anyio
async def test_a_clean_end_is_seen_at_once(other: Others) -> None:
    old, new = other.far(3600.0), other()
    claim = await old.claim(KEY)
    await old.append(claim, [row(1)])
    await asyncio.to_thread(old.finish, 5.0)  # as at the end of a process that released nothing
    taken = await new.claim(KEY)
    assert [found.seq for found in taken.rows] == [1]
    await new.release(taken)


@pytest.mark.anyio
async def test_a_reader_sees_whether_a_run_is_driven(other: Others) -> None:
    log, reader = other(), other()
    claim = await log.claim(KEY)
    await log.append(claim, [row(1, "run_started")])
    (driven,) = await reader.scan()
    assert driven.owner is not None
    assert (driven.owner.pid, driven.status, driven.size > 100) == (os.getpid(), "running", True)
    await log.release(claim)
    (left,) = await reader.scan()
    assert left.owner is None


@pytest.mark.anyio
async def test_what_an_interrupted_look_finds_is_nothing_and_makes_nothing(tmp_path: Path) -> None:
    log = open_log("sqlite:///nothing/log.db")
    assert list(await log.scan()) == []
    with pytest.raises(RunNotFound, match=r"sqlite:///.*/nothing/log.db"):
        await log.read(KEY)
    assert await log.prune(older_than=0) == 0
    assert not (tmp_path / "nothing").exists()


@pytest.mark.anyio
async def test_a_lost_answer_loses_and_repeats_no_rows(other: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    log = other()
    claim = await log.claim(KEY)
    await log.append(claim, [row(1)])
    do = log.database.do
    lost = [1]

    async def losing(work: Any, **how: Any) -> Any:
        answer = await do(work, **how)
        if lost:
            lost.pop()
            raise StoreUnavailable("the answer was lost")
        return answer

    monkeypatch.setattr(log.database, "do", losing)
    with pytest.raises(StoreUnavailable):
        await log.append(claim, [row(2), row(3)])
    await log.append(claim, [row(4)])
    await log.append(claim, [row(5)])
    assert await seqs(log) == [1, 2, 3, 4, 5]
    await log.release(claim)


@pytest.mark.anyio
async def test_runs_share_transactions(other: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    log = other()
    claims = [await log.claim(RunKey("w", f"s{i}", 1)) for i in range(20)]
    sizes: list[int] = []
    commit = transactions.commit

    def counting(connection: Any, batches: Any) -> Any:
        sizes.append(len(batches))
        return commit(connection, batches)

    monkeypatch.setattr(transactions, "commit", counting)
    answers = [log.append(claim, [row(seq)]) for seq in range(1, 11) for claim in claims]
    await asyncio.gather(*(wait(answer) for answer in answers))
    assert sum(sizes) >= 20
    assert len(sizes) < 60
    assert max(sizes) > 5
    for claim in claims:
        assert [found.seq for found in await log.read(claim.key)] == list(range(1, 11))
        await log.release(claim)


@pytest.mark.anyio
async def test_one_lost_run_stops_no_other_of_its_transaction(other: Others) -> None:
    log = other()
    claims = [await log.claim(RunKey("w", f"s{i}", 1)) for i in range(3)]
    taken = await other().claim(claims[1].key, takeover=True)
    answers = await asyncio.gather(*(wait(log.append(claim, [row(1)])) for claim in claims), return_exceptions=True)
    assert [type(answer) for answer in answers] == [type(None), LeaseLost, type(None)]
    assert list(taken.rows) == []


@pytest.mark.anyio
async def test_a_row_that_cannot_be_written_stops_its_run_and_no_other(other: Others) -> None:
    log = other()
    bad, good = await log.claim(KEY), await log.claim(RunKey("w", "t", 1))
    async with asyncio.TaskGroup() as group:
        refused = group.create_task(failing(log.append(bad, [row(1, node="\ud800")])))
        group.create_task(wait(log.append(good, [row(1)])))
    assert isinstance(refused.result(), StoreUnavailable)
    assert "could not be written" in str(refused.result())


@pytest.mark.anyio
async def test_rows_that_nobody_awaits_are_told_of_at_the_release(other: Others) -> None:
    log = other()
    claim = await log.claim(KEY)
    await other().claim(KEY, takeover=True)
    log.append(claim, [row(1)])
    with pytest.raises(LeaseLost):
        await log.release(claim)


@pytest.mark.anyio
async def test_values_are_fetched_from_the_batches_that_hold_them(other: Others, monkeypatch: pytest.MonkeyPatch) -> None:
    log = other()
    claim = await log.claim(KEY)
    for seq in range(1, 30, 3):
        await log.append(claim, [row(n, output=str(n).encode()) for n in range(seq, seq + 3)])
    decoded: list[int] = []
    decode = log._decoded
    monkeypatch.setattr(log, "_decoded", lambda head, stored, last=None: decoded.append(len(stored)) or decode(head, stored, last))
    found = log.fetch(KEY, [2, 29, 3])
    assert {seq: one.output for seq, one in found.items()} == {2: b"2", 3: b"3", 29: b"29"}
    assert decoded == [2]
    assert log.fetch(KEY, []) == {}
    with pytest.raises(RunNotFound):
        log.fetch(RunKey("w", "s", 2), [1])
    await log.release(claim)


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["bytes", "place", "missing"])
async def test_damage_is_named_and_the_run_stays_as_it_is(other: Others, what: str) -> None:
    log = other()
    claim = await log.claim(KEY)
    for seq in (1, 2, 3):
        await log.append(claim, [row(seq, output=b"x" * 100)])
    await log.release(claim)
    second = BATCHES.c.number == 2
    match what:
        case "bytes":
            await change(log, update(BATCHES).where(second).values(data=b"\0" * 500))
        case "place":
            await change(log, update(BATCHES).where(second).values(epoch=7))
        case _:
            await change(log, delete(BATCHES).where(second))
    for _ in range(2):
        with pytest.raises(CorruptCheckpoint, match="missing in" if what == "missing" else "batch 2 of run 'w.s.1' is damaged"):
            await log.read(KEY)
        with pytest.raises(CorruptCheckpoint):
            await log.claim(KEY)
    assert (await log.scan())[0].owner is None


@pytest.mark.anyio
async def test_tables_of_a_newer_format_are_left_alone(other: Others) -> None:
    log = other()
    await log.release(await log.claim(KEY))
    await change(log, update(FORMATS).values(number=99))
    for refused in (other().claim(KEY), other().read(KEY), other().scan()):
        with pytest.raises(UnknownFormat, match="tables of format 99, and this version reads 1: update Gecko"):
            await refused


@pytest.mark.anyio
async def test_tables_are_made_once_by_many_at_once_and_beside_those_of_others(other: Others) -> None:
    await change(other(), text("CREATE TABLE mine (number integer)"))
    logs = [other() for _ in range(6)]
    claims = await asyncio.gather(*(log.claim(RunKey("w", f"s{i}", 1)) for i, log in enumerate(logs)))
    assert len(await logs[0].scan()) == 6
    await change(logs[0], text("INSERT INTO mine VALUES (1)"))
    for log, claim in zip(logs, claims, strict=True):
        await log.release(claim)


@pytest.mark.anyio
async def test_the_log_and_the_records_of_runs_share_a_database(url: str, other: Others) -> None:
    log = other()
    for session, kind in (("a", "run_completed"), ("b", "note")):
        claim = await log.claim(RunKey("w", session, 1))
        await log.append(claim, [row(1, "run_started"), row(2, kind)])
        await log.release(claim)
    records = open_records(f"{url}{'&' if '?' in url else '?'}lease=5")
    try:
        found = await rebuild(log, records)
        assert (found.runs, found.damaged) == (2, ())
        assert [entry.run_id for entry in (await records.list_runs(RunQuery(sort="run_id"))).items] == ["w.a.1", "w.b.1"]
        assert len(await log.scan()) == 2
    finally:
        await records.close()


@pytest.mark.anyio
async def test_tables_that_were_removed_are_said_and_made_again(other: Others) -> None:
    log = other()
    claim = await log.claim(KEY)
    for table in (BATCHES, RUNS, FORMATS):
        await change(log, text(f"DROP TABLE {table.name}"))
    with pytest.raises(StoreUnavailable, match="could not be written"):
        await log.append(claim, [row(1)])
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        await log.read(KEY)
    await log.release(await log.claim(KEY))
    assert await seqs(log) == []


@pytest.mark.anyio
async def test_an_owner_whose_run_was_pruned_elsewhere_stops(other: Others) -> None:
    log, cleaner = other(), other()
    claim = await log.claim(KEY)
    await log.append(claim, [row(1, "run_started"), row(2, "run_completed")])
    assert await cleaner.prune(older_than=-1e12) == 1
    await cleaner.prune(older_than=-1e12)
    again = await cleaner.claim(KEY)
    with pytest.raises(LeaseLost):
        await log.append(claim, [row(3)])
    assert list(again.rows) == []


@pytest.mark.anyio
async def test_a_claim_nobody_waits_for_any_more_is_given_back(other: Others) -> None:
    log = other()
    async with asyncio.TaskGroup() as group:
        claiming = group.create_task(log.claim(KEY))
        await asyncio.sleep(0)
        claiming.cancel()
    await log.release(await log.claim(KEY, wait=10.0))


@pytest.mark.slow
def test_many_who_take_a_run_over_from_each_other_lose_nothing_acknowledged(other: Others) -> None:
    async def drive(log: SqlLog, name: str) -> list[bytes]:
        acknowledged: list[bytes] = []
        for turn in range(6):
            claim = await log.claim(KEY, takeover=True)
            last = claim.rows[-1].seq if claim.rows else 0
            try:
                for k in range(1, 6):
                    value = f"{name} {turn} {k}".encode()
                    await log.append(claim, [row(last + k, output=value)])
                    acknowledged.append(value)
            except LeaseLost:
                continue
            await log.release(claim)
        return acknowledged

    logs = [other() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        told = list(threads.map(lambda i: asyncio.run(drive(logs[i], f"driver{i}")), range(4)))
    rows = asyncio.run(logs[0].read(KEY))
    assert [found.seq for found in rows] == list(range(1, len(rows) + 1))
    kept = [found.output for found in rows]
    assert len(set(kept)) == len(kept)
    for acknowledged in told:
        assert [value for value in kept if value in acknowledged] == acknowledged, "all that was acknowledged, in its order"


WRITER = """
import asyncio, sys
from engine.ports import Row, RunKey
from engine.store import open_log

async def main():
    log = open_log(sys.argv[1])
    claim = await log.claim(RunKey("w", "s", 1))
    seq = 0
    while True:
        seq += 1
        await log.append(claim, [Row(seq, float(seq), "note", output=bytes(2000))])
        print(seq, flush=True)

asyncio.run(main())
"""


@pytest.mark.slow
def test_a_killed_process_leaves_every_acknowledged_row_and_its_run_may_be_claimed_at_once(other: Others, url: str, root: Path) -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(root)}
    log = other()
    with subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True, env=environment) as writer:
        assert writer.stdout is not None
        acknowledged = 0
        while acknowledged < 50:
            acknowledged = int(writer.stdout.readline())
        with pytest.raises(RunBusy, match=f"driven by process {writer.pid}"):
            asyncio.run(claim_and_append(log))
        writer.send_signal(signal.SIGKILL)
        for line in writer.stdout:
            acknowledged = int(line)
    found = asyncio.run(claim_and_append(log, wait=0.0 if mark_of(os.getpid()) else 30.0))
    assert found == list(range(1, len(found) + 1))
    assert acknowledged <= len(found) <= acknowledged + 1


async def claim_and_append(log: SqlLog, *, wait: float = 0.0) -> list[int]:
    """Go on with a run; the numbers of the rows that were there."""
    claim = await log.claim(KEY, wait=wait)
    found = [one.seq for one in claim.rows]
    await log.append(claim, [row(len(found) + 1)])
    await log.release(claim)
    return found


@pytest.mark.skipif(not mark_of(os.getpid()), reason="this system does not tell when a process began")
def test_a_process_is_gone_only_where_that_is_certain() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        mark = mark_of(process.pid)
        place, _, begun = mark.rpartition(" ")
        assert not is_gone(process.pid, mark)
        assert is_gone(process.pid, f"{place} {int(begun) - 1}"), "the id was given to another"
        assert not is_gone(process.pid, f"another boot {begun}")
        assert not is_gone(process.pid, "")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(process.pid, mark), "one that nobody has waited for yet does nothing any more"
        process.wait()
        assert is_gone(process.pid, mark)
        assert not is_gone(process.pid, mark.replace("pid:[", "pid:[9"))


def test_a_log_is_opened_once_by_whatever_name(tmp_path: Path) -> None:
    assert len({id(open_log(name)) for name in ("sqlite:///a.db", f"sqlite:///{tmp_path}/a.db")}) == 1
    assert open_log("sqlite:///a.db").url == f"sqlite:///{tmp_path}/a.db"
    assert open_log("sqlite:///a.db?lease=5").url == f"sqlite:///{tmp_path}/a.db?lease=5"
    log = open_log("postgres://a:b@h/d?sslmode=require&lease=5")
    assert log.url == "postgresql://a:b@h/d?sslmode=require&lease=5"
    assert open_log(log.url) is log
    assert is_relative("sqlite:///a.db")
    assert not is_relative(f"sqlite:///{tmp_path}/a.db")
    assert not is_relative("postgresql://h/d")


@pytest.mark.parametrize("lease", ["0", "soon", "1e9"])
def test_a_lease_that_cannot_work_is_refused(lease: str) -> None:
    with pytest.raises(ConfigurationError, match="lease is a number of seconds from 1 to 3600"):
        open_log(f"sqlite:///a.db?lease={lease}")


async def wait(answer: Any) -> None:
    await answer


async def failing(answer: Any) -> BaseException | None:
    try:
        await answer
    except StoreUnavailable as error:
        return error
    return None
