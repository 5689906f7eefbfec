"""Typed ids and their texts. A step's id is its idempotency key: the same pass of the same node keeps it through every retry and crash."""

from typing import NewType

DIGITS = 18
"""So many has the number of a run at most: whoever sends a longer one means no run."""

RunId = NewType("RunId", str)
StepId = NewType("StepId", str)


def make_run_id(workflow: str, session: str, n: int) -> RunId:
    """Return `workflow.session.n`, the id of the n-th run (from 1) of a session.

    A dot of the workflow's name is written `%2E`, so that no two runs share an id, and no two steps an idempotency key.
    """
    if "." in workflow or "%" in workflow:
        workflow = workflow.replace("%", "%25").replace(".", "%2E")
    return RunId(f"{workflow}.{session}.{n}")


def split_run_id(run_id: str) -> tuple[str, str, int] | None:
    """Return workflow, session and number of a run's id; None for what is no such id."""
    workflow, dot, rest = run_id.partition(".")
    session, second, n = rest.rpartition(".")
    if not (dot and second and workflow and session) or not (n.isascii() and n.isdecimal()) or n[0] == "0" or len(n) > DIGITS:
        return None
    return workflow.replace("%2E", ".").replace("%25", "%"), session, int(n)


def make_step_id(run: str, node: str, at: int, ordinal: int | None = None) -> StepId:
    """Return `run/node/pass`, or `run/node/pass/ordinal` for an item of a map (ordinals from 0)."""
    return StepId(f"{run}/{node}/{at}" if ordinal is None else f"{run}/{node}/{at}/{ordinal}")


def check_name(name: object, what: str) -> str | None:
    """Return what is wrong with the name of a workflow, a session or a node, or None.

    Names become parts of ids and of places on storage, so they hold no slash and no control characters.
    """
    if not isinstance(name, str):
        return f"{what} must be a text, not {type(name).__name__}"
    if not name or name in (".", ".."):
        return f"{what} {name!r} is empty" if not name else f"{what} {name!r} is no name"
    if bad := next((c for c in name if c in "/\\" or ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF), None):
        return f"{what} {name!r} must not contain {bad!r}"
    if len(name) > 512:
        return f"{what} {name[:40]!r}... is longer than 512 characters"
    return None
