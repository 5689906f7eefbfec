"""ray-chain: a chain of no-ops on Ray, in one worker, beside bare Ray tasks that are chained by reference."""

import os
import time
from functools import partial
from pathlib import Path

from bench.bodies import count_on, count_on_sync
from bench.harness import Bar, Outcome, Scenario, Series, alternate, ratio
from bench.profiles import by_time
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import chain
from engine import CheckpointStrategy, Workflow

COUNT = 500


def engine_run(setting: Setting, folder: Path, flow: Workflow) -> tuple[float, str]:
    """Run the chain on Ray and check it; return the seconds and the run's id."""
    done = setting.run(timed(flow, [0, 0], storage=folder, executor="ray"))
    setting.checks.that(done.output[0] == COUNT, f"each of {COUNT} nodes ran after the one before", seen=done.output)
    events = check_committed(setting, folder, done.run_id, steps=COUNT)
    pids = {event.data["output"][1] for event in events if event.kind == "step_succeeded"}
    setting.checks.that(os.getpid() not in pids, "no node ran in this process", seen=pids)
    if flow.checkpoint_strategy == CheckpointStrategy.ASYNC:
        setting.checks.that(len(pids) == 1, "all nodes ran in one worker", seen=pids)
    return done.seconds, done.run_id


def seconds_of(setting: Setting, folder: Path, flow: Workflow) -> float:
    """Run the chain and return its seconds."""
    return engine_run(setting, folder, flow)[0]


def measure(setting: Setting) -> Outcome:
    """Run `async` and the bare tasks in turn; `always`, which is only printed, a few times afterwards."""
    ray = setting.ray()
    task = ray.remote(max_retries=0)(count_on_sync)

    def bare() -> float:
        begun = time.perf_counter()
        value = [0, 0]
        for _ in range(COUNT):
            value = task.remote(value)
        answer = ray.get(value, timeout=60)
        seconds = time.perf_counter() - begun
        setting.checks.that(answer[0] == COUNT, f"each of {COUNT} bare tasks ran after the one before", seen=answer)
        return seconds

    with setting.storage() as folder:
        flows = {strategy: chain(count_on, COUNT, checkpoint_strategy=strategy) for strategy in ("async", "always")}
        contenders = {"async": partial(seconds_of, setting, folder, flows["async"]), "bare tasks": bare}
        series = alternate(contenders, rounds=setting.rounds)
        always = partial(seconds_of, setting, folder, flows["always"])
        first = always()
        values = tuple(always() for _ in range(setting.size(5, 2)))
        series["always"] = Series(label="always", unit="s", values=values, first=first)
    found = Outcome(series=[s.scaled(1e3, "ms") for s in series.values()])
    found.figure("async, times faster", ratio(series["bare tasks"], series["async"]), "times")
    found.figure("always, times faster", series["bare tasks"].median / series["always"].median, "times")
    for strategy in ("async", "always"):
        found.figure(f"{strategy}, a node", series[strategy].median / COUNT * 1e6, "us")
    return found


def profile(setting: Setting) -> str:
    """Say when the nodes of a warm run started and ended."""
    setting.ray()
    with setting.storage() as folder:
        flow = chain(count_on, COUNT, checkpoint_strategy="async")
        engine_run(setting, folder, flow)
        seconds, run_id = engine_run(setting, folder, flow)
        return f"async: {seconds * 1e3:.1f} ms\n{by_time(check_committed(setting, folder, run_id, steps=COUNT))}"


SCENARIOS = [
    Scenario(
        name="ray-chain", summary=f"{COUNT} no-op nodes in a chain in one worker, `async` commits; `always` beside", measure=measure,
        profile=profile, ray=True,
        bars=(Bar(figure="async, times faster", unit="times", comparison="at least", limit=25),),
        peers="bare tasks by reference 0.9 to 1.2 s; fused by hand 2.4 ms",
    )
]  # fmt: skip
