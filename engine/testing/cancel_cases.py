"""Bodies that cancel their own task, in the table of the conformance suite: they have failed, and nobody takes it for a stop."""

import asyncio
from typing import Any

from engine.core.context import Context
from engine.core.policy import Retry
from engine.core.team import Member
from engine.team import Team
from engine.testing.conformance import Case
from engine.workflow import Workflow


async def cancel_itself(given: Any) -> None:
    """Cancel the task that performs it, and wait."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(30)


async def cancel_once(given: Any, ctx: Context) -> Any:
    """Do so in the first attempt alone."""
    if ctx.attempt == 1:
        await cancel_itself(given)
    return given


async def later(given: Any) -> Any:
    """Return the input."""
    await asyncio.sleep(0)
    return given


def alone(**policy: Any) -> Workflow:
    """A node of its own."""
    return Workflow("alone").add_node("cancel", cancel_itself, **policy).set_entry_point("cancel")


def in_chain(body: Any, **policy: Any) -> Workflow:
    """The second of three."""
    flow = Workflow("in_chain").add_node("first", later).add_node("cancel", body, **policy).add_node("last", later)
    return flow.add_edge("first", "cancel").add_edge("cancel", "last").set_entry_point("first")


def beside() -> Workflow:
    """Beside another, whose end is kept."""
    return alone(on_error="skip").add_node("beside", later).set_entry_point("cancel", "beside")


def members() -> Workflow:
    """As members of a team, with a limit and without."""
    return Workflow("members").add_node("team", Team([cancel_itself, later, Member(cancel_itself, timeout=30)])).set_entry_point("team")


_LOST = {"result": None, "error": "CancelledError: cancelled by its own code", "is_success": False}
_ERROR = ("StepFailed", "CancelledError", "'cancel'", "attempt 1", "CancelledError: cancelled by its own code")

CANCEL_CASES: tuple[Case, ...] = (
    Case("own task cancelled", alone, 3, status="failed", error=_ERROR, kinds={"step_started": 1, "step_failed": 1, "step_stopped": 0}),
    Case("own task cancelled within a limit", lambda: alone(timeout=30), 3, status="failed", error=_ERROR, kinds={"step_failed": 1}),
    Case("own task cancelled in a chain", lambda: in_chain(cancel_itself), 3, status="failed", error=_ERROR, history={"first": 3},
         kinds={"step_started": 2, "step_failed": 1}),
    Case("own task cancelled and tried again", lambda: in_chain(cancel_once, retry=Retry(2, delay=0)), 3, 3,
         kinds={"step_retrying": 1, "step_succeeded": 3}),
    Case("own task cancelled beside another", beside, 3, 3, history={"beside": 3}, kinds={"step_failed": 1, "step_skipped": 1}),
    Case("members that cancel themselves", members, 3, [
        {"member_index": 0, **_LOST}, {"member_index": 1, "result": 3, "error": None, "is_success": True}, {"member_index": 2, **_LOST},
    ], kinds={"step_started": 4, "step_failed": 2, "step_stopped": 0}),
)  # fmt: skip
