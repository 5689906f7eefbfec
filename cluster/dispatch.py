"""The pool of a coordinator: calls of all its runs wait here, leave in packs, and come back as outcomes.

Packs come from `packing`; their parts are taken in as they come. Of a worker that died what had finished stays, what may have been
running fails as `WorkerLost` for its policy to decide, and the rest is packed anew.
"""

import asyncio
import itertools
import logging
import secrets
import time
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from cluster.chain import Chain
from cluster.code import RemoteBody
from cluster.flight import SHORT, Entry, Flight, PackedRun, activity, is_last_chance, outcome_of, parts, size_of, wire_of
from cluster.members import Seat
from cluster.packing import Call as Waiting
from cluster.packing import Mode, Packer
from cluster.packing import Pack as Chosen
from cluster.placing import mode_of
from cluster.port import Remote
from cluster.racing import Races
from cluster.scarce import watch_scarce
from cluster.shipping import Refs
from cluster.wire import AnswerWire, read_answer, to_wire
from engine.core.plan import Plan
from engine.errors import GeckoError, StepFailed, StepTimedOut, WorkerLost
from engine.runtime.step import Call, Moment, Outcome

logger = logging.getLogger(__name__)

LATE = 0.1
"""Seconds that parts of a pack, sent on their own, may come after its end: nothing tells that none is under way from a worker that died."""
STOP_LATE = 2.0
"""The same where the pack ended well, so that its parts are certain to come."""
FORCE = 0.3
"""Seconds that a pack has to stop in before its worker is killed."""
ASKS = 2
"""How often a condition or reducer is asked again after the process that was to answer died."""
GROUP = 8
"""So many async calls whose process died are performed together the next time; where it dies again, each has one of its own."""
MOVES = 2
"""So often a call goes to another lane that has lost its own to others; after that it has a process for itself.

So often, too, a member to another seat whose own was gone before it had begun.
"""
LIMIT_GRACE = 4.0
"""Seconds past its limit after which the lane of an async call is given up, where C code holds it and the lane says nothing."""


