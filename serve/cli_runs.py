"""`gecko runs`: lists, shows, follows, resumes, exports and prunes recorded runs.

Use cases are serve/service.py's, texts serve/screen.py's.
"""

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from cluster.command import Told, command_text, fleeting, result_text
from cluster.notices import one_line, say
from engine.checkpoint.table import json_text
from engine.core.ids import make_run_id
from engine.core.plan import from_data, layers
from engine.core.registry import unknown
from engine.core.run import Status
from engine.engine import Engine
from engine.errors import ConfigurationError, UnknownName
from engine.handle import RunHandle
from engine.observe.progress import Progress, counted, seconds_text
from engine.ports import RunSummary
from serve import service, submitted
from serve.live import open_view
from serve.options import Executor, Json, Run, Storage
from serve.running import drive, perform
from serve.screen import ago_text, event_json, event_line, print_columns, results_apart, size_text
from serve.settings import read_settings

runs = typer.Typer(help="Recorded runs, by id, by a unique beginning of it, or by session.", no_args_is_help=False, rich_markup_mode=None)

_LONGEST = 200

After = Annotated[int, typer.Option(metavar="SEQ", help="Only events with a greater number.", min=0)]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Wait for those to come, until nobody drives the run.")]


def _place(storage: str | None, target: str | None = None) -> service.Place:
    """Where runs are recorded; of a workflow that is named, where it says."""
    return service.find_place(storage, read_settings().storage, None if target is None else service.load(target))


def _do(storage: str | None, work: Any) -> Any:
    """Perform `await work(engine)` over the storage."""

    async def perform_it() -> Any:
        engine = service.open_engine(_place(storage))
        if fleeting(engine):
            say("nothing in memory outlives the command that wrote it: what other commands recorded is not here")
        return await work(engine)

    coroutine: Coroutine[Any, Any, Any] = perform_it()
    return asyncio.run(coroutine)


