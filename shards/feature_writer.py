"""Writes feature files (:mod:`shards.features`)."""

import contextlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from shards.atomic import committed
from shards.caption_table import CaptionTable
from shards.digests import json_digest
from shards.features import CAPTION_COLUMNS, FORMAT_VERSION, NUMERIC_DTYPES, BlockChecksums, Provenance, string_bytes

# Features, float16 (images, views, positions, dim), or a function that reads them; and their captions.
FeatureChunk = tuple[NDArray[np.float16] | Callable[[], NDArray[np.float16]], CaptionTable]
# (positions, dim) of each view
Shape = tuple[int, int]


def write_features(
    path: Path,
    chunks: Callable[[], Iterable[FeatureChunk]],
    *,
    shape: Shape,
    provenance: Provenance,
    counts: Sequence[int] | NDArray[np.int32] | None = None,
) -> tuple[int, int]:
    """Commit a feature file. The same chunks give the same bytes.

    Args:
        path: The final name.
        chunks: Called twice; gives the features and captions of the split in consecutive chunks, of which one is in memory at a time. A chunk's
            features are float16 (images, views, positions, dim), or a function that reads them and is called once.
        shape: (positions, dim).
        provenance: How the features were made.
        counts: The number of real positions of each image of the split; the features of the others have to be zeros. By default all are real.

    Returns:
        The number of images and of captions.

    Raises:
        ValueError: The features of a chunk have another shape than its table's images require.
        ResourceError: Disk full, access denied.
    """
    words, lengths = _count(chunks())
    with committed(path) as temporary, _hdf5_writer(temporary) as file:
        writers = {name: _DatasetWriter(file, name, length, (len(provenance.views), *shape)) for name, length in lengths.items()}
        writers["captions/offsets"].append(np.zeros(1, np.int64))
        writers["captions/words"].append(list(words))
        first_image = first_token = 0
        for given, table in chunks():
            features = given() if callable(given) else given
            expected = (table.images, len(provenance.views), *shape)
            if features.shape != expected:
                raise ValueError(f"features of shape {features.shape}, but expected (images, views, positions, dim) {expected}")
            writers["features"].append(features)
            if counts is not None and _beyond(features, counts[first_image : first_image + table.images]).any():
                raise ValueError("features beyond an image's number of positions are not zeros")
            real = counts[first_image : first_image + table.images] if counts is not None else [shape[0]] * table.images
            writers["positions"].append(np.array(real, np.int32))
            writers["keys"].append(table.keys)
            writers["image_ids"].append(table.image_ids)
            writers["file_names"].append([name.encode("utf-8", "replace").decode() for name in table.file_names])
            writers["shard_images"].append(table.shard_images)
            writers["captions/tokens"].append(np.array([words[word] for word in table.words], np.int64)[table.tokens])
            writers["captions/offsets"].append(table.offsets[1:] + first_token)
            writers["captions/image_rows"].append(table.image_rows + first_image)
            writers["captions/caption_ids"].append(table.caption_ids)
            writers["captions/texts"].append(table.texts)
            first_image, first_token = first_image + table.images, first_token + len(table.tokens)
        for name, writer in writers.items():
            file[f"crc32/{name}"] = writer.checksums.finish()
        content = asdict(provenance) | {"views": list(provenance.views)}
        file.attrs["format_version"] = FORMAT_VERSION
        for name, value in content.items():
            file.attrs[name] = value if isinstance(value, str) else json.dumps(value)
        file.attrs["digest"] = json_digest(content)
    return lengths["keys"], lengths["captions/texts"]


def _beyond(features: NDArray[np.float16], counts: Sequence[int] | NDArray[np.int32]) -> NDArray[np.float16]:
    """The features of padding, float16 (padded positions of all images, views, dim)."""
    padding = np.arange(features.shape[2]) >= np.asarray(counts)[:, None]
    return features.transpose(0, 2, 1, 3)[padding]


def _count(chunks: Iterable[FeatureChunk]) -> tuple[dict[str, int], dict[str, int]]:
    """The row of each word, by first occurrence; and the length of every dataset."""
    words: dict[str, int] = {}
    images = captions = tokens = shards = 0
    for _, table in chunks:
        for word in table.words:
            words.setdefault(word, len(words))
        images, captions, tokens = images + table.images, captions + table.captions, tokens + len(table.tokens)
        shards += len(table.shard_images)
    lengths = {"features": images, "positions": images, "keys": images, "image_ids": images, "file_names": images, "shard_images": shards}
    lengths |= {f"captions/{name}": captions for name in CAPTION_COLUMNS}
    lengths |= {"captions/words": len(words), "captions/tokens": tokens, "captions/offsets": captions + 1}
    return words, lengths


class _DeferredErrorFile(io.FileIO):
    """A file that stores the first error instead of raising it, and ignores all writes after it."""

    error: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            if self.error is None:
                return super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0


@contextlib.contextmanager
def _hdf5_writer(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file; the error of a failed write is raised at the end.

    HDF5 does not survive failed writes: on a full disk it was seen to print tracebacks of its own and to crash. So it is not told about them.

    Raises:
        OSError: The first error of a write.
    """
    with _DeferredErrorFile(path, "w+") as raw:
        try:
            # The oldest layout, h5py's default. Newer ones write the time into every group, so the bytes would differ from run to run.
            with h5py.File(raw, "w") as file:
                yield file
        finally:
            if raw.error is not None:
                raise raw.error


class _DatasetWriter:
    """Fills a dataset from its start, and computes the checksums of its bytes."""

    def __init__(self, file: h5py.File, name: str, length: int, inner: tuple[int, int, int]) -> None:
        self._dtype = NUMERIC_DTYPES.get(name)
        shape = (length, *inner) if name == "features" else (length,)
        self._dataset = file.create_dataset(name, shape=shape, dtype=self._dtype or h5py.string_dtype())
        self._filled = 0
        self.checksums = BlockChecksums()

    def append(self, values: Any) -> None:
        """Append rows."""
        if not len(values):
            return
        if self._dtype is None:
            rows: Any = list(values)
            raw = string_bytes(rows)
        else:
            rows = np.ascontiguousarray(values, dtype=self._dtype)
            raw = rows.reshape(-1).view(np.uint8).data  # no copy: a shard's grid features may take a gigabyte
        self._dataset[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)
        self.checksums.update(raw)
