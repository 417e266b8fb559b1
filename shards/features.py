"""Feature files: a split's image features and captions in one HDF5 file. Every byte that is read is checked.

An image's features are (positions, dim): pooled features have one position, a grid has N x N. Imported features may have another number of
positions for each image; the rest of its rows are zeros.

The datasets are contiguous and uncompressed, so that readers can map the features or load them whole: compression makes reading random rows
hundreds of times slower. Each block of a dataset's bytes has a CRC-32, and the attributes have a digest. :mod:`shards.feature_writer`
writes these files.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

from shards.caption_table import CaptionTable
from shards.digests import json_digest
from shards.errors import DamageError, InputError, MismatchError
from shards.found_instead import did_you_mean, instead_of_features, no_split
from shards.layout import DATASET_FILE
from shards.paths import shell_quoted

FORMAT_VERSION = 4
BLOCK_BYTES = 4 << 20
CAPTION_COLUMNS = ("words", "tokens", "offsets", "image_rows", "caption_ids", "texts")
DATASETS = ("features", "positions", "keys", "image_ids", "file_names", "shard_images", *(f"captions/{name}" for name in CAPTION_COLUMNS))
JSON_ATTRIBUTES = ("preprocessing", "arithmetic", "versions")
NUMERIC_DTYPES: dict[str, str] = {
    "features": "<f2",
    "positions": "<i4",
    "image_ids": "<i8",
    "shard_images": "<i8",
    "captions/tokens": "<i4",
    "captions/offsets": "<i8",
    "captions/image_rows": "<i4",
    "captions/caption_ids": "<i8",
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How a feature file was made. The features of two files are comparable if :meth:`network` is equal.

    Attributes:
        backbone: The network's name.
        weights: The weights' name, "random" or a path.
        weights_sha256: Digest of the weights' tensors (names, shapes, bytes), independent of the file format.
        preprocessing: Size, resize mode, filter, crop, mean and standard deviation; None if unknown.
        layout: ``pooled``, ``grid`` or ``grid:N``, as :mod:`model.feature_layout` describes it, or ``imported``.
        mean_is_pooled: Whether the mean over an image's positions equals the network's pooled features.
        views: Names of the views, in the order of the features; the first is the centre crop.
        precision: Of the forward pass: fp32, bf16 or fp16; unknown for imported features.
        arithmetic: What else affects the last bits: the device, images per pass, the number of layers that stayed float32, the digest of
            the tensors that were used, and the smallest cosine similarity to float32 features on a sample of images.
        split: The split's name.
        language: The captions' language, a BCP 47 tag.
        split_digest: Digest of the shards; for imported features, of features and captions.
        versions: Library versions.
    """

    backbone: str
    weights: str
    weights_sha256: str
    preprocessing: dict[str, Any] | None
    layout: str
    mean_is_pooled: bool
    views: tuple[str, ...]
    precision: str
    arithmetic: dict[str, Any]
    split: str
    language: str
    split_digest: str
    versions: dict[str, str]

    def network(self) -> dict[str, Any]:
        """What must be equal for features to be comparable."""
        return {
            "backbone": self.backbone,
            "weights_sha256": self.weights_sha256,
            "preprocessing": self.preprocessing,
            "layout": self.layout,
        }

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """From the JSON of :func:`dataclasses.asdict`; raises KeyError, TypeError or ValueError for anything else."""
        for name in ("backbone", "weights", "weights_sha256", "layout", "precision", "split", "language", "split_digest"):
            if not isinstance(content[name], str):
                raise TypeError(f"{name} is not a string")
        if not isinstance(content["mean_is_pooled"], bool):
            raise TypeError("mean_is_pooled is not true or false")
        if not all(isinstance(content[name], dict) or (name, content[name]) == ("preprocessing", None) for name in JSON_ATTRIBUTES):
            raise TypeError(f"one of {', '.join(JSON_ATTRIBUTES)} is not an object")
        return cls(**{**content, "views": tuple(str(view) for view in content["views"])})


