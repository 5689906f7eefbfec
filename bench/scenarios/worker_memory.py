"""worker-memory: the memory that a worker holds alone after many steps without arrays, beside that of an idle Ray worker."""

import os
from collections import Counter
from pathlib import Path

from bench.bodies import where
from bench.harness import Bar, DidNotRun, Outcome, Scenario, Series
from bench.runs import timed
from bench.setting import Setting
from engine import Workflow

STEPS = 10_000


class Idle:
    """A Ray worker that does nothing."""

    def pid(self) -> int:
        """Return its process id."""
        return os.getpid()


def unique_mib(pid: int) -> float:
    """Return the memory that only this process holds."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:"))) / 1024


def has_arrow(pid: int) -> bool:
    """Tell whether a process has loaded Arrow's library."""
    return "libarrow" in Path(f"/proc/{pid}/maps").read_text()


def measure(setting: Setting) -> Outcome:
    """Run maps until a worker has performed enough steps; then look at its memory."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise DidNotRun("unique memory is read from /proc/<pid>/smaps_rollup, which this system does not have")
    ray = setting.ray()
    actor = ray.remote(num_cpus=0, max_restarts=0)(Idle).remote()
    idle = unique_mib(ray.get(actor.pid.remote(), timeout=60))
    flow = Workflow("bench-memory").add_map("item", where).set_entry_point("item")
    steps: Counter[int] = Counter()
    with setting.storage() as folder:
        for _ in range(4 * setting.slots):
            done = setting.run(timed(flow, list(range(STEPS)), storage=folder, executor="ray"))
            setting.checks.that(len(done.output) == STEPS, f"{STEPS:,} outputs of each map", seen=len(done.output))
            steps.update(done.output)
            if max(steps.values()) >= STEPS:
                break
    setting.checks.that(max(steps.values()) >= STEPS, f"a worker has performed at least {STEPS:,} steps", seen=dict(steps))
    setting.checks.that(os.getpid() not in steps, "no step ran in this process")
    busy = {pid: unique_mib(pid) for pid, count in steps.items() if count >= STEPS and Path(f"/proc/{pid}").exists()}
    setting.checks.that(bool(busy), "a worker that has performed enough steps still lives", seen=dict(steps))
    found = Outcome(series=[
        Series(label="busy worker", unit="MiB", values=tuple(busy.values())), Series(label="idle Ray worker", unit="MiB", values=(idle,)),
    ])  # fmt: skip
    found.figure("busy worker", max(busy.values()), "MiB")
    found.figure("idle Ray worker", idle, "MiB")
    found.notes = {
        "steps by worker": {str(pid): count for pid, count in steps.items()},
        "Arrow loaded": {str(pid): has_arrow(pid) for pid in busy},
    }
    ray.kill(actor)
    return found


def profile(setting: Setting) -> str:
    """Say which mapped files and areas a worker's unique memory lies in."""
    setting.ray()
    flow = Workflow("bench-memory").add_map("item", where).set_entry_point("item")
    pid = setting.run(timed(flow, list(range(STEPS)), executor="ray")).output[0]
    sums: Counter[str] = Counter()
    place = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            place = words[5] if len(words) > 5 else "anonymous"
        elif words[0] in ("Private_Clean:", "Private_Dirty:"):
            sums[place] += int(words[1])
    return "\n".join(f"{size / 1024:8.1f} MiB  {Path(name).name}" for name, size in sums.most_common(25))


SCENARIOS = [
    Scenario(
        name="worker-memory", summary=f"unique memory of a worker that has run {STEPS:,} steps without arrays", measure=measure,
        profile=profile, ray=True,
        bars=(Bar(figure="busy worker", unit="MiB", comparison="under", limit=100),),
        peers="an idle Ray worker 63 MiB; pyarrow adds 30",
    )
]  # fmt: skip
