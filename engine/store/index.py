"""The index beside the log: it grows as runs go on, is caught up with, and is made again.

Whoever drives runs tells a `RunIndex` what was committed; that costs a run nothing but the telling. What goes out waits for company: a
change of status up to a fifth of a second, progress for some seconds. Where the records cannot be written, runs go on, and the index is
caught up with later, from the log if need be.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from engine.checkpoint.codec import Encoded, encode
from engine.checkpoint.digest import RunDigest
from engine.core.events import STATUS_AFTER, Event
from engine.core.ids import make_run_id
from engine.core.run import ready
from engine.core.state import opened
from engine.errors import CheckpointError, GeckoError, RunNotFound, StoreUnavailable
from engine.ports import Log, Row, RunKey, RunSummary
from engine.records import MOST, DeadLetter, Records, RunEntry, RunQuery
from engine.runtime.bulk import beside
from engine.runtime.replay import replay

logger = logging.getLogger(__name__)

EVERY, PROGRESS = 0.2, 5.0
"""Seconds for which a change of status, and mere progress, wait for others."""
MOST_WAITING = 10_000
"""Runs that wait while the records cannot be written; beyond it they are read from the log when they can be."""
LARGEST = 1 << 20
"""Bytes up to which a dead letter has a copy of its step's input."""

_PART = 500
_LONGEST_DELAY = 30.0
_ONGOING = ("running", "pending")


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What an index was made of."""

    runs: int
    letters: int
    """Dead letters."""
    damaged: Sequence[tuple[str, str]] = ()
    """(place or run, what is wrong) of the logs that were left out."""


async def rebuild(log: Log, records: Records) -> Rebuilt:
    """Make the index again from the log.

    Runs that go on meanwhile are right too, as soon as their next event is told. Of dead letters the marks stay that are in the index.

    Raises: StoreUnavailable, UnknownFormat.
    """
    damaged: list[tuple[str, str]] = []
    counts = [0, 0]

    async def source() -> AsyncGenerator[tuple[RunEntry, Sequence[DeadLetter]], None]:
        for summary in await log.scan(on_damage=lambda place, error: damaged.append((place, str(error)))):
            found = await _read(log, summary, damaged)
            if found is not None:
                counts[0] += 1
                counts[1] += len(found[1])
                yield found

    await records.replace_index(source())
    return Rebuilt(*counts, damaged=tuple(damaged))


async def catch_up(log: Log, records: Records) -> int:
    """Put into the index what it lacks, and take out what is gone, by the tails of the logs; how many runs that were.

    Raises: StoreUnavailable, UnknownFormat.
    """
    known: dict[str, tuple[int, float]] = {}
    query = RunQuery(sort="run_id", limit=MOST)
    while True:
        page = await records.list_runs(query)
        known |= {entry.run_id: (entry.seq, entry.started_at) for entry in page.items}
        if page.next is None:
            break
        query = RunQuery(sort="run_id", limit=MOST, after=page.next)
    damaged: list[tuple[str, str]] = []
    summaries = await log.scan(on_damage=lambda place, error: damaged.append((place, str(error))))
    late = (summary for summary in summaries if known.get(summary.run_id) != (summary.seq, round(summary.started_at, 6)))
    changed = 0
    while part := list(islice(late, _PART)):
        found = [run for summary in part if (run := await _read(log, summary, damaged)) is not None]
        await records.put_runs([entry for entry, _ in found])
        await records.put_letters([letter for _, letters in found for letter in letters])
        changed += len(found)
    if damaged:  # which runs those are is not known, and none that is there is to be taken out
        logger.warning("damaged logs are left out of the index", extra={"logs": damaged[:20]})
        return changed
    return changed + await records.drop_runs(known.keys() - {summary.run_id for summary in summaries})


async def _read(log: Log, summary: RunSummary, damaged: list[tuple[str, str]]) -> tuple[RunEntry, Sequence[DeadLetter]] | None:
    try:
        rows = await log.read(summary.key)
    except RunNotFound:
        return None
    except CheckpointError as error:
        damaged.append((summary.run_id, str(error)))
        return None
    digest = RunDigest(summary.key, started_at=round(summary.started_at, 6), updated_at=round(summary.updated_at, 6))
    digest.take(rows)
    return digest.entry(), await letters_of(digest, rows)


async def letters_of(digest: RunDigest, rows: Sequence[Row]) -> list[DeadLetter]:
    """Return a run's dead letters with what their steps were given, as far as the log alone tells."""
    failed = digest.failed_at()
    return digest.letters(await beside(lambda: _inputs(digest.key, rows, failed))) if failed else []


def _inputs(key: RunKey, rows: Sequence[Row], failed: Mapping[int, Iterable[str]]) -> dict[str, bytes]:
    """Return what steps and items were given; those inside of sub-workflows are not told by the log alone."""
    found: dict[str, bytes] = {}
    for seq, steps in failed.items():
        try:
            run, _ = replay(rows, run_id=make_run_id(*key), at=seq)
            waiting = {f"{run.plan.nodes[step.node].name}/{step.at}": step for step in ready(run.plan, run).steps}
            for text in steps:
                whole, _, ordinal = text.rpartition("/")
                step = waiting.get(text) or waiting.get(whole)
                if step is None:
                    continue
                node, value = run.plan.nodes[step.node], step.input
                if text not in waiting:
                    if node.kind != "map":
                        continue
                    value = opened(value if node.over is None else run.state.get(node.over))[int(ordinal)]
                data = value.data if isinstance(value, Encoded) else encode(value)
                if len(data) <= LARGEST:
                    found[text] = bytes(data)
        except GeckoError as error:
            logger.warning("what a failed step was given is not known", extra={"run": make_run_id(*key), "error": str(error)})
    return found


