"""What users build, run and resume: a named graph of bodies."""

import asyncio
import importlib
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from enum import StrEnum
from typing import Any, Generic, Literal, Self, TypeVar, overload

from engine.checkpoint.codec import to_key
from engine.core.events import Event
from engine.core.graph import PLAIN, Composite, Edge, Graph, Join, Kind, Node, Problem
from engine.core.ids import check_name
from engine.core.plan import Options, Plan, compile_plan, layers
from engine.core.policy import Limits, OnError, Policy, Resources, Retry, check_count, check_limit
from engine.core.registry import unknown
from engine.core.state import REDUCERS
from engine.engine import Engine, known_executor
from engine.errors import DefinitionError, InvalidGraph, NotStorable, WorkflowCycleError
from engine.ports import Log
from engine.runtime.bind import Binding, bind

Body = Any
Condition = Callable[..., Any]
T = TypeVar("T")


class CheckpointStrategy(StrEnum):
    """When what a run did is put on storage."""

    #: what a layer stands on is on storage before it starts
    ALWAYS = "always"
    #: commits follow the work in order; a crash loses at most 50 ms or 64 commits
    ASYNC = "async"
    #: at the end, a pause, a failure
    FINAL = "final"
    #: at `ctx.checkpoint()` alone
    MANUAL = "manual"


class _Option(Generic[T]):
    """An option of a workflow: checked each time it is set, in force from the next run on."""

    def __init__(self, check: Callable[[str, Any], T]) -> None:
        self._check = check

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, flow: None, owner: Any = None) -> Self: ...
    @overload
    def __get__(self, flow: "Workflow", owner: Any = None) -> T: ...
    def __get__(self, flow: "Workflow | None", owner: Any = None) -> T | Self:
        return self if flow is None else vars(flow)[self._name]

    def __set__(self, flow: "Workflow", value: Any) -> None:
        vars(flow)[self._name] = self._check(self._name, value)
        flow._plan = None


