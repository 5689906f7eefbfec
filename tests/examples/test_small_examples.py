"""The small examples and the README's second program, each run as a user runs it, in processes of their own."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SMALL = ("resume", "loop_and_jump", "reducers", "read_the_log")


def run(root: Path, program: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(root), "TMPDIR": str(Path.cwd())}  # the folder of the test
    return subprocess.run([sys.executable, program, *words], env=environment, capture_output=True, text=True, check=False)


def lines_of(root: Path, name: str) -> list[str]:
    """What an example prints; it has to end well."""
    done = run(root, root / "examples" / f"{name}.py")
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", SMALL)
def test_a_small_example_is_short(root: Path, name: str) -> None:
    assert len((root / "examples" / f"{name}.py").read_text().splitlines()) <= 60


def test_resume_pays_once_in_two_lives(root: Path) -> None:
    printed = lines_of(root, "resume")
    second = printed.index("Second life:")
    assert printed[:second] == [
        "First life:",
        "  pricing tea and cups",
        "  charging",
        "  paying 7 with the key shop.order-17.1/charge/1",
        "  killed",
    ]
    assert printed[second + 1 :] == ["  charging", "  shipping", "on its way, with a receipt for 7"]


def test_loop_and_jump_goes_back_until_every_root_is_good(root: Path) -> None:
    passes, roots = lines_of(root, "loop_and_jump")
    assert roots == "roots: {2: 1.414214, 3: 1.732051, 4: 2.0, 5: 2.236068}"
    assert passes.startswith("passes: begin/1 improve/1 improve/2 ")
    assert len(re.findall(r"keep/\d+ improve/", passes)) == 3, "three jumps, from the root of 2 to that of 5"
    assert re.search(r" keep/\d+$", passes)


def test_reducers_combine_what_all_steps_wrote(root: Path) -> None:
    assert lines_of(root, "reducers") == [
        "words:    16",
        "lines:    all, in order",
        "initials: a b c d g m r s t u w",
        "longest:  chickens",
        "lengths:  1 of 1, 1 of 2, 2 of 3, 4 of 4, 3 of 5, 3 of 6, 1 of 7, 1 of 8",
        "newest:   beside the white chickens - the last in order, and a conflict among read[0] read[1] read[2] read[3]",
    ]


def test_read_the_log_asks_in_sql_and_in_polars(root: Path) -> None:
    pytest.importorskip("duckdb")
    pytest.importorskip("polars")
    printed = "\n".join(lines_of(root, "read_the_log"))
    # 30 runs: a start, an end, two steps that start and succeed, and 22 attempts that failed
    assert printed.startswith("202 events.")
    assert re.search(r"│ send +│ +30 │ +3 │", printed)
    assert re.search(r"│ weigh +│ +30 │ +1 │", printed)
    assert re.search(r"ConnectionError: no answer +┆ 22 ", printed)


def test_the_killed_program_of_the_readme_prints_what_the_readme_says(root: Path, tmp_path: Path) -> None:
    _, _, text = (root / "README.md").read_text().partition("## Killed in the middle")
    program, session = re.findall(r"^```(?:python|console)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)[:2]
    (tmp_path / "note.py").write_text(program)
    commands = re.findall(r"^\$ python note\.py ?(.*)\n((?:[^$].*\n)*)", session, re.MULTILINE)
    assert len(commands) == 2
    for words, shown in commands:
        done = run(root, tmp_path / "note.py", *words.split())
        killed = "Killed\n" if done.returncode == -signal.SIGKILL else ""  # says the shell
        assert done.stdout + killed == shown, done.stderr
    again = run(root, tmp_path / "note.py")
    assert again.stdout == "A note on geckos. Checked.\n"
    assert "new=True" in again.stderr
    environment = os.environ | {"PYTHONPATH": str(root)}
    resume = [sys.executable, "-m", "serve.start", "runs", "resume", "first", "note.py:flow"]
    done = subprocess.run(resume, env=environment, capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert (done.returncode, done.stdout) == (0, '"A note on geckos. Checked."\n'), done.stderr
