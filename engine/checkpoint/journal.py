"""The protocol of a log, over any medium: who may write a run's next events, and what of them counts.

Each function is a generator that yields disk operations and is sent their results; `perform` carries them out on a medium, and a
model checker replays the same generators in every interleaving, with every crash. The order of operations is the protocol:

claim    create the next segment, alone; sync it and its folder; read each unsealed earlier segment and then sync it, so that
         what is sealed was read before it was made durable; write the record with all seals; sync; look.
append   write a batch in one call; sync; look. Only then may anybody act on it.
view     read the newest segment and sync what was read; read what its record seals; look. Only then deliver. To go on from a
         view: read what came behind it, sync, look.
look     the next segment is not there, and after that one's own still is (segments are removed in ascending order).

Nothing here opens files, knows clocks or threads, or parses bytes: places and formats are handed in.
"""

import errno
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from engine.checkpoint.batch import NOTHING, Record, Seal, Segment, Tail
from engine.errors import CorruptCheckpoint
from engine.ports import Owner, Row, RunKey

T = TypeVar("T")


class Present(NamedTuple):
    """The numbers of the segments that are there, ascending."""

    verb = "present"


class Create(NamedTuple):
    """Make an empty segment; False where it exists."""

    n: int
    verb = "create"


class Sync(NamedTuple):
    """Make what a segment holds durable."""

    n: int
    verb = "sync"


class SyncFolder(NamedTuple):
    """Make the segments' names durable."""

    verb = "sync_folder"


class Read(NamedTuple):
    """What a segment holds from a place on; None where it is not there."""

    n: int
    start: int = 0
    verb = "read"


class Write(NamedTuple):
    """Put data at a place of a segment with one call; a short write is an OSError."""

    n: int
    at: int
    data: Any
    verb = "write"


class Exists(NamedTuple):
    """Whether a segment is there, asked anew each time."""

    n: int
    verb = "exists"


class Remove(NamedTuple):
    """Remove a segment; nothing where it is gone."""

    n: int
    verb = "remove"


Disk = Present | Create | Sync | SyncFolder | Read | Write | Exists | Remove
Steps = Generator[Disk, Any, T]


class Place(Protocol):
    """Where one run's segments lie; one method for each disk operation, each raising OSError when the medium fails."""

    def present(self) -> Sequence[int]: ...
    def create(self, n: int) -> bool: ...
    def sync(self, n: int) -> None: ...
    def sync_folder(self) -> None: ...
    def read(self, n: int, start: int = 0) -> bytes | None: ...
    def write(self, n: int, at: int, data: bytes) -> None: ...
    def exists(self, n: int) -> bool: ...
    def remove(self, n: int) -> None: ...


class Format(Protocol):
    """How records and batches are written; the real one is `BatchFormat`, the model checker's is symbols."""

    key: RunKey

    def claim(self, record: Record, rows: Sequence[Row]) -> tuple[Any, Tail]: ...
    def batch(self, record: Record, at: int, rows: Sequence[Row], before: Tail) -> tuple[Any, Tail]: ...
    def segment(self, epoch: int, data: Any, *, seal: Seal | None = None) -> Segment:
        """Read up to the last whole batch, or exactly up to the seal. Raises: CorruptCheckpoint, where data is None too."""
        ...

    def more(self, before: Segment, data: Any) -> Segment:
        """Read on behind the end of what was read before. Raises: CorruptCheckpoint."""
        ...


@dataclass(slots=True, kw_only=True)
class Held:
    """An owner's own segment, as far as it knows it."""

    record: Record
    seal: Seal
    """The end of what was written, synced and looked at; behind it nothing is trusted, whatever a later sync says."""
    tail: Tail
    broken: bool = False
    """Whether a write or a sync failed, so that no more may be written here."""
    made: list[int] = field(default_factory=list)
    """Segments that this owner made since it broke and could not bring to a record."""


