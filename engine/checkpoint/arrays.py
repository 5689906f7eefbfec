"""NumPy arrays and scalars as .npy bytes, Arrow data as IPC streams, and back without a copy where that is possible.

Arrays and tables stand at aligned places, so that a reader of the bytes can look at them where they lie. Objects in arrays are refused,
and no header is trusted. NumPy and Arrow are imported inside the functions, when a value of theirs passes.
"""

import ast
import math
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any, Final

from msgspec.msgpack import Decoder, Encoder

from engine.checkpoint.data import ARROW_KINDS, arrow_types, refuse

_NPY: Final = b"\x93NUMPY\x03\x00"
ALIGN: Final = 16
"""Arrays and tables stand at multiples of this, as the bytes object does: then they are read without a copy."""
SMALL: Final = 4096
"""Bytes up to which a decoded array is copied: a view would keep the whole buffer that it was read from."""

_VIEW: Final = re.compile(rb"\xc9.{4}[\x0f\x11-\x14]", re.DOTALL)
"""The header of an array or a table: an extension with a length of four bytes, and one of their tags."""
_PACK: Final = Encoder().encode
_UNPACK: Final = Decoder().decode


def holds_views(data: bytes | memoryview) -> bool:
    """Tell whether encoded bytes may hold an array or a table; now and then other bytes look the same."""
    return _VIEW.search(data) is not None


def number_form(item: Any) -> bytes:
    """A NumPy scalar: its dtype and bytes; text and bytes as they are; one with fields as an array without axes."""
    import numpy as np

    if isinstance(item, np.str_):
        return _PACK(["U", str.__str__(item).encode("utf-8", "surrogatepass")])
    if isinstance(item, np.bytes_):
        return _PACK(["S", bytes.__bytes__(item)])
    if isinstance(item, np.void):
        return _PACK(["V", b"".join([array_head(np.asarray(item)), item.tobytes()])])
    if item.dtype.hasobject or np.dtype(item.dtype.str) != item.dtype:
        refuse(item, "its dtype has no name of its own in NumPy; convert it")
    return _PACK([item.dtype.str, item.tobytes()])


def read_number(data: memoryview) -> Any:
    """The scalar that `number_form` wrote."""
    import numpy as np

    form, raw = _UNPACK(data)
    if form == "U":
        return np.str_(raw.decode("utf-8", "surrogatepass"))
    if form == "S":
        return np.bytes_(raw)
    if form == "V":
        return read_array(memoryview(raw))[()].copy()
    dtype = np.dtype(form)
    if dtype.itemsize != len(raw):
        raise ValueError(f"a scalar of {form} does not take {len(raw)} bytes")
    return np.frombuffer(raw, dtype)[0]


def array_head(array: Any, *, at: int = 0) -> bytes:
    """The header of the .npy format, version 3, which any NumPy reads; padded so that what follows is aligned if it stands at `at`."""
    import numpy as np

    if array.dtype.hasobject:
        refuse(array, "an array of Python objects is no data; use a list, or a dtype of numbers or text")
    form = np.lib.format.header_data_from_array_1_0(array)
    if np.lib.format.descr_to_dtype(form["descr"]) != array.dtype:
        refuse(array, f"NumPy cannot name its dtype {array.dtype}; convert it")
    text = repr(form).encode()
    text += b" " * (-(at + len(_NPY) + 4 + len(text) + 1) % ALIGN) + b"\n"
    return _NPY + struct.pack("<I", len(text)) + text


def plain_array(item: Any) -> Any:
    """The array without what memmap and recarray add to it; all other subclasses are refused."""
    import numpy as np

    if type(item) not in (np.ndarray, np.memmap, np.recarray):
        refuse(item, "a subclass of numpy.ndarray would lose what it adds; pass numpy.asarray(it)")
    return np.asarray(item)


def array_parts(array: Any, limit: int) -> Iterator[bytes | memoryview]:
    """The elements of an array in pieces of about `limit` bytes, in C order, or in that of its memory where the header says Fortran."""
    import numpy as np

    if not array.flags.c_contiguous and array.flags.f_contiguous:
        array = array.T
    if array.flags.c_contiguous:
        raw = array.reshape(-1).view(np.uint8).data
        for at in range(0, len(raw), limit):
            yield raw[at : at + limit]
        return
    rows = max(1, limit * len(array) // array.nbytes)
    for at in range(0, len(array), rows):
        yield array[at : at + rows].tobytes()


def read_array(data: memoryview) -> Any:
    """The array of a header and its bytes: a read-only view of them, or a copy of few or of badly aligned ones."""
    import numpy as np

    if data[: len(_NPY)] != _NPY:
        raise ValueError("this is no .npy array of version 3")
    start = len(_NPY) + 4
    end = start + struct.unpack_from("<I", data, len(_NPY))[0]
    form = ast.literal_eval(str(data[start:end], "utf-8"))
    dtype, shape = np.lib.format.descr_to_dtype(form["descr"]), form["shape"]
    raw = data[end:]
    if dtype.hasobject or any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError("the header of an array does not fit its bytes")
    array = np.ndarray(shape, dtype, raw, order="F" if form["fortran_order"] else "C")
    if len(raw) <= SMALL or not array.flags.aligned:
        array = array.copy("K")
    array.flags.writeable = False
    return array


def arrow_kind(item: Any) -> str:
    """Which of `ARROW_KINDS` an Arrow value is."""
    return next(name for name, kind in zip(ARROW_KINDS, arrow_types(), strict=True) if isinstance(item, kind))


def arrow_parts(item: Any, limit: int | None) -> Iterator[bytes]:
    """The IPC stream of an Arrow value as a table, in batches of about `limit` bytes; arrays become a column without a name."""
    import pyarrow as pa

    if isinstance(item, pa.Table):
        table = item
    else:
        table = pa.Table.from_batches([item]) if isinstance(item, pa.RecordBatch) else pa.table([item], names=[""])
    rows = None if limit is None else max(1, limit * table.num_rows // max(1, table.nbytes))
    sink = _Sink()
    writer = pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema)
    for batch in table.to_batches(max_chunksize=rows):
        writer.write_batch(batch)
        yield from sink.taken()
    writer.close()
    yield from sink.taken()


class _Sink:
    """A file for Arrow that hands on what was written to it."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing: parts are taken between batches."""

    def taken(self) -> list[bytes]:
        parts, self._parts = self._parts, []
        return parts


def arrow_reader(kind: str) -> Callable[[memoryview], Any]:
    """A reader of what `arrow_parts` wrote for a value of this kind, behind its padding."""

    def read(data: memoryview) -> Any:
        import pyarrow as pa

        buffer = pa.py_buffer(data[1 + data[0] :])
        if buffer.address % 8:  # Arrow computes on aligned buffers
            buffer = pa.py_buffer(buffer.to_pybytes())
        try:
            with pa.ipc.open_stream(buffer) as reader:
                table = reader.read_all()
            table.validate(full=True)  # a damaged offset would be read as an address
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
        if kind == "Table":
            return table
        if kind == "RecordBatch":
            batches = table.combine_chunks().to_batches()
            return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
        column = table.column(0)
        if kind == "ChunkedArray":
            return column
        return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks or [pa.array([], column.type)])

    return read
