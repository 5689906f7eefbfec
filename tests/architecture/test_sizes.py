"""Files and functions stay short enough to be read; every exception is written down here with its reason."""

import ast
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, TEST_LINES, FUNCTION_LINES = 500, 800, 60

#: File, or file and function as `path:name`, to the reason why it is longer.
EXCEPTIONS: dict[str, str] = {}


def sources(root: Path, *folders: str) -> Iterator[tuple[str, str]]:
    """Every source below the folders as its path and text."""
    for folder in folders:
        for file in sorted((root / folder).rglob("*.py")):
            yield file.relative_to(root).as_posix(), file.read_text()


def long_files(root: Path) -> dict[str, int]:
    """The files over their limit, with their lines."""
    code = {path: len(text.splitlines()) for path, text in sources(root, "engine", "cluster", "serve", "bench", "examples")}
    tests = {path: len(text.splitlines()) for path, text in sources(root, "tests")}
    return {path: n for path, n in code.items() if n > FILE_LINES} | {path: n for path, n in tests.items() if n > TEST_LINES}


def long_functions(root: Path) -> dict[str, int]:
    """The functions over their limit, with their lines; a docstring does not count."""
    found = {}
    for path, text in sources(root, "engine", "cluster", "serve", "bench", "examples"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if ast.get_docstring(node) is not None:
                    docstring = node.body[0]
                    lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
                if lines > FUNCTION_LINES:
                    found[f"{path}:{node.name}"] = lines
    return found


def test_files_are_short(root: Path):
    assert {path: n for path, n in long_files(root).items() if path not in EXCEPTIONS} == {}


def test_functions_are_short(root: Path):
    assert {name: n for name, n in long_functions(root).items() if name not in EXCEPTIONS} == {}


def test_every_exception_is_still_needed(root: Path):
    assert set(EXCEPTIONS) - set(long_files(root)) - set(long_functions(root)) == set()
