"""The seats that members of teams are performed on: kept warm, handed out once, ended and started behind. Virtual time, no Ray."""

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.members import CEILING, HELD, IDLE, LEAST_ROOM, MOST, PATIENCE, ROOM, USES, Members, Seat, widest
from engine import Member, Team, Workflow
from engine.core.policy import Resources
from engine.testing.clock import VirtualLoop

NOTHING = Resources()
GPU = Resources(num_gpus=1)
START = 1.0
"""Seconds that an actor takes to start."""
END = 0.25
"""Seconds that an actor takes to end."""


class Actor:
    """An actor, and what was done to it."""

    def __init__(self, number: int, resources: Resources | None) -> None:
        self.number = number
        self.resources = resources
        self.place: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()
        self.asked = False
        """Whether it was asked where it runs."""
        self.drained = 0
        self.ends = 0
        self.gone = False
        """Whether its process has ended, for whatever reason."""
        self.size = 1000

    def start(self) -> None:
        if not self.place.done():
            self.place.set_result(("here", self.number))


class Cluster:
    """Actors that start and end in their time. One that is told so does not start."""

    def __init__(self, *, start: float | None = START, slots: int = 16) -> None:
        self.slots = slots
        self.actors: list[Actor] = []
        self.start = start
        """Seconds; None: they never do by themselves."""
        self.broken = False
        self.refuses = False
        self.weighed: list[int] = []

    @property
    def living(self) -> list[Actor]:
        return [actor for actor in self.actors if not actor.gone]

    def start_member(self, resources: Resources | None) -> Actor:
        if self.refuses:
            raise ValueError("no such quantity")
        actor = Actor(len(self.actors), resources)
        self.actors.append(actor)
        loop = asyncio.get_running_loop()
        if self.broken:
            actor.gone = True
            loop.call_later(START, actor.place.set_exception, RuntimeError("no room"))
        elif self.start is not None:
            loop.call_later(self.start, actor.start)
        return actor

    def where_member(self, actor: Actor) -> asyncio.Future[tuple[str, int]]:
        actor.asked = True
        return asyncio.shield(actor.place)

    async def size_member(self, actor: Actor) -> int:
        self.weighed.append(actor.number)
        await asyncio.sleep(0)
        if actor.gone:
            raise RuntimeError("it died")
        return actor.size

    def prepare_member(self, actor: Actor, kit: Any) -> None:
        actor.kit = kit

    def drain_member(self, actor: Actor) -> None:
        actor.drained += 1
        actor.gone = True

    def lives_member(self, place: tuple[str, int] | None) -> bool:
        return place is None or not self.actors[place[1]].gone

    async def end_member(self, actor: Actor, place: tuple[str, int] | None) -> None:
        actor.ends += 1
        await asyncio.sleep(END)
        actor.gone = True


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Perform a test in virtual time."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        VirtualLoop().run_to_end(test(*args, **kwargs))

    del run.__wrapped__  # type: ignore[attr-defined]
    return run


def numbers(seats: Iterable[Seat]) -> list[int]:
    return [seat.actor.number for seat in seats]


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def now() -> float:
    return asyncio.get_running_loop().time()


async def warm(count: int, cluster: Cluster | None = None) -> tuple[Cluster, Members]:
    """Return seats of which so many are idle and have started."""
    cluster = cluster or Cluster()
    members = Members(cluster)
    seats = [members.take(NOTHING) for _ in range(count)]
    await asyncio.sleep(START)
    for seat in seats:
        members.leave(seat)
    await turns()
    return cluster, members


def sync_body(x: Any) -> Any:
    return x


async def async_body(x: Any) -> Any:
    return x


def plan_of(*bodies: Any, **policy: Any) -> Any:
    flow = Workflow("flow")
    for number, body in enumerate(bodies):
        flow.add_node(f"n{number}", body, **policy)
    return flow.set_entry_point(*(f"n{number}" for number in range(len(bodies)))).compiled()


def panel(count: int, *others: Any, **options: Any) -> Team:
    return Team([*([sync_body] * count), *others], **options)


# Handing out.


@virtual
async def test_a_seat_that_came_back_is_handed_out_again():
    cluster, members = await warm(1)
    seat = members.take(NOTHING)
    assert (seat.actor.number, len(cluster.actors)) == (0, 1)
    assert members.statistics() == (0, 1)


