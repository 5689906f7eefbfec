"""Code on its way to workers: what a mended module does to workers that have the one before."""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cluster.code
from cluster.code import STAMPS, Codes, Parcel, parcel
from engine import Workflow

NAME = "mended_by_a_user"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's module, in a folder that modules are found in."""
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(sys.modules)
    yield tmp_path / f"{NAME}.py"
    sys.modules.update(before)  # a worker forgets every user's module, and here those are all tests
    sys.modules.pop(NAME, None)
    sys.modules.update({name: module for name, module in before.items() if name not in sys.modules})  # what a worker would read again


def write(path: Path, answer: str, at: int) -> None:
    path.write_text(f"async def body(given):\n    return {answer!r}\n")
    os.utime(path, ns=(at, at))
    for compiled in path.parent.glob("__pycache__/*"):
        compiled.unlink()


def sent() -> Parcel:
    """What a process sends that has the module as it is now."""
    sys.modules.pop(NAME, None)
    importlib.invalidate_caches()
    body = importlib.import_module(NAME).body
    return parcel(Workflow("mended").add_node("a", body).set_entry_point("a").compiled())


def answer(codes: Codes, held: Parcel) -> str:
    """What the body gives in a worker that has these codes."""
    coroutine = codes.body(held.plan.nodes[0].body.key).body(None)
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the body waits")


def test_a_worker_reads_a_module_again_that_was_mended_and_an_old_parcel_does_not_bring_it_back(module: Path):
    write(module, "old", 1_000)
    old, codes = sent(), Codes()
    codes.add(old.codes)
    assert answer(codes, old) == "old"

    stale = sys.modules[NAME]
    write(module, "new", 2_000)
    new = sent()
    sys.modules[NAME] = stale  # a worker has it as long as nobody tells it
    assert codes.missing({new.plan.nodes[0].body.key})
    codes.add(new.codes)
    assert answer(codes, new) == "new"

    read = sys.modules[NAME]
    assert codes.missing({old.plan.nodes[0].body.key})
    codes.add(old.codes)
    assert answer(codes, old) == "new"
    assert sys.modules[NAME] is read


def test_a_parcel_names_the_files_of_users_modules_and_none_of_ours(module: Path):
    write(module, "old", 1_000)
    told = json.loads(sent().codes[STAMPS])
    assert str(module) in told
    ours = Path(cluster.code.__file__).parents[1]
    assert not [file for file in told if Path(file).is_relative_to(ours / "engine") or Path(file).is_relative_to(ours / "cluster")]
