"""How a worker process ends whose coordinator or script died: within the call that it performs, or before the next.

Ray tells such a worker by SIGTERM, after 10 to 200 ms, and kills it 5 s later. SystemExit, which its handler raises in whatever runs,
looks like the body's own `sys.exit` there: a pack that took it for that would go on for those 5 s, hold a CPU, and do what the run's next
owner does too. On the coordinator's own node the kernel knows at once, and is asked between two calls.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType

WORTH = 0.001
"""Seconds of a call after which the kernel is asked, which takes two microseconds."""
PARENT, BEGUN = 1, 19
"""Fields of a process's `stat`, counted from its state."""
STOPPED = 1.0
"""Seconds within which a process stops that is told to: it takes microseconds, longer where every CPU is wanted or it waits for a disk."""


class Ending:
    """Whether this process is to end: then it begins no further call, and nobody hears of the one that it was told in."""

    def __init__(self) -> None:
        """Nobody is served yet."""
        self.told = False
        self._owner: int | None = None
        self._descriptor = -1

    def serve(self, owner: int | None) -> None:
        """Work for a process; None where it is on another node, so that Ray alone tells of its end.

        For the main thread; before each pack, since a body may have put a handler of its own in place.
        """
        if signal.getsignal(signal.SIGTERM) != self._on_signal:
            signal.signal(signal.SIGTERM, self._on_signal)
        if owner == self._owner:
            return
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._owner, self._descriptor = owner, -1 if owner is None else descriptor_of(owner)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.told = True
        raise SystemExit(1)  # a body's `finally` runs, and one that waits is woken

    def heed(self, spent: float) -> None:
        """End this process if it is to; asked after each call, with the seconds that it took."""
        if self.told or (spent >= WORTH and self._descriptor >= 0 and has_ended(self._descriptor)):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def hold_children(pid: int) -> list[int]:
    """Stop everything that a process has started, so that it has no further effect and starts nothing; returns the processes."""
    found: list[int] = []
    fresh = children_of(pid)
    while fresh:
        _stop(fresh)  # parents first: one that waits for its child to begin does not stop while that is
        found += fresh
        fresh = [child for parent in fresh for child in children_of(parent)]
    return found


def end_tree(pid: int) -> None:
    """Kill a process with all that it started."""
    leading = leads(pid)
    _stop([pid])
    kill([pid, *hold_children(pid)])
    if leading:
        end_group(pid)


def leads(pid: int) -> bool:
    """Tell whether a process leads a group, as Ray's workers do; of one that is gone it is taken for granted."""
    try:
        return os.getpgid(pid) == pid
    except OSError:
        return True


def end_group(pid: int) -> None:
    """Kill what is left of the group that a process led: what it had started and what has lost its parent since."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def kill(processes: Iterable[int]) -> None:
    """Kill processes, as far as they are there and this one may."""
    _send(signal.SIGKILL, processes)


def _send(number: int, processes: Iterable[int]) -> None:
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):  # one that became another user's must not save the others
            os.kill(process, number)


def _stop(processes: list[int]) -> None:
    """Stop processes and wait until they are: a process that is told while it forks ends that first, and its child is there then."""
    _send(signal.SIGSTOP, processes)
    until = time.monotonic() + STOPPED
    for process in processes:
        while not _is_still(process) and time.monotonic() < until:
            time.sleep(0.0001)


def _is_still(pid: int) -> bool:
    """Tell whether no thread of a process runs any more."""
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/stat") as told:
                if told.read().rpartition(")")[2].split()[0] not in "TtZX":
                    return False
    except OSError:  # it is gone
        return True
    return True


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that still are its own."""
    return [child for children in children_by_thread(pid).values() for child in children]


def children_by_thread(pid: int, threads: Iterable[int] | None = None) -> dict[int, list[int]]:
    """Return the children of a process by thread, of some or of all; those of a thread that has ended are another's."""
    found: dict[int, list[int]] = {}
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task") if threads is None else threads:
            with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as listed:
                found[int(thread)] = [int(child) for child in listed.read().split()]
    return found


def group_of(pid: int) -> list[int]:
    """Return the other processes of the group that a process leads or led; none where it is in the group of another."""
    if not leads(pid):
        return []
    found: list[int] = []
    with suppress(OSError):
        for other in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            with suppress(OSError):
                if other != pid and os.getpgid(other) == pid:
                    found.append(other)
    return found


def orphans_of(pid: int) -> list[int]:
    """Return the processes of a group that are neither its leader, nor started by one that is there yet."""
    group = group_of(pid)
    return [other for other in group if _told(other, PARENT) not in {pid, *group}]


def is_at_work(pid: int) -> bool:
    """Tell whether a process is there; one that has ended and waits to be asked how is not."""
    try:
        with open(f"/proc/{pid}/stat") as told:
            return told.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def begun_at(pid: int) -> float:
    """Return when a process began, in seconds since the machine's start; 0 where it is gone."""
    return _told(pid, BEGUN) / os.sysconf("SC_CLK_TCK")


def _told(pid: int, field: int) -> int:
    """Return what the kernel tells of a process, by the number of the field behind its name."""
    try:
        with open(f"/proc/{pid}/stat") as told:
            return int(told.read().rpartition(")")[2].split()[field])
    except OSError:
        return 0


def end_with(owner: int) -> None:
    """End this process, with all that it started, as soon as another on this machine has ended, whatever it does just then."""
    descriptor = descriptor_of(owner)
    if descriptor >= 0:
        threading.Thread(target=_end_after, args=(descriptor,), name="gecko-owner", daemon=True).start()


def _end_after(descriptor: int) -> None:
    look = select.poll()
    look.register(descriptor, select.POLLIN)
    look.poll()
    kill(hold_children(os.getpid()))
    os._exit(1)


def has_ended(descriptor: int) -> bool:
    """Tell whether a process has ended."""
    look = select.poll()
    look.register(descriptor, select.POLLIN)
    return bool(look.poll(0))


def descriptor_of(pid: int) -> int:
    """Return what becomes readable when a process ends, -1 where the system has no such thing."""
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
    except OSError:
        return -1


ending = Ending()
