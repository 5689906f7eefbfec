"""A run drawn on a terminal: a tree of layers and nodes with their progress, again and again in its place.

It draws what engine/observe/progress.py counts, eight times a second, from a thread of its own, so that it moves too while a body
holds the event loop up. What bodies print meanwhile appears above the tree, unchanged.
"""

import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from cluster.notices import one_line
from engine.core.events import Event
from engine.observe.progress import MemberProgress, NodeProgress, Progress, counted, node_text, seconds_text, statuses_text
from serve.report import StepReport
from serve.service import RunReport

PERIOD = 0.125
"""Seconds between two pictures."""

_SIGNS = {
    "waiting": ("\u00b7", "dim"),
    "running": ("\u25cf", "yellow"),
    "retrying": ("\u21bb", "magenta"),
    "success": ("\u2713", "green"),
    "failed": ("\u2717", "red"),
    "skipped": ("\u2212", "dim"),
    "stopped": ("\u25a0", "red"),
    "won": ("\u2713", "green"),
    "finished": ("\u2713", "green"),
    "lost": ("\u2212", "dim"),
    "timed_out": ("\u2717", "red"),
}
_SETTLED = ("success", "skipped")
_AT_WORK = ("running", "retrying", "failed", "timed_out")
"""What is inside of these is shown before what is inside of others."""
_RANKS = {"won": -1, "failed": 0, "timed_out": 0, "stopped": 0, "retrying": 1, "running": 2}
"""Which are shown where not all have room, least first."""
_MOST_PARTS = 8
"""So many members of a team, or nodes of a sub-workflow, are shown one by one."""
_BAR, _LONGEST = 24, 200
_WIDEST = 1 << 16
"""Columns of a report: nothing in it is cut, and a terminal wraps its lines."""
_MOST_HELD = 1 << 20
"""Characters that bodies printed and that wait to be drawn."""

_Part = NodeProgress | MemberProgress
_Inner = Mapping[str, Sequence[NodeProgress]]
"""The nodes inside of sub-workflows, by the node that these are."""


class Screen:
    """Draws the tree, and again in its place."""

    def __init__(self, progress: Progress, layers: Sequence[Sequence[str]], name: str, console: Console, stream: TextIO) -> None:
        self._progress = progress
        self._layers = layers
        self._name = name
        self._console = console
        self._stream = stream
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="gecko-screen", daemon=True)
        self._height = 0
        self._held: list[str] = []
        self._held_size = 0
        self._former: tuple[Any, Any] = (None, None)

    def __enter__(self) -> Self:
        self._former = (sys.stdout, sys.stderr)
        sys.stdout = sys.stderr = _Above(self)  # type: ignore[assignment]
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        sys.stdout, sys.stderr = self._former
        with self._lock:
            if self._held and not self._held[-1].endswith("\n"):
                self._held.append("\n")
            self._draw()

    def take(self, event: Event) -> None:
        """Take an event in."""
        with self._lock:
            self._progress.take(event)

    def hold(self, text: str) -> None:
        """Keep what was printed until the next picture."""
        with self._lock:
            self._held.append(text)
            self._held_size += len(text)
            if self._held_size > _MOST_HELD:
                self._draw()

    def _serve(self) -> None:
        while not self._over.wait(PERIOD):
            with self._lock:
                self._draw()

    def _draw(self) -> None:
        size = shutil.get_terminal_size()
        with self._console.capture() as captured:
            self._console.print(
                tree_of(self._progress, self._layers, self._name, time.time(), size.lines - 2), no_wrap=True, overflow="ellipsis", crop=True
            )
        picture = captured.get()
        held, self._held, self._held_size = "".join(self._held), [], 0
        whole, newline, rest = held.rpartition("\n")
        if rest:
            self._held, self._held_size = [rest], len(rest)
        back = f"\x1b[{self._height}A\r\x1b[J" if self._height else ""
        try:
            self._stream.write(f"{back}{whole}{newline}{picture}")
            self._stream.flush()
        except (OSError, ValueError):
            pass
        self._height = picture.count("\n")


