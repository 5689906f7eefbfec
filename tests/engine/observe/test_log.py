"""Lines of the log are JSON and tell what they are about, whoever wrote them."""

import asyncio
import json
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from engine import Context, Engine, Workflow
from engine.core.context import Scene
from engine.core.current import Current, current, here
from engine.errors import GeckoError
from engine.observe.log import Ids, JsonHandler, show_json
from engine.ports import RunKey

foreign = logging.getLogger("somebody.elses")


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Give a function from a message to its line as an object, of all that is logged."""
    handler, root, written = JsonHandler(), logging.getLogger(), list[str]()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)

    def find(message: str) -> dict[str, Any]:
        written.extend(capsys.readouterr().err.splitlines())
        (found,) = [told for told in map(json.loads, written) if told["message"] == message]
        return found

    yield find
    root.removeHandler(handler)
    root.setLevel(level)


def ids(told: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(told.get(name) for name in ("run_id", "session_id", "node", "step_id"))


@pytest.mark.anyio
async def test_what_bodies_log_tells_its_run_session_node_and_step(lines: Any):
    def sync(x: Any, ctx: Context) -> Any:
        ctx.logger.info("by the context, %s", "sync", extra={"part": 1})
        foreign.warning("by another, sync")
        return [1, 2]

    async def item(x: Any) -> Any:
        await asyncio.sleep(0)
        foreign.warning("item %d", x)
        await asyncio.to_thread(foreign.warning, f"thread of {x}")
        return x

    def deep(x: Any) -> Any:
        foreign.info("deep")

    inner = Workflow("inner").add_node("deep", deep).set_entry_point("deep")
    flow = Workflow("flow").add_node("sync", sync).add_map("each", item).add_node("in", inner)
    flow.add_edge("sync", "each").add_edge("each", "in").set_entry_point("sync")
    foreign.info("before")
    handle = await Engine(False).start(flow, session_id="s")
    await handle.wait()
    run = "flow.s.1"
    assert ids(lines("before")) == (None,) * 4
    for message, node, step in (
        ("by the context, sync", "sync", "sync/1"), ("by another, sync", "sync", "sync/1"), ("item 1", "each", "each/1/0"),
        ("item 2", "each", "each/1/1"), ("thread of 2", "each", "each/1/1"), ("deep", "deep", "in/1/0"),
    ):  # fmt: skip
        assert ids(lines(message)) == (run, "s", node, f"{run}/{step}"), message
    assert lines("by the context, sync")["part"] == 1
    assert here() == Current()


@pytest.mark.anyio
async def test_our_own_warnings_tell_their_run(lines: Any):
    def fail(x: Any) -> bool:
        raise ValueError("no")

    flow = Workflow("flow").add_node("a", lambda x: x).add_node("b", lambda x: x).add_edge("a", "b", condition=fail).set_entry_point("a")
    try:
        await flow.execute(1, session_id="s")
    except GeckoError:
        pass
    told = lines("Condition check failed, 'a' -> 'b': ValueError: no")
    assert (told["run_id"], told["session_id"], told["level"], told["logger"]) == ("flow.s.1", "s", "ERROR", "engine.runtime.loop")


def test_what_is_known_follows_from_what_a_record_says(lines: Any):
    for number, (extra, wanted) in enumerate(
        [
            ({"run": RunKey("a.b", "s", 2)}, ("a%2Eb.s.2", "s", None, None)),
            ({"run_id": "w.s.1"}, ("w.s.1", "s", None, None)),
            ({"step_id": "w.s.1/a/1/0"}, ("w.s.1", "s", "a", "w.s.1/a/1/0")),
            ({"run_id": "w.s.1.in.1", "step_id": "w.s.1/in/1/0", "node": "x"}, ("w.s.1", "s", "x", "w.s.1/in/1/0")),
            ({"session": "s"}, (None, "s", None, None)),
        ]
    ):
        foreign.warning("record %d", number, extra=extra)
        assert ids(lines(f"record {number}")) == wanted


def test_a_line_of_another_run_is_not_taken_for_the_present_one(lines: Any):
    scene = Scene(run_id="w.s.1", session_id="s", input=None, private=None, rows=list, services=None)  # type: ignore[arg-type]
    token = current.set((scene, SimpleNamespace(node=SimpleNamespace(name="a"), step_id="w.s.1/a/1")))
    try:
        foreign.warning("another", extra={"run_id": "x.t.1"})
        foreign.warning("the same", extra={"run_id": "w.s.1"})
    finally:
        current.reset(token)
    assert ids(lines("another")) == ("x.t.1", "t", None, None)
    assert ids(lines("the same")) == ("w.s.1", "s", "a", "w.s.1/a/1")


def test_whatever_is_logged_is_one_line(lines: Any):
    class Odd:
        def __repr__(self) -> str:
            return "odd"

    try:
        raise ValueError("no\nluck")
    except ValueError:
        foreign.exception("two\nlines \udcff", extra={"thing": Odd(), "long": "x" * 100_000, "_hidden": 1})
    told = lines("two\nlines \udcff")
    assert told["thing"] == "odd"
    assert len(told["long"]) == 20_000
    assert "_hidden" not in told
    assert (told["exception"]["type"], told["exception"]["message"]) == ("ValueError", "no\nluck")
    assert "raise ValueError" in told["exception"]["traceback"]
    assert told["at"].endswith("+00:00")


def test_a_format_of_one_s_own_may_use_the_ids():
    record = logging.makeLogRecord({"msg": "m", "run_id": "w.s.1"})
    assert Ids().filter(record)
    assert logging.Formatter("%(run_id)s %(session_id)s [%(node)s]").format(record) == "w.s.1 s []"


def test_a_program_that_has_set_up_its_log_keeps_it(monkeypatch: pytest.MonkeyPatch):
    root = logging.getLogger()
    for handlers, count in ((list[logging.Handler](), 1), ([logging.NullHandler()], 0)):
        monkeypatch.setattr(root, "handlers", handlers)
        levels = {name: logging.getLogger(name).level for name in ("engine", "cluster", "serve")}
        show_json()
        assert sum(isinstance(handler, JsonHandler) for handler in root.handlers) == count
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
