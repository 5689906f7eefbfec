"""The doctor finds what would go wrong later, says what to do, and leaves nothing behind."""

import json
import sqlite3
import sys
from pathlib import Path
from types import ModuleType

import pytest

from serve import doctor
from serve.origin import hidden_here, shadows
from tests.serve.conftest import Gecko


@pytest.mark.slow
def test_a_sound_installation_passes_every_check(gecko: Gecko):
    done = gecko("doctor", "--json")
    checks = json.loads(done.out)
    assert [check["name"] for check in checks] == ["python", "versions", "packages", "storage", "ray", "memory"]
    assert {check["name"] for check in checks if not check["ok"]} <= {"memory"}
    assert list(Path.cwd().iterdir()) == []


def test_a_storage_that_cannot_be_is_told_and_is_exit_status_3(gecko: Gecko, monkeypatch: pytest.MonkeyPatch):
    Path("file").write_text("")
    monkeypatch.setattr(doctor, "find_ray", lambda: doctor.Cluster(None, "token"))
    done = gecko("doctor", "--storage", "file")
    assert done.status == 3
    assert [line.split()[:2] for line in done.out.splitlines() if line.startswith("WRONG")] == [["WRONG", "storage"]]


def test_a_ray_that_cannot_be_imported_is_told(monkeypatch: pytest.MonkeyPatch):
    def refuse() -> doctor.Cluster:
        raise ImportError("no ray here")

    monkeypatch.setattr(doctor, "find_ray", refuse)
    (check,) = [check for check in doctor.examine("memory://x") if check.name == "ray"]
    assert (check.ok, "no ray here" in check.text) == (False, True)


@pytest.mark.parametrize(
    ("cluster", "ok", "told"),
    [
        (doctor.Cluster(None, "token"), True, "no cluster is here, so that a local one is started, authentication mode 'token'"),
        (doctor.Cluster("10.0.0.1:6379", "disabled"), True, "joins the cluster at 10.0.0.1:6379, authentication mode 'disabled'"),
        (doctor.Cluster("10.0.0.1:6379", "token", "the Ray cluster cannot be reached"), False, "the Ray cluster cannot be reached"),
    ],
)
def test_the_cluster_that_would_be_met_is_told(cluster: doctor.Cluster, ok: bool, told: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "find_ray", lambda: cluster)
    (check,) = [check for check in doctor.examine("memory://x") if check.name == "ray"]
    assert (check.ok, check.text.endswith(told)) == (ok, True)


@pytest.mark.slow
def test_a_cluster_that_nobody_answers_for_is_a_wrong_ray(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = doctor.find_ray()
    assert found.address == "127.0.0.1:1"
    assert found.problem is not None
    assert "'127.0.0.1:1' cannot be reached" in found.problem


def test_a_user_s_file_that_hides_a_package_is_named(monkeypatch: pytest.MonkeyPatch, gecko: Gecko):
    assert shadows() == []
    module = ModuleType("cluster")
    module.__file__ = str(Path("cluster.py").absolute())
    monkeypatch.setitem(sys.modules, "cluster", module)
    done = gecko("runs", "list")
    assert done.status == 3
    assert f"{Path.cwd()}/cluster.py hides Gecko's package 'cluster'" in done.err


def test_files_here_that_would_hide_a_package_are_found():
    Path("engine.py").write_text("")
    Path("serve").mkdir()
    assert hidden_here(Path.cwd()) == [str(Path.cwd() / "engine.py")]


def test_free_memory_is_the_least_that_anybody_says():
    files = {"/proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   4096 kB\n", "/sys/fs/cgroup/memory.max": "3000000\n"}
    files["/sys/fs/cgroup/memory.current"] = "1000000\n"
    assert doctor.free_memory(lambda path: files[str(path)]) == 2_000_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert doctor.free_memory(lambda path: files[str(path)]) == 4096 * 1024


@pytest.mark.slow
def test_an_index_that_was_deleted_is_made_again(gecko: Gecko):
    Path("flows.py").write_text(
        "from engine import Workflow\n"
        "def fine(value): return value\n"
        "def broken(value): raise ValueError(value)\n"
        "good = Workflow('good').add_node('a', fine).set_entry_point('a')\n"
        "bad = Workflow('bad').add_node('a', broken).set_entry_point('a')\n"
    )
    for name, session in (("good", "one"), ("good", "two"), ("bad", "one")):
        gecko("run", f"flows.py:{name}", "--session", session)
    done = gecko("doctor", "--rebuild")
    assert (done.status, done.out) == (0, "indexed 3 runs and 1 dead letter\n")
    before = listed()
    assert [run_id for run_id, *_ in before] == ["bad.one.1", "good.one.1", "good.two.1"]
    for file in Path(".gecko").glob("records.db*"):
        file.unlink()
    done = gecko("doctor", "--rebuild", "--json")
    assert json.loads(done.out) == {"runs": 3, "dead_letters": 1, "damaged": []}
    assert listed() == before


def listed() -> list[tuple[object, ...]]:
    """What the index of this folder holds, read without any of our code."""
    with sqlite3.connect(".gecko/records.db") as connection:
        return connection.execute("SELECT run_id, status, started_at, finished_at, error, steps FROM gecko_runs ORDER BY run_id").fetchall()


@pytest.mark.slow
def test_a_damaged_log_is_named_and_left_out(gecko: Gecko):
    Path("flows.py").write_text(
        "from engine import Workflow\n"
        "def broken(value): raise ValueError(value)\n"
        "bad = Workflow('bad').add_node('a', broken).set_entry_point('a')\n"
    )
    for session in ("one", "two", "two"):
        gecko("run", "flows.py:bad", "--session", session)
    first = Path(".gecko/runs/bad/two/1/1.arrows")
    data = bytearray(first.read_bytes())
    data[-200] ^= 0xFF  # inside of what the next segment has sealed
    first.write_bytes(data)
    done = gecko("doctor", "--rebuild")
    assert done.status == 3
    told, left_out = done.out.splitlines()
    assert told == "indexed 1 run and 1 dead letter"
    assert left_out.startswith("LEFT OUT  bad.two.1: ")
