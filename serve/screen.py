"""How events and times are written for people and for programs, and how results keep apart from whatever else is written.

Lines of errors and of the log are cluster/notices.py's.
"""

import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TextIO

from cluster.notices import one_line
from engine.checkpoint.table import error_text, json_text
from engine.core.events import Event
from engine.observe.progress import counted, score_text, seconds_text


def event_json(event: Event) -> str:
    """Return an event as one line of JSON."""
    told = {"run_id": event.run_id, "seq": event.seq, "at": event.at, "kind": event.kind, "node": event.node, "step_id": event.step_id}
    return json_text({**told, "attempt": event.attempt, "data": event.data} | ({"ordinal": event.ordinal} if event.ordinal else {}))


def event_line(event: Event) -> str:
    """Return an event as one line for people."""
    when = event.at.astimezone().strftime("%H:%M:%S.%f")[:-3]
    return f"{when}  {place_text(event):<24}  {what_text(event)}"


def place_text(event: Event) -> str:
    """Return where an event happened: the node, the item of a map or the member of a team, and the pass where it is not the first.

    In a sub-workflow that lies in an item or a member, the whole way there is given, since names alone do not tell which it is.
    """
    if not event.node:
        return "run"
    step = event.step_id.removeprefix(f"{event.run_id}/").removeprefix(event.node.partition("/")[0])
    at, _, rest = step.strip("/").partition("/")
    depth = rest.count("/") + 1 if rest else 0
    text = event.node + (f"[{rest}]" if depth > event.node.count("/") else "")
    return text if at in ("1", "") else f"{text} (pass {at})"


def what_text(event: Event) -> str:
    """Return what happened in a few words."""
    data = event.data
    again = f", attempt {event.attempt}" if event.attempt > 1 else ""
    match event.kind:
        case "step_started":
            parts = "".join(f" with {data[what]:,} {what}" for what in ("items", "members") if what in data)
            return f"started{again}{parts}" + (f", member {data['member']!r}" if "member" in data else "")
        case "step_succeeded":
            jump = f", jumps to {data['jump']!r}" if "jump" in data else ""
            return f"succeeded in {seconds_text(data.get('duration', 0.0))}{again}{_answer_text(data)}{jump}"
        case "step_failed" | "run_failed":
            return f"failed{again}: {one_line(data.get('reason') or error_text(data.get('error', '')))}"
        case "step_stopped" | "member_won" | "member_lost":
            return _ended_text(event.kind.rpartition("_")[2], data)
        case "step_retrying":
            return f"attempt {event.attempt} failed, again in {seconds_text(data['delay'])}: {one_line(error_text(data['error']))}"
        case "step_skipped":
            return f"skipped: {one_line(str(data['error']))}" if "error" in data else "skipped"
        case "condition_decided":
            return f"condition to {data['target']!r}: {'yes' if data['verdict'] else 'no'}{' (late)' if data.get('late') else ''}"
        case "condition_failed":
            return f"condition to {data['target']!r} failed and counts as false: {one_line(str(data['error']))}"
        case "conflict":
            return f"state key {data['key']!r} was written by {', '.join(map(str, data['nodes']))}"
        case "run_started":
            return f"started, workflow {data.get('workflow')!r}, session {data.get('session')!r}"
        case "run_completed" | "run_paused" | "run_cancelled" | "run_timed_out" | "run_resumed":
            after = f" after {counted(data['finished'], 'step')}" if "finished" in data else ""
            return event.kind.removeprefix("run_").replace("_", " ") + after
    small = {key: value for key, value in data.items() if key not in ("output", "input", "value")}
    return event.kind.replace("_", " ") + (f" {json_text(small)}" if small else "")


def _answer_text(data: Mapping[str, Any]) -> str:
    """Say of a team how many results its answer has, and how many of them are failures."""
    if "answer" not in data:
        return ""
    wrong = f", {len(data['errors']):,} of them failed" if "errors" in data else ""
    return f" with {counted(len(data['answer']), 'result')}{wrong}"


def _ended_text(what: str, data: Mapping[str, Any]) -> str:
    """Say that somebody won, lost or was stopped: after how long, with what score, and why."""
    after = f" after {seconds_text(data['stopped_after'])}" if data.get("stopped_after") else ""
    scored = f", score {score_text(data['score'])}" if "score" in data else ""
    return f"{what}{after}{scored}" + (f": {one_line(data['reason'])}" if data.get("reason") else "")


def ago_text(at: float, now: float | None = None) -> str:
    """Return how long ago an instant was, in seconds since 1970; older than two days: the date."""
    passed = (time.time() if now is None else now) - at
    if passed > 2 * 86400:
        return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M")
    return "now" if passed < 1 else f"{seconds_text(float(int(passed))).replace('.0 s', ' s')} ago"


def size_text(size: int) -> str:
    """Return a number of bytes as people write it."""
    if size < 1000:
        return f"{size} B"
    power = min(4, (len(str(size)) - 1) // 3)
    return f"{size / 1000**power:.1f} {'kMGT'[power - 1]}B"


def print_columns(lines: Sequence[tuple[str, ...]]) -> None:
    """Print lines in columns, the last of them as wide as it is."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)][:-1]
    for line in lines:
        sys.stdout.write("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) + "\n")


@contextmanager
def results_apart() -> Iterator[TextIO]:
    """Give a stream for results alone: whatever else writes to standard output meanwhile, child processes too, goes to standard error."""
    sys.stdout.flush()
    former = sys.stdout
    try:
        number = former.fileno()
        apart = os.dup(number) if number == 1 else -1
    except (OSError, ValueError):
        apart = -1
    if apart < 0:
        sys.stdout = sys.stderr
        try:
            yield former
        finally:
            sys.stdout = former
        return
    with open(apart, "w", encoding=former.encoding, errors=former.errors, buffering=1) as results:
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        try:
            yield results
        finally:
            sys.stdout = former
            os.dup2(apart, 1)
