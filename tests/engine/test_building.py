"""Building a workflow: what is refused at once, what `problems` lists, and that nothing runs while anything is wrong."""

import asyncio
import re
import time
from typing import Any

import pytest

import engine
from engine import CheckpointStrategy, Context, Engine, Limits, Next, Retry, Workflow
from engine.errors import ConfigurationError, DefinitionError, InvalidGraph, StateConflict, StepLimitReached, WorkflowCycleError

pytestmark = pytest.mark.anyio


def nothing(value: Any) -> Any:
    return value


def chain(n: int, **options: Any) -> Workflow:
    flow = Workflow("chain", **options)
    for i in range(n):
        flow.add_node(f"n{i}", nothing)
        if i:
            flow.add_edge(f"n{i - 1}", f"n{i}")
    return flow.set_entry_point("n0")


def texts(flow: Workflow) -> str:
    return "\n".join(p.text for p in flow.problems() if not p.warning)


def test_a_second_node_of_one_name_is_refused():
    with pytest.raises(ValueError, match="'a' already exists"):
        Workflow().add_node("a", nothing).add_node("a", nothing)


def test_nodes_of_one_body_and_one_policy_share_both():
    """What a large graph is made of is looked at by the garbage collector again and again."""
    nodes = Workflow().add_node("a", nothing).add_node("b", nothing).add_node("c", nothing, retry=2).graph.nodes
    assert nodes["a"].body is nodes["b"].body is nodes["c"].body
    assert nodes["a"].policy is nodes["b"].policy
    assert nodes["c"].policy.retry is not None
    assert nodes["b"].policy.retry is None


def test_an_edge_with_unknown_ends_names_the_source_first_and_what_is_near():
    flow = Workflow().add_node("load", nothing)
    with pytest.raises(ValueError, match=r"Source node 'lod' not found; did you mean 'load'"):
        flow.add_edge("lod", "lad")
    with pytest.raises(ValueError, match=r"Target node 'lad' not found; did you mean 'load'"):
        flow.add_edge("load", "lad")


def test_an_unknown_entry_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="'lod' not found; did you mean 'load'"):
        Workflow().add_node("load", nothing).set_entry_point("lod")


@pytest.mark.parametrize("body", [None, 7, "text", object()])
def test_what_is_no_body_is_refused(body: Any):
    with pytest.raises(DefinitionError, match="is no body"):
        Workflow().add_node("a", body)


@pytest.mark.parametrize("name", ["", "a/b", "a[0]", "a\nb", "last_output", 5, ".", ".."])
def test_a_node_name_that_cannot_be_part_of_an_id_is_refused(name: Any):
    with pytest.raises(ValueError, match=r"name|called"):
        Workflow().add_node(name, nothing)


@pytest.mark.parametrize("name", ["", "a/b", None])
def test_a_workflow_name_that_cannot_be_part_of_an_id_is_refused(name: Any):
    with pytest.raises(DefinitionError):
        Workflow(name)


@pytest.mark.parametrize("name", [None, 5, [], ["load", "clean"], {"load"}])
def test_what_is_no_name_of_a_node_is_refused_wherever_one_is_asked_for(name: Any):
    flow = Workflow().add_node("load", nothing).add_node("clean", nothing)
    for call in (lambda: flow.add_edge(name, "load"), lambda: flow.add_edge("load", name)):
        with pytest.raises(DefinitionError, match=rf"node {re.escape(repr(name))} not found; "):
            call()
    for call in (lambda: flow.set_entry_point(name), lambda: flow.set_entry_point("load", name), lambda: flow.add_parallel_group(name)):
        with pytest.raises(DefinitionError, match=rf"(Entry point|Node) {re.escape(repr(name))} not found; "):
            call()
    with pytest.raises(DefinitionError, match=r"set_dependency takes names of nodes, not "):
        flow.set_dependency(name, "load")
    with pytest.raises(DefinitionError, match=r"set_dependency takes names of nodes, not "):
        flow.set_dependency("load", ["clean", name])
    assert (flow.graph.edges, flow.graph.entries, flow.graph.dependencies) == ([], [], [])


