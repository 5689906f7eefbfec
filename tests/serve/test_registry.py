"""What the operator registers, and what is wrong with it, is known before the first request."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.errors import ConfigurationError, InvalidGraph
from serve.registry import read_registry
from serve.settings import Settings, read_settings

NOW = datetime(2026, 3, 1, tzinfo=UTC)
FLOW = "from engine import Workflow\n{name} = Workflow('{name}').add_node('a', lambda x: x).set_entry_point('a')\n"


def test_modules_and_files_give_all_their_workflows_and_targets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Path("shop_flows.py").write_text(FLOW.format(name="one") + FLOW.format(name="two"))
    Path("more.py").write_text(FLOW.format(name="three") + FLOW.format(name="four"))
    found = read_registry(["shop_flows", "more.py:four"], since=NOW)
    assert [each.name for each in found.find()] == ["four", "one", "two"]
    assert found.get("one").flow.target == "shop_flows:one"
    assert read_registry([], since=NOW).find() == []
    assert read_registry(["shop_flows", "shop_flows:one"], since=NOW).get("one").since == NOW


@pytest.mark.parametrize(
    ("text", "target", "told"),
    [
        ("", "flows.py", "no Workflow is in"),
        ("raise ValueError('no luck')", "flows.py", "ValueError: no luck"),
        (FLOW.format(name="one"), "flows.py:two", "not found"),
        (FLOW.format(name="one"), "no_such_module_at_all", "not found"),
        (FLOW.format(name="one") + FLOW.format(name="two").replace("('two'", "('one'"), "flows.py", "two workflows are called 'one'"),
    ],
)
def test_what_cannot_be_registered_is_named(text: str, target: str, told: str):
    Path("flows.py").write_text(text)
    with pytest.raises(ConfigurationError, match=told) as caught:
        read_registry([target], since=NOW)
    assert caught.value.where in (target, "one")


def test_a_workflow_that_cannot_run_is_refused_at_the_start():
    Path("flows.py").write_text(FLOW.format(name="one").replace(".set_entry_point('a')", ""))
    with pytest.raises(InvalidGraph, match="cannot run"):
        read_registry(["flows.py"], since=NOW)


def test_settings_say_how_the_service_is_deployed():
    told = read_settings({
        "GECKO_MODULES": " shop.flows, more.py:four ,", "GECKO_RECORDS": "sqlite:///r.db", "GECKO_HOST": "0.0.0.0", "GECKO_PORT": "9000",
        "GECKO_REPLICAS": "3", "GECKO_COORDINATORS": "2", "GECKO_MAX_RUNS": "10", "GECKO_MAX_QUEUED": "0", "GECKO_MAX_BODY": "4096",
    })  # fmt: skip
    assert told == Settings(
        modules=("shop.flows", "more.py:four"), records="sqlite:///r.db", host="0.0.0.0", port=9000, replicas=3, coordinators=2,
        max_runs=10, max_queued=0, max_body=4096,
    )  # fmt: skip
    assert (read_settings({}).host, read_settings({}).max_runs) == ("127.0.0.1", None)


@pytest.mark.parametrize("said", ["x", "-1", "0", "1e9", "\u0661", "9" * 40, "70000", "1.5"])
def test_a_setting_that_means_nothing_is_named(said: str):
    with pytest.raises(ConfigurationError, match="GECKO_PORT"):
        read_settings({"GECKO_PORT": said})
