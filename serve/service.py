"""The use cases of the command line, and later of the HTTP service: no typer, no HTTP, no printing.

It opens storage, finds workflows and runs, and gives back plain records; how they are shown is for the caller.
"""

import asyncio
import html
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from cluster.command import layers_of
from cluster.packing import Mode
from cluster.placing import demand_of, demand_text, mode_of
from engine.checkpoint.record import Recorded
from engine.checkpoint.table import error_text
from engine.core.events import Event
from engine.core.graph import Node, Problem
from engine.core.ids import check_name, make_run_id
from engine.core.places import shown
from engine.core.plan import Plan
from engine.core.policy import Policy, check_limit
from engine.core.registry import unknown
from engine.core.run import FINAL, Status
from engine.core.state import opened
from engine.core.team import Member, TeamPlan, named
from engine.definition.target import load_target
from engine.engine import Engine
from engine.errors import ConfigurationError, DefinitionError, InvalidDocument, InvalidGraph, StoreUnavailable, UnknownName, WrongState
from engine.handle import RunHandle
from engine.ports import Log, RunKey, RunSummary
from engine.store import DEFAULT_PLACE
from engine.team import Team
from engine.workflow import Workflow
from serve.report import StepReport, raised_at, steps_of

STATUSES = (*(s.value for s in Status), "interrupted")
"""What a run may be listed as: its status, or `interrupted` for one that is recorded as running and that nobody drives."""

ENDED = ("paused", "completed", "failed", "cancelled", "timed_out")
"""Statuses in which nobody drives a run."""

TAKEOVER, LOOK_AGAIN = 20.0, 0.25
"""Seconds that a run without a coordinator is watched for, and between two looks."""

MOST_NAMES = 6
"""Of so many members of a team the name is said."""

FORMATS = ("arrow", "parquet", "csv", "jsonl")

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


class Place(NamedTuple):
    """Where runs are recorded."""

    url: str | Log
    default: bool
    """Whether nobody said where."""

    @property
    def option(self) -> str | None:
        """What `--storage` has to say to find it again; None where that is not needed or not possible."""
        return None if self.default or not isinstance(self.url, str) else self.url


def find_place(said: str | None, configured: str | None, flow: Workflow | None = None) -> Place:
    """Return where runs are recorded: what was said, else what the environment says, else what the workflow says, else `./.gecko`."""
    if said or configured:
        return Place(said or configured or "", default=False)
    own = None if flow is None or isinstance(flow.storage, bool) else flow.storage
    if own is not None:
        return Place(own if not isinstance(own, os.PathLike) else os.fspath(own), default=False)
    return Place(f"./{DEFAULT_PLACE}", default=True)


def open_engine(place: Place | None, *, executor: str | None = None) -> Engine:
    """Return an engine over a place; None: nothing is recorded."""
    return Engine(False if place is None else place.url, executor=executor)


def url_of(place: Place) -> str:
    """Return a place as a URL for people."""
    log = open_engine(place).log
    assert log is not None
    return shown(log.url)


def log_url(place: Place) -> str:
    """Return the URL by which other processes open a place, with what it holds of secrets."""
    log = open_engine(place).log
    assert log is not None
    return log.url


def load(target: str) -> Workflow:
    """Return the workflow of a target."""
    return cast(Workflow, load_target(target))


def check_session(session: str | None) -> None:
    """Refuse a session's name that cannot be one.

    Raises: DefinitionError.
    """
    if session is not None and (wrong := check_name(session, "a session id")):
        raise DefinitionError(wrong, where="--session")


def check_timeout(timeout: float | None) -> None:
    """Refuse a limit that cannot be one.

    Raises: DefinitionError.
    """
    check_limit(timeout, "--timeout")


# Looking at a workflow.


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """How a node, or a member of a team, would be performed on Ray."""

    name: str
    mode: str
    """sync, async, own (a pack of its own), workflow, team; of a map, that of its items. Of a member that is no body: none."""
    is_map: bool = False
    why: str = ""
    """What makes it so, where it is the node's policy and not its body."""
    strategy: str = ""
    """Of a team."""
    members: tuple["NodePlan", ...] = ()
    """Of a team. Those that are async are performed beside others, each other in a process of its own."""


