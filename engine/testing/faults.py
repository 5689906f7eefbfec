"""What can go wrong in a simulation, as values, and the oracle that says when it does.

Faults named one by one strike where they say. `Chaos` strikes anywhere, by chance from the simulation's seed: the same seed gives the same
faults at the same places. Nothing here performs anything.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from engine.core.plan import Plan
from engine.core.registry import unknown
from engine.errors import DefinitionError, UnknownName, WorkerLost
from engine.testing.medium import MOMENTS, Fate, When, Write

MakeError = Callable[[str], Exception]


class InjectedError(Exception):
    """What an injected failure raises in place of a body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """The process that drives the run dies, and another goes on with the run."""

    write: int | None = None
    """At the n-th write of the log, from 1, counted over the whole simulation."""
    when: When = "before"
    """Whether nothing of that write landed, half of it, or all of it without the writer's knowing."""
    at: float | None = None
    """Or so many virtual seconds after the start."""

    def __post_init__(self) -> None:
        """Refuse what could strike nowhere. Raises: DefinitionError."""
        if (self.write is None) == (self.at is None):
            raise DefinitionError(f"{self} must name one moment: Crash(write=1), or Crash(at=2.5)", where="Crash")
        if self.write is not None:
            _check_count(self, "write", self.write)
        if self.at is not None and not self.at > 0:
            raise DefinitionError(f"{self}: at must be virtual seconds above 0, not {self.at!r}", where="at")
        if self.when not in MOMENTS:
            raise DefinitionError(f"{self}: when must be one of {', '.join(map(repr, MOMENTS))}, not {self.when!r}", where="when")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The medium refuses writes, as a full disk does; the process lives."""

    write: int
    times: int = 1
    """How many writes in a row."""

    def __post_init__(self) -> None:
        """Refuse what could strike nowhere. Raises: DefinitionError."""
        _check_count(self, "write", self.write)
        _check_count(self, "times", self.times)


@dataclass(frozen=True, slots=True)
class Slow:
    """A body takes longer, in virtual time."""

    step: str
    """A node (`fetch`, `outer/inner`), an item (`measure[3]`), or a step id without the run's (`fetch/1`)."""
    seconds: float
    times: int = 1
    """How many attempts."""

    def __post_init__(self) -> None:
        """Refuse what could strike nowhere. Raises: DefinitionError."""
        _check_count(self, "times", self.times)


@dataclass(frozen=True, slots=True)
class Fail:
    """An attempt raises instead of performing the body."""

    step: str
    times: int = 1
    error: MakeError = InjectedError
    """Makes the error from a text."""

    def __post_init__(self) -> None:
        """Refuse what could strike nowhere. Raises: DefinitionError."""
        _check_count(self, "times", self.times)


@dataclass(frozen=True, slots=True)
class Lose:
    """The worker that performs an attempt dies: the body was performed, its result is lost (WorkerLost)."""

    step: str
    times: int = 1
    performed: bool = True
    """Whether the body had come to its end."""

    def __post_init__(self) -> None:
        """Refuse what could strike nowhere. Raises: DefinitionError."""
        _check_count(self, "times", self.times)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chaos:
    """Faults anywhere, by chance: each figure is the probability at one place (a write of the log, an attempt of a step)."""

    crash: float = 0.0
    refuse: float = 0.0
    slow: float = 0.0
    fail: float = 0.0
    lose: float = 0.0
    seconds: float = 10.0
    """How much longer a slow body takes at most."""
    most: int = 50
    """How many faults in all: a simulation has to end."""


Fault = Crash | Refuse | Slow | Fail | Lose | Chaos


def _check_count(fault: object, what: str, count: int) -> None:
    if count < 1:
        raise DefinitionError(f"{fault}: {what} must be at least 1, not {count!r}", where=what)


def check_steps(faults: Sequence[Fault], plan: Plan) -> None:
    """Refuse faults that name no step of a plan: a test with a typo in it would pass.

    Raises: UnknownName.
    """
    for fault in faults:
        if isinstance(fault, (Slow, Fail, Lose)):
            _check_path(f"{type(fault).__name__}({fault.step!r}): node", fault.step.partition("[")[0].split("/"), [plan])


