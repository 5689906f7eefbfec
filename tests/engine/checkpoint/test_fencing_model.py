"""The claim and append protocol of journal.py, checked over every interleaving of its own generators.

Processes take one disk operation at a time, in every order; any of them may stop for good at any operation; the power may fail
at any point, which loses any part of what was not synced. Then one more claimer runs alone, and must find every batch that was
acknowledged, and everything that a claimer or a follower was shown, at the beginning of the log. A process is known by what it
observed: generators are replayed from their observations, so that equal histories are one state. Each fault takes one operation
of the protocol away, and must be found out.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from itertools import chain, combinations, product
from typing import Any, NamedTuple

import pytest

from engine.checkpoint.batch import Record, Seal, Tail
from engine.checkpoint.journal import Create, Exists, Held, Present, Read, Sync, SyncFolder, Write, append, claim, commit, view, view_more
from engine.errors import CorruptCheckpoint
from engine.ports import Owner, RunKey

KEY = RunKey("w", "s", 1)
OWNER = Owner(id="o", host="h", pid=1)
Script = Callable[[], Generator[Any, Any, None]]
TORN = ("torn",)
FAILED = "failed"


class Told(NamedTuple):
    """Something that a process now acts upon: an acknowledged batch, or the rows it was shown."""

    kind: str
    value: Any


class Symbols(NamedTuple):
    """A segment of symbols: claim records, batches by name, and torn writes."""

    record: Record | None
    rows: tuple[Any, ...]
    end: int
    tail: Tail = Tail()
    released: bool = False

    @property
    def seal(self) -> Seal:
        return Seal(len(self.rows), self.end)


class SymbolFormat:
    key = KEY

    def claim(self, record: Record, rows: Any = ()) -> tuple[Any, Tail]:
        frozen = record._replace(seals=tuple(sorted(record.seals.items())))  # pyright: ignore[reportArgumentType]
        return (("claim", frozen, rows),), record.tail

    def batch(self, record: Record, at: int, rows: Any, before: Tail) -> tuple[Any, Tail]:
        return (("batch", rows),), before

    def segment(self, epoch: int, data: Any, *, seal: Seal | None = None) -> Any:
        if data is None:
            raise CorruptCheckpoint("a sealed segment is gone", file=str(epoch), offset=0)
        whole = data[: data.index(TORN)] if TORN in data else data
        if seal is not None and len(whole) < seal.end:
            raise CorruptCheckpoint("a sealed batch is gone", file=str(epoch), offset=len(whole))
        whole = whole if seal is None else whole[: seal.end]
        record = whole[0][1]._replace(seals=dict(whole[0][1].seals)) if whole and whole[0][0] == "claim" else None
        return Symbols(record, tuple(row for entry in whole for row in entry[-1]), len(whole))

    def more(self, before: Any, data: Any) -> Any:
        whole = data[: data.index(TORN)] if TORN in data else data
        return Symbols(before.record, tuple(row for entry in whole for row in entry[-1]), before.end + len(whole))


FORM = SymbolFormat()


class File(NamedTuple):
    n: int
    entries: tuple[Any, ...]
    synced: int
    """How many entries a power failure cannot take."""
    named: bool
    """Whether a power failure cannot take the file."""


Files = tuple[File, ...]


def rows_of(segments: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(row for segment in segments for row in segment.rows)


def writing(epoch: int, at: int, names: Sequence[str], skip: Callable[..., Any]) -> Generator[Any, Any, None]:
    for i, name in enumerate(names):
        if not (yield from skip(append(epoch, at + i, (("batch", (name,)),)))):
            return
        yield Told("acked", name)


def writer(*names: str, skip: Callable[..., Any] = iter) -> Script:
    return lambda: writing(1, 1, names, skip)


def claimer(*names: str, skip: Callable[..., Any] = iter, skip_append: Callable[..., Any] = iter) -> Script:
    def run() -> Generator[Any, Any, None]:
        claimed = yield from skip(claim(FORM, OWNER, since=0.0))
        if claimed is not None:
            yield Told("shown", rows_of(claimed.segments))
            yield from writing(claimed.record.epoch, claimed.seal.end, names, skip_append)

    return run


def mender(*names: str) -> Script:
    """A writer that goes on in a new segment when a write or a sync fails."""

    def run() -> Generator[Any, Any, None]:
        held = Held(record=Record(KEY, 1, OWNER, 0.0, {}, Tail()), seal=Seal(0, 1), tail=Tail())
        for name in names:
            try:
                if not (yield from commit(FORM, held, (name,), since=0.0, attempts=2)):
                    return
            except OSError:
                return
            yield Told("acked", name)

    return run


def follower(skip: Callable[..., Any] = iter, **options: bool) -> Script:
    def run() -> Generator[Any, Any, None]:
        seen = yield from skip(view(FORM, **options))
        if seen is not None and seen.segments:
            shown = rows_of(seen.segments)
            yield Told("shown", shown)
            more = yield from skip(view_more(FORM, seen))
            if more is not None:
                yield Told("shown", shown + rows_of(more.segments))

    return run


def without(*skipped: Any) -> Callable[..., Any]:
    """Take operations away: each is a function from operation to the answer pretended, or to None to let it pass."""

    def wrap(steps: Any) -> Generator[Any, Any, Any]:
        value = None
        try:
            disk = next(steps)
            while True:
                answer = next((found for skip in skipped if (found := skip(disk)) is not None), None)
                value = (yield disk) if answer is None else answer
                disk = steps.send(value)
        except StopIteration as end:
            return end.value

    return wrap


class Blind:
    """Pretends that nothing newer is there: the first question of a look is about a newer segment, the second about one's own."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, disk: Any) -> bool | None:
        if not isinstance(disk, Exists):
            return None
        self.asked += 1
        return self.asked % 2 == 0