@pytest.mark.parametrize("on", [None, 5, [5]])
def test_a_dependency_on_what_is_no_name_is_refused(on: Any):
    with pytest.raises(DefinitionError, match=r"set_dependency takes names of nodes, not (None|5)"):
        Workflow().add_node("a", nothing).set_dependency("a", on)


def test_building_calls_chain():
    flow = Workflow()
    built = flow.add_node("a", nothing).add_node("b", nothing).add_edge("a", "b").set_dependency("b", "a").set_entry_point("a")
    assert built is flow
    assert flow.add_map("m", nothing) is flow
    assert flow.add_parallel_group("a", "b") is flow


def test_a_parallel_group_of_unknown_nodes_is_refused():
    with pytest.raises(ValueError, match="'x' not found"):
        Workflow().add_node("a", nothing).add_parallel_group("a", "x")


async def test_entries_set_again_replace_the_former_ones():
    flow = Workflow().add_node("a", lambda: "a").add_node("b", lambda: "b").set_entry_point("a").set_entry_point("b")
    assert await flow.execute() == "b"


async def test_several_entries_start_together():
    flow = Workflow().add_node("a", lambda: 1).add_node("b", lambda: 2).set_entry_point("b", "a")
    assert await flow.execute() == {"a": 1, "b": 2}


def test_a_graph_without_an_entry_is_a_problem():
    flow = Workflow().add_node("a", nothing)
    assert not flow.validate()
    assert "entry point" in texts(flow)


def test_an_unknown_dependency_is_a_problem_with_a_hint():
    flow = Workflow().add_node("load", nothing).set_dependency("load", "lod").set_entry_point("load")
    assert "'lod' not found; did you mean 'load'" in texts(flow)


def test_an_unknown_fallback_is_a_problem_with_a_hint():
    flow = Workflow().add_node("spare", nothing).add_node("a", nothing, on_error="fallback", fallback="spar").set_entry_point("a")
    assert "'spar' not found; did you mean 'spare'" in texts(flow)


def test_a_fallback_that_is_missing_is_a_problem():
    assert "fallback" in texts(Workflow().add_node("a", nothing, on_error="fallback").set_entry_point("a"))


def test_a_map_cannot_be_a_fallback():
    flow = Workflow().add_map("m", nothing).add_node("a", nothing, on_error="fallback", fallback="m").set_entry_point("a")
    assert "is a map" in texts(flow)


def test_a_duplicate_edge_is_a_problem():
    flow = Workflow().add_node("a", nothing).add_node("b", nothing).add_edge("a", "b").add_edge("a", "b").set_entry_point("a")
    assert "Duplicate edge a -> b" in texts(flow)


def test_a_cycle_without_allow_cycles_is_drawn():
    flow = Workflow()
    for name in "ABC":
        flow.add_node(name, nothing)
    flow.add_edge("A", "B").add_edge("B", "C").add_edge("C", "A").set_entry_point("A")
    assert not flow.validate()
    assert "Cycle detected: A -> B -> C -> A" in texts(flow)
    flow.allow_cycles = True
    assert flow.validate()


def test_edges_and_dependencies_together_must_have_no_loop():
    flow = Workflow(allow_cycles=True).add_node("a", nothing).add_node("b", nothing).add_edge("a", "b")
    flow.set_dependency("a", "b").set_entry_point("a")
    assert "dependencies" in texts(flow)


def test_problems_note_which_edges_go_back():
    flow = Workflow(allow_cycles=True).add_node("a", nothing).add_node("b", nothing).add_edge("a", "b").add_edge("b", "a")
    flow.set_entry_point("a")
    assert flow.validate()
    assert ["b -> a goes back" in p.text for p in flow.problems()] == [True]


