"""Importing the library is cheap, and loads nothing that only some users need."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ["ray", "litellm", "lancedb", "pyarrow", "numpy", "pandas", "fastapi", "uvicorn", "typer", "rich", "sqlalchemy"]
BUDGET = 0.25  # seconds, as the bar called import says

PROBE = """
import json, sys, time
before = set(sys.modules)
began = time.process_time()
import engine
{body}
took = time.process_time() - began
print(json.dumps({{"took": took, "loaded": sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})}}))
"""

PROBES = {
    "import engine": "",
    "every public name": "for name in engine.__all__: getattr(engine, name)",
}


def probe(body: str, root: Path) -> tuple[float, set[str]]:
    """Run the import in a fresh interpreter; gives its seconds of processor time, which others may want too, and what it loaded."""
    done = subprocess.run([sys.executable, "-c", PROBE.format(body=body)], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    return said["took"], set(said["loaded"])


@pytest.mark.slow
@pytest.mark.parametrize("body", PROBES.values(), ids=PROBES)
def test_importing_is_quick_and_loads_nothing_heavy(body: str, root: Path):
    tries: list[float] = []
    while len(tries) < 10 and (not tries or min(tries) >= BUDGET):  # the best of them: others share the processor and its caches
        took, loaded = probe(body, root)
        assert not loaded & set(HEAVY)
        tries.append(took)
    assert min(tries) < BUDGET


@pytest.mark.slow
def test_a_hello_world_in_this_process_loads_no_ray(root: Path, tmp_path: Path):
    script = tmp_path / "hello.py"
    script.write_text(
        "import asyncio, sys\n"
        "from engine import Workflow, step\n"
        "@step\n"
        "def shout(text: str) -> str:\n"
        "    return text.upper()\n"
        "flow = Workflow('hello').add_node('shout', shout).set_entry_point('shout')\n"
        "print(asyncio.run(flow.execute('hi')))\n"
        "print(sorted({'ray', 'pyarrow', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, env=_with_path(root))
    assert (done.returncode, done.stdout) == (0, "HI\n[]\n"), done.stderr


def _with_path(root: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(root), "PATH": ""}
