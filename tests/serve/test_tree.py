"""The tree of a run fits its terminal, whatever the size of the workflow, and shows what needs eyes."""

from datetime import UTC, datetime

import pytest
from rich.console import Console

from engine.core.events import Event
from engine.observe.progress import Progress
from serve.tree import tree_of


def event(seq: int, kind: str, node: str = "", step: str = "", **data: object) -> Event:
    return Event("r", seq, datetime.fromtimestamp(1000 + seq, UTC), kind, node, f"r/{step}" if step else "", 1, data)


def drawn(progress: Progress, layers: list[list[str]], *, height: int = 24) -> list[str]:
    console = Console(width=100, color_system=None)
    with console.capture() as captured:
        console.print(tree_of(progress, layers, "name", 1010.0, height), no_wrap=True, overflow="ellipsis", crop=True)
    return captured.get().splitlines()


def raced(first: int, node: str, step: str, *members: str) -> list[Event]:
    """A race that the first of its members won, the others running."""
    number = iter(range(first, 10**6))
    started = [event(next(number), "step_started", node, f"{step}/{i}", member=name) for i, name in enumerate(members)]
    won = [event(next(number), "step_succeeded", node, f"{step}/0", duration=0.012), event(next(number), "member_won", node, f"{step}/0")]
    lost = {"reason": "stopped, since the team had its answer", "stopped_after": 0.014}
    return started + won + [event(next(number), "member_lost", node, f"{step}/{i}", **lost) for i in range(1, len(members))]


def test_the_members_of_a_team_are_shown_under_its_node_and_in_a_sub_workflow_under_theirs():
    progress = Progress(["t", "s"])
    for each in [
        event(1, "run_started"),
        event(2, "step_started", "t", "t/1", members=2),
        *raced(3, "t", "t/1", "fast", "slow"),
        event(10, "step_succeeded", "t", "t/1", duration=0.02, answer=[0]),
        event(11, "step_started", "s", "s/1"),
        event(12, "step_started", "s/in", "s/1/0", members=2),
        *raced(13, "s/in", "s/1/0", "quick", "late"),
        event(20, "step_succeeded", "s/in", "s/1/0", duration=0.02, answer=[0]),
        event(21, "step_succeeded", "s", "s/1", duration=0.03),
        event(22, "run_completed", finished=5),
    ]:
        progress.take(each)
    assert [line.rstrip() for line in drawn(progress, [["t"], ["s"]])] == [
        "name  completed  21.0 s",
        "\u251c\u2500\u2500 \u2713 t  20 ms  1 won, 1 lost",
        "\u2502   \u251c\u2500\u2500 \u2713 [0] fast  won after 12 ms",
        "\u2502   \u2514\u2500\u2500 \u2212 [1] slow  lost, stopped after 14 ms",
        "\u2514\u2500\u2500 \u2713 s  30 ms",
        "    \u2514\u2500\u2500 \u2713 in  20 ms  1 won, 1 lost",
        "        \u251c\u2500\u2500 \u2713 [0] quick  won after 12 ms",
        "        \u2514\u2500\u2500 \u2212 [1] late  lost, stopped after 14 ms",
    ]


@pytest.mark.parametrize("height", [8, 12, 24, 50])
def test_teams_fit_the_height_and_of_a_large_one_the_winner_and_the_count_are_shown(height: int):
    layers = [[f"n{i}"] for i in range(30)]
    progress = Progress(node for layer in layers for node in layer)
    progress.take(event(1, "run_started"))
    for i in range(20):
        progress.take(event(i + 2, "step_started", f"n{i}", f"n{i}/1", members=100))
        for each in raced(100 + 300 * i, f"n{i}", f"n{i}/1", *(f"m{j}" for j in range(100))):
            progress.take(each)
    lines = drawn(progress, layers, height=height)
    assert len(lines) <= height
    assert any("... of 100: 1 won, 99 lost" in line for line in lines)
    assert height < 24 or any("m0  won after 12 ms" in line for line in lines)


def test_a_map_of_teams_counts_the_members_of_its_items():
    progress = Progress(["m"])
    progress.take(event(1, "run_started"))
    progress.take(event(2, "step_started", "m", "m/1", items=3))
    for i in range(3):
        for each in raced(10 + 10 * i, "m", f"m/1/{i}", "fast", "slow"):
            progress.take(each)
    progress.take(event(50, "step_succeeded", "m", "m/1/0", answer=[0]))
    (line,) = [line for line in drawn(progress, [["m"]]) if " m " in line]
    assert "1/3" in line
    assert line.rstrip().endswith("members: 3 won, 3 lost")


def test_a_small_run_is_shown_whole():
    layers = [["a"], ["m", "b"], ["z"]]
    progress = Progress(node for layer in layers for node in layer)
    for each in [
        event(1, "run_started"),
        event(2, "step_started", "a", "a/1"),
        event(3, "step_succeeded", "a", "a/1", duration=0.5),
        event(4, "step_started", "m", "m/1", items=4),
        event(5, "step_succeeded", "m", "m/1/0"),
        event(6, "step_started", "b", "b/1"),
        event(7, "step_started", "b/in", "b/1/0"),
    ]:
        progress.take(each)
    text = "\n".join(drawn(progress, layers))
    assert "name  running  9.0 s" in text
    assert "\u2713 a  500 ms" in text
    assert "layer 2" in text
    assert "1/4" in text
    assert "\u25cf in" in text
    assert "\u00b7 z" in text


@pytest.mark.parametrize("height", [8, 24, 50])
def test_a_large_run_fits_its_height(height: int):
    layers = [[f"n{i}"] for i in range(500)] + [[f"w{i}" for i in range(1000)]] + [[f"t{i}"] for i in range(500)]
    progress = Progress(node for layer in layers for node in layer)
    progress.take(event(1, "run_started"))
    for i in range(250):
        progress.take(event(2 + i, "step_succeeded", f"n{i}", f"n{i}/1", duration=0.1))
    lines = drawn(progress, layers, height=height)
    assert len(lines) <= height
    assert any("n250" in line for line in lines)
    for i in range(250, 500):
        progress.take(event(2 + i, "step_succeeded", f"n{i}", f"n{i}/1", duration=0.1))
    progress.take(event(600, "step_started", "w700", "w700/1"))
    lines = drawn(progress, layers, height=height)
    assert len(lines) <= height
    assert any("w700" in line for line in lines)
    assert any("500 nodes of the first 500 layers" in line for line in lines)
