"""Values become data, and data becomes what a body asks for.

Models, dataclasses, enums and subclasses become built-in types; what reads data gets containers of its own. What is kept in another
form (`Lazy`) may stand among values that the engine put together, and is loaded on the way. What cannot be stored is refused here in
words; how data becomes bytes is not known here. NumPy, Arrow and pydantic are looked at only where a value of theirs passes.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from logging import getLogger
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final, NoReturn, get_args, get_origin, is_typeddict
from uuid import UUID

from engine.core.state import Lazy
from engine.errors import NotStorable

MAX_DEPTH: Final = 200
"""How deep containers may be nested: what is written here can be read under an ordinary stack."""

ATOMS: Final = frozenset({str, int, float, bool, type(None), bytes})
DATES: Final = frozenset({datetime, date, time, timedelta})
SHARED: Final = ATOMS | DATES | {complex, Decimal, UUID, type(Path()), PurePosixPath, PureWindowsPath}
CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset})
ARROW_KINDS: Final = ("Table", "RecordBatch", "Array", "ChunkedArray")
_KNOWN: Final = SHARED | CONTAINERS | {bytearray}
_LOG = getLogger(__name__)


class Refused(Exception):
    """Something inside a value is no data; who knows the whole value says where it is."""

    def __init__(self, offender: object, reason: str) -> None:
        self.offender, self.reason = offender, reason


def to_data(value: Any, *, where: str = "") -> Any:
    """Return the data form of a value: new containers all the way down, immutable leaves shared.

    Models and dataclasses become dicts, enums their value, NamedTuples tuples, what offers `__arrow_c_stream__` an Arrow table. Arrays are
    shared when they are read-only, else copied. What is kept in another form is loaded. A leaf of an unknown type is passed on; `encode`
    refuses it.

    Args:
        value: Anything.
        where: What the value is to the reader of an error, such as `output of 'a'`.

    Raises:
        NotStorable: The value contains itself, or a set or mapping cannot hold the data forms of its elements; the message has `where`,
            the path inside the value, and the type.
    """
    if type(value) in SHARED:
        return value
    try:
        return _data(value)
    except Refused as refusal:
        raise not_storable(value, refusal, where) from refusal.__cause__
    except RecursionError as error:
        raise not_storable(value, _bottomless(value), where) from error


def to_key(key: Any, *, where: str = "") -> Any:
    """Return the data form of a key, as `to_data` does of a value.

    Raises:
        NotStorable: Its data form cannot be a key.
    """
    data = to_data(key, where=where)
    try:
        hash(data)
    except TypeError as error:
        refusal = Refused(key, "its data form cannot be a key; use text, numbers, tuples or dates")
        raise not_storable(key, refusal, where) from error
    return data


def not_storable(root: object, refusal: Refused, where: str) -> NotStorable:
    """Return the error that says which part of a whole value is no data, and why.

    Args:
        root: The whole value.
        refusal: What was refused inside it.
        where: What the whole value is: `output of 'a'`, whose part is then `output['x'][0] of 'a'`.
    """
    path, kind = path_to(root, refusal.offender), name_of(refusal.offender)
    if path is None:
        return NotStorable(f"{where or 'value'} holds a {kind}, which cannot be stored: {refusal.reason}")
    what, of, whose = (where or "value").rpartition(" of ")
    place = f"{what}{path}{of}{whose}" if of else f"{whose}{path}"
    return NotStorable(f"{place} is of type {kind} and cannot be stored: {refusal.reason}")


def _data(value: Any) -> Any:
    kind = type(value)
    if kind in SHARED:
        return value
    if kind is list or kind is tuple:
        if SHARED.issuperset(map(type, value)):
            return value[:]
        return kind([_data(x) for x in value])
    if kind is dict:
        if ATOMS.issuperset(map(type, value)):
            return {k: v if type(v) in SHARED else _data(v) for k, v in value.items()}
        return _data_keys(value)
    if kind is set or kind is frozenset:
        return _data_elements(kind, value)
    if kind is bytearray:
        return bytearray(value)
    if isinstance(value, Lazy):
        return value.load()
    if isinstance(value, foreign("numpy", "ndarray")):
        return _read_only(value)
    if is_dataclass(kind):
        return {field.name: _data(getattr(value, field.name)) for field in fields(kind)}
    simple = _dumped(value) if hasattr(kind, "__pydantic_fields__") and hasattr(kind, "model_dump") else simpler(value)
    if simple is value:
        return value
    try:
        return _data(simple)
    except Refused as refusal:  # what the whole value holds is the item, not what stands for it
        raise Refused(value, refusal.reason) if refusal.offender is simple else refusal from refusal.__cause__


def _dumped(model: Any) -> dict[str, Any]:
    try:
        return model.model_dump()
    except (TypeError, ValueError) as error:
        raise Refused(model, f"its data form cannot be made: {error}") from error


def _data_keys(value: dict[Any, Any]) -> dict[Any, Any]:
    """Keys become data too; two that would become one are refused, since one of the values would be lost."""
    try:
        data = {_data(k): _data(v) for k, v in value.items()}
    except TypeError as error:
        raise Refused(value, "the data form of one of its keys cannot be a key; use text, numbers, tuples or dates as keys") from error
    if len(data) != len(value):
        refuse(value, "two of its keys are the same as data (an enum is kept as its value); use keys that differ")
    return data


def _data_elements(kind: type, value: Any) -> Any:
    try:
        return kind([_data(x) for x in value])
    except TypeError as error:
        raise Refused(value, "the data form (a dict) of one of its elements cannot be in it; use a list") from error


def _read_only(array: Any) -> Any:
    if array.flags.writeable:
        array = array.copy()
        array.flags.writeable = False
    return array


def private(value: Any) -> Any:
    """Return a private copy of a value that is data already: new lists, dicts and sets, everything immutable shared.

    What is kept in another form, by itself or among values that the engine put together, is loaded.
    """
    kind = type(value)
    if kind in SHARED:
        return value
    if kind is list:
        if SHARED.issuperset(map(type, value)):
            return value[:]
        return [x if type(x) in SHARED else private(x) for x in value]
    if kind is dict:
        if SHARED.issuperset(map(type, value.values())):
            return value.copy()
        return {k: v if type(v) in SHARED else private(v) for k, v in value.items()}
    if kind is set or kind is bytearray:
        return value.copy()  # the elements of a set are hashable, so immutable
    if isinstance(value, tuple):
        copies = [private(x) for x in value]
        return value if all(a is b for a, b in zip(copies, value, strict=True)) else tuple(copies)
    if isinstance(value, Lazy):
        return value.load()
    if isinstance(value, foreign("numpy", "ndarray")):
        return _read_only(value)
    return value


def is_model(annotation: Any) -> bool:
    """Tell whether an annotation is a pydantic model or a dataclass, or holds one (`list[Model]`, `Model | None`)."""
    if isinstance(annotation, type) and (hasattr(annotation, "__dataclass_fields__") or hasattr(annotation, "__pydantic_fields__")):
        return True
    return any(map(is_model, get_args(annotation)))


def build(annotation: Any, value: Any) -> Any:
    """Return `value` as what `annotation` says: itself where it is that already, else validated, else converted.

    Numbers and text convert as their type does (`str(5)`, `int("5")`). All other types validate: for bool "False" is False, and
    what is no truth value an error.

    Raises:
        TypeError: It does not fit; the message has the annotation, the type of the value, and why.
    """
    if annotation is None or annotation is Any:
        return value
    plain = isinstance(annotation, type) and get_origin(annotation) is None
    try:
        if plain and not is_typeddict(annotation) and isinstance(value, annotation):
            return value
        if annotation in (int, float, str, complex):
            return annotation(value)
        return _validated(annotation, value, plain=plain)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        name = getattr(annotation, "__qualname__", None) if plain else None
        raise TypeError(f"A value of type {name_of(value)} does not fit {name or annotation!s}: {error}") from error


def _validated(annotation: Any, value: Any, *, plain: bool) -> Any:
    from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError

    try:
        try:
            adapter = _adapter(annotation)
        except TypeError:  # an annotation that cannot be hashed is not cached
            adapter = _adapter.__wrapped__(annotation)
        return adapter.validate_python(value, by_alias=True, by_name=True)  # a model's dump has the names of its fields
    except (PydanticUserError, PydanticUndefinedAnnotation) as error:
        if not plain:
            raise TypeError(str(error)) from error
        if isinstance(value, dict) and hasattr(annotation, "__dataclass_fields__"):  # a dataclass with fields that pydantic does not know
            return annotation(**value)
        return annotation(value)


@lru_cache(maxsize=512)
def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


_EXACT: Final[tuple[tuple[type, Callable[[Any], Any]], ...]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, bytes.__bytes__),
    (complex, complex.__complex__),
    (bytearray, bytearray),
    (tuple, tuple),
    (list, list),
    (set, set),
    (frozenset, frozenset),
    (Decimal, Decimal),
    (UUID, lambda x: UUID(int=x.int)),
    (Mapping, dict),
    (datetime, lambda x: datetime(x.year, x.month, x.day, x.hour, x.minute, x.second, x.microsecond, x.tzinfo, fold=x.fold)),
    (date, lambda x: date(x.year, x.month, x.day)),
    (time, lambda x: time(x.hour, x.minute, x.second, x.microsecond, x.tzinfo, fold=x.fold)),
    (timedelta, lambda x: timedelta(x.days, x.seconds, x.microseconds)),
)


def simpler(item: Any) -> Any:
    """One step towards plain data: an enum's value, the built-in type under a subclass, a table; or the item itself."""
    if isinstance(item, Enum):
        return item.value
    kind = type(item)
    if issubclass(kind, (foreign("numpy", "generic"), *arrow_types())) or kind in _KNOWN:
        return item
    for exact, convert in _EXACT:
        if issubclass(kind, exact):
            try:
                plain = convert(item)
            except (TypeError, ValueError):  # pandas.NaT is a datetime without a year
                return item
            return item if exact in DATES and plain != item else plain  # pandas.Timestamp may have nanoseconds
    if issubclass(kind, Path):
        return Path(item)
    if hasattr(kind, "__arrow_c_stream__"):
        return _as_arrow(item)
    return item


