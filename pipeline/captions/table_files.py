"""Parquet and Arrow files, local or at a URL, read in batches of rows: a table may hold more bytes of images than fit into memory.

Parquet is read through a buffer, a page at a time, and never memory-mapped: a row group may be as large as the table. Arrow files are
memory-mapped, because their batches need no decoding, and pages that were read are given back.
"""

import contextlib
import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import CapstreamError, InputError, ResourceError, first_line
from shards.fetch import MissingFileError, TransientError, file_size, file_system, file_system_errors
from shards.paths import Location, is_url

TABLE_SUFFIXES = (".parquet", ".arrow")
PARQUET_MAGIC = b"PAR1"
# An Arrow file, as pyarrow.feather and pyarrow.ipc.new_file write it; and an Arrow stream, as datasets writes it
ARROW_FILE_MAGIC = b"ARROW1"
ARROW_STREAM_MAGIC = b"\xff\xff\xff\xff"
BUFFER_BYTES = 1 << 20
# At a URL, each read is a request
REMOTE_BUFFER_BYTES = 8 << 20


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of a table.

    Attributes:
        start: The number of the first row, from 0.
        rows: A ``pyarrow.RecordBatch`` with the columns that were asked for.
    """

    start: int
    rows: Any


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """An open Parquet or Arrow file.

    Attributes:
        location: For messages.
        schema: Its ``pyarrow.Schema``.
    """

    location: Location
    schema: Any
    _parquet: Any
    _arrow: Any
    _give_back: Callable[[], None] = lambda: None

    def batches(self, columns: Sequence[str], *, batch_rows: int, wanted: Sequence[int] | None = None) -> Iterator[Batch]:
        """The rows in order.

        Args:
            columns: Names of columns; ``NAME.FIELD`` is one field of a struct.
            batch_rows: Rows that are held at a time.
            wanted: Ascending numbers of rows. Parts of the file without any of them are not read.
        """
        if self._parquet is not None:
            yield from self._parquet_batches(columns, batch_rows, wanted)
        else:
            yield from self._arrow_batches(columns, batch_rows, wanted)

    def _parquet_batches(self, columns: Sequence[str], batch_rows: int, wanted: Sequence[int] | None) -> Iterator[Batch]:
        start = 0
        for group in range(self._parquet.num_row_groups):
            rows = self._parquet.metadata.row_group(group).num_rows
            last = _last_below(wanted, start, start + rows)
            if last is not None:
                position = start
                for batch in self._parquet.iter_batches(batch_size=batch_rows, row_groups=[group], columns=list(columns)):
                    yield Batch(start=position, rows=batch)
                    position += len(batch)
                    if position > last:
                        break
            start += rows

    def _arrow_batches(self, columns: Sequence[str], batch_rows: int, wanted: Sequence[int] | None) -> Iterator[Batch]:
        start = 0
        for batch in self._arrow:
            if _last_below(wanted, start, start + len(batch)) is not None:
                chosen = _selected(batch, columns)
                chosen.validate(full=True)  # offsets of an untrusted file may lead out of it
                for offset in range(0, len(batch), batch_rows):
                    yield Batch(start=start + offset, rows=chosen.slice(offset, batch_rows))
                    self._give_back()
            start += len(batch)


def _last_below(wanted: Sequence[int] | None, start: int, end: int) -> int | None:
    """The last wanted row of a range; None if there is none."""
    if wanted is None:
        return end - 1 if end > start else None
    return max((row for row in wanted if start <= row < end), default=None)


def _selected(batch: Any, columns: Sequence[str]) -> Any:
    """Columns of a batch; a field of a struct as a struct with that field alone, as Parquet's reader gives it."""
    import pyarrow as pa  # type: ignore[import-untyped]

    arrays, names = [], []
    for column in columns:
        name, _, field = column.partition(".")
        if column in batch.schema.names:
            name, array = column, batch.column(column)
        else:
            whole = batch.column(name)
            array = pa.StructArray.from_arrays([_field(whole, field)], names=[field], mask=whole.is_null())
        arrays.append(array)
        names.append(name)
    return pa.RecordBatch.from_arrays(arrays, names=names)


