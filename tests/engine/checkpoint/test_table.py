"""Runs as a table: a row for each committed event, with values as JSON text."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from engine import Context, Engine, Retry, Workflow
from engine.checkpoint.table import error_text, is_json, json_text, schema, table_of
from engine.errors import CorruptCheckpoint, RunNotFound, StepFailed
from engine.ports import RunKey
from engine.store import open_log


def shaky(x: int, ctx: Context) -> int:
    ctx.state["seen"] = x
    if ctx.attempt == 1:
        raise ValueError("not yet")
    return x + 1


def make(name: str = "t") -> Workflow:
    return Workflow(name, storage="memory://table").add_node("shaky", shaky, retry=Retry(2, delay=0)).set_entry_point("shaky")


def fail(x: int) -> int:
    raise KeyError("gone")


@pytest.fixture
def storage(request: pytest.FixtureRequest) -> str:
    """A memory of the test's own."""
    return f"memory://{request.node.name}"


def test_a_run_is_told_event_by_event(storage: str):
    flow = make()
    flow.storage = storage
    flow.run_sync(1, session_id="s")
    table = Engine(storage).table()
    assert table.schema == schema()
    rows = table.to_pylist()
    assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
    assert {(row["run_id"], row["workflow"], row["session"], row["n"]) for row in rows} == {("t.s.1", "t", "s", 1)}
    told = {row["kind"]: row for row in rows}
    assert told["run_started"]["output"] == "1"
    assert told["step_retrying"]["error"] == "ValueError: not yet"
    done = told["step_succeeded"]
    assert (done["node"], done["step_id"], done["attempt"], done["output"]) == ("shaky", "t.s.1/shaky/1", 2, "2")
    assert json.loads(done["info"]) == {"writes": ["seen"], "deletes": []}
    assert json.loads(done["diff"]) == {"written": {"seen": 1}, "deleted": []}
    assert [kind for kind, row in told.items() if row["diff"] is not None] == ["step_succeeded"]
    assert 0 <= done["duration"] < 10
    assert datetime.now(UTC) >= done["at"] > datetime(2024, 1, 1, tzinfo=UTC)
    assert told["run_completed"]["output"] == "2"


def test_a_damaged_run_is_left_out_of_the_table_of_all_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    flow = Workflow("f", storage=str(tmp_path)).add_node("fail", fail).set_entry_point("fail")
    for session in ("damaged", "damaged", "whole"):  # the second owner seals what the first one wrote
        with pytest.raises(StepFailed):
            flow.run_sync(1, session_id=session)
    path = next(tmp_path.glob("runs/f/damaged/1/1.arrows"))
    data = bytearray(path.read_bytes())
    data[len(data.rstrip(b"\0")) - 100] ^= 0xFF
    path.write_bytes(data)
    table = Engine(tmp_path).table()
    assert set(table["run_id"].to_pylist()) == {"f.whole.1"}
    (record,) = [r for r in caplog.records if r.getMessage() == "a run is left out of the table"]
    assert (record.run, record.file) == ("f.damaged.1", str(path))  # type: ignore[attr-defined]
    assert isinstance(record.offset, int)  # type: ignore[attr-defined]
    with pytest.raises(CorruptCheckpoint):
        table_of(open_log(tmp_path), [RunKey("f", "damaged", 1)])


def test_a_failed_run_tells_its_error(storage: str):
    flow = Workflow("f", storage=storage).add_node("fail", fail).set_entry_point("fail")
    with pytest.raises(Exception, match="gone"):
        flow.run_sync(1, session_id="s")
    errors = {row["kind"]: row["error"] for row in Engine(storage).table().to_pylist() if row["error"]}
    assert errors["step_failed"] == "KeyError: 'gone'"
    assert errors["run_failed"].startswith("StepFailed: Workflow execution failed")


def test_all_runs_or_those_that_are_named(storage: str):
    for name, session in (("a", "x"), ("b", "x"), ("b", "y")):
        flow = make(name)
        flow.storage = storage
        flow.run_sync(1, session_id=session)
    log = open_log(storage)
    assert list(dict.fromkeys(table_of(log)["run_id"].to_pylist())) == ["a.x.1", "b.x.1", "b.y.1"]
    assert set(table_of(log, [RunKey("b", "y", 1)])["run_id"].to_pylist()) == {"b.y.1"}
    with pytest.raises(RunNotFound):
        table_of(log, [RunKey("b", "z", 1)])


