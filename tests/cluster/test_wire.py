"""Errors as they travel between processes: what they were raised from, and classes that make themselves hard to pickle."""

import pickle
import threading
from typing import Any

import pytest

from cluster.wire import (
    CAUSES,
    AnswerWire,
    ErrorWire,
    OutcomeWire,
    PackWire,
    RemoteError,
    open_error,
    original_of,
    pack_error,
    read_answer,
    to_wire,
)
from engine.errors import NotStorable, StepFailed


class Weird(Exception):
    """Its `__init__` takes other arguments than it keeps."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Held(Exception):
    """Holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


class Mute(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raised(error: BaseException, *causes: BaseException) -> BaseException:
    """An error as it was raised, from others, each from the next."""
    chain = [error, *causes]
    for one, cause in zip(chain, causes, strict=False):
        one.__cause__ = cause
    return error


def travelled(error: BaseException) -> Any:
    """The error from worker to coordinator, as the cause of a StepFailed to the script, where it is opened."""
    failed = StepFailed("step 'a' failed")
    failed.__cause__ = open_error(pack_error(error, "Traceback: in a worker"))
    return original_of(pickle.loads(pickle.dumps(failed))).__cause__


def test_an_error_is_opened_where_its_code_is_and_says_where_it_was_raised():
    error = travelled(ValueError("no"))
    assert (type(error), str(error)) == (ValueError, "no")
    assert error.__notes__ == ["raised in a worker:\nTraceback: in a worker"]


def test_an_error_keeps_what_it_was_raised_from():
    error = travelled(raised(LookupError("b"), Weird(7, "bad"), ZeroDivisionError("by zero")))
    assert [str(error), str(error.__cause__), str(error.__cause__.__cause__)] == ["b", "7: bad", "by zero"]
    assert [type(e) for e in (error, error.__cause__, error.__cause__.__cause__)] == [LookupError, Weird, ZeroDivisionError]


def test_one_of_ours_keeps_the_original_that_it_was_raised_from():
    error = travelled(raised(NotStorable("no data", key="k"), Weird(7, "bad")))
    assert (type(error), error.key, type(error.__cause__), error.__cause__.code) == (NotStorable, "k", Weird, 7)


def test_a_coordinator_opens_no_foreign_cause():
    opened = open_error(pack_error(raised(NotStorable("no data"), Weird(7, "bad")), ""))
    assert isinstance(opened.__cause__, RemoteError)


def test_an_error_whose_init_takes_other_arguments_travels_whole():
    error = travelled(Weird(7, "bad"))
    assert (type(error), str(error), error.code) == (Weird, "7: bad", 7)


@pytest.mark.parametrize("error", [Held(), raised(Held(), ValueError("why"))], ids=["alone", "with a cause"])
def test_an_error_that_cannot_be_pickled_is_told_by_its_name_and_text(error: BaseException):
    told = travelled(error)
    assert (type(told), told.type_name, str(told)) == (RemoteError, "Held", "held")
    assert repr(told.__cause__) == repr(error.__cause__)


def test_an_error_is_left_as_it_was():
    error = raised(ValueError("no"), KeyError("why"))
    pack_error(error, "")
    assert isinstance(error.__cause__, KeyError)
    plain = ValueError("no")
    pack_error(plain, "")
    assert (plain.__cause__, plain.__suppress_context__) == (None, False)


def test_a_cause_without_a_text_is_told_all_the_same():
    assert travelled(raised(ValueError("no"), Mute())).__cause__.__class__ is Mute


def test_a_ring_of_causes_ends():
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    error, depth = travelled(first), 0
    while error.__cause__ is not None:
        error, depth = error.__cause__, depth + 1
    assert depth == CAUSES


def ended(number: int, error: ErrorWire | None = None, jump: Any = None) -> OutcomeWire:
    """The outcome of a call."""
    return OutcomeWire(number, None if error else b"1", None, jump, False, error, 1.0, 2.0)


def arrived(*outcomes: OutcomeWire) -> list[OutcomeWire]:
    """The outcomes of a pack as the coordinator reads them."""
    return read_answer(to_wire(AnswerWire("pack", "worker", list(outcomes), []))).outcomes


def test_an_error_with_a_lone_surrogate_arrives_with_its_escape():
    error = raised(ValueError("cannot open 'na\udcffme'"), KeyError("\ud800"))
    plain = ended(1)
    (first, second) = arrived(plain, ended(2, pack_error(error, "Traceback: \ud800")))
    assert first == plain
    assert second.error is not None
    assert second.error.cause is not None
    assert (second.error.type, second.error.message) == ("ValueError", r"cannot open 'na\udcffme'")
    assert second.error.traceback == r"Traceback: \ud800"
    assert str(original_of(open_error(second.error))) == r"cannot open 'na\udcffme'"
    assert str(travelled(error)) == "cannot open 'na\udcffme'"


def test_a_jump_target_with_a_lone_surrogate_arrives_with_its_escape():
    assert [outcome.jump for outcome in arrived(ended(1, jump="a\ud800"), ended(2, jump="b"))] == [r"a\ud800", "b"]


@pytest.mark.parametrize(
    "bad",
    [ended(2, jump=object()), ended(2, ErrorWire("ValueError", "\ud800", (), "", None))],
    ids=["a target that is no text", "an error in texts that were not escaped"],
)
def test_an_outcome_that_cannot_be_sent_is_its_own_calls_error_and_costs_no_other(bad: OutcomeWire):
    first, second, third = arrived(ended(1), bad, ended(3))
    assert (first, third) == (ended(1), ended(3))
    assert (second.id, second.output, second.started, second.duration) == (2, None, 1.0, 2.0)
    assert second.error is not None
    told = open_error(second.error)
    assert isinstance(told, NotStorable)
    assert str(told).startswith("how the call ended cannot be sent to the coordinator: ")


def test_a_pack_that_cannot_be_sent_is_the_senders_error():
    with pytest.raises(UnicodeEncodeError):
        to_wire(PackWire("\ud800", "sync", [], [], [], [], None))
