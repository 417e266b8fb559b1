"""Existing features in NumPy files: an array in one .npy file, or a folder with one .npy or .npz file per image.

An image has one vector, or one for each of its positions. Files of a folder may have different numbers of positions.

The files are not trusted. Pickles are never loaded, sizes are checked before reading, and headers are checked against the actual bytes.
"""

import hashlib
import io
import lzma
import math
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tokenize import TokenError
from typing import Any, BinaryIO, Literal, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from pipeline.captions.records import ListedImage
from shards.digests import file_sha256
from shards.errors import InputError, first_line
from shards.paths import same_name
from shards.rejects import Reject

MAX_DIM = 1 << 16
# A split file of at most MAX_JSON_BYTES lists fewer images than this.
MAX_ROWS = 10_000_000
MAX_VECTOR_BYTES = 16 << 20
# Every image of a feature file takes the space of the one with the most positions.
MAX_POSITIONS = 1024
ENDINGS = (".npy", ".npz")
FLOATS = ("float16", "float32", "float64")
NPY_VERSIONS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
UNPACK_ERRORS = (zlib.error, lzma.LZMAError, struct.error)
LARGEST = float(np.finfo(np.float16).max)
WANTED = (
    "An array (images, dim) or (images, positions, dim) of float16, float32 or float64 is expected, whose row i belongs to the image with imgid i; "
    "or a folder with one .npy or .npz file per image."
)


@dataclass(frozen=True, kw_only=True)
class FeatureIndex:
    """Which features belong to which image.

    Attributes:
        places: By image id, the index of its features, for :meth:`FeatureArrays.read`.
        unclaimed: Features that belong to no image.
    """

    places: dict[int, int]
    unclaimed: tuple[Reject, ...]


class FeatureArrays(Protocol):
    """Features by index, each (positions, dim). An index is called a place."""

    path: Path
    dim: int

    def missing(self, image: ListedImage) -> str:
        """A message that an image has no features."""
        ...

    def label(self, place: int) -> int | str:
        """What identifies a place: the row, or the file's name."""
        ...

    def name(self, place: int) -> str:
        """The file, and the row if there are rows, for messages."""
        ...

    def read(self, places: Sequence[int]) -> Sequence[NDArray[Any]]:
        """Features of each place, float16, float32 or float64 (positions, dim).

        Raises:
            InputError: They cannot be read, or have a different shape.
        """
        ...

    def dtype(self) -> str:
        """The dtypes that were read, separated by commas."""
        ...

    def sha256(self) -> str:
        """A digest of the features: the SHA-256 of a matrix file, or of the names and SHA-256 digests of all files read."""
        ...


def open_npy(path: Path, listed: Sequence[ListedImage]) -> tuple[FeatureArrays, FeatureIndex]:
    """Open a matrix or a folder, and find the features of the images of a split file.

    Raises:
        InputError: It is missing or malformed, or features could belong to several images.
    """
    if path.is_dir():
        return _open_folder(path, listed)
    matrix = _Matrix(path)
    rows = {image.image_id: image.imgid for image in listed if 0 <= image.imgid < len(matrix.rows)}
    free = np.ones(len(matrix.rows), dtype=bool)
    free[list(rows.values())] = False
    unclaimed = tuple(
        Reject(file=f"{path.name} row {row}", reason="features_without_image", message=f"{matrix.name(row)}: no image has this imgid")
        for row in np.flatnonzero(free).tolist()
    )
    return matrix, FeatureIndex(places=rows, unclaimed=unclaimed)


