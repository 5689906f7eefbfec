"""Workflows that tests of the service run, here and on Ray: they wait for files, so that a test says when they go on."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from engine import Context, Workflow


async def echo(given: Any) -> Any:
    return given


async def wait_for_file(given: dict[str, Any]) -> str:
    """Wait for the file that the input names, and say so."""
    while not Path(given["file"]).exists():  # noqa: ASYNC110 - a file is no event
        await asyncio.sleep(0.01)
    return "went on"


def need_file(given: dict[str, Any], ctx: Context) -> str:
    """Fail as long as the file is not there."""
    if not Path(given["file"]).exists():
        raise ValueError("the file is not there")
    return "found it"


def mark(given: dict[str, Any], ctx: Context) -> str:
    """Leave a file for this performance of the step, so that a test counts them."""
    folder = Path(given["folder"])
    name = ctx.step_id.replace("/", "_")
    (folder / f"{name}.{os.getpid()}.{time.monotonic_ns()}").touch()
    return ctx.step_id


def _chain(name: str, **bodies: Any) -> Workflow:
    flow = Workflow(name)
    before = None
    for node, body in bodies.items():
        flow.add_node(node, body)
        if before is None:
            flow.set_entry_point(node)
        else:
            flow.add_edge(before, node)
        before = node
    return flow


def _given(ctx: Context) -> Any:
    return ctx.input


echoing = _chain("echo", echo=echo)
waiting = _chain("waiting", first=_given, wait=wait_for_file, last=echo)
failing = _chain("failing", first=_given, need=need_file)
marking = _chain("marking", mark=mark)
odd = _chain("odd", values=lambda given: {"set": {1, 2}, "nan": float("nan"), "bytes": b"\x00", "text": "\ud800"})
FLOWS = [echoing, waiting, failing, marking, odd]
