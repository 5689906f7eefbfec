"""Which waiting calls go into which packs: learnt costs in, packs out. Pure: no Ray, no clock, no randomness.

The idea is guided self-scheduling (Polychronopoulos and Kuck 1987): a pack takes a share of the remaining work, so packs
are big at first and small at the end, where imbalance would show. Two things are added. Costs are learnt by body, longest
first. And every pack has a budget: a worker that exceeds it gives back what it has not started, so that a wrong guess, or
one long call among short ones, costs its neighbours the budget and no more. That is why an unknown body may be probed with
many calls at once. Rejected: asking a running pack to hand over (a Ray task cannot be called), and one call a pack (3 ms each).

It must not know what a call does, where it runs, or what became of it.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from math import ceil, exp, frexp, log
from typing import NamedTuple

PROBE_CALLS = 16
"""So many calls of bodies whose cost nobody knows go into one pack."""
PROBE_BUDGET = 0.03
"""Seconds after which a pack gives back what it has not started, when its cost is a guess."""
PACK_SECONDS = 0.01
"""A pack holds at least this much learnt work, where there is that much: it costs 2 to 4 ms itself."""
CALL_SECONDS = 20e-6
"""No call is taken for cheaper than this: context, codec and bookkeeping cost it whatever the body does."""
SHARE = 2 / 3
"""So much of an even share of the remaining work goes into one pack.

