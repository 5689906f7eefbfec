"""The queue of submitted runs, against a model of lists: limits, order, leaving, refusing, and its pace."""

import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.queue import LATEST, SOONEST, Admission, Limits, QueueStatistics
from engine.errors import DefinitionError, QueueFull

FLOWS = ["f", "g", "h"]
runs = st.integers(0, 11).map("r{}".format)


def workflow_of(run: str) -> str:
    return FLOWS[int(run[1:]) % len(FLOWS)]


class QueueMachine(RuleBasedStateMachine):
    """Runs that come and go in any order."""

    @initialize(most=st.none() | st.integers(1, 4), by_workflow=st.none() | st.integers(1, 3), queued=st.integers(0, 6))
    def begin(self, most: int | None, by_workflow: int | None, queued: int) -> None:
        self.limits = Limits(runs=most, runs_by_workflow=by_workflow, queued=queued)
        self.queue = Admission(self.limits)
        self.waiting: list[tuple[int, int, str]] = []
        self.running: list[str] = []
        self.arrivals = self.let_in = self.refused = self.ended = 0
        self.now = 100.0

    def has_room(self, workflow: str | None) -> bool:
        if self.limits.runs is not None and len(self.running) >= self.limits.runs:
            return False
        most = self.limits.runs_by_workflow
        return workflow is None or most is None or Counter(map(workflow_of, self.running))[workflow] < most

    @rule(run=runs, priority=st.integers(-2, 2))
    def enter(self, run: str, priority: int) -> None:
        self.queue.enter(run, workflow_of(run), priority)
        if run not in self.running and run not in [waiting for *_, waiting in self.waiting]:
            self.arrivals += 1
            self.waiting.append((-priority, self.arrivals, run))

    @rule(run=runs, after=st.floats(0.0, 500.0))
    def leave(self, run: str, after: float) -> None:
        self.now += after
        self.queue.leave(run, self.now)
        self.waiting = [entry for entry in self.waiting if entry[2] != run]
        if run in self.running:
            self.running.remove(run)
            self.ended += 1

    @rule()
    def admit(self) -> None:
        expected: list[str] = []
        while True:
            fitting = [entry for entry in sorted(self.waiting) if self.has_room(workflow_of(entry[2]))]
            if not fitting:
                break
            self.waiting.remove(fitting[0])
            self.running.append(fitting[0][2])
            expected.append(fitting[0][2])
        assert self.queue.admit() == expected
        self.let_in += len(expected)

    @precondition(lambda self: len(self.waiting) < self.limits.queued or (not self.waiting and self.has_room(None)))
    @rule()
    def take_one_more(self) -> None:
        self.queue.check(self.now)

    @precondition(lambda self: len(self.waiting) >= self.limits.queued and (self.waiting or not self.has_room(None)))
    @rule(after=st.floats(0.0, 500.0))
    def refuse_one_more(self, after: float) -> None:
        with pytest.raises(QueueFull) as caught:
            self.queue.check(self.now + after)
        assert caught.value.retry_after is not None
        assert SOONEST <= caught.value.retry_after <= LATEST
        self.refused += 1

    @invariant()
    def limits_hold(self) -> None:
        told = self.queue.statistics()
        assert self.limits.runs is None or told.running <= self.limits.runs
        expected = QueueStatistics(
            queued=len(self.waiting), running=len(self.running), admitted=self.let_in, refused=self.refused, ended=self.ended
        )
        assert told == expected
        assert {run for *_, run in self.waiting} == {run for run in map("r{}".format, range(12)) if self.queue.waits(run)}


TestQueue = QueueMachine.TestCase


def test_a_run_that_left_and_comes_again_waits_behind_those_that_stayed():
    queue = Admission(Limits(runs=1))
    queue.enter("first", "w", 0)
    assert queue.admit() == ["first"]
    queue.enter("leaves", "w", 0)
    queue.enter("stays", "w", 0)
    queue.leave("leaves", 1.0)
    queue.enter("leaves", "w", 0)
    queue.leave("first", 2.0)
    assert queue.admit() == ["stays"]


def test_a_workflow_that_has_enough_under_way_holds_up_no_other():
    queue = Admission(Limits(runs=10, runs_by_workflow=2))
    for number in range(5):
        queue.enter(f"a{number}", "a", 5)
    queue.enter("b", "b", 0)
    assert queue.admit() == ["a0", "a1", "b"]


def test_a_queue_of_no_places_takes_what_may_go_on_at_once():
    queue = Admission(Limits(runs=1, queued=0))
    queue.check(0.0)
    queue.enter("a", "w", 0)
    assert queue.admit() == ["a"]
    with pytest.raises(QueueFull, match="0 runs wait already"):
        queue.check(0.0)


def test_retry_after_follows_the_pace_of_the_ends():
    queue = Admission(Limits(runs=1, queued=0))
    for number in range(20):
        queue.enter(f"r{number}", "w", 0)
        queue.admit()
        queue.leave(f"r{number}", number * 5.0)
    assert queue.retry_after(95.0) == pytest.approx(4.75)
    assert queue.retry_after(1e6) == LATEST


@given(st.integers(1, 1000), st.integers(1, 1000), st.none() | st.integers(1, 1000), st.integers(0, 1000), st.integers(1, 40))
def test_the_shares_of_all_coordinators_keep_the_limits_together(
    limit: int, by_workflow: int, steps: int | None, queued: int, parts: int
) -> None:
    whole = Limits(runs=limit, runs_by_workflow=by_workflow, steps=steps, queued=queued)
    part = whole.share(parts)
    for all_of_it, one in ((limit, part.runs), (by_workflow, part.runs_by_workflow), (steps, part.steps)):
        if all_of_it is None:
            assert one is None
        else:
            assert one is not None
            assert one >= 1
            assert one * parts <= max(all_of_it, parts)
    assert part.queued * parts >= queued
    assert whole.share(1) == whole


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"runs_by_workflow": 0}, {"steps": 0}, {"queued": -1}, {"runs": 1.5}])
def test_limits_that_let_nothing_in_are_refused(wrong: dict[str, float]):
    with pytest.raises(DefinitionError, match=next(iter(wrong))):
        replace(Limits(), **wrong)


@pytest.mark.slow
@pytest.mark.parametrize("workflows", [1, 100, 10_000])
def test_ten_thousand_runs_are_entered_and_let_in_within_a_second(workflows: int):
    queue = Admission(Limits(runs=50, runs_by_workflow=50))
    begun = time.process_time()
    for number in range(10_000):
        queue.enter(f"r{number}", f"w{number % workflows}", number % 3)
    let_in: list[str] = []
    while going := queue.admit():
        let_in += going
        for run in going:
            queue.leave(run, 0.0)
    assert time.process_time() - begun < 1.0
    assert [int(run[1:]) % 3 for run in let_in] == sorted((number % 3 for number in range(10_000)), reverse=True)
