"""What the segments of a log hold: batches of rows and claim records, as checked Arrow IPC messages.

A segment is an Arrow IPC stream. Each batch's metadata holds one JSON text that begins with the format's number, a checksum
and the size of what it covers: the whole message (the claim record, a segment's first batch, covers the schema before it), with
the checksum's own digits zeroed, and begun with the epoch and the place, so that bytes cannot pass elsewhere for what they were.
Nothing is parsed before its checksum holds. This module cuts torn tails and names damage; who may write when is journal.py's.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from engine.checkpoint.arrow import SCHEMA, TEXT_AT, batch_message, has_rows, message_rows, message_text
from engine.core.events import STATUS_AFTER
from engine.errors import CorruptCheckpoint, UnknownFormat
from engine.ports import Owner, Row, RunKey

FORMAT = 1
#: Statuses after which nobody drives the run.
RELEASING = frozenset(["paused", "completed", "failed", "cancelled", "timed_out"])
#: Statuses after which a run is finished.
FINAL = RELEASING - {"paused"}

_MARK = re.compile(rb'\{"gecko":([0-9]{1,9}),"sum":"([0-9a-f]{8})","size":"([0-9a-f]{12})"')
_SUM_AT, _SIZE_AT = len(b'{"gecko":1,"sum":"'), len(b'{"gecko":1,"sum":"00000000","size":"')
_EMPTY_MARK = b'{"gecko":%d,"sum":"00000000","size":"000000000000",' % FORMAT
#: How far into a message of another format its mark is looked for.
_NEAR = 4096


class Seal(NamedTuple):
    """The committed part of a segment: its last whole batch (how many there are) and where that ends."""

    batches: int
    end: int


class Tail(NamedTuple):
    """What is known of a run after a batch."""

    status: str = "pending"
    seq: int = 0
    started: float = 0.0
    updated: float = 0.0


class Record(NamedTuple):
    """A claim record: who owns an epoch, and where every earlier segment ends."""

    key: RunKey
    epoch: int
    owner: Owner
    since: float
    """When the claim was made, in seconds since 1970."""
    seals: Mapping[int, Seal]
    """By epoch, every earlier segment that holds something of the run."""
    tail: Tail
    """The run as those seals leave it."""
    deleted: bool = False


class Segment(NamedTuple):
    """A segment as far as it is whole."""

    record: Record | None
    """None while the segment has no whole claim record."""
    batches: tuple[int, ...]
    """Where its whole batches begin; the claim record is one of them only where it holds rows."""
    end: int
    tail: Tail
    released: bool
    torn: bool
    """Whether something that is no whole batch lies behind the end."""
    data: bytes
    begin: int = 0
    """Where `data` begins in the segment; what came before was read before."""

    @property
    def seal(self) -> Seal:
        return Seal(len(self.batches), self.end)

    @property
    def rows(self) -> list[Row]:
        """The rows of the batches, decoded now."""
        return [row for at in self.batches for row in message_rows(self.data, at - self.begin)]


NOTHING = Seal(0, 0)


class BatchFormat:
    """How a run's claim records and batches are written into its segments and found there again."""

    def __init__(self, key: RunKey, path: Callable[[int], str] = "segment {}".format) -> None:
        self.key = key
        self._path = path
        self._told: tuple[tuple[Record, str, float] | None, bytes] = (None, b"")
        """The text of the newest batch, and what it was made of: the next one's is often the same."""

    def claim(self, record: Record, rows: Sequence[Row] = ()) -> tuple[bytes, Tail]:
        """Return the first bytes of a segment, the schema and the claim record with its rows, and the run's tail after them."""
        owner, tail = record.owner, _extend(record.tail, rows)
        told = {
            "epoch": record.epoch,
            "owner": owner.id,
            "status": tail.status,
            "started": tail.started,
            "claim": {
                "run": list(self.key),
                "host": owner.host,
                "pid": owner.pid,
                "since": record.since,
                "seq": tail.seq,
                "updated": tail.updated,
                "deleted": record.deleted,
                "seals": [[epoch, *seal] for epoch, seal in sorted(record.seals.items())],
            },
        }
        text = _EMPTY_MARK + json.dumps(told, separators=(",", ":"))[1:].encode()
        return _finish(SCHEMA, rows, text, record.epoch, 0), tail

    def batch(self, record: Record, at: int, rows: Sequence[Row], before: Tail) -> tuple[bytes, Tail]:
        """Return the rows as a batch to lie at `at` in the record's segment, and the run's tail after it."""
        tail = _extend(before, rows)
        made_of = (record, tail.status, tail.started)
        if self._told[0] != made_of:
            self._told = (made_of, b"%b}" % _batch_text(record, tail))
        return _finish(b"", rows, self._told[1], record.epoch, at), tail

    def release(self, record: Record, at: int, tail: Tail) -> bytes:
        """Return the batch that ends an ownership."""
        end = f',"seq":{tail.seq},"updated":{tail.updated!r},"released":true}}'
        return _finish(b"", (), _batch_text(record, tail) + end.encode(), record.epoch, at)

    def segment(self, epoch: int, data: bytes | None, *, seal: Seal | None = None) -> Segment:
        """Read a segment up to its last whole batch, or exactly up to its seal.

        Raises: CorruptCheckpoint where something inside the seal, or before a later whole batch, is damaged;
            UnknownFormat for a batch of a newer format.
        """
        if data is None:
            raise _corrupt(self.key, self._path(epoch), 0, "it is missing")
        file, limit = self._path(epoch), len(data) if seal is None else seal.end
        if seal == NOTHING:
            return Segment(None, (), 0, Tail(), False, False, data)
        record, batches, at = None, [], 0
        while at < limit and (size := _whole(data, at, epoch, file)):
            if at:
                batches.append(at)
            else:
                record = _record(json.loads(message_text(data, len(SCHEMA))))
                if has_rows(data, len(SCHEMA)):
                    batches.append(len(SCHEMA))
            at += size
        tail, released = (record.tail if record else Tail()), False
        if batches:
            tail, released = _tail_after(data, batches[-1])
        found = Segment(record, tuple(batches), at, tail, released, bool(data[at : at + 8].strip(b"\0")), data)
        if seal is not None and found.seal != seal:
            raise _corrupt(self.key, file, at, f"{seal.batches} batches up to byte {seal.end} were committed")
        if seal is None and found.torn and (later := _later_batch(data, at, epoch)):
            raise _corrupt(self.key, file, at, f"a whole batch follows at byte {later}")
        return found

    def more(self, before: Segment, data: bytes) -> Segment:
        """Read the batches that came behind the end of a segment as it was read before; `data` begins there.

        Raises: as `segment` does.
        """
        assert before.record is not None
        epoch, begin = before.record.epoch, before.end
        file, batches, at = self._path(epoch), [], 0
        while size := _whole(data, at, epoch, file, begin=begin):
            batches.append(begin + at)
            at += size
        tail, released = _tail_after(data, batches[-1] - begin) if batches else (before.tail, before.released)
        torn = bool(data[at : at + 8].strip(b"\0"))
        if torn and (later := _later_batch(data, at, epoch, begin)):
            raise _corrupt(self.key, file, begin + at, f"a whole batch follows at byte {later}")
        return Segment(before.record, tuple(batches), begin + at, tail, released, torn, data, begin)

    def outline(self, epoch: int, size: int, read: Callable[[int, int], bytes]) -> tuple[Record, Tail, bool] | None:
        """Return a segment's record, the run's tail and whether it was released, reading little by `read(start, count)`.

        None where it has no whole record. For lists only: nothing between record and tail is checked.
        """
        head = read(0, 1 << 13)
        mark = _MARK.search(head)
        if mark is not None and (needed := int(mark[3], 16)) > len(head):
            head = read(0, min(needed, size))
        if not (begin := _whole(head, 0, epoch, self._path(epoch))):
            return None
        record = _record(json.loads(message_text(head, len(SCHEMA))))
        window = 1 << 16
        while size > begin:
            start = max(begin, size - window)
            data = read(start, size - start)
            for mark in reversed(list(_MARK.finditer(data))):
                at = mark.start() - TEXT_AT
                if at >= 0 and _whole(data, at, epoch, self._path(epoch), begin=start):
                    return record, *_tail_after(data, at)
            if start == begin:
                break
            window *= 8
        tail = _tail_after(head, len(SCHEMA))[0] if has_rows(head, len(SCHEMA)) else record.tail
        return record, tail, False


