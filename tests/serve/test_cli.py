"""The command line in this process: what it prints where, and the exit status of whatever goes wrong."""

import errno
import json
import os
import re
from pathlib import Path

import pytest

from engine import Engine, Workflow
from tests.serve.conftest import Gecko

pytestmark = pytest.mark.usefixtures("flow_file")


def test_a_run_prints_its_result_alone_on_standard_output(gecko: Gecko):
    done = gecko("run", "flow.py:flow", "--input", "2", "--session", "s")
    assert (done.status, done.out) == (0, "[4,4,4]\n")
    assert "run two.s.1, recorded in file://" in done.err
    assert done.err.count("a body prints") == 3
    assert "completed in" in done.err


def test_a_run_without_a_session_makes_one_and_is_recorded(gecko: Gecko):
    for _ in range(3):
        assert gecko("run", "flow.py:flow").status == 0
    listed = json.loads(gecko("runs", "list", "--json").out)
    assert len({run["session"] for run in listed}) == 3
    assert all(run["session"].startswith("two-") and run["status"] == "completed" for run in listed)


def test_a_run_that_is_not_recorded_writes_nothing(gecko: Gecko):
    done = gecko("run", "flow.py:flow", "--no-record")
    assert (done.status, "recorded nowhere" in done.err) == (0, True)
    assert not Path(".gecko").exists()
    assert gecko("run", "flow.py:flow", "--no-record", "--session", "s").status == 2


