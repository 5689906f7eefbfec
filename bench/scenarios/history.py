"""history: whether a node costs more the longer the run, its history or its state already is.

The bodies note the time when they are called, so a node's cost is the distance between two of them; starting and ending a run is no
part of it.
"""

import statistics
import time
from functools import partial

from bench.harness import Bar, Outcome, Scenario, alternate, ratio
from bench.profiles import by_function
from bench.runs import timed
from bench.setting import Setting
from bench.shapes import chain
from engine import Context, Engine, Workflow

LENGTHS = (51, 201, 501)
KEYS = (10, 10_000)
BEHIND = 100
"""How many nodes follow the one that writes the state."""
SPAN = 100
"""Over how many nodes the cost at a length of history is taken."""


class Stamps:
    """Bodies that note when they are called."""

    def __init__(self) -> None:
        """Nothing is noted yet."""
        self.times: list[float] = []

    async def note(self, x: object, ctx: Context) -> object:
        """Note the time; look at the newest output and at one key, and write another."""
        self.times.append(time.perf_counter())
        ctx.state["round"] = len(self.times)
        return ctx.get_last_output()

    async def fill(self, x: int, ctx: Context) -> int:
        """Write so many keys."""
        for number in range(x):
            ctx.state[f"key-{number}"] = number
        return x

    def between(self, low: int, high: int) -> float:
        """Return the microseconds a node between two calls."""
        return (self.times[high] - self.times[low]) / (high - low) * 1e6


def with_keys(stamps: Stamps, count: int) -> Workflow:
    """Return a chain whose first node writes the state."""
    flow = chain(stamps.note, count)
    flow.add_node("fill", stamps.fill).add_edge("fill", "n0")
    return flow.set_entry_point("fill")


class Place:
    """Runs workflows at one storage, and tells what a node of them cost."""

    def __init__(self, setting: Setting, name: str, storage: str | None) -> None:
        """`name` is how the figures call it."""
        self.name = name
        self.stamps = Stamps()
        self.late: list[float] = []
        """By round: the cost of the last nodes of the longest run over that of its first."""
        self._setting = setting
        self._storage = storage

    def of_length(self, flow: Workflow, length: int) -> float:
        """Run a chain; return the microseconds a node."""
        self._run(flow, 1, length)
        if length == LENGTHS[-1]:
            self.late.append(self.stamps.between(length - 1 - SPAN, length - 1) / self.stamps.between(1, SPAN + 1))
        return self.stamps.between(1, length - 1)

    def of_state(self, flow: Workflow, keys: int) -> float:
        """Run the chain behind a state of so many keys; return the microseconds a node."""
        self._run(flow, keys, BEHIND)
        return self.stamps.between(1, BEHIND - 1)

    def _run(self, flow: Workflow, input: int, nodes: int) -> None:
        self.stamps.times.clear()

        async def once() -> None:
            handle = await Engine(self._storage, "inline").start(flow, input, watch=False)
            await handle.wait()

        self._setting.run(once())
        called = len(self.stamps.times)
        self._setting.checks.that(called == nodes, f"each of {nodes} nodes was called once", seen=called)


def measure(setting: Setting) -> Outcome:
    """Measure within one long run, between runs of three lengths, and between two sizes of state."""
    found = Outcome()
    rounds = setting.size(25, 9)
    for place in (Place(setting, "no storage", None), Place(setting, "log in memory", "memory://bench-history")):
        flows = {length: chain(place.stamps.note, length, max_history_retention=None) for length in LENGTHS}
        lengths = alternate(
            {f"{n} nodes, {place.name}": partial(place.of_length, flows[n], n) for n in LENGTHS}, rounds=rounds, unit="us a node"
        )
        states = {keys: with_keys(place.stamps, BEHIND) for keys in KEYS}
        sizes = alternate(
            {f"{k:,} keys, {place.name}": partial(place.of_state, states[k], k) for k in KEYS}, rounds=rounds, unit="us a node"
        )
        short, middle, long = lengths.values()
        small, large = sizes.values()
        found.figure(f"history 500 over 10, {place.name}", statistics.median(place.late[-rounds:]), "times")
        found.figure(f"201 nodes over 51, {place.name}", ratio(middle, short), "times")
        found.figure(f"501 nodes over 51, {place.name}", ratio(long, short), "times")
        found.figure(f"state 10,000 over 10, {place.name}", ratio(large, small), "times")
        found.series += [*lengths.values(), *sizes.values()]
    return found


def profile(setting: Setting) -> str:
    """Profile the longest chain, and the chain over the largest state."""
    stamps = Stamps()
    long, wide = chain(stamps.note, LENGTHS[-1], max_history_retention=None), with_keys(stamps, BEHIND)
    first = by_function(lambda: [setting.run(timed(long, 1)) for _ in range(5)])
    return f"{first}\n\n{by_function(lambda: [setting.run(timed(wide, KEYS[-1])) for _ in range(5)])}"


SCENARIOS = [
    Scenario(
        name="history", summary="a node's cost at history 10 and 500, at state 10 and 10,000 keys, in runs of 51, 201 and 501 nodes",
        measure=measure, profile=profile,
        bars=tuple(
            Bar(figure=f"{name}, {place}", unit="times", comparison="at most", limit=1.1)
            for place in ("no storage", "log in memory")
            for name in ("history 500 over 10", "501 nodes over 51", "201 nodes over 51", "state 10,000 over 10")
        ),
    )
]  # fmt: skip
