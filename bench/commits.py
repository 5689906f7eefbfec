"""What a commit consists of: each stage between the end of one step and the start of the next, on which thread, in microseconds.

A profiler by function sees neither waiting nor a second thread, and both are most of a commit.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.checkpoint import intake, writer
from engine.runtime.ledger import Ledger
from engine.store.files import FilePlace

STAGES = (
    ("told", "handed", "loop: from a step's success to the rows of the next start (apply, ready)"),
    ("handed", "taken", "waking the writer's thread"),
    ("taken", "write", "writer: building the batch"),
    ("write", "written", "writer: pwrite"),
    ("written", "synced", "writer: fdatasync"),
    ("synced", "answered", "writer: the look (two stats)"),
    ("answered", "settled", "waking the loop"),
    ("settled", "committed", "loop: taking the answer in, until the step may start"),
)
"""Where each stage begins, where it ends, and what it is."""
Marks = list[tuple[float, str]]


@contextmanager
def noted() -> Iterator[Marks]:
    """Note when each point of a commit is passed while the block runs; a note costs a microsecond or less."""
    marks: Marks = []
    undo: list[tuple[Any, str, Any]] = []

    def put(owner: Any, name: str, call: Any) -> None:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, call)

    def around(owner: Any, name: str, *, before: str = "", after: str = "", when: Callable[..., bool] = lambda *_: True) -> None:
        call = getattr(owner, name)

        def noting(*args: Any, **options: Any) -> Any:
            if before and when(*args):
                marks.append((time.perf_counter(), before))
            answer = call(*args, **options)
            if after:
                marks.append((time.perf_counter(), after))
            return answer

        put(owner, name, noting)

    commit = Ledger.commit

    async def committing(ledger: Ledger) -> None:
        await commit(ledger)
        marks.append((time.perf_counter(), "committed"))

    put(Ledger, "commit", committing)
    around(Ledger, "tell", before="told", when=lambda _, kind, *rest: kind == "step_succeeded")
    around(Ledger, "_hand_over", before="handed")
    around(writer.Writer, "_commit", before="taken")
    around(FilePlace, "write", before="write", after="written")
    around(FilePlace, "sync", after="synced")
    around(intake, "_resolve", before="answered")
    around(intake, "_answer", before="settled")
    try:
        yield marks
    finally:
        for owner, name, call in reversed(undo):
            setattr(owner, name, call)


def by_stage(work: Callable[[], object]) -> str:
    """Return what the commits of some work under `always` consist of: the median of each stage, and of whole commits."""
    with noted() as marks:
        work()
    found: dict[tuple[str, str], list[float]] = {(begin, end): [] for begin, end, _ in STAGES}
    whole: list[float] = []
    passed: dict[str, float] = {}
    for at, point in sorted(marks):
        if point == "told":
            passed = {}
        passed[point] = at
        if point == "committed" and all(begin in passed for begin, _, _ in STAGES):
            whole.append(at - passed["told"])
            for (begin, end), values in found.items():
                values.append(passed[end] - passed[begin])
    if not whole:
        return "no commit was seen"
    lines = [f"{statistics.median(found[begin, end]) * 1e6:8.1f}  {text}" for begin, end, text in STAGES]
    return "\n".join([f"median us of {len(whole)} commits, one a step", *lines, f"{statistics.median(whole) * 1e6:8.1f}  together"])


@contextmanager
def appending(path: Path, size: int) -> Iterator[Callable[[], object]]:
    """Give what appends a record of `size` bytes to a new file and syncs it; the file is gone afterwards."""
    record = os.urandom(size)
    sync = os.fdatasync if hasattr(os, "fdatasync") else os.fsync
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)

    def append() -> None:
        os.write(fd, record)
        sync(fd)

    try:
        yield append
    finally:
        os.close(fd)
        path.unlink()


def after_pauses(path: Path, *, size: int = 1000, rounds: int = 40) -> str:
    """Return what a bare append and fdatasync takes in one thread after each kind of pause: what has rested is slower."""
    found: dict[str, list[float]] = {name: [] for name in PAUSES}
    with appending(path, size) as append:
        for name, pause in PAUSES.items():
            for _ in range(rounds):
                pause()
                begun = time.perf_counter()
                append()
                found[name].append(time.perf_counter() - begun)
    return "\n".join(f"{statistics.median(values) * 1e6:8.1f}  bare append + fdatasync, {name}" for name, values in found.items())


def _work_for(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


PAUSES: dict[str, Callable[[], object]] = {
    "one after the other": lambda: None,
    "after 0.2 ms of computing": lambda: _work_for(0.0002),
    "after 0.2 ms of sleep": lambda: time.sleep(0.0002),
    "after 10 ms of sleep": lambda: time.sleep(0.01),
}
"""What lies between two syncs."""