def plan_of(flow: Workflow) -> list[list[NodePlan]]:
    """Return the layers and how their nodes would be packed.

    Raises: InvalidGraph.
    """
    return [[_node_plan(flow.graph.nodes[name]) for name in layer] for layer in layers_of(flow)]


def _node_plan(node: Node) -> NodePlan:
    is_map = node.kind == "map"
    if isinstance(node.body, Workflow):
        return NodePlan(name=node.name, mode="workflow", is_map=is_map)
    if isinstance(node.body, Team):
        return _team_plan(node.name, node.body.compiled(), node.policy, is_map=is_map)
    is_async = getattr(node.body, "is_async", False)
    mode = mode_of(node.policy, is_async=is_async)
    return NodePlan(name=node.name, mode=mode.value, is_map=is_map, why=_why(node.policy, mode, is_async=is_async))


def _why(policy: Policy, mode: Mode, *, is_async: bool) -> str:
    if mode is Mode.OWN:
        return f"asks for {demand_text(demand_of(policy.resources))}"
    return "executor 'inline'" if mode is Mode.ASYNC and not is_async else ""


def _team_plan(name: str, team: TeamPlan, policy: Policy, *, is_map: bool = False) -> NodePlan:
    members = tuple(_member_plan(named(member, name, policy), member.name, team.lacks.get(i)) for i, member in enumerate(team.members))
    return NodePlan(name=name, mode="team", is_map=is_map, strategy=team.strategy.text, members=members)


def _member_plan(member: Node, name: str, lack: str | None) -> NodePlan:
    if lack is not None:
        return NodePlan(name=name, mode="none", why=lack)
    if isinstance(member.body, Plan):
        return NodePlan(name=name, mode="workflow")
    if isinstance(member.body, TeamPlan):
        return _team_plan(name, member.body, member.policy)
    is_async = getattr(member.body, "is_async", False)
    mode = mode_of(member.policy, is_async=is_async)
    return NodePlan(name=name, mode=mode.value, why=_why(member.policy, mode, is_async=is_async))


def graph_of(flow: Workflow) -> dict[str, Any]:
    """Return the graph as plain data."""
    back, _ = flow.graph.back_edges()
    nodes = [
        {
            "name": node.name,
            "kind": _kind_of(node),
            "body": node.body.name if isinstance(node.body, (Workflow, Team)) else getattr(node.body, "key", ""),
            "team": _team_data(node.body) if isinstance(node.body, Team) else None,
            "join": node.join,
            "over": node.over,
            "on_error": node.policy.on_error,
            "fallback": node.policy.fallback,
        }
        for node in flow.graph.nodes.values()
    ]
    edges = [
        {"source": edge.source, "target": edge.target, "conditional": edge.condition is not None, "back": bool(back[i])}
        for i, edge in enumerate(flow.graph.edges)
    ]
    depends = [{"node": node, "on": on} for node, on in flow.graph.dependencies]
    return {"name": flow.name, "entries": list(flow.graph.entries), "nodes": nodes, "edges": edges, "dependencies": depends}


def _kind_of(node: Node) -> str:
    if isinstance(node.body, Team) and node.kind == "step":
        return "team"
    return "workflow" if isinstance(node.body, Workflow) else node.kind


def _team_data(team: Team) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for index, (name, body) in enumerate(_members_of(team)):
        kind = "workflow" if isinstance(body, Workflow) else "team" if isinstance(body, Team) else "step"
        inner = _team_data(body) if isinstance(body, Team) else None
        found.append({"index": index, "name": name, "kind": kind, "team": inner})
    return {"strategy": team.strategy.text, "timeout": team.timeout, "members": found}


def _members_of(team: Team) -> list[tuple[str, Any]]:
    """Return name and body of each member."""
    bodies = [member.body if isinstance(member, Member) else member for member in team.members]
    try:
        names = [member.name for member in team.compiled().members]
    except InvalidGraph:  # of a member that is a workflow; what is wrong with it is for `problems_of` to say
        names = [f"member {i}" for i in range(len(bodies))]
    return list(zip(names, bodies, strict=True))


