"""What is long to copy, compare or encode is dealt with beside the event loop, so that no value holds up the runs that share it.

Small values, which are most, are dealt with where they are: `is_long` is what they pay.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextvars import copy_context
from gc import get_referents
from typing import Any

from engine.checkpoint.codec import Encoded, encode, encode_slices, is_large, to_data
from engine.checkpoint.data import CONTAINERS, SHARED, foreign
from engine.core.state import Lazy

MANY = 4096
"""Elements, at all levels, that are dealt with at once."""
LONG_BYTES = 1 << 16
"""Bytes of a value in its encoding that are read at once."""
_LONG_ARRAY = 1 << 23
_LEVELS = 64
_CONTAINERS = tuple(CONTAINERS)
_KNOWN = SHARED | CONTAINERS
_NONE: list[Any] = []


class Helpers(Executor):
    """Daemon threads for work that ends by itself; two, since it is work for the processor."""

    def __init__(self, count: int = 2) -> None:
        """Start nothing yet."""
        self._count = count
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Perform a function when a thread is free."""
        future: Future[Any] = Future()
        self._work.put((future, lambda: fn(*args, **kwargs)))
        with self._lock:
            self._threads = [thread for thread in self._threads if thread.is_alive()]  # a forked process has none
            if len(self._threads) < self._count:
                self._threads.append(threading.Thread(target=self._serve, name="gecko-helper", daemon=True))
                self._threads[-1].start()
        return future

    def _serve(self) -> None:
        while True:
            future, function = self._work.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:  # noqa: BLE001 - handed to whoever awaits it
                    future.set_exception(error)
            del future, function


HELPERS = Helpers()


async def beside(function: Callable[[], Any]) -> Any:
    """Return what a function gives that takes long and ends by itself, performed beside the event loop."""
    return await asyncio.get_running_loop().run_in_executor(HELPERS, copy_context().run, function)


def is_long(value: object) -> bool:
    """Guess, at a small and bounded cost, whether to copy a value or compare it takes more than about a millisecond."""
    kind = type(value)
    if kind in SHARED:
        return False
    if kind is dict or kind is list:
        count = len(value)  # type: ignore[arg-type]
        if count > MANY:
            return True
        level = get_referents(value)
    else:
        level, count = [value], 0
    for _ in range(_LEVELS):
        kinds = set(map(type, level))
        if kinds <= SHARED:
            return False
        within: list[Any] = [x for x in level if type(x) in CONTAINERS]
        models = _NONE
        if not kinds <= _KNOWN:
            odd = [x for x in level if type(x) not in _KNOWN]
            if any(map(_is_long_itself, odd)):
                return True
            models = [x for x in odd if _is_model(type(x))]
            within += [x for x in odd if isinstance(x, _CONTAINERS)]
            count += len(models)
        for x in within:
            count += len(x)
        if count > MANY:
            return True
        level = get_referents(*within, *models)
    return True


def _is_model(kind: type) -> bool:
    return hasattr(kind, "__dataclass_fields__") or hasattr(kind, "__pydantic_fields__")


def _is_long_itself(item: object) -> bool:
    if isinstance(item, Lazy):
        return len(item.data) > LONG_BYTES if isinstance(item, Encoded) else item.heavy
    return isinstance(item, foreign("numpy", "ndarray")) and item.nbytes > _LONG_ARRAY  # type: ignore[attr-defined]


async def as_data(value: Any, where: str = "") -> Any:
    """Return a value's data form, as `to_data` does."""
    return await beside(lambda: to_data(value, where=where)) if is_long(value) else to_data(value, where=where)


async def encoded(value: Any, where: str) -> bytes:
    """Return a value's bytes, as `encode` does; what is kept in its bytes is not looked into."""
    if isinstance(value, Encoded):
        return bytes(value.data)
    if not is_large(value):
        return encode(value, where=where)
    pieces: list[bytes] = []
    for piece in encode_slices(value, where=where):
        pieces.append(piece)
        await asyncio.sleep(0)
    return b"".join(pieces)
