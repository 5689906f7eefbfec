"""Which cluster a process joins, and by which authentication, settled before Ray is started.

Ray reads its authentication mode when it is imported, and where nobody says one it turns tokens on for a local cluster and leaves a file
that turns them on for every later cluster of the user. So the mode is always said here: a local cluster of ours has a token that lives
as long as it does, the head of `gecko up` is met with the token that was made for it, and any other is asked which it wants.
"""

import importlib
import os
import secrets
import socket
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from ray._private.utils import read_ray_address
from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

from cluster.head_record import find_head, running_at
from engine.errors import ClusterUnavailable

_SAID = os.environ.get("RAY_AUTH_MODE")
_PATIENCE = 10.0
"""Seconds that a head has to answer in; Ray itself would try for minutes."""
_INTERNAL = "_ray_internal"
"""How the namespaces begin in which Ray's own dashboard is connected."""


def find_cluster() -> str | None:
    """Return the address of the cluster that this process is told of, or of one that was started on this machine; None: there is none.

    Of those on this machine the head of `gecko up` comes before what anybody else has started.
    """
    if told := os.environ.get("RAY_ADDRESS"):
        return told
    head = find_head()
    if head is not None and not head.stale:
        return head.address
    known = read_ray_address()
    return known if known and _answers(known) else None


def meet(address: str | None) -> None:
    """Say in the environment which authentication a cluster wants; None is a local cluster that is about to be started.

    What the user said in RAY_AUTH_MODE is left as it is.

    Raises: ClusterUnavailable for a cluster that does not answer, or wants a token that the user does not have.
    """
    if address is not None and _is_plain(address) and not _answers(address):
        raise ClusterUnavailable(f"the Ray cluster at {address!r} cannot be reached: nobody listens there")
    if address is not None and (head := running_at(address)) is not None:
        os.environ["RAY_AUTH_TOKEN_PATH"] = head.token_file
        os.environ.pop("RAY_AUTH_TOKEN", None)
        if _SAID is None:
            os.environ["RAY_AUTH_MODE"] = "token"
        _read_again()
    elif _SAID is None:
        wants_token = address is None or (_asks_for_token(address, None) if _is_plain(address) else _token() is not None)
        os.environ["RAY_AUTH_MODE"] = "token" if wants_token else "disabled"
        if address is None and _token() is None:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        _read_again()
    if address is not None and _is_plain(address):
        _check_token(address)


class NodeView(NamedTuple):
    """A node as its head sees it."""

    id: str
    address: str
    head: bool
    alive: bool
    total: dict[str, float]
    free: dict[str, float]


class Census(NamedTuple):
    """What a head knows."""

    nodes: list[NodeView]
    drivers: int
    """Scripts and Ray jobs that are connected."""
    actors: dict[str, int]
    """Those that live, by class."""


def count(address: str) -> Census:
    """Ask a head that `meet` has met for its nodes and for what uses them.

    Raises: ClusterUnavailable where it does not answer.
    """
    stubs: Any = gcs_service_pb2_grpc
    messages: Any = gcs_service_pb2
    tables: Any = gcs_pb2
    limits: dict[str, Any] = {"timeout": _PATIENCE, "metadata": _metadata(_token())}
    try:
        with grpc.insecure_channel(address) as channel:
            nodes = stubs.NodeInfoGcsServiceStub(channel).GetAllNodeInfo(messages.GetAllNodeInfoRequest(), **limits)
            free = stubs.NodeResourceInfoGcsServiceStub(channel).GetAllAvailableResources(
                messages.GetAllAvailableResourcesRequest(), **limits
            )
            jobs = stubs.JobInfoGcsServiceStub(channel).GetAllJobInfo(messages.GetAllJobInfoRequest(), **limits)
            actors = stubs.ActorInfoGcsServiceStub(channel).GetAllActorInfo(messages.GetAllActorInfoRequest(), **limits)
    except grpc.RpcError as error:
        raise ClusterUnavailable(f"the Ray cluster at {address!r} does not answer: {error.code().name.lower()}") from error
    available = {found.node_id: dict(found.resources_available) for found in free.resources_list}
    views = [
        NodeView(
            node.node_id.hex(),
            node.node_manager_address,
            node.is_head_node,
            node.state == tables.GcsNodeInfo.ALIVE,
            dict(node.resources_total),
            available.get(node.node_id, {}),
        )
        for node in nodes.node_info_list
    ]
    live = Counter(actor.class_name for actor in actors.actor_table_data if actor.state == tables.ActorTableData.ALIVE)
    drivers = sum(not job.is_dead and not job.config.ray_namespace.startswith(_INTERNAL) for job in jobs.job_info_list)
    return Census(sorted(views, key=lambda view: (not view.head, view.address)), drivers, dict(live))


def _check_token(address: str) -> None:
    if not _asks_for_token(address, None):
        return
    token, mode = _token(), os.environ.get("RAY_AUTH_MODE", "")
    if mode.lower() != "token":
        raise ClusterUnavailable(f"the Ray cluster at {address!r} asks for a token, and RAY_AUTH_MODE is {mode!r}: set it to 'token'")
    if token is None:
        text = f"the Ray cluster at {address!r} asks for a token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to the file that holds it"
        raise ClusterUnavailable(text)
    if _asks_for_token(address, token):
        raise ClusterUnavailable(f"the Ray cluster at {address!r} does not take this token: see to RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")


def _is_plain(address: str) -> bool:
    """Whether it is `host:port`."""
    host, _, port = address.rpartition(":")
    return bool(host) and "/" not in host and port.isdigit()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, ValueError):
        return False
    return True


def _asks_for_token(address: str, token: str | None) -> bool:
    """Ask the head for its cluster's id, which it tells nobody without a token where it wants one."""
    metadata = _metadata(token)
    with grpc.insecure_channel(address) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        messages: Any = gcs_service_pb2
        try:
            head.GetClusterId(messages.GetClusterIdRequest(), timeout=_PATIENCE, metadata=metadata)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", f"Bearer {token}"),)


def _token() -> str | None:
    """Return the user's token, from the places where Ray looks for it."""
    if said := os.environ.get("RAY_AUTH_TOKEN"):
        return said
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def _read_again() -> None:
    """Let Ray, which has been imported, see the mode and the token that stand in the environment now; it has no public way to."""
    raylet = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
