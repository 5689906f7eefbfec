"""The view of the state against a plain dict: whatever a body does to one, done to the other, they stay equal."""

import copy
import json
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.core.context import View
from engine.core.state import merge, same

KEYS = st.sampled_from(["a", "b", "c", "d"])
LEAVES = st.none() | st.integers(-2, 2) | st.sampled_from(["x", "y"]) | st.just(float("nan"))
VALUES = st.recursive(
    LEAVES | st.sets(st.integers(0, 3), max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=5,
)
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=3)


def edit(container: Any, value: Any) -> None:
    """Change a container in place, in a way that depends on the value."""
    shrink = value is None
    match container:
        case list():
            container.pop() if shrink and container else container.append(copy.deepcopy(value))
        case dict():
            container.popitem() if shrink and container else container.update(n=copy.deepcopy(value))
        case set():
            container.pop() if shrink and container else container.add(repr(value))


class ViewAgainstDict(RuleBasedStateMachine):
    """Does everything to a view and to a dict."""

    @initialize(base=MAPPINGS)
    def begin(self, base):
        self.base, self.before = base, copy.deepcopy(base)
        self.model = copy.deepcopy(base)
        self.view = View(base, copy.deepcopy)
        self.touched: set[str] = set()

    @rule(key=KEYS, value=VALUES)
    def assign(self, key, value):
        self.touched.add(key)
        self.view[key], self.model[key] = copy.deepcopy(value), copy.deepcopy(value)

    @rule(key=KEYS)
    def delete(self, key):
        self.touched.add(key)
        if key in self.model:
            del self.view[key], self.model[key]
        else:
            with pytest.raises(KeyError):
                del self.view[key]

    @rule(key=KEYS, default=VALUES)
    def pop(self, key, default):
        self.touched.add(key)
        assert same(self.view.pop(key, default), self.model.pop(key, default))

    @precondition(lambda self: self.model)
    @rule()
    def popitem(self):
        key, value = self.view.popitem()
        self.touched.add(key)
        assert same(value, self.model.pop(key))

    @rule(key=KEYS, default=VALUES)
    def setdefault(self, key, default):
        self.touched.add(key)
        assert same(self.view.setdefault(key, copy.deepcopy(default)), self.model.setdefault(key, copy.deepcopy(default)))

    @rule(key=KEYS, value=VALUES)
    def edit_in_place(self, key, value):
        if isinstance(self.model.get(key), (list, dict, set)):
            self.touched.add(key)
            edit(self.view[key], value)
            edit(self.model[key], value)

    @rule(key=KEYS, value=VALUES)
    def edit_deep_inside(self, key, value):
        for inner, other in zip(self.deep(self.view.get(key)), self.deep(self.model.get(key)), strict=True):
            self.touched.add(key)
            edit(inner, value)
            edit(other, value)

    @staticmethod
    def deep(value):
        return value[:1] if isinstance(value, list) else [value[k] for k in sorted(value)[:1]] if isinstance(value, dict) else []

    @rule(other=MAPPINGS, how=st.sampled_from(["update", "pairs", "keywords", "ior"]))
    def update(self, other, how):
        self.touched |= set(other)
        mine = copy.deepcopy(other)
        self.model.update(copy.deepcopy(other))
        if how == "update":
            self.view.update(mine)
        elif how == "pairs":
            self.view.update(list(mine.items()))
        elif how == "keywords":
            self.view.update(**mine)
        else:
            self.view |= mine

    @rule()
    def clear(self):
        self.touched |= set(self.model)
        self.view.clear()
        self.model.clear()

    @rule(other=MAPPINGS)
    def unite(self, other):
        assert same(self.view | other, self.model | other)
        assert same(other | self.view, other | self.model)

    @rule(key=KEYS, default=LEAVES)
    def read(self, key, default):
        assert same(self.view.get(key, default), self.model.get(key, default))
        if key in self.model:
            assert same(self.view[key], self.model[key])
        else:
            with pytest.raises(KeyError):
                self.view[key]

    @rule()
    def dump(self):
        def text(mapping):
            return json.dumps(mapping, sort_keys=True, default=lambda s: sorted(map(repr, s)))

        assert text(self.view) == text(self.model)
        assert same(self.view.copy(), copy.deepcopy(self.view))

    @invariant()
    def agrees(self):
        if not hasattr(self, "view"):
            return
        assert same(dict(self.view), self.model)
        assert set(self.view) == set(self.model) == set(self.view.keys())
        assert len(self.view) == len(self.model) == len(self.view.items()) == len(self.view.values())
        assert bool(self.view) is bool(self.model)
        assert all((key in self.view) is (key in self.model) for key in "abcd")
        assert list(self.view) == [k for k, _ in self.view.items()] == list(reversed(list(reversed(self.view))))

    @invariant()
    def the_diff_applied_to_the_base_is_the_view(self):
        if not hasattr(self, "view"):
            return
        diff = self.view.diff()
        assert same(self.base, self.before), "the base was changed"
        assert not diff.deleted & set(diff.written)
        assert diff.deleted <= set(self.base)
        assert set(diff.written) | diff.deleted <= self.touched, "what was only read counts as written"
        merged = merge(self.base, [("a", diff)], {})
        applied = {k: v for k, v in self.base.items() if k not in merged.deleted} | merged.written
        assert same(applied, self.model)


TestViewAgainstDict = pytest.mark.slow(ViewAgainstDict.TestCase)
TestViewAgainstDict.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