class _Above:
    """Stands for standard output and error while the tree is shown."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen

    def write(self, text: str) -> int:
        self._screen.hold(text)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        self._screen.hold("".join(lines))

    def flush(self) -> None:
        return

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._screen._stream, name)


def tree_of(progress: Progress, layers: Sequence[Sequence[str]], name: str, now: float, height: int) -> Tree:
    """Return the tree of a run, in at most about `height` lines: what is finished or far away is summed up first."""
    head = Text.assemble((name, "bold"), f"  {progress.status}", f"  {seconds_text(progress.seconds(now))}" if progress.began else "")
    tree = Tree(head, guide_style="dim")
    planned = {node for layer in layers for node in layer}
    inner: dict[str, list[NodeProgress]] = {}
    more: list[NodeProgress] = []
    for node in list(progress.nodes.values()):
        if node.name in planned:
            continue
        outer = node.name.partition("/")[0]
        (inner.setdefault(outer, []) if outer != node.name else more).append(node)
    groups = [[progress.nodes[node] for node in layer] for layer in layers] + ([more] if more else [])
    inside = sum(_lines_in(node, inner) for group in groups for node in group if node.status in _AT_WORK)
    room = max(3, height - 4 - min(inside, height // 3))
    first, last = _window(groups, room)
    lines = 1 + (first > 0) + (last < len(groups))
    if first:
        count = sum(map(len, groups[:first]))
        tree.add(Text.assemble(("\u2713 ", "green"), f"{count:,} nodes of the first {first:,} layers"))
    room = max(3, room - (last - first))
    twigs: list[tuple[Tree, _Part]] = []
    for number in range(first, last):
        group = groups[number]
        branch = tree if len(group) == 1 else tree.add(Text(f"layer {number + 1}" if number < len(layers) else "by jumps", "dim"))
        found = _add_nodes(branch, group, now, room if len(group) > 1 else 1)
        twigs += found
        lines += len(found) + (len(found) < len(group)) + (len(group) > 1)
    if last < len(groups):
        tree.add(Text(f"\u00b7 {sum(map(len, groups[last:])):,} nodes of {len(groups) - last:,} further layers", "dim"))
    _add_all_inside(twigs, inner, now, height - lines)
    return tree


def _parts_of(part: _Part, inner: _Inner) -> list[_Part]:
    """Return what is inside of a node or a member: members of a team; of a workflow its nodes, once it is over those with teams in them."""
    members = sorted(part.members.values(), key=lambda member: member.index)
    nodes = part.nodes.values() if isinstance(part, MemberProgress) else inner.get(part.name, ())
    return [*members, *(node for node in nodes if node.members or part.status in _AT_WORK)]


def _lines_in(part: _Part, inner: _Inner) -> int:
    parts = _parts_of(part, inner)
    return min(len(parts), _MOST_PARTS) + sum(_lines_in(each, inner) for each in parts[:_MOST_PARTS])


def _add_all_inside(twigs: Iterable[tuple[Tree, _Part]], inner: _Inner, now: float, room: int) -> int:
    """Add what is inside of parts, of those at work first, in at most so many lines; returns how many there are."""
    used = 0
    for twig, part in sorted(twigs, key=lambda pair: pair[1].status not in _AT_WORK):
        used += _add_inside(twig, part, inner, now, room - used)
    return used


def _add_inside(twig: Tree, part: _Part, inner: _Inner, now: float, room: int) -> int:
    parts = _parts_of(part, inner)
    if not parts or room < 1:
        return 0
    shown = [parts[i] for i in _wanted([each.status for each in parts], min(room, _MOST_PARTS))]
    below: list[tuple[Tree, _Part]] = []
    for each in shown:
        name = each.name.removeprefix(f"{part.name}/")
        label = _member_label(each, now) if isinstance(each, MemberProgress) else _node_label(each, now, name=name)
        below.append((twig.add(label), each))
    used = len(shown)
    if len(shown) < len(parts):
        twig.add(_rest_text([each.status for each in parts]))
        used += 1
    return used + _add_all_inside(below, inner, now, room - used)


def _wanted(statuses: Sequence[str], most: int) -> list[int]:
    """Choose which are shown one by one, by number, in their order: all, or those that need eyes first and a line for the rest."""
    if len(statuses) <= most:
        return list(range(len(statuses)))
    return sorted(sorted(range(len(statuses)), key=lambda i: _RANKS.get(statuses[i], 3))[: max(0, most - 1)])


def _rest_text(statuses: Sequence[str]) -> Text:
    counts = Counter(status.replace("_", " ") for status in statuses)
    return Text(f"... of {len(statuses):,}: " + ", ".join(f"{count:,} {status}" for status, count in counts.items()), "dim")


def _window(groups: Sequence[Sequence[NodeProgress]], room: int) -> tuple[int, int]:
    """Choose which layers are shown one by one: those that are at work, then what surrounds them."""
    lines = [1 if len(group) == 1 else 1 + len(group) for group in groups]
    if sum(lines) <= room:
        return 0, len(groups)
    first = next((i for i, group in enumerate(groups) if any(node.status not in _SETTLED for node in group)), len(groups) - 1)
    used, last = 0, first
    while last < len(groups) and (used == 0 or used + lines[last] <= room):
        used += lines[last]
        last += 1
    while first > 0 and used + lines[first - 1] <= room:
        first -= 1
        used += lines[first]
    return first, last


def _add_nodes(branch: Tree, group: Sequence[NodeProgress], now: float, room: int) -> list[tuple[Tree, _Part]]:
    """Add nodes, those that need eyes first where not all have room; returns those that were added."""
    shown = [group[i] for i in _wanted([node.status for node in group], room)]
    added: list[tuple[Tree, _Part]] = [(branch.add(_node_label(node, now)), node) for node in shown]
    if len(shown) < len(group):
        branch.add(_rest_text([node.status for node in group]))
    return added


def _node_label(node: NodeProgress, now: float, *, name: str | None = None) -> Text:
    sign, style = _SIGNS[node.status]
    label = Text.assemble((f"{sign} ", style), (name or node.name, "" if node.status != "waiting" else "dim"))
    if node.passes > 1:
        label.append(f" (pass {node.passes})", "dim")
    if node.items is not None and node.status in ("running", "retrying", "failed", "stopped"):
        share = node.done / node.items if node.items else 1.0
        full = round(share * _BAR)
        label.append("  ").append("\u2501" * full, "green").append("\u2501" * (_BAR - full), "dim")
        label.append(f" {node.done:,}/{node.items:,}")
        if node.status == "running" and node.done and now > node.started:
            label.append(f"  {node.done / (now - node.started):,.0f}/s", "dim")
    elif node.items is not None and node.status == "success":
        label.append(f"  {node.items:,} items", "dim")
    elif node.status in ("running", "retrying") and (node.share or node.note or node.members):
        label.append(node_text(node).removeprefix(node.name), "cyan")
    if node.status == "retrying":
        label.append(f"  attempt {node.attempt} follows", "magenta")
    elif node.failed and node.status != "failed":
        label.append(f"  {counted(node.failed, 'failed attempt')}", "magenta")
    if node.duration is not None:
        label.append(f"  {seconds_text(node.duration)}", "dim")
    elif node.status == "running" and node.started:
        label.append(f"  {seconds_text(max(0.0, now - node.started))}", "dim")
    if node.tally or (node.members and node.status not in ("running", "retrying")):
        unheard = 0 if node.team is None else node.team - len(node.members)
        counts = ", ".join(filter(None, [node.members_text(), f"{unheard:,} not started" if unheard else ""]))
        label.append(f"  {'members: ' if node.items is not None else ''}{counts}", "dim")
    return label


def _member_label(member: MemberProgress, now: float) -> Text:
    return _seat_text(member.step_id, member.name, member.status, member.text(now))


def _seat_text(step: str, name: str, status: str, told: str) -> Text:
    """Return a member of a team: its index and name, and how it stands."""
    sign, style = _SIGNS[status]
    label = Text.assemble((f"{sign} ", style), (f"[{step.rpartition('/')[2]}] ", "dim"), name)
    bold = status in ("failed", "timed_out", "stopped", "won")
    return label.append(f"  {one_line(told, _LONGEST)}", style if bold else "dim") if told else label


def print_report(report: RunReport) -> None:
    """Print a run that was recorded, as a tree of its steps, on standard output."""
    console = Console(highlight=False, emoji=False, soft_wrap=True, width=_WIDEST)
    head = Text.assemble((report.run_id, "bold"), f"  {report.status}  {seconds_text(report.updated_at - report.started_at)}")
    tree = Tree(head, guide_style="dim")
    known = {step.step for step in report.steps}
    inside: dict[str, list[StepReport]] = {}
    for step in report.steps:
        inside.setdefault(next((above for above in _above(step.step) if above in known), ""), []).append(step)
    _add_steps(tree, inside.get("", []), inside)
    console.print(tree)


def _above(step: str) -> list[str]:
    """The ids of the steps that a step may lie in, nearest first."""
    parts = step.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts) - 1, 1, -1)]


def _add_steps(branch: Tree, steps: Sequence[StepReport], inside: Mapping[str, Sequence[StepReport]]) -> None:
    """Add steps with what is inside of them; of a large team those of the members that need eyes first."""
    members = sorted((step for step in steps if step.member is not None), key=lambda step: int(step.step.rpartition("/")[2]))
    shown = [members[i] for i in _wanted([member.status for member in members], _MOST_PARTS)]
    for step in (*shown, *(step for step in steps if step.member is None)):
        within = inside.get(step.step, ())
        label = _step_label(step)
        if step.members is not None and (unheard := step.members - len(within)):
            label.append(f"  {unheard:,} not started", "dim")
        twig = branch.add(label)
        if step.items is None:
            _add_steps(twig, within, inside)
        else:
            _add_items(twig, step, within, inside)
    if len(shown) < len(members):
        branch.add(_rest_text([member.status for member in members]))


def _add_items(twig: Tree, step: StepReport, within: Sequence[StepReport], inside: Mapping[str, Sequence[StepReport]]) -> None:
    """Add of a map the items that failed, and those that have steps inside: the first of them, where they are many."""
    errors = {index: _error_text(error, place) for index, error, place in step.failed_items}
    items: dict[str, list[StepReport]] = {index: [] for index in errors}
    for each in within:
        items.setdefault(each.step.removeprefix(f"{step.step}/").partition("/")[0], []).append(each)
    whole = [index for index, steps in items.items() if steps]
    shown = {*errors, *(whole if len(whole) <= _MOST_PARTS else whole[: _MOST_PARTS - 1])}
    for index in sorted(shown, key=int):
        label = Text.assemble((f"[{index}]", "red" if index in errors else ""), (f" {errors[index]}" if index in errors else "", "red"))
        _add_steps(twig.add(label), items[index], inside)
    if len(whole) > _MOST_PARTS:
        members = statuses_text(Counter(each.status for each in within if each.member is not None))
        twig.add(Text(f"... of {len(whole):,} items{'; members: ' if members else ''}{members}", "dim"))


def _error_text(error: str, place: str | None) -> str:
    return one_line(error, _LONGEST) + (f" at {place}" if place else "")


def _step_label(step: StepReport) -> Text:
    if step.member is not None:
        return _seat_text(step.step, step.member, step.status, step.told + (f" at {step.place}" if step.place else ""))
    sign, style = _SIGNS.get(step.status, _SIGNS["stopped"])
    number = step.step.split("/")[1]
    label = Text.assemble(
        (f"{sign} ", style), step.node.rpartition("/")[2], f" (pass {number})" if number != "1" and "/" not in step.node else ""
    )
    if step.items is not None:
        label.append(f"  {step.done:,}/{step.items:,} items")
    elif step.members is not None:
        label.append(f"  team of {step.members:,}", "dim")
    if step.duration is not None:
        label.append(f"  {seconds_text(step.duration)}", "dim")
    if step.attempt > 1:
        label.append(f"  attempt {step.attempt}", "magenta")
    if step.status not in ("success", "failed"):
        label.append(f"  {step.status}", "dim")
    if step.error is not None:
        label.append(f"  {_error_text(step.error, step.place)}", "red")
    if step.why is not None:
        label.append(f"  {one_line(step.why, _LONGEST)}", "magenta")
    return label
