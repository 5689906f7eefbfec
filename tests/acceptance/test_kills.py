"""One run through twenty `kill -9` of its workers, coordinators and drivers: it ends as if nobody had touched it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from engine import Engine
from engine.core.events import Event
from tests.acceptance import marks, records
from tests.acceptance.heads import clean, running_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio, pytest.mark.timeout(600)]

KILLS = {"worker": 12, "coordinator": 4, "driver": 4}
SEED = 20
"""Of the order in which they are killed."""
PROGRESS = 8
"""Marks of something new, body or effect or condition, that a kill waits for after the one before; the run leaves 276 in all."""
WITHIN = 120
"""Seconds after which a run is taken for one that does not go on."""
SCRIPT = """
import asyncio, json, sys, time
from engine import Context, Retry, Workflow
from tests.acceptance import marks

NAP = float(sys.argv[2])

def called(name):
    marks.leave("marks", name)
    time.sleep(NAP)

def plan(ctx: Context):
    called(ctx.step_id)
    ctx.state["numbers"] = list(range(16))

def item(number, ctx: Context):
    called(ctx.step_id)
    ctx.state["sum"] = ctx.state.get("sum", 0) + number
    return number * number

def is_odd(odd, target):
    def asked(ctx: Context):
        called(f"{ctx.step_id} {target}")
        return sum(ctx.step_input) % 2 == odd
    return asked

def link(given, ctx: Context):
    called(ctx.step_id)
    ctx.state["links"] = [*ctx.state.get("links", []), ctx.node]
    return (sum(given) if isinstance(given, list) else given) + 1

async def pay(number, ctx: Context):
    marks.leave("marks", ctx.step_id)
    await asyncio.sleep(NAP)
    # a kill between intent and receipt leaves an effect in doubt, which fails the run, unless it says that it may be repeated
    receipt = await ctx.once("pay", lambda: called(f"{ctx.step_id} paid") or number, again=True)
    await asyncio.sleep(NAP)
    return receipt

flow = Workflow("kills", executor=sys.argv[1], storage="runs", reducers={"sum": "add"})
lost = Retry(attempts=30, backoff="fixed", delay=0)  # a step that says nothing of it fails with the third worker that it loses

def add(name, body, before, condition=None, **how):
    (flow.add_map if how else flow.add_node)(name, body, retry=lost, **how)
    flow.add_edge(before, name, condition)
    return name

flow.add_node("plan", plan, retry=lost).set_entry_point("plan")
last = "plan"
for n in range(5):
    items = last = add(f"items{n}", item, last, over="numbers")
    add(f"never{n}", link, items, is_odd(True, f"never{n}"))
    for m in range(5):
        last = add(f"link{n}{m}", link, last, None if m else is_odd(False, f"link{n}0"))
    last = add(f"pays{n}", pay, last, over="numbers", max_concurrency=3)

if __name__ == "__main__":
    print("answer", json.dumps(asyncio.run(flow.execute(session_id="s"))))
"""
DONE = {"step_succeeded": "", "once_done": " paid", "condition_decided": " "}
"""Events after which something is not done again, to what its mark's name adds to the step's id, before the target of a condition."""


def prepare(folder: Path) -> Path:
    """Make the folder of a driver."""
    (folder / "marks").mkdir(parents=True)
    (folder / "script.py").write_text(SCRIPT)
    return folder


def start(folder: Path, executor: str, nap: float, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start a driver, which goes on with what the one before left."""
    command = [sys.executable, "script.py", executor, str(nap)]
    with (folder / "said").open("a") as said:
        return subprocess.Popen(command, cwd=folder, env={**clean(), **environment}, stdout=said, stderr=said, text=True)


def answer(folder: Path) -> str:
    """Return what the last driver printed as the run's output."""
    return [line for line in (folder / "said").read_text().splitlines() if line.startswith("answer ")][-1]


def mark_of(event: Event) -> str:
    """Return the name of the mark that was left by doing what an event says is done."""
    return event.step_id + DONE[event.kind] + event.data.get("target", "")


