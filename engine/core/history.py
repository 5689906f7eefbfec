"""What a run keeps of its past: the standing outputs by node, a window over the newest, and rows of what ran.

A window is made in O(1) and reads the entries only when somebody looks, so a step pays nothing for a long history.
"""

from collections.abc import Sequence
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple


class NodeStatus(StrEnum):
    """What becomes of a node, under the name that earlier versions used; a row's `status` equals one of them."""

    #: not opened yet
    PENDING = "pending"
    #: being performed
    RUNNING = "running"
    #: has its output
    SUCCESS = "success"
    #: its last attempt failed
    FAILED = "failed"
    #: not performed, or failed with `on_error="skip"`
    SKIPPED = "skipped"


class Row(NamedTuple):
    """One step that ran or was skipped."""

    node: str
    step_id: str
    """With the pass: `run/node/pass`."""
    status: str
    attempt: int = 0
    started: float = 0.0
    """Seconds since 1970; 0 where it never started."""
    duration: float = 0.0
    """Seconds."""
    error: str | None = None


class Window:
    """The newest `retention` outputs that stood at one moment, and the last output of that moment."""

    __slots__ = ("_entries", "_names", "_retention", "_standing", "last")

    def __init__(self, standing: dict[int, Any], names: Sequence[str], retention: int | None, last: Any) -> None:
        """Look at the standing outputs, oldest first, by node number; the dict is read at the first look, unless frozen before."""
        self._standing = standing
        self._names = names
        self._retention = retention
        self._entries: dict[str, Any] | None = None
        self.last = last

    def entries(self) -> dict[str, Any]:
        """Return node to output, oldest first; shared, not to be changed."""
        if self._entries is None:
            n = len(self._standing) if self._retention is None else self._retention
            newest = list(islice(reversed(self._standing.items()), n))
            self._entries = {self._names[node]: output for node, output in reversed(newest)}
        return self._entries

    @classmethod
    def of(cls, entries: dict[str, Any], last: Any) -> "Window":
        """Make a window of entries that are already at hand."""
        window = cls({}, (), 0, last)
        window._entries = entries
        return window