def test_an_unreachable_node_is_a_warning():
    flow = Workflow().add_node("a", nothing).add_node("island", nothing).set_entry_point("a")
    assert flow.validate()
    (problem,) = flow.problems()
    assert problem.warning
    assert "Unreachable nodes detected" in problem.text
    assert "island" in problem.text


async def test_a_warning_stops_nothing():
    flow = Workflow().add_node("a", lambda: "ran").add_node("island", nothing).set_entry_point("a")
    assert await flow.execute() == "ran"


def test_a_node_used_only_as_a_fallback_is_no_warning():
    flow = Workflow().add_node("a", nothing, on_error="fallback", fallback="spare").add_node("spare", nothing).set_entry_point("a")
    assert flow.problems() == []


def test_a_join_of_more_edges_than_there_are_is_a_problem():
    flow = Workflow().add_node("a", nothing).add_node("b", nothing, join=2).add_edge("a", "b").set_entry_point("a")
    assert "join=2" in texts(flow)


@pytest.mark.parametrize("join", [0, -1, True, "some", 1.5])
def test_a_join_that_is_none_is_refused(join: Any):
    with pytest.raises(ValueError, match="join"):
        Workflow().add_node("a", nothing, join=join)


async def test_an_invalid_graph_raises_all_its_problems_before_anything_runs_or_is_recorded():
    ran: list[int] = []
    flow = Workflow("broken", storage="memory://broken").add_node("a", lambda: ran.append(1)).add_node("b", nothing, join=3)
    flow.add_edge("a", "b").add_edge("a", "b").set_entry_point("a")
    with pytest.raises(InvalidGraph) as caught:
        await flow.execute(session_id="s")
    assert isinstance(caught.value, ValueError)
    assert "Duplicate edge" in str(caught.value)
    assert "join=3" in str(caught.value)
    assert {p.kind for p in caught.value.problems} == {"duplicate_edge", "join"}
    assert ran == []
    assert await Engine("memory://broken").runs() == []


@pytest.mark.parametrize("unknown", [{"on": "zz"}, {"fallback": "zz"}])
def test_an_unknown_name_hides_no_other_problem(unknown: dict[str, str]):
    policy: dict[str, Any] = {"on_error": "fallback", "fallback": "zz"} if "fallback" in unknown else {}
    flow = Workflow().add_node("a", nothing, **policy).add_node("b", nothing, join=5).add_node("lost", nothing)
    flow.add_edge("a", "b").add_edge("b", "a").set_dependency("b", unknown.get("on", [])).set_entry_point("a")
    assert [p.kind for p in flow.problems()] == ["unknown", "cycle", "join", "unreachable"]
    with pytest.raises(InvalidGraph, match=r"'zz' not found.*Cycle detected: a -> b -> a.*join=5"):
        flow.compiled()


def test_problems_besides_unknown_dependencies_are_those_of_the_known_ones():
    flow = Workflow().add_node("a", nothing).add_node("b", nothing).add_node("c", nothing).add_edge("a", "b")
    flow.set_dependency("a", ["zz", "b"]).set_dependency("zz", "a").set_dependency("c", "b").set_entry_point("a")
    assert [p.kind for p in flow.problems()] == ["unknown", "unknown", "dependency_cycle"]


async def test_a_graph_whose_only_problem_is_a_loop_raises_the_cycle_error():
    flow = Workflow().add_node("a", nothing).add_node("b", nothing).add_edge("a", "b").add_edge("b", "a").set_entry_point("a")
    with pytest.raises(WorkflowCycleError, match=r"A?a -> b -> a"):
        await flow.execute()


async def test_an_empty_workflow_cannot_run():
    with pytest.raises(InvalidGraph, match="entry point"):
        await Workflow().execute()


async def test_an_unknown_start_node_runs_and_records_nothing():
    ran: list[int] = []
    flow = Workflow("w", storage="memory://unknown-start").add_node("load", lambda: ran.append(1)).set_entry_point("load")
    with pytest.raises(ValueError, match="'lod' not found; did you mean 'load'"):
        await flow.execute(session_id="s", start_node="lod")
    assert ran == []
    assert await Engine("memory://unknown-start").runs() == []