def test_a_run_tells_its_events_as_json_the_result_last(gecko: Gecko):
    done = gecko("run", "flow.py:flow", "--input", "1", "--session", "s", "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert lines[0]["kind"] == "run_started"
    assert lines[-1] == {"kind": "result", "run_id": "two.s.1", "status": "completed", "output": [2, 2, 2]}
    assert [line["seq"] for line in lines[:-1] if "ordinal" not in line] == list(range(1, 10))


def test_what_json_cannot_hold_is_printed_as_data(gecko: Gecko):
    assert gecko("run", "flow.py:odd").out == "{1, 2}\n"


def test_storage_is_the_option_else_the_environment_else_the_workflow_s(gecko: Gecko, monkeypatch: pytest.MonkeyPatch):
    Path("own.py").write_text(
        "from engine import Workflow\nflow = Workflow('w', storage='own').add_node('a', lambda: 1).set_entry_point('a')\n"
    )
    assert "/own\n" in gecko("run", "own.py", "--session", "s").err
    assert gecko("runs", "resume", "s", "own.py").out == "1\n"
    monkeypatch.setenv("GECKO_STORAGE", "environment")
    assert gecko("run", "own.py", "--session", "s").status == 0
    assert gecko("run", "own.py", "--session", "s", "--storage", "said").status == 0
    for place in ("own", "environment", "said"):
        assert [run["run_id"] for run in json.loads(gecko("runs", "list", "--json", "--storage", place).out)] == ["w.s.1"]


def test_the_same_session_gives_the_result_again_and_new_runs_again(gecko: Gecko):
    for words, run_id in (((), "two.s.1"), ((), "two.s.1"), (("--new",), "two.s.2")):
        done = gecko("run", "flow.py:flow", "--session", "s", "--input", "1", *words)
        assert (done.status, done.out, run_id in done.err) == (0, "[2,2,2]\n", True)


def test_steps_are_counted_alike_at_the_end_and_in_the_log(gecko: Gecko):
    done = gecko("run", "flow.py:flow", "--session", "s", "--input", "3")
    assert re.search(r"completed in .*, 5 steps$", done.err.strip())
    assert "completed after 5 steps" in gecko("runs", "logs", "s").out
    assert gecko("runs", "events", "s").out.count('"kind":"step_succeeded"') == 5


def test_a_run_that_a_full_disk_ends_says_the_command_that_goes_on(gecko: Gecko, monkeypatch: pytest.MonkeyPatch):
    Path("filling.py").write_text(
        "import os\nfrom engine import Workflow\n"
        "flow = (Workflow('filling').add_node('a', lambda x: os.environ.setdefault('FULL', '1')).add_node('b', lambda x: x)\n"
        "  .add_edge('a', 'b').set_entry_point('a'))\n"
    )
    write = os.pwrite

    def refuse_when_full(fd: int, data: bytes, at: int) -> int:
        if "FULL" in os.environ:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data, at)

    monkeypatch.setattr("engine.store.files.os.pwrite", refuse_when_full)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    done = gecko("run", "filling.py:flow", "--input", "1")
    assert (done.status, done.out) == (3, "")
    (line,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert "No space left on device" in line
    assert re.search(r"; go on with: gecko run filling.py:flow --session filling-\w+$", line)


def test_hints_are_in_flags(gecko: Gecko, flow_file: Path):
    gecko("run", "flow.py:flow", "--session", "s", "--input", "1")
    other = gecko("run", "flow.py:flow", "--session", "s", "--input", "2")
    assert "leave the input out to go on, or pass --new (of `run`) for a new run" in other.err
    told = json.loads(gecko("run", "flow.py:flow", "--session", "s", "--input", "2", "--json").out.splitlines()[-1])
    assert "or pass --new (of `run`) for a new run" in told["error"]["message"]
    gecko("run", "flow.py:failing", "--session", "f")
    flow_file.write_text(
        flow_file.read_text().replace("add_node('fail', fail).set_entry_point('fail')", "add_node('x', fail).set_entry_point('x')")
    )
    rewired = gecko("runs", "resume", "f", "flow.py:failing")
    assert "resume it with --accept (of `gecko runs resume`), or start a new run with --new (of `run`)" in rewired.err


def test_a_failed_run_says_how_to_go_on_in_one_line(gecko: Gecko):
    done = gecko("run", "flow.py:failing", "--session", "s", "--storage", "my place")
    (line,) = [line for line in done.err.splitlines() if line.startswith("error:")]
    assert done.status == 1
    assert f"step 'fail', attempt 1: ValueError: no luck; raised at {Path('flow.py').resolve()}:10 (--debug shows the traceback)" in line
    assert "; if the input is the cause, give another one with another session or --new (of `run`)" in line
    assert line.endswith("; else mend the cause, then go on with: gecko run flow.py:failing --session s --storage 'my place'")
    assert "Traceback" not in done.err


def test_a_traceback_comes_with_debug_alone(gecko: Gecko, monkeypatch: pytest.MonkeyPatch):
    told = gecko("run", "flow.py:failing", "--debug").err
    assert told.count("Traceback") == 2, "one of the body, one of the command"
    assert told.count("Workflow execution failed") == 1
    assert told.count("go on with") == 1
    monkeypatch.setenv("GECKO_DEBUG", "1")
    assert "Traceback" in gecko("run", "flow.py:failing").err
    monkeypatch.setenv("GECKO_DEBUG", "perhaps")
    assert gecko("run", "flow.py:flow").status == 2


@pytest.mark.slow
def test_a_run_that_reaches_its_limit_can_go_on(gecko: Gecko):
    done = gecko("run", "flow.py:slow", "--timeout", "0.05", "--session", "s")
    assert done.status == 1
    assert "its limit is 0.05 s" in done.err
    assert "gecko run flow.py:slow --session s" in done.err


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["run", "flow.py:flwo"], 2, "did you mean 'flow'"),
        (["run", "fow.py:flow"], 2, "did you mean 'flow.py'"),
        (["run", "no_such_module:flow"], 2, "not found"),
        (["run", "threadin"], 2, "name a file (file.py:name) or a module there"),
        (["run", "flow.py:loop"], 2, "Cycle detected: a -> b -> a"),
        (["run", "flow.py:flow", "--input", "{"], 2, "--input is no JSON"),
        (["run", "flow.py:flow", "--input", "@nothing.json"], 2, "'nothing.json' cannot be read"),
        (["run", "flow.py:flow", "--session", "../x"], 2, "must not contain '/'"),
        (["run", "flow.py:flow", "--session", ".."], 2, "is no name"),
        (["run", "flow.py:flow", "--session", "a\nb"], 2, "must not contain"),
        (["run", "flow.py:flow", "--storage", "s4://bucket"], 2, "unknown scheme 's4'"),
        (["run", "flow.py:flow", "--storage", "flow.py"], 2, "is a file"),
        (["run", "flow.py:flow", "--timeout", "-1"], 2, "0 or more"),
        (["run", "flow.py:flow", "--timeout", "nan"], 2, "0 or more"),
        (["run", "flow.py:flow", "--timeout", "soon"], 2, "Invalid value for '--timeout'"),
        (["run", "flow.py:flow", "--executor", "cloud"], 2, "'cloud' is not one of"),
        (["run", "flow.py:flow", "--nonsense"], 2, "No such option"),
        (["run"], 2, "Missing argument"),
        (["walk"], 2, "No such command 'walk'"),
        (["run", "flow.py:unstorable"], 1, "cannot be stored"),
        (["runs", "show", "nothing"], 2, "run 'nothing' not found"),
        (["runs", "resume", "nothing"], 2, "run 'nothing' not found"),
        (["runs", "list", "--status", "runing"], 2, "did you mean 'running'"),
        (["runs", "prune", "--older-than", "soon"], 2, "is no age"),
        (["runs", "export", "x.parquet"], 2, "name runs or say --all"),
        (["runs", "export", "--all", "x.xlsx"], 2, "end in .arrow, .parquet, .csv, .jsonl"),
        (["runs", "export", "--all", "nowhere/x.csv"], 3, "cannot be written"),
        (["graph", "flow.py:flow", "--format", "svg"], 2, "'svg' is not one of"),
        (["init", "."], 2, "is there already"),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_what_goes_wrong_is_one_line_and_an_exit_status(gecko: Gecko, words: list[str], status: int, told: str):
    done = gecko(*words)
    assert done.status == status, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert "Traceback" not in done.err
    if status == 2:
        assert not Path(".gecko").exists()


