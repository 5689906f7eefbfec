"""Equality of values, growth, merging the diffs of a layer, and what each reducer makes of concurrent writes."""

import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pytest

from engine.core.state import (
    NO_DIFF,
    REDUCERS,
    Combine,
    Conflict,
    Growth,
    Lazy,
    Merged,
    StateDiff,
    grown,
    growth,
    merge,
    opened,
    order_of,
    same,
)


class Kept(Lazy):
    """A value that is kept in another form; counts its loads."""

    def __init__(self, make):
        self.make, self.loads = make, 0

    def load(self):
        self.loads += 1
        return self.make()


def wrote(**written):
    return StateDiff(written, frozenset())


def deleted(*keys):
    return StateDiff({}, frozenset(keys))


def merged(base, *diffs, **reducers):
    """The next state and what was found, from diffs of nodes a, b, c, ..."""
    found = merge(base, list(zip("abcdefgh", diffs, strict=False)), reducers)
    state = {k: v for k, v in base.items() if k not in found.deleted} | found.written
    return state, found


# same


class Odd:
    """A foreign value that cannot be compared."""

    def __eq__(self, other):
        raise RuntimeError("no")

    __hash__ = None


class Unsure:
    """A foreign value that compares to something without a truth value."""

    def __eq__(self, other):
        return self

    def __bool__(self):
        raise ValueError("no truth")

    __hash__ = None


@pytest.mark.parametrize(
    "make",
    [
        lambda: 1,
        lambda: math.nan,
        lambda: float("nan"),
        lambda: "text",
        lambda: [1, [2, {"k": {3}}]],
        lambda: (1, "x"),
        lambda: {"a": float("nan"), "b": None},
        lambda: frozenset({1, "a"}),
        lambda: Decimal("1.50"),
        lambda: np.arange(5),
        lambda: [np.array([1.0, math.nan])],
        lambda: {"x": np.array(["a", "b"])},
        lambda: np.float64("nan"),
    ],
)
def test_a_value_is_the_same_as_another_made_alike(make):
    assert same(make(), make())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        (1, True),
        (0, False),
        ([1], (1,)),
        ([1], [1.0]),
        ([1, 2], [1]),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"b": 1}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({1}, {True}),
        ({1}, {2}),
        (None, False),
        ("1", b"1"),
        (np.arange(3), np.arange(4)),
        (np.arange(3), np.array([0, 1, 3])),
        (np.arange(3), np.arange(3.0)),
        (np.zeros((1, 3)), np.zeros((3,))),
        (np.zeros(1), np.zeros(3)),
        (Odd(), Odd()),
        (Unsure(), Unsure()),
    ],
)
def test_values_that_differ_in_type_shape_or_content_are_not_the_same(one, other):
    assert not same(one, other)
    assert same(one, one)


# growth


@pytest.mark.parametrize(
    ("base", "value", "more"),
    [
        ([1], [1, 2, 3], [2, 3]),
        ([1], [1], []),
        ([[1]], [[1], 2], [2]),
        ({"a": 1}, {"a": 1, "b": 2}, {"b": 2}),
        ({"a": 1, "b": 1}, {"a": 2, "b": 1}, {"a": 2}),
        ({"a": 1}, {"a": True}, {"a": True}),
        ({1}, {1, 2}, {2}),
    ],
)
def test_a_container_that_extends_its_base_is_what_it_has_more(base, value, more):
    found = growth(base, value)
    assert found == Growth(more)
    assert same(grown(base, found), value)


@pytest.mark.parametrize(
    ("base", "value"),
    [
        ([1, 2], [1]),
        ([1, 2], [2, 2, 3]),
        ([1], [1.0, 2]),
        ([], [1]),
        ({}, {"a": 1}),
        (set(), {1}),
        ({"a": 1, "b": 1}, {"a": 1, "c": 1}),
        ({"a": 1, "b": 1}, {"a": 1}),
        ({1, 2}, {1, 3}),
        ([1], (1, 2)),
        ({"a": 1}, [("a", 1)]),
        (None, [1]),
        (1, 2),
        ("a", "ab"),
        (frozenset({1}), frozenset({1, 2})),
        (np.arange(2), np.arange(3)),
        (Odd(), Odd()),
    ],
)
def test_what_does_not_extend_its_base_has_no_growth(base, value):
    assert growth(base, value) is None


def test_a_growth_over_a_base_in_another_form_loads_it():
    assert grown(Kept(lambda: [1]), Growth([2])) == [1, 2]


def test_a_growth_leaves_its_base_alone():
    base = {"a": [1]}
    assert grown(base["a"], Growth([2])) == [1, 2]
    assert base == {"a": [1]}


def test_opened_loads_what_is_kept_in_another_form():
    assert opened(Kept(lambda: 5)) == 5
    assert opened([1]) == [1]


# merging


def test_a_lone_diff_is_applied_as_it_is():
    state, found = merged({"a": 1, "b": [1], "c": 1}, StateDiff({"a": 2, "b": Growth([2])}, frozenset({"c"})))
    assert state == {"a": 2, "b": [1, 2]}
    assert found == Merged({"a": 2, "b": [1, 2]}, ["c"], [], [], [])


