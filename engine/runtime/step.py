"""Performs one attempt of one step, in this process or inside a worker.

The only place where user code is called: bodies, conditions, reducers. Whatever user code raises becomes an `Outcome`; what becomes of it
is decided elsewhere.
"""

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from engine.checkpoint.codec import decode, encode, private, to_data, to_key
from engine.checkpoint.data import SHARED
from engine.checkpoint.record import encode_diff, encode_diff_now, key_place, place_of
from engine.core.context import Context, Scene, View
from engine.core.current import current
from engine.core.events import Event
from engine.core.graph import Node
from engine.core.history import Window
from engine.core.plan import Plan
from engine.core.routing import ABSENT, Next
from engine.core.state import Growth, StateDiff, opened
from engine.errors import NotStorable, StepFailed, StepTimedOut
from engine.runtime.bind import is_async
from engine.runtime.bulk import as_data, beside, encoded, is_long
from engine.runtime.raised import told

logger = logging.getLogger(__name__)

CONDITION_LIMIT = 5.0
"""Seconds within which a condition must answer."""
STUBBORN = 0.2
"""Seconds that a cancelled async body has to end before the run goes on without it."""

OffLoop = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Performs a sync function off the event loop; what no future can hold comes as `Raised`."""

_turns: WeakValueDictionary[tuple[Context, str], asyncio.Lock] = WeakValueDictionary()
"""By attempt and key of `ctx.once`: whose turn it is; kept while somebody is inside or waits."""
_inside: contextvars.ContextVar[frozenset[tuple[Context, str]]] = contextvars.ContextVar("gecko_effects", default=frozenset())
"""The effects that are being performed around the present code."""


@dataclass(slots=True)
class Moment:
    """What the calls of one layer share; never changed."""

    scene: Scene
    plan: Plan
    state: dict[Any, Any]
    version: int
    encode: bool
    """Whether values must be storable: then an outcome carries their bytes."""
    owner: Any = None
    """The driver, for executors that keep something by run."""


class Call(NamedTuple):
    """One attempt of one step, or of one item of a map."""

    node: Node
    number: int
    """The node's."""
    at: int
    ordinal: int | None
    attempt: int
    input: Any
    window: Window
    step_id: str
    limit: float | None = None
    """Seconds for this attempt."""
    spare: Node | None = None
    """The fallback whose body stands in."""

    @property
    def binding(self) -> Any:
        """The body that is performed: the node's, or the fallback's."""
        return (self.spare or self.node).body

    @property
    def label(self) -> str:
        """`node`, or `node[3]` for an item."""
        return self.node.name if self.ordinal is None else f"{self.node.name}[{self.ordinal}]"


class Outcome:
    """How an attempt ended."""

    duration = 0.0
    output: Any = None
    diff: StateDiff | None = None
    parts: Sequence[tuple[tuple[int, ...], StateDiff]] = ()
    """Of a team: what those members wrote whose results are its answer, by member; of a team in it by (member, its member)."""
    jump: Next | None = None
    error: BaseException | None = None
    answer: dict[str, Any] | None = None
    """Of a team: what its event tells instead of the output, which lies with its members."""
    output_data: bytes | None = None
    diff_data: bytes | None = None
    final = False
    """Whether the error is certain to come again, so no further attempt is made."""
    abandoned = False
    """Whether the body goes on somewhere without anybody waiting for it."""
    killed = False
    """Whether it did not listen to its limit, so that its process was ended."""
    seq = 0
    """The number of its event, once it is told."""
    worker = ""
    """Which process performed it, where it was not this one."""

    def __init__(self, call: Call, started: float) -> None:
        """An attempt that began at `started` (seconds since 1970)."""
        self.call = call
        self.started = started

    def diffs(self, label: str) -> list[tuple[str, StateDiff]]:
        """Return what was written, each part with the label of whoever wrote it."""
        if self.parts:
            return [(label + "".join(f"[{member}]" for member in path), diff) for path, diff in self.parts]
        return [] if self.diff is None else [(label, self.diff)]


