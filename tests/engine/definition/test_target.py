"""A target leads to its workflow, the same in every process, and whatever is wrong with it is a named error with the place."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from engine.definition.target import FILE_MODULES, load_target, load_targets, loaded_from_file, module_name, split_target
from engine.errors import DefinitionError, InvalidDocument, UnknownName

FLOW = """
from engine import Workflow
flow = Workflow("one").add_node("double", lambda x: 2 * x).set_entry_point("double")
"""


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Leave the path and the modules as they were."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def write(path: str, text: str) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_file_gives_its_workflow_which_knows_where_it_is():
    file = write("flows/one.py", FLOW)
    flow = load_target("flows/one.py:flow")
    assert flow.run_sync(21) == 42
    assert flow.target == f"{file.resolve()}:flow"
    assert load_target(flow.target) is flow


def test_a_file_with_one_workflow_needs_no_name():
    write("one.py", FLOW + "again = flow\n")
    assert load_target("one.py").name == "one"


def test_a_file_named_without_a_name_gives_all_its_workflows():
    file = write("two.py", FLOW + "other = Workflow('two').add_node('a', lambda x: x).set_entry_point('a')\n")
    found = load_targets("two.py")
    assert [(flow.name, flow.target) for flow in found] == [("one", f"{file.resolve()}:flow"), ("two", f"{file.resolve()}:other")]
    assert load_targets("two.py:other") == [found[1]]
    write("none.py", "")
    with pytest.raises(DefinitionError, match="no Workflow is in"):
        load_targets("none.py")


def test_a_module_is_found_in_the_working_directory_and_in_its_packages():
    write("shop_pkg/orders/__init__.py", "")
    write("shop_pkg/orders/daily.py", FLOW)
    flow = load_target("shop_pkg.orders.daily:flow")
    assert (flow.target, flow.run_sync(1)) == ("shop_pkg.orders.daily:flow", 2)


def test_a_base_folder_stands_for_the_working_directory(tmp_path: Path):
    write(str(tmp_path / "elsewhere" / "one.py"), FLOW)
    assert load_target("one.py:flow", base=tmp_path / "elsewhere").name == "one"


def test_an_attribute_of_an_attribute_is_found():
    write("one.py", FLOW + "class Flows:\n    daily = flow\n")
    assert load_target("one.py:Flows.daily").name == "one"


def test_a_mistake_in_a_module_is_laid_at_its_own_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(".")
    write("mistaken.py", "from engine import Workflow\nflow = Workflow()\nflow.add_node('a', 5)\n")
    with pytest.raises(DefinitionError, match=r"mistaken\.py:3: DefinitionError: .*; the module cannot be imported"):
        load_target("mistaken:flow")


def test_neighbours_are_importable_while_the_file_is_loaded_and_the_path_is_left_as_it_was():
    write("flows/near_by_texts.py", "FACTOR = 3\n")
    write("flows/one.py", FLOW.replace("2 *", "FACTOR *") + "from near_by_texts import FACTOR\n")
    before = sys.path[:]
    assert load_target("flows/one.py").run_sync(2) == 6
    assert sys.path == before
    assert loaded_from_file("near_by_texts")


def test_a_file_module_has_the_same_name_everywhere_and_travels_by_value():
    file = write("one.py", FLOW + "from dataclasses import dataclass\n@dataclass\nclass Row:\n    x: int\n").resolve()
    load_target("one.py")
    name = module_name(file)
    assert FILE_MODULES[name] == file
    module = sys.modules[name]
    cloudpickle.register_pickle_by_value(module)
    try:
        data = cloudpickle.dumps(module.Row)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    del sys.modules[name]
    assert pickle.loads(data)(x=1).x == 1


def test_a_file_that_was_changed_is_loaded_again():
    file = write("one.py", FLOW)
    first = load_target("one.py")
    assert load_target("one.py") is first
    file.write_text(FLOW.replace("2 *", "300 *"))
    assert load_target("one.py").run_sync(1) == 300


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("flows/oen.py:flow", "did you mean 'flows/one.py'"),
        ("nowhere/one.py:flow", "there is no folder"),
        ("flows/one.py:flwo", "did you mean 'flow'"),
        ("pkg_there.oen:flow", "did you mean 'pkg_there.one'"),
        ("pkg_three:flow", "did you mean 'pkg_there'"),
        ("pkg_there.one:flwo", "did you mean 'flow'"),
        ("pkg_there.one.deeper:flow", "is a module, not a package"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(target: str, told: str):
    write("flows/one.py", FLOW)
    write("pkg_there/__init__.py", "")
    write("pkg_there/one.py", FLOW)
    with pytest.raises(UnknownName, match=told):
        load_target(target)


def test_only_what_is_in_the_folder_is_suggested_for_a_module():
    write("orders.py", FLOW)
    for near_to_what_is_installed in ("threadin", "nothing", "pytst:flow"):
        with pytest.raises(UnknownName, match="not found, neither installed nor in") as caught:
            load_target(near_to_what_is_installed)
        assert "did you mean" not in str(caught.value)
    with pytest.raises(UnknownName, match="did you mean 'orders'"):
        load_target("order:flow")


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("one.py:double", "is a function, not a Workflow"),
        ("one.py:Kind", "is the class Kind, not a Workflow"),
        ("two.py", "2 workflows are in 'two.py'; say which: two.py:a, two.py:b"),
        ("none.py", "no Workflow is in 'none.py'"),
        ("folder/", "is a folder; name a file in it, as 'folder/in.py'"),
        ("flow.yaml", "is a document"),
        ("a b", "neither a module nor a Python file"),
        (":flow", "names no workflow"),
    ],
)
def test_what_is_no_workflow_is_refused(target: str, told: str):
    write("one.py", FLOW + "def double(x): return x\nclass Kind: pass\n")
    write("two.py", "from engine import Workflow\na = Workflow('a')\nb = Workflow('b')\n")
    write("none.py", "")
    write("folder/in.py", FLOW)
    with pytest.raises(DefinitionError, match=told):
        load_target(target)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1\nraise ValueError('no luck')\n", "broken.py:2: ValueError: no luck"),
        ("def f():\n    return 1 / 0\nf()\n", "broken.py:2: ZeroDivisionError"),
        ("x = (1\n", "broken.py:1: SyntaxError"),
        ("import sys\nsys.exit(3)\n", "broken.py:2: SystemExit: 3"),
        ("import not_there_at_all\n", "broken.py:1: ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("from . import near\n", "broken.py:1: ImportError.*named as a module"),
        ("import json\njson.loads('{')\n", "broken.py:2: JSONDecodeError"),
        (
            "import asyncio\nasync def f(): 1 / 0\nasyncio.run(f())\n",
            'belongs under `if __name__ == "__main__":`',
        ),
    ],
)
def test_a_file_that_raises_is_an_error_with_file_and_line(text: str, told: str):
    write("broken.py", text)
    with pytest.raises(InvalidDocument, match=told):
        load_target("broken.py:flow")
    assert module_name(Path("broken.py").resolve()) not in sys.modules


def test_a_module_that_raises_is_an_error_with_file_and_line():
    write("broken_module.py", "\n\n1 / 0\n")
    with pytest.raises(InvalidDocument, match=r"broken_module\.py:3: ZeroDivisionError"):
        load_target("broken_module:flow")


def test_a_target_is_split_at_its_last_colon():
    assert split_target("a.b:c") == ("a.b", "c")
    assert split_target("dir/a.py") == ("dir/a.py", "")
    assert split_target("/x:y/a.py") == ("/x:y/a.py", "")
    assert split_target("/x:y/a.py:flow") == ("/x:y/a.py", "flow")