class NoEarlierSync:
    """Leaves out the syncs of all segments but the one just made."""

    def __init__(self) -> None:
        self.own = 0

    def __call__(self, disk: Any) -> int | None:
        self.own = disk.n if isinstance(disk, Create) else self.own
        return 0 if isinstance(disk, Sync) and disk.n != self.own else None


def syncs_before_reading(steps: Any) -> Generator[Any, Any, Any]:
    """Sync an earlier segment, and read it afterwards: what was written between is sealed and not durable."""
    value, own, synced = None, 0, set()
    try:
        disk = next(steps)
        while True:
            if isinstance(disk, Create):
                own = disk.n
            if isinstance(disk, Read) and disk.n not in synced:
                yield Sync(disk.n)
                synced.add(disk.n)
            value = None if isinstance(disk, Sync) and disk.n != own else (yield disk)
            disk = steps.send(value)
    except StopIteration as end:
        return end.value


def skip_looks(steps: Any) -> Any:
    return without(Blind())(steps)


def skip_earlier_syncs(steps: Any) -> Any:
    return without(NoEarlierSync())(steps)


def skip_folder_sync(steps: Any) -> Any:
    return without(lambda disk: 0 if isinstance(disk, SyncFolder) else None)(steps)


def skip_syncs(steps: Any) -> Any:
    return without(lambda disk: 0 if isinstance(disk, Sync) else None)(steps)


class Node:
    """What one process has observed so far, and what it does next."""

    __slots__ = ("after", "disk", "done", "number", "seen", "told")

    def __init__(self, number: int, seen: tuple[Any, ...], disk: Any, told: frozenset[Told]) -> None:
        self.number, self.seen, self.disk, self.told = number, seen, disk, told
        self.done = disk is None
        self.after: dict[Any, Node] = {}


