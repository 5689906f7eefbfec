"""Values to bytes and back without pickle: msgpack for what JSON can say, one tagged extension for every other storable type.

Values of JSON types are packed at C speed and then only checked; everything else is written by one iterative walk that can
pause, so that a large value costs the event loop slices. What is encoded already is put in as it is. Decoding runs no code, and
trusts no length. What is data is said in `data`, how leaves look on disk in `forms`, arrays and tables in `arrays`; what a value
means to a run is decided elsewhere.
"""

import struct
import sys
from collections.abc import Callable, Collection, Iterator
from gc import get_referents
from itertools import islice
from typing import Any, Final, NamedTuple

from msgspec import MsgspecError
from msgspec.msgpack import Decoder, Ext

from engine.checkpoint import arrays, forms
from engine.checkpoint.data import (
    ATOMS,
    CONTAINERS,
    DATES,
    MAX_DEPTH,
    SHARED,
    Refused,
    arrow_types,
    build,
    foreign,
    hint,
    is_model,
    not_storable,
    private,
    refuse,
    simpler,
    to_data,
    to_key,
)
from engine.checkpoint.forms import COMMON, FORMS, PACK, TAG_FROZENSET, TAG_OF, TAG_TUPLE, is_plain, joined, packed
from engine.core.state import Lazy
from engine.errors import CorruptCheckpoint, NotStorable, UnknownFormat

__all__ = ["MAX_DEPTH", "Encoded", "build", "decode", "encode", "encode_slices", "is_large", "is_model", "private", "to_data", "to_key"]

_PLAIN: Final = ATOMS | {list, dict}
_UNSIZED: Final = (ATOMS | DATES) - {str, bytes}
_END: Final = object()
_CHUNK: Final = 256
"""Elements that the walk tries to pack at once."""
_WRAPS: Final = 8
"""Containers around a kept value up to which nobody looks how deep it is itself: the engine's own are one or two."""
_LARGE_COUNT: Final = 10_000
_LARGE_SIZE: Final = 1 << 20


class Encoded(Lazy):
    """A value kept as its bytes until somebody reads it."""

    __slots__ = ("data",)

    def __init__(self, data: bytes | memoryview) -> None:
        """Keep what `encode` gave."""
        self.data = data

    def load(self) -> object:
        """Return the value, private to the caller."""
        return decode(self.data)


def encode(value: object, *, where: str = "") -> bytes:
    """Return the bytes of a value.

    Args:
        value: A storable value; enums and subclasses of built-in types are written as the plain value.
        where: What the value is to the reader of an error, such as `result` or `state['a']`.

    Raises:
        NotStorable: Something inside is no data; the message has `where`, the path inside the value, and the type.
    """
    kind = type(value)
    if kind in _PLAIN:
        try:
            data = PACK(value)
        except (TypeError, ValueError, OverflowError, RecursionError):
            pass  # a big integer, a lone surrogate, a foreign type, a loop: the walk writes it or says what it is
        else:
            if kind in ATOMS or is_plain(value):
                return data
            data = packed(value, MAX_DEPTH, None)  # type: ignore[arg-type]
            if data is not None:
                return data
        if kind is dict and all(type(k) is str and isinstance(v, Encoded) and len(v.data) <= arrays.SMALL for k, v in value.items()):  # type: ignore[attr-defined]
            data = joined({k: v.data for k, v in value.items()})  # type: ignore[attr-defined]
            if data is not None:
                return data
    elif kind in COMMON:
        data = packed([value], MAX_DEPTH, None)
        if data is not None:
            return data[1:]  # without the list of one
    walk = _Walk(None)
    for _ in _walked(walk, value, where):
        pass
    return b"".join(walk.out)


def encode_slices(value: object, *, where: str = "", limit: int = 262_144) -> Iterator[bytes]:
    """Yield the encoding of a value in pieces, each of which costs bounded time; a piece may be empty.

    The value must not change until the last piece is there. Joined, the pieces decode to what `encode(value)` decodes to.

    Args:
        value: As for `encode`.
        where: As for `encode`.
        limit: The size of a piece in bytes, give or take one element.

    Raises:
        NotStorable: As `encode`, when the walk comes to the place.
    """
    walk = _Walk(limit)
    yield from _walked(walk, value, where)
    yield from walk.flush()


