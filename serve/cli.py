"""The command `gecko`: its commands about workflows, and how errors look. `gecko runs` is in serve/cli_runs.py, the commands about
clusters in serve/cli_cluster.py.

Exit statuses are those of cluster/command.py. The result alone goes to standard output; an error is one line on standard error that says
what to do.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from cluster.attend import LEFT_AT_ONCE
from cluster.command import FAILED, OK, OUTSIDE, USAGE, Told, command_text, failure_of, free_session
from cluster.notices import one_line, say, show_notices, trace_text
from engine import __version__
from engine.checkpoint.table import json_text
from engine.definition.input import read_input
from engine.errors import ConfigurationError, InvalidGraph
from engine.handle import RunHandle
from engine.observe.progress import counted
from engine.workflow import Workflow
from serve import service
from serve.cli_cluster import down, status, up
from serve.cli_dead import dead
from serve.cli_runs import runs
from serve.cli_service import keys, serve
from serve.cli_submit import submit
from serve.options import Executor, Json, Storage, Target
from serve.origin import shadows
from serve.project import make_project
from serve.running import drive, leave, perform
from serve.screen import results_apart
from serve.settings import read_settings

if TYPE_CHECKING:
    from engine.store.index import Rebuilt

#: What typer raises for wrong usage; it brings its own copy of click, or uses the installed one, as its version has it.
ClickException: Any = typer.BadParameter.__bases__[0].__bases__[0]

_MOST_MEMBERS = 8
"""So many members of a team are listed one by one."""

app = typer.Typer(name="gecko", add_completion=False, no_args_is_help=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.add_typer(runs, name="runs")
app.add_typer(dead, name="dead")
app.add_typer(keys, name="keys")
for command_of_clusters in (submit, up, down, status, serve):
    app.command()(command_of_clusters)


@app.callback(invoke_without_command=True)
def gecko(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Durable workflows that run in this process and on Ray, and go on where they stopped."""
    if version:
        typer.echo(f"gecko {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def init(directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where; default: here.")] = Path(), json: Json = False) -> None:
    """Write a small project that runs: a workflow and its test."""
    files = make_project(directory)
    if json:
        typer.echo(json_text({"files": [str(path) for path in files]}))
        return
    flow = directory / "flow.py"
    for path in files:
        typer.echo(f"wrote {path}")
    typer.echo(f"run it with: gecko run {flow}:flow --input '\"One fish. Two fish.\"'", err=True)


@app.command()
def run(  # typer makes each option of a parameter, so that there are more of them than a function should have
    target: Target,
    input: Annotated[str | None, typer.Option(metavar="JSON|@FILE|-", help="The input; default: none.")] = None,
    session: Annotated[str | None, typer.Option(metavar="ID", help="The same session goes on; default: a new one.")] = None,
    new: Annotated[bool, typer.Option("--new", help="Start the session's next run.")] = False,
    storage: Storage = None,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Limit of the run in seconds.")] = None,
    executor: Executor = None,
    no_record: Annotated[bool, typer.Option("--no-record", help="Record nothing.")] = False,
    json: Json = False,
) -> None:
    """Run a workflow: pkg.module:flow or file.py:flow. Always recorded, unless told otherwise."""
    if no_record and (session or new or storage):
        raise ConfigurationError("--no-record goes with neither --session, --new nor --storage: nothing is recorded that could go on")
    service.check_session(session)
    service.check_timeout(timeout)
    given = read_input(input)

    async def perform_it(flow: Workflow, results: TextIO) -> None:
        place = None if no_record else service.find_place(storage, read_settings().storage, flow)
        engine = service.open_engine(place, executor=executor)
        name = session if place is None else session or await free_session(flow.name, engine.log)

        again = command_text("gecko", "run", target, session=name, executor=executor, storage=None if place is None else place.option)
        told = Told(engine, again)

        async def begin() -> RunHandle:
            await told.await_owner(flow.name, None if new else session)
            return await engine.start(flow, given, session_id=name, timeout=timeout, executor=executor, new=new)

        await perform(begin, flow, told, results, as_json=json)

    with results_apart() as results:
        drive(perform_it(service.load(target), results))


@app.command()
def validate(target: Target, json: Json = False) -> None:
    """Say every problem of a workflow; warnings stop nothing."""
    with results_apart() as results:
        flow = service.load(target)
        problems = service.problems_of(flow)
        teams = service.teams_of(flow)
        if json:
            told = [{"kind": p.kind, "text": p.text, "where": p.where, "warning": p.warning} for p in problems]
            groups = {name: service.team_text(team) for name, team in teams.items()}
            results.write(json_text({"name": flow.name, "valid": flow.validate(), "problems": told, "teams": groups}) + "\n")
        else:
            results.writelines(f"team {name!r}: {service.team_text(team)}\n" for name, team in teams.items())
            results.writelines(f"{'warning' if problem.warning else 'error'}: {problem.text}\n" for problem in problems)
    bad = sum(not problem.warning for problem in problems)
    if bad:
        raise InvalidGraph(f"workflow {flow.name!r} has {counted(bad, 'problem')}; nothing was run")
    if not json:
        say(f"workflow {flow.name!r} can run: {counted(len(flow.graph.nodes), 'node')}, {counted(len(flow.graph.edges), 'edge')}")


@app.command()
def graph(target: Target, format: Annotated[Literal["mermaid", "json"], typer.Option(help="How.")] = "mermaid", json: Json = False) -> None:
    """Print the graph of a workflow."""
    with results_apart() as results:
        flow = service.load(target)
        results.write((json_text(service.graph_of(flow)) if json or format == "json" else service.mermaid_of(flow)) + "\n")