class Process:
    """A script, replayed from observations."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.count = 0
        self.ended: dict[frozenset[Told], Node] = {}
        self.first = self.replay(())

    def replay(self, seen: tuple[Any, ...]) -> Node:
        steps, told, answers, value = self.script(), set(), iter(seen), None
        try:
            while True:
                disk = steps.throw(OSError("failed")) if value == FAILED else steps.send(value)
                if isinstance(disk, Told):
                    told.add(disk)
                    value = None
                    continue
                value = next(answers, answers)
                if value is answers:
                    break
        except StopIteration:
            disk = None
        self.count += 1
        node = Node(self.count, seen, disk, frozenset(told))
        return self.ended.setdefault(node.told, node) if disk is None else node

    def after(self, node: Node, answer: Any) -> Node:
        if answer not in node.after:
            node.after[answer] = self.replay((*node.seen, answer))
        return node.after[answer]


class World:
    """A disk that many processes share, and what may become of it."""

    def __init__(self) -> None:
        self.done: dict[tuple[Files, str, Any, bool], tuple[Files, Any]] = {}
        self.logs: dict[Files, tuple[Any, ...] | str] = {}
        self.losses: dict[Files, frozenset[Files]] = {}

    def perform(self, files: Files, disk: Any, torn: bool) -> tuple[Files, Any]:
        key = (files, disk.verb, disk, torn)  # operations are tuples, equal where their numbers are
        if key not in self.done:
            self.done[key] = _perform(files, disk, torn)
        return self.done[key]

    def log(self, files: Files) -> tuple[Any, ...] | str:
        """What one last claimer finds, or what it raises."""
        if files not in self.logs:
            self.logs[files] = self._last_claim(files)
        return self.logs[files]

    def _last_claim(self, files: Files) -> tuple[Any, ...] | str:
        steps, answer = claim(FORM, OWNER, since=0.0), None
        try:
            while True:
                disk = steps.send(answer)
                files, answer = _perform(files, disk, True)
        except StopIteration as end:
            return rows_of(end.value.segments)
        except CorruptCheckpoint as error:
            return str(error)

    def after_power_failure(self, files: Files) -> frozenset[Files]:
        if files not in self.losses:
            self.losses[files] = frozenset(_lose(files))
        return self.losses[files]

    def find_loss(self, files: Files, told: frozenset[Told]) -> str | None:
        """Say what of `told` a stop of all processes, or a power failure, would take back."""
        for why, rest in chain([("stop", files)], (("power", lost) for lost in self.after_power_failure(files))):
            log = self.log(rest)
            if isinstance(log, str) or len(set(log)) != len(log):
                return f"{why}: {log}"
            for kind, value in told:
                if value not in log if kind == "acked" else log[: len(value)] != value:
                    return f"{why}: {kind} {value}, and the log is {log}"
        return None


def _perform(files: Files, disk: Any, torn: bool) -> tuple[Files, Any]:
    """Return the disk after an operation, and the operation's answer. A write is first torn, then whole."""
    at = next((i for i, file in enumerate(files) if file.n == getattr(disk, "n", None)), None)
    match disk:
        case Present():
            return files, tuple(file.n for file in files)
        case Exists():
            return files, at is not None
        case Create():
            return (files, False) if at is not None else ((*files, File(disk.n, (), 0, False)), True)
        case SyncFolder():
            return tuple(file._replace(named=True) for file in files), None
        case Read():
            return files, None if at is None else files[at].entries[disk.start :]
    assert at is not None, disk
    file = files[at]
    match disk:
        case Sync():
            file = file._replace(synced=len(file.entries))
        case Write():
            assert len(file.entries) == disk.at + (1 if torn and TORN in file.entries else 0)
            file = file._replace(entries=file.entries[: disk.at] + ((disk.data[0],) if torn else (TORN,)))
    return (*files[:at], file, *files[at + 1 :]), None


def _lose(files: Files) -> Iterator[Files]:
    """Every disk that a power failure may leave: any part of what was not synced, any names that were not."""
    unnamed = [file.n for file in files if not file.named]
    for gone in chain.from_iterable(combinations(unnamed, k) for k in range(len(unnamed) + 1)):
        kept = [file for file in files if file.n not in gone]
        for sizes in product(*(range(file.synced, len(file.entries) + 1) for file in kept)):
            yield tuple(File(file.n, file.entries[:size], size, True) for file, size in zip(kept, sizes, strict=True))


