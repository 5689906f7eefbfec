"""A pack made ready inside a worker: its code, scenes, states and calls as the engine's own.

`Home` is the way back to the coordinator. Nothing in here performs a call.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any

from cluster.code import Codes
from cluster.wire import CallWire, Fetched, PackWire, SceneWire, Value
from engine.checkpoint.codec import build, decode, private
from engine.core.context import Context, Scene
from engine.core.graph import Node
from engine.core.history import Row, Window
from engine.core.state import Growth, StateDiff, grown
from engine.errors import InDoubt
from engine.runtime.body_log import BodyLogger, body_logger
from engine.runtime.step import Call, Moment, Outcome, perform_once

BASES = 8
"""How many state snapshots a worker keeps."""

codes = Codes()
_bases: dict[tuple[int, int, bytes], dict[Any, Any]] = {}


class Home:
    """The way to the coordinator; the only thing in here that knows Ray, handed in by `remote`."""

    def __init__(
        self, call: Callable[..., Any], acall: Callable[..., Any], send: Callable[..., None], fetch: Callable[[Any], Any],
        ask: Callable[..., Future[Any]],
    ) -> None:  # fmt: skip
        """`call(name, *args)` waits, `acall` is awaited, `send` forgets, `fetch(ref)` gives an object, `ask` what will hold the answer."""
        self.call = call
        self.acall = acall
        self.send = send
        self.fetch = fetch
        self.ask = ask


class Layered(Mapping[Any, Any]):
    """A state: what changed, over a snapshot that is shared."""

    __slots__ = ("_base", "_delta", "_gone")

    def __init__(self, base: Mapping[Any, Any], delta: dict[Any, Any], gone: set[Any]) -> None:
        """Look at `base` with `delta` written and `gone` deleted."""
        self._base = base
        self._delta = delta
        self._gone = gone

    def __getitem__(self, key: Any) -> Any:
        if key in self._delta:
            return self._delta[key]
        if key in self._gone:
            raise KeyError(key)
        return self._base[key]

    def __contains__(self, key: object) -> bool:
        return key in self._delta or (key in self._base and key not in self._gone)

    def __iter__(self) -> Iterator[Any]:
        for key in self._base:
            if key not in self._gone:
                yield key
        for key in self._delta:
            if key not in self._base:
                yield key

    def __len__(self) -> int:
        return len(self._base) - len(self._gone) + sum(1 for k in self._delta if k not in self._base)

    def merge(self, diff: StateDiff) -> None:
        """Apply a step's diff, as the coordinator will."""
        written = {k: grown(self[k], v) if isinstance(v, Growth) else v for k, v in diff.written.items()}
        for key in diff.deleted:
            self._delta.pop(key, None)
            if key in self._base:
                self._gone.add(key)
        for key, value in written.items():
            self._gone.discard(key)
            self._delta[key] = value


class Services:
    """What a context asks of its run, from inside a worker."""

    def __init__(self, home: Home, number: int) -> None:
        """Speak to the coordinator about the run that it knows by `number`."""
        self._home = home
        self._number = number

    def build(self, kind: Any, value: Any) -> Any:
        """Return the value as an instance of a type."""
        return build(kind, value)

    def logger(self, ctx: Context) -> BodyLogger:
        """Return a logger that tells run, node and step."""
        return body_logger(ctx)

    def progress(self, ctx: Context, done: float, total: float | None, note: str) -> None:
        """Tell whoever watches."""
        self._home.send("progress", self._number, ctx.node, ctx.step_id, done, total, note)

    def rows(self) -> list[Row]:
        """Fetch the rows of what ran."""
        rows: Any = decode(self._home.call("rows", self._number))
        return [Row(*row) for row in rows]

    async def checkpoint(self, ctx: Context) -> None:
        """Put everything told so far on storage."""
        await self._home.acall("checkpoint", self._number)

    async def once(self, ctx: Context, key: str, fn: Any, again: bool) -> Any:
        """Perform an effect between its intent and its receipt, both committed by the coordinator; of one key one after the other."""
        acall, number = self._home.acall, self._number

        async def intend() -> bytes | None:
            found, data = await acall("once_begin", number, ctx.step_id, ctx.node, key, again)
            if found == "doubt":
                raise InDoubt(data, run_id=ctx.run_id, node=ctx.node)
            return data

        return await perform_once(
            ctx, key, fn, intend=intend, withdraw=lambda: acall("once_failed", number, ctx.step_id, key),
            receive=lambda data: acall("once_end", number, ctx.step_id, ctx.node, key, data),
        )  # fmt: skip