@virtual
async def test_an_actor_is_asked_where_it_runs_before_anybody_can_send_it_a_member():
    cluster = Cluster()
    seat = Members(cluster).take(Resources())
    assert seat.actor.asked, "its process is known once its member has ended, and until then nobody can stop it"


@virtual
async def test_a_new_seat_starts_where_none_is_free():
    cluster, members = await warm(2)
    assert sorted(numbers(members.take(NOTHING) for _ in range(3))) == [0, 1, 2]
    assert members.statistics() == (0, 3)
    assert len(cluster.actors) == 3


@virtual
async def test_a_seat_that_has_started_goes_before_one_that_is_starting():
    cluster, members = await warm(2)
    cluster.start = None
    lost = members.take(NOTHING)
    await members.end(lost)
    members.leave(lost)  # which has a third started behind it, the newest
    assert members.statistics() == (2, 0)
    assert numbers([members.take(NOTHING), members.take(NOTHING)]) == [1 - lost.actor.number, 2]


@virtual
async def test_what_asks_for_resources_has_seats_of_its_own():
    _, members = await warm(1)
    seat = members.take(GPU)
    assert (seat.actor.number, seat.actor.resources) == (1, GPU)
    members.leave(seat)
    assert members.take(NOTHING).actor.number == 0
    assert members.take(Resources(num_gpus=1)) is seat
    assert members.take(Resources(num_gpus=2)).actor.number == 2


@virtual
async def test_no_cpu_at_all_is_what_every_seat_asks_for():
    members = Members(Cluster())
    seat = members.take(Resources(num_cpus=0))
    await members.end(seat)
    members.leave(seat)
    assert members.statistics() == (1, 0)  # one was started behind it
    assert members.take(NOTHING).actor.number == 1


@virtual
async def test_a_seat_whose_process_died_while_it_waited_is_not_handed_out():
    cluster, members = await warm(3)
    for actor in cluster.actors[1:]:
        actor.gone = True
    assert members.take(NOTHING).actor.number == 0
    assert members.take(NOTHING).actor.number == 3
    assert members.statistics() == (0, 2)


@virtual
async def test_an_actor_that_cannot_be_asked_for_takes_no_place():
    cluster, members = await warm(0)
    cluster.refuses = True
    with pytest.raises(ValueError, match="no such quantity"):
        members.take(NOTHING)
    assert members.statistics() == (0, 0)


@virtual
async def test_who_asks_for_an_actor_that_cannot_be_asked_for_hears_of_it_and_so_does_nobody_else():
    cluster, members = await warm(1)
    held = members.take(NOTHING)
    cluster.refuses = True
    heard: list[Exception] = []
    members.seat(NOTHING, lambda: True, pytest.fail, heard.append)
    assert [str(error) for error in heard] == ["no such quantity"]
    await members.end(held)
    members.leave(held)  # nobody can be started behind it
    assert members.statistics() == (0, 0)


# Waiting for one.