def _as_arrow(item: Any) -> Any:
    import pyarrow as pa

    _LOG.info("Kept as Arrow data, and comes back as such", extra={"type": name_of(item)})
    try:
        return pa.table(item)
    except pa.ArrowInvalid:  # a series is one column, not rows
        return pa.chunked_array(item)


def foreign(module: str, name: str) -> Any:
    """A type of a module that may not be loaded; without it no value has the type."""
    return getattr(sys.modules.get(module), name, ())


def arrow_types() -> tuple[type, ...]:
    """The types of Arrow values in the order of `ARROW_KINDS`; none where Arrow is not loaded."""
    arrow = sys.modules.get("pyarrow")
    return tuple(getattr(arrow, name) for name in ARROW_KINDS if hasattr(arrow, name))


def refuse(item: object, reason: str) -> NoReturn:
    """Say that `item` is no data, and what to do."""
    raise Refused(item, reason)


def hint(item: object) -> str:
    """What to do with an object of a type that is not stored."""
    if hasattr(type(item), "__dataclass_fields__") or hasattr(type(item), "__pydantic_fields__"):
        return "a model is stored as its data form; pass it through to_data"
    return "store plain data (numbers, text, bytes, dates, containers, arrays, tables) and make the object from it where it is used"


def name_of(item: object) -> str:
    """The type of a value, with its module where that is not `builtins`."""
    kind = type(item)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def path_to(root: object, offender: object) -> str | None:
    """Where the offender is inside the root, as one would write it in Python; empty for the root itself, None where it is not found."""
    if root is offender:
        return ""
    seen: set[int] = set()
    stack: list[tuple[str, Any]] = [("", root)]
    while stack:
        path, here = stack.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        inside = [(path + place, item) for place, item in _inside(here)]
        for place, item in inside:
            if item is offender:
                return place if len(place) <= 400 else f"{place[:200]} ... {place[-190:]}"
        stack += [place for place in reversed(inside) if type(place[1]) not in ATOMS]
    return None


