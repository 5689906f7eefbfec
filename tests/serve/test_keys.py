"""Default deny: what each route answers to each kind of caller, and how keys are made, kept, told and revoked."""

import json
import logging
from pathlib import Path

import pytest
from fastapi.routing import APIRoute

from engine.errors import DefinitionError, StoreUnavailable, UnknownName
from engine.store import open_records
from serve import keys as serve_keys
from serve.errors import Unauthorized
from serve.keys import ROLES, Keys, hash_of
from serve.middleware.auth import role_for
from tests.serve.served import API, Served, make_served

pytestmark = pytest.mark.anyio

ROUTES = {
    ("POST", f"{API}/executions/echo/execute"): "operator",
    ("GET", f"{API}/executions"): "viewer",
    ("GET", f"{API}/executions/echo.s.1"): "viewer",
    ("GET", f"{API}/executions/echo.s.1/events"): "viewer",
    ("POST", f"{API}/executions/echo.s.1/cancel"): "operator",
    ("POST", f"{API}/executions/echo.s.1/suspend"): "operator",
    ("POST", f"{API}/executions/echo.s.1/resume"): "operator",
    ("POST", f"{API}/executions/echo.s.1/retry"): "operator",
    ("GET", f"{API}/workflows"): "viewer",
    ("GET", f"{API}/workflows/echo"): "viewer",
    ("GET", f"{API}/workflows/echo/graph"): "viewer",
    ("GET", f"{API}/monitoring/health"): "nobody",
    ("GET", f"{API}/monitoring/metrics"): "viewer",
    ("GET", f"{API}/metrics"): "viewer",
    ("POST", f"{API}/keys"): "admin",
    ("GET", f"{API}/keys"): "admin",
    ("DELETE", f"{API}/keys/key_0"): "admin",
    ("GET", f"{API}/openapi.json"): "viewer",
    ("GET", "/docs"): "viewer",
    ("GET", "/nowhere"): "viewer",
    ("PUT", f"{API}/executions"): "operator",
    ("OPTIONS", f"{API}/executions"): "operator",
    ("HEAD", f"{API}/executions"): "viewer",
    ("GET", f"{API}/monitoring/health/"): "viewer",
    ("POST", f"{API}/monitoring/health"): "operator",
}
"""Each route, and what is none, to the role that it needs."""


@pytest.fixture
async def served(tmp_path: Path) -> Served:
    return await make_served(tmp_path)


async def test_every_route_is_in_the_table(served: Served):
    def fits(path: str, pattern: str) -> bool:
        ours, theirs = path.split("/"), pattern.split("/")
        return len(ours) == len(theirs) and all(a == b or b.startswith("{") for a, b in zip(ours, theirs, strict=True))

    documented = {(method.upper(), path) for path, told in served.app.openapi()["paths"].items() for method in told}
    assert documented
    assert {d for d in documented if not any(method == d[0] and fits(path, d[1]) for method, path in ROUTES)} == set()
    shown = {(m.upper(), p): told["x-role"] for p, methods in served.app.openapi()["paths"].items() for m, told in methods.items()}
    for (method, path), role in shown.items():
        known = {needed for (m, p), needed in ROUTES.items() if m == method and fits(p, path)}
        assert known == {role or "nobody"}, (method, path)
    hidden = [r.path for r in served.app.routes if isinstance(r, APIRoute) and not r.include_in_schema]
    assert hidden == [f"{API}/openapi.json"]


async def test_each_route_lets_in_whom_it_should_and_nobody_else(served: Served):
    keys = Keys(served.records)
    revoked, expired = await keys.make("gone", "admin"), await keys.make("old", "admin", lifetime=0.001)
    await keys.revoke(revoked.entry.id)
    callers: dict[str, tuple[dict[str, str], str | None, str]] = {
        "no key": ({}, None, "unauthorized"),
        "wrong key": ({"authorization": "Bearer gk_wrong"}, None, "invalid_token"),
        "wrong key, other header": ({"x-api-key": "gk_wrong"}, None, "invalid_token"),
        "basic": ({"authorization": "Basic YTpi"}, None, "invalid_token"),
        "no key behind bearer": ({"authorization": "Bearer "}, None, "invalid_token"),
        "too long": ({"authorization": "Bearer " + "x" * 10_000}, None, "invalid_token"),
        "two keys": ({"authorization": f"Bearer {served.keys['admin']}", "x-api-key": "gk_wrong"}, None, "invalid_token"),
        "revoked": ({"authorization": f"Bearer {revoked.key}"}, None, "invalid_token"),
        "expired": ({"authorization": f"Bearer {expired.key}"}, None, "token_expired"),
        "the hash": ({"authorization": f"Bearer {hash_of(served.keys['admin'])}"}, None, "invalid_token"),
        **{role: ({"authorization": f"Bearer {key}"}, role, "") for role, key in served.keys.items()},
        **{f"{role}, other header": ({"x-api-key": key}, role, "") for role, key in served.keys.items()},
    }
    wrong = []
    async with served.client(None) as client:
        for (method, path), needed in ROUTES.items():
            for caller, (headers, role, code) in callers.items():
                answer = await client.request(method, path, headers=headers, json={} if method == "POST" else None)
                allowed = needed == "nobody" or (role is not None and ROLES.index(role) >= ROLES.index(needed))
                refused = 403 if role else 401
                if (answer.status_code in (401, 403)) == allowed or (not allowed and answer.status_code != refused):
                    wrong.append((method, path, caller, answer.status_code))
                if answer.status_code == 401:
                    assert answer.headers["www-authenticate"].startswith("Bearer")
                    assert method == "HEAD" or answer.json()["error"] == code
    assert wrong == []
    assert served.cluster.submitted == 2 * 2  # by operator and admin, with either header


