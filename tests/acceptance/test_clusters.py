"""Which cluster a script uses, with and without tokens, and that nothing of it stays behind."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.acceptance import marks
from tests.acceptance.heads import clean, running_head

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio]

SCRIPT = """
import asyncio, json, os, pathlib
from engine import Workflow

def where():
    import ray
    return [ray.get_runtime_context().gcs_address, os.getpid()]

flow = Workflow("where", executor="ray").add_node("where", where).set_entry_point("where")

async def twice():
    return await asyncio.gather(flow.execute(), flow.execute())
"""
PLAIN = (
    SCRIPT
    + """
first, second = asyncio.run(twice()), asyncio.run(twice())
from ray._raylet import AuthenticationMode, get_authentication_mode
print(json.dumps({
    "same": first[0][0] == second[1][0], "port": first[0][0].rpartition(":")[2], "worker": second[0][1],
    "mode": os.environ["RAY_AUTH_MODE"], "token": get_authentication_mode() == AuthenticationMode.TOKEN,
    "left": (pathlib.Path.home() / ".ray" / "auth_token").exists(),
}))
"""
)
CONNECTED = (
    """
import os, ray
ray.init(address=os.environ.pop("CLUSTER"), logging_level="ERROR")
"""
    + PLAIN
)
IMPORTED = "import ray\n" + PLAIN
BOTH = """
import asyncio
from engine import Workflow
import beside
flow = Workflow("two", executor="ray").add_map("m", lambda n: [n, beside.NAME]).set_entry_point("m")
print({name for _, name in asyncio.run(flow.execute(list(range(100))))})
"""


def run(folder: Path, text: str, **environment: str) -> dict[str, Any]:
    """Return what a script says of the cluster that it used."""
    (folder / "where.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "where.py"], cwd=folder, env={**clean(), **environment}, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])  # Ray may print lines of its own before, of workers that other tests ended too


def started(mode: str) -> Iterator[dict[str, str]]:
    """A cluster of one CPU, so that a script starts few processes on it; gives what a driver's environment needs."""
    with running_head(mode, "--include-dashboard=false", "--num-cpus", "1") as environment:
        yield environment


@pytest.fixture(scope="module")
def asking() -> Iterator[dict[str, str]]:
    """A cluster that asks for a token."""
    yield from started("token")


@pytest.fixture(scope="module")
def trusting() -> Iterator[dict[str, str]]:
    """A cluster that asks nothing."""
    yield from started("disabled")


@pytest.fixture(params=["asking", "trusting"])
def head(request: pytest.FixtureRequest) -> dict[str, str]:
    """Each of the two."""
    return request.getfixturevalue(request.param)


def port(head: dict[str, str]) -> str:
    return head["RAY_ADDRESS"].rpartition(":")[2]


async def test_a_script_uses_the_cluster_that_it_is_told_of(head, tmp_path):
    said = run(tmp_path, PLAIN, **head)
    assert (said["same"], said["port"], said["mode"]) == (True, port(head), head["RAY_AUTH_MODE"])
    await marks.until(lambda: not psutil.pid_exists(said["worker"]))


def test_a_script_uses_the_cluster_that_it_is_connected_to(asking, tmp_path):
    told = {name: asking[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    said = run(tmp_path, CONNECTED, CLUSTER=asking["RAY_ADDRESS"], **told)
    assert (said["same"], said["port"], said["mode"]) == (True, port(asking), "token")


def test_a_script_finds_the_cluster_that_was_started_on_its_machine_and_whether_it_asks_for_a_token(head, tmp_path):
    told = {name: value for name, value in head.items() if name not in ("RAY_ADDRESS", "RAY_AUTH_MODE")}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0" * 64)  # any plain ray.init() leaves one
    said = run(tmp_path, IMPORTED, HOME=str(tmp_path), **told)
    mode = head["RAY_AUTH_MODE"]
    assert (said["port"], said["mode"], said["token"]) == (port(head), mode, mode == "token")


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({}, "asks for a token: set RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "does not take this token"),
        ({"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_MODE is 'disabled': set it to 'token'"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_one_line_that_says_what_to_set(asking, environment, told, tmp_path):
    (tmp_path / "where.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "cluster", "run", "where.py:flow", "--storage", str(tmp_path)]
    environment = {**clean(), "HOME": str(tmp_path), "RAY_ADDRESS": asking["RAY_ADDRESS"], **environment}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, [line for line in done.stderr.splitlines() if told in line][:1]) == (3, done.stderr.splitlines()[-1:])


async def test_a_script_without_a_cluster_starts_one_that_ends_with_it_and_leaves_no_token_behind(tmp_path):
    said = run(tmp_path, IMPORTED, HOME=str(tmp_path))
    assert said["same"]
    assert (said["mode"], said["token"], said["left"]) == ("token", True, False)
    await marks.until(lambda: not psutil.pid_exists(said["worker"]))


def test_two_scripts_use_one_cluster_at_once(asking, tmp_path):
    running = []
    for name in ("one", "other"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "beside.py").write_text(f"NAME = {name!r}\n")
        (folder / "script.py").write_text(BOTH)
        environment = {**clean(), **asking}
        running.append(subprocess.Popen([sys.executable, "script.py"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=100)[0].splitlines() for process in running]  # Ray may print lines of its own between
    assert [[line for line in lines if line.startswith("{")] for lines in said] == [["{'one'}"], ["{'other'}"]]


def test_a_cluster_that_does_not_answer_is_named(tmp_path):
    (tmp_path / "where.py").write_text(PLAIN)
    environment = {**clean(), "RAY_ADDRESS": "127.0.0.1:1", "RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "1"}
    done = subprocess.run(
        [sys.executable, "where.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr.splitlines()[-1]
    assert "cannot be reached" in done.stderr
