"""A panel of experts reads a source file. One fails, one takes too long, and a team that waits for ALL keeps what the others found.

`python examples/panel.py [FILE]` has Python's own difflib read, and knows the verdict when it is run again. On Ray an expert whose time is
over is stopped for good: `gecko run examples/panel.py:flow --executor ray`, with `--input '"FILE"'` for another file.
"""

import ast
import asyncio
import difflib
import sys
import urllib.request
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path

from engine import ALL, Member, Team, Workflow


def wide(text: str) -> str:  # an expert may be a function,
    return f"{sum(len(line) > 79 for line in text.splitlines())} lines are wider than 79 characters"


async def parses(text: str) -> str:  # or an async one: this waits for another Python,
    command = sys.executable, "-W", "error", "-m", "ast"
    python = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=DEVNULL, stderr=PIPE)
    _, complaint = await python.communicate(text.encode())
    return complaint.decode().strip().rpartition("\n")[2] if python.returncode else "it parses without a warning"


def functions(text: str) -> list[tuple[int, str]]:  # or a workflow: this is the first node of `longest`
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return [((node.end_lineno or 0) - node.lineno + 1, node.name) for node in found]


def model(text: str) -> str:  # one that fails: no model runs on this machine
    return urllib.request.urlopen("http://127.0.0.1:9/review", text.encode()).read().decode()


def repetition(text: str) -> str:  # one that compares every line with every other, which takes a minute
    lines = [line for line in text.splitlines() if len(line) > 30]
    return f"{sum(difflib.SequenceMatcher(None, a, b).ratio() > 0.9 for a in lines for b in lines if a < b)} pairs of lines are alike"


def verdict(answers: list[dict]) -> dict[str, dict[str, str]]:
    by_name = dict(zip(EXPERTS, answers, strict=True))  # ALL answers in the order of the members
    found = {name: answer["result"] for name, answer in by_name.items() if answer["is_success"]}
    return {"found": found, "failed": {name: answer["error"] for name, answer in by_name.items() if not answer["is_success"]}}


longest = Workflow("longest").add_node("functions", functions).set_entry_point("functions")
longest.add_node("choose", lambda found: "{1} is the longest function, with {0} lines".format(*max(found))).add_edge("functions", "choose")
EXPERTS = {"wide": wide, "parses": parses, "longest": longest, "model": model, "repetition": Member(repetition, timeout=1)}
flow = Workflow("review").add_node("read", lambda file: Path(file or difflib.__file__).read_text()).set_entry_point("read")
flow.add_node("panel", Team(EXPERTS.values(), "panel", strategy=ALL)).add_edge("read", "panel")
flow.add_node("verdict", verdict).add_edge("panel", "verdict")

if __name__ == "__main__":
    file = sys.argv[1] if sys.argv[1:] else difflib.__file__
    for heading, said in asyncio.run(flow.execute(file, session_id=Path(file).stem)).items():
        print(f"{heading}:", *(f"{name:>14}: {line}" for name, line in said.items()), sep="\n")
