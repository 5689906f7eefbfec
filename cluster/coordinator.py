"""The actor that drives runs on Ray and owns their logs. It decides and commits; code is performed by workers, none of it here.

Every method can be called again after the caller lost its answer. What outlives a call is handed out as bytes and ids, never as references.
"""

import asyncio
import gc
import os
import pickle
from collections.abc import Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from cluster.code import Parcel
from cluster.dispatch import Pool
from cluster.ending import descriptor_of
from cluster.executor import RayExecutor
from cluster.members import bodies
from cluster.port import Kit
from cluster.remote import make_remote
from engine.checkpoint.codec import Encoded, encode, private
from engine.core.events import Event
from engine.core.history import Row
from engine.core.plan import Plan
from engine.core.routing import Next
from engine.errors import GeckoError, InDoubt
from engine.local import LocalRun, driven
from engine.runtime.bulk import beside, encoded, is_long
from engine.runtime.control import Control, Halt
from engine.runtime.session import Request, begin
from engine.store import open_log

ROUND = 5.0
"""Seconds after which a question for events is answered, also without any."""
READER = 60.0
"""Seconds without a question after which a reader of events is forgotten; one that comes back later is served from the log."""
EARLY = 1000
"""So many requests to runs that have not begun are kept: one that never begins leaves its own behind."""
RUNS = 1000
"""So many runs are kept when they have ended, for whoever asks; others are found in the log."""
PARCELS = 64
"""So many plans are kept; one that is asked for again later is sent again."""


