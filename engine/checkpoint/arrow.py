"""Rows to one Arrow IPC record batch message and back, byte by byte, without pyarrow.

The schema of a log never changes within a format, so every message of it has one layout: a flatbuffer whose numbers lie at
known places and whose last part is the metadata text. Filling that layout takes a few microseconds where pyarrow's writer takes
a hundred, and a process that only writes its log never loads pyarrow (0.4 s, 30 MB). Tests read what is written here with
pyarrow. This module knows Arrow's format (columnar format 1.5, IPC, metadata version 5); it knows nothing of epochs or checksums.
"""

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from engine.ports import Row

_Put = Callable[[bytearray], int]

_INT, _UTF8, _TIMESTAMP, _LARGE_BINARY = 2, 5, 10, 19
_SCHEMA, _RECORD_BATCH = 1, 3
_VERSION_5 = 4
_CONTINUATION = b"\xff\xff\xff\xff"
_NODES, _BUFFERS = 8, 22
#: The key under which a batch's metadata text stands.
METADATA_KEY = b"gecko"


def _align(out: bytearray, to: int, rest: int = 0) -> None:
    out.extend(bytes((rest - len(out)) % to))


def _text(value: bytes) -> _Put:
    def put(out: bytearray) -> int:
        _align(out, 4)
        at = len(out)
        out += struct.pack("<I", len(value)) + value + b"\0"
        return at

    return put


def _vector(*children: _Put) -> _Put:
    def put(out: bytearray) -> int:
        _align(out, 4)
        at = len(out)
        out += struct.pack("<I", len(children)) + bytes(4 * len(children))
        for i, child in enumerate(children):
            place = at + 4 + 4 * i
            struct.pack_into("<I", out, place, child(out) - place)
        return at

    return put


def _structs(raw: bytes) -> _Put:
    """A vector of 16-byte structs, which must lie at a multiple of 8 behind their count."""

    def put(out: bytearray) -> int:
        _align(out, 8, 4)
        at = len(out)
        out += struct.pack("<I", len(raw) // 16) + raw
        return at

    return put


def _table(*slots: tuple[str, int] | _Put | None) -> _Put:
    """A table: a slot is a scalar (struct code and value), something stored elsewhere, or None for its default."""

    def put(out: bytearray) -> int:
        present = [(i, slot if isinstance(slot, tuple) else ("I", 0)) for i, slot in enumerate(slots) if slot is not None]
        present.sort(key=lambda item: -struct.calcsize(item[1][0]))
        offsets, body = [0] * len(slots), bytearray(4)
        for i, (code, value) in present:
            offsets[i] = len(body)
            body += struct.pack("<" + code, value)
        _align(out, 2)
        vtable = len(out)
        out += struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), len(body), *offsets)
        _align(out, 8, 4)  # behind the table's first 4 bytes its largest fields are aligned
        at = len(out)
        struct.pack_into("<i", body, 0, at - vtable)
        out += body
        for i, slot in enumerate(slots):
            if callable(slot):
                struct.pack_into("<I", out, at + offsets[i], slot(out) - at - offsets[i])
        return at

    return put


def _message(kind: int, header: _Put, body: int = 0, text: bytes | None = None) -> bytes:
    """A message's flatbuffer, framed and padded; the metadata text comes last in it."""
    custom = None if text is None else _vector(_table(_text(METADATA_KEY), _text(text)))
    out = bytearray(4)
    root = _table(("h", _VERSION_5), ("B", kind), header, ("q", body), custom)(out)
    struct.pack_into("<I", out, 0, root)
    _align(out, 8)
    return _CONTINUATION + struct.pack("<i", len(out)) + bytes(out)


def _field(name: bytes, kind: int, arrow_type: _Put, nullable: int = 0) -> _Put:
    return _table(_text(name), ("B", nullable), ("B", kind), arrow_type, None, _vector())


