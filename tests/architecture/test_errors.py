"""The error tree: one root, a docstring that is the message, a drawing that is complete, and fields that survive pickling."""

import inspect
import pickle

import cloudpickle
import pytest

from engine import errors
from engine.errors import GeckoError

KINDS = sorted(
    {kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, BaseException)},
    key=lambda kind: kind.__name__,
)
names = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def fields_of(kind: type[GeckoError]) -> list[str]:
    """The fields that a class and its bases declare, without the class attribute `retryable`."""
    declared = {name for base in kind.__mro__ if base.__module__ == errors.__name__ for name in inspect.get_annotations(base)}
    return sorted(declared - {"retryable"})


@names
def test_every_error_has_the_one_root(kind: type[GeckoError]):
    assert issubclass(kind, GeckoError)


@names
def test_the_docstring_is_the_default_message(kind: type[GeckoError]):
    assert str(kind()) == inspect.cleandoc(vars(kind)["__doc__"]).splitlines()[0]


@names
@pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_an_error_survives_pickling_with_its_fields(kind: type[GeckoError], pickler):
    told = {name: f"the {name}" for name in fields_of(kind)}
    error = kind("It broke at 'a': mend it.", **told)
    copy = pickle.loads(pickler.dumps(error))
    assert type(copy) is kind
    assert str(copy) == "It broke at 'a': mend it."
    assert {name: getattr(copy, name) for name in told} == told
    assert copy.retryable is kind.retryable


@names
def test_an_error_keeps_its_cause_through_pickling(kind: type[GeckoError]):
    try:
        raise kind() from ZeroDivisionError("division by zero")
    except GeckoError as error:
        copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy.__cause__, ZeroDivisionError)


def test_the_drawing_in_the_docstring_holds_every_error():
    assert errors.__doc__ is not None
    drawn = set(errors.__doc__.replace("(", " ").replace(";", " ").split())
    assert {kind.__name__ for kind in KINDS} - drawn == set()
