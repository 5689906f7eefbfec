"""What `gecko init` writes runs, and its test passes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.conftest import Gecko


def test_a_new_project_runs(gecko: Gecko):
    done = gecko("init", "fresh")
    assert (done.status, sorted(path.name for path in Path("fresh").iterdir())) == (0, [".gitignore", "flow.py", "test_flow.py"])
    done = gecko("run", "fresh/flow.py:flow", "--input", '"One fish. Two fish."')
    assert done.out == '{"sentences":2,"words":4,"most common":["fish","one","two"]}\n'
    assert gecko("validate", "fresh/flow.py").status == 0


def test_files_that_are_there_are_left_alone(gecko: Gecko):
    Path("test_flow.py").write_text("mine")
    assert gecko("init").status == 2
    assert [path.name for path in Path().iterdir()] == ["test_flow.py"]
    assert Path("test_flow.py").read_text() == "mine"


@pytest.mark.slow
def test_the_test_of_a_new_project_passes(gecko: Gecko, root: Path):
    gecko("init", "fresh")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "fresh"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
