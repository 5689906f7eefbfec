"""Shows records: as lines on a terminal, and as a folder with a Markdown page and pictures.

Every shortfall is marked, with its profile under it. Nothing is judged here.
"""

from pathlib import Path
from typing import Any

from bench.records import Record

MARKS = {"ok": "met", "missed": "MISSED", "failed": "FAILED"}
MET, SHORT, PLAIN = "#2f7d4f", "#c0392b", "#4a6fa5"


def number(value: float) -> str:
    """Return a number with as many digits as say something."""
    if value != value:
        return "-"
    size = abs(value)
    return f"{value:,.0f}" if size >= 1000 else f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 1 else f"{value:.3g}"


def verdict(figure: dict[str, Any]) -> str:
    """Return what a figure's bar says of it."""
    if figure["bar"] is None:
        return ""
    return f"{'met' if figure['met'] else 'MISSED'} ({figure['bar']['text']})"


def as_text(record: Record) -> str:
    """Return a record as lines for a terminal."""
    lines = [f"{record['scenario']}: {mark(record)}   {record['summary']}   [{record['seconds']:.1f} s]"]
    if record["status"] == "failed":
        lines.append(f"  did not run as counted: {record['error']}")
        return "\n".join(lines)
    for figure in record["figures"]:
        lines.append(f"  {figure['name']:<48} {number(figure['value']):>10} {figure['unit']:<12} {verdict(figure)}".rstrip())
    for series in record["series"]:
        first = "" if series["first"] is None else f"first {number(series['first'])}  "
        spread = f"{first}min {number(series['min'])}  p95 {number(series['p95'])}  max {number(series['max'])}  of {len(series['values'])}"
        lines.append(f"    {series['label']:<46} {number(series['median']):>10} {series['unit']:<12} {spread}")
    lines += [f"    {name}: {value}" for name, value in record["notes"].items()]
    if record["peers"]:
        lines.append(f"    for orientation: {record['peers']}")
    lines.append(f"    checked: {'; '.join(record['checks'])}")
    return "\n".join(lines)


def mark(record: Record) -> str:
    """Return one word for a record; a scenario without a bar is only printed."""
    if record["status"] == "ok" and all(figure["bar"] is None for figure in record["figures"]):
        return "printed"
    return MARKS[record["status"]]


def busy(records: list[Record]) -> str:
    """Return a sentence where the machine was busy before a scenario began; empty where it was not."""
    load = max(record["environment"]["load"][0] for record in records)
    cpus = records[-1]["environment"]["cpus"]
    return f"The machine was busy: a load of up to {load:.1f} on {cpus} processors." if load > cpus else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _section(record: Record, pictures: dict[str, str]) -> list[str]:
    """Return the part of the page that shows one record."""
    lines = [f"## {record['scenario']}: {mark(record)}", "", record["summary"] + (" (fast form)" if record["fast"] else ""), ""]
    if record["status"] == "failed":
        return [*lines, f"**FAILED**: {record['error']}", "", "```", record["traceback"].strip(), "```", ""]
    lines += ["| figure | value | unit | bar | |", "|---|---:|---|---|---|"]
    for figure in record["figures"]:
        bar = "" if figure["bar"] is None else figure["bar"]["text"]
        judged = "" if figure["met"] is None else "met" if figure["met"] else "**MISSED**"
        lines.append(f"| {_cell(figure['name'])} | {number(figure['value'])} | {figure['unit']} | {bar} | {judged} |")
    lines += ["", "| runs | median | first | min | p95 | max | unit | rounds |", "|---|---:|---:|---:|---:|---:|---|---:|"]
    for s in record["series"]:
        spread = " | ".join("" if s[name] is None else number(s[name]) for name in ("median", "first", "min", "p95", "max"))
        lines.append(f"| {_cell(s['label'])} | {spread} | {s['unit']} | {len(s['values'])} |")
    lines.append("")
    if record["scenario"] in pictures:
        lines += [f"![{record['scenario']}]({pictures[record['scenario']]})", ""]
    lines += [f"- {name}: {value}" for name, value in record["notes"].items()]
    if record["peers"]:
        lines.append(f"- for orientation: {record['peers']}")
    lines += [f"- checked {count} times: {fact}" for fact, count in record["checks"].items()]
    lines += [f"- measured {record['environment']['at']}, load {record['environment']['load']} before and {record['load_after']} after", ""]
    if record["status"] == "missed":
        lines += ["**Where it goes:**", "", "```", record.get("profile", "no profile for this scenario"), "```", ""]
    return lines