def teams_of(flow: Workflow) -> dict[str, Team]:
    """Return the nodes whose body, or whose items' body, is a team; one in a sub-workflow as `outer/inner`."""
    found: dict[str, Team] = {}
    for node in flow.graph.nodes.values():
        if isinstance(node.body, Team):
            found[node.name] = node.body
        elif isinstance(node.body, Workflow) and node.body is not flow:
            found |= {f"{node.name}/{name}": team for name, team in teams_of(node.body).items()}
    return found


def team_text(team: Team) -> str:
    """Return a team in a few words: its strategy, how many members it has, and the names of the first of them."""
    names = [name for name, _ in _members_of(team)]
    more = f", {len(names) - MOST_NAMES:,} more" if len(names) > MOST_NAMES else ""
    return f"{team.strategy.text} of {len(names):,}: {', '.join(names[:MOST_NAMES])}{more}" if names else f"{team.strategy.text} of nobody"


def mermaid_of(flow: Workflow) -> str:
    """Return the picture of a workflow as Mermaid text, in which a team says its strategy and its members."""
    lines = flow.to_mermaid().split("\n")
    for number, node in enumerate(flow.graph.nodes.values(), 1):  # the first line says what picture it is; then comes a line for each node
        if isinstance(node.body, Team):
            shape, quote, end = lines[number].rpartition('"')
            lines[number] = f"{shape}<br/>{html.escape(team_text(node.body))}{quote}{end}"
    return "\n".join(lines)


def problems_of(flow: Workflow) -> list[Problem]:
    """Return every problem of a workflow, warnings last."""
    return sorted(flow.problems(), key=lambda problem: problem.warning)


# Looking at runs.


def shown_status(summary: RunSummary) -> str:
    """Return the status as lists show it."""
    return "interrupted" if summary.status in ("running", "pending") and summary.owner is None else summary.status


async def list_runs(engine: Engine, *, status: str | None = None, workflow: str | None = None) -> list[RunSummary]:
    """Return the runs, newest first.

    Raises: UnknownName for a status that is none.
    """
    if status is not None and status not in STATUSES:
        raise UnknownName(unknown("status", status, STATUSES), where="--status")
    found = await engine.runs(workflow=workflow)
    return [s for s in found if status in (None, s.status, shown_status(s))]


async def prunable(engine: Engine, older_than: float) -> list[RunSummary]:
    """Return the runs that `Engine.prune` would remove now, newest first."""
    before = time.time() - older_than
    return [s for s in await engine.runs() if s.status in FINAL and s.updated_at <= before]


async def summary_of(engine: Engine, run: str) -> RunSummary:
    """Return what lists know of one run, by id, unique beginning or session.

    Raises: RunNotFound.
    """
    key = await engine.find(run)
    assert engine.log is not None
    return next(s for s in await engine.log.scan(workflow=key.workflow, session=key.session) if s.key == key)


async def recorded_of(engine: Engine, run: str) -> tuple[RunKey, Recorded]:
    """Return what the log of a run holds.

    Raises: RunNotFound, CorruptCheckpoint, UnknownFormat.
    """
    key = await engine.find(run)
    assert engine.log is not None
    return key, Recorded(await engine.log.read(key))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """A run as its log tells it."""

    run_id: str
    workflow: str
    session: str
    status: str
    started_at: float
    updated_at: float
    seq: int
    resumes: int
    target: str | None
    input: Any
    output: Any
    error: str | None
    place: str | None
    steps: list[StepReport]
    conditions: list[str]
    """Conditions that failed, and counted as false, without a node being skipped for it."""


async def report_of(engine: Engine, run: str) -> RunReport:
    """Return what happened in a run, step by step.

    Raises: RunNotFound, CorruptCheckpoint, UnknownFormat.
    """
    summary = await summary_of(engine, run)
    key, recorded = await recorded_of(engine, make_run_id(*summary.key))
    error = None if recorded.status == "running" else recorded.ended.get("error")
    status = shown_status(summary)
    steps, conditions = steps_of(recorded.rows, status)
    return RunReport(
        run_id=make_run_id(*key),
        workflow=key.workflow,
        session=key.session,
        status=status,
        started_at=summary.started_at,
        updated_at=summary.updated_at,
        seq=summary.seq,
        resumes=recorded.resumes,
        target=target_of(recorded),
        input=opened(recorded.input),
        output=opened(recorded.output),
        error=None if error is None else error_text(error),
        place=raised_at(error),
        steps=steps,
        conditions=conditions,
    )


