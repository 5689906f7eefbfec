"""Starting a Ray head on this machine, joining nodes to it, and ending all of it.

Ray is called as a command, and told everything that it would otherwise guess or read from what an earlier cluster left: how it
authenticates, when a node counts as dead, where it keeps what it knows. A head lies in a temporary folder of its own and marks its
processes, so that it is ended without touching any other. What keeps actors and names outlives a head that was killed, not one that was
ended. What is known of heads is in cluster/head_record.py; this module decides nothing about runs.
"""

import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from cluster.head_record import LAUNCHED, MARK, NAME, Head, Options, alone, file_of, find_head, without_password, write_head, write_private
from cluster.processes import Process, belonging, boot, end
from engine.errors import ClusterUnavailable, ConfigurationError, WrongState

logger = logging.getLogger(__name__)

SETTINGS = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "300",
    # A second, as some advise, takes a node for dead whose machine swaps or stalls for three of them.
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
    # A frozen machine answers no call and ends none: where its processes are asked nothing, whoever waits for them waits for 7 minutes.
    "RAY_grpc_client_keepalive_time_ms": "5000",
    "RAY_grpc_client_keepalive_timeout_ms": "5000",
    # For so long nodes go on without a head, beside whatever was started in its place.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    "RAY_memory_monitor_refresh_ms": "250",
    # As a local Ray of ours has it, see cluster/remote.py.
    "RAY_enable_worker_prestart": "1",
    "RAY_num_workers_soft_limit": str(2 * (os.cpu_count() or 1)),
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What Ray is told unless the environment says otherwise."""

_OURS_TO_SAY = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_TMPDIR", "RAY_JOB", "RAY_AUTH_", "RAY_REDIS_", "RAY_gcs_storage",
                "RAY_external_storage_namespace", "RAY_NODE_ID", "RAY_RAYLET_PID", MARK)  # fmt: skip
"""Beginnings of variables that are of another cluster, or that only we say."""
_HOST = "127.0.0.{}"
"""Addresses of the head (2) and of nodes that join, which a laptop keeps when it changes its network. Ray replaces 127.0.0.1."""
_PATIENCE = 120.0
"""Seconds that Ray has to start in; it takes about 10."""
GRACE = 8.0
"""Seconds that nodes have to end their workers in before they are killed."""
_SHORT = 1.0
"""The same of what is left then, which has nothing to bring to an end; Ray's monitor and GCS never end by themselves."""
_REDIS_ANSWERS = 5.0
_ROOM = 256 << 20
_LONGEST_FOLDER = 20
"""Characters: a socket's path below it has about 80 more, and may have 107 in all."""
_ROUNDS = 5
_FRAME = re.compile(r"\(\+0x|\+0x[0-9a-f]+\)")
"""A line of a stack trace in C, of which Ray writes pages."""
_NOTHING_SAID = Options()


class Node(NamedTuple):
    """A node that joined a head on the same machine."""

    address: str
    raylet: Process
    processes: tuple[Process, ...]


class Stopped(NamedTuple):
    """What `stop_head` ended."""

    head: Head
    ended: int
    killed: int
    """How many of them did not end when they were asked to."""
    seconds: float


def start_head(name: str = NAME, options: Options = _NOTHING_SAID) -> Head:
    """Start a head of a name, or return the one that runs; one that was killed is cleared away, and started again as it was.

    Raises: WrongState where the one that runs was started with other options; ClusterUnavailable where it cannot be started;
        ConfigurationError for a name or an option that cannot be.
    """
    with alone(name):
        former = find_head(name)
        if former is not None and not former.stale:
            _compare(former, options)
            return former
        if former is not None:
            ended, _ = _end(former, 0)
            shutil.rmtree(former.folder, ignore_errors=True)
            if former.processes:
                logger.warning("the head %r is gone, and starts again as it was; %d processes that it left were ended", name, ended)
        return _start(name, _resolve(options, former), former)


