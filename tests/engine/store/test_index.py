"""The index is what the log says: made again, caught up with, grown beside runs, and never in a run's way."""

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import batch
from engine.checkpoint.codec import decode, encode
from engine.checkpoint.digest import moment
from engine.checkpoint.record import event_of
from engine.core.events import Event
from engine.core.ids import make_run_id
from engine.errors import StoreUnavailable, WorkflowError
from engine.ports import Row, RunKey
from engine.records import DeadLetter, LetterQuery, Records, RunEntry, RunQuery
from engine.store import index, open_log, open_records
from engine.store.index import RunIndex, catch_up, rebuild
from engine.workflow import Workflow
from tests.databases import postgres_database

pytestmark = pytest.mark.anyio


def fail(value: Any) -> Any:
    raise ValueError(f"bad {value}")


def same(value: Any) -> Any:
    return value


async def record(storage: str, name: str, body: Any, *sessions: str, value: Any = "hi") -> None:
    """Execute a workflow of two nodes in some sessions."""
    flow = Workflow(name, storage=storage).add_node("a", same).add_node("b", body).add_edge("a", "b").set_entry_point("a")
    for session in sessions:
        try:
            await flow.execute(value, session_id=session)
        except WorkflowError:
            pass


async def listing(records: Records) -> tuple[list[RunEntry], list[DeadLetter]]:
    """All that the index holds."""
    runs = await records.list_runs(RunQuery(limit=1000, sort="run_id"))
    letters = await records.list_letters(LetterQuery(limit=1000, status=(), sort="run_id"))
    return list(runs.items), list(letters.items)


@pytest.fixture
def place() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.mark.slow
async def test_an_index_that_was_lost_is_made_again_as_it_was(tmp_path: Path):
    place, log = str(tmp_path / "runs"), open_log(tmp_path / "runs")
    await record(place, "good", same, "one", "two")
    await record(place, "bad", fail, "one")
    records = open_records(place)
    done = await rebuild(log, records)
    assert (done.runs, done.letters, done.damaged) == (3, 1, ())
    before = await listing(records)
    assert [(entry.run_id, entry.status) for entry in before[0]] == [
        ("bad.one.1", "failed"),
        ("good.one.1", "completed"),
        ("good.two.1", "completed"),
    ]
    assert [(letter.node, decode(letter.input or b"")) for letter in before[1]] == [("b", "hi")]
    await records.close()
    for file in (tmp_path / "runs").glob("records.db*"):
        file.unlink()
    again = index_of(place)
    await rebuild(log, again)
    assert await listing(again) == before
    await again.close()
    await log.close()


def index_of(place: str) -> Records:
    """The records of a place as another process opens them."""
    from engine.store.database import Database, read_address
    from engine.store.records import SqlRecords

    return SqlRecords(Database(read_address(f"sqlite:///{place}/records.db")))


@pytest.fixture
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/runs.db"
        return
    with postgres_database(request.getfixturevalue("service")("postgres")) as url:
        yield url


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgres", marks=pytest.mark.services)], indirect=True)
async def test_runs_in_a_database_have_their_index_beside_them(database: str):
    log, records = open_log(database), open_records(database)
    await record(database, "good", same, "one", "two")
    await record(database, "bad", fail, "one")
    done = await rebuild(log, records)
    assert (done.runs, done.letters, done.damaged) == (3, 1, ())
    assert await catch_up(log, records) == 0
    assert [entry.run_id for entry in (await listing(records))[0]] == ["bad.one.1", "good.one.1", "good.two.1"]
    await records.close()
    await log.close()


async def test_damaged_logs_are_left_out_and_named(tmp_path: Path):
    place = str(tmp_path / "runs")
    await record(place, "bad", fail, "one", "two", "two")
    log, records = open_log(place), open_records(place)
    await log.close()
    first = tmp_path / "runs" / "runs" / "bad" / "two" / "1" / "1.arrows"
    data = bytearray(first.read_bytes())
    data[-200] ^= 0xFF  # inside of what the next segment has sealed
    first.write_bytes(data)
    done = await rebuild(log, records)
    assert (done.runs, done.letters) == (1, 1)
    ((run_id, why),) = done.damaged
    assert (run_id, str(first) in why) == ("bad.two.1", True)
    assert [entry.session for entry in (await listing(records))[0]] == ["one"]
    await records.close()


