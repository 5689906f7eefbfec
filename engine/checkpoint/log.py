"""The log over any medium that keeps segments: the one implementation of the `Log` port for files and memory.

It decides whether an owner lives, carries out journal.py's generators in threads, and keeps the table of runs that this process
drives. Rows become durable in writer.py; what bytes mean is batch.py's.
"""

import asyncio
import atexit
import logging
import os
import random
import secrets
import socket
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from engine.checkpoint.batch import FINAL, RELEASING, BatchFormat, Record, Tail
from engine.checkpoint.intake import Commit
from engine.checkpoint.journal import Claimed, Held, View, claim, delete, perform, sweep, view, view_more
from engine.checkpoint.writer import OpenClaim, Writer, WritingPlace
from engine.errors import CheckpointError, GeckoError, LeaseLost, RunBusy, RunNotFound, StoreUnavailable
from engine.ports import Claim, Owner, Row, RunKey, RunSummary

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks at a dying owner, and at a run that is followed.
_LOOK_AGAIN, _FOLLOW_AGAIN = 0.05, 0.05
#: Seconds that a claim without a record is given to write it, by another claimer and by a reader.
_CLAIM_TIME, _READ_TIME = 0.25, 1.0
#: So often in the time of a lease its owner says that it lives.
BEATS = 4
#: Seconds that the end of a process waits for the last commits.
_EXIT_TIME = 2.0


class MediumPlace(WritingPlace, Protocol):
    """One run's segments, with what lists and cleaning need."""

    def size(self, n: int) -> int: ...
    def read_from(self, n: int, start: int, count: int) -> bytes: ...
    def vanish(self) -> None: ...


class Medium(Protocol):
    """Where segments lie, and how owners are seen to live."""

    url: str
    owner: Owner

    def enter(self) -> None: ...
    def leave(self) -> None: ...
    def lives(self, owner: Owner) -> bool: ...
    def lease(self, seconds: float) -> None: ...
    def beat(self) -> None: ...
    def prune_owners(self) -> None: ...
    def place(self, key: RunKey) -> MediumPlace: ...
    def places(self, workflow: str | None, session: str | None) -> Iterator[tuple[RunKey | None, MediumPlace]]: ...
    def after_fork(self, owner: Owner) -> None: ...


