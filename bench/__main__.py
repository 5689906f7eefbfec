"""The command line of the benchmarks: `python -m bench run NAME...|all [--fast] [--json]`, `list`, `report`.

`run` ends with 1 where something that a scenario counts did not really run; a bar that is missed is printed as missed, and ends with 0.
"""

import argparse
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from bench.catalogue import SCENARIOS, chosen
from bench.records import Record, append, newest, perform
from bench.report import MARKS, as_text, busy, write_report
from bench.setting import Setting
from engine.errors import GeckoError

RESULTS, REPORT = Path("bench-results"), Path("bench-report")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m bench", description="Measures the bars, each against a baseline in the same run.")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure scenarios")
    run.add_argument("names", nargs="+", metavar="NAME", help="scenarios, or `all`")
    run.add_argument("--fast", action="store_true", help="five rounds, and smaller sizes where a figure keeps its meaning")
    run.add_argument("--json", action="store_true", help="print the records as lines of JSON")
    commands.add_parser("list", help="name the scenarios and their bars")
    report = commands.add_parser("report", help="write tables and pictures of the newest results")
    report.add_argument("--to", type=Path, default=REPORT, metavar="FOLDER", help=f"default: {REPORT}")
    for command in (run, report):
        command.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help=f"where the records are; default: {RESULTS}")
    return top


def run(names: list[str], results: Path, *, fast: bool, as_json: bool) -> int:
    """Measure scenarios, print and keep their records; return the exit status."""
    scenarios = chosen(names)
    file = results / f"{datetime.now(UTC):%Y%m%dT%H%M%S}.jsonl"
    records: list[Record] = []
    with Setting(results, fast=fast) as setting:
        for scenario in scenarios:
            record = perform(scenario, setting, results)
            append(file, record)
            records.append(record)
            print(json.dumps(record) if as_json else as_text(record) + "\n", flush=True)
    if not as_json:
        print(summary(records, file))
    return int(any(record["status"] == "failed" for record in records))


def summary(records: list[Record], file: Path) -> str:
    """Return the last lines of a run: how many of what, and what fell short."""
    counts = ", ".join(f"{sum(r['status'] == status for r in records)} {mark}" for status, mark in MARKS.items())
    lines = [f"{len(records)} scenarios in {sum(r['seconds'] for r in records):.0f} s: {counts}. Records: {file}"]
    if busy(records):
        lines.append(f"  {busy(records)}")
    for record in records:
        short = [f for f in record.get("figures", ()) if f["met"] is False]
        lines += [f"  MISSED {record['scenario']}: {f['name']} is {f['value']:.3g} {f['unit']}, {f['bar']['text']}" for f in short]
        if record["status"] == "failed":
            lines.append(f"  FAILED {record['scenario']}: {record['error'].splitlines()[0]}")
    return "\n".join(lines)


def show_list() -> int:
    """Print every scenario with its bars."""
    for scenario in SCENARIOS.values():
        print(f"{scenario.name:<16} {scenario.summary}")
        for bar in scenario.bars:
            print(f"{'':<16}   {bar.figure}: {bar}")
        if not scenario.bars:
            print(f"{'':<16}   printed only")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return the exit status."""
    given = parser().parse_args(arguments)
    if given.command == "list":
        return show_list()
    try:
        if given.command == "run":
            return run(given.names, given.results, fast=given.fast, as_json=given.json)
    except GeckoError as error:
        print(error, file=sys.stderr)
        return 2
    records = newest(given.results, SCENARIOS)
    if not records:
        print(f"no records in {given.results}: run `python -m bench run all --fast` first", file=sys.stderr)
        return 2
    print(write_report(records, given.to))
    return 0


if __name__ == "__main__":
    sys.exit(main())
