"""`gecko up`, `gecko down`, `gecko status`: a Ray head on this machine, or a cluster of a cluster.yaml.

What they do is in cluster/head.py; here are their options and texts.
"""

import asyncio
import re
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.command import OK, OUTSIDE
from cluster.head import environment_for, launch, start_head, stop_head
from cluster.head_record import NAME, Head, Options, find_head, find_heads, running_at, without_password
from cluster.notices import say
from engine.checkpoint.table import json_text
from engine.errors import ConfigurationError
from engine.observe.progress import counted, seconds_text
from serve.options import Json
from serve.screen import ago_text, size_text
from serve.service import find_place, log_url
from serve.settings import read_settings

Name = Annotated[str, typer.Option(metavar="NAME", help="Which of several clusters on this machine.")]
File = Annotated[Path | None, typer.Option("--cluster", metavar="FILE", help="A cluster.yaml for Ray's launcher.", show_default=False)]


def up(
    cluster: File = None,
    name: Name = NAME,
    num_cpus: Annotated[int | None, typer.Option(metavar="N", min=0, help="CPUs of the head; default: all.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(min=1024, max=65535, help="Its port; default: a free one.", show_default=False)] = None,
    storage: Annotated[str | None, typer.Option(metavar="URL", help="Where its runs are recorded; default: GECKO_STORAGE.")] = None,
    redis: Annotated[str | None, typer.Option(metavar="URL", help="A Redis that keeps what the head knows; default: files.")] = None,
    json: Json = False,
) -> None:
    """Start a Ray head on this machine, or a cluster from a cluster.yaml; a head that was killed starts again as it was."""
    if cluster is not None:
        if (num_cpus, port, storage, redis) != (None,) * 4:
            raise ConfigurationError("--cluster goes with none of --num-cpus, --port, --storage and --redis: its file says all of it")
        launch("up", cluster)
        return
    said = storage or read_settings().storage
    head = bring_up(name, Options(num_cpus=num_cpus, port=port, storage=_absolute(said), redis=redis), after_start=_revive)
    if json:
        typer.echo(json_text(_head_data(head)))
    else:  # so that `eval "$(gecko up)"` connects a shell
        typer.echo(f"export {' '.join(f'{key}={shlex.quote(value)}' for key, value in environment_for(head).items())}")


def bring_up(name: str, options: Options, *, after_start: Callable[[Head, str | None], None]) -> Head:
    """Return the head of a name, started if it was not there; then `after_start` gets it, with the storage of its runs."""
    begun = time.time()
    head = start_head(name, options)
    if head.started_at < begun:
        say(f"cluster {name!r} is up at {head.address}, started {ago_text(head.started_at)}")
        return head
    say(f"cluster {name!r} is up at {head.address}, dashboard {head.dashboard}, after {seconds_text(time.time() - begun)}")
    say("runs with --executor ray use it" if name == NAME else "runs with --executor ray use it where RAY_ADDRESS names it")
    after_start(head, head.options.storage)
    return head


def _revive(head: Head, storage: str | None) -> None:
    """Start the coordinators of a head, which go on with what an earlier cluster left unfinished."""
    from cluster.revive import revive  # it leads to Ray

    url = log_url(find_place(storage, None))
    found = asyncio.run(revive(url, address=head.address))
    say(f"runs are recorded in {without_password(url)}; {counted(found.unfinished, 'unfinished run')} found there, which go on")


def _absolute(storage: str | None) -> str | None:
    return storage if storage is None or re.match(r"[a-z][a-z0-9+.-]+:", storage) else str(Path(storage).absolute())


def down(
    cluster: File = None,
    name: Name = NAME,
    force: Annotated[bool, typer.Option("--force", help="Kill its processes without asking them to end first.")] = False,
    json: Json = False,
) -> None:
    """End a head with all that it started, or a cluster from a cluster.yaml; runs go on from their log when they are resumed."""
    if cluster is not None:
        launch("down", cluster)
        return
    head = find_head(name)
    if head is None:
        others = _others(name)
        say(f"no cluster {name!r} was started on this machine{f'; there is {others}' if others else ''}")
        ended = 0
    else:
        stopped = stop_head(head, force=force)
        ended = stopped.ended
        killed = f", {stopped.killed} of them killed" if stopped.killed else ""
        say(f"cluster {name!r} is down: {ended} processes ended{killed}, {seconds_text(stopped.seconds)}")
    if json:
        typer.echo(json_text({"name": name, "ended": ended}))


def status(
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Which cluster; default: the one that runs on Ray would use.")] = None,
    json: Json = False,
) -> int:
    """Say whether a cluster is up, which nodes it has, and what uses it; exit status 3 where it is not up."""
    from cluster.remote_head import count, find_cluster, meet  # it loads Ray

    head = find_head(name or NAME)
    address = find_cluster() if name is None else None if head is None or head.stale else head.address
    if address is None:
        gone = head is not None
        if json:
            typer.echo(json_text({"name": name or NAME, "up": False, "gone": gone}))
        else:
            told = "is gone, and left something; `gecko up` starts it again, `gecko down` clears it away"
            others = _others(name or NAME)
            typer.echo(f"cluster {name or NAME!r} {told if gone else 'is not up'}{f'; there is {others}' if others else ''}")
        return OUTSIDE
    meet(address)
    found = count(address)
    head = running_at(address)
    if json:
        nodes = [node._asdict() for node in found.nodes]
        known = {"address": address} if head is None else _head_data(head)
        typer.echo(json_text({"up": True, **known, "nodes": nodes, "drivers": found.drivers, "actors": found.actors}))
        return OK
    typer.echo(f"cluster {head.name!r} is up at {address}, {_head_text(head)}" if head else f"a cluster is up at {address}")
    for node in found.nodes:
        gone = "dead, an earlier one" if node.head else "dead"
        told = _resources_text(node.total, node.free) if node.alive else gone
        typer.echo(f"  {'head' if node.head else 'node'}  {node.address:<15}  {told}")
    actors = ", ".join(f"{number} {kind}" for kind, number in sorted(found.actors.items()))
    typer.echo(f"  {counted(found.drivers, 'driver')} connected{f'; actors: {actors}' if actors else ''}")
    return OK


def _others(name: str) -> str:
    return ", ".join(f"{head.name!r} ({'gone' if head.stale else 'up'})" for head in find_heads() if head.name != name)


def _head_data(head: Head) -> dict[str, Any]:
    told: dict[str, Any] = {
        name: getattr(head, name) for name in ("name", "address", "dashboard", "token_file", "folder", "started_at", "ray")
    }
    options = {"num_cpus": head.options.num_cpus, "storage": without_password(head.options.storage)}
    return {**told, **options, "redis": without_password(head.options.redis), "settings": head.settings}


def _head_text(head: Head) -> str:
    storage = f", runs recorded in {without_password(head.options.storage)}" if head.options.storage else ""
    return f"dashboard {head.dashboard}, started {ago_text(head.started_at)}{storage}, logs in {head.folder}"


def _resources_text(total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Say what of each resource is free, the ones left out by which Ray names its nodes."""
    told: list[str] = []
    for name in sorted(total):
        if name.startswith("node:"):
            continue
        if name in ("memory", "object_store_memory"):
            told.append(f"{name} {size_text(int(free.get(name, 0)))} of {size_text(int(total[name]))}")
        else:
            told.append(f"{name} {free.get(name, 0):g} of {total[name]:g}")
    return "free: " + ", ".join(told) if told else "no resources"
