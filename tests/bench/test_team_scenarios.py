"""The scenarios of teams: what they read off a log, what they refuse to count, and the service that is asked."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.bodies import get, lose, win
from bench.harness import DidNotRun
from bench.scenarios import hedge, panel
from bench.scenarios.race import ends_of, flow_of, races_of, stages
from bench.service import SLOW, Service, latency
from bench.setting import Setting
from cluster.ending import descriptor_of
from engine import Engine, Event


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    async def race() -> list[Event]:
        engine = Engine(tmp_path_factory.mktemp("races"))
        handle = await engine.start(flow_of(win, lose, 2))
        await handle.wait()
        return [event async for event in engine.events(handle.run_id)]

    return asyncio.run(race())


def test_a_chain_of_races_tells_each_ones_period_and_when_its_losers_stopped(raced: list[Event], tmp_path: Path):
    with Setting(tmp_path) as setting:
        found = races_of(setting, raced, 2)
    begun = [e.at for e in raced if e.kind == "step_started" and e.node in ("race-0", "after") and "member" not in e.data]
    assert sum(found.periods) == pytest.approx((begun[1] - begun[0]).total_seconds()), "no time between two races is left out"
    assert len(found.stops) == 6
    assert min(found.stops) > 0


@pytest.mark.parametrize("kind", ["member_lost", "member_won", "step_succeeded"])
def test_a_race_of_which_something_is_missing_is_not_counted(kind: str, raced: list[Event], tmp_path: Path):
    gone = next(e for e in raced if e.kind == kind and e.step_id.count("/") == 3)
    with Setting(tmp_path) as setting, pytest.raises(DidNotRun, match="of every race four members started, one won"):
        races_of(setting, [e for e in raced if e is not gone], 2)


def test_the_stages_of_a_race_are_told_with_their_medians(raced: list[Event]):
    told = stages(raced).splitlines()
    assert len(told) == 6
    assert all(float(line.split()[0]) >= 0 for line in told)
    assert float(next(line for line in told if "body, by its own clock" in line).split()[0]) > 9


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="processes are watched by descriptors of Linux")
def test_of_processes_that_are_watched_the_ends_are_noted_until_one_is_left():
    processes = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    ends: dict[int, float] = {}
    try:
        descriptors = {process.pid: descriptor_of(process.pid) for process in processes}
        begun = time.time()
        processes[0].kill()
        ends_of(descriptors, ends)
        assert ends.keys() == {processes[0].pid}
        assert ends[processes[0].pid] >= begun
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_the_service_is_slow_for_some_paths_and_always_for_the_same():
    seconds = [latency(4, f"/{n}/0") for n in range(2000)]
    assert seconds == [latency(4, f"/{n}/0") for n in range(2000)]
    assert sum(s > 0.1 for s in seconds) / 2000 == pytest.approx(SLOW, abs=0.02)
    assert all(0.015 <= s <= 0.025 or 0.3 <= s <= 0.5 for s in seconds)


@pytest.mark.slow
def test_the_service_answers_with_the_path_and_counts_who_asked():
    with Service(4) as service:
        assert [asyncio.run(get(f"{service.url}/{path}")) for path in ("asked", "7/0", "asked")] == ["0", "/7/0", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["plain", "hedged"])
def test_calls_are_counted_with_those_that_were_hedged(way: str, tmp_path: Path):
    with Setting(tmp_path, fast=True) as setting, setting.storage() as folder, Service(4) as service:
        found = hedge.run_once(setting, folder, service, way, executor="inline", count=100)
    late = sum(latency(4, f"/{n}/0") > hedge.DELAY for n in range(100))
    assert late > 0
    assert len(found.seconds) == 100
    assert (found.hedged >= late) if way == "hedged" else (found.hedged == 0 and found.asked == 100)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["map", "nodes"])
def test_the_teams_of_a_panel_all_answer_in_full(form: str, tmp_path: Path):
    with Setting(tmp_path, fast=True) as setting, setting.storage() as folder:
        seconds = panel.engine_run(setting, folder, panel.flow_of(form), form, executor="inline")
        assert seconds >= panel.SECONDS
        assert setting.checks.held["every member started once"] == 1
