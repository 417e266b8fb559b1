"""Tars of image and caption records: written byte for byte alike, read back with every byte checked.

Headers are the standard library's; its TarFile would copy every byte twice on the way. Random access reads members at the offsets
that the sidecar lists; a sequential pass over a foreign reader's samples is compared with the sidecar by :func:`check_member`.
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

from shards.atomic import committed_file, digest
from shards.errors import DamageError, OnError
from shards.manifest import Member, Sample, Shard, Split, open_split, records_path
from shards.mirror import CACHE_OPTION, fetching


def write_tar(path: Path, records: Iterable[tuple[str, bytes, dict[str, Any]]]) -> tuple[tuple[Sample, ...], int, str]:
    """Write a shard's tar, committed.

    Args:
        path: The tar's final name.
        records: (key, JPEG bytes, JSON record with a list ``captions``), in order.

    Returns:
        The samples with their places, the tar's size in bytes, its SHA-256.
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
        # The end of an archive: two empty blocks, and the last record filled up.
        ending = bytes(2 * BLOCKSIZE + -(offset + 2 * BLOCKSIZE) % RECORDSIZE)
        file.write(ending)
        sha256.update(ending)
    return tuple(samples), offset + len(ending), sha256.hexdigest()


def record_bytes(record: dict[str, Any]) -> bytes:
    """A record as files hold it: compact JSON in UTF-8."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "surrogatepass")


def _members(offset: int, files: Iterable[tuple[str, bytes]]) -> tuple[bytes, list[Member]]:
    """Headers, contents and padding of some files as one piece, for a tar that is ``offset`` bytes long so far."""
    pieces, members = [], []
    for name, data in files:
        info = TarInfo(name)
        info.size, info.mode = len(data), 0o644
        info.uname = info.gname = "capstream"
        header = info.tobuf(USTAR_FORMAT)
        members.append(Member(offset=offset + len(header), size=len(data), crc32=zlib.crc32(data)))
        padding = bytes(-len(data) % BLOCKSIZE)
        pieces += [header, data, padding]
        offset += len(header) + len(data) + len(padding)
    return b"".join(pieces), members


def check_member(shard: Shard, key: str, ending: str, member: Member, data: bytes) -> bytes:
    """Return ``data`` if it is what the sidecar says of ``KEY.ending``.

    Raises:
        DamageError: Another size or CRC-32; names shard and sample.
    """
    if len(data) != member.size or zlib.crc32(data) != member.crc32:
        raise DamageError(
            f"{shard.path}: sample {key}.{ending} is damaged ({len(data)} bytes, CRC-32 {zlib.crc32(data):08x}; its sidecar says "
            f"{member.size} bytes, {member.crc32:08x}). {shard.repair}"
        )
    return data


def read_member(file: IO[bytes], shard: Shard, key: str, ending: str, member: Member) -> bytes:
    """Read one member at its offset, checked.

    Raises:
        DamageError: Its bytes are not those that the sidecar lists.
    """
    file.seek(member.offset)
    return check_member(shard, key, ending, member, file.read(member.size))


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
    try:
        with shard.open() as tar, shard.open_records() as records:
            good = tuple(sample for sample in samples if not damaged_members(tar, records, shard, sample))
    except (FileNotFoundError, IsADirectoryError, DamageError):  # a remote tar that is not the right one is as good as none
        return replace(shard, sidecar=replace(shard.sidecar, samples=()), skipped=tuple(sample.key for sample in samples))
    kept = {sample.key for sample in good}
    return replace(shard, sidecar=replace(shard.sidecar, samples=good), skipped=tuple(s.key for s in samples if s.key not in kept))


def damaged_members(tar: IO[bytes], records: IO[bytes], shard: Shard, sample: Sample) -> list[DamageError]:
    """What is wrong with a sample's two members."""
    problems = []
    for file, ending, member in ((tar, "jpg", sample.jpg), (records, "json", sample.json)):
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

    A mirror keeps them beside the tar, so that captions do not need all tars again each time.

    Raises:
        DamageError: A record is damaged or missing.
    """
    samples = shard.sidecar.samples
    if not samples:
        return
    kept = _kept_members(shard) if shard.mirror is not None and shard.sidecar.records is None and not shard.skipped else None
    if kept is not None:
        yield from ((sample, parse_record(shard, sample.key, data)) for sample, data in zip(samples, kept, strict=True))
        return
    with shard.open_records() as file:
        for sample in samples:
            yield sample, parse_record(shard, sample.key, read_member(file, shard, sample.key, "json", sample.json))


def _kept_members(shard: Shard) -> list[bytes]:
    """All JSON members of a mirror's tar, checked: from the file that keeps them, which is written if it is not there or damaged."""
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
    with fetching(path.parent), committed_file(path, CACHE_OPTION) as kept:
        kept.write(b"".join(members))
    return members
