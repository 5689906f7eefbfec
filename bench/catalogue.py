"""Which scenarios there are, in the order in which they run: those on Ray last, so that no cluster runs beside the others."""

from bench.harness import Scenario
from bench.scenarios import (
    checkpoint,
    durable,
    hedge,
    history,
    imports,
    inline,
    large,
    log_bytes,
    log_media,
    panel,
    race,
    ray_chain,
    ray_fanout,
    ray_schedule,
    ray_sleepers,
    state,
    worker_memory,
)
from engine.core.registry import unknown
from engine.errors import UnknownName

_ALL = (
    *inline.SCENARIOS, *durable.SCENARIOS, *history.SCENARIOS, *checkpoint.SCENARIOS, *log_bytes.SCENARIOS, *log_media.SCENARIOS,
    *large.SCENARIOS, *imports.SCENARIOS, *ray_fanout.SCENARIOS, *ray_chain.SCENARIOS, *ray_schedule.SCENARIOS, *ray_sleepers.SCENARIOS,
    *state.SCENARIOS, *race.SCENARIOS, *hedge.SCENARIOS, *panel.SCENARIOS, *worker_memory.SCENARIOS,
)  # fmt: skip
SCENARIOS: dict[str, Scenario] = {scenario.name: scenario for scenario in _ALL}


def chosen(names: list[str]) -> list[Scenario]:
    """Return the scenarios of some names, or all, in their order. Raises: UnknownName."""
    if names == ["all"]:
        return list(SCENARIOS.values())
    for name in names:
        if name not in SCENARIOS:
            raise UnknownName(unknown("scenario", name, SCENARIOS))
    return [scenario for name, scenario in SCENARIOS.items() if name in names]
