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
