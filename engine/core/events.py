"""What happened in a run, as frozen records in one stream; history, progress, metrics and traces are readers of it.

A *durable* event has a sequence number in its run and is delivered after its commit. A *transient* one carries the last
durable number, waits in a bounded ring for each reader, and may be missed.
"""

from datetime import datetime
from typing import Any, NamedTuple

from engine.errors import DefinitionError

DURABLE = frozenset(
    {
        *("run_started", "run_paused", "run_resumed", "run_cancelled", "run_completed", "run_failed", "run_timed_out"),
        *("step_started", "step_succeeded", "step_failed", "step_retrying", "step_skipped", "step_stopped"),
        *("condition_decided", "condition_failed", "jumped", "conflict", "member_won", "member_lost", "once_intended", "once_done", "note"),
    }
)
TRANSIENT = frozenset({"progress", "layer_started", "layer_finished", "commit_succeeded", "commit_failed"})

#: Status of a run after an event of this kind; kinds that are not here do not change it.
STATUS_AFTER = {
    "run_started": "running",
    "run_resumed": "running",
    "run_paused": "paused",
    "run_cancelled": "cancelled",
    "run_completed": "completed",
    "run_failed": "failed",
    "run_timed_out": "timed_out",
}


class Event(NamedTuple):  # a tuple, since two are made for each step of a run
    """One thing that happened. What `data` holds, by kind:

    run_started       workflow, session, input; on storage also definition (the graph as data, no code), hash, code, target, start_node
    run_resumed       hash, changed (whether graph or policies differ from the last), code, mended (whether bodies do),
                      from (the status before), definition (where it differs)
    run_paused run_cancelled run_completed   finished (how many `step_succeeded` there are); completed: output
    run_failed        error (type, message, traceback), finished        run_timed_out  limit, finished
    step_started      for a map items (how many), for a team members (how many), for a member of one member (its name) and, where the
                      team maps its input, input; the pass is in the step id; told of all steps of a layer before the first starts, so that
                      one that then has to wait, and is not let start any more, has no further event
    step_succeeded    output, duration, worker; for a map items instead of output; writes (keys), deletes (keys);
                      of a jumper jump (its target), sent (whether with an input, which is the output);
                      of a team answer (the members whose results are its output), errors (of those that failed) instead of output, and
                      jumper (the member whose jump it is, and whose output is the jump's input); in a run that went on with other
                      members than before also numbers (of members, those in their step ids where these are not their places)
    step_failed       error (type, message, traceback), duration        step_skipped   error, if it failed first
    step_retrying     error, delay (seconds), due (seconds since 1970)  step_stopped   reason, stopped_after (seconds)
    condition_decided source, target, verdict, late                     condition_failed source, target, error
    jumped            target, input (a large one: input_of, its step)   conflict       key, nodes, layer
    member_won        score, where a judge gave one                     member_lost    reason, stopped_after (seconds), score
    once_intended     key                                               once_done      key, value
    note              text

    progress          done, total, note         layer_started  layer, nodes      layer_finished  layer
    commit_succeeded  rows, seconds             commit_failed  error, attempt
    """

    run_id: str
    seq: int
    """Number in the run, from 1; a transient event repeats the last durable one."""
    at: datetime
    """When, in UTC."""
    kind: str
    node: str = ""
    """The node; `outer/inner` inside a sub-workflow; empty for what concerns the whole run."""
    step_id: str = ""
    attempt: int = 0
    """The attempt, from 1; 0 where it has no meaning."""
    data: dict[str, Any] = {}  # noqa: RUF012 - an event is only read; a factory would cost every step
    ordinal: int = 0
    """Orders the transient events that share a `seq`; 0 for durable ones."""


def check_seq(number: object, what: str, *, of: str = "", newest: int | None = None) -> int:
    """Return the number of an event; 0 is before the first.

    Raises: DefinitionError for what is no number of an event, with the numbers that are.
    """
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= (number if newest is None else newest):
        return number
    upto = "" if newest is None else f" to {newest}"
    raise DefinitionError(f"{what} must be the number of an event{of}, from 0{upto}, not {number!r:.80}", where=what)