def _summary(records: list[Record]) -> list[str]:
    lines = ["| scenario | figure | value | bar | |", "|---|---|---:|---|---|"]
    for record in records:
        if record["status"] == "failed":
            lines.append(f"| {record['scenario']} | | | | **FAILED** |")
            continue
        for figure in record["figures"]:
            if figure["bar"] is not None:
                value = f"{number(figure['value'])} {figure['unit']}"
                judged = "met" if figure["met"] else "**MISSED**"
                lines.append(f"| {record['scenario']} | {_cell(figure['name'])} | {value} | {figure['bar']['text']} | {judged} |")
    return lines


def write_report(records: list[Record], folder: Path) -> Path:
    """Write `report.md` and its pictures; return the page's path. Without matplotlib the page has no pictures, and says so."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(records, folder)
    where = records[-1]["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items() if version)
    short = sum(record["status"] != "ok" for record in records)
    lines = [
        "# Benchmarks",
        "",
        f"{len(records)} scenarios, {short} of them short of a bar or failed. {where['cpu']}, {where['cpus']} processors, "
        f"{where['memory_gib']} GiB, {where['system']}, Python {where['python']}, storage on {where['file_system']}, "
        f"commit {where['commit']}. {versions}. {busy(records)}".strip(),
        "",
        *(["![all bars](bars.png)"] if "" in pictures else ["No pictures: matplotlib is not installed."]),
        "",
        *_summary(records),
        "",
    ]
    for record in records:
        lines += _section(record, pictures)
    page = folder / "report.md"
    page.write_text("\n".join(lines), encoding="utf-8")
    return page


def draw(records: list[Record], folder: Path) -> dict[str, str]:
    """Draw all bars in one picture (under the key ""), and the rounds of each scenario; return the file names by scenario."""
    try:
        import matplotlib
    except ImportError:
        return {}
    matplotlib.use("Agg")
    pictures: dict[str, str] = {}
    barred = [(f"{r['scenario']}: {f['name']}", f) for r in records for f in r.get("figures", ()) if f["bar"] is not None]
    if barred:
        pictures[""] = _draw_bars(barred, folder)
    for record in records:
        if any(len(series["values"]) > 1 for series in record.get("series", ())):
            pictures[record["scenario"]] = _draw_rounds(record, folder)
    return pictures


def _draw_bars(barred: list[tuple[str, dict[str, Any]]], folder: Path) -> str:
    """Draw how far each figure is from its bar: to the left of 1 it is met."""
    from matplotlib import pyplot

    shares = [_share(figure) for _, figure in barred]
    figure, axes = pyplot.subplots(figsize=(9, 0.32 * len(barred) + 1.2))
    colours = [MET if f["met"] else SHORT for _, f in barred]
    axes.barh(range(len(barred)), shares, color=colours)
    axes.set_yticks(range(len(barred)), [name for name, _ in barred], fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.15)
    axes.axvline(1, color="black", linewidth=1)
    for at, share in enumerate(shares):
        axes.text(share * 1.03, at, f"{share:.3g}", va="center", fontsize=7, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.invert_yaxis()
    axes.set_xlabel("share of the bar that is used; left of 1 is met")
    figure.savefig(folder / "bars.png", dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return "bars.png"


def _share(figure: dict[str, Any]) -> float:
    """Return value over limit, turned round where more is better; never below a hundredth, so that it can be drawn."""
    value, limit = figure["value"], figure["bar"]["limit"]
    share = limit / value if figure["bar"]["comparison"] == "at least" and value > 0 else value / limit
    return min(max(share, 0.01), 1000.0)


def _draw_rounds(record: Record, folder: Path) -> str:
    """Draw every round of every contender as a dot, one panel a unit."""
    from matplotlib import pyplot

    units = list(dict.fromkeys(series["unit"] for series in record["series"]))
    heights = [sum(series["unit"] == unit for series in record["series"]) for unit in units]
    figure, panels = pyplot.subplots(
        len(units), 1, figsize=(8, 0.42 * sum(heights) + 1.1 * len(units)), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axes, unit in zip(panels[:, 0], units, strict=True):
        shown = [series for series in record["series"] if series["unit"] == unit]
        for at, series in enumerate(shown):
            axes.plot(series["values"], [at] * len(series["values"]), "o", color=PLAIN, alpha=0.5, markersize=5)
            axes.plot([series["median"]], [at], "|", color="black", markersize=16)
        axes.set_yticks(range(len(shown)), [series["label"] for series in shown], fontsize=8)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel(unit, fontsize=8)
        axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    name = f"{record['scenario']}.png"
    figure.savefig(folder / name, dpi=130, bbox_inches="tight")
    pyplot.close(figure)
    return name