async def test_who_has_no_key_is_told_the_status_of_the_service_alone(served: Served):
    async with served.client(None) as client:
        told = (await client.get(f"{API}/monitoring/health")).json()
        assert (told["status"], told["checks"], told["version"]) == ("healthy", None, None)
        wrong = (await client.get(f"{API}/monitoring/health", headers={"x-api-key": "gk_wrong"})).json()
        assert wrong["checks"] is None


async def test_a_route_that_nobody_thought_of_is_not_open():
    assert role_for("GET", "/anything") == "viewer"
    assert role_for("DELETE", "/anything") == "operator"
    assert role_for("GET", "/any\nthing") == "viewer"
    assert role_for("DELETE", f"{API}/keys/any\nthing") == "admin"
    assert role_for("GET", f"{API}/keys/x/y") == "admin"
    assert role_for("GET", f"{API}/keysish") == "viewer"


async def test_a_key_is_told_once_and_only_its_hash_is_kept(served: Served, tmp_path: Path):
    async with served.client("admin") as client:
        made = await client.post(f"{API}/keys", json={"name": "ci", "role": "viewer", "expires_in": 60})
        assert made.status_code == 201
        told = made.json()
        assert told["key"].startswith("gk_")
        assert len(told["key"]) > 40
        listed = (await client.get(f"{API}/keys")).json()
        assert (listed["total"], [k["name"] for k in listed["items"]]) == (4, [*ROLES, "ci"])
        assert told["key"] not in json.dumps(listed)
        assert hash_of(told["key"]) not in json.dumps(listed)
        async with served.client(None, headers={"x-api-key": told["key"]}) as other:
            assert (await other.get(f"{API}/workflows")).status_code == 200
            revoked = await client.delete(f"{API}/keys/{told['id']}")
            assert revoked.json()["revoked_at"] is not None
            assert (await other.get(f"{API}/workflows")).status_code == 401
        assert (await client.delete(f"{API}/keys/key_none")).status_code == 404
        assert (await client.post(f"{API}/keys", json={"name": "x", "role": "root"})).status_code == 400
    for file in (tmp_path / "store").glob("records.db*"):
        assert told["key"].encode() not in file.read_bytes()


async def test_the_first_key_is_made_where_there_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    keys = Keys(open_records(str(tmp_path / "store")))
    with caplog.at_level(logging.DEBUG):
        first = await keys.make_first()
    assert first is not None
    assert first.entry.role == "admin"
    assert first.key not in caplog.text
    assert await keys.make_first() is None
    await keys.revoke(first.entry.id)
    assert await keys.make_first() is None
    with pytest.raises(Unauthorized):
        await keys.open(first.key)


async def test_another_replica_knows_of_a_revoked_key_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    records = open_records(str(tmp_path / "store"))
    here, there = Keys(records), Keys(records)
    made = await here.make("ci", "viewer")
    now = serve_keys.time.time()
    monkeypatch.setattr(serve_keys.time, "time", lambda: now)
    assert (await there.open(made.key)).id == made.entry.id
    await here.revoke(made.entry.id)
    now += serve_keys.BELIEVED + 0.01
    with pytest.raises(Unauthorized, match="revoked"):
        await there.open(made.key)


async def test_a_key_with_an_end_opens_nothing_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    keys = Keys(open_records(str(tmp_path / "store")))
    made = await keys.make("ci", "viewer", lifetime=1.0)
    now = serve_keys.time.time()
    monkeypatch.setattr(serve_keys.time, "time", lambda: now)
    await keys.open(made.key)
    now += 1.1  # it is still believed, and has ended all the same
    with pytest.raises(Unauthorized, match="expired"):
        await keys.open(made.key)


@pytest.mark.parametrize(
    ("name", "role", "lifetime"),
    [
        ("", "admin", None),
        ("a\n", "admin", None),
        ("x" * 201, "admin", None),
        ("a", "root", None),
        ("a", "admin", 0),
        ("a", "admin", float("nan")),
    ],
)
async def test_what_is_no_key_is_not_made(tmp_path: Path, name: str, role: str, lifetime: float | None):
    with pytest.raises((DefinitionError, UnknownName)):
        await Keys(open_records(str(tmp_path / "store"))).make(name, role, lifetime=lifetime)


async def test_where_nobody_can_look_a_key_up_nobody_is_let_in(served: Served, monkeypatch: pytest.MonkeyPatch):
    async def away(hash: str):
        raise StoreUnavailable("the records cannot be used")

    monkeypatch.setattr(served.records, "find_key", away)
    async with served.client("admin") as client:
        assert (await client.get(f"{API}/keys")).status_code == 503
        assert (await client.get(f"{API}/monitoring/health")).json()["checks"] is None
