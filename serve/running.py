"""A run from the command line, from its first event to what is printed: `gecko run` and `gecko runs resume` share it.

Progress goes to standard error, the result alone to the stream for results; errors are raised for serve/cli.py to print.
"""

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from itertools import chain
from typing import Any, TextIO

from cluster.attend import attend, leave_at_once
from cluster.command import Told, layers_of, result_text
from cluster.notices import failure_text, say
from engine.checkpoint.table import json_text
from engine.core.events import Event
from engine.errors import GeckoError
from engine.handle import RunHandle
from engine.observe.progress import Progress
from engine.workflow import Workflow
from serve.live import open_view
from serve.screen import event_json

PATIENCE = 1.0
"""Seconds that what bodies left behind has to end in, once the command has."""
_left: set[threading.Thread] = set()
"""What waits for bodies that did not end in that time."""


def drive(work: Coroutine[Any, Any, None]) -> None:
    """Do what `asyncio.run` does, without waiting at the end for a body that was stopped and does not listen, or for its threads."""
    runner = asyncio.Runner()
    closing = threading.Thread(target=runner.close, name="gecko-closing", daemon=True)
    try:
        runner.run(work)
    finally:
        asyncio.set_event_loop(None)
        _left.add(closing)
        closing.start()
        closing.join(PATIENCE)
        if closing.is_alive():
            say("left behind: a body that was stopped and goes on all the same")
        else:
            _left.discard(closing)


def leave(status: int) -> None:
    """End the process with a status, and with what was left behind in it."""
    if not _left:
        sys.exit(status)
    for stream in (sys.__stdout__, sys.__stderr__):
        with suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it
            stream.flush()  # type: ignore[union-attr]
    os._exit(status)


async def perform(
    begin: Callable[[], Coroutine[Any, Any, RunHandle]], flow: Workflow, told: Told, results: TextIO, *, as_json: bool
) -> None:
    """Begin a run, show it, and print its result.

    Raises: InvalidGraph, and what `RunHandle.wait` raises; a run that can be resumed says how.
    """
    layers = layers_of(flow)
    progress = Progress(chain(*layers))
    handles: list[RunHandle] = []

    def begun(handle: RunHandle) -> None:
        handles.append(handle)
        told.begun(handle)

    with open_view(progress, layers, flow.name, quiet=as_json) as view:

        def see(event: Event) -> None:
            view.take(event)
            if as_json:
                results.write(event_json(event) + "\n")

        def leave() -> None:
            results.flush()
            leave_at_once()

        output: Any = None
        failure: GeckoError | None = None
        try:
            output = await attend(begin, see, begun=begun, noticed=told.noticed, leave=leave)
        except GeckoError as error:
            told.explain(error)
            failure = error
    if as_json:
        results.write(_result_json(handles, output, failure) + "\n")
    if failure is not None:
        raise failure
    if not as_json:
        results.write(result_text(output, wide=results.isatty()) + "\n")
    results.flush()
    told.ended(progress)


def _result_json(handles: list[RunHandle], output: Any, failure: GeckoError | None) -> str:
    told: dict[str, Any] = {"kind": "result", "run_id": handles[0].run_id if handles else None}
    told["status"] = handles[0].status if handles else "refused"
    if failure is None:
        return json_text({**told, "output": output})
    return json_text({**told, "error": {"type": type(failure).__name__, "message": failure_text(failure)}})
