"""`gecko keys` and `gecko serve`, as far as they need no cluster."""

import asyncio
import json
from pathlib import Path

import pytest

from engine.store import open_records
from serve.keys import Keys
from tests.serve.conftest import Gecko


def test_a_key_is_made_listed_and_revoked(gecko: Gecko):
    made = gecko("keys", "create", "--name", "ci", "--role", "viewer", "--expires", "90d", "--storage", "store")
    assert made.status == 0
    key = made.out.strip()
    assert key.startswith("gk_")
    assert key not in made.err
    entry = asyncio.run(Keys(open_records("store")).open(key))
    assert (entry.role, round((entry.expires_at or 0) - entry.created_at)) == ("viewer", 90 * 86400)
    listed = gecko("keys", "list", "--storage", "store")
    assert entry.id in listed.out
    assert "valid" in listed.out
    assert key not in listed.out
    assert gecko("keys", "revoke", entry.id, "--storage", "store").status == 0
    (told,) = json.loads(gecko("keys", "list", "--storage", "store", "--json").out)
    assert (told["name"], told["state"], "hash" in told) == ("ci", "revoked", False)


def test_keys_lie_where_the_records_are_said_to(gecko: Gecko, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GECKO_RECORDS", "elsewhere")
    made = gecko("keys", "create", "--json", "--storage", "store")
    assert json.loads(made.out)["role"] == "operator"
    assert Path("elsewhere/records.db").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("keys", "create", "--role", "root"), "root"), (("keys", "create", "--expires", "soon"), "--expires"),
        (("keys", "revoke", "key_none"), "not found"), (("keys", "create", "--storage", "memory://x"), "memory"),
        (("serve",), "GECKO_MODULES"), (("serve", "no_such_module_at_all"), "no_such_module_at_all"), (("serve", "--port", "0"), "port"),
    ],
)  # fmt: skip
def test_wrong_usage_is_told_in_a_line(gecko: Gecko, words: tuple[str, ...], told: str):
    done = gecko(*words)
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
