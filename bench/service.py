"""A service over HTTP on this machine, with a long tail, in a process of its own: what asks it does not share its time.

How long an answer takes depends on the path and the seed alone, so whoever asks for the same has the same luck.
"""

import asyncio
import random
import subprocess
import sys
from types import TracebackType
from typing import Any, Self

SLOW = 0.05
"""The share of requests that belong to the tail."""


def latency(seed: int, path: str) -> float:
    """Return the seconds until an answer: 15 to 25 ms, of the tail 300 to 500 ms."""
    luck = random.Random(f"{seed}{path}")
    return luck.uniform(0.3, 0.5) if luck.random() < SLOW else luck.uniform(0.015, 0.025)


async def serve(seed: int) -> None:
    """Answer each path with itself, and `/asked` with how often others were asked for, until nobody holds our input any more."""
    asked = 0
    answering: set[asyncio.Task[Any] | None] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        answering.add(asyncio.current_task())
        try:
            path = (await reader.readline()).split()[1].decode()
            while (await reader.readline()).strip():
                pass
            if path != "/asked":
                asked += 1
                await asyncio.sleep(latency(seed, path))
            body = str(asked) if path == "/asked" else path
            writer.write(f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            await writer.drain()
        except (ConnectionError, IndexError):  # whoever asked has hung up
            pass
        finally:
            writer.close()
            answering.discard(asyncio.current_task())

    async with await asyncio.start_server(answer, "127.0.0.1", 0, backlog=512) as server:
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(sys.stdin.read)
    await asyncio.gather(*(task for task in answering if task is not None))  # whom they are for has hung up


class Service:
    """The service as long as the context is open."""

    def __init__(self, seed: int) -> None:
        """Start nothing yet."""
        self.url = ""
        self._seed = seed

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "bench.service", str(self._seed)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            self._process.communicate(timeout=5)  # which closes its input
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
