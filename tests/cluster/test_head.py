"""What is known of heads, what Ray is told, and which processes are ended; no Ray is started."""

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from importlib import util
from pathlib import Path

import psutil
import pytest

from cluster import head as heads
from cluster.head import SETTINGS, environment_for, start_head
from cluster.head_record import Head, Options, file_of, find_head, find_heads, running_at, state_folder, without_password, write_head
from cluster.processes import Process, belonging, boot, end, lives, look, role_of
from engine.errors import ClusterUnavailable, ConfigurationError, WrongState

IGNORES = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(100)"
WAITS = "import time; print(flush=True); time.sleep(100)"
HAS_CHILD = "import subprocess, sys; print(subprocess.Popen(['sleep', '100'], start_new_session=True, env={}).pid, flush=True); input()"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Describe heads in a folder of the test's own."""
    monkeypatch.setenv("GECKO_HOME", str(tmp_path / "home"))


@pytest.fixture
def running() -> Iterator[list[subprocess.Popen[str]]]:
    """Give a list for processes, which are killed after the test."""
    found: list[subprocess.Popen[str]] = []
    yield found
    for process in found:
        process.kill()
        process.communicate()


def start(text: str, **environment: str) -> subprocess.Popen[str]:
    """Start a program and wait until it has said something."""
    process = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
    )
    assert process.stdout is not None
    process.said = process.stdout.readline().strip()  # type: ignore[attr-defined]
    return process


def head(folder: Path, **changes: object) -> Head:
    """Return a head of which nothing runs."""
    known = Head(name="local", address="127.0.0.2:6379", dashboard="http://127.0.0.1:8265", token_file=str(folder / "token"),
                 folder=str(folder), kept=str(folder / "gcs"), options=Options(), settings={}, started_at=1.0, ray="2.60.0")  # fmt: skip
    return replace(known, **changes)  # type: ignore[arg-type]


