"""The order of disk operations, and what a claim, a repair, a view and a removal do with segments that are there."""

from collections.abc import Sequence
from typing import Any

import pytest

from engine.checkpoint.batch import NOTHING, BatchFormat, Seal, Tail
from engine.checkpoint.journal import Claimed, Held, append, claim, commit, delete, look, perform, view
from engine.errors import CorruptCheckpoint
from engine.ports import Owner, Row, RunKey
from engine.store.memory import MemoryMedium, MemoryPlace

KEY = RunKey("w", "s", 1)
OWNER = Owner(id="o", host="h", pid=1)
FORM = BatchFormat(KEY)


class Recorder:
    """A place in memory that lists what is asked of it, and fails where it is told to."""

    def __init__(self, *failing: tuple[str, int], inner: MemoryPlace | None = None) -> None:
        self.inner = inner or MemoryPlace(MemoryMedium("memory://", OWNER), KEY)
        self.asked: list[str] = []
        self.failing = list(failing)

    def __getattr__(self, verb: str) -> Any:
        def call(*args: Any) -> Any:
            numbers = [arg for arg in args if isinstance(arg, int)]
            self.asked.append(" ".join([verb, *map(str, numbers[:1])]))
            if numbers and (verb, numbers[0]) in self.failing:
                self.failing.remove((verb, numbers[0]))
                raise OSError(5, "failed")
            return getattr(self.inner, verb)(*args)

        return call


def rows(*seqs: int) -> list[Row]:
    return [Row(seq, float(seq), "note") for seq in seqs]


def claimed(place: Any) -> Claimed:
    found = perform(claim(FORM, OWNER, since=1.0), place)
    assert found is not None
    return found


def held(found: Claimed) -> Held:
    return Held(record=found.record, seal=found.seal, tail=found.tail)


def seqs(place: Any, **options: bool) -> list[int]:
    seen = perform(view(FORM, **options), place)
    assert seen is not None
    return [row.seq for row in seen.rows]


def test_a_first_claim_makes_a_file_durable_before_its_record() -> None:
    place = Recorder()
    claimed(place)
    assert place.asked == ["present", "create 1", "sync 1", "sync_folder", "write 1", "sync 1", "exists 2", "exists 1"]


def test_a_later_claim_reads_unsealed_segments_before_it_syncs_them() -> None:
    place = Recorder()
    assert perform(commit(FORM, held(claimed(place)), rows(1), since=1.0), place)
    place.asked.clear()
    found = claimed(place)
    opening = ["present", "create 2", "sync 2", "sync_folder", "read 1", "sync 1"]
    assert place.asked == [*opening, "write 2", "sync 2", "exists 3", "exists 2", "read 1"]
    assert [segment.seal for segment in found.segments] == [found.record.seals[1]]
    place.asked.clear()
    third = claimed(place)
    assert place.asked[4:6] == ["read 2", "sync 2"], "what a record has sealed is not looked at again before the claim is won"
    assert third.record.seals == {**found.record.seals, 2: found.seal}


def test_an_append_is_one_write_a_sync_and_a_look() -> None:
    place = Recorder()
    mine = held(claimed(place))
    place.asked.clear()
    assert perform(commit(FORM, mine, rows(1, 2), since=1.0), place)
    assert place.asked == ["write 1", "sync 1", "exists 2", "exists 1"]


def test_a_look_asks_for_the_next_segment_before_its_own() -> None:
    place = Recorder()
    claimed(place)
    place.asked.clear()
    assert perform(look(1), place)
    assert place.asked == ["exists 2", "exists 1"]
    assert not perform(look(2), place), "one's own segment is gone"
    claimed(place)
    assert not perform(look(1), place), "a newer one is there"


def test_of_two_creators_the_slower_one_gets_nothing() -> None:
    place = Recorder()
    steps = claim(FORM, OWNER, since=1.0)
    steps.send(None)
    claimed(place)
    create = steps.send(place.inner.present()[:0])
    assert place.inner.create(*create) is False
    with pytest.raises(StopIteration) as stop:
        steps.send(False)
    assert stop.value.value is None


def test_an_old_owner_learns_that_it_lost() -> None:
    place = Recorder()
    old = held(claimed(place))
    new = held(claimed(place))
    assert not perform(commit(FORM, old, rows(1), since=1.0), place)
    assert perform(commit(FORM, new, rows(1), since=1.0), place)
    assert seqs(place) == [1]


