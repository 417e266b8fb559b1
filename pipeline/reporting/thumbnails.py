"""Pictures of images that are known by id and file name, small enough that a page can hold thousands.

They come from a shard dataset, whose samples know their image id, or from a folder of photographs. What has no picture says why.
Pictures that a dataset has squashed or padded get the shape of their photograph again.
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

SIDE = 192
QUALITY = 70
Problem = Literal["missing", "damaged"]


@dataclass(frozen=True, kw_only=True)
class RequestedImage:
    """An image that is to be shown; ``file_name`` is a stranger's word."""

    image_id: int
    file_name: str


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """JPEG bytes, or why there are none, for each image in order, and how fast they were made."""

    pictures: tuple[bytes | Problem, ...]
    images_per_second: float

    def count(self, problem: Problem) -> int:
        """How many images have no picture for this reason."""
        return sum(picture == problem for picture in self.pictures)


def shard_thumbnails(folder: Path, split_name: str, wanted: Sequence[RequestedImage], *, quiet: bool = True) -> Thumbnails:
    """Thumbnails of the images that a split of a shard dataset stores, found by image id.

    An image with the same id and another file name is another image: it counts as missing.

    Raises:
        InputError: No such dataset or split, or it holds none of the images.
        DamageError, MismatchError: Its sidecars or records are damaged; a damaged picture is counted instead.
    """
    split = open_split(folder, split_name, check_tars=False)
    ids = {image.image_id for image in wanted}
    places: dict[int, tuple[Shard, Sample, str]] = {}
    for shard in split.shards:
        for sample, record in read_records(shard):
            if record["image_id"] in ids:
                places.setdefault(record["image_id"], (shard, sample, record["file_name"]))
    mode = split.config["resize"]["mode"]

    def make(image: RequestedImage) -> bytes | Problem:
        shard, sample, file_name = places.get(image.image_id, (None, None, ""))
        if shard is None or sample is None or (image.file_name and image.file_name != file_name):
            return "missing"
        try:
            ((_, jpeg, record),) = read_samples(shard, [sample])
            return _stored_thumbnail(jpeg, f"{shard.path}: {sample.key}.jpg", record, mode)
        except (DamageError, ImageError):
            return "damaged"

    made = _made(make, wanted, quiet=quiet)
    if wanted and made.count("missing") == len(wanted):
        raise InputError(f"{folder}: split {split_name!r} holds none of the {len(wanted)} images. Give the shards that were evaluated, or --split.")
    return made


def folder_thumbnails(folder: Path, wanted: Sequence[RequestedImage], *, quiet: bool = True) -> Thumbnails:
    """Thumbnails of photographs, found by file name below a folder; a name that leads out of it, through a link too, counts as missing.

    Raises:
        InputError: There is no such folder, or none of the photographs is in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder. Give --images the folder that the photographs' file names are relative to.")
    root = folder.resolve()

    def make(image: RequestedImage) -> bytes | Problem:
        path = _inside(root, image.file_name)
        if path is None:
            return "missing"
        try:
            return _photograph_thumbnail(read_image_file(path), str(path))
        except ImageError as error:
            return "missing" if error.reason == "missing_file" else "damaged"

    made = _made(make, wanted, quiet=quiet)
    if wanted and made.count("missing") == len(wanted):
        shown = next((image.file_name for image in wanted if image.file_name), "which the score file does not name")
        raise InputError(f"{folder}: none of the {len(wanted)} photographs is here (the first: {shown}). Give another --images, or --shards.")
    return made


def _made(make: Callable[[RequestedImage], bytes | Problem], wanted: Sequence[RequestedImage], *, quiet: bool) -> Thumbnails:
    pictures: list[bytes | Problem] = []
    with Progress("Thumbnails", total=len(wanted), unit="images", quiet=quiet) as progress:
        made: Iterator[bytes | Problem] = map_ahead(make, wanted, threads=default_workers())
        for picture in made:
            pictures.append(picture)
            progress.advance(1)
        rate = progress.rate
    return Thumbnails(pictures=tuple(pictures), images_per_second=rate)


def _inside(root: Path, file_name: str) -> Path | None:
    """The regular file of this name below ``root``, which is resolved, or None."""
    if not file_name or not is_inside(file_name):
        return None
    try:
        path = (root / file_name).resolve()
        return path if path.is_relative_to(root) and path.is_file() else None  # no device, no pipe
    except (OSError, RuntimeError, ValueError):
        return None  # too long a name, links in a circle, half a character: there is no such file


def _photograph_thumbnail(data: bytes, name: str) -> bytes:
    square = Resize(size=SIDE, mode="pad")
    photograph = decode_image(data, name, square)
    return encode_jpeg(_without_padding(photograph.image, square.scaled(photograph.width, photograph.height)), QUALITY)


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
    return encode_jpeg(image.resize(shape, Image.Resampling.LANCZOS), QUALITY)


def _without_padding(square: Image.Image, shape: tuple[int, int]) -> Image.Image:
    width, height = min(shape[0], square.width), min(shape[1], square.height)
    left, top = (square.width - width) // 2, (square.height - height) // 2
    return square.crop((left, top, left + width, top + height))
