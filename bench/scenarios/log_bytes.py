"""log-bytes: how many bytes a log takes for a list that grows by 4 KB a step, beside the bytes themselves."""

from collections import Counter
from pathlib import Path

from bench.bodies import add_4_kb
from bench.harness import Bar, Outcome, Scenario, Series
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import chain, size_of
from engine import Engine
from engine.store import open_log

ADDED = 4096


def measure(setting: Setting) -> Outcome:
    """Run the chain once with each strategy that follows the work: a size needs no median. The state is read back from the log alone."""
    count = setting.size(500, 200)
    found = Outcome()
    for strategy in ("always", "async"):
        with setting.storage() as folder:
            done = setting.run(timed(chain(add_4_kb, count, checkpoint_strategy=strategy), None, storage=folder))
            check_committed(setting, folder, done.run_id, steps=count)
            items = setting.run(Engine(folder).state(done.run_id))["items"]
            whole = len(items) == count == len(set(items)) and all(len(item) == ADDED for item in items)
            setting.checks.that(whole, f"the log gives back {count} different items of {ADDED} bytes", seen=len(items))
            size = size_of(folder)
        found.figure(f"over the bytes added, {strategy}", size / (count * ADDED), "times")
        found.figure(f"a step, {strategy}", done.seconds / count * 1e6, "us")
        found.series.append(Series(label=f"log, {strategy}", unit="bytes", values=(float(size),)))
    found.series.append(Series(label="the bytes themselves", unit="bytes", values=(float(count * ADDED),)))
    found.notes = {"steps": count}
    return found


async def by_kind(folder: Path, run_id: str) -> str:
    """Return how many bytes of values the events of each kind hold; the rest of a file is what the format adds."""
    engine = Engine(folder)
    key = await engine.find(run_id)
    sums: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for row in await open_log(folder).read(key):
        counts[row.kind] += 1
        for column in ("output", "diff", "info"):
            sums[f"{row.kind} {column}"] += len(getattr(row, column) or b"")
    lines = [f"{name:<28} {size:>10,} bytes" for name, size in sums.most_common() if size]
    return "\n".join([f"rows: {dict(counts)}", f"values together: {sums.total():,} bytes", *lines])


def profile(setting: Setting) -> str:
    """Say which columns of which events the bytes go to."""
    with setting.storage() as folder:
        done = setting.run(timed(chain(add_4_kb, 200), None, storage=folder))
        size = size_of(folder)
        return f"{size:,} bytes on disk for {200 * ADDED:,} added\n{setting.run(by_kind(folder, done.run_id))}"


SCENARIOS = [
    Scenario(
        name="log-bytes", summary="steps that each add 4 KB of random bytes to a list", measure=measure, profile=profile,
        bars=tuple(
            Bar(figure=f"over the bytes added, {strategy}", unit="times", comparison="at most", limit=1.3)
            for strategy in ("always", "async")
        ),
        peers="LangGraph writes 540 MB, its DeltaChannel 27 MB, for 2 MB",
    )
]  # fmt: skip
