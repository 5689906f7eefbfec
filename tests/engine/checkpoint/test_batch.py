"""Batches and claim records: what pyarrow reads of them, and what becomes of torn, flipped and foreign bytes."""

import random
from collections.abc import Sequence
from zlib import crc32

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.checkpoint.arrow import SCHEMA
from engine.checkpoint.batch import BatchFormat, Record, Seal, Tail
from engine.errors import CheckpointError, CorruptCheckpoint, UnknownFormat
from engine.ports import Owner, Row, RunKey

KEY = RunKey("flow", "session", 1)
RECORD = Record(KEY, 2, Owner(id="o1", host="h", pid=7), 5.0, {1: Seal(3, 4096)}, Tail("running", 9, 1.5, 2.5))
FORM = BatchFormat(KEY)
ROWS = [Row(10, 3.25, "run_started", info=b"i"), Row(11, 4.5, "step_succeeded", "n", "n/1", b"out", b"", None)]

text = st.text(st.characters(codec="utf-8"), max_size=20)
value = st.none() | st.binary(max_size=40)
rows_of_any_kind = st.lists(
    st.builds(Row, st.integers(1, 2**62), st.integers(0, 2**40).map(lambda us: us / 1_000_000), text, text, text, value, value, value),
    min_size=1,
    max_size=12,
)


def segment(*batches: Sequence[Row], record: Record = RECORD) -> tuple[bytes, list[int]]:
    """A segment with a claim record and batches, and where each batch begins; its end comes last."""
    data, tail = FORM.claim(record)
    places = []
    for rows in batches:
        places.append(len(data))
        batch, tail = FORM.batch(record, len(data), rows, tail)
        data += batch
    return data, [*places, len(data)]


def row(seq: int) -> list[Row]:
    return [Row(seq, 1.0, "note", info=b"x" * 50)]


def test_a_segment_gives_back_its_record_and_its_rows() -> None:
    data, places = segment(ROWS, row(12))
    found = FORM.segment(2, data)
    assert found.record == RECORD
    assert found.rows == [*ROWS, *row(12)]
    assert found.seal == Seal(2, len(data))
    assert found.batches == tuple(places[:2])
    assert found.tail == Tail("running", 12, 1.5, 1.0)
    assert not found.torn


def test_a_claim_record_can_hold_rows() -> None:
    data, tail = FORM.claim(RECORD, ROWS)
    found = FORM.segment(2, data)
    assert (found.rows, found.seal, found.tail) == (ROWS, Seal(1, len(data)), tail)
    assert tail == Tail("running", 11, 1.5, 4.5)


def test_a_release_ends_the_ownership_and_keeps_the_tail() -> None:
    data, _ = segment(ROWS)
    found = FORM.segment(2, data + FORM.release(RECORD, len(data), Tail("running", 11, 1.5, 4.5)))
    assert found.released
    assert found.tail == Tail("running", 11, 1.5, 4.5)
    assert found.rows == ROWS


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 63, 64, 65, 128, 129])
@pytest.mark.parametrize("missing", ["none", "some", "all"])
def test_pyarrow_reads_as_many_rows_as_there_are_and_which_values_are_missing(count: int, missing: str) -> None:
    def cell(i: int) -> bytes | None:
        return None if missing == "all" or (missing == "some" and i % 3) else b"v" * (i % 5)

    rows = [Row(i, 1.0, "note", "ñ" * (i % 4), f"n/{i}", cell(i), cell(i + 1), None) for i in range(1, count + 1)]
    data, _ = segment(rows)
    with pa.ipc.open_stream(data + bytes(512)) as reader:
        batch = list(reader)[1]
    batch.validate(full=True)
    assert batch.column("node").to_pylist() == [row.node for row in rows]
    assert batch.column("output").to_pylist() == [row.output for row in rows]
    assert batch.column("diff").to_pylist() == [row.diff for row in rows]
    assert batch.column("info").null_count == count
    assert FORM.segment(2, data).rows == rows


@given(st.lists(rows_of_any_kind, max_size=3))
@settings(max_examples=60)
def test_pyarrow_reads_every_segment_as_a_stream(batches: list[list[Row]]) -> None:
    data, _ = segment(*batches)
    with pa.ipc.open_stream(data + bytes(512)) as reader:
        found = list(reader.iter_batches_with_custom_metadata())
    assert [batch.num_rows for batch, _ in found] == [0, *map(len, batches)]
    for (batch, metadata), rows in zip(found, [[], *batches], strict=True):
        batch.validate(full=True)
        assert metadata[b"gecko"].startswith(b'{"gecko":1,"sum":"')
        table = batch.set_column(1, "at", batch.column("at").cast(pa.int64())).to_pylist()
        assert [tuple(cells.values()) for cells in table] == [(r.seq, round(r.at * 1_000_000), *r[2:]) for r in rows]
    assert FORM.segment(2, data).rows == [r for rows in batches for r in rows]


def test_a_table_of_the_log_has_typed_columns() -> None:
    schema = pa.ipc.open_stream(segment(ROWS)[0]).schema
    large, instant = pa.large_binary(), pa.timestamp("us", tz="UTC")
    assert schema.names == ["seq", "at", "kind", "node", "step", "output", "diff", "info"]
    assert schema.types == [pa.int64(), instant, pa.string(), pa.string(), pa.string(), large, large, large]


