"""import: what `import engine` and all its public names cost a new process, beside the standard library's asyncio alone."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

from bench.harness import Bar, DidNotRun, Outcome, Scenario, alternate
from bench.setting import Setting

HEAVY = ("ray", "litellm", "lancedb", "pyarrow", "fastapi")
ENGINE = "import engine\nnames = [getattr(engine, name) for name in engine.__all__]"
BARE = "import asyncio\nnames = []"
PROGRAM = """
import time
begun = time.perf_counter()
{work}
seconds = time.perf_counter() - begun
import json, sys
packages = sorted({{name.partition(".")[0] for name in sys.modules}})
print(json.dumps({{"seconds": seconds, "names": len(names), "packages": packages, "count": len(sys.modules)}}))
"""
ROOT = Path(__file__).resolve().parent.parent.parent


def in_process(setting: Setting, work: str, seen: dict[str, int]) -> float:
    """Import in a new process; check what is loaded; return the seconds."""
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(work=work)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    if said.returncode:
        raise DidNotRun(f"the import ended with {said.returncode}: {said.stderr.strip()[-2000:]}")
    answer = json.loads(said.stdout)
    if work is ENGINE:
        loaded = sorted(set(HEAVY) & set(answer["packages"]))
        setting.checks.that(not loaded, f"none of {', '.join(HEAVY)} is loaded", seen=loaded)
        setting.checks.that(answer["names"] > 0 and "engine" in answer["packages"], "every public name was read", seen=answer["names"])
        seen.update(names=answer["names"], modules=answer["count"])
    return answer["seconds"]


def measure(setting: Setting) -> Outcome:
    """Import in processes of their own, in turn."""
    seen: dict[str, int] = {}
    contenders = {"engine": partial(in_process, setting, ENGINE, seen), "asyncio alone": partial(in_process, setting, BARE, seen)}
    series = alternate(contenders, rounds=setting.rounds)
    found = Outcome(series=list(series.values()), notes={"public names": seen["names"], "modules loaded": seen["modules"]})
    found.figure("engine and its names", series["engine"].median, "s")
    found.figure("asyncio alone", series["asyncio alone"].median, "s")
    return found


def profile(setting: Setting) -> str:
    """Say which modules take longest."""
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", ENGINE], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    lines = [line for line in said.stderr.splitlines() if line.count("|") == 2 and line.split("|")[1].strip().isdigit()]
    longest = sorted(lines, key=lambda line: -int(line.split("|")[1]))[:30]
    return "\n".join(["import time: self [us] | cumulative | imported package", *longest])


SCENARIOS = [
    Scenario(
        name="import", summary="`import engine`, and every public name that exists", measure=measure, profile=profile,
        bars=(Bar(figure="engine and its names", unit="s", comparison="under", limit=0.25),),
    )
]  # fmt: skip
