"""Warm actors that members of teams are performed on: one member at a time each, since one that loses is ended with its process.

Async members share the lanes and are cancelled as coroutines; sync and native code, and what has resources of its own, cannot be stopped
otherwise than with its process. A process takes a second to start, so actors are kept warm: whoever ends one has another started behind
the race, as many as were wanted at once lately. Idle ones end by themselves, and so does one that has served long or grown large.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

from cluster.placing import demand_of, is_member_of_lane
from cluster.port import Actors, Kit
from engine.core.graph import Node
from engine.core.plan import Plan
from engine.core.policy import Resources
from engine.core.team import TeamPlan, named

logger = logging.getLogger(__name__)

IDLE = 30.0
"""Seconds without work after which an actor ends, and one less is wanted at once."""
HELD = 5.0
"""The same for one that holds resources, which others may wait for."""
ROOM, LEAST_ROOM = 4, 16
"""So many actors a CPU of the cluster at most, and so many in any case: what waits in a member needs memory, not a CPU."""
PATIENCE = 10.0
"""Seconds that a plan's first run waits for the seats of its teams."""
MOST = 32
"""So many are kept warm ahead of need."""
USES = 500
"""After so many members an actor makes room for a new one."""
CEILING = 256 * 1024 * 1024
"""So many bytes may an actor have grown by; its imports come first, so it is measured from its first member on."""

Key = tuple[tuple[str, float], ...]


class Seat:
    """One actor."""

    __slots__ = ("actor", "dead", "ending", "first", "key", "place", "since", "uses")

    def __init__(self, actor: Any, key: Key) -> None:
        self.actor = actor
        self.key = key
        self.place: tuple[str, int] | None = None
        """(node, process), once it is known."""
        self.dead = False
        self.ending: asyncio.Task[None] | None = None
        """What ends its process."""
        self.uses = 0
        self.first = 0
        """Bytes of memory after its first member."""
        self.since = 0.0
        """When it last had nothing to do."""


class Shelf:
    """The seats of one demand."""

    def __init__(self, resources: Resources | None) -> None:
        self.resources = resources
        self.idle: list[Seat] = []
        self.busy = 0
        self.wanted = 0
        """How many are kept: so many were wanted at once lately."""
        self.starting = 0
        self.queue: deque[tuple[Callable[[], bool], Callable[[Seat], None], Callable[[Exception], None]]] = deque()
        """(whether a member still wants one, what is done with it, or with what Ray says instead), where there is no room for more."""


