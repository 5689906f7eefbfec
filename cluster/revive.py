"""What an earlier cluster left unfinished, found on storage and given to the coordinators of this one.

After the loss of a whole cluster nobody restarts runs but us: whoever starts a cluster calls `revive`. It decides nothing about a run.
"""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from cluster import remote, remote_fleet
from cluster.client import Cluster
from cluster.queue import Limits
from cluster.submission import Submission
from engine.checkpoint.batch import RELEASING
from engine.checkpoint.record import Recorded
from engine.errors import CheckpointError, RunNotFound
from engine.ports import Log
from engine.store import open_log


@dataclass(frozen=True, slots=True, kw_only=True)
class Revived:
    """What was found."""

    unfinished: int
    """Runs that belong to clusters and that nobody drives."""
    coordinators: tuple[str, ...]
    """Who goes on with them."""


async def revive(storage: str, *, address: str | None = None, coordinators: int = 1, limits: Limits | None = None) -> Revived:
    """Start the coordinators of a storage, those of each runtime environment that has unfinished runs too; they go on with the runs.

    A runtime environment whose files lay in the lost cluster cannot be made again: its runs are paused, saying what they need.

    Args:
        address: Of the cluster; None: the one that this process is told of.

    Raises: StoreUnavailable, ClusterUnavailable.
    """
    await asyncio.to_thread(remote.ensure, start=False, address=address)
    await asyncio.to_thread(remote_fleet.forget_lost)
    left = await _left_behind(open_log(storage))
    gone = [environment for environment, _ in left if "gcs://" in json.dumps(environment, default=str)]
    names: list[str] = []
    for environment in [{}, *(e for e, _ in left if e and e not in gone)]:
        cluster = Cluster(storage, coordinators=coordinators, limits=limits, environment=environment)
        names += await cluster.start()
        if not environment and gone:
            await cluster.adopt(gone)
    return Revived(unfinished=sum(count for _, count in left), coordinators=tuple(names))


async def _left_behind(log: Log) -> list[tuple[dict[str, Any], int]]:
    """Return the environments of submitted runs that nobody drives, with how many runs each has."""
    found: list[tuple[dict[str, Any], int]] = []
    for run in await log.scan():
        if run.status in RELEASING or run.owner is not None:
            continue
        try:
            started = Recorded(await log.read(run.key)).started or {}
        except (CheckpointError, RunNotFound):  # its coordinator will say what is wrong with it
            continue
        if "submission" not in started:
            continue
        environment = Submission.from_data(started["submission"]).environment
        known = next((i for i, (e, _) in enumerate(found) if e == environment), None)
        if known is None:
            found.append((environment, 1))
        else:
            found[known] = environment, found[known][1] + 1
    return found
