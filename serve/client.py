"""A typed client of the HTTP service: `AsyncClient`, and `Client` for code without an event loop.

Every call that changes something may be repeated, and is, for as long as the service is away: a replica may die between an act and its
answer. `execute` carries a key that makes the repeated call the same execution. It needs nothing of a cluster, only the address and a key.
"""

import asyncio
import json
import random
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter

from engine import errors
from engine.errors import GeckoError, QueueFull, Unavailable, WrongState
from serve import errors as service_errors
from serve.errors import ServiceError
from serve.schemas import Done, Execution, ExecutionDetail, Graph, Health, Page, Workflow, WorkflowDetail

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

API = "/api/v1"
PATIENCE = 40.0
"""Seconds that a call is repeated for: a proxy of Ray Serve that was killed may be away for half a minute."""
ROUND = 25.0
"""Seconds that one request waits for the end of an execution."""
AGAIN = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds between attempts, each spread by half of it."""
AWAY = (429, 500, 502, 503, 504)
"""Statuses that may pass by themselves; 500 only where it is not the service that answers, but a proxy whose replica died."""
ENDED = ("completed", "failed", "cancelled", "timed_out")
REACHED = {"cancel": ("cancelled",), "suspend": ("suspended",), "resume": ("running", "pending", "completed"),
           "retry": ("running", "pending", "completed")}  # fmt: skip
"""Statuses that say, of a call that was repeated, that an earlier attempt had come through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamEvent:
    """An event of an execution."""

    id: int | None
    """Its number; None for one that has none and may be missed, as progress."""
    kind: str
    data: Mapping[str, Any]


