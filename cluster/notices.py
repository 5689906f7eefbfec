"""What commands write on standard error: errors and log records as lines, their hints as the flags that one types.

The engine words its hints for Python, since most callers are programs; here is the one place that turns them into what a command line
understands. It decides no exit status.
"""

import logging
import re
import sys
import traceback
from pathlib import Path

from engine.checkpoint.table import utf8_text
from engine.errors import StepFailed
from engine.observe.log import show_json

LONGEST_LINE = 2000
"""Characters of an error's line, what says how to go on not counted."""

RESUME_HINT = "; resume it to go on"
"""How the engine ends the text of a run that was paused; a command says which command does it."""

_FLAGS = (
    (re.compile(r"\bnew=True"), "--new (of `run`)"),
    (re.compile(r"\b(accept|takeover)=True"), r"--\1 (of `gecko runs resume`)"),
    (re.compile(r"\bexecutor='(\w+)'"), r"--executor \1"),
    (re.compile(r"\bstorage=\.\.\."), "--storage"),
    (re.compile(r"\ba session_id\b"), "a --session"),
)
_OURS = ("engine", "cluster", "serve")
_FRAME = re.compile(r'^[ |]*File "(.+)", line (\d+), in ', re.MULTILINE)
_LIBRARY = re.compile(r"[/\\](?:site-packages|dist-packages|lib[/\\]python3\.\d+)[/\\]|^<")
_HOME = Path(__file__).resolve().parent.parent
_ENGINE = re.compile("|".join([*(re.escape(f"{_HOME / name}/") for name in _OURS), rf"-packages/(?:{'|'.join(_OURS)})/"]))
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def in_flags(text: str) -> str:
    """Return a text of the engine for people who type commands: arguments of Python as the flags that say the same."""
    for argument, flag in _FLAGS:
        text = argument.sub(flag, text)
    return text


def one_line(text: str, limit: int = LONGEST_LINE) -> str:
    """Return a text without line ends and control characters, cut where it is too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in utf8_text(text)).split())
    return line if len(line) <= limit else f"{line[:limit]}... ({len(line) - limit:,} characters more)"


def failure_text(error: BaseException, hint: str = "") -> str:
    """Return an error in one line: what it says, the place in the user's code, and what was noted on it.

    Its hints are in flags; what user code said stays as it is. `hint` stands behind the place, where there is one.
    """
    notes = getattr(error, "__notes__", [])
    text = str(error).removesuffix(RESUME_HINT) if notes else str(error)
    told = [one_line(text if isinstance(error, StepFailed) else in_flags(text))]
    if place := place_of(getattr(error, "traceback_text", None)):
        told.append(f"raised at {place}{hint}")
    return "; ".join([*told, *notes])


def place_of(trace: str | None) -> str | None:
    """Return `file:line` of the innermost frame of the user's code in a traceback's text; of a library's, where it holds none of theirs."""
    frames = [(file, line) for file, line in _FRAME.findall(trace or "") if not _ENGINE.search(file)]
    own = [frame for frame in frames if not _LIBRARY.search(frame[0])] or [frame for frame in frames if "-packages" in frame[0]]
    return one_line(":".join(own[-1])) if own else None


def trace_text(error: BaseException) -> str:
    """Return the traceback of an error without its last lines, which say the error once more."""
    return "".join(traceback.format_exception(error)).removesuffix("".join(traceback.format_exception_only(error)))


class Notices(logging.Handler):
    """Log records as lines on standard error, as it is at that moment, with what was put in `extra` and is not in the text."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        # Names with an underscore are not of `extra`: Ray's record factory puts a time of its own on each record.
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD and k != "run_id" and not k.startswith("_")}
        text = record.getMessage()
        if record.name.partition(".")[0] in _OURS and record.name != "engine.body":
            text = in_flags(text)
        told = "".join(f", {key} {value!r}" for key, value in extra.items() if not _says(text, value))
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        try:
            level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
            sys.stderr.write(f"{level}{one_line(text + told)}\n")
        except (OSError, ValueError):  # nobody reads any more
            self.handleError(record)


def _says(text: str, value: object) -> bool:
    return re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", text) is not None


def show_notices(*, as_json: bool = False) -> None:
    """Show warnings and errors of the log, and that a Ray is being started, unless the program has set logging up itself.

    Args:
        as_json: As JSON, what is only told for information too.
    """
    root = logging.getLogger()
    if as_json:
        show_json()
    if not root.handlers:
        root.addHandler(Notices())
        logging.getLogger("cluster.remote").setLevel(logging.INFO)


def say(text: str) -> None:
    """Write a line on standard error at once; nobody may be reading any more."""
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