def decode(data: bytes | memoryview) -> object:
    """Return the value that bytes stand for, private to the caller; arrays and tables are read-only views where that is possible.

    Raises:
        CorruptCheckpoint: The bytes are no value.
        UnknownFormat: They hold a type that this version does not know.
    """
    try:
        return _UNPACK(data)
    except UnknownFormat:
        raise
    except _DAMAGE as error:
        raise CorruptCheckpoint(f"These {len(data)} bytes are no stored value: {error or type(error).__name__}") from error


def is_large(value: object) -> bool:
    """Guess, at a bounded cost, whether encoding the value takes more than about 2 ms."""
    if type(value) in _UNSIZED:
        return False
    level: list[Any] = [value]
    count = size = 0
    for _ in range(MAX_DEPTH):
        sample = level if len(level) <= 512 else level[:: len(level) // 256]
        size += sum(map(sys.getsizeof, sample)) * len(level) // len(sample)
        if not COMMON.issuperset(map(type, sample)):
            views = (foreign("numpy", "ndarray"), *arrow_types())  # their size is that of what they look at
            seen = sum(len(x.data) if isinstance(x, Encoded) else x.nbytes for x in sample if isinstance(x, (Encoded, *views)))
            size += seen * len(level) // len(sample)
        level = [x for x in level if type(x) in CONTAINERS]
        count += sum(map(len, level))
        if count > _LARGE_COUNT or size > _LARGE_SIZE:
            return True
        level = get_referents(*level)
        if not level:
            return False
    return True


class _Raw(NamedTuple):
    """Bytes of the encoding that an iterator of a frame made by itself."""

    data: Any


class _Frame(NamedTuple):
    """A container that is being written."""

    items: Iterator[Any]
    container: object
    tag: int | None
    """The tag of an extension whose length is known at its end; None for a text, or where the header stands already."""
    slot: int
    """Where in the pieces the header goes; -1 where it stands already."""
    start: int


def _walked(walk: "_Walk", value: object, where: str) -> Iterator[bytes]:
    try:
        yield from walk.run(value)
    except Refused as refusal:
        raise not_storable(value, refusal, where) from refusal.__cause__


class _Walk:
    """One walk over one value, without recursion: a stack of iterators, and the pieces that they made."""

    __slots__ = ("limit", "lone", "out", "stack", "unsized", "written")

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.lone = False
        self.out: list[Any] = []
        self.stack: list[_Frame] = []
        self.unsized = 0
        self.written = 0

    def run(self, root: object) -> Iterator[bytes]:
        """Write the whole value; with a limit, yield what is ready now and then."""
        mark = steps = 0
        self.write(root)
        while self.stack:
            item = next(self.stack[-1].items, _END)
            if item is _END:
                self.close()
            else:
                self.write(item)
            steps += 1
            if self.limit is not None and (steps >= 1000 or self.written - mark >= self.limit):
                mark, steps = self.written, 0
                yield from self.flush()

    def flush(self) -> Iterator[bytes]:
        """Yield the pieces that are final: none while the length of an open extension is not known."""
        if self.unsized:
            yield b""
            return
        group: list[Any] = []
        size = 0
        out, self.out = self.out[::-1], []
        while out:  # taken one by one, since to free a gigabyte at once takes long
            piece = out.pop()
            group.append(piece)
            size += len(piece)
            if self.limit is not None and size >= self.limit:
                yield b"".join(group)
                group, size = [], 0
        yield b"".join(group)

    def put(self, piece: Any) -> None:
        self.out.append(piece)
        self.written += len(piece)

    def write(self, item: Any) -> None:
        writer = _WRITERS.get(type(item))
        if writer is not None:
            writer(self, item)
        elif isinstance(item, foreign("numpy", "ndarray")):
            _write_array(self, item)
        elif isinstance(item, foreign("numpy", "generic")):
            self.put(PACK(Ext(forms.TAG_NUMBER, arrays.number_form(item))))
        elif isinstance(item, arrow_types()):
            _write_arrow(self, item)
        elif isinstance(item, Encoded):
            _write_encoded(self, item)
        else:
            simple = item.load() if isinstance(item, Lazy) else simpler(item)
            if simple is item:
                refuse(item, hint(item))
            self.write_for(item, simple)

    def write_for(self, item: Any, simple: Any) -> None:
        """Write what stands for an item; a refusal names the item, which is what the whole value holds."""
        try:
            self.write(simple)
        except Refused as refusal:
            raise Refused(item, refusal.reason) if refusal.offender is simple else refusal from refusal.__cause__

    def open(self, items: Iterator[Any], container: object, tag: int | None = None, *, unsized: bool = False) -> None:
        """Go into a container; unsized ones get their header when they close."""
        if len(self.stack) >= MAX_DEPTH:
            loop = any(frame.container is container for frame in self.stack)
            refuse(container, "it contains itself" if loop else f"it is nested deeper than {MAX_DEPTH} levels; make it flat")
        slot = -1
        if unsized:
            slot = len(self.out)
            self.out.append(b"")
            self.unsized += 1
        self.stack.append(_Frame(items, container, tag, slot, self.written))

    def close(self) -> None:
        frame = self.stack.pop()
        if frame.slot < 0:
            return
        tag = forms.TAG_TEXT if frame.tag is None and self.lone else frame.tag
        head = self.head(frame.container, self.written - frame.start, 0xDB if tag is None else 0xC9, tag)
        self.out[frame.slot] = head
        self.written += len(head)
        self.unsized -= 1

    def head(self, container: object, size: int, opcode: int, tag: int | None = None) -> bytes:
        """The header with a length of four bytes: of binary (0xC6), text (0xDB), an array (0xDD), a map (0xDF), an extension (0xC9)."""
        if size > 0xFFFF_FFFF:
            refuse(container, "it takes more than 4 GiB; keep it in a file and store the path")
        return struct.pack(">BI", opcode, size) if tag is None else struct.pack(">BIb", opcode, size, tag)

    def at(self) -> int:
        """Where the next piece will stand, counting the headers (of 6 bytes) that are still to come."""
        return self.written + 6 * self.unsized

    def room(self) -> int:
        return MAX_DEPTH - len(self.stack)


def _write_atom(walk: _Walk, item: Any) -> None:
    if walk.limit is not None and type(item) in (str, bytes) and len(item) > walk.limit:
        _write_long(walk, item, walk.limit)
        return
    try:
        walk.put(PACK(item))
    except OverflowError:
        if type(item) is not int:
            refuse(item, "it takes more than 4 GiB; keep it in a file and store the path")
        walk.put(PACK(Ext(forms.TAG_INT, item.to_bytes(item.bit_length() // 8 + 1, "big", signed=True))))
    except UnicodeEncodeError:
        walk.put(PACK(Ext(forms.TAG_TEXT, item.encode("utf-8", "surrogatepass"))))


def _write_long(walk: _Walk, item: str | bytes, limit: int) -> None:
    if isinstance(item, bytes):
        walk.put(walk.head(item, len(item), 0xC6))
        walk.open(_slices(item, limit), item)
        return
    walk.open(_text_parts(walk, item, limit), item, unsized=True)


def _slices(data: bytes | memoryview, limit: int) -> Iterator[_Raw]:
    view = memoryview(data)
    return (_Raw(view[at : at + limit]) for at in range(0, len(view), limit))


def _text_parts(walk: _Walk, item: str, limit: int) -> Iterator[_Raw]:
    walk.lone = False
    for at in range(0, len(item), limit):
        part = item[at : at + limit]
        try:
            yield _Raw(part.encode())
        except UnicodeEncodeError:
            walk.lone = True
            yield _Raw(part.encode("utf-8", "surrogatepass"))


def _write_list(walk: _Walk, item: list[Any]) -> None:
    walk.put(walk.head(item, len(item), 0xDD))
    walk.open(_elements(walk, item, walk.room()), item)


def _write_dict(walk: _Walk, item: dict[Any, Any]) -> None:
    walk.put(walk.head(item, len(item), 0xDF))
    walk.open(_entries(walk, item, walk.room()), item)


def _write_tagged(walk: _Walk, item: Any) -> None:
    tag = TAG_OF[type(item)]
    if len(item) <= _CHUNK:
        data = packed(list(item), walk.room(), walk.limit)
        if data is not None:
            walk.put(PACK(Ext(tag, data)))
            return
    walk.open(_elements(walk, item, walk.room(), hashed=tag != TAG_TUPLE), item, tag, unsized=True)
    walk.put(walk.head(item, len(item), 0xDD))


def _elements(walk: _Walk, items: Collection[Any], room: int, *, hashed: bool = False) -> Iterator[Any]:
    left, source = len(items), iter(items)
    while chunk := list(_steady(source, items)):
        left -= len(chunk)
        data = packed(chunk, room, walk.limit)
        if data is not None:
            yield _Raw(memoryview(data)[_body(len(chunk)) :])
            continue
        for x in chunk:
            yield _hashable(x, items) if hashed else x
    if left:
        refuse(items, "it changed while it was written")


def _entries(walk: _Walk, items: dict[Any, Any], room: int) -> Iterator[Any]:
    left, source = len(items), iter(items.items())
    seen: set[Any] = set()
    while chunk := dict(_steady(source, items)):
        left -= len(chunk)
        data = packed(chunk, room, walk.limit)
        if data is not None:
            yield _Raw(memoryview(data)[_body(len(chunk)) :])
            continue
        for k, v in chunk.items():
            if type(k) in ATOMS:
                yield k
            else:
                key = _hashable(k, items)
                if key is not k:
                    if key in seen or (key != k and key in items):
                        refuse(items, f"two of its keys are the same as data ({key!r}); use keys that differ")
                    seen.add(key)
                yield key
            yield v
    if left:
        refuse(items, "it changed while it was written")


def _steady(source: Iterator[Any], items: object) -> Iterator[Any]:
    try:
        yield from islice(source, _CHUNK)
    except RuntimeError as error:
        raise Refused(items, "it changed while it was written") from error


def _hashable(item: Any, container: object) -> Any:
    """The data form of a key or an element, which has to be hashable when it is read again."""
    if type(item) in SHARED:
        return item
    try:
        return to_key(item)
    except NotStorable as error:
        raise Refused(container, f"the data form of its key or element {item!r:.80} cannot be one") from error


def _body(count: int) -> int:
    """Where the elements of a packed array or map begin; chunks have fewer than 65,536."""
    return 1 if count < 16 else 3


def _write_form(walk: _Walk, item: Any) -> None:
    tag, form = FORMS[type(item)]
    walk.put(PACK(Ext(tag, form(item))))


def _write_encoded(walk: _Walk, item: Encoded) -> None:
    """Put the bytes in as they are, unless arrays in them would come to stand where they cannot be read without a copy."""
    data = item.data
    moved = len(data) > arrays.SMALL and walk.at() % arrays.ALIGN != 0
    if len(walk.stack) > _WRAPS or (moved and arrays.holds_views(data)):
        walk.write_for(item, item.load())
    elif walk.limit is not None and len(data) > walk.limit:
        walk.open(_slices(data, walk.limit), item)
    else:
        walk.put(data)


def _write_array(walk: _Walk, item: Any) -> None:
    array = arrays.plain_array(item)
    head = arrays.array_head(array, at=walk.at() + 6)
    walk.put(walk.head(item, len(head) + array.nbytes, 0xC9, forms.TAG_NDARRAY) + head)
    if array.nbytes:
        walk.open(map(_Raw, arrays.array_parts(array, walk.limit or array.nbytes)), item)


def _write_arrow(walk: _Walk, item: Any) -> None:
    walk.open(map(_Raw, arrays.arrow_parts(item, walk.limit)), item, forms.ARROW_TAGS[arrays.arrow_kind(item)], unsized=True)
    pad = -(walk.at() + 1) % arrays.ALIGN
    walk.put(bytes([pad]) + bytes(pad))


def _revive(tag: int, data: memoryview) -> Any:
    """Read an extension. Tuples and sets are read here and not by a reader of their own: a frame less for each level of nesting."""
    if tag <= TAG_FROZENSET:
        kind = _SEQUENCES.get(tag)
        if kind is not None:
            items = _UNPACK(data)
            if type(items) is not list:
                raise ValueError(f"a {kind.__name__} needs an array")
            return kind(items)
    reader = _READERS.get(tag)
    if reader is None:
        raise UnknownFormat(f"A stored value has the unknown tag {tag}: a newer version of Gecko wrote it; upgrade to read it")
    return reader(data)


_UNPACK: Final = Decoder(ext_hook=_revive).decode
_SEQUENCES: Final = {tag: kind for kind, tag in TAG_OF.items()}
_DAMAGE: Final = (
    MsgspecError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,  # RecursionError and NotImplementedError among them
    MemoryError,
    SyntaxError,
    OSError,  # the key of a zone that is a folder
    struct.error,
)

_WRITERS: Final[dict[type, Callable[[_Walk, Any], None]]] = {
    **dict.fromkeys(ATOMS, _write_atom),
    _Raw: lambda walk, item: walk.put(item.data),
    Encoded: _write_encoded,
    list: _write_list,
    dict: _write_dict,
    **dict.fromkeys(TAG_OF, _write_tagged),
    **dict.fromkeys(FORMS, _write_form),
}

_READERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    **forms.LEAF_READERS,
    forms.TAG_NDARRAY: arrays.read_array,
    forms.TAG_NUMBER: arrays.read_number,
    **{tag: arrays.arrow_reader(kind) for kind, tag in forms.ARROW_TAGS.items()},
}