class SegmentLog:
    """Committed events of runs in segments."""

    def __init__(self, medium: Medium) -> None:
        self.url = medium.url
        self._medium = medium
        self._writer = Writer()
        self._lock = threading.Lock()
        self._driven: dict[RunKey, OpenClaim] = {}
        self._claiming: set[RunKey] = set()
        self._beats: threading.Thread | None = None
        keep(self)

    async def claim(self, key: RunKey, *, takeover: bool = False, wait: float = 0.0) -> Claim:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        while True:
            try:
                return await _in_thread(self._claim, key, takeover, unwanted=self._abandon)
            except RunBusy:
                if loop.time() >= until:
                    raise
            await asyncio.sleep(_LOOK_AGAIN)

    def append(self, claim: Claim, rows: Sequence[Row]) -> Commit:
        assert isinstance(claim, OpenClaim)
        return self._writer.append(claim, rows)

    async def release(self, claim: Claim) -> None:
        assert isinstance(claim, OpenClaim)
        try:
            if claim.durable < claim.calls and not claim.told:  # rows that nobody waited for must not be lost in silence
                await self._writer.append(claim, ())
        finally:
            await self._let_go(claim)

    async def read(self, key: RunKey, *, after: int = 0) -> Sequence[Row]:
        return await _in_thread(self._read, key, after)

    async def follow(self, key: RunKey, *, after: int = 0) -> AsyncIterator[Sequence[Row]]:
        seen: View | None = None
        while True:
            rows, seen, last = await _in_thread(self._follow, key, after, seen)
            if rows:
                after = rows[-1].seq
                yield rows
            if last:
                return
            await asyncio.sleep(_FOLLOW_AGAIN)

    async def scan(
        self, *, workflow: str | None = None, session: str | None = None, on_damage: Callable[[str, GeckoError], object] | None = None
    ) -> Sequence[RunSummary]:
        return await _in_thread(self._scan, workflow, session, on_damage or _warn)

    async def delete(self, key: RunKey) -> None:
        await _in_thread(self._delete, key)

    async def prune(self, *, older_than: float) -> int:
        return await _in_thread(self._prune, older_than)

    def keep_lease(self, seconds: float) -> None:
        self._medium.lease(seconds)
        if self._beats is None:
            self._beats = threading.Thread(target=_beat, args=(weakref.ref(self), seconds / BEATS), name="gecko-lease", daemon=True)
            self._beats.start()

    def beat(self) -> None:
        """Say that this process lives."""
        with self._lock:
            self._medium.beat()

    async def close(self) -> None:
        await _in_thread(self._close)

    def after_fork(self, owner: Owner) -> None:
        """Begin anew in a forked child: what the parent drives is not the child's, and its thread is not there."""
        for held in self._driven.values():
            held.ended = LeaseLost("the claim belongs to the process that this one was forked from; claim the run here")
        self._lock, self._driven, self._claiming = threading.Lock(), {}, set()
        self._beats = None
        self._writer.after_fork()
        self._medium.after_fork(owner)

    def finish(self, timeout: float) -> None:
        """Make durable what was appended, as the process ends, and be seen to live no more."""
        self._writer.flush(timeout)
        with self._lock:
            self._medium.leave()

    def _claim(self, key: RunKey, takeover: bool) -> OpenClaim:
        with self._lock:
            held = self._driven.get(key)
            if held is not None and held.driving and not takeover:
                raise busy(key, held.held.record.owner, held.held.record.since)
            if key in self._claiming:
                raise RunBusy(f"run {run_name(key)} is being claimed in this process now; wait for it")
            self._claiming.add(key)
            self._medium.enter()
        place = self._medium.place(key)
        try:
            claimed = self._open(key, place, takeover)
            opened = OpenClaim(key, place, Held(record=claimed.record, seal=claimed.seal, tail=claimed.tail), _rows(claimed))
            with self._lock:
                former, self._driven[key] = self._driven.get(key), opened
        except BaseException:
            place.rest()
            raise
        finally:
            with self._lock:
                self._claiming.discard(key)
        if former is not None:
            self._writer.end(former, LeaseLost(f"run {run_name(key)} was claimed again in this process; stop"))
            self._writer.ask(lambda: self._writer.release(former))
        return opened

    def _open(self, key: RunKey, place: MediumPlace, takeover: bool) -> Claimed:
        """Look whether the run is driven, then claim it; the look comes before anything is written."""
        form = BatchFormat(key, place.path)
        patience = time.monotonic() + _CLAIM_TIME
        for _ in range(1000):
            seen = perform(view(form, sync=False), place)
            if seen is None or (seen.provisional and not takeover and time.monotonic() < patience):
                time.sleep(random.uniform(0.001, 0.01))  # another claimer is at it: let one be first
                continue
            if seen.provisional:
                seen = perform(view(form, sync=False, provisional=True), place) or seen
            if seen.record is not None and not takeover and self._drives(key, seen):
                raise busy(key, seen.record.owner, seen.record.since)
            claimed = perform(claim(form, self._medium.owner, since=time.time()), place)
            if claimed is not None:
                for epoch, end in _cut_now(claimed):
                    where = {"file": place.path(epoch), "offset": end, "epoch": epoch}
                    logger.warning("a torn end of a log was cut", extra={"run": run_name(key), **where})
                return claimed
            patience = time.monotonic() + _CLAIM_TIME
        raise RunBusy(f"run {run_name(key)} is claimed by others again and again; try later")

    def _drives(self, key: RunKey, seen: View) -> bool:
        """Whether the owner of what was seen lives and drives the run."""
        if seen.record is None or seen.record.deleted or seen.released or seen.tail.status in RELEASING:
            return False
        return self._lives(key, seen.record.owner)

    def _lives(self, key: RunKey, owner: Owner) -> bool:
        if owner.id != self._medium.owner.id:
            return self._medium.lives(owner)
        with self._lock:
            held = self._driven.get(key)
        return held is not None and held.driving

    async def _let_go(self, claim: OpenClaim) -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def errand() -> None:
            try:
                self._abandon_now(claim)
            finally:
                _call_in(loop, lambda: done.done() or done.set_result(None))

        self._writer.ask(errand)
        await asyncio.shield(done)

    def _abandon(self, claim: OpenClaim) -> None:
        """Release a claim that nobody waits for any more."""
        self._writer.ask(lambda: self._abandon_now(claim))

    def _abandon_now(self, claim: OpenClaim) -> None:
        try:
            self._writer.release(claim)
        finally:
            self._drop(claim)

    def _drop(self, claim: OpenClaim) -> None:
        with self._lock:
            if self._driven.get(claim.key) is claim:
                del self._driven[claim.key]

    def _view(self, key: RunKey) -> View:
        """Read a run; a claim under way is waited for, and one that never ends is looked past, which is said.

        Raises: RunNotFound.
        """
        place = self._medium.place(key)
        form = BatchFormat(key, place.path)
        until = time.monotonic() + _READ_TIME
        while True:
            late = time.monotonic() > until
            seen = perform(view(form, provisional=late), place)
            if seen is not None and (late or not seen.provisional):
                break
            time.sleep(0.005)
        if seen.record is None or seen.record.deleted:
            raise RunNotFound(f"run {run_name(key)} was not found in {self.url}")
        if seen.provisional:
            logger.warning("a claim of a run was begun and not ended; what was read is provisional", extra={"run": run_name(key)})
        return seen

    def fetch(self, key: RunKey, seqs: Sequence[int]) -> Mapping[int, Row]:
        wanted = set(seqs)
        return {row.seq: row for row in self._view(key).rows if row.seq in wanted}

    def _read(self, key: RunKey, after: int) -> list[Row]:
        rows = self._view(key).rows
        return [row for row in rows if row.seq > after] if after else rows

    def _follow(self, key: RunKey, after: int, before: View | None) -> tuple[list[Row], View, bool]:
        """Return what is new since a view, the view of now, and whether nothing more will come."""
        driven = before is not None and self._drives(key, before)
        seen = None
        if before is not None:
            place = self._medium.place(key)
            seen = perform(view_more(BatchFormat(key, place.path), before), place)
        if seen is None:
            seen = self._view(key)
        rows = [row for row in seen.rows if row.seq > after]
        return rows, seen, before is not None and not driven and seen.epoch == before.epoch

    def _scan(self, workflow: str | None, session: str | None, on_damage: Callable[[str, GeckoError], object]) -> list[RunSummary]:
        found: list[RunSummary] = []
        for key, place, record, tail, released in self._outlines(workflow, session, on_damage):
            if record.deleted:
                continue
            driven = not released and tail.status not in RELEASING and self._lives(key, record.owner)
            found.append(
                RunSummary(
                    key=key,
                    status=tail.status,
                    started_at=tail.started or record.since,
                    updated_at=max(tail.updated, tail.started) or record.since,
                    seq=tail.seq,
                    owner=record.owner if driven else None,
                    size=sum(map(place.size, place.present())),
                )
            )
        found.sort(key=lambda run: (-run.started_at, run.key))
        return found

    def _outlines(
        self, workflow: str | None, session: str | None, on_damage: Callable[[str, GeckoError], object]
    ) -> Iterator[tuple[RunKey, MediumPlace, Record, Tail, bool]]:
        for told, place in self._medium.places(workflow, session):
            form = BatchFormat(told or RunKey("", "", 0), place.path)
            for n in reversed(place.present()):
                try:
                    outline = form.outline(n, place.size(n), lambda start, count, n=n, place=place: place.read_from(n, start, count))
                except CheckpointError as error:
                    on_damage(place.path(n), error)
                    break
                if outline is not None:
                    yield told or outline[0].key, place, *outline
                    break

    def _delete(self, key: RunKey) -> None:
        self._view(key)
        opened = self._claim(key, takeover=False)
        try:
            place, form = opened.place, BatchFormat(key)
            deleted = perform(delete(form, self._medium.owner, since=time.time()), place)
            if deleted is None:
                raise RunBusy(f"run {run_name(key)} was claimed by another owner while it was to be deleted; try again")
            place.cut(deleted.record.epoch, deleted.seal.end)
        finally:
            self._writer.end(opened, LeaseLost(f"run {run_name(key)} was deleted"))
            self._abandon(opened)

    def _prune(self, older_than: float) -> int:
        before, removed = time.time() - older_than, 0
        for key, place, record, tail, _ in self._outlines(None, None, _warn):
            if record.deleted:
                if record.since <= before:
                    perform(sweep(record.epoch), place)
                    place.remove(record.epoch)
                    place.vanish()
            elif tail.status in FINAL and tail.updated <= before:
                try:
                    self._delete(key)
                    removed += 1
                except (RunBusy, RunNotFound, CheckpointError) as error:
                    logger.warning("a run was not pruned", extra={"run": run_name(key), "error": str(error)})
        self._medium.prune_owners()
        return removed

    def _close(self) -> None:
        self._writer.stop()
        with self._lock:
            if not any(held.driving for held in self._driven.values()) and not self._claiming:
                self._medium.leave()


