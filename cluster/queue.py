"""Which of the submitted runs go on now: a bounded queue by priority, with limits on how many are under way. Pure; it takes `now`.

The queue needs no storage of its own: what waits is recorded as a begun run in its log, and enters again when its coordinator, or the
next one, starts. Where several coordinators share a cluster, each has its share of the limits, so that together they keep them.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from engine.core.policy import check_count
from engine.errors import QueueFull

Entry = tuple[int, int, str, str]
"""Of a run that waits: priority turned round, number, run, workflow."""
SOONEST, LATEST = 1.0, 60.0
"""Bounds of `retry_after`, in seconds."""
RECENT = 50
"""So many of the newest ends tell how fast runs end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a cluster lets in; None: no limit."""

    runs: int | None = None
    """Runs under way at once."""
    runs_by_workflow: int | None = None
    """The same of each workflow."""
    steps: int | None = None
    """Steps in flight at once."""
    queued: int = 10_000
    """Runs that wait; one more is refused."""

    def __post_init__(self) -> None:
        for name in ("runs", "runs_by_workflow", "steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), 1)
        check_count("queued", self.queued, 0)

    def share(self, parts: int) -> "Limits":
        """Return what one of so many coordinators may let in."""

        def part(limit: int | None) -> int | None:
            return None if limit is None else max(1, limit // parts)

        return replace(self, runs=part(self.runs), runs_by_workflow=part(self.runs_by_workflow), steps=part(self.steps),
                       queued=-(-self.queued // parts))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatistics:
    """A queue at one moment."""

    queued: int
    running: int
    admitted: int
    """Since the coordinator started, as the next two."""
    refused: int
    ended: int


class Admission:
    """The runs of one coordinator: those that wait, and those that are under way."""

    def __init__(self, limits: Limits) -> None:
        """Let nothing in yet."""
        self.limits = limits
        self._waiting: list[Entry] = []
        """A heap; those that wait no more are passed over when they come to its top."""
        self._held: dict[str, list[Entry]] = {}
        """Workflow to a heap of what came to the top while it had enough under way: one comes back for each that ends."""
        self._queued: dict[str, int] = {}
        """Run to the number of its entry."""
        self._running: dict[str, str] = {}
        self._by_workflow: dict[str, int] = {}
        self._number = 0
        self._ends: deque[float] = deque(maxlen=RECENT)
        self._admitted = self._refused = self._ended = 0

    def check(self, now: float) -> None:
        """Refuse another run where too many wait.

        Raises: QueueFull, with the seconds after which there is likely to be room.
        """
        if len(self._queued) < self.limits.queued or (not self._queued and self._has_room("")):
            return
        self._refused += 1
        after = self.retry_after(now)
        raise QueueFull(f"{len(self._queued):,} runs wait already, and no more are taken; try again in {after:.0f} s", retry_after=after)

    def retry_after(self, now: float) -> float:
        """Return after how many seconds a place is likely to be free, by how fast runs ended lately."""
        if len(self._ends) < 2:
            return SOONEST
        pace = max(now - self._ends[0], 1e-3) / len(self._ends)
        return min(LATEST, max(SOONEST, pace))

    def enter(self, run: str, workflow: str, priority: int) -> None:
        """Let a run wait; one that waits or runs already stays as it is. A greater priority goes first, of equals who came first."""
        if run in self._queued or run in self._running:
            return
        self._number += 1
        self._queued[run] = self._number
        heapq.heappush(self._waiting, (-priority, self._number, run, workflow))

    def leave(self, run: str, now: float) -> None:
        """Forget a run that has stopped, or waits no more."""
        self._queued.pop(run, None)
        workflow = self._running.pop(run, None)
        if workflow is not None:
            self._ended += 1
            self._ends.append(now)
            left = self._by_workflow[workflow] = self._by_workflow[workflow] - 1
            if not left:
                del self._by_workflow[workflow]
            self._bring_back(workflow)

    def admit(self) -> list[str]:
        """Return the runs that may go on now, in their order."""
        found: list[str] = []
        while self._waiting and self._has_room(""):
            entry = _, number, run, workflow = heapq.heappop(self._waiting)
            if self._queued.get(run) != number:
                self._bring_back(workflow)
            elif not self._has_room(workflow):
                heapq.heappush(self._held.setdefault(workflow, []), entry)
            else:
                del self._queued[run]
                self._running[run] = workflow
                self._by_workflow[workflow] = self._by_workflow.get(workflow, 0) + 1
                self._admitted += 1
                found.append(run)
        return found

    def waits(self, run: str) -> bool:
        """Tell whether a run waits."""
        return run in self._queued

    def statistics(self) -> QueueStatistics:
        """Return what waits and runs."""
        return QueueStatistics(
            queued=len(self._queued), running=len(self._running), admitted=self._admitted, refused=self._refused, ended=self._ended
        )

    def _has_room(self, workflow: str) -> bool:
        limits = self.limits
        if limits.runs is not None and len(self._running) >= limits.runs:
            return False
        most = limits.runs_by_workflow
        return not workflow or most is None or self._by_workflow.get(workflow, 0) < most

    def _bring_back(self, workflow: str) -> None:
        """Let the first of a workflow's runs that are held back wait among all others again."""
        if workflow in self._held:
            heapq.heappush(self._waiting, heapq.heappop(self._held[workflow]))
            if not self._held[workflow]:
                del self._held[workflow]


class Room:
    """So many places for the steps of all runs of a coordinator; who finds none is called when there is one, in turn."""

    def __init__(self, places: int) -> None:
        """All places are free."""
        self.free = places
        self._waiting: dict[Callable[[], object], None] = {}

    def take(self, again: Callable[[], object]) -> bool:
        """Take a place; False where there is none, and then `again` is called once there is."""
        if self.free > 0:
            self.free -= 1
            return True
        self._waiting[again] = None
        return False

    def give(self, count: int = 1) -> None:
        """Give places back, and call those who wait, the longest first, as long as there are some."""
        self.free += count
        for again in list(self._waiting):
            if self.free <= 0:
                return
            del self._waiting[again]
            again()
