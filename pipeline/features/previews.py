"""Previews: a few images of a split next to its feature file (``SPLIT.samples.tar``), shown with their captions in TensorBoard.

They are an ordinary WebDataset tar. Training from cached features has no other pixels.
"""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.decode import ImageError, decode_pixels
from pipeline.sharding.read_samples import decode_sample, read_samples
from shards.dataset import Split
from shards.errors import DamageError
from shards.tar import write_tar

PREVIEWS = 8
ENDING = ".samples.tar"
# Of one image: a tar from an untrusted source may claim any size.
MAX_BYTES = 32 << 20


def previews_path(folder: Path, split: str) -> Path:
    """``folder/SPLIT.samples.tar``."""
    return folder / f"{split}{ENDING}"


def spread_rows(count: int, wanted: int) -> NDArray[np.int64]:
    """int64 (min(count, wanted),): rows spread evenly over ``count``, the first one included.

    >>> spread_rows(10, 4).tolist()
    [0, 2, 5, 7]
    """
    chosen = min(count, wanted)
    return np.arange(chosen) * count // max(chosen, 1)


def write_previews(split: Split, folder: Path) -> None:
    """Commit the images of a split at its :func:`spread_rows`.

    Raises:
        DamageError: A sample is not what its sidecar says.
        ResourceError: Disk full, not allowed.
    """

    def records() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
        for row in spread_rows(split.images, PREVIEWS).tolist():
            shard, chosen = split.sample(row)
            for sample, jpeg, record in read_samples(shard, [chosen]):
                yield sample.key, jpeg, record

    write_tar(previews_path(folder, split.name), records())


def read_previews(folder: Path, split: str, keys: Sequence[str]) -> list[NDArray[np.uint8] | None]:
    """The pixels of samples by key, uint8 (height, width, 3); None for those that are missing or unreadable."""
    found: dict[str, NDArray[np.uint8]] = {}
    wanted = {f"{key}.jpg": key for key in keys}
    try:
        with tarfile.open(previews_path(folder, split), "r:") as tar:
            for member in tar:
                key = wanted.get(member.name)
                file = tar.extractfile(member) if key is not None and member.isreg() and member.size <= MAX_BYTES else None
                if key is not None and file is not None:
                    found[key] = decode_pixels(file.read(), f"{previews_path(folder, split)}: {member.name}")
    except (OSError, tarfile.TarError, ImageError):
        pass  # previews are optional: the caption is shown without its image
    return [found.get(key) for key in keys]


def split_previews(split: Split, rows: Sequence[int]) -> list[NDArray[np.uint8] | None]:
    """The pixels of a split's images by row, uint8 (height, width, 3); None for those that are damaged."""
    pictures: list[NDArray[np.uint8] | None] = []
    for row in rows:
        shard, sample = split.sample(row)
        try:
            (found,) = read_samples(shard, [sample])
            pictures.append(decode_sample(shard, sample.key, found[1]))
        except DamageError:
            pictures.append(None)
    return pictures
