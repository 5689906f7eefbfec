"""ray-sleepers: a thousand nodes that wait, as calls of models do, beside bare Ray tasks that each wait for their share at once."""

import os
import time
from pathlib import Path

from bench.bodies import wait, wait_many
from bench.harness import Bar, Outcome, Scenario, alternate
from bench.profiles import by_time
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import layer
from engine import Workflow

COUNT, SECONDS = 1000, 0.05
CLOCK = 2e-3
"""How much earlier a timer may fire: event loops in workers count in whole milliseconds, from the beginning of a turn."""


def engine_run(setting: Setting, folder: Path, flow: Workflow) -> tuple[float, str]:
    """Run the layer on Ray and check it; return the seconds and the run's id."""
    done = setting.run(timed(flow, SECONDS, storage=folder, executor="ray"))
    places = {pid for pid, _ in done.output.values()}
    gone = len(done.output) == COUNT and os.getpid() not in places
    setting.checks.that(gone, f"{COUNT:,} outputs, none from this process", seen=(len(done.output), places))
    shortest = min(waited for _, waited in done.output.values())
    setting.checks.that(shortest >= SECONDS - CLOCK, "every node waited for 50 ms by its own clock", seen=shortest)
    check_committed(setting, folder, done.run_id, steps=COUNT)
    return done.seconds, done.run_id


def measure(setting: Setting) -> Outcome:
    """Run the layer and the bare tasks in turn."""
    ray = setting.ray()
    task = ray.remote(max_retries=0)(wait_many)
    flow = layer(wait, COUNT)
    share = -(-COUNT // setting.slots)

    def bare() -> float:
        begun = time.perf_counter()
        answers = ray.get([task.remote(SECONDS, min(share, COUNT - first)) for first in range(0, COUNT, share)], timeout=60)
        seconds = time.perf_counter() - begun
        setting.checks.that(sum(map(len, answers)) == COUNT, f"{COUNT:,} waits in bare tasks")
        return seconds

    with setting.storage() as folder:
        contenders = {"engine": lambda: engine_run(setting, folder, flow)[0], "one bare task a slot": bare}
        series = alternate(contenders, rounds=setting.rounds)
    found = Outcome(series=[s.scaled(1e3, "ms") for s in series.values()])
    found.figure("the layer", series["engine"].median, "s")
    found.figure("one bare task a slot", series["one bare task a slot"].median, "s")
    return found


def profile(setting: Setting) -> str:
    """Say when the nodes of a warm run started and ended."""
    setting.ray()
    with setting.storage() as folder:
        flow = layer(wait, COUNT)
        engine_run(setting, folder, flow)
        seconds, run_id = engine_run(setting, folder, flow)
        return f"{seconds * 1e3:.1f} ms\n{by_time(check_committed(setting, folder, run_id, steps=COUNT))}"


SCENARIOS = [
    Scenario(
        name="ray-sleepers", summary=f"{COUNT:,} async nodes that wait 50 ms, on Ray, committed", measure=measure,
        profile=profile, ray=True,
        bars=(Bar(figure="the layer", unit="s", comparison="at most", limit=0.25),),
    )
]  # fmt: skip