class Members:
    """The seats of one coordinator."""

    def __init__(self, actors: Actors) -> None:
        """Start nothing yet."""
        self._actors = actors
        self._shelves: dict[Key, Shelf] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._starting: dict[int, asyncio.Task[Any]] = {}
        """By a seat's id: what waits for its actor to start."""
        self._look: asyncio.TimerHandle | None = None
        self._kit: Kit | None = None
        """What the newest plan's members need."""

    def statistics(self) -> tuple[int, int]:
        """Return how many seats are idle and how many busy."""
        return sum(len(s.idle) for s in self._shelves.values()), sum(s.busy for s in self._shelves.values())

    async def expect(self, plan: Plan, kit: "Kit | None" = None) -> None:
        """Start, ahead of a run, what its teams need at once without resources of their own: a race is not to wait for half of its members.

        Where nothing is there yet it is waited for, up to `PATIENCE` seconds: a cluster may be full. With a `kit` seats open the bodies
        before they are sent one.
        """
        needed = min(MOST, widest(plan))
        if not needed:
            return
        shelf = self._shelf(None)
        if kit is not None:
            self._kit = kit
            for seat in shelf.idle:
                self._actors.prepare_member(seat.actor, kit)
        shelf.wanted = max(shelf.wanted, needed)
        self._refill(shelf)
        if any(seat.place is not None for seat in shelf.idle):
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while starting := [self._starting[id(seat)] for seat in shelf.idle if id(seat) in self._starting]:
                    await asyncio.wait(starting)

    def seat(
        self, resources: Resources, wanted: Callable[[], bool], then: Callable[[Seat], None], refused: Callable[[Exception], None]
    ) -> None:
        """Hand over a seat, at once or as soon as there is one that is free or room for another; not any more where it is not `wanted`.

        Where no actor can be asked for, `refused` hears why.
        """
        shelf = self._shelf(resources)
        shelf.queue.append((wanted, then, refused))
        self._serve(shelf)

    def _serve(self, shelf: Shelf) -> None:
        while shelf.queue and (shelf.idle or self._has_room(shelf)):
            wanted, then, refused = shelf.queue.popleft()
            if not wanted():
                continue
            try:
                seat = self.take(shelf.resources or Resources())
            except Exception as error:  # noqa: BLE001 - whatever Ray raises
                refused(error)
            else:
                then(seat)

    def _has_room(self, shelf: Shelf) -> bool:
        """Tell whether one more may start: a few at once, since that takes a CPU for a second, and no more than the cluster bears."""
        slots = max(1, self._actors.slots)
        if shelf.resources is not None:  # Ray holds back what has no place, and an autoscaler is to see some of that
            return shelf.starting < 2 * slots
        return shelf.starting < slots and shelf.busy + len(shelf.idle) < max(LEAST_ROOM, ROOM * slots)

    def take(self, resources: Resources) -> Seat:
        """Return a seat that is free, the newest that has started; a new one starts where none is."""
        shelf = self._shelf(resources)
        seat = self._free(shelf) or self._start(shelf)
        shelf.busy += 1
        shelf.wanted = max(shelf.wanted, min(MOST, shelf.busy))
        return seat

    def leave(self, seat: Seat) -> None:
        """Take a seat back whose member has ended by itself, or with the process."""
        shelf = self._shelves[seat.key]
        shelf.busy -= 1
        seat.uses += 1
        if seat.dead:
            self._refill(shelf)
        elif seat.uses >= USES:
            self._drain(seat)
            self._refill(shelf)
        else:
            self._put_back(shelf, seat)
            if seat.uses == 1 or not seat.uses % 16:
                self._beside(self._weigh(seat))
        self._serve(shelf)

    async def end(self, seat: Seat) -> None:
        """End a seat with all that it does; returns when its process, and what that started, is gone."""
        if not seat.dead:
            seat.dead = True
            self._discard(seat)
            seat.ending = self._beside(self._actors.end_member(seat.actor, seat.place))
        if seat.ending is not None:  # maybe somebody else ends it: it is gone for both at once
            await asyncio.shield(seat.ending)

    def _shelf(self, resources: Resources | None) -> Shelf:
        key = _key(resources)
        if key not in self._shelves:
            self._shelves[key] = Shelf(resources if key else None)
        return self._shelves[key]

    def _free(self, shelf: Shelf) -> Seat | None:
        while shelf.idle:
            seat = max(reversed(shelf.idle), key=lambda seat: seat.place is not None)
            shelf.idle.remove(seat)
            if self._actors.lives_member(seat.place):  # memory may have run short while it waited
                return seat
        return None

    def _start(self, shelf: Shelf) -> Seat:
        seat = Seat(self._actors.start_member(shelf.resources), _key(shelf.resources))
        shelf.starting += 1
        asked = self._actors.where_member(seat.actor)  # now: an actor answers in order, and the next question is its member
        if self._kit is not None and shelf.resources is None:
            self._actors.prepare_member(seat.actor, self._kit)
        self._starting[id(seat)] = self._beside(self._find(seat, asked))
        return seat

    def _refill(self, shelf: Shelf) -> None:
        """Start what is missing; nothing that would hold resources before anybody needs them."""
        if shelf.resources is None:
            while shelf.busy + len(shelf.idle) < shelf.wanted and self._has_room(shelf):
                try:
                    self._put_back(shelf, self._start(shelf))
                except Exception as error:
                    shelf.wanted = shelf.busy + len(shelf.idle)
                    logger.warning("An actor for members of teams could not be asked for", exc_info=error)

    def _put_back(self, shelf: Shelf, seat: Seat) -> None:
        seat.since = asyncio.get_running_loop().time()
        shelf.idle.append(seat)
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(HELD, self._shrink)

    async def _find(self, seat: Seat, asked: Awaitable[tuple[str, int]]) -> None:
        """Learn where an actor runs; one that cannot start, or dies while it waits, is taken from its shelf."""
        try:
            seat.place = await asked
        except Exception as error:
            self._discard(seat)
            if not seat.dead:
                shelf = self._shelves[seat.key]
                shelf.wanted = min(shelf.wanted, shelf.busy + len(shelf.idle))  # nor would another that nobody waits for
                logger.warning("An actor for members of teams did not start", exc_info=error)
        finally:
            del self._starting[id(seat)]
            shelf = self._shelves[seat.key]
            shelf.starting -= 1
            self._refill(shelf)
            self._serve(shelf)

    async def _weigh(self, seat: Seat) -> None:
        """Recycle an actor that has grown too large."""
        try:
            size = await self._actors.size_member(seat.actor)
        except Exception:  # noqa: BLE001 - it died: it must not be handed out any more
            self._discard(seat)
            return
        seat.first = seat.first or size
        if size <= seat.first + CEILING:
            return
        if self._discard(seat):
            self._drain(seat)
            self._refill(self._shelves[seat.key])
        else:
            seat.uses = USES  # in use: its member is the last

    def _discard(self, seat: Seat) -> bool:
        """Take a seat from its shelf; False where it is in use."""
        shelf = self._shelves[seat.key]
        if seat not in shelf.idle:
            return False
        shelf.idle.remove(seat)
        return True

    def _drain(self, seat: Seat) -> None:
        """Let an actor end after what it does."""
        seat.dead = True
        self._actors.drain_member(seat.actor)

    def _shrink(self) -> None:
        """End what nobody has needed for a while."""
        now = asyncio.get_running_loop().time()
        for shelf in self._shelves.values():
            patience = IDLE if shelf.resources is None else HELD
            for seat in [seat for seat in shelf.idle if now - seat.since >= patience]:
                shelf.idle.remove(seat)
                self._drain(seat)
                shelf.wanted = max(0, shelf.wanted - 1)
        waiting = any(shelf.idle for shelf in self._shelves.values())
        self._look = asyncio.get_running_loop().call_later(HELD, self._shrink) if waiting else None

    def _beside(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def widest(plan: Plan) -> int:
    """Return how many members of one team of a plan need a process of their own at once, and no resources."""
    return max((_width(node) for node in plan.nodes if isinstance(node.body, (Plan, TeamPlan))), default=0)


def bodies(plan: Plan) -> list[bytes]:
    """Return the keys of the bodies that a plan's teams may want seats for."""
    found: list[bytes] = []
    nodes = [node for node in plan.nodes if isinstance(node.body, (Plan, TeamPlan))]
    for node in nodes:
        inner = node.body.members if isinstance(node.body, TeamPlan) else node.body.nodes
        nodes += [n for n in inner if isinstance(n.body, (Plan, TeamPlan))]
        if isinstance(node.body, TeamPlan):
            found += [n.body.key for n in inner if n.body is not None and not isinstance(n.body, (Plan, TeamPlan)) and not n.body.is_async]
    return found


def _width(node: Node) -> int:
    body, policy = node.body, node.policy
    if isinstance(body, Plan):
        return widest(body)
    if isinstance(body, TeamPlan):
        members = [named(member, member.name, policy) for i, member in enumerate(body.members) if i not in body.lacks]
        return sum(sorted(map(_width, members), reverse=True)[: body.width])
    return int(not policy.resources and not is_member_of_lane(policy, is_async=body.is_async))


def _key(resources: Resources | None) -> Key:
    return () if not resources else tuple(sorted(demand_of(resources).items()))