def test_layers_follow_every_kind_of_edge():
    flow = Workflow()
    for name in "ABCDE":
        flow.add_node(name, nothing)
    flow.add_edge("A", "B").add_edge("A", "C").add_edge("B", "D").add_edge("C", "E").set_entry_point("A")
    assert flow.layers() == [{"A"}, {"B", "C"}, {"D", "E"}]
    assert flow.layers("C") == [{"C"}, {"E"}]
    flow.set_dependency("D", "E")
    assert flow.layers() == [{"A"}, {"B", "C"}, {"E"}, {"D"}]


def test_nodes_of_a_cycle_stay_in_the_layers():
    flow = Workflow(allow_cycles=True).add_node("a", nothing).add_node("b", nothing).add_edge("a", "b").add_edge("b", "a")
    assert flow.set_entry_point("a").layers() == [{"a"}, {"b"}]


@pytest.mark.slow
def test_a_hundred_thousand_chained_nodes_plan_in_seconds():
    flow = chain(100_000)
    begun = time.thread_time()  # not the wall's: other work on the machine is none of ours
    assert len(flow.layers()) == 100_000
    assert time.thread_time() - begun < 10


@pytest.mark.slow
async def test_a_chain_of_ten_thousand_nodes_runs_whatever_max_steps_says():
    assert await chain(10_000, max_steps=1).execute("through") == "through"


async def test_a_plain_chain_longer_than_max_steps_runs():
    assert await chain(101, max_steps=1).execute(1) == 1


def test_mermaid_draws_entries_conditions_and_names_with_special_characters():
    flow = Workflow().add_node('say "hi" <b>', nothing).add_node("b", nothing).add_edge('say "hi" <b>', "b", lambda ctx: True)
    drawn = flow.set_entry_point('say "hi" <b>').to_mermaid().splitlines()
    assert drawn[0] == "graph TD"
    assert drawn[1].strip() == 'n0(("say &quot;hi&quot; &lt;b&gt;"))'
    assert drawn[3].strip() == "n0 -->|condition| n1"


def test_print_structure_prints_the_diagram(capsys: pytest.CaptureFixture[str]):
    flow = Workflow().add_node("a", nothing).set_entry_point("a")
    flow.print_structure()
    assert capsys.readouterr().out.strip() == flow.to_mermaid()


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_strategy": "sometimes"},
        {"on_commit_failure": "shrug"},
        {"on_conflict": "maybe"},
        {"max_steps": -1},
        {"max_history_retention": -1},
        {"max_concurrency": 0},
        {"max_retries": -1},
        {"max_retries": True},
        {"reducers": {"k": "ad"}},
        {"reducers": {"k": 5}},
        {"reducers": {"k": "no.such.module:f"}},
    ],
)
def test_an_option_that_cannot_work_is_refused(options: dict[str, Any]):
    with pytest.raises(DefinitionError, match=next(iter(options)).removesuffix("s")):
        Workflow(**{"enable_retry": True, **options})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("checkpoint_strategy", "sometimes"),
        ("on_commit_failure", "shrug"),
        ("on_conflict", "maybe"),
        ("max_steps", -1),
        ("max_steps", "5"),
        ("max_history_retention", -1),
        ("max_concurrency", 0),
        ("executor", "rai"),
    ],
)
def test_an_option_that_cannot_work_is_refused_the_same_way_when_it_is_changed(option: str, value: Any):
    flow, options = Workflow(), {option: value}
    with pytest.raises(DefinitionError) as at_once:
        Workflow(**options)
    with pytest.raises(DefinitionError) as later:
        setattr(flow, option, value)
    assert str(later.value) == str(at_once.value)
    assert getattr(flow, option) == getattr(Workflow(), option)


