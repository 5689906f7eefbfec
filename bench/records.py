"""Turns a scenario's outcome into one record, a line of JSON, and finds the newest records again.

A record is `ok`, `missed` (a bar was not reached), or `failed` (something that it counts did not run, or it broke: no figure counts).
"""

import json
import os
import time
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.harness import Figure, Scenario, environment
from bench.setting import Setting

Record = dict[str, Any]


def perform(scenario: Scenario, setting: Setting, folder: Path) -> Record:
    """Measure a scenario; where a bar was missed, store the profile that says why."""
    setting.checks.held.clear()
    record: Record = {"scenario": scenario.name, "summary": scenario.summary, "peers": scenario.peers, "fast": setting.fast}
    record["environment"] = environment(folder)
    begun = time.perf_counter()
    try:
        found = scenario.measure(setting)
        record["figures"] = [judged(scenario, figure) for figure in found.figures]
        record["series"] = [series.as_data() for series in found.series]
        record["notes"] = found.notes
        judgements = [figure["met"] for figure in record["figures"] if figure["met"] is not None]
        if len(judgements) != len(scenario.bars):
            raise LookupError(f"{scenario.name} has {len(scenario.bars)} bars, and figures for {len(judgements)} of them")
        record["status"] = "ok" if all(judgements) else "missed"
    except Exception as error:  # noqa: BLE001 - a scenario that breaks is a result, and the others still run
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    record["checks"] = dict(setting.checks.held)
    record["seconds"] = time.perf_counter() - begun
    if record["status"] == "missed" and scenario.profile is not None:
        try:
            record["profile"] = scenario.profile(setting)
        except Exception as error:  # noqa: BLE001 - what was measured stays
            record["profile"] = f"the profile broke: {type(error).__name__}: {error}"
    record["load_after"] = [round(value, 2) for value in os.getloadavg()]
    return record


def judged(scenario: Scenario, figure: Figure) -> Record:
    """Return a figure with its bar, if it has one, and whether it is met."""
    bar = next((bar for bar in scenario.bars if bar.figure == figure.name), None)
    data: Record = {"name": figure.name, "value": figure.value, "unit": figure.unit, "bar": None, "met": None}
    if bar is not None:
        data |= {
            "bar": {"comparison": bar.comparison, "limit": bar.limit, "unit": bar.unit, "text": str(bar)},
            "met": bar.met(figure.value),
        }
    return data


def append(path: Path, record: Record) -> None:
    """Add a line to a file of records."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as lines:
        lines.write(json.dumps(record) + "\n")


def _lines(files: Iterable[Path]) -> Iterator[Record]:
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue


def newest(folder: Path, names: Iterable[str]) -> list[Record]:
    """Return the newest record of each scenario below a folder, in the order of the names."""
    found = {record["scenario"]: record for record in _lines(sorted(folder.glob("*.jsonl")))}
    return [found[name] for name in names if name in found]
