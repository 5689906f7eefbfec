"""The scenarios: which there are, that they count what ran, and that what they compare with is right."""

import os
import threading
from pathlib import Path

import pytest

from bench.bodies import pass_on
from bench.catalogue import SCENARIOS, chosen
from bench.harness import DidNotRun
from bench.scenarios.durable import counted_syncs
from bench.scenarios.history import Stamps
from bench.scenarios.imports import in_process
from bench.scenarios.inline import measure as measure_inline
from bench.scenarios.large import build
from bench.scenarios.log_bytes import measure as measure_log_bytes
from bench.setting import Setting
from bench.shapes import bare_append, bare_loop, best_of_lanes, best_schedule, chain, lanes, layer

NAMES = (
    "inline-chain inline-fanout durable-chain durable-async history ray-fanout ray-chain ray-skewed ray-uneven ray-sleepers state "
    "checkpoint log-bytes log-media large import race hedge panel worker-memory"
)


def test_every_scenario_is_there_and_those_on_ray_run_last():
    assert set(SCENARIOS) == set(NAMES.split())
    on_ray = [scenario.ray for scenario in SCENARIOS.values()]
    assert on_ray == sorted(on_ray)


def test_every_scenario_with_a_bar_has_a_profile_for_its_shortfall():
    assert [s.name for s in SCENARIOS.values() if s.bars and s.profile is None] == []


def test_scenarios_are_chosen_by_name_in_their_own_order():
    assert [s.name for s in chosen(["import", "inline-chain"])] == ["inline-chain", "import"]
    assert len(chosen(["all"])) == len(SCENARIOS)


def test_the_longest_first_makes_the_best_schedule():
    assert best_schedule([1.0] + [0.0] * 999, 2) == 1.0
    assert best_schedule([0.2] * 16, 2) == pytest.approx(1.6)
    assert best_schedule([3, 3, 2, 2, 2], 2) == 7  # the best is 6: longest first is never more than a third above it
    assert best_schedule([0.2] * 3, 2) == pytest.approx(0.4)


def test_no_schedule_of_chains_beats_full_slots_or_the_longest_chain():
    assert best_of_lanes([[1, 1], [1, 1]], 2) == 2
    assert best_of_lanes([[5, 5], [1, 1]], 2) == 10


def test_shapes_are_as_deep_and_as_wide_as_they_say():
    assert list(map(len, chain(pass_on, 4).layers())) == [1, 1, 1, 1]
    assert list(map(len, layer(pass_on, 4).layers())) == [4]
    assert list(map(len, lanes(pass_on, 3, 2).layers())) == [3, 3]
    assert list(map(len, build(10).layers())) == [1, 1, 1, 1, 1, 5]


@pytest.mark.anyio
@pytest.mark.parametrize("flow", [chain(pass_on, 5), layer(pass_on, 5)], ids=["chain", "layer"])
async def test_the_bare_loop_finishes_every_step(flow):
    seconds, finished = await bare_loop(flow.compiled(), pass_on, 1)
    assert finished == 5
    assert seconds > 0


def test_a_bare_append_syncs_each_record_and_leaves_no_file(tmp_path: Path):
    with counted_syncs() as syncs:
        assert bare_append(tmp_path / "bare", 3, 100) > 0
    assert syncs == {threading.get_ident(): 3}
    assert not list(tmp_path.iterdir())


def test_syncs_are_counted_only_inside_the_block():
    before = os.fsync
    with pytest.raises(ValueError, match="descriptor"), counted_syncs() as syncs:
        os.fsync(-1)
    assert syncs.total() == 1
    assert os.fsync is before


def test_the_cost_of_a_node_is_the_distance_between_two_calls():
    stamps = Stamps()
    stamps.times = [0.0, 1.0, 1.5, 2.0]
    assert stamps.between(1, 3) == pytest.approx(0.5e6)


@pytest.mark.slow
def test_the_inline_scenarios_count_what_ran(tmp_path: Path):
    with Setting(tmp_path, fast=True) as setting:
        found = measure_inline(setting, shape=chain, count=8)
        assert setting.checks.held == {"every one of the 8 nodes handed on its input": 14, "the bare loop finished 8 steps": 7}
    assert {figure.name for figure in found.figures} == {"async", "sync", "bare loop", "async over the bare loop"}
    assert all(figure.value > 0 for figure in found.figures)


@pytest.mark.slow
def test_a_workflow_that_loses_a_node_fails_its_scenario(tmp_path: Path):
    with Setting(tmp_path, fast=True) as setting, pytest.raises(DidNotRun, match="every one of the 8 nodes"):
        measure_inline(setting, shape=lambda body, count: layer(body, count - 1), count=8)


@pytest.mark.slow
def test_log_bytes_reads_back_what_it_counted_and_leaves_no_file(tmp_path: Path):
    with Setting(tmp_path, fast=True) as setting:
        found = measure_log_bytes(setting)
        assert setting.checks.held["the log gives back 200 different items of 4096 bytes"] == 2
    assert all(figure.value > 1 for figure in found.figures if figure.unit == "times")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_an_import_that_fails_is_no_figure(tmp_path: Path):
    with Setting(tmp_path) as setting, pytest.raises(DidNotRun, match="no_such_module"):
        in_process(setting, "import no_such_module", {})
