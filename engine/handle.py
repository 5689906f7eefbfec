"""The handle of a run: what whoever started it waits for, looks at and stops it by.

It holds any `Remote`: a run that this process drives, or one that a coordinator drives elsewhere. It decides nothing about the run.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Protocol

from engine.checkpoint.codec import build
from engine.core.events import Event, check_seq
from engine.core.history import Row as HistoryRow
from engine.core.team import MemberResult
from engine.ports import RunKey
from engine.runtime.bulk import beside
from engine.runtime.control import Halt


class Remote(Protocol):
    """A run that is being driven, here or elsewhere, as its handle sees it."""

    run_id: str
    key: RunKey

    @property
    def lasting(self) -> bool:
        """Whether the run belongs to a cluster: it goes on when whoever waits for it leaves."""
        ...

    @property
    def status(self) -> str: ...
    async def wait(self) -> None:
        """Return when the run has stopped; never raises for how it ended."""
        ...

    @property
    def error(self) -> BaseException | None: ...
    @property
    def heavy(self) -> bool:
        """Whether to take the output takes so long that it is not done on an event loop."""
        ...

    def output(self) -> Any: ...
    def state(self) -> dict[Any, Any]: ...
    def history(self) -> dict[str, Any]: ...
    def rows(self) -> list[HistoryRow]: ...
    def results(self) -> list[MemberResult]:
        """Return how the members of a team ended that is performed alone."""
        ...

    def request(self, halt: Halt) -> None: ...
    def events(self, *, after: int, transient: bool) -> AsyncIterator[Event]: ...


class RunHandle:
    """A run: to wait for, to look at, to stop."""

    def __init__(self, remote: Remote, output_type: Any = None, publishing: "asyncio.Task[None] | None" = None) -> None:
        """Made by `Engine.start`; `publishing` hands the events to the workflow's bus."""
        self._remote = remote
        self._output_type = output_type
        self._publishing = publishing

    @property
    def run_id(self) -> str:
        """`workflow.session.n`."""
        return self._remote.run_id

    @property
    def status(self) -> str:
        """One of `pending running paused completed failed cancelled timed_out`."""
        return self._remote.status

    async def wait(self, *, unwanted: Halt = Halt.DRAIN) -> Any:
        """Return the run's output when it has ended.

        Cancelling the awaiting task drains the run: running steps end within the grace, the run is released, and can be resumed. `unwanted`
        says otherwise: of what nobody can resume everything stops at once. A submitted run goes on.

        Raises: StepFailed, StateConflict, StepLimitReached, RunTimedOut, RunCancelled, RunPaused, LeaseLost, StoreUnavailable.
        """
        try:
            await self._remote.wait()
            if self._publishing is not None:
                await asyncio.wait({self._publishing})
        except asyncio.CancelledError:
            await self._stop(unwanted)
            raise
        if self._remote.error is not None:
            raise self._remote.error
        return await beside(lambda: self.output) if self._remote.heavy else self.output

    async def drain(self) -> None:
        """Stop the run between steps and release it; returns when that is done. A run that has ended is left alone."""
        await self._stop(Halt.DRAIN)

    async def _stop(self, halt: Halt) -> None:
        if halt is Halt.DRAIN and self._remote.lasting:
            return
        self._remote.request(halt)
        with suppress(asyncio.CancelledError):
            await self._remote.wait()

    @property
    def output(self) -> Any:
        """The newest output."""
        value = self._remote.output()
        return value if self._output_type is None else build(self._output_type, value)

    @property
    def state(self) -> dict[Any, Any]:
        """The merged state, a copy."""
        return self._remote.state()

    @property
    def history(self) -> dict[str, Any]:
        """Node to output: the window over the newest entries."""
        return self._remote.history()

    @property
    def executions(self) -> list[HistoryRow]:
        """The newest 100 rows of what ran."""
        return self._remote.rows()

    def results(self) -> list[MemberResult]:
        """How the members of a team ended, where the run is that of a team alone; `Team.run` gives it."""
        return self._remote.results()

    def events(self, after: int = 0, *, transient: bool = False) -> AsyncIterator[Event]:
        """Return an async iterator over the events after a number, each once, in order, until the run stops.

        Raises: DefinitionError for an `after` that is no number from 0.
        """
        return self._remote.events(after=check_seq(after, "after"), transient=transient)

    async def pause(self) -> None:
        """Let no further step start; returns when the running ones have ended and the pause is on storage. Idempotent."""
        self._remote.request(Halt.PAUSE)
        await self._remote.wait()

    async def cancel(self) -> None:
        """Stop everything now, for good. Idempotent."""
        self._remote.request(Halt.CANCEL)
        await self._remote.wait()
