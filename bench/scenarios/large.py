"""large: how time and memory grow with the number of nodes.

Each size runs in a process of its own, `python -m bench.scenarios.large COUNT`, so that its peak of memory is its own.
Half of the nodes are a chain, and its last one opens the other half as one layer, so that both depth and width grow.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.harness import Bar, DidNotRun, Outcome, Scenario, Series
from bench.profiles import by_function
from bench.setting import Setting

SMALL, LARGE = 10_000, 100_000
LONGEST = 300.0
"""Seconds after which a process is given up."""


def build(count: int) -> Any:
    """Return the workflow."""
    from bench.bodies import pass_on
    from engine import Workflow

    flow = Workflow("bench-large")
    half = count // 2
    for number in range(count):
        flow.add_node(f"n{number}", pass_on)
    for number in range(1, count):
        flow.add_edge(f"n{min(number, half) - 1}", f"n{number}")
    return flow.set_entry_point("n0")


async def perform(count: int) -> dict[str, float]:
    """Build, plan and run; then decide the same run by a bare loop."""
    from bench.bodies import pass_on
    from bench.runs import timed
    from bench.shapes import bare_loop

    begun = time.perf_counter()
    flow = build(count)
    built = time.perf_counter()
    flow.compiled()
    planned = time.perf_counter()
    done = await timed(flow, 1)
    if len(done.output) != count - count // 2 or set(done.output.values()) != {1}:
        raise DidNotRun(f"the last layer gave {len(done.output)} outputs, not {count - count // 2}")
    peak = peak_mib()
    bare, finished = await bare_loop(flow.compiled(), pass_on, 1)
    return {"build": built - begun, "plan": planned - built, "run": done.seconds, "bare": bare, "finished": finished, "peak_mib": peak}


def peak_mib() -> float:
    """Return the most memory that this process has had. `ru_maxrss` is inherited from the parent on Linux, so it is asked last."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def in_process(count: int) -> dict[str, float]:
    """Perform one size in a new process."""
    command = [sys.executable, "-m", "bench.scenarios.large", str(count)]
    root = Path(__file__).resolve().parent.parent.parent
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=LONGEST, check=False)
    if said.returncode:
        raise DidNotRun(f"{count:,} nodes ended with {said.returncode}: {said.stderr.strip()[-2000:]}")
    return json.loads(said.stdout)


def measure(setting: Setting) -> Outcome:
    """Run both sizes in turn."""
    rounds = [(in_process(SMALL), in_process(LARGE)) for _ in range(5)]
    for small, large in rounds:
        setting.checks.that((small["finished"], large["finished"]) == (SMALL, LARGE), "the bare loop finished every step of both sizes")
        setting.checks.that(large["run"] > small["run"], "the outputs of the last layer are all there, in processes of their own")

    def growth(*parts: str) -> float:
        return statistics.median(sum(large[p] for p in parts) / sum(small[p] for p in parts) for small, large in rounds)

    found = Outcome()
    found.figure("t(100,000) over t(10,000)", growth("plan", "run"), "times")
    found.figure("the same of the bare loop", growth("bare"), "times")
    found.figure("memory at 100,000", max(large["peak_mib"] for _, large in rounds), "MiB")
    for index, count in enumerate((SMALL, LARGE)):
        for part in ("build", "plan", "run", "bare"):
            values = tuple(pair[index][part] / count * 1e6 for pair in rounds)
            found.series.append(Series(label=f"{part}, {count:,}", unit="us a node", values=values))
    return found


def profile(setting: Setting) -> str:
    """Profile planning and running the larger size."""
    from bench.runs import timed

    flow = build(LARGE)
    return by_function(lambda: (flow.compiled(), setting.run(timed(flow, 1))))


SCENARIOS = [
    Scenario(
        name="large", summary="plan and run 10,000 and 100,000 nodes in-process", measure=measure, profile=profile,
        bars=(
            Bar(figure="t(100,000) over t(10,000)", unit="times", comparison="at most", limit=12),
            Bar(figure="memory at 100,000", unit="MiB", comparison="under", limit=1024),
        ),
    )
]  # fmt: skip

if __name__ == "__main__":
    print(json.dumps(asyncio.run(perform(int(sys.argv[1])))))
