"""The direction of imports: the contracts of pyproject.toml, and what import-linter cannot say about the core."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ASKS_THE_WORLD = {"open", "input", "print", "exec", "eval", "__import__"}
READS_A_CLOCK = {"now", "utcnow", "today"}


@pytest.mark.slow
def test_every_import_contract_is_kept(root: Path):
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as check; check()", "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def core_files(root: Path) -> list[Path]:
    """The sources that decide: the core and the errors."""
    return [*sorted((root / "engine/core").glob("**/*.py")), root / "engine/errors.py"]


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that a source imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_the_core_imports_the_standard_library_and_itself_alone(root: Path):
    foreign = {
        f"{file.relative_to(root)} imports {name}"
        for file in core_files(root)
        for name in imported(ast.parse(file.read_text()))
        if not (name.startswith(("engine.core", "engine.errors")) or name.partition(".")[0] in sys.stdlib_module_names)
    }
    assert foreign == set()


def test_the_core_calls_nothing_that_asks_the_world(root: Path):
    found = set()
    for file in core_files(root):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=name)) if name in ASKS_THE_WORLD:
                    found.add(f"{file.relative_to(root)}:{node.lineno} calls {name}")
                case ast.Call(func=ast.Attribute(value=ast.Name(id="datetime" | "date"), attr=name)) if name in READS_A_CLOCK:
                    found.add(f"{file.relative_to(root)}:{node.lineno} calls {name}")
    assert found == set()
