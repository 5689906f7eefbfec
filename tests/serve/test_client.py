"""The typed client: what it asks is done once, through services that die between an act and its answer."""

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.errors import QueueFull, RunNotFound, SessionInUse, Unavailable, WrongState
from serve.client import AsyncClient, Client
from serve.errors import Forbidden, InvalidRequest, Unauthorized, WorkflowNotFound
from tests.serve.cluster_cases import started
from tests.serve.served import Served, listening, make_served

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(tmp_path: Path) -> Served:
    return await make_served(tmp_path)


def client_of(served: Served, role: str = "operator", app: Any = None, **more: Any) -> AsyncClient:
    transport = httpx.ASGITransport(app=app or served.app, raise_app_exceptions=False)
    return AsyncClient("http://service", served.keys[role], transport=transport, **more)


class Dying:
    """An application that does what it is asked, and dies before it answers, so many times."""

    def __init__(self, app: Any, times: int, method: str = "POST") -> None:
        self.app = app
        self.times = times
        self.method = method
        self.requests: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.requests[scope["path"]] += 1
        if scope["method"] != self.method or not self.times:
            await self.app(scope, receive, send)
            return
        self.times -= 1
        heard = []

        async def keep(message: Any) -> None:
            heard.append(message)

        await self.app(scope, receive, keep)
        if self.times % 2:
            await send(heard[0])  # a beginning, and the connection is cut
        raise RuntimeError("died")


async def test_an_execution_runs_from_its_call_to_its_result(served: Served):
    async with client_of(served) as client:
        begun = await client.execute("echo", {"a": 1}, metadata={"team": "blue"}, priority=1)
        done = await client.wait(begun.execution_id, 10)
        assert (done.status, done.output_data, done.metadata, done.priority) == ("completed", {"a": 1}, {"team": "blue"}, 1)
        assert (await client.run("echo", "hi", wait=10)).output_data == "hi"
        page = await client.list(workflow_id="echo", limit=1)
        assert (page.total, len(page.items), page.items[0].status) == (2, 1, "completed")
        assert [w.id for w in (await client.workflows(search="ech")).items] == ["echo"]
        assert (await client.workflow("echo")).entries == ["echo"]
        assert (await client.graph("waiting")).edges[0]["target"] == "wait"
        assert (await client.health()).status == "healthy"


async def test_a_call_that_dies_before_its_answer_is_made_once(served: Served):
    dying = Dying(served.app, times=3)
    async with listening(dying) as (url, _), AsyncClient(url, served.keys["operator"]) as client:  # type: ignore[arg-type]
        begun = await client.execute("marking", {"folder": "."})
        assert sum(dying.requests.values()) == 4
        assert (await client.list()).total == served.cluster.submitted == 1
        done = await client.wait(begun.execution_id, 10)
        assert done.status == "completed"
    assert len(list(Path().glob("marking*"))) == 1


async def test_a_cancel_that_dies_before_its_answer_has_come_through(served: Served, tmp_path: Path):
    dying = Dying(served.app, times=0)
    async with listening(dying) as (url, _), AsyncClient(url, served.keys["operator"]) as client:  # type: ignore[arg-type]
        begun = await client.execute("waiting", {"file": str(tmp_path / "go")})
        dying.times = 2
        assert (await client.cancel(begun.execution_id)).status == "cancelled"
        with pytest.raises(WrongState):
            await client.cancel(begun.execution_id)


async def test_a_service_that_is_started_again_gets_the_call_again(served: Served):
    async with listening(served.app) as (url, _):
        pass
    port = int(url.rpartition(":")[2])
    async with AsyncClient(url, served.keys["operator"]) as client, asyncio.TaskGroup() as group:
        call = group.create_task(client.execute("echo", 1, idempotency_key="k"))
        await asyncio.sleep(0.3)  # so that it meets a closed port
        async with listening(served.app, port) as _:
            assert (await call).execution_id == "echo.k.1"


async def test_events_go_on_through_streams_that_are_cut(served: Served, tmp_path: Path):
    class Cutting:
        """Cuts a stream after some of its parts."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            parts = 0

            async def count(message: Any) -> None:
                nonlocal parts
                parts += message["type"] == "http.response.body"
                if scope["path"].endswith("/events") and parts > 3:
                    raise RuntimeError("died")
                await send(message)

            await served.app(scope, receive, count)

    (tmp_path / "go").touch()
    async with listening(Cutting()) as (url, _), AsyncClient(url, served.keys["viewer"]) as client:  # type: ignore[arg-type]
        run = await served.cluster.submit(served.app.state.parts.registry.get("waiting").flow, {"file": str(tmp_path / "go")})
        seen = [event async for event in client.events(run.run_id)]
    assert [event.id for event in seen] == list(range(1, len(seen) + 1))
    assert seen[-1].kind == "run_completed"


async def test_errors_are_those_that_the_service_told(served: Served, tmp_path: Path):
    async with client_of(served, patience=0.1) as client:
        with pytest.raises(WorkflowNotFound, match="did you mean 'echo'"):
            await client.execute("ecoh")
        with pytest.raises(RunNotFound):
            await client.get("echo.nobody.1")
        with pytest.raises(InvalidRequest) as caught:
            await client.list(limit=1000)
        assert caught.value.where == "query.limit"
        await client.execute("echo", 1, session_id="s")
        with pytest.raises(SessionInUse):
            await client.execute("echo", 2, session_id="s")
        served.cluster.away = QueueFull("full", retry_after=7.0)
        with pytest.raises(QueueFull) as full:
            await client.execute("echo")
        assert full.value.retry_after == 7.0
    async with client_of(served, "viewer") as client:
        with pytest.raises(Forbidden):
            await client.execute("echo")
    async with AsyncClient("http://service", "gk_wrong", transport=httpx.ASGITransport(app=served.app)) as client:
        with pytest.raises(Unauthorized) as unknown:
            await client.get("echo.s.1")
        assert unknown.value.code == "invalid_token"
    async with AsyncClient("http://127.0.0.1:9", patience=0.2) as client:
        with pytest.raises(Unavailable, match="cannot be reached"):
            await client.get("echo.s.1")


async def test_to_wait_has_an_end(served: Served, tmp_path: Path):
    async with listening(served.app) as (url, _), AsyncClient(url, served.keys["operator"]) as client:
        begun = await client.execute("waiting", {"file": str(tmp_path / "go")})
        with pytest.raises(TimeoutError, match="it goes on"):
            await client.wait(begun.execution_id, 0.1)
        await started(served.cluster, begun.execution_id, "wait")
        await client.cancel(begun.execution_id)
        assert (await client.wait(begun.execution_id)).status == "cancelled"


async def test_the_client_without_an_event_loop_does_the_same(served: Served, tmp_path: Path):
    def use(url: str) -> None:
        with Client(url, served.keys["operator"]) as client:
            begun = client.execute("echo", {"a": 1})
            assert client.wait(begun.execution_id, 10).output_data == {"a": 1}
            assert [event.kind for event in client.events(begun.execution_id)][-1] == "run_completed"
            with pytest.raises(RunNotFound):
                client.get("echo.nobody.1")
            following = client.events(begun.execution_id)
            next(following)
            following.close()
        assert not any(thread.name == "gecko-client" for thread in threading.enumerate())

    async with listening(served.app) as (url, _):
        await asyncio.to_thread(use, url)
