"""inline-chain, inline-fanout: what a node costs in this process, without storage, beside a bare loop over `ready` and `apply`."""

from collections.abc import Callable
from functools import partial

from bench.bodies import pass_on, pass_on_sync
from bench.harness import Bar, Outcome, Scenario, alternate, ratio
from bench.profiles import by_function
from bench.runs import timed
from bench.setting import Setting
from bench.shapes import bare_loop, chain, layer
from engine import Workflow

BARS = (
    Bar(figure="async", unit="us a node", comparison="at most", limit=15),
    Bar(figure="sync", unit="us a node", comparison="at most", limit=150),
)
Shape = Callable[..., Workflow]


def measure(setting: Setting, *, shape: Shape, count: int) -> Outcome:
    """Run async and sync bodies and the bare loop in turn."""
    flows = {"async": shape(pass_on, count), "sync": shape(pass_on_sync, count)}

    def engine(kind: str) -> float:
        done = setting.run(timed(flows[kind], 1))
        expected = 1 if flows[kind].layers()[-1] == {f"n{count - 1}"} else {f"n{n}": 1 for n in range(count)}
        setting.checks.that(done.output == expected, f"every one of the {count:,} nodes handed on its input", seen=done.output)
        return done.seconds

    def bare() -> float:
        seconds, finished = setting.run(bare_loop(flows["async"].compiled(), pass_on, 1))
        setting.checks.that(finished == count, f"the bare loop finished {count:,} steps", seen=finished)
        return seconds

    contenders = {"async": partial(engine, "async"), "sync": partial(engine, "sync"), "bare loop": bare}
    series = alternate(contenders, rounds=setting.rounds, warm=2)
    found = Outcome(series=[s.scaled(1e6 / count, "us a node") for s in series.values()])
    for name in ("async", "sync", "bare loop"):
        found.figure(name, series[name].median / count * 1e6, "us a node")
    found.figure("async over the bare loop", ratio(series["async"], series["bare loop"]), "times")
    return found


def profile(setting: Setting, *, shape: Shape, count: int) -> str:
    """Profile the async form; the sync form's time goes to hops between threads, which a profile of one thread does not show."""
    flow = shape(pass_on, count)
    return by_function(lambda: [setting.run(timed(flow, 1)) for _ in range(5)])


SCENARIOS = [
    Scenario(
        name=name, summary=f"{count:,} no-op nodes {how}, in-process, no storage", bars=BARS,
        measure=partial(measure, shape=shape, count=count), profile=partial(profile, shape=shape, count=count),
        peers="LangGraph 230 to 330 us a node, the original Gecko 63 to 115, pydantic-graph 69; a bare loop 3.5 to 5.5",
    )
    for name, shape, count, how in (("inline-chain", chain, 500, "in a chain"), ("inline-fanout", layer, 1000, "in one layer"))
]  # fmt: skip
