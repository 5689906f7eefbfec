"""What travels with packs: values in their bytes, big ones as objects put once, a run's state as a snapshot and what changed since.

What a pack carries grows with what its steps may read and what was written lately, not with the size of state or history.
"""

from collections.abc import Sequence
from typing import Any

from cluster.wire import BIG, SceneWire, Value, diff_parts
from engine.checkpoint.codec import Encoded, decode, encode
from engine.core.history import Window
from engine.core.state import Growth, StateDiff
from engine.runtime.step import Moment

SOME, MANY = 32, 256
"""How many changed keys go along with a pack before a new snapshot is made: a quarter of those in the last one, between these."""
FEW = 4
"""How many objects: a reference that travels by itself costs Ray some 20 us, one inside a snapshot nothing."""
KEPT = 1000
"""How many big values of a run are remembered as objects of the cluster."""


class Refs:
    """The objects that a pack refers to, each once."""

    def __init__(self) -> None:
        self.all: list[Any] = []
        self._numbers: dict[int, int] = {}

    def add(self, ref: Any) -> int:
        """Return the number of a reference."""
        number = self._numbers.get(id(ref))
        if number is None:
            number = self._numbers[id(ref)] = len(self.all)
            self.all.append(ref)
        return number


class Shared(Encoded):
    """A big value: its bytes lie in an object of the cluster that every worker can read without a copy."""

    __slots__ = ("index", "ref")

    def __init__(self, data: bytes | memoryview, ref: Any, index: int) -> None:
        """Element `index` of the list in the object `ref`."""
        super().__init__(data)
        self.ref = ref
        self.index = index


def shared_diff(data: bytes, bigs: Sequence[Any], ref: Any) -> StateDiff:
    """Return a diff whose big values lie in the object `ref`, where workers find them again; their place has an index into `bigs`."""
    written, deleted, version = diff_parts(data)
    values: dict[Any, Any] = {}
    for key, grew, value in written:
        if isinstance(value, int):
            values[key] = Shared(memoryview(bigs[value]).cast("B"), ref, value)
        else:
            values[key] = Growth(decode(value)) if grew else Encoded(value)
    return StateDiff(values, frozenset(deleted), version)


class Shipper:
    """What one run has in the cluster's memory."""

    def __init__(self, pool: Any) -> None:
        """`pool` has the cluster, and numbers drivers."""
        self._pool = pool
        self._numbers: dict[int, int] = {}
        self._states: dict[int, StateOnCluster] = {}
        self._big: dict[int, tuple[Any, Shared]] = {}

    def value(self, value: Any, refs: Refs) -> Value:
        """Return a value as it travels: small ones as bytes, big ones as objects of the cluster, put once."""
        if isinstance(value, Shared):
            return refs.add(value.ref), value.index
        if isinstance(value, Encoded) and len(value.data) <= BIG:
            return bytes(value.data)
        known = self._big.get(id(value))
        if known is not None and known[0] is value:
            return refs.add(known[1].ref), known[1].index
        data = value.data if isinstance(value, Encoded) else encode(value)
        if len(data) <= BIG:
            return bytes(data)
        shared = Shared(data, self.put(data), 0)
        while len(self._big) >= KEPT:
            del self._big[next(iter(self._big))]
        self._big[id(value)] = (value, shared)
        return refs.add(shared.ref), 0

    def put(self, value: Any) -> Any:
        """Put something into the cluster's memory."""
        return self._pool.remote.put(value)

    def window(self, window: Window, refs: Refs) -> tuple[list[tuple[str, Value]], Value]:
        """Return a history window as it travels."""
        return [(node, self.value(v, refs)) for node, v in window.entries().items()], self.value(window.last, refs)

    def scene(self, moment: Moment, refs: Refs) -> SceneWire:
        """Return what calls of one moment share."""
        driver, scene = moment.owner, moment.scene
        number = self._numbers.get(id(driver))
        if number is None:
            number = self._numbers[id(driver)] = self._pool.number_driver(driver)
            self._states[number] = StateOnCluster(self)
        base, delta = self._states[number].at(driver.run, moment, refs)
        return SceneWire(number, scene.run_id, scene.session_id, encode(scene.metadata), scene.deadline, self.value(scene.input, refs),
                         moment.version, base, delta, [], moment.plan.options.retention)  # fmt: skip

    def close(self) -> None:
        """Let go of all of it."""
        for number in self._numbers.values():
            self._pool.drivers.pop(number, None)
        self._numbers.clear()
        self._states.clear()
        self._big.clear()


class StateOnCluster:
    """One run's state as workers get it: a snapshot by version, and what changed since."""

    def __init__(self, shipper: Shipper) -> None:
        self._shipper = shipper
        self._base: tuple[Any, int] | None = None
        self._base_size = self._base_keys = 0
        self._delta: dict[Any, tuple[bytes, Any]] = {}
        self._version = -1

    def at(self, run: Any, moment: Moment, refs: Refs) -> tuple[tuple[int, int] | None, list[tuple[bytes, Value]]]:
        """Return (base, delta) for the state of a moment."""
        if moment.version != self._version:
            self._advance(run, moment)
        wires: list[tuple[bytes, Value]] = []
        mine = Refs()
        size = 0
        for key, value in self._delta.values():
            wire = None if value is _GONE else self._shipper.value(value, mine)
            size += len(wire) if isinstance(wire, bytes) else 0
            wires.append((key, wire))
        many = min(MANY, max(SOME, self._base_keys // 4))
        if size > max(BIG, self._base_size // 4) or len(wires) > many or len(mine.all) > FEW:
            self._rebase(moment)
            wires = []
        numbers = {} if not wires else {i: refs.add(ref) for i, ref in enumerate(mine.all)}
        wires = [(key, (numbers[wire[0]], wire[1]) if isinstance(wire, tuple) else wire) for key, wire in wires]
        base = None if self._base is None else (refs.add(self._base[0]), self._base[1])
        return base, wires

    def _advance(self, run: Any, moment: Moment) -> None:
        for version, written, deleted in run.changes:
            if version > self._version:
                for key in written:
                    if key in moment.state:
                        self._delta[_hashable(key)] = (encode(key), moment.state[key])
                for key in deleted:
                    if key not in moment.state:
                        self._delta[_hashable(key)] = (encode(key), _GONE)
        run.changes.clear()
        self._version = moment.version

    def _rebase(self, moment: Moment) -> None:
        inner = Refs()
        values = [(encode(key), self._shipper.value(value, inner)) for key, value in moment.state.items()]
        snapshot = encode([[key, wire if isinstance(wire, bytes) or wire is None else list(wire)] for key, wire in values])
        self._base_size, self._base_keys = len(snapshot), len(values)
        self._base = (self._shipper.put([snapshot, inner.all]), moment.version)
        self._delta.clear()


_GONE: Any = object()


def _hashable(key: Any) -> Any:
    return (type(key), key)
