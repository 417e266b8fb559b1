"""Tars of image and caption records: written byte for byte alike, read back with every byte checked.

Written with the standard library's tarfile. Random access reads members at the offsets that the sidecar lists; a sequential
pass over a foreign reader's samples is compared with the sidecar by :func:`checked_member`.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal

from shards.atomic import committed_file, digest
from shards.errors import DamageError
from shards.manifest import Member, Sample, Shard, Split, open_split


class _HashingWriter(io.RawIOBase):
    """Passes bytes on and hashes them, so that a tar is never read again for its digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self._written = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self._hash.update(data)
        self._written += len(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._written

    def digest(self) -> str:
        return self._hash.hexdigest()


def write_tar(path: Path, records: Iterable[tuple[str, bytes, dict[str, Any]]]) -> tuple[tuple[Sample, ...], int, str]:
    """Write a shard's tar, committed.

    Args:
        path: The tar's final name.
        records: (key, JPEG bytes, JSON record with a list ``captions``), in order.

    Returns:
        The samples with their places, the tar's size in bytes, its SHA-256.
    """
    samples = []
    with committed_file(path) as file:
        writer = _HashingWriter(file)
        with tarfile.open(fileobj=writer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, jpeg, record in records:
                text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "surrogatepass")
                jpg, json_member = (_add(tar, f"{key}.{ending}", data) for ending, data in (("jpg", jpeg), ("json", text)))
                samples.append(Sample(key=key, captions=len(record["captions"]), jpg=jpg, json=json_member))
        return tuple(samples), writer.tell(), writer.digest()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o644, 0
    info.uid = info.gid = 0
    info.uname = info.gname = "capstream"
    tar.addfile(info, io.BytesIO(data))
    padded = -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return Member(offset=tar.offset - padded, size=len(data), crc32=zlib.crc32(data))


def check_member(shard: Shard, key: str, ending: str, member: Member, data: bytes) -> bytes:
    """Return ``data`` if it is what the sidecar says of ``KEY.ending``.

    Raises:
        DamageError: Another size or CRC-32; names shard and sample.
    """
    if len(data) != member.size or zlib.crc32(data) != member.crc32:
        raise DamageError(
            f"{shard.path}: sample {key}.{ending} is damaged ({len(data)} bytes, CRC-32 {zlib.crc32(data):08x}; its sidecar says "
            f"{member.size} bytes, {member.crc32:08x}). Run the shard command again: it rebuilds this shard."
        )
    return data


def read_member(file: IO[bytes], shard: Shard, key: str, ending: str, member: Member) -> bytes:
    """Read one member at its offset, checked.

    Raises:
        DamageError: Its bytes are not those that the sidecar lists.
    """
    file.seek(member.offset)
    return check_member(shard, key, ending, member, file.read(member.size))


OnError = Literal["fail", "skip"]


def open_samples(folder: Path, name: str, on_error: OnError) -> Split:
    """Open a split; with ``skip``, without the samples whose bytes are not those that the sidecars list.

    Every tar is then read once, so that what is left out is known, counted and the same for the whole training. The split's digest
    is another one if anything is: it is over the samples that are left out as well.

    Raises:
        InputError, DamageError, MismatchError: As :func:`shards.manifest.open_split`; a missing sidecar is no sample's damage.
    """
    if on_error == "fail":
        return open_split(folder, name)
    split = open_split(folder, name, whole=False)
    shards = tuple(map(_without_damaged, split.shards))
    skipped = [[shard.path.name, list(shard.skipped)] for shard in shards if shard.skipped]
    return replace(split, shards=shards, digest=digest([split.digest, skipped]) if skipped else split.digest)


def _without_damaged(shard: Shard) -> Shard:
    samples = shard.sidecar.samples
    if not shard.path.is_file():
        return replace(shard, sidecar=replace(shard.sidecar, samples=()), skipped=tuple(sample.key for sample in samples))
    with shard.path.open("rb") as file:
        good = tuple(sample for sample in samples if not damaged_members(file, shard, sample))
    kept = {sample.key for sample in good}
    return replace(shard, sidecar=replace(shard.sidecar, samples=good), skipped=tuple(s.key for s in samples if s.key not in kept))


def damaged_members(file: IO[bytes], shard: Shard, sample: Sample) -> list[DamageError]:
    """What is wrong with a sample's two members."""
    problems = []
    for ending, member in (("jpg", sample.jpg), ("json", sample.json)):
        try:
            read_member(file, shard, sample.key, ending, member)
        except DamageError as error:
            problems.append(error)
    return problems


def parse_record(shard: Shard, key: str, data: bytes) -> dict[str, Any]:
    """A sample's JSON as a dictionary: {image_id, file_name, width, height, captions: [{id, text, tokens}]}.

    Raises:
        DamageError: It is not of that form.
    """
    try:
        record = json.loads(data)
        int(record["image_id"]), str(record["file_name"])
        for caption in record["captions"]:
            if not (isinstance(caption["text"], str) and isinstance(caption["id"], int) and all(isinstance(t, str) for t in caption["tokens"])):
                raise TypeError("a caption is not {id, text, tokens}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError(f"{shard.path}: the JSON of sample {key} is not a caption record ({error}).") from None
    content: dict[str, Any] = record
    return content


def read_records(shard: Shard) -> Iterator[tuple[Sample, dict[str, Any]]]:
    """Every sample's JSON record of a shard, in order, checked, without reading the images.

    Raises:
        DamageError: A record is damaged or missing.
    """
    if not shard.sidecar.samples:
        return
    with shard.path.open("rb") as file:
        for sample in shard.sidecar.samples:
            yield sample, parse_record(shard, sample.key, read_member(file, shard, sample.key, "json", sample.json))
