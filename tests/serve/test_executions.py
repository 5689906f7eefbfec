"""Executions over HTTP: begun, listed, stopped, gone on with; what is wrong with a request is told."""

import asyncio
import json
from datetime import datetime, timedelta
from pathlib import Path

import httpx
import pytest

from cluster.queue import Limits
from engine.errors import ClusterUnavailable, StoreUnavailable
from serve.settings import Settings
from tests.serve.served import API, Served, make_served

pytestmark = pytest.mark.anyio


@pytest.fixture
async def served(tmp_path: Path) -> Served:
    return await make_served(tmp_path)


def problem(answer: httpx.Response, status: int, error: str) -> dict:
    """Return a problem, which is one of the kind that is expected."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    told = answer.json()
    members = {"type", "title", "status", "detail", "where", "retry_after", "error", "message", "details", "request_id", "timestamp"}
    assert members <= set(told)
    assert (told["status"], told["error"], told["request_id"]) == (status, error, answer.headers["x-request-id"])
    return told


async def execute(client: httpx.AsyncClient, workflow: str, context: object = None, **more: object) -> httpx.Response:
    headers = more.pop("headers", None)
    return await client.post(f"{API}/executions/{workflow}/execute", json={"context": context, **more}, headers=headers)  # type: ignore[arg-type]


async def ended(served: Served, client: httpx.AsyncClient, execution_id: str) -> dict:
    await served.cluster.wait(execution_id, 10)
    return (await client.get(f"{API}/executions/{execution_id}")).json()


async def test_an_execution_is_begun_and_ends_with_its_output(served: Served):
    async with served.client() as client:
        begun = await execute(client, "echo", {"a": 1}, metadata={"team": "blue"}, priority=2)
        assert begun.status_code == 202
        told = begun.json()
        assert set(told) >= {
            "execution_id", "workflow_id", "status", "start_time", "end_time", "duration_ms", "error_message", "created_at"
        }  # fmt: skip
        assert (told["workflow_id"], told["metadata"]) == ("echo", {"team": "blue"})
        assert (told["status"], told["end_time"] is None) in (("pending", True), ("running", True), ("completed", False))
        done = await ended(served, client, told["execution_id"])
        assert (done["status"], done["context"], done["output_data"], done["priority"]) == ("completed", {"a": 1}, {"a": 1}, 2)
        apart = datetime.fromisoformat(done["created_at"]) - datetime.fromisoformat(told["created_at"])
        assert abs(apart) <= timedelta(microseconds=1)  # what a log's tail and its rows tell is rounded apart
        assert [(n["node_id"], n["status"], n["retry_count"]) for n in done["node_executions"]] == [("echo", "success", 0)]
        assert begun.headers["location"] == f"{API}/executions/{told['execution_id']}"


async def test_an_answer_that_waits_holds_the_result(served: Served, tmp_path: Path):
    async with served.client() as client:
        answer = await execute(client, "echo", "hi", async_mode=False)
        assert (answer.status_code, answer.json()["status"], answer.json()["output_data"]) == (200, "completed", "hi")
        failed = await execute(client, "failing", {"file": str(tmp_path / "no")}, async_mode=False)
        assert (failed.status_code, failed.json()["status"]) == (200, "failed")
        assert "the file is not there" in failed.json()["error_message"]
        late = await execute(client, "waiting", {"file": str(tmp_path / "no")}, async_mode=False, wait=0.05)
        assert (late.status_code, late.json()["status"]) == (202, "pending")
        await client.post(f"{API}/executions/{late.json()['execution_id']}/cancel")


async def test_a_call_without_a_body_takes_the_defaults(served: Served):
    async with served.client() as client:
        answer = await client.post(f"{API}/executions/echo/execute")
        assert (answer.status_code, (await ended(served, client, answer.json()["execution_id"]))["output_data"]) == (202, {})


async def test_the_same_key_is_the_same_execution_and_never_goes_on_with_it(served: Served, tmp_path: Path):
    given, key = {"file": str(tmp_path / "go")}, {"Idempotency-Key": "k-1"}
    async with served.client() as client:
        first = (await execute(client, "failing", given, headers=key)).json()["execution_id"]
        assert (await ended(served, client, first))["status"] == "failed"
        (tmp_path / "go").touch()
        again = await execute(client, "failing", given, headers=key)
        assert (again.status_code, again.json()["execution_id"], again.json()["status"]) == (202, first, "failed")
        quoted = await execute(client, "failing", given, headers={"Idempotency-Key": '"k-1"'})
        assert quoted.json()["execution_id"] == first
        problem(await execute(client, "failing", {"file": "another"}, headers=key), 409, "SessionInUse")
        assert served.cluster.submitted == 1
        by_session = await execute(client, "failing", given, session_id="k-1")  # the rules of sessions: what failed goes on
        assert by_session.json()["execution_id"] == first
        assert (await ended(served, client, first))["status"] == "completed"


async def test_the_same_key_at_the_same_moment_is_one_execution(served: Served, tmp_path: Path):
    given, key = {"file": str(tmp_path / "go")}, {"Idempotency-Key": "k"}
    async with served.client() as client:
        answers = await asyncio.gather(*(execute(client, "waiting", given, headers=key) for _ in range(20)))
        assert {answer.status_code for answer in answers} == {202}
        assert {answer.json()["execution_id"] for answer in answers} == {"waiting.k.1"}
        (tmp_path / "go").touch()
        assert (await ended(served, client, "waiting.k.1"))["status"] == "completed"
    assert served.cluster.submitted == 1


async def test_a_session_is_one_execution(served: Served):
    async with served.client() as client:
        first = await execute(client, "echo", {"a": 1}, session_id="order 7-x")
        assert first.json()["session_id"] == "order 7-x"
        await ended(served, client, first.json()["execution_id"])
        again = await execute(client, "echo", {"a": 1}, session_id="order 7-x")
        assert (again.json()["execution_id"], again.json()["status"]) == (first.json()["execution_id"], "completed")
        problem(await execute(client, "echo", {"a": 2}, session_id="order 7-x"), 409, "SessionInUse")


async def test_lists_have_true_totals_a_stable_order_and_filters(served: Served):
    async with served.client() as client:
        for n in range(7):
            await execute(client, "echo", n, async_mode=False, session_id=f"s{n}", metadata={"team": "blue" if n % 2 else "red"})
        await execute(client, "failing", {"file": "no"}, async_mode=False)

        async def listed(**asked: object) -> dict:
            return (await client.get(f"{API}/executions", params=asked)).json()  # type: ignore[arg-type]

        first, second = await listed(limit=3, workflow_id="echo"), await listed(limit=3, offset=3, workflow_id="echo")
        assert (first["total"], first["offset"], first["limit"], second["total"]) == (7, 0, 3, 7)
        assert [e["session_id"] for e in first["items"] + second["items"]] == ["s6", "s5", "s4", "s3", "s2", "s1"]
        following = await listed(limit=3, workflow_id="echo", after=first["next"])
        assert [e["session_id"] for e in following["items"]] == ["s3", "s2", "s1"]
        assert [e["workflow_id"] for e in (await listed(status="failed"))["items"]] == ["failing"]
        assert (await listed(status=["failed", "completed"]))["total"] == 8
        assert (await listed(label="team:blue"))["total"] == 3
        assert (await listed(search="S6"))["total"] == 1
        assert (await listed(session_id="s2"))["items"][0]["duration_ms"] > 0


async def test_an_execution_is_suspended_resumed_and_cancelled(served: Served, tmp_path: Path):
    async with served.client() as client:
        begun = await execute(client, "waiting", {"file": str(tmp_path / "go")})
        at = f"{API}/executions/{begun.json()['execution_id']}"
        problem(await client.post(f"{at}/resume"), 400, "WrongState")
        problem(await client.post(f"{at}/retry"), 400, "WrongState")
        suspended = (await client.post(f"{at}/suspend")).json()
        assert (suspended["success"], suspended["status"]) == (True, "running")
        assert "is being suspended" in suspended["message"]
        (tmp_path / "go").touch()
        assert (await ended(served, client, begun.json()["execution_id"]))["status"] == "suspended"
        assert (await client.get(f"{API}/executions", params={"status": "suspended"})).json()["total"] == 1
        problem(await client.post(f"{at}/suspend"), 400, "WrongState")
        assert (await client.post(f"{at}/resume")).status_code == 200
        assert (await ended(served, client, begun.json()["execution_id"]))["status"] == "completed"
        problem(await client.post(f"{at}/cancel"), 400, "WrongState")


async def test_an_execution_is_cancelled_for_good(served: Served, tmp_path: Path):
    async with served.client() as client:
        begun = await execute(client, "waiting", {"file": str(tmp_path / "go")})
        at = f"{API}/executions/{begun.json()['execution_id']}"
        assert (await client.post(f"{at}/cancel")).json()["status"] == "cancelled"
        told = problem(await client.post(f"{at}/cancel"), 400, "WrongState")
        assert "cancelled" in told["detail"]
        problem(
            await execute(client, "waiting", {"file": str(tmp_path / "go")}, session_id=begun.json()["session_id"]), 409, "RunCancelled"
        )


async def test_a_failed_execution_is_retried(served: Served, tmp_path: Path):
    async with served.client() as client:
        failed = (await execute(client, "failing", {"file": str(tmp_path / "go")}, async_mode=False)).json()
        problem(await client.post(f"{API}/executions/{failed['execution_id']}/suspend"), 400, "WrongState")
        (tmp_path / "go").touch()
        assert (await client.post(f"{API}/executions/{failed['execution_id']}/retry")).status_code == 200
        done = await ended(served, client, failed["execution_id"])
        assert (done["status"], done["resumes"], done["output_data"]) == ("completed", 1, "found it")


@pytest.mark.parametrize(
    "execution_id", ["echo.nobody.1", "x", "a.b.0", f"a.b.{'9' * 5000}", "a" * 1200, "%00.b.1", "%F0%9F.b.1", "..", "a.b.1%20"]
)
async def test_an_unknown_execution_is_not_found(served: Served, execution_id: str):
    async with served.client() as client:
        for action in ("cancel", "suspend", "resume", "retry"):
            answer = await client.post(f"{API}/executions/{execution_id}/{action}")
            assert answer.status_code in (400, 404), answer.text
        for path in ("", "/events"):
            assert (await client.get(f"{API}/executions/{execution_id}{path}")).status_code in (400, 404)
    problem(answer, answer.status_code, answer.json()["error"])


async def test_only_registered_workflows_are_executed(served: Served):
    async with served.client() as client:
        told = problem(await execute(client, "ecoh", 1), 404, "WorkflowNotFound")
        assert "did you mean 'echo'?" in told["detail"]
        for name in ("tests.serve.flows:echoing", "os:system", "flow.py:flow"):
            problem(await execute(client, name, 1), 404, "WorkflowNotFound")
    assert served.cluster.submitted == 0


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ('{"context": ', "body"), ("[]", "body"), ('"x"', "body"), ('{"contxt": 1}', "contxt"), ('{"async_mode": "yes"}', "async_mode"),
        ('{"priority": 1.5}', "priority"), ('{"priority": true}', "priority"), ('{"metadata": {"a": 1}}', "metadata"),
        ('{"wait": -1}', "wait"), ('{"wait": 1e9}', "wait"), ('{"wait": NaN}', "wait"), ('{"context": NaN}', "context"),
        ('{"context": ' + "[" * 100 + "]" * 100 + "}", "context"), ("[" * 100_000, "body"), ('{"context": 1' + "0" * 5000 + "}", ""),
        ('{"session_id": ""}', "session_id"), ('{"session_id": "a/b"}', "session_id"), ('{"session_id": 7}', "session_id"),
        ('{"timeout": -1}', "timeout"), ("\xff\xfe", ""), ('{"session_id": "\\ud800"}', ""),
    ],
)  # fmt: skip
async def test_a_malformed_body_is_refused_with_its_place(served: Served, body: str, where: str):
    async with served.client() as client:
        sent = body.encode("latin-1")
        answer = await client.post(f"{API}/executions/echo/execute", content=sent, headers={"content-type": "application/json"})
        told = problem(answer, 400, answer.json()["error"])
        assert where in json.dumps([told["where"], told["details"]])
        assert len(answer.content) < 5000
    assert served.cluster.submitted == 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415), ({"content-type": "multipart/form-data; boundary=x"}, 415), ({"content-type": "\xff"}, 415),
        ({"idempotency-key": "a/b"}, 400), ({"idempotency-key": ""}, 400), ({"idempotency-key": "k" * 256}, 400),
        ({"idempotency-key": "\xe9"}, 400), ({"content-length": "-1"}, 400), ({"content-length": "9" * 30}, 400),
        ({"content-length": "99999999999"}, 413), ({"content-type": "application/vnd.api+json"}, 202), ({"accept": "\xff"}, 202),
    ],
)  # fmt: skip
async def test_malformed_headers_are_refused(served: Served, headers: dict[str, str], status: int):
    async with served.client() as client:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in ({"content-type": "application/json"} | headers).items()]
        answer = await client.post(f"{API}/executions/echo/execute", content=b"{}", headers=raw)  # type: ignore[arg-type]
        assert answer.status_code == status, answer.text


async def test_a_body_is_bounded_while_it_comes(tmp_path: Path):
    served = await make_served(tmp_path, settings=Settings(max_body=2048))
    taken = 0

    async def endless():
        nonlocal taken
        yield b'{"context": "'
        while True:
            taken += 1
            assert taken < 100
            yield b"x" * 1000

    async with served.client() as client:
        large = await execute(client, "echo", "x" * 3000)
        problem(large, 413, "BodyTooLarge")
        told = await client.post(f"{API}/executions/echo/execute", content=endless(), headers={"content-type": "application/json"})
        problem(told, 413, "BodyTooLarge")


async def test_a_full_queue_says_when_to_come_back(tmp_path: Path):
    served = await make_served(tmp_path, limits=Limits(runs=1, queued=1))
    given = {"file": str(tmp_path / "go")}
    async with served.client() as client:
        first = (await execute(client, "waiting", given)).json()["execution_id"]
        second = (await execute(client, "waiting", given)).json()["execution_id"]
        assert (await client.get(f"{API}/executions/{first}")).json()["status"] == "running"
        assert (await client.get(f"{API}/executions/{second}")).json()["status"] == "pending"
        refused = await execute(client, "waiting", given)
        told = problem(refused, 429, "QueueFull")
        assert int(refused.headers["retry-after"]) >= 1 <= told["retry_after"]
        (tmp_path / "go").touch()
        assert [(await ended(served, client, run))["status"] for run in (first, second)] == ["completed"] * 2
        assert (await client.get(f"{API}/executions")).json()["total"] == 2


@pytest.mark.parametrize("error", [ClusterUnavailable("no coordinator answers"), StoreUnavailable("the disk is full")])
async def test_what_is_away_is_503_and_nothing_is_lost(served: Served, tmp_path: Path, error: Exception):
    async with served.client() as client:
        begun = (await execute(client, "waiting", {"file": str(tmp_path / "go")})).json()["execution_id"]
        served.cluster.away = error
        refused = await execute(client, "echo", 1, headers={"Idempotency-Key": "k"})
        assert int(refused.headers["retry-after"]) >= 1
        problem(refused, 503, type(error).__name__)
        problem(await client.post(f"{API}/executions/{begun}/cancel"), 503, type(error).__name__)
        if isinstance(error, ClusterUnavailable):
            assert (await client.get(f"{API}/executions/{begun}")).json()["status"] == "running"
        served.cluster.away = None
        (tmp_path / "go").touch()
        assert (await ended(served, client, begun))["status"] == "completed"
        assert (await execute(client, "echo", 1, headers={"Idempotency-Key": "k"})).status_code == 202


async def test_a_storage_that_is_gone_while_runs_are_active_is_503(served: Served, tmp_path: Path):
    async with served.client() as client:
        begun = (await execute(client, "waiting", {"file": str(tmp_path / "go")})).json()["execution_id"]
        await client.get(f"{API}/executions")
        (tmp_path / "store").rename(tmp_path / "away")
        (tmp_path / "store").write_text("a file lies where the folder was")
        for method, path in (
            ("POST", "echo/execute"),
            ("GET", begun),
            ("POST", f"{begun}/cancel"),
            ("GET", ""),
            ("GET", f"{begun}/events"),
        ):
            answer = await client.request(method, f"{API}/executions{path and '/'}{path}", json={} if path == "echo/execute" else None)
            problem(answer, 503, "StoreUnavailable")
            assert int(answer.headers["retry-after"]) >= 1
        (tmp_path / "store").unlink()
        (tmp_path / "away").rename(tmp_path / "store")
        (tmp_path / "go").touch()
        await served.cluster.wait(begun, 10)
        assert (await client.post(f"{API}/executions/{begun}/resume")).status_code in (200, 400)  # its owner had let go of it, or had not
        assert (await ended(served, client, begun))["output_data"] == "went on"
        assert (await execute(client, "echo", 1, async_mode=False)).json()["output_data"] == 1


async def test_what_json_cannot_hold_is_shown_as_text(served: Served):
    async with served.client() as client:
        done = (await execute(client, "odd", async_mode=False)).json()
        assert done["output_data"] == {"set": [1, 2], "nan": "nan", "bytes": "AA==", "text": "\ud800"}


async def test_request_ids_are_echoed_where_they_are_plain(served: Served):
    async with served.client() as client:
        kept = await client.get(f"{API}/workflows", headers={"X-Request-ID": "trace-7"})
        assert kept.headers["x-request-id"] == "trace-7"
        assert float(kept.headers["x-process-time"]) >= 0
        for odd in ("", "a b", "x" * 200, "<script>"):
            made = (await client.get(f"{API}/nowhere", headers={"X-Request-ID": odd})).headers["x-request-id"]
            assert made != odd
            assert len(made) == 32


async def test_addresses_and_methods_that_are_not_there_are_problems(served: Served):
    async with served.client("admin") as client:
        problem(await client.get(f"{API}/executions/"), 404, "RouteNotFound")
        problem(await client.get("/"), 404, "RouteNotFound")
        refused = await client.put(f"{API}/executions")
        problem(refused, 405, "MethodNotAllowed")
        assert "GET" in refused.headers["allow"]
        assert "access-control-allow-origin" not in (await client.get(f"{API}/workflows", headers={"origin": "http://evil"})).headers


async def test_an_error_that_nobody_foresaw_is_told_without_its_text(served: Served, caplog: pytest.LogCaptureFixture):
    served.cluster.away = ZeroDivisionError("secret")
    async with served.client() as client:
        told = problem(await execute(client, "echo", 1), 500, "InternalError")
    assert "secret" not in json.dumps(told)
    assert told["request_id"] in told["detail"]
    assert "secret" in caplog.text
