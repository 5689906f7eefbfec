"""The state of a run as values: the diff that a step leaves, and how the diffs of one layer become the next state.

A diff is small: a list, dict or set that only grew is kept as what was added (`Growth`), found by comparison with the base, so that
n steps which each add to one list store O(n), not O(n squared). Merging is in declared order, whatever the order of arrival.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from typing import Any, ClassVar, Final, NamedTuple, cast

Reducer = Callable[[Any, list[Any]], Any]

SCALARS: Final = frozenset({str, int, float, bool, type(None), bytes, complex})
_EMPTY: Final[dict[str, Callable[[], Any]]] = {
    "add": int,
    "max": lambda: None,
    "min": lambda: None,
    "append": list,
    "extend": list,
    "merge": dict,
    "union": set,
}
REDUCERS: Final = tuple(_EMPTY)


class Lazy:
    """A value kept in another form until somebody reads it (bytes of a log, an object of a cluster)."""

    __slots__ = ()
    heavy: ClassVar[bool] = False
    """Whether it is large by its nature, so that nobody loads it on an event loop."""

    @abstractmethod
    def load(self) -> Any:
        """Return the value, private to the caller."""


class Growth(NamedTuple):
    """What a written list, dict or set has more than its base: the tail, the new or changed entries, the new elements."""

    added: Any


class StateDiff(NamedTuple):
    """What one step wrote and deleted."""

    written: dict[Any, Any]
    """Key to whole value, or to `Growth` over the base."""
    deleted: frozenset[Any]
    version: int = 0
    """The base that it was made from."""


NO_DIFF: Final = StateDiff({}, frozenset())


def opened(value: Any) -> Any:
    """Return the value itself, loading it where it is kept in another form."""
    return value.load() if isinstance(value, Lazy) else value


def same(a: Any, b: Any) -> bool:
    """Tell whether two values are equal in type too, all the way down (1, 1.0 and True differ; NaN equals itself)."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        left, right = cast("Sequence[Any]", a), cast("Sequence[Any]", b)
        return len(left) == len(right) and (all(map(is_, left, right)) or all(map(same, left, right)))
    if isinstance(a, dict):
        ours, theirs = cast("dict[Any, Any]", a), cast("dict[Any, Any]", b)
        return len(ours) == len(theirs) and all(k in theirs and same(v, theirs[k]) for k, v in ours.items())
    if isinstance(a, (set, frozenset)):
        some, others = cast("set[Any]", a), cast("set[Any]", b)
        return some == others and {type(x) for x in some} == {type(x) for x in others}
    try:
        equal: Any = a == b
        if hasattr(equal, "all"):  # an array compares element by element, and broadcasts
            return a.shape == b.shape and a.dtype == b.dtype and bool((equal | ((a != a) & (b != b))).all())
        return bool(equal) or bool(a != a and b != b)
    except Exception:  # noqa: BLE001 - a foreign value may compare as it likes; one that cannot tell counts as different
        return False


def growth(base: Any, value: Any) -> Growth | None:
    """Return what `value` has more than `base`, or None where it does not extend it (or extends nothing)."""
    if type(base) is not type(value) or not isinstance(base, (list, dict, set)) or not base:
        return None
    if isinstance(base, list):
        old, new = cast("list[Any]", base), cast("list[Any]", value)
        n = len(old)
        if len(new) < n or not (all(map(is_, old, new)) or all(map(same, old, new))):
            return None
        return Growth(new[n:])
    if isinstance(base, dict):
        before, after = cast("dict[Any, Any]", base), cast("dict[Any, Any]", value)
        if len(after) < len(before) or any(k not in after for k in before):
            return None
        return Growth({k: v for k, v in after.items() if k not in before or not same(before[k], v)})
    some, more = cast("set[Any]", base), cast("set[Any]", value)
    return Growth(more - some) if some <= more else None


def grown(base: Any, added: Growth) -> Any:
    """Return the whole value that a growth stands for."""
    whole = opened(base)
    if isinstance(whole, list):
        return [*cast("list[Any]", whole), *added.added]
    return whole | added.added


class Conflict(NamedTuple):
    """Several steps of a layer touched one key."""

    key: Any
    nodes: list[str]


class Combine(NamedTuple):
    """A question to the driver: what does a custom reducer make of these writes?"""

    key: Any
    reducer: str
    base: Any
    writes: list[Any]
    nodes: list[str]


class Merged(NamedTuple):
    """What a layer does to the state; nothing is applied yet."""

    written: dict[Any, Any]
    deleted: list[Any]
    conflicts: list[Conflict]
    misfits: list[Conflict]
    """Writes that their reducer refuses."""
    open: list[Combine]
    """What custom reducers have yet to combine."""


