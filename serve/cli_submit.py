"""`gecko submit`: hands a run to the coordinators of a cluster, which it belongs to from then on."""

import asyncio
from contextlib import aclosing
from typing import Annotated, TextIO

import typer

from cluster.command import command_text, free_session, layers_of, result_text
from cluster.notices import say
from engine.checkpoint.table import json_text
from engine.definition.input import read_input
from engine.engine import Engine
from engine.errors import InvalidDocument
from engine.handle import RunHandle
from engine.observe.progress import Progress
from engine.workflow import Workflow
from serve import service
from serve.live import open_view
from serve.options import Json, Storage, Target
from serve.screen import event_json, results_apart
from serve.settings import read_settings
from serve.submitted import cluster_at

LEFT = 130


def submit(  # typer makes each option of a parameter, so that there are more of them than a function should have
    target: Target,
    input: Annotated[str | None, typer.Option(metavar="JSON|@FILE|-", help="The input; default: none.")] = None,
    session: Annotated[str | None, typer.Option(metavar="ID", help="The same session is the same run; default: a new one.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start the session's next run.")] = False,
    storage: Storage = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Limit of the run in seconds, through all restarts.")] = None,
    priority: Annotated[int, typer.Option(metavar="N", help="A greater one goes first where runs wait.")] = 0,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="To find the run by; may be said again.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run and print its result; Ctrl-C leaves it running.")] = False,
    json: Json = False,
) -> int:
    """Hand a run to the cluster and print its id: it goes on without this terminal, and after every restart."""
    service.check_session(session)
    service.check_timeout(timeout)
    given = read_input(input)
    labels = dict(_label(text) for text in label or [])

    async def hand_over(flow: Workflow, results: TextIO) -> int:
        place = service.find_place(storage, read_settings().storage, flow)
        cluster = cluster_at(place)
        name = session or await free_session(flow.name, Engine(place.url).log)
        handle = await cluster.submit(flow, given, session_id=name, timeout=timeout, new=new, priority=priority, labels=labels)
        watch = command_text("gecko", "runs", "watch", handle.run_id, storage=place.option)
        say(f"run {handle.run_id} belongs to the cluster now, recorded in {cluster.storage}; follow it with: {watch}")
        if not wait:
            results.write(
                (json_text({"run_id": handle.run_id, "status": await cluster.status(handle.run_id)}) if json else handle.run_id) + "\n"
            )
            return 0
        try:
            return await _follow(handle, flow, results, as_json=json)
        except asyncio.CancelledError:
            say(f"run {handle.run_id} goes on; follow it with: {watch}")
            raise

    with results_apart() as results:
        try:
            return asyncio.run(hand_over(service.load(target), results))
        except KeyboardInterrupt:
            return LEFT


async def _follow(handle: RunHandle, flow: Workflow, results: TextIO, *, as_json: bool) -> int:
    layers = layers_of(flow)
    progress = Progress(name for layer in layers for name in layer)
    with open_view(progress, layers, flow.name, quiet=as_json) as view:
        async with aclosing(handle.events(transient=True)) as events:  # type: ignore[arg-type] - it is a generator
            async for event in events:
                view.take(event)
                if as_json:
                    results.write(event_json(event) + "\n")
        output = await handle.wait()
    results.write((json_text({"kind": "result", "run_id": handle.run_id, "status": handle.status, "output": output}) if as_json
                   else result_text(output, wide=results.isatty())) + "\n")  # fmt: skip
    return 0


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidDocument(f"{text!r} is no label: write NAME=VALUE", where="--label")
    return name, value
