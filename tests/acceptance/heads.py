"""Clusters of `ray start --head`, as an operator starts them: each in a folder of its own, on ports of its own."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent
RAY = str(Path(sys.executable).parent / "ray")


def clean() -> dict[str, str]:
    """Return the environment without what it says of Ray, so that the checkout is imported from any folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}


def free_port() -> int:
    """Return a port of the loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def running_head(mode: str, *options: str, **settings: str) -> Iterator[dict[str, str]]:
    """Start a head with 2 CPUs, and give what a driver's environment needs; `mode` is `token` or `disabled`, `settings` are Ray's own."""
    folder = tempfile.mkdtemp(prefix="gecko", dir="/tmp")
    environment = {"RAY_AUTH_MODE": mode}
    if mode == "token":
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    address = f"127.0.0.1:{free_port()}"
    command = [RAY, "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", address.partition(":")[2], "--num-cpus", "2",
               "--object-store-memory", "100000000", *options]  # fmt: skip
    told = {**clean(), **environment, **settings, "RAY_TMPDIR": folder}  # where it also leaves its address
    running = subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = running.stdout or []
        assert any("Ray runtime started" in line for line in lines), f"{command} ended with {running.wait()}"
        yield {**environment, "RAY_ADDRESS": address, "RAY_TMPDIR": folder}
    finally:
        for process in psutil.Process(running.pid).children(recursive=True):
            process.kill()
        running.kill()
        running.communicate()
        shutil.rmtree(folder, ignore_errors=True)