@app.command()
def plan(target: Target, json: Json = False) -> None:
    """Print the layers of a workflow, and how each node would be packed on Ray."""
    with results_apart() as results:
        flow = service.load(target)
        layers = service.plan_of(flow)
        if json:
            results.write(json_text({"name": flow.name, "layers": [[_plan_data(node) for node in layer] for layer in layers]}) + "\n")
            return
        for number, layer in enumerate(layers, 1):
            results.write(f"layer {number}\n")
            for node in layer:
                results.writelines(f"{line}\n" for line in _plan_lines(node, node.name, 1))
        later = [name for name in flow.graph.nodes if not any(name == n.name for layer in layers for n in layer)]
        if later:
            results.write(f"reached by jumps or as a fallback alone: {', '.join(later)}\n")


def _plan_data(node: service.NodePlan) -> dict[str, Any]:
    members = [_plan_data(member) for member in node.members]
    team = {"strategy": node.strategy, "members": members} if node.mode == "team" else None
    return {"node": node.name, "mode": node.mode, "map": node.is_map, "why": node.why, "team": team}


def _plan_lines(node: service.NodePlan, name: str, depth: int) -> list[str]:
    """Say how a node, or a member of a team, would be packed; below a team its members, or how many there are of each kind."""
    member = depth > 1
    modes = {"own": f"in a {'process' if member else 'pack'} of its own", "none": "cannot be performed"}
    mode = f"team, {node.strategy} of {len(node.members):,}" if node.mode == "team" else modes.get(node.mode, node.mode)
    mode += ", in a process of its own" if member and node.mode == "sync" else ""
    mode = f"map, each item {mode}" if node.is_map else mode
    lines = [f"{'  ' * depth + name:<30} {mode}{f' ({node.why})' if node.why else ''}"]
    for index, inner in enumerate(node.members[:_MOST_MEMBERS]):
        lines += _plan_lines(inner, f"[{index}] {inner.name}", depth + 1)
    if len(node.members) > _MOST_MEMBERS:
        counts = Counter("no body" if inner.mode == "none" else inner.mode for inner in node.members)
        lines.append(f"{'  ' * (depth + 1)}... of {len(node.members):,}: {', '.join(f'{n:,} {mode}' for mode, n in counts.items())}")
    return lines


@app.command("doctor")
def examine(
    storage: Storage = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the index of runs and dead letters again, from their logs.")] = False,
    json: Json = False,
) -> int:
    """Check the installation and the storage, or make the index of runs again."""
    place = service.find_place(storage, read_settings().storage)
    from serve import doctor  # it asks about every library, which takes a while

    if rebuild:
        return _show_rebuilt(doctor.rebuild(str(place.url)), json=json)
    checks = doctor.examine(str(place.url))
    if json:
        typer.echo(json_text([{"name": c.name, "ok": c.ok, "text": c.text} for c in checks]))
    else:
        for check in checks:
            typer.echo(f"{'ok   ' if check.ok else 'WRONG'}  {check.name:<9} {check.text}")
    return OK if all(check.ok for check in checks) else OUTSIDE


def _show_rebuilt(done: "Rebuilt", *, json: bool) -> int:
    if json:
        damaged = [{"log": log, "error": error} for log, error in done.damaged]
        typer.echo(json_text({"runs": done.runs, "dead_letters": done.letters, "damaged": damaged}))
    else:
        typer.echo(f"indexed {counted(done.runs, 'run')} and {counted(done.letters, 'dead letter')}")
        for log, error in done.damaged:
            typer.echo(f"LEFT OUT  {log}: {one_line(error)}")
    return OUTSIDE if done.damaged else OK


def main() -> None:
    """The script `gecko`."""
    status = command(sys.argv[1:])
    sys.stdout = sys.stderr  # what workers printed last comes as the connection to Ray ends, and is no result either
    leave(status)


def command(arguments: Sequence[str]) -> int:
    """Perform a command; returns its exit status, with its error printed."""
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    debug = "--debug" in words[:end]
    words = [word for i, word in enumerate(words) if word != "--debug" or i > end]
    try:
        settings = read_settings()
        debug = debug or settings.debug
        show_notices(as_json=settings.log == "json")
        if wrong := shadows():
            return _complain("; ".join(wrong), OUTSIDE)
        status = typer.main.get_command(app).main(args=words, prog_name="gecko", standalone_mode=False)
        sys.stdout.flush()
        if status == LEFT_AT_ONCE:  # what typer makes of Ctrl-C
            say("error: interrupted")
    except BaseException as error:  # noqa: BLE001 - the outermost place: every error becomes a line and an exit status
        if debug:
            sys.stderr.write(trace_text(error))
        return _status_of(error, traced=debug)
    return status if isinstance(status, int) else OK


def _status_of(error: BaseException, *, traced: bool) -> int:
    """Print an error in one line and return its exit status."""
    if isinstance(error, typer.Abort):
        return _complain("interrupted", LEFT_AT_ONCE)
    if isinstance(error, BrokenPipeError):
        sys.stdout = None  # type: ignore[assignment] - nobody reads it, so nothing is to be flushed at the end
        return FAILED
    if isinstance(error, ClickException):
        wrong: Any = error
        hint = f" (see {wrong.ctx.command_path} --help)" if getattr(wrong, "ctx", None) else ""
        return _complain(f"{wrong.format_message()}{hint}", USAGE)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILED
    status, line = failure_of(error, traced=traced)
    say(line)
    return status


def _complain(text: str, status: int) -> int:
    say(f"error: {one_line(text)}")
    return status
