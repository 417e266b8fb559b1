"""Tars of images and caption records: written byte for byte the same every time, read back with every byte checked.

Headers come from the standard library's tarfile; its TarFile would copy every byte twice. Random access reads members at the offsets that
the sidecar lists. A sequential pass, with another library's reader, compares what it reads with the sidecar by :func:`check_member`.
"""

import hashlib
import itertools
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE, USTAR_FORMAT, TarInfo
from typing import IO, Any

from shards.atomic import committed_file
from shards.dataset import Shard, Split, open_split
from shards.digests import json_digest
from shards.errors import DamageError, OnError
from shards.layout import records_path
from shards.mirror import CACHE_SETTING, mirror_lock
from shards.sidecar import Member, Sample


def write_tar(path: Path, records: Iterable[tuple[str, bytes, dict[str, Any]]]) -> tuple[tuple[Sample, ...], int, str]:
    """Commit a shard's tar.

    Args:
        path: The tar's final name.
        records: (key, JPEG bytes, JSON record with a list ``captions``), in order.

    Returns:
        The samples with the offsets of their members, the tar's size in bytes, and its SHA-256 (hex).
    """
    samples = []
    sha256, offset = hashlib.sha256(), 0
    with committed_file(path) as file:
        for key, jpeg, record in records:
            content, (jpg, json_member) = _members(offset, ((f"{key}.jpg", jpeg), (f"{key}.json", record_bytes(record))))
            samples.append(Sample(key=key, captions=len(record["captions"]), jpg=jpg, json=json_member))
            file.write(content)
            sha256.update(content)
            offset += len(content)
        # The end of an archive: two empty blocks, and padding to a full record.
        ending = bytes(2 * BLOCKSIZE + -(offset + 2 * BLOCKSIZE) % RECORDSIZE)
        file.write(ending)
        sha256.update(ending)
    return tuple(samples), offset + len(ending), sha256.hexdigest()


def record_bytes(record: dict[str, Any]) -> bytes:
    """A record as files hold it: compact JSON in UTF-8."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "surrogatepass")


def _members(offset: int, files: Iterable[tuple[str, bytes]]) -> tuple[bytes, list[Member]]:
    """Headers, contents and padding of files as one bytes object, for a tar that has ``offset`` bytes so far."""
    chunks, members = [], []
    for name, data in files:
        info = TarInfo(name)
        info.size, info.mode = len(data), 0o644
        info.uname = info.gname = "capstream"
        header = info.tobuf(USTAR_FORMAT)
        members.append(Member(offset=offset + len(header), size=len(data), crc32=zlib.crc32(data)))
        padding = bytes(-len(data) % BLOCKSIZE)
        chunks += [header, data, padding]
        offset += len(header) + len(data) + len(padding)
    return b"".join(chunks), members


def check_member(shard: Shard, key: str, suffix: str, member: Member, data: bytes) -> bytes:
    """Return ``data`` if it is what the sidecar lists for ``KEY.suffix``.

    Raises:
        DamageError: It has another size or CRC-32; names shard and sample.
    """
    if len(data) != member.size or zlib.crc32(data) != member.crc32:
        raise DamageError(
            f"{shard.path}: sample {key}.{suffix} is damaged ({len(data)} bytes, CRC-32 {zlib.crc32(data):08x}; its sidecar lists "
            f"{member.size} bytes, {member.crc32:08x}). {shard.repair}"
        )
    return data


def read_member(file: IO[bytes], shard: Shard, key: str, suffix: str, member: Member) -> bytes:
    """Read one member at its offset, and check it.

    Raises:
        DamageError: Its bytes are not those that the sidecar lists.
    """
    file.seek(member.offset)
    return check_member(shard, key, suffix, member, file.read(member.size))


def open_readable_split(folder: Path, name: str, on_error: OnError) -> Split:
    """Open a split; with ``skip``, leave out the samples whose bytes are not those that the sidecars list.

    With ``skip`` every tar is read once now. The skipped samples are therefore known, counted, and the same for the whole training. If any
    sample is skipped, the split's digest changes: it covers the keys of the skipped samples too.

    Raises:
        InputError, DamageError, MismatchError: As :func:`shards.dataset.open_split`; a missing sidecar is not a damaged sample.
    """
    if on_error == "fail":
        return open_split(folder, name)
    split = open_split(folder, name, check_tars=False)
    shards = tuple(map(_without_damaged, split.shards))
    skipped = [[shard.path.name, list(shard.skipped)] for shard in shards if shard.skipped]
    return replace(split, shards=shards, digest=json_digest([split.digest, skipped]) if skipped else split.digest)


def _without_damaged(shard: Shard) -> Shard:
    samples = shard.sidecar.samples
    try:
        with shard.open() as tar, shard.open_records() as records:
            good = tuple(sample for sample in samples if not damaged_members(tar, records, shard, sample))
    except (FileNotFoundError, IsADirectoryError, DamageError):  # DamageError: a remote tar is not the one that the sidecar lists
        return replace(shard, sidecar=replace(shard.sidecar, samples=()), skipped=tuple(sample.key for sample in samples))
    kept = {sample.key for sample in good}
    return replace(shard, sidecar=replace(shard.sidecar, samples=good), skipped=tuple(s.key for s in samples if s.key not in kept))


def damaged_members(tar: IO[bytes], records: IO[bytes], shard: Shard, sample: Sample) -> list[DamageError]:
    """The damage in a sample's two members; empty if both are intact."""
    problems = []
    for file, suffix, member in ((tar, "jpg", sample.jpg), (records, "json", sample.json)):
        try:
            read_member(file, shard, sample.key, suffix, member)
        except DamageError as error:
            problems.append(error)
    return problems


def parse_record(shard: Shard, key: str, data: bytes) -> dict[str, Any]:
    """Parse a sample's JSON: {image_id, file_name, width, height, captions: [{id, text, tokens}]}.

    Raises:
        DamageError: It does not have this form.
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
    """Read the JSON record of every sample of a shard, in order, checked, without the images.

    A mirror stores the records in a file next to the tar, so that reading captions does not fetch all tars again.

    Raises:
        DamageError: A record is damaged or missing.
    """
    samples = shard.sidecar.samples
    if not samples:
        return
    cached = _cached_records(shard) if shard.mirror is not None and shard.sidecar.records is None and not shard.skipped else None
    if cached is not None:
        yield from ((sample, parse_record(shard, sample.key, data)) for sample, data in zip(samples, cached, strict=True))
        return
    with shard.open_records() as file:
        for sample in samples:
            yield sample, parse_record(shard, sample.key, read_member(file, shard, sample.key, "json", sample.json))


def _cached_records(shard: Shard) -> list[bytes]:
    """All JSON members of a mirror's tar, checked. They come from the records file, which is written if it is missing or damaged."""
    path = records_path(shard.path)
    ends = list(itertools.accumulate(sample.json.size for sample in shard.sidecar.samples))
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        content = b""
    members = [content[start:end] for start, end in itertools.pairwise([0, *ends])]
    if all(zlib.crc32(data) == sample.json.crc32 for sample, data in zip(shard.sidecar.samples, members, strict=True)):
        return members
    with shard.open() as file:
        members = [read_member(file, shard, sample.key, "json", sample.json) for sample in shard.sidecar.samples]
    with mirror_lock(path.parent), committed_file(path, CACHE_SETTING) as records:
        records.write(b"".join(members))
    return members