class Asking:
    """Members that ask for seats, by number, and who has got one."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.unwanted: set[int] = set()
        self.got: dict[int, Seat] = {}

    def ask(self, number: int, resources: Resources = NOTHING) -> None:
        self.members.seat(resources, lambda: number not in self.unwanted, functools.partial(self.got.__setitem__, number), pytest.fail)


@virtual
async def test_a_seat_is_handed_over_at_once_where_there_is_room():
    cluster, members = await warm(1)
    asking = Asking(members)
    asking.ask(1)
    asking.ask(2)
    assert [seat.actor.number for seat in asking.got.values()] == [0, 1]
    assert members.statistics() == (0, 2)
    assert len(cluster.actors) == 2


@virtual
async def test_so_many_start_at_once_as_the_cluster_has_slots():
    cluster = Cluster(slots=2)
    asking = Asking(Members(cluster))
    for number in range(5):
        asking.ask(number)
    assert list(asking.got) == [0, 1]
    await asyncio.sleep(START)
    await turns()
    assert list(asking.got) == [0, 1, 2, 3]
    await asyncio.sleep(START)
    await turns()
    assert (list(asking.got), len(cluster.actors)) == ([0, 1, 2, 3, 4], 5)


@virtual
async def test_who_finds_no_room_waits_in_order_and_who_is_not_wanted_any_more_gets_none():
    cluster = Cluster(slots=1, start=0.0)
    members = Members(cluster)
    asking = Asking(members)
    for number in range(LEAST_ROOM + 4):
        asking.ask(number)
    await asyncio.sleep(START)
    assert list(asking.got) == list(range(LEAST_ROOM))
    asking.unwanted = {LEAST_ROOM, LEAST_ROOM + 2}
    members.leave(asking.got[3])
    assert asking.got[LEAST_ROOM + 1] is asking.got[3]
    await members.end(asking.got[5])
    members.leave(asking.got[5])
    await asyncio.sleep(START)
    assert set(range(LEAST_ROOM + 4)) - set(asking.got) == asking.unwanted
    assert (members.statistics(), len(cluster.actors)) == ((0, LEAST_ROOM), LEAST_ROOM + 1)


@virtual
async def test_the_room_grows_with_the_cluster_and_is_not_filled_ahead_either():
    cluster = Cluster(slots=8, start=0.0)
    members = Members(cluster)
    asking = Asking(members)
    for number in range(ROOM * 8 + 1):
        asking.ask(number)
    await asyncio.sleep(START)
    assert len(asking.got) == ROOM * 8 == len(cluster.actors)
    small = Cluster(slots=1, start=0.0)
    await (members := Members(small)).expect(plan_of(panel(MOST)))
    assert members.statistics() == (LEAST_ROOM, 0)


@virtual
async def test_who_waits_for_resources_holds_up_nobody_else():
    cluster = Cluster(slots=1, start=None)
    members = Members(cluster)
    asking = Asking(members)
    for number in range(4):
        asking.ask(number, GPU)
    assert list(asking.got) == [0, 1]
    asking.ask(5)
    assert list(asking.got) == [0, 1, 5]
    cluster.actors[0].start()
    await turns()
    assert list(asking.got) == [0, 1, 5, 2]


@virtual
async def test_who_waits_gets_a_seat_though_one_did_not_start():
    cluster = Cluster(slots=1)
    members = Members(cluster)
    asking = Asking(members)
    cluster.broken = True
    asking.ask(1)
    asking.ask(2)
    cluster.broken = False
    await asyncio.sleep(START)
    await turns()
    assert (list(asking.got), asking.got[2].actor.number) == ([1, 2], 1)


# Ending, and starting behind.


@virtual
async def test_whoever_ends_seats_has_as_many_started_behind_as_were_wanted_at_once():
    cluster, members = await warm(4)
    seats = [members.take(NOTHING) for _ in range(4)]
    for seat in seats[1:]:
        await members.end(seat)
        members.leave(seat)
    members.leave(seats[0])
    assert members.statistics() == (4, 0)
    assert len(cluster.living) == 4
    assert [actor.ends for actor in cluster.actors] == [seat in numbers(seats[1:]) for seat in range(4)] + [0] * 3


@virtual
async def test_no_more_than_so_many_are_kept_ahead_of_need():
    cluster, members = await warm(0)
    seats = [members.take(NOTHING) for _ in range(MOST + 8)]
    for seat in seats:
        await members.end(seat)
        members.leave(seat)
    assert members.statistics() == (MOST, 0)
    assert len(cluster.living) == MOST


@virtual
async def test_nothing_that_would_hold_resources_is_started_ahead():
    cluster, members = await warm(0)
    seat = members.take(GPU)
    await members.end(seat)
    members.leave(seat)
    await members.expect(plan_of(panel(3), num_gpus=1))
    assert members.statistics() == (0, 0)
    assert len(cluster.actors) == 1


@virtual
async def test_a_seat_has_ended_when_its_process_is_gone_for_whoever_asks():
    cluster, members = await warm(1)
    seat = members.take(NOTHING)
    begun = now()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(members.end(seat))
        await asyncio.sleep(END / 2)
        assert not first.done()
        await members.end(seat)
        assert cluster.actors[0].gone
    assert (cluster.actors[0].ends, now() - begun) == (1, END)


@virtual
async def test_who_stops_waiting_for_a_seat_to_end_does_not_keep_it_from_ending():
    cluster, members = await warm(1)
    seat = members.take(NOTHING)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(members.end(seat), END / 2)
    await members.end(seat)
    assert (cluster.actors[0].ends, cluster.actors[0].gone) == (1, True)


@virtual
async def test_a_seat_that_is_ended_after_it_came_back_is_not_handed_out():
    _, members = await warm(1)
    seat = members.take(NOTHING)
    members.leave(seat)
    async with asyncio.TaskGroup() as group:
        group.create_task(members.end(seat))
        await turns(1)
        assert members.take(NOTHING).actor.number == 1


@virtual
async def test_a_seat_that_died_makes_room_for_a_new_one():
    cluster, members = await warm(1)
    seat = members.take(NOTHING)
    seat.dead = True
    members.leave(seat)
    assert members.statistics() == (1, 0)
    assert members.take(NOTHING).actor.number == 1
    assert cluster.actors[0].ends == 0


# Idle ones.


@virtual
async def test_idle_seats_end_after_a_while_and_nothing_is_started_for_them():
    cluster, members = await warm(3)
    await asyncio.sleep(IDLE - HELD)
    assert members.statistics() == (3, 0)
    await asyncio.sleep(2 * HELD)
    assert members.statistics() == (0, 0)
    assert [actor.drained for actor in cluster.actors] == [1, 1, 1]
    await asyncio.sleep(10 * IDLE)
    assert len(cluster.actors) == 3


@virtual
async def test_seats_that_hold_resources_end_sooner():
    cluster, members = await warm(0)
    seat = members.take(GPU)
    await asyncio.sleep(10 * IDLE)  # as long as it is in use it is nobody's business
    members.leave(seat)
    await asyncio.sleep(HELD / 2)
    assert members.statistics() == (1, 0)
    await asyncio.sleep(2 * HELD)
    assert members.statistics() == (0, 0)
    assert cluster.actors[0].drained == 1


@virtual
async def test_those_that_are_not_needed_end_while_others_are_in_use():
    cluster, members = await warm(3)
    for _ in range(int(2 * IDLE)):  # one at a time, always the same
        seat = members.take(NOTHING)
        await asyncio.sleep(1)
        members.leave(seat)
    assert members.statistics() == (1, 0)
    await members.end(seat := members.take(NOTHING))
    members.leave(seat)
    assert members.statistics() == (1, 0)  # lately one was wanted at once, not three
    assert len(cluster.living) == 1


@virtual
async def test_an_old_seat_ends_in_time_though_a_newer_one_is_starting():
    cluster, members = await warm(3)
    await asyncio.sleep(IDLE - HELD)
    cluster.start = None
    lost = members.take(NOTHING)
    await members.end(lost)
    members.leave(lost)  # a new one is starting
    members.leave(members.take(NOTHING))
    await asyncio.sleep(2 * HELD)
    assert [actor.drained for actor in cluster.actors] == [1, 0, 0, 0]
    assert members.statistics() == (2, 0)


@virtual
async def test_what_ended_idle_is_started_anew_when_it_is_wanted():
    cluster, members = await warm(2)
    await asyncio.sleep(2 * IDLE)
    seat = members.take(NOTHING)
    members.leave(seat)
    await asyncio.sleep(2 * IDLE)
    assert [actor.drained for actor in cluster.actors] == [1, 1, 1]
    assert members.statistics() == (0, 0)


# Recycling.


@virtual
async def test_a_seat_makes_room_after_so_many_members():
    _, members = await warm(0)
    for _ in range(USES):
        seat = members.take(NOTHING)
        assert seat.actor.number == 0
        members.leave(seat)
    assert (seat.actor.drained, seat.actor.ends) == (1, 0)
    assert members.statistics() == (1, 0)
    assert members.take(NOTHING).actor.number == 1


@virtual
async def test_a_seat_that_has_grown_makes_room_and_its_imports_do_not_count():
    cluster, members = await warm(0)
    seat = members.take(NOTHING)
    seat.actor.size = 8 * CEILING
    members.leave(seat)
    await turns()
    assert members.statistics() == (1, 0)
    for use in range(1, 16):
        assert members.take(NOTHING) is seat
        if use == 1:
            seat.actor.size = 9 * CEILING + 1
        members.leave(seat)
        await turns()
        assert seat.actor.drained == (use == 15), use
    assert cluster.weighed == [0, 0]
    assert members.statistics() == (1, 0)
    assert members.take(NOTHING).actor.number == 1


@virtual
async def test_a_seat_that_has_grown_and_is_in_use_makes_room_after_its_member():
    _, members = await warm(0)
    seat = members.take(NOTHING)
    members.leave(seat)
    await turns()
    seat.actor.size += CEILING + 1
    for _ in range(15):
        assert members.take(NOTHING) is seat
        members.leave(seat)
    assert members.take(NOTHING) is seat  # before it was weighed
    await turns()
    assert seat.actor.drained == 0
    members.leave(seat)
    assert seat.actor.drained == 1
    assert members.take(NOTHING).actor.number == 1


@virtual
async def test_a_seat_that_died_before_it_was_weighed_is_not_handed_out():
    cluster, members = await warm(0)
    seat = members.take(NOTHING)
    cluster.actors[0].gone = True
    members.leave(seat)
    await turns()
    assert members.statistics() == (0, 0)


# Actors that do not start.


@virtual
async def test_an_actor_that_does_not_start_is_taken_from_its_shelf_and_does_not_come_back():
    cluster = Cluster()
    members = Members(cluster)
    cluster.broken = True
    await members.expect(plan_of(panel(3)))
    assert (members.statistics(), now(), len(cluster.actors)) == ((0, 0), START, 3)
    await asyncio.sleep(2 * IDLE)
    assert len(cluster.actors) == 3
    cluster.broken = False
    await members.expect(plan_of(panel(2)))
    assert members.statistics()[0] >= 2


def test_an_actor_that_does_not_start_is_told_of_and_one_that_was_ended_is_not(caplog: pytest.LogCaptureFixture):
    @virtual
    async def main() -> None:
        cluster = Cluster()
        members = Members(cluster)
        cluster.broken = True
        ended, failed = members.take(NOTHING), members.take(NOTHING)
        await members.end(ended)
        await asyncio.sleep(START)
        for seat in (ended, failed):
            seat.dead = True  # its pack did not come back
            members.leave(seat)
        assert len(cluster.actors) == 4

    caplog.set_level(logging.WARNING)
    main()
    assert [record.getMessage() for record in caplog.records] == ["An actor for members of teams did not start"]


# Ahead of a run.


@virtual
async def test_a_run_waits_for_seats_where_nothing_is_there():
    cluster = Cluster()
    members = Members(cluster)
    await members.expect(plan_of(panel(3)))
    assert (now(), members.statistics()) == (START, (3, 0))
    await members.expect(plan_of(panel(2)))
    assert (now(), len(cluster.actors)) == (START, 3)


@virtual
async def test_a_run_does_not_wait_where_some_are_there():
    _, members = await warm(1)
    begun = now()
    await members.expect(plan_of(panel(4)))
    assert (now(), members.statistics()) == (begun, (4, 0))


@virtual
async def test_a_run_has_so_many_started_and_keeps_what_a_wider_one_wanted():
    cluster = Cluster()
    members = Members(cluster)
    await members.expect(plan_of(panel(MOST + 8)))
    assert members.statistics() == (MOST, 0)
    await members.expect(plan_of(panel(2)))
    seat = members.take(NOTHING)
    await members.end(seat)
    members.leave(seat)
    assert members.statistics() == (MOST, 0)


@virtual
async def test_a_run_does_not_wait_for_a_cluster_that_is_full():
    members = Members(Cluster(start=None))
    await members.expect(plan_of(panel(2)))
    assert (now(), members.statistics()) == (PATIENCE, (2, 0))


@virtual
async def test_a_run_that_needs_no_seats_does_not_wait_for_those_of_others():
    members = Members(Cluster())
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(members.expect(plan_of(panel(2))))
        await turns()
        await members.expect(plan_of(sync_body, Team([async_body, async_body])))
        assert (now(), waiting.done()) == (0, False)


WIDTHS: dict[str, tuple[int, Any]] = {
    "no team": (0, plan_of(sync_body, async_body)),
    "sync members": (3, plan_of(panel(3))),
    "async members share a lane": (1, plan_of(panel(1, async_body, async_body))),
    "no body": (1, plan_of(panel(1, 17))),
    "a width": (2, plan_of(panel(5, max_concurrent=2))),
    "the widest of several": (4, plan_of(panel(2), panel(4), panel(1))),
    "resources of its own": (1, plan_of(panel(1, Member(sync_body, num_gpus=1), Member(async_body, num_cpus=2)))),
    "resources of the node's": (0, plan_of(panel(3), num_cpus=2)),
    "a node that is performed in a lane": (0, plan_of(panel(3), executor="inline")),
    "a workflow within": (3, plan_of(Workflow("in").add_node("n", panel(3)).set_entry_point("n"))),
    "a team within": (5, plan_of(panel(2, panel(3), async_body))),
    "a team within that has a width": (3, plan_of(panel(2, panel(3, max_concurrent=1)))),
    "a width over teams within": (3, plan_of(panel(2, panel(3), panel(2), max_concurrent=1))),
    "a width of two over teams within": (5, plan_of(panel(2, panel(3), panel(2), max_concurrent=2))),
    "a workflow as a member": (2, plan_of(panel(1, Workflow("in").add_node("n", panel(1)).set_entry_point("n")))),
    "nobody": (0, plan_of(panel(0))),
}


@pytest.mark.parametrize("case", WIDTHS)
def test_the_widest_team_of_a_plan_says_how_many_seats_are_needed(case: str):
    needed, plan = WIDTHS[case]
    assert widest(plan) == needed


# Properties.

MOVES = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "leave", "lose", "die", "die idle", "end twice", "wait", "expect"]), st.integers(0, 7)
    ),
    max_size=60,
)  # fmt: skip


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from(["ask", "ask", "ask", "leave", "lose", "unwant", "wait"]), st.integers(0, 20)), max_size=80))
def test_who_waits_for_a_seat_gets_it_in_order_and_the_room_is_kept(moves: list[tuple[str, int]]):
    @virtual
    async def main() -> None:
        cluster = Cluster(slots=1, start=0.1)
        members = Members(cluster)
        asking, asked, back = Asking(members), 0, set[int]()

        async def give_back(number: int, *, lost: bool) -> None:
            back.add(number)
            if lost:
                await members.end(asking.got[number])
            members.leave(asking.got[number])

        for move, number in moves:
            held = [n for n in asking.got if n not in back]
            if move == "ask":
                for _ in range(number):
                    asked += 1
                    asking.ask(asked)
            elif move == "unwant":
                asking.unwanted |= {n for n in range(1, asked + 1, number + 2) if n not in asking.got}
            elif move == "wait":
                await asyncio.sleep(number / 10)
            elif held:
                await give_back(held[number % len(held)], lost=move == "lose")
            assert list(asking.got) == sorted(asking.got)
            assert members.statistics()[1] == len(asking.got) - len(back)
            assert sum(members.statistics()) <= LEAST_ROOM
            assert sum(not actor.place.done() and not actor.ends for actor in cluster.actors) <= 1
        while held := [n for n in asking.got if n not in back]:
            await give_back(held[0], lost=False)
            await asyncio.sleep(0.2)
        assert set(asking.got) == set(range(1, asked + 1)) - asking.unwanted

    main()


@pytest.mark.slow
@given(MOVES, st.booleans())
def test_no_seat_is_handed_out_twice_and_the_count_is_right_whatever_happens(moves: list[tuple[str, int]], broken: bool):
    @virtual
    async def main() -> None:
        cluster = Cluster()
        members, held, most = Members(cluster), dict[Seat, Resources](), 0
        cluster.broken = broken
        for move, number in moves:
            cluster.broken = broken and number > 3
            mine = list(held)[number % len(held)] if held else None
            if move == "take":
                kind = GPU if number == 0 else NOTHING
                seat = members.take(kind)
                assert seat not in held
                assert not seat.dead
                assert seat.place is None or not seat.actor.gone
                held[seat] = kind
                most = max(most, sum(kind is NOTHING for kind in held.values()))
            elif move == "wait":
                await asyncio.sleep(number * 2.0)
            elif move == "expect":
                await members.expect(plan_of(panel(number)))
                most = max(most, number)
            elif move == "die idle" and cluster.actors:
                actor = cluster.actors[number % len(cluster.actors)]
                if actor.place.done() and all(seat.actor is not actor for seat in held):
                    actor.gone = True
            elif mine is not None and move in ("leave", "lose", "die", "end twice"):
                del held[mine]
                if move == "die":
                    mine.dead = mine.actor.gone = True
                elif move != "leave":
                    await asyncio.gather(*(members.end(mine) for _ in range(1 + (move == "end twice"))))
                    assert mine.actor.gone
                members.leave(mine)
            idle, busy = members.statistics()
            assert busy == len(held)
            assert 0 <= idle <= len(cluster.actors) - len(held)
            assert sum(not actor.resources and not actor.gone for actor in cluster.actors) <= max(most, 1) + MOST
        for seat in held:
            members.leave(seat)
        await asyncio.sleep(2 * IDLE + 2 * HELD)
        assert members.statistics() == (0, 0)
        assert cluster.living == []  # none is forgotten

    main()
