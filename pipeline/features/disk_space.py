"""How many bytes caching will write, said and compared with the free disk space before anything is computed.

The features are counted exactly and the captions estimated from the records, without reading them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.execution.array_tasks import ArrayTask
from pipeline.features.parts import part_name
from shards.atomic import disk_errors
from shards.dataset import Shard, Split
from shards.errors import ResourceError
from shards.output import Output
from shards.paths import free_bytes

FLOAT16_BYTES = 2
# Measured on COCO's captions: HDF5 takes a quarter more than the records, and 16 KB for a file without images
CAPTION_FACTOR = 1.25
FILE_BYTES = 16_384


@dataclass(frozen=True, kw_only=True)
class SplitBytes:
    """The bytes of a split.

    Attributes:
        parts: Of the parts that still have to be made.
        present: Of the parts that exist. They are removed when they have been joined.
        joined: Of the feature file; 0 if the parts will not be joined.
    """

    split: str
    parts: int
    present: int
    joined: int


def split_bytes(split: Split, parts: Output, *, views: int, shape: tuple[int, int], array_task: ArrayTask | None) -> SplitBytes:
    """The bytes that a split without a feature file still needs.

    Args:
        parts: The folder of its parts. An existing part counts as made, unless it is a file that is too small for its features.
        views, shape: Views per image, and (positions, dim) of each.
        array_task: Counts the parts of this task only.
    """
    every = [(shard, part_name(index)) for index, shard in enumerate(split.shards)]
    sizes, image_bytes = _part_sizes(parts), views * math.prod(shape) * FLOAT16_BYTES
    to_make = present = 0
    for shard, name in every if array_task is None else array_task.select(every):
        features, size = len(shard.sidecar.samples) * image_bytes, sizes.get(name)
        present += size or 0
        if size is None or (parts.url is None and size < features):
            to_make += features + _caption_bytes(shard) + FILE_BYTES
    joined = split.images * image_bytes + sum(map(_caption_bytes, split.shards)) + FILE_BYTES
    return SplitBytes(split=split.name, parts=to_make, present=present, joined=joined if array_task is None else 0)


def _part_sizes(parts: Output) -> dict[str, int]:
    """The size of each existing part by its name; 0 for all in S3."""
    with disk_errors(parts.folder):
        return {name: (parts.folder / name).stat().st_size if parts.url is None else 0 for name in parts.names()}


def _caption_bytes(shard: Shard) -> int:
    return int(CAPTION_FACTOR * sum(sample.json.size for sample in shard.sidecar.samples))


def peak_bytes(splits: Sequence[SplitBytes]) -> int:
    """The most bytes that splits need at a time, made one after another: the parts of a split are removed when they have been joined.

    >>> one = SplitBytes(split="train", parts=60, present=40, joined=100)
    >>> peak_bytes([one]), peak_bytes([one, SplitBytes(split="val", parts=10, present=0, joined=10)])
    (160, 160)
    """
    peak = change = 0
    for split in splits:
        peak = max(peak, change + split.parts + split.joined)
        change += split.joined - split.present if split.joined else split.parts
    return peak


def check_space(output: Output, splits: Sequence[SplitBytes], report: Callable[[str], None]) -> None:
    """Report how many bytes will be written. In S3, where space has no limit, only this.

    Raises:
        ResourceError: The disk has less free space than is needed at a time; names both.
    """
    if not splits:
        return
    total = sum(split.joined or split.parts for split in splits)
    each = ", ".join(f"{split.split} {_shown(split.joined or split.parts)}" for split in splits)
    what = f"{_shown(total)} of features and captions ({each})"
    if output.url is not None:
        report(f"{output.url}: will write about {what}.")
        return
    needed, free = peak_bytes(splits), free_bytes(output.folder)
    if needed > free:
        raise ResourceError(
            f"{output.folder}: not enough space: about {what} would be written, at most {_shown(needed)} at a time with the parts, but only "
            f"{_shown(free)} are free. Free some, choose another `out`, store fewer `views` or positions (`features` grid:N), or select one "
            "`split`. Finished parts are kept."
        )
    report(f"{output.folder}: will write about {what}, at most {_shown(needed)} at a time; {_shown(free)} are free.")


def _shown(count: int) -> str:
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
