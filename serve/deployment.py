"""The service on Ray Serve: several replicas of the application behind a proxy. The only file of serve that calls Ray.

No replica holds anything that is not on storage, so that the loss of one loses no run; what it had not answered is asked again.
"""

import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from starlette.types import ASGIApp

from cluster import remote, remote_fleet
from cluster.client import Cluster
from cluster.code import surroundings
from cluster.logs import set_up_log
from cluster.opened import codes
from cluster.queue import Limits
from engine.errors import ClusterUnavailable
from engine.store import open_log, open_records
from serve.app import make_app
from serve.middleware.auth import HEALTH
from serve.registry import read_registry
from serve.settings import Settings

NAME = "gecko"
PATIENCE = 8.0
"""Seconds for which a replica asks coordinators again that are away; then the caller is told when to come back."""
AT_ONCE = 2000
"""Requests that a replica answers at once: those that wait for an end, and streams, only wait."""
CONTROLLER = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1.5", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5"}
"""A proxy that was killed is missed after three of its checks; with Serve's own 10 s nobody is answered for half a minute."""

QUIET = {"log_level": "WARNING", "enable_access_log": False}
ANSWERS = 20.0
"""Seconds within which a service that was started has to answer at its address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every replica has to know."""

    storage: str
    """A URL that replicas and coordinators reach."""
    records: str
    settings: Settings
    since: datetime
    environment: dict[str, Any] = field(default_factory=dict[str, Any])
    """Ray's runtime environment of whoever deployed it, which coordinators and workers have too."""
    cwd: str = ""
    paths: tuple[str, ...] = ()
    """Where modules are found."""

    def cluster(self) -> Cluster:
        """Return the coordinators of the storage; nothing is asked yet."""
        limits = Limits(runs=self.settings.max_runs, queued=self.settings.max_queued)
        return Cluster(
            self.storage,
            coordinators=self.settings.coordinators,
            limits=limits,
            patience=PATIENCE,
            environment=self.environment,
            keep_code=True,
        )


def make_plan(storage: str, records: str, settings: Settings, since: datetime) -> Plan:
    """Return what replicas have to know, with what is around this process. Raises: ClusterUnavailable."""
    remote.ensure()
    cwd, paths = surroundings()
    return Plan(storage=storage, records=records, settings=settings, since=since, environment=remote_fleet.environment(), cwd=cwd,
                paths=paths)  # fmt: skip


@serve.ingress()
class Replica:
    """One process that answers requests."""

    def __init__(self, plan: Plan) -> None:
        """Import what the operator registered.

        Raises: ConfigurationError.
        """
        set_up_log()
        codes.settle_in(plan.cwd, plan.paths)
        self._app = make_app(
            registry=read_registry(plan.settings.modules, since=plan.since),
            cluster=plan.cluster(),
            log=open_log(plan.storage),
            records=open_records(plan.records),
            settings=plan.settings,
            replica=serve.get_replica_context().replica_tag,
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._app


def deploy(plan: Plan) -> str:
    """Start the service, or bring the one that runs up to date; returns its address once it answers there.

    Raises: ClusterUnavailable.
    """
    remote.ensure()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    settings = plan.settings
    options: dict[str, Any] = {"num_cpus": 0}
    if plan.storage.startswith("file:"):  # the disk of this node
        options["resources"] = {f"node:{ray.util.get_node_ip_address()}": 0.001}
    make: Any = serve.deployment(
        Replica, name="api", num_replicas=settings.replicas, max_ongoing_requests=AT_ONCE, max_queued_requests=2 * AT_ONCE,
        ray_actor_options=options, logging_config=QUIET, health_check_period_s=3, health_check_timeout_s=10,
        graceful_shutdown_wait_loop_s=1, graceful_shutdown_timeout_s=5,
    )  # fmt: skip
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": settings.host, "port": settings.port},
            controller_options={"runtime_env": {"env_vars": CONTROLLER}},
            logging_config=QUIET,
        )
        serve.run(make.bind(plan), name=NAME, route_prefix="/")
    except (RayError, RayServeException, RuntimeError, TimeoutError) as error:
        raise ClusterUnavailable(f"the service cannot be started: {error}") from error
    url = f"http://{'127.0.0.1' if settings.host in ('0.0.0.0', '::') else settings.host}:{settings.port}"
    _check_answers(url)
    return url


def _check_answers(url: str) -> None:
    """Make sure that it is our service which answers: a Serve that was there before listens where it was told to then."""
    until = time.monotonic() + ANSWERS
    while True:
        try:
            answer = httpx.get(f"{url}{HEALTH}", timeout=5.0)
            if answer.status_code in (200, 503) and "status" in answer.json():
                return
            told = f"something else answers there with {answer.status_code}"
        except (httpx.HTTPError, ValueError) as error:
            told = str(error)
        if time.monotonic() > until:
            text = f"the service was started and does not answer at {url} ({told}): does a Ray Serve of this cluster listen elsewhere?"
            raise ClusterUnavailable(text)
        time.sleep(0.1)


def end() -> None:
    """End the service; runs go on, where the cluster does."""
    with suppress(RayError, RayServeException):
        serve.delete(NAME)
        serve.shutdown()
