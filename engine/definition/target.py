"""A TARGET, `pkg.module:flow` or `file.py:flow`, to the Workflow that it names; the command line and the cluster both use it.

A file becomes a module with a name made of its path, so that it has the same name in every process. Such modules, and the modules
that lie beside the file and were imported with it, are in FILE_MODULES: no other process can import them by name, so they are sent
by value. It runs the user's file or module and nothing else of theirs; it starts no run.
"""

import asyncio
import hashlib
import importlib
import linecache
import os
import pkgutil
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.core.registry import near, unknown
from engine.errors import DefinitionError, InvalidDocument, UnknownName

FILE_MODULES: dict[str, Path] = {}
"""Modules that came from a file by path, and their neighbours: name in `sys.modules` to file."""

Workflow = Any
"""What a target leads to: an `engine.workflow.Workflow`, which lies above this module and is known here by what it can do."""

_stamps: dict[str, tuple[int, int]] = {}
_DOCUMENTS = (".yaml", ".yml", ".json", ".toml")


def load_target(text: str, *, base: Path | str | None = None) -> Workflow:
    """Return the workflow that a target names.

    Args:
        text: `pkg.module:flow`, `file.py:flow`, or either without a name where exactly one workflow is in it.
        base: The folder that relative paths start from and modules are looked for in; default: the working directory.

    Raises:
        UnknownName: There is no such file, module or name; says which come near.
        InvalidDocument: The code raises when it is imported; says file, line and why.
        DefinitionError: What is named is no workflow, or it is not clear which one is meant.
    """
    place, name = split_target(text)
    module, origin = _load(place, base)
    flow = _workflow(module, name, place, origin)
    _note_targets(module, origin)
    if flow.target is None:
        flow.target = f"{origin}:{name}"
    return flow


def load_targets(text: str, *, base: Path | str | None = None) -> list[Workflow]:
    """Return the workflow that a target names, or all that are in a file or module that is named without one.

    Raises: as `load_target`.
    """
    place, name = split_target(text)
    if name:
        return [load_target(text, base=base)]
    module, origin = _load(place, base)
    _note_targets(module, origin)
    found = list(workflows_in(module).values())
    if not found:
        raise DefinitionError(f"no Workflow is in {place!r}; name a module-level one: {place}:name", where=place)
    return found


def _load(place: str, base: Path | str | None) -> tuple[ModuleType, str]:
    """Return a module, and what names it in every process."""
    folder = Path(base) if base is not None else Path.cwd()
    if _is_file(place):
        path = _existing(place, folder)
        return _load_file(path), str(path)
    return _load_module(place, folder), place


def split_target(text: str) -> tuple[str, str]:
    """Return the file or module of a target, and the name behind its last colon (empty: none)."""
    place, colon, name = text.rpartition(":")
    if not colon or text.endswith((".py", *_DOCUMENTS)) or "/" in name or "\\" in name:
        place, name = text, ""
    if not place.strip():
        raise InvalidDocument(f"target {text!r} names no workflow: write package.module:name or path/to/file.py:name", where=text)
    return place, name


def loaded_from_file(module: str) -> bool:
    """Tell whether a module came from a file by path, so that other processes cannot import it by its name."""
    return module in FILE_MODULES


def workflows_in(module: ModuleType) -> dict[str, Workflow]:
    """Return the workflows that a module holds, each once, by the first name it has there."""
    found: dict[int, tuple[str, Workflow]] = {}
    for name, value in vars(module).items():
        if _is_workflow(value):
            found.setdefault(id(value), (name, value))
    return dict(found.values())


def _is_workflow(value: Any) -> bool:
    kind = type(value)  # asked of the class: proxies and mocks answer to any name
    return all(callable(getattr(kind, name, None)) for name in ("compiled", "find_target", "to_mermaid"))


def _is_file(place: str) -> bool:
    return place.endswith((".py", *_DOCUMENTS)) or "/" in place or os.sep in place


def _existing(place: str, folder: Path) -> Path:
    """Return the absolute path of a file that is there."""
    path = Path(os.path.realpath(folder / Path(place).expanduser()))
    if path.suffix in _DOCUMENTS:
        raise InvalidDocument(f"file {place!r} is a document: this version runs workflows written in Python, file.py:name", where=place)
    if path.is_dir():
        names = sorted(p.name for p in path.glob("*.py"))
        shown = f"; name a file in it, as {os.path.join(place, names[0])!r}" if names else ", and no Python file is in it"
        raise InvalidDocument(f"target {place!r} is a folder{shown}", where=place)
    if path.is_file():
        return path
    if not path.parent.is_dir():
        raise UnknownName(f"file {place!r} not found: there is no folder {str(path.parent)!r}", where=place)
    above = place[: len(place) - len(Path(place).name)]
    raise UnknownName(unknown("file", place, sorted(above + p.name for p in path.parent.glob("*.py"))), where=place)


