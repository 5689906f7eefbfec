"""Durability: what each strategy has on storage and when, once and checkpoint, commits that fail, logs that are damaged."""

import asyncio
import itertools
import logging
import pickle
import threading
from collections.abc import Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

import engine.runtime.ledger
from engine import Context, Engine, Retry, RunHandle, Workflow
from engine.errors import CorruptCheckpoint, InDoubt, NotStorable, StepFailed, StoreUnavailable
from engine.ports import Claim, Log, Row

pytestmark = pytest.mark.anyio
NUMBERS = itertools.count()


@pytest.fixture(params=["memory", "file", "sqlite", pytest.param("postgres", marks=[pytest.mark.services, pytest.mark.slow])])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage of its own, in memory, in files and in databases."""
    if request.param in ("sqlite", "postgres"):
        return request.getfixturevalue(request.param)
    return f"memory://durability-{next(NUMBERS)}" if request.param == "memory" else str(tmp_path / "log")


def log_of(place: str) -> Log:
    log = Engine(place).log
    assert log is not None
    return log


async def stored(place: str, run: str = "flow.s.1") -> list[str]:
    """What is on storage now, as `kind node`; nothing where the run is not there yet."""
    found = Engine(place)
    known = await found.runs()
    return [f"{r.kind} {r.node}".strip() for s in reversed(known) for r in await log_of(place).read(s.key)]


async def arrives(place: str, node: str) -> None:
    """Wait until a node's success is on storage."""
    async with asyncio.timeout(5):
        async for event in Engine(place).events("flow.s.1", follow=True):
            if (event.kind, event.node) == ("step_succeeded", node):
                return