def stop_head(head: Head, *, force: bool = False) -> Stopped:
    """End a head with all of its nodes, workers and what these started, and forget it; `force` kills them without asking first.

    Raises: ClusterUnavailable where some of it does not end.
    """
    begun = time.monotonic()
    with alone(head.name):
        present = find_head(head.name)
        head = head if present is None else present
        ended, killed = _end(head, 0 if force else GRACE)
        if left := _processes(head):
            told = ", ".join(f"{process.pid} ({process.role})" for process in left)
            raise ClusterUnavailable(f"processes of the cluster {head.name!r} do not end: {told}; end them, then try again")
        shutil.rmtree(head.folder, ignore_errors=True)
        _forget_kept(head)
        for ending in ("token", "json"):
            file_of(head.name, ending).unlink(missing_ok=True)
    return Stopped(head, ended, killed, time.monotonic() - begun)


def start_node(head: Head, num_cpus: int = 1, resources: Mapping[str, float] | None = None) -> Node:
    """Join one more node of this machine to a head; it ends with the head.

    Raises: ClusterUnavailable where it does not start.
    """
    with alone(head.name):
        head = find_head(head.name) or head
        before = {process.pid for process in _processes(head)}
        address = _HOST.format(2 + len(head.sessions))
        words = ("--address", head.address, "--node-ip-address", address, "--num-cpus", str(num_cpus), "--temp-dir", _rays(head),
                 "--resources", json.dumps(dict(resources or {})), "--dashboard-agent-listen-port", "0")  # fmt: skip
        session = _ray(head, words)
        write_head(replace(head, sessions=(*head.sessions, session)))
        found = tuple(process for process in _processes(head) if process.pid not in before)
    return Node(address, next(process for process in found if process.role == "raylet"), found)


def environment_for(head: Head) -> dict[str, str]:
    """Return what a driver or a command of Ray has to have in its environment to use a head."""
    return {
        "RAY_ADDRESS": head.address,
        "RAY_API_SERVER_ADDRESS": head.dashboard,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": head.token_file,
    }


def _resolve(options: Options, former: Head | None) -> Options:
    """Return options with what was not said taken from the head that was there, if it ever ran."""
    if former is None or not former.processes:
        return options
    said = {name: value for name, value in asdict(options).items() if value is not None}
    return replace(former.options, **said)


def _compare(head: Head, options: Options) -> None:
    had = asdict(head.options)
    for name, value in asdict(options).items():
        if value is not None and value != had[name]:
            flag = f"--{name.replace('_', '-')}"
            told = f"runs with {flag} {without_password(str(had[name]))}" if had[name] is not None else f"was started without {flag}"
            raise WrongState(
                f"the cluster {head.name!r} {told}, so that {flag} {without_password(str(value))} cannot hold: "
                "end it first with `gecko down`, or give another --name"
            )


def _start(name: str, options: Options, former: Head | None) -> Head:
    head = _describe(name, options, former)
    write_head(head)
    try:
        ports = _ports(options.port, former)
        head = replace(head, address=f"{_HOST.format(2)}:{ports[0]}", dashboard=f"http://127.0.0.1:{ports[1]}")
        session = _ray(head, _words(head, ports))
        head = replace(head, sessions=(session,))
        head = replace(head, processes=tuple(_processes(head)))
        if head.stale:
            raise ClusterUnavailable(f"the head {name!r} ended as soon as it had started; its logs are in {head.folder}")
    except BaseException as error:
        _end(head, 0)
        _give_up(head, former)
        if former is not None and isinstance(error, ClusterUnavailable):
            error.add_note("if what the former head kept is the cause, `gecko down` removes it")
        raise
    write_head(head)
    return head


def _give_up(head: Head, former: Head | None) -> None:
    """Forget a head that did not start, but for its logs where it has any; what a former one kept stays for the next attempt."""
    with suppress(OSError):
        os.rmdir(head.folder)
    if former is not None and former.processes:
        write_head(former)
        return
    _forget_kept(head)
    for ending in ("token", "json"):
        file_of(head.name, ending).unlink(missing_ok=True)