@runs.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Recorded runs, by id, by a unique beginning of it, or by session."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@runs.command("list")
def list_(
    status: Annotated[str | None, typer.Option(metavar="STATUS", help=f"One of {', '.join(service.STATUSES)}.")] = None,
    workflow: Annotated[str | None, typer.Option(metavar="NAME", help="Only runs of this workflow.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="How many at most, 0: all; default: 100, all as JSON.", min=0)] = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """List runs, newest first."""
    found: list[RunSummary] = _do(storage, lambda engine: service.list_runs(engine, status=status, workflow=workflow))
    limit = (0 if json else 100) if limit is None else limit
    shown = found[:limit] if limit else found
    if json:
        typer.echo(json_text([_summary_data(s) for s in shown]))
        return
    print_columns([(s.run_id, service.shown_status(s), ago_text(s.started_at), seconds_text(s.updated_at - s.started_at)) for s in shown])
    if len(shown) < len(found):
        say(f"{counted(len(found) - len(shown), 'more run')}: --limit 0 lists all {len(found):,}")
    elif not found:
        say(f"no runs{' like that' if status or workflow else ''} in {service.url_of(_place(storage))}")


def _summary_data(s: RunSummary) -> dict[str, Any]:
    told = {
        "run_id": s.run_id,
        "workflow": s.key.workflow,
        "session": s.key.session,
        "n": s.key.n,
        "status": service.shown_status(s),
    }
    owner = None if s.owner is None else {"host": s.owner.host, "pid": s.owner.pid}
    return {**told, "started_at": s.started_at, "updated_at": s.updated_at, "seq": s.seq, "bytes": s.size, "owner": owner}


@runs.command()
def show(run: Run, storage: Storage = None, json: Json = False) -> None:
    """Show a run step by step: durations, attempts, errors."""
    report: service.RunReport = _do(storage, lambda engine: service.report_of(engine, run))
    if json:
        typer.echo(json_text(asdict(report)))
        return
    from serve.tree import print_report  # it leads to rich

    print_report(report)
    told = {"started": ago_text(report.started_at), "session": report.session, "target": report.target or "code without a name elsewhere"}
    told |= {"resumed": counted(report.resumes, "time")} if report.resumes else {}
    told |= {"input": one_line(result_text(report.input, wide=False), _LONGEST)}
    told |= {"output": one_line(result_text(report.output, wide=False), _LONGEST)} if report.status == "completed" else {}
    told |= {"error": one_line(report.error) + (f"; raised at {report.place}" if report.place else "")} if report.error else {}
    if report.status in ("failed", "timed_out", "paused", "interrupted"):
        words = ("gecko", "runs", "resume", report.run_id, *(() if report.target else ("TARGET",)))
        told["go on"] = command_text(*words, storage=_place(storage).option)
    for name, text in [*told.items(), *(("warning", one_line(text, _LONGEST)) for text in report.conditions)]:
        typer.echo(f"{name:<8} {text}")


@runs.command()
def watch(run: Run, storage: Storage = None, json: Json = False) -> int:
    """Follow a run that another process drives, until it ends or nobody drives it."""
    return _do(storage, lambda engine: _watch(engine, run, as_json=json))


async def _watch(engine: Engine, run: str, *, as_json: bool) -> int:
    key, recorded = await service.recorded_of(engine, run)
    layers = _recorded_layers(recorded.started)
    with open_view(Progress(chain(*layers)), layers, key.workflow, quiet=as_json) as view:
        async with aclosing(service.events_of(engine, make_run_id(*key), follow=True)) as events:
            async for event in events:
                view.take(event)
                if as_json:
                    typer.echo(event_json(event))
    summary = await service.summary_of(engine, make_run_id(*key))
    status = service.shown_status(summary)
    say(f"run {make_run_id(*key)} is {status}" + ("" if status == "completed" else f"; gecko runs show {make_run_id(*key)} says more"))
    return 0 if summary.status == Status.COMPLETED else 1


def _recorded_layers(started: dict[str, Any] | None) -> list[list[str]]:
    """The layers of a recorded definition, in declared order."""
    if started is None:
        return []
    plan = from_data(started["definition"])
    start = started.get("start_node")
    return [sorted(layer, key=plan.index.__getitem__) for layer in layers(plan, start)]


@runs.command()
def logs(run: Run, after: After = 0, follow: Follow = False, storage: Storage = None, json: Json = False) -> None:
    """Print what happened in a run, a line for each event."""
    _do(storage, lambda engine: _print_events(engine, run, after, follow=follow, as_json=json))


@runs.command()
def events(run: Run, after: After = 0, follow: Follow = False, storage: Storage = None, json: Json = True) -> None:
    """Print the committed events of a run as JSON, one a line."""
    _do(storage, lambda engine: _print_events(engine, run, after, follow=follow, as_json=json))


async def _print_events(engine: Engine, run: str, after: int, *, follow: bool, as_json: bool) -> None:
    async with aclosing(service.events_of(engine, run, after=after, follow=follow)) as found:
        async for event in found:
            typer.echo(event_json(event) if as_json else event_line(event))


@runs.command()
def state(
    run: Run,
    at: Annotated[int | None, typer.Option(metavar="SEQ", help="After this event; default: the newest.", min=0)] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="Only this key.")] = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Print the state of a run, now or after one of its events, from its log alone."""
    found: dict[Any, Any] = _do(storage, lambda engine: engine.state(run, at))
    if key is not None and key not in found:
        raise UnknownName(unknown(f"state of run {run!r}: key", key, map(str, found)), where="--key")
    value = found if key is None else found[key]
    typer.echo(json_text(value) if json else result_text(value, wide=sys.stdout.isatty()))


@runs.command()
def resume(
    run: Run,
    target: Annotated[str | None, typer.Argument(metavar="[TARGET]", help="Its workflow; default: as it was started.")] = None,
    accept: Annotated[bool, typer.Option("--accept", help="Go on although recorded nodes are gone or rewired.")] = False,
    takeover: Annotated[bool, typer.Option("--takeover", help="Take it from an owner that seems to live.")] = False,
    executor: Executor = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Go on with a run that stopped or failed; a completed one gives its result."""

    async def perform_it(results: TextIO) -> None:
        place = _place(storage, target)
        engine = service.open_engine(place, executor=executor)
        if target is None and executor is None and not takeover:
            told_by_cluster = await submitted.resume(engine, await engine.find(run), accept=accept)
            if told_by_cluster is not None:
                _tell_asked(*told_by_cluster, place, as_json=json)
                return
        key, flow, go_on = await service.resumer(engine, run, target, accept=accept, takeover=takeover)
        words = ("gecko", "runs", "resume", make_run_id(*key), *filter(None, [target]))
        told = Told(engine, command_text(*words, executor=executor, storage=place.option))

        async def begin() -> RunHandle:
            await told.await_owner(key.workflow, None if takeover else key.session, key.n)
            return await go_on()

        await perform(begin, flow, told, results, as_json=json)

    with results_apart() as results:
        drive(perform_it(results))


@runs.command()
def pause(run: Run, storage: Storage = None, json: Json = False) -> None:
    """Let no further step of a run start; those that run end, and are recorded."""
    _ask(run, "pause", storage, as_json=json)


@runs.command()
def cancel(run: Run, storage: Storage = None, json: Json = False) -> None:
    """Stop a run for good."""
    _ask(run, "cancel", storage, as_json=json)


@runs.command()
def retry(run: Run, storage: Storage = None, json: Json = False) -> None:
    """Let the cluster go on with a run that failed or timed out, from what failed."""
    _ask(run, "retry", storage, as_json=json)


def _ask(run: str, action: str, storage: str | None, *, as_json: bool) -> None:
    """Have something done to a run, by the cluster where that drives it."""

    async def ask(engine: Engine) -> tuple[str, str]:
        return await (submitted.retry(engine, run) if action == "retry" else submitted.stop(engine, run, action))

    run_id, status = _do(storage, ask)
    _tell_asked(run_id, status, _place(storage), as_json=as_json)


def _tell_asked(run_id: str, status: str, place: service.Place, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json_text({"run_id": run_id, "status": status}))
        return
    follow = "" if status in service.ENDED else f"; follow it with: {command_text('gecko', 'runs', 'watch', run_id, storage=place.option)}"
    say(f"run {run_id} is {status}{follow}")


@runs.command()
def export(
    files: Annotated[list[str], typer.Argument(metavar="[RUN]... FILE", help="Runs, and a file: .arrow, .parquet, .csv or .jsonl.")],
    all_runs: Annotated[bool, typer.Option("--all", help="All runs.")] = False,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Write the events of runs to a file, for DuckDB, Polars, pandas or a spreadsheet."""
    *named, file = files
    if all_runs == bool(named):
        raise ConfigurationError("name runs or say --all, and a file: gecko runs export RUN FILE.parquet")
    rows = _do(storage, lambda engine: service.export(engine, None if all_runs else named, Path(file)))
    if json:
        typer.echo(json_text({"file": file, "rows": rows}))
    else:
        say(f"wrote {counted(rows, 'event')} to {file}")


@runs.command()
def prune(
    older_than: Annotated[str, typer.Option(metavar="AGE", help="Only runs that ended longer ago, as 30d, 12h, 0.")] = "30d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be removed, and how much that is; remove nothing.")] = False,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Remove runs that completed, failed, timed out or were cancelled; never one that is paused, interrupted or driven."""
    seconds = service.parse_age(older_than)
    if dry_run:
        _show_prunable(_do(storage, lambda engine: service.prunable(engine, seconds)), older_than, as_json=json)
        return
    count = _do(storage, lambda engine: engine.prune(seconds))
    if json:
        typer.echo(json_text({"removed": count}))
    else:
        say(f"removed {counted(count, 'run')} that ended more than {older_than} ago")


def _show_prunable(found: list[RunSummary], older_than: str, *, as_json: bool) -> None:
    size = sum(s.size for s in found)
    if as_json:
        typer.echo(json_text({"would_remove": [_summary_data(s) for s in found], "bytes": size}))
        return
    print_columns([(s.run_id, s.status, f"ended {ago_text(s.updated_at)}", size_text(s.size)) for s in found])
    say(f"{counted(len(found), 'run')}, {size_text(size)}, ended more than {older_than} ago; removed nothing, since this is a dry run")