async def test_an_option_that_is_changed_holds_from_the_next_run_on():
    def again(ctx: Context) -> Any:
        return Next("a") if len(seen := ctx.state.setdefault("seen", [])) < 3 and not seen.append(1) else list(ctx.history)

    flow = Workflow().add_node("a", again).set_entry_point("a")
    await flow.execute()
    flow.max_steps = 2
    with pytest.raises(StepLimitReached):
        await flow.execute()

    flow = chain(4).add_node("end", lambda ctx: list(ctx.history)).add_edge("n3", "end")
    assert await flow.execute() == ["n0", "n1", "n2", "n3"]
    flow.max_history_retention = 1
    assert await flow.execute() == ["n3"]

    flow = Workflow().add_node("a", lambda ctx: ctx.state.update(k=1)).add_node("b", lambda ctx: ctx.state.update(k=2))
    await flow.set_entry_point("a", "b").execute()
    flow.on_conflict = "error"
    with pytest.raises(StateConflict):
        await flow.execute()

    flow = Workflow().add_node("a", nothing).add_node("b", nothing).add_edge("a", "b").add_edge("b", "a").set_entry_point("a")
    assert not flow.validate()
    flow.allow_cycles = True
    assert flow.validate()


async def test_fewer_steps_run_at_once_after_max_concurrency_was_changed():
    now, most = 0, 0

    async def body() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    flow = Workflow()
    for name in "abc":
        flow.add_node(name, body)
    await flow.set_entry_point(*"abc").execute()
    assert most == 3
    flow.max_concurrency, most = 1, 0
    await flow.execute()
    assert most == 1


def test_options_are_as_promised_where_nobody_says_anything():
    flow = Workflow()
    assert (flow.name, flow.storage, flow.checkpoint_strategy, flow.on_commit_failure) == ("Workflow", None, "always", "stop")
    assert (flow.max_steps, flow.max_history_retention, flow.max_concurrency, flow.allow_cycles) == (100, 20, None, False)
    assert (flow.on_conflict, flow.event_bus, flow.executor) == ("warn", None, None)
    assert flow.add_node("a", nothing).graph.nodes["a"].policy.retry is None
    assert Workflow(enable_retry=True).add_node("a", nothing).graph.nodes["a"].policy.retry == Retry(attempts=4, delay=2.0)


def test_an_unknown_reducer_is_answered_with_the_nearest():
    with pytest.raises(DefinitionError, match="did you mean 'append'"):
        Workflow(reducers={"k": "apend"})


def test_a_strategy_is_an_enum_its_text_or_none():
    assert Workflow(checkpoint_strategy=CheckpointStrategy.FINAL).checkpoint_strategy is CheckpointStrategy.FINAL
    assert Workflow(checkpoint_strategy="manual").checkpoint_strategy is CheckpointStrategy.MANUAL
    assert Workflow(checkpoint_strategy=None).checkpoint_strategy is CheckpointStrategy.ALWAYS


@pytest.mark.parametrize(
    "policy",
    [
        {"timeout": -1},
        {"timeout": float("nan")},
        {"retry": 0},
        {"retry": "often"},
        {"on_error": "shrug"},
        {"max_concurrency": 0},
    ],
)
def test_a_policy_that_cannot_work_is_refused(policy: dict[str, Any]):
    with pytest.raises(ValueError, match=r"timeout|attempts|retry|on_error|max_concurrency"):
        Workflow().add_map("a", nothing, **policy)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("priority", value) for value in ("x", float("nan"), 1.5, True, None)),
        *(("timeout", value) for value in ("5", -1, float("nan"), 10**400, [1])),
        *(("retry", value) for value in ("x", 0, 1.5, float("nan"), True)),
        *(("executor", value) for value in (5, ["inline"])),
        *((name, value) for name in ("num_cpus", "num_gpus", "memory") for value in ("many", -1, float("nan"))),
        *(("resources", value) for value in ({"gpu": "x"}, {"gpu": float("nan")}, "gpu")),
        ("on_error", []), ("max_concurrency", "x"), ("max_concurrency", float("nan")), ("over", [1]),
    ],
)  # fmt: skip
def test_an_option_of_a_node_that_cannot_work_is_refused_by_node_and_name(option: str, value: Any):
    for add in [Workflow.add_map] if option in ("max_concurrency", "over") else [Workflow.add_node, Workflow.add_map]:
        with pytest.raises(DefinitionError, match=rf"^node 'a': {option}\b"):
            add(Workflow(), "a", nothing, **{option: value})


