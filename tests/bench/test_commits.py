"""What a commit consists of: every stage is seen, and nothing stays patched."""

import asyncio
from pathlib import Path

import engine.checkpoint.intake
from bench.bodies import pass_on
from bench.commits import PAUSES, STAGES, after_pauses, by_stage
from bench.shapes import chain
from engine.runtime.ledger import Ledger
from engine.store.files import FilePlace


def test_every_stage_of_a_commit_is_told(tmp_path: Path):
    before = (Ledger.commit, Ledger.tell, FilePlace.write, FilePlace.sync, engine.checkpoint.intake._resolve)
    flow = chain(pass_on, 5, storage=tmp_path)
    said = by_stage(lambda: asyncio.run(flow.execute(session_id="s"))).splitlines()
    assert said[0].startswith("median us of 4 commits"), "the last step's success goes with the end of the run"
    assert [line[10:] for line in said[1:]] == [*(text for _, _, text in STAGES), "together"]
    stages = [float(line[:8]) for line in said[1:]]
    assert min(stages) > 0
    assert (Ledger.commit, Ledger.tell, FilePlace.write, FilePlace.sync, engine.checkpoint.intake._resolve) == before


def test_work_without_commits_is_told_as_such():
    assert by_stage(lambda: asyncio.run(chain(pass_on, 2).execute())) == "no commit was seen"


def test_a_bare_append_is_measured_after_each_pause_and_leaves_no_file(tmp_path: Path):
    said = after_pauses(tmp_path / "bare", rounds=2)
    assert [line.split(", ", 1)[1] for line in said.splitlines()] == list(PAUSES)
    assert list(tmp_path.iterdir()) == []