def _inside(container: Any) -> list[tuple[str, Any]]:
    """What a container holds, each with how one would write the way to it."""
    if isinstance(container, Mapping):
        return [(f"[{k!r:.80}]", v) for k, v in container.items()] + [(f" key {k!r:.80}", k) for k in container]
    if isinstance(container, (list, tuple)):
        return [(f"[{i}]", v) for i, v in enumerate(container)]
    if isinstance(container, (set, frozenset)):
        return [(" element", v) for v in container]
    names = getattr(type(container), "__dataclass_fields__", None) or getattr(type(container), "__pydantic_fields__", None) or ()
    return [(f".{name}", getattr(container, name, None)) for name in names]


def _bottomless(root: object) -> Refused:
    """Say what makes a value too deep to walk through: a container that contains itself, or else its depth."""
    around, seen = {id(root)}, {id(root)}
    stack = [(root, iter(_inside(root)))]
    while stack and len(stack) < 10 * MAX_DEPTH:
        for _, item in stack[-1][1]:
            if id(item) in around and type(item) not in SHARED:
                return Refused(item, "it contains itself")
            if id(item) not in seen:
                around.add(id(item))
                seen.add(id(item))
                stack.append((item, iter(_inside(item))))
                break
        else:
            around.discard(id(stack.pop()[0]))
    return Refused(root, f"it is nested deeper than {MAX_DEPTH} levels; make it flat")
