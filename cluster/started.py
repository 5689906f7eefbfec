"""What the calls of a lane have started beside themselves: tasks, threads, processes. Cancelling a call stops none of the last two.

Each call is known by a context variable, which travels into the tasks and functions that it starts. In a lane `Thread.start` says whose a
thread is, and `ThreadPoolExecutor.submit` whose a function, since a pool's threads belong to nobody. Python tells of each process before
it starts, and the kernel which thread started it, so those of two calls are told apart. What has lost its parent is taken for a call's
where no other call of the lane has started any process since that one began to. Nothing is learnt of what C code starts, nor of processes
of `multiprocessing` that are not forked, nor of an orphan that left its process group.
"""

import asyncio
import logging
import os
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from operator import itemgetter
from queue import Queue
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

from cluster.ending import begun_at, children_by_thread, is_at_work, orphans_of
from engine.runtime.inline import Idle

logger = logging.getLogger(__name__)

PROCESS = frozenset(["subprocess.Popen", "os.posix_spawn", "os.system"])
"""What Python's audit hooks hear before a process starts; of a fork those hear that are registered for it, uvloop's forks among them."""
OURS = ("gecko-helper", "gecko-log", "gecko-lease", "gecko-table", "gecko-watch", "gecko-lane")
"""Threads of the engine that outlive whoever needed them first."""
HARMLESS = (socket.getaddrinfo, socket.getnameinfo)
"""What may go on in a pool, since it has no effect: a name that is looked up may take half a minute."""
TICK = 0.03
"""Seconds by which the kernel's word of when a process began may be early."""


class Started:
    """What one call has started."""

    hit = False
    """Whether another call cancelled one of its tasks."""
    processes = 0
    """How many."""
    first = 0
    """Of its processes the first: its number among all of the lane."""
    since = 0.0
    """When that began, seconds since the machine's start."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.threads: list[threading.Thread] = []
        self.pooled: set[Future[Any]] = set()
        """Functions in pools of threads."""

    def add_thread(self, thread: threading.Thread) -> None:
        """Take note of a thread that is about to begin."""
        if len(self.threads) >= 64:
            self.threads = [each for each in self.threads if each.ident is None or each.is_alive()]
        self.threads.append(thread)

    def at_work(self) -> bool:
        """Tell whether something that the call has started goes on."""
        if self.pooled or (self.processes and family.has_living(self)):
            return True
        if not self.threads:
            return False
        living = [thread.ident for thread in self.threads if thread.is_alive()]
        if not living:
            return False
        frames = sys._current_frames()
        return any(ident in frames and not _is_idle(frames[ident]) for ident in living)


NOBODY = Started()
"""Stands for no call, where a thread is a call's and what it starts now is not."""
calling: ContextVar[Started | None] = ContextVar("gecko_calling", default=None)
"""The call of this lane whose code runs."""
_of_thread: "WeakKeyDictionary[threading.Thread, Started]" = WeakKeyDictionary()
"""Whose a thread is; one that was not given a context knows it in no other way."""


def current() -> Started | None:
    """Return the call whose code runs."""
    mine = calling.get()
    if mine is NOBODY:
        return None
    return mine or _of_thread.get(threading.current_thread())


class Owned(asyncio.Task[Any]):
    """A task of a lane's event loop, which knows whose it is."""

    owner: Started | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task. A body never cancels what is the lane's own; where it cancels another's, that one is known to be innocent."""
        who = calling.get()
        if who is not None and who is not self.owner:
            if self.owner is None:
                logger.warning(
                    "A body tried to cancel a task of the event loop that it is performed in; it is to cancel no tasks but its own"
                )
                return False
            self.owner.hit = True
        return super().cancel(msg)


def attend(loop: asyncio.AbstractEventLoop) -> None:
    """Learn from now on what calls of this loop start."""
    if loop.get_task_factory() is None:
        loop.set_task_factory(_task)
    if not _replaced:
        _replaced.update(start=threading.Thread.start, submit=ThreadPoolExecutor.submit, perform=Idle.perform)
        setattr(threading.Thread, "start", _start)  # noqa: B010 - which a type checker refuses otherwise
        setattr(ThreadPoolExecutor, "submit", _submit)  # noqa: B010
        setattr(Idle, "perform", _perform)  # noqa: B010
        sys.addaudithook(_hear)
        os.register_at_fork(before=lambda: family.expect(current()), after_in_child=family.forget)


_replaced: dict[str, Any] = {}
"""What is the standard library's own, once this process listens."""