class Pool:
    """The packs of one coordinator."""

    def __init__(self, remote: Remote) -> None:
        """Perform through `remote`."""
        self.remote = remote
        self.incarnation = secrets.token_hex(8)
        """Begins the ids of our packs: parts of packs that an earlier process sent are not ours."""
        self.races = Races(self)
        self._packer = Packer()
        self._entries: dict[int, Entry] = {}
        self._flights: dict[str, Flight] = {}
        self._numbers = itertools.count(1)
        self._lanes = itertools.count()
        self._sync = 0
        """Sync packs in flight."""
        self._pumping = False
        self._watching: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.executors: weakref.WeakSet[PackedRun] = weakref.WeakSet()
        self.drivers: dict[int, Any] = {}
        """Number of a scene to its driver: by this workers speak of a run."""

    def statistics(self) -> dict[str, int]:
        """Return how many calls and packs are under way, what workers do of them, step by step, and how many CPUs there is work for."""
        told = activity(self._flights.values(), self._entries)
        told["waiting"] += sum(executor.waiting for executor in self.executors)
        demand = self._sync + self._packer.demand()
        return {"calls": len(self._entries), "packs": len(self._flights), "demand": demand, **told}

    def standing(self) -> Iterable[tuple[Plan, int]]:
        """Return the nodes that are under way, each with its plan."""
        return {(id(e.moment.plan), e.call.number): (e.moment.plan, e.call.number) for e in self._entries.values()}.values()

    def number_driver(self, driver: Any) -> int:
        """Number a driver."""
        number = next(self._numbers)
        self.drivers[number] = driver
        return number

    async def may_go(self, pack: str, number: int) -> bool:
        """Answer a worker that asks whether a step may start: one of a chain, or one that Ray held back."""
        flight = self._flights.get(pack)
        entry = flight.entries.get(number) if flight is not None else None
        if flight is None or entry is None:
            return False
        if flight.chain is not None:
            return await flight.chain.may_go(entry.call.step_id)
        flight.started = True
        return True

    async def recalled(self, pack: str) -> bool:
        """Answer a worker, when it is so, that what it has not started of a pack is wanted back; False when the pack has ended."""
        flight = self._flights.get(pack)
        if flight is None:
            return False
        if flight.question is None:
            flight.question = asyncio.get_running_loop().create_future()
            if flight.recalled:
                flight.answer()
        return await asyncio.shield(flight.question)

    def recall(self, entries: Sequence[Entry]) -> None:
        """Want calls back that have not started: a worker that has such gives them back within what it performs just now."""
        flights: dict[str, Flight] = {}
        for entry in entries:
            entry.recalled = True
            if entry.pack is not None and entry.pack.lane is None:
                flights[entry.pack.id] = entry.pack
        for flight in flights.values():
            flight.recall()
            if flight.gated and not flight.started and flight.chain is None and flight.seat is None:
                self._withdraw(flight)

    def _withdraw(self, flight: Flight) -> None:
        """Take back what Ray still holds; a worker that is given it all the same is not let on."""
        flight.stopping = True
        self.remote.cancel(flight.ref, force=False)
        held = list(flight.entries.values())
        flight.entries.clear()
        flight.changed()
        self.add([e for e in held if e.id in self._entries])

    def entry(self, executor: PackedRun, call: Call, moment: Moment, report: Callable[[Outcome], None]) -> Entry:
        """Number a call."""
        entry = Entry(next(self._numbers), executor, call, moment, report)
        self._entries[entry.id] = entry
        return entry

    def add(self, entries: Sequence[Entry]) -> None:
        """Let calls wait; packs are made when everything that is ready in this turn of the loop has been added."""
        waiting: list[Waiting] = []
        self.races.add([entry for entry in entries if entry.call.node.kind == "member"])
        for entry in entries:
            if entry.call.node.kind == "member":
                continue
            call, entry.pack = entry.call, None
            if entry.recalled:  # nobody starts it any more: its run, woken, takes it back
                entry.moment.owner.control.wake()
                continue
            entry.waiting = Waiting(
                entry.id, call.node.body.cost, mode_of(call.node.policy, is_async=(call.spare or call.node).body.is_async), size_of(call)
            )
            waiting.append(entry.waiting)
        self._packer.add(waiting)
        self.pump_soon()

    def pump_soon(self) -> None:
        """Send packs at the end of this turn of the loop."""
        if not self._pumping:
            self._pumping = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = False
        slots = self.remote.slots
        # none waits behind the running ones: Ray starts them in any order, and a big one that starts last outlasts everything else
        for pack in self._packer.next_packs(max(0, slots - self._sync), slots):
            self._send(pack)

    def _send(self, pack: Chosen) -> None:
        known: dict[Any, Entry] = self._entries
        entries = {entry.id: entry for call in pack.calls if (entry := known.get(call.id)) is not None}
        if not entries:
            return
        if pack.mode is Mode.ASYNC:
            lost = [e for e in entries.values() if e.moved >= MOVES or (e.executor.losses and e.call.step_id in e.executor.losses)]
            self._send_lost(lost)
            sound = {e.id: e for e in entries.values() if e not in lost} if lost else entries
            if sound:
                self.fly("async", sound, lane=self.next_lane())
            return
        resources = next(iter(entries.values())).call.node.policy.resources if pack.mode is Mode.OWN else None
        for part in parts(entries, pack):
            flight = self.fly("sync", part, budget=pack.budget, resources=resources, counted=pack.mode is not Mode.OWN)
            if resources is not None:
                watch_scarce(flight, resources, self.remote)

    def _send_lost(self, entries: list[Entry]) -> None:
        """Send async calls that a process died under to processes of their own: first in small groups, then each alone."""
        last = [e for e in entries if e.moved >= MOVES or e.executor.losses[e.call.step_id] > 1 or is_last_chance(e.call)]
        for entry in last:
            self.fly("async", {entry.id: entry}, counted=True)
        again = [e for e in entries if e not in last]
        for start in range(0, len(again), GROUP):
            self.fly("async", {e.id: e for e in again[start : start + GROUP]}, counted=True)

    def is_wanted(self, entry: Entry) -> bool:
        """Tell whether somebody still waits for a call."""
        return entry.id in self._entries

    def flies(self, flight: Flight) -> bool:
        """Tell whether a pack is under way."""
        return flight.id in self._flights

    def next_lane(self) -> int:
        """Return the lane whose turn it is."""
        return next(self._lanes) % max(1, self.remote.slots)

    def fly(
        self, kind: str, entries: dict[int, Entry], *, lane: int | None = None, budget: float | None = None, resources: Any = None,
        counted: bool = False, chain: Chain | None = None, bodies: dict[int, RemoteBody] | None = None, again: int = 0,
        seat: Seat | None = None,
    ) -> Flight:  # fmt: skip
        """Send calls as one pack."""
        flight = Flight(f"{self.incarnation}.{next(self._numbers)}", kind, entries, lane)
        flight.chain, flight.bodies, flight.again, flight.seat = chain, bodies, again, seat
        flight.gated = resources is not None if chain is None else chain.gated
        if seat is not None and kind == "sync":
            flight.gated = not self.remote.is_near(seat.place)
        flight.begun, now = asyncio.get_running_loop().time(), time.time()
        for entry in entries.values():
            entry.pack, entry.sent = flight, now
        try:
            self._send_off(flight, budget, resources)
        except Exception as error:  # noqa: BLE001 - whatever Ray raises, or a value that cannot travel
            self._refused(flight, error)
            return flight
        self._flights[flight.id] = flight
        self._sync += counted
        self._watch_limits(flight)
        self._spawn(self._attend(flight, counted=counted)).add_done_callback(partial(self._watched, flight))
        return flight

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work, context=Context())  # of no run: packs are of several
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return task

    def _send_off(self, flight: Flight, budget: float | None, resources: Any) -> None:
        refs = Refs()
        data = to_wire(wire_of(flight, refs, budget))
        if flight.seat is not None:
            flight.ref = self.remote.send_to_member(flight.seat.actor, data, refs.all)
        elif flight.lane is None:
            flight.ref = self.remote.send(data, refs.all, resources)
        else:
            flight.process = self.remote.lane(flight.lane)
            flight.ref = self.remote.send_to_lane(flight.lane, data, refs.all)

    def refuse(self, entry: Entry, error: Exception) -> None:
        """End a call that cannot be sent; the same would come of every further attempt."""
        label, failed = entry.call.label, error
        if not isinstance(error, GeckoError):
            text = f"step {label!r} could not be sent to a worker: {type(error).__name__}: {error}; look at its resources and its input"
            failed = StepFailed(text, node=label)
            failed.__cause__ = error
        self._end(entry, failed, final=True)

    def _refused(self, flight: Flight, error: Exception) -> None:
        """End what could not be sent."""
        for entry in list(flight.entries.values()):
            self.refuse(entry, error)
        flight.entries.clear()
        self.pump_soon()  # no pack will come back in its place

    async def _attend(self, flight: Flight, *, counted: bool) -> None:
        """Wait for a pack's end, whatever it is."""
        error: BaseException | None = None
        try:
            self._take_end(flight, await self.remote.get(flight.ref))
        except asyncio.CancelledError:
            raise
        except Exception as caught:  # noqa: BLE001 - whatever Ray raises
            error = caught
            if flight.lane is not None and self.remote.loss(error) is not None:
                self.remote.renew_lane(flight.lane, flight.process)
                await self.remote.lane_ended(flight.process)
        self._sync -= counted
        self.pump_soon()
        loop = asyncio.get_running_loop()
        until = loop.time() + (LATE if error is not None else STOP_LATE)
        while flight.entries and loop.time() < until:
            await asyncio.wait({flight.change()}, timeout=until - loop.time())
        if flight.seat is not None:
            await self.races.landed(flight.seat, dead=error is not None)
        if flight.entries:
            self._lost(flight, error)
        self._land(flight)

    def _land(self, flight: Flight) -> None:
        self._flights.pop(flight.id, None)
        flight.landed = True
        flight.answer()
        if (timer := self._timers.pop(flight.id, None)) is not None:
            timer.cancel()

    def _watched(self, flight: Flight, watching: "asyncio.Task[None]") -> None:
        """An error of ours must not leave runs waiting for a pack that nobody attends."""
        error = None if watching.cancelled() else watching.exception()
        if error is not None:
            logger.error("A pack could not be taken in", exc_info=error, extra={"pack": flight.id})
            self._land(flight)
            for entry in list(flight.entries.values()):
                if entry.id in self._entries:
                    self._end(entry, error, killed=True)
            flight.entries.clear()
            flight.changed()

    def _take_end(self, flight: Flight, answer: Any) -> None:
        if isinstance(answer, (list, tuple)):
            self._take(read_answer(answer[0]), flight.ref, answer)
        else:
            self._take(read_answer(answer), None, None)

    def take_report(self, data: bytes) -> None:
        """Take a part in that a worker sent while its pack goes on."""
        answer = read_answer(data)
        self._take(answer, None, None)
        if answer.overdue is not None and (flight := self._flights.get(answer.pack)) is not None:
            flight.overdue.add(answer.overdue)
            self._end_process(flight)

    def _take(self, answer: AnswerWire, ref: Any, bigs: Any) -> None:
        flight = self._flights.get(answer.pack)
        if flight is None:
            return  # of another incarnation, or lost and packed anew
        learnt: dict[str, list[float]] = {}
        learns, known = flight.kind == "sync", self._entries
        for wire in answer.outcomes:
            entry = flight.entries.pop(wire.id, None)
            if entry is None:
                continue
            if known.pop(wire.id, None) is None and wire.error is not None:
                continue  # it was stopped
            call, executor = entry.call, entry.executor
            if learns:
                learnt.setdefault(call.node.body.cost, []).append(wire.duration)
            executor.ended(entry)
            if executor.losses:
                executor.losses.pop(call.step_id, None)
            entry.report(outcome_of(call, wire, answer.worker, ref, bigs, stored=entry.moment.encode))
        for cost, durations in learnt.items():
            self._packer.learn(cost, sum(durations) / len(durations), len(durations))
        back = [flight.entries.pop(number) for number in answer.given_back if number in flight.entries]
        back = [e for e in back if e.id in self._entries]
        if back and flight.chain is not None:
            self._again(flight, back)
        elif back:
            self.add(back)
        if answer.hit:
            hit = [flight.entries.pop(number) for number in answer.hit if number in flight.entries]
            why = "another body of its process cancelled it, which is to cancel no tasks but its own"
            self._repeat(flight, [e for e in hit if e.id in self._entries], WorkerLost, why)
        flight.changed()

    def _lost(self, flight: Flight, error: BaseException | None) -> None:
        """A pack ended without all its results: what may have been running fails as its policy decides, the rest is packed anew."""
        left = [entry for entry in flight.entries.values() if entry.id in self._entries]
        flight.entries.clear()
        flight.changed()
        lost = self.remote.loss(error) if error is not None else None
        kind, why = lost or (WorkerLost, f"its results did not come back: {error!r}")
        late = [e for e in left if e.id in flight.overdue]
        for entry in late:
            label, limit = entry.call.label, entry.call.limit
            self._end(entry, StepTimedOut(f"step {label!r} timed out after {limit:g} s", node=label), killed=True)
        left = [e for e in left if e.id not in flight.overdue]
        unbegun = flight.is_unbegun and all(e.moved < MOVES for e in left)
        if flight.stopping or unbegun or (late and flight.chain is None and flight.lane is None):
            self._again(flight, left)
        else:
            self._repeat(flight, left, kind, why)

    def _repeat(self, flight: Flight, left: list[Entry], kind: type[WorkerLost], why: str) -> None:
        """Have performed anew what a process was lost under: what may have been running as its policy decides."""
        running = [] if flight.kind == "race" else left if flight.kind in ("async", "ask", "reduce") else left[:1]
        if flight.kind in ("ask", "reduce"):
            running = [e for e in running if flight.again >= ASKS]
        for entry in running:
            self._end(entry, kind(f"the worker of step {entry.call.label!r} was lost: {why}", node=entry.call.label))
        blamed = {e.id for e in running}
        self._again(flight, [e for e in left if e.id not in blamed])

    def _end(self, entry: Entry, error: BaseException, *, killed: bool = False, final: bool = False) -> None:
        """End a call that will not come back."""
        self._entries.pop(entry.id, None)
        outcome = Outcome(entry.call, entry.sent or time.time())
        outcome.duration = time.time() - outcome.started
        outcome.error, outcome.killed, outcome.final = error, killed, final
        if not killed and not final:
            entry.executor.losses[entry.call.step_id] = entry.executor.losses.get(entry.call.step_id, 0) + 1
            entry.executor.careful = True
        entry.executor.ended(entry)
        entry.report(outcome)

    def _again(self, flight: Flight, entries: list[Entry]) -> None:
        """Let calls be performed anew that their worker had not begun, or that had to go with another's."""
        if not entries:
            return
        if flight.chain is not None:
            for entry in entries:
                self._entries.pop(entry.id, None)
            flight.chain.give_back({e.call.step_id for e in entries})
        elif flight.bodies is not None:
            for entry in entries:  # each in a process of its own, since one of them may have ended the last
                self.fly(flight.kind, {entry.id: entry}, bodies=flight.bodies, again=flight.again + 1, counted=True)
        else:
            for entry in entries:
                entry.moved += flight.is_unbegun or (flight.stopping and flight.lane is not None)
                entry.pack, entry.careful = None, not flight.stopping or entry.moved >= MOVES
            self.add(entries)

    def _watch_limits(self, flight: Flight) -> None:
        """Look at the earliest limit of a pack in a lane: a body that holds the lane's loop lets nobody in there do it."""
        if flight.lane is None and flight.seat is None:
            return
        limits = [e.call.limit for e in flight.entries.values() if e.call.limit is not None and e.id in self._entries]
        if limits:
            loop = asyncio.get_running_loop()
            wait = max(0.05, flight.begun + min(limits) + LIMIT_GRACE - loop.time())
            self._timers[flight.id] = loop.call_later(wait, self._past_limit, flight)

    def _past_limit(self, flight: Flight) -> None:
        self._timers.pop(flight.id, None)
        held = asyncio.get_running_loop().time() - flight.begun - LIMIT_GRACE
        late = [e.id for e in flight.entries.values() if e.call.limit is not None and e.call.limit <= held and e.id in self._entries]
        if late:
            flight.overdue.update(late)
            self._end_process(flight)
        elif flight.entries:
            self._watch_limits(flight)

    def _end_process(self, flight: Flight) -> None:
        """Kill the process of a pack, which nothing else stops."""
        if flight.seat is not None:
            self._spawn(self.races.seats.end(flight.seat))
        elif flight.process is not None:
            self._give_up_lane(flight)
        else:
            self.remote.cancel(flight.ref, force=True)

    def _give_up_lane(self, flight: Flight) -> None:
        """Kill a lane whose loop does not answer; what others had in it is performed anew elsewhere, and nobody is blamed."""
        for other in self._flights.values():
            if other.process is not None and other.process is flight.process:
                other.stopping = True
        self.remote.renew_lane(flight.lane or 0, flight.process)

    def drop(self, entries: Sequence[Entry]) -> list[Flight]:
        """Forget calls; return the packs that still perform some of them."""
        self._packer.drop([e.id for e in entries if e.pack is None])
        flights: dict[str, Flight] = {}
        for entry in entries:
            self._entries.pop(entry.id, None)
            if entry.pack is not None and entry.id in entry.pack.entries:
                flights[entry.pack.id] = entry.pack
        return list(flights.values())

    async def stop(self, entries: Sequence[Entry], *, grace: float) -> None:
        """Stop calls; returns when none of them runs any more."""
        flights = self.drop(entries)
        for flight in flights:
            self.stop_flight(flight, grace=grace)
        gone = {e.id for e in entries}
        for flight in flights:
            while flight.id in self._flights and not gone.isdisjoint(flight.entries):
                await flight.change()

    def forget(self, entries: Sequence[Entry]) -> None:
        """Want nothing more of calls whose pack stops by itself."""
        for flight in self.drop(entries):
            for entry in entries:
                flight.entries.pop(entry.id, None)
            flight.changed()

    def stop_flight(self, flight: Flight, *, grace: float) -> None:
        """Stop a pack: softly, and after the grace by force; one that has its process for itself with that."""
        if flight.seat is not None:
            flight.stopping = True
            self._spawn(self.races.end(flight, flight.seat))
            return
        if flight.lane is not None:
            self.races.stop_in_lane(flight)
        elif len({id(e.moment.owner) for e in flight.entries.values()}) > 1:  # it is short: let it come to its end
            flight.stopping, grace = True, max(grace, 5 * SHORT)
        else:
            flight.stopping = True
            self.remote.cancel(flight.ref, force=grace <= 0)
        asyncio.get_running_loop().call_later(grace, self._force, flight)

    def _force(self, flight: Flight) -> None:
        if flight.id in self._flights and flight.entries and (flight.lane is None or not flight.entries.keys() <= self._entries.keys()):
            self._end_process(flight)