def _describe(name: str, options: Options, former: Head | None) -> Head:
    """Return a head that has not started, with its folder made and its token written."""
    if importlib.util.find_spec("ray") is None:
        raise ClusterUnavailable("Ray is not installed here: pip install 'ray[default,serve]'")
    if not hasattr(os, "pidfd_open"):
        raise ConfigurationError("a head is started on Linux alone: elsewhere use `ray start --head`, and set RAY_ADDRESS")
    version = importlib.metadata.version("ray")
    root = tempfile.gettempdir() if len(tempfile.gettempdir()) <= _LONGEST_FOLDER else "/tmp"
    free = shutil.disk_usage(root).free
    if free < _ROOM:
        raise ClusterUnavailable(f"{root} has {free >> 20} MiB left, which is too little for a head: make room, or set TMPDIR")
    if options.redis:
        _reach(options.redis)
    token = file_of(name, "token")
    if not token.exists():
        write_private(token, secrets.token_hex(32).encode())
    kept = f"gecko-{name}-{secrets.token_hex(4)}" if options.redis else str(file_of(name, "gcs"))
    if former is not None and former.options.redis == options.redis and former.ray == version:
        kept = former.kept
    elif former is not None:
        _forget_kept(former)
    folder = tempfile.mkdtemp(prefix="gecko-", dir=root)
    settings = {key: os.environ.get(key, value) for key, value in SETTINGS.items()}
    return Head(name=name, address="", dashboard="", token_file=str(token), folder=folder, kept=kept, options=options,
                settings=settings, started_at=time.time(), ray=version)  # fmt: skip


def _ports(wanted: int | None, former: Head | None) -> list[int]:
    """Return three free ports: of the head, the one that was wanted or that it had; of the dashboard; of Ray's client server."""
    had = int(former.address.rpartition(":")[2] or 0) if former is not None else 0
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(3)]
        for probe, port in zip(probes, (wanted or had, 0, 0), strict=True):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError as error:
                if port == wanted:
                    raise ClusterUnavailable(f"port {port} cannot be had: {error.strerror}; give another with --port, or none") from error
                probe.bind(("", 0))
        return [probe.getsockname()[1] for probe in probes]


def _rays(head: Head) -> str:
    """Return the folder that Ray gets: it lets everybody into it, and nobody into the one around it."""
    return f"{head.folder}/r"


def _words(head: Head, ports: Sequence[int]) -> tuple[str, ...]:
    cpus = () if head.options.num_cpus is None else ("--num-cpus", str(head.options.num_cpus))
    words = ("--head", "--node-ip-address", _HOST.format(2), "--port", str(ports[0]), "--temp-dir", _rays(head), *cpus,
             "--include-dashboard", "true", "--dashboard-host", "127.0.0.1", "--dashboard-port", str(ports[1]),
             "--dashboard-agent-listen-port", "0", "--ray-client-server-port", str(ports[2]),
             "--min-worker-port", "0", "--max-worker-port", "0")  # fmt: skip
    redis = urlsplit(head.options.redis or "")
    for flag, value in (("--redis-username", redis.username), ("--redis-password", redis.password)):
        words += () if value is None else (flag, unquote(value))
    return words


