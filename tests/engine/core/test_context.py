"""The view of the state with its diff, the window over the history, and what a context hands out."""

import copy
import json
import pickle
from collections.abc import MutableMapping

import anyio
import numpy as np
import pytest

from engine.core.context import Context, History, Question, ReadOnly, Scene, View
from engine.core.history import Row, Window
from engine.core.state import Growth, Lazy, StateDiff

NOTHING = StateDiff({}, frozenset())


class Kept(Lazy):
    """A value that is kept in another form."""

    def __init__(self, make):
        self.make = make

    def load(self):
        return self.make()


def view(**base):
    return View(base, copy.deepcopy)


class Services:
    """Answers what it was asked."""

    async def once(self, context, key, fn, again):
        return key, fn(), again

    async def checkpoint(self, context):
        self.saved = context.node

    def progress(self, context, done, total, note):
        self.shown = (context.node, done, total, note)

    def build(self, kind, value):
        return kind(value)

    def logger(self, context):
        return f"logger of {context.node}"


def context(kind=Context, *, base=None, history=None, last=None, rows=(), metadata=None, run_input="in", **options):
    scene = Scene(
        run_id="flow.s.1",
        session_id="s",
        input=run_input,
        private=copy.deepcopy,
        rows=lambda: list(rows),
        services=Services(),
        metadata=metadata,
        deadline=99.0,
    )
    return kind(scene, {} if base is None else base, Window.of(history or {}, last), "A", "flow.s.1/A/1", **options)


# reading


def test_reads_fall_through_to_the_base():
    state = view(a=1, b=[2])
    assert (state["a"], state["b"], state.get("c"), state.get("c", 5), len(state), list(state)) == (1, [2], None, 5, 2, ["a", "b"])
    assert state.diff() == NOTHING


def test_merely_reading_a_container_or_leaving_it_equal_is_no_write():
    state = view(a=[1], b={"k": {1}}, c={1})
    state["a"].append(2)
    state["a"].pop()
    state["b"]["k"].add(1)
    assert state["c"] == {1}
    assert state.diff() == NOTHING


def test_a_container_read_from_the_base_is_private_to_the_step():
    base = {"a": [[1]]}
    state = View(base, copy.deepcopy)
    state["a"][0].append(2)
    assert base == {"a": [[1]]}
    assert state["a"] is state["a"]
    assert state.diff() == StateDiff({"a": [[1, 2]]}, frozenset())


def test_a_value_kept_in_another_form_is_loaded_when_it_is_read_and_only_compared_then():
    state = View({"a": Kept(lambda: [1]), "b": Kept(lambda: 1 / 0), "x": Kept(lambda: [np.arange(3)])}, copy.deepcopy)
    assert state["x"][0].tolist() == [0, 1, 2]
    state["a"].append(2)
    assert state.diff() == StateDiff({"a": Growth([2])}, frozenset())


def test_arrays_are_shared_and_may_be_replaced():
    array = np.arange(3)
    state = View({"a": array, "b": [array], "c": array}, lambda v: v if v is array else list(v))
    assert state["a"] is array
    assert state["b"][0] is array
    assert state.diff() == NOTHING
    other = np.arange(4)
    state["a"], state["c"] = other, array
    diff = state.diff()
    assert diff.written["a"] is other


# writing


def test_writes_stay_in_the_overlay():
    base = {"a": 1}
    state = View(base, copy.deepcopy)
    state["a"], state["b"] = 2, 3
    assert dict(state) == {"a": 2, "b": 3}
    assert base == {"a": 1}
    assert state.diff(7) == StateDiff({"a": 2, "b": 3}, frozenset(), 7)


def test_an_assignment_is_a_write_even_of_an_equal_value():
    state = view(a=1, b=[1])
    state["a"], state["b"] = 1, [1]
    assert state.diff() == StateDiff({"a": 1, "b": Growth([])}, frozenset())


