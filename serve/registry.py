"""The workflows that the operator registered: what requests may name, and nothing else. A name is looked up here, never imported."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from engine.core.registry import unknown
from engine.definition.target import load_targets
from engine.errors import ConfigurationError, DefinitionError, InvalidGraph
from engine.workflow import Workflow
from serve.errors import WorkflowNotFound
from serve.service import graph_of, problems_of

VERSION = "1.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """A workflow that requests may name."""

    flow: Workflow
    since: datetime
    """When the service was started with it."""
    version: str = VERSION
    type: str = "dag"

    @property
    def name(self) -> str:
        """The name, which is its id."""
        return self.flow.name

    def graph(self) -> dict[str, Any]:
        """Return the graph as plain data."""
        return graph_of(self.flow)


class Registry:
    """Workflows by name, in the order of their names."""

    def __init__(self, flows: Iterable[Workflow], *, since: datetime) -> None:
        """Take workflows in.

        Raises: ConfigurationError where two have one name; InvalidGraph for one that cannot run.
        """
        self._found: dict[str, Registered] = {}
        for flow in flows:
            known = self._found.get(flow.name)
            if known is not None and known.flow is not flow:
                text = f"two workflows are called {flow.name!r}, {known.flow.target} and {flow.target}: rename one, or register it alone"
                raise ConfigurationError(f"{text}, as module:name", where=flow.name)
            bad = [problem.text for problem in problems_of(flow) if not problem.warning]
            if bad:
                raise InvalidGraph(f"workflow {flow.name!r} ({flow.target}) cannot run: {'; '.join(bad)}", where=flow.name)
            self._found[flow.name] = Registered(flow=flow, since=since)

    def get(self, name: str) -> Registered:
        """Return a workflow. Raises: WorkflowNotFound."""
        found = self._found.get(name)
        if found is None:
            raise WorkflowNotFound(unknown("workflow", name[:200], self._found), where="workflow_id")
        return found

    def find(self, *, search: str = "", type: str | None = None, is_active: bool | None = None) -> list[Registered]:
        """Return the workflows that fit; all that are registered are active."""
        part = search.casefold()
        fitting = (self._found[name] for name in sorted(self._found) if part in name.casefold())
        return [found for found in fitting if type in (None, found.type) and is_active is not False]


def read_registry(targets: Iterable[str], *, since: datetime) -> Registry:
    """Import what the operator names and return its workflows.

    Raises: ConfigurationError, which names the target and says what is wrong with it.
    """
    flows: dict[int, Workflow] = {}
    for target in targets:
        try:
            found = load_targets(target)
        except DefinitionError as error:
            raise ConfigurationError(f"GECKO_MODULES names {target!r}, which cannot be registered: {error}", where=target) from error
        flows |= {id(flow): flow for flow in found}
    return Registry(flows.values(), since=since)
