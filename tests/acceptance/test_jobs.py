"""A workflow as a Ray job, and nodes that ask for what only a cluster has: graphics processors, memory, resources of its own."""

import json
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from engine import Engine
from tests.acceptance.heads import RAY, clean, free_port, running_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio, pytest.mark.timeout(300)]

FLOW = """
import os
from engine import Workflow
from beside import NAME

def devices(ctx):
    import ray
    return [os.environ.get("CUDA_VISIBLE_DEVICES"), ray.get_runtime_context().get_assigned_resources()]

flow = Workflow("wants", max_concurrency=1)
flow.add_node("plain", lambda: NAME)
flow.add_node("graphics", devices, num_gpus=1)
flow.add_node("much", devices, num_cpus=2, memory=50_000_000)
flow.add_node("probe", devices, num_cpus=0, resources={"probe": 0.5})
flow.add_node("all", lambda x: x, join="all")
flow.set_entry_point("plain", "graphics", "much", "probe")
for name in ("plain", "graphics", "much", "probe"):
    flow.add_edge(name, "all")

failing = Workflow("failing").add_node("a", lambda: 1 / 0).set_entry_point("a")
"""
LINES = {
    "well": "{run} flow.py:flow --session s --storage {runs} && {run} flow.py:flow --session s --storage {runs}",
    "ill": "{run} flow.py:failing --storage {runs} ; echo which ended with $? ; {run} flow.py:flow",
}


class Job(NamedTuple):
    """What is left of a job."""

    folder: Path
    output: str
    error: str
    status: int


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A head with a dashboard, which takes jobs, and with resources that it is only told of."""
    dashboard, agent = free_port(), free_port()
    options = ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)]
    with running_head("disabled", *options, "--num-gpus", "2", "--resources", '{"probe": 1}') as environment:
        wait_until_healthy(f"http://127.0.0.1:{agent}/api/local_raylet_healthz")
        yield {**environment, "JOBS": f"http://127.0.0.1:{dashboard}"}


def wait_until_healthy(url: str) -> None:
    """Wait for the agent that starts jobs, which comes some seconds after the head."""
    until = time.monotonic() + 60
    while True:
        try:
            assert urllib.request.urlopen(url, timeout=5).status == 200
            return
        except OSError:
            assert time.monotonic() < until, f"{url} does not answer"
            time.sleep(0.1)


@pytest.fixture(scope="module")
def jobs(head: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """One job that ends well and one that does not, at once: for much of its time a job waits until Ray looks at it again."""
    running: dict[str, tuple[Path, subprocess.Popen[str]]] = {}
    for name, line in LINES.items():
        folder = tmp_path_factory.mktemp(name)
        running[name] = folder, submit(head, folder, line)
    return {name: Job(folder, *job.communicate(timeout=200), job.returncode) for name, (folder, job) in running.items()}


def submit(head: dict[str, str], folder: Path, line: str) -> subprocess.Popen[str]:
    """Submit a job of a folder, which is a line for a shell."""
    (folder / "flow.py").write_text(FLOW)
    (folder / "beside.py").write_text("NAME = 'beside'\n")
    line = line.format(run=f"{shlex.quote(sys.executable)} -m cluster run", runs=shlex.quote(str(folder / "runs")))
    command = [RAY, "job", "submit", "--address", head["JOBS"], "--working-dir", ".", "--", "sh", "-c", line]
    environment = {**clean(), "RAY_AUTH_MODE": head["RAY_AUTH_MODE"]}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


async def test_a_job_runs_a_workflow_on_what_its_nodes_ask_for_and_gives_its_result_again(jobs):
    job = jobs["well"]
    assert job.status == 0, job.output + job.error
    told, again = [line for line in job.output.splitlines() if line.startswith("{")]
    answers = json.loads(told)
    assert answers["plain"] == "beside"
    assert answers["graphics"][0] in ("0", "1")
    assert answers["graphics"][1]["GPU"] == 1
    assert answers["much"][1]["CPU"] == 2
    assert answers["much"][1]["memory"] == 50_000_000
    assert answers["probe"][1] == {"probe": 0.5}
    assert [run.status for run in await Engine(job.folder / "runs").runs()] == ["completed"]
    assert told == again
    assert "this is its result; --new (of `run`) runs it again" in job.output + job.error


def test_a_job_fails_with_its_run_and_when_it_would_record_in_a_folder_that_goes_away(jobs):
    job = jobs["ill"]
    assert job.status != 0
    failed, refused = job.output.split("which ended with 1\n", 1)
    assert "step 'a', attempt 1: ZeroDivisionError" in failed
    assert "mend the cause, then go on with: python -m cluster run flow.py:failing --session failing-" in failed
    assert "pass --storage" in refused
