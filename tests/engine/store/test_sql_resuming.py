"""A workflow whose process is killed goes on from a database: nothing that was committed is performed again."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.store.alive import mark_of

PROGRAM = """
import asyncio, json, os, sys, time
from pathlib import Path
from engine import Context, Workflow

url, place = sys.argv[1], Path(sys.argv[2])

def note(text):
    with place.open("a") as file:
        file.write(text + chr(10))

async def link(given, ctx: Context):
    ctx.state[f"seen {ctx.node}"] = given

    async def charge():
        note(f"charge {ctx.node}")
        return f"paid {ctx.node}"

    receipt = await ctx.once("charge", charge)
    note(ctx.node)
    if ctx.node == "n6" and len(sys.argv) > 3:
        note("ready")
        time.sleep(3600)
    return [receipt, len(given or "")]

flow = Workflow("killed", storage=url)
for i in range(10):
    flow.add_node(f"n{i}", link)
    if i:
        flow.add_edge(f"n{i - 1}", f"n{i}")
flow.set_entry_point("n0")
handle_output = asyncio.run(flow.execute(session_id="s"))
print(json.dumps(handle_output))
"""


@pytest.mark.slow
@pytest.mark.skipif(not mark_of(os.getpid()), reason="a dead process is seen here only when its lease has run out")
@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=pytest.mark.services)])
def test_a_killed_run_goes_on_from_a_database(kind: str, request: pytest.FixtureRequest, tmp_path: Path, root: Path):
    url = request.getfixturevalue(kind)
    (tmp_path / "program.py").write_text(PROGRAM)
    notes = tmp_path / "notes"
    command = [sys.executable, "program.py", url, str(notes)]
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(root)}
    notes.write_text("")
    with subprocess.Popen([*command, "die"], env=environment) as process:
        while "ready" not in notes.read_text():
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["paid n9", 2]
    performed = notes.read_text().split("\n")[:-1]
    assert [text for text in performed if text.startswith("charge")] == [f"charge n{i}" for i in range(10)], "each effect once"
    nodes = [text for text in performed if text.startswith("n")]
    assert nodes == ["n0", "n1", "n2", "n3", "n4", "n5", "n6", "n6", "n7", "n8", "n9"]
