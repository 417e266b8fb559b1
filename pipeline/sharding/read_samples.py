"""Samples of a shard, each checked against the sidecar: a sequential pass through webdataset's own readers, or some by their places.

webdataset ends quietly at a cut tar and passes flipped bits on; here each sample must be the one that the sidecar lists next, to
the byte, and the last one must come.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.decode import ImageError, decode_pixels
from shards.dataset import Shard
from shards.errors import DamageError
from shards.paths import IMAGE_SUFFIXES
from shards.sidecar import Sample
from shards.tar import check_member, parse_record, read_member


def shard_samples(shard: Shard) -> Iterator[tuple[Sample, bytes, dict[str, Any]]]:
    """Yield (sample, JPEG bytes, JSON record) of a shard in order.

    Raises:
        DamageError: A sample is missing, out of place, or not what the sidecar says.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    if shard.skipped:  # no sequential reader finds its way through a damaged tar
        yield from read_samples(shard, shard.sidecar.samples)
        return
    with shard.open() as stream, shard.open_records() as records:
        found = group_by_keys(tar_file_expander([{"url": str(shard.path), "stream": stream}]))
        for sample in shard.sidecar.samples:
            try:
                # A tar that was made elsewhere may hold samples that could not be used.
                content = next((each for each in found if shard.sidecar.records is None or each["__key__"] == sample.key), None)
            except Exception as error:  # whatever a foreign reader makes of a damaged tar is damage
                raise DamageError(f"{shard.path}: damaged at sample {sample.key} ({error}). {shard.repair}") from error
            if content is None or content["__key__"] != sample.key:
                there = "the tar ends" if content is None else f"sample {content['__key__']} stands"
                raise DamageError(f"{shard.path}: {there} where sample {sample.key} should be. {shard.repair}")
            if shard.sidecar.records is None:
                jpeg, text = content.get("jpg", b""), content.get("json", b"")
            else:
                jpeg = next((content[ending[1:]] for ending in IMAGE_SUFFIXES if ending[1:] in content), b"")
                text = read_member(records, shard, sample.key, "json", sample.json)
            check_member(shard, sample.key, "jpg", sample.jpg, jpeg)
            yield sample, jpeg, parse_record(shard, sample.key, check_member(shard, sample.key, "json", sample.json, text))


def read_samples(shard: Shard, samples: Sequence[Sample]) -> Iterator[tuple[Sample, bytes, dict[str, Any]]]:
    """Yield (sample, JPEG bytes, JSON record) of some samples of a shard, read where the sidecar says that they are.

    webdataset, whose import brings torch, is not needed: a worker process starts at once.

    Raises:
        DamageError: A sample is not what the sidecar says, or the tar is gone.
    """
    if not samples:
        return
    try:
        tar, records = shard.open(), shard.open_records()
    except FileNotFoundError:
        raise DamageError(f"{shard.path}: is gone. {shard.repair}") from None
    with tar, records:
        for sample in samples:
            jpeg = read_member(tar, shard, sample.key, "jpg", sample.jpg)
            yield sample, jpeg, parse_record(shard, sample.key, read_member(records, shard, sample.key, "json", sample.json))


def decode_sample(shard: Shard, key: str, jpeg: bytes, scratch: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """A sample's pixels, uint8 (height, width, 3).

    Args:
        scratch: Memory to decode into, if the pixels fit; they are valid until it is used again.

    Raises:
        DamageError: The bytes are no whole JPEG.
    """
    try:
        return decode_pixels(jpeg, f"{shard.path}: {key}.jpg", scratch)
    except ImageError as error:
        raise DamageError(f"{error}. {shard.repair}") from None