class Coordinator:
    """Drives the runs of one script, or of a cluster."""

    def __init__(self) -> None:
        """Nothing is driven yet."""
        gc.freeze()
        # thousands of records live from a layer's start to its end: looking for cycles among them is wasted
        gc.set_threshold(50_000, 20, 20)
        self._remote = make_remote()
        self._pool = Pool(self._remote)
        self._parcels: dict[str, tuple[Parcel, Any]] = {}
        self._runs: dict[str, LocalRun] = {}
        self._readers: dict[str, Reader] = {}
        self._early: dict[str, Halt] = {}
        """Ticket to what was asked of a run before it had begun."""

    async def warm_up(self, script: int) -> list[int]:
        """Start workers, and end with the script, whose process on this node is given; returns the workers' process ids.

        Ray ends an actor of a dead script too, by and by: until then its workers would go on beside those of the run's next owner, for
        half a second of it with nobody who commits.
        """
        if (descriptor := descriptor_of(script)) >= 0:
            asyncio.get_running_loop().add_reader(descriptor, os._exit, 1)
        return await self._remote.warm_up()

    async def start(self, ticket: str, token: str, request: bytes, parcel: bytes | None, place: str | None) -> tuple[str, Any]:
        """Begin a run.

        Args:
            ticket: Names this call: asked again, it is the same run.
            token: Names the plan; with an unknown one, and no parcel, the answer is ("parcel", None).
            request: A pickled `Request` without its plan.
            place: Storage URL, None without.

        Returns:
            ("run", (run id, key, status)) or ("error", pickled error).
        """
        if ticket in self._runs:
            run = self._runs[ticket]
            return "run", (run.run_id, tuple(run.key), run.status)
        if token not in self._parcels and parcel is None:
            return "parcel", None
        held, codes = await self._hold(token, parcel)
        asked = await opened_request(request, held.plan)
        try:
            log = None if place is None else open_log(place)
            begun = await begin(asked, log, lambda: RayExecutor(self._pool, held, codes), Control())
        except GeckoError as error:
            return "error", pickle.dumps(error)
        run = LocalRun(begun, asked, log)
        self._keep(ticket, run)
        return "run", (run.run_id, tuple(run.key), run.status)

    async def _hold(self, token: str, parcel: bytes | None) -> tuple[Parcel, Any]:
        """Return a plan, and what refers to its code in the cluster; `parcel` where the plan is not known yet."""
        if token in self._parcels:
            self._parcels[token] = found = self._parcels.pop(token)  # the newest last
            return found
        assert parcel is not None
        held: Parcel = pickle.loads(parcel)
        codes = self._remote.put(held.codes)
        await self._pool.races.seats.expect(held.plan, Kit(codes, held.cwd, held.paths, bodies(held.plan)))
        while len(self._parcels) >= PARCELS:
            del self._parcels[next(iter(self._parcels))]  # its runs keep what they need
        self._parcels[token] = held, codes
        return held, codes

    def _keep(self, ticket: str, run: LocalRun) -> None:
        """Keep a run under a name, and so many of those that have ended."""
        self._runs[ticket] = run
        if ticket in self._early:
            run.request(self._early.pop(ticket))
        while len(self._runs) > RUNS:
            done = next((t for t, r in self._runs.items() if r.task is None or r.task.done()), None)
            if done is None:
                break
            del self._runs[done]

    async def wait(self, ticket: str) -> tuple[str, bytes | None, bytes | None, bytes | None]:
        """Return (status, pickled error, output's bytes, pickled results of a team alone) when a run has stopped."""
        run = self._runs[ticket]
        await run.wait()
        return await told_end(run)

    async def look(self, ticket: str) -> bytes:
        """Return (status, last, state, history, rows) of a run as it stands, encoded."""
        run = self._runs[ticket]
        return looked(run.status, run.output(), run.state(), run.history(), run.rows())

    async def request(self, ticket: str, halt: int) -> None:
        """Ask a run to stop, maybe one that is only about to begin."""
        if ticket in self._runs:
            self._runs[ticket].request(Halt(halt))
        elif len(self._early) < EARLY:
            self._early[ticket] = Halt(halt)

    async def halt(self, place: str, run_id: str, halt: int) -> bool:
        """Ask a run to stop by its id, and wait until it has; False where it is not driven here."""
        run = driven.get((place, run_id))
        if run is None:
            return False
        run.request(Halt(halt))
        await run.wait()
        return True

    async def events(self, ticket: str, reader: str, after: int, transient: bool) -> list[tuple[Any, ...]] | None:
        """Return the next events for a reader, each as a tuple with its data encoded; [] after a while without any, None after the last."""
        if reader not in self._readers:
            self._readers[reader] = Reader(self._runs[ticket], after, transient=transient)
        held = self._readers[reader]
        held.stay()
        try:
            events = await held.next()
        finally:
            held.leave_in(READER, lambda: self._readers.pop(reader, None))
        found = [(*e[:7], encode(private(e.data)), e.ordinal) for e in events if e is not None]
        if found or not events:
            return found
        held.leave_in(0.0, lambda: self._readers.pop(reader, None))
        return None

    async def statistics(self) -> dict[str, int]:
        """Return what is under way: calls, packs, what workers do of them, seats of members that are idle and busy, runs."""
        idle, busy = self._pool.races.seats.statistics()
        runs = sum(run.task is not None and not run.task.done() for run in self._runs.values())
        return {**self._pool.statistics(), "idle_seats": idle, "busy_seats": busy, "runs": runs}

    # From workers.

    async def report(self, data: bytes) -> None:
        """Take a part of a pack's results in."""
        self._pool.take_report(data)

    async def recalled(self, pack: str) -> bool:
        """Say, when it is so, that what has not started of a pack is wanted back; False at its end."""
        return await self._pool.recalled(pack)

    async def may_go(self, pack: str, number: int, done: bytes) -> bool:
        """Take in what a chain has done, and say when its next step may start."""
        self._pool.take_report(done)
        return await self._pool.may_go(pack, number)

    async def rows(self, number: int) -> bytes:
        """Return the rows of what ran."""
        driver = self._pool.drivers.get(number)
        return encode([list(row) for row in driver.run.rows()] if driver else [])

    async def progress(self, number: int, node: str, step_id: str, done: float, total: float | None, note: str) -> None:
        """Show how far a step is."""
        driver = self._pool.drivers.get(number)
        if driver is not None:
            step = step_id.removeprefix(f"{driver.log_id}/")
            driver.ledger.show("progress", driver.path + node, step, {"done": done, "total": total, "note": note})

    async def checkpoint(self, number: int) -> None:
        """Put a run's events on storage."""
        driver = self._pool.drivers.get(number)
        if driver is not None:
            await driver.ledger.checkpoint()

    async def once_begin(self, number: int, step_id: str, node: str, key: str, again: bool) -> tuple[str, Any]:
        """Commit the intent of an effect; ("done", value's bytes) where its receipt is there, ("doubt", text) where only its intent is."""
        driver = self._pool.drivers[number]
        step = step_id.removeprefix(f"{driver.log_id}/")
        try:
            receipt = await driver.intend(step, driver.path + node, key, again=again)
        except InDoubt as doubt:
            return "doubt", str(doubt)
        return ("go", None) if receipt is None else ("done", receipt)

    async def once_failed(self, number: int, step_id: str, key: str) -> None:
        """Let an effect that failed be tried again."""
        driver = self._pool.drivers[number]
        driver.withdraw(step_id.removeprefix(f"{driver.log_id}/"), key)

    async def once_end(self, number: int, step_id: str, node: str, key: str, data: bytes) -> None:
        """Commit the receipt of an effect."""
        driver = self._pool.drivers[number]
        await driver.receive(step_id.removeprefix(f"{driver.log_id}/"), driver.path + node, key, data)


