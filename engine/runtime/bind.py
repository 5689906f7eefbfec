"""How a body is called: its signature is read once, when the node is added, and refused there if it cannot be bound.

A parameter named `ctx`, `context` or `workflow_context`, or annotated `Context`, receives the context; the first other parameter
receives the input, in any order; other parameters with defaults are left alone. An input parameter annotated with a pydantic model or a
dataclass is built from the input. A condition is a callable of the context, so its first parameter receives that, whatever its name.
"""

import asyncio
import functools
import hashlib
import inspect
import types
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

from engine.checkpoint.codec import build, is_model
from engine.core.context import Context
from engine.core.plan import Plan
from engine.core.team import Member, Strategy, TeamPlan
from engine.errors import DefinitionError

CONTEXT_NAMES = frozenset({"ctx", "context", "workflow_context"})
_STRAY = {
    Member: "a Member stands in a Team only: pass its body, with timeout= and num_cpus= beside it, or Team([Member(...)])",
    Strategy: "a strategy is no body: write Team(members, strategy=...)",
}
"""What may be passed for a body by mistake, to what should be written."""


class Binding:
    """A body with what the engine knows of it: `call(context, input)` gives its answer, or an awaitable of it."""

    __slots__ = ("annotation", "asks", "body", "brief", "call", "is_async", "key", "wants_context")

    def __init__(
        self, body: Any, function: Callable[..., Any], call: Callable[[Any, Any], Any], annotation: Any, *, wants_context: bool, asks: bool
    ) -> None:
        """Made by `bind`."""
        self.asks = asks
        self.brief = False
        """Whether of an output with a text `content`, as an agent's is, that text alone is taken."""
        self.body = body
        self.call = call
        self.annotation = annotation
        self.wants_context = wants_context
        self.is_async = is_async(function)
        """Whether a call gives a coroutine at once; a sync body may still return an awaitable."""
        self.key = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(body).__qualname__)}"
        """What its costs are learnt by."""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(bind, asks=self.asks, brief=self.brief), (self.body, "")

    def prepare(self, given: Any) -> Any:
        """Return the input as the body wants it: built, where it asks for a model or dataclass."""
        return given if self.annotation is None else build(self.annotation, given)


def is_async(function: Any) -> bool:
    """Tell whether calling gives a coroutine."""
    while isinstance(function, functools.partial):
        function = function.func
    if inspect.iscoroutinefunction(function):
        return True
    return not inspect.isroutine(function) and inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


def bind(body: Any, where: str, *, asks: bool = False, brief: bool = False) -> Binding:
    """Read the signature of a body, or of a condition where it `asks`; `brief` as in `Binding`.

    Raises: DefinitionError for what is no body: a class, a generator function, a parameter that nothing can fill.
    """
    if isinstance(body, Binding):
        return body
    binding = _bound(body, where, asks=asks)
    binding.brief = brief
    return binding


def _bound(body: Any, where: str, *, asks: bool) -> Binding:
    what = f"{'condition of edge' if asks else 'node'} {where!r}: " if where else ""
    if isinstance(body, type):
        raise DefinitionError(f"{what}{body.__name__} is a class; pass an instance", where=where)
    if isinstance(body, (Member, Strategy)):
        raise DefinitionError(f"{what}{_STRAY[type(body)]}", where=where)
    function: Any = getattr(body, "__wrapped__", body) if getattr(body, "_is_step", False) else body
    if not inspect.isroutine(body) and callable(getattr(body, "run", None)):
        function = body.run
    if not callable(function):
        lacks = "is no body: pass a function, an object with run(), a Workflow or a Team"
        lacks = "cannot be called: pass a function of the context" if asks else lacks
        raise DefinitionError(f"{what}{body!r:.200} {lacks}", where=where)
    plain = function
    while isinstance(plain, functools.partial):
        plain = plain.func
    code = plain if inspect.isroutine(plain) else type(plain).__call__
    if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
        name, instead = getattr(plain, "__name__", plain), "the verdict" if asks else "a list"
        raise DefinitionError(f"{what}{name!r} is a generator function; return {instead} instead of yielding", where=where)
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        call: Callable[[Any, Any], Any] = (lambda ctx, _: function(ctx)) if asks else (lambda _, given: function(given))
        return Binding(body, function, call, None, wants_context=asks, asks=asks)
    roles, annotation = _roles(function, signature, what, where)
    if asks and annotation is None and not any(role == "context" for _, role in roles):
        roles = [(parameter, "context") for parameter, _ in roles]
    wants_context = any(role == "context" for _, role in roles)
    return Binding(body, function, _caller(function, roles), annotation, wants_context=wants_context, asks=asks)


def _roles(function: Any, signature: inspect.Signature, what: str, where: str) -> tuple[list[tuple[inspect.Parameter, str]], Any]:
    """Return what each parameter that is filled receives, and the model that the input is built into."""
    hints = _hints(function)
    roles: list[tuple[inspect.Parameter, str]] = []
    annotation: Any = None
    taken = False
    for parameter in signature.parameters.values():
        hint = hints.get(parameter.name, parameter.annotation)
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if parameter.name in CONTEXT_NAMES or _is_context(hint):
            roles.append((parameter, "context"))
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            if not taken:
                roles.append((parameter, "input"))
                taken = True
        elif parameter.default is not inspect.Parameter.empty:
            continue
        elif not taken:
            roles.append((parameter, "input"))
            annotation = hint if is_model(hint) else None
            taken = True
        else:
            text = f"{what}parameter {parameter.name!r} of {getattr(function, '__qualname__', function)!r} cannot be filled: "
            raise DefinitionError(text + "only the input and the context are handed over; give further parameters defaults", where=where)
    return roles, annotation


