"""An audit of a Python source tree: thousands of files measured in parallel on Ray, durable to the last file.

    find ─▶ measure (a map: each file is a step of its own) ─┬─▶ cycles ───┐
                                                             ├─▶ hotspots ─┼─▶ report
                                                             └─▶ picture ──┘

`make demo` audits the installed `ray` package; `gecko run examples/audit.py:flow --input '{"path": "src"}'` audits your own tree.
Kill it at any moment and run it again: what was measured is not measured again. Nothing that is audited is ever imported or run.
"""

import argparse
import ast
import asyncio
import importlib
import importlib.util
import io
import logging
import math
import os
import re
import signal
import sys
import time
import tokenize
import warnings
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from engine import Context, Event, Workflow
from engine.errors import GeckoError

Row = dict[str, str | int | float]
"""A row of a table in the report, column name to cell."""


class File(TypedDict):
    """A file to measure: its path below the root of the tree, and its name as a module."""

    path: str
    module: str


class Measured(TypedDict):
    """What is known of one file; `paths` counts the independent paths of each function, so a straight one has 1."""

    path: str
    module: str
    bytes: int
    lines: int
    paths: list[int]
    worst: list[Row]
    long: int
    todos: int


def find(request: dict[str, str] | None, ctx: Context) -> list[File]:
    """List the Python files below `request["path"]`; each becomes a step of `measure`."""
    root = source_root(request or {})
    ctx.state["root"] = str(root)
    return list_files(root)


def measure(file: File, ctx: Context) -> Measured:
    """Measure one file. Many run at once without a lock: each writes to a state of its own, and the reducers below combine them."""
    measured, imports, findings = measure_file(Path(ctx.state["root"]), file)
    ctx.state["lines"] = ctx.state.get("lines", 0) + measured["lines"]
    ctx.state["imports"] = ctx.state.get("imports", {}) | {file["module"]: imports}
    if findings:
        ctx.state["findings"] = ctx.state.get("findings", []) + findings
    return measured


def cycles(files: list[Measured], ctx: Context) -> list[Row]:
    """Find the groups of modules that import each other, largest first."""
    graph = import_graph([file["module"] for file in files], ctx.state.get("imports", {}))
    groups = sorted((sorted(group) for group in strong_components(graph) if len(group) > 1), key=lambda group: (-len(group), group))
    return [{"modules": len(group), "shortest loop": " \u2192 ".join(shortest_loop(graph, group))} for group in groups]


def hotspots(files: list[Measured]) -> dict[str, Any]:
    """Rank packages by size, and functions by how hard they are to test."""
    packages: dict[str, list[Measured]] = defaultdict(list)
    for file in files:
        folder, _, below = file["path"].partition("/")
        packages[folder if below else "."].append(file)
    pages = report_module()
    rows = [{"package": name} | pages.totals(group) for name, group in packages.items()]
    functions = [function for file in files for function in file["worst"]]
    return {
        "totals": pages.totals(files),
        "packages": sorted(rows, key=lambda row: -row["lines"]),
        "functions": sorted(functions, key=lambda function: (-function["paths"], pages.place_of(function["where"])))[:20],
    }


def picture(files: list[Measured], ctx: Context) -> str:
    """Draw the tree as SVG: every file a tile, as large as its lines and as warm as its functions are complex."""
    return report_module().draw(files, title=Path(ctx.state["root"]).name)


def report(parts: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Write Markdown, HTML and SVG into `audit-report` under the input's `out` (default `report`)."""
    folder = Path((ctx.input or {}).get("out", "report"), "audit-report").absolute()
    title = f"Audit of {Path(ctx.state['root']).name}"
    findings = ctx.state.get("findings", [])
    pages = report_module()
    sections = pages.report_sections(parts["hotspots"], parts["cycles"], findings)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "audit.svg").write_text(parts["picture"], encoding="utf-8")
    (folder / "audit.md").write_text(pages.as_markdown(title, sections), encoding="utf-8")
    (folder / "audit.html").write_text(pages.as_html(title, sections, parts["picture"]), encoding="utf-8")
    counts = {"files": parts["hotspots"]["totals"]["files"], "lines": ctx.state.get("lines", 0)}
    return {"report": str(folder / "audit.html"), **counts, "findings": len(findings), "cycles": len(parts["cycles"])}


