"""A pack under way: when its results are told, and that none is lost on the way."""

import gc
from typing import Any

import pytest

from cluster.opened import Home
from cluster.progress import WORTH, Progress, Watch, outcome_wire, unopened
from cluster.wire import AnswerWire, CallWire, OutcomeWire, PackWire, put_together, read_answer, take_apart, to_wire
from cluster.worker import perform_calls, rehearse
from engine.checkpoint.codec import encode
from engine.core.routing import Next


class Reports:
    """The coordinator's side: the ids of the calls in each report, and whether the next report is interrupted."""

    def __init__(self) -> None:
        self.told: list[list[int]] = []
        self.interrupted = False

    def send(self, name: str, data: bytes) -> None:
        if self.interrupted:
            self.interrupted = False
            raise KeyboardInterrupt
        answer = read_answer(data)
        self.told.append([wire.id for wire in answer.outcomes] + answer.given_back)

    def progress(self) -> Progress:
        return Progress(PackWire("pack", "sync", [], [], [], [], None), Home(None, None, self.send, None, None))  # type: ignore[arg-type]


def done(number: int) -> OutcomeWire:
    return OutcomeWire(number, b"", None, None, False, None, 0.0, 0.0)


@pytest.mark.parametrize(("every", "spent", "told"), [(0.0, 0.0, [[1]]), (60.0, WORTH, [[1]]), (60.0, 0.0, [])])
def test_between_two_calls_results_are_told_where_it_is_time_or_the_last_one_took_long(every: float, spent: float, told: list[Any]):
    reports = Reports()
    progress = reports.progress()
    progress.every = every
    if every:
        progress.look()
    progress.done.append(done(1))
    if not every:
        progress.look()
        told, reports.told = [[2]], []
        progress.done.append(done(2))
    progress.pulse(spent)
    assert reports.told == told


def test_an_interrupt_in_a_report_loses_no_result():
    reports = Reports()
    progress = reports.progress()
    progress.done.extend(done(number) for number in (1, 2))
    progress.stopped.append(3)
    reports.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        progress.look()
    progress.done.append(done(4))
    progress.look()
    assert reports.told == [[1, 2, 4, 3]]


def test_what_a_worker_brought_along_is_not_searched_for_garbage():
    gc.unfreeze()
    try:
        with Watch().over(Reports().progress()):
            assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_a_diff_is_taken_apart_by_its_big_values_and_put_together_as_it_was():
    big, growing = b"x" * 100_000, b"y" * 100_000
    diff = encode([[["big", False, big], ["small", False, b"s"], ["grows", True, growing]], ["gone"], 7])
    bigs: list[bytes] = []
    apart = take_apart(diff, bigs)
    assert apart is not None
    assert len(apart) < len(growing) + 1000
    assert bigs == [big]
    assert put_together(apart, lambda index: bigs[index - 1]) == diff
    assert take_apart(encode([[["small", False, b"s"]], [], 1]), bigs) is None


def test_a_jump_to_what_is_no_text_arrives_as_one_to_nowhere_and_costs_no_other():
    outcome = unopened(CallWire(1, 0, "a", b"", 0, 1, None, 1, "r/a/1", None, b"", 0), ValueError())
    outcome.error, outcome.jump = None, Next(5)  # type: ignore[arg-type]
    told = read_answer(to_wire(AnswerWire("pack", "worker", [outcome_wire(1, outcome, None)], [])))
    assert [wire.jump for wire in told.outcomes] == ["/5"]


class Refusing:
    """A pack none of whose bodies can be opened."""

    def __init__(self, pack: PackWire) -> None:
        self.pack = pack

    def call(self, wire: CallWire) -> Any:
        raise LookupError("no such body")


def test_what_the_last_call_of_a_pack_gave_comes_with_its_end_and_in_no_report_of_its_own():
    reports = Reports()
    calls = [CallWire(n, 0, "node", b"", 0, 0, None, 1, "", None, None, 0) for n in (1, 2)]
    pack = PackWire("pack", "sync", calls, [], [], [], None)
    progress = Progress(pack, Home(None, None, reports.send, None, None))  # type: ignore[arg-type]
    progress.every = -60.0
    progress.look()
    perform_calls(Refusing(pack), progress)  # type: ignore[arg-type]
    assert reports.told == [[1]]
    assert [wire.id for wire in progress.done] == [2]


def test_a_rehearsal_reports_nothing_and_asks_its_coordinator_one_thing():
    reports, asked = Reports(), []
    rehearse(Home(lambda *question: asked.append(question), None, reports.send, None, None), None)  # type: ignore[arg-type]
    assert asked == [("rows", 0)]
    assert reports.told == []
