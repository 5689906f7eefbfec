"""What the pool keeps of a call on its way, and of a pack that was sent. It holds; `cluster.dispatch` decides."""

import asyncio
from collections.abc import Callable, Container, Iterable, Sized
from typing import Any, Protocol

from cluster.chain import Chain
from cluster.code import Parcel, RemoteBody
from cluster.members import Seat
from cluster.packing import Call as Waiting
from cluster.packing import Pack
from cluster.shipping import Refs, Shared, Shipper, shared_diff
from cluster.wire import BIG, CallWire, OutcomeWire, PackWire, SceneWire, Value, open_error, put_together
from engine.checkpoint.codec import Encoded
from engine.checkpoint.record import decode_diff
from engine.core.routing import Next
from engine.runtime.step import Call, Moment, Outcome

SHORT = 0.05
"""Seconds of expected work up to which a pack may hold calls of several runs."""


class PackedRun(Protocol):
    """What the pool asks of a run's executor."""

    parcel: Parcel
    codes: Any
    shipper: Shipper
    losses: dict[str, int]
    """Step id to how many processes died under it."""
    careful: bool
    """Whether a process died under one of its calls: then the next are told apart."""
    demands: list[dict[str, float]]
    """Resources for which it was looked up whether any node has them."""

    @property
    def waiting(self) -> int: ...

    def ended(self, entry: "Entry") -> None: ...


class Entry:
    """One call on its way through the pool."""

    __slots__ = ("call", "careful", "executor", "id", "moment", "moved", "pack", "recalled", "report", "sent", "waiting")

    def __init__(self, number: int, executor: PackedRun, call: Call, moment: Moment, report: Callable[[Outcome], None]) -> None:
        self.id = number
        self.executor = executor
        self.call = call
        self.moment = moment
        self.report = report
        self.pack: Flight | None = None
        self.waiting: Waiting | None = None
        self.sent = 0.0
        """When it left in its newest pack, seconds since 1970."""
        self.careful = False
        """Whether it was in a pack whose worker died."""
        self.moved = 0
        """How often its lane was ended for others in it."""
        self.recalled = False
        """Whether its run wants it back if it has not started."""


class Flight:
    """A pack that was sent."""

    __slots__ = ("again", "begun", "bodies", "chain", "entries", "gated", "id", "kind", "landed", "lane", "overdue", "process",
                 "question", "recalled", "ref", "seat", "started", "stopping", "waiters")  # fmt: skip

    def __init__(self, pack_id: str, kind: str, entries: dict[int, Entry], lane: int | None) -> None:
        self.id = pack_id
        self.kind = kind
        self.entries = entries
        """What has not come back."""
        self.lane = lane
        self.chain: Chain | None = None
        self.process: Any = None
        """Of a pack in a lane: the lane's process."""
        self.seat: Seat | None = None
        """Of a team's member that has a process for itself."""
        self.ref: Any = None
        self.stopping = False
        """Whether it is stopped for some of its calls: then its end is no fault of the others."""
        self.overdue: set[int] = set()
        """Calls past their limit that could not be interrupted."""
        self.landed = False
        """Whether nothing more is expected of it."""
        self.begun = 0.0
        """When it was sent, in the loop's time."""
        self.bodies: dict[int, RemoteBody] | None = None
        self.again = 0
        """How often its questions were asked before."""
        self.waiters: list[asyncio.Future[None]] = []
        self.gated = False
        """Whether its worker asks before it starts: Ray may hold the pack for long, until there are the resources that it wants."""
        self.started = False
        """Whether a worker that asks was let on."""
        self.recalled = False
        """Whether what its worker has not started is wanted back."""
        self.question: asyncio.Future[bool] | None = None
        """The worker's, whether it is."""

    @property
    def is_unbegun(self) -> bool:
        """Whether it was to ask before its seat began it, and never did."""
        return self.seat is not None and self.gated and not self.started

    def recall(self) -> None:
        """Want back what has not started; the worker hears of it when it asks."""
        self.recalled = True
        self.answer()

    def answer(self) -> None:
        """Answer a worker that asks whether it is to give back what has not started."""
        if self.question is not None and not self.question.done():
            self.question.set_result(self.recalled)

    def change(self) -> "asyncio.Future[None]":
        """Return a future that is done when more of the pack has come back."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(future)
        return future

    def changed(self) -> None:
        """Wake whoever waits."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class _Known(Sized, Container[int], Protocol): ...


