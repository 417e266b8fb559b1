"""Thumbnails of images, small enough that a page can hold thousands.

They are made from a shard dataset, where images are found by id, or from a folder, where they are found by file name. Where there is no
thumbnail, the result is the reason. Images that the dataset has squashed or padded get the shape of the original again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from pipeline.execution.executors import default_workers
from pipeline.execution.prefetch import map_ahead
from pipeline.execution.progress import Progress
from pipeline.images.decode import MAX_PIXELS, ImageError, Resize, decode_image, encode_jpeg, read_image_file
from pipeline.sharding.read_samples import read_samples
from shards.dataset import Shard, open_split
from shards.errors import DamageError, InputError
from shards.paths import is_inside
from shards.sidecar import Sample
from shards.tar import read_records

SIDE = 192  # pixels, the longer side
JPEG_QUALITY = 70
Problem = Literal["missing", "damaged"]


@dataclass(frozen=True, kw_only=True)
class RequestedImage:
    """An image to show; ``file_name`` comes from outside and is not trusted."""

    image_id: int
    file_name: str


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """For each image, in order, the bytes of a JPEG or the reason why there is none; and how fast they were made."""

    results: tuple[bytes | Problem, ...]
    images_per_second: float

    def count(self, problem: Problem) -> int:
        """How many images have no thumbnail for this reason."""
        return sum(result == problem for result in self.results)


def shard_thumbnails(folder: Path, split_name: str, requested: Sequence[RequestedImage], *, quiet: bool = True) -> Thumbnails:
    """Thumbnails from a split of a shard dataset. Images are found by id.

    An image with the same id but another file name is a different image: it counts as missing.

    Raises:
        InputError: No such dataset or split, or it has none of the images.
        DamageError, MismatchError: Its sidecars or records are damaged. Damaged images are counted instead.
    """
    split = open_split(folder, split_name, check_tars=False)
    ids = {image.image_id for image in requested}
    samples: dict[int, tuple[Shard, Sample, str]] = {}
    for shard in split.shards:
        for sample, record in read_records(shard):
            if record["image_id"] in ids:
                samples.setdefault(record["image_id"], (shard, sample, record["file_name"]))
    mode = split.config["resize"]["mode"]

    def make(image: RequestedImage) -> bytes | Problem:
        shard, sample, file_name = samples.get(image.image_id, (None, None, ""))
        if shard is None or sample is None or (image.file_name and image.file_name != file_name):
            return "missing"
        try:
            ((_, jpeg, record),) = read_samples(shard, [sample])
            return _stored_thumbnail(jpeg, f"{shard.path}: {sample.key}.jpg", record, mode)
        except (DamageError, ImageError):
            return "damaged"

    thumbnails = _make_all(make, requested, quiet=quiet)
    if requested and thumbnails.count("missing") == len(requested):
        raise InputError(f"{folder}: split {split_name!r} has none of the {len(requested)} images. Choose other `shards` or another `split`.")
    return thumbnails


def folder_thumbnails(folder: Path, requested: Sequence[RequestedImage], *, quiet: bool = True) -> Thumbnails:
    """Thumbnails from the images in a folder, found by file name. A name that leads out of the folder, also by a link, counts as missing.

    Raises:
        InputError: No such folder, or none of the images is in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder. `images` must be the folder that the file names of the images are relative to.")
    root = folder.resolve()

    def make(image: RequestedImage) -> bytes | Problem:
        path = _inside(root, image.file_name)
        if path is None:
            return "missing"
        try:
            return _image_thumbnail(read_image_file(path), str(path))
        except ImageError as error:
            return "missing" if error.reason == "missing_file" else "damaged"

    thumbnails = _make_all(make, requested, quiet=quiet)
    if requested and thumbnails.count("missing") == len(requested):
        shown = next((image.file_name for image in requested if image.file_name), "not named in the score file")
        raise InputError(f"{folder}: none of the {len(requested)} images is here (the first: {shown}). Give another `images` folder, or `shards`.")
    return thumbnails


def _make_all(make: Callable[[RequestedImage], bytes | Problem], requested: Sequence[RequestedImage], *, quiet: bool) -> Thumbnails:
    results: list[bytes | Problem] = []
    with Progress("Thumbnails", total=len(requested), unit="images", quiet=quiet) as progress:
        made: Iterator[bytes | Problem] = map_ahead(make, requested, threads=default_workers())
        for result in made:
            results.append(result)
            progress.advance(1)
        rate = progress.rate
    return Thumbnails(results=tuple(results), images_per_second=rate)


def _inside(root: Path, file_name: str) -> Path | None:
    """The regular file of this name below ``root``, a resolved path; or None."""
    if not file_name or not is_inside(file_name):
        return None
    try:
        path = (root / file_name).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None  # not a device or a pipe
    except (OSError, RuntimeError, ValueError):
        return None  # too long a name, a cycle of links, a lone surrogate: no such file


def _image_thumbnail(data: bytes, name: str) -> bytes:
    square = Resize(size=SIDE, mode="pad")
    decoded = decode_image(data, name, square)
    return encode_jpeg(_without_padding(decoded.image, square.scaled(decoded.width, decoded.height)), JPEG_QUALITY)


def _stored_thumbnail(jpeg: bytes, name: str, record: dict[str, Any], mode: str) -> bytes:
    image = decode_image(jpeg, name).image
    width, height = record.get("width"), record.get("height")
    if not (isinstance(width, int) and isinstance(height, int) and 0 < width <= MAX_PIXELS and 0 < height <= MAX_PIXELS):
        width, height = image.size
    if mode == "pad":
        image = _without_padding(image, Resize(size=max(16, image.width), mode="pad").scaled(width, height))
    elif mode != "squash":
        width, height = image.size
    shape = Resize(size=SIDE, mode="pad").scaled(width, height)
    return encode_jpeg(image.resize(shape, Image.Resampling.LANCZOS), JPEG_QUALITY)


def _without_padding(square: Image.Image, shape: tuple[int, int]) -> Image.Image:
    width, height = min(shape[0], square.width), min(shape[1], square.height)
    left, top = (square.width - width) // 2, (square.height - height) // 2
    return square.crop((left, top, left + width, top + height))