async def test_what_a_node_asks_of_ray_is_not_looked_at_in_process():
    assert await Workflow().add_node("a", nothing, memory=10**15, num_gpus=64).set_entry_point("a").execute(1, executor="inline") == 1


@pytest.mark.parametrize("condition", [5, "x > 1", True, object(), Workflow("w")])
def test_a_condition_that_cannot_be_called_is_refused(condition: Any):
    flow = Workflow().add_node("a", nothing).add_node("b", nothing)
    with pytest.raises(DefinitionError, match=r"^condition of edge 'a -> b': .* cannot be called: pass a function of the context$"):
        flow.add_edge("a", "b", condition=condition)


def test_what_else_is_no_condition_is_refused_as_one():
    def generates(ctx: Context) -> Any:
        yield True

    def asks_too_much(first: Any, second: Any) -> bool:
        return True

    for condition, why in ((Context, "is a class"), (generates, "return the verdict"), (asks_too_much, "'second'.* cannot be filled")):
        with pytest.raises(DefinitionError, match=rf"^condition of edge 'a -> b': .*{why}"):
            Workflow().add_node("a", nothing).add_node("b", nothing).add_edge("a", "b", condition=condition)


@pytest.mark.parametrize(
    "refused",
    [
        lambda flow: flow.add_node("a", nothing),
        lambda flow: flow.add_node("a/b", nothing),
        lambda flow: flow.add_node("b[0]", nothing),
        lambda flow: flow.add_node("last_output", nothing),
        lambda flow: flow.add_node("b", 7),
        lambda flow: flow.add_node("b", nothing, join=0),
        lambda flow: flow.add_node("b", nothing, retry=0),
        lambda flow: flow.add_node("b", nothing, retry=True),
        lambda flow: flow.add_node("b", nothing, timeout=-1),
        lambda flow: flow.add_node("b", nothing, timeout=True),
        lambda flow: flow.add_node("b", nothing, timeout="5s"),
        lambda flow: flow.add_node("b", nothing, timeout=Limits(node=-1)),
        lambda flow: flow.add_node("b", nothing, num_cpus=-1),
        lambda flow: flow.add_node("b", nothing, memory="1GB"),
        lambda flow: flow.add_node("b", nothing, resources=["gpu"]),
        lambda flow: flow.add_node("b", nothing, executor="cloud"),
        lambda flow: flow.add_map("b", nothing, max_concurrency=0),
        lambda flow: flow.add_edge("a", "zz"),
        lambda flow: flow.add_edge("zz", "a"),
        lambda flow: flow.add_edge("a", "a", 7),
        lambda flow: flow.set_entry_point("zz"),
        lambda flow: flow.add_parallel_group("zz"),
    ],
)
def test_whatever_building_refuses_is_a_definition_error_and_changes_nothing(refused: Any):
    flow = Workflow().add_node("a", nothing)
    with pytest.raises(DefinitionError):
        refused(flow)
    assert (list(flow.graph.nodes), flow.graph.edges) == (["a"], [])


@pytest.mark.parametrize("timeout", [-1, float("nan"), True, "5s", [1]])
async def test_a_limit_that_is_none_is_refused_by_the_name_of_its_option(timeout: Any):
    with pytest.raises(DefinitionError, match=r"node 'a': timeout must be a number of seconds, 0 or more, not "):
        Workflow().add_node("a", nothing, timeout=timeout)
    with pytest.raises(DefinitionError, match=r"^timeout must be a number of seconds"):
        await Workflow().add_node("a", nothing).set_entry_point("a").execute(timeout=timeout)


