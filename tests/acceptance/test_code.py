"""Wherever a workflow is written, its code reaches the workers; what cannot is refused before anything runs."""

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from engine import Context, Next, Workflow
from engine.definition.target import load_target
from engine.errors import DefinitionError

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.anyio]

SOURCE = """
import asyncio, dataclasses, os
from engine import Context, Workflow
from {beside} import double

FACTOR = 3

@dataclasses.dataclass
class Pair:
    left: int
    right: int

class Adder:
    def __init__(self, number): self.number = number
    def run(self, given): return given + self.number
    def method(self, given): return given * self.number

def first(given, ctx: Context):
    ctx.state["pid"] = os.getpid()
    return Pair(double(given), FACTOR)

def second(given: Pair):
    return given.left * given.right

async def third(given):
    await asyncio.sleep(0)
    return given + 1

flow = Workflow("kinds", executor="ray")
inner = Workflow("inner").add_node("in", lambda given: given + FACTOR).set_entry_point("in")
flow.add_node("first", first).add_node("second", second).add_node("third", third).add_node("object", Adder(10))
flow.add_node("method", Adder(2).method).add_node("closure", (lambda n: lambda given: given - n)(1)).add_node("inner", inner)
names = list(flow.graph.nodes)
for one, other in zip(names, names[1:]):
    flow.add_edge(one, other, (lambda ctx: ctx.step_input is not None) if other == "third" else None)
flow.set_entry_point("first")
"""
BESIDE = "def double(n):\n    return 2 * n\n"
ANSWER = ((2 * 5 * 3 + 1 + 10) * 2 - 1) + 3


def write(folder: Path, name: str, *, more: str = "") -> Path:
    (folder / f"beside_{name}.py").write_text(BESIDE)
    path = folder / f"{name}.py"
    path.write_text(SOURCE.format(beside=f"beside_{name}") + more)
    return path


def environment(address: str) -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}


def test_a_workflow_of_a_script_runs(ray_cluster, tmp_path):
    more = textwrap.dedent("""
        if __name__ == "__main__":
            print(asyncio.run(flow.execute(5)), flow.run_sync(5))
    """)
    path = write(tmp_path, "as_script", more=more)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment(ray_cluster), check=False, timeout=60)
    assert done.stdout.split() == [str(ANSWER)] * 2, done.stderr


async def test_a_workflow_of_a_module_in_the_working_directory_runs(ray_cluster, tmp_path):
    write(tmp_path, "as_module")
    assert await load_target("as_module:flow").execute(5) == ANSWER


async def test_a_workflow_of_a_file_by_path_runs(ray_cluster, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    path = write(folder, "as_file")
    assert await load_target(f"{path}:flow").execute(5) == ANSWER


async def test_a_workflow_of_a_notebook_runs(ray_cluster, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    (tmp_path / "beside_notebook.py").write_text(BESIDE)
    cells = [SOURCE.format(beside="beside_notebook"), "await flow.execute(5)", "def second(given): return 7", "flow.run_sync(5)"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    await NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).async_execute()
    assert notebook.cells[1].outputs[-1]["data"]["text/plain"] == str(ANSWER)
    assert notebook.cells[3].outputs[-1]["data"]["text/plain"] == str(ANSWER)


def ray_flow(**options) -> Workflow:
    return Workflow("captured", executor="ray", storage=str(Path.cwd() / "runs"), **options)


async def refused(flow: Workflow, *names: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        await flow.execute([1, 2], session_id="s")
    for name in names:
        assert name in str(caught.value)
    assert not (Path.cwd() / "runs" / "runs").exists()


async def test_a_body_that_captured_a_lock_is_refused_by_name(ray_cluster):
    guard = threading.Lock()
    await refused(ray_flow().add_node("a", lambda: guard.locked()).set_entry_point("a"), "'a'", "'guard'", "lock")


async def test_a_body_that_captured_a_generator_is_refused_by_name(ray_cluster):
    numbers = (n for n in range(3))
    await refused(ray_flow().add_node("a", lambda: next(numbers)).set_entry_point("a"), "'a'", "'numbers'", "generator")


async def test_a_body_that_captured_an_open_file_is_refused_by_name(ray_cluster, tmp_path):
    (tmp_path / "text").write_text("text")
    with (tmp_path / "text").open() as opened:
        await refused(ray_flow().add_node("a", lambda: opened.read()).set_entry_point("a"), "'a'", "'opened'", "file")


async def test_an_object_that_holds_an_open_file_is_refused_by_name(ray_cluster, tmp_path):
    class Reader:
        def __init__(self) -> None:
            self.source = (tmp_path / "text").open("w+")

        def run(self, given):
            return self.source.read()

    reader = Reader()
    await refused(ray_flow().add_node("a", reader).set_entry_point("a"), "'a'", "source", "file")
    reader.source.close()


async def test_a_condition_or_reducer_that_captured_a_lock_is_refused_by_name(ray_cluster):
    guard = threading.Lock()
    flow = ray_flow().add_node("a", lambda: 1).add_node("b", lambda: 2).set_entry_point("a")
    await refused(flow.add_edge("a", "b", lambda ctx: guard.locked()), "a -> b", "'guard'")

    def combine(base, writes):
        return guard.locked()

    await refused(ray_flow(reducers={"k": combine}).add_node("a", lambda: 1).set_entry_point("a"), "combine", "'guard'")


async def test_a_body_whose_module_cannot_be_imported_there_fails_its_step_by_name(ray_cluster):
    class Sour:
        def __reduce__(self):
            return exec, ("raise ImportError('no such module over here')",)

        def run(self, given):
            return given

    with pytest.raises(Exception, match="no such module over here"):
        await ray_flow().add_node("a", Sour()).set_entry_point("a").execute(1)


async def test_a_sub_workflow_jumps_and_loops_in_a_worker(ray_cluster):
    def count(ctx: Context):
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        return Next("count") if ctx.state["n"] < 5 else ctx.state["n"]

    inner = Workflow("inner", allow_cycles=True).add_node("count", count).set_entry_point("count")
    flow = ray_flow().add_map("m", inner).set_entry_point("m")
    assert await flow.execute([1, 2, 3], session_id="s") == [5, 5, 5]
