"""checkpoint: what commits add to work that takes ten milliseconds a node, against the same work without storage.

Beside it stands what the same sleeps and a bare append and fdatasync after each of them take in one thread: on a machine that falls
asleep between, nothing that commits every step can add less.
"""

import time
from collections.abc import Callable
from functools import partial

from bench.bodies import wait_10_ms
from bench.commits import after_pauses, appending, by_stage
from bench.harness import Bar, Outcome, Scenario, alternate, ratio
from bench.profiles import by_function
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import chain, size_of


async def bare_sleeps(count: int, then: Callable[[], object] = lambda: None) -> float:
    """Sleep as the nodes do, and do something after each sleep; return the seconds."""
    begun = time.perf_counter()
    for _ in range(count):
        await wait_10_ms(None)
        then()
    return time.perf_counter() - begun


def measure(setting: Setting) -> Outcome:
    """Run the chain without storage and with both strategies, in turn."""
    count = 100
    with setting.storage() as folder:
        flows = {strategy: chain(wait_10_ms, count, checkpoint_strategy=strategy) for strategy in (None, "async", "always")}

        def engine(strategy: str | None) -> float:
            done = setting.run(timed(flows[strategy], 1, storage=folder if strategy else None))
            setting.checks.that(done.seconds >= count * 0.01, f"{count} nodes waited for 10 ms each", seen=done.seconds)
            setting.checks.that(done.output == 1, "the last node handed on its input", seen=done.output)
            if strategy:
                check_committed(setting, folder, done.run_id, steps=count)
            return done.seconds

        def bare_appends() -> float:
            with appending(folder / "bare", size) as append:
                return setting.run(bare_sleeps(count, append))

        engine("always")
        size = size_of(folder) // count
        contenders = {
            "no storage": partial(engine, None),
            "async": partial(engine, "async"),
            "always": partial(engine, "always"),
            "bare sleeps": lambda: setting.run(bare_sleeps(count)),
            "bare sleeps, append, fdatasync": bare_appends,
        }
        series = alternate(contenders, rounds=setting.rounds)
    found = Outcome(series=[s.scaled(1e3 / count, "ms a node") for s in series.values()])
    for strategy in ("async", "always"):
        found.figure(f"slower with {strategy}", (ratio(series[strategy], series["no storage"]) - 1) * 100, "%")
    bare = ratio(series["bare sleeps, append, fdatasync"], series["bare sleeps"])
    found.figure("slower with a bare append and fdatasync", (bare - 1) * 100, "%")
    found.notes = {"nodes": count, "bytes a node": size}
    return found


def profile(setting: Setting) -> str:
    """Tell the stages of a commit under `always`, and profile the loop's thread."""
    flow = chain(wait_10_ms, 40)
    with setting.storage() as folder:

        def work() -> None:
            setting.run(timed(flow, 1, storage=folder))

        return "\n".join([by_stage(work), after_pauses(folder / "bare"), by_function(work)])


SCENARIOS = [
    Scenario(
        name="checkpoint", summary="sleeping nodes of 10 ms in a chain, committed, against no storage", measure=measure, profile=profile,
        bars=(
            Bar(figure="slower with async", unit="%", comparison="under", limit=2),
            Bar(figure="slower with always", unit="%", comparison="under", limit=5),
        ),
    )
]  # fmt: skip
