"""Every crash that a run can have at its log, tried one by one: the proof that a workflow goes on as if nothing had happened.

    from engine.testing.crash import crash_everywhere

    def test_my_workflow_survives_every_crash():
        crash_everywhere(flow, {"n": 3})

A run that ends otherwise than without a crash is an AssertionError that names the write.
"""

from dataclasses import dataclass
from typing import Any

from engine.core.state import same
from engine.errors import InDoubt
from engine.testing.faults import Crash
from engine.testing.medium import MOMENTS, When
from engine.testing.simulate import Flow, Report, simulate

_WHOLE: tuple[When, ...] = ("before", "after")
"""An empty segment is there or not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashReport:
    """What came of crashing everywhere."""

    calm: Report
    """The undisturbed run, to whose end every other came."""
    points: tuple[Crash, ...]
    """Where the process died, each in a run of its own."""
    performed_again: int
    """How many steps were performed more than once over all those runs: none that was finished, only what was running or not committed."""
    in_doubt: tuple[Crash, ...]
    """Where the run stopped with `InDoubt`: between the intent and the receipt of a `ctx.once` without `again=True`."""


def crash_everywhere(flow: Flow, input: Any = None, *, seed: int = 0, in_doubt: bool = False) -> CrashReport:
    """Kill the process before, in the middle of, and after each write of the log, resume, and compare.

    Args:
        flow: A workflow with any checkpoint strategy, or a function that makes one: then each life has fresh objects.
        in_doubt: Let a resumed run stop with `InDoubt`.

    Raises: AssertionError where a resumed run ends otherwise than the undisturbed one, or where finished work was done again.
    """
    calm = simulate(flow, input, seed=seed)
    check_same(calm, calm, "undisturbed")
    points: list[Crash] = []
    doubtful: list[Crash] = []
    again = 0
    for write in calm.writes:
        for when in MOMENTS if write.verb == "write" else _WHOLE:
            point = Crash(write=write.number, when=when)
            report = simulate(flow, input, seed=seed, faults=[point])
            points.append(point)
            again += sum(1 for step, count in report.performed.items() if count > calm.performed.get(step, 0))
            where = f"crashed {when} write {write.number} of {len(calm.writes)}"
            if in_doubt and _is_doubt(report.error):
                _check_nothing_repeated(report, where)
                doubtful.append(point)
            else:
                check_same(calm, report, where)
    return CrashReport(calm=calm, points=tuple(points), performed_again=again, in_doubt=tuple(doubtful))


def check_same(calm: Report, report: Report, where: str) -> None:
    """Compare the end of a disturbed run with that of an undisturbed one.

    Raises: AssertionError that names what differs, and `where`.
    """
    _check_nothing_repeated(report, where)
    for what, expected in calm.final.items():
        found = report.final[what]
        assert _same(expected, found), f"{where}: {what} is {found!r}, without a crash it is {expected!r}{_because(report)}"
    kinds = (type(calm.error), str(calm.error)), (type(report.error), str(report.error))
    assert kinds[0] == kinds[1], f"{where}: the run ended with {report.error!r}, without a crash with {calm.error!r}"


def _check_nothing_repeated(report: Report, where: str) -> None:
    assert not report.repeated, f"{where}: finished work was done again: {', '.join(report.repeated)}"


def _same(a: Any, b: Any) -> bool:
    """Compare with types and order, so that 1 and True, or two orders of a history, are told apart."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    return same(a, b)


def _because(report: Report) -> str:
    return "" if report.error is None else f" ({type(report.error).__name__}: {report.error})"


def _is_doubt(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, InDoubt):
            return True
        error = error.__cause__
    return False
