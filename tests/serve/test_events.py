"""Events as Server-Sent Events: each once and in order through streams that are cut, and nothing is left of a reader who went."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import ClusterUnavailable
from serve.routes import executions
from tests.serve.served import API, Served, make_served

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(tmp_path: Path) -> Served:
    return await make_served(tmp_path)


async def begun(served: Served, workflow: str, context: Any) -> str:
    async with served.client() as client:
        answer = await client.post(f"{API}/executions/{workflow}/execute", json={"context": context})
        return answer.json()["execution_id"]


class Stream:
    """A reader of a stream who sees each part as it is sent, and may go at any moment."""

    def __init__(self, served: Served, execution_id: str, query: str = "", **headers: str) -> None:
        self._parts: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._app = served.app
        self.status = 0
        sent = {"authorization": f"Bearer {served.keys['viewer']}"} | headers
        path = f"{API}/executions/{execution_id}/events"
        self._scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": path, "raw_path": path.encode(),
            "query_string": query.encode(), "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in sent.items()],
            "scheme": "http", "server": ("service", 80), "client": ("caller", 1), "root_path": "",
        }  # fmt: skip
        self._text = ""

    async def read(self, group: asyncio.TaskGroup) -> "Stream":
        self.answering = group.create_task(self._app(self._scope, self._receive, self._send))
        await self.next_part()
        return self

    async def _receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif not self._gone.is_set():  # servers drop what is sent to a caller who went
            self._parts.put_nowait(message.get("body", b""))
            if not message.get("more_body"):
                self._parts.put_nowait(None)

    async def next_part(self) -> str | None:
        part = await asyncio.wait_for(self._parts.get(), 10)
        return None if part is None else part.decode()

    async def next_event(self) -> dict[str, Any] | None:
        """Return the next event, None behind the last."""
        while True:
            part = await self.next_part()
            if part is None:
                return None
            fields = dict(line.split(": ", 1) for line in part.splitlines() if ": " in line and not line.startswith(":"))
            if "data" in fields:
                return {"id": fields.get("id"), "event": fields["event"], "data": json.loads(fields["data"])}

    def leave(self) -> None:
        self._gone.set()


async def rest_of(stream: Stream) -> list[dict[str, Any]]:
    found = []
    while (event := await stream.next_event()) is not None:
        found.append(event)
    return found


async def test_a_stream_tells_each_event_and_ends_with_the_execution(served: Served, tmp_path: Path):
    execution_id = await begun(served, "waiting", {"file": str(tmp_path / "go")})
    async with asyncio.TaskGroup() as group:
        stream = await Stream(served, execution_id).read(group)
        first = await stream.next_event()
        assert first is not None
        assert (first["id"], first["event"], first["data"]["execution_id"]) == ("1", "run_started", execution_id)
        assert set(first["data"]) == {"execution_id", "seq", "timestamp", "event_type", "node_id", "step_id", "attempt", "payload"}
        (tmp_path / "go").touch()
        rest = await rest_of(stream)
    assert [event["id"] for event in rest] == [str(n) for n in range(2, len(rest) + 2)]
    assert rest[-1]["event"] == "run_completed"
    assert rest[-1]["data"]["payload"]["output"] == "went on"


async def test_a_reader_that_comes_back_gets_each_event_once_in_order(served: Served, tmp_path: Path):
    execution_id = await begun(served, "waiting", {"file": str(tmp_path / "go")})
    seen: list[str] = []
    async with asyncio.TaskGroup() as group:
        for visit in range(30):
            headers = {"last_event_id": seen[-1]} if seen else {}
            stream = await Stream(served, execution_id, **headers).read(group)
            if stream.status == 204:
                break
            if visit == 3:
                (tmp_path / "go").touch()
            event = await stream.next_event()
            if event is not None:
                seen.append(event["id"])
            stream.leave()
            await stream.answering
    assert stream.status == 204
    assert seen == [str(n) for n in range(1, len(seen) + 1)]
    assert len(seen) > 6


async def test_the_number_may_stand_in_the_query_and_the_header_goes_first(served: Served):
    execution_id = await begun(served, "echo", 1)
    await served.cluster.wait(execution_id, 10)
    async with served.client() as client:
        at = f"{API}/executions/{execution_id}/events"
        assert "id: 1\n" not in (await client.get(at, params={"after": 1})).text
        both = (await client.get(at, params={"after": 1}, headers={"last-event-id": "2"})).text
        assert "id: 2\n" not in both
        assert "id: 3\n" in both
        assert (await client.get(at, params={"after": 99})).status_code == 400
        for odd in ("x", "-1", "1.5", "9" * 30, "\xb2"):
            assert (await client.get(at, headers={"last-event-id": odd.encode("latin-1")})).status_code == 400  # type: ignore[dict-item]


async def test_a_stream_goes_on_through_a_pause_and_a_retry(served: Served, tmp_path: Path):
    execution_id = await begun(served, "failing", {"file": str(tmp_path / "go")})
    await served.cluster.wait(execution_id, 10)
    (tmp_path / "go").touch()
    await served.cluster.retry(execution_id)
    await served.cluster.wait(execution_id, 10)
    async with asyncio.TaskGroup() as group:
        kinds = [event["event"] for event in await rest_of(await Stream(served, execution_id).read(group))]
    assert (kinds.count("run_failed"), kinds[-1]) == (1, "run_completed")

    paused = await begun(served, "waiting", {"file": str(tmp_path / "later")})
    async with asyncio.TaskGroup() as group:
        stream = await Stream(served, paused).read(group)
        while (event := await stream.next_event()) is None or event["data"]["node_id"] != "wait":
            pass
        await served.cluster.pause(paused)
        (tmp_path / "later").touch()
        while event is None or event["event"] != "run_paused":
            event = await stream.next_event()
        async with served.client() as client:
            assert (await client.post(f"{API}/executions/{paused}/resume")).json()["status"] == "running"
        rest = await rest_of(stream)
    assert (rest[0]["event"], rest[-1]["event"]) == ("run_resumed", "run_completed")


async def test_nothing_is_left_of_a_reader_who_went(served: Served, tmp_path: Path):
    execution_id = await begun(served, "waiting", {"file": str(tmp_path / "go")})
    run: Any = served.cluster._live(execution_id)
    async with asyncio.TaskGroup() as group:
        (await Stream(served, execution_id).read(group)).leave()  # the first one starts a watcher that all share
    before = len(asyncio.all_tasks()), len(run._readers)
    async with asyncio.TaskGroup() as group:
        streams = [await Stream(served, execution_id).read(group) for _ in range(20)]
        assert len(run._readers) == before[1] + 20
        for stream in streams:
            stream.leave()
        async with asyncio.timeout(5):
            await asyncio.gather(*(stream.answering for stream in streams))
    assert (len(asyncio.all_tasks()), len(run._readers)) == before
    await served.cluster.cancel(execution_id)


async def test_a_silent_stream_shows_that_it_lives(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(executions, "HEARTBEAT", 0.02)
    execution_id = await begun(served, "waiting", {"file": str(tmp_path / "go")})
    async with asyncio.TaskGroup() as group:
        stream = await Stream(served, execution_id).read(group)
        parts = [await stream.next_part() for _ in range(12)]
        assert sum(str(part).startswith(": ping") for part in parts) >= 3
        stream.leave()
    await served.cluster.cancel(execution_id)


async def test_an_error_in_the_middle_of_a_stream_is_its_last_event(served: Served, tmp_path: Path):
    execution_id = await begun(served, "echo", 1)
    await served.cluster.wait(execution_id, 10)
    served.cluster.away = ClusterUnavailable("no coordinator answers")
    async with served.client() as client:
        text = (await client.get(f"{API}/executions/{execution_id}/events")).text
    assert "event: error\n" in text
    assert '"error":"ClusterUnavailable"' in text
