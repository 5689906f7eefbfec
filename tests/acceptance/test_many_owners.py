"""Ten owners of twenty runs that are killed and frozen at random: no run loses or repeats what was committed. Plain processes, no Ray."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from engine import Engine
from engine.store import open_log
from tests.acceptance import marks, records

pytestmark = [pytest.mark.slow, pytest.mark.anyio, pytest.mark.timeout(180)]

ROOT = Path(__file__).parent.parent.parent
OWNERS, RUNS, STEPS = 10, 20, 60
LEASE = 1.0
CHAOS = 15.0
"""Seconds that owners are killed and frozen for; then all are let go on."""
OWNER = """
import asyncio, random, sys
from engine import Context, Workflow
from engine.errors import GeckoError
from engine.local import LocalRun
from engine.runtime.control import Control
from engine.runtime.inline import InlineExecutor
from engine.runtime.session import Request, begin
from engine.store import open_log
from tests.acceptance import marks

async def step(given, ctx: Context):
    marks.leave("marks", ctx.step_id)
    await asyncio.sleep(0.1)
    ctx.state["steps"] = ctx.state.get("steps", 0) + 1
    return ctx.state["steps"]

flow = Workflow("many").add_node("n0", step).set_entry_point("n0")
for n in range(1, int(sys.argv[2])):
    flow.add_node(f"n{n}", step).add_edge(f"n{n - 1}", f"n{n}")

async def drive(log, session):
    request = Request(workflow="many", plan=flow.compiled(), session=session, patience=0.0)
    try:
        run = LocalRun(await begin(request, log, lambda: InlineExecutor(4), Control()), request, log)
        await run.wait()
        if run.error is not None:
            raise run.error
    except GeckoError as error:
        print(f"{session}: {error}", file=sys.stderr, flush=True)

async def main():
    log, sessions = open_log("runs"), [f"s{n}" for n in range(int(sys.argv[1]))]
    log.keep_lease(float(sys.argv[3]))
    while True:
        found = {run.key.session: run for run in await log.scan()}
        free = [s for s in sessions if s not in found or (found[s].owner is None and found[s].status == "running")]
        if not free and all(found[s].status == "completed" for s in sessions):
            return
        async with asyncio.TaskGroup() as group:
            for session in random.sample(free, min(4, len(free))):
                group.create_task(drive(log, session))
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


class Owners:
    """Processes that drive whatever run nobody drives."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.living = [self.start() for _ in range(OWNERS)]
        self.frozen: dict[subprocess.Popen[bytes], float] = {}
        self.killed = self.stopped = 0

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "owner.py", str(RUNS), str(STEPS), str(LEASE)]
        with (self.folder / "said").open("a") as said:
            return subprocess.Popen(command, cwd=self.folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=said)

    def kill(self, one: subprocess.Popen[bytes]) -> None:
        one.kill()
        one.wait()
        self.frozen.pop(one, None)
        self.living[self.living.index(one)] = self.start()
        self.killed += 1

    def freeze(self, one: subprocess.Popen[bytes], seconds: float) -> None:
        if one not in self.frozen and one.poll() is None:
            one.send_signal(signal.SIGSTOP)
            self.frozen[one] = time.monotonic() + seconds
            self.stopped += 1

    def wake(self, now: float) -> None:
        for one in [one for one, until in self.frozen.items() if until <= now]:
            del self.frozen[one]
            one.send_signal(signal.SIGCONT)

    def end(self) -> None:
        for one in self.living:
            one.kill()
            one.wait()


async def test_owners_that_are_killed_and_frozen_at_random_never_commit_twice(tmp_path: Path):
    seed = int(os.environ.get("SEED", random.randrange(1 << 32)))
    chance = random.Random(seed)
    print(f"\nseed {seed}")
    (tmp_path / "owner.py").write_text(OWNER)
    (tmp_path / "marks").mkdir()
    owners = Owners(tmp_path)
    try:
        await marks.until(lambda: len(marks.names(tmp_path / "marks")) > RUNS // 2, within=60)
        end = time.monotonic() + CHAOS
        while (now := time.monotonic()) < end and any(one.poll() is None for one in owners.living):
            one = chance.choice(owners.living)
            if chance.random() < 0.3:
                owners.kill(one)
            else:
                owners.freeze(one, chance.uniform(0.2, 3 * LEASE))
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            owners.wake(now)
        owners.wake(float("inf"))
        await marks.until(lambda: all(one.poll() is not None for one in owners.living), within=90)
    finally:
        owners.end()
    await check(tmp_path, seed)
    lost = sum("another owner drives" in line for line in (tmp_path / "said").read_text().splitlines())
    print(f"{owners.killed} kills, {owners.stopped} stops, {marks.again(tmp_path / 'marks')} steps again, {lost} claims lost")
    assert owners.killed
    assert owners.stopped


async def check(folder: Path, seed: int) -> None:
    """Assert that each run is one line of numbers with every success once, that it ended once, and that its state is what was committed."""
    engine = Engine(str(folder / "runs"))
    told = await records.events(engine)
    by_run = {run_id: [e for e in told if e.run_id == run_id] for run_id in {e.run_id for e in told}}
    assert len(by_run) == RUNS, seed
    for run_id, events in by_run.items():
        assert [event.seq for event in events] == list(range(1, len(events) + 1)), (seed, run_id)
        kinds = Counter(event.kind for event in events)
        assert (kinds["run_started"], kinds["run_completed"]) == (1, 1), (seed, run_id, kinds)
        succeeded = [event.step_id for event in events if event.kind == "step_succeeded"]
        assert sorted(succeeded) == sorted(f"{run_id}/n{n}/1" for n in range(STEPS)), (seed, run_id)
        assert (await engine.state(run_id))["steps"] == STEPS, (seed, run_id)
    assert all(run.owner is None and run.status == "completed" for run in await open_log(str(folder / "runs")).scan())