class Claimed(NamedTuple):
    """A claim that won."""

    record: Record
    seal: Seal
    """The end of the segment as it is now; there the first batch goes."""
    tail: Tail
    segments: Sequence[Segment]
    """What was committed before, by ascending epoch; empty after a failure of one's own segment."""


class View(NamedTuple):
    """A run as a reader may deliver it."""

    epoch: int
    """The newest segment; 0 where there is none."""
    record: Record | None
    """The newest claim record, by which the run was read."""
    segments: Sequence[Segment]
    provisional: bool = False
    """Whether the newest segment has no record yet, so that its claimer may still cut what was read."""

    @property
    def rows(self) -> list[Row]:
        return [row for segment in self.segments for row in segment.rows]

    @property
    def tail(self) -> Tail:
        return self.segments[-1].tail if self.segments else Tail()

    @property
    def released(self) -> bool:
        return not self.segments or self.segments[-1].released


def perform(steps: Steps[T], place: Place) -> T:
    """Carry out the operations of a generator at a place, and return its answer."""
    value: Any = None
    advance: Any = steps.send
    while True:
        try:
            disk = advance(value)
        except StopIteration as end:
            return end.value
        try:
            value, advance = getattr(place, disk.verb)(*disk), steps.send
        except OSError as error:
            value, advance = error, steps.throw


def look(n: int) -> Steps[bool]:
    """Say whether segment n is still the newest. The order of the two questions matters to a run that is being removed."""
    if (yield Exists(n + 1)):
        return False
    return (yield Exists(n))


def claim(
    form: Format, owner: Owner, *, since: float, deleted: bool = False, broken: Held | None = None, rows: Sequence[Row] = ()
) -> Steps[Claimed | None]:
    """Open the next epoch and seal what came before; None where another claimer was faster, or is newer.

    With `broken` an owner goes on in a new segment after a failure in its own, which it neither reads nor syncs again. The rows
    that failed there stand in the record itself: whoever saw them in the old segment, which the record cuts, finds them here.
    """
    present = yield Present()
    if broken is not None and any(n > broken.record.epoch and n not in broken.made for n in present):
        return None
    epoch = present[-1] + 1 if present else 1
    if not (yield Create(epoch)):
        return None
    if broken is not None:
        broken.made.append(epoch)
    yield Sync(epoch)
    yield SyncFolder()
    if broken is None:
        seals, tail = yield from _find_seals(form, present)
    else:
        seals = dict(broken.record.seals) | {broken.record.epoch: broken.seal} | dict.fromkeys(broken.made[:-1], NOTHING)
        tail = broken.tail
    record = Record(form.key, epoch, owner, since, seals, tail, deleted)
    data, tail = form.claim(record, rows)
    yield Write(epoch, 0, data)
    yield Sync(epoch)
    if not (yield from look(epoch)):
        return None
    segments = [] if deleted or broken is not None else (yield from _read_sealed(form, record))
    return Claimed(record, Seal(1 if rows else 0, len(data)), tail, segments)


def _find_seals(form: Format, present: Sequence[int]) -> Steps[tuple[dict[int, Seal], Tail]]:
    """Seal every segment down to the newest with a record, and take that record's seals for those before."""
    seals: dict[int, Seal] = {}
    tail: Tail | None = None
    for n in reversed(present):
        data = yield Read(n)
        if data is None:
            continue
        yield Sync(n)
        segment = form.segment(n, data)
        if segment.record is None:
            seals[n] = NOTHING
            continue
        if segment.record.deleted:
            return seals | {n: NOTHING}, Tail()
        seals[n] = segment.seal
        return dict(segment.record.seals) | seals, segment.tail
    return seals, tail or Tail()


def _read_sealed(form: Format, record: Record) -> Steps[list[Segment]]:
    """Read every earlier segment exactly up to its seal."""
    segments: list[Segment] = []
    for n, seal in sorted(record.seals.items()):
        if seal == NOTHING:
            continue
        data = yield Read(n)
        segments.append(form.segment(n, data, seal=seal))
    return segments


