"""durable-chain, durable-async: what a node on disk costs, beside a bare append and sync of as many bytes to the same disk."""

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from bench.bodies import pass_on
from bench.commits import after_pauses, by_stage
from bench.harness import Bar, Outcome, Scenario, alternate, ratio
from bench.profiles import by_function
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import bare_append, chain, size_of
from engine import CheckpointStrategy, Workflow

COUNT = 200


@contextmanager
def counted_syncs() -> Iterator[Counter[int]]:
    """Count the syncs of this process by thread while the block runs, whoever calls them."""
    counts: Counter[int] = Counter()
    places: list[tuple[Any, str]] = [(os, "fsync")]
    if sys.platform == "darwin":
        import fcntl

        places.append((fcntl, "fcntl"))
    else:
        places.append((os, "fdatasync"))

    def counting(call: Any, *arguments: Any) -> Any:
        counts[threading.get_ident()] += 1
        return call(*arguments)

    before = [getattr(module, name) for module, name in places]
    for (module, name), call in zip(places, before, strict=True):
        setattr(module, name, partial(counting, call))
    try:
        yield counts
    finally:
        for (module, name), call in zip(places, before, strict=True):
            setattr(module, name, call)


def run_once(setting: Setting, folder: Path, flow: Workflow) -> tuple[float, int]:
    """Run the chain; check the log and who synced; return the seconds and how many syncs there were."""
    with counted_syncs() as syncs:
        done = setting.run(timed(flow, 1, storage=folder))
    check_committed(setting, folder, done.run_id, steps=COUNT)
    here = syncs[threading.get_ident()]
    setting.checks.that(here == 0, "the event loop's thread never synced", seen=here)
    if flow.checkpoint_strategy == CheckpointStrategy.ALWAYS:
        setting.checks.that(syncs.total() >= COUNT, f"at least one sync for each of {COUNT} nodes", seen=syncs.total())
    return done.seconds, syncs.total()


def measure(setting: Setting, *, strategy: str) -> Outcome:
    """Run the chain and the bare append in turn."""
    counts: list[int] = []
    flow = chain(pass_on, COUNT, checkpoint_strategy=strategy)
    with setting.storage() as folder:
        run_once(setting, folder, flow)
        size = size_of(folder) // COUNT

        def engine() -> float:
            seconds, syncs = run_once(setting, folder, flow)
            counts.append(syncs)
            return seconds

        series = alternate({"engine": engine, "bare append": lambda: bare_append(folder / "bare", COUNT, size)}, rounds=setting.rounds)
    found = Outcome(series=[s.scaled(1e6 / COUNT, "us a node") for s in series.values()])
    found.figure("a node", series["engine"].median / COUNT * 1e6, "us a node")
    found.figure("bare append + fdatasync", series["bare append"].median / COUNT * 1e6, "us a node")
    found.figure("over the bare append", ratio(series["engine"], series["bare append"]), "times")
    found.notes = {"bytes a node": size, "syncs a run": sorted(counts)[len(counts) // 2], "nodes": COUNT}
    return found


def profile(setting: Setting, *, strategy: str) -> str:
    """Tell the stages of a commit, and profile the loop's thread; what the writer's thread does stands there as waiting in `select`."""
    flow = chain(pass_on, COUNT, checkpoint_strategy=strategy)
    with setting.storage() as folder:

        def work() -> None:
            for _ in range(5):
                setting.run(timed(flow, 1, storage=folder))

        if strategy != CheckpointStrategy.ALWAYS:
            return by_function(work)
        return "\n".join([by_stage(work), after_pauses(folder / "bare"), by_function(work)])


SCENARIOS = [
    Scenario(
        name="durable-chain", summary=f"{COUNT} async no-op nodes in a chain, each on disk before the next starts",
        measure=partial(measure, strategy="always"), profile=partial(profile, strategy="always"),
        bars=(Bar(figure="over the bare append", unit="times", comparison="at most", limit=2),),
        peers="LangGraph with SQLite 1.7 ms a node, DBOS 3.8, the original Gecko 4.4",
    ),
    Scenario(
        name="durable-async", summary=f"{COUNT} async no-op nodes in a chain, `async` commits",
        measure=partial(measure, strategy="async"), profile=partial(profile, strategy="async"),
        bars=(Bar(figure="a node", unit="us a node", comparison="at most", limit=60),),
    ),
]  # fmt: skip
