"""How far a run is, told from its events alone: counts for each node, and one line of text. Live views and plain output read it.

Pure: it takes events and the time of asking, and never waits, prints or looks at a clock. Events may come from a run that is driven
here, elsewhere, or that was recorded long ago; a resumed run's earlier events come first, so that nothing is counted twice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine.core.events import STATUS_AFTER, Event

_ENDS = {"step_succeeded": "success", "step_failed": "failed", "step_skipped": "skipped", "step_stopped": "stopped"}
_LIMITS = ("StepTimedOut", "TeamTimedOut")
_TEAM_LIMIT = "the team's limit"

MEMBER_STATUSES = ("running", "won", "finished", "lost", "failed", "timed_out", "stopped")
"""How a member of a team may stand, in the order in which they are counted."""


@dataclass(slots=True, kw_only=True)
class MemberProgress:
    """A member of a team as its events show it: its newest attempt."""

    name: str
    step_id: str = ""
    place: str = ""
    """The node of its team, as events name it."""
    status: str = "running"
    """One of `MEMBER_STATUSES`. One that succeeded is `finished` until somebody has won, or for good where every result counts."""
    started: float = 0.0
    duration: float | None = None
    """Seconds from its start to its end, also of one that was stopped."""
    score: float | None = None
    why: str = ""
    """Of one that failed, lost or was stopped."""
    told: str = ""
    """What its body told of its progress."""
    again: bool = False
    """Whether it had not ended when its run went on, so that it starts once more."""
    members: "dict[str, MemberProgress]" = field(default_factory=dict[str, "MemberProgress"])
    """Of a team: its members by step id."""
    nodes: "dict[str, NodeProgress]" = field(default_factory=dict[str, "NodeProgress"])
    """Of a workflow: what is inside, by name."""

    @property
    def index(self) -> int:
        """Which member of its team it is, from 0."""
        return int(self.step_id.rpartition("/")[2])

    def take(self, kind: str, data: Mapping[str, Any], at: float) -> None:
        """Take the next of its events in."""
        match kind:
            case "step_started":
                self.status, self.started, self.duration, self.score, self.why, self.told = "running", at, None, None, "", ""
                self.again = False
            case "step_succeeded":
                self.status, self.duration = "finished", data.get("duration")
            case "step_failed":
                error = data.get("error")
                late = isinstance(error, Mapping) and error.get("type") in _LIMITS
                self.status, self.duration, self.why = "timed_out" if late else "failed", data.get("duration"), data.get("reason", "")
            case "step_stopped":
                self.why = data.get("reason", "")
                self.status = "timed_out" if self.why.startswith(_TEAM_LIMIT) else "stopped"
                self.duration = data.get("stopped_after")
            case "member_won":
                self.status, self.score = "won", data.get("score")
            case "member_lost":
                self.score = data.get("score")
                if self.status not in ("failed", "timed_out"):
                    self.status, self.why = "lost", data.get("reason", "")
                    self.duration = data.get("stopped_after", self.duration)
            case "progress":
                share = None if data["done"] is None else (data["done"], data["total"])
                self.told = ": ".join(filter(None, [_share_text(share), data["note"]]))
            case _:
                pass

    def text(self, now: float | None = None) -> str:
        """Say in a few words how it stands; of one that is running, at a time."""
        running = self.status == "running"
        seconds = max(0.0, now - self.started) if running and now is not None else self.duration
        after = f" after {seconds_text(seconds)}" if seconds else ""
        scored = "" if self.score is None else f", score {score_text(self.score)}"
        if running:
            return ", ".join(filter(None, [self.told, after.removeprefix(" after ")]))
        cause, semicolon, more = self.why.partition("; ")
        if self.status == "lost" and cause.startswith("stopped"):
            return f"lost, stopped{after}{scored}{semicolon}{more}"
        if self.status == "timed_out":
            return f"timed out{after}{semicolon + more if cause == _TEAM_LIMIT else ''}"
        return f"{self.status}{after}{scored}{': ' if self.why else ''}{self.why}"

    def halt(self, why: str) -> None:
        """Note that it was under way when it was stopped, and what is inside of it."""
        if self.status == "running":
            self.status, self.why = "stopped", why
        halt_nodes(self.nodes.values())
        for member in self.members.values():
            member.halt(why)


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
    team: int | None = None
    """Of a team: how many members it has."""
    members: dict[str, MemberProgress] = field(default_factory=dict[str, MemberProgress])
    """Of a team: those that have started in its newest pass, by step id."""
    tally: Counter[str] = field(default_factory=Counter[str])
    """Of a map with teams in its items: how many members stand how."""
    teams: dict[str, list[MemberProgress]] = field(default_factory=dict[str, list[MemberProgress]])
    """Of such a map: the members of the items that are under way."""

    def members_text(self) -> str:
        """Count the members of a team, or of the teams of a map, by how they stand."""
        return statuses_text(self.tally if self.items is not None else Counter(member.status for member in self.members.values()))


class Progress:
    """The progress of one run."""

    def __init__(self, nodes: Iterable[str] = ()) -> None:
        """Begin with the nodes that are expected, in the order in which they are shown; others join as they are heard of."""
        self.nodes: dict[str, NodeProgress] = {name: NodeProgress(name) for name in nodes}
        self.run_id = ""
        self.status = "pending"
        self.seq = 0
        self.finished = 0
        """Steps that succeeded, with items, members and steps of sub-workflows: as many as the run's end tells."""
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
        self._members: dict[str, MemberProgress] = {}
        """By step id."""
        self._items: dict[str, tuple[NodeProgress, str]] = {}
        """Of the members whose team lies in an item of a map: the map and the item."""

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
            halt_nodes(self.nodes.values())
        if event.kind == "run_resumed" or self.status not in ("running", "completed"):
            for member in list(self._members.values()):
                before = member.status
                member.halt("the run stopped")
                self._count_member(member, before)
        if event.kind == "run_resumed":
            for member in self._members.values():
                member.again = member.status == "stopped"
            for node in self.nodes.values():
                if node.status == "failed":  # all its attempts begin anew, with those who had failed
                    for member in node.members.values():
                        member.again = member.again or member.status in ("failed", "timed_out")
                if node.status in ("running", "retrying", "failed", "stopped"):
                    node.status = "waiting"

    def _take_step(self, event: Event, at: float) -> None:
        parent, _, ordinal = event.step_id.rpartition("/")
        owner = self._maps.get(parent)
        if owner is not None:
            self._take_item(owner, ordinal, event)
            return
        member = self._members.get(event.step_id)
        if member is not None or event.kind.startswith("member_") or "member" in event.data:
            self._take_member(member, event, at)
            return
        node = self._node(event.node, event.step_id)
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
            self._forget(node)
            node.passes += 1
            node.team = None
        node.team = event.data.get("members", node.team)  # one that goes on may have others than before
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
            for member in node.teams.pop(item, ()):
                self._forget_member(member)

    # Members of teams.

    def _node(self, name: str, step_id: str) -> NodeProgress:
        """Return the node that a step is one of: of the run, or of the workflow that is the nearest member around it."""
        nodes = self.nodes
        member = next((m for above in _above(step_id) if (m := self._members.get(above)) is not None), None) if self._members else None
        if member is not None:
            nodes, name = member.nodes, name.removeprefix(f"{member.place}/")
        node = nodes.get(name)
        if node is None:
            node = nodes[name] = NodeProgress(name)
        return node

    def _take_member(self, member: MemberProgress | None, event: Event, at: float) -> None:
        if event.kind == "step_failed":
            self.failures += 1
        before = None if member is None else member.status
        if member is None:
            if event.kind != "step_started":
                return  # of an earlier pass
            member = self._join(event)
        member.take(event.kind, event.data, at)
        if event.kind == "step_started" and event.step_id not in self._items:
            self._go_on(event)
        if member.status != "running":
            for inner in member.members.values():
                inner.halt("its team stopped")
            halt_nodes(member.nodes.values())
        self._count_member(member, before)

    def _join(self, event: Event) -> MemberProgress:
        """Give a member that starts its place: in the team that is a member itself, in an item of a map, or in its node."""
        member = MemberProgress(name=event.data["member"], step_id=event.step_id, place=event.node)
        self._members[event.step_id] = member
        team = event.step_id.rpartition("/")[0]
        if (outer := self._members.get(team)) is not None:
            outer.members[event.step_id] = member
            return member
        below = team
        for above in _above(team):
            if above in self._members:
                break
            if (node := self._maps.get(above)) is not None:
                item = below.rpartition("/")[2]
                self._items[event.step_id] = node, item
                node.teams.setdefault(item, []).append(member)
                return member
            below = above
        node = self._node(event.node, team)
        node.members[event.step_id] = member
        return member

    def _go_on(self, event: Event) -> None:
        """Note that the next attempt of a team has begun, which its members alone tell."""
        team = event.step_id.rpartition("/")[0]
        node = None if team in self._members else self._node(event.node, team)
        if node is not None and node.status == "retrying":
            node.status, node.attempt = "running", event.attempt

    def _count_member(self, member: MemberProgress, before: str | None) -> None:
        node, item = self._items.get(member.step_id, (None, ""))
        if node is None or before == member.status:
            return
        if before is not None:
            node.tally[before] -= 1
        node.tally[member.status] += 1
        if item in node.ended:
            self._forget_member(member)

    def _forget(self, node: NodeProgress) -> None:
        """Let go of what a node's pass before had inside."""
        for member in [*node.members.values(), *(member for team in node.teams.values() for member in team)]:
            self._forget_member(member)
        node.members, node.teams, node.tally = {}, {}, Counter()

    def _forget_member(self, member: MemberProgress) -> None:
        """Let go of a member that has ended, and of what is inside of it; one that is still being stopped has an event to come."""
        if member.status == "running":
            return
        self._members.pop(member.step_id, None)
        self._items.pop(member.step_id, None)
        inner = [*member.members.values(), *(each for node in member.nodes.values() for each in node.members.values())]
        for each in inner:
            self._forget_member(each)

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
    elif node.members:
        ended = sum(member.status != "running" and not member.again for member in node.members.values())
        text += f" {ended:,}/{node.team or len(node.members):,} members"
    elif node.share is not None:
        text += f" {_share_text(node.share)}"
    if node.status == "retrying":
        text += f" (attempt {node.attempt} waits)"
    return f"{text}: {node.note}" if node.note else text


def score_text(score: Any) -> str:
    """Return what a judge gave as people write it; a whole number may be of any size."""
    return f"{score:g}" if isinstance(score, float) else f"{score!s:.24}"


def statuses_text(counts: Mapping[str, int]) -> str:
    """Return how many members of teams stand how."""
    return ", ".join(f"{counts[status]:,} {status.replace('_', ' ')}" for status in MEMBER_STATUSES if counts.get(status))


def halt_nodes(nodes: Iterable[NodeProgress]) -> None:
    """Note of nodes that were under way that they are no longer."""
    for node in nodes:
        if node.status in ("running", "retrying"):
            node.status = "stopped"


def _share_text(share: tuple[float, float | None] | None) -> str:
    if share is None:
        return ""
    done, total = share
    return f"{done:g}" if total is None else f"{done:g}/{total:g}"


def _above(step_id: str) -> Iterator[str]:
    """Yield the ids of the steps that a step may lie in, nearest first."""
    while step_id := step_id.rpartition("/")[0]:
        yield step_id
