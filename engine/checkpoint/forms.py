"""The tags that stand on disk, the forms of leaves, and chunks of values packed at once.

A number is never given to another type. A chunk of common types is packed at C speed where it is small and flat; what that cannot
write is left to the walk. Arrays and tables have a module of their own.
"""

import struct
import sys
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from gc import get_referents
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Final
from uuid import UUID

from msgspec import Raw
from msgspec.msgpack import Decoder, Encoder, Ext

from engine.checkpoint.data import ARROW_KINDS, ATOMS, CONTAINERS, DATES, MAX_DEPTH, Refused, foreign, name_of, refuse

TAG_TUPLE, TAG_SET, TAG_FROZENSET, TAG_BYTEARRAY, TAG_INT, TAG_TEXT, TAG_COMPLEX = range(1, 8)
TAG_DATETIME, TAG_DATE, TAG_TIME, TAG_DELTA, TAG_DECIMAL, TAG_UUID, TAG_PATH = range(8, 15)
TAG_NDARRAY, TAG_NUMBER = 15, 16
ARROW_TAGS: Final[dict[str, int]] = dict(zip(ARROW_KINDS, range(17, 21), strict=True))

PACK: Final = Encoder().encode
_UNPACK: Final = Decoder().decode
_PLAIN: Final = ATOMS | {list, dict}
COMMON: Final = ATOMS | CONTAINERS | DATES | {complex, Decimal}
"""Types whose values a level-by-level look in C sees whole."""
_SIZED: Final = frozenset({str, bytes, Decimal})

_MANY: Final = 4096
"""Objects that may be packed in one go without a pause."""
_FLAT: Final = 24
"""Levels that may be packed in one go."""


