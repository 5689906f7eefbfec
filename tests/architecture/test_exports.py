"""The public names: complete, loaded lazily, and the ones that the documents promise."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import engine

PROMISED = {
    "CheckpointStrategy", "Context", "Engine", "Next", "NodeExecution", "NodeStatus", "Workflow", "WorkflowContext", "__version__",
    "create_storage", "step",
}  # fmt: skip


def test_all_is_what_dir_shows():
    assert len(engine.__all__) == len(set(engine.__all__))
    assert set(engine.__all__) == set(dir(engine))


def test_every_public_name_resolves():
    assert [name for name in engine.__all__ if getattr(engine, name, None) is None] == []


def test_the_promised_names_are_public():
    assert set(engine.__all__) >= PROMISED


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="Workflwo"):
        engine.Workflwo  # noqa: B018


def test_the_version_is_that_of_the_distribution(root: Path):
    assert f'version = "{engine.__version__}"' in (root / "pyproject.toml").read_text()


@pytest.mark.slow
def test_a_type_checker_sees_every_public_name(root: Path, tmp_path: Path):
    lines = [f"from engine import {name}" for name in engine.__all__]
    checked = tmp_path / "names.py"
    checked.write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, str(checked)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", ["engine", "cluster", "serve"])
def test_every_package_says_that_it_is_typed(package: str):
    folder = importlib.import_module(package).__path__[0]
    assert (Path(folder) / "py.typed").is_file()
