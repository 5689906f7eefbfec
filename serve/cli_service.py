"""`gecko serve` and `gecko keys`: the HTTP service, and the API keys that open it."""

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

import typer

from cluster.notices import say
from engine.checkpoint.table import json_text
from engine.errors import ConfigurationError
from engine.observe.progress import counted
from engine.records import KeyEntry
from engine.store import open_records
from serve import service
from serve.options import Json, Storage
from serve.screen import ago_text
from serve.settings import Settings, read_settings

T = TypeVar("T")

keys = typer.Typer(help="API keys of the HTTP service: kept hashed, told once.", no_args_is_help=False, rich_markup_mode=None)

Records = Annotated[str | None, typer.Option(metavar="URL", help="Where keys are kept; default: GECKO_RECORDS, else beside the runs.")]
_AGE = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def serve(
    targets: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TARGET]...", help="Workflows to register: modules or files; default: GECKO_MODULES.", show_default=False),
    ] = None,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Default: GECKO_HOST, else 127.0.0.1.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="Default: GECKO_PORT, else 8000.", show_default=False)] = None,
    replicas: Annotated[int | None, typer.Option(metavar="N", min=1, help="Default: GECKO_REPLICAS, else 2.", show_default=False)] = None,
    storage: Storage = None,
    records: Records = None,
) -> None:
    """Serve registered workflows over HTTP on Ray, until Ctrl-C; runs that were begun go on where the cluster does."""
    told = read_settings()
    said = {"modules": tuple(targets) if targets else None, "host": host, "port": port, "replicas": replicas}
    settings = replace(told, **{name: value for name, value in said.items() if value is not None})
    if not settings.modules:
        raise ConfigurationError(
            "no workflows are registered: name modules in GECKO_MODULES, or behind `gecko serve`", where="GECKO_MODULES"
        )
    place, kept = _places(storage, records, settings)
    from serve.registry import read_registry  # it leads to much that other commands do not need

    since = datetime.now(UTC)
    found = read_registry(settings.modules, since=since).find()
    asyncio.run(_tell_first_key(kept))
    from serve import deployment

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end the service, and leave the runs
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        plan = deployment.make_plan(place, kept, settings, since)
        asyncio.run(plan.cluster().survey(60.0))  # coordinators look through the storage as they start, and go on with what they find
        url = deployment.deploy(plan)
        say(f"serving {counted(len(found), 'workflow')} at {url} with {counted(settings.replicas, 'replica')}, runs recorded in {place}")
        say("Ctrl-C ends the service")
        while True:
            signal.pause()
    except KeyboardInterrupt:
        say("ending the service")
    finally:
        deployment.end()


def _places(storage: str | None, records: str | None, settings: Settings) -> tuple[str, str]:
    """Return where runs and records are, as URLs that other processes understand."""
    place = service.url_of(service.find_place(storage, settings.storage))
    if place.startswith("memory:"):
        raise ConfigurationError(
            "what replicas and coordinators share cannot be recorded in memory: name a folder or a database", where=place
        )
    if place.startswith("file://"):
        os.makedirs(place.removeprefix("file://"), exist_ok=True)
    told = records or settings.records
    kept = place if told is None else told if re.match(r"[a-zA-Z][\w+.-]+:", told) else os.path.abspath(told)
    return place, kept


async def _tell_first_key(kept: str) -> None:
    from serve.keys import Keys

    records = open_records(kept)
    made = await Keys(records).make_first()
    await records.close()
    if made is not None:
        say(f"API key {made.entry.id} (admin), told this once: {made.key}")


# Keys.


def _do(storage: str | None, records: str | None, work: Callable[[Any], Awaitable[T]]) -> T:
    """Perform `await work(keys)`."""
    from serve.keys import Keys

    _, kept = _places(storage, records, read_settings())

    async def perform() -> T:
        opened = open_records(kept)
        try:
            return await work(Keys(opened))
        finally:
            await opened.close()

    return asyncio.run(perform())


@keys.callback(invoke_without_command=True)
def group(context: typer.Context) -> None:
    """API keys of the HTTP service: kept hashed, told once."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@keys.command("create")
def create(
    name: Annotated[str, typer.Option(help="What it is for.")] = "cli",
    role: Annotated[
        Literal["viewer", "operator", "admin"], typer.Option(help="A viewer looks, an operator runs, an admin makes keys.")
    ] = "operator",
    expires: Annotated[str | None, typer.Option(metavar="AGE", help="As 90d, 12h; default: never.", show_default=False)] = None,
    storage: Storage = None,
    records: Records = None,
    json: Json = False,
) -> None:
    """Make an API key and print it; nobody can print it again."""
    lifetime = None if expires is None else _age(expires)
    made = _do(storage, records, lambda kept: kept.make(name, role, lifetime=lifetime))
    if json:
        typer.echo(json_text({**_key_data(made.entry), "key": made.key}))
        return
    say(f"API key {made.entry.id} ({role}), told this once:")
    typer.echo(made.key)


@keys.command("list")
def list_(storage: Storage = None, records: Records = None, json: Json = False) -> None:
    """List API keys, oldest first, also those that open nothing any more."""
    found: Sequence[KeyEntry] = _do(storage, records, lambda kept: kept.known())
    if json:
        typer.echo(json_text([_key_data(entry) for entry in found]))
        return
    for entry in found:
        used = f"used {ago_text(entry.last_used_at)}" if entry.last_used_at else "never used"
        typer.echo(f"{entry.id}  {entry.role:<8}  {_state_of(entry):<8}  {entry.name}, made {ago_text(entry.created_at)}, {used}")
    if not found:
        say("no API keys; `gecko serve` makes the first, and so does `gecko keys create`")


@keys.command("revoke")
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="Its id, as `gecko keys list` shows it.", show_default=False)],
    storage: Storage = None,
    records: Records = None,
    json: Json = False,
) -> None:
    """Make an API key open nothing any more, for good."""
    entry = _do(storage, records, lambda kept: kept.revoke(key))
    if json:
        typer.echo(json_text(_key_data(entry)))
    else:
        say(f"API key {entry.id} ({entry.name}) opens nothing any more")


def _age(text: str) -> float:
    found = _AGE.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"--expires takes a number and s, m, h, d or w, as 90d, not {text!r:.40}", where="--expires")
    return int(found[1]) * _UNITS[found[2]]


def _state_of(entry: KeyEntry) -> str:
    now = datetime.now(UTC).timestamp()
    return "valid" if entry.is_valid(now) else "revoked" if entry.revoked_at is not None else "expired"


def _key_data(entry: KeyEntry) -> dict[str, Any]:
    told = {name: getattr(entry, name) for name in ("id", "name", "role", "created_at", "expires_at", "revoked_at", "last_used_at")}
    return {**told, "state": _state_of(entry)}