def append(n: int, at: int, data: Any) -> Steps[bool]:
    """Commit a batch; False where a newer epoch exists, so that its outcome is for the log to tell."""
    yield Write(n, at, data)
    yield Sync(n)
    return (yield from look(n))


def commit(form: Format, held: Held, rows: Sequence[Row], *, since: float, attempts: int = 3) -> Steps[bool]:
    """Append rows as one batch, in a new segment of the same owner when this one breaks; False where a newer epoch exists.

    A failed write or sync is never tried again in its place: a sync that succeeds after one that failed promises nothing.

    Raises: OSError when all attempts failed; the rows may then be handed in again.
    """
    failure: OSError | None = None
    for _ in range(attempts):
        try:
            if held.broken:
                claimed = yield from claim(form, held.record.owner, since=since, broken=held, rows=rows)
                if claimed is None:
                    return False
                held.record, held.seal, held.tail, held.broken, held.made = claimed.record, claimed.seal, claimed.tail, False, []
                return True
            data, tail = form.batch(held.record, held.seal.end, rows, held.tail)
            if not (yield from append(held.record.epoch, held.seal.end, data)):
                return False
            held.seal, held.tail = Seal(held.seal.batches + 1, held.seal.end + len(data)), tail
            return True
        except OSError as error:
            held.broken, failure = True, error
    assert failure is not None
    raise failure


def view(form: Format, *, provisional: bool = False, sync: bool = True) -> Steps[View | None]:
    """Read what is committed; None where the run moved meanwhile, so that the reader begins again.

    While the newest segment has no record there is nothing to deliver (a view without segments, marked provisional); with
    `provisional` the newest record decides, and the answer says that a claim under way may still cut it. Without `sync` the
    answer is for looking at only, since a power failure may take some of it back.
    """
    present = yield Present()
    if not present:
        return View(0, None, ())
    n = newest = present[-1]
    own: Segment | None = None
    for n in reversed(present):
        data = yield Read(n)
        if data is None:
            return None
        own = form.segment(n, data)
        if own.record is not None or not provisional:
            break
    if own is None or own.record is None:
        return View(newest, None, (), provisional=True)
    if own.record.deleted:
        return View(newest, own.record, ())
    if sync:
        yield from _sync_as_reader(n)
    try:
        segments = yield from _read_sealed(form, own.record)
    except CorruptCheckpoint:
        if (yield from look(newest)):
            raise
        return None
    if not (yield from look(newest)):
        return None
    return View(newest, own.record, [*segments, own], provisional=n != newest)


def view_more(form: Format, seen: View) -> Steps[View | None]:
    """Read what was committed behind a view: only what is new, in one segment; None where the run moved, so that a whole view is needed."""
    if not seen.segments or seen.provisional:
        return None
    data = yield Read(seen.epoch, seen.segments[-1].end)
    if data is None:
        return None
    segment = form.more(seen.segments[-1], data)
    yield from _sync_as_reader(seen.epoch)
    if not (yield from look(seen.epoch)):
        return None
    return View(seen.epoch, seen.record, [segment])


def _sync_as_reader(n: int) -> Steps[None]:
    try:
        yield Sync(n)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EINVAL):  # nothing can be lost, or made durable, where nothing is written
            raise


def delete(form: Format, owner: Owner, *, since: float) -> Steps[Claimed | None]:
    """Claim a run and remove what it holds, in ascending order; the claim's own segment stays as a tombstone."""
    claimed = yield from claim(form, owner, since=since, deleted=True)
    if claimed is not None:
        yield from sweep(claimed.record.epoch)
    return claimed


def sweep(tombstone: int) -> Steps[None]:
    """Remove every segment before a tombstone, in ascending order."""
    for n in (yield Present()):
        if n < tombstone:
            yield Remove(n)
    yield SyncFolder()