def _beat(log: "weakref.ref[SegmentLog]", every: float) -> None:
    """Say again and again that this process lives, for as long as its log is there."""
    never = threading.Event()
    while (kept := log()) is not None:
        try:
            kept.beat()
        except OSError as error:  # the disk is full or gone: so long nobody else can claim a run either
            logger.warning("A lease could not be kept", extra={"url": kept.url, "error": str(error)})
        del kept
        never.wait(every)


def _warn(place: str, error: GeckoError) -> None:
    logger.warning("a run is left out of the list", extra={"file": place, "error": str(error)})


class _Kept(Protocol):
    """A log that has to know when its process is forked, and when it ends."""

    def after_fork(self, owner: Owner) -> None: ...
    def finish(self, timeout: float) -> None: ...


_LOGS: "weakref.WeakSet[_Kept]" = weakref.WeakSet()
_OWNER: list[Owner] = []


def keep(log: _Kept) -> None:
    """Tell a log when its process is forked, and when it ends, for as long as anybody holds it."""
    _LOGS.add(log)


def process_owner() -> Owner:
    """Return who this process is as an owner of runs: the same answer for as long as it lives, another in a forked child."""
    if not _OWNER:
        _OWNER.append(Owner(id=secrets.token_hex(8), host=socket.gethostname(), pid=os.getpid()))
    return _OWNER[0]