def is_plain(value: object) -> bool:
    """Tell whether a packed value holds JSON types only. Level by level in C, where a walk in Python would cost more than the packing."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = get_referents(*level)
        kinds = set(map(type, level))
        if kinds <= ATOMS:
            return True
        if not kinds <= _PLAIN:
            return False
    return False


def joined(kept: dict[str, bytes | memoryview]) -> bytes | None:
    """Return the bytes of a dict whose values are in theirs, as a wide layer leaves its outputs; None where a key needs the walk."""
    try:
        return PACK({key: Raw(data) for key, data in kept.items()})
    except ValueError:  # a lone surrogate
        return None


def packed(chunk: list[Any] | dict[Any, Any], room: int, limit: int | None) -> bytes | None:
    """Pack a chunk at once where it is small, flat and of common types; None means: element by element."""
    level: list[Any] = [chunk]
    count = size = 0
    plain = True
    for _ in range(min(room, _FLAT)):
        level = get_referents(*level)
        kinds = set(map(type, level))
        count += len(level)
        if not kinds <= COMMON or count > _MANY:
            return None
        if limit is not None and not kinds.isdisjoint(_SIZED):
            size += sum(map(sys.getsizeof, level))
            if size > 8 * limit:
                return None
        plain = plain and kinds <= _PLAIN
        if kinds.isdisjoint(CONTAINERS):
            break
    else:
        return None
    try:
        return PACK(chunk if plain else _swapped(chunk))
    except (OverflowError, ValueError, TypeError, Refused):
        return None  # a big integer, a lone surrogate, a key that is no atom (an Ext has no hash), a zone that cannot be kept


def _swapped(value: Any) -> Any:
    """The same tree with an extension in the place of everything that msgpack does not have. For small values of common types."""
    kind = type(value)
    if kind is list:
        return [x if type(x) in ATOMS else _swapped(x) for x in value]
    if kind is dict:
        return {k if type(k) in ATOMS else _swapped(k): v if type(v) in ATOMS else _swapped(v) for k, v in value.items()}
    if kind in TAG_OF:
        return Ext(TAG_OF[kind], PACK([x if type(x) in ATOMS else _swapped(x) for x in value]))
    if kind in ATOMS:
        return value
    tag, form = FORMS[kind]
    return Ext(tag, form(value))


def _moment(item: datetime | time) -> bytes:
    return PACK([item.replace(tzinfo=None, fold=0).isoformat(), item.fold, _zone(item)])


def _zone(item: datetime | time) -> int | list[Any] | str | None:
    """The zone: None, microseconds east of UTC, those with a name of its own, or the key of a ZoneInfo."""
    zone = item.tzinfo
    if zone is None:
        return None
    if isinstance(zone, foreign("zoneinfo", "ZoneInfo")) and zone.key:  # type: ignore[attr-defined]
        return zone.key  # type: ignore[attr-defined]
    offset = zone.utcoffset(None)
    if offset is None:
        refuse(item, f"its zone is a {name_of(zone)}; use datetime.timezone or zoneinfo.ZoneInfo with a key")
    micros = offset // timedelta(microseconds=1)
    name = zone.tzname(None) if type(zone) is timezone else None
    return micros if name is None or name == timezone(offset).tzname(None) else [micros, name]


def _unzoned(form: Any) -> tzinfo | None:
    if form is None:
        return None
    if isinstance(form, str):
        from zoneinfo import ZoneInfo

        return ZoneInfo(form)
    micros, name = form if isinstance(form, list) else (form, None)
    offset = timedelta(microseconds=micros)
    return timezone(offset) if name is None else timezone(offset, name)


def _read_moment(kind: type[datetime] | type[time]) -> Callable[[memoryview], Any]:
    def read(data: memoryview) -> Any:
        text, fold, zone = _UNPACK(data)
        return kind.fromisoformat(text).replace(tzinfo=_unzoned(zone), fold=fold)

    return read


def _path_form(item: PurePath) -> bytes:
    flavour = b"p" if isinstance(item, Path) else b"w" if isinstance(item, PureWindowsPath) else b"x"
    return flavour + str(item).encode("utf-8", "surrogatepass")


def _read_path(data: memoryview) -> PurePath:
    kind = {b"p": Path, b"w": PureWindowsPath, b"x": PurePosixPath}[bytes(data[:1])]
    return kind(str(data[1:], "utf-8", "surrogatepass"))


TAG_OF: Final[dict[type, int]] = {tuple: TAG_TUPLE, set: TAG_SET, frozenset: TAG_FROZENSET}

FORMS: Final[dict[type, tuple[int, Callable[[Any], bytes]]]] = {
    bytearray: (TAG_BYTEARRAY, bytes),
    complex: (TAG_COMPLEX, lambda x: struct.pack(">dd", x.real, x.imag)),
    datetime: (TAG_DATETIME, _moment),
    date: (TAG_DATE, lambda x: x.isoformat().encode()),
    time: (TAG_TIME, _moment),
    timedelta: (TAG_DELTA, lambda x: PACK([x.days, x.seconds, x.microseconds])),
    Decimal: (TAG_DECIMAL, lambda x: str(x).encode()),
    UUID: (TAG_UUID, lambda x: x.bytes),
    **dict.fromkeys((type(Path()), PurePosixPath, PureWindowsPath), (TAG_PATH, _path_form)),
}
"""Leaves of an exact type: their tag, and their bytes."""

LEAF_READERS: Final[dict[int, Callable[[memoryview], Any]]] = {
    TAG_BYTEARRAY: bytearray,
    TAG_INT: lambda data: int.from_bytes(data, "big", signed=True),
    TAG_TEXT: lambda data: str(data, "utf-8", "surrogatepass"),
    TAG_COMPLEX: lambda data: complex(*struct.unpack(">dd", data)),
    TAG_DATETIME: _read_moment(datetime),
    TAG_DATE: lambda data: date.fromisoformat(str(data, "ascii")),
    TAG_TIME: _read_moment(time),
    TAG_DELTA: lambda data: timedelta(*_UNPACK(data)),
    TAG_DECIMAL: lambda data: Decimal(str(data, "ascii")),
    TAG_UUID: lambda data: UUID(bytes=bytes(data)),
    TAG_PATH: _read_path,
}
"""What reads the bytes under the tag of a leaf."""
