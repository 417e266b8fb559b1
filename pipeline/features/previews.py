"""A few pictures beside a feature file, ``SPLIT.samples.tar``: what a training from the cache shows its captions under.

An ordinary WebDataset tar of the split's first images, as its shards hold them.
"""

import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.decode import ImageError, decode_pixels
from pipeline.sharding.read_samples import decode_sample, read_samples
from shards.errors import DamageError
from shards.manifest import Split
from shards.tar import write_tar

SAMPLES = 8
ENDING = ".samples.tar"
# Of one picture; a hostile tar may say anything.
MAX_BYTES = 32 << 20


def samples_path(folder: Path, split: str) -> Path:
    """``folder/SPLIT.samples.tar``."""
    return folder / f"{split}{ENDING}"


def spread_rows(count: int, wanted: int) -> NDArray[np.int64]:
    """int64 (min(count, wanted),): rows spread evenly over ``count``, the first one included.

    >>> spread_rows(10, 4).tolist()
    [0, 2, 5, 7]
    """
    chosen = min(count, wanted)
    return np.arange(chosen) * count // max(chosen, 1)


def write_samples(split: Split, folder: Path) -> None:
    """Commit the pictures of a split that lie at its :func:`spread_rows`.

    Raises:
        DamageError: A sample is not what its sidecar says.
        ResourceError: Disk full, not allowed.
    """

    def records() -> Iterator[tuple[str, bytes, dict[str, Any]]]:
        for row in spread_rows(split.images, SAMPLES).tolist():
            shard, chosen = split.sample(row)
            for sample, jpeg, record in read_samples(shard, [chosen]):
                yield sample.key, jpeg, record

    write_tar(samples_path(folder, split.name), records())


def sample_pictures(folder: Path, split: str, keys: Sequence[str]) -> list[NDArray[np.uint8] | None]:
    """Pixels, uint8 (height, width, 3), of the samples with some keys; None for those that are not there or cannot be read."""
    found: dict[str, NDArray[np.uint8]] = {}
    wanted = {f"{key}.jpg": key for key in keys}
    try:
        with tarfile.open(samples_path(folder, split), "r:") as tar:
            for member in tar:
                key = wanted.get(member.name)
                file = tar.extractfile(member) if key is not None and member.isreg() and member.size <= MAX_BYTES else None
                if key is not None and file is not None:
                    found[key] = decode_pixels(file.read(), f"{samples_path(folder, split)}: {member.name}")
    except (OSError, tarfile.TarError, ImageError):
        pass  # only for looking at: the caption is shown alone
    return [found.get(key) for key in keys]


def split_pictures(split: Split, rows: Sequence[int]) -> list[NDArray[np.uint8] | None]:
    """Pixels of the images at some rows of a split; None for those that are damaged."""
    pictures: list[NDArray[np.uint8] | None] = []
    for row in rows:
        shard, sample = split.sample(row)
        try:
            (found,) = read_samples(shard, [sample])
            pictures.append(decode_sample(shard, sample.key, found[1]))
        except DamageError:
            pictures.append(None)
    return pictures