class Opened:
    """A pack made ready to perform: its scenes, states and calls as the engine's own."""

    def __init__(self, pack: PackWire, refs: list[Any], home: Home) -> None:
        """Fetch the code that is not here yet."""
        self.pack = pack
        self._refs = refs
        self._home = home
        self._objects: dict[int, Any] = {}
        for cwd, paths in pack.homes:
            codes.settle_in(cwd, tuple(paths))
        if codes.missing({c.body for c in pack.calls}):
            for number in pack.codes:
                codes.add(home.fetch(refs[number]))
        self._moments = [self._moment(scene) for scene in pack.scenes]
        self._windows = [[self._window(entries, last) for entries, last in scene.windows] for scene in pack.scenes]

    def fetch(self, number: int, index: int) -> Any:
        """Return the bytes of a big value; objects are fetched once a pack, without a copy."""
        if number not in self._objects:
            self._objects[number] = self._home.fetch(self._refs[number])
        return part_of(self._objects[number], index)

    def value(self, wire: Value) -> Any:
        """Return a value to be read later."""
        return Fetched(wire, self.fetch)

    def _window(self, entries: list[tuple[str, Value]], last: Value) -> Window:
        return Window.of({node: self.value(v) for node, v in entries}, self.value(last))

    def _moment(self, scene: SceneWire) -> Moment:
        services = Services(self._home, scene.number)
        metadata: Any = decode(scene.metadata)
        made = Scene(run_id=scene.run_id, session_id=scene.session_id, input=self.value(scene.input), private=private, rows=services.rows,
                     services=services, metadata=metadata, deadline=scene.deadline)  # fmt: skip
        state: Any = self._state(scene)  # a step reads it as it reads a dict
        return Moment(made, NO_PLAN, state, scene.version, encode=True, owner=scene)

    def _state(self, scene: SceneWire) -> Layered:
        base: dict[Any, Any] = {}
        if scene.base is not None:
            number, version = scene.base
            place = (scene.number, version, self.pack.id[:16].encode())
            if place not in _bases:
                while len(_bases) >= BASES:
                    del _bases[next(iter(_bases))]
                _bases[place] = self._snapshot(self._home.fetch(self._refs[number]))
            base = _bases[place]
        delta = {decode(k): self.value(v) for k, v in scene.delta if v is not None}
        gone = {decode(k) for k, v in scene.delta if v is None}
        return Layered(base, delta, {k for k in gone if k in base})

    def _snapshot(self, held: Any) -> dict[Any, Any]:
        data, refs = held
        objects: dict[int, Any] = {}

        def fetch(number: int, index: int) -> Any:
            if number not in objects:
                objects[number] = self._home.fetch(refs[number])
            return part_of(objects[number], index)

        pairs: Any = decode(data)
        return {decode(key): Fetched(v if isinstance(v, bytes) else tuple(v), fetch) for key, v in pairs}

    def call(self, wire: CallWire) -> tuple[Call, Moment]:
        """Return a call with its moment. Opening its body may raise whatever the user's module raises."""
        node = Node(name=wire.node, body=codes.body(wire.body), kind="member" if wire.member else "step")
        call = Call(node, wire.number, wire.at, wire.ordinal, wire.attempt, self.value(wire.input), self._windows[wire.scene][wire.window],
                    wire.step_id, wire.limit)  # fmt: skip
        return call, self._moments[wire.scene]


class Trail:
    """What the steps of a chain hand on to the next: output, state and history, as the coordinator will have them."""

    __slots__ = ("_first", "_given", "_past", "_retention", "moment")

    def __init__(self, ready: Opened, wire: CallWire) -> None:
        """Begin with the call of the first step. Opening its body may raise whatever the user's module raises."""
        self._first: Call | None
        self._first, self.moment = ready.call(wire)
        self._past = dict(self._first.window.entries())
        self._retention = ready.pack.scenes[wire.scene].retention
        self._given: Any = None

    def call(self, wire: CallWire) -> Call:
        """Return the next call. Opening its body may raise whatever the user's module raises."""
        first, self._first = self._first, None
        if first is not None:
            return first
        body = codes.body(wire.body)
        window = Window.of(dict(self._past) if body.wants_context else {}, self._given)  # nobody else can look
        node = Node(name=wire.node, body=body)
        return Call(node, wire.number, wire.at, wire.ordinal, wire.attempt, self._given, window, wire.step_id, wire.limit)

    def follow(self, outcome: Outcome) -> None:
        """Go on after a step that gave a plain answer."""
        node = outcome.call.node.name
        self._given = outcome.output
        self._past.pop(node, None)
        self._past[node] = outcome.output
        while self._retention is not None and len(self._past) > self._retention:
            del self._past[next(iter(self._past))]
        state: Any = self.moment.state
        if outcome.diff is not None:
            state.merge(outcome.diff)


def part_of(held: Any, index: int) -> memoryview:
    """Return the bytes of a big value: a part of a pack's answer, or an object of its own."""
    return memoryview(held[index]).cast("B")


NO_PLAN: Any = None
