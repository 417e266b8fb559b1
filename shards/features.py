"""Feature files: a split's pooled features and captions in one HDF5 file, of which every byte that is read is checked.

Contiguous and uncompressed, so that readers can map the features or load them whole: compression makes random rows hundreds
of times slower. CRC-32 by blocks of each dataset's bytes; attributes are covered by a digest.
"""

import contextlib
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from shards.atomic import committed, digest
from shards.caption_table import CaptionTable
from shards.errors import DamageError, InputError, MismatchError

FORMAT_VERSION = 2
BLOCK_BYTES = 4 << 20
CAPTION_COLUMNS = ("words", "tokens", "offsets", "image_rows", "caption_ids", "texts")
DATASETS = ("features", "keys", "image_ids", "file_names", "shard_images", *(f"captions/{name}" for name in CAPTION_COLUMNS))
OBJECTS = ("preprocessing", "arithmetic", "versions")
NUMBERS: dict[str, str] = {
    "features": "<f2",
    "image_ids": "<i8",
    "shard_images": "<i8",
    "captions/tokens": "<i4",
    "captions/offsets": "<i8",
    "captions/image_rows": "<i4",
    "captions/caption_ids": "<i8",
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a feature file. Two files belong together if :meth:`network` is equal.

    Attributes:
        backbone: The network's name.
        weights: The weights' name, "random" or the path that was given.
        weights_sha256: Digest over the weights' tensors (names, shapes, bytes), whatever file they came in.
        preprocessing: Size, resize mode, filter, crop, mean and deviation; None: nobody has said.
        views: Names of the views, in the features' order; the first is the centre crop.
        precision: ComputedBackbone of the forward pass: fp32, bf16 or fp16; unknown of imported features.
        arithmetic: What else decides the last bits: the device, images per pass, how many layers stayed float32, the digest of the
            tensors that were really used, and the smallest cosine similarity to float32 features that was found on a sample.
        split: The split's name.
        split_digest: The shards' digest; of imported features that of features and captions.
        versions: Library versions.
    """

    backbone: str
    weights: str
    weights_sha256: str
    preprocessing: dict[str, Any] | None
    views: tuple[str, ...]
    precision: str
    arithmetic: dict[str, Any]
    split: str
    split_digest: str
    versions: dict[str, str]

    def network(self) -> dict[str, Any]:
        """What must be equal for features to be comparable."""
        return {
            "backbone": self.backbone,
            "weights_sha256": self.weights_sha256,
            "preprocessing": self.preprocessing,
        }

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """From :func:`dataclasses.asdict` as JSON; raises KeyError, TypeError or ValueError for anything else."""
        for name in ("backbone", "weights", "weights_sha256", "precision", "split", "split_digest"):
            if not isinstance(content[name], str):
                raise TypeError(f"{name} is not a text")
        if not all(isinstance(content[name], dict) or (name, content[name]) == ("preprocessing", None) for name in OBJECTS):
            raise TypeError(f"one of {', '.join(OBJECTS)} is not an object")
        return cls(**{**content, "views": tuple(str(view) for view in content["views"])})


@dataclass(frozen=True, kw_only=True)
class FeatureFile:
    """An opened feature file: ``features`` is a read-only map, float16 (images, views, dim); the captions are in memory.

    ``digest`` is over the attributes and all checksums: two files with one digest hold the same.
    """

    path: Path
    digest: str
    provenance: Provenance
    features: NDArray[np.float16]
    table: CaptionTable

    @property
    def dim(self) -> int:
        return int(self.features.shape[2])

    def mean_view(self, start: int = 0, stop: int | None = None) -> NDArray[np.float16]:
        """The mean of each image's views, which evaluation looks at: float16 (images, dim); of a single view, that view itself."""
        chosen = self.features[start:stop]
        return chosen[:, 0] if chosen.shape[1] == 1 else chosen.mean(axis=1, dtype=np.float32).astype(np.float16)


Rows = NDArray[np.float16]
Piece = tuple[Rows | Callable[[], Rows], CaptionTable]


def write_features(path: Path, pieces: Callable[[], Iterable[Piece]], *, dim: int, provenance: Provenance) -> tuple[int, int]:
    """Commit a feature file. The same pieces make the same bytes.

    Args:
        path: The final name.
        pieces: Gives features, float16 (images, views, dim), or a function that reads them, and their captions, piece by piece; called
            twice, and only one piece is held at a time. A function is called once.
        dim: Features per view.
        provenance: What made the features.

    Returns:
        The number of images and of captions.

    Raises:
        ValueError: A piece has features of another shape than its table's images.
        ResourceError: Disk full, not allowed.
    """
    words: dict[str, int] = {}
    images = captions = tokens = shards = 0
    for _, table in pieces():
        for word in table.words:
            words.setdefault(word, len(words))
        images, captions, tokens = images + table.images, captions + table.captions, tokens + len(table.tokens)
        shards += len(table.shard_images)
    lengths = {"features": images, "keys": images, "image_ids": images, "file_names": images, "shard_images": shards}
    lengths |= {f"captions/{name}": captions for name in CAPTION_COLUMNS}
    lengths |= {"captions/words": len(words), "captions/tokens": tokens, "captions/offsets": captions + 1}
    with committed(path) as temporary, _hdf5_writer(temporary) as file:
        columns = {name: _Column(file, name, length, (len(provenance.views), dim)) for name, length in lengths.items()}
        columns["captions/offsets"].add(np.zeros(1, np.int64))
        columns["captions/words"].add(list(words))
        first_image = first_token = 0
        for given, table in pieces():
            features = given() if callable(given) else given
            if features.shape != (table.images, len(provenance.views), dim):
                raise ValueError(f"features of shape {features.shape} for {table.images} images, {len(provenance.views)} views, {dim} features")
            columns["features"].add(features)
            columns["keys"].add(table.keys)
            columns["image_ids"].add(table.image_ids)
            columns["file_names"].add([name.encode("utf-8", "replace").decode() for name in table.file_names])
            columns["shard_images"].add(table.shard_images)
            columns["captions/tokens"].add(np.array([words[word] for word in table.words], np.int64)[table.tokens])
            columns["captions/offsets"].add(table.offsets[1:] + first_token)
            columns["captions/image_rows"].add(table.image_rows + first_image)
            columns["captions/caption_ids"].add(table.caption_ids)
            columns["captions/texts"].add(table.texts)
            first_image, first_token = first_image + table.images, first_token + len(table.tokens)
        for name, column in columns.items():
            file[f"crc32/{name}"] = column.crc.finish()
        content = asdict(provenance) | {"views": list(provenance.views)}
        file.attrs["format_version"] = FORMAT_VERSION
        for name, value in content.items():
            file.attrs[name] = value if isinstance(value, str) else json.dumps(value)
        file.attrs["digest"] = digest(content)
    return images, captions


class _ErrorKeepingFile(io.FileIO):
    """A file that remembers the first error and swallows it, and all writes after it."""

    problem: OSError | None = None

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.problem is None and done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.problem = error
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            if self.problem is None:
                return super().truncate(size)
        except OSError as error:
            self.problem = error
        return size or 0


@contextlib.contextmanager
def _hdf5_writer(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file; a write that the system refuses is raised at the end.

    HDF5 cannot take a refusal: on a full disk it was seen to print tracebacks of its own and to crash. So it never hears of one.

    Raises:
        OSError: The system's refusal.
    """
    with _ErrorKeepingFile(path, "w+") as raw:
        try:
            # The oldest layout, h5py's default: newer ones write the time into every group, and bytes would differ from run to run.
            with h5py.File(raw, "w") as file:
                yield file
        finally:
            if raw.problem is not None:
                raise raw.problem


class _Column:
    """A dataset that is filled from its start, with the checksums of what it got."""

    def __init__(self, file: h5py.File, name: str, length: int, inner: tuple[int, int]) -> None:
        self._type = NUMBERS.get(name)
        shape = (length, *inner) if name == "features" else (length,)
        self._dataset = file.create_dataset(name, shape=shape, dtype=self._type or h5py.string_dtype())
        self._filled = 0
        self.crc = _BlockCrc()

    def add(self, values: Any) -> None:
        """Append some rows."""
        if not len(values):
            return
        if self._type is None:
            rows: Any = list(values)
            raw = _string_bytes(rows)
        else:
            rows = np.ascontiguousarray(values, dtype=self._type)
            raw = rows.tobytes()
        self._dataset[self._filled : self._filled + len(rows)] = rows
        self._filled += len(rows)
        self.crc.update(raw)


class _BlockCrc:
    """CRC-32 of each block of ``BLOCK_BYTES`` of a stream of bytes."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._crc = self._filled = 0

    def update(self, data: bytes | memoryview) -> Self:
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        while len(view):
            piece = view[: BLOCK_BYTES - self._filled]
            self._crc, self._filled = zlib.crc32(piece, self._crc), self._filled + len(piece)
            view = view[len(piece) :]
            if self._filled == BLOCK_BYTES:
                self._done.append(self._crc)
                self._crc = self._filled = 0
        return self

    def finish(self) -> NDArray[np.uint32]:
        return np.array([*self._done, *([self._crc] if self._filled else [])], dtype="<u4")


def _string_bytes(strings: Sequence[str]) -> bytes:
    return b"".join(text.encode() + b"\0" for text in strings)


def open_features(path: Path) -> FeatureFile:
    """Open and check a feature file, to the last block.

    Raises:
        InputError: No such file, or not a feature file.
        DamageError: It is cut, its blocks do not have the CRC-32 that it lists, or it points outside of itself.
        MismatchError: Another format version.
    """
    again = f"Delete it and run again: python cli.py cache-features --out {path.parent} (import-features, if it was imported)"
    if not path.is_file():
        raise InputError(f"{path}: no such feature file. Make it with: python cli.py cache-features --out {path.parent}")
    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("format_version")
            if version is None:
                raise InputError(f"{path}: an HDF5 file, but not a feature file of Capstream (it has no format_version).")
            if version != FORMAT_VERSION:
                raise MismatchError(f"{path}: format version {version}, this program reads {FORMAT_VERSION}. {again}")
            provenance = _read_provenance(file)
            datasets = {name: _dataset(file, name) for name in DATASETS}
            features = _map_features(path, datasets["features"], views=len(provenance.views))
            checksums = {"features": _check_blocks("features", features, _dataset(file, "crc32/features"))}
            columns: dict[str, Any] = {}
            for name in DATASETS[1:]:
                if name in NUMBERS:
                    columns[name] = np.asarray(datasets[name][:], dtype=NUMBERS[name])
                    raw: Any = columns[name]
                else:
                    columns[name] = tuple(datasets[name].asstr()[:])
                    raw = np.frombuffer(_string_bytes(columns[name]), np.uint8)
                checksums[name] = _check_blocks(name, raw, _dataset(file, f"crc32/{name}"))
            content = digest([file.attrs["digest"], checksums])
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, UnicodeDecodeError) as error:
        raise DamageError(f"{path}: damaged, or not a feature file ({error}). {again}") from None
    try:
        table = CaptionTable(**{name.removeprefix("captions/"): column for name, column in columns.items()})
        table.check()
        if len(features) != table.images:
            raise ValueError(f"{len(features)} rows of features for {table.images} images")
    except (TypeError, ValueError, IndexError) as error:
        raise DamageError(f"{path}: damaged ({error}). {again}") from None
    return FeatureFile(path=path, digest=content, provenance=provenance, features=features, table=table)


def _read_provenance(file: h5py.File) -> Provenance:
    content: dict[str, Any] = {}
    for name in Provenance.__dataclass_fields__:
        value = file.attrs[name]
        content[name] = json.loads(value) if name in (*OBJECTS, "views") else value
    if digest(content) != file.attrs["digest"]:
        raise ValueError("its attributes do not have the digest that it lists")
    return Provenance.parse(content)


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of this very file: no soft, external or virtual link can lead a reader elsewhere."""
    group = file
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"/{name} is missing or a link")
        group = group[part]
    if not isinstance(group, h5py.Dataset) or group.external or group.is_virtual:
        raise ValueError(f"/{name} is no plain dataset")
    wanted = 3 if name == "features" else 1
    if group.ndim != wanted:
        raise ValueError(f"/{name} has {group.ndim} dimensions, not {wanted}")
    if group.chunks is not None or group.nbytes > file.id.get_filesize():
        raise ValueError(f"/{name} is chunked or larger than its file")
    expected = NUMBERS.get(name, "<u4" if name.startswith("crc32/") else None)
    if expected is not None and group.dtype != np.dtype(expected):
        raise ValueError(f"/{name} is of type {group.dtype}, not {np.dtype(expected)}")
    return group


def _map_features(path: Path, dataset: h5py.Dataset, *, views: int) -> NDArray[np.float16]:
    if dataset.shape[1] != views:
        raise ValueError(f"/features has {dataset.shape[1]} views, the attributes name {views}")
    if dataset.size == 0:
        return np.zeros(dataset.shape, dtype="<f2")
    offset = dataset.id.get_offset()
    if offset is None or offset + dataset.nbytes > path.stat().st_size:
        raise ValueError("/features is not stored in one piece inside the file")
    return np.memmap(path, dtype="<f2", mode="r", offset=offset, shape=dataset.shape)


def _check_blocks(name: str, data: NDArray[Any], listed: h5py.Dataset) -> list[int]:
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    found = _BlockCrc().update(raw.data).finish()
    expected = listed[:]
    if len(found) != len(expected):
        raise ValueError(f"/{name} has {len(found)} blocks, {len(expected)} are listed")
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        raise ValueError(f"/{name}: block {wrong[0]} of {len(found)} does not have its CRC-32")
    checksums: list[int] = found.tolist()
    return checksums


def feature_path(folder: Path, split: str) -> Path:
    """``folder/SPLIT.h5``."""
    return folder / f"{split}.h5"


def check_same_network(first: FeatureFile, second: FeatureFile) -> None:
    """Refuse feature files whose features do not live in one space.

    Raises:
        MismatchError: Names both sides.
    """
    check_network(f"{first.path}", first.provenance.network(), f"{second.path}", second.provenance.network())


def check_network(first_name: str, first: dict[str, Any], second_name: str, second: dict[str, Any]) -> None:
    """Like :func:`check_same_network`, on :meth:`Provenance.network` alone."""
    for key, value in first.items():
        if value != second.get(key):
            raise MismatchError(
                f"{first_name} and {second_name} do not belong together: {key} is {value!r} in the first, {second.get(key)!r} in "
                "the second. Cache both with the same backbone, weights and size."
            )
