"""Gecko: a durable engine for workflows of functions, tools, agents and teams, in one process or on a Ray cluster.

The public names load on first use, so that `import engine` costs nothing that is not needed.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.core.context import Context
    from engine.core.context import Context as WorkflowContext
    from engine.core.events import Event
    from engine.core.graph import Problem
    from engine.core.history import NodeStatus
    from engine.core.history import Row as NodeExecution
    from engine.core.policy import Limits, Retry
    from engine.core.routing import Next
    from engine.core.team import ALL, BEST, HEDGE, QUORUM, RACE, VOTE, ExecutionStrategy, Member, MemberResult, Strategy
    from engine.engine import Engine
    from engine.handle import RunHandle
    from engine.runtime.bind import step
    from engine.store import create_storage
    from engine.team import Team
    from engine.workflow import CheckpointStrategy, Workflow

__version__ = "0.1.0"

_PLACES = {
    "ALL": "engine.core.team",
    "BEST": "engine.core.team",
    "CheckpointStrategy": "engine.workflow",
    "Context": "engine.core.context",
    "Engine": "engine.engine",
    "Event": "engine.core.events",
    "ExecutionStrategy": "engine.core.team",
    "HEDGE": "engine.core.team",
    "Limits": "engine.core.policy",
    "Member": "engine.core.team",
    "MemberResult": "engine.core.team",
    "Next": "engine.core.routing",
    "NodeExecution": "engine.core.history:Row",
    "NodeStatus": "engine.core.history",
    "Problem": "engine.core.graph",
    "QUORUM": "engine.core.team",
    "RACE": "engine.core.team",
    "Retry": "engine.core.policy",
    "RunHandle": "engine.handle",
    "Strategy": "engine.core.team",
    "Team": "engine.team",
    "VOTE": "engine.core.team",
    "Workflow": "engine.workflow",
    "WorkflowContext": "engine.core.context:Context",
    "create_storage": "engine.store",
    "step": "engine.runtime.bind",
}

__all__ = [
    "ALL",
    "BEST",
    "HEDGE",
    "QUORUM",
    "RACE",
    "VOTE",
    "CheckpointStrategy",
    "Context",
    "Engine",
    "Event",
    "ExecutionStrategy",
    "Limits",
    "Member",
    "MemberResult",
    "Next",
    "NodeExecution",
    "NodeStatus",
    "Problem",
    "Retry",
    "RunHandle",
    "Strategy",
    "Team",
    "Workflow",
    "WorkflowContext",
    "__version__",
    "create_storage",
    "step",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, _, attribute = _PLACES[name].partition(":")
    value = globals()[name] = getattr(importlib.import_module(module), attribute or name)
    return value


def __dir__() -> list[str]:
    return __all__
