"""What the tests of the command line stand on: modules and path left as they were, and the command in this process."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from serve.cli import command


class Done(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Gecko = Callable[..., Done]


@pytest.fixture(autouse=True)
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Leave the path and the modules as they were."""
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def gecko(capsys: pytest.CaptureFixture[str]) -> Gecko:
    """Give the command `gecko` in this process."""

    def perform(*words: str) -> Done:
        capsys.readouterr()
        status = command(words)
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return perform


@pytest.fixture
def team_file() -> Path:
    """Give a file with workflows of teams."""
    file = Path("teams.py")
    file.write_text(
        "import asyncio\n"
        "from engine import QUORUM, RACE, HEDGE, Team, Workflow\n"
        "async def fast(x): return 'fast'\n"
        "async def slow(x): await asyncio.Event().wait()\n"
        "async def fail(x): raise ValueError('no luck')\n"
        "inner = Workflow('inner').add_node('deep', Team([fast, slow], 'deep', strategy=RACE)).set_entry_point('deep')\n"
        "flow = (Workflow('teams').add_node('race', Team([fast, slow, fail], 'race', strategy=RACE)).add_node('in', inner)\n"
        "        .add_map('each', Team([fast, slow], 'each', strategy=HEDGE(60)), over='list')\n"
        "        .add_node('many', Team([fast] * 20 + [fail, 7], 'many')).add_node('list', lambda ctx: ctx.state.update(list=[1] * 9)))\n"
        "for pair in [('list', 'each'), ('each', 'race'), ('race', 'in'), ('in', 'many')]: flow.add_edge(*pair)\n"
        "flow.set_entry_point('list')\n"
        "lost = Workflow('lost').add_node('t', Team([fast, fail, fail], 't', strategy=QUORUM(2))).set_entry_point('t')\n"
    )
    return file


@pytest.fixture
def flow_file() -> Path:
    """Give a file with a workflow of two layers, `flow`, and some that go wrong."""
    file = Path("flow.py")
    file.write_text(
        "import datetime\n"
        "from engine import Context, Workflow\n"
        "def first(x, ctx: Context):\n"
        "    ctx.state['seen'] = x\n"
        "    return [x or 0] * 3\n"
        "def double(x):\n"
        "    print('a body prints')\n"
        "    return 2 * x\n"
        "def fail(x):\n"
        "    raise ValueError('no\\nluck')\n"
        "flow = (Workflow('two').add_node('first', first).add_map('each', double).add_edge('first', 'each')\n"
        "        .set_entry_point('first'))\n"
        "failing = Workflow('failing').add_node('fail', fail).set_entry_point('fail')\n"
        "loop = Workflow('loop').add_node('a', fail).add_node('b', fail).add_edge('a', 'b').add_edge('b', 'a').set_entry_point('a')\n"
        "odd = Workflow('odd').add_node('a', lambda x: {1, 2}).set_entry_point('a')\n"
        "unstorable = Workflow('unstorable').add_node('a', lambda x: object()).set_entry_point('a')\n"
        "slow = Workflow('slow').add_node('a', lambda x: __import__('time').sleep(30)).set_entry_point('a')\n"
    )
    return file
