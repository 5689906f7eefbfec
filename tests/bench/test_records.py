"""A scenario's record: met, missed with its profile, or failed; and the newest records of a folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.catalogue import SCENARIOS
from bench.harness import Bar, DidNotRun, Outcome, Scenario
from bench.records import Record, append, newest, perform
from bench.setting import Setting


def scenario(value: float, *, profile: Callable[[Setting], str] | None = None, figure: str = "cost") -> Scenario:
    def measure(setting: Setting) -> Outcome:
        setting.checks.that(value >= 0, "it ran", seen=value)
        found = Outcome()
        found.figure(figure, value, "s")
        return found

    bars = (Bar(figure="cost", unit="s", comparison="at most", limit=1.0),)
    return Scenario(name="one", summary="a thing", measure=measure, bars=bars, profile=profile)


def performed(one: Scenario, folder: Path) -> Record:
    with Setting(folder, fast=True) as setting:
        return perform(one, setting, folder)


def test_a_bar_that_is_met_needs_no_profile(tmp_path: Path):
    record = performed(scenario(0.5, profile=lambda _: pytest.fail("nothing to explain")), tmp_path)
    assert (record["status"], record["figures"][0]["met"], record["checks"]) == ("ok", True, {"it ran": 1})
    assert "profile" not in record


def test_a_missed_bar_stores_the_profile_that_says_why(tmp_path: Path):
    record = performed(scenario(2.0, profile=lambda _: "all of it in sync"), tmp_path)
    assert (record["status"], record["profile"]) == ("missed", "all of it in sync")


def test_a_profile_that_breaks_keeps_what_was_measured(tmp_path: Path):
    def broken(_: Setting) -> str:
        raise OSError("no disk")

    record = performed(scenario(2.0, profile=broken), tmp_path)
    assert record["figures"][0]["value"] == 2.0
    assert record["profile"] == "the profile broke: OSError: no disk"


def test_what_did_not_run_has_no_figures(tmp_path: Path):
    record = performed(scenario(-1.0), tmp_path)
    assert record["status"] == "failed"
    assert record["error"] == "DidNotRun: not so: it ran (seen: -1.0)"
    assert "figures" not in record or not record["figures"]


def test_a_bar_without_its_figure_is_a_failure(tmp_path: Path):
    assert performed(scenario(0.5, figure="another"), tmp_path)["status"] == "failed"


def test_records_are_json_lines_and_the_newest_of_each_scenario_counts(tmp_path: Path):
    append(tmp_path / "1.jsonl", {"scenario": "one", "n": 1})
    append(tmp_path / "2.jsonl", {"scenario": "one", "n": 2})
    append(tmp_path / "2.jsonl", {"scenario": "two", "n": 3})
    with open(tmp_path / "2.jsonl", "a") as file:
        file.write('{"scenario": "one", "n')
    assert newest(tmp_path, ["two", "three", "one"]) == [{"scenario": "two", "n": 3}, {"scenario": "one", "n": 2}]


@pytest.mark.parametrize(("value", "status", "mark"), [(0.5, 0, "one: met"), (2.0, 0, "MISSED one: cost is 2 s"), (-1.0, 1, "FAILED one")])
def test_only_what_did_not_run_makes_the_command_fail(
    value: float, status: int, mark: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setitem(SCENARIOS, "one", scenario(value))
    assert command.main(["run", "one", "--fast", "--results", str(tmp_path)]) == status
    assert mark in capsys.readouterr().out


def test_with_json_the_command_prints_the_records_that_it_keeps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setitem(SCENARIOS, "one", scenario(0.5))
    command.main(["run", "one", "--json", "--results", str(tmp_path)])
    printed = capsys.readouterr().out
    assert json.loads(printed)["scenario"] == "one"
    assert "".join(file.read_text() for file in tmp_path.glob("*.jsonl")) == printed


def test_an_unknown_scenario_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert command.main(["run", "inline-chian", "--results", str(tmp_path)]) == 2
    assert "did you mean 'inline-chain'" in capsys.readouterr().err


def test_a_report_without_records_says_what_to_run_first(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    assert command.main(["report", "--results", str(tmp_path)]) == 2
    assert "python -m bench run all --fast" in capsys.readouterr().err


def test_a_scenario_that_a_fault_stops_lets_the_next_one_run(tmp_path: Path):
    def broken(_: Setting) -> Outcome:
        raise DidNotRun("half of it")

    with Setting(tmp_path, fast=True) as setting:
        first = perform(Scenario(name="broken", summary="", measure=broken), setting, tmp_path)
        second = perform(scenario(0.5), setting, tmp_path)
    assert [first["status"], second["status"]] == ["failed", "ok"]
    assert second["checks"] == {"it ran": 1}