async def test_logs_of_a_newer_format_are_left_out_and_nothing_is_taken_out_for_them(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    log, records = open_log(place), open_records(place)
    await record(place, "good", same, "one", "two")
    await rebuild(log, records)
    monkeypatch.setattr(batch, "FORMAT", 0)
    assert await catch_up(log, records) == 0
    assert len((await listing(records))[0]) == 2
    assert "left out of the index" in caplog.text
    done = await rebuild(log, records)
    assert (done.runs, ["format 1" in why for _, why in done.damaged]) == (0, [True, True])


async def test_what_a_failed_step_or_item_was_given_is_told_by_the_log(place: str):
    await record(place, "steps", fail, "s", value={"a": [1, 2]})
    items = (
        Workflow("items", storage=place).add_node("a", same).add_map("m", fail, max_concurrency=1).add_edge("a", "m").set_entry_point("a")
    )
    with pytest.raises(WorkflowError):
        await items.execute([5, 6], session_id="s")
    inner = Workflow("inner").add_node("y", fail).set_entry_point("y")
    await record(place, "outer", inner, "s")
    records = open_records(place)
    await rebuild(open_log(place), records)
    given = {letter.step_id: letter.input for letter in (await listing(records))[1]}
    assert {step: data and decode(data) for step, data in given.items()} == {
        "items.s.1/m/1/0": 5,
        "outer.s.1/b/1/0": None,
        "steps.s.1/b/1": {"a": [1, 2]},
    }


async def test_a_large_input_is_not_copied(place: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index, "LARGEST", 1000)
    await record(place, "large", fail, "s", value="x" * 2000)
    await rebuild(open_log(place), open_records(place))
    ((letter,),) = [(await listing(open_records(place)))[1]]
    assert letter.input is None


async def test_catching_up_reads_what_differs_and_takes_out_what_is_gone(place: str, monkeypatch: pytest.MonkeyPatch):
    log, records = open_log(place), open_records(place)
    await record(place, "good", same, "one", "two", "three")
    assert await catch_up(log, records) == 3
    read: list[RunKey] = []
    original = log.read

    async def noted(key: RunKey, *, after: int = 0) -> Any:
        read.append(key)
        return await original(key, after=after)

    monkeypatch.setattr(log, "read", noted)
    await record(place, "bad", fail, "one")
    await log.delete(RunKey("good", "two", 1))
    assert await catch_up(log, records) == 2
    assert set(read) == {RunKey("bad", "one", 1)}
    runs, letters = await listing(records)
    assert [entry.run_id for entry in runs] == ["bad.one.1", "good.one.1", "good.three.1"]
    assert [letter.run_id for letter in letters] == ["bad.one.1"]
    assert await catch_up(log, records) == 0


async def test_a_moment_is_the_same_in_the_tail_of_a_log_and_in_its_rows(place: str):
    log, records = open_log(place), open_records(place)
    for n, at in enumerate((1795309580.4965694, 1795309580.4443285, 1795309580.4403074)):  # none of them a whole microsecond
        claim = await log.claim(RunKey("w", f"s{n}", 1))
        await log.append(claim, [Row(1, at, "run_started")])
        await log.release(claim)
    await rebuild(log, records)
    assert await catch_up(log, records) == 0


async def test_the_index_that_grew_beside_runs_is_the_one_that_is_made_again(place: str):
    log, records = open_log(place), open_records(place)
    await record(place, "good", same, "one")
    await record(place, "bad", fail, "one")
    by_rows, by_events = RunIndex(records, log), RunIndex(records, log)
    for summary in await log.scan():
        rows = await log.read(summary.key)
        if summary.key.workflow == "good":
            for row in rows:
                by_rows.take(summary.key, [row])
        else:
            listen = by_events.listen(summary.key)
            for row in rows:
                listen(event_of(make_run_id(*summary.key), row))
            listen(Event("bad.one.1", 3, event_of("x", rows[0]).at, "progress", ordinal=1))
    await by_rows.flush()
    await by_events.flush()
    grown = await listing(records)
    assert len(grown[0]) == 2
    await rebuild(log, records)
    assert await listing(records) == grown


async def test_a_run_whose_beginning_was_not_told_is_read_from_the_log(place: str):
    log, records = open_log(place), open_records(place)
    await record(place, "good", same, "one")
    key = RunKey("good", "one", 1)
    rows = await log.read(key)
    grown = RunIndex(records, log)
    grown.take(key, rows[-1:])
    await grown.flush()
    entry = await records.get_run("good.one.1")
    assert entry is not None
    assert (entry.status, entry.steps, entry.started_at) == ("completed", 2, moment(rows[0].at))
    grown.take(RunKey("gone", "s", 1), [Row(7, 1e9, "run_failed")])
    await grown.flush()
    assert len((await listing(records))[0]) == 1, "a run that was deleted meanwhile is passed over"


class Away:
    """Records that cannot be reached for a while."""

    def __init__(self, records: Records, *, away: bool = True) -> None:
        self.records = records
        self.away = away
        self.error: Exception = StoreUnavailable("nobody answers")
        self.url = records.url
        self.put = asyncio.Condition()
        """Told after each try to put runs in."""
        self.tries = 0

    def __getattr__(self, name: str) -> Any:
        async def call(*args: Any, **more: Any) -> Any:
            if self.away:
                raise self.error
            return await getattr(self.records, name)(*args, **more)

        return call

    async def put_runs(self, entries: Sequence[RunEntry]) -> None:
        try:
            if self.away:
                raise self.error
            await self.records.put_runs(entries)
        finally:
            async with self.put:
                self.tries += 1
                self.put.notify_all()

    async def tried(self, times: int) -> None:
        """Wait until runs were put, or were tried to be put, so often."""
        async with self.put, asyncio.timeout(10):
            await self.put.wait_for(lambda: self.tries >= times)


async def test_runs_go_on_while_the_records_are_away_and_are_caught_up_with(place: str, caplog: pytest.LogCaptureFixture):
    log, away = open_log(place), Away(open_records(place))
    grown = RunIndex(away, log, every=0.001)  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as group:
        driving = group.create_task(grown.drive())
        await record(place, "good", same, "one", "two")
        for summary in await log.scan():
            grown.take(summary.key, await log.read(summary.key))
        await away.tried(3)
        away.away = False
        await away.tried(away.tries + 1)
        driving.cancel()
    assert (await away.records.list_runs(RunQuery(status=("completed",)))).total == 2
    told = [entry for entry in caplog.records if "cannot be written" in entry.getMessage()]
    assert len(told) == 1, "it is said once"


async def test_what_is_too_much_to_wait_is_read_from_the_log_later(place: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(index, "MOST_WAITING", 2)
    log, away = open_log(place), Away(open_records(place))
    grown = RunIndex(away, log)  # type: ignore[arg-type]
    await record(place, "good", same, *"abcdef")
    for summary in await log.scan():
        grown.take(summary.key, await log.read(summary.key))
        with pytest.raises(StoreUnavailable):
            await grown.flush()
    assert len(grown._digests) == 2
    away.away = False
    await grown.flush()
    assert len((await listing(away.records))[0]) == 6


async def test_a_change_of_status_goes_out_at_once_and_progress_waits(place: str):
    records, log = Away(open_records(place), away=False), open_log(place)
    grown = RunIndex(records, log, every=0.001, progress=3600.0)  # type: ignore[arg-type]
    key = RunKey("w", "s", 1)
    async with asyncio.TaskGroup() as group:
        driving = group.create_task(grown.drive())
        grown.take(key, [Row(1, 1e9, "run_started")])
        await records.tried(1)
        entry = await records.get_run("w.s.1")
        assert (entry.status, entry.seq) == ("running", 1)
        grown.take(key, [Row(2, 1e9 + 1, "step_succeeded", "a", "a/1")])
        grown.take(RunKey("other", "s", 1), [Row(1, 1e9, "run_started")])
        await records.tried(2)
        assert await records.get_run("other.s.1") is not None
        assert await records.get_run("w.s.1") == entry
        grown.take(key, [Row(3, 1e9 + 2, "run_completed", info=encode({"finished": 1}))])
        await records.tried(3)
        entry = await records.get_run("w.s.1")
        assert (entry.status, entry.steps, entry.finished_at) == ("completed", 1, 1e9 + 2)
        driving.cancel()


async def test_nothing_is_kept_of_a_run_that_ended(place: str):
    grown = RunIndex(open_records(place), open_log(place))
    grown.take(RunKey("w", "s", 1), [Row(1, 1e9, "run_started"), Row(2, 1e9, "run_completed")])
    grown.take(RunKey("w", "t", 1), [Row(1, 1e9, "run_started")])
    await grown.flush()
    assert [key.session for key in grown._digests] == ["t"]


async def test_what_goes_wrong_in_the_index_ends_no_run(place: str, caplog: pytest.LogCaptureFixture):
    records, log = Away(open_records(place)), open_log(place)
    records.error = ZeroDivisionError("a mistake")
    grown = RunIndex(records, log, every=0.001)  # type: ignore[arg-type]
    await record(place, "good", same, "one", "two")
    async with asyncio.TaskGroup() as group:
        driving = group.create_task(grown.drive())
        for session in ("one", "two"):
            key = RunKey("good", session, 1)
            grown.take(key, await log.read(key))
            await records.tried(1)
            records.away = False
        await records.tried(2)
        driving.cancel()
    assert "missing in the index until it is caught up with" in caplog.text
    assert len((await listing(records.records))[0]) == 2, "the next run brings them all"
