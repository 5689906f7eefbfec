"""How nodes are packed and what they ask for, and what the nodes of a cluster lack of it."""

import pytest

from cluster.packing import Mode
from cluster.placing import demand_of, demand_text, lack_of, mode_of
from engine import Workflow
from engine.core.policy import Limits, Policy, Resources
from serve.service import plan_of

NODES = [{"CPU": 4.0, "memory": 1e9, "GPU": 2.0}, {"CPU": 16.0, "memory": 8e9, "probe": 1.0}]


@pytest.mark.parametrize(
    ("policy", "is_async", "mode"),
    [
        (Policy(), False, Mode.SYNC),
        (Policy(), True, Mode.ASYNC),
        (Policy(executor="inline"), False, Mode.ASYNC),
        (Policy(resources=Resources(num_cpus=0)), True, Mode.OWN),
        (Policy(limits=Limits(attempt=0.1, node=1)), False, Mode.SYNC),
    ],
)
def test_a_policy_and_a_body_say_how_calls_are_packed(policy: Policy, is_async: bool, mode: Mode):
    assert mode_of(policy, is_async=is_async) is mode


def test_a_demand_has_one_cpu_unless_it_says_how_many():
    assert demand_of(Resources(num_gpus=0.5, custom={"probe": 2})) == {"CPU": 1, "GPU": 0.5, "probe": 2}
    assert demand_of(Resources(num_cpus=0, memory=100)) == {"memory": 100}
    assert demand_text(demand_of(Resources(num_cpus=2, memory=5_000_000))) == "2 CPU, 5,000,000 bytes of memory"
    assert demand_text(demand_of(Resources(num_cpus=0))) == "no resources"


@pytest.mark.parametrize(
    ("asked", "lack"),
    [
        (Resources(num_cpus=16, memory=8e9, custom={"probe": 1}), None),
        (Resources(num_cpus=0), None),
        (Resources(num_gpus=8), "asks for 8 GPU; no node has it (most: 2); it waits until one joins"),
        (Resources(num_cpus=1000, custom={"tpu": 1}), "asks for 1000 CPU, 1 tpu; no node has it (most: 16, 0); it waits until one joins"),
        (Resources(memory=9e9), "asks for 9,000,000,000 bytes of memory; no node has it (most: 8,000,000,000); it waits until one joins"),
        (Resources(num_gpus=1, num_cpus=8), "asks for 8 CPU, 1 GPU; no node has all of it; it waits until one joins"),
    ],
)
def test_what_no_node_has_is_said_with_the_most_that_one_has(asked: Resources, lack: str | None):
    assert lack_of(demand_of(asked), NODES) == lack


def test_a_cluster_without_nodes_lacks_everything():
    assert lack_of({"GPU": 1}, []) == "asks for 1 GPU; no node has it (most: 0); it waits until one joins"


def test_a_plan_says_what_a_node_asks_for_also_where_nobody_has_it():
    flow = Workflow("w").add_node("a", len, memory=10**15).add_node("b", len, resources={"nothing": 1}).set_entry_point("a", "b")
    assert [node.why for layer in plan_of(flow) for node in layer] == [
        "asks for 1 CPU, 1,000,000,000,000,000 bytes of memory",
        "asks for 1 CPU, 1 nothing",
    ]
