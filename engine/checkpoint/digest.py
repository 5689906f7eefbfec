"""What lists show of a run, made from its committed rows in one pass: its entry in the index, and its dead letters.

One function of the rows, whether they come as they are committed or are read back from the log: so the index that grew beside the runs
and the one that was made again are the same.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.checkpoint.record import info_of
from engine.checkpoint.table import error_text, utf8_text
from engine.core.events import STATUS_AFTER, Event
from engine.core.ids import make_run_id
from engine.core.run import FINAL
from engine.ports import Row, RunKey
from engine.records import DeadLetter, Failure, RunEntry, letter_id

ERRORS = 20
"""How many failures of a step are kept: the newest."""
MESSAGE, TRACEBACK = 4_000, 16_000
"""Characters that are kept of an error; of a traceback the last."""

_TOLD = ("labels", "owner", "priority", "set", "tenant")
_STEPS = frozenset(["step_started", "step_succeeded", "step_failed", "step_retrying", "step_skipped"])


@dataclass(slots=True)
class _Standing:
    """A step that failed for good, as far as is known."""

    node: str
    attempts: int
    at: float


@dataclass(slots=True)
class _Letter:
    standing: _Standing
    failures: tuple[Failure, ...]
    seq: int
    """The number of the event that told that the run failed of it."""
    replayed: bool = False


@dataclass(slots=True)
class RunDigest:
    """One run, as its rows are taken in."""

    key: RunKey
    coordinator: str = ""
    """Who drives it, for an entry that its log says nothing of."""
    status: str = "pending"
    started_at: float = 0.0
    updated_at: float = 0.0
    seq: int = 0
    _ended_at: float | None = None
    _target: str | None = None
    _told: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What its submission says, where it was submitted."""
    _hash: str = ""
    _error: str = ""
    _steps: int = 0
    _resumes: int = 0
    _teams: set[str] = field(default_factory=set[str])
    """Steps whose members are an affair of their own: one that fails there is no end of the step."""
    _failures: dict[str, deque[Failure]] = field(default_factory=dict[str, deque[Failure]])
    _above: set[str] = field(default_factory=set[str])
    """What steps that failed are inside of; of a map with many items the others need no search."""
    _standing: dict[str, _Standing] = field(default_factory=dict[str, _Standing])
    """Steps that failed since the run went on last, those alone that performed something themselves."""
    _letters: dict[str, _Letter] = field(default_factory=dict[str, _Letter])

    def take(self, rows: Iterable[Row]) -> None:
        """Take in committed rows, in order; those that were taken in before are passed over."""
        for row in rows:
            if row.seq > self.seq:
                known = row.kind in STATUS_AFTER or row.kind in _STEPS
                data = info_of(row) if known and row.info else {}
                self._take(row.seq, row.at, row.kind, row.node, row.step, data.get("attempt", 1), data)

    def take_event(self, event: Event) -> None:
        """Take in a durable event; a transient one is passed over."""
        if not event.ordinal and event.seq > self.seq:
            step = event.step_id.removeprefix(f"{event.run_id}/")
            self._take(event.seq, event.at.timestamp(), event.kind, event.node, step, event.attempt, event.data)

    def _take(self, seq: int, at: float, kind: str, node: str, step: str, attempt: int, data: Mapping[str, Any]) -> None:
        at = moment(at)
        self.seq, self.updated_at = seq, at
        if not self.started_at:
            self.started_at = at
        if kind in STATUS_AFTER:
            self._take_status(kind, at, data)
        elif kind in _STEPS:
            self._take_step(kind, at, node, step, attempt, data)

    def _take_status(self, kind: str, at: float, data: Mapping[str, Any]) -> None:
        self.status = STATUS_AFTER[kind]
        self._ended_at = at if self.status in FINAL else None
        self._hash = data.get("hash", self._hash)
        self.coordinator = data.get("coordinator", self.coordinator)
        self._error = _clip(error_text(data["error"])) if "error" in data else ""
        match kind:
            case "run_started":
                self._target = data.get("target")
                self._told = {name: told[name] for name in _TOLD if name in told} if (told := data.get("submission")) else {}
                self.started_at = at
            case "run_resumed":
                self._resumes += 1
                self._standing.clear()
            case "run_timed_out":
                self._error = _clip(f"RunTimedOut: limit {data.get('limit')} s")
            case "run_failed":
                for step, standing in self._standing.items():
                    self._letters[step] = _Letter(standing, tuple(self._failures.get(step, ())), self.seq)
            case "run_completed":
                for letter in self._letters.values():
                    letter.replayed = True
            case _:
                pass

    def _take_step(self, kind: str, at: float, node: str, step: str, attempt: int, data: Mapping[str, Any]) -> None:
        above = step.rpartition("/")[0]
        if kind == "step_started":
            if "members" in data:
                self._teams.add(step)
            elif "member" in data:
                self._teams.add(above)
        elif kind == "step_succeeded":
            self._steps += 1
            self._settle(step)
        elif kind == "step_skipped":
            self._settle(step)
        elif not self._is_inside_team(step):
            self._fail(kind, at, node, step, attempt, data)

    def _fail(self, kind: str, at: float, node: str, step: str, attempt: int, data: Mapping[str, Any]) -> None:
        if step not in self._failures:
            self._failures[step] = deque(maxlen=ERRORS)
            above = step
            while (above := above.rpartition("/")[0]) and above not in self._above:
                self._above.add(above)
        self._failures[step].append(_failure(data.get("error"), attempt, at))
        inner = [name for name in self._inside(step) if name in self._standing]
        if kind == "step_retrying":
            for name in inner:
                del self._standing[name]
        elif not inner:
            self._standing[step] = _Standing(node, attempt, at)

    def _settle(self, step: str) -> None:
        """Take note that a step ended well, with everything inside of it."""
        for name in (step, *self._inside(step)):
            self._standing.pop(name, None)
            if (letter := self._letters.get(name)) is not None:
                letter.replayed = True

    def _inside(self, step: str) -> list[str]:
        """Return the steps inside of one that ever failed."""
        below = f"{step}/"
        return [name for name in self._failures if name.startswith(below)] if step in self._above else []

    def _is_inside_team(self, step: str) -> bool:
        if not self._teams:
            return False
        while step := step.rpartition("/")[0]:
            if step in self._teams:
                return True
        return False

    def entry(self) -> RunEntry:
        """Return the run as lists show it."""
        told = self._told
        labels = told.get("labels") or {}
        return RunEntry(
            run_id=make_run_id(*self.key), workflow=self.key.workflow, session=self.key.session, n=self.key.n, status=self.status,
            started_at=self.started_at, updated_at=self.updated_at, finished_at=self._ended_at, seq=self.seq,
            priority=told.get("priority") or 0, labels={str(name): str(text) for name, text in labels.items()},
            owner=told.get("owner") or "", tenant=told.get("tenant") or "", coordinator=self.coordinator, error=self._error,
            target=self._target, environment=told.get("set") or "", hash=self._hash, steps=self._steps,
            resumes=self._resumes,
        )  # fmt: skip

    def failed_at(self) -> dict[int, list[str]]:
        """Return the steps that became dead letters, without the run's id, by the number of the event at which the run failed of them."""
        found: dict[int, list[str]] = {}
        for step, letter in self._letters.items():
            found.setdefault(letter.seq, []).append(step)
        return found

    def letters(self, inputs: Mapping[str, bytes] | None = None) -> list[DeadLetter]:
        """Return the dead letters, also those that were replayed since.

        Args:
            inputs: Step, without the run's id, to what it was given.
        """
        run_id, tenant = make_run_id(*self.key), self._told.get("tenant") or ""
        given = inputs or {}
        return [
            DeadLetter(
                id=letter_id(f"{run_id}/{step}"), run_id=run_id, workflow=self.key.workflow, node=letter.standing.node,
                step_id=f"{run_id}/{step}", input=given.get(step), errors=letter.failures, attempts=letter.standing.attempts,
                tenant=tenant, created_at=letter.standing.at, status="replayed" if letter.replayed else "open",
                replay_run_id=run_id if letter.replayed else None,
            )
            for step, letter in self._letters.items()
        ]  # fmt: skip


def moment(at: float) -> float:
    """Return an instant as a log keeps it, in whole microseconds: one moment is one number, however it was told."""
    return round(at * 1_000_000) / 1_000_000


def _failure(error: Any, attempt: int, at: float) -> Failure:
    told = error if isinstance(error, Mapping) else {"message": str(error)}
    return Failure(
        attempt=attempt,
        type=_clip(utf8_text(str(told.get("type", "Error")))),
        message=_clip(utf8_text(str(told.get("message", "")))),
        traceback=utf8_text(str(told.get("traceback", ""))[-TRACEBACK:]),
        at=at,
    )


def _clip(text: str) -> str:
    return text if len(text) <= MESSAGE else text[: MESSAGE - 3] + "..."
