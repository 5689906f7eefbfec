"""Between what happens and what a log keeps: diffs and events as rows, and a log read back as answers for a run that goes on.

Outputs and state values stay in their bytes until somebody reads them.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from engine.checkpoint.codec import Encoded, decode, encode, encode_slices, is_large
from engine.core.events import STATUS_AFTER, Event
from engine.core.state import Growth, StateDiff
from engine.errors import NotStorable
from engine.ports import Row

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CALLED = {"run_started": "input", "step_started": "input", "jumped": "input", "once_done": "value"}
"""What the value of an event is called where it is no output."""


async def encode_diff(diff: StateDiff, label: str) -> AsyncIterator[bytes]:
    """Yield pieces that join to a diff's bytes: key by key, large values in slices; an empty piece is where a caller may pause."""
    written: list[tuple[Any, bool, bytes]] = []
    for key, value in diff.written.items():
        grew = isinstance(value, Growth)
        whole = value.added if grew else value
        where = place_of(key, label, grew=grew)
        if is_large(whole):
            pieces: list[bytes] = []
            for piece in encode_slices(whole, where=where):
                pieces.append(piece)
                yield b""
            written.append((key, grew, b"".join(pieces)))
        else:
            written.append((key, grew, encode(whole, where=where)))
    yield _joined(written, diff, label)


def encode_diff_now(diff: StateDiff, label: str) -> bytes:
    """Return a diff's bytes at once, where nobody is held up by it."""
    written: list[tuple[Any, bool, bytes]] = []
    for key, value in diff.written.items():
        grew = isinstance(value, Growth)
        written.append((key, grew, encode(value.added if grew else value, where=place_of(key, label, grew=grew))))
    return _joined(written, diff, label)


def _joined(written: list[tuple[Any, bool, bytes]], diff: StateDiff, label: str) -> bytes:
    try:
        return encode([[list(w) for w in written], list(diff.deleted), diff.version])
    except NotStorable:
        for key in (*diff.written, *diff.deleted):
            encode(key, where=key_place(key, label))
        raise


def key_place(key: Any, label: str) -> str:
    """Return what the key of a written or deleted value is to the reader of an error."""
    return f"state key {key!r:.80} of {label!r}"


def place_of(key: Any, label: str, *, grew: bool) -> str:
    """Return what a written value is to the reader of an error."""
    place = f"state[{key!r:.80}] of {label!r}"
    return f"what was added to {place}" if grew else place


def decode_diff(data: bytes) -> StateDiff:
    """Return a diff; whole values stay in their bytes."""
    written, deleted, version = decode(data)  # type: ignore[misc]
    values = {key: Growth(decode(value)) if grew else Encoded(value) for key, grew, value in written}
    return StateDiff(values, frozenset(deleted), version)


def event_of(run_id: str, row: Row) -> Event:
    """Return the event that a row stands for."""
    data: dict[str, Any] = decode(row.info) if row.info else {}  # type: ignore[assignment]
    attempt = data.pop("attempt", 1 if row.step else 0)
    if row.output is not None:
        data[CALLED.get(row.kind, "output")] = decode(row.output)
    if row.diff is not None:
        diff = decode_diff(row.diff)
        data["writes"], data["deletes"] = list(diff.written), list(diff.deleted)
    step_id = f"{run_id}/{row.step}" if row.step else ""
    return Event(run_id, row.seq, EPOCH + timedelta(microseconds=round(row.at * 1_000_000)), row.kind, row.node, step_id, attempt, data)


class Finished(NamedTuple):
    """A finished step as the log tells it."""

    status: str
    """`success`, or `skipped` for one that failed under on_error="skip"."""
    output: Any
    diff: StateDiff | None
    jump: tuple[str, Any] | None
    """(target, input or None), with the input only where `sent`."""
    sent: bool
    attempt: int
    started: float
    duration: float
    error: str | None
    seq: int = 0
    """The number of its event."""
    parts: Sequence[tuple[tuple[int, ...], StateDiff]] = ()
    """Of a team: what its members wrote, as `Outcome` has it."""


