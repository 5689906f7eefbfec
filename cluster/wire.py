"""What travels between a coordinator and its workers, as msgpack: small records of bytes. Values are in the codec's bytes all the way.

A value is its bytes, or a place in an object of the cluster: (number of the reference, index in the list that it holds).
"""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cloudpickle
import msgspec

from engine.checkpoint.codec import decode, encode
from engine.checkpoint.table import utf8_text
from engine.core.policy import lineage
from engine.core.state import Lazy
from engine.errors import GeckoError, NotStorable, TeamTimedOut

Value = bytes | tuple[int, int] | None
"""None: no value at all (the input of a chain's later steps)."""

BIG = 64 * 1024
"""A value over so many bytes is an object of its own, fetched when it is read."""


class CallWire(msgspec.Struct, array_like=True, frozen=True):
    """One call of a pack."""

    id: int
    scene: int
    """Which of the pack's scenes."""
    node: str
    body: bytes
    number: int
    at: int
    ordinal: int | None
    attempt: int
    step_id: str
    limit: float | None
    input: Value
    window: int
    """Which of the scene's windows."""
    member: bool = False
    """Whether it is of a team, and so may jump."""


class SceneWire(msgspec.Struct, array_like=True, frozen=True):
    """What calls of one layer of one run share."""

    number: int
    """By which the coordinator knows the run."""
    run_id: str
    session_id: str | None
    metadata: bytes
    deadline: float | None
    input: Value
    version: int
    base: tuple[int, int] | None
    """(number of the reference, version) of the snapshot that the state stands on."""
    delta: list[tuple[bytes, Value]]
    """(encoded key, value; None: deleted) over the base."""
    windows: list[tuple[list[tuple[str, Value]], Value]]
    """(history entries, last output)."""
    retention: int | None


class PackWire(msgspec.Struct, array_like=True, frozen=True):
    """What one worker performs."""

    id: str
    kind: str
    """`sync`, `async` or `chain` of steps, `race` of members of teams; `ask` of conditions, `reduce` of custom reducers."""
    calls: list[CallWire]
    scenes: list[SceneWire]
    codes: list[int]
    """Numbers of the references that hold code."""
    homes: list[tuple[str, tuple[str, ...]]]
    """Working directory and module paths of the sender."""
    budget: float | None
    gated: bool = False
    """Of a chain: whether each step waits for the coordinator's word."""
    careful: bool = False
    """Whether each result is handed over before the next call starts, so that a death can be laid at one call's door."""


class ErrorWire(msgspec.Struct, array_like=True, frozen=True):
    """An error as data, with the original for whoever can open it."""

    type: str
    message: str
    lineage: tuple[str, ...]
    traceback: str
    original: bytes | None
    cause: "ErrorWire | None" = None
    """What it was raised from."""


class OutcomeWire(msgspec.Struct, array_like=True, frozen=True):
    """How one call ended."""

    id: int
    output: bytes | int | None
    """Bytes, or the index of a big value in the pack's answer."""
    diff: bytes | None
    """As the log keeps it; where `apart`, with the index of each big value instead of its bytes."""
    jump: str | None
    sent: bool
    error: ErrorWire | None
    started: float
    duration: float
    apart: bool = False
    """Whether big values of the diff lie beside the pack's answer."""


class AnswerWire(msgspec.Struct, array_like=True, frozen=True):
    """What a pack gives, in parts or at its end."""

    pack: str
    worker: str
    outcomes: list[OutcomeWire]
    given_back: list[int]
    overdue: int | None = None
    """A call that is past its limit and could not be interrupted."""
    hit: list[int] = []
    """Calls that another body of their process cancelled: to be performed again, as if that had died."""


def diff_parts(diff: bytes) -> Any:
    """Return what a log keeps of a diff: what was written, as (key, whether it grew, bytes), what was deleted, the version of its base."""
    return decode(diff)


def take_apart(diff: bytes, bigs: list[bytes]) -> bytes | None:
    """Put the big values of a diff beside, and return the diff with their indices; None where it has none."""
    written, deleted, version = diff_parts(diff)
    found = [entry for entry in written if not entry[1] and len(entry[2]) > BIG]
    for entry in found:
        bigs.append(entry[2])
        entry[2] = len(bigs)
    return encode([written, deleted, version]) if found else None


def put_together(diff: bytes, big: Callable[[int], Any]) -> bytes:
    """Return a diff as the log keeps it; `big(index)` gives the bytes of a value that lies beside."""
    written, deleted, version = diff_parts(diff)
    whole = [[key, grew, bytes(big(value)) if isinstance(value, int) else value] for key, grew, value in written]
    return encode([whole, deleted, version])


_encoder = msgspec.msgpack.Encoder()
_packs = msgspec.msgpack.Decoder(PackWire)
_answers = msgspec.msgpack.Decoder(AnswerWire)


def to_wire(record: PackWire | AnswerWire) -> bytes:
    """Return a record's bytes. An outcome that cannot be sent becomes an error of its own call alone."""
    try:
        return _encoder.encode(record)
    except Exception:
        if not isinstance(record, AnswerWire):
            raise
        return _encoder.encode(msgspec.structs.replace(record, outcomes=[_sendable(outcome) for outcome in record.outcomes]))


