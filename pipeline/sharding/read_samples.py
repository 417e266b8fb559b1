"""Samples of a shard, each checked against the sidecar: all of them in sequence with webdataset's readers, or some by their offsets.

webdataset stops silently at the end of a truncated tar and does not notice flipped bits. Here each sample must be the next one of the
sidecar, byte for byte, up to the last one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.images.decode import ImageError, decode_pixels
from shards.dataset import Shard
from shards.errors import DamageError
from shards.sidecar import Sample
from shards.tar import check_member, parse_record, read_member


def shard_samples(shard: Shard) -> Iterator[tuple[Sample, bytes, dict[str, Any]]]:
    """Yield (sample, JPEG bytes, JSON record) of a shard in order, with webdataset's readers if Capstream wrote the tar.

    Raises:
        DamageError: A sample is missing, out of place, or not what the sidecar says.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    # A damaged tar cannot be read in sequence. In one that another program wrote, a sample's members may be links, or far apart.
    if shard.skipped or shard.sidecar.records is not None:
        yield from read_samples(shard, shard.sidecar.samples)
        return
    with shard.open() as stream:
        found = group_by_keys(tar_file_expander([{"url": str(shard.path), "stream": stream}]))
        for sample in shard.sidecar.samples:
            try:
                content = next(found, None)
            except Exception as error:  # whatever webdataset raises for a damaged tar
                raise DamageError(f"{shard.path}: damaged at sample {sample.key} ({error}). {shard.repair}") from error
            if content is None or content["__key__"] != sample.key:
                found_instead = "the tar ends" if content is None else f"there is sample {content['__key__']}"
                raise DamageError(f"{shard.path}: {found_instead} where sample {sample.key} should be. {shard.repair}")
            jpeg = check_member(shard, sample.key, "jpg", sample.jpg, content.get("jpg", b""))
            text = check_member(shard, sample.key, "json", sample.json, content.get("json", b""))
            yield sample, jpeg, parse_record(shard, sample.key, text)


def read_samples(shard: Shard, samples: Sequence[Sample]) -> Iterator[tuple[Sample, bytes, dict[str, Any]]]:
    """Yield (sample, JPEG bytes, JSON record) of some samples of a shard, read at the offsets that the sidecar lists.

    This does not import webdataset, which imports torch, so that a worker process starts quickly.

    Raises:
        DamageError: A sample is not what the sidecar says, or the tar is missing.
    """
    if not samples:
        return
    try:
        tar, records = shard.open(), shard.open_records()
    except FileNotFoundError:
        raise DamageError(f"{shard.path}: is missing. {shard.repair}") from None
    with tar, records:
        for sample in samples:
            jpeg = read_member(tar, shard, sample.key, "jpg", sample.jpg)
            yield sample, jpeg, parse_record(shard, sample.key, read_member(records, shard, sample.key, "json", sample.json))


def decode_sample(shard: Shard, key: str, jpeg: bytes, scratch: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """A sample's pixels, uint8 (height, width, 3).

    Args:
        shard: For messages.
        key: For messages.
        jpeg: The bytes of the image.
        scratch: uint8 (bytes,) to decode into if the pixels fit. They are valid until it is used again.

    Raises:
        DamageError: The bytes are not a complete image.
    """
    try:
        return decode_pixels(jpeg, f"{shard.path}: {key}.jpg", scratch)
    except ImageError as error:
        raise DamageError(f"{error}. {shard.repair}") from None
