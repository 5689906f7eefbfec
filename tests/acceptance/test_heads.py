"""`gecko up`, `gecko status` and `gecko down` as docs/clusters.md shows them, on heads that are killed, and nodes that die and freeze.

The tests of this module build on each other's head, since one takes ten seconds to start.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.processes import belonging
from tests.acceptance import marks
from tests.acceptance.heads import ROOT, clean

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio, pytest.mark.timeout(240)]

STEPS = 160
KILLED, FROZEN = 5.0, 15.0
"""Seconds within which a node has to be noticed that was killed, or that is frozen."""
SLEEPS = """
import time
from engine import Workflow
from tests.acceptance import marks

def square(n):
    import ray
    marks.leave({folder!r}, ray.util.get_node_ip_address())
    time.sleep(0.5)
    return n * n

flow = Workflow("squares").add_map("squares", square).set_entry_point("squares")
"""
WHERE = """
from cluster.remote import ensure
ensure()
import ray
print(ray.get_runtime_context().gcs_address)
"""
KEEPS = """
from cluster.remote import ensure
ensure()
import ray

class Kept:
    def answer(self):
        return "kept"

options = {"num_cpus": 0, "max_restarts": -1, "name": "kept", "namespace": "n", "lifetime": "detached"}
print(ray.get(ray.remote(Kept).options(**options).remote().answer.remote()))
"""
FINDS = """
from cluster.remote import ensure
ensure()
import ray
print(ray.get(ray.get_actor("kept", "n").answer.remote()))
"""
WATCH = """
import sys, time
from cluster.remote_head import count, meet
meet(sys.argv[1])
seen = None
while True:
    alive = sorted(node.address for node in count(sys.argv[1]).nodes if node.alive)
    if alive != seen:
        print(time.time(), *alive, flush=True)
        seen = alive
    time.sleep(0.02)
"""
JOIN = """
import json, sys
from cluster.head import find_head, start_node
node = start_node(find_head(), 1, {"far": 1})
print(json.dumps([node.address, node.raylet.pid]))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Give an environment with a state folder of this module's; what is still up at the end is ended."""
    home = tmp_path_factory.mktemp("home")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**clean(), "GECKO_HOME": str(home), "PATH": path, "HOME": str(home)}
    yield environment
    for file in (home / "clusters").glob("*.json"):
        subprocess.run(["gecko", "down", "--force", "--name", file.stem], env=environment, check=False)


def run(environment: dict[str, str], *words: str, folder: Path | None = None, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command; returns it with what it said."""
    done = subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == status, (done.stdout + done.stderr)[-3000:]
    return done


def script(environment: dict[str, str], text: str, *words: str) -> Any:
    """Return the last line that a program prints."""
    return run(environment, sys.executable, "-c", text, *words).stdout.splitlines()[-1]


def block(number: int) -> str:
    """Return one of the blocks of commands in docs/clusters.md."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/clusters.md").read_text(), re.DOTALL | re.MULTILINE)[number]


def described(environment: dict[str, str], name: str = "local") -> dict[str, Any]:
    return json.loads(Path(environment["GECKO_HOME"], "clusters", f"{name}.json").read_text())


def processes_of(known: dict[str, Any]) -> list[int]:
    mark = f"GECKO_HEAD={known['folder']}"
    return [process.pid for process in belonging(mark, known["folder"], known["sessions"])]