def _field(array: Any, field: str) -> Any:
    import pyarrow.compute as pc  # type: ignore[import-untyped]

    return pc.struct_field(array, field)


@contextlib.contextmanager
def open_table(location: Location) -> Iterator[TableFile]:
    """Open a Parquet or Arrow file.

    Raises:
        InputError: pyarrow is missing, there is no such file, or it is damaged or something else. Also raised for what is read until the end
            of the ``with`` block.
        ResourceError: A server cannot be reached.
    """
    try:
        import pyarrow as pa
    except ImportError:
        raise InputError(f"{location}: reading Parquet and Arrow files requires pyarrow: pip install '.[parquet]'") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_table_errors(location, pa.ArrowException))
        source = stack.enter_context(_opened(location))
        magic = source.read(len(ARROW_FILE_MAGIC))
        source.seek(0)
        if magic.startswith(PARQUET_MAGIC):
            import pyarrow.parquet as pq  # type: ignore[import-untyped]

            buffer = REMOTE_BUFFER_BYTES if is_url(location) else BUFFER_BYTES
            parquet = stack.enter_context(pq.ParquetFile(source, buffer_size=buffer, pre_buffer=False, memory_map=False))
            yield TableFile(location=location, schema=parquet.schema_arrow, _parquet=parquet, _arrow=None)
        elif magic.startswith((ARROW_FILE_MAGIC, ARROW_STREAM_MAGIC)):
            mapped, give_back = (source, lambda: None) if is_url(location) else _mapped(source)
            if magic == ARROW_FILE_MAGIC:
                reader = stack.enter_context(pa.ipc.open_file(mapped))
                batches: Iterable[Any] = (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                batches = reader = stack.enter_context(pa.ipc.open_stream(mapped))
            yield TableFile(location=location, schema=reader.schema, _parquet=None, _arrow=batches, _give_back=give_back)
        else:
            raise InputError(f"{location}: is neither a Parquet nor an Arrow file.")


def _mapped(file: IO[bytes]) -> tuple[Any, Callable[[], None]]:
    """A file as memory, and a function that takes its pages out of this process's memory until they are read again."""
    import pyarrow as pa

    memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def give_back() -> None:
        if hasattr(mmap, "MADV_DONTNEED"):
            memory.madvise(mmap.MADV_DONTNEED)

    return pa.BufferReader(pa.py_buffer(memory)), give_back


@contextlib.contextmanager
def _opened(location: Location) -> Iterator[IO[bytes]]:
    if is_url(location):
        with file_system(str(location)).open(str(location), "rb", block_size=REMOTE_BUFFER_BYTES, cache_type="readahead") as file:
            yield file
    else:
        with Path(location).open("rb") as file:
            yield file


@contextlib.contextmanager
def _table_errors(location: Location, arrow_error: type[Exception]) -> Iterator[None]:
    try:
        if is_url(location):
            with file_system_errors(str(location), "Check `captions`."):
                yield
        else:
            yield
    except CapstreamError:
        raise
    except FileNotFoundError:
        raise InputError(f"{location}: no such file or folder of captions.") from None
    except TransientError as problem:
        if isinstance(problem.__cause__, arrow_error):
            raise _damaged(location, problem.__cause__) from None
        raise ResourceError(f"{location}: cannot be read ({first_line(problem)}). Check the network, and run the same command again.") from None
    except (arrow_error, OSError, UnicodeDecodeError) as problem:
        raise _damaged(location, problem) from None


def _damaged(location: Location, problem: BaseException | None) -> InputError:
    return InputError(f"{location}: not a complete Parquet or Arrow file ({first_line(problem) if isinstance(problem, Exception) else problem}).")


def table_bytes(location: Location) -> int:
    """The size of a table in bytes.

    Raises:
        InputError: There is no such file.
        ResourceError: A server cannot be reached.
    """
    size = None
    if is_url(location):
        with contextlib.suppress(MissingFileError):
            size = file_size(str(location))
    else:
        with contextlib.suppress(OSError):
            size = Path(location).stat().st_size
    if size is None:
        raise InputError(f"{location}: no such table. It must be at this place on every machine.")
    return size
