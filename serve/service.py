"""The use cases of the command line, and later of the HTTP service: no typer, no HTTP, no printing.

It opens storage, finds workflows and runs, and gives back plain records; how they are shown is for the caller.
"""

import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

from cluster.command import layers_of
from cluster.notices import place_of
from cluster.packing import Mode
from cluster.placing import demand_of, demand_text, mode_of
from engine.checkpoint.record import Recorded, info_of
from engine.checkpoint.table import error_text
from engine.core.events import Event
from engine.core.graph import Node, Problem
from engine.core.ids import check_name, make_run_id
from engine.core.policy import check_limit
from engine.core.registry import unknown
from engine.core.run import FINAL, Status
from engine.core.state import opened
from engine.definition.target import load_target
from engine.engine import Engine
from engine.errors import ConfigurationError, DefinitionError, InvalidDocument, StoreUnavailable, UnknownName, WrongState
from engine.handle import RunHandle
from engine.ports import Log, Row, RunKey, RunSummary
from engine.store import DEFAULT_PLACE
from engine.workflow import Workflow

STATUSES = (*(s.value for s in Status), "interrupted")
"""What a run may be listed as: its status, or `interrupted` for one that is recorded as running and that nobody drives."""

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
    """Return a place as a URL."""
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
    """How a node would be performed on Ray."""

    name: str
    mode: str
    """sync, async, own (a pack of its own), workflow; of a map, that of its items."""
    is_map: bool = False
    why: str = ""
    """What makes it so, where it is the node's policy and not its body."""


def plan_of(flow: Workflow) -> list[list[NodePlan]]:
    """Return the layers and how their nodes would be packed.

    Raises: InvalidGraph.
    """
    return [[_node_plan(flow.graph.nodes[name]) for name in layer] for layer in layers_of(flow)]


def _node_plan(node: Node) -> NodePlan:
    if isinstance(node.body, Workflow):
        return NodePlan(name=node.name, mode="workflow")
    is_async = getattr(node.body, "is_async", False)
    mode, why = mode_of(node.policy, is_async=is_async), ""
    if mode is Mode.OWN:
        why = f"asks for {demand_text(demand_of(node.policy.resources))}"
    elif mode is Mode.ASYNC and not is_async:
        why = "executor 'inline'"
    return NodePlan(name=node.name, mode=mode.value, is_map=node.kind == "map", why=why)


def graph_of(flow: Workflow) -> dict[str, Any]:
    """Return the graph as plain data."""
    back, _ = flow.graph.back_edges()
    nodes = [
        {
            "name": node.name,
            "kind": "workflow" if isinstance(node.body, Workflow) else node.kind,
            "body": node.body.name if isinstance(node.body, Workflow) else getattr(node.body, "key", ""),
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


@dataclass(slots=True, kw_only=True)
class StepReport:
    """A step as its log tells it."""

    step: str
    """Its id without the run's: `node/pass`, in a sub-workflow the outer step's and an ordinal."""
    node: str
    status: str = "running"
    attempt: int = 1
    started_at: float = 0.0
    duration: float | None = None
    error: str | None = None
    place: str | None = None
    """`file:line` where the user's code raised the error."""
    why: str | None = None
    """Of a skipped node: which condition to it failed, and so counted as false."""
    items: int | None = None
    """Of a map: how many items, and how many of them succeeded."""
    done: int = 0
    failed_items: list[tuple[str, str, str | None]] = field(default_factory=list[tuple[str, str, str | None]])
    """Of a map: (index, error, place) of the newest items that failed an attempt, at most `MOST_ITEMS`."""


MOST_ITEMS = 10


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
    steps, conditions = _steps_of(recorded.rows)
    return RunReport(
        run_id=make_run_id(*key),
        workflow=key.workflow,
        session=key.session,
        status=shown_status(summary),
        started_at=summary.started_at,
        updated_at=summary.updated_at,
        seq=summary.seq,
        resumes=recorded.resumes,
        target=target_of(recorded),
        input=opened(recorded.input),
        output=opened(recorded.output),
        error=None if error is None else error_text(error),
        place=_place_of(error),
        steps=_ended(steps, shown_status(summary)),
        conditions=conditions,
    )


def _ended(steps: list[StepReport], status: str) -> list[StepReport]:
    """Say of what was under way when the run stopped that it is no longer: a map has no event of its own for that."""
    if status not in ("running", "pending"):
        for step in steps:
            if step.status in ("running", "retrying"):
                step.status = "failed" if status == "failed" and step.failed_items else "stopped"
    return steps


def _place_of(error: Any) -> str | None:
    return place_of(error.get("traceback")) if isinstance(error, Mapping) else None


def _steps_of(rows: Sequence[Row]) -> tuple[list[StepReport], list[str]]:
    """Return the steps, and the conditions that failed without a node being skipped for it."""
    steps: dict[str, StepReport] = {}
    failed: dict[str, list[str]] = {}
    told: list[str] = []
    for row in rows:
        if row.kind == "condition_failed":
            _take_condition(failed, row)
        if not row.kind.startswith("step_"):
            continue
        data = info_of(row)
        parent, _, index = row.step.rpartition("/")
        owner = steps.get(parent)
        if owner is not None and owner.items is not None:
            _take_item(owner, index, row, data)
            continue
        step = steps.get(row.step)
        if step is None:
            step = steps[row.step] = StepReport(step=row.step, node=row.node, started_at=row.at)
        step.attempt = data.get("attempt", step.attempt)
        step.duration = data.get("duration", step.duration)
        if "error" in data:
            step.error = error_text(data["error"])
            step.place = step.place if row.kind == "step_skipped" else _place_of(data["error"])
        match row.kind:
            case "step_started":
                step.status, step.items = "running", data.get("items", step.items)
                told += failed.pop(row.node, [])
            case "step_succeeded":
                step.status, step.error, step.place = "success", None, None
            case "step_stopped" if step.status == "success":
                pass
            case _:
                step.status = row.kind.removeprefix("step_")
                if step.status == "skipped" and row.node in failed:
                    step.why = "; ".join(failed.pop(row.node))
    return list(steps.values()), [*told, *chain.from_iterable(failed.values())]


def _take_condition(failed: dict[str, list[str]], row: Row) -> None:
    """Note a condition that failed under the node that it leads to, which lies in the workflow of its source."""
    data = info_of(row)
    above, slash, _ = row.node.rpartition("/")
    failed.setdefault(f"{above}{slash}{data['target']}", []).append(f"condition of {data['source']!r} failed: {data['error']}")


def _take_item(owner: StepReport, index: str, row: Row, data: Mapping[str, Any]) -> None:
    if row.kind == "step_succeeded":
        owner.done += 1
    elif "error" in data and row.kind != "step_skipped":
        owner.failed_items.append((index, error_text(data["error"]), _place_of(data["error"])))
        del owner.failed_items[:-MOST_ITEMS]


def target_of(recorded: Recorded) -> str | None:
    """Return where the workflow of a run was found when it was started; None where nothing else can find it."""
    return (recorded.started or {}).get("target")


async def events_of(engine: Engine, run: str, *, after: int = 0, follow: bool = False) -> AsyncGenerator[Event]:
    """Yield the committed events of a run; with `follow` those to come too, until nobody drives it."""
    async for event in engine.events(run, after, follow=follow):
        yield event


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
