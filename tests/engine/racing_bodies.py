"""Bodies that tests of teams share: those that wait, fail, answer and write; and how a team's answer and run are read."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from engine import Context, Engine, Event, MemberResult, RunHandle, Workflow
from engine.errors import WorkflowError


class Gate:
    """An async member that counts its starts, ends when it is let through, and knows whether it was cancelled."""

    def __init__(self, value: Any = "through") -> None:
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.calls = 0
        self.cancelled = 0
        self.value = value

    async def __call__(self, given: Any) -> Any:
        self.calls += 1
        self.started.set()
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self.value


async def hang(given: Any) -> None:
    await asyncio.Event().wait()


async def sleep(given: Any) -> str:
    await asyncio.sleep(30)
    return "overslept"


async def swallow(given: Any) -> str:
    with suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    return "too late"


async def boom(given: Any) -> None:
    raise ValueError(f"boom {given}")


async def cancel_itself(*given: Any) -> None:
    """As a body, mapper, judge or condition that misuses asyncio does."""
    running = asyncio.current_task()
    assert running is not None
    running.cancel()
    await asyncio.sleep(1)


def giving(value: Any) -> Callable[[Any], Any]:
    async def body(given: Any) -> Any:
        return value

    return body


def counted(calls: Counter[Any], name: Any, body: Callable[[Any], Any]) -> Callable[[Any], Any]:
    async def count(given: Any) -> Any:
        calls[name] += 1
        value = body(given)
        return await value if asyncio.iscoroutine(value) else value

    return count


def called(name: str, body: Callable[..., Any]) -> Callable[..., Any]:
    """A body under another name, by which its member is known."""
    body.__name__ = name
    return body


def setting(**values: Any) -> Callable[[Any, Context], Any]:
    async def body(given: Any, ctx: Context) -> Any:
        ctx.state.update(values)
        return next(iter(values.values()))

    return body


def chain(*bodies: Any) -> Workflow:
    inner = Workflow("inner")
    for number, body in enumerate(bodies):
        inner.add_node(f"n{number}", body)
        if number:
            inner.add_edge(f"n{number - 1}", f"n{number}")
    return inner.set_entry_point("n0")


def told(results: list[MemberResult]) -> list[tuple[int, Any]]:
    """Who gave what: the result of a success, the error of a failure."""
    return [(r.member_index, r.result if r.is_success else r.error) for r in results]


def shown(output: list[dict[str, Any]]) -> list[tuple[int, Any]]:
    """The same of a team's output as a node."""
    return [(r["member_index"], r["result"] if r["is_success"] else r["error"]) for r in output]


async def stopped(flow: Workflow, value: Any = None) -> tuple[RunHandle, list[Event]]:
    """A run that has ended, however it did, and its events."""
    handle = await Engine(None).start(flow, value)
    with suppress(WorkflowError):
        await handle.wait()
    return handle, [event async for event in handle.events()]
