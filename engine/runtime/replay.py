"""A recorded run brought back without performing anything: its state, history and rows at its end or at any committed event."""

from collections.abc import Sequence
from typing import Any

from engine.checkpoint.codec import private
from engine.checkpoint.record import Recorded
from engine.core.context import Scene
from engine.core.graph import Graph
from engine.core.plan import Options, compile_plan, from_data
from engine.core.run import Run, StepResult, apply, ready, start
from engine.ports import Row
from engine.runtime.layer import LayerWork
from engine.runtime.ledger import Ledger
from engine.runtime.loop import Driver, recorded_answer


class _Nobody:
    """Performs nothing."""

    name = "nobody"


def replay(rows: Sequence[Row], *, run_id: str, at: int | None = None) -> tuple[Run, Recorded]:
    """Return the run as it stood after event `at` (default: the newest), by the definition that it ran with, and what its log holds."""
    recorded = Recorded(row for row in rows if at is None or row.seq <= at)
    recorded.due.clear()  # nobody performs what waits for a retry
    # a run that was claimed, and of which nothing was committed, stands before its start
    plan = compile_plan(Graph(), Options()) if recorded.started is None else from_data(recorded.definition)
    start_node = (recorded.started or {}).get("start_node")
    run = start(plan, run_id, recorded.input, start_node=plan.index.get(start_node) if start_node is not None else None)
    ledger = Ledger(run_id, None, None)
    scene = Scene(run_id=run_id, session_id=None, input=recorded.input, private=private, rows=run.rows, services=None)
    driver = Driver(plan, run, scene, ledger, _Nobody(), recorded=recorded)  # type: ignore[arg-type]
    while True:
        layer = ready(plan, run)
        if layer.questions:
            answers = [recorded_answer(driver, layer.number, q) for q in layer.questions]
            if any(a is None for a in answers):
                break
            apply(plan, run, [a for a in answers if a is not None])
        elif layer.steps:
            results = _results(driver, layer)
            if results is None:
                break
            apply(plan, run, results)
            run.news = []
        else:
            break
    return run, recorded


def _results(driver: Driver, layer: Any) -> list[StepResult] | None:
    work = LayerWork(driver, layer)
    work.announce()
    found = [unit.result for unit in work.units.values() if unit.result is not None]
    return found if len(found) == len(work.units) else None


def state_of(run: Run) -> dict[Any, Any]:
    """Return a run's state as a dict of the caller's own."""
    return {key: private(value) for key, value in run.state.items()}