def _check_path(what: str, path: Sequence[str], plans: Sequence[Plan]) -> None:
    """Look for the first name of a path in some plans, and for the rest inside what it names there."""
    name, *rest = path
    nodes = [plan.nodes[plan.index[name]] for plan in plans if name in plan.index]
    if not nodes:
        raise UnknownName(unknown(what, name, [known for plan in plans for known in plan.names]), where=name)
    if rest and not rest[0].isdecimal():  # a number: a step id, whose parts behind its node are numbers of the run's own
        spares = [plan.nodes[plan.index[n.policy.fallback]] for plan in plans for n in nodes if n.policy.fallback in plan.index]
        _check_path(what, rest, [node.body for node in (*nodes, *spares) if isinstance(node.body, Plan)])


class Blow(NamedTuple):
    """What hits one attempt."""

    seconds: float = 0.0
    error: Exception | None = None
    performed: bool = False
    """Whether the body is performed although its result is lost."""


class Oracle:
    """Says what becomes of every write and every attempt of one simulation; keeps count of what has struck."""

    def __init__(self, faults: Sequence[Fault], seed: int) -> None:
        """Draw everything from the seed."""
        self._faults = faults
        self._seed = seed
        self._struck = [0] * len(faults)

    def crash_times(self) -> list[float]:
        """When the process dies, in virtual seconds."""
        return sorted(f.at for f in self._faults if isinstance(f, Crash) and f.at is not None)

    def crashed_at(self, time: float) -> None:
        """Take note that the process died by the clock."""
        for i, fault in enumerate(self._faults):
            self._struck[i] += isinstance(fault, Crash) and fault.at == time

    def unused(self) -> tuple[Fault, ...]:
        """Return the named faults that have struck nothing; Chaos names nothing."""
        return tuple(f for f, struck in zip(self._faults, self._struck, strict=True) if not struck and not isinstance(f, Chaos))

    def of_write(self, write: Write) -> Fate:
        """Say what becomes of a write."""
        for i, fault in enumerate(self._faults):
            match fault:
                case Crash() if fault.write == write.number:
                    self._struck[i] += 1
                    return Fate(when=fault.when)
                case Refuse() if fault.write <= write.number < fault.write + fault.times:
                    self._struck[i] += 1
                    return Fate(refused=True)
                case Chaos() if self._struck[i] < fault.most:
                    random = self._random("write", write.number)
                    drawn, when = random.random(), random.choice(MOMENTS)
                    if drawn < fault.crash + fault.refuse:
                        self._struck[i] += 1
                        return Fate(when=when) if drawn < fault.crash else Fate(refused=True)
                case _:
                    pass
        return Fate()

    def of_attempt(self, names: Sequence[str], step: str, *, life: int, attempt: int) -> Blow:
        """Say what hits an attempt; `names` are all by which a fault may call it."""
        blow = Blow()
        for i, fault in enumerate(self._faults):
            if isinstance(fault, Chaos):
                blow = self._by_chance(i, fault, step, life, attempt) if blow == Blow() and self._struck[i] < fault.most else blow
            elif isinstance(fault, (Slow, Fail, Lose)) and fault.step in names and self._struck[i] < fault.times:
                self._struck[i] += 1
                match fault:
                    case Slow():
                        blow = blow._replace(seconds=blow.seconds + fault.seconds)
                    case Fail():
                        blow = blow._replace(error=fault.error(f"injected into {step!r}"))
                    case Lose():
                        blow = blow._replace(error=_lost(step), performed=fault.performed)
        return blow

    def pause(self, step: str, *, life: int, most: float) -> float:
        """Return some seconds by which a step is late, which shuffles the order in which results arrive."""
        return self._random("order", life, step).uniform(0.0, most)

    def _by_chance(self, i: int, chaos: Chaos, step: str, life: int, attempt: int) -> Blow:
        random = self._random("step", life, step, attempt)
        drawn = random.random()
        blow = Blow()
        if drawn < chaos.slow:
            blow = Blow(seconds=random.uniform(0.0, chaos.seconds))
        elif drawn < chaos.slow + chaos.fail:
            blow = Blow(error=InjectedError(f"injected into {step!r}"))
        elif drawn < chaos.slow + chaos.fail + chaos.lose:
            blow = Blow(error=_lost(step), performed=random.random() < 0.5)
        self._struck[i] += blow != Blow()
        return blow

    def _random(self, *place: object) -> Random:
        """Return chance of its own for each place, so that one fault does not shift all that follow."""
        return Random("/".join(map(str, (self._seed, *place))))


def _lost(step: str) -> WorkerLost:
    return WorkerLost(f"the simulated worker that performed {step!r} died")
