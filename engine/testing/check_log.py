"""The contract of the `Log` port as one callable check, for ours and for anybody's backend.

    await check_log(lambda: open_log("memory://mine"))

It uses nothing but the port, and raises AssertionError where a promise is broken.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from engine.errors import LeaseLost, RunBusy, RunNotFound
from engine.ports import Claim, Log, Row, RunKey

_AT = 1_790_000_000.0


async def check_log(make: Callable[[], Log]) -> None:
    """Check every promise of a log. `make` opens the same storage again at each call; the storage holds no runs yet.

    Raises: AssertionError, naming the promise that is broken.
    """
    for check in (
        _check_rows_come_back,
        _check_order_without_awaiting,
        _check_repeated_rows,
        _check_one_owner,
        _check_takeover,
        _check_release,
        _check_status_releases,
        _check_waiting_for_an_owner,
        _check_many_claimers,
        _check_any_name,
        _check_reopening,
        _check_following,
        _check_scan,
        _check_delete,
        _check_prune,
        _check_lease,
    ):
        log = make()
        try:
            await check(log, make)
        finally:
            await log.close()


def row(seq: int, kind: str = "note", **cells: bytes | None) -> Row:
    """Return a row as the engine would append it."""
    return Row(seq, _AT + seq, kind, f"node{seq}", f"node{seq}/1", cells.get("output"), cells.get("diff"), cells.get("info"))


async def _check_rows_come_back(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("rows", "s", 1)
    claim = await log.claim(key)
    assert claim.key == key, "a claim tells its run"
    assert list(claim.rows) == [], "a new run has no rows"
    rows = [row(1, "run_started", info=b"i"), row(2, output=b"", diff=None), row(3, output=bytes(range(256)) * 300), row(4)]
    await log.append(claim, rows[:3])
    await log.append(claim, rows[3:])
    assert list(await log.read(key)) == rows, "rows come back as they were appended, empty bytes and None apart"
    assert list(await log.read(key, after=2)) == rows[2:], "`after` is exclusive"
    await log.release(claim)
    again = await log.claim(key)
    assert list(again.rows) == rows, "a claim has what was committed before"
    assert again.epoch > claim.epoch, "epochs grow"
    await log.append(again, [row(5)])
    assert [found.seq for found in await log.read(key)] == [1, 2, 3, 4, 5], "epochs are read as one log"
    await log.release(again)
    await _raises(RunNotFound, log.read(RunKey("rows", "s", 2)), "a run that is not there is not found")


async def _check_order_without_awaiting(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("order", "s", 1)
    claim = await log.claim(key)
    answers = [log.append(claim, [row(seq)]) for seq in range(1, 301)]
    await answers[-1]
    assert [found.seq for found in await log.read(key)] == list(range(1, 301)), "calls take effect in their order"
    await asyncio.gather(*(_wait(answer) for answer in answers))
    log.append(claim, [row(301)])
    await log.release(claim)
    assert (await log.read(key))[-1].seq == 301, "a release waits for what was appended"


async def _check_repeated_rows(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("repeated", "s", 1)
    claim = await log.claim(key)
    await log.append(claim, [row(1), row(2)])
    await log.append(claim, [row(1), row(2)])
    await log.append(claim, [row(2), row(3)])
    await log.append(claim, [])
    assert [found.seq for found in await log.read(key)] == [1, 2, 3], "a repeated append appends nothing twice"
    await log.release(claim)


async def _check_one_owner(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("busy", "s", 1)
    claim = await log.claim(key)
    await _raises(RunBusy, log.claim(key), "while an owner lives and drives the run it is refused")
    await _raises(RunBusy, make().claim(key), "and to whoever opens the storage again")
    await _raises(RunBusy, log.delete(key), "and cannot be deleted")
    await log.append(claim, [row(1)])
    await log.release(claim)


async def _check_takeover(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("takeover", "s", 1)
    old = await log.claim(key)
    await log.append(old, [row(1)])
    new = await log.claim(key, takeover=True)
    assert [found.seq for found in new.rows] == [1], "a takeover reads what was committed"
    await _raises(LeaseLost, _wait(log.append(old, [row(2, output=b"old")])), "the old owner is stopped")
    await log.append(new, [row(2, output=b"new")])
    await _raises(LeaseLost, _wait(log.append(old, [row(3)])), "and stays stopped")
    assert [found.output for found in await log.read(key)] == [None, b"new"], "nothing of the old owner comes after the claim"
    await log.release(old)
    await _raises(RunBusy, log.claim(key), "an old owner's release ends nobody else's claim")
    await log.release(new)


async def _check_release(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("release", "s", 1)
    for expected in ([], [1], [1, 2]):
        claim = await log.claim(key)
        assert [found.seq for found in claim.rows] == expected, "after a release anybody may claim"
        await log.append(claim, [row(len(expected) + 1)])
        await log.release(claim)
        await _raises(LeaseLost, _wait(log.append(claim, [row(9)])), "a released claim is used no more")


async def _check_status_releases(log: Log, make: Callable[[], Log]) -> None:
    for kind in ("run_paused", "run_completed", "run_failed", "run_cancelled", "run_timed_out"):
        key = RunKey("status", kind, 1)
        claim = await log.claim(key)
        await log.append(claim, [row(1, "run_started"), row(2, kind)])
        again = await log.claim(key)
        assert again.rows[-1].kind == kind, "a final or paused status ends the ownership"
        await log.release(again)
        await log.release(claim)


async def _check_waiting_for_an_owner(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("waiting", "s", 1)
    claim = await log.claim(key)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(log.claim(key, wait=30.0))
        await asyncio.sleep(0)
        assert not waiting.done(), "a claim that may wait does so"
        await log.release(claim)
    await log.release(waiting.result())


async def _check_many_claimers(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("many", "s", 1)
    answers = await asyncio.gather(*(log.claim(key) for _ in range(8)), return_exceptions=True)
    won = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(won) == 1, "of many claimers one wins"
    assert all(isinstance(answer, RunBusy) for answer in answers if isinstance(answer, BaseException)), "the others are told"
    await log.append(won[0], [row(1)])
    await log.release(won[0])


async def _check_any_name(log: Log, make: Callable[[], Log]) -> None:
    names = ["..", ".", "a.b", "A", "a", "%41", "~", "ä ö", "x" * 300, "x" * 301, "con", "\N{SNOWMAN}" * 90]
    keys = [RunKey(workflow, session, 1) for workflow in ("names", "..") for session in names]
    for i, key in enumerate(keys):
        claim = await log.claim(key)
        await log.append(claim, [row(1, info=str(i).encode())])
        await log.release(claim)
    for i, key in enumerate(keys):
        assert [found.info for found in await log.read(key)] == [str(i).encode()], f"any text is a name: {key!r}"
    assert {run.key for run in await log.scan(workflow="..")} == set(keys[len(names) :]), "and is listed as it is"


async def _check_reopening(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("reopening", "s", 1)
    claim = await log.claim(key)
    log.append(claim, [row(1)])
    await log.close()
    assert [found.seq for found in await make().read(key)] == [1], "a close makes everything appended durable"
    await log.release(claim)


async def _check_following(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("following", "s", 1)
    claim = await log.claim(key)
    await log.append(claim, [row(1), row(2)])
    seen: list[int] = []
    async for rows in log.follow(key, after=1):
        seen += [found.seq for found in rows]
        if seen == [2]:
            await log.append(claim, [row(3)])
        elif seen == [2, 3]:
            await log.append(claim, [row(4, "run_completed")])
    assert seen == [2, 3, 4], "a follower gets every row once, in order, until the run ends"
    await log.release(claim)


async def _check_scan(log: Log, make: Callable[[], Log]) -> None:
    for n in (1, 2):
        claim = await log.claim(RunKey("scan", "s", n))
        await log.append(claim, [Row(1, _AT + n, "run_started"), Row(2, _AT + n + 5, "run_failed" if n == 1 else "note")])
        if n == 1:
            await log.release(claim)
    other = await log.claim(RunKey("scan", "t", 1))
    await log.append(other, [row(1, "run_started"), *(row(seq, output=bytes(70_000)) for seq in range(2, 6))])
    await log.release(other)
    second, first = await log.scan(workflow="scan", session="s")
    assert (first.key.n, first.status, first.seq, first.started_at, first.updated_at) == (1, "failed", 2, _AT + 1, _AT + 6)
    assert (second.key.n, second.status, second.owner is not None) == (2, "running", True), "a driven run tells its owner"
    assert first.owner is None, "nobody owns a run that ended"
    listed = await log.scan(workflow="scan")
    assert {run.key for run in listed} == {RunKey("scan", "s", 1), RunKey("scan", "s", 2), RunKey("scan", "t", 1)}
    assert [run.started_at for run in listed] == sorted((run.started_at for run in listed), reverse=True), "newest first"
    assert next(run.seq for run in listed if run.key.session == "t") == 5, "a large last batch is found too"
    assert list(await log.scan(workflow="nothing")) == []
    damaged: list[str] = []
    assert len(await log.scan(workflow="scan", on_damage=lambda place, _: damaged.append(place))) == 3
    assert damaged == [], "nothing that is whole is told as damaged"
    await log.release(claim)


async def _check_delete(log: Log, make: Callable[[], Log]) -> None:
    key = RunKey("delete", "s", 1)
    for _ in range(2):
        claim = await log.claim(key)
        assert list(claim.rows) == [], "a deleted run's name begins anew"
        await log.append(claim, [row(1)])
        await log.release(claim)
        await log.delete(key)
        await _raises(RunNotFound, log.read(key), "a deleted run is not found")
        assert list(await log.scan(workflow="delete")) == [], "and not listed"
        await _raises(RunNotFound, log.delete(key), "and cannot be deleted twice")


async def _check_prune(log: Log, make: Callable[[], Log]) -> None:
    for session, kind in (("done", "run_completed"), ("open", "note"), ("paused", "run_paused")):
        claim = await log.claim(RunKey("prune", session, 1))
        await log.append(claim, [row(1, "run_started"), row(2, kind)])
        await log.release(claim)
    assert await log.prune(older_than=1e12) == 0, "what is young stays"
    assert await log.prune(older_than=-1e12) >= 1
    assert {run.key.session for run in await log.scan(workflow="prune")} == {"open", "paused"}, "an unfinished run is never pruned"
    await log.prune(older_than=-1e12)
    await _raises(RunNotFound, log.read(RunKey("prune", "done", 1)), "a tombstone that is gone leaves no run behind")


async def _check_lease(log: Log, make: Callable[[], Log]) -> None:
    lease, key = 0.5, RunKey("lease", "s", 1)
    log.keep_lease(lease)
    claim = await log.claim(key)
    await log.append(claim, [row(1, "run_started")])
    loop = asyncio.get_running_loop()
    end = loop.time() + 3 * lease
    while loop.time() < end:
        await _raises(RunBusy, make().claim(key), "an owner that says that it lives keeps its run for longer than its lease")
        (found,) = await log.scan(workflow="lease")
        assert found.owner is not None, "and is told as its owner"
        await asyncio.sleep(lease / 8)
    await log.append(claim, [row(2)])
    await log.release(claim)
    again = await make().claim(key)
    assert [found.seq for found in again.rows] == [1, 2], "a lease keeps nobody from a run that was released"
    await _raises(LeaseLost, _wait(log.append(claim, [row(3)])), "nor a former owner's claim alive")
    await log.release(again)


async def _wait(answer: Awaitable[None]) -> None:
    await answer


async def _raises(kind: type[Exception], answer: Awaitable[Claim | Sequence[Row] | None], promise: str) -> None:
    try:
        await answer
    except kind:
        return
    raise AssertionError(f"{promise}: {kind.__name__} was not raised")
