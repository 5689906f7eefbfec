"""Packing: rules one by one, and a simulated cluster that shows how near to the best possible schedule they come."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.packing import (
    CALL_SECONDS,
    MAX_BODIES,
    PACK_BYTES,
    PACK_CALLS,
    PACK_SECONDS,
    PROBE_BUDGET,
    PROBE_CALLS,
    Call,
    Mode,
    Pack,
    Packer,
)

BLOCK = 0.02
"""Seconds between two blocks of results of one worker."""


class Outcome(NamedTuple):
    """What a simulated layer came to."""

    makespan: float
    packs: int
    performed: list[int]


class _Cluster:
    """Slots that perform packs: results come in blocks, and what a pack has not started when its budget ends comes back."""

    def __init__(self, packer: Packer, slots: int, *, overhead: float, ahead: int, cost: Callable[[Call], float]) -> None:
        self.packer, self.slots, self.overhead, self.ahead, self.cost = packer, slots, overhead, ahead, cost
        self.now = 0.0
        self.packs = 0
        self.in_flight = 0
        self.idle = slots
        self.ready: deque[Pack] = deque()
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()
        self.performed: list[int] = []

    def run(self) -> Outcome:
        self._send()
        while self.events:
            self.now, _, happen = heapq.heappop(self.events)
            happen()
            self._send()
        assert not len(self.packer)
        return Outcome(self.now, self.packs, self.performed)

    def _at(self, time: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.events, (time, next(self.order), happen))

    def _send(self) -> None:
        packs = self.packer.next_packs(self.slots + self.ahead - self.in_flight, self.slots)
        self.in_flight += len(packs)
        self.packs += len(packs)
        self.ready.extend(packs)
        while self.idle and self.ready:
            self.idle -= 1
            self._perform(self.ready.popleft())

    def _perform(self, pack: Pack) -> None:
        begin = at = self.now + self.overhead
        block: list[tuple[Call, float]] = []
        block_at = begin
        for index, call in enumerate(pack.calls):
            if pack.budget is not None and at - begin > pack.budget:
                self._at(begin + pack.budget, partial(self.packer.add, pack.calls[index:]))
                break
            seconds = self.cost(call)
            at += seconds
            block.append((call, seconds))
            if at - block_at >= BLOCK:
                self._at(at, partial(self._report, block))
                block, block_at = [], at
        self._at(at, partial(self._finish, block))

    def _report(self, block: list[tuple[Call, float]]) -> None:
        by_body: dict[object, list[float]] = {}
        for call, seconds in block:
            self.performed.append(call.id)  # type: ignore[arg-type]
            by_body.setdefault(call.body, []).append(seconds)
        for body, each in by_body.items():
            self.packer.learn(body, sum(each) / len(each), len(each))

    def _finish(self, block: list[tuple[Call, float]]) -> None:
        self._report(block)
        self.idle += 1
        self.in_flight -= 1


def perform(
    costs: list[float], *, slots: int, overhead: float, ahead: int = 0, distinct: bool = True, packer: Packer | None = None
) -> Outcome:
    """Perform one layer; `distinct`: every call has a body of its own, else they share one."""
    packer = Packer() if packer is None else packer
    packer.add(Call(i, i if distinct else "body") for i in range(len(costs)))
    real = [max(cost, CALL_SECONDS) for cost in costs]
    outcome = _Cluster(packer, slots, overhead=overhead, ahead=ahead, cost=lambda call: real[call.id]).run()  # type: ignore[index]
    assert sorted(outcome.performed) == list(range(len(costs)))
    return outcome


def best(costs: list[float], slots: int) -> float:
    """No schedule is shorter than this."""
    lightest = max(*costs, sum(costs) / slots)
    rounds = -(-len(costs) // slots) * min(costs)
    return max(lightest, rounds)


def one_long_among(position: int) -> list[float]:
    return [1.0 if i == position else 0.0 for i in range(1000)]


def uneven() -> list[float]:
    draw = random.Random(7)
    return [draw.uniform(0.005, 0.05) for _ in range(200)]


SKEWED = {
    "one of 1 s first": one_long_among(0),
    "one of 1 s in the middle": one_long_among(500),
    "one of 1 s last": one_long_among(999),
    "200 of 5 to 50 ms": uneven(),
    "200 of 5 to 50 ms, long ones last": sorted(uneven()),
    "16 of 200 ms": [0.2] * 16,
}


@pytest.mark.parametrize("case", SKEWED)
@pytest.mark.parametrize("slots", [2, 4])
@pytest.mark.parametrize(("overhead", "ahead"), [(0.002, 0), (0.004, 0), (0.003, 2)])
@pytest.mark.parametrize("distinct", [True, False], ids=["a body each", "one body"])
def test_skewed_work_comes_within_seven_percent_of_the_best_schedule(
    case: str, slots: int, overhead: float, ahead: int, distinct: bool
) -> None:
    costs = SKEWED[case]
    outcome = perform(costs, slots=slots, overhead=overhead, ahead=ahead, distinct=distinct)
    assert outcome.makespan <= 1.07 * best(costs, slots)


@pytest.mark.parametrize("case", SKEWED)
@pytest.mark.parametrize("slots", [2, 4])
def test_skewed_work_that_is_known_comes_within_five_percent(case: str, slots: int) -> None:
    packer = Packer()
    costs = SKEWED[case]
    perform(costs, slots=slots, overhead=0.003, packer=packer)
    assert perform(costs, slots=slots, overhead=0.003, packer=packer).makespan <= 1.05 * best(costs, slots)


@pytest.mark.parametrize("slots", [2, 4])
@pytest.mark.parametrize("distinct", [True, False], ids=["a body each", "one body"])
def test_a_thousand_no_ops_take_few_packs_the_first_time_and_fewer_the_second(slots: int, distinct: bool) -> None:
    packer = Packer()
    first = perform([0.0] * 1000, slots=slots, overhead=0.003, distinct=distinct, packer=packer)
    second = perform([0.0] * 1000, slots=slots, overhead=0.003, distinct=distinct, packer=packer)
    assert first.packs <= slots + 4
    assert second.packs == 2
    assert second.makespan <= 0.02


def test_an_unknown_body_is_probed_with_sixteen_calls_a_slot() -> None:
    packer = Packer()
    packer.add(Call(i, "f") for i in range(1000))
    packs = packer.next_packs(4, 4)
    assert [len(pack.calls) for pack in packs] == [PROBE_CALLS] * 4
    assert {pack.budget for pack in packs} == {PROBE_BUDGET}


def test_few_unknown_calls_are_spread_over_the_slots() -> None:
    packer = Packer()
    packer.add(Call(i, "f") for i in range(6))
    assert [len(pack.calls) for pack in packer.next_packs(4, 4)] == [2, 2, 1, 1]


def test_a_body_that_was_never_seen_is_taken_for_a_typical_one_with_that_much_time_as_its_budget() -> None:
    packer = Packer()
    for i in range(32):
        packer.learn(("seen", i), 0.001)
    packer.add(Call(i, ("new", i)) for i in range(400))
    packs = packer.next_packs(2, 2)
    assert [len(pack.calls) for pack in packs] == [133, 89]
    assert [pack.seconds for pack in packs] == [None, None]
    assert [pack.budget for pack in packs] == pytest.approx([0.133, 0.089], rel=0.01)


def test_long_calls_of_the_past_do_not_make_new_bodies_look_long_for_long() -> None:
    packer = Packer()
    packer.learn("model", 10.0, count=1000)
    for i in range(60):
        packer.learn(("quick", i), 0.0)
    packer.add(Call(i, ("new", i)) for i in range(1000))
    assert [len(pack.calls) for pack in packer.next_packs(2, 2)] == [500, 500]


def test_packs_of_known_work_shrink_and_hold_no_less_than_ten_milliseconds() -> None:
    packer = Packer()
    packer.learn("f", 0.001)
    packer.add(Call(i, "f") for i in range(1000))
    packs = packer.next_packs(100, 2)
    sizes = [len(pack.calls) for pack in packs]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 333
    assert all(pack.seconds is not None and pack.seconds >= PACK_SECONDS * 0.95 for pack in packs[:-1])
    assert sum(sizes) == 1000


def test_the_longest_known_calls_go_first() -> None:
    packer = Packer()
    for body, seconds in {"short": 0.001, "long": 1.0, "middle": 0.05}.items():
        packer.learn(body, seconds)
        packer.add(Call((body, i), body) for i in range(2))
    packs = packer.next_packs(10, 2)
    assert [call.body for pack in packs for call in pack.calls] == ["long"] * 2 + ["middle"] * 2 + ["short"] * 2
    assert len(packs[0].calls) == 1


def test_sixteen_calls_of_known_length_take_seven_packs_of_two_slots() -> None:
    packer = Packer()
    packer.learn("f", 0.0275, count=100)
    assert perform([0.0275] * 16, slots=2, overhead=0.005, distinct=False, packer=packer).packs == 7


def test_no_pack_mixes_modes_and_async_calls_go_out_at_once_one_pack_a_slot() -> None:
    packer = Packer()
    packer.learn("f", 0.0)
    packer.add(Call(i, "f", Mode.ASYNC if i % 2 else Mode.SYNC) for i in range(100))
    packs = packer.next_packs(0, 4)
    assert [(pack.mode, len(pack.calls)) for pack in packs] == [(Mode.ASYNC, 13), (Mode.ASYNC, 13), (Mode.ASYNC, 13), (Mode.ASYNC, 11)]
    assert [pack.mode for pack in packer.next_packs(4, 4)] == [Mode.SYNC]


def test_sync_calls_wait_for_a_slot_and_calls_with_resources_of_their_own_do_not() -> None:
    packer = Packer()
    packer.add([Call(1, "a"), Call(2, "a"), Call(3, "o", Mode.OWN), Call(4, "o", Mode.OWN)])
    assert [[call.id for call in pack.calls] for pack in packer.next_packs(0, 2)] == [[3], [4]]
    assert [[call.id for call in pack.calls] for pack in packer.next_packs(2, 2)] == [[1], [2]]


def test_what_is_learnt_while_calls_wait_counts_for_them() -> None:
    packer = Packer()
    packer.add(Call(i, "f") for i in range(10))
    packer.learn("f", 0.1)
    statistics = packer.statistics()
    assert (statistics.waiting, statistics.unknown, statistics.bodies) == (10, 0, 1)
    assert statistics.seconds == pytest.approx(1.0)
    packer.learn("f", 0.2, count=100)
    assert packer.statistics().seconds == pytest.approx(2.0)


def test_a_mean_follows_its_measurements() -> None:
    packer = Packer()
    packer.learn("f", 1.0)
    packer.learn("f", 0.0)
    assert packer.seconds("f") == pytest.approx(0.8)
    assert packer.seconds("g") is None


def test_dropped_calls_are_returned_and_never_packed() -> None:
    packer = Packer()
    packer.learn("known", 0.01)
    packer.add([Call(1, "known"), Call(2, "new"), Call(3, "x", Mode.ASYNC), Call(4, "x", Mode.OWN), Call(5, "known")])
    assert {call.id for call in packer.drop([1, 2, 3, 4, 99])} == {1, 2, 3, 4}
    assert [call.id for pack in packer.next_packs(9, 2) for call in pack.calls] == [5]
    assert len(packer) == 0


@pytest.mark.parametrize("known", [True, False])
def test_a_pack_is_bounded_by_count_and_by_bytes(known: bool) -> None:
    packer = Packer()
    if known:
        packer.learn("f", 0.0)
    packer.learn("g", 0.0, count=100)
    packer.add(Call(i, "f", size=PACK_BYTES // 3) for i in range(7))
    assert max(len(pack.calls) for pack in packer.next_packs(9, 1)) <= 3
    assert len(packer) == 0
    packer.add(Call(i, "f") for i in range(10 * PACK_CALLS))
    assert max(len(pack.calls) for pack in packer.next_packs(9, 1)) <= PACK_CALLS


def test_a_call_that_is_larger_than_a_pack_may_be_goes_by_itself() -> None:
    packer = Packer()
    packer.add(Call(i, "f", mode, size=2 * PACK_BYTES) for mode in (Mode.SYNC, Mode.ASYNC) for i in range(2))
    assert [len(pack.calls) for pack in packer.next_packs(9, 1)] == [1, 1, 1, 1]


def test_the_bodies_remembered_are_bounded_and_those_with_waiting_calls_stay() -> None:
    packer = Packer()
    packer.add([Call(0, "waits")])
    packer.learn("waits", 1.0)
    for i in range(MAX_BODIES + 5):
        packer.learn(i, 1.0)
    assert packer.statistics().bodies <= MAX_BODIES * 1.1
    assert packer.seconds("waits") == 1.0
    assert packer.seconds(0) is None
    assert len(packer.next_packs(1, 1)) == 1


@given(
    st.lists(
        st.one_of(
            st.tuples(
                st.just("add"), st.lists(st.tuples(st.integers(0, 5), st.sampled_from(Mode), st.integers(0, 2 * PACK_BYTES)), max_size=40)
            ),
            st.tuples(st.just("learn"), st.integers(0, 5), st.floats(0, 10), st.integers(1, 50)),
            st.tuples(st.just("pack"), st.integers(0, 6), st.integers(0, 4)),
            st.tuples(st.just("drop"), st.sets(st.integers(0, 200), max_size=20)),
        ),
        max_size=30,
    )
)
def test_every_call_leaves_exactly_once_whatever_the_order_of_events(events: list[tuple]) -> None:
    packer = Packer()
    ids = count()
    waiting: set[int] = set()
    for kind, *args in [*events, ("pack", 10_000, 2)]:
        if kind == "add":
            calls = [Call(next(ids), body, mode, size) for body, mode, size in args[0]]
            waiting |= {call.id for call in calls}  # type: ignore[misc]
            packer.add(calls)
        elif kind == "learn":
            packer.learn(*args)
        elif kind == "drop":
            gone = {call.id for call in packer.drop(args[0])}
            assert gone == args[0] & waiting
            waiting -= gone  # type: ignore[operator]
        else:
            packs = packer.next_packs(*args)
            assert sum(pack.mode is Mode.SYNC for pack in packs) <= args[0]
            for pack in packs:
                assert pack.calls
                assert {call.mode for call in pack.calls} == {pack.mode}
                assert {call.id for call in pack.calls} <= waiting
                waiting -= {call.id for call in pack.calls}  # type: ignore[operator]
        assert len(packer) == len(waiting)
    assert not waiting
    assert packer.statistics() == packer.statistics()._replace(waiting=0, unknown=0, seconds=0.0)
