"""Values that are built as a type says, from their data form."""

import enum
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from threading import Lock
from typing import Any

import pytest
from pydantic import BaseModel, Field

from engine.checkpoint.codec import build, is_model, to_data


class Color(enum.Enum):
    RED = "red"


@dataclass(frozen=True)
class Spot:
    x: int
    tags: list[str] = field(default_factory=list)


class Person(BaseModel):
    name: str = Field(alias="fullName")
    spots: list[Spot] = []


def test_build_makes_models_and_dataclasses_from_their_data_form():
    person = Person(fullName="n", spots=[Spot(1)])
    assert build(Person, to_data(person)) == person
    assert build(Person, person) is person
    assert build(list[Person], to_data([person])) == [person]
    assert build(Spot | None, {"x": "2"}) == Spot(2)
    assert build(None, 5) == 5
    assert build(Any, 5) == 5


@dataclass
class Holder:
    lock: Lock  # type: ignore[valid-type]


def test_build_makes_a_dataclass_with_fields_that_cannot_be_validated():
    lock = Lock()
    assert build(Holder, {"lock": lock}) == Holder(lock)


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        (str, 123, "123"),
        (int, "5", 5),
        (float, "1.5", 1.5),
        (bool, "False", False),
        (bool, "true", True),
        (bool, 0, False),
        (Color, "red", Color.RED),
        (datetime, "2024-01-01", datetime(2024, 1, 1)),
        (Path, "a", Path("a")),
        (Decimal, "1.5", Decimal("1.5")),
        (list, (1, 2), [1, 2]),
        (tuple[int, ...], ["1"], (1,)),
        (dict[str, int], {"a": "1"}, {"a": 1}),
    ],
)
def test_build_converts_as_the_type_says(kind: Any, value: Any, result: Any):
    made = build(kind, value)
    assert (type(made), made) == (type(result), result)


@pytest.mark.parametrize(
    ("kind", "value", "names"),
    [
        (int, "abc", ("str", "int")),
        (bool, "maybe", ("str", "bool")),
        (bool, 2, ("int", "bool")),
        (Person, {"wrong": 1}, ("dict", "Person")),
        (Person, 5, ("int", "Person")),
        (Spot, "x", ("str", "Spot")),
        (list[int], ["x"], ("list", "list[int]")),
        (Holder, {"key": 1}, ("dict", "Holder")),
    ],
)
def test_build_names_both_when_a_value_does_not_fit(kind: Any, value: Any, names: tuple[str, str]):
    with pytest.raises(TypeError) as caught:
        build(kind, value)
    assert str(caught.value).startswith(f"A value of type {names[0]} does not fit {names[1]}: ")


def test_models_are_told_from_other_annotations():
    assert all(map(is_model, (Person, Spot, list[Person], Spot | None, dict[str, list[Spot]])))
    assert not any(map(is_model, (int, str, list[int], None, Any, object, "Spot")))