def test_a_deleted_key_raises_key_error():
    state = view(a=[1])
    assert state["a"] == [1]
    del state["a"]
    assert "a" not in state
    assert len(state) == 0
    with pytest.raises(KeyError, match="a"):
        state["a"]
    with pytest.raises(KeyError, match="a"):
        del state["a"]
    assert state.diff() == StateDiff({}, frozenset({"a"}))


def test_a_delete_of_a_key_that_the_base_lacks_is_no_part_of_the_diff():
    state = view(a=1)
    state["b"] = 1
    del state["b"]
    assert state.diff() == NOTHING
    with pytest.raises(KeyError):
        del state["c"]


def test_a_key_that_is_deleted_and_written_again_is_a_write():
    state = view(a=1)
    del state["a"]
    state["a"] = 2
    assert state.diff() == StateDiff({"a": 2}, frozenset())
    assert list(state) == ["a"]
    assert len(state) == 1


@pytest.mark.parametrize(
    ("base", "edit", "more"),
    [
        ([1, 2], lambda v: v.append(3), Growth([3])),
        ([1, 2], lambda v: v.pop(), [1]),
        ([1, 2], lambda v: v.clear(), []),
        ([1, 2], lambda v: v.insert(0, 0), [0, 1, 2]),
        ({"a": 1}, lambda v: v.update(b=2), Growth({"b": 2})),
        ({"a": 1}, lambda v: v.clear(), {}),
        ({1}, lambda v: v.add(2), Growth({2})),
        ({1}, lambda v: v.clear(), set()),
        ([], lambda v: v.append(1), [1]),
    ],
)
def test_an_edit_in_place_is_a_write_of_what_grew_or_of_the_whole(base, edit, more):
    state = view(k=base)
    edit(state["k"])
    assert state.diff() == StateDiff({"k": more}, frozenset())
    assert type(state.diff().written["k"]) is type(more)


def test_a_written_container_that_extends_its_base_is_kept_as_its_tail():
    state = view(log=["x" * 100] * 50)
    state["log"] = [*state["log"], "new"]
    assert state.diff().written == {"log": Growth(["new"])}


def test_a_key_that_is_not_hashable_is_refused():
    state = view()
    with pytest.raises(TypeError):
        state[[]] = 1
    with pytest.raises(TypeError):
        state.update({"a": 1}, 5)
    with pytest.raises(TypeError):
        state.update(5)
    assert state == {}


# all of a mutable mapping


def test_the_view_is_a_dict_and_has_every_method_of_a_mutable_mapping():
    state = view(a=1)
    assert isinstance(state, dict)
    assert isinstance(state, MutableMapping)
    assert not [m for m in dir(dict) if not m.startswith("__") and m != "fromkeys" and m not in vars(View)]


def test_setdefault_writes_only_where_there_is_nothing():
    state = view(a=1)
    assert state.setdefault("a", 2) == 1
    assert state.setdefault("b", []) == []
    state["b"].append(1)
    assert state.diff().written == {"b": [1]}


def test_pop_and_popitem_delete():
    state = view(a=1, b=2)
    state["c"] = 3
    assert state.popitem() == ("c", 3)
    assert state.popitem() == ("b", 2)
    assert (state.pop("a"), state.pop("a", None), state.pop("x", 5)) == (1, None, 5)
    for empty in (state.popitem, lambda: state.pop("a")):
        with pytest.raises(KeyError):
            empty()
    assert state.diff() == StateDiff({}, frozenset({"a", "b"}))


def test_clear_deletes_every_key():
    state = view(a=1, b=[2])
    state["c"] = 1
    state.clear()
    assert not state
    assert state == {}
    assert state.diff().deleted == {"a", "b"}


def test_update_takes_mappings_pairs_and_keywords():
    state = view(a=1)
    state.update({"b": 2}, c=3)
    state.update([("d", 4)])
    state.update()
    state |= {"e": 5}
    assert state == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    assert isinstance(state, View)


def test_the_union_with_a_mapping_is_a_plain_dict():
    state = view(a=1, b=1)
    state["b"] = 2
    assert state | {"b": 3} == {"a": 1, "b": 3}
    assert {"b": 3, "z": 0} | state == {"b": 2, "z": 0, "a": 1}
    assert type(state | {}) is type({} | state) is dict