def alive(*roles: str) -> tuple[Process, ...]:
    """Return this process in several roles."""
    me = look(os.getpid())
    assert me is not None
    return tuple(me._replace(role=role) for role in roles)


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({"GECKO_HOME": "/a"}, "/a"),
        ({"XDG_STATE_HOME": "/b"}, "/b/gecko"),
        ({"HOME": "/c"}, "/c/.local/state/gecko"),
        ({"GECKO_HOME": "/a", "XDG_STATE_HOME": "/b"}, "/a"),
    ],
)
def test_heads_are_described_where_the_environment_says(environment, where, monkeypatch):
    for name in ("GECKO_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert state_folder() == Path(where)


@pytest.mark.parametrize("name", ["", "A", "a/b", "../a", "a.b", "-a", "a" * 41])
def test_a_name_that_could_lead_elsewhere_is_refused(name):
    with pytest.raises(ConfigurationError, match="cannot name a cluster"):
        file_of(name)


def test_a_head_is_read_as_it_was_written_and_only_by_its_owner(tmp_path):
    written = head(tmp_path, processes=alive("gcs_server", "raylet"), sessions=(1, 2), options=Options(num_cpus=2, storage="s"))
    write_head(written)
    assert find_head() == written
    assert stat.S_IMODE(file_of("local").stat().st_mode) == 0o600
    assert stat.S_IMODE(file_of("local").parent.stat().st_mode) == 0o700
    assert [path.name for path in file_of("local").parent.iterdir()] == ["local.json"]


def test_a_description_that_is_damaged_is_named_and_hides_no_other(tmp_path):
    write_head(head(tmp_path))
    file_of("other").write_text("{")
    with pytest.raises(ClusterUnavailable, match=r"other\.json.*remove it"):
        find_head("other")
    assert [found.name for found in find_heads()] == ["local"]


def test_a_head_whose_processes_run_is_not_stale_and_is_found_by_its_address(tmp_path):
    write_head(head(tmp_path, processes=alive("gcs_server", "raylet", "monitor")))
    found = running_at("127.0.0.2:6379")
    assert found is not None
    assert not found.stale
    assert running_at("127.0.0.2:6380") is None


@pytest.mark.parametrize("processes", [(), ("gcs_server",), ("raylet",)])
def test_a_head_that_never_was_complete_is_stale(processes, tmp_path):
    assert head(tmp_path, processes=alive(*processes)).stale


def test_a_head_is_stale_where_a_process_is_another_by_now_or_the_machine_was_started_again(tmp_path):
    gcs, raylet = alive("gcs_server", "raylet")
    assert not head(tmp_path, processes=(gcs, raylet)).stale
    assert head(tmp_path, processes=(gcs._replace(started=gcs.started - 1), raylet)).stale
    assert head(tmp_path, processes=(gcs, raylet), boot="another").stale
    write_head(head(tmp_path, processes=(gcs, raylet), boot="another"))
    assert running_at("127.0.0.2:6379") is None


def test_a_running_head_is_the_answer_to_every_start_that_asks_for_nothing_else(tmp_path):
    running = head(tmp_path, processes=alive("gcs_server", "raylet"), options=Options(num_cpus=2, redis="redis://u:secret@h"))
    write_head(running)
    assert start_head() == running
    assert start_head("local", Options(num_cpus=2)) == running
    with pytest.raises(WrongState, match=r"'local' runs with --num-cpus 2, so that --num-cpus 3 cannot hold: end it first"):
        start_head("local", Options(num_cpus=3))
    with pytest.raises(WrongState, match=r"was started without --storage, so that --storage s"):
        start_head("local", Options(storage="s"))
    with pytest.raises(WrongState) as raised:
        start_head("local", Options(redis="redis://v:secret@h"))
    assert "secret" not in str(raised.value)


def test_a_head_that_was_killed_starts_again_with_what_it_had_and_what_is_said_now(tmp_path):
    ran = head(tmp_path, processes=alive("raylet"), options=Options(num_cpus=2, storage="s"))
    assert heads._resolve(Options(num_cpus=3), ran) == Options(num_cpus=3, storage="s")
    assert heads._resolve(Options(num_cpus=3), replace(ran, processes=())) == Options(num_cpus=3)


def test_ray_is_told_of_its_own_cluster_alone(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_TMPDIR", "RAY_JOB_ID", "RAY_REDIS_ADDRESS", "GECKO_HEAD"):
        monkeypatch.setenv(name, "another")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "1")
    told = heads._environment(head(tmp_path, settings=SETTINGS))
    assert "another" not in told.values()
    assert (told["RAY_AUTH_MODE"], told["RAY_AUTH_TOKEN_PATH"]) == ("token", str(tmp_path / "token"))
    assert {name: told[name] for name in SETTINGS} == SETTINGS
    assert (told["RAY_gcs_storage"], told["RAY_gcs_storage_path"]) == ("rocksdb", str(tmp_path / "gcs"))
    assert told["RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S"] == "1"


def test_with_redis_the_head_keeps_what_it_knows_there_under_a_name_of_its_own(tmp_path):
    keeps = head(tmp_path, options=Options(redis="rediss://me:p%40ss@store:7000"), kept="gecko-local-1")
    told = heads._environment(keeps)
    assert (told["RAY_REDIS_ADDRESS"], told["RAY_external_storage_namespace"]) == ("rediss://store:7000", "gecko-local-1")
    assert "RAY_gcs_storage" not in told
    assert heads._words(keeps, [1, 2, 3])[-4:] == ("--redis-username", "me", "--redis-password", "p@ss")


@pytest.mark.parametrize("url", ["localhost", "http://h", "redis://", "redis://h:port"])
def test_what_is_no_redis_is_refused(url):
    with pytest.raises(ConfigurationError, match="say redis://host:port"):
        start_head("local", Options(redis=url))
    assert find_head() is None


def test_a_redis_that_does_not_answer_is_named_without_its_password():
    with pytest.raises(ClusterUnavailable, match=r"the Redis 'redis://me@127\.0\.0\.1:1' cannot be reached"):
        start_head("local", Options(redis="redis://me:secret@127.0.0.1:1"))
    assert without_password("redis://:secret@h:1/0") == "redis://@h:1/0"


def test_a_port_that_is_taken_is_said_before_ray_is_started(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClusterUnavailable, match=f"port {port} cannot be had: Address already in use; give another with --port"):
            start_head("local", Options(port=port))
    assert (find_head(), list(file_of("local").parent.glob("local.[!l]*"))) == (None, [])


def test_a_disk_without_room_is_said_before_ray_is_started(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1 << 20))
    with pytest.raises(ClusterUnavailable, match="has 1 MiB left, which is too little for a head: make room, or set TMPDIR"):
        start_head()


