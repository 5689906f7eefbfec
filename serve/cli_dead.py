"""`gecko dead`: lists, shows, replays and drops dead letters. Use cases are serve/dead.py's."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cluster.command import command_text, fleeting, result_text
from cluster.notices import one_line, say
from engine.checkpoint.table import json_text
from engine.observe.progress import counted, seconds_text
from engine.records import LETTER_STATUSES, DeadLetter, LetterQuery
from serve import service
from serve.dead import DeadLetters, LetterReport, Replayed, statuses_of
from serve.options import Json, Storage
from serve.screen import ago_text, print_columns
from serve.settings import read_settings

dead = typer.Typer(help="Steps whose attempts are used up.", no_args_is_help=False, rich_markup_mode=None)

Letter = Annotated[str, typer.Argument(metavar="ID", help="A dead letter: its id or a unique beginning of it.", show_default=False)]

_LONGEST = 200
_MOST_STEPS = 30
"""So many of the newest steps of a run are shown."""


@dead.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """Steps whose attempts are used up."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _place(storage: str | None) -> service.Place:
    return service.find_place(storage, read_settings().storage)


def _do(storage: str | None, work: Callable[[DeadLetters], Awaitable[Any]]) -> Any:
    """Perform `await work(letters)` over the storage."""

    async def perform() -> Any:
        engine = service.open_engine(_place(storage))
        if fleeting(engine):
            say("nothing in memory outlives the command that wrote it: what other commands recorded is not here")
        return await work(DeadLetters(engine))

    return asyncio.run(perform())


@dead.command("list")
def list_(
    workflow: Annotated[str | None, typer.Option(metavar="NAME", help="Only of runs of this workflow.")] = None,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="Only of this node.")] = None,
    status: Annotated[
        str | None, typer.Option(metavar="STATUS", help=f"One of {', '.join(LETTER_STATUSES)}, or all; default: open.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="How many at most.", min=1, max=1000)] = 100,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """List dead letters, newest first."""
    query = LetterQuery(workflow=workflow, node=node, status=statuses_of(status), limit=limit)
    page = _do(storage, lambda letters: letters.list(query))
    if json:
        typer.echo(json_text([_letter_data(letter) for letter in page.items]))
        return
    print_columns([(x.id, x.status, x.step_id, ago_text(x.created_at), _error_text(x)) for x in page.items])
    if len(page.items) < page.total:
        say(f"{counted(page.total - len(page.items), 'more dead letter')}: --limit shows more of all {page.total:,}")
    elif not page.total:
        say(f"no dead letters{' like that' if workflow or node or status else ''} in {service.url_of(_place(storage))}")


def _error_text(letter: DeadLetter) -> str:
    if not letter.errors:
        return f"after {counted(letter.attempts, 'attempt')}"
    newest = letter.errors[-1]
    return one_line(f"{newest.type}: {newest.message}", _LONGEST)


def _letter_data(letter: DeadLetter) -> dict[str, Any]:
    """A letter as JSON; its input is shown by `show`."""
    return {name: value for name, value in asdict(letter).items() if name != "input"}


@dead.command()
def show(letter: Letter, storage: Storage = None, json: Json = False) -> None:
    """Show a dead letter: what its step was given, its errors with their tracebacks, and the steps of its run."""
    report: LetterReport = _do(storage, lambda letters: letters.report(letter))
    found = report.letter
    if json:
        told = _letter_data(found) | {"input_known": report.known, "input": report.input}
        history = [asdict(step) for step in report.history]
        typer.echo(json_text(told | {"run_status": report.run_status, "target": report.target, "history": history}))
        return
    given = one_line(result_text(report.input, wide=False), _LONGEST) if report.known else "not known from the log alone"
    attempts = f"{counted(found.attempts, 'attempt')}, the last {ago_text(found.created_at)}"
    told = {"letter": f"{found.id}, {found.status}", "step": found.step_id, "attempts": attempts, "input": given}
    told |= {"replayed": f"in run {found.replay_run_id}"} if found.replay_run_id else {}
    told |= {"run": f"{found.run_id}, {report.run_status or 'not recorded any more'}"}
    for name, text in told.items():
        typer.echo(f"{name:<9} {text}")
    for failure in found.errors:
        typer.echo(f"\nattempt {failure.attempt}, {ago_text(failure.at)}: {one_line(f'{failure.type}: {failure.message}')}")
        if failure.traceback:
            typer.echo("  " + failure.traceback.rstrip().replace("\n", "\n  "))
    _print_history(report)


def _print_history(report: LetterReport) -> None:
    steps = report.history[-_MOST_STEPS:]
    if not steps:
        return
    typer.echo("\nsteps of the run")
    if len(steps) < len(report.history):
        typer.echo(f"  {counted(len(report.history) - len(steps), 'earlier step')}")
    for step in steps:
        took = "" if step.duration is None else f" in {seconds_text(step.duration)}"
        items = "" if step.items is None else f", {step.done:,} of {counted(step.items, 'item')}"
        again = f", attempt {step.attempt}" if step.attempt > 1 else ""
        typer.echo(f"  {step.step:<24} {step.status}{took}{again}{items}")


@dead.command()
def replay(
    letter: Letter,
    accept: Annotated[bool, typer.Option("--accept", help="Go on although recorded nodes are gone or rewired.")] = False,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Let the cluster go on with a dead letter's run, from what failed; asked again, it is the same replay."""

    found: Replayed = _do(storage, lambda letters: letters.replay(letter, accept=accept))
    if json:
        told = {"id": found.letter.id, "status": found.letter.status, "run_id": found.run_id, "run_status": found.run_status}
        typer.echo(json_text(told | {"done": found.done}))
    elif found.done:
        say(f"dead letter {found.letter.id} was replayed in run {found.run_id}, which is {found.run_status}")
    else:
        follow = command_text("gecko", "runs", "watch", found.run_id, storage=_place(storage).option)
        say(f"run {found.run_id} is {found.run_status}; follow it with: {follow}")


@dead.command()
def drop(letter: Letter, storage: Storage = None, json: Json = False) -> None:
    """Take note that nobody wants a dead letter any more; its run stays as it is."""
    found: DeadLetter = _do(storage, lambda letters: letters.drop(letter))
    if json:
        typer.echo(json_text({"id": found.id, "status": found.status}))
    else:
        say(f"dead letter {found.id} of run {found.run_id} is dropped; gecko dead list --status dropped lists it")