def _schema() -> bytes:
    fields = _vector(
        _field(b"seq", _INT, _table(("i", 64), ("B", 1))),
        _field(b"at", _TIMESTAMP, _table(("h", 2), _text(b"UTC"))),
        *(_field(name, _UTF8, _table()) for name in (b"kind", b"node", b"step")),
        *(_field(name, _LARGE_BINARY, _table(), nullable=1) for name in (b"output", b"diff", b"info")),
    )
    return _message(_SCHEMA, _table(("h", 0), fields))


#: The message that opens every segment.
SCHEMA = _schema()


class _Layout(NamedTuple):
    """Where the numbers of a record batch message lie, found by filling it with patterns."""

    head: bytes
    """Everything before the metadata text's length."""
    body: int
    rows: int
    nodes: int
    buffers: int


def _find_layout() -> _Layout:
    patterns = [bytes([byte]) * size for byte, size in ((0x41, 8), (0x42, 8), (0x43, 16 * _NODES), (0x44, 16 * _BUFFERS))]
    body, rows = (struct.unpack("<q", pattern)[0] for pattern in patterns[:2])
    header = _table(("q", rows), _structs(patterns[2]), _structs(patterns[3]))
    whole = _message(_RECORD_BATCH, header, body, b"@text@")
    return _Layout(whole[: whole.index(b"@text@") - 4], *(whole.index(pattern) for pattern in patterns))


_LAYOUT = _find_layout()
#: Offset of the metadata text from the start of a record batch message.
TEXT_AT = len(_LAYOUT.head) + 4
_PAD = [bytes(n) for n in range(8)]
_PACK_NODES = struct.Struct(f"<{2 * _NODES}q")
_PACK_BUFFERS = struct.Struct(f"<{2 * _BUFFERS}q")


def _gaps() -> tuple[struct.Struct, list[bytes]]:
    """What packs a head from the numbers that change and the bytes between them, and those bytes."""
    head = _LAYOUT.head
    ends = [_LAYOUT.body, _LAYOUT.rows, _LAYOUT.nodes, _LAYOUT.buffers, len(head)]
    begins = [8, *(at + size for at, size in zip(ends, (8, 8, _PACK_NODES.size, _PACK_BUFFERS.size), strict=False))]
    gaps = [head[begin:end] for begin, end in zip(begins, ends, strict=True)]
    first, second, third, fourth, fifth = map(len, gaps)
    form = f"<4si{first}sq{second}sq{third}s{2 * _NODES}q{fourth}s{2 * _BUFFERS}q{fifth}sI"
    return struct.Struct(form), gaps


_PACK_HEAD, _GAPS = _gaps()


class _Codes(NamedTuple):
    """How the columns of so many rows are packed, with what fills them up to a multiple of 8."""

    numbers: struct.Struct
    """Two columns of 64-bit numbers."""
    text_offsets: struct.Struct
    value_offsets: struct.Struct
    missing: bytes
    """A column of values that has none: validity and offsets."""


