"""Where time goes: stored beside a shortfall, so that the report says why and not only that."""

import asyncio
import cProfile
import io
import pstats
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from engine import Event

LINES = 30


def by_function(work: Callable[[], object]) -> str:
    """Profile some work in this thread; return its functions by their own time. The profiler costs about as much as small functions do."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        work()
    finally:
        profile.disable()
    return _told(profile)


def in_coordinator(work: Callable[[], object]) -> str:
    """Do some work on Ray; return what the coordinator's event loop did meanwhile, by function. It has to have run something already."""
    import ray

    from cluster.runner import script

    perform: Any = script.get().__ray_call__
    ray.get(perform.remote(_begin), timeout=60)
    work()
    return ray.get(perform.remote(_end), timeout=60)


def _begin(coordinator: Any) -> None:
    coordinator.profile = cProfile.Profile()
    _in_loop(coordinator, coordinator.profile.enable)


def _end(coordinator: Any) -> str:
    _in_loop(coordinator, coordinator.profile.disable)
    return _told(coordinator.profile)


def _in_loop(coordinator: Any, call: Callable[[], object]) -> None:
    """Call something in the thread of the event loop: what Ray is given to call comes in another, and a profile is one thread's."""

    async def perform() -> None:
        call()

    loop = next(run.task.get_loop() for run in coordinator._runs.values() if run.task is not None)
    asyncio.run_coroutine_threadsafe(perform(), loop).result(60)


def _told(profile: cProfile.Profile) -> str:
    text = io.StringIO()
    pstats.Stats(profile, stream=text).strip_dirs().sort_stats("tottime").print_stats(LINES)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def by_time(events: Sequence[Event]) -> str:
    """Return when what happened in a run: milliseconds from its start, from the events' own times."""
    if not events:
        return "no events"
    begun = events[0].at

    def ms(event: Event) -> float:
        return (event.at - begun).total_seconds() * 1e3

    lines = [f"{kind:<20} {count:>7}" for kind, count in sorted(Counter(e.kind for e in events).items())]
    for kind in ("step_started", "step_succeeded"):
        times = [ms(e) for e in events if e.kind == kind]
        if times:
            tenths = [times[round((len(times) - 1) * n / 10)] for n in range(11)]
            lines.append(f"{kind}, by tenths, ms: " + " ".join(f"{t:.1f}" for t in tenths))
    succeeded = [e for e in events if e.kind == "step_succeeded"]
    workers = Counter(str(e.data.get("worker", "here")) for e in succeeded)
    lines.append("steps by worker: " + ", ".join(f"{worker}: {count}" for worker, count in workers.most_common(16)))
    lines.append(f"durations of steps together: {sum(float(e.data.get('duration') or 0) for e in succeeded) * 1e3:.1f} ms")
    lines.append(f"last event: {events[-1].kind} at {ms(events[-1]):.1f} ms")
    return "\n".join(lines)