async def attempt(call: Call, moment: Moment, off_loop: OffLoop) -> Outcome:
    """Perform one attempt within its limit. Never raises for what the body does; `CancelledError` passes through."""
    outcome = Outcome(call, time.time())
    begun = time.perf_counter()
    binding = (call.spare or call.node).body
    ctx = _context(call, moment, off_loop) if binding.wants_context else None
    around = current.get()
    current.set((moment.scene, call))
    try:
        if call.limit is not None:
            value = await _within(_perform(call, ctx, off_loop), call.limit, outcome)
        elif binding.is_async and (type(call.input) in SHARED or not is_long(call.input)):
            value = await binding.call(ctx, _given(binding, call, ctx))
        else:
            value = await _perform(call, ctx, off_loop)
        if (ctx is None and type(value) in SHARED) or not _is_long(ctx, value):
            _keep(outcome, ctx, value, moment.version)
        else:
            await beside(lambda: _keep(outcome, ctx, value, moment.version))
        if moment.encode:
            await _encode(outcome)
    except BaseException as error:  # user code may raise anything
        if is_ours(error):
            raise
        outcome.error = told(error)
    finally:
        outcome.duration = time.perf_counter() - begun
        current.set(around)  # no reset: a loop that is torn down ends this in another context
    return outcome


def is_ours(error: BaseException) -> bool:
    """Tell whether what came up is no error of the user's code: this task is being cancelled, or this thread interrupted."""
    if isinstance(error, asyncio.CancelledError):
        running = asyncio.current_task()
        return running is not None and running.cancelling() > 0
    return isinstance(error, KeyboardInterrupt)