class _Matrix:
    """A memory-mapped matrix; a place is a row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: no such file or folder (`npy`). {WANTED}")
        try:
            with path.open("rb") as file:
                header = _read_header(path, file, path.stat().st_size)
                offset = file.tell()
            if len(header.shape) not in (2, 3):
                raise InputError(f"{path}: has the shape {header.shape}. {WANTED}")
            if header.shape[0] > MAX_ROWS:
                raise InputError(f"{path}: has {header.shape[0]:,} rows, more than the limit of {MAX_ROWS:,}. Split it.")
            _check_shape(path, (math.prod(header.shape[1:-1]), header.shape[-1]))
            self.rows: NDArray[Any] = np.memmap(path, header.dtype, "r", offset, header.shape, header.order)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}). Check who may read it.") from None
        self.dim = header.shape[-1]

    def missing(self, image: ListedImage) -> str:
        return f"imgid {image.imgid} is not a row of {self.path.name}, which has {len(self.rows)} rows"

    def label(self, place: int) -> int | str:
        return place

    def name(self, place: int) -> str:
        return f"{self.path}: row {place}"

    def read(self, places: Sequence[int]) -> Sequence[NDArray[Any]]:
        return list(self.rows[list(places)].reshape(len(places), -1, self.dim))

    def dtype(self) -> str:
        return str(self.rows.dtype.newbyteorder("="))

    def sha256(self) -> str:
        return file_sha256(self.path)


class _Folder:
    """Files with the features of one image each; a place is an index into the sorted files."""

    def __init__(self, path: Path, files: Sequence[Path], first: int) -> None:
        self.path, self.files = path, files
        self._read: dict[str, tuple[str, str]] = {}  # file name -> SHA-256 and type
        self._first = files[first]
        self.dim = self._features(files[first]).shape[1]

    def missing(self, image: ListedImage) -> str:
        return f"no file of {self.path} has its name or its id {image.image_id}"

    def label(self, place: int) -> int | str:
        return self.files[place].name

    def name(self, place: int) -> str:
        return str(self.files[place])

    def read(self, places: Sequence[int]) -> Sequence[NDArray[Any]]:
        found = [self._features(self.files[place]) for place in places]
        for place, features in zip(places, found, strict=True):
            if features.shape[1] != self.dim:
                raise InputError(
                    f"{self.files[place]}: has {features.shape[1]} features, {self._first.name} has {self.dim}: all images need the same number. "
                    "Give the files of one network only."
                )
        return found

    def dtype(self) -> str:
        return ", ".join(sorted({dtype for _, dtype in self._read.values()}))

    def sha256(self) -> str:
        total = hashlib.sha256()
        for name in sorted(self._read):
            total.update(f"{name} {self._read[name][0]}\n".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def _features(self, path: Path) -> NDArray[Any]:
        """Any float (positions, dim), from an array (dim,), (positions, dim) or (height, width, dim)."""
        stored = _file_bytes(path)
        array = _parse_npy(path, _only_member(path, stored) if path.suffix == ".npz" else stored)
        if array.ndim not in (1, 2, 3):
            raise InputError(f"{path}: has the shape {array.shape}, but (dim,), (positions, dim) or (height, width, dim) is expected.")
        features = array.reshape(-1, array.shape[-1])
        _check_shape(path, features.shape)
        self._read[path.name] = (hashlib.sha256(stored).hexdigest(), str(array.dtype.newbyteorder("=")))
        return features


def _open_folder(path: Path, listed: Sequence[ListedImage]) -> tuple[FeatureArrays, FeatureIndex]:
    found = sorted(file for file in path.iterdir() if file.suffix in ENDINGS)
    files = [file for file in found if not file.name.startswith(".")]
    if not files:
        raise InputError(f"{path}: holds no .npy or .npz file (`npy`). {WANTED}")
    owners: dict[str, list[ListedImage]] = {}
    for image in listed:
        file_name = PurePosixPath(image.file_name)
        for name in {file_name.name, file_name.stem, str(image.image_id)}:
            owners.setdefault(same_name(name), []).append(image)
    places: dict[int, int] = {}
    unclaimed = [Reject(file=file.name, reason="hidden_file", message=f"{file}: hidden files are not used") for file in found if file not in files]
    for place, file in enumerate(files):
        claims = owners.get(same_name(file.stem), [])
        if len(claims) > 1:
            shown = " or ".join(f"{image.file_name} (id {image.image_id})" for image in claims[:2])
            raise InputError(f"{file}: may belong to {shown}. Name it after the whole file name of its image ({claims[0].file_name}{file.suffix}).")
        if not claims:
            unclaimed.append(Reject(file=file.name, reason="features_without_image", message=f"{file}: no image has this name or id"))
        elif (before := places.setdefault(claims[0].image_id, place)) != place:
            raise InputError(f"{file}: {claims[0].file_name} has features in {files[before].name} too. Remove one of the files.")
    if not places:
        raise InputError(
            f"{path}: none of its {len(files)} files has the name of an image in the split file ({files[0].name} is the first). Name them after the "
            "images' file names or ids."
        )
    return _Folder(path, files, min(places.values())), FeatureIndex(places=places, unclaimed=tuple(unclaimed))


def _file_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_VECTOR_BYTES:
            raise InputError(f"{path}: {size:,} bytes, more than one image's features may have ({MAX_VECTOR_BYTES:,}).")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Check who may read it.") from None


def _only_member(path: Path, stored: bytes) -> bytes:
    """The one array of an .npz file, which is a zip file."""
    try:
        with zipfile.ZipFile(io.BytesIO(stored)) as archive:
            members = archive.infolist()
            if len(members) != 1:
                names = ", ".join(member.filename for member in members[:5])
                raise InputError(f"{path}: holds {len(members)} arrays ({names}), one is expected. Save only the image's features.")
            with archive.open(members[0]) as file:
                content = file.read(MAX_VECTOR_BYTES + 1)  # the size in the archive's directory is not trusted
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, OSError, RuntimeError, ValueError, EOFError, *UNPACK_ERRORS) as error:
        raise InputError(f"{path}: not an .npz file, or damaged ({error}). Copy it again, or make it again.") from None
    if len(content) > MAX_VECTOR_BYTES:
        raise InputError(f"{path}: holds more than {MAX_VECTOR_BYTES:,} bytes, the limit for one image's features.")
    return content


@dataclass(frozen=True, kw_only=True)
class _Header:
    """What the header of an .npy file says about its array."""

    shape: tuple[int, ...]
    order: Literal["C", "F"]
    dtype: np.dtype[Any]


def _read_header(path: Path, file: BinaryIO, size: int, if_empty: str = WANTED) -> _Header:
    """Read the header of an .npy file of ``size`` bytes, and check it against the data after it, where ``file`` is left.

    Source: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1.0 and 2.0.

    Raises:
        InputError: It is not an .npy file, or does not hold a complete, non-empty array of floats.
    """
    try:
        version = npy.read_magic(file)
        if version not in NPY_VERSIONS:
            raise ValueError(f"format version {version}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files written by Python 2, as many feature files were
            shape, fortran, dtype = NPY_VERSIONS[version](file)
    except (ValueError, EOFError, SyntaxError, TypeError, OverflowError, RecursionError, MemoryError, TokenError) as error:
        raise InputError(f"{path}: not an .npy file ({first_line(error)}). Save the features with numpy.save.") from None
    if dtype.hasobject:
        raise InputError(f"{path}: holds Python objects (a pickle), which could run code when loaded. Save the features as an array of float32.")
    if dtype.newbyteorder("=").name not in FLOATS:
        raise InputError(f"{path}: holds values of type {dtype}, accepted are {', '.join(FLOATS)}. Save the features as an array of float32.")
    if not all(length > 0 for length in shape):
        raise InputError(f"{path}: has the shape {shape}: it holds no features. {if_empty}")
    wanted, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if wanted != there:
        raise InputError(
            f"{path}: damaged: an array of the shape {shape} has {wanted:,} bytes, there are {there:,}. Copy it again, or make it again."
        )
    return _Header(shape=tuple(map(int, shape)), order="F" if fortran else "C", dtype=dtype)


def _parse_npy(path: Path, content: bytes) -> NDArray[Any]:
    """The array in the bytes of an .npy file."""
    file = io.BytesIO(content)
    header = _read_header(path, file, len(content), "Compute the features of this image again, or delete the file to leave the image out.")
    return np.frombuffer(content, header.dtype, offset=file.tell()).reshape(header.shape, order=header.order)


def _check_shape(path: Path, shape: tuple[int, ...]) -> None:
    positions, dim = shape
    if dim > MAX_DIM:
        raise InputError(f"{path}: {dim:,} features per position, more than the limit of {MAX_DIM:,}. Import pooled features.")
    if positions > MAX_POSITIONS:
        raise InputError(f"{path}: {positions:,} positions, more than the limit of {MAX_POSITIONS:,}. Average them to fewer.")


def read_half(arrays: FeatureArrays, places: Sequence[int]) -> list[NDArray[np.float16]]:
    """Features of each place rounded to float16 (positions, dim), the type in which feature files store them.

    Raises:
        InputError: A feature is NaN or inf, or does not fit into float16; names the row or file.
    """
    halves = []
    for place, features in zip(places, arrays.read(places), strict=True):
        with np.errstate(over="ignore", under="ignore"):
            rounded: NDArray[np.float16] = features.astype("<f2")
        if not np.isfinite(rounded).all() or (not rounded.any() and features.any()):
            raise _lost(arrays.name(place), features)
        halves.append(rounded)
    return halves


def padded(features: Sequence[NDArray[np.float16]], positions: int) -> NDArray[np.float16]:
    """Features of several images, each (positions of the image, dim), as float16 (images, positions, dim) with zeros after those of an image."""
    result = np.zeros((len(features), positions, features[0].shape[1]), "<f2")
    for row, own in zip(result, features, strict=True):
        row[: len(own)] = own
    return result


def _lost(name: str, features: NDArray[Any]) -> InputError:
    """The error for features, float (positions, dim), that float16 cannot hold."""
    worst = np.flatnonzero(~np.isfinite(features).all(axis=1))
    position = int(worst[0]) if len(worst) else int(np.abs(features).max(axis=1).argmax())
    vector, name = features[position], f"{name}, position {position}" if len(features) > 1 else name
    if not np.isfinite(vector).all():
        feature = int(np.flatnonzero(~np.isfinite(vector))[0])
        return InputError(f"{name}: feature {feature} is {vector[feature]}, which cannot be trained on. Compute this image's features again.")
    feature = int(np.abs(vector).argmax())
    kept = f"feature {feature} is {vector[feature]:g}, the largest; features are stored as float16"
    if abs(vector[feature]) > LARGEST:
        return InputError(f"{name}: {kept}, whose largest value is {LARGEST:g}. Divide all features by a constant, and import again.")
    return InputError(f"{name}: {kept}, in which all features of this image become 0. Multiply all features by a constant, and import again.")
