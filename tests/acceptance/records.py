"""What the log of runs says, to a test that looks on from beside them."""

import asyncio

from engine import Engine
from engine.core.events import Event


async def owner(engine: Engine) -> int:
    """Return the process that drives the only run, as soon as there is one."""
    for _ in range(500):
        found = [summary.owner.pid for summary in await engine.runs() if summary.owner is not None]
        if found:
            return found[0]
        await asyncio.sleep(0.02)
    raise AssertionError("nobody drives a run")


async def events(engine: Engine) -> list[Event]:
    """Return the committed events of all runs."""
    ids = [".".join(map(str, summary.key)) for summary in await engine.runs()]
    return [event for run_id in ids async for event in engine.events(run_id)]