def batch_rows(data: bytes, epoch: int, at: int, place: str) -> list[Row] | None:
    """Return the rows of one batch that was made to lie at `at`, not at the begin; None where it is not whole.

    Raises: UnknownFormat for a batch of a newer format.
    """
    if not data or _whole(data, 0, epoch, place, begin=at) != len(data):
        return None
    return message_rows(data, 0)


def _extend(tail: Tail, rows: Sequence[Row]) -> Tail:
    if not rows:
        return tail
    status = tail.status
    for row in rows:
        status = STATUS_AFTER.get(row.kind, status)
    return Tail(status, rows[-1].seq, tail.started or rows[0].at, rows[-1].at)


def _batch_text(record: Record, tail: Tail) -> bytes:
    """Return the text of a batch, but for its end."""
    told = f'"epoch":{record.epoch},"owner":{json.dumps(record.owner.id)},"status":"{tail.status}","started":{tail.started!r}'
    return _EMPTY_MARK + told.encode()


def _finish(head: bytes, rows: Sequence[Row], told: bytes, epoch: int, at: int) -> bytes:
    """Join head and message, and put size and checksum into the text, `told`."""
    message = batch_message(rows, told)
    if head:
        message[:0] = head
    text = len(head) + TEXT_AT
    message[text + _SIZE_AT : text + _SIZE_AT + 12] = b"%012x" % len(message)
    message[text + _SUM_AT : text + _SUM_AT + 8] = b"%08x" % crc32(message, _seed(epoch, at))
    return bytes(message)