class AsyncClient:
    """The service, for code with an event loop."""

    def __init__(
        self, url: str = "http://127.0.0.1:8000", key: str = "", *, patience: float = PATIENCE, timeout: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:  # fmt: skip
        """Name a service; nothing is sent yet.

        Args:
            url: Its address, without the path.
            key: An API key.
            patience: Seconds that calls are repeated for while the service is away, or its queue is full.
            timeout: Seconds that one attempt may take, besides what it was asked to wait.
            transport: What requests go through; default: the network.
        """
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._patience = patience
        self._timeout = timeout
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of connections."""
        await self._http.aclose()

    # Executions.

    async def execute(
        self, workflow_id: str, context: Any = None, *, priority: int = 0, metadata: Mapping[str, str] | None = None,
        session_id: str | None = None, timeout: float | None = None, idempotency_key: str | None = None,
    ) -> Execution:  # fmt: skip
        """Begin an execution; returns once it is recorded, exactly one however often the call had to be repeated.

        Args:
            context: Its input: any JSON; None: an empty object.
            idempotency_key: Names the call, so that another process may repeat it too; default: a new one.

        Raises: WorkflowNotFound, SessionInUse, QueueFull, InvalidRequest, Unauthorized, Forbidden, Unavailable.
        """
        body = {"context": {} if context is None else context, "priority": priority, "metadata": dict(metadata or {})}
        more = {"session_id": session_id, "timeout": timeout}
        body |= {name: value for name, value in more.items() if value is not None}
        headers = {"idempotency-key": idempotency_key or uuid.uuid4().hex}
        answer = await self._send("POST", f"/executions/{_part(workflow_id)}/execute", json=body, headers=headers)
        return Execution.model_validate_json(answer.content)

    async def run(self, workflow_id: str, context: Any = None, *, wait: float | None = None, **more: Any) -> ExecutionDetail:
        """Begin an execution and wait for its end; arguments as in `execute`, and `wait`: seconds, None: as long as it takes.

        Raises: as `execute`; TimeoutError when it has not ended by then, and goes on.
        """
        begun = await self.execute(workflow_id, context, **more)
        return await self.wait(begun.execution_id, wait)

    async def wait(self, execution_id: str, seconds: float | None = None) -> ExecutionDetail:
        """Wait for the end of an execution, however it ends.

        Raises: TimeoutError when it has not ended by then.
        """
        until = None if seconds is None else time.monotonic() + seconds
        after = 0
        while True:
            try:
                async with asyncio.timeout_at(None if until is None else asyncio.get_running_loop().time() + until - time.monotonic()):
                    async with aclosing(self.events(execution_id, after)) as events:
                        async for event in events:
                            after = event.id or after
                found = await self.get(execution_id)
            except TimeoutError:
                raise TimeoutError(f"execution {execution_id!r} has not ended in {seconds:g} s; it goes on") from None
            if found.status in ENDED:
                return found

    async def get(self, execution_id: str) -> ExecutionDetail:
        """Return an execution. Raises: RunNotFound."""
        return await self._get(ExecutionDetail, f"/executions/{_part(execution_id)}")

    async def list(self, **asked: Any) -> Page[Execution]:
        """Return a page of executions: `workflow_id`, `status`, `session_id`, `label`, `search`, `sort`, `after`, `offset`, `limit`."""
        return await self._get(Page[Execution], "/executions", params={k: v for k, v in asked.items() if v is not None})

    async def cancel(self, execution_id: str) -> Done:
        """Stop an execution for good. Raises: RunNotFound, WrongState."""
        return await self._act(execution_id, "cancel")

    async def suspend(self, execution_id: str) -> Done:
        """Let no further step of an execution start. Raises: RunNotFound, WrongState."""
        return await self._act(execution_id, "suspend")

    async def resume(self, execution_id: str) -> Done:
        """Go on with an execution that is suspended, failed or timed out. Raises: RunNotFound, WrongState."""
        return await self._act(execution_id, "resume")

    async def retry(self, execution_id: str) -> Done:
        """Go on with an execution that failed or timed out. Raises: RunNotFound, WrongState."""
        return await self._act(execution_id, "retry")

    async def _act(self, execution_id: str, action: str) -> Done:
        repeated: list[int] = []
        try:
            answer = await self._send("POST", f"/executions/{_part(execution_id)}/{action}", repeated=repeated)
        except WrongState:
            if not repeated:
                raise
            found = await self.get(execution_id)
            if found.status not in REACHED[action]:
                raise
            return Done(success=True, message=f"execution {execution_id!r} is {found.status}", status=found.status)
        return Done.model_validate_json(answer.content)

    async def events(self, execution_id: str, after: int = 0, *, transient: bool = False) -> AsyncGenerator[StreamEvent]:
        """Yield the events of an execution, each numbered one once and in order, through streams that are cut, until it has ended.

        Raises: RunNotFound, and what `execute` raises where the service stays away.
        """
        path = f"{API}/executions/{_part(execution_id)}/events"
        until: float | None = None
        attempt = 0
        while True:
            before = after
            try:
                headers = {"last-event-id": str(after), "accept": "text/event-stream"}
                async with self._http.stream("GET", path, headers=headers, params={"transient": transient}) as answer:
                    if answer.status_code == 204:
                        return
                    if answer.status_code != 200:
                        await answer.aread()
                        raise _error_of(answer)
                    until = None
                    async for event in _parsed(answer.aiter_lines()):
                        if event.kind == "error":
                            raise _error_in(dict(event.data))
                        after, attempt = event.id or after, 0
                        yield event
                cut: Exception = ServiceError("the stream ended")  # at the end of the execution the next answer is 204
            except (httpx.TransportError, GeckoError) as error:
                if not _may_pass(error):
                    raise
                cut = error
            until = until or time.monotonic() + self._patience
            if time.monotonic() > until:
                raise Unavailable(f"the events of execution {execution_id!r} cannot be followed: {cut}") from cut
            if after == before or not isinstance(cut, ServiceError):
                await asyncio.sleep(_delay(attempt, cut))
                attempt += 1

    # The rest.

    async def workflows(self, **asked: Any) -> Page[Workflow]:
        """Return a page of the registered workflows: `search`, `type`, `is_active`, `offset`, `limit`."""
        return await self._get(Page[Workflow], "/workflows", params=asked)

    async def workflow(self, workflow_id: str) -> WorkflowDetail:
        """Return a registered workflow. Raises: WorkflowNotFound."""
        return await self._get(WorkflowDetail, f"/workflows/{_part(workflow_id)}")

    async def graph(self, workflow_id: str) -> Graph:
        """Return the graph of a registered workflow. Raises: WorkflowNotFound."""
        return await self._get(Graph, f"/workflows/{_part(workflow_id)}/graph")

    async def health(self) -> Health:
        """Return whether the service is healthy, without patience."""
        answer = await self._http.get(f"{API}/monitoring/health")
        if answer.status_code not in (200, 503) or answer.headers.get("content-type") != "application/json":
            raise _error_of(answer)
        return Health.model_validate_json(answer.content)

    # How it is sent.

    async def _get(self, kind: type[M], path: str, **more: Any) -> M:
        answer = await self._send("GET", path, **more)
        return TypeAdapter(kind).validate_json(answer.content)

    async def _send(self, method: str, path: str, *, repeated: "list[int] | None" = None, **more: Any) -> httpx.Response:
        """Send a request, again and again while the service is away.

        Args:
            repeated: Gets an entry for each attempt whose outcome is not known.
        """
        until, attempt = time.monotonic() + self._patience, 0
        while True:
            error: Exception
            try:
                answer = await self._http.request(method, f"{API}{path}", **more)
                if answer.is_success:
                    return answer
                error = _error_of(answer)
            except httpx.TransportError as broken:
                error = broken
            if not _may_pass(error):
                raise error
            if repeated is not None:
                repeated.append(attempt)
            delay = _delay(attempt, error)
            if time.monotonic() + delay > until:
                if isinstance(error, GeckoError) and not isinstance(error, ServiceError):
                    raise error
                raise Unavailable(f"the service at {self._http.base_url} cannot be reached in {self._patience:g} s: {error}") from error
            await asyncio.sleep(delay)
            attempt += 1


def _may_pass(error: Exception) -> bool:
    if isinstance(error, ServiceError):
        return error.status in AWAY and error.problem is None
    return isinstance(error, (httpx.TransportError, Unavailable))


def _delay(attempt: int, error: BaseException) -> float:
    delay = max(AGAIN[min(attempt, len(AGAIN) - 1)], getattr(error, "retry_after", None) or 0.0)
    return delay * random.uniform(1.0, 1.5)


def _error_of(answer: httpx.Response) -> GeckoError:
    """Return the error that an answer tells, of the class that it had."""
    try:
        problem = answer.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "error" in problem and "detail" in problem:
        return _error_in(problem)
    return ServiceError(
        f"{answer.request.method} {answer.request.url.path} was answered with {answer.status_code}", status=answer.status_code
    )


def _error_in(problem: dict[str, Any]) -> GeckoError:
    kind = str(problem.get("error"))
    kind = "Unauthorized" if problem.get("status") == 401 else kind
    found = getattr(errors, kind, None) or getattr(service_errors, kind, None)
    if not (isinstance(found, type) and issubclass(found, GeckoError)):
        return ServiceError(str(problem.get("detail")), status=int(problem.get("status") or 0), problem=problem)
    fields: dict[str, Any] = {"retry_after": problem["retry_after"]} if issubclass(found, QueueFull) and problem.get("retry_after") else {}
    if issubclass(found, service_errors.Unauthorized):
        fields["code"] = problem["error"]
    if problem.get("where") is not None:
        fields["where"] = problem["where"]
    return found(str(problem.get("detail")), **fields)


async def _parsed(lines: Any) -> AsyncGenerator[StreamEvent]:
    """Yield the events in the lines of a stream of Server-Sent Events."""
    kind, number, data = "", None, []
    async for line in lines:
        if not line:
            if data:
                yield StreamEvent(id=number, kind=kind, data=json.loads("\n".join(data)))
            kind, number, data = "", None, []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif name == "id" and value.isdecimal():
            number = int(value)


def _part(text: str) -> str:
    return quote(text, safe="")


# Without an event loop.


def _blocking(method: Callable[Concatenate[AsyncClient, P], Awaitable[T]]) -> Callable[Concatenate["Client", P], T]:
    @wraps(method)
    def call(self: "Client", *args: P.args, **kwargs: P.kwargs) -> T:
        return self._do(method(self._inner, *args, **kwargs))

    return call


class Client:
    """The service, for code without an event loop; its calls wait. Each is `AsyncClient`'s, on an event loop in a thread of its own."""

    @wraps(AsyncClient.__init__)
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gecko-client", daemon=True)
        self._thread.start()
        self._inner = AsyncClient(*args, **kwargs)

    def _do(self, work: Any) -> Any:
        if self._loop.is_closed():
            work.close()
            raise ServiceError("this client was closed: make another")
        future: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of connections and of the thread."""
        if not self._loop.is_closed():
            self._do(self._inner.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    execute = _blocking(AsyncClient.execute)
    run = _blocking(AsyncClient.run)
    wait = _blocking(AsyncClient.wait)
    get = _blocking(AsyncClient.get)
    list = _blocking(AsyncClient.list)
    cancel = _blocking(AsyncClient.cancel)
    suspend = _blocking(AsyncClient.suspend)
    resume = _blocking(AsyncClient.resume)
    retry = _blocking(AsyncClient.retry)
    workflows = _blocking(AsyncClient.workflows)
    workflow = _blocking(AsyncClient.workflow)
    graph = _blocking(AsyncClient.graph)
    health = _blocking(AsyncClient.health)

    @wraps(AsyncClient.events)
    def events(self, *args: Any, **kwargs: Any) -> Iterator[StreamEvent]:
        found = self._inner.events(*args, **kwargs)
        try:
            while (event := self._do(anext(found, None))) is not None:
                yield event
        finally:
            self._do(found.aclose())
