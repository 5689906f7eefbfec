"""The caller of Ray for what outlives scripts: coordinators by name, the keeper of code, and the worker that finds code again.

All of it lives in one namespace of Ray's, detached and restarted without limit; nothing of it holds what cannot be rebuilt.
"""

import asyncio
import logging
import pickle
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayError
from ray.util import list_named_actors
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster import remote
from cluster.code import parcel
from cluster.detached import Detached
from cluster.logs import set_up_log
from cluster.opened import codes
from cluster.remote_metrics import EVERY, RayMetrics
from engine.definition.target import load_target
from engine.errors import ClusterUnavailable, GeckoError
from engine.runtime.bind import code_of

logger = logging.getLogger(__name__)

NAMESPACE = "gecko"
KEEPER = "gecko-keeper"
KEPT = 256
"""So many parcels are kept; the code of others is found by its import path."""
FORGOTTEN = 30.0
"""Seconds after which a coordinator that says nothing wants nothing."""
AWAY = (RayActorError, ActorUnavailableError, GetTimeoutError)
"""What a call to a coordinator raises that is dead, about to be restarted, or does not answer."""

_DETACHED: dict[str, Any] = {
    "lifetime": "detached", "namespace": NAMESPACE, "get_if_exists": True, "num_cpus": 0, "max_restarts": -1, "max_task_retries": 0,
    "max_concurrency": 20_000,
}  # fmt: skip


class _Keeper:
    """What coordinators share.

    Pickled plans by name, in the cluster's memory and nowhere else: they survive coordinators, not the cluster. And how many CPUs each of
    them has work for: Ray's autoscaler is told the sum, since it heeds the newest request alone.
    """

    def __init__(self) -> None:
        self._parcels: OrderedDict[str, bytes] = OrderedDict()
        self._wanted: dict[str, tuple[int, list[dict[str, float]], float]] = {}
        self._requested: tuple[int, list[dict[str, float]]] = (0, [])

    async def keep(self, token: str, data: bytes) -> None:
        self._parcels[token] = data
        self._parcels.move_to_end(token)
        while len(self._parcels) > KEPT:
            self._parcels.popitem(last=False)

    async def want(self, who: str, cpus: int, bundles: list[dict[str, float]]) -> None:
        self._wanted[who] = cpus, bundles, time.monotonic()
        fresh = [(asked, some) for asked, some, at in self._wanted.values() if time.monotonic() - at < FORGOTTEN]
        wanted = sum(asked for asked, _ in fresh), [bundle for _, some in fresh for bundle in some]
        if wanted != self._requested:
            self._requested = wanted
            await asyncio.to_thread(request_resources, num_cpus=wanted[0], bundles=wanted[1] or None)

    async def get(self, token: str) -> bytes | None:
        if token in self._parcels:
            self._parcels.move_to_end(token)
        return self._parcels.get(token)


class _Detached(Detached):
    """A coordinator as an actor: it begins its work by itself, since nobody calls one that Ray restarted."""

    def __init__(self, *args: Any) -> None:
        set_up_log()
        super().__init__(*args, fleet=Fleet())
        self._told = RayMetrics(args[0])
        self._me = ray.get_runtime_context().current_actor
        self._me.attend.remote()

    async def attend(self) -> None:
        if self._attending is None:
            self._start(self._tell_ray())
        await super().attend()

    async def _tell_ray(self) -> None:
        while True:
            try:
                self._told.push((await self.figures())["metrics"])
            except Exception:
                logger.exception("Metrics could not be told to Ray")
            await asyncio.sleep(EVERY)


def _load(target: str, cwd: str, paths: tuple[str, ...]) -> tuple[bytes | None, Any]:
    codes.settle_in(cwd, paths)
    try:
        flow = load_target(target, base=cwd or None)
        plan = flow.compiled()
        return pickle.dumps(parcel(plan)), code_of(plan)
    except GeckoError as error:
        return None, str(error)


_LOAD: Any = ray.remote(num_cpus=0, max_retries=0, max_calls=1)(_load)  # a process of its own: modules are read as they are now


class Fleet:
    """What a coordinator asks of the cluster besides its pool."""

    async def keep(self, token: str, data: bytes) -> None:
        """Keep a parcel for other coordinators; where the keeper is away the code is found by its import path."""
        with suppress(*AWAY):
            await keeper().keep.remote(token, data)

    async def kept(self, token: str) -> bytes | None:
        """Return a parcel that is kept."""
        try:
            return await keeper().get.remote(token)
        except AWAY:
            return None

    async def want(self, who: str, cpus: int, bundles: list[dict[str, float]]) -> None:
        """Say for how many CPUs there is work, and what else it needs, so that an autoscaling cluster has it."""
        with suppress(*AWAY):
            await keeper().want.remote(who, cpus, bundles)

    async def load(self, target: str, cwd: str, paths: tuple[str, ...]) -> tuple[bytes | None, Any]:
        """Return (parcel, hash of its code) of a workflow by its import path, read in a worker; (None, why) where it is not found."""
        try:
            return await _LOAD.remote(target, cwd, paths)
        except RayError as error:
            return None, f"the worker that was to find it failed: {type(error).__name__}"


def keeper() -> Any:
    """Return the keeper of code; made where it is not there."""
    return ray.remote(_Keeper).options(name=KEEPER, **{**_DETACHED, "max_concurrency": 1000}).remote()


def environment() -> dict[str, Any]:
    """Return Ray's runtime environment of this process, as it is recorded."""
    found: dict[str, Any] = dict(ray.get_runtime_context().runtime_env or {})
    return {name: value for name, value in found.items() if value and not name.startswith("_")}


def node() -> str:
    """Return the id of the node that this process is on."""
    return ray.get_runtime_context().get_node_id()


def find(prefix: str) -> list[str]:
    """Return the names of the living coordinators whose names begin so, in order.

    Raises: ClusterUnavailable where the head does not say.
    """
    remote.ensure(start=False)
    try:
        actors: Any = list_named_actors(all_namespaces=True)
    except RayError as error:
        raise ClusterUnavailable(f"the head of the Ray cluster does not say which coordinators there are: {error}") from error
    found: list[str] = [actor["name"] for actor in actors if actor["namespace"] == NAMESPACE]
    return sorted(name for name in found if name.startswith(prefix))


def forget_lost() -> list[str]:
    """End the coordinators that wait for the disk of a node that is gone, as those of an earlier cluster do; returns their names."""
    alive = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    lost = [
        name for name in find("gecko-") if "@" in name and not any(n.startswith(name.partition("@")[2].partition("-")[0]) for n in alive)
    ]
    for name in lost:
        end(name)
    return lost


def get(name: str) -> Any:
    """Return a coordinator by name. Raises: ClusterUnavailable where there is none of that name."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        raise ClusterUnavailable(f"the coordinator {name!r} is not there") from error


def create(name: str, args: tuple[Any, ...], environment: dict[str, Any], here: str | None) -> Any:
    """Return a coordinator, made where it is not there.

    Args:
        here: The node whose disk it needs; None: any.
    """
    options: dict[str, Any] = {**_DETACHED, "name": name}
    if environment:
        options["runtime_env"] = environment
    if here is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(here, soft=False)
    return ray.remote(_Detached).options(**options).remote(*args)


def end(name: str) -> None:
    """End a coordinator, for good; its runs are left for others."""
    with suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
