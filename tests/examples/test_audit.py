"""The audit's pure parts on small trees: what it finds, how it measures, which loops it sees, what it draws.

Nodes are called as the plain functions they are; that the whole runs and resumes is shown by the tests that drive an engine.
"""

import importlib.util
import io
import itertools
import os
import pickle
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from engine.core.events import Event
from engine.errors import GeckoError, StepFailed

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "audit.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit_by_path", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def audit() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        yield load()


def write(root: Path, **files: str | bytes) -> Path:
    """Write files below a folder; `__` in a name is a slash, and `.py` is added."""
    for name, content in files.items():
        path = root / (name.replace("__", "/").replace("/init", "/__init__") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def perform(audit: ModuleType, root: Path, out: Path) -> dict[str, Any]:
    """Call the nodes one after the other, as a driver without storage would; return state and answers."""
    ctx = SimpleNamespace(state={}, input={"path": str(root), "out": str(out)})
    measured = [audit.measure(file, ctx) for file in audit.find(ctx.input, ctx)]
    parts = {"cycles": audit.cycles(measured, ctx), "hotspots": audit.hotspots(measured), "picture": audit.picture(measured, ctx)}
    return {**parts, "state": ctx.state, "measured": measured, "answer": audit.report(parts, ctx)}


def measure_text(audit: ModuleType, folder: Path, content: str | bytes) -> tuple[Any, list[str], list[Any]]:
    write(folder, one=content)
    return audit.measure_file(folder, {"path": "one.py", "module": "one"})


def listed(audit: ModuleType, root: Path) -> dict[str, str]:
    return {file["path"]: file["module"] for file in audit.list_files(root)}


def test_files_are_listed_sorted_and_named_as_an_import_would(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, src__pkg__init="", src__pkg__b="", src__pkg__a="", src__pkg__deep__init="", tool="")
    assert list(listed(audit, tmp_path).items()) == [
        ("src/pkg/__init__.py", "pkg"),
        ("src/pkg/a.py", "pkg.a"),
        ("src/pkg/b.py", "pkg.b"),
        ("src/pkg/deep/__init__.py", "pkg.deep"),
        ("tool.py", "tool"),
    ]


def test_a_folder_inside_a_package_keeps_the_package_in_its_names(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, pkg__init="", pkg__sub__init="", pkg__sub__x="")
    assert listed(audit, tmp_path / "pkg" / "sub") == {"__init__.py": "pkg.sub", "x.py": "pkg.sub.x"}


def test_two_packages_of_one_name_stay_two(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, a__tests__init="", b__tests__init="")
    assert listed(audit, tmp_path) == {"a/tests/__init__.py": "tests", "b/tests/__init__.py": "b.tests"}


def test_hidden_folders_caches_and_virtual_environments_are_left_out(audit: ModuleType, tmp_path: Path) -> None:
    for folder in (".hidden", "__pycache__", "node_modules", "own-venv", "kept"):
        write(tmp_path / folder, x="")
    (tmp_path / "own-venv" / "pyvenv.cfg").touch()
    write(tmp_path, **{".dotted": "", "notes": ""})
    (tmp_path / "notes.txt").touch()
    assert list(listed(audit, tmp_path)) == ["kept/x.py", "notes.py"]


def test_links_in_a_loop_and_pipes_are_passed_over(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, pkg__x="")
    (tmp_path / "pkg" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "itself.py").symlink_to(tmp_path / "itself.py")
    (tmp_path / "nowhere.py").symlink_to(tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe.py")
    assert list(listed(audit, tmp_path)) == ["pkg/x.py"]


def test_a_name_that_is_no_text_is_reported_as_unreadable(audit: ModuleType, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.py")).touch()
    (file,) = audit.list_files(tmp_path)
    assert file["path"] == "?.py"
    assert audit.measure_file(tmp_path, file)[2] == [{"finding": "unreadable", "where": "?.py", "what": "No such file or directory"}]


def test_a_bad_path_is_refused_by_name(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, x="")
    with pytest.raises(ValueError, match="'/no/such': there is no such folder"):
        audit.source_root({"path": "/no/such"})
    with pytest.raises(ValueError, match="it is a file, pass its folder"):
        audit.source_root({"path": str(tmp_path / "x.py")})
    for request in ("src", {"paths": "src"}):
        with pytest.raises(ValueError, match="the audit takes"):
            audit.source_root(request)


def test_without_a_path_the_installed_ray_package_is_audited(audit: ModuleType) -> None:
    assert (audit.source_root({}) / "__init__.py").is_file()
    assert audit.source_root({}).name == "ray"


def test_paths_are_counted_per_function_and_nested_ones_for_themselves(audit: ModuleType, tmp_path: Path) -> None:
    source = """
class Box:
    def outer(self, xs):
        def inner(y):
            return 1 if y else 2
        if xs and self or len(xs):
            return [x for x in xs if x if inner(x)]
        while True:
            try:
                match xs:
                    case []: break
                    case _: pass
            except OSError:
                pass

async def straight(): return 1
"""
    measured, _, findings = measure_text(audit, tmp_path, source)
    # outer: 1, `if` 1, `and` 1, `or` 1, the comprehension 1 with two conditions 2, `while` 1, two cases 2, `except` 1
    assert [(each["function"], each["paths"]) for each in measured["worst"]] == [("Box.outer", 11), ("Box.outer.inner", 2), ("straight", 1)]
    assert measured["paths"] == [11, 2, 1]
    assert measured["worst"][0]["where"] == "one.py:3"
    assert findings == []


def test_long_functions_and_to_dos_are_findings(audit: ModuleType, tmp_path: Path) -> None:
    source = "def f():  # TODO(ann): shorten\n" + "    x = 1\n" * 60 + "def g():\n" + "    x = 1\n" * 59 + "y = 'TODO'  # fine\n"
    measured, _, findings = measure_text(audit, tmp_path, source)
    assert (measured["long"], measured["todos"], measured["lines"]) == (1, 1, 122)
    assert findings == [
        {"finding": "to do", "where": "one.py:1", "what": "TODO(ann): shorten"},
        {"finding": "long function", "where": "one.py:1", "what": "f, 61 lines"},
    ]


@pytest.mark.parametrize(
    ("content", "kinds"),
    [
        ("def broken(:\n", {"syntax error"}),
        (b"x = '\xff'\n", {"undecodable"}),
        (b"x = 1\n" * 9 + b"x = '\xff'\n", {"undecodable"}),
        (b"# coding: latin-nine\n", {"undecodable"}),
        (b"# coding: hex\n", {"undecodable"}),
        ("x = " + "(" * 300 + ")" * 300, {"syntax error"}),
        ("x = " + "-" * 20_000 + "1", {"not parsed"}),
        (b"x = 1\0\n", {"syntax error", "not parsed"}),  # by version of Python
    ],
)
def test_a_file_that_cannot_be_parsed_is_a_finding(audit: ModuleType, tmp_path: Path, content: str | bytes, kinds: set[str]) -> None:
    measured, imports, findings = measure_text(audit, tmp_path, content)
    assert [each["finding"] in kinds for each in findings] == [True]
    assert imports == []
    assert measured["bytes"] == len(content)


def test_texts_of_findings_can_always_be_stored(audit: ModuleType, tmp_path: Path) -> None:
    findings = measure_text(audit, tmp_path, b"# coding: unicode_escape\n# TODO \\ud800!\n")[2]
    assert findings[0]["what"] == "TODO ?!"


def test_a_file_that_vanished_is_a_finding(audit: ModuleType, tmp_path: Path) -> None:
    findings = audit.measure_file(tmp_path, {"path": "gone.py", "module": "gone"})[2]
    assert findings == [{"finding": "unreadable", "where": "gone.py", "what": "No such file or directory"}]


def test_a_file_in_another_encoding_is_read_in_it(audit: ModuleType, tmp_path: Path) -> None:
    measured, _, findings = measure_text(audit, tmp_path, "# coding: latin-1\ndef \xe9t\xe9(): pass\n".encode("latin-1"))
    assert [each["function"] for each in measured["worst"]] == ["\xe9t\xe9"]
    assert findings == []


def test_ten_thousand_lines_are_measured(audit: ModuleType, tmp_path: Path) -> None:
    measured, _, _ = measure_text(audit, tmp_path, "x = 1\n" * 9_998 + "def f():\n    return x\n")
    assert (measured["lines"], measured["paths"]) == (10_000, [1])


def test_a_file_too_large_to_parse_still_has_its_size(audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "TOO_LARGE_TO_PARSE", 10)
    measured, _, findings = measure_text(audit, tmp_path, "x = 1\n" * 5)
    assert measured["lines"] == 5
    assert findings == [{"finding": "not parsed", "where": "one.py", "what": "more than 10 characters"}]


def test_warnings_of_the_parser_stop_nothing(audit: ModuleType, tmp_path: Path) -> None:
    assert measure_text(audit, tmp_path, "x = '\\d'\n")[2] == []


def test_imports_are_resolved_and_those_that_tie_no_knot_are_left_out(audit: ModuleType, tmp_path: Path) -> None:
    source = """
import os.path, json as j
from . import near
from .near import thing
from ..above.deep import *
from ...... import too_far
if typing.TYPE_CHECKING:
    import for_types
else:
    import at_run_time
try:
    import tried
except ImportError:
    import instead
class C:
    import in_class
def f():
    import late
"""
    write(tmp_path, a__b__m=source)
    imports = audit.measure_file(tmp_path, {"path": "a/b/m.py", "module": "a.b.m"})[1]
    expected = "a.above.deep a.b.near a.b.near.thing at_run_time in_class instead json os.path too_far tried"
    assert imports == expected.split()


def test_in_a_package_one_dot_is_the_package_itself(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, p__init="from .x import y\n")
    assert audit.measure_file(tmp_path, {"path": "p/__init__.py", "module": "p"})[1] == ["p.x.y"]


def test_an_import_cycle_is_found_with_its_shortest_loop(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, p__init="", p__a="from p import b\nimport p.c", p__b="from .c import f", p__c="import p.a", p__alone="import p.a")
    result = perform(audit, tmp_path, tmp_path / "out")
    assert result["cycles"] == [{"modules": 3, "shortest loop": "p.a \u2192 p.c \u2192 p.a"}]


def test_a_chain_of_imports_deeper_than_the_stack_is_searched(audit: ModuleType) -> None:
    chain = {str(i): [str(i + 1)] for i in range(20_000)} | {"20000": ["0"]}
    (group,) = audit.strong_components(chain)
    assert len(group) == 20_001


@settings(max_examples=50)
@given(targets=st.lists(st.lists(st.integers(0, 7), max_size=4), min_size=8, max_size=8))
def test_components_are_exactly_the_nodes_that_reach_each_other(audit: ModuleType, targets: list[list[int]]) -> None:
    graph = {str(node): [str(target) for target in sorted(set(found))] for node, found in enumerate(targets)}
    reach = {node: reachable(graph, node) for node in graph}
    expected = {frozenset(other for other in graph if other in reach[node] and node in reach[other]) for node in graph}
    found = [frozenset(group) for group in audit.strong_components(graph)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


def reachable(graph: dict[str, list[str]], start: str) -> set[str]:
    seen, pending = {start}, [start]
    while pending:
        new = set(graph[pending.pop()]) - seen
        seen |= new
        pending += new
    return seen


def test_the_state_adds_up_to_the_measured_files(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, a="import b\n", b="# FIXME now\nx = 1\n", c="def f(:\n")
    result = perform(audit, tmp_path, tmp_path / "out")
    assert result["state"]["lines"] == result["hotspots"]["totals"]["lines"] == 4
    assert result["state"]["imports"] == {"a": ["b"], "b": [], "c": []}
    assert [each["finding"] for each in result["state"]["findings"]] == ["to do", "syntax error"]


def test_packages_and_functions_are_ranked(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, small__x="x = 1\n", large__x="def f(y):\n    return 1 if y else 2\n", top="")
    hot = perform(audit, tmp_path, tmp_path / "out")["hotspots"]
    assert [row["package"] for row in hot["packages"]] == ["large", "small", "."]
    assert [row["function"] for row in hot["functions"]] == ["f"]
    assert hot["totals"]["mean paths"] == 2.0


def test_the_report_holds_hostile_names_and_texts_harmless(audit: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "<b>|&'.py").write_text("# TODO <script>alert(1)</script> | `x`\ndef f(): pass\n" * 30)
    answer = perform(audit, tmp_path / "in", tmp_path / "out")["answer"]
    folder = Path(answer["report"]).parent
    assert "<script" not in (folder / "audit.html").read_text()
    titles = [element.text or "" for element in xml.parse(folder / "audit.svg").iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("<b>|&'.py\n60 lines") for title in titles)
    table = [line for line in (folder / "audit.md").read_text().splitlines() if line.startswith("| to do")]
    assert all(line.replace("\\|", "").count("|") == 4 for line in table)
    assert len(table) == 30


def test_findings_are_sorted_by_kind_path_and_line_and_the_page_says_where_the_others_are(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "in", a="# TODO x\n" * 70, b="def f(:\n", **{"a:1": "# TODO y\n"})
    answer = perform(audit, tmp_path / "in", tmp_path / "out")["answer"]
    folder = Path(answer["report"]).parent
    table = [line.split(" | ")[1] for line in (folder / "audit.md").read_text().splitlines() if " | " in line and ".py:" in line]
    assert table == ["b.py:1", *(f"a.py:{line}" for line in range(1, 71)), "a:1.py:1"]
    page = (folder / "audit.html").read_text()
    assert page.count("<td>to do</td>") == 59
    assert 'and 12 more, all of them in <a href="audit.md">audit.md</a>' in page
    assert page.count(" more, all of them") == 1


def test_functions_that_are_alike_are_sorted_by_line(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, a="\n" * 8 + "def f(x): return 1 if x else 2\n" * 3)
    functions = perform(audit, tmp_path, tmp_path / "out")["hotspots"]["functions"]
    assert [row["where"] for row in functions] == ["a.py:9", "a.py:10", "a.py:11"]


def test_an_empty_tree_is_reported_as_empty(audit: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = perform(audit, tmp_path / "in", tmp_path / "out")
    assert result["answer"] == {"report": str(tmp_path / "out/audit-report/audit.html"), "files": 0, "lines": 0, "findings": 0, "cycles": 0}
    assert (tmp_path / "out/audit-report/audit.md").read_text().count("\n\nNone.\n") == 5
    assert "There is no Python file." in (tmp_path / "out/audit-report/audit.html").read_text()
    assert {path.name for path in (tmp_path / "out/audit-report").iterdir()} == {"audit.html", "audit.md", "audit.svg"}


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=30), width=st.floats(20, 2_000), height=st.floats(20, 2_000))
def test_tiles_fill_their_box_in_proportion_and_never_overlap(audit: ModuleType, sizes: list[int], width: float, height: float) -> None:
    report = audit.report_module()
    sizes.sort(reverse=True)
    tiles = list(report.squarified(sizes, report.Box(5, 7, width, height)))
    for size, tile in zip(sizes, tiles, strict=True):
        assert tile.width * tile.height == pytest.approx(size / sum(sizes) * width * height, rel=1e-6)
        assert min(tile.x - 5, tile.y - 7, 5 + width - tile.x - tile.width, 7 + height - tile.y - tile.height) >= -1e-6
    for index, one in enumerate(tiles):
        for other in tiles[index + 1 :]:
            across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
            down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
            assert across < 1e-6 or down < 1e-6


def test_every_file_of_a_small_tree_has_a_tile_in_its_colour(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, calm="def f(): pass\n", none="x = 1\n", pkg__hot="def f(x):\n" + "    if x: pass\n" * 20)
    picture = xml.fromstring(perform(audit, tmp_path, tmp_path / "out")["picture"])
    fills = {
        (group[0].text or "").splitlines()[0]: group[1].get("fill")
        for group in picture.iter("{http://www.w3.org/2000/svg}g")
        if len(group) > 1
    }
    assert fills == {"calm.py": "#2f6690", "none.py": "#8a94a0", "pkg": None, "pkg/hot.py": "#b93a40"}


@pytest.mark.slow
def test_nodes_that_travel_as_values_find_the_report_beside_their_file(audit: ModuleType, tmp_path: Path) -> None:
    sys.modules[audit.__name__] = audit
    cloudpickle.register_pickle_by_value(audit)
    try:
        parcel = cloudpickle.dumps((audit.report_module, audit.measure))
    finally:
        cloudpickle.unregister_pickle_by_value(audit)
        del sys.modules[audit.__name__]
    (tmp_path / "parcel").write_bytes(parcel)
    code = "import pickle; report_module, _ = pickle.load(open('parcel', 'rb')); print(report_module().totals([])['files'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr


def test_what_nodes_return_is_plain_data(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path, a="import b\n# TODO\n", b="import a\ndef f(): pass\n")
    result = perform(audit, tmp_path, tmp_path / "out")
    assert kinds_in(result) <= {dict, list, str, int, float}
    assert pickle.loads(pickle.dumps(result)) == result


def kinds_in(value: Any) -> set[type]:
    inner = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
    return {type(value)}.union(*map(kinds_in, inner))


def event(seq: int, kind: str, node: str = "", *, index: int | None = None, ago: float = -60, **data: Any) -> Event:
    """Make an event of a run; by default it comes later than now, as one of a run that is being driven does."""
    step_id = "" if not node else f"audit.demo.1/{node}/1" if index is None else f"audit.demo.1/{node}/1/{index}"
    return Event("audit.demo.1", seq, datetime.now(UTC) - timedelta(seconds=ago), kind, node, step_id, 1, data)


async def perform_demo(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, *events: Event, kill_at: float = float("inf"), terminal: bool = False
) -> str:
    """Run the demo on a scripted stream of events; return what it said."""

    async def stream(request: Any, **options: Any) -> AsyncIterator[Event]:
        for each in events:
            yield each

    monkeypatch.setattr(audit, "flow", SimpleNamespace(stream=stream))
    return (await say_demo(audit, kill_at=kill_at, terminal=terminal))[1]


async def say_demo(audit: ModuleType, *, terminal: bool = False, **options: Any) -> tuple[dict[str, Any], str]:
    """Run the demo in this process; return its answer and what it said."""
    console = Console(record=True, width=200, file=io.StringIO(), force_terminal=terminal)
    usual = {"path": None, "out": None, "session": "demo", "new": False, "executor": "inline", "kill_at": float("inf")}
    answer = await audit.demo(Namespace(**{**usual, "log": "/logs", "gecko": "bin/gecko", **options}), console)
    return answer, console.export_text()


def measured(first: int, *, files: int, begun: int = 2, ago: float = -60) -> list[Event]:
    """Make the events of files that were measured, the first of them as that item."""
    return [event(begun + 1 + index, "step_succeeded", "measure", index=index, ago=ago) for index in range(first, first + files)]


ANSWER = {"report": "/out/audit.html", "files": 4, "cycles": 1}


@pytest.mark.anyio
async def test_the_demo_says_how_to_kill_it_and_where_everything_is(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event(1, "run_started"), event(2, "step_started", "measure", items=4), *measured(0, files=4)]
    said = await perform_demo(audit, monkeypatch, *events, event(7, "run_completed", output=ANSWER), terminal=True)
    assert "Run audit.demo.1 starts. Its log is in /logs\n" in said
    assert f"kill -9 {os.getpid()}" in said
    assert "4/4" in said
    assert "\n4 files, 1 cycle\n" in said
    assert "Report  /out/audit.html\nLog     /logs\nRun     audit.demo.1, which bin/gecko runs show audit.demo.1 shows\n" in said


@pytest.mark.anyio
async def test_without_a_terminal_the_demo_says_a_line_a_second(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(audit, "time", SimpleNamespace(monotonic=lambda: 0.4 * next(ticks)))
    events = [event(1, "run_started"), event(2, "step_started", "measure", items=8), *measured(0, files=8)]
    said = await perform_demo(audit, monkeypatch, *events, event(11, "run_completed", output=ANSWER))
    assert re.findall(r"measure (\d) of 8\n", said) == ["2", "5", "8"]
    assert "\u2501" not in said


@pytest.mark.anyio
async def test_a_resumed_demo_counts_what_was_measured_before(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [event(1, "run_started", ago=60), event(2, "step_started", "measure", items=4, ago=60), *measured(0, files=2, ago=60)]
    orphan = event(5, "step_succeeded", "measure", index=2)  # by the coordinator of a killed process, which dies a little later
    live = [event(6, "run_resumed"), event(7, "step_succeeded", "measure", index=3), event(8, "run_completed", output=ANSWER)]
    said = await perform_demo(audit, monkeypatch, *before, orphan, *live, terminal=True)
    assert "Run audit.demo.1 goes on: 3 of 4 files were measured before." in said
    assert "4/4" in said
    assert "\n1 files were measured now, 3 before.\n" in said


@pytest.mark.anyio
async def test_a_finished_demo_says_so_and_how_to_start_again(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    events = [event(1, "run_started", ago=60), event(2, "step_started", "measure", items=4, ago=60), *measured(0, files=4, ago=60)]
    said = await perform_demo(audit, monkeypatch, *events, event(7, "run_completed", output=ANSWER, ago=60), kill_at=0.5)
    assert "Run audit.demo.1 finished already, at 20" in said
    assert "make demo NEW=1" in said
    assert "kill -9" not in said


@pytest.mark.anyio
async def test_a_demo_that_ends_early_says_how_to_go_on(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GeckoError, match="run the same command again"):
        await perform_demo(audit, monkeypatch, event(1, "run_started"))


@pytest.mark.anyio
async def test_the_flow_gives_what_its_nodes_give_one_by_one(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "in", a="import b\n# TODO\n", b="import a\ndef f(): pass\n", c="def f(:\n")
    assert audit.flow.problems() == []
    answer = await audit.flow.execute({"path": str(tmp_path / "in"), "out": str(tmp_path / "flow")})
    expected = perform(audit, tmp_path / "in", tmp_path / "plain")["answer"]
    assert answer == expected | {"report": answer["report"]}
    assert answer == {"report": str(tmp_path / "flow/audit-report/audit.html"), "files": 3, "lines": 5, "findings": 2, "cycles": 1}
    for name in ("audit.html", "audit.md", "audit.svg"):
        assert (tmp_path / "flow/audit-report" / name).read_text() == (tmp_path / "plain/audit-report" / name).read_text()


@pytest.mark.anyio
async def test_an_audit_that_broke_goes_on_and_measures_no_file_twice(
    audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in", **{f"m{number}": "x = 1\n" for number in range(40)})
    request = {"path": str(tmp_path / "in"), "out": str(tmp_path)}
    begun: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    measure_file = audit.measure_file

    def counted(root: Path, file: dict[str, str]) -> Any:
        begun[file["path"]] += 1
        if file["path"] == "m30.py" and begun["m30.py"] == 1:
            raise RuntimeError("the disk is gone")
        ended[file["path"]] += 1
        return measure_file(root, file)

    monkeypatch.setattr(audit, "measure_file", counted)
    with pytest.raises(StepFailed, match="the disk is gone"):
        await audit.flow.execute(request, session_id="s")
    answer = await audit.flow.execute(request, session_id="s")
    assert (answer["files"], answer["lines"]) == (40, 40)
    assert set(ended.values()) == {1}
    assert len(ended) == 40


@pytest.mark.anyio
async def test_a_bad_path_fails_the_run_with_what_to_do(audit: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="there is no such folder"):
        await audit.flow.execute({"path": str(tmp_path / "nowhere")})


@pytest.mark.anyio
async def test_the_demo_in_this_process_finishes_and_then_says_so_at_once(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "in", a="import b\n", b="import a\n")
    paths = {"path": str(tmp_path / "in"), "out": str(tmp_path)}
    answer, said = await say_demo(audit, **paths)
    assert "audit.demo.1 starts" in said
    again, said = await say_demo(audit, **paths)
    assert "audit.demo.1 finished already" in said
    assert again == answer
    _, said = await say_demo(audit, **paths, new=True)
    assert "audit.demo.2 starts" in said


@pytest.mark.anyio
async def test_a_finished_demo_starts_no_ray(audit: ModuleType, tmp_path: Path) -> None:
    write(tmp_path / "in", a="x = 1\n")
    paths = {"path": str(tmp_path / "in"), "out": str(tmp_path)}
    answer, _ = await say_demo(audit, **paths)
    again, said = await say_demo(audit, **paths, executor="ray")  # where Ray started, this test would fail
    assert again == answer
    assert "Ray starts" not in said