def test_equality_is_with_any_mapping():
    state = view(a=1)
    state["b"] = [2]
    assert state == {"b": [2], "a": 1}
    plain = {"b": [2], "a": 1}
    assert plain == state
    assert state != {"a": 1}
    assert state != [("a", 1)]
    assert state == view(a=1, b=[2])
    with pytest.raises(TypeError):
        hash(state)


def test_keys_items_and_values_agree_and_follow_the_view():
    state = view(a=1, b=2)
    keys, items, values = state.keys(), state.items(), state.values()
    state["c"] = 3
    del state["a"]
    assert (list(keys), list(items), list(values)) == (["b", "c"], [("b", 2), ("c", 3)], [2, 3])
    assert keys == {"b", "c"}
    assert (keys & {"b"}, keys | {"x"}, keys - {"b"}, keys ^ {"b"}) == ({"b"}, {"b", "c", "x"}, {"c"}, {"c"})
    assert ("b", 2) in items
    assert 3 in values
    assert (len(keys), len(items), len(values)) == (2, 2, 2)
    assert list(reversed(state)) == ["c", "b"]


def test_copies_are_plain_dicts():
    state = view(a=[1])
    state["b"] = 2
    for made in (state.copy(), copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state)), dict(state), {**state}):
        assert type(made) is dict
        assert made == {"a": [1], "b": 2}


def test_a_json_dump_is_that_of_the_dict():
    state = view(a=[1, {"x": None}])
    assert json.dumps(view()) == "{}"
    state["b"] = 2
    assert json.dumps(state) == '{"a": [1, {"x": null}], "b": 2}'
    assert json.dumps({"state": state}, indent=1) == json.dumps({"state": dict(state)}, indent=1)
    assert repr(state) == "{'a': [1, {'x': None}], 'b': 2}"


def test_a_view_matches_as_a_mapping_pattern():
    match view(a=1, b=2):
        case {"a": found, **rest}:
            assert (found, rest) == (1, {"b": 2})


# conditions


def test_a_condition_may_read_the_state_and_not_write_it():
    asked = context(Question, base={"a": [1]})
    state = asked.state
    assert isinstance(state, ReadOnly)
    assert asked.state is state
    assert state == {"a": [1]}
    writes = [
        lambda: state.__setitem__("a", 1),
        lambda: state.__delitem__("a"),
        lambda: state.setdefault("b", 1),
        lambda: state.pop("a"),
        state.popitem,
        state.clear,
        lambda: state.update(b=1),
        lambda: state.__ior__({"b": 1}),
    ]
    for write in writes:
        with pytest.raises(TypeError, match="may read the state, not write it"):
            write()


# the context


def test_a_context_tells_where_it_is():
    ctx = context(attempt=2)
    ctx._step_input = [1]  # as whoever performs the step does
    assert (ctx.run_id, ctx.execution_id, ctx.session_id, ctx.node, ctx.step_id) == ("flow.s.1", "flow.s.1", "s", "A", "flow.s.1/A/1")
    assert (ctx.attempt, ctx.step_input, ctx.deadline, ctx.logger) == (2, [1], 99.0, "logger of A")


def test_input_and_metadata_are_private_copies():
    ctx, shared, noted = context(run_input=(run := {"k": [1]}), metadata=(meta := {"tags": []})), run, meta
    ctx.input["k"].append(2)
    ctx.metadata["tags"].append("x")
    assert (ctx.input, ctx.metadata) == ({"k": [1, 2]}, {"tags": ["x"]})
    assert (shared, noted) == ({"k": [1]}, {"tags": []})
    assert context().metadata == {}
    assert context(run_input=Kept(lambda: "loaded")).input == "loaded"


def test_a_context_that_never_looked_at_the_state_leaves_no_diff():
    ctx = context(base={"a": 1})
    assert ctx.wrote() is None
    ctx.state["a"] = 2
    assert ctx.wrote(3) == StateDiff({"a": 2}, frozenset(), 3)