class Spy:
    """A log that passes everything on, notes its appends, and may refuse the next ones."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.url = log.url
        self.batches: list[list[str]] = []
        self.refuse = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def append(self, claim: Claim, rows: Sequence[Row]) -> Awaitable[None]:
        if self.refuse:
            self.refuse -= 1
            refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            refused.set_exception(StoreUnavailable("the disk is full"))
            return refused
        self.batches.append([f"{r.kind} {r.node}".strip() for r in rows])
        return self._log.append(claim, rows)


def chain(storage: Any, *bodies: Any, **options: Any) -> Workflow:
    flow = Workflow("flow", storage=storage, **options)
    for i, body in enumerate(bodies):
        flow.add_node(f"n{i}", body)
        if i:
            flow.add_edge(f"n{i - 1}", f"n{i}")
    return flow.set_entry_point("n0")


# Strategies.


async def test_always_has_what_a_layer_stands_on_and_its_running_mark_on_storage_before_it_starts(place: str):
    seen: list[Any] = []

    async def look() -> None:
        seen.append(await stored(place))

    await chain(place, look, look).execute(session_id="s")
    assert seen == [
        ["run_started", "step_started n0"],
        ["run_started", "step_started n0", "step_succeeded n0", "step_started n1"],
    ]


async def test_always_has_every_verdict_and_skip_on_storage_before_what_follows(place: str):
    seen: list[Any] = []

    async def look() -> None:
        seen.append(await stored(place))

    flow = chain(place, lambda: 1, look).add_node("no", lambda: 1).add_edge("n0", "no", lambda ctx: False)
    await flow.execute(session_id="s")
    assert seen[0][3:] == ["condition_decided n0", "step_skipped no", "step_started n1"]


async def test_a_chain_costs_one_append_a_layer_and_starting_marks_travel_with_the_layer_before():
    spy = Spy(log_of(f"memory://spy-{next(NUMBERS)}"))
    await chain(spy, lambda: 1, lambda: 2, lambda: 3).execute(session_id="s")
    assert spy.batches == [
        ["run_started", "step_started n0"],
        ["step_succeeded n0", "step_started n1"],
        ["step_succeeded n1", "step_started n2"],
        ["step_succeeded n2", "run_completed"],
    ]


async def test_a_finished_step_is_on_storage_while_its_sibling_still_runs(place: str):
    """A finished step is 20 ms from storage, not a layer."""
    arrived = asyncio.Event()

    async def slow() -> bool:
        await arrives(place, "quick")
        arrived.set()
        return True

    flow = Workflow("flow", storage=place).add_node("quick", lambda: 1).add_node("slow", slow).set_entry_point("quick", "slow")
    assert (await flow.execute(session_id="s"))["slow"] is True
    assert arrived.is_set()


async def test_async_commits_follow_the_work_and_all_is_there_at_the_end(place: str):
    seen: list[Any] = []

    async def look() -> None:
        seen.append(await stored(place))

    await chain(place, look, look, checkpoint_strategy="async").execute(session_id="s")
    assert "step_succeeded n0" not in seen[1]
    assert (await stored(place))[-1] == "run_completed"


async def test_async_is_at_most_50_ms_behind(place: str):
    async def wait() -> bool:
        await arrives(place, "n0")
        return True

    assert await chain(place, lambda: 1, wait, checkpoint_strategy="async").execute(session_id="s") is True


async def test_final_writes_at_the_end(place: str):
    seen: list[Any] = []

    async def look() -> None:
        seen.append(await stored(place))

    await chain(place, look, look, checkpoint_strategy="final").execute(session_id="s")
    assert seen == [[], []]
    assert (await stored(place))[-1] == "run_completed"


async def test_final_writes_at_a_failure_and_at_a_pause(place: str):
    broken = [True]
    calls: list[int] = []
    flow = chain(place, lambda: calls.append(1), lambda: int("boom") if broken[0] else "ok", checkpoint_strategy="final")
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    assert (await stored(place))[-1] == "run_failed"
    broken[0] = False
    assert await flow.execute(session_id="s") == "ok"
    assert calls == [1]


async def test_manual_writes_at_checkpoint_alone(place: str):
    seen: list[Any] = []
    calls: list[str] = []

    async def save(ctx: Context) -> None:
        seen.append(await stored(place))
        await ctx.checkpoint()
        seen.append(await stored(place))

    flow = chain(place, lambda: calls.append("first"), save, lambda: calls.append("last") or "end", checkpoint_strategy="manual")
    assert await flow.execute(session_id="s") == "end"
    assert seen[0] == []
    assert seen[1][:3] == ["run_started", "step_started n0", "step_succeeded n0"]
    assert "run_completed" not in await stored(place)
    assert await flow.execute(session_id="s") == "end"
    assert calls == ["first", "last", "last"]


async def test_checkpoint_forces_what_was_told_to_storage_under_every_strategy(place: str):
    async def save(ctx: Context) -> list[str]:
        await ctx.checkpoint()
        return await stored(place)

    flow = chain(place, lambda: 1, save, checkpoint_strategy="final")
    assert "step_succeeded n0" in await flow.execute(session_id="s")


async def test_checkpoint_without_storage_does_nothing():
    async def save(ctx: Context) -> str:
        await ctx.checkpoint()
        return "saved"

    assert await chain(None, save).execute() == "saved"


@pytest.mark.parametrize("strategy", ["always", "async", "final", "manual"])
async def test_every_strategy_gives_the_same_result(place: str, strategy: str):
    flow = chain(place, lambda x, ctx: ctx.state.update(k=x) or x + 1, lambda x, ctx: [x, ctx.state["k"]], checkpoint_strategy=strategy)
    assert await flow.execute(1, session_id="s") == [2, 1]


# Once.


async def test_once_performs_an_effect_and_gives_its_value(place: str):
    effects: list[int] = []

    async def body(ctx: Context) -> Any:
        sync = await ctx.once("sync", lambda: effects.append(1) or {"n": len(effects)})
        late = await ctx.once("async", lambda: asyncio.sleep(0, (1, 2)))
        return [sync, late, await ctx.once("sync", lambda: effects.append(2))]

    assert await chain(place, body).execute(session_id="s") == [{"n": 1}, (1, 2), {"n": 1}]
    assert effects == [1]


async def test_two_effects_of_one_key_at_once_are_one(place: str):
    effects: list[int] = []

    async def effect() -> list[int]:
        await asyncio.sleep(0)
        effects.append(1)
        return [len(effects)]

    async def body(ctx: Context) -> Any:
        one, two, other = await asyncio.gather(ctx.once("k", effect), ctx.once("k", effect), ctx.once("other", lambda: "else"))
        one.append("mine")
        return [one, two, other]

    assert await chain(place, body).execute(session_id="s") == [[1, "mine"], [1], "else"]
    assert [r for r in await stored(place) if r.startswith("once_intended")] == ["once_intended n0"] * 2


async def test_the_second_of_two_effects_at_once_is_tried_where_the_first_failed(place: str):
    tries: list[int] = []

    async def effect() -> int:
        tries.append(1)
        await asyncio.sleep(0)
        if len(tries) == 1:
            raise ConnectionError("lost")
        return len(tries)

    async def body(ctx: Context) -> Any:
        first, second = await asyncio.gather(ctx.once("k", effect), ctx.once("k", effect), return_exceptions=True)
        return [type(first).__name__, second]

    assert await chain(place, body).execute(session_id="s") == ["ConnectionError", 2]


async def test_an_effect_that_asks_for_itself_does_not_wait_for_itself(place: str):
    async def body(ctx: Context) -> Any:
        async def effect() -> Any:
            return (await asyncio.gather(ctx.once("k", effect)))[0]

        return await ctx.once("k", effect)

    async with asyncio.timeout(5):
        with pytest.raises(StepFailed) as caught:
            await chain(place, body).execute(session_id="s")
    assert isinstance(caught.value.__cause__, InDoubt)


@pytest.mark.parametrize("key", [7, None, b"pay", ("pay", 1), ["pay"]])
async def test_a_key_that_is_no_text_is_refused_before_anything_is_told(place: str, key: Any):
    effects: list[int] = []
    with pytest.raises(StepFailed, match=r"once of 'n0' takes a text as its key, not .* of type") as caught:
        await chain(place, lambda ctx: ctx.once(key, lambda: effects.append(1))).execute(session_id="s")
    assert isinstance(caught.value.__cause__, TypeError)
    assert effects == []
    assert not [r for r in await stored(place) if r.startswith("once")]


async def test_a_receipt_gives_its_value_back_after_a_failure(place: str):
    effects: list[int] = []
    broken = [True]

    async def body(ctx: Context) -> Any:
        value = await ctx.once("pay", lambda: effects.append(1) or "paid")
        if broken[0]:
            raise ValueError
        return value

    flow = chain(place, body)
    with pytest.raises(StepFailed):
        await flow.execute(session_id="s")
    broken[0] = False
    assert await flow.execute(session_id="s") == "paid"
    assert effects == [1]


async def test_a_receipt_gives_its_value_back_to_a_retry_without_storage_too():
    effects: list[int] = []

    async def body(ctx: Context) -> Any:
        value = await ctx.once("pay", lambda: effects.append(1) or "paid")
        if ctx.attempt == 1:
            raise ValueError
        return value

    assert await Workflow().add_node("a", body, retry=Retry(2, delay=0)).set_entry_point("a").execute() == "paid"
    assert effects == [1]


async def test_an_intent_without_a_receipt_is_in_doubt_on_resume(place: str):
    broken = [True]
    effects: list[int] = []

    def effect() -> str:
        effects.append(1)
        if broken[0]:
            raise ConnectionError("lost")
        return "done"

    flow = chain(place, lambda ctx: ctx.once("pay", effect))
    with pytest.raises(StepFailed, match="lost"):
        await flow.execute(session_id="s")
    with pytest.raises(StepFailed, match=r"'pay'.*again=True") as caught:
        await flow.execute(session_id="s")
    assert isinstance(caught.value.__cause__, InDoubt)
    assert effects == [1]
    broken[0] = False
    flow = chain(place, lambda ctx: ctx.once("pay", effect, again=True))
    assert await flow.execute(session_id="s") == "done"
    assert effects == [1, 1]


async def test_a_sync_effect_is_performed_off_the_loop_with_the_bodys_context_variables(place: str):
    variable: ContextVar[str] = ContextVar("variable")
    here = threading.get_ident()

    async def pay(given: Any, ctx: Context) -> list[Any]:
        variable.set("mine")
        return await ctx.once("pay", lambda: [threading.get_ident() == here, variable.get()])

    assert await chain(place, pay).execute(session_id="s") == [False, "mine"]


async def test_an_effect_whose_value_is_no_data_stays_in_doubt(place: str):
    effects: list[int] = []

    def body(ctx: Context) -> Any:
        return ctx.once("pay", lambda: effects.append(1) or circle())

    def circle() -> list[Any]:
        found: list[Any] = []
        found.append(found)
        return found

    flow = Workflow("flow", storage=place).add_node("n0", body, retry=Retry(2, delay=0)).set_entry_point("n0")
    with pytest.raises(StepFailed, match="InDoubt"):
        await flow.execute(session_id="s")
    assert effects == [1]


async def test_once_keys_belong_to_their_step(place: str):
    effects: list[str] = []
    flow = Workflow("flow", storage=place)
    for name in "ab":
        flow.add_node(name, lambda ctx: ctx.once("k", lambda: effects.append(ctx.node) or ctx.node))
    flow.add_map("m", lambda x, ctx: ctx.once("k", lambda: effects.append(x) or x))
    assert await flow.set_entry_point("a", "b", "m").execute(["x", "y"], session_id="s") == {"a": "a", "b": "b", "m": ["x", "y"]}
    assert sorted(effects) == ["a", "b", "x", "y"]


async def test_the_intent_is_on_storage_before_the_effect_and_the_receipt_before_the_body_goes_on(place: str):
    seen: list[Any] = []

    async def effect() -> str:
        seen.append((await stored(place))[-1])
        return "done"

    async def body(ctx: Context) -> None:
        await ctx.once("k", effect)
        seen.append((await stored(place))[-1])

    for strategy in ("always", "async", "final", "manual"):
        await chain(place, body, checkpoint_strategy=strategy).execute(session_id="s", new=True)
    assert seen == ["once_intended n0", "once_done n0"] * 4


async def test_an_effects_value_that_cannot_be_stored_is_refused_by_key(place: str):
    with pytest.raises(StepFailed, match=r"'pay'.*object") as caught:
        await chain(place, lambda ctx: ctx.once("pay", object)).execute(session_id="s")
    assert isinstance(caught.value.__cause__, NotStorable)


async def test_once_is_told_as_events(place: str):
    await chain(place, lambda ctx: ctx.once("k", lambda: [1])).execute(session_id="s")
    told = [(e.kind, e.data) async for e in Engine(place).events("s") if e.kind.startswith("once")]
    assert told == [("once_intended", {"key": "k"}), ("once_done", {"key": "k", "value": [1]})]


# Commits that fail.


async def watched(flow: Workflow, spy: Spy) -> tuple[RunHandle, list[Any]]:
    handle = await Engine(spy).start(flow, session_id="s")  # type: ignore[arg-type]
    seen = [e async for e in handle.events(transient=True)]
    return handle, seen


async def test_a_commit_that_fails_is_an_event_and_is_tried_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(engine.runtime.ledger, "PAUSES", (0.0, 0.0))
    spy = Spy(log_of(f"memory://spy-{next(NUMBERS)}"))
    spy.refuse = 2
    handle, seen = await watched(chain(spy, lambda: 1, lambda: 2), spy)
    assert handle.output == 2
    assert [e.data["attempt"] for e in seen if e.kind == "commit_failed"] == [1, 2]
    assert all("disk is full" in e.data["error"] for e in seen if e.kind == "commit_failed")
    assert caplog.messages.count("A commit failed") == 2
    durable = [e.seq for e in seen if not e.ordinal]
    assert durable == sorted(set(durable))


async def test_a_storage_that_keeps_failing_stops_the_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.runtime.ledger, "PAUSES", (0.0, 0.0))
    spy = Spy(log_of(f"memory://spy-{next(NUMBERS)}"))
    ran: list[int] = []

    async def first() -> None:
        spy.refuse = 10**6

    with pytest.raises(StoreUnavailable, match="disk is full"):
        await chain(spy, first, lambda: ran.append(1)).execute(session_id="s")
    assert ran == []
    spy.refuse = 0
    assert await chain(spy, lambda: "one", lambda x: [x]).execute(session_id="s") == ["one"]


async def test_warn_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(engine.runtime.ledger, "PAUSES", (0.0,))
    spy = Spy(log_of(f"memory://spy-{next(NUMBERS)}"))

    async def first() -> None:
        spy.refuse = 10**6

    assert await chain(spy, first, lambda: "end", on_commit_failure="warn").execute(session_id="s") == "end"
    assert "A commit failed" in caplog.messages


async def test_a_storage_that_comes_back_has_everything_under_warn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine.runtime.ledger, "PAUSES", (0.0,))
    place = f"memory://spy-{next(NUMBERS)}"
    spy = Spy(log_of(place))

    async def first() -> None:
        spy.refuse = 2

    await chain(spy, first, lambda: 1, lambda: "end", on_commit_failure="warn").execute(session_id="s")
    assert (await stored(place))[-1] == "run_completed"
    assert "step_succeeded n0" in await stored(place)


# What lies on storage.


async def test_what_lies_on_storage_is_data_without_pickle(tmp_path: Path):
    flow = chain(str(tmp_path / "log"), lambda: {"k": (1, {2}, b"b")}, lambda ctx: ctx.state.update(s={1, 2}))
    await flow.execute(session_id="s")
    files = [f.read_bytes() for f in (tmp_path / "log").rglob("*.arrows")]
    assert files
    for content in files:
        assert b"\x80\x05\x95" not in content  # how a pickle of protocol 5 begins
        with pytest.raises(Exception):  # noqa: B017, PT011
            pickle.loads(content)


async def test_nodes_write_linear_bytes_whatever_the_retention():
    sizes: list[int] = []
    for n in (20, 40):
        place = f"memory://bytes-{next(NUMBERS)}"
        await chain(place, *[lambda: "x" * 1000] * n, max_history_retention=None).execute(session_id="s")
        rows = await log_of(place).read(await Engine(place).find("s"))
        sizes.append(sum(len(r.output or b"") + len(r.diff or b"") + len(r.info or b"") for r in rows))
    assert sizes[1] < 2.2 * sizes[0]


async def test_a_damaged_log_is_an_error_by_file_and_never_half_read(tmp_path: Path):
    place = str(tmp_path / "log")
    broken = [True]
    flow = chain(place, lambda: "x" * 5000, lambda: int("boom") if broken[0] else "ok")
    for _ in range(2):
        with pytest.raises(StepFailed):
            await flow.execute(session_id="s")
    first = min((tmp_path / "log").rglob("*.arrows"))
    content = bytearray(first.read_bytes())
    content[len(content) // 3] ^= 0xFF
    first.write_bytes(content)
    broken[0] = False
    with pytest.raises(CorruptCheckpoint) as caught:
        await flow.execute(session_id="s")
    assert caught.value.file is not None
    assert first.name in str(caught.value)


async def test_a_place_that_is_a_file_or_unreadable_says_so(tmp_path: Path):
    (tmp_path / "file").write_text("text")
    for place in (str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        with pytest.raises((StoreUnavailable, ValueError), match="file"):
            await chain(place, lambda: 1).execute(session_id="s")


async def test_an_unknown_scheme_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="memory://"):
        await chain("mysql://host/db", lambda: 1).execute(session_id="s")


# Other things that stay true.


async def test_runs_in_one_process_share_a_place_without_mixing(place: str):
    async def body(x: int) -> int:
        await asyncio.sleep(0)
        return x

    flow = chain(place, body, lambda x: [x])
    found = await asyncio.gather(*(flow.execute(i, session_id=f"s{i}") for i in range(10)))
    assert found == [[i] for i in range(10)]
    assert len(await Engine(place).runs(status="completed")) == 10


def test_a_run_resumes_in_another_event_loop(place: str):
    broken = [True]
    calls: list[int] = []
    flow = chain(place, lambda: calls.append(1), lambda: int("boom") if broken[0] else "ok")
    with pytest.raises(StepFailed):
        flow.run_sync(session_id="s")
    broken[0] = False
    assert flow.run_sync(session_id="s") == "ok"
    assert calls == [1]


async def test_a_loop_that_is_torn_down_leaves_a_run_that_goes_on(place: str):
    """As after a crash: nobody drains, and the running step is performed again with the same id."""
    ids: list[str] = []
    first: list[int] = []
    hang = [True]
    begun = asyncio.Event()

    async def body(ctx: Context) -> str:
        ids.append(ctx.step_id)
        begun.set()
        if hang[0]:
            await asyncio.Event().wait()
        return "ok"

    flow = chain(place, lambda: first.append(1), body)
    handle = await Engine(place).start(flow, session_id="s")
    async for event in handle.events():
        if event.kind == "step_started" and event.node == "n1":
            break
    await begun.wait()
    handle._remote.task.cancel()  # type: ignore[attr-defined]
    with pytest.raises(asyncio.CancelledError):
        await handle._remote.task  # type: ignore[attr-defined]
    hang[0] = False
    assert await flow.execute(session_id="s") == "ok"
    assert (ids, first) == (["flow.s.1/n1/1"] * 2, [1])


async def test_a_commit_that_fails_is_logged_with_its_run(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.setattr(engine.runtime.ledger, "PAUSES", (0.0,))
    spy = Spy(log_of(f"memory://spy-{next(NUMBERS)}"))
    spy.refuse = 1
    with caplog.at_level(logging.WARNING):
        await chain(spy, lambda: 1).execute(session_id="s")
    (record,) = [r for r in caplog.records if r.getMessage() == "A commit failed"]
    assert record.__dict__["run_id"] == "flow.s.1"


async def test_async_commits_follow_bodies_that_never_wait(place: str):
    seen: list[str] = []

    async def idle() -> None:
        pass

    async def look() -> None:
        with ThreadPoolExecutor(1) as threads:  # joined without giving the run's event loop a turn
            seen.extend(threads.submit(asyncio.run, stored(place)).result())

    await chain(place, *[idle] * 150, look, *[idle] * 49, checkpoint_strategy="async").execute(session_id="s")
    assert 150 - 64 <= sum(row.startswith("step_succeeded") for row in seen) <= 150
    assert sum(row.startswith("step_succeeded") for row in await stored(place)) == 200


async def test_an_effect_that_failed_before_our_eyes_may_be_tried_again_by_a_retry(place: str):
    effects: list[int] = []

    def effect() -> str:
        effects.append(1)
        if len(effects) == 1:
            raise ConnectionError("lost")
        return "paid"

    flow = Workflow("flow", storage=place).add_node("a", lambda ctx: ctx.once("pay", effect), retry=Retry(2, delay=0)).set_entry_point("a")
    assert await flow.execute(session_id="s") == "paid"
    assert [r.split()[0] for r in await stored(place) if r.startswith("once")] == ["once_intended", "once_intended", "once_done"]


async def test_a_crash_between_intent_and_receipt_leaves_the_effect_in_doubt_for_retries_too(place: str):
    after_crash = f"memory://crashed-{next(NUMBERS)}"
    effects: list[int] = []

    async def effect() -> str:
        effects.append(1)
        if len(effects) == 1:  # what a process that dies here leaves behind
            key = await Engine(place).find("s")
            rows, log = await log_of(place).read(key), log_of(after_crash)
            claim = await log.claim(key)
            await log.append(claim, rows)
            await log.release(claim)
        return "paid"

    def flow(storage: str, **options: Any) -> Workflow:
        made = Workflow("flow", storage=storage)
        made.add_node("a", lambda ctx: ctx.once("pay", effect, **options), retry=Retry(2, delay=0))
        return made.set_entry_point("a")

    assert await flow(place).execute(session_id="s") == "paid"
    with pytest.raises(StepFailed, match=r"'pay'.*again=True") as caught:
        await flow(after_crash).execute(session_id="s")
    assert isinstance(caught.value.__cause__, InDoubt)
    assert effects == [1]
    assert await flow(after_crash, again=True).execute(session_id="s") == "paid"
    assert effects == [1, 1]
