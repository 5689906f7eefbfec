"""Marks that bodies leave in a folder, from any process: which step was performed, how often, where and when.

A mark is a file of its own, made with one call, so a process that is killed leaves it whole or not at all.
"""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from math import inf
from pathlib import Path
from urllib.parse import quote, unquote


def leave(folder: str | Path, name: str) -> None:
    """Leave a mark of this name."""
    os.close(os.open(Path(folder) / f"{quote(name, safe='')}@{os.getpid()}@{time.time_ns()}", os.O_CREAT | os.O_EXCL))


def names(folder: str | Path) -> Counter[str]:
    """Count the marks by name."""
    return Counter(unquote(entry.name.split("@")[0]) for entry in os.scandir(folder))


def processes(folder: str | Path, name: str | None = None) -> list[int]:
    """Return the processes that left a mark of a name, or any mark, oldest first."""
    found = [entry.name.split("@") for entry in os.scandir(folder)]
    return [int(pid) for text, pid, at in sorted(found, key=lambda f: int(f[2])) if name is None or unquote(text) == name]


def latest(folder: str | Path) -> tuple[str, int]:
    """Return the name and the process of the newest mark."""
    text, pid, _ = max((entry.name.split("@") for entry in os.scandir(folder)), key=lambda f: int(f[2]))
    return unquote(text), int(pid)


def late(folder: str | Path, done: dict[str, float]) -> dict[str, float]:
    """Return the names with a mark that was left after something was done for good (seconds since 1970), with how much later."""
    found: dict[str, float] = {}
    for entry in os.scandir(folder):
        text, _, at = entry.name.split("@")
        after = int(at) / 1e9 - done.get(unquote(text), inf)
        if after > 0:
            found[unquote(text)] = max(after, found.get(unquote(text), 0.0))
    return found


def first(folder: str | Path, beginning: str, *, after: float) -> float:
    """Return when the first mark whose name begins so was left after a moment, in seconds since 1970."""
    found = [entry.name.split("@") for entry in os.scandir(folder)]
    times = [int(at) / 1e9 for text, _, at in found if unquote(text).startswith(f"{beginning}/")]
    return min(at for at in times if at > after)


def repeated(folder: str | Path) -> dict[str, int]:
    """Return the marks that are there more than once."""
    return {name: count for name, count in names(folder).items() if count > 1}


def again(folder: str | Path) -> int:
    """Count the marks of a name beyond its first, all names together."""
    return sum(count - 1 for count in names(folder).values())


async def until(true: Callable[[], object], *, within: float = 30.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + within
    while not true():
        assert time.monotonic() < end, f"not so within {within:g} s"
        await asyncio.sleep(0.01)
