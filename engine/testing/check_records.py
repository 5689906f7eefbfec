"""The contract of the `Records` port as one callable check, for ours and for anybody's backend.

    await check_records(lambda: open_records("memory://mine"))

It uses nothing but the port, and raises AssertionError where a promise is broken. `fitting` is the meaning of a query in plain Python.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from engine.errors import DefinitionError, GeckoError, UnknownName, VersionInUse
from engine.records import DeadLetter, Failure, KeyEntry, LetterQuery, Page, Records, RunEntry, RunQuery, WorkflowEntry, WorkflowQuery

_AT = 1_790_000_000.0
_ODD = ("ä ö", "100%", "a_b", "a/b\\c", "'; DROP TABLE gecko_runs; --", "\N{SNOWMAN}", "İstanbul", "x" * 400)


async def check_records(make: Callable[[], Records]) -> None:
    """Check every promise of records. `make` opens the same place again at each call; the place holds nothing yet.

    Raises: AssertionError, naming the promise that is broken.
    """
    for check in (
        _check_entries_come_back,
        _check_newer_stays,
        _check_many_writers,
        _check_queries,
        _check_refusals,
        _check_pages,
        _check_pages_while_runs_are_added,
        _check_counts,
        _check_replacing,
        _check_replacing_while_others_write,
        _check_letters,
        _check_letters_of_runs,
        _check_workflows,
        _check_workflow_lists,
        _check_keys,
        _check_any_text,
    ):
        records = make()
        try:
            await check(records, make)
        finally:
            await _empty(records)
            await records.close()


def run(name: str = "a", **cells: object) -> RunEntry:
    """Return a run as an index holds it."""
    entry = RunEntry(
        run_id=f"flow.{name}.1", workflow="flow", session=name, n=1, status="running", started_at=_AT, updated_at=_AT + 1, seq=3
    )
    return replace(entry, **cells)  # type: ignore[arg-type]


def letter(name: str = "a", **cells: object) -> DeadLetter:
    """Return a dead letter of a run."""
    failure = Failure(attempt=1, type="ValueError", message="bad", traceback="Traceback ...", at=_AT + 1)
    found = DeadLetter(
        id=f"id-{name}", run_id=f"flow.{name}.1", workflow="flow", node="n", step_id=f"flow.{name}.1/n/1", input=b"\x00\xff",
        errors=(failure,), attempts=1, created_at=_AT + 1,
    )  # fmt: skip
    return replace(found, **cells)  # type: ignore[arg-type]


def fitting(entries: Iterable[RunEntry], query: RunQuery) -> list[RunEntry]:
    """Return what a query finds, in its order, on all its pages."""
    name, descending = query.order

    def fits(entry: RunEntry) -> bool:
        texts = "\n".join((entry.run_id, entry.workflow, entry.session, entry.error)).casefold()
        return (
            (not query.status or entry.status in query.status)
            and all(
                getattr(query, cell) in (None, getattr(entry, cell)) for cell in ("workflow", "session", "owner", "tenant", "coordinator")
            )
            and all(entry.labels.get(label) == text for label, text in query.labels.items())
            and (query.started_after is None or entry.started_at >= query.started_after)
            and (query.started_before is None or entry.started_at < query.started_before)
            and (query.updated_after is None or entry.updated_at >= query.updated_after)
            and (query.updated_before is None or entry.updated_at < query.updated_before)
            and query.search.casefold() in texts
        )

    def place(entry: RunEntry) -> tuple[object, str]:
        value = getattr(entry, name)
        return (float("inf") if value is None else value), entry.run_id

    return sorted(filter(fits, entries), key=place, reverse=descending)


async def _empty(records: Records) -> None:
    async def nothing() -> AsyncIterator[tuple[RunEntry, Sequence[DeadLetter]]]:
        for pair in ():
            yield pair

    await records.replace_index(nothing())
    assert (await records.list_runs(RunQuery())).total == 0, "an index that is made of nothing is empty"
    assert (await records.list_letters(LetterQuery(status=()))).total == 0, "of dead letters too"
    for name in {entry.name for entry in (await records.list_workflows(WorkflowQuery(limit=1000))).items}:
        await records.drop_workflow(name)
        await records.drop_workflow(name, tenant="t")


async def _check_entries_come_back(records: Records, make: Callable[[], Records]) -> None:
    full = run(
        "full", finished_at=_AT + 0.123456, priority=-5, labels={"team": "a", "x": ""}, owner="key-1", tenant="t", coordinator="c",
        error="ValueError: bad", target="pkg:flow", environment="e", hash="h", steps=7, resumes=2, updated_at=_AT + 0.1 + 0.2,
    )  # fmt: skip
    await records.put_runs([])
    await records.put_runs([run(), full])
    assert await records.get_run("flow.a.1") == run(), "an entry comes back as it was put"
    assert await records.get_run("flow.full.1") == full, "with all its fields, and instants to the last digit"
    assert await make().get_run("flow.full.1") == full, "and to whoever opens the place again"
    assert await records.get_run("flow.b.1") is None, "a run that is not there is None"
    assert await records.drop_runs(["flow.full.1", "nothing"]) == 1, "a drop tells how many there were"
    assert await records.get_run("flow.full.1") is None
    assert (await records.list_runs(RunQuery(labels={"team": "a"}))).total == 0, "what is dropped is found by nothing"
    await records.put_runs([run(f"many{i}") for i in range(1_203)])
    assert (await records.list_runs(RunQuery())).total == 1_204, "a batch may be of any size"
    assert await records.drop_runs([f"flow.many{i}.1" for i in range(1_203)]) == 1_203


async def _check_newer_stays(records: Records, make: Callable[[], Records]) -> None:
    await records.put_runs([run(seq=5, status="completed", labels={"a": "5"})])
    await records.put_runs([run(seq=4, labels={"a": "4"})])
    assert (await records.get_run("flow.a.1")) == run(seq=5, status="completed", labels={"a": "5"}), "what knows of less is no news"
    assert (await records.list_runs(RunQuery(labels={"a": "4"}))).total == 0, "nor are its labels"
    await records.put_runs([run(seq=5, status="completed", owner="me")])
    assert (await records.get_run("flow.a.1")) == run(seq=5, status="completed", owner="me"), "of those that know the same the last stays"
    assert (await records.list_runs(RunQuery(labels={"a": "5"}))).total == 0, "labels that are gone are found no more"
    await records.put_runs([run(seq=9), run(seq=7), run(seq=8)])
    assert (await records.get_run("flow.a.1")) == run(seq=9), "also of those of one batch the one that knows most"
    await records.put_runs([run(seq=1, started_at=_AT + 50)])
    assert (await records.get_run("flow.a.1")) == run(seq=1, started_at=_AT + 50), "a run that was begun anew under its id is another"
    await records.put_runs([run(seq=20)])
    assert (await records.get_run("flow.a.1")) == run(seq=1, started_at=_AT + 50), "and what was before it comes back no more"


async def _check_many_writers(records: Records, make: Callable[[], Records]) -> None:
    names = [f"w{i}" for i in range(20)]
    seqs = list(range(1, 41))

    async def write(number: int) -> None:
        chance = random.Random(number)
        mine = make()
        order = seqs[number % 2 :: 2] + seqs[:: number % 3 + 1]
        chance.shuffle(order)
        for seq in order:
            batch = [run(name, seq=seq, status="completed" if seq == 40 else "running", labels={"seq": str(seq)}) for name in names]
            chance.shuffle(batch)
            await mine.put_runs(batch)

    await asyncio.gather(*(write(number) for number in range(8)))
    page = await records.list_runs(RunQuery(limit=1000))
    assert page.total == len(names), "many writers make one entry of a run"
    assert {(entry.seq, entry.status) for entry in page.items} == {(40, "completed")}, "and the greatest number wins"
    assert (await records.list_runs(RunQuery(labels={"seq": "40"}))).total == len(names), "labels are those of the entry that won"
    assert (await records.list_runs(RunQuery(labels={"seq": "39"}))).total == 0


def _some() -> list[RunEntry]:
    return [
        run(
            "a",
            status="completed",
            started_at=_AT + 1,
            finished_at=_AT + 9,
            labels={"team": "red", "env": "prod"},
            owner="ann",
            tenant="t1",
        ),
        run("b", status="failed", started_at=_AT + 2, finished_at=_AT + 8, labels={"team": "red"}, error="ValueError: Größe", tenant="t2"),
        run("c", status="running", started_at=_AT + 3, labels={"team": "blue"}, owner="ann", coordinator="c-1", priority=3),
        run("d_1", status="running", started_at=_AT + 3, updated_at=_AT + 50, coordinator="c-2", workflow="other"),
        run("dx1", status="paused", started_at=_AT + 4, labels={"team": "re"}, error="100% of _all_ \\ failed"),
    ]


async def _check_queries(records: Records, make: Callable[[], Records]) -> None:
    entries = _some()
    await records.put_runs(entries)
    queries = [
        RunQuery(), RunQuery(status=("running",)), RunQuery(status={"failed", "paused"}), RunQuery(status=("nothing",)),
        RunQuery(workflow="other"), RunQuery(session="c"), RunQuery(owner="ann"), RunQuery(tenant="t1"), RunQuery(tenant=""),
        RunQuery(coordinator="c-2"), RunQuery(labels={"team": "red"}), RunQuery(labels={"team": "red", "env": "prod"}),
        RunQuery(labels={"team": "r%"}), RunQuery(started_after=_AT + 3), RunQuery(started_before=_AT + 3),
        RunQuery(started_after=_AT + 2, started_before=_AT + 4), RunQuery(updated_after=_AT + 2), RunQuery(updated_before=_AT + 2),
        RunQuery(search="FLOW.A"), RunQuery(search="grösse"), RunQuery(search="größe"), RunQuery(search="d_1"), RunQuery(search="%"),
        RunQuery(search="_all_ \\"), RunQuery(search="valueerror", tenant="t2"), RunQuery(search="/"), RunQuery(search="x" * 512),
        RunQuery(owner="ann", status=("running",), sort="priority"), RunQuery(sort="-finished_at"), RunQuery(sort="finished_at"),
    ]  # fmt: skip
    for query in queries:
        page = await records.list_runs(query)
        assert list(page.items) == fitting(entries, query), f"a query finds what it says: {query}"
        assert (page.total, page.next, page.offset, page.limit) == (len(page.items), None, 0, 20), f"with its true total: {query}"


async def _check_refusals(records: Records, make: Callable[[], Records]) -> None:
    wrong: tuple[dict[str, Any], ...] = (
        {"limit": 0}, {"limit": 1001}, {"limit": True}, {"offset": -1}, {"offset": 10**30}, {"search": "x" * 513}, {"search": 5},
        {"status": "running"}, {"started_after": float("nan")}, {"updated_before": "now"}, {"labels": {"a": 1}}, {"workflow": 7},
        {"after": "x", "offset": 1},
    )  # fmt: skip
    for cells in wrong:
        _refused(DefinitionError, lambda cells=cells: RunQuery(**cells), f"a query that cannot be is refused: {cells}")
    for kind, sort in ((RunQuery, "-startd_at"), (RunQuery, "searched"), (WorkflowQuery, "nam"), (LetterQuery, "-nodes")):
        _refused(UnknownName, lambda kind=kind, sort=sort: kind(sort=sort), f"an unknown order is refused: {sort}")
    _refused(UnknownName, lambda: LetterQuery(status=("opened",)), "an unknown status of dead letters is refused")
    await _raises(UnknownName, records.count_runs(RunQuery(), by="labels"), "runs are counted by what there is")
    for after in ("", "x", "%%%", "WzFd", "bnVsbA", "WyJzdGFydGVkX2F0IiwiYSIsImIiXQ", "W" * 5000):
        await _raises(DefinitionError, records.list_runs(RunQuery(after=after)), f"an after that is none is refused: {after[:20]}")
    await records.put_runs([run("a"), run("b")])
    page = await records.list_runs(RunQuery(limit=1))
    await _raises(DefinitionError, records.list_runs(RunQuery(after=page.next, sort="status")), "an after belongs to one order")


async def _check_pages(records: Records, make: Callable[[], Records]) -> None:
    entries = [run(f"p{i:02}", started_at=_AT + i % 3, finished_at=None if i % 4 else _AT + i % 5, status=f"s{i % 2}") for i in range(23)]
    await records.put_runs(entries)
    for sort in ("-started_at", "started_at", "finished_at", "-finished_at", "status", "-status", "run_id", "-seq"):
        wanted = fitting(entries, RunQuery(sort=sort))
        seen = await _all_pages(records, RunQuery(sort=sort, limit=5))
        assert seen == wanted, f"pages by their next are the whole list, equals too: {sort}"
        paged = [entry for n in range(0, 25, 5) for entry in (await records.list_runs(RunQuery(sort=sort, limit=5, offset=n))).items]
        assert paged == wanted, f"so are pages by offset: {sort}"
    beyond = await records.list_runs(RunQuery(offset=1000))
    assert (list(beyond.items), beyond.total, beyond.next) == ([], 23, None), "beyond the last page is an empty one with the true total"


async def _check_pages_while_runs_are_added(records: Records, make: Callable[[], Records]) -> None:
    entries = [run(f"s{i:03}", started_at=_AT + i) for i in range(100)]
    await records.put_runs(entries)
    done = asyncio.Event()

    async def add() -> None:
        mine, n = make(), 0
        while not done.is_set():
            await mine.put_runs([run(f"new{n:05}", started_at=_AT + 1000 + n), run(f"s{n % 100:03}", started_at=_AT + n % 100, seq=n + 4)])
            n += 1

    async def read() -> list[RunEntry]:
        try:
            return await _all_pages(records, RunQuery(limit=7))
        finally:
            done.set()

    async with asyncio.TaskGroup() as group:
        group.create_task(add())
        reading = group.create_task(read())
    seen = [entry.run_id for entry in reading.result()]
    assert len(seen) == len(set(seen)), "no run is on two pages while runs are added"
    old = [run_id for run_id in seen if run_id.startswith("flow.s")]
    assert old == [entry.run_id for entry in reversed(entries)], "and none is left out"


async def _check_counts(records: Records, make: Callable[[], Records]) -> None:
    await records.put_runs(_some())
    assert await records.count_runs(RunQuery()) == {"completed": 1, "failed": 1, "paused": 1, "running": 2}
    assert await records.count_runs(RunQuery(labels={"team": "red"}, limit=1), by="tenant") == {"t1": 1, "t2": 1}, "pages do not matter"
    assert await records.count_runs(RunQuery(), by="workflow") == {"flow": 4, "other": 1}
    found = await records.statistics(since=_AT)
    assert (found.runs["running"], found.failed, found.seconds) == (2, 1, 8.0), "statistics are counted"
    assert (await records.statistics(since=_AT + 100)).failed == 0
    mine = await records.statistics(tenant="t1")
    assert (dict(mine.runs), mine.failed) == ({"completed": 1}, 0), "a tenant's count is its own"


async def _check_replacing(records: Records, make: Callable[[], Records]) -> None:
    await records.put_runs([run("gone"), run("wrong", seq=99, labels={"a": "1"}), run("same")])
    await records.put_letters([letter("gone"), letter("marked"), letter("again")])
    await records.mark_letter("id-marked", "dropped")
    await records.mark_letter("id-again", "dropped")
    fresh = [run("wrong", seq=2), run("same"), run("new")]
    again = letter("again", created_at=_AT + 7)

    async def source() -> AsyncIterator[tuple[RunEntry, Sequence[DeadLetter]]]:
        assert (await records.list_runs(RunQuery())).total == 3, "while the source is read the index is as it was"
        for entry, letters in zip(fresh, ([letter("marked")], [again], []), strict=True):
            yield entry, letters

    await records.replace_index(source())
    assert list((await records.list_runs(RunQuery(sort="run_id"))).items) == sorted(fresh, key=lambda entry: entry.run_id)
    assert (await records.list_runs(RunQuery(labels={"a": "1"}))).total == 0, "labels of what is replaced are gone"
    letters = (await records.list_letters(LetterQuery(status=(), sort="run_id"))).items
    assert list(letters) == [again, letter("marked", status="dropped")], "a mark stays, but where the step failed again"

    async def broken() -> AsyncIterator[tuple[RunEntry, Sequence[DeadLetter]]]:
        yield run("half"), []
        raise UnknownName("the source ended")

    await _raises(UnknownName, records.replace_index(broken()), "an error of the source is told")
    assert (await records.list_runs(RunQuery())).total == 3, "and nothing was replaced"


async def _check_replacing_while_others_write(records: Records, make: Callable[[], Records]) -> None:
    await records.put_runs([run("old"), run("moves", seq=5)])

    async def source() -> AsyncIterator[tuple[RunEntry, Sequence[DeadLetter]]]:
        yield run("moves", seq=5), []
        await make().put_runs([run("moves", seq=6), run("began")])

    await records.replace_index(source())
    found = {entry.session: entry.seq for entry in (await records.list_runs(RunQuery())).items}
    assert found == {"moves": 6, "began": 3}, "what others put in meanwhile stays"


async def _check_letters(records: Records, make: Callable[[], Records]) -> None:
    await records.put_letters([])
    many = [letter("a"), letter("b", node="outer/inner", input=None, tenant="t", created_at=_AT + 2), letter("c", attempts=3)]
    await records.put_letters(many)
    assert [await records.get_letter(one.id) for one in many] == many, "a dead letter comes back as it was put"
    assert await records.get_letter("nothing") is None
    assert [one.id for one in (await records.list_letters(LetterQuery())).items] == ["id-b", "id-c", "id-a"], "newest first"
    for query, wanted in (
        (LetterQuery(tenant="t"), ["id-b"]), (LetterQuery(node="n", sort="attempts"), ["id-a", "id-c"]),
        (LetterQuery(run_id="flow.c.1"), ["id-c"]), (LetterQuery(search="FLOW.A"), ["id-a"]), (LetterQuery(search="valueerror: B"), 3),
        (LetterQuery(workflow="x"), []), (LetterQuery(status=("dropped", "replayed")), []),
    ):  # fmt: skip
        page = await records.list_letters(query)
        assert (page.total if isinstance(wanted, int) else [one.id for one in page.items]) == wanted, f"a query finds what it says: {query}"
    marked = await records.mark_letter("id-a", "replayed", replay_run_id="flow.a.2")
    assert marked == letter("a", status="replayed", replay_run_id="flow.a.2"), "a mark is kept"
    await records.put_letters([letter("a", input=None)])
    assert await records.get_letter("id-a") == marked, "and stays where the same letter is put again, whatever that lacks"
    await records.put_letters([letter("a", created_at=_AT)])
    assert await records.get_letter("id-a") == marked, "an older one is no news"
    newer = letter("a", created_at=_AT + 9)
    await records.put_letters([newer])
    assert await records.get_letter("id-a") == newer, "a step that failed again is open again"
    await records.put_letters([replace(newer, status="replayed", replay_run_id="flow.a.1")])
    assert (await records.list_letters(LetterQuery(status=("replayed",)))).total == 1, "a log that tells more closes it"
    await _raises(UnknownName, records.mark_letter("nothing", "dropped"), "what is not there cannot be marked")
    await _raises(UnknownName, records.mark_letter("id-a", "lost"), "nor as what there is not")
    assert (await records.statistics()).letters == {"open": 2, "replayed": 1}


async def _check_letters_of_runs(records: Records, make: Callable[[], Records]) -> None:
    await records.put_runs([run("a"), run("b")])
    await records.put_letters([letter("a"), letter("b")])
    await records.drop_runs(["flow.a.1"])
    assert [one.id for one in (await records.list_letters(LetterQuery())).items] == ["id-b"], "a run's dead letters go with it"


def _version(name: str, version: str, **cells: object) -> WorkflowEntry:
    entry = WorkflowEntry(name=name, version=version, hash=f"h{version}", created_at=_AT, updated_at=_AT)
    return replace(entry, **cells)  # type: ignore[arg-type]


async def _check_workflows(records: Records, make: Callable[[], Records]) -> None:
    first = _version(
        "flow", "1.0", description="Counts", definition='{"nodes": []}', metadata={"a": [1, {"b": None}], "ä": "\ud800"}, target="p:f"
    )
    assert await records.put_workflow(first) == first, "what is put comes back"
    await records.put_workflow(_version("flow", "1.1", created_at=_AT + 5, type="state_machine"))
    assert (await records.get_workflow("flow", "1.0")) == first
    newest = await records.get_workflow("flow")
    assert newest is not None, "without a version there is the newest"
    assert newest.version == "1.1", "which is the one that was put in last"
    assert await records.get_workflow("flow", "2") is None
    assert await records.get_workflow("flow", tenant="t") is None, "a tenant's names are its own"
    again = await records.put_workflow(replace(first, created_at=_AT + 9, updated_at=_AT + 9, description="Counts well"))
    assert (again.created_at, again.updated_at, again.description) == (_AT, _AT + 9, "Counts well"), "the same is put again"
    await _raises(VersionInUse, records.put_workflow(replace(first, hash="other")), "a version means one thing")
    await records.put_workflow(replace(first, hash="other", tenant="t"))
    answers = await asyncio.gather(*(make().put_workflow(_version("race", "1", hash=f"h{i}")) for i in range(6)), return_exceptions=True)
    won = [answer for answer in answers if not isinstance(answer, BaseException)]
    assert len(won) == 1, "of many definitions of one version one wins"
    assert all(isinstance(answer, VersionInUse) for answer in answers if isinstance(answer, BaseException)), "and the others are told"
    off = await records.update_workflow("flow", "1.1", at=_AT + 20, is_active=False, metadata={})
    assert (off.is_active, off.updated_at, off.metadata, off.hash) == (False, _AT + 20, {}, "h1.1"), "what is said may change"
    older = await records.get_workflow("flow")
    assert older is not None, "a version that is not active starts no new runs"
    assert older.version == "1.0"
    await _raises(UnknownName, records.update_workflow("flwo", "1.0", at=_AT), "what is not there cannot change")
    await _raises(UnknownName, records.update_workflow("flow", "3", at=_AT), "nor a version that is not there")
    await _raises(DefinitionError, records.put_workflow(_version("bad", "1", metadata={"a": object()})), "metadata is JSON")
    assert (await records.drop_workflow("flow", "1.0"), await records.drop_workflow("flow"), await records.drop_workflow("flow")) == (
        1,
        1,
        0,
    )
    assert await records.get_workflow("flow", "1.0", tenant="t") is not None, "another tenant's stays"


async def _check_workflow_lists(records: Records, make: Callable[[], Records]) -> None:
    for i in range(7):
        await records.put_workflow(
            _version(f"w{i}", "1", description=f"The {i}th", is_active=i % 2 == 0, created_at=_AT + i, updated_at=_AT - i)
        )
    await records.put_workflow(_version("w0", "2", tenant="t", type="state_machine"))
    for query, wanted in (
        (WorkflowQuery(limit=3, is_active=True, tenant=""), ["w0", "w2", "w4"]), (WorkflowQuery(search="THE 5TH"), ["w5"]),
        (WorkflowQuery(sort="-created_at", limit=2), ["w6", "w5"]), (WorkflowQuery(sort="updated_at", limit=1), ["w6"]),
        (WorkflowQuery(type="state_machine"), ["w0"]), (WorkflowQuery(name="w0"), ["w0", "w0"]), (WorkflowQuery(offset=7), ["w6"]),
    ):  # fmt: skip
        page = await records.list_workflows(query)
        assert [entry.name for entry in page.items] == wanted, f"a query finds what it says: {query}"
    first = await records.list_workflows(WorkflowQuery(limit=5))
    second = await records.list_workflows(WorkflowQuery(limit=5, after=first.next))
    assert (first.total, second.total, second.next) == (8, 8, None)
    assert [(entry.name, entry.version) for entry in (*first.items, *second.items)] == sorted(
        [*((f"w{i}", "1") for i in range(7)), ("w0", "2")]
    )
    await records.update_workflow("w1", "1", at=_AT, description="Now this")
    assert [entry.name for entry in (await records.list_workflows(WorkflowQuery(search="now THIS"))).items] == ["w1"]


async def _check_keys(records: Records, make: Callable[[], Records]) -> None:
    key = KeyEntry(id="k1", name="laptop", hash="sha256:a", role="viewer", tenant="t", created_at=_AT, expires_at=_AT + 100)
    await records.put_key(key)
    await records.put_key(key)
    await records.put_key(KeyEntry(id="k2", name="ci", hash="sha256:b", role="admin", created_at=_AT - 1))
    await _raises(DefinitionError, records.put_key(replace(key, name="x")), "an id is one key's")
    await _raises(DefinitionError, records.put_key(replace(key, id="k3")), "and so is a hash")
    assert await records.find_key("sha256:a") == key, "a key is found by its hash"
    assert await records.find_key("sha256:A") is None, "to the letter"
    assert [found.id for found in await records.list_keys()] == ["k2", "k1"], "oldest first"
    assert [found.id for found in await records.list_keys(tenant="t")] == ["k1"]
    await records.use_key("k1", _AT + 5)
    await records.use_key("k1", _AT + 4)
    await records.use_key("nothing", _AT)
    await records.revoke_key("k1", _AT + 50)
    revoked = await records.revoke_key("k1", _AT + 60)
    assert (revoked.last_used_at, revoked.revoked_at) == (_AT + 5, _AT + 50), "the first revocation and the last use stay"
    assert await make().find_key("sha256:a") == revoked
    assert not revoked.is_valid(_AT + 51)
    assert key.is_valid(_AT)
    assert not key.is_valid(_AT + 100)
    await _raises(UnknownName, records.revoke_key("k9", _AT), "a key that is not there cannot be revoked")


async def _check_any_text(records: Records, make: Callable[[], Records]) -> None:
    for i, text in enumerate((*_ODD, "nul\0in it", "half \ud800 pair", "\U0001f600" * 50)):
        entry = run(f"t{i}", session=text, error=text, labels={text: text}, owner=text)
        await records.put_runs([entry])
        found = await records.get_run(entry.run_id)
        assert found is not None
        assert found.labels == {text: text}, f"any text is a label: {text!r:.40}"
        if "\0" not in text and "\ud800" not in text:
            assert found == entry, f"any text comes back: {text!r:.40}"
        for query in (RunQuery(labels={text: text}), RunQuery(owner=text), RunQuery(session=text), RunQuery(search=text)):
            assert entry.run_id in [one.run_id for one in (await records.list_runs(query)).items], f"and is found: {text!r:.40}"


async def _all_pages(records: Records, query: RunQuery) -> list[RunEntry]:
    page: Page[RunEntry] = await records.list_runs(query)
    seen = list(page.items)
    while page.next is not None:
        page = await records.list_runs(replace(query, after=page.next))
        seen += page.items
    return seen


def _refused(kind: type[GeckoError], make: Callable[[], object], promise: str) -> None:
    try:
        make()
    except kind:
        return
    raise AssertionError(f"{promise}: {kind.__name__} was not raised")


async def _raises(kind: type[GeckoError], answer: Awaitable[object], promise: str) -> None:
    try:
        await answer
    except kind:
        return
    raise AssertionError(f"{promise}: {kind.__name__} was not raised")
