"""What a reader sees: every shortfall is marked, with its profile under it."""

import sys
from pathlib import Path

import pytest

from bench.harness import Bar, Figure, Scenario, Series
from bench.records import Record, judged
from bench.report import as_text, busy, number, write_report

BAR = Bar(figure="cost", unit="us", comparison="at most", limit=10)


def record(name: str, value: float, **more: object) -> Record:
    scenario = Scenario(name=name, summary="a thing", measure=lambda _: pytest.fail("not measured here"), bars=(BAR,))
    figures = [judged(scenario, Figure(name=n, value=value, unit="us")) for n in ("cost", "beside")]
    series = [Series(label="engine", unit="us", values=(1.0, value, 3.0), first=9.0).as_data()]
    where = {"at": "now", "cpu": "c", "cpus": 2, "memory_gib": 4, "system": "s", "python": "3", "file_system": "ext4", "commit": "abc"}
    return {
        "scenario": name,
        "summary": "a thing",
        "peers": "",
        "fast": True,
        "status": "ok" if value <= 10 else "missed",
        "figures": figures,
        "series": series,
        "notes": {"slots": 2},
        "checks": {"all ran": 3},
        "seconds": 1.0,
        "load_after": [0.1, 0.1, 0.1],
        "environment": {**where, "load": [0.2, 0.1, 0.1], "versions": {"ray": "2", "absent": None}},
        **more,
    }


FAILED = record("third", 0.0, status="failed", error="DidNotRun: not so: all ran", traceback="Traceback ...", figures=[], series=[])


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (123.44, "123.4"), (1.2345, "1.23"), (0.01234, "0.0123"), (0.0, "0"), (float("nan"), "-"), (-3.456, "-3.46")],
)
def test_numbers_have_the_digits_that_say_something(value: float, text: str):
    assert number(value) == text


def test_the_terminal_shows_each_bar_as_met_or_missed():
    assert "met (at most 10 us)" in as_text(record("one", 5.0))
    assert "MISSED (at most 10 us)" in as_text(record("one", 50.0))
    assert "did not run as counted: DidNotRun: not so: all ran" in as_text(FAILED)


def test_a_scenario_without_a_bar_is_called_printed_and_not_met():
    figure = {"name": "price", "value": 1.0, "unit": "%", "bar": None, "met": None}
    assert as_text(record("one", 5.0, figures=[figure])).startswith("one: printed")
    assert as_text(record("one", 5.0)).startswith("one: met")


def test_a_busy_machine_is_told_of():
    assert busy([record("one", 5.0)]) == ""
    loaded = record("two", 5.0)
    loaded["environment"]["load"] = [3.25, 1.0, 1.0]
    assert busy([loaded, record("one", 5.0)]) == "The machine was busy: a load of up to 3.2 on 2 processors."


def test_the_page_marks_every_shortfall_and_shows_its_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = write_report([record("first", 5.0), record("second", 50.0, profile="in sync"), FAILED], tmp_path).read_text()
    assert "3 scenarios, 2 of them short of a bar or failed" in page
    assert "| first | cost | 5.00 us | at most 10 us | met |" in page
    assert "| second | cost | 50.00 us | at most 10 us | **MISSED** |" in page
    assert "| third | | | | **FAILED** |" in page
    assert page.index("## second: MISSED") < page.index("in sync") < page.index("## third: FAILED")
    assert "No pictures: matplotlib is not installed." in page


@pytest.mark.slow
def test_the_pictures_of_the_page_are_there(tmp_path: Path):
    pytest.importorskip("matplotlib")
    page = write_report([record("first", 5.0), record("second", 50.0), FAILED], tmp_path).read_text()
    for name in ("bars.png", "first.png", "second.png"):
        assert f"({name})" in page
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "third.png").exists()