def begin(ctx: Context) -> None:
    ctx.state.update({"list": [1, 2], "dict": {"a": 1}, "set": {1}, "gone": 1, 7: (1, b"\x00\xff")})


def change(ctx: Context) -> None:
    ctx.state["list"].append(3)
    ctx.state["dict"]["b"] = 2
    ctx.state["set"].add(2)
    ctx.state["new"] = {"nested": [1]}
    del ctx.state["gone"]


def test_the_diffs_of_steps_are_told_with_what_grew_marked(storage: str):
    flow = Workflow("d", storage=storage).add_node("begin", begin).add_node("change", change).add_node("look", lambda ctx: ctx.state["new"])
    flow.add_edge("begin", "change").add_edge("change", "look").set_entry_point("begin").run_sync(session_id="s")
    rows = Engine(storage).table().to_pylist()
    diffs = {row["node"]: row["diff"] and json.loads(row["diff"]) for row in rows if row["kind"] == "step_succeeded"}
    first = {"list": [1, 2], "dict": {"a": 1}, "set": [1], "gone": 1, "7": [1, "AP8="]}
    grown = {"list": {"$added": [3]}, "dict": {"$added": {"b": 2}}, "set": {"$added": [2]}, "new": {"nested": [1]}}
    assert diffs == {
        "begin": {"written": first, "deleted": []},
        "change": {"written": grown, "deleted": ["gone"]},
        "look": None,
    }


def test_an_empty_storage_is_a_table_without_rows(storage: str):
    assert Engine(storage).table().num_rows == 0
    assert Engine(storage).table().schema == schema()


@pytest.mark.anyio
async def test_a_table_can_be_had_inside_a_running_loop(storage: str):
    flow = make()
    flow.storage = storage
    await flow.execute(1, session_id="s")
    assert Engine(storage).table().num_rows > 3


def test_values_that_json_lacks_are_shown_as_text():
    value = {
        1: (1, float("nan")),
        "bytes": b"\x00\xff",
        "set": {2, 1},
        "day": date(2026, 1, 2),
        "sum": Decimal("1.50"),
        "array": np.arange(3),
        "number": np.int64(4),
        "table": pa.table({"a": [1]}),
        "big": 10**30,
    }
    assert json.loads(json_text(value)) == {
        "1": [1, "nan"], "bytes": "AP8=", "set": [1, 2], "day": "2026-01-02", "sum": "1.50", "array": [0, 1, 2], "number": 4,
        "table": "<table of 1 rows: a>", "big": 10**30,
    }  # fmt: skip
    assert "..." in json.loads(json_text(np.arange(5000)))


def test_only_what_comes_back_equal_counts_as_json():
    assert is_json({"a": [1, 2.5, None, True, ("x",)]})
    assert not any(is_json(value) for value in ({1: 2}, float("inf"), {1, 2}, b"", [date(2026, 1, 1)], {"a": {"b": Decimal(1)}}))


def lone(x: str) -> dict[str, str]:
    return {"k\ud800": x}


def break_off(x: str) -> None:
    raise ValueError(f"cannot open {x}")


def test_a_run_with_a_lone_surrogate_is_told_with_its_escape_and_hides_no_other(storage: str):
    text = "na\udcffme"
    Workflow("good", storage=storage).add_node("a", lambda x: x).set_entry_point("a").run_sync(1, session_id="s")
    Workflow("lone", storage=storage).add_node("a", lone).set_entry_point("a").run_sync(text, session_id="s")
    with pytest.raises(StepFailed):
        Workflow("fails", storage=storage).add_node("a", break_off).set_entry_point("a").run_sync(text, session_id="s")
    rows = Engine(storage).table().to_pylist()
    told = {(row["run_id"], row["kind"]): row for row in rows}
    assert told["good.s.1", "run_completed"]["output"] == "1"
    output = told["lone.s.1", "run_completed"]["output"]
    assert output == r'{"k\ud800":"na\udcffme"}'
    assert json.loads(output) == lone(text)
    assert told["fails.s.1", "step_failed"]["error"] == r"ValueError: cannot open na\udcffme"


@pytest.mark.parametrize("error", [{"type": "ValueError", "message": "\udcff"}, "ValueError: \udcff"])
def test_an_errors_text_is_what_utf8_can_hold(error: object):
    assert error_text(error) == r"ValueError: \udcff"
