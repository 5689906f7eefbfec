"""The report of `audit.py`: adds figures up, draws them as SVG, and writes Markdown and HTML around the picture.

Pure functions from what was measured to text: nothing here reads or writes a file, and nothing knows of an engine.
The picture and the page need nothing from elsewhere, and read well on light and on dark.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from itertools import pairwise
from typing import Any, NamedTuple

Row = dict[str, str | int | float]
"""A row of a table, column name to cell."""

SCALE = ((1.0, 0x2F6690), (2.5, 0x4F9D9D), (4.0, 0xE3C567), (7.0, 0xE08A4B), (11.0, 0xB93A40))  # mean paths, colour
UNCOLOURED = 0x8A94A0  # files without functions
ROWS_ON_THE_PAGE = 60  # of each table; the Markdown has all
BUCKETS = (1, 2, 3, 4, 5, 6, 8, 11, 16, 21, 31, 51)  # lowest number of paths of each bar
PICTURE_STYLE = """text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:#1c2430}.title{font-size:20px;font-weight:600}
.soft{fill:#5b6673}.folder{fill:#7f8a97;fill-opacity:.16}@media(prefers-color-scheme:dark){text{fill:#e4e8ed}.soft{fill:#9aa5b1}}
.on-light{fill:#14181d}.on-dark{fill:#fff}"""


class Box(NamedTuple):
    """A rectangle of the picture, in pixels."""

    x: float
    y: float
    width: float
    height: float


def totals(files: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up what was measured; the mean is that of all functions."""
    files = list(files)
    paths = [each for file in files for each in file["paths"]]
    return {
        "files": len(files),
        "size, kB": sum(file["bytes"] for file in files) // 1000,
        "lines": sum(file["lines"] for file in files),
        "functions": len(paths),
        "mean paths": round(sum(paths) / max(1, len(paths)), 2),
        "most paths": max(paths, default=0),
        "long functions": sum(file["long"] for file in files),
        "to do": sum(file["todos"] for file in files),
    }


def draw(files: list[Mapping[str, Any]], *, title: str) -> str:
    """Draw a treemap of the files above a histogram of their functions; it reads well on light and on dark."""
    total = totals(files)
    summary = (
        f"{total['files']:,} files, {total['lines']:,} lines, {total['functions']:,} functions with {total['mean paths']} paths on average"
    )
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1200 892" role="img" aria-label="{escape(title)}: {summary}">',
        f"<style>{PICTURE_STYLE}</style>",
        f'<text y="24" class="title">{escape(title)}</text><text y="46" class="soft">{summary}</text>',
        *draw_tiles([file for file in files if file["lines"]], Box(0, 64, 1200, 640), 0),
        *draw_histogram([each for file in files for each in file["paths"]], Box(0, 758, 800, 110)),
        *draw_legend(Box(860, 758, 340, 14)),
    ]
    return "\n".join([*shapes, "</svg>"])


def draw_tiles(files: list[Mapping[str, Any]], box: Box, depth: int) -> Iterator[str]:
    """Draw the files of a folder, and its folders likewise inside; a folder too small to look into is one tile."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for file in files:
        groups["/".join(file["path"].split("/")[: depth + 1])].append(file)
    entries = sorted(((totals(group), path, group) for path, group in groups.items()), key=lambda entry: -entry[0]["lines"])
    for (total, path, group), place in zip(entries, squarified([total["lines"] for total, _, _ in entries], box), strict=True):
        inside = Box(place.x + 2, place.y + 16, place.width - 4, place.height - 18)
        is_frame = path != group[0]["path"] and min(inside.width, inside.height) >= 12
        colour = colour_of(total["mean paths"]) if total["functions"] else UNCOLOURED
        luminance = 0.299 * (colour >> 16) + 0.587 * (colour >> 8 & 255) + 0.114 * (colour & 255)
        fill = 'class="folder"' if is_frame else f'fill="#{colour:06x}"'
        name = label(path.rpartition("/")[2].removesuffix(".py"), place, "" if is_frame else "on-light" if luminance > 125 else "on-dark")
        about = (
            f"{total['lines']:,} lines, {total['functions']:,} functions, {total['mean paths']} paths each, {total['most paths']} at most"
        )
        yield f'<g><title>{escape(path)}\n{about}</title><rect {spot(place)} rx="2" {fill}/>{name}</g>'
        if is_frame:
            yield from draw_tiles(group, inside, depth + 1)


def draw_histogram(paths: list[int], box: Box) -> Iterator[str]:
    """Draw how many functions have how many paths; heights are logarithmic, or the tail could not be seen."""
    counts = Counter(max(lowest for lowest in BUCKETS if lowest <= each) for each in paths)
    tallest = math.log1p(max(counts.values(), default=1))
    step, floor = box.width / len(BUCKETS), box.y + box.height
    yield f'<text x="{box.x}" y="{box.y - 26}" class="soft">Functions by their number of independent paths (heights are logarithmic)</text>'
    for index, (lowest, following) in enumerate(pairwise([*BUCKETS, None])):
        height = box.height * math.log1p(counts[lowest]) / tallest
        bar = Box(box.x + index * step + 3, floor - height, step - 6, height)
        name = f"{lowest}+" if following is None else f"{lowest}" if following == lowest + 1 else f"{lowest}\u2013{following - 1}"
        middle = f'x="{bar.x + bar.width / 2:.1f}" text-anchor="middle"'
        yield f'<rect {spot(bar)} rx="2" fill="#{colour_of(lowest):06x}"/><text {middle} y="{bar.y - 4:.1f}">{counts[lowest]:,}</text>'
        yield f'<text {middle} y="{floor + 16}" class="soft">{name}</text>'


def draw_legend(box: Box) -> Iterator[str]:
    """Draw the colour scale and say how to read the map."""
    stops = "".join(f'<stop offset="{index / 4}" stop-color="#{colour:06x}"/>' for index, (_, colour) in enumerate(SCALE))
    yield f'<defs><linearGradient id="scale">{stops}</linearGradient></defs><rect {spot(box)} rx="3" fill="url(#scale)"/>'
    anchors = ("start", "middle", "middle", "middle", "end")
    for index, ((value, _), anchor) in enumerate(zip(SCALE, anchors, strict=True)):
        mark = f"{value:g}+" if anchor == "end" else f"{value:g}"
        yield f'<text x="{box.x + box.width * index / 4}" y="{box.y + 30}" text-anchor="{anchor}">{mark}</text>'
    hints = "Area: lines of code. A frame is a folder.", "Grey: a file without functions.", "Point at a tile for its path and figures."
    for y, text in zip((-26, 60, 78, 96), ("Colour: paths of a function, on average of the file", *hints), strict=True):
        yield f'<text x="{box.x}" y="{box.y + y}" class="soft">{text}</text>'


def squarified(sizes: list[int], box: Box) -> Iterator[Box]:
    """Divide a box among sizes, largest first, in rows along its shorter side while tiles get squarer (Bruls, Huizing, van Wijk 2000)."""

    def elongation(row: list[float]) -> float:
        depth = sum(row) / side
        return max(max(area / depth / depth, depth * depth / area) for area in row)

    areas = [size * box.width * box.height / sum(sizes) for size in sizes]
    while areas:
        side, count = min(box.width, box.height), 1
        while count < len(areas) and elongation(areas[: count + 1]) <= elongation(areas[:count]):
            count += 1
        row, areas = areas[:count], areas[count:]
        depth, offset = sum(row) / side, 0.0
        x, y, width, height = box
        for area in row:
            yield Box(x, y + offset, depth, area / depth) if width > height else Box(x + offset, y, area / depth, depth)
            offset += area / depth
        box = Box(x + depth, y, width - depth, height) if width > height else Box(x, y + depth, width, height - depth)


def colour_of(paths: float) -> int:
    """Return the colour of a number of paths, as 0xRRGGBB between the two marks of the scale around it."""
    for (low, cold), (high, warm) in pairwise(SCALE):
        if paths <= high:
            share = max(0.0, (paths - low) / (high - low))
            return sum(round((cold >> shift & 255) * (1 - share) + (warm >> shift & 255) * share) << shift for shift in (16, 8, 0))
    return SCALE[-1][1]


def spot(box: Box) -> str:
    """Write a box as the attributes of a rectangle, with some air around it."""
    air = 0.5 if min(box.width, box.height) > 3 else 0.1
    width, height = max(0.1, box.width - 2 * air), max(0.1, box.height - 2 * air)
    return f'x="{box.x + air:.1f}" y="{box.y + air:.1f}" width="{width:.1f}" height="{height:.1f}"'


def label(text: str, box: Box, style: str) -> str:
    """Write a text into the corner of a box, shortened to fit; nothing where not even four letters would."""
    letters = int((box.width - 8) / 7.2)
    if box.height < 15 or letters < min(4, len(text)):
        return ""
    shown = text if len(text) <= letters else text[: letters - 1] + "\u2026"
    return f'<text x="{box.x + 4:.1f}" y="{box.y + 12.5:.1f}" class="{style}">{escape(shown)}</text>'


class Section(NamedTuple):
    """A part of the report: some words above a table."""

    title: str
    note: str
    rows: list[Row]


def report_sections(hot: dict[str, Any], loops: list[Row], findings: list[Row]) -> list[Section]:
    """Arrange what was found; the first section is the headline."""
    kinds = Counter(each["finding"] for each in findings)
    counted = ", ".join(f"{count:,} \u00d7 {kind}" for kind, count in reversed(kinds.most_common()))
    rarest_first = sorted(findings, key=lambda each: (kinds[each["finding"]], each["finding"], place_of(each["where"])))
    return [
        Section("In all", "", [hot["totals"]] if hot["totals"]["files"] else []),
        Section("Functions", "Those with the most independent paths, the hardest to test and to change.", hot["functions"]),
        Section("Packages", "By lines; a long function has more than 60.", hot["packages"]),
        Section("Import cycles", "Modules that import each other when loaded; the loop is that through the first of them.", loops),
        Section("Findings", f"{counted}; the rarest first.", rarest_first),
    ]


def place_of(where: str) -> tuple[str, int]:
    """Return the path and the line of a place, so that line 9 is sorted before line 10."""
    path, _, line = where.rpartition(":")
    return (path, int(line)) if path and line.isdecimal() else (where, 0)


def as_markdown(title: str, sections: list[Section]) -> str:
    """Write the report as Markdown, with the picture beside it."""
    blocks = [f"# {title}", "![The files by size and complexity](audit.svg)"]
    for section in sections:
        table = [section.rows[0], ["---"] * len(section.rows[0]), *(row.values() for row in section.rows)] if section.rows else []
        rows = ["| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in table]
        blocks += [f"## {section.title}", section.note if rows else "None.", "\n".join(rows)]
    return "\n\n".join(filter(None, blocks)) + "\n"


PAGE_STYLE = """:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6673;--paper:#fff;--card:#f4f6f8;--rule:#dde2e8}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ed;--soft:#9aa5b1;--paper:#14181d;--card:#1d232a;--rule:#2f3842}}
body{margin:0 auto;max-width:1240px;padding:24px;background:var(--paper);color:var(--ink)}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}svg{width:100%;height:auto;margin:24px 0 0}
h1{font-size:26px;margin:0 0 16px}h2{font-size:18px;margin:36px 0 0}p{margin:2px 0 10px;color:var(--soft)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(125px,1fr));gap:12px}.figures span{color:var(--soft)}
.figures div{background:var(--card);border-radius:8px;padding:10px 14px}.figures b{display:block;font-size:22px}
.table{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:14px}th{color:var(--soft);font-weight:500}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--rule);vertical-align:top}td{overflow-wrap:anywhere}
th:first-letter{text-transform:uppercase}.number{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums;width:1%}"""


def as_html(title: str, sections: list[Section], svg: str) -> str:
    """Write the report as one page that needs nothing else."""
    headline, *tables = sections
    figures = "".join(f"<div><b>{value:,}</b><span>{name}</span></div>" for row in headline.rows for name, value in row.items())
    figures = f'<div class="figures">{figures}</div>' if figures else "<p>There is no Python file.</p>"
    body = "\n".join(f"<h2>{section.title}</h2>{html_table(section)}" for section in tables)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    top = f"<style>{PAGE_STYLE}</style>\n<h1>{escape(title)}</h1>{figures}"
    return f'<!doctype html><html lang="en">{head}{top}\n{svg}\n{body}</html>\n'


def html_table(section: Section) -> str:
    """Write a section's words and its first rows as a table, numbers to the right, and where the others are."""
    rows, more = section.rows[:ROWS_ON_THE_PAGE], len(section.rows) - ROWS_ON_THE_PAGE
    if not rows:
        return "<p>None.</p>"
    styles = ["" if isinstance(cell, str) else ' class="number"' for cell in rows[0].values()]
    head = "".join(f"<th{style}>{name}</th>" for style, name in zip(styles, rows[0], strict=True))
    cells = (
        [escape(cell) if isinstance(cell, str) else f"{cell:,.2f}" if isinstance(cell, float) else f"{cell:,}" for cell in row.values()]
        for row in rows
    )
    body = ("".join(f"<td{style}>{cell}</td>" for style, cell in zip(styles, row, strict=True)) for row in cells)
    table = f'<div class="table"><table><tr>{head}</tr>{"".join(f"<tr>{row}</tr>" for row in body)}</table></div>'
    rest = f'<p>and {more:,} more, all of them in <a href="audit.md">audit.md</a></p>' if more > 0 else ""
    return f"<p>{escape(section.note)}</p>{table}{rest}"
