"""Whatever goes wrong, wherever it does: the run ends as if nothing had happened, and nothing finished is done again."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Context, Limits, Retry, Workflow
from engine.testing.crash import check_same
from engine.testing.faults import Chaos, Crash, Fail, Lose, Refuse, Slow
from engine.testing.simulate import Report, simulate


def make_pipeline(strategy: str = "always", effects: Counter[str] | None = None) -> Workflow:
    """A fan-out of sync and async bodies, a map, a retry, a sub-workflow, a condition, a loop and an effect."""

    def count(ctx: Context) -> list[int]:
        ctx.state["rounds"] = ctx.state.get("rounds", 0) + 1
        return list(range(ctx.state["rounds"] + 2))

    async def pay(given: Any, ctx: Context) -> str:
        async def charge() -> str:
            if effects is not None:
                effects[ctx.step_id] += 1
            return "paid"

        return await ctx.once("charge", charge, again=True)

    async def flaky(given: Any, ctx: Context) -> str:
        ctx.state["log"] = [*ctx.state.get("log", []), "flaky"]
        if ctx.attempt == 1:
            raise OSError("the first attempt")
        return "at last"

    inner = Workflow("Inner").add_node("first", lambda given: len(given)).add_node("second", lambda n: n + 1)
    inner.add_edge("first", "second").set_entry_point("first")
    flow = Workflow("Pipeline", allow_cycles=True, checkpoint_strategy=strategy).add_node("count", count).add_node("pay", pay)
    flow.add_node("flaky", flaky, retry=Retry(attempts=3, delay=5.0, jitter=0.5)).add_map("square", lambda n: n * n).add_node(
        "inner", inner
    )
    flow.add_node("join", lambda given: given, join="all").add_node("end", lambda given: len(given))
    for branch in ("pay", "flaky", "square", "inner"):
        flow.add_edge("count", branch).add_edge(branch, "join")
    flow.add_edge("join", "count", lambda ctx: ctx.state["rounds"] < 3).add_edge("join", "end", lambda ctx: ctx.state["rounds"] >= 3)
    return flow.set_entry_point("count")


CALM = simulate(make_pipeline)
SOME_OF_ALL = Chaos(crash=0.04, refuse=0.03, slow=0.1, fail=0.04, lose=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["always", "async", "final", "manual"])
@settings(max_examples=40)
@given(seed=st.integers(0, 2**32))
def test_faults_anywhere_change_no_end(strategy: str, seed: int):
    check_same(CALM, simulate(lambda: make_pipeline(strategy), seed=seed, faults=[SOME_OF_ALL]), f"{strategy}, seed {seed}")


@pytest.mark.slow
@settings(max_examples=25)
@given(seed=st.integers(0, 2**32))
def test_crash_upon_crash_changes_no_end(seed: int):
    effects: Counter[str] = Counter()
    report = simulate(lambda: make_pipeline("always", effects), seed=seed, faults=[Chaos(crash=0.3, most=30)])
    check_same(CALM, report, f"seed {seed}, crashes {report.crashes}")
    assert report.lives == len(report.crashes) + 1
    assert max(effects.values()) <= 1 + len(report.crashes)


def test_a_crash_by_the_clock_changes_no_end():
    report = simulate(make_pipeline, faults=[Crash(at=1.0), Crash(at=6.5)])
    check_same(CALM, report, "two crashes by the clock")
    assert report.lives == 3
    assert [crash.split(",")[1] for crash in report.crashes] == [" 1 s", " 6.5 s"]


def test_a_lost_worker_is_an_attempt_that_failed():
    report = simulate(make_pipeline, faults=[Lose("flaky/1")])
    check_same(CALM, report, "a lost worker")
    assert report.lives == 1, "the retry covers it"
    assert report.performed["flaky/1"] == 2, "the lost attempt was performed, and the one after it succeeded"
    errors = [
        event.data["error"]["type"] for event in report.events if event.kind == "step_retrying" and event.step_id.endswith("/flaky/1")
    ]
    assert errors == ["WorkerLost"]


def test_a_lost_worker_is_replaced_without_a_retry_of_the_node():
    report = simulate(make_pipeline, faults=[Lose("square[1]", performed=False)])
    check_same(CALM, report, "a lost worker")
    assert report.lives == 1
    assert report.performed["square/1/1"] == 1


def test_a_step_that_kills_every_worker_fails_the_run_which_is_resumed():
    report = simulate(make_pipeline, faults=[Lose("square/1/1", times=3)])
    check_same(CALM, report, "three lost workers")
    assert report.lives == 2
    kinds = Counter(event.kind for event in report.events)
    assert kinds["run_failed"] == 1
    assert kinds["run_resumed"] == 1
    assert report.performed["square/1/1"] == 4


def test_failures_past_the_retry_fail_the_run_which_is_resumed_with_all_attempts():
    report = simulate(make_pipeline, faults=[Fail("flaky", times=3)])
    check_same(CALM, report, "three failures")
    assert report.lives == 2
    assert report.performed["flaky/1"] == 2


def test_a_full_disk_is_waited_for():
    report = simulate(make_pipeline, faults=[Refuse(write=4, times=5)])
    check_same(CALM, report, "a full disk")
    assert report.lives == 1


def test_a_disk_that_stays_full_stops_the_run_which_is_resumed():
    report = simulate(make_pipeline, faults=[Refuse(write=4, times=60)])
    check_same(CALM, report, "a full disk for long")
    assert report.lives > 1


def test_a_slow_step_meets_its_limit_in_virtual_time():
    async def fetch() -> str:
        return "fetched"

    flow = Workflow("Slow").add_node("fetch", fetch, timeout=60.0, retry=Retry(attempts=2, delay=30.0)).set_entry_point("fetch")
    report = simulate(flow, faults=[Slow("fetch", 3600.0)])
    assert report.output == "fetched"
    assert [event.kind for event in report.events if event.kind.startswith("step_")] == ["step_started", "step_retrying", "step_succeeded"]
    assert 90.0 < report.duration < 91.0


def test_the_pauses_of_a_retry_count_against_the_limit_of_the_node():
    def fail() -> None:
        raise OSError("again")

    flow = Workflow("Node").add_node("a", fail, retry=Retry(attempts=9, delay=40.0, backoff="fixed"), timeout=Limits(node=100.0))
    report = simulate(flow.set_entry_point("a"))
    assert report.status == "failed"
    assert report.performed == {"a/1": 3}
    assert 80.0 < report.duration < 81.0


def test_a_retry_that_was_due_during_a_crash_starts_when_the_run_goes_on():
    def flaky(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise OSError("once")
        return ctx.attempt

    flow = Workflow("Due").add_node("a", flaky, retry=Retry(attempts=2, delay=3600.0, max_delay=3600.0)).set_entry_point("a")
    report = simulate(flow, faults=[Crash(at=1800.0)])
    assert report.output == 2
    assert report.performed == {"a/1": 2}
    assert 3600.0 < report.duration < 3601.0


def ends(report: Report) -> tuple[Any, ...]:
    return report.final, report.performed, report.crashes, report.writes, report.duration


def test_one_seed_gives_the_same_faults():
    first, second = (simulate(make_pipeline, seed=11, faults=[SOME_OF_ALL]) for _ in range(2))
    assert ends(first) == ends(second)
    assert first.events == second.events


def test_another_seed_gives_other_faults():
    assert len({simulate(make_pipeline, seed=seed, faults=[Chaos(crash=0.1)]).crashes for seed in range(2)}) == 2