def test_a_missing_ray_is_said_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    with pytest.raises(ClusterUnavailable, match="Ray is not installed here: pip install"):
        start_head()


@pytest.mark.slow
def test_a_head_that_does_not_start_says_why_and_where_its_logs_are(monkeypatch):
    monkeypatch.setenv("RAY_START_HOOK", "no_such_module.hook")
    with pytest.raises(ClusterUnavailable) as raised:
        start_head()
    assert "Ray did not start (1): " in str(raised.value)
    assert "No module named 'no_such_module'" in str(raised.value)
    folder = Path(str(raised.value).rpartition("its logs are in ")[2])
    assert (folder / "start.log").is_file()
    assert (find_head(), [path.name for path in file_of("local").parent.iterdir()]) == (None, ["local.lock"])
    shutil.rmtree(folder)


def test_a_driver_is_told_all_that_it_needs(tmp_path):
    assert environment_for(head(tmp_path)) == {
        "RAY_ADDRESS": "127.0.0.2:6379",
        "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
    }


@pytest.mark.parametrize(
    ("words", "role"),
    [
        (["/x/ray/raylet/raylet", "--a=b"], "raylet"),
        (["/x/python", "-u", "/x/monitor.py", "--b"], "monitor"),
        (["/x/python", "-m", "ray.util.client.server", "--c"], "ray.util.client.server"),
        (["ray::IDLE", "", ""], "ray::IDLE"),
        (["ray-dashboard-JobHead-0 (python -c pass)"], "ray-dashboard-JobHead-0"),
        ([], ""),
    ],
)
def test_a_process_has_a_role_that_its_command_line_tells(words, role):
    assert role_of([word.encode() for word in words]) == role


def test_what_was_started_with_a_mark_belongs_to_it_and_so_does_what_it_starts(running, tmp_path):
    mine = start(HAS_CHILD, GECKO_HEAD=str(tmp_path))
    other = start(WAITS, GECKO_HEAD=f"{tmp_path}2")
    running += [mine, other]
    child = int(mine.said)
    found = belonging(f"GECKO_HEAD={tmp_path}", str(tmp_path), ())
    assert {process.pid for process in found} == {mine.pid, child}
    assert end(found, 5.0) == []
    mine.communicate()
    assert not any(map(lives, found))
    assert other.poll() is None


def test_a_session_alone_makes_nothing_belong(running, tmp_path):
    terminal = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, start_new_session=True, text=True)
    running.append(terminal)
    assert belonging("GECKO_HEAD=x", str(tmp_path), [terminal.pid]) == []
    rays = subprocess.Popen(
        ["ray::Agent", "-c", WAITS], executable=sys.executable, start_new_session=True, text=True, stdout=subprocess.PIPE
    )
    running.append(rays)
    assert [process.pid for process in belonging("GECKO_HEAD=x", str(tmp_path), [rays.pid])] == [rays.pid]


def test_what_does_not_end_when_it_is_asked_to_is_killed_and_what_is_stopped_hears_it(running):
    deaf, stopped = start(IGNORES), start(WAITS)
    running += [deaf, stopped]
    stopped.send_signal(signal.SIGSTOP)
    processes = [look(process.pid) for process in (deaf, stopped)]
    assert None not in processes
    assert [process.pid for process in end(filter(None, processes), 0.1)] == [deaf.pid]
    assert (deaf.wait(), stopped.wait()) == (-signal.SIGKILL, -signal.SIGTERM)


def test_a_process_that_got_the_id_of_another_is_left_alone(running):
    process = start(WAITS)
    running.append(process)
    present = look(process.pid)
    assert present is not None
    assert end([present._replace(started=present.started - 1)], 0) == []
    assert psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE
    assert end([present], 0) == [present]


def test_the_run_of_the_machine_has_a_name():
    assert boot() == boot() != ""
