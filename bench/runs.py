"""Starts a run, times it to its end, and reads back what was committed, for the scenarios that count it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.setting import Setting
from engine import Engine, Event, Workflow


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A run that has ended."""

    seconds: float
    output: Any
    run_id: str


async def timed(flow: Workflow, input: Any, *, storage: Path | None = None, executor: str = "inline") -> Timed:
    """Run a workflow as `execute` does; the seconds count from the call to the output."""
    begun = time.perf_counter()
    handle = await Engine(storage, executor).start(flow, input, watch=False)
    output = await handle.wait()
    return Timed(seconds=time.perf_counter() - begun, output=output, run_id=handle.run_id)


async def committed(storage: Path, run_id: str) -> list[Event]:
    """Return what the log holds of a run."""
    return [event async for event in Engine(storage).events(run_id)]


def check_committed(setting: Setting, storage: Path, run_id: str, *, steps: int) -> list[Event]:
    """Check that the log holds the success of every step (or item of a map), each once, and the end of the run; return its events."""
    events = setting.run(committed(storage, run_id))
    done = [e.step_id for e in events if e.kind == "step_succeeded" and "items" not in e.data]
    setting.checks.that(
        len(done) == steps == len(set(done)), f"the log holds {steps:,} finished steps, each once", seen=(len(done), len(set(done)))
    )
    setting.checks.that(events[-1].kind == "run_completed", "the log ends with the run's completion", seen=events[-1].kind)
    return events
