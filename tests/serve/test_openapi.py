"""The OpenAPI says what the service does: fuzzed with what it describes and with what it does not, nothing is a 5xx, and nothing hangs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from pydantic import TypeAdapter

from serve import schemas
from tests.serve.served import API, Served, make_served

EXAMPLES = 12


class Fuzzed:
    """The service on an event loop of its own, for callers who have none."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.served: Served = self.loop.run_until_complete(make_served(folder))

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def work() -> httpx.Response:
            async with asyncio.timeout(10), self.served.client("admin") as client:
                return await client.request(method, path, **more)

        return self.loop.run_until_complete(work())


@pytest.fixture
def fuzzed(tmp_path: Path) -> Fuzzed:
    return Fuzzed(tmp_path)


def sendable(headers: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    return [(str(k).encode("latin-1", "replace"), str(v).encode("latin-1", "replace")) for k, v in headers.items()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE], ids=["as described", "as not"]
)
def test_no_request_is_a_server_error_or_hangs(fuzzed: Fuzzed, mode: schemathesis.GenerationMode):
    schema = schemathesis.openapi.from_dict(fuzzed.served.app.openapi())
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) >= 16
    calm = settings(max_examples=EXAMPLES, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    tried = {operation.label: sent for operation in operations if (sent := fuzz_one(fuzzed, operation, mode, calm))}
    assert len(tried) >= 12, tried


def fuzz_one(fuzzed: Fuzzed, operation: Any, mode: schemathesis.GenerationMode, calm: Any) -> int:
    """Fuzz one operation; returns how many requests were sent, 0 where there are none of this kind."""
    documented = operation.definition.raw["responses"]
    sent = 0

    @calm
    @given(case=operation.as_strategy(generation_mode=mode))
    def fuzz(case: Any) -> None:
        nonlocal sent
        told = case.as_transport_kwargs(base_url="http://service")
        body = {"json": told["json"]} if "json" in told else {"content": told["data"]} if isinstance(told.get("data"), bytes) else {}
        try:
            url = httpx.URL(told["url"], params=told.get("params") or {})
        except (httpx.InvalidURL, UnicodeError):  # nobody can send it
            return
        answer = fuzzed.send(told["method"], str(url), headers=sendable(dict(told.get("headers") or {})), **body)
        sent += 1
        assert answer.status_code < 500, answer.text
        assert str(answer.status_code) in documented or answer.status_code in (404, 405), (operation.label, answer.status_code, answer.text)
        if answer.status_code >= 400:
            schemas.Problem.model_validate_json(answer.content)

    try:
        fuzz()
    except Unsatisfiable:
        assert sent == 0
    return sent


@pytest.mark.slow
def test_no_bytes_are_a_server_error(fuzzed: Fuzzed):
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(
        body=st.binary(max_size=300)
        | st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda s: st.lists(s) | st.dictionaries(st.sampled_from(["context", "wait", "metadata", "x"]), s),
        ).map(lambda v: json.dumps(v).encode())
    )
    def fuzz(body: bytes) -> None:
        answer = fuzzed.send("POST", f"{API}/executions/echo/execute", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (202, 400, 409), answer.text

    fuzz()


def test_every_answer_is_what_its_example_looks_like(fuzzed: Fuzzed):
    document = fuzzed.served.app.openapi()
    assert "HTTPValidationError" not in document["components"]["schemas"]
    shown = [model for model in vars(schemas).values() if isinstance(model, type) and issubclass(model, schemas.BaseModel)]
    examples = 0
    for model in shown:
        settings_of = model.model_config if "model_config" in vars(model) else {}
        for example in (settings_of.get("json_schema_extra") or {}).get("examples", []):  # type: ignore[union-attr]
            TypeAdapter(model).validate_python(example)
            examples += 1
    assert examples >= 9
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            assert told["summary"], (method, path)
            assert {"401", "403"} <= set(told["responses"]), (method, path)
            assert "422" not in told["responses"]
            assert told["security"]
