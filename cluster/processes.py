"""Which processes belong to something that was started here, and how they end.

A process is its id and the moment of its start, since ids are given again. One that was started with a mark in its environment belongs to
whoever set the mark, and so does what it starts. Ray writes its titles over the environment of some, which are then known by their session
(`setsid`) and their title. It signals nothing that it has not looked at through a descriptor, which holds the process fast.
"""

import os
import select
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cluster.ending import children_of, descriptor_of

_KILLED = 5.0
"""Seconds within which a killed process is gone."""
_TITLE = b"ray::"
"""How the titles begin that Ray gives to its processes."""


class Process(NamedTuple):
    """A process of this machine."""

    pid: int
    started: int
    """In ticks since the machine started."""
    role: str = ""


def boot() -> str:
    """Return what names the present run of this machine; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def look(pid: int) -> Process | None:
    """Return a process that runs or is stopped, None for one that has ended."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if told[0] in "ZX" else Process(pid, int(told[19]), role_of(_words(pid)))


def lives(process: Process) -> bool:
    """Tell whether this very process has not ended."""
    present = look(process.pid)
    return present is not None and present.started == process.started


def role_of(words: list[bytes]) -> str:
    """Return what the process of a command line is, in a word: its title, its script, else its program."""
    told = [word.decode(errors="replace").strip() for word in words] or [""]
    if told[0].startswith(_TITLE.decode()):
        return told[0]
    if "-m" in told[:-1]:
        return told[told.index("-m") + 1]
    scripts = [word for word in told[1:3] if word.endswith(".py")]
    return Path(scripts[0] if scripts else told[0].partition(" ")[0]).stem


def belonging(mark: str, folder: str, sessions: Collection[int]) -> list[Process]:
    """Return the processes that were started with `mark` (NAME=value) in their environment, and what they started; never this one.

    Args:
        mark: The mark.
        folder: The folder that those of Ray name on their command lines.
        sessions: Sessions in which they were started.
    """
    found: dict[int, Process] = {}
    fresh = [pid for pid in _all() if _is_marked(pid, mark) or _is_titled(pid, folder, sessions)]
    while fresh:
        for process in filter(None, map(look, fresh)):
            found[process.pid] = process
        fresh = [child for pid in fresh for child in children_of(pid) if child not in found]
    found.pop(os.getpid(), None)
    return list(found.values())


def _all() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _is_marked(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or gone
        return False


def _is_titled(pid: int, folder: str, sessions: Collection[int]) -> bool:
    try:
        if os.getsid(pid) not in sessions:
            return False
    except OSError:
        return False
    # The id of a session that is over may be given again, to a terminal of the user.
    words = _words(pid)
    return bool(words) and (words[0].startswith(_TITLE) or any(folder.encode() in word for word in words))


def _words(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return []


def end(processes: Iterable[Process], grace: float) -> list[Process]:
    """Ask processes to end, kill those that have not after so many seconds; returns these when all are gone."""
    held = {descriptor: process for process in processes if (descriptor := _hold(process)) >= 0}
    try:
        if grace > 0:
            _signal(held, signal.SIGTERM)
            _signal(held, signal.SIGCONT)  # one that is stopped hears nothing
        left = _await(held, grace)
        killed = [held[descriptor] for descriptor in left]
        _signal(left, signal.SIGKILL)
        _await(left, _KILLED)
    finally:
        for descriptor in held:
            os.close(descriptor)
    return killed


def _hold(process: Process) -> int:
    """Return a descriptor of this very process, -1 where it is gone."""
    descriptor = descriptor_of(process.pid)
    if descriptor >= 0 and not lives(process):
        os.close(descriptor)
        return -1
    return descriptor


def _signal(descriptors: Iterable[int], number: signal.Signals) -> None:
    for descriptor in descriptors:
        with suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(descriptor, number)


def _await(descriptors: Iterable[int], timeout: float) -> list[int]:
    """Wait until processes have ended; returns the descriptors of those that have not."""
    looks = select.poll()
    left = set(descriptors)
    for descriptor in left:
        looks.register(descriptor, select.POLLIN)
    until = time.monotonic() + timeout
    while left and (rest := until - time.monotonic()) > 0:
        for descriptor, _ in looks.poll(rest * 1000):
            looks.unregister(descriptor)
            left.discard(descriptor)
    return list(left)
