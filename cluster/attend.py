"""Attends a run until it ends: shows its events, and lets SIGINT and SIGTERM drain it; what `gecko run` and `python -m cluster run` share.

The first signal asks the run to stop at a checkpoint, so that the same command goes on; the second ends the process at once. The library
itself installs no handlers: these are put in place here, for as long as a run is attended, and taken away again.
"""

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from engine.core.events import Event
from engine.handle import RunHandle

LEFT_AT_ONCE = 130
"""The exit status of a process that a second signal ended."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """The command was interrupted before its run had begun; nothing was started."""


class Signals:
    """The first signal is remembered and wakes whoever waits; the second leaves."""

    def __init__(self, noticed: Callable[[], None], leave: Callable[[], None]) -> None:
        """`noticed` is called at the first signal, in the main thread; `leave` at the second, and has to end the process."""
        self.asked = False
        self._noticed = noticed
        self._leave = leave
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()

    def install(self) -> None:
        """Take the signals, also from whoever has taken them meanwhile: connecting to Ray puts a handler of its own in place."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._on_signal)  # not the loop's: a body may hold the loop up

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self._leave()
        self.asked = True
        self._noticed()
        self._loop.call_soon_threadsafe(self._wake.set)

    async def wait(self) -> bool:
        """Return whether a signal came, when one came or `close` was called."""
        await self._wake.wait()
        return self.asked

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._wake.set()


@contextmanager
def _taken(signals: Signals) -> Iterator[None]:
    former = {number: signal.getsignal(number) for number in _SIGNALS}
    signals.install()
    try:
        yield
    finally:
        signals.close()
        if threading.current_thread() is threading.main_thread():
            for number, handler in former.items():
                signal.signal(number, handler)


def leave_at_once() -> None:
    """End the process without anything further; what is committed can be resumed."""
    os._exit(LEFT_AT_ONCE)


async def attend(
    begin: Callable[[], Coroutine[Any, Any, RunHandle]],
    see: Callable[[Event], None],
    *,
    begun: Callable[[RunHandle], None] = lambda handle: None,
    noticed: Callable[[], None] = lambda: None,
    leave: Callable[[], None] = leave_at_once,
) -> Any:
    """Begin a run, show every event of it, and return its output.

    Args:
        begin: Starts or resumes the run.
        see: Called with each event, durable and transient, those of an earlier start first.
        begun: Called once with the handle, before the first event.
        noticed: Called at the first signal.
        leave: Called at the second.

    Raises: what `RunHandle.wait` raises, RunPaused after a drain among it; Interrupted for a signal before the run had begun.
    """
    signals = Signals(noticed, leave)
    with _taken(signals):
        handle = await _unless_asked(begin(), signals)
        signals.install()
        begun(handle)

        async def wait() -> Any:
            try:
                return await handle.wait()
            finally:
                signals.close()

        async def drain() -> None:
            if await signals.wait():
                await handle.drain()

        async def watch() -> None:
            try:
                async for event in handle.events(transient=True):
                    see(event)
            except BaseException:  # nobody can be shown anything more: a pipe was closed, say
                await handle.drain()
                raise

        answer, drained, watched = await asyncio.gather(wait(), drain(), watch(), return_exceptions=True)
    for outcome in (answer, watched, drained):
        if isinstance(outcome, BaseException):
            raise outcome
    return answer


async def _unless_asked(beginning: Coroutine[Any, Any, RunHandle], signals: Signals) -> RunHandle:
    """Return the handle of a run that is being begun, and give that up at a signal."""
    loop = asyncio.get_running_loop()
    working = loop.create_task(beginning)
    asked = loop.create_task(signals.wait())
    try:
        await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        working.cancel()
        await asyncio.wait({working})
        if not working.cancelled() and working.exception() is None:
            await working.result().drain()
        raise Interrupted("interrupted before the run had begun")
    finally:
        asked.cancel()
