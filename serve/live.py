"""A run on the screen while it goes on: a tree where standard error is a terminal, plain lines elsewhere.

It chooses which; they are serve/tree.py's and cluster/lines.py's. rich is loaded for a terminal alone.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from cluster.lines import Lines
from engine.core.events import Event
from engine.observe.progress import Progress


class View(Protocol):
    """Takes in what happens in a run, and shows it."""

    def take(self, event: Event) -> None: ...


@contextmanager
def open_view(progress: Progress, layers: Sequence[Sequence[str]], name: str, *, quiet: bool = False) -> Iterator[View]:
    """Give a view on standard error; if `quiet` events are counted and nothing is shown.

    Args:
        progress: Where events are counted.
        layers: The nodes that are expected, by layer, in declared order.
        name: The workflow.
    """
    if quiet:
        yield progress
        return
    if sys.stderr.isatty():
        from rich.console import Console

        from serve.tree import Screen

        console = Console(stderr=True, highlight=False, emoji=False)
        if not console.is_dumb_terminal:
            with Screen(progress, layers, name, console, sys.stderr) as screen:
                yield screen
            return
    with Lines(progress) as lines:
        yield lines
