"""Says of a pack that waits for what no node of the cluster has, since Ray would wait without a word."""

import asyncio
import logging

from cluster.flight import Flight
from cluster.placing import demand_of, lack_of
from cluster.port import Remote
from engine.core.policy import Resources

logger = logging.getLogger("cluster.dispatch")

SCARCE = 1.0
"""Seconds after which it is looked up whether any node has what a pack asks for, where it has not come back."""


def watch_scarce(flight: Flight, resources: Resources, remote: Remote) -> None:
    """Look after a while whether any node has what a pack waits for."""
    asyncio.get_running_loop().call_later(SCARCE, _tell_scarce, flight, resources, remote)


def _tell_scarce(flight: Flight, resources: Resources, remote: Remote) -> None:
    """Say, once a run, that no node has what a pack waits for."""
    entry = next(iter(flight.entries.values()), None)
    if entry is None or flight.landed:
        return
    demand = demand_of(resources)
    if demand in entry.executor.demands:
        return
    entry.executor.demands.append(demand)
    lack = lack_of(demand, remote.totals())
    if lack is not None:
        owner, call = entry.moment.owner, entry.call
        told = {"run_id": owner.log_id, "node": call.node.name}
        logger.warning("node %r of run %r %s", call.node.name, owner.log_id, lack, extra=told)
        step = call.step_id.removeprefix(f"{owner.log_id}/")
        owner.ledger.show("progress", owner.path + call.node.name, step, {"done": None, "total": None, "note": lack})
