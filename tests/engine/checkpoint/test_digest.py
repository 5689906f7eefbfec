"""What lists show of a run, from runs that were recorded, however their rows come."""

import asyncio
from typing import Any

import pytest

from engine.checkpoint.codec import encode
from engine.checkpoint.digest import ERRORS, RunDigest, moment
from engine.checkpoint.record import event_of
from engine.core.ids import make_run_id
from engine.core.policy import Retry
from engine.core.team import RACE
from engine.engine import Engine
from engine.errors import WorkflowError
from engine.ports import Row, RunKey
from engine.records import letter_id
from engine.store import open_log
from engine.team import Team
from engine.workflow import Workflow


def fail(value: Any) -> Any:
    raise ValueError(f"bad {value}")


def same(value: Any) -> Any:
    return value


async def wait(value: Any) -> Any:
    await asyncio.Event().wait()


class Flaky:
    """Fails as often as it is told, for all bodies that ask it."""

    def __init__(self, failures: int) -> None:
        self.left = failures

    def __call__(self, value: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            raise ValueError(f"bad {value}")
        return value


async def record(flow: Workflow, value: Any = "hi", times: int = 1) -> tuple[RunKey, list[Row]]:
    """Execute a workflow in a session, again where it failed, and return what its log holds."""
    for _ in range(times):
        try:
            await flow.execute(value, session_id="s")
        except WorkflowError:
            pass
    (summary,) = await Engine(flow.storage).runs()
    return summary.key, list(await open_log(flow.storage).read(summary.key))


def digest_of(key: RunKey, rows: list[Row]) -> RunDigest:
    """Take rows in in one go, one by one and as events; all of them come to the same."""
    whole, single, told = RunDigest(key), RunDigest(key), RunDigest(key)
    whole.take(rows)
    for row in rows:
        single.take([row])
        single.take([row])
        told.take_event(event_of(make_run_id(*key), row))
    assert whole.entry() == single.entry() == told.entry()
    assert whole.letters() == single.letters() == told.letters()
    return whole


@pytest.fixture
def place(request: pytest.FixtureRequest) -> str:
    return f"memory://{request.node.name}"


@pytest.mark.anyio
async def test_a_run_that_completed(place: str):
    key, rows = await record(two(place, same))
    entry = digest_of(key, rows).entry()
    assert (entry.run_id, entry.status, entry.steps, entry.error, entry.seq) == ("two.s.1", "completed", 2, "", rows[-1].seq)
    assert (entry.started_at, entry.finished_at) == (moment(rows[0].at), moment(rows[-1].at))
    assert entry.updated_at == entry.finished_at
    assert len(entry.hash) == 32


def two(place: str, body: Any, **policy: Any) -> Workflow:
    flow = Workflow("two", storage=place).add_node("a", same).add_node("b", body, **policy).add_edge("a", "b")
    return flow.set_entry_point("a")


@pytest.mark.anyio
async def test_a_step_whose_attempts_are_used_up_is_a_dead_letter_with_its_history(place: str):
    key, rows = await record(two(place, fail, retry=Retry(3, delay=0)))
    digest = digest_of(key, rows)
    assert digest.entry().error == "StepFailed: Workflow execution failed: step 'b', attempt 3: ValueError: bad hi"
    (letter,) = digest.letters({"b/1": b"x"})
    assert (letter.id, letter.step_id, letter.node, letter.status) == (letter_id("two.s.1/b/1"), "two.s.1/b/1", "b", "open")
    assert [(error.attempt, error.type, error.message) for error in letter.errors] == [(n, "ValueError", "bad hi") for n in (1, 2, 3)]
    assert (letter.attempts, letter.input, letter.created_at) == (3, b"x", letter.errors[-1].at)
    assert "in fail" in letter.errors[0].traceback
    assert digest.failed_at() == {rows[-1].seq: ["b/1"]}


@pytest.mark.anyio
async def test_a_run_that_was_resumed_and_came_past_it_has_replayed_its_letter(place: str):
    key, rows = await record(two(place, Flaky(2)), times=3)
    digest = digest_of(key, rows)
    entry = digest.entry()
    assert (entry.status, entry.resumes, entry.error) == ("completed", 2, "")
    (letter,) = digest.letters()
    assert (letter.status, letter.replay_run_id, len(letter.errors)) == ("replayed", "two.s.1", 2)


@pytest.mark.anyio
async def test_a_run_that_was_resumed_and_failed_again_has_one_letter_that_is_open(place: str):
    key, rows = await record(two(place, fail), times=2)
    (letter,) = digest_of(key, rows).letters()
    assert (letter.status, len(letter.errors), letter.attempts) == ("open", 2, 1)
    assert letter.created_at == letter.errors[-1].at


@pytest.mark.anyio
async def test_the_items_of_a_map_are_letters_of_their_own(place: str):
    def odd(value: int) -> int:
        if value % 2:
            raise ValueError(f"odd {value}")
        return value

    flow = Workflow("mapped", storage=place).add_map("m", odd).set_entry_point("m")
    key, rows = await record(flow, [0, 1, 2, 3])
    letters = digest_of(key, rows).letters()
    assert {letter.step_id for letter in letters} <= {"mapped.s.1/m/1/1", "mapped.s.1/m/1/3"}
    assert "mapped.s.1/m/1/1" in {letter.step_id for letter in letters}


@pytest.mark.anyio
async def test_of_a_sub_workflow_the_step_that_failed_is_the_letter_and_not_what_is_around_it(place: str):
    inner = Workflow("inner").add_node("x", same).add_node("y", fail).add_edge("x", "y").set_entry_point("x")
    key, rows = await record(two(place, inner, retry=Retry(2, delay=0)))
    (letter,) = digest_of(key, rows).letters()
    assert (letter.node, letter.step_id, len(letter.errors)) == ("b/y", "two.s.1/b/1/1", 2)


@pytest.mark.anyio
async def test_of_a_team_the_team_is_the_letter_and_a_member_that_failed_is_none(place: str):
    key, rows = await record(two(place, Team([fail, wait], strategy=RACE, timeout=0.01)))
    digest = digest_of(key, rows)
    assert digest.entry().status == "failed"
    assert [letter.step_id for letter in digest.letters()] == ["two.s.1/b/1"]


@pytest.mark.anyio
async def test_what_was_skipped_or_stood_in_for_is_no_letter(place: str):
    flow = Workflow("soft", storage=place).add_node("a", fail, on_error="skip").add_node("b", fail, on_error="fallback", fallback="c")
    flow.add_node("c", same).add_node("d", fail).add_edge("b", "d").set_entry_point("a", "b")
    key, rows = await record(flow)
    assert [letter.node for letter in digest_of(key, rows).letters()] == ["d"]


def test_who_submitted_a_run_and_how_is_told_by_its_first_event():
    key = RunKey("w", "s", 1)
    digest = RunDigest(key, coordinator="c-1")
    told = {"owner": "key-1", "tenant": "t", "labels": {"team": "a"}, "priority": 5, "set": "e", "cwd": "somewhere"}
    error = encode({"error": {"type": "ValueError", "message": "bad", "traceback": ""}})
    digest.take([Row(1, 1e9, "run_started", info=encode({"submission": told, "target": "p:f"}))])
    entry = digest.entry()
    assert (entry.owner, entry.tenant, entry.labels, entry.priority) == ("key-1", "t", {"team": "a"}, 5)
    assert (entry.environment, entry.target, entry.coordinator, entry.status, entry.finished_at) == ("e", "p:f", "c-1", "running", None)
    digest.take([Row(2, 1e9, "step_failed", "a", "a/1", info=error), Row(3, 1e9, "run_failed", info=error)])
    assert [letter.tenant for letter in digest.letters()] == ["t"], "a tenant's dead letters are its own"


def test_what_is_kept_of_errors_is_bounded():
    digest = RunDigest(RunKey("w", "s", 1))
    error = encode({"error": {"type": "T" * 9000, "message": "m" * 9000, "traceback": "a" + "t" * 90_000 + "z"}})
    digest.take([Row(1, 1e9, "run_started")])
    digest.take([Row(2 + n, 1e9 + n, "step_retrying", "a", "a/1", info=error) for n in range(50)])
    digest.take([Row(60, 2e9, "step_failed", "a", "a/1", info=error), Row(61, 2e9, "run_failed", info=error)])
    (letter,) = digest.letters()
    assert (len(letter.errors), len(letter.errors[0].message), letter.errors[0].traceback[-1]) == (ERRORS, 4000, "z")
    assert len(letter.errors[0].traceback) == 16_000
    assert len(digest.entry().error) == 4000


def test_many_items_that_fail_are_taken_in_at_once():
    digest = RunDigest(RunKey("w", "s", 1))
    rows = [Row(1, 1e9, "run_started"), *(Row(2 + n, 1e9, "step_failed", "m", f"m/1/{n}") for n in range(20_000))]
    rows += [Row(30_000 + n, 1e9, "step_succeeded", "m", f"m/1/{n}") for n in range(19_999)]
    digest.take([*rows, Row(60_000, 1e9, "run_failed")])
    assert [letter.step_id for letter in digest.letters()] == ["w.s.1/m/1/19999"]
