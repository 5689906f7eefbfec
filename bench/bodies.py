"""The bodies that scenarios perform, and the same as plain functions for bare Ray.

They have a module of their own, which workers import; it must not import what a worker does not need.
"""

import asyncio
import os
import time

from engine import Context


async def pass_on(x: object) -> object:
    """Do nothing."""
    return x


def pass_on_sync(x: object) -> object:
    """Do nothing, in a thread."""
    return x


def where(x: object) -> int:
    """Do nothing, and say in which process."""
    return os.getpid()


async def where_async(x: object) -> int:
    """Do nothing without blocking, and say in which process."""
    return os.getpid()


async def count_on(x: list[int]) -> list[int]:
    """Add one to a count that is handed on, and say in which process: `[count, pid]`."""
    return [x[0] + 1, os.getpid()]


def count_on_sync(x: list[int]) -> list[int]:
    """Add one to a count that is handed on, for bare Ray."""
    return [x[0] + 1, os.getpid()]


def nap(ctx: Context) -> tuple[int, float]:
    """Sleep as long as the run's input says for this node; say in which process, and for how many seconds."""
    begun = time.monotonic()
    time.sleep(ctx.input[ctx.node])
    return os.getpid(), time.monotonic() - begun


def nap_for(seconds: float, *after: object) -> int:
    """Sleep, for bare Ray; what comes after is waited for."""
    time.sleep(seconds)
    return os.getpid()


async def wait(x: float) -> tuple[int, float]:
    """Wait as a call of a model does; say in which process, and for how many seconds."""
    begun = time.monotonic()
    await asyncio.sleep(x)
    return os.getpid(), time.monotonic() - begun


async def wait_10_ms(x: object) -> object:
    """Wait for ten milliseconds."""
    await asyncio.sleep(0.01)
    return x


def wait_many(seconds: float, count: int) -> list[tuple[int, float]]:
    """Wait many times at once, for bare Ray."""

    async def all_of_them() -> list[tuple[int, float]]:
        return await asyncio.gather(*(wait(seconds) for _ in range(count)))

    return asyncio.run(all_of_them())


async def win(x: object) -> int:
    """Be the first of a race: wait for ten milliseconds, and say in which process."""
    await asyncio.sleep(0.01)
    return os.getpid()


async def lose(x: object, ctx: Context) -> int:
    """Be too late in a race; where the run's input is a file, say there when this was stopped."""
    try:
        await asyncio.sleep(5)
    except asyncio.CancelledError:
        if ctx.input is not None:
            note_down(ctx.input, f"{ctx.step_id} {time.time()}")
        raise
    return os.getpid()


def note_down(file: str, line: str) -> None:
    """Add a line to a file, whole whoever else does so too."""
    with open(file, "a") as lines:
        lines.write(f"{line}\n")


def win_sync(x: object) -> int:
    """Be the first of a race, in a thread that nothing interrupts."""
    time.sleep(0.01)
    return os.getpid()


def lose_sync(x: object) -> int:
    """Be too late in a race, in a thread that nothing interrupts."""
    time.sleep(5)
    return os.getpid()


class AsyncRacer:
    """An actor for members of bare races that wait; it performs many at once."""

    async def win(self) -> int:
        """Be the first."""
        return await win(None)

    async def lose(self) -> None:
        """Be too late."""
        await asyncio.sleep(5)

    async def wait(self, seconds: float) -> tuple[int, float]:
        """Wait for so many seconds."""
        return await wait(seconds)


class Racer:
    """An actor for one member of a bare race that blocks."""

    def pid(self) -> int:
        """Say in which process this is."""
        return os.getpid()

    def win(self) -> int:
        """Be the first."""
        return win_sync(None)

    def lose(self) -> int:
        """Be too late."""
        return lose_sync(None)


async def get(url: str) -> str:
    """Ask a service on this machine; who is stopped meanwhile hangs up."""
    host, _, path = url.removeprefix("http://").partition("/")
    name, _, port = host.partition(":")
    reader, writer = await asyncio.open_connection(name, int(port))
    try:
        writer.write(f"GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        return (await reader.read()).partition(b"\r\n\r\n")[2].decode()
    finally:
        writer.close()


async def ask(x: str) -> str:
    """Ask a service; the first call of a hedge."""
    return await get(f"{x}/0")


async def ask_again(x: str) -> str:
    """Ask a service once more; the second call of a hedge."""
    return await get(f"{x}/1")


async def add_4_kb(x: object, ctx: Context) -> None:
    """Add 4 KB of random bytes to a list in the state."""
    ctx.state.setdefault("items", [])
    ctx.state["items"].append(os.urandom(4096))


def fill(x: int, ctx: Context) -> int:
    """Write so many megabytes to the state, a key for each."""
    for number in range(x):
        ctx.state[f"filling-{number}"] = os.urandom(1_000_000)
    return os.getpid()


def write_512(x: object, ctx: Context) -> int:
    """Write 512 bytes to a key of the node's column."""
    ctx.state[ctx.node.partition("-")[0]] = os.urandom(512)
    return os.getpid()
