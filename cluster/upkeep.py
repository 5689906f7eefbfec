"""How much of the cluster a coordinator uses: as it grows and shrinks, up to a ceiling, and what it wants of it ahead.

No pack waits behind a running one, so Ray's autoscaler never sees what waits here: it is told. It is told of the layers to come too, as
far as their width is certain: a node takes seconds to join, and a layer that is known now may be over before it has.
"""

import asyncio
import logging
from collections.abc import Iterable
from typing import Any, Protocol

from cluster.dispatch import Pool
from cluster.packing import Mode
from cluster.placing import demand_of, mode_of
from engine.core.plan import Plan
from engine.core.policy import check_count
from engine.core.team import TeamPlan

logger = logging.getLogger(__name__)

EVERY = 1.0
"""Seconds between two looks at the cluster."""
SAY_AGAIN = 10.0
"""Seconds after which what is wanted is said again, though it is the same."""


class Sized(Protocol):
    """Ray, as far as its size goes."""

    slots: int

    def measure(self, ceiling: int | None) -> bool: ...


class Wants(Protocol):
    """Whoever tells the autoscaler."""

    async def want(self, who: str, cpus: int, bundles: list[dict[str, float]]) -> None: ...


class Upkeep:
    """Looks at the cluster again and again, for one coordinator."""

    def __init__(self, name: str, remote: Sized, pool: Pool, wants: Wants) -> None:
        """Look at nothing yet; `drive` does."""
        self.ceiling: int | None = None
        """So many packs at once at most; None: as many as the cluster has CPUs."""
        self._name = name
        self._remote = remote
        self._pool = pool
        self._wants = wants
        self._said: tuple[Any, float] = (None, 0.0)

    async def drive(self) -> None:
        """Look, until cancelled; what goes wrong is told to the log of the program, and looked at again."""
        while True:
            try:
                await self.look()
            except Exception:
                logger.exception("The size of the cluster could not be looked at")
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Learn the cluster's size, and say what is wanted of it."""
        if await asyncio.to_thread(self._remote.measure, self.ceiling):
            self._pool.pump_soon()
        cpus = self._pool.statistics()["demand"]
        ahead, bundles = ahead_of(self._pool.standing())
        cpus = max(cpus, ahead) if self.ceiling is None else min(max(cpus, ahead), self.ceiling)
        now = asyncio.get_running_loop().time()
        if (cpus, bundles) != self._said[0] or now - self._said[1] > SAY_AGAIN:
            self._said = (cpus, bundles), now
            await self._wants.want(self._name, cpus, bundles)

    def scale(self, ceiling: int | None) -> None:
        """Use so many CPUs at most; what runs beyond them comes to its end. Raises: DefinitionError for less than one."""
        self.ceiling = None if ceiling is None else check_count("scale", ceiling, 1)


def ahead_of(standing: Iterable[tuple[Plan, int]]) -> tuple[int, list[dict[str, float]]]:
    """Return the CPUs and the bundles of resources that follow with certainty once what is under way has ended.

    Args:
        standing: The nodes that are under way, each with its plan.
    """
    cpus, bundles = 0, []
    seen: set[tuple[int, int]] = set()
    for plan, number in standing:
        for edge in plan.out[number]:
            target = plan.target[edge]
            node = plan.nodes[target]
            certain = not plan.back[edge] and edge not in plan.asked and (id(plan), target) not in seen
            if not certain or node.body is None or isinstance(node.body, (Plan, TeamPlan)):
                continue
            seen.add((id(plan), target))
            match mode_of(node.policy, is_async=node.body.is_async):
                case Mode.SYNC:
                    cpus += 1
                case Mode.OWN:
                    bundles.append(demand_of(node.policy.resources))
                case Mode.ASYNC:
                    pass
    return cpus, bundles
