"""Runs as one Arrow table, a row for each committed event: what DuckDB, Polars and pandas read.

Values are JSON text; what JSON cannot hold is shown as text in it, so the table is for looking and counting, not for going on.
It reads logs and writes nothing. pyarrow is loaded when a table is made.
"""

import asyncio
import json
import logging
import math
import threading
from base64 import b64encode
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from engine.checkpoint.codec import to_data
from engine.checkpoint.record import decode_diff, event_of
from engine.core.ids import make_run_id
from engine.core.state import Growth, opened
from engine.errors import CheckpointError, RunNotFound
from engine.ports import Log, Row, RunKey

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_ROWS = 16_384
"""Rows that are held as Python objects at once."""
_VALUES = ("output", "input", "value")


def schema() -> "pa.Schema":
    """Return the table's columns.

    `output` is the step's or run's output, the run's input, a jump's input or a receipt; `info` the event's other data; `duration` seconds.
    `diff` is what the step did to the state: {"written": {key: value}, "deleted": [key]}; of a list, dict or set that grew, written has
    {"$added": what it has more than before}. NULL where the step changed nothing.
    """
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    always = {
        "run_id": text,
        "workflow": text,
        "session": text,
        "n": number,
        "seq": number,
        "at": pa.timestamp("us", tz="UTC"),
        "kind": text,
    }
    often = {"node": text, "step_id": text, "attempt": number, "duration": pa.float64()}
    often |= dict.fromkeys(("output", "diff", "info", "error"), text)
    fields = [pa.field(name, kind, nullable=False) for name, kind in always.items()]
    return pa.schema(fields + [pa.field(name, kind) for name, kind in often.items()])


def table_of(log: Log, keys: Iterable[RunKey] | None = None) -> "pa.Table":
    """Return the committed events of runs, in the order of runs (oldest first) and events.

    Works inside a running event loop too: the logs are read in a thread, and the caller waits.

    Args:
        keys: The runs; default: all. Runs that were removed meanwhile are left out, unless they are named here.

    Raises: RunNotFound, CorruptCheckpoint, UnknownFormat, StoreUnavailable.
    """
    import pyarrow as pa

    batches = _in_own_loop(_read(log, None if keys is None else list(keys), schema()))
    return pa.Table.from_batches(batches, schema=schema())


async def _read(log: Log, keys: Sequence[RunKey] | None, columns: "pa.Schema") -> "list[pa.RecordBatch]":
    import pyarrow as pa

    named = keys is not None
    if keys is None:
        keys = [summary.key for summary in reversed(await log.scan())]
    batches: list[pa.RecordBatch] = []
    cells: list[dict[str, Any]] = []
    for key in keys:
        try:
            rows = await log.read(key)
        except (RunNotFound, CheckpointError) as error:
            if named:
                raise
            if isinstance(error, CheckpointError):
                where = {"file": getattr(error, "file", None), "offset": getattr(error, "offset", None)}
                logger.warning("a run is left out of the table", extra={"run": make_run_id(*key), **where, "error": str(error)})
            continue
        for row in rows:
            cells.append(_cells(key, row))
            if len(cells) >= _ROWS:
                batches.append(pa.RecordBatch.from_pylist(cells, schema=columns))
                cells = []
    if cells:
        batches.append(pa.RecordBatch.from_pylist(cells, schema=columns))
    return batches


def _cells(key: RunKey, row: Row) -> dict[str, Any]:
    run_id = make_run_id(*key)
    event = event_of(run_id, row)
    data = dict(event.data)
    cells: dict[str, Any] = {
        "run_id": run_id,
        "workflow": key.workflow,
        "session": key.session,
        "n": key.n,
        "seq": event.seq,
        "at": event.at,
        "kind": event.kind,
        "node": event.node or None,
        "step_id": event.step_id or None,
        "attempt": event.attempt or None,
        "duration": data.pop("duration", None),
    }
    for name in _VALUES:
        if row.output is not None and name in data:
            cells["output"] = json_text(data.pop(name))
            break
    if row.diff is not None:
        cells["diff"] = diff_text(row.diff)
    if (error := data.get("error")) is not None:
        cells["error"] = error_text(error)
    if data:
        cells["info"] = json_text(data)
    return cells


def diff_text(data: bytes) -> str:
    """Return a recorded diff as JSON text, with the tail of what grew marked as such: its base is in other rows."""
    diff = decode_diff(data)
    written = {key: {"$added": value.added} if isinstance(value, Growth) else opened(value) for key, value in diff.written.items()}
    return json_text({"written": written, "deleted": diff.deleted})


def utf8_text(text: str) -> str:
    r"""Return a text that UTF-8 can hold: a lone surrogate is written as its escape, as `\udcff`, which JSON and Python read back."""
    return text.encode("utf-8", "backslashreplace").decode()


def error_text(error: Any) -> str:
    """Return an event's error as `Type: message`, in what UTF-8 can hold."""
    if isinstance(error, Mapping) and "message" in error:
        return utf8_text(f"{error.get('type', 'Error')}: {error['message']}")
    return utf8_text(str(error))


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON text that UTF-8 can hold; what JSON cannot hold is shown as text in it."""
    return utf8_text(json.dumps(jsonable(value), ensure_ascii=False, indent=indent, separators=None if indent else (",", ":")))


def is_json(value: Any) -> bool:
    """Tell whether JSON holds a value without loss: text keys, finite numbers, no other types; a tuple counts as a list."""
    pending = [value]
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind is dict:
            if not all(type(key) is str for key in item):
                return False
            pending += item.values()
        elif kind is list or kind is tuple:
            pending += item
        elif not (item is None or kind in (str, bool, int) or (kind is float and math.isfinite(item))):
            return False
    return True


def jsonable(value: Any) -> Any:
    """Return a value in JSON's types: bytes as base64, sets as lists, everything else that is foreign as its text."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case Mapping():
            return {key if isinstance(key, str) else str(key): jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [jsonable(item) for item in value]
        case set() | frozenset():
            return [jsonable(item) for item in sorted(value, key=lambda item: (type(item).__name__, str(item)))]
        case bytes() | bytearray():
            return b64encode(value).decode()
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "num_rows"):
        return f"<table of {value.num_rows} rows: {', '.join(value.schema.names)}>"
    data = to_data(value)
    if type(data) is not type(value):
        return jsonable(data)
    return jsonable(value.tolist()) if hasattr(value, "tolist") and getattr(value, "size", 0) <= 1000 else str(value)


def _in_own_loop(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine from sync code; in a thread where this one has a running loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    answer: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="gecko-table")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return answer[0]
