"""A whole run around its driver: how it begins, how it is stopped, how it ends.

A `Conductor` writes down how the run began and ended, watches its limit, and stops it when it is asked to, also where a body does not
listen. Which step comes when is the driver's business.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from engine.checkpoint.codec import is_large
from engine.core.run import Status
from engine.core.state import opened
from engine.errors import LeaseLost, RunCancelled, RunPaused, RunTimedOut, StoreUnavailable, WorkflowError
from engine.runtime.bulk import encoded
from engine.runtime.control import Halt
from engine.runtime.loop import SMALL, Driver
from engine.runtime.step import STUBBORN

logger = logging.getLogger(__name__)


class Conductor:
    """A whole run from its first event to its last."""

    def __init__(
        self, driver: Driver, *, timeout: float | None = None, first: tuple[str, dict[str, Any], bytes | None] | None = None
    ) -> None:
        """Conduct a driver's run.

        Args:
            timeout: Limit of the run in seconds.
            first: Kind, data and input bytes of the event that begins it; None writes nothing.
        """
        self.driver = driver
        self.control = driver.control
        self.timeout = timeout
        self.status = Status.RUNNING
        self.error: BaseException | None = None
        self.gate: Callable[[], Awaitable[None]] | None = None
        """Awaited when the run's beginning is on storage and before anything of it starts; ends early when the run is asked to stop.

        A run that has one belongs to a cluster, so that its end is recorded under `manual` too.
        """
        self._first = first

    async def conduct(self) -> None:
        """Drive the run to its end and release it. What went wrong is in `error`; nothing is raised but for being cancelled oneself."""
        driver, ledger = self.driver, self.driver.ledger
        ledger.loop = asyncio.get_running_loop()
        ledger.on_failed = lambda: self.control.request(Halt.CANCEL)
        if self._first is not None:
            kind, data, given = self._first
            ledger.tell(kind, data=data, output=given, value=driver.run.input if kind == "run_started" else None)
            for node, step, attempt in driver.recorded.left_behind() if driver.recorded else ():
                driver.tell("member_lost", node, step, {"reason": "the process that performed it ended"}, attempt=attempt)
        if self.timeout is not None and self.timeout <= 0:
            self.control.request(Halt.TIMEOUT)
        inner = asyncio.get_running_loop().create_task(driver.drive() if self.gate is None else self._drive_behind(self.gate))
        try:
            await self._attend(inner)
            if driver.stops:
                await asyncio.wait(driver.stops, timeout=2 * STUBBORN + driver.executor.patience)
            await self._end(inner)
        except asyncio.CancelledError:
            self.control.request(Halt.DRAIN)
            inner.cancel()
            driver.live = False
            self._stopped(Status.PAUSED, RunPaused(f"run {driver.run.id!r} was interrupted; resume it to go on", run_id=driver.run.id))
            await self._close()
            raise
        except (LeaseLost, StoreUnavailable) as error:
            driver.live = False
            inner.cancel()
            self._stopped(Status.FAILED, error)
            ledger.fence()
        await self._close()

    async def _drive_behind(self, gate: Callable[[], Awaitable[None]]) -> None:
        await self.driver.ledger.checkpoint()
        await gate()
        await self.driver.drive()

    async def _attend(self, inner: "asyncio.Task[None]") -> None:
        """Wait for the driver; where it has to stop and a body does not listen, go on without it."""
        control, driver = self.control, self.driver
        loop = asyncio.get_running_loop()
        deadline = None if self.timeout is None else loop.time() + self.timeout
        until: float | None = None
        stubborn = 2 * STUBBORN + driver.executor.patience
        while not inner.done():
            limits = [t for t in (until, deadline if not control.halt.hard else None) if t is not None]
            waiter = control.waiter()
            await asyncio.wait(
                {inner, waiter}, timeout=max(0.0, min(limits) - loop.time()) if limits else None, return_when=asyncio.FIRST_COMPLETED
            )
            waiter.cancel()
            if deadline is not None and loop.time() >= deadline and not control.halt.hard:
                control.request(Halt.TIMEOUT)
            if control.halt.hard:
                driver.stop_direct(inner, "cancelled")
            if control.halt >= Halt.DRAIN and until is None:
                until = loop.time() + (stubborn if control.halt.hard else driver.grace + 2 * STUBBORN)
            elif control.halt.hard and until is not None:
                until = min(until, loop.time() + stubborn)
            if until is not None and loop.time() >= until and not inner.done():
                driver.stop_direct(inner, "grace over")
                if driver.executor.patience:
                    await asyncio.wait({inner}, timeout=stubborn)
                driver.live = False
                inner.cancel()
                return

    async def _end(self, inner: "asyncio.Task[None]") -> None:
        """Write down how it ended."""
        driver, run, halt, finished = self.driver, self.driver.run, self.control.halt, self.driver.ledger.finished
        steps = "1 finished step" if finished == 1 else f"{finished:,} finished steps"
        broken = inner.exception() if inner.done() and not inner.cancelled() else None
        if driver.ledger.failed is not None:
            raise driver.ledger.failed
        if broken is not None:
            run.error = broken
        if inner.done() and not inner.cancelled() and broken is None and run.status is Status.COMPLETED:
            await self._completed()
        elif run.error is not None:
            text = {"error": driver.error_data(run.error), "finished": finished}
            if isinstance(run.error, WorkflowError):
                text["error"]["node"] = run.error.node
            self._tell_end("run_failed", text, Status.FAILED, run.error)
        elif halt is Halt.CANCEL:
            error = RunCancelled(f"run {run.id!r} was cancelled after {steps}", run_id=run.id)
            self._tell_end("run_cancelled", {"finished": finished}, Status.CANCELLED, error)
        elif halt is Halt.TIMEOUT:
            text = f"run {run.id!r} timed out: its limit is {self.timeout:g} s, reached after {steps}"
            error = RunTimedOut(f"{text}; what is committed can be resumed", run_id=run.id)
            self._tell_end("run_timed_out", {"limit": self.timeout, "finished": finished}, Status.TIMED_OUT, error)
        else:
            error = RunPaused(f"run {run.id!r} was paused after {steps}; resume it to go on", run_id=run.id)
            data = {"finished": finished, "reason": "drained" if halt is Halt.DRAIN else "asked"}
            self._tell_end("run_paused", data, Status.PAUSED, error)
        asked = self.status is Status.CANCELLED or (self.status is Status.PAUSED and halt is Halt.PAUSE)
        # what was asked for is durable whatever the strategy; so is the end of what others would go on with
        if driver.ledger.strategy != "manual" or asked or self.gate is not None:
            await driver.ledger.checkpoint()

    async def _completed(self) -> None:
        driver, run = self.driver, self.driver.run
        data: dict[str, Any] = {"finished": driver.ledger.finished}
        output: bytes | None = None
        if driver.ledger.stores:
            told = driver.ending[0] if driver.ending is not None and driver.ending[1] is run.last else None
            if told is None or not is_large(run.last):  # a large one has more bytes than are kept twice
                output = await encoded(run.last, "the run's output")
            if told is not None and (output is None or len(output) > SMALL):
                data["output_of"], output = told, None
        driver.ledger.tell("run_completed", data=data, output=output, value=None if driver.ledger.quiet else opened(run.last))
        self.status = Status.COMPLETED

    def _tell_end(self, kind: str, data: dict[str, Any], status: Status, error: BaseException) -> None:
        self.driver.live = True
        self.driver.tell(kind, data=data)
        self.driver.live = False
        self._stopped(status, error)

    def _stopped(self, status: Status, error: BaseException) -> None:
        self.status, self.error = status, error
        if self.driver.run.status is Status.RUNNING:
            self.driver.run.status = status

    async def _close(self) -> None:
        try:
            await self.driver.ledger.close()
        except (LeaseLost, StoreUnavailable) as error:
            logger.warning("A run could not be released", extra={"run_id": self.driver.run.id, "error": str(error)})
        await self.driver.executor.close()
