"""The caller of Ray: starting it, packs and lanes, objects, cancelling. Nothing else here imports Ray, the Serve deployment aside.

Ray's own retries are off everywhere: a retried pack would be spliced from two attempts unseen, and a poison step would burn them in
seconds.
"""

import asyncio
import gc
import itertools
import logging
import os
import pickle
import resource
import select
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayActorError,
    TaskCancelledError,
    TaskUnschedulableError,
    WorkerCrashedError,
)  # fmt: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.ending import descriptor_of, end_group, end_tree, end_with, hold_children, leads
from cluster.ending import kill as kill_processes
from cluster.lane import Lane, settle_in
from cluster.logs import set_up_log
from cluster.opened import Home, codes
from cluster.placing import demand_of
from cluster.port import Kit
from cluster.worker import perform, rehearse
from engine.core.policy import Resources
from engine.errors import ClusterUnavailable, OutOfMemory, WorkerLost

logger = logging.getLogger(__name__)

GONE = (RayActorError, OutOfMemoryError)
"""What a call to a coordinator that died raises. Short of memory Ray ends the newest workers first, in the end coordinators too."""
ASKED = 0.2
"""Seconds that Ray has to end an actor, which takes it 10 ms, before its process is killed."""
KILLED = 5.0
"""Seconds within which a killed process is gone."""
MOST = 9e14
"""So much of a resource can be asked for: Ray counts ten-thousandths in 64 bits, takes more for nothing, and would run the task at once."""
STARVED = (
    "its machine ran out of memory, and Ray ended it; say what a call needs with memory=... (bytes), "
    "or let fewer run at once with num_cpus=... or max_concurrency=..."
)


def ensure(*, start: bool = True, address: str | None = None) -> None:
    """Connect to Ray, from any thread and as often as one likes.

    The processes of a local cluster die with the *thread* that started them, so that is one of our own, which never ends.

    Args:
        start: Whether a local cluster is started where there is none.
        address: Which cluster, where this process belongs to none yet; None: the one that it is told of.

    Raises: ClusterUnavailable for a cluster that cannot be reached, and where there is none and none is to be started.
    """
    if ray.is_initialized():
        return
    with _starting:
        if ray.is_initialized():
            return
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        threading.Thread(target=_keep_connected, args=(done, start, address), name="gecko-ray", daemon=True).start()
        if (error := done.get()) is not None:
            raise error


_starting = threading.Lock()


def _keep_connected(done: "SimpleQueue[BaseException | None]", start: bool, address: str | None) -> None:
    try:
        _connect(start=start, address=address)
    except BaseException as error:  # noqa: BLE001 - raised again by whoever asked
        done.put(error)
        return
    done.put(None)
    threading.Event().wait()


def _connect(*, start: bool, address: str | None) -> None:
    """Connect to the cluster that there is, or start a local one, which then is ours and ends with the process."""
    from cluster.remote_head import find_cluster, meet  # not for workers, which import this module too

    address = address or find_cluster()
    if address is None and not start:
        raise ClusterUnavailable("no Ray cluster is up here: start one with `gecko up`, or say where one is with RAY_ADDRESS")
    meet(address)
    quiet = {"logging_level": logging.ERROR, "log_to_driver": True}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            cpus = os.cpu_count() or 1
            logger.info("Starting a local Ray, which takes some seconds")
            os.environ.setdefault("RAY_enable_worker_prestart", "1")
            os.environ.setdefault("RAY_num_workers_soft_limit", str(2 * cpus))
            ray.init(address="local", include_dashboard=False, configure_logging=True, **quiet)
    except (ConnectionError, TimeoutError, RuntimeError, OSError) as error:
        where = f"the Ray cluster at {address!r}" if address else "a local Ray cluster"
        raise ClusterUnavailable(f"{where} cannot be reached: {error}") from error