def explore(*scripts: Script, failures: int = 0) -> tuple[str | None, int]:
    """Try every interleaving; return the first loss found, or None, and the number of states.

    The first process meets up to so many failing writes and syncs, at any of them.
    """
    world, processes = World(), [Process(script) for script in scripts]
    files: Files = (File(1, FORM.claim(Record(KEY, 1, OWNER, 0.0, {}, Tail()))[0], 1, True),)
    start = (files, tuple((process.first, False) for process in processes))
    stack, known, checked = [start], {start}, set()
    while stack:
        files, states = stack.pop()
        told = frozenset().union(*(node.told for node, _ in states))
        if (files, told) not in checked:
            checked.add((files, told))
            if loss := world.find_loss(files, told):
                return loss, len(known)
        for i, (node, torn) in enumerate(states):
            if node.done:
                continue
            after, answer = world.perform(files, node.disk, torn)
            moved = (node, True) if isinstance(node.disk, Write) and not torn else (processes[i].after(node, answer), False)
            moves = [(after, moved)]
            if i == 0 and isinstance(node.disk, Write | Sync) and node.seen.count(FAILED) < failures:
                moves.append((files, (processes[i].after(node, FAILED), False)))  # a write that fails leaves all, a part, or nothing
                if isinstance(node.disk, Write):
                    moves.append((after, (processes[i].after(node, FAILED), False)))
            for then, next_state in moves:
                state = (then, (*states[:i], next_state, *states[i + 1 :]))
                if state not in known:
                    known.add(state)
                    stack.append(state)
    return None, len(known)


W2 = writer("w1", "w2")


def test_a_writer_and_a_claimer_lose_nothing() -> None:
    loss, states = explore(W2, claimer("a1"))
    assert loss is None
    assert states > 500, "not every interleaving was tried"


@pytest.mark.slow
def test_a_writer_a_claimer_and_a_follower_lose_nothing() -> None:
    loss, states = explore(W2, claimer("a1"), follower())
    assert loss is None
    assert states > 10_000, "not every interleaving was tried"


@pytest.mark.slow
def test_a_writer_and_two_claimers_lose_nothing() -> None:
    loss, states = explore(W2, claimer("a1"), claimer("b1"))
    assert loss is None
    assert states > 50_000, "not every interleaving was tried"


@pytest.mark.slow
def test_a_writer_two_claimers_and_a_follower_lose_nothing() -> None:
    loss, states = explore(writer("w1"), claimer("a1"), claimer(), follower())
    assert loss is None
    assert states > 300_000, "not every interleaving was tried"


@pytest.mark.slow
def test_a_writer_that_meets_failing_writes_and_syncs_loses_nothing() -> None:
    assert explore(mender("w1", "w2"), follower(), failures=2)[0] is None
    assert explore(mender("w1", "w2"), claimer("a1"), failures=2)[0] is None
    loss, states = explore(mender("w1", "w2"), claimer("a1"), follower(), failures=1)
    assert loss is None
    assert states > 100_000, "not every interleaving was tried"


FAULTS = {
    "no look after a write": (writer("w1", "w2", skip=skip_looks), claimer("a1", skip_append=skip_looks)),
    "no sync of earlier segments": (W2, claimer("a1", skip=skip_earlier_syncs)),
    "no sync of the folder": (W2, claimer("a1", skip=skip_folder_sync)),
    "no look after a claim": (writer("w1"), claimer("a1", skip=skip_looks), claimer("b1", skip=skip_looks)),
    "no sync by a reader": (W2, follower(skip=skip_syncs)),
    "a reader goes by an old record": (W2, claimer("a1"), follower(provisional=True)),
    "earlier segments are synced, and read afterwards": (W2, claimer("a1", skip=syncs_before_reading)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_step_of_the_protocol_is_needed(fault: str) -> None:
    loss, _ = explore(*FAULTS[fault])
    assert loss is not None, f"{fault}, and nothing was lost: the check proves nothing"


def test_a_mender_that_trusted_its_broken_segment_would_repeat_rows() -> None:
    def trusting() -> Generator[Any, Any, None]:
        try:
            yield from append(1, 1, (("batch", ("w1",)),))
        except OSError:
            claimed = yield from claim(FORM, OWNER, since=0.0)  # as if it knew nothing of the batch
            if claimed is not None:
                yield from append(claimed.record.epoch, claimed.seal.end, (("batch", ("w1",)),))

    loss, _ = explore(trusting, failures=1)
    assert loss == "stop: ('w1', 'w1')"