class Workflow(Composite):
    """A named graph of nodes and edges with one or more entries.

    Adding methods return the workflow, so that they chain. They refuse at once what they can see; `problems` lists the rest.
    Options may be changed by assigning to them; a run has those of its start.
    """

    checkpoint_strategy: _Option[CheckpointStrategy] = _Option(lambda what, value: _strategy(what, value))
    on_commit_failure: _Option[Literal["stop", "warn"]] = _Option(lambda what, value: _one_of(what, value, ("stop", "warn")))
    max_steps: _Option[int] = _Option(lambda what, value: check_count(what, value, 0))
    max_history_retention: _Option[int | None] = _Option(lambda what, value: None if value is None else check_count(what, value, 0))
    max_concurrency: _Option[int | None] = _Option(lambda what, value: None if value is None else check_count(what, value, 1))
    on_conflict: _Option[Literal["warn", "error"]] = _Option(lambda what, value: _one_of(what, value, ("warn", "error")))
    executor: _Option[str | None] = _Option(lambda what, value: known_executor(value, what))
    _plan: Plan | None = None

    def __init__(
        self, name: str = "Workflow", *,
        storage: "str | Log | Literal[False] | None" = None, checkpoint_strategy: "CheckpointStrategy | str | None" = "always",
        on_commit_failure: Literal["stop", "warn"] = "stop", max_steps: int = 100, max_history_retention: int | None = 20,
        max_concurrency: int | None = None, allow_cycles: bool = False, enable_retry: bool = False, max_retries: int = 3,
        reducers: Mapping[Any, str | Callable[[Any, list[Any]], Any]] | None = None, on_conflict: Literal["warn", "error"] = "warn",
        event_bus: Any = None, executor: str | None = None, enable_parallel: bool = True,
    ) -> None:  # fmt: skip
        """Name a workflow.

        Args:
            storage: Where runs are recorded: a folder, `sqlite:///...`, `postgresql://...`, `memory://`, a `Log`. None: `./.gecko` for runs
                with a session, nothing else.
            max_steps: How many openings by jumps and back edges a run may have.
            max_history_retention: How many entries `ctx.history` shows; None: all.
            max_concurrency: How many steps of a run at once.
            enable_retry: Give every node without a `retry` of its own `max_retries` extra attempts, after 2, 4, 8... seconds.
            reducers: How concurrent writes of a state key combine: add, append, extend, merge, union, max, min, or a function
                `f(base, writes)` or its import path.
            event_bus: An object with `publish(event)`.
            executor: `inline` or `ray`; None: Ray where this process is connected to one and the storage is not its memory.
            enable_parallel: Accepted for workflows of earlier versions; layers are always parallel.
        """
        if wrong := check_name(name, "a workflow's name"):
            raise DefinitionError(wrong, where="name")
        self.name = name
        self.storage: str | Log | Literal[False] | None = storage
        self.checkpoint_strategy = checkpoint_strategy
        self.on_commit_failure = on_commit_failure
        self.max_steps = max_steps
        self.max_history_retention = max_history_retention
        self.max_concurrency = max_concurrency
        self.on_conflict = on_conflict
        self.executor = executor
        self.event_bus = event_bus
        self.target: str | None = None
        """Where the workflow is found again: `module:name` or `file.py:name`; found out at the start of a run where it is None."""
        self._graph = Graph(allow_cycles=allow_cycles)
        self._retry = Retry(attempts=1 + check_count("max_retries", max_retries, 0), delay=2.0) if enable_retry else None
        self._reducers, self._custom = _reducers(reducers or {})
        self._bound: dict[int, Binding] = {}
        """By id of a body, which its binding keeps alive: a body that many nodes share is looked at once."""
        self._nests = False
        """Whether some node's body is a workflow or team, which may change without this one."""
        self._latest = PLAIN
        self._module = sys._getframe(1).f_globals.get("__name__", "")

    def __repr__(self) -> str:
        return f"Workflow({self.name!r}, nodes={len(self._graph.nodes)}, edges={len(self._graph.edges)})"

    @property
    def allow_cycles(self) -> bool:
        """Whether edges may draw cycles."""
        return self._graph.allow_cycles

    @allow_cycles.setter
    def allow_cycles(self, allowed: bool) -> None:
        self._graph.allow_cycles = allowed
        self._plan = None

    # Building.

    def add_node(
        self, name: str, body: Body, *, join: Join = "any", retry: Retry | int | None = None, timeout: float | Limits | None = None,
        on_error: OnError = "fail", fallback: str | None = None, priority: int = 0, num_cpus: float | None = None,
        num_gpus: float | None = None, memory: float | None = None, resources: Mapping[str, float] | None = None,
        executor: str | None = None,
    ) -> Self:  # fmt: skip
        """Add a node: a function (sync or async), an object with `run`, another Workflow, or a Team.

        Args:
            join: When the node runs, once all it waits for has settled: `any` live edge, `all` of them, or at least so many.
            retry: How failed attempts are repeated; a number counts all attempts.
            timeout: Seconds for each attempt, or `Limits(attempt=..., node=...)`.
            on_error: After the last attempt: `fail` the run, `skip` the step, or let the `fallback` node's body stand in.
            num_cpus, num_gpus, memory, resources: What the node asks of Ray.
            executor: `inline` performs it where the run is driven.

        Raises: DefinitionError (a ValueError) for a second node of that name, what is no body, and a policy that cannot be.
        """
        policy = self._policy(name, retry, timeout, on_error, fallback, priority, _resources(
            name, num_cpus=num_cpus, num_gpus=num_gpus, memory=memory, custom=resources or {}), executor)  # fmt: skip
        return self._add(name, body, "step", policy, join=join)

    def add_map(
        self, name: str, body: Body, *, over: str | None = None, max_concurrency: int | None = None, join: Join = "any",
        retry: Retry | int | None = None, timeout: float | Limits | None = None, on_error: OnError = "fail", fallback: str | None = None,
        priority: int = 0, num_cpus: float | None = None, num_gpus: float | None = None, memory: float | None = None,
        resources: Mapping[str, float] | None = None, executor: str | None = None,
    ) -> Self:  # fmt: skip
        """Add a node that performs its body once for each item of its input list, or of the list under the state key `over`.

        Its output is the list of answers in item order. The policies are those of an item; `on_error="skip"` leaves None.
        """
        policy = self._policy(name, retry, timeout, on_error, fallback, priority, _resources(
            name, num_cpus=num_cpus, num_gpus=num_gpus, memory=memory, custom=resources or {}), executor)  # fmt: skip
        width = None if max_concurrency is None else check_count(f"node {name!r}: max_concurrency", max_concurrency, 1)
        return self._add(name, body, "map", policy, join=join, over=_state_key(f"node {name!r}: over", over), width=width)

    def _policy(
        self, name: str, retry: Retry | int | None, timeout: float | Limits | None, on_error: OnError, fallback: str | None, priority: int,
        resources: Resources, executor: str | None,
    ) -> Policy:  # fmt: skip
        _one_of(f"node {name!r}: on_error", on_error, ("fail", "skip", "fallback"))
        known_executor(executor, f"node {name!r}: executor")
        check_count(f"node {name!r}: priority", priority)
        if isinstance(retry, int) and not isinstance(retry, bool):
            retry = Retry(attempts=check_count(f"node {name!r}: retry", retry, 1))
        if retry is not None and not isinstance(retry, Retry):
            raise DefinitionError(f"node {name!r}: retry={retry!r} is neither a number of attempts nor a Retry", where=name)
        limits = timeout if isinstance(timeout, Limits) else Limits(attempt=check_limit(timeout, f"node {name!r}: timeout"))
        policy = Policy(retry=retry or self._retry, limits=limits, on_error=on_error, fallback=fallback, priority=priority,
                        resources=resources, executor=executor)  # fmt: skip
        if policy != self._latest:  # nodes in a row mostly share one, and a large graph then is less for the garbage collector to look at
            self._latest = policy
        return self._latest

    def _add(
        self, name: str, body: Body, kind: Kind, policy: Policy, *, join: Join, over: str | None = None, width: int | None = None
    ) -> Self:
        bound = body
        if not isinstance(body, Composite):
            bound = self._bound[id(body)] = self._bound.get(id(body)) or bind(body, str(name))
        elif body.contains(self):
            raise DefinitionError(f"node {name!r}: a workflow cannot contain itself", where=name)
        else:
            self._nests = True
        self._graph.add_node(Node(name=name, body=bound, kind=kind, policy=policy, join=join, over=over, width=width))
        self._plan = None
        return self

    def contains(self, other: Any) -> bool:
        """Tell whether something is this workflow, or in it at any depth."""
        inner = [n.body for n in self._graph.nodes.values() if isinstance(n.body, Composite)]
        return other is self or any(body.contains(other) for body in inner)

    def add_edge(self, source: str, target: str, condition: Condition | None = None) -> Self:
        """Add an edge; `condition(ctx)` (sync or async) is asked once a pass, when the source has settled.

        Raises: DefinitionError for an end that is not there, the source first.
        """
        bound = None if condition is None else bind(condition, f"{source} -> {target}", asks=True)
        self._graph.add_edge(Edge(source, target, bound))  # type: ignore[arg-type]
        self._plan = None
        return self

    def set_dependency(self, node: str, on: str | Iterable[str]) -> Self:
        """Let a node wait for others without an edge: nothing is handed on, no join counts them."""
        names: list[Any] = list(on) if isinstance(on, Iterable) and not isinstance(on, str) else [on]
        if wrong := [name for name in (node, *names) if not isinstance(name, str)]:
            raise DefinitionError(f"set_dependency takes names of nodes, not {wrong[0]!r:.80}", where="set_dependency")
        self._graph.dependencies += [(node, name) for name in names]
        self._plan = None
        return self

    def set_entry_point(self, *names: str) -> Self:
        """Say where runs start; replaces what was said before."""
        for name in names:
            self._graph.check_known("Entry point", name)
        self._graph.entries = list(dict.fromkeys(names))
        self._plan = None
        return self

    def add_parallel_group(self, *names: str) -> Self:
        """Change nothing: layers are always parallel. Kept for workflows of earlier versions."""
        for name in names:
            self._graph.check_known("Node", name)
        return self

    # Looking at it.

    def problems(self) -> list[Problem]:
        """Return everything that is wrong with the graph, those of inner workflows included; warnings stop nothing."""
        found = self._graph.problems()
        for node in self._graph.nodes.values():
            if isinstance(node.body, Composite):
                found += [p._replace(text=f"in node {node.name!r}: {p.text}", where=f"{node.name}/{p.where}") for p in node.body.problems()]
        return found

    def validate(self) -> bool:
        """Tell whether the workflow can run; `problems` says why not."""
        return not any(not p.warning for p in self.problems())

    def compiled(self) -> Plan:
        """Return the plan of the graph.

        Raises: InvalidGraph with all problems.
        """
        if self._plan is None or (self._nests and self._changed_inside(self._plan)):
            bad = [p for p in self.problems() if not p.warning]
            if bad:
                kind = WorkflowCycleError if all(p.kind == "cycle" for p in bad) else InvalidGraph
                text = "; ".join(p.text for p in bad)
                raise kind(f"workflow {self.name!r} cannot run: {text}", problems=bad, where=bad[0].where)
            self._plan = self._compile()
        return self._plan

    def _changed_inside(self, plan: Plan) -> bool:
        """Tell whether a workflow or team in this one is another than it was: a plan that is the same need not travel again."""
        try:
            return any(
                isinstance(node.body, Composite) and node.body.compiled() is not known.body
                for node, known in zip(self._graph.nodes.values(), plan.nodes, strict=True)
            )
        except InvalidGraph:
            return True

    def _compile(self) -> Plan:
        graph = Graph(allow_cycles=self._graph.allow_cycles, edges=self._graph.edges, dependencies=self._graph.dependencies)
        graph.entries = self._graph.entries
        for node in self._graph.nodes.values():
            body = node.body.compiled() if isinstance(node.body, Composite) else node.body
            graph.nodes[node.name] = node if body is node.body else _with_body(node, body)
        options = Options(
            max_steps=self.max_steps, retention=self.max_history_retention, reducers=self._reducers, custom=self._custom,
            on_conflict=self.on_conflict, max_concurrency=self.max_concurrency,
        )  # fmt: skip
        return compile_plan(graph, options)

    def layers(self, start: str | None = None) -> list[set[str]]:
        """Return the layers in which the nodes run if every condition holds and nothing jumps."""
        return layers(self.compiled(), start)

    def to_mermaid(self) -> str:
        """Return the graph as Mermaid text."""
        ids = {name: f"n{i}" for i, name in enumerate(self._graph.nodes)}
        lines = ["graph TD"]
        for name in self._graph.nodes:
            label = '"' + name.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;") + '"'
            lines.append(f"    {ids[name]}(({label}))" if name in self._graph.entries else f"    {ids[name]}({label})")
        for edge in self._graph.edges:
            arrow = "-->" if edge.condition is None else "-->|condition|"
            lines.append(f"    {ids[edge.source]} {arrow} {ids[edge.target]}")
        lines += [f"    {ids[on]} -.-> {ids[node]}" for node, on in self._graph.dependencies]
        return "\n".join(lines)

    def print_structure(self) -> None:
        """Print the graph as Mermaid text."""
        print(self.to_mermaid())

    @property
    def graph(self) -> Graph:
        """The graph under construction; for looking at."""
        return self._graph

    def find_target(self) -> str | None:
        """Return the import path by which another process finds this workflow, None where there is none."""
        if self.target is None and self._module not in ("", "__main__", "__mp_main__"):
            module = sys.modules.get(self._module)
            for name, value in vars(module).items() if module else ():
                if value is self:
                    self.target = f"{self._module}:{name}"
                    break
        return self.target

    # Running it.

    async def execute(
        self, input: Any = None, *, session_id: str | None = None, start_node: str | None = None, timeout: float | None = None,
        executor: str | None = None, new: bool = False, output_type: Any = None,
    ) -> Any:  # fmt: skip
        """Run the workflow and return its last output.

        With a `session_id` the run is recorded: the same call again goes on where it stopped, or gives the result of a finished run.

        Args:
            timeout: Limit of the run in seconds; what is committed can be resumed.
            new: Start the session's next run.
            output_type: A type, pydantic model or dataclass that the output is built into.

        Raises: InvalidGraph before anything runs; StepFailed and other WorkflowErrors; RunBusy, SessionInUse.
        """
        handle = await self._engine(executor).start(
            self, input, session_id=session_id, start_node=start_node, timeout=timeout, new=new, output_type=output_type,
            watch=self.event_bus is not None,
        )  # fmt: skip
        return await handle.wait()

    execute_parallel = execute

    async def resume(self, session_or_run_id: str, *, accept: bool = False, takeover: bool = False) -> Any:
        """Go on with a recorded run and return its output.

        Args:
            accept: Go on although recorded nodes are gone or rewired.
            takeover: Take the run from an owner that seems to live.

        Raises: RunNotFound (a ValueError) where nothing is recorded.
        """
        handle = await self._engine().resume(session_or_run_id, flow=self, accept=accept, takeover=takeover)
        return await handle.wait()

    async def stream(
        self, input: Any = None, *, session_id: str | None = None, start_node: str | None = None, timeout: float | None = None,
        executor: str | None = None, new: bool = False,
    ) -> AsyncIterator[Event]:  # fmt: skip
        """Run the workflow and yield its events as they are committed, transient ones between them; arguments as in `execute`.

        How the run ends is told by the last event and not raised: `run_failed`, say. A run that is closed early is drained.
        """
        handle = await self._engine(executor).start(
            self, input, session_id=session_id, start_node=start_node, timeout=timeout, new=new
        )  # fmt: skip
        try:
            async for event in handle.events(transient=True):
                yield event
        finally:
            await handle.drain()

    def run_sync(
        self, input: Any = None, *, session_id: str | None = None, start_node: str | None = None, timeout: float | None = None,
        executor: str | None = None, new: bool = False, output_type: Any = None,
    ) -> Any:  # fmt: skip
        """Do what `execute` does, from code that is not async; inside a running event loop it uses a thread of its own."""
        return run_blocking(
            self.execute(
                input, session_id=session_id, start_node=start_node, timeout=timeout, executor=executor, new=new, output_type=output_type
            )
        )  # fmt: skip

    def _engine(self, executor: str | None = None) -> Engine:
        return Engine(self.storage, executor=executor or self.executor)