def _environment(head: Head) -> dict[str, str]:
    """Return the environment of a head's processes: that of this one, without what it says of other clusters."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS_TO_SAY)}
    environment |= head.settings | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": head.token_file, MARK: head.folder}
    if head.options.redis is None:
        return environment | {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": head.kept}
    host, port, tls = _redis_of(head.options.redis)
    where = f"{'rediss' if tls else 'redis'}://{host}:{port}"
    return environment | {"RAY_REDIS_ADDRESS": where, "RAY_external_storage_namespace": head.kept}


def _redis_of(url: str) -> tuple[str, int, bool]:
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        host, port = None, 0
    if parts.scheme not in ("redis", "rediss") or not host:
        raise ConfigurationError(f"{without_password(url)!r} is no Redis: say redis://host:port", where="--redis")
    return host, port, parts.scheme == "rediss"


def _reach(redis: str) -> None:
    host, port, _ = _redis_of(redis)
    try:
        socket.create_connection((host, port), timeout=_REDIS_ANSWERS).close()
    except OSError as error:
        raise ClusterUnavailable(f"the Redis {without_password(redis)!r} cannot be reached: {error.strerror or error}") from error


def _ray(head: Head, words: Sequence[str]) -> int:
    """Have Ray start something of a head; returns the session of its processes.

    Raises: ClusterUnavailable, with what Ray said.
    """
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *words, "--disable-usage-stats"]
    if head.options.redis is None:
        Path(head.kept).mkdir(parents=True, exist_ok=True, mode=0o700)
    said = Path(head.folder, "start.log")
    with said.open("w") as output:  # no pipe, which the processes that stay would hold open
        started = subprocess.Popen(command, cwd=head.folder, env=_environment(head), stdin=subprocess.DEVNULL, stdout=output,
                                   stderr=subprocess.STDOUT, start_new_session=True)  # fmt: skip
        try:
            status = started.wait(_PATIENCE)
        except BaseException as error:
            started.kill()
            started.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            status = f"no answer within {_PATIENCE:.0f} s"
    if status:
        raise ClusterUnavailable(f"Ray did not start ({status}): {_last_lines(said)}; its logs are in {head.folder}")
    return started.pid


def _last_lines(file: Path, count: int = 6) -> str:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", file.read_text(errors="replace")).splitlines()
    told = [line.strip() for line in lines if line.strip() and not _FRAME.search(line)]
    return " | ".join(told[-count:]) or "it said nothing"


def _processes(head: Head) -> list[Process]:
    """Return what belongs to a head now."""
    return belonging(head.mark, head.folder, head.sessions) if head.boot == boot() else []


def _end(head: Head, grace: float) -> tuple[int, int]:
    """End what belongs to a head; returns how many processes that were, and how many of them had to be killed."""
    ended, killed = set[Process](), 0
    for _ in range(_ROUNDS):
        found = _processes(head)
        if not found:
            break
        ended |= set(found)
        # Without its head a node does not end, but waits for another.
        killed += len(end([process for process in found if process.role == "raylet"], grace))
        killed += len(end(found, min(grace, _SHORT)))
        grace = 0.0
    return len(ended), killed


_CLEAR = """
import json, sys
from ray._private.gcs_utils import cleanup_redis_storage
sys.exit(not cleanup_redis_storage(**json.load(sys.stdin)))
"""


def _forget_kept(head: Head) -> None:
    """Remove what a head kept of actors and names."""
    if head.options.redis is None:
        shutil.rmtree(head.kept, ignore_errors=True)
        return
    host, port, tls = _redis_of(head.options.redis)
    parts = urlsplit(head.options.redis)
    told = {"host": host, "port": port, "use_ssl": tls, "storage_namespace": head.kept, "username": unquote(parts.username or ""),
            "password": unquote(parts.password or "")}  # fmt: skip
    command = [sys.executable, "-c", _CLEAR]
    try:
        done = subprocess.run(command, input=json.dumps(told), cwd="/", env=_environment(head), text=True, capture_output=True,
                              check=False, timeout=30)  # fmt: skip
        failed = done.returncode != 0
    except subprocess.TimeoutExpired:
        failed = True
    if failed:
        logger.warning("what the cluster %r kept under %r could not be removed from its Redis", head.name, head.kept)


def launch(verb: Literal["up", "down"], file: Path) -> None:
    """Have Ray's own launcher start or end the cluster of a `cluster.yaml`; what it says goes to standard error.

    Raises: ClusterUnavailable where it does not; ConfigurationError for a file that is not there.
    """
    if not file.is_file():
        raise ConfigurationError(f"{str(file)!r} is no file: name a cluster.yaml as Ray's launcher takes it", where="--cluster")
    token = file_of(LAUNCHED, "token")
    if verb == "up" and not token.exists():
        write_private(token, secrets.token_hex(32).encode())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS_TO_SAY)}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    command = [sys.executable, "-m", "ray.scripts.scripts", verb, "-y", str(file.absolute())]
    done = subprocess.run(command, cwd=file.absolute().parent, env=environment, stdout=2, check=False)
    if done.returncode:
        raise ClusterUnavailable(f"`ray {verb} {file}` ended with {done.returncode}; what it said stands above")