def test_a_workflow_cannot_contain_itself():
    inner = Workflow("inner")
    outer = Workflow("outer").add_node("inner", inner)
    with pytest.raises(DefinitionError, match="cannot contain itself"):
        inner.add_node("outer", outer)


def test_problems_of_an_inner_workflow_are_the_outer_ones():
    outer = Workflow("outer").add_node("inner", Workflow("inner").add_node("a", nothing)).set_entry_point("inner")
    assert not outer.validate()
    assert "in node 'inner': No entry point" in texts(outer)


def test_the_public_names_are_there():
    assert engine.WorkflowContext is engine.Context
    assert isinstance(engine.__version__, str)
    assert set(CheckpointStrategy) == {"always", "async", "final", "manual"}
    assert all(getattr(engine, name) is not None for name in engine.__all__)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = engine.nonsense


async def test_execute_parallel_is_an_alias():
    assert await Workflow().add_node("a", nothing).set_entry_point("a").execute_parallel(3) == 3


def test_an_unknown_executor_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r"executor 'inlin' not found; did you mean 'inline'"):
        Workflow(executor="inlin")
    with pytest.raises(ConfigurationError, match=r"'inlin' not found; did you mean 'inline'"):
        Workflow().add_node("a", nothing, executor="inlin")
    with pytest.raises(ConfigurationError, match=r"'rai' not found; did you mean 'ray'"):
        Workflow().add_map("a", nothing, executor="rai")


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        *(({name: amount}, f"{name} must be a number, 0 or more") for name in ("num_cpus", "num_gpus", "memory")
          for amount in (-1, -0.5, float("nan"), float("inf"), True, "two")),
        *(({"resources": {"probe": amount}}, "resources['probe'] must be a number, 0 or more") for amount in (-1, float("nan"), True, "1")),
        ({"num_gpus": 1.5}, "num_gpus must be a whole number where it is above 1, not 1.5"),
        ({"resources": {"probe": 1.5}}, "resources['probe'] must be a whole number where it is above 1, not 1.5"),
        ({"num_cpus": 0.00001}, "num_cpus must be 0 or at least 0.0001"),
        ({"memory": 0.5}, "memory must be a whole number of bytes, 1 or more, not 0.5"),
        ({"memory": 0}, "memory must be a whole number of bytes, 1 or more, not 0"),
        ({"memory": 1e6 + 0.5}, "memory must be a whole number where it is above 1"),
        ({"resources": {"CPU": 1}}, "must not name 'CPU', which is Ray's own: num_cpus=... says it"),
        ({"resources": {"GPU": 1}}, "num_gpus=... says it"),
        ({"resources": {"memory": 1}}, "memory=... says it"),
        ({"resources": {"object_store_memory": 1}}, "must not name 'object_store_memory'"),
        ({"resources": {"node:10.0.0.1": 1}}, "must not name 'node:10.0.0.1'"),
        ({"resources": {"": 1}}, "must have names that are text, not ''"),
        ({"resources": {1: 1}}, "must have names that are text, not 1"),
        ({"resources": ["probe"]}, "resources must be a mapping"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("add", [Workflow.add_node, Workflow.add_map])
def test_resources_that_ray_would_refuse_are_refused_when_the_node_is_added(add: Any, asked: dict[str, Any], told: str):
    with pytest.raises(DefinitionError, match=re.escape("node 'a': ") + ".*" + re.escape(told)):
        add(Workflow(), "a", nothing, **asked)


def test_resources_are_those_of_the_moment_when_the_node_was_added():
    asked = {"probe": 1}
    flow = Workflow().add_node("a", nothing, num_cpus=1.5, num_gpus=0.5, memory=1e6, resources=asked)
    asked["probe"] = 2
    assert dict(flow.graph.nodes["a"].policy.resources.custom) == {"probe": 1}
