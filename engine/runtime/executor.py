"""The port through which a driver has calls performed: in this process, on Ray, in a simulation. It decides nothing."""

from collections.abc import Sequence
from typing import Any, Protocol

from engine.core.run import Answer, Apply, Ask
from engine.core.state import Combine
from engine.runtime.step import Call, Moment, Outcome


class Executor(Protocol):
    """Performs calls somewhere. One for each run."""

    name: str
    keeps_copies: bool
    """Whether it keeps copies of the state elsewhere, and so wants to know what each layer changes."""
    ahead: bool
    """Whether it may have performed steps by now that it was not asked for."""
    patience: float
    """Seconds that stopping a call may take; 0: a body that does not listen is left behind at once."""

    async def one(self, call: Call, moment: Moment) -> Outcome | None:
        """Perform a single call; None where the run stops and the body had not begun."""
        ...

    def submit(self, calls: list[Call], moment: Moment, report: Any) -> None:
        """Start calls; `report(outcome)` is called on the event loop once for each that ends, never for one that was stopped."""
        ...

    def take(self, step_id: str) -> Outcome | None:
        """Return the plain answer of a step that was performed `ahead` of its driver; None for any other step."""
        ...

    async def finished(self, step_id: str) -> bool:
        """Tell whether a step has been performed ahead of its driver, which stops; one that has been begun so ends first."""
        ...

    def withdraw(self, calls: list[Call]) -> list[Call]:
        """Take back calls whose bodies have not begun, as a run that stops does; returns them, and reports nothing of them.

        Where it is known only later that a body has not begun, the driver's control is woken, and what is withdrawn again then comes back.
        """
        ...

    async def stop(self, calls: list[Call], grace: float) -> list[Call]:
        """Stop calls; return those whose bodies go on unattended."""
        ...

    async def ask(self, questions: Sequence[Ask | Combine | Apply], moment: Moment) -> list[Answer]:
        """Let user code answer."""
        ...

    async def close(self) -> None: ...
