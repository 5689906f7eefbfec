"""What is written for people and for programs."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from engine.core.events import Event
from serve.screen import ago_text, event_json, event_line, size_text


def event(kind: str, node: str = "", step: str = "", **data: Any) -> Event:
    return Event("w.s.1", 3, datetime(2026, 1, 2, tzinfo=UTC), kind, node, f"w.s.1/{step}" if step else "", 1 if step else 0, data)


def test_instants_are_told_by_how_long_ago_they_were():
    assert ago_text(1000.0, 1000.2) == "now"
    assert ago_text(1000.0, 1005.4) == "5 s ago"
    assert ago_text(1000.0, 1000.0 + 3 * 86400).startswith("1970-01-01 ")


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (65_536, "65.5 kB"), (3_400_000, "3.4 MB"), (10**16, "10000.0 TB")]
)
def test_sizes_are_written_as_people_write_them(size: int, text: str):
    assert size_text(size) == text


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (event("step_succeeded", "m", "m/1/17", duration=0.003), "m[17]  succeeded in 3 ms"),
        (event("step_started", "m", "m/2", items=1200), "m (pass 2)  started with 1,200 items"),
        (event("step_failed", "a", "a/1", error={"type": "ValueError", "message": "no\nluck"}), "a  failed: ValueError: no luck"),
        (event("step_retrying", "a", "a/1", error="x", delay=2.0), "a  attempt 1 failed, again in 2.0 s: x"),
        (event("step_succeeded", "o/i", "o/1/0", duration=1.0, jump="b"), "o/i  succeeded in 1.0 s, jumps to 'b'"),
        (event("condition_decided", "a", "a/1", target="b", verdict=False), "a  condition to 'b': no"),
        (event("condition_failed", "a", "a/1", target="b", error="E: no"), "a  condition to 'b' failed and counts as false: E: no"),
        (event("step_skipped", "b", "b/1"), "b  skipped"),
        (event("conflict", "", "", key="k", nodes=["a", "b"]), "run  state key 'k' was written by a, b"),
        (event("run_completed", finished=3), "run  completed after 3 steps"),
        (event("step_started", "t", "t/1", members=3), "t  started with 3 members"),
        (event("step_started", "t", "t/1/2", member="fast"), "t[2]  started, member 'fast'"),
        (event("step_started", "o/t", "o/1/0/2", member="fast"), "o/t[0/2]  started, member 'fast'"),
        (
            event("step_succeeded", "t", "t/1", duration=1.0, answer=[0, 1], errors={"1": "no"}),
            "t  succeeded in 1.0 s with 2 results, 1 of them failed",
        ),
        (event("step_failed", "t", "t/1/0", error="x", reason="Judge failed: x"), "t[0]  failed: Judge failed: x"),
        (event("step_stopped", "t", "t/1/0", reason="the team's limit", stopped_after=0.5), "t[0]  stopped after 500 ms: the team's limit"),
        (event("member_won", "t", "t/1/0", score=2.5), "t[0]  won, score 2.5"),
        (
            event("member_lost", "t", "t/1/1", reason="another was chosen", stopped_after=0.014),
            "t[1]  lost after 14 ms: another was chosen",
        ),
        (event("once_done", "a", "a/1", key="k", value=1), 'a  once done {"key":"k"}'),
    ],
)
def test_events_are_told_in_a_few_words(told: Event, line: str):
    assert " ".join(event_line(told).split()[1:]) == " ".join(line.split())


def test_an_event_is_one_line_of_json_whatever_it_holds():
    line = event_json(event("step_succeeded", "a", "a/1", output={1: {b"x"}}))
    assert "\n" not in line
    told = json.loads(line)
    assert (told["at"], told["step_id"], told["data"]["output"]) == ("2026-01-02T00:00:00+00:00", "w.s.1/a/1", {"1": ["eA=="]})


def test_a_lone_surrogate_is_written_as_its_escape():
    text = "na\udcffme"
    line = event_json(event("step_succeeded", "a", "a/1", output=text))
    assert line.isascii()
    assert json.loads(line)["data"]["output"] == text
    assert event_line(event("step_failed", "a", "a/1", error={"type": "E", "message": text})).endswith(r"failed: E: na\udcffme")
