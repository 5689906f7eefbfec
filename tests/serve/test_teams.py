"""Teams as the command line shows them: while they run, recorded, planned and checked."""

import json
import re

import pytest

from tests.serve.conftest import Gecko

pytestmark = pytest.mark.usefixtures("team_file")


def lines_of(text: str) -> list[str]:
    """The lines, with every duration the same."""
    return [re.sub(r"\d[\d.]* (us|ms|s)\b", "T", line).rstrip() for line in text.splitlines()]


def test_a_recorded_run_shows_each_member_under_its_team_and_a_large_one_folded(gecko: Gecko):
    assert gecko("run", "teams.py:flow", "--session", "s").status == 0
    shown = lines_of(gecko("runs", "show", "s").out)
    race = shown.index("├── ✓ race  team of 3  T")
    assert shown[race + 1 : race + 3] == ["│   ├── ✓ [0] fast  won after T", "│   ├── − [1] slow  lost, stopped after T"]
    assert shown[race + 3].startswith("│   └── ✗ [2] fail  failed after T: ValueError: no luck at ")
    inner = shown.index("│   └── ✓ deep  team of 2  T")
    assert shown[inner + 1 : inner + 3] == ["│       ├── ✓ [0] fast  won after T", "│       └── − [1] slow  lost, stopped after T"]
    many = shown.index("└── ✓ many  team of 22  T")
    assert shown[many + 8] == "    └── ... of 22: 20 finished, 2 failed"
    assert sum("✗" in line for line in shown[many : many + 9]) == 2
    each = next(i for i, line in enumerate(shown) if "9/9 items" in line)
    assert shown[each + 1 : each + 3] == ["│   ├── [0]", "│   │   └── ✓ [0] fast  won after T"]
    assert "│   └── ... of 9 items; members: 9 won" in shown


def test_a_recorded_run_tells_its_members_as_json(gecko: Gecko):
    gecko("run", "teams.py:flow", "--session", "s")
    steps = {step["step"]: step for step in json.loads(gecko("runs", "show", "s", "--json").out)["steps"]}
    assert (steps["race/1"]["members"], steps["race/1"]["member"]) == (3, None)
    assert [(steps[f"race/1/{i}"]["member"], steps[f"race/1/{i}"]["status"]) for i in range(3)] == [
        ("fast", "won"), ("slow", "lost"), ("fail", "failed"),
    ]  # fmt: skip


def test_a_team_that_cannot_win_any_more_shows_what_each_member_did(gecko: Gecko):
    assert gecko("run", "teams.py:lost", "--session", "s").status == 0
    shown = lines_of(gecko("runs", "show", "s").out)
    assert shown[1:3] == ["└── ✓ t  team of 3  T", "    ├── ✓ [0] fast  finished after T"]
    assert ["✗" in line and "failed after T: ValueError: no luck at " in line for line in shown[3:5]] == [True, True]


def test_events_of_members_come_as_they_are_and_in_words(gecko: Gecko):
    done = gecko("run", "teams.py:flow", "--session", "s", "--json")
    told = [json.loads(line) for line in done.out.splitlines()]
    won = [event for event in told if event["kind"] == "member_won" and event["node"] == "race"]
    assert [event["step_id"] for event in won] == ["teams.s.1/race/1/0"]
    assert [json.loads(line) for line in gecko("runs", "events", "s").out.splitlines() if "member_won" in line] == [
        event for event in told if event["kind"] == "member_won"
    ]
    logged = [" ".join(line.split()[1:]) for line in lines_of(gecko("runs", "logs", "s").out)]
    assert {"race started with 3 members", "race[0] started, member 'fast'", "race[0] won", "in/deep[0/0] won", "each[8/0] won"} <= set(
        logged
    )
    assert "race[1] lost after T: stopped, since the team had its answer" in logged
    assert "many succeeded in T with 22 results, 2 of them failed" in logged


def test_following_a_run_that_is_over_counts_nodes_and_not_members(gecko: Gecko):
    ended = gecko("run", "teams.py:flow", "--session", "s").err
    assert re.search(r"completed in .*, (\d+) steps$", ended.strip())
    assert gecko("runs", "watch", "s").status == 0


def test_validate_names_the_teams_and_warns_of_a_member_that_is_no_body(gecko: Gecko):
    done = gecko("validate", "teams.py:flow")
    assert done.status == 0
    assert done.out.splitlines() == [
        "team 'race': RACE of 3: fast, slow, fail",
        "team 'in/deep': RACE of 2: fast, slow",
        "team 'each': HEDGE(60) of 2: fast, slow",
        "team 'many': ALL of 22: fast, fast, fast, fast, fast, fast, 16 more",
        "warning: in node 'many': member many[21]: not executable: 7 is no body: pass a function, an object with run(), a Workflow or a "
        "Team",
    ]
    told = json.loads(gecko("validate", "teams.py:flow", "--json").out)
    assert (told["valid"], told["teams"]["race"]) == (True, "RACE of 3: fast, slow, fail")


def test_plan_and_graph_show_strategy_and_members(gecko: Gecko):
    shown = gecko("plan", "teams.py:flow").out.splitlines()
    many = next(i for i, line in enumerate(shown) if line.split() == ["many", "team,", "ALL", "of", "22"])
    assert shown[many + 1].split() == ["[0]", "fast", "async"]
    assert shown[many + 9].split() == ["...", "of", "22:", "21", "async,", "1", "no", "body"]
    assert any(line.split() == ["each", "map,", "each", "item", "team,", "HEDGE(60)", "of", "2"] for line in shown)
    layers = json.loads(gecko("plan", "teams.py:flow", "--json").out)["layers"]
    assert [member["node"] for member in layers[2][0]["team"]["members"]] == ["fast", "slow", "fail"]
    assert "race<br/>RACE of 3: fast, slow, fail" in gecko("graph", "teams.py:flow").out
    nodes = json.loads(gecko("graph", "teams.py:flow", "--json").out)["nodes"]
    assert {node["name"]: node["kind"] for node in nodes} == {
        "race": "team", "in": "workflow", "each": "map", "many": "team", "list": "step",
    }  # fmt: skip
