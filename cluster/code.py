"""User code on its way to workers: each body is pickled once, by the process that has it, and travels as bytes that only workers open.

A coordinator holds plans whose bodies are `RemoteBody`: a key and what packing has to know. Nothing of this ever lies on storage.
"""

import hashlib
import importlib
import json
import os
import sys
from dataclasses import MISSING, dataclass, replace
from io import BytesIO, IOBase, StringIO
from typing import Any

import cloudpickle

from engine.core.plan import Plan
from engine.core.team import TeamPlan
from engine.errors import DefinitionError
from engine.runtime.bind import Binding

STAMPS = b""
"""The key, among those of code, of what tells when the modules were written that it may refer to."""
_OURS = frozenset(["engine", "cluster", "serve", "bench", "__main__", "__mp_main__"])
_STANDARD = (os.path.join(sys.prefix, ""), os.path.join(sys.base_prefix, ""))


@dataclass(frozen=True, slots=True)
class RemoteBody:
    """A body that is performed elsewhere."""

    key: bytes
    """Names its code."""
    is_async: bool
    cost: str
    """What its costs are learnt by."""
    annotation: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """A plan as it travels to a coordinator."""

    plan: Plan
    """With a `RemoteBody` for each body and condition."""
    codes: dict[bytes, bytes]
    """Key to pickled body."""
    cwd: str
    paths: tuple[str, ...]
    """Where the sender's modules are found, besides what every process has."""


def parcel(plan: Plan) -> Parcel:
    """Pickle the code of a plan and its sub-workflows.

    Raises: DefinitionError for a body that cannot travel, naming what it captured.
    """
    cwd, paths = surroundings()
    stamps = _stamps((cwd, *paths))
    packer = _Packer(stamps)
    for name in getattr(sys.modules.get("engine.definition.target"), "FILE_MODULES", ()):
        if name in sys.modules:
            cloudpickle.register_pickle_by_value(sys.modules[name])
    return Parcel(plan=packer.plan(plan), codes={**packer.codes, STAMPS: stamps}, cwd=cwd, paths=paths)


def surroundings() -> tuple[str, tuple[str, ...]]:
    """Return where this process works, and where its modules are besides the places that every process has."""
    standard = tuple(os.path.realpath(p) for p in (sys.prefix, sys.base_prefix))
    found = [os.path.abspath(p or ".") for p in sys.path]
    return os.getcwd(), tuple(dict.fromkeys(p for p in found if os.path.isdir(p) and not os.path.realpath(p).startswith(standard)))


def _stamps(folders: tuple[str, ...]) -> bytes:
    """Return the files of the modules that this process has from these folders, with when each was written, as JSON.

    Bodies in modules travel by name, so that this is all that tells a mended one from the one before.
    """
    found: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] not in _OURS and isinstance(file, str) and file.startswith(folders) and not file.startswith(_STANDARD):
            try:
                found[file] = os.stat(file).st_mtime_ns
            except OSError:
                continue
    return json.dumps(found, sort_keys=True).encode()


class _Packer:
    def __init__(self, stamps: bytes) -> None:
        self.codes: dict[bytes, bytes] = {}
        self._stamps = stamps
        self._known: dict[tuple[int, bool], RemoteBody] = {}
        self._keep: list[Any] = []

    def plan(self, plan: Plan) -> Plan:
        nodes = tuple(replace(node, body=self.any_body(node.body, f"node {node.name!r}")) for node in plan.nodes)
        edges = tuple(
            edge
            if edge.condition is None
            else edge._replace(condition=self.body(edge.condition, f"condition {edge.source} -> {edge.target}"))
            for edge in plan.edges
        )
        custom = {path: self.function(function, f"reducer {path}") for path, function in plan.options.custom.items()}
        return replace(plan, nodes=nodes, edges=edges, options=replace(plan.options, custom=custom))

    def any_body(self, body: Any, where: str) -> Any:
        if isinstance(body, Plan):
            return self.plan(body)
        return self.team(body, where) if isinstance(body, TeamPlan) else self.body(body, where)

    def team(self, team: TeamPlan, where: str) -> TeamPlan:
        members = tuple(
            replace(member, body=None if i in team.lacks else self.any_body(member.body, f"{where}, member {i}"))
            for i, member in enumerate(team.members)
        )
        mapper = None if team.mapper is None else self.function(team.mapper, f"input_mapper of {where}")
        judge = None if team.judge is None else self.function(team.judge, f"judge of {where}")
        strategy = team.strategy if judge is None else replace(team.strategy, pick=_elsewhere)
        return replace(team, members=members, mapper=mapper, judge=judge, strategy=strategy)

    def body(self, binding: Any, where: str) -> RemoteBody:
        body = binding.body if isinstance(binding, Binding) else binding
        place = id(body), getattr(binding, "brief", False)
        if place not in self._known:
            self._keep.append(body)
            self._known[place] = RemoteBody(self._add(binding, body, where), binding.is_async, binding.key)
        return self._known[place]

    def function(self, function: Any, where: str) -> RemoteBody:
        return RemoteBody(self._add(function, function, where), False, where)

    def _add(self, thing: Any, body: Any, where: str) -> bytes:
        try:
            code = _pickled(thing)
        except Exception as error:
            raise DefinitionError(f"{where} cannot be sent to a worker: {_captured(body)}{error}", where=where) from error
        key = hashlib.blake2b(code + self._stamps, digest_size=12).digest()
        self.codes[key] = code
        return key


