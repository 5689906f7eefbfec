"""How a node is performed, as values: retry, limits, what an error means, resources. Decides, never waits."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from numbers import Real
from typing import Literal, NamedTuple, assert_never, cast

from engine.errors import DefinitionError

Backoff = Literal["fixed", "linear", "exponential"]
OnError = Literal["fail", "skip", "fallback"]


def check_limit(value: float | None, what: str) -> float | None:
    """Return a limit in seconds as a float. None is no limit; 0 expires at once.

    Raises: DefinitionError (a ValueError) for a negative one, NaN, and what is no number.
    """
    if value is None:
        return None
    if isinstance(cast("object", value), Real) and not isinstance(value, bool) and value >= 0:
        with suppress(OverflowError):  # a whole number beyond any float
            return float(value)
    raise DefinitionError(f"{what} must be a number of seconds, 0 or more, not {value!r:.80}", where=what)


def check_count(what: str, value: object, least: int | None = None) -> int:
    """Return a whole number. Raises: DefinitionError for anything else, and for one below `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        wanted = "a whole number" if least is None else f"a whole number from {least}"
        raise DefinitionError(f"{what} must be {wanted}, not {value!r:.80}", where=what)
    return value


def class_names(kinds: object) -> tuple[str, ...]:
    """Return error classes, or their names, as names: what a policy compares, since classes may live in another process."""
    each: tuple[object, ...] = tuple(kinds) if isinstance(kinds, (tuple, list, set, frozenset)) else (kinds,)  # type: ignore[arg-type]
    found: list[str] = []
    for kind in each:
        if isinstance(kind, str):
            found.append(kind)
        elif isinstance(kind, type) and issubclass(kind, BaseException):
            found.append(f"{kind.__module__}.{kind.__qualname__}")
        else:
            raise TypeError(f"retry_on and give_up_on hold exception classes or their names, not {kind!r}")
    return tuple(found)


def lineage(error: BaseException) -> tuple[str, ...]:
    """Return the qualified names of an error's class and its bases, nearest first."""
    return tuple(f"{k.__module__}.{k.__qualname__}" for k in type(error).__mro__ if k is not object)


def _matches(wanted: tuple[str, ...], names: tuple[str, ...]) -> bool:
    return any(n == w or n.rpartition(".")[2] == w for w in wanted for n in names)


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after an error, with a growing pause."""

    attempts: int = 3
    """How often in all, the first included."""
    backoff: Backoff = "exponential"
    """How the pause grows: `fixed`, `linear` (times the attempt), `exponential` (doubled each time)."""
    delay: float = 1.0
    """The first pause, seconds."""
    max_delay: float = 60.0
    """No pause is longer, jitter included."""
    jitter: float = 0.0
    """A pause is lengthened by up to this share of itself, at random."""
    retry_on: tuple[type[BaseException] | str, ...] | type[BaseException] | str = ()
    """Only these errors (and what derives from them); empty: all."""
    give_up_on: tuple[type[BaseException] | str, ...] | type[BaseException] | str = ()
    """Never these; goes before `retry_on`."""

    def __post_init__(self) -> None:
        if not isinstance(cast("object", self.attempts), int) or isinstance(self.attempts, bool) or self.attempts < 1:
            raise DefinitionError(f"Retry(attempts={self.attempts!r}): a whole number, at least 1, since the first try counts")
        if self.backoff not in ("fixed", "linear", "exponential"):
            raise DefinitionError(f"Retry(backoff={self.backoff!r}): one of 'fixed', 'linear', 'exponential'")
        for name in ("delay", "max_delay", "jitter"):
            if check_limit(getattr(self, name), f"Retry({name}=...)") is None:
                raise DefinitionError(f"Retry({name}=None): a number, 0 or more")
        object.__setattr__(self, "retry_on", class_names(self.retry_on))
        object.__setattr__(self, "give_up_on", class_names(self.give_up_on))

    def pause(self, attempt: int, chance: float = 0.0) -> float:
        """Return the seconds to wait after the given attempt (from 1); `chance` is a number from 0 to 1 for the jitter."""
        match self.backoff:
            case "fixed":
                raw = self.delay
            case "linear":
                raw = self.delay * attempt
            case "exponential":
                raw = self.delay * 2.0 ** min(attempt - 1, 64)
            case _:
                assert_never(self.backoff)
        return min(self.max_delay, raw * (1 + self.jitter * chance))

    def covers(self, names: tuple[str, ...]) -> bool:
        """Tell whether an error whose lineage has these names is tried again."""
        if _matches(class_names(self.give_up_on), names):
            return False
        return not self.retry_on or _matches(class_names(self.retry_on), names)


LOST = "engine.errors.WorkerLost"
"""The lineage of a step whose process died under it: nothing tells that the step itself was to blame."""
WHEN_LOST = Retry(attempts=3, backoff="fixed", delay=0.05)
"""What is done about a lost worker where the node's own retry says nothing of it: a step that kills its processes fails at the third."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a node in seconds: of one attempt, and of the step with all its attempts and pauses."""

    attempt: float | None = None
    node: float | None = None

    def __post_init__(self) -> None:
        check_limit(self.attempt, "Limits(attempt=...)")
        check_limit(self.node, "Limits(node=...)")


_LEAST = 0.0001
"""No share of a resource is smaller."""
_RESERVED = ("CPU", "GPU", "memory", "object_store_memory", "bundle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a node asks of Ray; None and empty mean the default, which lets it be packed with others.

    Refuses what Ray would refuse when the node is to run.

    Raises: DefinitionError.
    """

    num_cpus: float | None = None
    num_gpus: float | None = None
    memory: float | None = None
    """Bytes; a figure for placing, not a limit."""
    custom: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        if not isinstance(cast("object", self.custom), Mapping):
            raise DefinitionError(f"resources must be a mapping of names to numbers, not {self.custom!r}", where="resources")
        object.__setattr__(self, "custom", dict(self.custom))
        if self.num_cpus is not None:
            _check_amount("num_cpus", self.num_cpus)
        if self.num_gpus is not None:
            _check_amount("num_gpus", self.num_gpus, whole=True)
        if self.memory is not None:
            _check_amount("memory", self.memory, whole=True)
            if self.memory < 1:
                raise DefinitionError(f"memory must be a whole number of bytes, 1 or more, not {self.memory!r}", where="memory")
        for name, amount in self.custom.items():
            _check_resource_name(name)
            _check_amount(f"resources[{name!r}]", amount, whole=True)

    def __bool__(self) -> bool:
        return bool(self.num_cpus is not None or self.num_gpus or self.memory or self.custom)


def _check_amount(what: str, amount: object, *, whole: bool = False) -> None:
    if not isinstance(amount, (int, float)) or isinstance(amount, bool) or not 0 <= amount < float("inf"):
        raise DefinitionError(f"{what} must be a number, 0 or more, not {amount!r}", where=what)
    if 0 < amount < _LEAST:
        raise DefinitionError(f"{what} must be 0 or at least {_LEAST:g}, the smallest share, not {amount!r}", where=what)
    if whole and amount > 1 and amount != int(amount):
        raise DefinitionError(f"{what} must be a whole number where it is above 1, not {amount!r}", where=what)


def _check_resource_name(name: object) -> None:
    if not isinstance(name, str) or not name:
        raise DefinitionError(f"resources must have names that are text, not {name!r}", where="resources")
    if name in _RESERVED or name.startswith("node:"):
        hint = {"CPU": ": num_cpus=... says it", "GPU": ": num_gpus=... says it", "memory": ": memory=... says it"}.get(name, "")
        raise DefinitionError(f"resources must not name {name!r}, which is Ray's own{hint}", where="resources")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How a node is performed."""

    retry: Retry | None = None
    limits: Limits = Limits()
    on_error: OnError = "fail"
    fallback: str | None = None
    priority: int = 0
    resources: Resources = Resources()
    executor: str | None = None

    @property
    def plain(self) -> bool:
        """Whether a step is just a call: no retry, no limit, nothing to do about an error."""
        return self.retry is None and self.limits.attempt is None and self.limits.node is None and self.on_error == "fail"


class Verdict(Enum):
    """What becomes of a failed attempt."""

    #: another attempt, after a pause
    RETRY = "retry"
    #: the step counts as done, without an output
    SKIP = "skip"
    #: the fallback's body is tried once
    FALLBACK = "fallback"
    #: the run fails
    FAIL = "fail"


class Decision(NamedTuple):
    """A verdict with its pause in seconds (for a retry)."""

    verdict: Verdict
    delay: float = 0.0


def decide(
    policy: Policy, attempt: int, names: tuple[str, ...], *, chance: float = 0.0, final: bool = False, left: float | None = None
) -> Decision:
    """Decide what becomes of a failed attempt.

    Args:
        attempt: Its number, from 1.
        names: The lineage of its error.
        chance: A number from 0 to 1 for the jitter.
        final: Whether no further attempt may be made (the error is certain to come again, or nobody waits for the step).
        left: Seconds left of the node's limit, None without one.
    """
    retry = _retry_for(policy.retry, names)
    if retry is not None and not final and attempt < retry.attempts and retry.covers(names):
        pause = retry.pause(attempt, chance)
        if left is None or pause < left:
            return Decision(Verdict.RETRY, pause)
    if policy.on_error == "skip":
        return Decision(Verdict.SKIP)
    if policy.on_error == "fallback" and not final:
        return Decision(Verdict.FALLBACK)
    return Decision(Verdict.FAIL)


def _retry_for(retry: Retry | None, names: tuple[str, ...]) -> Retry | None:
    """Return the node's own retry, or the one for lost workers where it says nothing of them."""
    if LOST not in names:
        return retry
    silent = retry is None or not (retry.covers(names) or _matches(class_names(retry.give_up_on), names))
    return WHEN_LOST if silent else retry