def test_within_a_step_deletes_come_before_writes():
    state, found = merged({"a": 1}, StateDiff({"a": 2}, frozenset({"a"})), NO_DIFF)
    assert state == {"a": 2}
    assert found.conflicts == []
    assert merged({"a": 1}, StateDiff({"a": 2}, frozenset({"a"})))[0] == {"a": 2}


def test_different_keys_do_not_conflict():
    state, found = merged({"x": 0}, wrote(a=1), deleted("x"), wrote(b=2))
    assert state == {"a": 1, "b": 2}
    assert found.conflicts == []


def test_without_a_reducer_the_later_node_wins():
    state, found = merged({}, wrote(k=1), wrote(k=2), wrote(k=3))
    assert state == {"k": 3}
    assert found.conflicts == [Conflict("k", ["a", "b", "c"])]


def test_where_the_later_node_wins_its_whole_value_wins():
    state, _ = merged({"k": [0]}, wrote(k=[9, 9]), wrote(k=Growth([1])))
    assert state == {"k": [0, 1]}


@pytest.mark.parametrize("reducers", [{}, {"k": "append"}])
def test_a_delete_beside_a_write_is_a_conflict_with_a_reducer_too_and_the_later_wins(reducers):
    state, found = merged({"k": [0]}, deleted("k"), wrote(k=Growth([1])), **reducers)
    assert state == {"k": [0, 1]}
    assert found.conflicts == [Conflict("k", ["a", "b"])]
    state, found = merged({"k": [0]}, wrote(k=Growth([1])), deleted("k"), **reducers)
    assert state == {}
    assert found.conflicts == [Conflict("k", ["a", "b"])]


def test_two_writes_beside_a_delete_are_not_combined():
    state, found = merged({"k": 1}, wrote(k=2), deleted("k"), wrote(k=3), k="add")
    assert state == {"k": 3}
    assert found.conflicts == [Conflict("k", ["a", "b", "c"])]


def test_two_deletes_agree():
    state, found = merged({"k": 1}, deleted("k"), deleted("k"))
    assert state == {}
    assert found.conflicts == []


def test_conflicts_are_in_order_of_their_keys():
    _, found = merged({}, StateDiff({"b": 1, 3: 1, "a": 1}, frozenset()), StateDiff({"a": 1, "b": 1, 3: 2}, frozenset()))
    assert [c.key for c in found.conflicts] == ["a", "b", 3]
    assert sorted([(1, 2), "b", None, "a"], key=order_of) == ["a", "b", (1, 2), None]
    assert sorted([10, "b", 9, (1, 2), 9.5], key=order_of) == ["b", 9, 9.5, 10, (1, 2)]


# reducers


def test_there_are_seven_reducers():
    assert REDUCERS == ("add", "max", "min", "append", "extend", "merge", "union")


@pytest.mark.parametrize(
    ("reducer", "base", "writes", "value"),
    [
        ("add", {"k": 10}, [11, 15], 16),
        ("add", {}, [1, 2, 3], 6),
        ("add", {"k": 5}, [3, 4], 2),
        ("add", {"k": 0.5}, [1.0, 2], 2.5),
        ("add", {"k": Decimal(1)}, [Decimal(3), Decimal(2)], Decimal(4)),
        ("max", {"k": 100}, [1, 7, 3], 7),
        ("max", {}, ["a", "c", "b"], "c"),
        ("max", {}, [datetime(2024, 1, 1, tzinfo=UTC), datetime(2025, 1, 1, tzinfo=UTC)], datetime(2025, 1, 1, tzinfo=UTC)),
        ("min", {"k": 0}, [5, 2, 9], 2),
        ("min", {"k": None}, [5, 2], 2),
        ("append", {"k": [0]}, [Growth([1]), Growth([2, 3])], [0, 1, 2, 3]),
        ("append", {}, [[1], [2]], [1, 2]),
        ("append", {"k": [0]}, [[0, 1], Growth([2])], [0, 1, 2]),
        ("extend", {"k": []}, [[1], [2]], [1, 2]),
        ("merge", {"k": {"a": 0}}, [Growth({"b": 1}), Growth({"a": 2})], {"a": 2, "b": 1}),
        ("merge", {"k": {"a": 0}}, [{"a": 1}, {"a": 0, "c": 1}], {"a": 1, "c": 1}),
        ("merge", {}, [{"a": 1}, {"a": 2}], {"a": 2}),
        ("union", {"k": {1}}, [Growth({2}), {1, 3}], {1, 2, 3}),
        ("union", {}, [{1}, {2}], {1, 2}),
    ],
)
def test_a_reducer_combines_concurrent_writes(reducer, base, writes, value):
    state, found = merged(base, *(wrote(k=w) for w in writes), k=reducer)
    assert same(state["k"], value)
    assert (found.conflicts, found.misfits, found.open) == ([], [], [])


def test_merge_applies_changed_keys_only():
    state, _ = merged({"k": {"a": 0, "b": 0}}, wrote(k={"a": 1, "b": 0}), wrote(k={"a": 0, "b": 2}), k="merge")
    assert state == {"k": {"a": 1, "b": 2}}


