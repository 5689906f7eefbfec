"""Which cluster a process joins, and by which authentication, settled before Ray is started.

Ray reads its authentication mode when it is imported, and where nobody says one it turns tokens on for a local cluster and leaves a file
that turns them on for every later cluster of the user. So the mode is always said here: a local cluster of ours has a token that lives
as long as it does, and a cluster that is there is asked which it wants.
"""

import importlib
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import grpc
from ray._private.utils import read_ray_address
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from engine.errors import ClusterUnavailable

_SAID = os.environ.get("RAY_AUTH_MODE")
_PATIENCE = 10.0
"""Seconds that a head has to answer in; Ray itself would try for minutes."""


def find_cluster() -> str | None:
    """Return the address of the cluster that this process is told of, or of one that was started on this machine; None: there is none."""
    if told := os.environ.get("RAY_ADDRESS"):
        return told
    known = read_ray_address()
    return known if known and _answers(known) else None


def meet(address: str | None) -> None:
    """Say in the environment which authentication a cluster wants; None is a local cluster that is about to be started.

    What the user said in RAY_AUTH_MODE is left as it is.

    Raises: ClusterUnavailable for a cluster that does not answer, or wants a token that the user does not have.
    """
    if address is not None and _is_plain(address) and not _answers(address):
        raise ClusterUnavailable(f"the Ray cluster at {address!r} cannot be reached: nobody listens there")
    if _SAID is None:
        wants_token = address is None or (_asks_for_token(address, None) if _is_plain(address) else _token() is not None)
        os.environ["RAY_AUTH_MODE"] = "token" if wants_token else "disabled"
        if address is None and _token() is None:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        _read_again()
    if address is not None and _is_plain(address):
        _check_token(address)


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
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(address) as channel:
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        messages: Any = gcs_service_pb2
        try:
            head.GetClusterId(messages.GetClusterIdRequest(), timeout=_PATIENCE, metadata=metadata)
        except grpc.RpcError as error:
            return error.code() is grpc.StatusCode.UNAUTHENTICATED
    return False


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
