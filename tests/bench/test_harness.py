"""Bars, ratios, and rounds in turn."""

import math
from pathlib import Path

import pytest

from bench.harness import Bar, Checks, DidNotRun, Series, alternate, environment, percentile, ratio


def bar(comparison: str, limit: float = 2.0) -> Bar:
    return Bar(figure="f", unit="s", comparison=comparison, limit=limit)  # type: ignore[arg-type]


def series(*values: float) -> Series:
    return Series(label="x", unit="s", values=values)


@pytest.mark.parametrize(
    ("comparison", "below", "at", "above"), [("at most", True, True, False), ("under", True, False, False), ("at least", False, True, True)]
)
def test_a_bar_judges_values_below_at_and_above_its_limit(comparison: str, below: bool, at: bool, above: bool):
    assert [bar(comparison).met(v) for v in (1.9, 2.0, 2.1)] == [below, at, above]


@pytest.mark.parametrize("comparison", ["at most", "under", "at least"])
def test_no_bar_is_met_by_a_figure_that_is_none(comparison: str):
    assert not bar(comparison).met(math.nan)


def test_a_bar_says_what_it_asks():
    assert str(bar("at most", 0.25)) == "at most 0.25 s"


def test_contenders_run_once_a_round_in_alternating_order_after_their_warm_up():
    calls: list[str] = []

    def contender(name: str) -> float:
        calls.append(name)
        return float(len(calls))

    found = alternate({"a": lambda: contender("a"), "b": lambda: contender("b")}, rounds=5)
    assert "".join(calls) == "ab" + "abbaabbaab"
    assert found["a"].first == 1.0
    assert found["a"].values == (3.0, 6.0, 7.0, 10.0, 11.0)
    assert len(found["b"].values) == 5


def test_fewer_than_five_rounds_are_refused():
    with pytest.raises(ValueError, match="at least 5 rounds, not 4"):
        alternate({"a": lambda: 1.0}, rounds=4)


def test_a_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians():
    assert ratio(series(2.0, 30.0, 6.0), series(1.0, 10.0, 1.0)) == 3.0


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (50, 2.5), (95, 3.85), (100, 4.0)])
def test_percentiles_are_interpolated(percent: float, value: float):
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(value)


def test_a_series_carries_its_summary_and_its_unit():
    data = Series(label="x", unit="s", values=(0.001, 0.003, 0.002), first=0.01).scaled(1000, "ms").as_data()
    assert (data["median"], data["min"], data["max"], data["first"], data["unit"]) == (2.0, 1.0, 3.0, 10.0, "ms")


def test_what_is_checked_is_counted_and_what_does_not_hold_says_what_was_seen():
    checks = Checks()
    checks.that(True, "all ran")
    checks.that(True, "all ran")
    assert checks.held == {"all ran": 2}
    with pytest.raises(DidNotRun, match=r"not so: two workers \(seen: 1\)"):
        checks.that(False, "two workers", seen=1)


def test_the_environment_names_what_figures_depend_on(tmp_path: Path):
    found = environment(tmp_path)
    assert found["cpus"] >= 1
    assert len(found["load"]) == 3
    assert {"ray", "pyarrow", "gecko-ray"} <= found["versions"].keys()