@lru_cache(maxsize=256)
def _codes(n: int) -> _Codes:
    missing = bytes((n + 63) // 64 * 8 + 8 * n + 8)
    return _Codes(struct.Struct(f"<{2 * n}q"), struct.Struct(f"<{n + 1}i{4 * (1 - n % 2)}x"), struct.Struct(f"<{n + 1}q"), missing)


def batch_message(rows: Sequence[Row], text: bytes) -> bytearray:
    """Return the rows as one record batch message, with the metadata text at `TEXT_AT`. Its length is a multiple of 8."""
    n = len(rows)
    nodes = [n, 0] * _NODES
    pieces, buffers, size = _columns(rows, nodes) if n else ([], [0] * (2 * _BUFFERS), 0)
    padding = _PAD[7 - (TEXT_AT + len(text) & 7)] + b"\0"
    first, second, third, fourth, fifth = _GAPS
    told = TEXT_AT + len(text) + len(padding) - 8
    head = _PACK_HEAD.pack(_CONTINUATION, told, first, size, second, n, third, *nodes, fourth, *buffers, fifth, len(text))
    return bytearray().join((head, text, padding, *pieces))


def _columns(rows: Sequence[Row], nodes: list[int]) -> tuple[list[bytes], list[int], int]:
    """Return the columns in pieces, each buffer at a multiple of 8, the buffers' offsets and sizes, and the size of all.

    How many values are missing is put into `nodes`.
    """
    n, pad = len(rows), _PAD
    codes = _codes(n)
    seqs, times, kinds, names, steps, outputs, diffs, infos = zip(*rows, strict=True)
    pieces = [codes.numbers.pack(*seqs, *[round(time * 1_000_000) for time in times])]
    wide, narrow, at = 8 * n + 8, 4 * n + 4, 16 * n
    buffers = [0, 0, 0, 8 * n, 8 * n, 0, 8 * n, 8 * n]
    for texts in (kinds, names, steps):
        joined = "".join(texts)
        data = joined.encode()
        size, begin = len(data), at + codes.text_offsets.size
        sizes = map(len, texts) if size == len(joined) else [len(text.encode()) for text in texts]
        pieces += (codes.text_offsets.pack(*accumulate(sizes, initial=0)), data, pad[-size & 7])
        buffers += (at, 0, at, narrow, begin, size)
        at = begin + size + (-size & 7)
    for i, values in enumerate((outputs, diffs, infos), 5):
        valid, middle, absent = 0, at, values.count(None)
        if absent:
            valid, nodes[2 * i + 1] = (n + 7) // 8, absent
            middle += valid + (-valid & 7)
            if absent == n:
                pieces.append(codes.missing)
                buffers += (at, valid, middle, wide, middle + wide, 0)
                at = middle + wide
                continue
            pieces += (_validity(values), pad[-valid & 7])
            values = [value or b"" for value in values]
        ends = list(accumulate(map(len, values), initial=0))
        size, begin = ends[-1], middle + wide
        pieces += (codes.value_offsets.pack(*ends), *values, pad[-size & 7])
        buffers += (at, valid, middle, wide, begin, size)
        at = begin + size + (-size & 7)
    return pieces, buffers, at


def _validity(values: Sequence[bytes | None]) -> bytes:
    bits = 0
    for i, value in enumerate(values):
        if value is not None:
            bits |= 1 << i
    return bits.to_bytes((len(values) + 7) // 8, "little")


def message_text(data: bytes, at: int) -> bytes:
    """Return the metadata text of the record batch message that starts at `at`."""
    size = int.from_bytes(data[at + TEXT_AT - 4 : at + TEXT_AT], "little")
    return data[at + TEXT_AT : at + TEXT_AT + size]


def has_rows(data: bytes, at: int) -> bool:
    """Say whether the record batch message at `at` holds any row."""
    return any(data[at + _LAYOUT.rows : at + _LAYOUT.rows + 8])


def message_rows(data: bytes, at: int) -> list[Row]:
    """Return the rows of the record batch message at `at`, whose checksum the caller has verified."""
    (n,) = struct.unpack_from("<q", data, at + _LAYOUT.rows)
    if not n:
        return []
    nodes = _PACK_NODES.unpack_from(data, at + _LAYOUT.nodes)
    numbers = _PACK_BUFFERS.unpack_from(data, at + _LAYOUT.buffers)
    body = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    starts = [body + offset for offset in numbers[::2]]
    seqs = struct.unpack_from(f"<{n}q", data, starts[1])
    times = [micros / 1_000_000 for micros in struct.unpack_from(f"<{n}q", data, starts[3])]
    texts = []
    for i in (4, 7, 10):
        offsets, start = struct.unpack_from(f"<{n + 1}i", data, starts[i + 1]), starts[i + 2]
        texts.append([data[start + a : start + b].decode() for a, b in pairwise(offsets)])
    values: list[list[bytes | None]] = []
    for column, i in enumerate((13, 16, 19), 5):
        offsets, start = struct.unpack_from(f"<{n + 1}q", data, starts[i + 1]), starts[i + 2]
        cells: list[bytes | None] = [data[start + a : start + b] for a, b in pairwise(offsets)]
        if nodes[2 * column + 1]:
            bits = int.from_bytes(data[starts[i] : starts[i] + numbers[2 * i + 1]], "little")
            cells = [cell if bits >> k & 1 else None for k, cell in enumerate(cells)]
        values.append(cells)
    return list(map(Row, seqs, times, *texts, *values))