Classic guided self-scheduling takes a whole one, and a first pack that was underestimated then outlasts everything else; less makes more
packs, and a slot is idle for some 5 ms between two.
"""
PACK_CALLS = 2048
"""No pack holds more calls: it is built and read on the event loop of the coordinator."""
PACK_BYTES = 4 * 1024 * 1024
"""No pack carries more input, unless one call alone does."""
MAX_BODIES = 10_000
"""So many bodies are remembered; the ones heard of longest ago are forgotten first."""

CPU_SECONDS = 0.5
"""Learnt work that another CPU is asked for."""

_NEWEST = 0.2
"""The weight of one measured call in the mean of its body."""


class Mode(Enum):
    """How a call wants to be performed, which decides what it may share a pack with."""

    #: Waits more than it computes: goes out at once, many in one event loop, and holds no slot.
    ASYNC = "async"
    #: Runs on a worker's main thread, one after the other, also where it has a limit.
    SYNC = "sync"
    #: Has resources of its own: a pack of its own that goes out at once; Ray holds it until they are there.
    OWN = "own"


class Call(NamedTuple):
    """One step, or one fused chain of steps, that is ready to be performed."""

    id: Hashable
    """Whatever the caller knows it by."""
    body: Hashable
    """What its cost is learnt under: the same body, the same cost. A fused chain is a body of its own."""
    mode: Mode = Mode.SYNC
    size: int = 0
    """Bytes of input that travel with it."""


class Pack(NamedTuple):
    """Calls that one worker performs, in this order."""

    calls: tuple[Call, ...]
    mode: Mode
    seconds: float | None
    """The work expected in it, or None where that is a guess."""
    budget: float | None
    """Seconds after which the worker gives back what it has not started; None: it never does."""


class PackingStatistics(NamedTuple):
    """What waits, and what is known of it."""

    waiting: int
    unknown: int
    """How many of the waiting calls have a body that was never measured."""
    seconds: float
    """The learnt work of the others."""
    bodies: int
    """How many bodies have a learnt cost."""


@dataclass(slots=True)
class _Body:
    key: Hashable
    seconds: float | None = None
    waiting: deque[Call] = field(default_factory=deque[Call])


class Packer:
    """Holds the calls that wait and what their bodies cost, and makes packs of them.

    One loop: `add` what is ready and what a worker gave back, `learn` what was measured, then send out `next_packs`. All
    are cheap enough to be called at every event: the cost is that of the calls that move, not of those that wait.
    """

    def __init__(self) -> None:
        self._bodies: dict[Hashable, _Body] = {}
        # Shelves are emptied from the front, which a plain dict does in quadratic time.
        self._unknown: OrderedDict[Hashable, _Body] = OrderedDict()
        self._ranks: dict[int, OrderedDict[Hashable, _Body]] = {}
        self._singles: dict[Mode, deque[Call]] = {Mode.ASYNC: deque(), Mode.OWN: deque()}
        self._unmeasured = 0
        self._known = 0
        self._seconds = 0.0
        self._room = MAX_BODIES
        # A mean of logarithms: after an hour of calls of 10 s it believes in no-ops again within ten of them.
        self._typical: float | None = None

    def __len__(self) -> int:
        return self._known + self._unmeasured + sum(map(len, self._singles.values()))

    def statistics(self) -> PackingStatistics:
        """Say how much waits, and how much of it is known."""
        bodies = sum(body.seconds is not None for body in self._bodies.values())
        return PackingStatistics(len(self), self._unmeasured, self._seconds if self._known else 0.0, bodies)

    def demand(self) -> int:
        """Return how many CPUs what waits is worth, besides those that ask for themselves: a node takes a while to join."""
        known = ceil(self._seconds / CPU_SECONDS) if self._known else 0
        return min(self._known, known) + ceil(self._unmeasured / PROBE_CALLS)

    def seconds(self, body: Hashable) -> float | None:
        """Return what one call of `body` is believed to cost, or None if it was never measured."""
        known = self._bodies.get(body)
        return None if known is None else known.seconds

    def add(self, calls: Iterable[Call]) -> None:
        """Let calls wait: new ones, and what a worker gave back."""
        for call in calls:
            if call.mode is not Mode.SYNC:
                self._singles[call.mode].append(call)
                continue
            body = self._bodies.get(call.body)
            if body is None:
                body = self._bodies[call.body] = _Body(call.body)
            if not body.waiting:
                self._shelf(body)[call.body] = body
            body.waiting.append(call)
            self._count(body, 1)

    def drop(self, ids: Iterable[Hashable]) -> list[Call]:
        """Take calls back before they start, as a cancelled or paused run does. Returns those that still waited.

        Costs as much as there is waiting: for stopping, not for every step.
        """
        wanted = set(ids)
        dropped: list[Call] = []
        for waiting in self._singles.values():
            dropped += _extract(waiting, wanted)
        for body in [body for body in self._bodies.values() if body.waiting]:
            gone = _extract(body.waiting, wanted)
            self._count(body, -len(gone))
            if not body.waiting:
                del self._shelf(body)[body.key]
            dropped += gone
        return dropped

    def learn(self, body: Hashable, seconds: float, count: int = 1) -> None:
        """Take note that `count` calls of `body` took `seconds` each."""
        weight = 1 - (1 - _NEWEST) ** count
        size = log(_price(seconds))
        self._typical = size if self._typical is None else self._typical + weight * (size - self._typical)
        old = self.seconds(body)
        self._believe(body, seconds if old is None else old + weight * (seconds - old))

    def next_packs(self, free: int, slots: int) -> list[Pack]:
        """Return what is to be sent out now.

        Args:
            free: How many sync packs may go out: the slots that are idle.
            slots: How many packs the cluster performs at once; shares are taken of it.

        Returns:
            Everything that is async or has resources of its own, and at most `free` packs of the rest: unmeasured bodies
            first, then the longest.
        """
        slots = max(1, slots)
        packs = [Pack((call,), Mode.OWN, None, None) for call in _drain(self._singles[Mode.OWN])]
        packs += self._async_packs(slots)
        while free > 0:
            if self._unmeasured:
                packs.append(self._probe(slots, free))
            elif self._known:
                packs.append(self._share(slots))
            else:
                break
            free -= 1
        return packs

    def _async_packs(self, slots: int) -> Iterator[Pack]:
        waiting = self._singles[Mode.ASYNC]
        count = min(ceil(len(waiting) / slots), PACK_CALLS)
        while waiting:
            calls: list[Call] = []
            size = 0
            while waiting and len(calls) < count and (not calls or size + waiting[0].size <= PACK_BYTES):
                calls.append(waiting.popleft())
                size += calls[-1].size
            yield Pack(tuple(calls), Mode.ASYNC, None, None)

    def _probe(self, slots: int, free: int) -> Pack:
        # What other bodies cost is a hint how many calls fill a pack; the budget bounds the harm of a wrong one.
        count, budget = PROBE_CALLS, PROBE_BUDGET
        if self._typical is not None:
            price = exp(self._typical)
            target = self._target(price * self._unmeasured, slots)
            count, budget = max(1, round(target / price)), max(budget, target)
        # Few calls are spread over the slots, since each may be a long one.
        count = min(count, ceil(self._unmeasured / free), PACK_CALLS)
        calls, _ = self._take(self._unknown, count, float("inf"), 0)
        return Pack(tuple(calls), Mode.SYNC, None, budget)

    def _share(self, slots: int) -> Pack:
        target = self._target(self._seconds, slots)
        calls: list[Call] = []
        work = 0.0
        size = 0
        for rank in sorted(self._ranks, reverse=True):
            shelf = self._ranks[rank]
            more, cost = self._take(shelf, PACK_CALLS - len(calls), target - work, size, first=not calls)
            calls += more
            work += cost
            size += sum(call.size for call in more)
            if shelf or work >= target:
                break
        return Pack(tuple(calls), Mode.SYNC, work, max(2 * work, PROBE_BUDGET))

    @staticmethod
    def _target(work: float, slots: int) -> float:
        return max(PACK_SECONDS, SHARE * work / slots)

    def _take(
        self, shelf: OrderedDict[Hashable, _Body], count: int, target: float, size: int, *, first: bool = True
    ) -> tuple[list[Call], float]:
        """Take up to `count` calls off a shelf, as near to `target` seconds as they come, and at least one if `first`."""
        calls: list[Call] = []
        work = 0.0
        while shelf and len(calls) < count:
            body = next(iter(shelf.values()))
            cost = _price(body.seconds)
            waiting = body.waiting
            before = len(calls)
            while waiting and len(calls) < count:
                if (calls or not first) and (work + cost / 2 > target or size + waiting[0].size > PACK_BYTES):
                    break
                call = waiting.popleft()
                calls.append(call)
                work += cost
                size += call.size
            self._count(body, before - len(calls))
            if waiting:
                break
            del shelf[body.key]
        return calls, work

    def _shelf(self, body: _Body) -> OrderedDict[Hashable, _Body]:
        if body.seconds is None:
            return self._unknown
        rank = frexp(_price(body.seconds))[1]
        shelf = self._ranks.get(rank)
        if shelf is None:
            shelf = self._ranks[rank] = OrderedDict()
        return shelf

    def _count(self, body: _Body, change: int) -> None:
        if body.seconds is None:
            self._unmeasured += change
            return
        self._known += change
        # Sums of floats drift; an empty queue sets the sum right.
        self._seconds = self._seconds + change * _price(body.seconds) if self._known else 0.0

    def _believe(self, key: Hashable, seconds: float) -> None:
        body = self._bodies.pop(key, None) or _Body(key)
        self._bodies[key] = body
        waiting = len(body.waiting)
        if waiting:
            del self._shelf(body)[key]
            self._count(body, -waiting)
        body.seconds = seconds
        if waiting:
            self._shelf(body)[key] = body
            self._count(body, waiting)
        if len(self._bodies) > self._room:
            self._forget()

    def _forget(self) -> None:
        for key in [key for key, body in self._bodies.items() if not body.waiting][: max(MAX_BODIES // 10, len(self._bodies) - MAX_BODIES)]:
            del self._bodies[key]
        # Bodies with waiting calls stay, however many: looking through them at every call would be quadratic.
        self._room = max(MAX_BODIES, len(self._bodies) + MAX_BODIES // 10)


def _price(seconds: float | None) -> float:
    return CALL_SECONDS if seconds is None else max(seconds, CALL_SECONDS)


def _drain(waiting: deque[Call]) -> Iterator[Call]:
    while waiting:
        yield waiting.popleft()


def _extract(waiting: deque[Call], wanted: set[Hashable]) -> list[Call]:
    gone = [call for call in waiting if call.id in wanted]
    if gone:
        kept = [call for call in waiting if call.id not in wanted]
        waiting.clear()
        waiting.extend(kept)
    return gone