def _seed(epoch: int, at: int) -> int:
    return crc32(b"%d@%d" % (epoch, at))


def _whole(data: bytes, at: int, epoch: int, file: str, *, begin: int = 0) -> int:
    """Return the size of the whole, checked unit at `at`, or 0. `data` begins at `begin` in the segment."""
    text = at + TEXT_AT + (len(SCHEMA) if at + begin == 0 else 0)
    mark = _MARK.match(data, text)
    if mark is None and (mark := _MARK.search(data, at, at + _NEAR)) is None:
        return 0
    number, size = int(mark[1]), int(mark[3], 16)
    if number <= FORMAT and mark.start() != text:
        return 0
    total, end = mark.start(2), at + size
    if not total + 8 < end <= len(data):
        return 0
    view = memoryview(data)
    check = crc32(view[total + 8 : end], crc32(b"00000000", crc32(view[at:total], _seed(epoch, at + begin))))
    if check != int(mark[2], 16):
        return 0
    if number != FORMAT:
        raise UnknownFormat(
            f"{file} has a batch of format {number} at byte {at + begin}, and this version reads {FORMAT}: update Gecko to read it"
        )
    return size


def _later_batch(data: bytes, after: int, epoch: int, begin: int = 0) -> int:
    """Return where in the segment the next whole batch behind `after` begins, or 0. `data` begins at `begin`.

    A batch is written only when the one before is synced, so a whole one behind a broken one proves damage, not a torn write.
    """
    for mark in _MARK.finditer(data, after):
        at = mark.start() - TEXT_AT
        if at > after and int(mark[1]) == FORMAT and _whole(data, at, epoch, "a segment", begin=begin):
            return begin + at
    return 0


def _tail_after(data: bytes, at: int) -> tuple[Tail, bool]:
    """Return the run's tail after the batch at `at`, and whether that batch ends the ownership."""
    told, rows = json.loads(message_text(data, at)), message_rows(data, at)
    seq, updated = (rows[-1].seq, rows[-1].at) if rows else (told["seq"], told["updated"])
    return Tail(told["status"], seq, told["started"], updated), "released" in told


def _record(told: Mapping[str, Any]) -> Record:
    claim = told["claim"]
    workflow, session, n = claim["run"]
    return Record(
        key=RunKey(workflow, session, n),
        epoch=told["epoch"],
        owner=Owner(id=told["owner"], host=claim["host"], pid=claim["pid"]),
        since=claim["since"],
        seals={epoch: Seal(batches, end) for epoch, batches, end in claim["seals"]},
        tail=Tail(told["status"], claim["seq"], told["started"], claim["updated"]),
        deleted=claim["deleted"],
    )


def _corrupt(key: RunKey, file: str, offset: int, why: str) -> CorruptCheckpoint:
    run = ".".join(map(str, key))
    text = f"the log of run {run!r} is damaged in {file} at byte {offset}: {why}; restore the file from a copy"
    return CorruptCheckpoint(text, file=file, offset=offset)
