"""Runs driven by hand, whose invariants are checked again when the test ends."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine.core.graph import Graph
from tests.engine.core.trial import Trial


@pytest.fixture
def trial() -> Iterator[Callable[..., Trial]]:
    """Make trials; every one is checked at the end, and applied once more with its results in other orders."""
    made: list[Trial] = []

    def make(graph: Graph, *args: Any, **options: Any) -> Trial:
        made.append(Trial(graph, *args, **options))
        return made[-1]

    yield make
    for each in made:
        each.check()
        each.check_order_of_arrival()
