"""A workflow run under virtual time, with a seed and with faults: who crashes goes on in another life, until the run ends.

    from engine.testing.faults import Crash, Lose, Slow
    from engine.testing.simulate import simulate

    report = simulate(flow, {"n": 3}, seed=7, faults=[Crash(write=4, when="torn"), Slow("fetch", 30.0), Lose("merge")])
    assert report.status == "completed" and not report.repeated

Every life has its own event loop, driver, executor and view of the log; only the bytes of the log outlive it. The driver is the
engine's own: this module replaces time, the executor and the disk, and decides nothing about the run. Delays by chance shuffle the
order in which the results of a layer arrive; the same seed gives the same run.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from engine.checkpoint.record import Recorded, event_of
from engine.core.events import Event
from engine.core.run import Row as HistoryRow
from engine.errors import DefinitionError, RunNotFound, StoreUnavailable, WorkflowError
from engine.handle import RunHandle
from engine.local import LocalRun
from engine.ports import Row, RunKey
from engine.runtime.control import Control
from engine.runtime.session import Request, begin
from engine.testing.clock import VirtualClock, VirtualLoop, apart
from engine.testing.executor import Seen, SimulatedExecutor
from engine.testing.faults import Fault, Oracle, check_steps
from engine.testing.medium import FaultyMedium, SimulatedLog, Write, committed, make_memory
from engine.workflow import Workflow

Flow = Workflow | Callable[[], Workflow]
"""A workflow, or what makes one anew for every life."""

SPREAD = 0.01
"""Virtual seconds by which a step is late at most, by chance."""
_LIVES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened in a simulation."""

    seed: int
    run_id: str
    status: str
    output: Any
    state: dict[Any, Any]
    history: dict[str, Any]
    executions: list[HistoryRow]
    """The newest 100 rows of what ran."""
    error: BaseException | None
    """What `execute` would have raised."""
    performed: dict[str, int]
    """Step id without the run's (`fetch/1`, `measure/1/3`) to how often its body was started, over all lives."""
    repeated: tuple[str, ...]
    """Finished work that was done again: step ids, and conditions as `a/1 -> b`. Always empty, or the engine has a bug."""
    events: tuple[Event, ...]
    """All durable events, in order."""
    crashes: tuple[str, ...]
    """Where the process died, in words."""
    lives: int
    """How often the run was driven."""
    writes: tuple[Write, ...]
    """All writes of the log."""
    duration: float
    """Virtual seconds."""
    unused: tuple[Fault, ...] = ()
    """The faults that struck nothing; never `Chaos`, which need not. Empty unless `must_strike=False` let them be."""

    @property
    def final(self) -> dict[str, Any]:
        """Status, output, state and history: what no crash may change."""
        return {"status": self.status, "output": self.output, "state": self.state, "history": self.history}


def simulate(flow: Flow, input: Any = None, *, seed: int = 0, faults: Iterable[Fault] = (), session_id: str = "simulated",
             start_node: str | None = None, timeout: float | None = None, spread: float = SPREAD,
             must_strike: bool = True) -> Report:  # fmt: skip
    """Run a workflow to its end under virtual time; a run that crashed, or failed over an injected fault, is resumed.

    Sync bodies run in a thread, one at a time, and take no virtual time. A nested `execute` with a storage of its own is not simulated.

    Args:
        flow: A workflow, or a function that makes one: then each life has its own.
        seed: The same seed, the same run.
        timeout: Limit of the run in virtual seconds, anew in each life.
        spread: Virtual seconds by which steps of a layer are late at most.
        must_strike: Raise where a fault struck nothing, since a test that disturbs nothing proves nothing; False: `Report.unused` tells.

    Raises: what a definition that cannot run raises; UnknownName for a fault that names no step; DefinitionError for one that struck
        nothing; WorkflowError where the run waits for something that never comes.
    """
    simulation = Simulation(flow, seed=seed, faults=tuple(faults), spread=spread)
    report = apart(lambda: simulation.run(input, session_id=session_id, start_node=start_node, timeout=timeout))
    if must_strike and report.unused:
        raise _unused(report)
    return report


def _unused(report: Report) -> DefinitionError:
    named = ", ".join(map(repr, report.unused))
    performed = sorted(report.performed)
    steps = ", ".join(performed[:10]) + (f", and {len(performed) - 10} more" if len(performed) > 10 else "")
    return DefinitionError(
        f"{named} struck nothing in a simulated run that {report.status} after {len(report.writes)} writes and {report.duration:g} virtual"
        f" seconds and performed {steps or 'no step'}; name what happens, or pass must_strike=False", where=named,
    )  # fmt: skip