def _sendable(outcome: OutcomeWire) -> OutcomeWire:
    if isinstance(outcome.jump, str):
        outcome = msgspec.structs.replace(outcome, jump=utf8_text(outcome.jump))
    try:
        _encoder.encode(outcome)
    except Exception as error:  # noqa: BLE001 - whatever it is, the pack's other outcomes must arrive
        lack = NotStorable(f"how the call ended cannot be sent to the coordinator: {type(error).__name__}: {error}")
        return OutcomeWire(outcome.id, None, None, None, False, pack_error(lack, ""), outcome.started, outcome.duration)
    return outcome


def read_pack(data: bytes) -> PackWire:
    """Return a pack."""
    return _packs.decode(data)


def read_answer(data: bytes) -> AnswerWire:
    """Return an answer."""
    return _answers.decode(data)


class RemoteError(Exception):
    """An error of user code as its coordinator knows it: data, with the original unopened."""

    def __init__(self, wire: ErrorWire) -> None:
        """Keep the error's data."""
        super().__init__(wire.message)
        self.wire = wire
        self.type_name = wire.type
        self.lineage = wire.lineage
        self.traceback_text = wire.traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return _remote_error, (msgspec.msgpack.encode(self.wire),)


def _remote_error(data: bytes) -> RemoteError:
    return RemoteError(msgspec.msgpack.decode(data, type=ErrorWire))


class _Parts:
    """Pickles as an error that is put together again without its `__init__`, which may take anything."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _revived, (type(self._error), self._error.args, vars(self._error))


def _revived(kind: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *args)
    error.args = args
    vars(error).update(fields)
    return error


CAUSES = 8
"""How many errors of a chain of causes travel."""


def pack_error(error: BaseException, traceback_text: str, *, causes: int = CAUSES) -> ErrorWire:
    """Return an error as data, with what it was raised from. One that cannot be pickled travels without its original.

    Its texts are such as UTF-8 can hold; the original keeps its own.
    """
    cause, packed = error.__cause__, None
    if cause is not None:  # it travels by itself: pickle would lose it, or fail over it
        packed = pack_error(cause, "", causes=causes - 1) if causes else None
        error.__cause__ = None
    original = _pickled(error)
    if cause is not None:
        error.__cause__ = cause
    names = tuple(map(utf8_text, lineage(error)))
    return ErrorWire(utf8_text(type(error).__name__), utf8_text(_text_of(error)), names, utf8_text(traceback_text), original, packed)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as broken:  # noqa: BLE001 - its __str__ is user code
        return f"its __str__ raised {type(broken).__name__}"


def _pickled(error: BaseException) -> bytes | None:
    for whole in (error, _Parts(error)):
        try:
            data = cloudpickle.dumps(whole)
            if isinstance(pickle.loads(data), type(error)):
                return data
        except Exception:  # noqa: BLE001 - pickling runs the user's code
            continue
    return None


def open_error(wire: ErrorWire) -> BaseException:
    """Return the error for a coordinator: one of ours as it was, any other as `RemoteError`."""
    if wire.original is not None and any(name == "engine.errors.GeckoError" for name in wire.lineage):
        error = pickle.loads(wire.original)
        if isinstance(error, GeckoError):
            error.__cause__ = None if wire.cause is None else open_error(wire.cause)
            return error
    return RemoteError(wire)


def original_of(error: BaseException) -> BaseException:
    """Return an error with its originals opened, for the process that has the code."""
    if isinstance(error, TeamTimedOut):
        error.results = [replace(result, exception=opened_error(result.exception)) for result in error.results]
    if error.__cause__ is not None:
        error.__cause__ = opened_error(error.__cause__)
    return error


def opened_error(error: BaseException | None) -> BaseException | None:
    """Return the original of an error, with those of what it was raised from."""
    if error is None:
        return None
    return _opened(error.wire) if isinstance(error, RemoteError) else original_of(error)


def _opened(wire: ErrorWire) -> BaseException:
    """Return the original with its causes; what cannot be opened here stays data."""
    try:
        original = None if wire.original is None else pickle.loads(wire.original)
    except Exception:  # noqa: BLE001 - opening runs the user's code
        original = None
    error = RemoteError(wire) if original is None else original
    if wire.cause is not None:
        error.__cause__ = _opened(wire.cause)
    if original is not None and wire.traceback:
        original.add_note(f"raised in a worker:\n{wire.traceback}")
    return error


class Fetched(Lazy):
    """A value in a worker: opened from its bytes, or fetched from the cluster, each time it is read, so that every reader has its own."""

    __slots__ = ("_fetch", "_value")

    def __init__(self, value: Value, fetch: Any) -> None:
        """`fetch(number, index)` gives the bytes of a big value."""
        self._value = value
        self._fetch = fetch

    def load(self) -> Any:
        """Return the value."""
        if isinstance(self._value, bytes):
            return decode(self._value)
        assert self._value is not None
        return decode(self._fetch(*self._value))

    @property
    def wire(self) -> Value:
        """The value as it travelled."""
        return self._value
