"""What a run is asked to do while it goes on: pause, drain, cancel, or end at its deadline."""

import asyncio
from enum import IntEnum

GRACE = 5.0
"""Seconds that running steps have to end in, when a sibling failed or the run drains."""


class Halt(IntEnum):
    """Why a run stops before its end; a greater one goes before a lesser."""

    #: nothing was asked
    NONE = 0
    #: no further step starts, running ones finish
    PAUSE = 1
    #: the same, but those that take longer than the grace are stopped, and the run is left to be resumed
    DRAIN = 2
    #: the run's limit was reached: everything stops now
    TIMEOUT = 3
    #: everything stops now, for good
    CANCEL = 4

    @property
    def hard(self) -> bool:
        """Whether running steps are stopped at once."""
        return self >= Halt.TIMEOUT


class Control:
    """Requests to one run, seen by its driver between and during steps."""

    def __init__(self) -> None:
        """Nothing is asked yet."""
        self.halt = Halt.NONE
        self._waiters: set[asyncio.Future[None]] = set()

    def request(self, halt: Halt) -> None:
        """Ask for something; a lesser request than the present one changes nothing. Idempotent."""
        if halt > self.halt:
            self.halt = halt
            self.wake()

    def wake(self) -> None:
        """Let everybody who waits look again."""
        waiters, self._waiters = self._waiters, set()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def waiter(self) -> "asyncio.Future[None]":
        """Return a future that is done at the next change."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(future)
        future.add_done_callback(self._waiters.discard)
        return future