class Simulation:
    """One simulation: the disk, the faults, and what was seen, over all lives."""

    def __init__(self, flow: Flow, *, seed: int, faults: Sequence[Fault], spread: float) -> None:
        """Prepare; nothing runs yet."""
        self.oracle = Oracle(faults, seed)
        self._faults = faults
        self.disk = make_memory("simulated")
        self.seen = Seen()
        self._spread = spread
        self._flow = flow
        self._seed = seed
        self._writes: list[Write] = []
        self._crashes: list[str] = []
        self._crash_times = self.oracle.crash_times()
        self._seconds = 0.0

    def run(self, input: Any, *, session_id: str, start_node: str | None = None, timeout: float | None = None) -> Report:
        """Live until the run has ended."""
        for life in range(1, _LIVES + 1):
            flow = self._flow if isinstance(self._flow, Workflow) else self._flow()
            plan = flow.compiled()
            check_steps(self._faults, plan)
            request = Request(
                workflow=flow.name, plan=plan, session=session_id, n=1, input=input, start_node=start_node, timeout=timeout,
                strategy=flow.checkpoint_strategy.value, on_commit_failure=flow.on_commit_failure,
            )  # fmt: skip
            stopped = self._live(request, life)
            if stopped is not None and not self._goes_on(stopped):
                return self._report(stopped, life)
        raise WorkflowError(f"the simulated run did not end in {_LIVES} lives")

    def rows(self, key: RunKey) -> list[Row]:
        """Return what the disk holds of the run; nothing where it was never recorded."""
        try:
            return committed(self.disk, key)
        except RunNotFound:
            return []

    def _live(self, request: Request, life: int) -> LocalRun | None:
        """Drive the run until it stops; None where the process died."""
        loop = VirtualLoop(self._seconds)
        try:
            return loop.run_to_end(self._drive(loop, request, life))
        finally:
            self._seconds = max(self._seconds, loop.time())

    async def _drive(self, loop: VirtualLoop, request: Request, life: int) -> LocalRun | None:
        crashed: asyncio.Future[None] = loop.create_future()
        clock = VirtualClock(loop, Random(f"{self._seed}/{life}"))
        medium = FaultyMedium(self.disk, self.oracle.of_write, written=len(self._writes), on_crash=lambda: crashed.set_result(None))
        while self._crash_times and self._crash_times[0] <= loop.time():
            self._crash_times.pop(0)
        if self._crash_times:
            loop.call_at(self._crash_times[0], self._die, medium, self._crash_times[0])
        done = Recorded(self.rows(RunKey(request.workflow, request.session, 1)))
        executor = SimulatedExecutor(loop, self.seen, self.oracle, done, life=life, spread=self._spread, alive=lambda: not medium.dead)
        driving = loop.create_task(_drive_once(request, SimulatedLog(medium, clock), executor, clock))
        await asyncio.wait({driving, crashed}, return_when=asyncio.FIRST_COMPLETED)
        self._writes += medium.writes
        if not medium.dead:
            try:
                return await driving
            except StoreUnavailable:
                return None  # a disk that refuses the claim of one life may be well in the next
        driving.cancel()
        place = f"at its write {medium.writes[-1].number}" if medium.writes else "before its first write"
        self._crashes.append(f"life {life}, {loop.time():g} s, {place}")
        self._seconds = loop.time()
        return None

    def _die(self, medium: FaultyMedium, time: float) -> None:
        if not medium.dead:
            self.oracle.crashed_at(time)
        medium.die()

    def _goes_on(self, run: LocalRun) -> bool:
        """Whether a run stopped over something that a simulation did to it."""
        error = run.error
        while error is not None:
            if isinstance(error, StoreUnavailable) or any(error is injected for injected in self.seen.injected):
                return True
            error = error.__cause__
        return False

    def _report(self, run: LocalRun, life: int) -> Report:
        handle = RunHandle(run)
        events = tuple(event_of(run.run_id, row) for row in self.rows(run.key))
        return Report(
            seed=self._seed, run_id=run.run_id, status=run.status, output=handle.output, state=handle.state, history=handle.history,
            executions=handle.executions, error=run.error, performed=dict(self.seen.performed), repeated=tuple(self.seen.repeated),
            events=events, crashes=tuple(self._crashes), lives=life, writes=tuple(self._writes), duration=self._seconds,
            unused=self.oracle.unused(),
        )  # fmt: skip


async def _drive_once(request: Request, log: SimulatedLog, executor: SimulatedExecutor, clock: VirtualClock) -> LocalRun:
    """Claim and drive the run until it stops."""
    begun = await begin(request, log, lambda: executor, Control())
    if begun.conductor is not None:
        begun.conductor.driver.ledger.clock = clock
    run = LocalRun(begun, request, log)
    await run.wait()
    return run