@pytest.fixture(scope="module")
def second(environment: dict[str, str]) -> "subprocess.Popen[str]":
    """A head of another name, with one CPU, which starts meanwhile."""
    words = ("gecko", "up", "--name", "second", "--num-cpus", "1")
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def local(environment: dict[str, str], second: "subprocess.Popen[str]", tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The head that the first commands of docs/clusters.md start; gives its description, with what the commands said."""
    folder = tmp_path_factory.mktemp("page")
    done = run(environment, "bash", "-euc", block(0), folder=folder)
    return {**described(environment), "said": done.stdout, "page": folder}


def test_the_commands_of_the_page_start_a_head_and_run_on_it(local, environment):
    assert f"cluster 'local' is up at {local['address']}" in local["said"]
    assert re.search(r"CPU [0-2] of 2", local["said"])  # its coordinator may be starting workers just then
    log = run(environment, "gecko", "runs", "list", "--json", folder=local["page"])
    assert [found["status"] for found in json.loads(log.stdout)] == ["completed"]


def test_who_asks_for_ray_meets_the_head_with_its_token(local, environment):
    assert script(environment, WHERE) == local["address"]


def test_nobody_is_let_in_without_the_token(local):
    def answer(token: str | None) -> int:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            return urllib.request.urlopen(urllib.request.Request(f"{local['dashboard']}/api/jobs/", headers=headers), timeout=10).status
        except urllib.error.HTTPError as error:
            return error.code

    file = Path(local["token_file"])
    assert (answer(None), answer("0" * 64), answer(file.read_text())) == (401, 403, 200)
    assert file.stat().st_mode & 0o077 == 0
    assert Path(local["folder"]).stat().st_mode & 0o077 == 0


def test_starting_it_again_finds_it_and_other_options_are_refused(local, environment):
    done = run(environment, "gecko", "up")
    assert done.stdout.startswith(f"export RAY_ADDRESS={local['address']} ")
    refused = run(environment, "gecko", "up", "--num-cpus", "3", status=2)
    assert "runs with --num-cpus 2, so that --num-cpus 3 cannot hold" in refused.stderr
    assert described(environment)["started_at"] == local["started_at"]


def test_a_shell_is_connected_by_what_up_prints(local, environment):
    said = run(environment, "bash", "-euc", block(1), folder=local["page"]).stdout
    assert "Active:" in said
    assert "CPU" in said


def test_a_second_head_is_killed_whole_starts_again_as_it_was_and_leaves_nothing(local, second, environment):
    said, _ = second.communicate(timeout=100)
    assert second.returncode == 0, said
    first = described(environment, "second")
    assert (first["address"] != local["address"], first["folder"] != local["folder"]) == (True, True)
    told = environment | {"RAY_ADDRESS": first["address"], "RAY_AUTH_TOKEN": "0" * 64}  # of another cluster
    assert script(told, KEEPS) == "kept"

    for pid in processes_of(first):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    again = run(environment, "gecko", "up", "--name", "second")
    assert "is gone, and starts again as it was" in again.stderr
    anew = described(environment, "second")
    assert (anew["address"], anew["options"], Path(first["folder"]).exists()) == (first["address"], first["options"], False)
    assert script(told, FINDS) == "kept"

    run(environment, "gecko", "down", "--name", "second")
    assert processes_of(first) + processes_of(anew) == []
    home = Path(environment["GECKO_HOME"], "clusters")
    assert (Path(anew["folder"]).exists(), [path.name for path in home.glob("second*")]) == (False, ["second.lock"])
    assert all(psutil.pid_exists(pid) for pid, _, role in local["processes"] if role in ("gcs_server", "raylet"))


class Watch:
    """Which nodes are alive as their head sees it, and since when."""

    def __init__(self, environment: dict[str, str], address: str) -> None:
        """Start to look."""
        command = [sys.executable, "-c", WATCH, address]
        self._running = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        self.alive: list[str] = []

    def until(self, wanted: Callable[[list[str]], bool]) -> float:
        """Wait until the nodes are so; returns when that was seen first, in seconds since 1970."""
        while True:
            assert self._running.stdout is not None
            at, *self.alive = self._running.stdout.readline().split()
            if wanted(self.alive):
                return float(at)

    def end(self) -> None:
        """Look no longer."""
        self._running.kill()
        self._running.communicate()


@pytest.fixture
def watch(local, environment) -> Iterator[Watch]:
    """Look at the nodes of the head."""
    found = Watch(environment, local["address"])
    yield found
    found.end()


def join(environment: dict[str, str]) -> tuple[str, int]:
    """Join a node; returns its address and the process of its raylet."""
    address, pid = json.loads(script(environment, JOIN))
    return address, pid


def signal_node(pid: int, number: signal.Signals) -> None:
    """Send a signal to a node as if its machine got it: to its raylet with all that this has started."""
    raylet = psutil.Process(pid)
    for process in [raylet, *raylet.children(recursive=True)]:
        process.send_signal(number)


def begin(environment: dict[str, str], folder: Path) -> "subprocess.Popen[str]":
    """Start a run of many steps of half a second, which leave marks with the address of their node."""
    (folder / "marks").mkdir()
    (folder / "flow.py").write_text(SLEEPS.format(folder=str(folder / "marks")))
    words = ("gecko", "run", "flow.py:flow", "--executor", "ray", "--storage", "log", "--input", json.dumps(list(range(STEPS))))
    with (folder / "said").open("w") as said:
        return subprocess.Popen(words, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=said, text=True)


async def test_a_run_goes_on_while_nodes_are_killed_freeze_and_come_back(local, environment, watch, tmp_path, record_property):
    async def performs(address: str, more: int) -> None:
        reached = marks.names(tmp_path / "marks")[address] + more
        await marks.until(lambda: marks.names(tmp_path / "marks")[address] >= reached)

    head = local["address"].partition(":")[0]
    first, pid = join(environment)
    watch.until(lambda alive: first in alive)
    running = begin(environment, tmp_path)
    await performs(first, 2)
    killed = time.time()
    psutil.Process(pid).kill()
    noticed = watch.until(lambda alive: first not in alive) - killed

    second, pid = join(environment)
    watch.until(lambda alive: second in alive)
    await performs(second, 2)
    signal_node(pid, signal.SIGSTOP)
    await performs(head, 5)
    signal_node(pid, signal.SIGCONT)  # it had no time to be missed
    await performs(second, 2)
    assert second in watch.alive

    frozen = time.time()
    signal_node(pid, signal.SIGSTOP)
    lost = watch.until(lambda alive: second not in alive) - frozen
    assert running.poll() is None
    output, _ = running.communicate(timeout=60)  # while the node is as it was
    went_on = time.time() - frozen
    assert running.returncode == 0, (tmp_path / "said").read_text()[-3000:]
    assert json.loads(output) == [n * n for n in range(STEPS)]
    record_property("noticed", f"{noticed:.2f} s after it was killed, {lost:.2f} s after it froze")
    print(f"a node was missed {noticed:.2f} s after it was killed, {lost:.2f} s after it froze; the run ended after {went_on:.2f} s")
    assert noticed < KILLED
    assert lost < FROZEN


def test_down_leaves_no_process_and_no_folder(local, environment):
    nodes = processes_of(described(environment))
    assert len(nodes) > 5
    run(environment, "bash", "-euc", block(2))
    assert processes_of(local) == []
    assert not Path(local["folder"]).exists()
    assert [path.name for path in Path(environment["GECKO_HOME"], "clusters").iterdir() if path.suffix != ".lock"] == []
