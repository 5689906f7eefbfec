"""`python -m cluster run TARGET`: what `ray job submit --working-dir . -- python -m cluster run TARGET` starts.

It drives one run on the cluster that this process belongs to, prints plain lines on standard error and the result on standard output.
It is the batch form of `gecko run`: no terminal, no environment read but for what tells a Ray job.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import chain
from typing import Any

from cluster.attend import attend
from cluster.command import OK, Told, command_text, failure_of, free_session, layers_of, result_text
from cluster.lines import Lines
from cluster.notices import say, show_notices, trace_text
from engine.core.policy import check_limit
from engine.definition.input import read_input
from engine.definition.target import load_target
from engine.engine import Engine
from engine.errors import GeckoError
from engine.handle import RunHandle
from engine.observe.progress import Progress


def arguments_of(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments; ends the process with status 2 where they are wrong."""
    parser = argparse.ArgumentParser(prog="python -m cluster", description="Drive a workflow on a Ray cluster.")
    run = parser.add_subparsers(dest="command", required=True).add_parser("run", help="run a workflow and wait for it")
    run.add_argument("target", metavar="TARGET", help="pkg.module:flow or file.py:flow")
    run.add_argument("--input", metavar="JSON|@FILE|-", help="the run's input")
    run.add_argument("--session", metavar="ID", help="the same session goes on; default: a new one")
    run.add_argument("--new", action="store_true", help="start the session's next run")
    run.add_argument(
        "--storage", metavar="URL", help="where runs are recorded; default: where the workflow says, else ./.gecko, which a Ray job refuses"
    )
    run.add_argument("--timeout", type=float, metavar="S", help="limit of the run in seconds")
    run.add_argument("--executor", choices=("ray", "inline"), default="ray")
    run.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser.parse_args(words)


async def run(arguments: argparse.Namespace) -> Any:
    """Drive the run and return its output.

    Raises: what `RunHandle.wait` raises.
    """
    check_limit(arguments.timeout, "--timeout")
    flow = load_target(arguments.target)
    given = read_input(arguments.input)
    progress = Progress(chain(*layers_of(flow)))
    engine = Engine(flow.storage if arguments.storage is None else arguments.storage, executor=arguments.executor)
    session = arguments.session or await free_session(flow.name, engine.log)

    async def begin() -> RunHandle:
        await told.await_owner(flow.name, None if arguments.new else arguments.session)
        return await engine.start(
            flow, given, session_id=session, timeout=arguments.timeout, executor=arguments.executor, new=arguments.new
        )  # fmt: skip

    executor = None if arguments.executor == "ray" else arguments.executor
    words = ("python", "-m", "cluster", "run", arguments.target)
    told = Told(engine, command_text(*words, session=session, storage=arguments.storage, executor=executor))
    with Lines(progress) as lines:
        try:
            output = await attend(begin, lines.take, begun=told.begun, noticed=told.noticed)
        except GeckoError as error:
            told.explain(error)
            raise
    told.ended(progress)
    return output


def main(words: Sequence[str] | None = None) -> int:
    """Perform the command and return its exit status, those of `gecko`."""
    arguments = arguments_of(sys.argv[1:] if words is None else words)
    show_notices()
    try:
        with redirect_stdout(sys.stderr):  # what bodies print here and in workers is no result
            output = asyncio.run(run(arguments))
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the outermost place: every error becomes a line and an exit status
        if arguments.debug:
            sys.stderr.write(trace_text(error))
        status, line = failure_of(error, traced=arguments.debug)
        say(line)
        return status
    print(result_text(output, wide=False), flush=True)
    return OK


if __name__ == "__main__":
    status = main()
    sys.stdout = sys.stderr  # what workers printed last comes as the connection to Ray ends, and is no result either
    sys.exit(status)