def run_blocking(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end from sync code, also inside a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append((asyncio.run(work), None))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            answer.append((None, error))

    thread = threading.Thread(target=run, name="gecko-run")
    thread.start()
    thread.join()
    value, error = answer[0]
    if error is not None:
        raise error
    return value


def _resources(node: str, **asked: Any) -> Resources:
    try:
        return Resources(**asked)
    except DefinitionError as error:
        raise DefinitionError(f"node {node!r}: {error}", where=f"{node}: {error.where}") from None


def _with_body(node: Node, body: Any) -> Node:
    return Node(name=node.name, body=body, join=node.join, policy=node.policy, kind=node.kind, over=node.over, width=node.width)


def _strategy(what: str, value: Any) -> CheckpointStrategy:
    try:
        return CheckpointStrategy(value if value is not None else "always")
    except ValueError:
        raise DefinitionError(unknown(what, value, [s.value for s in CheckpointStrategy]), where=what) from None


def _one_of(what: str, value: Any, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise DefinitionError(f"{what}={value!r} is none of {', '.join(map(repr, allowed))}", where=what)
    return value


def _state_key(what: str, key: Any) -> Any:
    try:
        return to_key(key)
    except NotStorable as error:
        raise DefinitionError(f"{what} must be a state key, not {key!r:.80}", where=what) from error


def _reducers(given: Mapping[Any, Any]) -> tuple[dict[Any, str], dict[str, Any]]:
    """Split reducers into key to name, and name to what a custom one is."""
    names: dict[Any, str] = {}
    custom: dict[str, Any] = {}
    for key, reducer in ((_state_key("a key of reducers", key), reducer) for key, reducer in given.items()):
        if isinstance(reducer, str) and reducer in REDUCERS:
            names[key] = reducer
        elif isinstance(reducer, str):
            names[key] = reducer
            custom[reducer] = _import(reducer, key)
        elif callable(reducer):
            path = base = f"{getattr(reducer, '__module__', '')}:{getattr(reducer, '__qualname__', repr(reducer))}"
            number = 1
            while custom.get(path, reducer) is not reducer:  # lambdas, and what a factory makes, share their name
                number += 1
                path = f"{base}#{number}"
            names[key], custom[path] = path, reducer
        else:
            raise DefinitionError(f"reducer of {key!r}: {reducer!r} is neither a name nor a function", where=str(key))
    return names, custom


def _import(path: str, key: Any) -> Any:
    module, _, name = path.partition(":")
    try:
        if not name:
            raise AttributeError
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        text = unknown(f"reducer of {key!r}:", path, REDUCERS)
        raise DefinitionError(f"{text}; or give an import path 'package.module:function'", where=str(key)) from error
    return found


__all__ = ["Binding", "CheckpointStrategy", "Workflow", "run_blocking"]
