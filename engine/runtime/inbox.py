"""What waits for one reader of a run's events: every durable one, and of the transient ones the newest.

The run puts events in from its event loop; the reader may be on another loop, in another thread, slow, or gone.
"""

import asyncio
import threading
from collections import deque
from contextlib import suppress

from engine.core.events import Event

RING = 10_000
"""How many transient events wait for a reader; an older one is dropped for each further one."""


class Inbox:
    """Events on their way to one reader, in order."""

    def __init__(self, *, transient: bool) -> None:
        """Wait on the running event loop; without `transient`, durable events alone come through."""
        self._loop = asyncio.get_running_loop()
        self._takes_transient = transient
        self._lock = threading.Lock()
        self._count = 0
        self._durable: deque[tuple[int, Event | None]] = deque()
        self._transient: deque[tuple[int, Event | None]] = deque(maxlen=RING)
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: Event | None) -> None:
        """Put an event in, None behind the last one; from any thread."""
        passing = event is not None and event.ordinal > 0
        if passing and not self._takes_transient:
            return
        with self._lock:
            self._count += 1
            (self._transient if passing else self._durable).append((self._count, event))
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            with suppress(RuntimeError):  # the reader's loop was closed: nobody reads any more
                self._loop.call_soon_threadsafe(_wake, waiter)

    async def get(self) -> Event | None:
        """Return the oldest event that is there, as soon as there is one."""
        while True:
            with self._lock:
                first = self._durable
                if self._transient and (not first or self._transient[0][0] < first[0][0]):
                    first = self._transient
                if first:
                    return first.popleft()[1]
                waiter = self._waiter = self._loop.create_future()
            await waiter


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
