"""What every test stands on: a clean environment, a folder of its own, and Ray only where a test is marked so.

Tests marked `ray` run last, in one cluster that starts when the first of them asks for it.
"""

import asyncio
import contextlib
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
SERVICES = {"postgres": 5432, "redis": 6379, "nats": 4222}
REQUIRE = "GECKO_REQUIRE_SERVICES"
STRICT = os.environ.get(REQUIRE) == "1"

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if STRICT or os.environ.get("CI") else "local")


def pytest_configure(config: pytest.Config) -> None:
    """Take away what the caller's shell says about Gecko and Ray.

    This is done before any test module is imported, because Ray reads RAY_AUTH_MODE once, when it is imported: a value that is
    set later reaches the processes of the cluster and not this one, which is then refused by its own cluster.
    """
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    for name in list(os.environ):
        if name.startswith(("GECKO_", "RAY_")) and name != REQUIRE:  # which the processes of pytest-xdist inherit
            patch.delenv(name)
    patch.setenv("GECKO_HOME", f"{os.devnull}/gecko")  # no head that a developer has up is met
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_worker_niceness", "0")  # at Ray's 15 a machine that is busy otherwise starts a worker in half a minute


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests on Ray last: where a cluster is connected, a workflow would choose it by itself."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test in an empty folder, so that a log at the default place is its own. Files of the checkout are under `root`."""
    monkeypatch.chdir(tmp_path)


class OnImportOfRay:
    """A finder that finds nothing itself, and calls `then` with the module when Ray has been imported."""

    def __init__(self, then: Callable[[ModuleType], None]) -> None:
        self.then = then

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "ray":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_tell(module: ModuleType) -> None:
                execute(module)
                self.then(module)

            spec.loader.exec_module = execute_and_tell
        return spec


@pytest.fixture(autouse=True)
def ray_only_where_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make starting Ray an error in a test that is not marked `ray`, without importing Ray for it."""
    if request.node.get_closest_marker("ray") is not None:
        return

    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("ray.init in a test that is not marked ray: mark it, and use the fixture ray_cluster")

    def guard(module: ModuleType) -> None:
        monkeypatch.setattr(module, "init", refuse)

    if "ray" in sys.modules:
        guard(sys.modules["ray"])
    else:
        monkeypatch.setattr(sys, "meta_path", [OnImportOfRay(guard), *sys.meta_path])


@pytest.fixture(scope="session")
def root() -> Path:
    """Give the folder of the checkout."""
    return ROOT


@pytest.fixture
def anyio_backend() -> str:
    """Name the event loop of async tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def service() -> Callable[[str], str]:
    """Give a function from a service's name to its `host:port` on this machine.

    A service that does not answer skips the test by name, and fails it where GECKO_REQUIRE_SERVICES is 1.
    """

    def address(name: str) -> str:
        port = SERVICES[name]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError as error:
            missing = f"{name} does not answer on port {port}: {error}"
            if STRICT:
                pytest.fail(missing)
            pytest.skip(missing)
        return f"127.0.0.1:{port}"

    return address


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[str]:
    """Give the URL of a SQLite file of the test's own."""
    url = f"sqlite:///{tmp_path}/database/gecko.db"
    yield url
    let_go(url)


def let_go(url: str) -> None:
    """Close a log in a database, also one whose runs were left as a killed process would leave them."""
    from engine.store import open_log

    log: Any = open_log(url)
    log.finish(5)
    log.database.close_now(10)


@pytest.fixture
def postgres(service: Callable[[str], str]) -> Iterator[str]:
    """Give the URL of a PostgreSQL schema of the test's own, which is removed with all that is in it."""
    import asyncpg

    url, schema = f"postgresql://postgres@{service('postgres')}/postgres", f"test_{secrets.token_hex(8)}"

    async def say(statement: str) -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with ThreadPoolExecutor(1) as thread:  # the loop of an async test runs in this thread already
        thread.submit(asyncio.run, say(f"CREATE SCHEMA {schema}")).result()
        yield f"{url}?search_path={schema}"
        let_go(f"{url}?search_path={schema}")
        thread.submit(asyncio.run, say(f"DROP SCHEMA {schema} CASCADE")).result()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[str]:
    """Connect this process to a local cluster of four CPUs for all tests that ask for it; gives its address."""
    import ray

    # A socket's path has about 100 characters, which the usual temporary folders exceed.
    folder = tempfile.mkdtemp(prefix="gecko", dir="/tmp" if Path("/tmp").is_dir() else None)
    try:
        with contextlib.chdir(ROOT):
            context = ray.init(
                address="local",
                num_cpus=4,
                include_dashboard=False,
                object_store_memory=512 * 1024**2,
                log_to_driver=False,
                _temp_dir=folder,
            )
        yield context.address_info["address"]
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
