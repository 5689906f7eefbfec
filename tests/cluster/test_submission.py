"""What is recorded of a submission comes back, also to other versions; what cannot be recorded is refused."""

import json
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.submission import LONGEST, MOST, Submission, check_labels, check_priority, set_of
from engine.checkpoint.codec import decode, encode
from engine.errors import DefinitionError

texts = st.text(max_size=20)
submissions = st.builds(
    Submission,
    ticket=texts, parcel=texts, environment=st.dictionaries(texts, texts | st.dictionaries(texts, texts, max_size=2), max_size=3),
    cwd=texts, paths=st.lists(texts, max_size=3).map(tuple), strategy=texts, on_commit_failure=texts,
    limit=st.none() | st.floats(0, 1e9), priority=st.integers(-(2**62), 2**62), labels=st.dictionaries(texts, texts, max_size=3),
    owner=texts,
)  # fmt: skip


@given(submissions)
def test_a_submission_comes_back_from_its_record(submission: Submission):
    assert Submission.from_data(decode(encode(submission.data()))) == submission  # type: ignore[arg-type]
    assert Submission.from_data(json.loads(json.dumps(submission.data()))) == submission


@given(submissions, st.dictionaries(texts.filter(lambda name: name not in {f.name for f in fields(Submission)}), texts, max_size=3))
def test_what_a_newer_version_recorded_besides_is_passed_over(submission: Submission, more: dict[str, str]):
    assert Submission.from_data({**more, **submission.data()}) == submission


def test_what_an_older_version_did_not_record_has_its_default():
    assert Submission.from_data({"ticket": "t", "parcel": "p"}) == Submission(ticket="t", parcel="p")


def test_labels_are_copied_and_may_have_empty_values():
    given_labels = {"team": "a", "ä ö": "", "x" * LONGEST: "y" * LONGEST}
    found = check_labels(given_labels)
    assert found == given_labels
    assert found is not given_labels
    assert check_labels(None) == {}


@pytest.mark.parametrize(
    "wrong",
    [{"": "x"}, {"x" * (LONGEST + 1): "x"}, {"x": "y" * (LONGEST + 1)}, {"x": 1}, {1: "x"}, {"x": None}],
)
def test_a_label_that_is_no_short_text_is_refused(wrong: dict[Any, Any]):
    with pytest.raises(DefinitionError, match="names and values are texts") as caught:
        check_labels(wrong)
    assert caught.value.where == "labels"
    assert len(str(caught.value)) < 400


def test_too_many_labels_are_refused():
    check_labels({f"l{n}": "" for n in range(MOST)})
    with pytest.raises(DefinitionError, match=f"at most {MOST} labels, not {MOST + 1}"):
        check_labels({f"l{n}": "" for n in range(MOST + 1)})


@pytest.mark.parametrize("priority", [0, -5, 10**12])
def test_a_priority_is_any_whole_number(priority: int):
    assert check_priority(priority) == priority


@pytest.mark.parametrize("wrong", [1.0, "1", None, True])
def test_a_priority_that_is_no_whole_number_is_refused(wrong: Any):
    with pytest.raises(DefinitionError, match="priority must be a whole number"):
        check_priority(wrong)


def test_a_set_of_coordinators_is_told_apart_by_each_thing_that_they_share():
    names = {
        set_of("file:///a", {}, None, "1"),
        set_of("file:///b", {}, None, "1"),
        set_of("file:///a", {"env_vars": {"A": "1"}}, None, "1"),
        set_of("file:///a", {"env_vars": {"A": "2"}}, None, "1"),
        set_of("file:///a", {}, "node", "1"),
        set_of("file:///a", {}, "other", "1"),
        set_of("file:///a", {}, None, "2"),
    }
    assert len(names) == 7
    assert all(name.isalnum() and len(name) == 10 for name in names)


def test_a_set_is_the_same_in_whatever_order_its_environment_was_written():
    first, second = {"pip": ["a"], "env_vars": {"A": "1", "B": "2"}}, {"env_vars": {"B": "2", "A": "1"}, "pip": ["a"]}
    assert set_of("p", first, None, "1") == set_of("p", second, None, "1")