flow = (
    Workflow("audit", reducers={"lines": "add", "imports": "merge", "findings": "extend"})
    .add_node("find", find)
    .add_map("measure", measure)
    .add_node("cycles", cycles)
    .add_node("hotspots", hotspots)
    .add_node("picture", picture)
    .add_node("report", report, join="all")
    .add_edge("find", "measure")
    .add_edge("measure", "cycles")
    .add_edge("measure", "hotspots")
    .add_edge("measure", "picture")
    .add_edge("cycles", "report")
    .add_edge("hotspots", "report")
    .add_edge("picture", "report")
    .set_entry_point("find")
)

# What follows is plain Python that knows no engine: finding, measuring, cycles; last comes the demo.

LONG_FUNCTION = 60  # lines
TOO_LARGE_TO_PARSE = 5_000_000  # characters
SKIPPED_FOLDERS = {"__pycache__", "node_modules", "site-packages"}
TODO = re.compile(r"#.*?\b(?:TODO|FIXME)\b.*")
UNMEASURABLE = (OSError, SyntaxError, ValueError, LookupError, RecursionError, MemoryError)
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)


def report_module() -> ModuleType:
    """Import `audit_report.py` from beside this file, also in a worker that received this file's functions as values."""
    folder = str(Path(__file__).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module("audit_report")


def source_root(request: Any) -> Path:
    """Return the folder to audit; without a path, the installed `ray` package.

    Raises:
        ValueError: There is no such folder, or the input asks for something else.
    """
    if not isinstance(request, dict) or not request.keys() <= {"path", "out"}:
        raise ValueError(f'the audit takes {{"path": a folder, "out": a folder}}, each of them optional, not {request!r}')
    path = request.get("path")
    if path is None:
        spec = importlib.util.find_spec("ray")
        if spec is None or not spec.submodule_search_locations:
            raise ValueError('nothing to audit: `ray` is not installed here; name a folder, as in {"path": "src"}')
        path = spec.submodule_search_locations[0]
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ValueError(f"cannot audit {str(path)!r}: {'it is a file, pass its folder' if root.exists() else 'there is no such folder'}")
    return root.resolve()


def list_files(root: Path) -> list[File]:
    """List the Python files below a folder, sorted by path, without hidden folders, caches and virtual environments."""
    paths: list[Path] = []
    packages = set(takewhile(lambda folder: (folder / "__init__.py").is_file(), [root, *root.parents]))
    for place, folders, files in os.walk(root):  # follows no links, so a loop of links ends
        folder = Path(place)
        if "__init__.py" in files:
            packages.add(folder)
        kept = (name for name in folders if not name.startswith(".") and name not in SKIPPED_FOLDERS)
        folders[:] = [name for name in kept if not (folder / name / "pyvenv.cfg").exists()]
        # is_file() says no to a pipe, whose reading would never end, and to a link that leads nowhere.
        paths += [folder / name for name in files if name.endswith(".py") and not name.startswith(".") and (folder / name).is_file()]
    listed: dict[str, File] = {}
    for path in sorted(paths):
        below = path.relative_to(root)
        outermost = [folder for folder in path.parents if folder in packages][-1:]
        module = dotted(path.relative_to(outermost[0].parent) if outermost else below)
        if module in listed:  # two packages `tests`, say: the second goes by its path
            module = dotted(below)
        # A name that is no text could not be logged; its file is then reported as unreadable.
        listed[module] = File(path=below.as_posix().encode(errors="replace").decode(), module=module.encode(errors="replace").decode())
    return list(listed.values())


def dotted(path: Path) -> str:
    """Name a file as an import would."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def measure_file(root: Path, file: File) -> tuple[Measured, list[str], list[Row]]:
    """Measure one file: what is known of it, the modules it imports, and what is wrong with it. Never raises for its content."""
    path, findings = file["path"], []
    measured = Measured(path=path, module=file["module"], bytes=0, lines=0, paths=[], worst=[], long=0, todos=0)
    try:
        content = (root / path).read_bytes()
        measured["bytes"], measured["lines"] = len(content), len(content.splitlines())
        text = decode(content)
        for match in TODO.finditer(text):
            findings.append(finding(path, text.count("\n", 0, match.start()) + 1, "to do", match[0].lstrip("# ").rstrip()[:120]))
        measured["todos"] = len(findings)
        tree = parse(text)
    except UNMEASURABLE as error:
        return measured, [], [*findings, finding_of(error, path)]
    functions = sorted(functions_of(tree, path), key=lambda function: -function["paths"])
    long = [function for function in functions if function["lines"] > LONG_FUNCTION]
    findings += [finding(each["where"], 0, "long function", f"{each['function']}, {each['lines']} lines") for each in long]
    measured |= {"paths": [function["paths"] for function in functions], "worst": functions[:5], "long": len(long)}
    return measured, imports_of(tree, file["module"], is_package=path.endswith("__init__.py")), findings


def decode(content: bytes) -> str:
    """Decode a file as Python would, by its mark or its coding comment."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
    except SyntaxError as error:
        raise UnicodeError(error.msg) from error
    return content.decode(encoding)


def parse(text: str) -> ast.Module:
    """Parse a file of any quality; what the parser has to say of its style is not for our log."""
    if len(text) > TOO_LARGE_TO_PARSE:
        raise ValueError(f"more than {TOO_LARGE_TO_PARSE:,} characters")
    warnings.filterwarnings("ignore", module="<audited>")
    return ast.parse(text, filename="<audited>")


def finding(path: str, line: int, kind: str, what: str) -> Row:
    """Make a row of the table of findings; half a surrogate pair, which some encodings let through, is no storable text."""
    return {"finding": kind, "where": f"{path}:{line}" if line else path, "what": what.encode(errors="replace").decode()}


def finding_of(error: Exception, path: str) -> Row:
    """Turn what stopped a measurement into a finding."""
    match error:
        case UnicodeError() | LookupError():
            return finding(path, 0, "undecodable", str(error))
        case SyntaxError():
            return finding(path, error.lineno or 0, "syntax error", error.msg)
        case OSError():
            return finding(path, 0, "unreadable", error.strerror or type(error).__name__)
        case _:
            return finding(path, 0, "not parsed", str(error) or type(error).__name__)


def functions_of(tree: ast.AST, path: str) -> list[Row]:
    """List all functions and methods with their lines and independent paths; a nested one counts for itself alone."""
    functions: list[Row] = []
    pending: list[tuple[ast.AST, str, Row | None]] = [(tree, "", None)]
    while pending:
        node, scope, owner = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            owner = {"paths": 1, "lines": lines, "function": scope + node.name, "where": f"{path}:{node.lineno}"}
            functions.append(owner)
            scope += f"{node.name}."
        elif isinstance(node, ast.ClassDef):
            scope += f"{node.name}."
        elif owner is not None:
            owner["paths"] += paths_added_by(node)
        pending += [(child, scope, owner) for child in ast.iter_child_nodes(node)]
    return functions


def paths_added_by(node: ast.AST) -> int:
    """Count the paths that one syntax node adds to its function: McCabe's measure, with `and`, `or` and comprehensions."""
    if isinstance(node, BRANCHES):
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    return 1 + len(node.ifs) if isinstance(node, ast.comprehension) else 0


def imports_of(tree: ast.Module, module: str, *, is_package: bool) -> list[str]:
    """List what importing this module imports, as dotted names; an import inside a function or for type checkers ties no knot."""
    imported: set[str] = set()
    package = module.split(".") if is_package else module.split(".")[:-1]
    pending: list[ast.AST] = list(tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = above + (node.module.split(".") if node.module else [])
            imported.update(".".join([*source, alias.name] if alias.name != "*" else source) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in (getattr(node.test, "id", ""), getattr(node.test, "attr", "")):
            pending += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for block in ("body", "orelse", "handlers", "finalbody", "cases"):
                pending += getattr(node, block, [])
    return sorted(imported)


def import_graph(modules: Iterable[str], imports: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Say which modules of the tree each one imports: a dotted name stands for its longest beginning that is a module."""
    graph: dict[str, list[str]] = {module: [] for module in modules}
    for module in graph:
        targets: set[str] = set()
        for name in imports.get(module, []):
            while name and name not in graph:
                name = name.rpartition(".")[0]
            targets.add(name)
        graph[module] = sorted(targets - {"", module})
    return graph


def strong_components(graph: Mapping[str, list[str]]) -> Iterator[list[str]]:
    """Yield the groups of nodes that reach each other: Tarjan's algorithm, on a stack of its own since import chains are deep."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    ungrouped: dict[str, None] = {}  # a set that remembers its order
    for start in graph:
        walk = [] if start in order else [(start, iter(graph[start]))]
        while walk:
            node, targets = walk[-1]
            if node not in order:
                order[node] = lowest[node] = len(order)
                ungrouped[node] = None
            for target in targets:
                if target not in order:
                    walk.append((target, iter(graph[target])))
                    break
                if target in ungrouped:
                    lowest[node] = min(lowest[node], lowest[target])
            else:
                walk.pop()
                for parent, _ in walk[-1:]:
                    lowest[parent] = min(lowest[parent], lowest[node])
                if lowest[node] == order[node]:
                    group: list[str] = []
                    while not group or group[-1] != node:
                        group.append(ungrouped.popitem()[0])
                    yield group


def shortest_loop(graph: Mapping[str, list[str]], group: list[str]) -> list[str]:
    """Return the shortest way from the first module of a group, along its imports, back to itself."""
    start, members = group[0], set(group)
    came_from: dict[str, str] = {}
    queue = deque([start])
    while start not in came_from:
        node = queue.popleft()
        for target in graph[node]:
            if target in members and target not in came_from:
                came_from[target] = node
                queue.append(target)
    loop = [start, came_from[start]]
    while loop[-1] != start:
        loop.append(came_from[loop[-1]])
    return loop[::-1]


class Board:
    """Shows how far each node is: bars on a terminal, a line a second elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = SpinnerColumn(), TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self.console = console
        self.bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self.nodes: dict[str, TaskID] = {}
        self.starting = console.status("Ray starts on this machine, which takes some seconds")
        self.said = time.monotonic()

    def wait(self) -> None:
        """Say what takes so long."""
        if self.console.is_terminal:
            self.starting.start()
        else:
            self.console.print(self.starting.status)

    def take(self, event: Event) -> None:
        """Count what an event tells."""
        is_file = event.step_id.count("/") == 3  # run/node/pass/index: an item of the map, which is a step of its own
        if event.kind == "step_started" and not is_file and event.node not in self.nodes:
            self.nodes[event.node] = self.bars.add_task(event.node, total=event.data.get("items", 1))
        elif event.kind == "step_succeeded":
            node = self.bars.tasks[self.nodes[event.node]]
            self.bars.update(node.id, completed=node.completed + 1 if is_file else node.total)

    def show(self, node: str) -> None:
        """Show what is counted, and elsewhere than on a terminal the node at work."""
        self.starting.stop()
        self.bars.start()
        if self.bars.disable and node and time.monotonic() >= self.said + 1:
            self.said = time.monotonic()
            self.console.print("{} {:,} of {:,}".format(node, *self.count(node)), highlight=False)

    def count(self, node: str) -> tuple[int, int]:
        """Return how much of a node is done, and of how much."""
        task = self.bars.tasks[self.nodes[node]] if node in self.nodes else None
        return (int(task.completed), int(task.total or 0)) if task else (0, 0)


async def demo(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run the audit before our eyes, say how to kill and continue it and where everything is, and return its answer."""
    request = {key: value for key, value in (("path", options.path), ("out", options.out)) if value}
    say = partial(console.print, highlight=False, soft_wrap=True)
    began, board, is_ours, before, answer = datetime.now(UTC), Board(console), False, 0, None
    waiting = asyncio.get_running_loop().call_later(1.0, board.wait)
    try:
        async for event in flow.stream(request or None, session_id=options.session, executor=options.executor, new=options.new):
            waiting.cancel()
            board.take(event)
            done, files = board.count("measure")
            if event.kind == "run_completed":
                answer, run_id, finished = event.data["output"], event.run_id, event.at
            if event.kind in ("run_started", "run_resumed") and event.at >= began:
                is_ours, before = True, done
                said = f"goes on: {done:,} of {files:,} files were measured before" if files else "starts"
                say(f"Run [bold]{event.run_id}[/bold] {said}. Its log is in {escape(options.log)}")
                say(f"Try it: [bold]kill -9 {os.getpid()}[/bold] in another terminal, or Ctrl-C here; the same command goes on.\n")
            if is_ours:  # the log tells first what an earlier process did
                board.show(event.node)
            if is_ours and files and done >= options.kill_at * files:
                say(f"{done:,} of {files:,} files are measured: this process kills itself now, and the same command goes on.")
                os.kill(os.getpid(), signal.SIGKILL)
    finally:
        waiting.cancel()
        board.starting.stop()
        board.bars.stop()
    if answer is None:
        raise GeckoError(f"session {options.session!r} did not finish; run the same command again and it goes on")
    if not is_ours:
        say(f"Run [bold]{run_id}[/bold] finished already, at {finished.astimezone():%Y-%m-%d %H:%M:%S}; this is its answer.")
    elif before:
        say(f"\n{done - before:,} files were measured now, {before:,} before.")
    figures = (f"{value:,} {name if value != 1 else name.removesuffix('s')}" for name, value in answer.items() if name != "report")
    say(f"\n{', '.join(figures)}\n")
    say(f"Report  [bold]{escape(answer['report'])}[/bold]\nLog     {escape(options.log)}")
    say(f"Run     {run_id}, which [bold]{escape(options.gecko)} runs show {run_id}[/bold] shows")
    say("Again   [bold]make demo NEW=1[/bold], or [bold]make demo NEW=1 KILL=0.9[/bold] and [bold]make demo[/bold] to see it go on")
    return answer


def main() -> int:
    """Read the command line and run the demo."""
    parser = argparse.ArgumentParser(description="Audit a Python source tree with Gecko on Ray.")
    parser.add_argument("--path", type=os.path.abspath, help="the folder to audit (default: the installed ray package)")
    parser.add_argument("--out", type=os.path.abspath, help="where to put the folder audit-report (default: ./report)")
    parser.add_argument("--session", default="demo", help="the name under which the run goes on")
    parser.add_argument("--new", action="store_true", help="start again, though the session has a finished run")
    parser.add_argument("--executor", choices=("ray", "inline"), default="ray")
    parser.add_argument("--kill-at", type=float, default=math.inf, metavar="SHARE", help="kill -9 this process when that share is measured")
    parser.set_defaults(log=os.path.abspath(".gecko"), gecko=os.path.relpath(Path(sys.executable).with_name("gecko")))
    console = Console()
    logging.getLogger("engine.runtime.session").setLevel(logging.ERROR)  # that a run had finished is said by the demo
    try:
        asyncio.run(demo(parser.parse_args(), console))
    except KeyboardInterrupt:
        console.print("\nStopped. The same command goes on where it stopped.")
        return 130
    except GeckoError as error:
        console.print(f"[red]{type(error).__name__}[/red]: {escape(str(error))}", highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
