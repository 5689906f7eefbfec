"""Calls that no executor performs as a whole: sub-workflows and teams, each driven in a task of its own beside the rest of its layer.

What is inside of them goes to the executor; here they are started, held to their limit, and stopped.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Protocol

from engine.errors import StepTimedOut
from engine.runtime.control import Control, Halt
from engine.runtime.step import STUBBORN, Call, Outcome

if TYPE_CHECKING:
    from engine.runtime.loop import Driver


class Child(Protocol):
    """What drives a call of several calls."""

    control: Control
    halted: bool
    """Whether it stopped before its end."""

    async def drive(self) -> None:
        """Go on to the end, or until asked to stop."""
        ...

    async def settle(self, outcome: Outcome) -> None:
        """Put what came of it into its call's outcome."""
        ...

    def stop_direct(self, inner: "asyncio.Task[None]", reason: str) -> None:
        """Cancel the child's own task where it waits for user code."""
        ...


class Nested:
    """The sub-workflows and teams that are under way side by side."""

    def __init__(self, driver: "Driver", control: Control, report: Callable[[Outcome], None], let_go: Callable[[Call], None]) -> None:
        """Report the outcome of each that ends; `let_go` of one that was stopped before."""
        self._driver = driver
        self._control = control
        self._report = report
        self._let_go = let_go
        self._children: dict[str, tuple[Child, asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        return len(self._children)

    def start(self, call: Call, child: Child) -> None:
        """Drive a child."""
        self._children[call.step_id] = child, self._driver.spawn(self._drive(call, child))

    def request(self, halt: Halt) -> None:
        """Ask all of them for something."""
        for child, _ in self._children.values():
            child.control.request(halt)

    async def stop(self, reason: str, only: Collection[str] | None = None) -> int:
        """Stop them, or those of some step ids; returns when they have stopped, or do not listen: how many do not."""
        stopping = [pair for step_id, pair in self._children.items() if only is None or step_id in only]
        for child, driving in stopping:
            child.control.request(Halt.CANCEL)
            child.stop_direct(driving, reason)
        if not stopping:
            return 0
        _, left = await asyncio.wait([driving for _, driving in stopping], timeout=2 * STUBBORN + self._driver.executor.patience)
        return len(left)

    async def _drive(self, call: Call, child: Child) -> None:
        clock = self._driver.ledger.clock
        outcome = Outcome(call, clock.now())
        begun = clock.monotonic()
        expiring = None if call.limit is None else self._expire(call, child)
        try:
            await child.drive()
            await child.settle(outcome)
        except asyncio.CancelledError:  # by `stop` or its limit, in the middle of a call of its own
            child.halted = True
        except Exception as error:  # noqa: BLE001 - also one of ours, which would leave the layer waiting
            outcome.error = error
        outcome.duration = clock.monotonic() - begun
        self._children.pop(call.step_id, None)
        if expiring is not None:
            expiring.cancel()
            if child.halted and child.control.halt is Halt.TIMEOUT:
                outcome.error = StepTimedOut(f"step {call.label!r} timed out after {call.limit:g} s", node=call.label)
        if child.halted and outcome.error is None:
            self._let_go(call)
        else:
            self._report(outcome)

    def _expire(self, call: Call, child: Child) -> asyncio.TimerHandle:
        """Let a child stop at its limit; a run's own limit never gets here, since it stops the whole layer."""
        _, driving = self._children[call.step_id]

        def expire() -> None:
            if not self._control.halt.hard:
                child.control.request(Halt.TIMEOUT)
                child.stop_direct(driving, "its limit")

        assert call.limit is not None
        if call.limit <= 0:
            child.control.request(Halt.TIMEOUT)
        return asyncio.get_running_loop().call_later(call.limit, expire)
