"""What a node's policy means for where its calls are performed: how they want to be packed, what they ask of a cluster's nodes. Pure.

`gecko plan` and the dispatcher ask the same functions, so that they cannot disagree.
"""

from collections.abc import Iterable, Mapping

from cluster.packing import Mode
from engine.core.policy import Policy, Resources


def mode_of(policy: Policy, *, is_async: bool) -> Mode:
    """Return how the calls of a node want to be performed."""
    if policy.resources:
        return Mode.OWN
    return Mode.ASYNC if is_async or policy.executor == "inline" else Mode.SYNC


def is_member_of_lane(policy: Policy, *, is_async: bool) -> bool:
    """Tell whether a member of a team is performed beside others in an event loop; any other has a process for itself."""
    return not policy.resources and mode_of(policy, is_async=is_async) is Mode.ASYNC


def demand_of(resources: Resources) -> dict[str, float]:
    """Return what one call asks for, under Ray's names; a CPU unless it says how many."""
    asked = {"CPU": resources.num_cpus, "GPU": resources.num_gpus, "memory": resources.memory, **resources.custom}
    return {name: amount for name, amount in {**asked, "CPU": 1 if asked["CPU"] is None else asked["CPU"]}.items() if amount}


def demand_text(demand: Mapping[str, float]) -> str:
    """Return what is asked for in words: `8 GPU, 2 CPU`."""
    return ", ".join(_amount_text(name, amount) for name, amount in demand.items()) or "no resources"


def lack_of(demand: Mapping[str, float], nodes: Iterable[Mapping[str, float]]) -> str | None:
    """Say what of a demand no node of a cluster has, busy or idle; None where some node has all of it."""
    totals = list(nodes)
    if any(all(node.get(name, 0) >= amount for name, amount in demand.items()) for node in totals):
        return None
    most = {name: max((node.get(name, 0) for node in totals), default=0) for name in demand}
    missing = {name: amount for name, amount in demand.items() if most[name] < amount}
    if not missing:
        return f"asks for {demand_text(demand)}; no node has all of it; it waits until one joins"
    found = ", ".join(_number_text(name, most[name]) for name in missing)
    return f"asks for {demand_text(missing)}; no node has it (most: {found}); it waits until one joins"


def _amount_text(name: str, amount: float) -> str:
    return f"{_number_text(name, amount)} {'bytes of memory' if name == 'memory' else name}"


def _number_text(name: str, amount: float) -> str:
    return f"{amount:,.0f}" if name == "memory" else f"{amount:g}"