def _after_fork() -> None:
    _OWNER.clear()
    for log in list(_LOGS):
        log.after_fork(process_owner())


def _at_exit() -> None:
    for log in list(_LOGS):
        log.finish(_EXIT_TIME)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


def _rows(claimed: Claimed) -> list[Row]:
    return [row for segment in claimed.segments for row in segment.rows]


def _cut_now(claimed: Claimed) -> Iterator[tuple[int, int]]:
    """Yield epoch and end of the segments whose torn end a claim cut; those before were cut by the owner of the newest of them."""
    epoch = claimed.record.epoch
    for segment in reversed(claimed.segments):
        epoch -= 1
        if segment.torn:
            yield epoch, segment.end
        if segment.record is not None:
            return


def run_name(key: RunKey) -> str:
    """A run's id, quoted."""
    return repr(".".join(map(str, key)))


def busy(key: RunKey, owner: Owner, begun: float) -> RunBusy:
    """Return the refusal of a run that another drives."""
    since = datetime.fromtimestamp(begun, UTC)
    text = (
        f"run {run_name(key)} is driven by process {owner.pid} on {owner.host} since {since:%Y-%m-%d %H:%M:%S} UTC: wait for it, stop it, "
        "or resume with takeover=True"
    )
    return RunBusy(text, host=owner.host, pid=owner.pid, since=since)


def _call_in(loop: asyncio.AbstractEventLoop, call: Callable[[], Any]) -> None:
    try:
        loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop was closed, and nobody waits there any more
        return


async def _in_thread(call: Callable[..., T], *args: Any, unwanted: Callable[[T], None] | None = None) -> T:
    """Do disk work off the loop; `unwanted` gets what came when the caller was cancelled meanwhile.

    Raises: StoreUnavailable for an OSError.
    """
    future = asyncio.get_running_loop().run_in_executor(None, _guarded, call, *args)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        if unwanted is not None:
            future.add_done_callback(lambda done: None if done.cancelled() or done.exception() else unwanted(done.result()))
        raise


def _guarded(call: Callable[..., T], *args: Any) -> T:
    try:
        return call(*args)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise StoreUnavailable(f"the storage cannot be used: {error.strerror or error}{place}; see to the disk, then try again") from error