def _load_file(path: Path) -> ModuleType:
    name = module_name(path)
    state = path.stat()
    stamp = (state.st_mtime_ns, state.st_size)
    if name in sys.modules and _stamps.get(name) == stamp:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    linecache.checkcache(str(path))
    former = sys.modules.get(name)
    sys.modules[name] = module  # before it runs: dataclasses and annotations look it up
    before = set(sys.modules)
    try:
        with _importable(path.parent, first=True), _named_errors(str(path), path, path.parent):
            source = path.read_bytes()
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        if former is None:
            del sys.modules[name]
        else:
            sys.modules[name] = former
        raise
    FILE_MODULES[name] = path
    _stamps[name] = stamp
    for other in set(sys.modules) - before:
        file = getattr(sys.modules[other], "__file__", None)
        if file is not None and path.parent in Path(file).parents and "site-packages" not in Path(file).parts:
            FILE_MODULES[other] = Path(file)
    return module


def module_name(path: Path) -> str:
    """Return the name in `sys.modules` of a file loaded by path: the same for the same absolute path in every process."""
    stem = re.sub(r"\W", "_", path.stem)
    return f"file_{stem}_{hashlib.sha256(str(path).encode(errors='surrogatepass')).hexdigest()[:10]}"


def _load_module(name: str, folder: Path) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        text = f"target {name!r} is neither a module nor a Python file: write package.module:name or path/to/file.py:name"
        raise InvalidDocument(text, where=name)
    place = str(folder.absolute())
    if place not in sys.path:
        sys.path.insert(0, place)  # for good: modules may be imported later, and in workers it is put there too
    importlib.invalidate_caches()
    with _named_errors(name, None, folder):
        return importlib.import_module(name)


@contextmanager
def _importable(folder: Path, *, first: bool) -> Iterator[None]:
    """Let modules in a folder be imported, as long as this lasts."""
    place = str(folder)
    sys.path.insert(0 if first else len(sys.path), place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if place in sys.path:
            sys.path.remove(place)


@contextmanager
def _named_errors(place: str, path: Path | None, folder: Path) -> Iterator[None]:
    """Turn whatever a user's code raises at import into an error that says where."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if path is None and (place == missing or place.startswith(f"{missing}.")):
            raise UnknownName(_unknown_module(place, missing, folder), where=place) from error
        raise InvalidDocument(_told(place, path, error), where=place) from error
    except (Exception, SystemExit) as error:  # the user's own code ran here
        raise InvalidDocument(_told(place, path, error), where=place) from error


def _told(place: str, path: Path | None, error: BaseException) -> str:
    """Return `file:line: Type: message` for an error raised at import; the line is the innermost one of the user's own code."""
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename:
        what = f"{type(error).__name__}: {error.msg}"
        return f"{error.filename}:{error.lineno}: {what}; the file cannot be imported"
    frames = traceback.extract_tb(error.__traceback__)
    if path is not None:
        own = [f for f in frames if Path(f.filename) == path]
    else:
        own = [f for f in frames if not f.filename.startswith("<frozen") and "importlib" not in f.filename and not _is_ours(f.filename)]
    where = f"{own[-1].filename}:{own[-1].lineno}" if own else place
    hint = f"; the {'file' if path else 'module'} cannot be imported"
    if any(f.filename == asyncio.runners.__file__ for f in frames):
        hint += ': code that runs a workflow belongs under `if __name__ == "__main__":`'
    if isinstance(error, ImportError) and "relative import" in str(error):
        hint = "; a file of a package is named as a module, package.module:name"
    return f"{where}: {what}{hint}"


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(Path(__file__).parents[1])


def _unknown_module(name: str, missing: str, folder: Path) -> str:
    """Return the message for a module that is not there, with the nearest of the package, or of the folder, where it was looked for."""
    parent, _, _ = missing.rpartition(".")
    paths = [str(folder)]
    if parent:
        paths = list(getattr(sys.modules.get(parent), "__path__", []))
        if not paths:
            return f"module {name!r} not found: {parent!r} is a module, not a package"
    names = [f"{parent}.{m.name}" if parent else m.name for m in pkgutil.iter_modules(paths)]
    if parent or near(missing, names):
        return unknown("module", missing, names)
    return f"module {missing!r} not found, neither installed nor in {str(folder)!r}; name a file (file.py:name) or a module there"


def _workflow(module: ModuleType, name: str, place: str, origin: str) -> Workflow:
    there = workflows_in(module)
    if not name:
        if len(there) == 1:
            (name,) = there
            flow = there[name]
            flow.target = flow.target or f"{origin}:{name}"
            return flow
        if not there:
            raise DefinitionError(f"no Workflow is in {place!r}; name a module-level one: {place}:name", where=place)
        raise DefinitionError(
            f"{len(there)} workflows are in {place!r}; say which: " + ", ".join(f"{place}:{n}" for n in there), where=place
        )
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            known = list(there) or [n for n in vars(module) if not n.startswith("_")]
            raise UnknownName(unknown(f"workflow in {place!r}:", name, known), where=place)
        value = getattr(value, part)
    if not _is_workflow(value):
        hint = f"; there are {', '.join(there)}" if there else ""
        raise DefinitionError(f"{place}:{name} is {_kind(value)}, not a Workflow{hint}", where=place)
    return value


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a {type(value).__name__}"


def _note_targets(module: ModuleType, origin: str) -> None:
    """Let every workflow of the module know where it is found again."""
    for name, flow in workflows_in(module).items():
        if flow.target is None:
            flow.target = f"{origin}:{name}"


__all__ = ["FILE_MODULES", "load_target", "load_targets", "loaded_from_file", "module_name", "split_target", "workflows_in"]
