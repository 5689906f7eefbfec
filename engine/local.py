"""Runs that this process drives itself, as tasks of its event loop; whoever asks about them may be on another loop or thread.

It knows no storage by name, and nothing of Ray.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

from engine.checkpoint.codec import private
from engine.checkpoint.record import event_of
from engine.core.current import current
from engine.core.events import Event
from engine.core.history import Row as HistoryRow
from engine.core.run import Run
from engine.core.team import MemberResult
from engine.ports import Log
from engine.runtime.bulk import beside, is_long
from engine.runtime.conductor import Conductor
from engine.runtime.control import Control, Halt
from engine.runtime.inbox import Inbox
from engine.runtime.inline import InlineExecutor
from engine.runtime.ledger import Ledger
from engine.runtime.replay import replay, state_of
from engine.runtime.session import Begun, Request, begin

inside_step: ContextVar[bool] = ContextVar("inside_step", default=False)
"""True inside a body: a nested `execute` runs in this process unless told otherwise."""


class LocalRunner:
    """Drives runs in this process."""

    async def start(self, request: Request, log: Log | None) -> "LocalRun":
        """Begin a run as a task of the running event loop."""
        width = request.plan.options.max_concurrency
        begun = await begin(request, log, lambda: InlineExecutor(width), Control())
        return LocalRun(begun, request, log)

    async def halt(self, place: str, run_id: str, halt: Halt) -> bool:
        """Stop a run that this process drives."""
        live = driven.get((place, run_id))
        if live is None:
            return False
        live.request(halt)
        await live.wait()
        return True


class LocalRun:
    """A run that this process drives, or that had completed before."""

    lasting = False

    def __init__(self, begun: Begun, request: Request, log: Log | None) -> None:
        """Start driving."""
        self.run_id = begun.run_id
        self.key = begun.key
        self._begun = begun
        self._log = log
        self._conductor = begun.conductor
        self._replayed: Run | None = None
        self._seen: list[Event] = []
        self._readers: list[Callable[[Event | None], Any]] = []
        self._loop = asyncio.get_running_loop()
        self.task: asyncio.Task[None] | None = None
        if self._conductor is not None:
            ledger = self._conductor.driver.ledger
            if log is None and request.watch:
                ledger.listeners.append(self._keep)
            self.task = self._loop.create_task(self._drive(self._conductor))

    async def _drive(self, conductor: Conductor) -> None:
        inside_step.set(True)  # bodies run in this context and in copies of it
        current.set((conductor.driver.scene, None))
        place = None if self._log is None else self._log.url
        driven[place, self.run_id] = self
        try:
            await conductor.conduct()
        finally:
            if driven.get((place, self.run_id)) is self:
                del driven[place, self.run_id]
            for put in self._readers:
                put(None)

    def _keep(self, event: Event) -> None:
        if not event.ordinal:
            self._seen.append(event)

    @property
    def status(self) -> str:
        """The run's status."""
        if self._conductor is None:
            return self._begun.recorded.status
        return self._conductor.driver.run.status.value

    @property
    def seq(self) -> int:
        """The number of its newest event."""
        return self._begun.recorded.seq if self._conductor is None else self._conductor.driver.ledger.seq

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop, or has stopped and is only being released."""
        return self._conductor is not None and (self._conductor.control.halt is not Halt.NONE or self._conductor.error is not None)

    @property
    def error(self) -> BaseException | None:
        """What `wait` of a handle raises."""
        return None if self._conductor is None else self._conductor.error

    async def wait(self) -> None:
        """Wait for the end."""
        if self.task is None:
            return
        here = asyncio.get_running_loop()
        if here is self._loop:
            await asyncio.shield(self.task)
        elif not self._loop.is_closed():
            ended = asyncio.Event()
            self._loop.call_soon_threadsafe(self.task.add_done_callback, lambda _: here.call_soon_threadsafe(ended.set))
            await ended.wait()

    def run(self) -> Run:
        """Return the run; one that had completed is brought back from its log."""
        if self._conductor is not None:
            return self._conductor.driver.run
        if self._replayed is None:
            # by the definition that it ran with: the workflow of today may be another
            self._replayed, _ = replay(self._begun.recorded.rows, run_id=self.run_id)
        return self._replayed

    @property
    def heavy(self) -> bool:
        """Whether to take the output takes long: a run that had completed is brought back from its whole log."""
        return self._conductor is None or is_long(self._conductor.driver.run.last)

    def output(self) -> Any:
        """The newest output, private to the caller."""
        return private(self.run().last)

    def state(self) -> dict[Any, Any]:
        """The merged state, a copy."""
        return state_of(self.run())

    def history(self) -> dict[str, Any]:
        """The window over the newest entries, a copy."""
        return {node: private(value) for node, value in self.run().window().entries().items()}

    def rows(self) -> list[HistoryRow]:
        """The newest rows."""
        return self.run().rows()

    def results(self) -> list[MemberResult]:
        """How the members of a team ended that is performed alone."""
        return (self._conductor.driver.results or []) if self._conductor is not None else []

    def request(self, halt: Halt) -> None:
        """Ask the run to stop; from any thread."""
        if self._conductor is None:
            return
        if _is_here(self._loop):
            self._conductor.control.request(halt)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._conductor.control.request, halt)

    async def tell(self, kind: str, data: dict[str, Any]) -> None:
        """Write down an event of the run as a whole; returns when it is on storage."""
        if self._conductor is not None:
            ledger = self._conductor.driver.ledger
            ledger.tell(kind, data=data)
            await ledger.checkpoint()

    async def events(self, *, after: int, transient: bool) -> AsyncIterator[Event]:
        """Yield the events after a number, then those to come until the run stops."""
        inbox = Inbox(transient=transient)
        ledger: Ledger | None = None
        if self.task is not None and self._conductor is not None:
            ledger = self._conductor.driver.ledger
            ledger.listeners.append(inbox.put)
            self._readers.append(inbox.put)
        if self.task is None or self.task.done():
            inbox.put(None)
        try:
            for event in list(self._seen):
                if event.seq > after:
                    after = event.seq
                    yield await self._own(event)
            if self._log is not None:
                for row in await self._log.read(self.key, after=after):
                    after = row.seq
                    yield event_of(self.run_id, row)
            while (event := await inbox.get()) is not None:
                if event.ordinal:
                    yield event
                elif event.seq > after:
                    after = event.seq
                    yield await self._own(event)
        finally:
            if ledger is not None:
                with suppress(ValueError):
                    ledger.listeners.remove(inbox.put)
                self._readers.remove(inbox.put)

    async def _own(self, event: Event) -> Event:
        """Return an event as a reader may have it: those of a run without a log hold the very values that the run works with."""
        if self._log is not None:
            return event
        data = await beside(lambda: private(event.data)) if is_long(event.data) else private(event.data)
        return event._replace(data=data)


def _is_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:  # no loop runs in this thread: a signal handler, a script
        return False


driven: dict[tuple[str | None, str], LocalRun] = {}
"""The runs that this process drives, by storage and id."""
