"""log-media: what an append costs on each medium: files, SQLite, PostgreSQL.

PostgreSQL is measured where GECKO_BENCH_POSTGRES names a database, else where a local one answers; its schema is removed afterwards.
"""

import asyncio
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Outcome, Scenario, alternate, percentile
from bench.setting import Setting
from engine.checkpoint.codec import encode
from engine.errors import StoreUnavailable
from engine.ports import Claim, Log, Row, RunKey
from engine.store import open_log

LOCAL = "postgresql://postgres@127.0.0.1:5432/postgres"
VALUE = encode({"text": "x" * 300, "number": 1})
RUNS = 50


def rows(seq: int) -> list[Row]:
    """What a layer of one step appends: its end, and the next one's start."""
    at = time.time()
    return [
        Row(2 * seq - 1, at, "step_succeeded", "node", "node/1", VALUE, None, VALUE),
        Row(2 * seq, at, "step_started", "next", "next/1"),
    ]


async def one_run(log: Log, count: int, each: list[float]) -> float:
    """Append to one run, each append awaited before the next; the seconds of all."""
    claim = await log.claim(RunKey("media", secrets.token_hex(4), 1))
    begun = time.perf_counter()
    for seq in range(1, count + 1):
        before = time.perf_counter()
        await log.append(claim, rows(seq))
        each.append(time.perf_counter() - before)
    seconds = time.perf_counter() - begun
    await log.release(claim)
    return seconds


async def many_runs(log: Log, count: int) -> float:
    """Append to many runs at once; the seconds of all."""
    claims = [await log.claim(RunKey("media", secrets.token_hex(4), 1)) for _ in range(RUNS)]

    async def drive(claim: Claim) -> None:
        for seq in range(1, count + 1):
            await log.append(claim, rows(seq))

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for claim in claims:
            group.create_task(drive(claim))
    seconds = time.perf_counter() - begun
    for claim in claims:
        await log.release(claim)
    return seconds


@contextmanager
def postgres() -> Iterator[str | None]:
    """Give the URL of an empty schema; None where no server answers, or its driver is not installed."""
    from sqlalchemy import text

    from engine.errors import ConfigurationError
    from engine.store.database import open_database

    url, schema = os.environ.get("GECKO_BENCH_POSTGRES", LOCAL), f"bench_{secrets.token_hex(6)}"
    try:
        database = open_database(url)
        database.do_now(lambda connection: connection.execute(text(f"CREATE SCHEMA {schema}")))
    except (ConfigurationError, StoreUnavailable):
        yield None
        return
    try:
        yield f"{url}{'&' if '?' in url else '?'}search_path={schema}"
    finally:
        database.do_now(lambda connection: connection.execute(text(f"DROP SCHEMA {schema} CASCADE")))
        database.close_now(10)


def measure(setting: Setting) -> Outcome:
    """Append to each medium in turn, to one run and to many at once."""
    count = setting.size(200, 50)
    with setting.storage() as folder, postgres() as server:
        places: dict[str, str | Path | None] = {"files": folder, "SQLite": f"sqlite:///{folder}/log.db", "PostgreSQL": server}
        logs = {name: open_log(place) for name, place in places.items() if place is not None}
        each: dict[str, list[float]] = {name: [] for name in logs}
        try:
            alone = alternate(
                {name: lambda name=name, log=log: setting.run(one_run(log, count, each[name])) for name, log in logs.items()},
                rounds=setting.rounds,
            )
            together = alternate(
                {name: lambda log=log: setting.run(many_runs(log, 20)) for name, log in logs.items()}, rounds=setting.rounds
            )
            for log in logs.values():
                kept = setting.run(log.scan(workflow="media"))
                setting.checks.that(all(run.seq in (2 * count, 40) for run in kept), "every append is in its run", seen=len(kept))
        finally:
            for log in logs.values():
                setting.run(log.close())
    found = Outcome(series=[series.scaled(1e6 / count, "us an append") for series in alone.values()])
    for name in logs:
        found.figure(f"an append, {name}", alone[name].median / count * 1e6, "us")
        found.figure(f"an append, {name}, 95th percentile", percentile(each[name], 95) * 1e6, "us")
        found.figure(f"{RUNS} runs at once, {name}", RUNS * 20 / together[name].median, "appends a second")
    found.notes = {"appends a round": count, "rounds": setting.rounds, "PostgreSQL": "measured" if server else "no server answers here"}
    return found


SCENARIOS = [
    Scenario(name="log-media", summary="appends of two events, on files, SQLite and PostgreSQL in turn", measure=measure),
]
