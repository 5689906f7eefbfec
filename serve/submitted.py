"""Runs that belong to a cluster, for the command line: which ones do, and what is asked of them through their coordinators."""

from typing import TYPE_CHECKING, Any

from cluster.submission import Submission
from engine.checkpoint.record import Recorded
from engine.core.ids import make_run_id
from engine.engine import Engine
from engine.errors import ClusterUnavailable, RunBusy, WrongState
from engine.ports import RunKey
from serve.service import Place, log_url

if TYPE_CHECKING:
    from cluster.client import Cluster


def cluster_at(place: Place, environment: dict[str, Any] | None = None) -> "Cluster":
    """Return the cluster that this machine is told of, for runs of a storage. Raises: ConfigurationError for memory."""
    from cluster.client import Cluster  # it leads to Ray, which a run that nobody submitted does not need

    return Cluster(log_url(place), environment=environment)


async def cluster_of(engine: Engine, key: RunKey) -> "Cluster | None":
    """Return the cluster that a run was submitted to, None for a script's run."""
    assert engine.log is not None
    submission = (Recorded(await engine.log.read(key)).started or {}).get("submission")
    if submission is None:
        return None
    return cluster_at(Place(engine.log, default=False), Submission.from_data(submission).environment)


async def stop(engine: Engine, run: str, action: str) -> tuple[str, str]:
    """Pause or cancel a run, by its coordinators where they drive it; returns its id and its status, which may still be `running`.

    Raises: RunNotFound, WrongState, RunBusy for a run that a script drives.
    """
    key = await engine.find(run)
    run_id = make_run_id(*key)
    try:
        await (engine.pause(run_id) if action == "pause" else engine.cancel(run_id))
    except RunBusy:
        cluster = await cluster_of(engine, key)
        if cluster is None:
            raise
        return run_id, await (cluster.pause(run_id) if action == "pause" else cluster.cancel(run_id))
    return run_id, "paused" if action == "pause" else "cancelled"


async def retry(engine: Engine, run: str, *, accept: bool = False) -> tuple[str, str]:
    """Let the cluster go on with a run that failed, from what failed; returns its id and its status.

    Args:
        accept: Also where recorded nodes are gone or rewired.

    Raises: RunNotFound, WrongState (also for a script's run), ClusterUnavailable.
    """
    key = await engine.find(run)
    run_id = make_run_id(*key)
    cluster = await cluster_of(engine, key)
    if cluster is None:
        raise WrongState(f"run {run_id!r} is one of a script and belongs to no cluster: gecko runs resume {run_id} goes on with it here")
    return run_id, await cluster.retry(run_id, accept=accept)


async def resume(engine: Engine, key: RunKey, *, accept: bool) -> tuple[str, str] | None:
    """Let the cluster go on with a run that was submitted to it; None for a script's run, and where no cluster is up."""
    cluster = await cluster_of(engine, key)
    if cluster is None:
        return None
    run_id = make_run_id(*key)
    try:
        return run_id, await cluster.resume(run_id, accept=accept)
    except ClusterUnavailable:
        return None