def test_a_lone_write_is_a_plain_write_whatever_the_reducer():
    assert merged({"k": 5}, wrote(k=1), wrote(j=1), k="add")[0]["k"] == 1
    assert merged({"k": [5]}, wrote(k="text"), wrote(j=1), k="append")[0]["k"] == "text"


def test_arrays_add_up():
    state, _ = merged({"k": np.array([1, 1])}, wrote(k=np.array([2, 1])), wrote(k=np.array([1, 5])), k="add")
    assert state["k"].tolist() == [2, 5]


@pytest.mark.parametrize(
    ("reducer", "base", "writes", "misfits"),
    [
        ("add", {"k": 1}, [2, "x"], ["b"]),
        ("add", {"k": 1}, [None, [1]], ["a", "b"]),
        ("add", {"k": "text"}, ["texta", "textb"], ["a", "b"]),
        ("add", {"k": None}, [1, 2], ["a", "b"]),
        ("add", {"k": [1]}, [Growth([2]), Growth([3])], ["a", "b"]),
        ("add", {"k": 1.5}, [Decimal(1), 2], ["a", "b"]),
        ("add", {"k": 1}, [timedelta(1), 2], ["a", "b"]),
        ("add", {"k": 0.5}, [10**400, 1], ["a", "b"]),
        ("max", {"k": 1}, [2, "x"], ["b"]),
        ("max", {"k": "a"}, [2, "x"], ["a"]),
        ("max", {}, [2, "x"], ["a", "b"]),
        ("max", {"k": [1]}, [[1], [2]], ["a", "b"]),
        ("max", {"k": {1}}, [Growth({2}), Growth({3})], ["a", "b"]),
        ("max", {}, [np.array([1, 2]), np.array([2, 1])], ["a", "b"]),
        ("min", {"k": 1}, [None, 2], ["a"]),
        ("append", {"k": [1, 2]}, [[1], Growth([3])], ["a"]),
        ("append", {"k": [1, 2]}, [[2, 1, 3], [1, 2, 3]], ["a"]),
        ("append", {"k": (1,)}, [(1, 2), (1, 3)], ["a", "b"]),
        ("append", {"k": [1]}, ["text", None], ["a", "b"]),
        ("append", {}, [{"a": 1}, [1]], ["a"]),
        ("append", {"k": [np.arange(2)]}, [[np.arange(3)], Growth([1])], ["a"]),
        ("merge", {"k": {"a": 1}}, [{"b": 1}, Growth({"c": 1})], ["a"]),
        ("merge", {"k": {"a": 1}}, [[("a", 1)], Growth({"c": 1})], ["a"]),
        ("merge", {"k": [1]}, [Growth([2]), Growth([3])], ["a", "b"]),
        ("union", {"k": {1}}, [set(), Growth({2})], ["a"]),
        ("union", {}, [[1], {1}], ["a"]),
    ],
)
def test_a_base_or_write_that_does_not_fit_its_reducer_is_named(reducer, base, writes, misfits):
    _, found = merged(base, *(wrote(k=w) for w in writes), k=reducer)
    assert found.misfits == [Conflict("k", misfits)]
    assert found.conflicts == []


def test_a_list_of_arrays_grows_by_content():
    base = {"k": [np.arange(3)]}
    state, found = merged(base, wrote(k=[np.arange(3), 1]), wrote(k=[np.arange(3), 2]), k="append")
    assert found.misfits == []
    assert state["k"][1:] == [1, 2]


def test_a_custom_reducer_is_a_question_to_the_driver():
    _, found = merged({"k": [1]}, wrote(k=Growth([2])), wrote(k=7), k="my:f")
    assert found.open == [Combine("k", "my:f", [1], [[1, 2], 7], ["a", "b"])]
    assert "k" not in found.written
    _, found = merged({}, wrote(k=1), wrote(k=2), k="my:f")
    assert found.open[0].base is None


def test_values_kept_in_another_form_are_loaded_where_they_are_combined_and_only_there():
    base, write, other = Kept(lambda: [1]), Kept(lambda: [1, 2]), Kept(lambda: "big")
    state, _ = merged({"k": base}, StateDiff({"k": write, "other": other}, frozenset()), wrote(k=Growth([3])), k="append")
    assert state["k"] == [1, 2, 3]
    assert state["other"] is other
    assert other.loads == 0
    assert merged({"k": Kept(lambda: 1)}, wrote(k=Kept(lambda: 2)), wrote(k=5), k="add")[0]["k"] == 6
    assert merged({"k": Kept(lambda: 1)}, wrote(k=Kept(lambda: 2)), wrote(k=5), k="my:f")[1].open[0][2:4] == (1, [2, 5])


def test_what_a_reducer_makes_leaves_base_and_writes_alone():
    base, write = {"k": {"a": 1}}, {"a": 1, "b": 1}
    state, _ = merged(base, wrote(k=write), wrote(k=Growth({"c": 1})), k="merge")
    assert state["k"] == {"a": 1, "b": 1, "c": 1}
    assert base == {"k": {"a": 1}}
    assert write == {"a": 1, "b": 1}
