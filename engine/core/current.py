"""Which run the present code belongs to, and which step of it: what a line of the log tells, and nothing is decided by."""

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, NamedTuple, Protocol


class Current(NamedTuple):
    """Where the present code is; empty texts where it is in no run, or in none of its steps."""

    run_id: str = ""
    session_id: str = ""
    node: str = ""
    step_id: str = ""


class _Scene(Protocol):
    @property
    def run_id(self) -> str: ...
    @property
    def session_id(self) -> str | None: ...


class _Step(Protocol):
    @property
    def node(self) -> Any: ...
    @property
    def step_id(self) -> str: ...


current: ContextVar[tuple[_Scene, _Step | None] | None] = ContextVar("gecko_current", default=None)
"""Run and step as they are at hand, since it is set twice for every step and read for few."""


def here() -> Current:
    """Return where the present code is."""
    found = current.get()
    if found is None:
        return Current()
    scene, step = found
    name, step_id = (step.node.name, step.step_id) if step is not None else ("", "")
    return Current(scene.run_id, scene.session_id or "", name, step_id)


def carried(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return the function bound to this moment's context variables, for another thread."""
    context = copy_context()
    return lambda: context.run(function)
