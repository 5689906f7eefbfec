"""The examples of teams, each run as a user runs it, in processes of their own; what they say is checked against what they ask."""

import importlib.util
import json
import os
import random
import re
import subprocess
import sys
import xml.etree.ElementTree as xml
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow
TEAMS = ("panel", "hedged", "vote")
GECKO = ("-m", "serve.start")


def run(root: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python in the folder of the test; it has to end well."""
    environment = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def load(root: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_by_path", root / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", TEAMS)
def test_an_example_of_a_team_is_short_and_valid(root: Path, name: str) -> None:
    assert len((root / "examples" / f"{name}.py").read_text().splitlines()) <= 60
    assert load(root, name).flow.problems() == []


def test_the_panel_keeps_what_was_found_and_names_who_failed(root: Path) -> None:
    said = run(root, root / "examples" / "panel.py")
    found, failed = said.stdout.split("failed:\n")
    assert re.findall(r"^ *(\w+): \S", found, re.MULTILINE) == ["wide", "parses", "longest"]
    assert "parses: it parses without a warning\n" in found
    assert "longest: _mdiff is the longest function" in found
    assert re.findall(r"^ *(\w+): (\w+)", failed, re.MULTILINE) == [("model", "URLError"), ("repetition", "step")]
    assert "timed out after 1 s" in failed


def test_the_panel_asks_nobody_twice_about_the_same_file(root: Path) -> None:
    first = run(root, root / "examples" / "panel.py")
    again = run(root, root / "examples" / "panel.py")
    assert again.stdout == first.stdout
    assert "had finished" in again.stderr
    assert re.findall(r"review\.\S+", run(root, *GECKO, "runs", "list").stdout) == ["review.difflib.1"]


def test_the_panel_reads_a_file_of_ones_own_by_the_command(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def first():\n    return '\\d'\n\n\ndef second(): pass\n")
    done = run(root, *GECKO, "run", f"{root}/examples/panel.py:flow", "--input", json.dumps(str(file)))
    verdict = json.loads(done.stdout)
    assert verdict["found"] == {
        "wide": "0 lines are wider than 79 characters",
        "parses": verdict["found"]["parses"],
        "longest": "first is the longest function, with 2 lines",
        "repetition": "0 pairs of lines are alike",  # which a file of this size leaves time for
    }
    assert "SyntaxError" in verdict["found"]["parses"]
    assert list(verdict["failed"]) == ["model"]


def is_slow(number: int, member: int) -> bool:
    """Tell whether the service of the hedged calls is slow to answer this request."""
    return random.Random(f"/{number}/{member}").random() < 0.05


def test_hedged_calls_tell_their_tails_and_draw_a_picture(root: Path) -> None:
    plain, hedged, drawn = run(root, root / "examples" / "hedged.py").stdout.splitlines()
    tail = {way: int(ms) for way, ms in re.findall(r"(\w+): .* p99 (\d+) ms", f"{plain}\n{hedged}")}
    assert tail.keys() == {"plain", "hedged"}  # which is shorter depends on the machine too: the next test counts instead
    assert tail["plain"] >= 300, "one in twenty of the service's answers takes that long"
    picture = Path(drawn.removeprefix("drawn into "))
    assert picture == Path.cwd() / "report" / "hedged.svg"
    drawing = xml.fromstring(picture.read_text())
    colours = Counter(circle.get("fill") for circle in drawing.iter("{http://www.w3.org/2000/svg}circle"))
    assert sorted(colours.values()) == [400, 400]
    assert {plain, hedged} <= {text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")}


@pytest.mark.anyio
async def test_only_a_late_call_is_asked_for_twice_and_its_slow_request_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load(root, "hedged")
    asked: Counter[tuple[int, int]] = Counter()
    answered: Counter[tuple[int, int]] = Counter()
    call = example.call

    async def noted(url: str) -> str:
        number, member = map(int, url.split("/")[-2:])
        asked[number, member] += 1
        answer = await call(url)
        answered[number, member] += 1
        return answer

    monkeypatch.setattr(example, "call", noted)
    monkeypatch.setattr(example, "CALLS", 120)
    plain, hedged = (await example.measure()).values()
    late = [number for number in range(120) if is_slow(number, 0)]
    saved = [number for number in late if not is_slow(number, 1)]
    assert len(plain) == len(hedged) == 120
    assert len(saved) >= 3, "or this shows nothing"
    assert all(asked[number, 0] == 2 for number in range(120)), "once plainly and once hedged"
    assert all(asked[number, 1] == 1 for number in late)
    assert sum(member for _, member in asked) < 100, "most of the others are asked for once, also on a busy machine"
    given_up = [number for number in saved if answered[number, 1] == 1 and answered[number, 0] == 1]  # the one answer is the plain call's
    assert len(given_up) > len(saved) / 2
    assert all(plain[number] >= 300 for number in late)
    assert all(hedged[number] < plain[number] for number in given_up)


def test_the_vote_is_right_more_often_than_any_voter(root: Path) -> None:
    printed = run(root, root / "examples" / "vote.py").stdout.splitlines()
    right = {name: int(count) for name, count in re.findall(r"^ *(.+): +(\d+) of 16 #+$", "\n".join(printed), re.MULTILINE)}
    vote = right.pop("the vote")
    assert list(right) == ["words", "letters", "endings", "pairs", "beginnings"]
    assert max(right.values()) < vote < 16
    _, *first_two = printed[-1].split()
    assert len(first_two) == 2
    assert set(first_two) <= {"German", "English", "French", "Spanish"}


async def answers_of(rule: Any, sentence: str) -> list[str]:
    """Return what a rule says of a sentence; nothing where it is undecided."""
    try:
        return [await rule.run(sentence)]
    except LookupError:
        return []


@pytest.mark.anyio
async def test_each_vote_is_the_most_frequent_answer_of_the_voters_that_answer(root: Path) -> None:
    example = load(root, "vote")

    said = [[answer for rule in example.RULES for answer in await answers_of(rule, sentence)] for sentence in example.SENTENCES]
    expected = [max(each, key=each.count) for each in said]  # max takes the first of the most, as VOTE does
    answer = await example.flow.execute()
    right = [vote == language for vote, language in zip(expected, example.SENTENCES.values(), strict=True)]
    assert answer["the vote"] == sum(right)
    for rule in example.RULES:
        known = [language in await answers_of(rule, sentence) for sentence, language in example.SENTENCES.items()]
        assert answer[rule.name] == sum(known)
