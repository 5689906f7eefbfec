"""A run's progress as plain lines on standard error, at most one a second, where that is no terminal: a file, the log of a Ray job.

A thread of its own writes them, so that they come too while a body holds the event loop up. It decides when; what a line says is
engine/observe/progress.py's.
"""

import threading
import time
from types import TracebackType
from typing import Self

from cluster.notices import one_line, say
from engine.core.events import Event
from engine.observe.progress import Progress

PERIOD = 1.0
"""Seconds between two lines."""


class Lines:
    """Writes a line a second while something changes, and nothing for a run that ends before the first."""

    def __init__(self, progress: Progress, *, period: float = PERIOD) -> None:
        self._progress = progress
        self._period = period
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="gecko-progress", daemon=True)
        self._changed = False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def take(self, event: Event) -> None:
        """Take an event in."""
        with self._lock:
            self._progress.take(event)
            self._changed = True

    def _serve(self) -> None:
        while not self._over.wait(self._period):
            with self._lock:
                line, changed = self._progress.line(time.time()), self._changed
                self._changed = False
            if changed:
                say(one_line(line))