class RunIndex:
    """Takes what was committed, in the event loop that drives runs, and hands it to the records in batches."""

    def __init__(self, records: Records, log: Log, *, coordinator: str = "", every: float = EVERY, progress: float = PROGRESS) -> None:
        """Write nothing yet: `drive` does.

        Args:
            coordinator: Who drives the runs.
            every: Seconds for which a change of status waits for others.
            progress: Seconds for which progress waits.
        """
        self._records = records
        self._log = log
        self._coordinator = coordinator
        self._every = every
        self._progress = progress
        self._digests: dict[RunKey, RunDigest] = {}
        self._unread: set[RunKey] = set()
        """Runs whose beginning was not told."""
        self._changed: dict[RunKey, None] = {}
        self._moved: dict[RunKey, None] = {}
        """Runs whose status is the one that was put."""
        self._missed = False
        """Whether runs were let go of that were not put."""
        self._failures = 0
        self._woken = asyncio.Event()

    def take(self, key: RunKey, rows: Sequence[Row]) -> None:
        """Take committed rows of a run, in order; those of different runs may come in any."""
        if not rows:
            return
        digest = self._digest(key, rows[0].seq)
        if key not in self._unread:
            digest.take(rows)
        self._note(key, any(row.kind in STATUS_AFTER for row in rows))

    def listen(self, key: RunKey) -> Callable[[Event], None]:
        """Return what takes the events of a run, one by one."""

        def take(event: Event) -> None:
            if event.ordinal:
                return
            digest = self._digest(key, event.seq)
            if key not in self._unread:
                digest.take_event(event)
            self._note(key, event.kind in STATUS_AFTER)

        return take

    def _digest(self, key: RunKey, seq: int) -> RunDigest:
        if key not in self._digests:
            self._digests[key] = RunDigest(key, self._coordinator)
        digest = self._digests[key]
        if seq > digest.seq + 1:
            self._unread.add(key)
        return digest

    def _note(self, key: RunKey, is_change: bool) -> None:
        if is_change:
            self._changed[key] = None
        else:
            self._moved[key] = None
        if is_change or len(self._moved) == 1:
            self._woken.set()

    async def drive(self) -> None:
        """Hand over what is taken, until cancelled. What goes wrong here is told to the log of the program and to no run."""
        loop = asyncio.get_running_loop()
        moved_at = loop.time()
        while True:
            try:
                async with asyncio.timeout_at(moved_at + self._progress if self._moved else None):
                    await self._woken.wait()
            except TimeoutError:
                pass
            self._woken.clear()
            is_time = bool(self._moved) and loop.time() >= moved_at + self._progress
            if not (self._changed or is_time or self._missed):
                continue
            await asyncio.sleep(self._every)
            try:
                await self.flush(progress=is_time)
            except (StoreUnavailable, CheckpointError):  # told by `flush`; what was taken is still there
                self._woken.set()
                await asyncio.sleep(min(self._every * 2**self._failures, _LONGEST_DELAY))
            except Exception:
                logger.exception("runs are missing in the index until it is caught up with")
                self._missed = True
            moved_at = loop.time() if is_time else moved_at

    async def flush(self, *, progress: bool = True) -> None:
        """Hand over what was taken.

        Raises: StoreUnavailable, CheckpointError; the first time it is told to the log of the program.
        """
        going, self._changed = self._changed, {}
        if progress:
            going, self._moved = going | self._moved, {}
        waiting = dict(going)
        try:
            if self._missed:
                await catch_up(self._log, self._records)
                self._missed = False
            while part := list(islice(waiting, _PART)):
                await self._put(part)
                for key in part:
                    del waiting[key]
        except (StoreUnavailable, CheckpointError) as error:
            self._keep(waiting)
            self._failures = min(self._failures + 1, 20)
            if self._failures == 1:
                text = "the index of runs cannot be written; runs go on, and it is caught up with later"
                logger.warning(text, extra={"records": self._records.url, "error": str(error)})
            raise
        if self._failures:
            self._failures = 0
            logger.info("the index of runs is written again", extra={"records": self._records.url})

    def _keep(self, keys: Mapping[RunKey, None]) -> None:
        self._changed = dict(keys) | self._changed
        for key in list(islice(self._changed, max(0, len(self._changed) - MOST_WAITING))):
            self._missed = True
            self._let_go(key)

    def _let_go(self, key: RunKey) -> None:
        for those in (self._digests, self._changed, self._moved):
            those.pop(key, None)
        self._unread.discard(key)

    async def _put(self, keys: Sequence[RunKey]) -> None:
        digests: list[RunDigest] = []
        letters: list[DeadLetter] = []
        for key in keys:
            digest = self._digests.get(key)
            if digest is None:
                continue
            failed = digest.failed_at() if key not in self._unread else {}
            if failed or key in self._unread:
                try:
                    rows = await self._log.read(key)
                except (RunNotFound, CheckpointError) as error:  # deleted meanwhile, or damaged
                    logger.warning("a run is left out of the index", extra={"run": make_run_id(*key), "error": str(error)})
                    self._let_go(key)
                    continue
                if key in self._unread:
                    self._unread.discard(key)
                    digest = self._digests[key] = RunDigest(key, self._coordinator)
                digest.take(rows)
                letters += await letters_of(digest, rows)
            digests.append(digest)
        entries = [digest.entry() for digest in digests]
        await self._records.put_runs(entries)
        await self._records.put_letters(letters)
        for digest, entry in zip(digests, entries, strict=True):
            if digest.status not in _ONGOING and digest.seq == entry.seq:
                self._let_go(digest.key)
