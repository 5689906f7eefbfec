"""ray-skewed, ray-uneven: sync sleeping nodes of unequal length on Ray, beside the best possible schedule and bare Ray tasks.

The schedule is computed from the lengths that were asked for: that a sleep takes longer than it should is counted as the engine's.
"""

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from bench.bodies import nap, nap_for, where
from bench.harness import Bar, Outcome, Scenario, Series, alternate
from bench.profiles import by_time
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import best_of_lanes, best_schedule, lanes, layer
from engine import Workflow

OVER = 7.0
"""Percent over the best schedule."""
WIDTH, LENGTH = 16, 8
"""Chains, and how long they are."""


def uneven(count: int, seed: int) -> list[float]:
    """Return lengths between 5 and 50 ms, the same every time."""
    chance = random.Random(seed)
    return [chance.uniform(0.005, 0.05) for _ in range(count)]


def skewed(form: str) -> tuple[Workflow, list[float]]:
    """Return a workflow and how long each node sleeps; the long one is declared last, where it hurts most."""
    if form == "1 s beside 999":
        return layer(where, 1000, last=nap), [0.0] * 999 + [1.0]
    seconds = uneven(200, 7) if form == "200 of 5 to 50 ms" else [0.2] * 16
    return layer(nap, len(seconds)), seconds


def engine_run(setting: Setting, flow: Workflow, seconds: Mapping[str, float]) -> tuple[float, list[Any]]:
    """Run on Ray, committed; check what ran; return the seconds and the events."""
    with setting.storage() as folder:
        done = setting.run(timed(flow, dict(seconds), storage=folder, executor="ray"))
        events = check_committed(setting, folder, done.run_id, steps=len(seconds))
    outputs = {e.node: e.data["output"] for e in events if e.kind == "step_succeeded"}
    setting.checks.that(outputs.keys() == seconds.keys(), f"all of {len(seconds)} nodes gave their process id", seen=len(outputs))
    said = {node: output if isinstance(output, tuple) else (output, 0.0) for node, output in outputs.items()}
    setting.checks.that(os.getpid() not in {pid for pid, _ in said.values()}, "no node ran in this process")
    early = [node for node, (_, slept) in said.items() if slept < seconds[node]]
    setting.checks.that(not early, "every node slept as long as it was told, by its own clock", seen=early)
    return done.seconds, events


def measure_skewed(setting: Setting) -> Outcome:
    """Run the three forms in turn, each against its schedule."""
    ray = setting.ray()
    task = ray.remote(max_retries=0)(nap_for)
    found = Outcome()
    flows: dict[str, Callable[[], float]] = {}
    best: dict[str, float] = {}
    bare: dict[str, Series] = {}
    for form in ("1 s beside 999", "200 of 5 to 50 ms", "16 of 200 ms"):
        flow, seconds = skewed(form)
        best[form] = best_schedule(seconds, setting.slots)
        named = {f"n{number}": length for number, length in enumerate(seconds)}
        flows[form] = lambda flow=flow, named=named: engine_run(setting, flow, named)[0]
        begun = time.perf_counter()
        pids = ray.get([task.remote(length) for length in seconds], timeout=60)
        bare[form] = Series(label=f"{form}, bare tasks", unit="s", values=(time.perf_counter() - begun,))
        setting.checks.that(len(pids) == len(seconds), f"{len(seconds)} bare tasks ended")
    series = alternate(flows, rounds=setting.rounds)
    for form, runs in series.items():
        found.figure(f"{form}: over the best schedule", (runs.median / best[form] - 1) * 100, "%")
        found.series += [runs, Series(label=f"{form}, best schedule", unit="s", values=(best[form],)), bare[form]]
    found.notes = {"slots": setting.slots}
    return found


def measure_uneven(setting: Setting) -> Outcome:
    """Run chains side by side; the barrier between layers has a price, which is printed."""
    ray = setting.ray()
    task = ray.remote(max_retries=0)(nap_for)
    lengths = [uneven(LENGTH, 100 + lane) for lane in range(WIDTH)]
    named = {f"{lane}-{number}": seconds for lane, all_of in enumerate(lengths) for number, seconds in enumerate(all_of)}
    best = best_of_lanes(lengths, setting.slots)
    barrier = sum(best_schedule(column, setting.slots) for column in zip(*lengths, strict=True))

    def bare() -> float:
        begun = time.perf_counter()
        ends: list[Any] = []
        for all_of in lengths:
            after: list[Any] = []
            for seconds in all_of:
                after = [task.remote(seconds, *after)]
            ends += after
        pids = ray.get(ends, timeout=60)
        setting.checks.that(len(pids) == WIDTH, f"{WIDTH} bare chains ended")
        return time.perf_counter() - begun

    flow = lanes(nap, WIDTH, LENGTH)
    series = alternate({"engine": lambda: engine_run(setting, flow, named)[0], "bare tasks": bare}, rounds=5)
    found = Outcome(series=list(series.values()))
    found.series += [
        Series(label=name, unit="s", values=(value,)) for name, value in (("best schedule", best), ("best with barriers", barrier))
    ]
    found.figure("over the best schedule", (series["engine"].median / best - 1) * 100, "%")
    found.figure("of which no schedule with barriers avoids", (barrier / best - 1) * 100, "%")
    found.figure("bare tasks over the best schedule", (series["bare tasks"].median / best - 1) * 100, "%")
    found.notes = {"slots": setting.slots, "nodes in a chain": LENGTH}
    return found


def profile_skewed(setting: Setting) -> str:
    """Say when steps started and ended, for each form."""
    setting.ray()
    parts: list[str] = []
    for form in ("1 s beside 999", "200 of 5 to 50 ms", "16 of 200 ms"):
        flow, seconds = skewed(form)
        took, events = engine_run(setting, flow, {f"n{number}": length for number, length in enumerate(seconds)})
        parts.append(f"{form}: {took * 1e3:.1f} ms, best {best_schedule(seconds, setting.slots) * 1e3:.1f}\n{by_time(events)}")
    return "\n\n".join(parts)


SCENARIOS = [
    Scenario(
        name="ray-skewed", summary="sync sleeping nodes of unequal length in one layer on Ray", measure=measure_skewed,
        profile=profile_skewed, ray=True,
        bars=tuple(
            Bar(figure=f"{form}: over the best schedule", unit="%", comparison="at most", limit=OVER)
            for form in ("1 s beside 999", "200 of 5 to 50 ms", "16 of 200 ms")
        ),
    ),
    Scenario(
        name="ray-uneven", summary=f"{WIDTH} chains of {LENGTH} sync sleeping nodes of 5 to 50 ms: the price of the layer's barrier",
        measure=measure_uneven, ray=True,
    ),
]  # fmt: skip