async def _guarded(work: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """Await work that has a task of its own; the event loop would let a SystemExit through to whoever runs the loop."""
    try:
        return await work, None
    except BaseException as error:  # user code may raise anything
        if is_ours(error):
            raise
        return None, error


def attempt_now(call: Call, moment: Moment) -> Outcome:
    """Perform one attempt of a sync body in the calling thread, where no event loop runs; what it returns may still be awaitable."""
    outcome = Outcome(call, time.time())
    begun = time.perf_counter()
    binding = (call.spare or call.node).body
    ctx = _context(call, moment) if binding.wants_context else None
    around = current.get()
    current.set((moment.scene, call))
    try:
        value = binding.call(ctx, _given(binding, call, ctx))
        if inspect.isawaitable(value):
            value = asyncio.run(_awaited(value))
        _keep(outcome, ctx, value, moment.version)
        if moment.encode:
            outcome.output_data = encode(_stored(outcome), where=_place(outcome, outcome.jump))
            if outcome.diff is not None:
                outcome.diff_data = encode_diff_now(outcome.diff, call.label)
    except BaseException as error:  # user code may raise anything
        if isinstance(error, KeyboardInterrupt):
            raise
        outcome.error = told(error)
    finally:
        current.set(around)
    outcome.duration = time.perf_counter() - begun
    return outcome


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _context(call: Call, moment: Moment, off_loop: OffLoop | None = None) -> Context:
    return Context(moment.scene, moment.state, call.window, call.node.name, call.step_id, call.attempt, off_loop)


def _given(binding: Any, call: Call, ctx: Context | None) -> Any:
    """The input as the body takes it; the context has the same value as it was before a model was built from it."""
    given = private(call.input)
    if ctx is not None:
        ctx._step_input = given
    return given if binding.annotation is None else binding.prepare(given)


async def _perform(call: Call, ctx: Context | None, off_loop: OffLoop) -> Any:
    binding = (call.spare or call.node).body
    if binding.is_async:
        given = await beside(lambda: _given(binding, call, ctx)) if is_long(call.input) else _given(binding, call, ctx)
        return await binding.call(ctx, given)

    def perform() -> Any:
        return binding.call(ctx, _given(binding, call, ctx))

    value = await off_loop(perform)
    return await value if inspect.isawaitable(value) else value


async def _within(work: Coroutine[Any, Any, Any], limit: float, outcome: Outcome) -> Any:
    """Await work in a limit of its own; a body that ignores being cancelled is left behind."""
    label = outcome.call.label
    if limit <= 0:
        work.close()
        raise out_of_time(label, limit)
    running = asyncio.get_running_loop().create_task(_guarded(work))
    try:
        done, _ = await asyncio.wait({running}, timeout=limit)
    except asyncio.CancelledError:
        running.cancel()
        await asyncio.wait({running})  # whoever cancels waits as long as it likes, and tells what goes on after that
        raise
    if done:
        value, error = running.result()
        if error is not None:
            raise error
        return value
    running.cancel()
    done, _ = await asyncio.wait({running}, timeout=STUBBORN)
    outcome.abandoned = not done or not outcome.call.binding.is_async
    if not done:
        running.add_done_callback(lambda late: late.cancelled() or late.exception())
    raise out_of_time(label, limit)


def out_of_time(label: str, limit: float) -> StepTimedOut:
    """Return the error of a step whose limit is over; one of 0 is over before the step begins."""
    how = f"timed out after {limit:g} s" if limit > 0 else f"timed out: its limit is {limit:g} s"
    return StepTimedOut(f"step {label!r} {how}", node=label)


def _is_long(ctx: Context | None, value: Any) -> bool:
    """Whether to take over what the body gave and wrote takes long."""
    if isinstance(value, Next) and (is_long(value.input) or is_long(value.update_state)):
        return True
    return is_long(value) or (ctx is not None and any(map(is_long, ctx.touched())))


def _keep(outcome: Outcome, ctx: Context | None, value: Any, version: int) -> None:
    """Take over what the body gave: a jump or data, and its diff."""
    diff = None if ctx is None else ctx.wrote(version)
    if isinstance(value, Next):
        if outcome.call.ordinal is not None and outcome.call.node.kind != "member":
            raise StepFailed(f"item {outcome.call.label!r} returned a Next; an item of a map cannot jump", node=outcome.call.label)
        jump = Next(value.node, value.input, value.update_state)
        if jump.sent is not ABSENT and jump.sent is not None:
            jump.input = to_data(plain_state(jump.sent), where=_place(outcome, jump))
        outcome.jump = jump
        if value.update_state:
            written = dict(diff.written) if diff else {}
            written.update(value.update_state)
            gone = frozenset(k for k in diff.deleted if k not in written) if diff else frozenset[Any]()
            diff = StateDiff(written, gone, version)
    else:
        if outcome.call.binding.brief and isinstance(content := getattr(value, "content", None), str):
            value = content
        outcome.output = value if type(value) in SHARED else to_data(plain_state(value), where=_place(outcome, None))
    if diff is not None and (diff.written or diff.deleted):
        outcome.diff = _diff_as_data(diff, outcome.call.label)


def _diff_as_data(diff: StateDiff, label: str) -> StateDiff:
    written: dict[Any, Any] = {}
    for key, value in diff.written.items():
        at = key if type(key) in SHARED else to_key(key, where=key_place(key, label))
        if at in written:
            text = f"{key_place(key, label)} and another are the same as data ({at!r:.80}); use keys that differ"
            raise NotStorable(text, key=key)
        written[at] = value if type(value) in SHARED else _as_data(key, value, label)
    return StateDiff(written, diff.deleted, diff.version)


def _as_data(key: Any, value: Any, label: str) -> Any:
    grew = isinstance(value, Growth)
    where = place_of(key, label, grew=grew)
    return Growth(to_data(value.added, where=where)) if grew else to_data(plain_state(value), where=where)


def plain_state(value: Any) -> Any:
    """A body that returns its state view returns what the view shows."""
    return value.copy() if isinstance(value, View) else value


async def _encode(outcome: Outcome) -> None:
    label = outcome.call.label
    outcome.output_data = await encoded(_stored(outcome), _place(outcome, outcome.jump))
    if outcome.diff is not None:
        pieces: list[bytes] = []
        async for piece in encode_diff(outcome.diff, label):
            pieces.append(piece)
            if not piece:
                await asyncio.sleep(0)
        outcome.diff_data = b"".join(pieces)


def _stored(outcome: Outcome) -> Any:
    """What a log keeps as the output: of a jumper its jump's input."""
    if outcome.jump is None:
        return outcome.output
    return None if outcome.jump.sent is ABSENT else outcome.jump.sent


def _place(outcome: Outcome, jump: Next | None) -> str:
    """What a log keeps as the output is to the reader of an error."""
    what = "output" if jump is None else "the jump's input"
    return f"{what} of {outcome.call.label!r}"


async def judged(binding: Any, ctx: Context, given: Any, off_loop: OffLoop) -> tuple[bool, BaseException | None]:
    """Return a condition's verdict, or false and why."""

    def perform() -> Any:
        value = ctx._step_input = private(opened(given))
        return binding.call(ctx, value)

    async def answer() -> Any:
        if binding.is_async:
            value = await beside(perform) if is_long(given) else perform()
        else:
            value = await off_loop(perform)
        return await value if inspect.isawaitable(value) else value

    running = asyncio.get_running_loop().create_task(_guarded(answer()))
    try:
        done, _ = await asyncio.wait({running}, timeout=CONDITION_LIMIT)
        if not done:
            running.cancel()
            return False, TimeoutError(f"no answer within {CONDITION_LIMIT:g} s")
        if running.cancelled():
            return False, told(asyncio.CancelledError())
        verdict, error = running.result()
        return bool(verdict), None if error is None else told(error)
    except asyncio.CancelledError:
        running.cancel()
        raise
    except Exception as error:  # the truth value of an answer is user code too
        return False, told(error)


async def combined(
    function: Callable[..., Any], given: Callable[[], Sequence[Any]], off_loop: OffLoop, where: str
) -> tuple[Any, BaseException | None]:
    """Return what a function makes of `given()`, as data; or why it cannot. Errors say `where`."""
    try:
        value = function(*given()) if is_async(function) else await off_loop(lambda: function(*given()))
        if inspect.isawaitable(value):  # in a task of its own, which it may cancel: that is a failure of its own
            running = asyncio.get_running_loop().create_task(_guarded(value))
            value, error = await running
            if error is not None:
                raise error
        return await as_data(value, where), None
    except BaseException as error:  # user code may raise anything
        if is_ours(error):
            raise
        return None, told(error)


def judge_of(judge: Callable[[Any], Any] | None) -> Callable[[Any, Any], Any] | None:
    """Return a judge as a team asks it, of (result, jump); where there is a jump, (target, whether with an input), it is given the Next."""
    if judge is None:
        return None
    asked = partial(_judge_later if is_async(judge) else _judge, judge)
    asked.__wrapped__ = judge  # type: ignore[attr-defined] - what a hash of the code is made of
    return asked


def _judge(judge: Callable[[Any], Any], result: Any, jump: Sequence[Any] | None) -> Any:
    return judge(_result_of(result, jump))


async def _judge_later(judge: Callable[[Any], Any], result: Any, jump: Sequence[Any] | None) -> Any:
    return await judge(_result_of(result, jump))


def _result_of(result: Any, jump: Sequence[Any] | None) -> Any:
    if jump is None:
        return result
    target, sent = jump
    return Next(target, (Next.none if result is None else result) if sent else None)


async def perform_once(
    ctx: Context, key: str, function: Callable[[], Any], *, intend: Callable[[], Awaitable[bytes | None]],
    withdraw: Callable[[], Awaitable[None]], receive: Callable[[bytes], Awaitable[None]],
) -> Any:  # fmt: skip
    """Perform what a body hands to `ctx.once`, between its intent and its receipt; of one key in one attempt one after the other.

    Args:
        ctx: The body's.
        key: What the body calls it.
        function: The effect.
        intend: Commits the intent, or gives the receipt that is there already.
        withdraw: Takes the intent back, since the effect has failed.
        receive: Commits the receipt.
    """

    async def work() -> Any:
        receipt = await intend()
        if receipt is not None:
            return decode(receipt)
        try:
            value = await _effect(ctx, function)
        except Exception:
            await withdraw()
            raise
        where = f"once({key!r}) of {ctx.node!r}"
        value = await as_data(value, where)
        await receive(await encoded(value, where))
        return value

    return await _in_turn(ctx, key, work)


async def _effect(ctx: Context, function: Callable[[], Any]) -> Any:
    """Perform an effect, a sync function off the event loop, as a sync body is."""
    value = function() if ctx._off_loop is None or is_async(function) else await ctx._off_loop(function)
    return await value if inspect.isawaitable(value) else value


async def _in_turn(ctx: Context, key: str, work: Callable[[], Awaitable[Any]]) -> Any:
    """Do the work of a `ctx.once`, after what the same attempt began before under the same key: so it finds the receipt of that.

    Raises: TypeError for a key that is no text.
    """
    if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance] - it comes from user code
        raise TypeError(f"once of {ctx.node!r} takes a text as its key, not {key!r} of type {type(key).__name__}")
    around, place = _inside.get(), (ctx, key)
    if place in around:
        return await work()  # an effect that asks for itself would wait forever; it is told that it is in doubt
    turn = _turns.setdefault(place, asyncio.Lock())
    async with turn:
        _inside.set(around | {place})
        try:
            return await work()
        finally:
            _inside.set(around)  # no reset: a loop that is torn down ends this in another context


async def publish(bus: Any, event: Event) -> None:
    """Hand an event to a user's bus, whose `publish` may be sync or async; what it raises is logged, and is nobody else's trouble."""
    try:
        answer = bus.publish(event)
        if inspect.isawaitable(answer):
            await answer
    except BaseException as error:  # user code may raise anything
        if is_ours(error):
            raise
        logger.error("An event bus failed", exc_info=error, extra={"run_id": event.run_id, "seq": event.seq})
