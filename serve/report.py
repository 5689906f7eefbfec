"""What the log of a run tells of its steps: which there were, what they are part of, how each ended.

Pure: rows in, plain records out. How they are drawn is serve/tree.py's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from cluster.notices import place_of
from engine.checkpoint.record import info_of
from engine.checkpoint.table import error_text
from engine.observe.progress import MemberProgress
from engine.ports import Row


@dataclass(slots=True, kw_only=True)
class StepReport:
    """A step as its log tells it: a node's, one inside of a sub-workflow, or a member of a team."""

    step: str
    """Its id without the run's: `node/pass`, in a sub-workflow the outer step's and an ordinal, of a member its team's and its index."""
    node: str
    """Of a member: its team's."""
    status: str = "running"
    """Of a member one of `engine.observe.progress.MEMBER_STATUSES`."""
    attempt: int = 1
    started_at: float = 0.0
    duration: float | None = None
    error: str | None = None
    place: str | None = None
    """`file:line` where the user's code raised the error."""
    why: str | None = None
    """Of a skipped node: which condition to it failed, and so counted as false; of a member: why it failed, lost or was stopped."""
    items: int | None = None
    """Of a map: how many items, and how many of them succeeded."""
    done: int = 0
    failed_items: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, str | None]])
    """Of a map: (index, error, place) of the newest items that failed an attempt, at most `MOST_ITEMS`."""
    members: int | None = None
    """Of a team that is a node: how many members it has, started or not."""
    member: str | None = None
    """Of a member: its name."""
    score: float | None = None
    """Of a member that a judge scored."""
    told: str = ""
    """Of a member: how it stands, in a few words."""


MOST_ITEMS = 10


def steps_of(rows: Sequence[Row], status: str) -> tuple[list[StepReport], list[str]]:
    """Return the steps of a run that has a status, and the conditions that failed without a node being skipped for it."""
    steps: dict[str, StepReport] = {}
    members: dict[str, MemberProgress] = {}
    failed: dict[str, list[str]] = {}
    told: list[str] = []
    for row in rows:
        if row.kind == "condition_failed":
            _take_condition(failed, row)
        if not row.kind.startswith(("step_", "member_")):
            continue
        data = info_of(row)
        parent, _, index = row.step.rpartition("/")
        owner = steps.get(parent)
        if owner is not None and owner.items is not None:
            _take_item(owner, index, row, data)
            continue
        step = steps.get(row.step)
        if step is None:
            step = steps[row.step] = StepReport(step=row.step, node=row.node, started_at=row.at, member=data.get("member"))
        step.attempt = data.get("attempt", step.attempt)
        if step.member is not None:
            member = members.get(row.step) or members.setdefault(row.step, MemberProgress(name=step.member, step_id=row.step))
            member.take(row.kind, data, row.at)
            if row.kind in ("step_started", "step_failed"):
                step.place = raised_at(data.get("error"))
            continue
        told += _take(step, row, data, failed)
    _settle(steps, members, status)
    return list(steps.values()), [*told, *chain.from_iterable(failed.values())]


def raised_at(error: Any) -> str | None:
    """Return `file:line` where the user's code raised an event's error, None where that is not known."""
    return place_of(error.get("traceback")) if isinstance(error, Mapping) else None


def _take(step: StepReport, row: Row, data: Mapping[str, Any], failed: dict[str, list[str]]) -> list[str]:
    """Take the next event of a node's step in; returns the conditions to it that failed without that being the end of it."""
    step.duration = data.get("duration", step.duration)
    if "error" in data:
        step.error = error_text(data["error"])
        step.place = step.place if row.kind == "step_skipped" else raised_at(data["error"])
    match row.kind:
        case "step_started":
            step.status, step.items, step.members = "running", data.get("items", step.items), data.get("members", step.members)
            return failed.pop(row.node, [])
        case "step_succeeded":
            step.status, step.error, step.place = "success", None, None
        case "step_stopped" if step.status == "success":
            pass
        case _:
            step.status = row.kind.removeprefix("step_")
            if step.status == "skipped" and row.node in failed:
                step.why = "; ".join(failed.pop(row.node))
    return []


def _settle(steps: Mapping[str, StepReport], members: Mapping[str, MemberProgress], status: str) -> None:
    """Say of members how they stand, and of what was under way when the run stopped that it is no longer: not all of it has an event."""
    over = status not in ("running", "pending")
    for text, member in members.items():
        if over:
            member.halt("the run stopped")
        step = steps[text]
        step.status, step.duration, step.score, step.why = member.status, member.duration, member.score, member.why or None
        step.told = member.text()
    for step in steps.values():
        if over and step.status in ("running", "retrying"):
            step.status = "failed" if status == "failed" and step.failed_items else "stopped"


def _take_condition(failed: dict[str, list[str]], row: Row) -> None:
    """Note a condition that failed under the node that it leads to, which lies in the workflow of its source."""
    data = info_of(row)
    above, slash, _ = row.node.rpartition("/")
    failed.setdefault(f"{above}{slash}{data['target']}", []).append(f"condition of {data['source']!r} failed: {data['error']}")


def _take_item(owner: StepReport, index: str, row: Row, data: Mapping[str, Any]) -> None:
    if row.kind == "step_succeeded":
        owner.done += 1
    elif "error" in data and row.kind != "step_skipped":
        owner.failed_items.append((index, error_text(data["error"]), raised_at(data["error"])))
        del owner.failed_items[:-MOST_ITEMS]
