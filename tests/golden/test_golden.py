"""What older versions of the format wrote is read, listed, replayed and resumed: one folder for each, all with the same run."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from engine import Engine
from tests.golden import flow as recorded_flow
from tests.golden.write import SIZE, write

pytestmark = pytest.mark.anyio

VERSIONS = sorted(path.name for path in Path(__file__).parent.glob("v*"))
RUN = "golden.s.1"
BLOB = bytes(range(256)) * SIZE
END = {"receipt": "receipt 1", "longest": "rightmost", "total": 23, "bytes": len(BLOB)}


@pytest.fixture(params=VERSIONS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(Path(__file__).parent / request.param, tmp_path / "storage"))


async def test_it_is_listed_as_a_run_that_nobody_drives(folder: Path):
    (summary,) = await Engine(folder).runs()
    assert (tuple(summary.key), summary.status, summary.owner) == (("golden", "s", 1), "running", None)


async def test_its_events_are_read_up_to_the_torn_end_of_each_segment(folder: Path):
    events = [event async for event in Engine(folder).events(RUN)]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    kinds = Counter(event.kind for event in events)
    assert (kinds["run_started"], kinds["run_resumed"], kinds["condition_decided"], kinds["step_skipped"]) == (1, 1, 1, 1)
    ended = [event.step_id.removeprefix(f"{RUN}/") for event in events if event.kind == "step_succeeded"]
    assert ended == ["plan/1", "measure/1/0", "measure/1/1", "measure/1/2", "measure/1", "left/1", "right/1"]
    assert [event.node for event in events if event.kind == "step_started"][-3:] == ["left", "right", "pay"]
    assert (kinds["once_intended"], kinds["once_done"], events[-1].kind) == (1, 1, "once_done")


async def test_its_state_is_brought_back_at_every_event(folder: Path):
    engine = Engine(folder)
    newest = [event.seq async for event in engine.events(RUN)][-1]
    states = [await engine.state(RUN, at) for at in range(1, newest + 1)]
    assert states[0] == {}
    assert states[-1] == await engine.state(RUN) == {"blob": BLOB, "longest": "rightmost", "total": 23}
    assert {"blob": BLOB, "longest": "xxx"} in states


async def test_it_is_a_table(folder: Path):
    table = Engine(folder).table()
    assert set(table["run_id"].to_pylist()) == {RUN}
    assert table.num_rows == len([event async for event in Engine(folder).events(RUN)])


async def test_it_is_resumed_and_nothing_that_was_committed_is_performed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(recorded_flow, "performed", [])
    handle = await Engine(folder, "inline").resume(RUN)
    assert await handle.wait() == END
    (cut,) = [record for record in caplog.records if record.getMessage() == "a torn end of a log was cut"]
    assert (Path(cut.file).name, cut.epoch) == ("2.arrows", 2)  # type: ignore[attr-defined]
    assert 0 < cut.offset < Path(cut.file).stat().st_size  # type: ignore[attr-defined]
    assert recorded_flow.performed == ["pay", "close"]
    assert handle.state == {"blob": BLOB, "longest": "rightmost", "total": 23}
    kinds = [event.kind async for event in Engine(folder).events(RUN)]
    assert kinds.count("once_done") == 1
    assert (kinds.count("run_resumed"), kinds[-1]) == (2, "run_completed")


@pytest.mark.slow
async def test_the_run_that_is_written_now_is_told_alike(folder: Path, tmp_path: Path):
    write(tmp_path / "now")
    told = [[(e.seq, e.kind, e.node, e.step_id) async for e in Engine(each).events(RUN)] for each in (folder, tmp_path / "now")]
    assert told[0] == told[1]
