"""How far a run is, told from its events alone: counts for each node, and one line of text. Live views and plain output read it.

Pure: it takes events and the time of asking, and never waits, prints or looks at a clock. Events may come from a run that is driven
here, elsewhere, or that was recorded long ago; a resumed run's earlier events come first, so that nothing is counted twice.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.core.events import STATUS_AFTER, Event

_ENDS = {"step_succeeded": "success", "step_failed": "failed", "step_skipped": "skipped", "step_stopped": "stopped"}


@dataclass(slots=True)
class NodeProgress:
    """A node as its events show it: its newest pass, and what all passes cost."""

    name: str
    status: str = "waiting"
    """waiting, running, retrying, success, failed, skipped, stopped."""
    passes: int = 0
    """How often it was started, resumed starts not counted."""
    attempt: int = 1
    started: float = 0.0
    """When the newest pass began, seconds since 1970."""
    duration: float | None = None
    """Seconds of the newest pass that ended."""
    items: int | None = None
    """Of a map: how many items; None for every other node."""
    done: int = 0
    """Of a map: how many items have settled, those that failed or were skipped included."""
    failed: int = 0
    """Failed attempts of the newest pass."""
    share: tuple[float, float | None] | None = None
    """(done, total) as its body told it."""
    note: str = ""
    step_id: str = ""
    ended: set[str] = field(default_factory=set[str])
    """Of a map: the items that have settled, by the end of their step id."""


class Progress:
    """The progress of one run."""

    def __init__(self, nodes: Iterable[str] = ()) -> None:
        """Begin with the nodes that are expected, in the order in which they are shown; others join as they are heard of."""
        self.nodes: dict[str, NodeProgress] = {name: NodeProgress(name) for name in nodes}
        self.run_id = ""
        self.status = "pending"
        self.seq = 0
        self.finished = 0
        """Steps that succeeded, items and steps of sub-workflows among them: as many as the run's end tells."""
        self.before = 0
        """How many of them were finished when the run was started or resumed last."""
        self.failures = 0
        """Failed attempts, those that were tried again included."""
        self.doubts = 0
        """Conditions that failed, and counted as false."""
        self.began = 0.0
        """When the run was started or resumed last, seconds since 1970; what is told of time and of rates begins here."""
        self._ended = 0.0
        self._maps: dict[str, NodeProgress] = {}

    def take(self, event: Event) -> None:
        """Take the next event in; those that were seen are left out."""
        if not event.ordinal:
            if event.seq <= self.seq:
                return
            self.seq = event.seq
        at = event.at.timestamp()
        if event.kind == "step_succeeded":
            self.finished += 1
        elif event.kind == "condition_failed":
            self.doubts += 1
        if event.kind in STATUS_AFTER:
            self._take_status(event, at)
        elif event.node:
            self._take_step(event, at)

    def _take_status(self, event: Event, at: float) -> None:
        self.run_id, self.status = event.run_id, STATUS_AFTER[event.kind]
        self._ended = at
        if self.status == "running":
            self.began, self.before = at, self.finished
        elif self.status != "completed":
            for node in self.nodes.values():
                if node.status in ("running", "retrying"):
                    node.status = "stopped"
        if event.kind == "run_resumed":
            for node in self.nodes.values():
                if node.status in ("running", "retrying", "failed", "stopped"):
                    node.status = "waiting"

    def _take_step(self, event: Event, at: float) -> None:
        parent, _, ordinal = event.step_id.rpartition("/")
        owner = self._maps.get(parent)
        if owner is not None:
            self._take_item(owner, ordinal, event)
            return
        node = self.nodes.get(event.node)
        if node is None:
            node = self.nodes[event.node] = NodeProgress(event.node)
        match event.kind:
            case "step_started":
                self._start(node, event, at)
            case "step_retrying":
                node.status, node.attempt = "retrying", event.attempt + 1
                node.failed += 1
                self.failures += 1
            case "step_succeeded" | "step_failed" | "step_skipped" | "step_stopped":
                self._end(node, event)
            case "progress":
                done = event.data["done"]
                node.share, node.note = None if done is None else (done, event.data["total"]), event.data["note"]

    def _start(self, node: NodeProgress, event: Event, at: float) -> None:
        if event.step_id != node.step_id:
            node.step_id, node.done, node.failed, node.items, node.share, node.note = event.step_id, 0, 0, None, None, ""
            node.ended.clear()
            node.passes += 1
        node.status, node.attempt, node.started, node.duration = "running", event.attempt, at, None
        if (items := event.data.get("items")) is not None:
            node.items = items
            self._maps[event.step_id] = node

    def _end(self, node: NodeProgress, event: Event) -> None:
        if event.kind == "step_stopped" and node.status == "success":
            return
        node.status, node.duration = _ENDS[event.kind], event.data.get("duration", node.duration)
        node.attempt = event.attempt or node.attempt
        if event.kind == "step_succeeded":
            node.passes = node.passes or 1
        elif event.kind == "step_failed":
            node.failed += 1
            self.failures += 1

    def _take_item(self, node: NodeProgress, item: str, event: Event) -> None:
        if event.kind in ("step_retrying", "step_failed"):
            node.failed += 1
            self.failures += 1
        if event.kind == "progress":
            node.note = event.data["note"]
        elif event.kind in ("step_succeeded", "step_skipped") and item not in node.ended:
            node.ended.add(item)
            node.done += 1

    def seconds(self, now: float) -> float:
        """Return for how long the run has been driven since it was started or resumed last: until now, or until it stopped."""
        return max(0.0, (now if self.status == "running" else self._ended) - self.began) if self.began else 0.0

    def rate(self, now: float) -> float:
        """Return finished steps a second since the run was started or resumed last."""
        took = self.seconds(now)
        return (self.finished - self.before) / took if took > 0.5 else 0.0

    def settled(self) -> int:
        """Return how many nodes have succeeded or were skipped."""
        return sum(node.status in ("success", "skipped") for node in self.nodes.values())

    def line(self, now: float) -> str:
        """Return one line that says how far the run is at a time, in seconds since 1970."""
        parts = [seconds_text(self.seconds(now)), self.status, f"{self.settled()}/{len(self.nodes)} nodes", counted(self.finished, "step")]
        running = [node for node in self.nodes.values() if node.status in ("running", "retrying")]
        parts += [node_text(node) for node in running[:3]]
        if len(running) > 3:
            parts.append(f"{len(running) - 3} more running")
        if rate := self.rate(now):
            parts.append(f"{rate:,.0f} steps/s" if rate >= 1 else f"{rate:.2f} steps/s")
        if self.failures:
            parts.append(counted(self.failures, "failed attempt"))
        return ", ".join(parts)


def seconds_text(seconds: float) -> str:
    """Return a duration as people write it."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def counted(number: int, what: str) -> str:
    """Return a number with what it counts, in the singular or the plural."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def node_text(node: NodeProgress) -> str:
    """Return a running node in a few words."""
    text = node.name
    if node.items is not None:
        text += f" {node.done:,}/{node.items:,}"
    elif node.share is not None:
        done, total = node.share
        text += f" {done:g}/{total:g}" if total is not None else f" {done:g}"
    if node.status == "retrying":
        text += f" (attempt {node.attempt} waits)"
    return f"{text}: {node.note}" if node.note else text
