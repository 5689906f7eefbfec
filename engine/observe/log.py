"""The program's log as JSON, one object a line, each with the run, session, node and step that it is about, where that is known.

A record says itself what it is about, by `extra`, as our own do and as `ctx.logger` makes it; else it is taken for what the present code
belongs to, so that what a body logs by a logger of its own, or a library under it, is found as well.
"""

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

from engine.core.current import here as present
from engine.core.ids import make_run_id, split_run_id

IDS = ("run_id", "session_id", "node", "step_id")
OURS = ("engine", "cluster", "serve")

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LONGEST = 20_000
"""Characters of a text that one line holds."""


class Ids(logging.Filter):
    """Puts `run_id`, `session_id`, `node` and `step_id` on every record, empty where they are not known; lets all of them through."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Find out what a record is about."""
        for name, value in ids_of(record).items():
            setattr(record, name, value)
        return True


def ids_of(record: logging.LogRecord) -> dict[str, str]:
    """Return what a record is about: what it says itself, what follows from that, and else what the present code belongs to.

    A run inside of another, as a sub-workflow is, is told as the outer one: its id is the one that finds the log.
    """
    told = vars(record)
    step, node = _text(told.get("step_id")), _text(told.get("node"))
    run, session = _text(told.get("run_id") or _run_of(told.get("run"))), _text(told.get("session_id") or told.get("session"))
    here = present()
    if not step and not run:
        run, session = here.run_id, session or here.session_id
    if not step and not node and run == here.run_id:
        node, step = here.node, here.step_id
    if step:
        run, _, inside = step.partition("/")
        node = node or inside.partition("/")[0]
    if run and not session:
        parts = split_run_id(run)
        session = parts[1] if parts else ""
    return {"run_id": run, "session_id": session, "node": node, "step_id": step}


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _run_of(value: object) -> object:
    return make_run_id(*value) if isinstance(value, tuple) and len(value) == 3 else value


class JsonLines(logging.Formatter):
    """A record as one line of JSON: at, level, logger, message, process, the ids that are known, `extra`, an error with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record's line."""
        told: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            **{name: value for name, value in ids_of(record).items() if value},
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and name not in told and name not in IDS and not name.startswith("_"):
                told[name] = value
        if record.exc_info and record.exc_info[1] is not None:
            told["exception"] = _error_data(record.exc_info[1])
        return json.dumps(_bounded(told), ensure_ascii=True, default=repr)


def _error_data(error: BaseException) -> dict[str, str]:
    text = "".join(traceback.format_exception(error))
    return {"type": type(error).__name__, "message": str(error), "traceback": text[-_LONGEST:]}


def _bounded(told: dict[str, Any]) -> dict[str, Any]:
    return {name: v[:_LONGEST] if isinstance(v, str) and len(v) > _LONGEST else v for name, v in told.items()}


class JsonHandler(logging.StreamHandler[TextIO]):
    """Writes records as lines of JSON on standard error, as it is at that moment."""

    def __init__(self) -> None:
        """Write nothing yet."""
        super().__init__(sys.stderr)
        self.setFormatter(JsonLines())
        self.addFilter(Ids())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self.stream = sys.stderr
        super().emit(record)


def show_json(level: int = logging.INFO) -> None:
    """Write the log as JSON: of ours and of bodies from a level on, of others what the root logger lets through.

    A program that has set logging up itself keeps what it has, and may use `JsonHandler`, or `Ids` with a format of its own.
    """
    root = logging.getLogger()
    if root.handlers:
        return
    root.addHandler(JsonHandler())
    for name in OURS:
        logging.getLogger(name).setLevel(level)
