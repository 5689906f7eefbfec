"""Whether a process of this machine is gone: what a lease says only when it has run out.

A process id alone says little: another machine, container or boot has the same ones, and they are given out again. A mark names the
boot, the namespace of process ids and the moment when the process began; only where the first two are ours do we look at the third.
"""

import os
from pathlib import Path

_PROC = Path("/proc")


def mark_of(pid: int) -> str:
    """Return what tells a process from all others; empty where this system does not say."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')} {_begun(pid)}"
    except (OSError, ValueError, IndexError):
        return ""


def is_gone(pid: int, mark: str) -> bool:
    """Say whether the process of a mark is certainly gone; False wherever that cannot be seen from here."""
    mine = mark_of(os.getpid()).rpartition(" ")[0]
    place, _, begun = mark.rpartition(" ")
    if not place or place != mine:
        return False
    try:
        return _begun(pid) != begun
    except (FileNotFoundError, ProcessLookupError):
        return True
    except (OSError, ValueError, IndexError):
        return False


def _begun(pid: int) -> str:
    """When a process began, in ticks since the boot; a zombie, which does nothing any more, has another answer.

    /proc may hide other users' processes (hidepid), so that one that is not found there is asked for by a signal too.
    """
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except FileNotFoundError:
        try:
            os.kill(pid, 0)
        except PermissionError:
            pass
        raise ValueError("it is there, and hidden") from None
    state, *rest = stat.rpartition(")")[2].split()
    return "dead" if state in "ZX" else rest[18]