def _task(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Owned:
    task = Owned(work, loop=loop, **options)
    task.owner = calling.get()
    return task


def _start(self: threading.Thread) -> None:
    """Start a thread, and keep it for the call that does."""
    mine = current()
    if mine is not None and self.name not in OURS:
        _of_thread[self] = mine
        mine.add_thread(self)
    _replaced["start"](self)


def _submit(self: ThreadPoolExecutor, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
    """Hand a function to a pool, and count it for the call that does."""
    mine = current()
    if mine is None:
        return _replaced["submit"](self, fn, *args, **kwargs)
    if fn in HARMLESS:
        return _beside_calls(lambda: _replaced["submit"](self, fn, *args, **kwargs))
    owner = mine

    def perform(*given: Any, **named: Any) -> Any:
        calling.set(owner)
        try:
            return fn(*given, **named)
        finally:
            calling.set(None)

    future = _beside_calls(lambda: _replaced["submit"](self, perform, *args, **kwargs))
    mine.pooled.add(future)
    future.add_done_callback(mine.pooled.discard)
    return future


def _perform(self: Idle, function: Any, loop: asyncio.AbstractEventLoop, future: "asyncio.Future[Any]") -> None:
    """Hand a sync body of a nested run to a thread that many runs share, and count it for the call that does."""
    mine = current()
    if mine is None:
        _replaced["perform"](self, function, loop, future)
        return
    at_work: Future[Any] = Future()
    owner, begun = mine, threading.Event()

    def perform() -> Any:
        begun.set()
        try:
            return function()
        finally:
            owner.pooled.discard(at_work)

    def dropped(settled: "asyncio.Future[Any]") -> None:
        if settled.cancelled() and not begun.is_set():  # no thread begins it any more
            owner.pooled.discard(at_work)

    mine.pooled.add(at_work)
    future.add_done_callback(dropped)
    _beside_calls(lambda: _replaced["perform"](self, perform, loop, future))


def _beside_calls(function: Any) -> Any:
    """Do something that starts threads which are nobody's."""
    token = calling.set(NOBODY)
    try:
        return function()
    finally:
        calling.reset(token)


def _hear(event: str, _: tuple[Any, ...]) -> None:
    if event in PROCESS:
        family.expect(current())


def _is_idle(frame: FrameType) -> bool:
    """Tell whether a thread waits for somebody to give it something to do."""
    behind = frame.f_back
    return frame.f_code is _WAIT and behind is not None and behind.f_code is _GET


_WAIT, _GET = threading.Condition.wait.__code__, Queue.get.__code__


class Family:
    """Which call has started which child of this process."""

    def __init__(self) -> None:
        """Know no child."""
        self.forget()

    def forget(self) -> None:
        """Begin anew, in a process that was forked: another thread may have held the lock just then."""
        self._lock = threading.Lock()
        self._starts: dict[int, tuple[float, Started | None]] = {}
        """By thread, as the kernel knows it: when a process was last started there, and by whom."""
        self._parent: dict[int, Started | None] = {}
        """By child."""
        self._count = 0

    def expect(self, who: Started | None) -> None:
        """Take note that this thread starts a process: those that it has by now are of whoever started one before."""
        with self._lock:
            self._learn()
            now = _uptime()
            self._starts[threading.get_native_id()] = now, who
            self._count += 1
            if who is not None:
                who.processes += 1
                if not who.first:
                    who.first, who.since = self._count, now

    def has_living(self, who: Started) -> bool:
        """Tell whether a process that a call has started does something yet."""
        with self._lock:
            self._learn()
            if any(parent is who and is_at_work(child) for child, parent in self._parent.items()):
                return True
            alone = self._count - who.first + 1 == who.processes
            return alone and any(is_at_work(pid) and begun_at(pid) >= who.since - TICK for pid in orphans_of(os.getpid()))

    def _learn(self) -> None:
        """Learn of all children whose they are, and forget what has ended."""
        found = children_by_thread(os.getpid())
        ended = [start for thread, start in self._starts.items() if thread not in found]  # another thread has their children now
        parents: dict[int, Started | None] = {}
        for thread, children in found.items():
            for child in children:
                if child in self._parent:
                    parents[child] = self._parent[child]
                else:
                    mayhap = [*ended, self._starts[thread]] if thread in self._starts else ended
                    parents[child] = _last_before(begun_at(child) + TICK, mayhap)
        self._parent = parents
        self._starts = {thread: start for thread, start in self._starts.items() if thread in found}


def _last_before(at: float, starts: list[tuple[float, Started | None]]) -> Started | None:
    """Return who was the last to start something before a moment."""
    before = [start for start in starts if start[0] <= at]
    return max(before, key=itemgetter(0))[1] if before else None


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else 0.0


family = Family()
