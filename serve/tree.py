"""A run drawn on a terminal: a tree of layers and nodes with their progress, again and again in its place.

It draws what engine/observe/progress.py counts, eight times a second, from a thread of its own, so that it moves too while a body
holds the event loop up. What bodies print meanwhile appears above the tree, unchanged.
"""

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from cluster.notices import one_line
from engine.core.events import Event
from engine.observe.progress import NodeProgress, Progress, counted, node_text, seconds_text
from serve.service import RunReport, StepReport

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
}
_SETTLED = ("success", "skipped")
_BAR, _LONGEST = 24, 200
_WIDEST = 1 << 16
"""Columns of a report: nothing in it is cut, and a terminal wraps its lines."""
_MOST_HELD = 1 << 20
"""Characters that bodies printed and that wait to be drawn."""


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
    first, last = _window(groups, max(3, height - 4))
    if first:
        count = sum(map(len, groups[:first]))
        tree.add(Text.assemble(("\u2713 ", "green"), f"{count:,} nodes of the first {first:,} layers"))
    room = max(3, height - 4 - (last - first))
    for number in range(first, last):
        group = groups[number]
        branch = tree if len(group) == 1 else tree.add(Text(f"layer {number + 1}" if number < len(layers) else "by jumps", "dim"))
        _add_nodes(branch, group, inner, now, room if len(group) > 1 else 1)
    if last < len(groups):
        tree.add(Text(f"\u00b7 {sum(map(len, groups[last:])):,} nodes of {len(groups) - last:,} further layers", "dim"))
    return tree


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


def _add_nodes(branch: Tree, group: Sequence[NodeProgress], inner: dict[str, list[NodeProgress]], now: float, room: int) -> None:
    """Add nodes, those that need eyes first where not all have room."""
    shown = list(group)
    if len(shown) > room:
        rank = {"failed": 0, "stopped": 0, "retrying": 1, "running": 2}
        wanted = {node.name for node in sorted(shown, key=lambda node: rank.get(node.status, 3))[: room - 1]}
        shown = [node for node in group if node.name in wanted]
    for node in shown:
        twig = branch.add(_node_label(node, now))
        if node.status in ("running", "retrying", "failed"):
            for part in inner.get(node.name, [])[:8]:
                twig.add(_node_label(part, now, name=part.name.partition("/")[2]))
    if len(shown) < len(group):
        counts: dict[str, int] = {}
        for node in group:
            counts[node.status] = counts.get(node.status, 0) + 1
        branch.add(Text("... of " + f"{len(group):,}: " + ", ".join(f"{count:,} {status}" for status, count in counts.items()), "dim"))


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
    elif node.status in ("running", "retrying") and (node.share or node.note):
        label.append(node_text(node).removeprefix(node.name), "cyan")
    if node.status == "retrying":
        label.append(f"  attempt {node.attempt} follows", "magenta")
    elif node.failed and node.status != "failed":
        label.append(f"  {counted(node.failed, 'failed attempt')}", "magenta")
    if node.duration is not None:
        label.append(f"  {seconds_text(node.duration)}", "dim")
    elif node.status == "running" and node.started:
        label.append(f"  {seconds_text(max(0.0, now - node.started))}", "dim")
    return label


def print_report(report: RunReport) -> None:
    """Print a run that was recorded, as a tree of its steps, on standard output."""
    console = Console(highlight=False, emoji=False, soft_wrap=True, width=_WIDEST)
    head = Text.assemble((report.run_id, "bold"), f"  {report.status}  {seconds_text(report.updated_at - report.started_at)}")
    tree = Tree(head, guide_style="dim")
    branches: dict[str, Tree] = {}
    for step in report.steps:
        outer = next((branches[above] for above in _above(step.step) if above in branches), tree)
        branches[step.step] = outer.add(_step_label(step))
        for index, error, place in step.failed_items:
            branches[step.step].add(Text(f"[{index}] {_error_text(error, place)}", "red"))
    console.print(tree)


def _above(step: str) -> list[str]:
    """The ids of the steps that a step may lie in, nearest first."""
    parts = step.split("/")
    return ["/".join(parts[:n]) for n in range(len(parts) - 1, 1, -1)]


def _error_text(error: str, place: str | None) -> str:
    return one_line(error, _LONGEST) + (f" at {place}" if place else "")


def _step_label(step: StepReport) -> Text:
    sign, style = _SIGNS.get(step.status, _SIGNS["stopped"])
    number = step.step.split("/")[1]
    label = Text.assemble(
        (f"{sign} ", style), step.node.rpartition("/")[2], f" (pass {number})" if number != "1" and "/" not in step.node else ""
    )
    if step.items is not None:
        label.append(f"  {step.done:,}/{step.items:,} items")
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