def slots() -> int:
    """Return how many packs the cluster performs at once."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _home(handle: Any) -> Home:
    def call(name: str, *args: Any) -> Any:
        return ray.get(getattr(handle, name).remote(*args))

    async def acall(name: str, *args: Any) -> Any:
        return await getattr(handle, name).remote(*args)

    def send(name: str, *args: Any) -> None:
        getattr(handle, name).remote(*args)

    def ask(name: str, *args: Any) -> "Future[Any]":
        return getattr(handle, name).remote(*args).future()

    return Home(call, acall, send, ray.get, ask)


def _perform(data: bytes, refs: list[Any], handle: Any, place: tuple[str, int]) -> Any:
    node, pid = place
    set_up_log()
    return perform(data, refs, _home(handle), pid if node == ray.get_runtime_context().get_node_id() else None)


def _nothing() -> int:
    return os.getpid()


class _Lane:
    """An async actor around `Lane`."""

    def __init__(self, handle: Any, place: tuple[str, int]) -> None:
        # a body may wait for the cluster in a thread of its own; Ray warns of that as if it were the loop
        logging.getLogger("ray._private.worker").addFilter(lambda record: "blocking ray.get" not in record.getMessage())
        set_up_log()
        gc.freeze()  # as in a pack's worker: what Ray and the engine brought along stays
        if place[0] == ray.get_runtime_context().get_node_id():
            end_with(place[1])
        self._lane = Lane(_home(handle))

    async def perform(self, data: bytes, refs: list[Any]) -> Any:
        return await self._lane.perform(data, refs)

    async def stop(self, numbers: list[int]) -> None:
        await self._lane.stop(numbers)

    async def where(self) -> tuple[str, int]:
        settle_in()
        return ray.get_runtime_context().get_node_id(), os.getpid()


class _Member:
    """An actor on which one member of a team is performed at a time."""

    def __init__(self, handle: Any, place: tuple[str, int]) -> None:
        set_up_log()
        self._home = _home(handle)
        self._node = ray.get_runtime_context().get_node_id()
        self._owner = place[1] if place[0] == self._node else None
        if self._owner is not None:
            end_with(self._owner)

    def perform(self, data: bytes, refs: list[Any]) -> Any:
        return perform(data, refs, self._home, self._owner)

    def where(self) -> tuple[str, int]:
        return self._node, os.getpid()

    def prepare(self, kit: Kit) -> None:
        codes.settle_in(kit.cwd, kit.paths)
        if codes.missing(set(kit.keys)):
            codes.add(ray.get(kit.codes))
        for key in kit.keys:
            with suppress(Exception):  # opening a body runs the user's module: what it raises is told where it is wanted
                codes.body(key)
        rehearse(self._home, self._owner)

    def size(self) -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _end(pid: int) -> None:
    descriptor = descriptor_of(pid)
    end_tree(pid)
    if descriptor >= 0:
        select.select([descriptor], [], [], KILLED)
        os.close(descriptor)


_WARM = ray.remote(max_retries=0, num_cpus=1)(_nothing)
_ACTOR: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "max_task_retries": 0, "max_concurrency": 10_000}
_LANE: Any = ray.remote(**_ACTOR)(_Lane)
_MEMBER: Any = ray.remote(num_cpus=0, max_restarts=0, max_task_retries=0)(_Member)
_END: Any = ray.remote(max_retries=0, num_cpus=0)(_end)


class LaneProcess:
    """The actor of a lane."""

    def __init__(self, actor: Any) -> None:
        """Ask where it runs, before it is sent anything."""
        self.actor = actor
        self.found: asyncio.Future[tuple[str, int]] = asyncio.wrap_future(actor.where.remote().future())
        """Its node and process."""
        self.found.add_done_callback(lambda found: found.cancelled() or found.exception())  # who asks hears of it
        self.ending: asyncio.Task[None] | None = None
        """What ends its process."""


class RayRemote:
    """What a coordinator's pool asks of Ray."""

    def __init__(self) -> None:
        """Learn the cluster's size and warm it up."""
        self.slots = slots()
        self._me = ray.get_runtime_context().current_actor
        self._place = ray.get_runtime_context().get_node_id(), os.getpid()
        self._lanes: list[LaneProcess] = []
        self._background: set[asyncio.Task[None]] = set()
        # a function for each slot, since Ray lets tasks of one function queue behind each other in one worker, however short they are
        self._packs: list[Any] = [ray.remote(max_retries=0, num_cpus=1)(_perform) for _ in range(self.slots)]
        self._turn = itertools.cycle(self._packs)

    def measure(self, ceiling: int | None) -> bool:
        """Learn how many packs the cluster performs at once now, `ceiling` at most; tells whether that changed. Blocks for a moment."""
        found = slots() if ceiling is None else min(slots(), ceiling)
        if found == self.slots:
            return False
        while len(self._packs) < found:
            self._packs.append(ray.remote(max_retries=0, num_cpus=1)(_perform))
        self._turn = itertools.cycle(self._packs[:found])
        self.slots = found
        return True

    async def warm_up(self) -> list[int]:
        """Start lanes and workers; returns their process ids."""
        self._lanes = [self._start_lane() for _ in range(self.slots)]
        warm = [_WARM.remote() for _ in range(self.slots)]
        workers = await asyncio.gather(*warm)
        return [*workers, *[pid for _, pid in await asyncio.gather(*(lane.found for lane in self._lanes))]]

    def put(self, value: Any) -> Any:
        """Put bytes, or a list of anything, into the cluster's memory.

        Bytes are read back without a copy, as the only element of a list.
        """
        if isinstance(value, (bytes, bytearray, memoryview)):
            return ray.put([pickle.PickleBuffer(value)])
        return ray.put(value)

    def send(self, data: bytes, refs: list[Any], resources: Any) -> Any:
        """Send a pack to any worker."""
        if not resources:
            return next(self._turn).remote(data, refs, self._me, self._place)
        return self._packs[0].options(**_options(resources)).remote(data, refs, self._me, self._place)

    def send_to_lane(self, lane: int, data: bytes, refs: list[Any]) -> Any:
        """Send a pack to one of the event loops."""
        return self.lane(lane).actor.perform.remote(data, refs)

    def stop_in_lane(self, lane: int, numbers: list[int]) -> None:
        """Cancel calls in a lane."""
        self.lane(lane).actor.stop.remote(numbers)

    def lane(self, lane: int) -> "LaneProcess":
        """Return what names the present process of a lane."""
        while len(self._lanes) <= lane:
            self._lanes.append(self._start_lane())
        return self._lanes[lane]

    def _start_lane(self) -> "LaneProcess":
        return LaneProcess(_LANE.remote(self._me, self._place))

    def renew_lane(self, lane: int, old: "LaneProcess") -> None:
        """End a lane that died, or in which something goes on that is to stop, and start another, once."""
        if self._lanes[lane] is old:
            old.ending = self._beside(self._end_lane(old))
            self._lanes[lane] = self._start_lane()

    async def lane_ended(self, old: "LaneProcess") -> None:
        """Return when the process of a lane that was renewed is gone, with what it had started."""
        if old.ending is not None:
            await asyncio.shield(old.ending)

    async def _end_lane(self, old: "LaneProcess") -> None:
        place = None
        if old.found.done() and not old.found.exception():  # before it is killed: it does not answer after that
            place = old.found.result()
        await self.end_member(old.actor, place)

    def _beside(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def start_member(self, resources: Resources | None) -> Any:
        """Start an actor for members."""
        return _MEMBER.options(**_options(resources) if resources else {}).remote(self._me, self._place)

    def send_to_member(self, actor: Any, data: bytes, refs: list[Any]) -> Any:
        """Send a member, as a pack of one."""
        return actor.perform.remote(data, refs)

    def where_member(self, actor: Any) -> Any:
        """Ask for the node and the process of an actor, which it tells before it does what it is sent after this; to be awaited."""
        return actor.where.remote()

    def size_member(self, actor: Any) -> Any:
        """Ask for the most bytes of memory that an actor's process has had; to be awaited."""
        return actor.size.remote()

    def is_near(self, place: tuple[str, int] | None) -> bool:
        """Tell whether an actor is known to be on this node."""
        return place is not None and place[0] == self._place[0]

    def lives_member(self, place: tuple[str, int] | None) -> bool:
        """Tell whether an actor is there, as far as that is seen from here."""
        return place is None or place[0] != self._place[0] or os.path.isdir(f"/proc/{place[1]}") or not os.path.isdir("/proc")

    def prepare_member(self, actor: Any, kit: Kit) -> None:
        """Have an actor open bodies before it is sent one."""
        actor.prepare.remote(kit)

    def drain_member(self, actor: Any) -> None:
        """Let an actor end after what it was sent."""
        actor.__ray_terminate__.remote()

    async def end_member(self, actor: Any, place: tuple[str, int] | None) -> None:
        """End an actor and what it started; returns when they are gone. One that has not started yet never does."""
        if place is None:
            ray.kill(actor)
            with suppress(RayActorError):
                place = await self.where_member(actor)
        if place is not None and place[0] == self._place[0]:
            await self._end_here(actor, place[1])
        elif place is not None:
            there = NodeAffinitySchedulingStrategy(place[0], soft=False)
            with suppress(NodeDiedError, WorkerCrashedError, TaskUnschedulableError):
                await _END.options(scheduling_strategy=there).remote(place[1])
            ray.kill(actor)

    async def _end_here(self, actor: Any, pid: int) -> None:
        """End a process of this node. It is Ray that does, since it tells every script of one that was killed by somebody else."""
        descriptor, leading = descriptor_of(pid), leads(pid)
        children = await asyncio.to_thread(_ask_to_end, actor, pid)  # who has won must not wait for what this takes
        if descriptor >= 0:
            ended = _readable(descriptor)
            await asyncio.wait({ended}, timeout=ASKED)
            children += hold_children(pid)
            if not ended.done():
                end_tree(pid)
                await asyncio.wait({ended}, timeout=KILLED)
        kill_processes(children)
        if leading:
            end_group(pid)

    def cancel(self, ref: Any, *, force: bool) -> None:
        """Stop a pack; by force its worker dies."""
        ray.cancel(ref, force=force, recursive=False)

    async def get(self, ref: Any) -> Any:
        """Return what a pack gave."""
        return await ref

    def loss(self, error: BaseException) -> tuple[type[WorkerLost], str] | None:
        """Say how a worker was lost, None where the error is of another kind."""
        if isinstance(error, OutOfMemoryError):
            return OutOfMemory, STARVED
        if isinstance(error, TaskCancelledError):
            return WorkerLost, "it was stopped"
        if isinstance(error, (WorkerCrashedError, NodeDiedError, RayActorError)):
            return WorkerLost, "its process died"
        return None

    def totals(self) -> list[dict[str, float]]:
        """Return what each node of the cluster has in all."""
        return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _ask_to_end(actor: Any, pid: int) -> list[int]:
    """Have Ray end an actor; returns what it had started, which is held."""
    children = hold_children(pid)
    ray.kill(actor)
    return children


def _readable(descriptor: int) -> "asyncio.Future[None]":
    """Return a future that is done when a descriptor can be read, which closes it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        if not future.done():
            future.set_result(None)

    loop.add_reader(descriptor, ready)
    return future


def _options(resources: Resources) -> dict[str, Any]:
    asked = {name: min(amount, MOST) for name, amount in demand_of(resources).items()}
    options: dict[str, Any] = {"num_cpus": asked.pop("CPU", 0)}
    for name, option in (("GPU", "num_gpus"), ("memory", "memory")):
        if name in asked:
            options[option] = asked.pop(name)
    return {**options, "resources": asked} if asked else options


def new_coordinator(kind: type) -> Any:
    """Return the handle of a new coordinator on this node; it ends with this process."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(**_ACTOR)(kind)
    return actor.options(scheduling_strategy=here).remote()


def session_name() -> str:
    """Return what names the cluster that this process is connected to."""
    return ray.get_runtime_context().gcs_address + " " + ray.get_runtime_context().get_job_id()


def make_remote() -> RayRemote:
    """Return Ray as a coordinator sees it; called inside of its actor."""
    return RayRemote()


def why(gone: BaseException) -> str:
    """Say why a coordinator died; Ray's own words of memory fill a page."""
    return STARVED if isinstance(gone, OutOfMemoryError) else str(gone)


def fetch(ref: Any) -> Any:
    """Wait for a value."""
    return ray.get(ref)


def arrives(ref: Any, within: float) -> bool:
    """Tell whether a value comes within so many seconds; raises what came in its place."""
    try:
        ray.get(ref, timeout=within)
    except GetTimeoutError:
        return False
    return True


def kill(handle: Any) -> None:
    """End an actor."""
    ray.kill(handle)