def order_of(key: Any) -> tuple[int, Any, str]:
    """Sort keys of any type: texts first, then numbers, each by themselves, then the rest by how they are written."""
    if isinstance(key, str):
        return 0, key, ""
    if isinstance(key, (int, float)) and key == key:
        return 1, key, ""
    return 2, "", repr(key)


def merge(base: Mapping[Any, Any], diffs: Sequence[tuple[str, StateDiff]], reducers: Mapping[str, str]) -> Merged:
    """Merge the diffs of one layer, given in declared order as (node, diff).

    Between steps a later node wins where no reducer combines; the conflict is named. A delete beside a write is a conflict with a
    reducer too. `reducers` maps a key to a name of `REDUCERS` or to the import path of a custom one.
    """
    if len(diffs) == 1:
        _, only = diffs[0]
        written = {k: grown(base[k], v) if isinstance(v, Growth) else v for k, v in only.written.items()}
        return Merged(written, [k for k in only.deleted if k not in written], [], [], [])
    touched: dict[Any, list[tuple[str, bool, Any]]] = {}
    for node, diff in diffs:
        for key in diff.deleted:
            if key not in diff.written:
                touched.setdefault(key, []).append((node, False, None))
        for key, value in diff.written.items():
            touched.setdefault(key, []).append((node, True, value))
    merged = Merged({}, [], [], [], [])
    for key in sorted(touched, key=order_of):
        _merge_key(merged, base, key, touched[key], reducers.get(key))
    return merged


def _merge_key(merged: Merged, base: Mapping[Any, Any], key: Any, touches: list[tuple[str, bool, Any]], reducer: str | None) -> None:
    writes = [(node, value) for node, wrote, value in touches if wrote]
    mixed = bool(writes) and len(writes) < len(touches)
    if mixed or (len(writes) > 1 and reducer is None):
        merged.conflicts.append(Conflict(key, [node for node, _, _ in touches]))
    _, wrote, last = touches[-1]
    if not wrote:
        merged.deleted.append(key)
    elif len(writes) == 1 or mixed or reducer is None:
        merged.written[key] = grown(base[key], last) if isinstance(last, Growth) else last
    elif reducer in _EMPTY:
        held = opened(base[key]) if key in base else _EMPTY[reducer]()
        merged.written[key], misfits = combine(reducer, held, writes)
        if misfits:
            merged.misfits.append(Conflict(key, misfits))
    else:
        held = opened(base[key]) if key in base else None
        whole = [grown(base[key], v) if isinstance(v, Growth) else opened(v) for _, v in writes]
        merged.open.append(Combine(key, reducer, held, whole, [node for node, _ in writes]))


def combine(reducer: str, base: Any, writes: Sequence[tuple[str, Any]]) -> tuple[Any, list[str]]:
    """Combine concurrent writes by a built-in reducer; return the value, and the nodes whose write does not fit, if any."""
    try:
        if reducer in ("add", "max", "min"):
            return _combine_scalars(reducer, base, writes)
        return _combine_growths(reducer, base, writes)
    except (TypeError, ValueError, ArithmeticError):  # numbers that do not mix, values that do not compare
        return None, [node for node, _ in writes]


def _combine_scalars(reducer: str, base: Any, writes: Sequence[tuple[str, Any]]) -> tuple[Any, list[str]]:
    values: list[Any] = [opened(v) for _, v in writes]
    if _fits(reducer, base) or (base is None and reducer != "add"):
        text = None if base is None else isinstance(base, (str, bytes))
        fits = [_fits(reducer, v) and text in (None, isinstance(v, (str, bytes))) for v in values]
    else:
        fits = [False] * len(values)
    if not all(fits):
        return None, [node for (node, _), fit in zip(writes, fits, strict=True) if not fit]
    if reducer == "add":
        return sum((v - base for v in values), cast("Any", base)), []
    return (max if reducer == "max" else min)(values), []


def _fits(reducer: str, value: Any) -> bool:
    if value is None or isinstance(value, (Growth, list, dict, set, frozenset, tuple)):
        return False
    return reducer != "add" or hasattr(value, "__sub__")


def _combine_growths(reducer: str, base: Any, writes: Sequence[tuple[str, Any]]) -> tuple[Any, list[str]]:
    """Put what each write has more than the base behind it. A write that removes something or is of another type does not fit."""
    kind: Any = dict if reducer == "merge" else set if reducer == "union" else list
    if not isinstance(base, kind):
        return None, [node for node, _ in writes]
    bad: list[str] = []
    parts: list[Any] = []
    for node, value in writes:
        written = opened(value)
        more = written if isinstance(written, Growth) else growth(base, written) if base else Growth(written)
        if more is None or not isinstance(more.added, kind):
            bad.append(node)
        else:
            parts.append(more.added)
    whole: Any = kind(base)
    add: Callable[[Any], None] = whole.extend if kind is list else whole.update
    for part in parts:
        add(part)
    return whole, bad
