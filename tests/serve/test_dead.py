"""Dead letters: found without anybody having indexed their runs, shown with what they were given, replayed once, dropped."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cluster.client import Cluster
from cluster.remote_fleet import end, find
from engine import Engine, Retry, Workflow
from engine.errors import GeckoError, OutOfMemory, UnknownName, WrongState
from engine.records import LetterQuery
from serve.dead import DeadLetters
from tests.cluster.test_dispatch import drive
from tests.cluster.test_losses import Starved
from tests.serve.conftest import Gecko

FLOW = (
    "import pathlib\n"
    "from engine import Retry, Workflow\n"
    "def first(x): return [x, 0]\n"
    "def divide(x):\n"
    "    return 1 / x if not pathlib.Path(__file__).with_name('mended').exists() else 'mended'\n"
    "flow = (Workflow('dead').add_node('first', first).add_map('divide', divide, retry=Retry(attempts=2, delay=0))\n"
    "        .add_edge('first', 'divide').set_entry_point('first'))\n"
)


@pytest.fixture
def failed(gecko: Gecko) -> dict[str, Any]:
    """Execute a workflow whose second item fails twice, and give its dead letter."""
    Path("dead.py").write_text(FLOW)
    assert gecko("run", "dead.py:flow", "--session", "s", "--input", "4").status == 1
    (letter,) = json.loads(gecko("dead", "list", "--json").out)
    return letter


def test_a_step_whose_attempts_are_used_up_is_listed(gecko: Gecko, failed: dict[str, Any]):
    assert (failed["step_id"], failed["node"], failed["attempts"], failed["status"]) == ("dead.s.1/divide/1/1", "divide", 2, "open")
    assert [error["type"] for error in failed["errors"]] == ["ZeroDivisionError"] * 2
    listed = gecko("dead", "list").out
    assert all(text in listed for text in (failed["id"], "dead.s.1/divide/1/1", "ZeroDivisionError: division by zero"))
    for words, count in (
        (("--workflow", "dead"), 1), (("--workflow", "x"), 0), (("--node", "divide"), 1), (("--node", "first"), 0),
        (("--status", "open"), 1), (("--status", "dropped"), 0), (("--status", "all"), 1), (("--limit", "1"), 1),
    ):  # fmt: skip
        assert len(json.loads(gecko("dead", "list", *words, "--json").out)) == count, words
    assert "no dead letters like that" in gecko("dead", "list", "--workflow", "x").err
    assert gecko("dead", "list", "--status", "lost").status == 2
    gecko("run", "dead.py:flow", "--session", "t", "--input", "4")
    assert "1 more dead letter: --limit shows more of all 2" in gecko("dead", "list", "--limit", "1").err


def test_a_letter_is_shown_with_its_input_errors_and_the_steps_of_its_run(gecko: Gecko, failed: dict[str, Any]):
    told = json.loads(gecko("dead", "show", failed["id"][:6], "--json").out)
    target = f"{Path('dead.py').absolute()}:flow"
    assert (told["input"], told["input_known"], told["run_status"], told["target"]) == (0, True, "failed", target)
    assert [(step["step"], step["status"]) for step in told["history"]] == [("first/1", "success"), ("divide/1", "failed")]
    shown = gecko("dead", "show", failed["id"]).out
    assert shown.count("ZeroDivisionError: division by zero") == 4
    assert "attempt 2, " in shown
    assert "return 1 / x" in shown
    assert "input     0\n" in shown
    assert "divide/1" in shown


def test_a_letter_is_known_by_a_unique_beginning(gecko: Gecko, failed: dict[str, Any]):
    for name, told in (("zzz", "there is no dead letter 'zzz'"), ("", "there is no dead letter ''")):
        done = gecko("dead", "show", name)
        assert (done.status, told in done.err) == (2, True)


@pytest.mark.anyio
async def test_a_beginning_of_several_letters_names_some(tmp_path: Path):
    flow = Workflow("many", storage=str(tmp_path / "runs")).add_node("a", lambda x: 1 / x).set_entry_point("a")
    for number in range(17):  # one more than there are digits to begin with
        with pytest.raises(GeckoError):
            await flow.execute(0, session_id=str(number))
    letters = DeadLetters(Engine(tmp_path / "runs"))
    ids = [letter.id for letter in (await letters.list(LetterQuery(limit=100))).items]
    twice = next(first for first in (id[0] for id in ids) if sum(id.startswith(first) for id in ids) > 1)
    with pytest.raises(UnknownName, match="is the beginning of"):
        await letters.find(twice)


def test_a_letter_is_dropped_and_its_run_stays_as_it_is(gecko: Gecko, failed: dict[str, Any]):
    for _ in range(2):
        assert json.loads(gecko("dead", "drop", failed["id"], "--json").out) == {"id": failed["id"], "status": "dropped"}
    assert json.loads(gecko("dead", "list", "--json").out) == []
    assert [letter["id"] for letter in json.loads(gecko("dead", "list", "--status", "dropped", "--json").out)] == [failed["id"]]
    assert "failed" in gecko("runs", "list").out


def test_a_script_s_run_is_replayed_by_resuming_it(gecko: Gecko, failed: dict[str, Any]):
    done = gecko("dead", "replay", failed["id"])
    assert (done.status, "gecko runs resume dead.s.1 goes on with it here" in done.err) == (2, True)
    Path("mended").touch()
    assert json.loads(gecko("runs", "resume", "s").out) == [0.25, "mended"]
    assert json.loads(gecko("dead", "list", "--json").out) == []
    told = json.loads(gecko("dead", "replay", failed["id"], "--json").out)
    assert told == {"id": failed["id"], "status": "replayed", "run_id": "dead.s.1", "run_status": "completed", "done": True}
    assert "was replayed in run dead.s.1, which is completed" in gecko("dead", "replay", failed["id"]).err
    assert gecko("dead", "drop", failed["id"]).status == 2
    assert "replayed  in run dead.s.1" in gecko("dead", "show", failed["id"]).out


@pytest.mark.anyio
async def test_a_replay_that_fails_again_leaves_the_letter_open_and_one_that_does_not_marks_it(tmp_path: Path):
    broken = [True]

    def body(x: Any) -> Any:
        if broken:
            raise ValueError("not yet")
        return x

    engine = Engine(tmp_path / "runs")
    flow = Workflow("again").add_node("a", body).set_entry_point("a")

    async def retry(run: str, *, accept: bool = False) -> tuple[str, str]:
        handle = await engine.resume(run, flow=flow, accept=accept)
        with nullcontext() if not broken else pytest.raises(GeckoError):
            await handle.wait()
        return handle.run_id, handle.status

    handle = await engine.start(flow, 1, session_id="s")
    with pytest.raises(GeckoError):
        await handle.wait()
    letters = DeadLetters(engine, retry=retry)
    (first,) = (await letters.list(LetterQuery())).items
    await letters.drop(first.id)
    assert (await letters.replay(first.id)).run_status == "failed"
    (letter,) = (await letters.list(LetterQuery())).items
    assert (letter.id, letter.created_at > first.created_at, len(letter.errors)) == (first.id, True, 2)
    broken.clear()
    assert (await letters.replay(first.id)).run_status == "completed"
    for _ in range(2):
        again = await letters.replay(first.id)
        assert (again.done, again.letter.status, again.letter.replay_run_id) == (True, "replayed", "again.s.1")
    with pytest.raises(WrongState):
        await letters.drop(first.id)


@pytest.mark.anyio
async def test_a_step_that_was_ended_for_its_memory_is_a_letter_with_a_class_of_its_own(tmp_path: Path):
    run = await drive(Starved(), Workflow("large").add_node("a", lambda x: x).set_entry_point("a"), 7, tmp_path / "runs")
    await run.wait()
    letters = DeadLetters(Engine(tmp_path / "runs"))
    (letter,) = (await letters.list(LetterQuery())).items
    assert [error.type for error in letter.errors] == [OutOfMemory.__name__] * 3
    assert (await letters.report(letter.id)).input == 7


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.anyio
async def test_the_cluster_goes_on_with_a_letter_whose_cause_is_mended(ray_cluster, tmp_path: Path):
    mended = tmp_path / "mended"

    def body(x: Any) -> Any:
        if not mended.exists():
            raise ValueError("not yet")
        return x

    cluster = Cluster(f"file://{tmp_path}/runs")
    try:
        flow = Workflow("letters").add_node("a", body, retry=Retry(attempts=2, delay=0)).set_entry_point("a")
        handle = await cluster.submit(flow, 3, session_id="s")
        with pytest.raises(GeckoError):
            await handle.wait()
        letters = DeadLetters(Engine(tmp_path / "runs"))
        (letter,) = (await letters.list(LetterQuery())).items
        assert (letter.step_id, letter.attempts) == ("letters.s.1/a/1", 2)
        mended.touch()
        asked = await letters.replay(letter.id)
        assert (asked.run_id, asked.done) == ("letters.s.1", False)
        assert await cluster.wait("letters.s.1") == "completed"
        assert await cluster.handle("letters.s.1").wait() == 3
        again = await letters.replay(letter.id)
        assert (again.done, again.letter.status, again.letter.replay_run_id) == (True, "replayed", "letters.s.1")
        figures = await cluster.totals()
        assert (figures["ExecutionsStarted"], figures["ExecutionsFailed"], figures["ExecutionsCompleted"]) == (1, 1, 1)
    finally:
        for name in find("gecko-"):
            end(name)