def test_history_is_private_and_reads_last_output_by_name():
    entries = {"A": [1], "B": Kept(lambda: {"k": 1})}
    ctx = context(history=entries, last=[9])
    ctx.history["A"].append(2)
    assert ctx.history["A"] == [1, 2]
    assert entries["A"] == [1]
    assert ctx.history["B"] == {"k": 1}
    assert ctx.history["last_output"] == ctx.get_last_output() == [9]
    assert "last_output" in ctx.history
    assert "C" not in ctx.history
    assert (list(ctx.history), len(ctx.history)) == (["A", "B"], 2)
    assert repr(ctx.history) == "{'A': [1, 2], 'B': {'k': 1}}"
    with pytest.raises(KeyError):
        ctx.history["C"]


def test_history_cannot_be_written():
    ctx = context(history={"A": 1})
    with pytest.raises(TypeError):
        ctx.history["A"] = 2
    assert isinstance(ctx.history, History)


def test_the_last_output_comes_as_a_type():
    assert context(last="5").get_last_output_as(int) == 5


def test_a_summary_counts_what_ran():
    rows = [Row("A", "r/A/1", "success", 1, 0.0, 0.5), Row("B", "r/B/1", "skipped", 0, 0.0, 0.25)]
    assert context(rows=rows).get_summary() == {
        "execution_id": "flow.s.1",
        "total_nodes": 2,
        "total_time": 0.75,
        "last_node": "B",
        "status": "completed",
    }
    assert context(rows=[Row("A", "r/A/1", "failed")]).get_summary()["status"] == "failed"
    assert context().get_summary()["last_node"] is None
    assert context(rows=rows).executions == rows


def test_a_storage_payload_holds_the_newest_entries():
    ctx = context(base={"k": 1}, history={"A": 1, "B": 2, "C": 3}, last=3, metadata={"m": 1})
    assert ctx.to_storage_payload(2) == {
        "execution_id": "flow.s.1",
        "input": "in",
        "state": {"k": 1},
        "history": {"B": 2, "C": 3, "last_output": 3},
        "metadata": {"m": 1},
    }
    assert list(ctx.to_storage_payload()["history"]) == ["A", "B", "C", "last_output"]
    assert list(ctx.to_storage_payload(0)["history"]) == ["A", "B", "C", "last_output"]


def test_once_checkpoint_and_progress_go_to_the_driver():
    ctx = context()

    async def ask():
        assert await ctx.once("mail", lambda: 5) == ("mail", 5, False)
        assert await ctx.once("mail", lambda: 5, again=True) == ("mail", 5, True)
        await ctx.checkpoint()

    anyio.run(ask)
    ctx.progress(1, 2, "half")
    services = ctx._scene.services
    assert (services.saved, services.shown) == ("A", ("A", 1, 2, "half"))


def test_what_a_body_assigned_or_read_decides_how_long_its_diff_takes():
    ctx = context()
    assert ctx.touched() == []
    base = {"read": [1], "left": [2], "number": 3}
    seen = View(base, copy.deepcopy)
    assert (seen["read"], seen["number"]) == ([1], 3)
    seen["new"] = [4]
    assert seen.touched() == [[4], [1]]
    ctx.state["k"] = [5]
    assert ctx.touched() == [[5]]


# the window


def test_a_window_reads_at_the_first_look():
    standing = {0: "a", 1: "b"}
    window = Window(standing, ["A", "B", "C"], None, "b")
    standing[2] = "c"
    assert window.entries() == {"A": "a", "B": "b", "C": "c"}
    standing.clear()
    assert window.entries() == {"A": "a", "B": "b", "C": "c"}


@pytest.mark.parametrize(("retention", "seen"), [(0, []), (1, ["C"]), (2, ["B", "C"]), (9, ["A", "B", "C"]), (None, ["A", "B", "C"])])
def test_a_window_holds_the_newest_entries_oldest_first(retention, seen):
    assert list(Window({0: 1, 1: 2, 2: 3}, "ABC", retention, 3).entries()) == seen