def _caller(function: Any, roles: list[tuple[inspect.Parameter, str]]) -> Callable[[Any, Any], Any]:
    """Return `call(context, input)`; the common shapes without building argument lists."""
    by_place = [r for p, r in roles if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    by_name = {p.name: r for p, r in roles if p.kind is inspect.Parameter.KEYWORD_ONLY}
    gap = [p for p, _ in roles if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD and p.default is not inspect.Parameter.empty]
    if by_name or gap:
        names = {p.name: r for p, r in roles if p in gap or p.kind is inspect.Parameter.KEYWORD_ONLY}
        places = [r for p, r in roles if p.name not in names]

        def call(ctx: Any, given: Any) -> Any:
            have = {"context": ctx, "input": given}
            return function(*(have[r] for r in places), **{n: have[r] for n, r in names.items()})

        return call
    match by_place:
        case []:
            return lambda ctx, given: function()
        case ["input"]:
            return lambda ctx, given: function(given)
        case ["context"]:
            return lambda ctx, given: function(ctx)
        case ["input", "context"]:
            return lambda ctx, given: function(given, ctx)
        case ["context", "input"]:
            return lambda ctx, given: function(ctx, given)
        case _:
            return lambda ctx, given: function(*(ctx if r == "context" else given for r in by_place))


def _hints(function: Any) -> dict[str, Any]:
    """The resolved annotations; one that cannot be resolved counts as none."""
    target = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    while isinstance(target, functools.partial):
        target = target.func
    try:
        return typing.get_type_hints(target)
    except Exception:  # noqa: BLE001 - whatever a foreign annotation does, the body can still be called
        return {name: hint for name, text in getattr(target, "__annotations__", {}).items() if (hint := _hint(target, text)) is not None}


def _hint(function: Any, written: Any) -> Any:
    """Resolve one annotation None where that fails; a context is known by its name, also where it is imported for types alone."""
    if not isinstance(written, str):
        return written
    if any(part.strip("'\" ").rpartition(".")[2] in ("Context", "WorkflowContext") for part in written.split("|")):
        return Context
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": written}), getattr(function, "__globals__", {}))["it"]
    except Exception:  # noqa: BLE001 - as above
        return None


def _is_context(hint: Any) -> bool:
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return any(isinstance(kind, type) and issubclass(kind, Context) for kind in kinds)


def code_of(plan: Plan) -> str:
    """Return a hash of the code of a plan's bodies and conditions, as far as it can be seen; worked out once."""
    if "code" not in plan.memo:
        digest = hashlib.blake2b(digest_size=12)
        known: dict[int, bytes] = {}
        things = [*(n.body for n in plan.nodes), *(e.condition for e in plan.edges)]
        for thing in things:
            if isinstance(thing, TeamPlan):
                things += [*(member.body for member in thing.members), thing.mapper, thing.judge]
                continue
            if id(thing) not in known:
                known[id(thing)] = code_of(thing).encode() if isinstance(thing, Plan) else _code_bytes(getattr(thing, "body", thing))
            digest.update(known[id(thing)])
        plan.memo["code"] = digest.hexdigest()
    return plan.memo["code"]


def _code_bytes(body: Any) -> bytes:
    function = getattr(body, "__wrapped__", body)
    function = getattr(function, "run", function) if not inspect.isroutine(function) else function
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return b"" if code is None else _frozen(code)


def _frozen(code: types.CodeType) -> bytes:
    """What a function does, without where it stands in its file."""
    parts = [code.co_code, repr(code.co_names).encode()]
    parts += [_frozen(c) if isinstance(c, types.CodeType) else repr(c).encode() for c in code.co_consts if not isinstance(c, frozenset)]
    return b"|".join(parts)


def step(function: Any = None, *, name: str | None = None) -> Any:
    """Mark a function as a body: `@step`, `@step("Name")` or `@step(name="Name")`.

    The function becomes awaitable and keeps its name, documentation and signature. A sync function runs off the event loop, there too.
    """
    if function is None or isinstance(function, str):
        return functools.partial(_mark, name=function or name)
    return _mark(function, name=name)


def _mark(function: Any, *, name: str | None = None) -> Any:
    if not callable(function) or isinstance(function, type):
        raise DefinitionError(f"@step marks functions, not {function!r}")

    body: Any = function

    @functools.wraps(function)
    async def marked(*args: Any, **kwargs: Any) -> Any:
        if is_async(function):
            return await body(*args, **kwargs)
        answer: Any = await asyncio.to_thread(function, *args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer

    marked._is_step = True  # type: ignore[attr-defined]
    marked._step_name = name or getattr(function, "__name__", "step")  # type: ignore[attr-defined]
    return marked
