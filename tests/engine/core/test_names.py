"""Ids, the names they are made of, "did you mean", and the kinds of events."""

import pickle
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.events import DURABLE, STATUS_AFTER, TRANSIENT, Event, check_seq
from engine.core.ids import check_name, make_run_id, make_step_id, split_run_id
from engine.core.registry import near, unknown
from engine.core.run import Status


def test_a_runs_id_is_workflow_session_and_number_without_a_slash():
    assert make_run_id("flow", "s", 3) == "flow.s.3"


def test_no_two_runs_share_an_id_whatever_their_workflows_are_called():
    assert make_run_id("flow.a", "s", 1) == "flow%2Ea.s.1"
    assert make_run_id("flow%2Ea", "s", 1) == "flow%252Ea.s.1"
    assert make_run_id("flow", "a.s", 1) == "flow.a.s.1"


names = st.text(st.characters() | st.sampled_from(".%2E5"), min_size=1, max_size=30).filter(lambda name: check_name(name, "a name") is None)


@given(names, names, st.integers(1, 10**18 - 1))
def test_a_runs_id_is_taken_apart_into_what_it_was_made_of(workflow, session, n):
    assert split_run_id(make_run_id(workflow, session, n)) == (workflow, session, n)


@pytest.mark.parametrize("session", ["a", "a.b", "..a", "a..", ".1", "1.2.3", "a.s.1", "%2E", "x%25"])
@pytest.mark.parametrize("workflow", ["w", "w.v", "w.", ".w", "w%2Ev", "%", "1.1"])
def test_dots_and_percents_of_names_survive_in_an_id(workflow, session):
    assert split_run_id(make_run_id(workflow, session, 7)) == (workflow, session, 7)


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "w", "w.s", "w.1", ".s.1", "w..1", "w.s.", "w.s.0", "w.s.01", "w.s.-1", "w.s.+1", "w.s.1_0", "w.s. 1", "w.s.x",
     "w.s.\u0661", "w.s.\u00b2", "w.s.1.0", f"w.s.{'9' * 5000}"],
)  # fmt: skip
def test_a_text_that_is_no_runs_id_is_not_taken_apart(text):
    assert split_run_id(text) is None


def test_a_steps_id_is_run_node_and_pass_and_an_item_adds_its_ordinal():
    assert make_step_id("r", "n", 2) == "r/n/2"
    assert make_step_id("r", "n", 2, 0) == "r/n/2/0"


@pytest.mark.parametrize("name", ["a", "A b", "größe", "a.b", "...", "x" * 512, "n[3]"])
def test_a_name_that_can_be_part_of_an_id_is_good(name):
    assert check_name(name, "a name") is None


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (None, "a name must be a text, not NoneType"),
        ("", "a name '' is empty"),
        (".", "a name '.' is no name"),
        ("..", "a name '..' is no name"),
        ("../x", "a name '../x' must not contain '/'"),
        ("a\\b", "a name 'a\\\\b' must not contain '\\\\'"),
        ("a\nb", "a name 'a\\nb' must not contain '\\n'"),
        ("a\x7fb", "a name 'a\\x7fb' must not contain '\\x7f'"),
        ("a\ud800", "a name 'a\\ud800' must not contain '\\ud800'"),
        ("x" * 513, f"a name {'x' * 40!r}... is longer than 512 characters"),
    ],
)
def test_a_name_that_cannot_be_part_of_an_id_is_told(name, wrong):
    assert check_name(name, "a name") == wrong


def test_the_nearest_names_come_best_first():
    assert near("fetsh", ["parse", "fetch", "fetched"]) == ["fetch", "fetched"]
    assert near("fetch", ["fetcha", "fetchb", "fetchc", "fetchd"], limit=2) == ["fetchd", "fetchc"]


def test_a_name_in_another_case_is_the_nearest():
    assert near("FETCH", ["fetch", "FETCHES"])[0] == "fetch"


def test_nothing_near_is_nothing():
    assert near("zzz", ["alpha", "beta"]) == []


def test_among_thousands_of_names_those_with_the_same_first_letter_are_compared():
    names = [f"a{i}" for i in range(3000)] + ["bravo"]
    assert near("bravi", names) == ["bravo"]
    assert near("xravo", names) == []


def test_an_unknown_name_is_answered_with_did_you_mean():
    assert unknown("Tool", "serch", ["search", "pick"]) == "Tool 'serch' not found; did you mean 'search'?"
    assert unknown("Tool", "fetck", ["fetch", "fetched"]) == "Tool 'fetck' not found; did you mean 'fetch' or 'fetched'?"
    assert unknown("Tool", "zz", ["a", "b"]) == "Tool 'zz' not found; there are 'a', 'b'"
    assert unknown("Tool", "zz", []) == "Tool 'zz' not found; there are none"
    assert unknown("Tool", "zz", "abcdefghi").endswith("'h', ...")


def test_an_event_is_durable_or_transient():
    assert not DURABLE & TRANSIENT


def test_a_run_has_a_legal_status_after_each_event_that_gives_one():
    assert set(STATUS_AFTER) <= DURABLE
    assert set(STATUS_AFTER.values()) == {s.value for s in Status} - {"pending"}


def test_an_event_is_a_frozen_record_that_survives_pickling():
    event = Event("r", 1, datetime(2024, 1, 1, tzinfo=UTC), "jumped", "A", "r/A/1", 1, {"target": "B"})
    assert pickle.loads(pickle.dumps(event)) == event
    with pytest.raises(AttributeError):
        event.seq = 2


@pytest.mark.parametrize(("number", "newest"), [(0, None), (10**9, None), (0, 0), (0, 5), (5, 5)])
def test_the_number_of_an_event_is_whole_and_from_0(number, newest):
    assert check_seq(number, "at", newest=newest) == number


@pytest.mark.parametrize(("number", "newest"), [(-1, None), ("1", None), (None, None), (1.0, None), (True, None), (6, 5), (1, 0)])
def test_what_is_no_number_of_an_event_is_refused_with_those_that_are(number, newest):
    upto = "" if newest is None else f" to {newest}"
    with pytest.raises(ValueError, match=f"^at must be the number of an event of it, from 0{upto}, not {number!r}$"):
        check_seq(number, "at", of=" of it", newest=newest)