def test_another_input_under_the_same_session_is_refused(gecko: Gecko):
    gecko("run", "flow.py:flow", "--session", "s", "--input", "1")
    done = gecko("run", "flow.py:flow", "--session", "s", "--input", "2")
    assert (done.status, "another input" in done.err) == (2, True)
    assert len(json.loads(gecko("runs", "list", "--json").out)) == 1


@pytest.mark.slow
def test_a_damaged_log_is_told_with_file_and_place(gecko: Gecko):
    gecko("run", "flow.py:flow", "--session", "s")
    gecko("run", "flow.py:failing", "--session", "s")
    gecko("run", "flow.py:failing", "--session", "s")
    (first,) = Path(".gecko/runs/failing/s/1").glob("1.arrows")
    data = bytearray(first.read_bytes())
    data[len(data) // 3] ^= 255
    first.write_bytes(data)
    done = gecko("run", "flow.py:failing", "--session", "s")
    assert done.status == 3
    assert "1.arrows at byte" in done.err
    assert gecko("runs", "show", "two.s.1").status == 0


def test_validate_says_every_problem(gecko: Gecko):
    assert gecko("validate", "flow.py:flow").status == 0
    done = gecko("validate", "flow.py:loop")
    assert done.status == 2
    assert done.out.startswith("error: Cycle detected: a -> b -> a")
    told = json.loads(gecko("validate", "flow.py:loop", "--json").out)
    assert (told["valid"], [p["kind"] for p in told["problems"]]) == (False, ["cycle"])


def test_graph_gives_mermaid_and_json(gecko: Gecko):
    assert gecko("graph", "flow.py:flow").out.startswith("graph TD\n")
    told = json.loads(gecko("graph", "flow.py:flow", "--format", "json").out)
    assert [node["kind"] for node in told["nodes"]] == ["step", "map"]
    assert told["edges"] == [{"source": "first", "target": "each", "conditional": False, "back": False}]


def test_plan_says_how_each_node_would_be_packed(gecko: Gecko):
    Path("modes.py").write_text(
        "from engine import Workflow\n"
        "async def wait(x): return x\n"
        "def work(x): return x\n"
        "inner = Workflow('inner').add_node('x', work).set_entry_point('x')\n"
        "flow = (Workflow('m').add_node('a', wait).add_node('b', work, timeout=1).add_node('c', work, num_cpus=2).add_node('d', work)\n"
        "  .add_node('e', work, executor='inline').add_node('f', inner).add_map('g', wait).add_node('h', work, timeout=60)\n"
        "  .add_edge('a', 'b').set_entry_point('a', 'c', 'd', 'e', 'f', 'g', 'h'))\n"
    )
    told = json.loads(gecko("plan", "modes.py:flow", "--json").out)
    modes = {node["node"]: node["mode"] for layer in told["layers"] for node in layer}
    assert modes == {
        "a": "async", "b": "sync", "c": "own", "d": "sync", "e": "async", "f": "workflow", "g": "async", "h": "sync",
    }  # fmt: skip
    assert [len(layer) for layer in told["layers"]] == [7, 1]
    shown = gecko("plan", "modes.py:flow").out
    assert "  c                            in a pack of its own (asks for 2 CPU)" in shown
    assert "  e                            async (executor 'inline')" in shown


def test_runs_are_listed_shown_and_told(gecko: Gecko):
    gecko("run", "flow.py:flow", "--session", "s", "--input", "4")
    gecko("run", "flow.py:failing", "--session", "t")
    assert [line.split()[:2] for line in gecko("runs", "list").out.splitlines()] == [["failing.t.1", "failed"], ["two.s.1", "completed"]]
    assert gecko("runs", "list", "--status", "failed").out.startswith("failing.t.1")
    assert gecko("runs", "list", "--workflow", "two").out.startswith("two.s.1")
    assert "1 more run:" in gecko("runs", "list", "--limit", "1").err
    shown = gecko("runs", "show", "s").out
    assert "each  3/3 items" in shown
    assert "output   [8,8,8]" in shown
    assert "go on" not in shown
    failed = gecko("runs", "show", "failing", "--storage", ".gecko").out
    assert "ValueError: no luck" in failed
    assert failed.endswith("go on    gecko runs resume failing.t.1 --storage .gecko\n")
    assert json.loads(gecko("runs", "show", "s", "--json").out)["steps"][1]["done"] == 3
    assert "first                     succeeded in" in gecko("runs", "logs", "two.s").out
    kinds = [json.loads(line)["kind"] for line in gecko("runs", "events", "s", "--after", "5").out.splitlines()]
    assert kinds == ["step_succeeded", "step_succeeded", "step_succeeded", "run_completed"]
    assert gecko("runs", "state", "s").out == '{"seen":4}\n'
    assert gecko("runs", "state", "s", "--key", "seen").out == "4\n"
    assert gecko("runs", "state", "s", "--at", "2").out == "{}\n"
    assert "did you mean 'seen'" in gecko("runs", "state", "s", "--key", "sen").err


def test_a_report_cuts_no_error_and_says_where_it_was_raised(gecko: Gecko, flow_file: Path):
    flow_file.write_text(flow_file.read_text().replace("no\\nluck", "x" * 150))
    gecko("run", "flow.py:failing", "--session", "s")
    drawn, *lines = gecko("runs", "show", "s").out.splitlines()[1:]
    assert drawn.endswith(f"ValueError: {'x' * 150} at {flow_file.resolve()}:10")
    (line,) = [line for line in lines if line.startswith("error ")]
    assert line.endswith(f"{'x' * 150}; raised at {flow_file.resolve()}:10")


def test_a_condition_that_failed_is_told_where_its_node_was_skipped_and_at_the_end(gecko: Gecko):
    Path("doubt.py").write_text(
        "from engine import Workflow\n"
        "def ask(context): raise KeyError('none')\n"
        "def keep(x): return x\n"
        "flow = (Workflow('w').add_node('a', keep).add_node('b', keep).add_node('c', keep).add_node('d', keep)\n"
        "  .add_edge('a', 'b', ask).add_edge('a', 'c').add_edge('a', 'd', ask).add_edge('c', 'd').set_entry_point('a'))\n"
        "outer = Workflow('outer').add_node('o', flow).set_entry_point('o')\n"
    )
    for name, run_id in (("flow", "w.flow.1"), ("outer", "outer.outer.1")):
        done = gecko("run", f"doubt.py:{name}", "--session", name, "--input", "1")
        assert done.err.endswith(f"2 conditions failed and counted as false; gecko runs show {run_id} says which\n")
        shown = gecko("runs", "show", name).out
        assert "b  skipped  condition of 'a' failed: KeyError: 'none'\n" in shown
        assert shown.count("condition of 'a' failed: KeyError: 'none'") == 2
    assert "condition to 'b' failed and counts as false: KeyError: 'none'" in gecko("runs", "logs", "flow").out


def test_a_storage_in_memory_is_said_to_end_with_the_command(gecko: Gecko):
    done = gecko("run", "flow.py:flow", "--storage", "memory://x")
    assert "recorded in memory://x, which is gone when this command ends" in done.err
    assert "go on with" not in gecko("run", "flow.py:failing", "--storage", "memory://x").err
    assert "nothing in memory outlives the command that wrote it" in gecko("runs", "list", "--storage", "memory://x").err


def test_ctrl_c_in_a_command_is_one_line(gecko: Gecko, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("serve.service.find_place", interrupt)
    assert gecko("runs", "list") == (130, "", "error: interrupted\n")


def test_watching_a_run_that_has_ended_says_how_it_ended(gecko: Gecko):
    gecko("run", "flow.py:flow", "--session", "s")
    gecko("run", "flow.py:failing", "--session", "t")
    done = gecko("runs", "watch", "s", "--json")
    assert (done.status, json.loads(done.out.splitlines()[-1])["kind"]) == (0, "run_completed")
    done = gecko("runs", "watch", "t")
    assert (done.status, "is failed" in done.err) == (1, True)


def test_a_failed_run_resumes_from_where_it_was_found(gecko: Gecko, flow_file: Path):
    gecko("run", "flow.py:failing", "--session", "s")
    flow_file.write_text(flow_file.read_text().replace("raise ValueError('no\\nluck')", "return 'mended'"))
    done = gecko("runs", "resume", "s")
    assert (done.status, done.out) == (0, '"mended"\n')
    assert gecko("runs", "resume", "s").out == '"mended"\n'


def test_a_run_of_nameless_code_resumes_with_its_workflow_alone(gecko: Gecko):
    flow = Workflow("two", storage=".gecko").add_node("first", lambda x: 1 / 0).set_entry_point("first")
    with pytest.raises(Exception, match="division"):
        flow.run_sync(1, session_id="s")
    done = gecko("runs", "resume", "s")
    assert done.status == 2
    assert "name its workflow: gecko runs resume two.s.1 file.py:flow" in done.err
    assert "is one of workflow 'two', and flow.py:odd is workflow 'odd'" in gecko("runs", "resume", "s", "flow.py:odd").err
    rewired = gecko("runs", "resume", "s", "flow.py:failing")
    assert rewired.status == 2


def test_a_rewired_run_is_resumed_only_when_that_is_accepted(gecko: Gecko, flow_file: Path):
    gecko("run", "flow.py:failing", "--session", "s")
    flow_file.write_text(
        flow_file.read_text().replace("add_node('fail', fail)", "add_node('other', len)").replace("point('fail')", "point('other')")
    )
    done = gecko("runs", "resume", "s")
    assert (done.status, "gone or rewired now: 'fail'" in done.err) == (2, True)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrow", "parquet", "csv", "jsonl"])
def test_runs_are_exported(gecko: Gecko, form: str):
    gecko("run", "flow.py:flow", "--session", "s")
    gecko("run", "flow.py:odd", "--session", "t")
    rows = Engine(".gecko").table().num_rows
    assert json.loads(gecko("runs", "export", "--all", f"all.{form}", "--json").out) == {"file": f"all.{form}", "rows": rows}
    assert gecko("runs", "export", "s", f"one.{form}").status == 0
    assert [read_rows(f"all.{form}"), read_rows(f"one.{form}")] == [rows, rows - 4]
    assert sorted(path.name for path in Path().glob("*.*") if form in path.name) == [f"all.{form}", f"one.{form}"]


def read_rows(name: str) -> int:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    match name.partition(".")[2]:
        case "arrow":
            return pa.ipc.open_file(name).read_all().num_rows
        case "parquet":
            return pyarrow.parquet.read_table(name).num_rows
        case "csv":
            return pyarrow.csv.read_csv(name, parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True)).num_rows
        case _:
            return len([json.loads(line) for line in Path(name).read_text().splitlines()])


def test_ended_runs_are_pruned(gecko: Gecko):
    gecko("run", "flow.py:flow", "--session", "s")
    assert json.loads(gecko("runs", "prune", "--json").out) == {"removed": 0}
    assert json.loads(gecko("runs", "prune", "--older-than", "0", "--json").out) == {"removed": 1}
    assert gecko("runs", "list").err == f"no runs in {Path('.gecko').resolve().as_uri()}\n"
    assert "no runs like that in file://" in gecko("runs", "list", "--status", "failed").err


@pytest.mark.parametrize("form", ["flow.py:flow", "flow.py:failing"])
def test_a_dry_run_tells_what_would_be_pruned_and_removes_nothing(gecko: Gecko, form: str):
    gecko("run", form, "--session", "s")
    (run,) = json.loads(gecko("runs", "list", "--json").out)
    size = sum(path.stat().st_size for path in Path(".gecko/runs").rglob("*.arrows"))
    assert json.loads(gecko("runs", "prune", "--dry-run", "--json").out) == {"would_remove": [], "bytes": 0}
    told = json.loads(gecko("runs", "prune", "--dry-run", "--older-than", "0", "--json").out)
    assert told == {"would_remove": [run], "bytes": size}
    assert (run["bytes"], size > 0) == (size, True)
    shown = gecko("runs", "prune", "--dry-run", "--older-than", "0")
    assert shown.out.startswith(f"{run['run_id']}  {run['status']}  ended ")
    assert "1 run, " in shown.err
    assert "removed nothing" in shown.err
    assert [each["run_id"] for each in json.loads(gecko("runs", "list", "--json").out)] == [run["run_id"]]


def test_the_command_alone_shows_its_help(gecko: Gecko):
    assert "Commands:" in gecko().out
    assert "export" in gecko("runs").out
    assert gecko("--version").out.startswith("gecko 0.")