def activity(flights: Iterable[Flight], wanted: _Known) -> dict[str, int]:
    """Return how many worker processes have been given steps, how many steps they perform at once, and how many wait for a worker.

    A pack of sync steps is performed one after the other, so that one of them is under way and the others wait; those of a lane are
    performed together. That Ray has not handed a pack to a worker yet is known only where the worker has to ask before it starts: of every
    other pack the first step counts as under way.

    Args:
        wanted: The calls that have not ended.
    """
    workers = processing = begun = 0
    lanes: set[int] = set()
    for flight in flights:
        if not flight.entries or (flight.gated and flight.chain is None and not flight.started):
            continue
        if flight.lane is None:
            workers += 1
        else:
            lanes.add(flight.lane)
        together = flight.kind in ("async", "race", "ask", "reduce")
        known = sum(number in wanted for number in flight.entries)
        begun += known if together else min(1, known)
        if flight.kind not in ("ask", "reduce"):
            processing += len(flight.entries) if together else 1
    return {"workers": workers + len(lanes), "processing": processing, "waiting": len(wanted) - begun}


def parts(entries: dict[int, Entry], pack: Pack) -> list[dict[int, Entry]]:
    """Divide a pack by runs, unless it is short: stopping one run's calls costs the worker, and so what another has in there."""
    if pack.seconds is not None and pack.seconds <= SHORT:
        return [entries]
    by_run: dict[int, dict[int, Entry]] = {}
    for entry in entries.values():
        by_run.setdefault(id(entry.moment.owner), {})[entry.id] = entry
    return list(by_run.values())


def wire_of(flight: Flight, refs: Refs, budget: float | None) -> PackWire:
    """Return a pack as it travels."""
    scenes: list[SceneWire] = []
    places: dict[tuple[int, int], tuple[int, dict[int, int]]] = {}
    codes: dict[int, int] = {}
    homes: dict[tuple[str, tuple[str, ...]], None] = {}
    inputs: dict[int, Value] = {}
    calls: list[CallWire] = []
    shared: Moment | None = None
    scene, windows = 0, dict[int, int]()
    for entry in flight.entries.values():
        executor, call, moment = entry.executor, entry.call, entry.moment
        if moment is not shared:
            shared, place = moment, (id(moment.owner), moment.version)
            if place not in places:
                places[place] = (len(scenes), {})
                scenes.append(executor.shipper.scene(moment, refs))
                codes[refs.add(executor.codes)] = 0
                homes[executor.parcel.cwd, executor.parcel.paths] = None
            scene, windows = places[place]
        window = windows.get(id(call.window))
        if window is None:
            window = windows[id(call.window)] = len(windows)
            scenes[scene].windows.append(executor.shipper.window(call.window, refs))
        given = inputs.get(id(call.input))
        if given is None:
            given = inputs[id(call.input)] = executor.shipper.value(call.input, refs)
        body = flight.bodies[entry.id] if flight.bodies is not None else (call.spare or call.node).body
        calls.append(CallWire(entry.id, scene, call.node.name, body.key, call.number, call.at, call.ordinal, call.attempt, call.step_id,
                              call.limit, given, window, call.node.kind == "member"))  # fmt: skip
    careful = any(e.careful or (e.executor.losses and e.call.step_id in e.executor.losses) for e in flight.entries.values())
    return PackWire(flight.id, flight.kind, calls, scenes, list(codes), list(homes), budget, flight.gated, careful)


def is_last_chance(call: Call) -> bool:
    """Tell whether a call has too few attempts for losing one of them to a neighbour."""
    retry = call.node.policy.retry
    return retry is not None and retry.attempts < 3


def size_of(call: Call) -> int:
    """Return the bytes of input that travel with a call."""
    return min(len(call.input.data), BIG) if isinstance(call.input, Encoded) else 0


def outcome_of(call: Call, wire: OutcomeWire, worker: str, ref: Any, bigs: Any, *, stored: bool = True) -> Outcome:
    """Return an outcome as the driver wants it; values stay in their bytes, big ones in the object `ref` that the pack gave.

    Where nothing is `stored`, a diff whose big values lie there is not put together for the log.
    """
    outcome = Outcome(call, wire.started)
    outcome.duration, outcome.worker = wire.duration, worker
    if wire.error is not None:
        outcome.error = open_error(wire.error)
        return outcome
    if isinstance(wire.output, int):
        data = memoryview(bigs[wire.output]).cast("B")
        kept: Encoded = Shared(data, ref, wire.output)
        outcome.output_data = bytes(data)
    else:
        kept = Encoded(wire.output or b"\xc0")
        outcome.output_data = wire.output
    if wire.jump is not None:
        outcome.jump = Next(wire.jump)
        if wire.sent:
            value = kept.load()
            outcome.jump.input = Next.none if value is None else value
    else:
        outcome.output = kept
    if wire.diff is None:
        return outcome
    if not wire.apart:
        outcome.diff_data, outcome.diff = wire.diff, decode_diff(wire.diff)
        return outcome
    outcome.diff = shared_diff(wire.diff, bigs, ref)
    outcome.diff_data = put_together(wire.diff, lambda index: memoryview(bigs[index])) if stored else None
    return outcome