async def at_work(engine: Engine, place: Path) -> int:
    """Return a worker in the middle of a pack: the process of the newest call whose step is not committed."""
    async with asyncio.timeout(WITHIN):
        while True:
            name, pid = marks.latest(place)
            told = [event.step_id for event in await records.events(engine) if event.kind == "step_succeeded"]
            if name.split(" ")[0] not in told and psutil.pid_exists(pid):
                return pid


def workers(head: dict[str, str]) -> list[str]:
    """Return the workers of a cluster that were given something, actors among them; spare ones that Ray keeps are its own affair."""
    found = [(p.info["environ"] or {}, " ".join(p.info["cmdline"] or [])) for p in psutil.process_iter(["environ", "cmdline"])]
    here = [title for environ, title in found if environ.get("RAY_TMPDIR") == head["RAY_TMPDIR"]]
    return [title for title in here if title.startswith("ray::") and title != "ray::IDLE"]


async def kill_all(folder: Path, head: dict[str, str], pids: set[int]) -> Counter[str]:
    """Drive the run to its end through all kills, each after the run has gone on; returns how many of each kind there were."""
    engine, place, kills = Engine(str(folder / "runs")), folder / "marks", Counter[str]()
    order = random.Random(SEED).sample(list(KILLS), counts=KILLS.values(), k=sum(KILLS.values()))
    driver, seen = start(folder, "ray", 0.03, head), 0
    try:
        for kind in order:
            await marks.until(lambda seen=seen, driver=driver: len(marks.names(place)) >= seen + PROGRESS or driver.poll() is not None,
                              within=WITHIN)  # fmt: skip
            assert driver.poll() is None, (kills, (folder / "said").read_text()[-3000:])
            pid = driver.pid
            if kind != "driver":
                pid = await (at_work(engine, place) if kind == "worker" else records.owner(engine))
            os.kill(pid, signal.SIGKILL)
            kills[kind] += 1
            seen = len(marks.names(place))
            pids |= {pid, driver.pid}
            if kind == "driver":
                driver.wait()
                driver = start(folder, "ray", 0.03, head)
        await marks.until(lambda: driver.poll() is not None, within=WITHIN)
        assert driver.returncode == 0, (folder / "said").read_text()[-3000:]
        return kills
    finally:
        driver.kill()
        driver.wait()


async def test_twenty_kills_of_workers_coordinators_and_drivers_leave_no_trace_in_what_a_run_did(tmp_path):
    calm, killed = prepare(tmp_path / "calm"), prepare(tmp_path / "killed")
    assert start(calm, "inline", 0, {}).wait(WITHIN) == 0, (calm / "said").read_text()
    place, pids = killed / "marks", set[int]()
    with running_head("token", "--include-dashboard=false") as head:
        kills = await kill_all(killed, head, pids)
        pids.update(marks.processes(place))
        with suppress(AssertionError):
            await marks.until(lambda: not workers(head) and not any(map(psutil.pid_exists, pids)))
        assert (workers(head), [pid for pid in pids if psutil.pid_exists(pid)]) == ([], [])
    assert kills == KILLS
    assert sum(kills.values()) >= 20
    assert min(kills.values()) >= 4

    as_was, as_is = Engine(str(calm / "runs")), Engine(str(killed / "runs"))
    assert answer(killed) == answer(calm)
    assert await as_is.state("kills.s.1") == await as_was.state("kills.s.1")
    expected, found = [[e for e in await records.events(engine) if e.kind in DONE] for engine in (as_was, as_is)]
    assert Counter(map(mark_of, found)) == Counter(set(map(mark_of, expected)))
    done = {mark_of(event): event.at.timestamp() for event in found}
    assert set(marks.names(calm / "marks")) == set(marks.names(place)) <= set(done)
    assert marks.late(place, done) == {}
    kinds = Counter(event.kind for event in await records.events(as_is))
    assert kinds["run_resumed"] == KILLS["coordinator"] + KILLS["driver"]
    assert kinds["step_retrying"] >= KILLS["worker"] // 2  # most of them were in the middle of a step