def test_every_cut_of_a_segment_leaves_the_batches_before_it() -> None:
    data, places = segment(row(10), row(11), row(12))
    first = places[0]
    for size in range(len(data)):
        found = FORM.segment(2, data[:size])
        whole = sum(1 for end in places[1:] if end <= size)
        assert len(found.rows) == whole
        assert (found.record is not None) == (size >= first)
        assert found.end == (0 if size < first else [first, *places[1:]][whole])


def test_zeros_behind_the_end_are_no_torn_batch() -> None:
    data, _ = segment(ROWS)
    assert not FORM.segment(2, data + bytes(5000)).torn
    assert FORM.segment(2, data + b"\xff\xff").torn


def test_a_flipped_bit_in_the_last_batch_cuts_it() -> None:
    data, places = segment(row(10), row(11))
    for at in range(places[1], places[2]):
        found = FORM.segment(2, _flip(data, at))
        assert [r.seq for r in found.rows] == [10], f"byte {at}"


def test_a_flipped_bit_before_a_whole_batch_is_damage_and_never_a_cut() -> None:
    data, places = segment(row(10), row(11))
    for at in range(places[1]):
        with pytest.raises(CorruptCheckpoint) as caught:
            FORM.segment(2, _flip(data, at))
        assert caught.value.offset == (0 if at < places[0] else places[0])


def test_damage_inside_a_seal_names_file_and_offset() -> None:
    data, places = segment(row(10), row(11))
    form = BatchFormat(KEY, "/store/{}.arrows".format)
    for at in range(0, places[2], 7):
        with pytest.raises(CorruptCheckpoint, match=r"/store/2\.arrows at byte") as caught:
            form.segment(2, _flip(data, at), seal=Seal(2, places[2]))
        assert caught.value.file == "/store/2.arrows"
    assert form.segment(2, _flip(data, places[1]), seal=Seal(1, places[1])).rows == row(10), "what lies behind the seal does not count"


def test_a_segment_shorter_than_its_seal_is_damage() -> None:
    data, places = segment(row(10), row(11))
    for size in (0, 100, places[1], places[2] - 8):
        with pytest.raises(CorruptCheckpoint):
            FORM.segment(2, data[:size], seal=Seal(2, places[2]))
    with pytest.raises(CorruptCheckpoint):
        FORM.segment(2, None, seal=Seal(2, places[2]))


def test_a_batch_counts_only_at_its_place_and_in_its_epoch() -> None:
    data, places = segment(row(10), row(11))
    assert FORM.segment(2, data[: places[1]] + data[places[0] : places[1]]).rows == row(10)
    assert FORM.segment(3, data).record is None


def test_a_newer_format_is_named_and_not_guessed_at() -> None:
    data, places = segment(row(10))
    for at in (0, places[0]):
        text = at + (len(SCHEMA) if at == 0 else 0)
        newer = bytearray(data)
        mark = newer.index(b'{"gecko":1', text)
        newer[mark : mark + 10] = b'{"gecko":2'
        _sign(newer, at, mark, epoch=2)
        with pytest.raises(UnknownFormat, match="format 2"):
            FORM.segment(2, bytes(newer))


@given(st.binary(max_size=3000), st.integers(0, 4000), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_random_bytes_are_cut_or_named(noise: bytes, at: int, rng: random.Random) -> None:
    data, _ = segment(ROWS, row(12), row(13))
    at = min(at, len(data))
    broken = data[:at] + noise + (data[at + rng.randrange(50) :] if rng.random() < 0.5 else b"")
    try:
        found = FORM.segment(2, broken)
    except CheckpointError:
        return
    assert found.rows == [*ROWS, *row(12), *row(13)][: len(found.rows)]


def test_an_outline_is_read_from_both_ends() -> None:
    data, _ = segment(ROWS, [Row(12, 1.0, "run_paused", output=bytes(300_000))])
    counted: list[int] = []

    def read(start: int, count: int) -> bytes:
        counted.append(count)
        return padded[start : start + count]

    for padded in (data, data + bytes(70_000), data + b"torn" * 20):
        outline = FORM.outline(2, len(padded), read)
        assert outline is not None
        assert outline[1] == Tail("paused", 12, 1.5, 1.0)
    only_record = FORM.claim(RECORD)[0]
    assert FORM.outline(2, len(only_record), lambda start, count: only_record[start : start + count]) == (RECORD, RECORD.tail, False)
    assert FORM.outline(2, 40, lambda start, count: only_record[:40][start : start + count]) is None


def _flip(data: bytes, at: int) -> bytes:
    broken = bytearray(data)
    broken[at] ^= 1 << at % 8
    return bytes(broken)


def _sign(data: bytearray, at: int, mark: int, *, epoch: int) -> None:
    place = mark + len(b'{"gecko":1,"sum":"')
    size = int(data[place + 18 : place + 30], 16)
    data[place : place + 8] = b"00000000"
    data[place : place + 8] = b"%08x" % crc32(data[at : at + size], crc32(b"%d@%d" % (epoch, at)))