class Recorded:
    """What a run's log holds: answers instead of work for whatever is finished."""

    def __init__(self, rows: Iterable[Row]) -> None:
        """Read the committed rows, in order."""
        self.rows: list[Row] = []
        self.status = "pending"
        self.started: dict[str, Any] | None = None
        """Data of `run_started`."""
        self.definition: dict[str, Any] = {}
        """The shape of the newest definition that the run was driven with."""
        self.definitions: list[dict[str, Any]] = []
        """Of all definitions that it was driven with, oldest first."""
        self.hash = ""
        self.code = ""
        """A hash of the code that it was driven with last."""
        self.input: Any = None
        self.began_at = 0.0
        """Seconds since 1970."""
        self.asked = ""
        """What was asked of the run and has not been done: `pause`, `cancel`, or nothing."""
        self.ended: dict[str, Any] = {}
        """Data of the newest event that ended or paused the run."""
        self.ended_at = 0.0
        self.output: Any = None
        self.seq = 0
        self.resumes = 0
        self._finished: dict[str, Row] = {}
        self._skipped: dict[str, Row] = {}
        self._failures: dict[str, tuple[int, int, str]] = {}
        """Member of a team to (attempt, number of the event, why) of its newest failure."""
        self._gave_up: dict[str, int] = {}
        """Step to the number of the event that told of its newest failed attempt."""
        self._given: dict[str, bytes] = {}
        """Member of a team to its own input, where the team mapped it."""
        self._winners: dict[str, list[int]] = {}
        """Team to who won, in order."""
        self._under_way: dict[str, tuple[str, int]] = {}
        """Member of a team that has started and not ended, to (node, attempt)."""
        self.due: dict[str, tuple[int, float]] = {}
        """Step to (attempts made, when the next one is due)."""
        self.verdicts: dict[tuple[str, str], bool] = {}
        self.told: set[tuple[str, str, str]] = set()
        self.intents: set[tuple[str, str]] = set()
        self.receipts: dict[tuple[str, str], bytes] = {}
        self.reductions: dict[tuple[str, int, str], bytes] = {}
        """(sub-workflow's step or empty, layer, key's repr) to what a custom reducer made of the writes."""
        self.inner: dict[str, dict[int, str]] = {}
        """Of a sub-workflow, by the beginning of its steps' ids: ordinal to node."""
        self._kept: dict[str, Finished] = {}
        for row in rows:
            self._take(row)

    def _take(self, row: Row) -> None:
        self.seq = row.seq
        self.rows.append(row)
        if "/" in row.node:
            before, _, ordinal = row.step.rpartition("/")
            if ordinal.isdigit():
                self.inner.setdefault(f"{before}/", {}).setdefault(int(ordinal), row.node.rpartition("/")[2])
        if row.kind in STATUS_AFTER:
            self._take_status(row)
        match row.kind:
            case "step_succeeded":
                self._finished[row.step] = row
                self._under_way.pop(row.step, None)
            case "step_started" | "step_failed" | "step_stopped" | "member_won" | "member_lost":
                self._take_member(row)
            case "step_skipped":
                data = info_of(row)
                if "error" in data:
                    self._skipped[row.step] = row
                else:
                    self.told.add((row.kind, row.step, ""))
            case "step_retrying":
                data = info_of(row)
                self.due[row.step] = (data.get("attempt", 1), data["due"])
                self._gave_up[row.step] = row.seq
            case "condition_decided":
                data = info_of(row)
                self.verdicts[row.step, data["target"]] = data["verdict"]
                self.told.add((row.kind, row.step, data["target"]))
            case "condition_failed" | "jumped":
                self.told.add((row.kind, row.step, info_of(row)["target"]))
            case "conflict":
                data = info_of(row)
                self.told.add((row.kind, row.step, f"{data['layer']} {data['key']!r}"))
            case "note":
                data = info_of(row)
                if "reduced" in data and row.output is not None:
                    self.reductions[row.step, data["layer"], data["reduced"]] = row.output
            case "signal_received":
                self.asked = info_of(row).get("name", "")
            case "once_intended":
                self.intents.add((row.step, info_of(row)["key"]))
            case "once_done":
                self.receipts[row.step, info_of(row)["key"]] = row.output or b""
            case _:
                pass

    def _take_member(self, row: Row) -> None:
        """Take note of what becomes of a team's member."""
        data = info_of(row)
        if row.kind == "step_started":
            if "member" in data:
                self._under_way[row.step] = row.node, data.get("attempt", 1)
                if row.output is not None:
                    self._given[row.step] = row.output
            return
        self._under_way.pop(row.step, None)
        if row.kind == "step_failed":
            self._gave_up[row.step] = row.seq
            if "reason" in data:
                self._failures[row.step] = data.get("attempt", 1), row.seq, data["reason"]
        elif row.kind == "member_won":
            team, _, member = row.step.rpartition("/")
            self._winners.setdefault(team, []).append(int(member))

    def _take_status(self, row: Row) -> None:
        self.status = STATUS_AFTER[row.kind]
        if row.kind == "run_started":
            self.started, self.began_at = info_of(row), row.at
            self.input = Encoded(row.output) if row.output is not None else None
            self._take_definition(self.started)
        elif row.kind == "run_resumed":
            self.resumes += 1
            self._take_definition(info_of(row))
        else:
            self.ended, self.ended_at, self.asked = info_of(row), row.at, ""
            self.output = Encoded(row.output) if row.output is not None else None
            if row.kind == "run_failed":  # a failed run that is resumed has all its attempts again
                self.due.clear()

    def _take_definition(self, data: dict[str, Any]) -> None:
        if "definition" in data:
            self.definition = data["definition"]
            self.definitions.append(self.definition)
        self.hash = data.get("hash", self.hash)
        self.code = data.get("code", self.code)

    def __bool__(self) -> bool:
        return self.started is not None

    @classmethod
    def empty(cls) -> "Recorded":
        """Make a memory for what happens from now on: a sub-workflow that is tried again goes on where it failed."""
        recorded = cls(())
        recorded.started = {}
        return recorded

    def keep(self, step: str, finished: Finished) -> None:
        """Take note of a step that finished just now."""
        self._kept[step] = finished

    def is_new(self, step: str) -> bool:
        """Tell whether nothing has come of a step yet: neither an end nor a retry that is due."""
        return step not in self._finished and step not in self._skipped and step not in self._kept and step not in self.due

    def finished(self, step: str) -> Finished | None:
        """Return how a step ended, by its id without the run's; None for one that has to be performed."""
        if step in self._kept:
            return self._kept[step]
        row = self._finished.get(step)
        if row is None:
            row = self._skipped.get(step)
            if row is None:
                return None
            data = info_of(row)
            started, duration = data.get("started", row.at), data.get("duration", 0.0)
            return Finished("skipped", None, None, None, False, data.get("attempt", 1), started, duration, data["error"])
        data = info_of(row)
        if "answer" in data:
            return self._team(row, data)
        output = None if row.output is None else Encoded(row.output)
        jump = (data["jump"], output if data.get("sent") else None) if "jump" in data else None
        diff = None if row.diff is None else decode_diff(row.diff)
        return _success(row, data, output, diff, jump)

    def _team(self, row: Row, data: dict[str, Any]) -> Finished:
        """Put a team's answer together from what its members gave."""
        output: list[dict[str, Any]] = []
        parts: list[tuple[tuple[int, ...], StateDiff]] = []
        jumper: Finished | None = None
        errors, numbers = data.get("errors", {}), data.get("numbers", {})
        for member in data["answer"]:
            text, error = f"{data.get('under', row.step)}/{numbers.get(str(member), member)}", errors.get(str(member))
            done = self.finished(text) if error is None else None
            value = None
            if done is not None:
                value = done.output if done.jump is None else done.jump[1]
                value = value.load() if isinstance(value, Encoded) and not is_large(value) else value
                parts += [((member,), done.diff)] if done.diff is not None else []
                parts += [((member, *path), diff) for path, diff in done.parts]
                if member == data.get("jumper"):
                    jumper = done
            output.append({"member_index": member, "result": value, "error": error, "is_success": error is None})
        parts.sort(key=lambda part: part[0])
        if jumper is None:
            return _success(row, data, output, None, None)._replace(parts=parts)
        return _success(row, {**data, "sent": jumper.sent}, None, None, jumper.jump)._replace(parts=parts)

    def failure(self, step: str, attempt: int) -> tuple[int, str] | None:
        """Return (number of the event, why) where a member of a team failed in an attempt of its team.

        None too where that attempt has failed as a whole since: a run that is resumed has all its attempts again, by the same numbers.
        """
        found = self._failures.get(step)
        if found is None or found[0] != attempt:
            return None
        above = step
        while above := above.rpartition("/")[0]:
            if self._gave_up.get(above, 0) > found[1]:
                return None
        return found[1:]

    def given(self, step: str) -> Any:
        """Return the input that a team's mapper made for a member, None where there is none."""
        data = self._given.get(step)
        return None if data is None else Encoded(data)

    def winners(self, step: str) -> Sequence[int]:
        """Return who won in a team, in order."""
        return self._winners.get(step, ())

    def is_under_way(self, step: str) -> bool:
        """Tell whether a member of a team had started and not ended when the log was read."""
        return step in self._under_way

    def left_behind(self) -> list[tuple[str, str, int]]:
        """Return (node, step, attempt) of those who had lost when the process that performed them ended; nobody wrote down their stop."""
        return [(node, step, attempt) for step, (node, attempt) in self._under_way.items() if step.rpartition("/")[0] in self._winners]

    @property
    def succeeded(self) -> int:
        """How many steps succeeded, items and steps of sub-workflows among them."""
        return len(self._finished)

    def forget(self, step: str) -> None:
        """Let go of a finished step that was taken in."""
        if (row := self._finished.get(step)) is not None:
            self._finished[step] = row._replace(output=None, diff=None)


def _success(row: Row, data: dict[str, Any], output: Any, diff: StateDiff | None, jump: tuple[str, Any] | None) -> Finished:
    duration = data.get("duration", 0.0)
    started = data.get("started", row.at - duration)
    return Finished("success", output, diff, jump, data.get("sent", False), data.get("attempt", 1), started, duration, None, row.seq)


def info_of(row: Row) -> dict[str, Any]:
    """Return the small data of a row."""
    return decode(row.info) if row.info else {}  # type: ignore[return-value]
