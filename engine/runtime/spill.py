"""Large outputs leave memory when no node may take them any more: the log has them.

An output stays while a node that has not started may take it, while the history window shows it, and while it is the last output. What
comes into view again later (a jump that opens a node whose other sources stay done) is read from the log.
"""

from itertools import islice
from typing import Any, NamedTuple

from engine.checkpoint.codec import decode
from engine.core.routing import PENDING
from engine.core.run import Run
from engine.core.state import Lazy
from engine.ports import Log, RunKey

LARGE = 64 * 1024
"""Bytes of an output from which it is worth it."""


class Stored(Lazy):
    """An output in the log: one row, or for a map a row for each item."""

    __slots__ = ("_key", "_log", "_seqs", "_whole")
    heavy = True

    def __init__(self, log: Log, key: RunKey, seqs: tuple[int, ...], *, whole: bool) -> None:
        """`whole`: the one row is the value; else each row is an item of a list (0: None)."""
        self._log = log
        self._key = key
        self._seqs = seqs
        self._whole = whole

    def load(self) -> Any:
        """Read the value from the log."""
        rows = self._log.fetch(self._key, [seq for seq in self._seqs if seq])
        values = [decode(rows[seq].output or b"\xc0") if seq else None for seq in self._seqs]
        return values[0] if self._whole else values


class _Kept(NamedTuple):
    node: int
    value: Any
    seqs: tuple[int, ...]
    whole: bool


class Spill:
    """The large outputs of one run that are still in memory."""

    def __init__(self, log: Log, key: RunKey) -> None:
        """Nothing is large yet."""
        self._log = log
        self._key = key
        self._kept: list[_Kept] = []

    def note(self, node: int, value: Any, seqs: tuple[int, ...], *, whole: bool) -> None:
        """Take note of a large output with the numbers of its events."""
        self._kept.append(_Kept(node, value, seqs, whole))

    def sweep(self, run: Run, durable: int) -> None:
        """Let go of what nobody may take, as far as it is on storage."""
        if not self._kept:
            return
        retention = run.plan.options.retention
        shown = set(run.standing if retention is None else islice(reversed(run.standing), retention))
        last = run.last.values() if type(run.last) is dict else (run.last,)
        left: list[_Kept] = []
        for kept in self._kept:
            if run.front.outputs.get(kept.node) is not kept.value and run.standing.get(kept.node) is not kept.value:
                continue  # opened again, or replaced
            if kept.node in shown or max(kept.seqs) > durable or _awaited(run, kept.node) or any(v is kept.value for v in last):
                left.append(kept)
                continue
            stored = Stored(self._log, self._key, kept.seqs, whole=kept.whole)
            if run.front.outputs.get(kept.node) is kept.value:
                run.front.outputs[kept.node] = stored
            if run.standing.get(kept.node) is kept.value:
                run.standing[kept.node] = stored
        self._kept = left


def _awaited(run: Run, node: int) -> bool:
    """Whether a node that may take the output has not started."""
    front, plan = run.front, run.plan
    return any(front.status[plan.target[e]] == PENDING and plan.target[e] not in front.taken for e in plan.out[node] if not plan.back[e])
