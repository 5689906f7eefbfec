"""The documents are true: their programs run, their links lead somewhere, and no file names a place of one machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
# Home folders, work folders and drives; written so that this file does not hold what it looks for.
MACHINE = re.compile(r"(?<![\w.$~/:-])/(?:home|Users|root|work|mnt|srv)/[\w.-]+|\b[A-Z]:\\\\?Users\b")
TEXT = {"", ".md", ".py", ".toml", ".txt", ".lock", ".yaml", ".yml", ".json", ".cfg", ".ipynb", ".html", ".svg"}


def tracked(root: Path) -> list[Path]:
    """The files of the checkout that git holds or would hold."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [root / name for name in done.stdout.split("\0") if name and (root / name).is_file()]


def anchor(heading: str) -> str:
    """The name by which a link reaches a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def broken_links(document: Path) -> list[str]:
    """The relative links of a document that lead nowhere."""
    broken = []
    for plain, picture in LINK.findall(re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL)):
        link = plain or picture
        if re.match(r"[a-z]+:", link):
            continue
        path, _, part = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (part and target.suffix == ".md" and part not in map(anchor, HEADING.findall(target.read_text()))):
            broken.append(link)
    return broken


def test_every_relative_link_leads_somewhere(root: Path):
    found = {file.name: broken_links(file) for file in tracked(root) if file.suffix == ".md"}
    assert {name: links for name, links in found.items() if links} == {}


def test_no_file_names_a_place_of_one_machine(root: Path):
    found = []
    for file in tracked(root):
        if file.suffix in TEXT:
            for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
                found += [f"{file.relative_to(root)}:{number}: {match}" for match in MACHINE.findall(line)]
    assert found == []


def test_the_lock_names_no_place_to_fetch_from(root: Path):
    lines = (root / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if line.startswith("-") or "://" in line or " @ " in line] == []


def test_the_readme_has_at_most_150_lines(root: Path):
    assert len((root / "README.md").read_text().splitlines()) <= 150


@pytest.mark.slow
@pytest.mark.parametrize("document", ["README.md", "docs/operating.md", "docs/records.md", "docs/submitting.md", "docs/teams.md"])
def test_the_programs_of_the_documents_run(root: Path, tmp_path: Path, document: str):
    """Each is run as a file of its own in one folder, in order, so that a later one may go on with what an earlier one recorded."""
    programs = FENCE.findall((root / document).read_text())
    assert programs
    for number, program in enumerate(programs, 1):
        script = tmp_path / f"readme_{number}.py"
        script.write_text(program)
        environment = os.environ | {"PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, script.name], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"program {number} of {document}:\n{program}\n{done.stderr}"
