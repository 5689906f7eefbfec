"""A team over two nodes of a cluster: members get what they ask for, and who loses on another node is stopped."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.acceptance.heads import RAY, clean, running_head

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SCRIPT = """
import asyncio, json, os, pathlib, subprocess, time
from engine import RACE, Context, Engine, Member, Team, Workflow
from tests.acceptance import marks

pathlib.Path("marks").mkdir()
place = str(pathlib.Path("marks").resolve())

def node():
    import ray
    return ray.get_runtime_context().get_node_id()

def on_gpu():
    return [os.environ["CUDA_VISIBLE_DEVICES"], node()]

async def far_away():
    return [os.environ.get("CUDA_VISIBLE_DEVICES", ""), node()]

def far_loser(ctx: Context):
    subprocess.Popen(["sleep", "600"])
    while True:
        marks.leave(place, ctx.step_id)
        time.sleep(0.002)

async def here(ctx: Context):
    await marks.until(lambda: marks.names(place), within=60)
    return "here"

async def main():
    gpus = Team([Member(on_gpu, num_gpus=1), Member(on_gpu, num_gpus=1), Member(far_away, resources={"far": 1})])
    flow = Workflow("nodes", executor="ray").add_node("gpus", gpus).set_entry_point("gpus")
    devices = [r["result"] for r in await flow.execute(session_id="a")]
    race = Workflow("race", executor="ray")
    race.add_node("race", Team([Member(far_loser, resources={"far": 1}), here], strategy=RACE)).set_entry_point("race")
    handle = await Engine().start(race, session_id="b")
    won = (await handle.wait())[0]["result"]
    (lost,) = [e async for e in handle.events() if e.kind == "member_lost"]
    late = marks.late(place, {lost.step_id: lost.at.timestamp()})
    print(json.dumps({"devices": devices, "won": won, "late": late, "loser": marks.processes(place)[-1]}))

asyncio.run(main())
"""


def test_members_get_gpus_and_nodes_and_a_loser_on_another_node_is_stopped(tmp_path: Path):
    (tmp_path / "team.py").write_text(SCRIPT)
    with running_head("token", "--include-dashboard=false", "--num-gpus", "2") as head:
        command = [RAY, "start", "--address", head["RAY_ADDRESS"], "--block", "--num-cpus", "1", "--resources", '{"far": 1}',
                   "--object-store-memory", "100000000"]  # fmt: skip
        environment = {**clean(), **head}
        other = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            assert any("Ray runtime started" in line for line in other.stdout or [])
            done = subprocess.run(
                [sys.executable, "team.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=100
            )
            assert done.returncode == 0, done.stderr[-3000:]
            told = json.loads(done.stdout.splitlines()[-1])
            (first, near), (second, near_too), (none, far) = told["devices"]
            assert {first, second} == {"0", "1"}
            assert (near == near_too, near != far, none) == (True, True, "")
            assert (told["won"], told["late"]) == ("here", {})
            assert not psutil.pid_exists(told["loser"])
            assert not [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "600"]]
        finally:
            for process in psutil.Process(other.pid).children(recursive=True):
                process.kill()
            other.kill()
            other.communicate()