def target_of(recorded: Recorded) -> str | None:
    """Return where the workflow of a run was found when it was started; None where nothing else can find it."""
    return (recorded.started or {}).get("target")


async def events_of(engine: Engine, run: str, *, after: int = 0, follow: bool = False) -> AsyncGenerator[Event]:
    """Yield the committed events of a run; with `follow` those to come too, until nobody drives it.

    A run that belongs to a cluster is waited for, for a while, where its coordinator is gone: another one goes on with it.
    """
    until, submitted = time.monotonic() + TAKEOVER, False
    while True:
        async for event in engine.events(run, after, follow=follow):
            until, after = time.monotonic() + TAKEOVER, max(after, event.seq)
            submitted = submitted or "submission" in event.data
            yield event
        if not (follow and submitted) or (await summary_of(engine, run)).status in ENDED or time.monotonic() > until:
            return
        await asyncio.sleep(LOOK_AGAIN)


async def resumer(
    engine: Engine, run: str, target: str | None, *, accept: bool, takeover: bool
) -> tuple[RunKey, Workflow, Callable[[], Any]]:
    """Return the key and the workflow of a recorded run, and what resumes it.

    Raises: RunNotFound, WrongState where its code has to be named, DefinitionError where it is another workflow's.
    """
    key, recorded = await recorded_of(engine, run)
    run_id = make_run_id(*key)
    where = target or target_of(recorded)
    if where is None:
        text = (
            f"run {run_id!r} was started from code that has no name elsewhere; name its workflow: gecko runs resume {run_id} file.py:flow"
        )
        raise WrongState(text)
    flow = load(where)
    if flow.name != key.workflow:
        raise DefinitionError(f"run {run_id!r} is one of workflow {key.workflow!r}, and {where} is workflow {flow.name!r}", where=where)

    async def resume() -> RunHandle:
        return await engine.resume(run_id, flow=flow, accept=accept, takeover=takeover)

    return key, flow, resume


async def export(engine: Engine, runs: Sequence[str] | None, file: Path) -> int:
    """Write the events of runs (None: of all) to a file, in the format that its name ends with; returns the number of rows.

    The file appears whole or not at all.

    Raises: ConfigurationError for another ending, RunNotFound, StoreUnavailable where the file cannot be written.
    """
    form = file.suffix.lstrip(".").lower()
    if form not in FORMATS:
        raise ConfigurationError(
            f"{str(file)!r}: runs are exported to files that end in {', '.join('.' + f for f in FORMATS)}", where=str(file)
        )
    from engine.checkpoint.table import table_of  # it leads to pyarrow, which only a table needs

    assert engine.log is not None
    table = table_of(engine.log, None if runs is None else [await engine.find(run) for run in runs])
    try:
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            _write(table, beside, form)
            os.replace(beside, file)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"{str(file)!r} cannot be written: {error.strerror or error}") from error
    return table.num_rows


def _write(table: Any, path: Path, form: str) -> None:
    match form:
        case "arrow":
            import pyarrow as pa

            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        case "parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(table, path, compression="zstd")
        case "csv":
            import pyarrow.csv

            pyarrow.csv.write_csv(table, path)
        case _:
            from engine.checkpoint.table import json_text

            with path.open("w", encoding="utf-8") as sink:
                for batch in table.to_batches(max_chunksize=4096):
                    sink.writelines(json_text(row) + "\n" for row in batch.to_pylist())


def parse_age(text: str) -> float:
    """Return the seconds of an age such as `30d`, `12h`, `90`.

    Raises: InvalidDocument.
    """
    found = _AGE.fullmatch(text.strip().lower())
    if found is None:
        raise InvalidDocument(f"{text!r} is no age: write a number and s, m, h, d or w, as 30d", where="--older-than")
    return float(found[1]) * _UNITS[found[2]]
