"""state: whether layers on Ray cost more because much lies in the state that they do not touch.

The first layer writes the state, the others 1 KB each: two nodes of 512 bytes, so that layers are not fused. The timed runs have no
storage, since writing the first layer's 100 MB would go on beside the others; one run with a log says what is written. Time counts
from the end of the first layer to the end of the last, so that bringing the state to the workers is part of it.
"""

import os
import statistics
from pathlib import Path
from typing import Any

from bench.bodies import fill, write_512
from bench.harness import Bar, Outcome, Scenario, alternate, ratio
from bench.profiles import by_time
from bench.runs import check_committed, timed
from bench.setting import Setting
from bench.shapes import lanes, size_of
from engine import Engine, Event, Workflow

LAYERS, MEGABYTES = 100, 100


def flow_of() -> Workflow:
    """Return the first node and two lanes behind it."""
    flow = lanes(write_512, 2, LAYERS - 1)
    return flow.add_node("fill", fill).add_edge("fill", "0-0").add_edge("fill", "1-0").set_entry_point("fill")


async def watched(flow: Workflow, megabytes: int) -> tuple[list[Event], dict[Any, Any]]:
    """Run without storage; return the events and the state at the end."""
    handle = await Engine(None, "ray").start(flow, megabytes, watch=True)
    events = [event async for event in handle.events()]
    await handle.wait()
    return events, handle.state


def loopback_bytes() -> int:
    """Return the bytes that this machine has sent to itself over sockets; shared memory is no part of it."""
    try:
        for line in Path("/proc/net/dev").read_text().splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == "lo":
                return int(counts.split()[8])
    except OSError:
        pass
    return 0


def run_once(setting: Setting, flow: Workflow, megabytes: int, sent: dict[int, list[int]]) -> float:
    """Run once and check it; return the seconds of layers 2 to 100."""
    before = loopback_bytes()
    events, state = setting.run(watched(flow, megabytes))
    sent.setdefault(megabytes, []).append(loopback_bytes() - before)
    done = [e for e in events if e.kind == "step_succeeded"]
    setting.checks.that(len(done) == 1 + 2 * (LAYERS - 1), f"{LAYERS} layers ran", seen=len(done))
    pids = {e.data["output"] for e in done}
    setting.checks.that(os.getpid() not in pids, "no node ran in this process", seen=pids)
    whole = sum(len(value) for key, value in state.items() if str(key).startswith("filling")) == megabytes * 1_000_000
    setting.checks.that(whole and {"0", "1"} <= state.keys(), f"the state held {megabytes} MB and both columns at the end", seen=len(state))
    first = next(e for e in done if e.node == "fill")
    return (max(e.at for e in done) - first.at).total_seconds()


def written(setting: Setting, megabytes: int) -> tuple[int, str]:
    """Run with a log; return its bytes, and when things happened."""
    with setting.storage() as folder:
        done = setting.run(timed(flow_of(), megabytes, storage=folder, executor="ray"))
        events = check_committed(setting, folder, done.run_id, steps=1 + 2 * (LAYERS - 1))
        return size_of(folder), by_time(events)


def measure(setting: Setting) -> Outcome:
    """Run with a full and an empty state, in turn; then once each with a log."""
    setting.ray()
    sent: dict[int, list[int]] = {}
    flow = flow_of()
    contenders = {"100 MB": lambda: run_once(setting, flow, MEGABYTES, sent), "empty": lambda: run_once(setting, flow, 0, sent)}
    series = alternate(contenders, rounds=setting.rounds)
    found = Outcome(series=[s.scaled(1e3 / (LAYERS - 1), "ms a layer") for s in series.values()])
    found.figure("100 MB over empty", ratio(series["100 MB"], series["empty"]), "times")
    logged = {megabytes: written(setting, megabytes)[0] for megabytes in (MEGABYTES, 0)}
    found.notes = {
        "bytes written with 100 MB": logged[MEGABYTES],
        "bytes written with an empty state": logged[0],
        "bytes sent over loopback with 100 MB (all of this machine's)": statistics.median(sent[MEGABYTES]),
        "bytes sent over loopback with an empty state": statistics.median(sent[0]),
    }
    return found


def profile(setting: Setting) -> str:
    """Say when the layers of a run over 100 MB started and ended."""
    setting.ray()
    flow = flow_of()
    return "\n\n".join(f"{megabytes} MB\n{by_time(setting.run(watched(flow, megabytes))[0])}" for megabytes in (MEGABYTES, 0))


SCENARIOS = [
    Scenario(
        name="state", summary=f"{LAYERS} layers on Ray, {MEGABYTES} MB of state, 1 KB written a layer", measure=measure,
        profile=profile, ray=True,
        bars=(Bar(figure="100 MB over empty", unit="times", comparison="at most", limit=1.3),),
    )
]  # fmt: skip
