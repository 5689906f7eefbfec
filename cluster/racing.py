"""Members of teams on their way: those of one turn of the event loop leave together, in a pack for each lane or each on a seat of its own.

A team's members go to several lanes, and each one's end is told at once, since a race waits for it. Where a lane dies nobody is blamed: its
members are performed again, each with a process for itself, and one that ends that too has failed. The
same holds of a member that another one cancelled.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from cluster.flight import Entry, Flight
from cluster.members import Members, Seat
from cluster.packing import PACK_CALLS
from cluster.placing import is_member_of_lane
from cluster.scarce import watch_scarce

if TYPE_CHECKING:
    from cluster.dispatch import Pool


class Races:
    """What a pool does about members."""

    def __init__(self, pool: "Pool") -> None:
        """Send for `pool`."""
        self.seats = Members(pool.remote)
        self._pool = pool
        self._waiting: list[Entry] = []
        self._stopping: dict[str, Flight] = {}
        """Packs in lanes of which some calls are to be stopped at the end of this turn."""

    def add(self, entries: Sequence[Entry]) -> None:
        """Send members at the end of this turn."""
        if entries and not self._waiting:
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting += entries

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        pool, packs = self._pool, dict[int, dict[int, Entry]]()
        for entry in waiting:
            policy, is_async = entry.call.node.policy, entry.call.binding.is_async
            if not pool.is_wanted(entry):
                continue
            if entry.careful or not is_member_of_lane(policy, is_async=is_async):
                self.seats.seat(policy.resources, partial(pool.is_wanted, entry), partial(self._seat, entry), partial(pool.refuse, entry))
                continue
            lane = pool.next_lane()
            pack = packs.setdefault(lane, {})
            pack[entry.id] = entry
            if len(pack) >= PACK_CALLS:
                pool.fly("race", packs.pop(lane), lane=lane)
        for lane, pack in packs.items():
            pool.fly("race", pack, lane=lane)

    def _seat(self, entry: Entry, seat: Seat) -> None:
        flight = self._pool.fly("async" if entry.call.binding.is_async else "sync", {entry.id: entry}, seat=seat)
        if not self._pool.flies(flight):
            self.seats.leave(seat)
        elif entry.call.node.policy.resources:
            watch_scarce(flight, entry.call.node.policy.resources, self._pool.remote)

    async def end(self, flight: Flight, seat: Seat) -> None:
        """End a member with its process; it has stopped when that is gone."""
        await self.seats.end(seat)
        flight.entries.clear()
        flight.changed()

    async def landed(self, seat: Seat, *, dead: bool) -> None:
        """Take a seat back, once everything of its member is there: a loser whose result is on its way is ended with it."""
        if seat.ending is not None:  # Ray tells that an actor is dead as soon as it is to be
            await self.seats.end(seat)
        seat.dead = seat.dead or dead
        self.seats.leave(seat)

    def stop_in_lane(self, flight: Flight) -> None:
        """Stop what nobody wants any more of a pack in a lane, at the end of this turn: the losers of many races go in one call."""
        if not self._stopping:
            asyncio.get_running_loop().call_soon(self._stop)
        self._stopping[flight.id] = flight

    def _stop(self) -> None:
        stopping, self._stopping = self._stopping, {}
        numbers: dict[int, list[int]] = {}
        for flight in stopping.values():
            assert flight.lane is not None
            numbers.setdefault(flight.lane, []).extend(e.id for e in flight.entries.values() if not self._pool.is_wanted(e))
        for lane, unwanted in numbers.items():
            if unwanted:
                self._pool.remote.stop_in_lane(lane, unwanted)