@dataclass(frozen=True, kw_only=True)
class FeatureFile:
    """An open feature file.

    Attributes:
        path: The file.
        digest: Digest of the attributes and all checksums: two files with the same digest have the same content.
        provenance: How it was made.
        features: float16 (images, views, positions, dim), a read-only memory map.
        positions: int32 (images,): the number of real positions; the features of the others are zeros.
        table: The captions, in memory.
    """

    path: Path
    digest: str
    provenance: Provenance
    features: NDArray[np.float16]
    positions: NDArray[np.int32]
    table: CaptionTable

    @property
    def dim(self) -> int:
        return int(self.features.shape[3])

    def mean_view(self, start: int = 0, stop: int | None = None) -> NDArray[np.float16]:
        """The mean of each image's views, float16 (images, positions, dim), for evaluation. A single view is returned as it is."""
        chosen = self.features[start:stop]
        return chosen[:, 0] if chosen.shape[1] == 1 else chosen.mean(axis=1, dtype=np.float32).astype(np.float16)


class BlockChecksums:
    """CRC-32 of each block of ``BLOCK_BYTES`` bytes of a stream."""

    def __init__(self) -> None:
        self._done: list[int] = []
        self._crc = self._filled = 0

    def update(self, data: bytes | memoryview) -> Self:
        """Add bytes to the stream."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        while len(view):
            part = view[: BLOCK_BYTES - self._filled]
            self._crc, self._filled = zlib.crc32(part, self._crc), self._filled + len(part)
            view = view[len(part) :]
            if self._filled == BLOCK_BYTES:
                self._done.append(self._crc)
                self._crc = self._filled = 0
        return self

    def finish(self) -> NDArray[np.uint32]:
        """The checksums of all blocks, uint32 (blocks,)."""
        return np.array([*self._done, *([self._crc] if self._filled else [])], dtype="<u4")


def string_bytes(strings: Sequence[str]) -> bytes:
    """The bytes of a dataset of strings that its checksums cover."""
    return b"".join(text.encode() + b"\0" for text in strings)


def open_features(path: Path) -> FeatureFile:
    """Open a feature file and check every block.

    Raises:
        InputError: No such file, or not a feature file.
        DamageError: It is truncated, a block does not have its CRC-32, or it refers to data outside itself.
        MismatchError: It has another format version.
    """
    repair = f"Delete it and run again: python cli.py cache-features --out {shell_quoted(path.parent)} (import-features, if it was imported)"
    if not path.is_file():
        others = sorted(file.stem for file in path.parent.glob("*.h5")) if path.parent.is_dir() else []
        if others:
            raise InputError(no_split(str(path.parent), path.stem, others))
        raise InputError(f"{path.parent}: {instead_of_features(path.parent)}")
    try:
        with h5py.File(path, "r") as file:
            version = file.attrs.get("format_version")
            if version is None:
                raise InputError(f"{path}: an HDF5 file, but not a feature file of Capstream (it has no format_version).")
            if version != FORMAT_VERSION:
                raise MismatchError(f"{path}: format version {version}, but this program reads {FORMAT_VERSION}. {repair}")
            provenance = _read_provenance(file)
            features, columns, checksums = _read_datasets(path, file, provenance)
            content_digest = json_digest([file.attrs["digest"], checksums])
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, UnicodeDecodeError) as error:
        raise DamageError(f"{path}: damaged, or not a feature file ({error}). {repair}") from None
    positions = columns.pop("positions")
    try:
        table = CaptionTable(**{name.removeprefix("captions/"): column for name, column in columns.items()}, language=provenance.language)
        table.check()
        if len(features) != table.images:
            raise ValueError(f"{len(features)} rows of features for {table.images} images")
        if len(positions) != table.images or (len(positions) and not 1 <= positions.min() <= positions.max() <= features.shape[2]):
            raise ValueError(f"/positions does not have a number between 1 and {features.shape[2]} for each image")
    except (TypeError, ValueError, IndexError) as error:
        raise DamageError(f"{path}: damaged ({error}). {repair}") from None
    return FeatureFile(path=path, digest=content_digest, provenance=provenance, features=features, positions=positions, table=table)


def _read_datasets(path: Path, file: h5py.File, provenance: Provenance) -> tuple[NDArray[np.float16], dict[str, Any], dict[str, list[int]]]:
    """The mapped features, the other datasets by name, and the checksums of all, checked."""
    datasets = {name: _dataset(file, name) for name in DATASETS}
    features = _map_features(path, datasets["features"], views=len(provenance.views))
    checksums = {"features": _check_blocks("features", features, _dataset(file, "crc32/features"))}
    columns: dict[str, Any] = {}
    for name in DATASETS[1:]:
        if name in NUMERIC_DTYPES:
            columns[name] = np.asarray(datasets[name][:], dtype=NUMERIC_DTYPES[name])
            raw: Any = columns[name]
        else:
            columns[name] = tuple(datasets[name].asstr()[:])
            raw = np.frombuffer(string_bytes(columns[name]), np.uint8)
        checksums[name] = _check_blocks(name, raw, _dataset(file, f"crc32/{name}"))
    return features, columns, checksums


def _read_provenance(file: h5py.File) -> Provenance:
    content: dict[str, Any] = {}
    for name in Provenance.__dataclass_fields__:
        value = file.attrs[name]
        content[name] = json.loads(value) if name in (*JSON_ATTRIBUTES, "views", "mean_is_pooled") else value
    if json_digest(content) != file.attrs["digest"]:
        raise ValueError("its attributes do not have the digest that the file lists")
    return Provenance.parse(content)


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """A dataset of this file itself: soft, external and virtual links, which would lead a reader to other files, are refused."""
    group = file
    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise ValueError(f"/{name} is missing or a link")
        group = group[part]
    if not isinstance(group, h5py.Dataset) or group.external or group.is_virtual:
        raise ValueError(f"/{name} is not a plain dataset")
    dimensions = 4 if name == "features" else 1
    if group.ndim != dimensions:
        raise ValueError(f"/{name} has {group.ndim} dimensions, not {dimensions}")
    if group.chunks is not None or group.nbytes > file.id.get_filesize():
        raise ValueError(f"/{name} is chunked or larger than its file")
    expected = NUMERIC_DTYPES.get(name, "<u4" if name.startswith("crc32/") else None)
    if expected is not None and group.dtype != np.dtype(expected):
        raise ValueError(f"/{name} is of type {group.dtype}, not {np.dtype(expected)}")
    return group


def _map_features(path: Path, dataset: h5py.Dataset, *, views: int) -> NDArray[np.float16]:
    if dataset.shape[1] != views:
        raise ValueError(f"/features has {dataset.shape[1]} views, but the attributes name {views}")
    if dataset.size == 0:
        return np.zeros(dataset.shape, dtype="<f2")
    offset = dataset.id.get_offset()
    if offset is None or offset + dataset.nbytes > path.stat().st_size:
        raise ValueError("/features is not stored contiguously inside the file")
    return np.memmap(path, dtype="<f2", mode="r", offset=offset, shape=dataset.shape)


def _check_blocks(name: str, data: NDArray[Any], listed: h5py.Dataset) -> list[int]:
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    found = BlockChecksums().update(raw.data).finish()
    expected = listed[:]
    if len(found) != len(expected):
        raise ValueError(f"/{name} has {len(found)} blocks, but {len(expected)} are listed")
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        raise ValueError(f"/{name}: block {wrong[0]} of {len(found)} does not have its CRC-32")
    checksums: list[int] = found.tolist()
    return checksums


def feature_path(folder: Path, split: str) -> Path:
    """``folder/SPLIT.h5``."""
    return folder / f"{split}.h5"


def find_feature_files(path: Path) -> list[Path]:
    """The feature file ``path``, or the feature files in the folder ``path``; none for a shard dataset or another folder.

    Raises:
        InputError: It does not exist, or is another kind of file.
    """
    if path.is_dir():
        return [] if (path / DATASET_FILE).is_file() else sorted(path.glob("*.h5"))
    if path.suffix == ".h5":
        return [path]
    problem = "not a feature file (its name does not end in .h5)." if path.exists() else f"no such file or folder.{did_you_mean(path)}"
    raise InputError(f"{path}: {problem} Give the folder of a shard dataset, a feature file or a folder of feature files.")


def check_same_network(first: FeatureFile, second: FeatureFile) -> None:
    """Refuse two feature files whose features are not comparable.

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
