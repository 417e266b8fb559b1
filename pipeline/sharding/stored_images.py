"""Source images that tables hold: the bytes of a shard's images, read in the order of the shard, a few rows at a time."""

from collections.abc import Generator, Iterator, Sequence
from functools import cache
from itertools import groupby

from pipeline.captions.image_tables import stored_bytes
from pipeline.captions.records import CaptionedImage, StoredImage
from pipeline.captions.table_files import open_table, table_bytes
from pipeline.images.decode import MAX_FILE_BYTES, ImageError
from shards.errors import InputError


def check_stored_images(records: Sequence[CaptionedImage], split: str) -> None:
    """Refuse captions that come without images.

    Raises:
        InputError: No image is in a table.
    """
    if records and not any(record.stored for record in records):
        raise InputError(
            f"The captions of split {split!r} have the names of image files, such as {records[0].file_name}, but not the images. Give the folder or "
            "the URL that these names are relative to as `images`."
        )


def read_stored_images(records: Sequence[CaptionedImage]) -> Generator[bytes | ImageError, None, None]:
    """The bytes of each image in order, or the error that says why there are none.

    Raises:
        InputError: A table is missing, or damaged.
        ResourceError: A server cannot be reached.
    """
    for _, run in groupby(_numbered_runs(records), key=lambda each: each[0]):
        of_run = [record for _, record in run]
        first = of_run[0].stored
        if first is None:
            for record in of_run:
                yield ImageError("missing_file", f"{record.file_name}: no table holds this image, and no `images` were given")
            continue
        with open_table(first.table) as table:
            rows = [record.stored.row for record in of_run if record.stored]
            for record, data in zip(of_run, stored_bytes(table, first.column, rows), strict=True):
                yield _checked(record, data)


def _checked(record: CaptionedImage, data: memoryview | None) -> bytes | ImageError:
    if data is None:
        return ImageError("missing_file", f"{record.file_name}: the table has no bytes for this image (row {record.stored and record.stored.row})")
    if len(data) > MAX_FILE_BYTES:
        return ImageError("too_large", f"{record.file_name}: {len(data)} bytes, more than the limit of {MAX_FILE_BYTES}")
    return bytes(data)


def _numbered_runs(records: Sequence[CaptionedImage]) -> Iterator[tuple[int, CaptionedImage]]:
    """Each record with the number of its run: consecutive records of one table whose rows ascend, which one pass can read."""
    number = 0
    before: StoredImage | None = None
    for position, record in enumerate(records):
        now = record.stored
        same = (before is None and now is None) or (
            before is not None and now is not None and (before.table, before.column) == (now.table, now.column) and before.row < now.row
        )
        number += bool(position) and not same
        before = now
        yield number, record


def stored_image_stamps(records: Sequence[CaptionedImage]) -> list[list[int] | None]:
    """What tells a changed source without reading it: the size of an image's table in bytes, and its row.

    Raises:
        InputError: A table is missing.
        ResourceError: A server cannot be reached.
    """
    size = cache(table_bytes)
    return [[size(record.stored.table), record.stored.row] if record.stored else None for record in records]