async def opened_request(request: bytes, plan: Plan) -> Request:
    """Return a request that travelled, with its plan and its input."""
    asked: Request = pickle.loads(request)
    given = asked.input
    if isinstance(given, Encoded):
        given = await beside(given.load) if is_long(given) else given.load()
    return replace(asked, plan=plan, input=given)


async def told_end(run: LocalRun) -> tuple[str, bytes | None, bytes | None, bytes | None]:
    """Return how a run has stopped, as `Coordinator.wait` tells it."""
    if run.error is not None:
        return run.status, pickle.dumps(run.error), None, None
    last, results = run.run().last, run.results()
    told = pickle.dumps([replace(r, result=r.result if isinstance(r.result, Next) else None) for r in results]) if results else None
    return run.status, None, await encoded(last, "the run's output"), told


def looked(status: str, last: Any, state: Any, history: Mapping[str, Any], rows: Iterable[Row]) -> bytes:
    """Return a run as it stands, encoded."""
    return encode([status, last, state, [list(h) for h in history.items()], [list(r) for r in rows]])


class Reader:
    """Who reads a run's events, question by question."""

    def __init__(self, run: LocalRun, after: int, *, transient: bool) -> None:
        """Begin behind the event `after`."""
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(1000)
        self._pump = asyncio.get_running_loop().create_task(self._fill(run, after, transient=transient))
        self._leaving: asyncio.TimerHandle | None = None

    async def _fill(self, run: LocalRun, after: int, *, transient: bool) -> None:
        async with aclosing(run.events(after=after, transient=transient)) as events:  # type: ignore[arg-type] - it is a generator
            async for event in events:
                await self._queue.put(event)
        await self._queue.put(None)

    async def next(self) -> list[Event | None]:
        """Return the next events; none after a while without any, None behind the last."""
        try:
            events = [await asyncio.wait_for(self._queue.get(), ROUND)]
        except TimeoutError:
            return []
        while not self._queue.empty() and len(events) < 1000:
            events.append(self._queue.get_nowait())
        if events[-1] is None:
            self._queue.put_nowait(None)  # for the next question
        return events

    def stay(self) -> None:
        """Forget about leaving."""
        if self._leaving is not None:
            self._leaving.cancel()

    def leave_in(self, seconds: float, left: Callable[[], Any]) -> None:
        """Leave after so many seconds, unless it stays."""

        def leave() -> None:
            self._pump.cancel()
            left()

        self.stay()
        self._leaving = asyncio.get_running_loop().call_later(seconds, leave)