def _elsewhere(_: Any) -> Any:
    """Stand in a coordinator for a judge, who is asked in a worker."""
    raise NotImplementedError


class _Pickler(cloudpickle.Pickler):
    """Refuses an open file, which cloudpickle would turn into a copy of what is left of it.

    It also keeps the one `dataclasses.MISSING` that there is.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, IOBase) and not isinstance(obj, (BytesIO, StringIO)) and obj not in (sys.stdin, sys.stdout, sys.stderr):
            raise TypeError(f"cannot pickle an open file ({getattr(obj, 'name', obj)!r}); open it inside of the body")
        if obj is MISSING:
            return "MISSING"
        return super().reducer_override(obj)


def _pickled(thing: Any) -> bytes:
    held = BytesIO()
    _Pickler(held).dump(thing)
    return held.getvalue()


def _captured(body: Any) -> str:
    """Name what a function took along that cannot be pickled."""
    function = getattr(body, "__wrapped__", body)
    function = getattr(function, "__func__", function)
    names: dict[str, Any] = {}
    closure = getattr(function, "__closure__", None) or ()
    for name, cell in zip(getattr(getattr(function, "__code__", None), "co_freevars", ()), closure, strict=False):
        names[name] = getattr(cell, "cell_contents", None)
    code = getattr(function, "__code__", None)
    for name in code.co_names if code else ():
        if name in getattr(function, "__globals__", {}):
            names.setdefault(name, function.__globals__[name])
    names |= {f"self.{k}": v for k, v in getattr(getattr(body, "__self__", body), "__dict__", {}).items()} if not code else {}
    bad = []
    for name, value in names.items():
        try:
            _pickled(value)
        except Exception:  # noqa: BLE001 - pickling runs the user's code
            bad.append(f"{name!r} ({type(value).__name__})")
    return f"it captured {', '.join(bad)}; " if bad else ""


class Codes:
    """Bodies in a worker, opened once each."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._open: dict[bytes, Any] = {}
        self._home: tuple[str, tuple[str, ...]] | None = None
        self._stamps: dict[str, int] = {}
        """File of a module to when it was written, as far as senders told."""

    def missing(self, keys: set[bytes]) -> bool:
        """Tell whether some of the bodies have to be fetched."""
        return not keys <= self._open.keys()

    def settle_in(self, cwd: str, paths: tuple[str, ...]) -> None:
        """Work where the sender works, with its modules, as far as its folders exist here."""
        if self._home == (cwd, paths):
            return
        self._home = (cwd, paths)
        new = [p for p in paths if p not in sys.path and os.path.isdir(p)]
        if new:
            sys.path[:0] = new
            importlib.invalidate_caches()
        if os.path.isdir(cwd):
            os.chdir(cwd)

    def add(self, codes: dict[bytes, bytes]) -> None:
        """Take code in; it is opened when it is first needed.

        Where a file is newer than the one that a module here was made of, modules from its sender's folders are forgotten, since others may
        hold what was in it: they are read again by whoever imports them next. Bodies under way go on with what they have.
        """
        told: dict[str, int] = json.loads(codes.get(STAMPS, b"{}"))
        newer = {file for file, stamp in told.items() if stamp > self._stamps.get(file, stamp)}
        self._stamps |= {file: stamp for file, stamp in told.items() if stamp >= self._stamps.get(file, stamp)}
        if newer:
            for name, module in list(sys.modules.items()):
                if getattr(module, "__file__", None) in self._stamps and name.partition(".")[0] not in _OURS:
                    del sys.modules[name]
            importlib.invalidate_caches()
            self._open.clear()
        for key, code in codes.items():
            if key != STAMPS:
                self._open.setdefault(key, code)

    def body(self, key: bytes) -> Any:
        """Return a body. Raises what opening it raises."""
        body = self._open[key]
        if isinstance(body, bytes):
            body = self._open[key] = cloudpickle.loads(body)
        return body
