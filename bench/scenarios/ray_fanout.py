"""ray-fanout: a thousand no-ops on Ray, as nodes and as the items of a map, committed, beside one bare Ray task for each."""

import os
import time
from functools import partial
from pathlib import Path

from bench.bodies import where, where_async
from bench.harness import Bar, Outcome, Scenario, alternate, ratio
from bench.profiles import by_time
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import layer
from engine import Workflow

COUNT = 1000
LEAST = 15


def check_places(setting: Setting, pids: list[int], what: str) -> None:
    """Check how many ran, and where: the outputs are process ids."""
    places = set(pids)
    setting.checks.that(len(pids) == COUNT, f"{COUNT:,} outputs of {what}", seen=len(pids))
    enough = len(places) >= min(2, setting.slots) and os.getpid() not in places
    setting.checks.that(enough, f"{what} ran in at least two worker processes, none of them this one", seen=sorted(places))


def flow_of(form: str) -> Workflow:
    """Return the workflow of one form."""
    if form == "map":
        return Workflow("bench-map").add_map("item", where).set_entry_point("item")
    return layer(where if form == "nodes" else where_async, COUNT)


def engine_run(setting: Setting, folder: Path, flow: Workflow, form: str) -> tuple[float, str]:
    """Run one form on Ray and check it; return the seconds and the run's id."""
    done = setting.run(timed(flow, list(range(COUNT)) if form == "map" else 0, storage=folder, executor="ray"))
    check_places(setting, list(done.output if form == "map" else done.output.values()), f"the {form}")
    check_committed(setting, folder, done.run_id, steps=COUNT)
    return done.seconds, done.run_id


def seconds_of(setting: Setting, folder: Path, flow: Workflow, form: str) -> float:
    """Run one form and return its seconds."""
    return engine_run(setting, folder, flow, form)[0]


def measure(setting: Setting) -> Outcome:
    """Run nodes, map, async nodes, and bare tasks in turn."""
    ray = setting.ray()
    task = ray.remote(max_retries=0)(where)

    def bare() -> float:
        begun = time.perf_counter()
        pids = ray.get([task.remote(0) for _ in range(COUNT)], timeout=60)
        seconds = time.perf_counter() - begun
        check_places(setting, pids, "the bare tasks")
        return seconds

    with setting.storage() as folder:
        contenders = {form: partial(seconds_of, setting, folder, flow_of(form), form) for form in ("nodes", "map", "async nodes")}
        series = alternate({**contenders, "bare tasks": bare}, rounds=setting.rounds)
    found = Outcome(series=[s.scaled(1e3, "ms") for s in series.values()])
    for form in contenders:
        found.figure(f"{form}, times faster", ratio(series["bare tasks"], series[form]), "times")
    return found


def profile(setting: Setting) -> str:
    """Say when the steps of warm runs started and ended, and where."""
    setting.ray()
    parts: list[str] = []
    with setting.storage() as folder:
        for form in ("nodes", "map"):
            flow = flow_of(form)
            engine_run(setting, folder, flow, form)
            seconds, run_id = engine_run(setting, folder, flow, form)
            events = check_committed(setting, folder, run_id, steps=COUNT)
            parts.append(f"{form}: {seconds * 1e3:.1f} ms\n{by_time(events)}")
    return "\n\n".join(parts)


SCENARIOS = [
    Scenario(
        name="ray-fanout", summary=f"{COUNT:,} no-op nodes in one layer on Ray, committed; the same as a map", measure=measure,
        profile=profile, ray=True,
        bars=(
            Bar(figure="nodes, times faster", unit="times", comparison="at least", limit=LEAST),
            Bar(figure="map, times faster", unit="times", comparison="at least", limit=LEAST),
        ),
        peers="bare tasks 0.73 to 0.90 s; a bare coordinator with two packs and a commit is 26 to 35 times faster",
    )
]  # fmt: skip
