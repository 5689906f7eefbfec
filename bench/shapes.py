"""The workflows that scenarios run, and what several are compared with: schedules, a bare loop, a bare append."""

import heapq
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from engine import Workflow
from engine.core.plan import Plan
from engine.core.run import StepResult, apply, ready, start

Body = Callable[..., Any]


def chain(body: Body, count: int, **options: Any) -> Workflow:
    """Return `count` nodes, one after the other."""
    flow = Workflow("bench-chain", **options)
    for number in range(count):
        flow.add_node(f"n{number}", body)
    for number in range(count - 1):
        flow.add_edge(f"n{number}", f"n{number + 1}")
    return flow.set_entry_point("n0")


def layer(body: Body, count: int, *, last: Body | None = None, **options: Any) -> Workflow:
    """Return `count` nodes in one layer; the last one may have another body."""
    flow = Workflow("bench-layer", **options)
    for number in range(count):
        flow.add_node(f"n{number}", last if last is not None and number == count - 1 else body)
    return flow.set_entry_point(*(f"n{number}" for number in range(count)))


def lanes(body: Body, width: int, length: int, **options: Any) -> Workflow:
    """Return `width` chains of `length` nodes side by side: node `<lane>-<number>`."""
    flow = Workflow("bench-lanes", **options)
    for lane in range(width):
        for number in range(length):
            flow.add_node(f"{lane}-{number}", body)
        for number in range(length - 1):
            flow.add_edge(f"{lane}-{number}", f"{lane}-{number + 1}")
    return flow.set_entry_point(*(f"{lane}-0" for lane in range(width)))


async def bare_loop(plan: Plan, body: Body, input: Any) -> tuple[float, int]:
    """Decide a whole run by the two functions of the core alone; return the seconds, and how many steps finished."""
    begun, finished = time.perf_counter(), 0
    run = start(plan, "bare.bench.1", input)
    waits = body.__code__.co_flags & 0x80  # a coroutine function; asking `inspect` for each step would cost more than the step
    while (now := ready(plan, run)).steps:
        results = [StepResult(step.node, "success", await body(step.input) if waits else body(step.input)) for step in now.steps]
        apply(plan, run, results)
        finished += len(results)
    return time.perf_counter() - begun, finished


def bare_append(path: Path, count: int, size: int) -> float:
    """Append `count` records of `size` bytes to a new file, each synced before the next; return the seconds."""
    record = os.urandom(size)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
    try:
        begun = time.perf_counter()
        for _ in range(count):
            os.write(fd, record)
            os.fdatasync(fd) if hasattr(os, "fdatasync") else os.fsync(fd)
        return time.perf_counter() - begun
    finally:
        os.close(fd)
        path.unlink()


def best_schedule(seconds: Iterable[float], slots: int) -> float:
    """Return the end of a schedule that no order beats by much: the longest first, each on the slot that is free first.

    For many pieces, and for equal ones, it is the best there is; it never is more than a third above it.
    """
    free = [0.0] * slots
    for one in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + one)
    return max(free)


def best_of_lanes(lanes_of: Sequence[Sequence[float]], slots: int) -> float:
    """Return a time that no schedule of chains can beat: all slots always busy, or the longest chain."""
    return max(sum(map(sum, lanes_of)) / slots, max(map(sum, lanes_of)))


def size_of(folder: Path) -> int:
    """Return the bytes of all segments below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*.arrows"))