@pytest.mark.parametrize("failing", [[("write", 1)], [("sync", 1)], [("sync", 1), ("write", 2)], [("sync", 1), ("sync", 2)]])
def test_a_failed_write_or_sync_goes_on_in_a_new_segment(failing: Sequence[tuple[str, int]]) -> None:
    place = Recorder()
    mine = held(claimed(place))
    assert perform(commit(FORM, mine, rows(1), since=1.0), place)
    first = mine.seal
    place.failing, place.asked = list(failing), []
    assert perform(commit(FORM, mine, rows(2), since=1.0), place)
    assert "read 1" not in place.asked, "what failed is not trusted, so it is not read"
    assert place.asked.count("sync 1") <= 1, "a sync is never tried again"
    assert mine.record.seals[1] == first
    assert all(mine.record.seals[n] == NOTHING for n in range(2, mine.record.epoch))
    assert perform(commit(FORM, mine, rows(3), since=1.0), place)
    assert seqs(place) == [1, 2, 3]
    assert [row.seq for segment in claimed(place).segments for row in segment.rows] == [1, 2, 3]


def test_a_disk_that_keeps_failing_is_given_up_and_taken_up_again() -> None:
    place = Recorder()
    mine = held(claimed(place))
    place.failing = [("sync", 1), ("create", 2), ("create", 2)]
    with pytest.raises(OSError, match="failed"):
        perform(commit(FORM, mine, rows(1), since=1.0, attempts=3), place)
    assert not place.failing, "three attempts were made"
    assert perform(commit(FORM, mine, rows(1, 2), since=1.0), place)
    assert seqs(place) == [1, 2]


def test_a_repair_stops_where_another_owner_came_first() -> None:
    place = Recorder()
    mine = held(claimed(place))
    place.failing = [("sync", 1)]
    steps = commit(FORM, mine, rows(1), since=1.0)
    value: Any = None
    try:
        while True:
            disk = steps.send(value)
            if mine.broken:
                break
            try:
                value = getattr(place, disk.verb)(*disk)
            except OSError as error:
                disk = steps.throw(error)
                break
    except StopIteration:
        pytest.fail("the sync did not fail")
    theirs = claimed(place)
    assert disk.verb == "present"
    with pytest.raises(StopIteration) as stop:
        steps.send(place.inner.present())
    assert stop.value.value is False
    assert theirs.record.epoch == 2


def test_a_claim_without_a_record_hides_the_run_until_it_is_provisional() -> None:
    place = Recorder()
    mine = held(claimed(place))
    assert perform(commit(FORM, mine, rows(1), since=1.0), place)
    assert place.inner.create(2)
    seen = perform(view(FORM), place)
    assert seen is not None
    assert (seen.provisional, seen.rows) == (True, [])
    late = perform(view(FORM, provisional=True), place)
    assert late is not None
    assert (late.provisional, [row.seq for row in late.rows]) == (True, [1])
    assert [row.seq for segment in claimed(place).segments for row in segment.rows] == [1]
    assert seqs(place) == [1]


def test_a_reader_syncs_what_it_read_and_looks_before_it_delivers() -> None:
    place = Recorder()
    assert perform(commit(FORM, held(claimed(place)), rows(1), since=1.0), place)
    claimed(place)
    place.asked.clear()
    assert seqs(place) == [1]
    assert place.asked == ["present", "read 2", "sync 2", "read 1", "exists 3", "exists 2"]


def test_what_lies_behind_a_seal_is_never_read() -> None:
    place = Recorder()
    mine = held(claimed(place))
    assert perform(commit(FORM, mine, rows(1), since=1.0), place)
    claimed(place)
    data, _ = FORM.batch(mine.record, mine.seal.end, rows(2), mine.tail)
    assert not perform(append(1, mine.seal.end, data), place)
    assert seqs(place) == [1]
    assert [row.seq for segment in claimed(place).segments for row in segment.rows] == [1]


def test_a_sealed_segment_that_is_missing_is_damage() -> None:
    place = Recorder()
    assert perform(commit(FORM, held(claimed(place)), rows(1), since=1.0), place)
    claimed(place)
    place.inner.remove(1)
    with pytest.raises(CorruptCheckpoint, match="segment 1"):
        perform(view(FORM), place)


def test_a_removal_goes_upwards_and_leaves_a_tombstone() -> None:
    place = Recorder()
    old = held(claimed(place))
    assert perform(commit(FORM, old, rows(1), since=1.0), place)
    claimed(place)
    place.asked.clear()
    assert perform(delete(FORM, OWNER, since=2.0), place) is not None
    assert [asked for asked in place.asked if asked.startswith("remove")] == ["remove 1", "remove 2"]
    seen = perform(view(FORM), place)
    assert seen is not None
    assert seen.record is not None
    assert seen.record.deleted
    assert seen.rows == []
    with pytest.raises(OSError, match="removed"):
        perform(append(1, 5000, b"late"), place)
    fresh = claimed(place)
    assert (fresh.segments, fresh.tail, fresh.record.seals) == ([], Tail(), {3: NOTHING})
    mine = held(fresh)
    assert perform(commit(FORM, mine, rows(1), since=1.0), place)
    assert seqs(place) == [1]
    assert claimed(place).record.seals[4] == Seal(1, mine.seal.end)
