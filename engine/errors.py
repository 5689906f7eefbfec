"""The errors of Gecko, as one tree whose branches say who must act.

    GeckoError
    ├─ DefinitionError        the author's mistake, found before a run; carries `where`; a ValueError
    │  ├─ InvalidGraph        (WorkflowValidationError; WorkflowCycleError when the only problem is a loop)
    │  ├─ UnknownName         a name nobody registered; says which come near
    │  ├─ InvalidDocument     a file or text that cannot be read as what it should be
    │  ├─ VersionInUse        a version of a workflow that means something else already
    │  └─ ConfigurationError  an option, URL or installation that cannot work
    ├─ WorkflowError          a run went wrong; carries `run_id` and `node`
    │  ├─ StepFailed  ├─ StepTimedOut  ├─ RunTimedOut  ├─ RunCancelled  ├─ RunPaused
    │  ├─ MemberFailed  ├─ TeamTimedOut (both RuntimeErrors)
    │  ├─ StepLimitReached  ├─ StateConflict  ├─ NotStorable (a TypeError)  └─ InDoubt
    ├─ RunNotFound (a ValueError)   RunBusy   SessionInUse
    ├─ WrongState             └─ NeedsCode
    ├─ CheckpointError        ├─ CorruptCheckpoint  └─ UnknownFormat
    ├─ Unavailable            the world's fault; `retryable`
    │  ├─ StoreUnavailable  ├─ ClusterUnavailable  ├─ QueueFull (carries `retry_after`)
    │  └─ WorkerLost          └─ OutOfMemory
    └─ LeaseLost              stop now: another owner drives this run

An error's docstring is its default message. All of them survive pickling with their fields, so an error that crosses
a process boundary is the error that was raised.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any


class GeckoError(Exception):
    """Something went wrong in Gecko."""

    retryable: bool = False
    """Whether the same call may succeed later without anybody changing anything."""

    def __init__(self, message: str | None = None, **fields: Any) -> None:
        if message is None:
            message = (type(self).__doc__ or type(self).__name__).strip().splitlines()[0]
        super().__init__(message)
        self.__dict__.update(fields)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__.copy(), self.__cause__)

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else type(self).__name__


def _rebuild(kind: type[GeckoError], args: tuple[Any, ...], fields: dict[str, Any], cause: BaseException | None) -> GeckoError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(fields)
    error.__cause__ = cause
    return error


class DefinitionError(GeckoError, ValueError):
    """The definition is wrong."""

    where: str | None = None
    """The place: a node, a file and line, an option."""


class InvalidGraph(DefinitionError):
    """The graph cannot run."""

    problems: Sequence[Any] = ()
    """Every problem that was found, not only the first."""


class WorkflowCycleError(InvalidGraph):
    """The graph has a loop and does not allow cycles."""


class UnknownName(DefinitionError):
    """No such name."""


class InvalidDocument(DefinitionError):
    """The document cannot be read."""


class VersionInUse(DefinitionError):
    """The version belongs to another definition of the workflow."""


class ConfigurationError(DefinitionError):
    """The configuration cannot work."""


class WorkflowError(GeckoError):
    """A run went wrong."""

    run_id: str | None = None
    node: str | None = None


class StepFailed(WorkflowError):
    """Workflow execution failed."""

    attempt: int | None = None
    """The attempt that failed last, from 1."""
    traceback_text: str | None = None
    """Where the original was raised, also when it was raised in another process."""


class StepTimedOut(WorkflowError, TimeoutError):
    """A step reached its limit."""


class MemberFailed(WorkflowError, RuntimeError):
    """A member of a team failed."""

    member_index: int | None = None


class TeamTimedOut(WorkflowError, RuntimeError):
    """A team timed out before it had its answer."""

    results: Sequence[Any] = ()
    """What is known of each member: a `MemberResult` for each, in member order."""


class RunTimedOut(WorkflowError, TimeoutError):
    """The run reached its limit; what is committed can be resumed."""


class RunCancelled(WorkflowError):
    """The run was cancelled."""


class RunPaused(WorkflowError):
    """The run was paused; resume it to go on."""


class StepLimitReached(WorkflowError):
    """Exceeded max steps."""


class StateConflict(WorkflowError):
    """Steps of one layer wrote one key in ways that do not combine."""

    key: Any = None
    nodes: Sequence[str] = ()


class NotStorable(WorkflowError, TypeError):
    """A value is no data, so it can be neither stored nor sent."""

    key: Any = None


class InDoubt(WorkflowError):
    """An effect was begun and nobody knows whether it happened."""


class RunNotFound(GeckoError, ValueError):
    """The run was not found."""


class RunBusy(GeckoError):
    """The run is driven by an owner that lives."""

    retryable = True
    host: str | None = None
    pid: int | None = None
    since: datetime | None = None
    """Who drives it and since when, where that is known."""


class SessionInUse(GeckoError, ValueError):
    """The session belongs to a run with another input."""


class WrongState(GeckoError):
    """The run is not in a state that allows this."""


class NeedsCode(WrongState):
    """The code of a run cannot be found again from here; resume the run with its workflow."""


class CheckpointError(GeckoError):
    """The log of a run cannot be used."""


class CorruptCheckpoint(CheckpointError):
    """A sealed part of a log is damaged."""

    file: str | None = None
    offset: int | None = None


class UnknownFormat(CheckpointError):
    """What is stored was written by a newer version."""


class Unavailable(GeckoError):
    """Something outside cannot be reached now."""

    retryable = True


class StoreUnavailable(Unavailable):
    """The storage cannot be reached, or refuses to write."""


class ClusterUnavailable(Unavailable):
    """The Ray cluster cannot be reached, or keeps no process of ours."""


class QueueFull(Unavailable):
    """So many runs wait already that no other is taken."""

    retry_after: float = 1.0
    """Seconds after which to ask again is worth while."""


class WorkerLost(Unavailable):
    """The process that performed a step died."""


class OutOfMemory(WorkerLost):
    """The process that performed a step was ended, since its machine ran out of memory."""


class LeaseLost(GeckoError):
    """Another owner drives this run now."""


WorkflowValidationError = InvalidGraph
