"""Sidecars: what is known of a shard's tar without opening it. A shard exists when its sidecar does: it is written after the tar."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from shards.digests import json_digest
from shards.errors import DamageError
from shards.json_files import check_count, check_seal, read_versioned_json, sealed
from shards.rejects import Reject, reject_line

FORMAT_VERSION = 1
REPAIR_SHARD = "Run the shard command again: it rebuilds this shard."
REPAIR_INDEXED = "Run the index command again: it reads this tar again."
REPAIR_SIDECAR = "Run the shard command again (the index command for tars made elsewhere): it makes the sidecar again."


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file inside a tar: the offset of its first byte, its size in bytes and its CRC-32."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a shard: its key, the number of its captions, and its two members."""

    key: str
    captions: int
    jpg: Member
    json: Member


def key_number(key: str) -> int:
    """A sample's key as a number: itself if it is one of at most 18 digits, as in our own shards; else :func:`text_number`.

    >>> key_number("000000042"), key_number("dog/42") == text_number("dog/42")
    (42, True)
    """
    return int(key) if len(key) <= 18 and key.isascii() and key.isdecimal() else text_number(key)


def text_number(text: str) -> int:
    """A number of 53 bits for a text, the same everywhere: part of its SHA-256. JavaScript too reads it without rounding."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) >> 3


class SampleColumns(Sequence[Sample]):
    """Samples as columns, about 120 bytes each instead of 700: the sidecars of a split stay in memory while it is processed."""

    def __init__(self, keys: list[str], numbers: NDArray[np.int64]) -> None:
        # numbers: (samples, 7): captions, then offset, size and CRC-32 of the JPEG and of the JSON
        self._keys, self._numbers = keys, numbers

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "SampleColumns": ...
    def __getitem__(self, index: int | slice) -> "Sample | SampleColumns":
        if isinstance(index, slice):
            return SampleColumns(self._keys[index], self._numbers[index])
        captions, jpg_offset, jpg_size, jpg_crc, json_offset, json_size, json_crc = self._numbers[index].tolist()
        return Sample(
            key=self._keys[index],
            captions=captions,
            jpg=Member(offset=jpg_offset, size=jpg_size, crc32=jpg_crc),
            json=Member(offset=json_offset, size=json_size, crc32=json_crc),
        )

    def fit_inside(self, tar_bytes: int, records_bytes: int) -> bool:
        """Whether all JPEGs and all records lie inside files of these sizes."""
        offsets, sizes = self._numbers[:, (1, 4)], self._numbers[:, (2, 5)]
        return bool((offsets <= (tar_bytes, records_bytes) - sizes).all())  # a sum of numbers from an untrusted file could overflow


@dataclass(frozen=True, kw_only=True)
class RecordsFile:
    """The file with the records of a tar that was made elsewhere, one JSON after the other: its size in bytes and SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """All that is known of one tar without opening it.

    Attributes:
        split: The split's name.
        index: The shard's number in its split, from 0.
        config_digest: Digest of the dataset's config.
        source_digest: Digest of the inputs that it was made from, by name and size.
        photographs_sha256: Digest of the bytes of the input images.
        tar_bytes: Size of the tar.
        tar_sha256: SHA-256 of the tar.
        samples: The samples, in the tar's order.
        rejects: The inputs that were left out.
        versions: Library versions.
        records: The file with the records, if the tar was made elsewhere; None if the records are in the tar.
    """

    split: str
    index: int
    config_digest: str
    source_digest: str
    photographs_sha256: str
    tar_bytes: int
    tar_sha256: str
    samples: Sequence[Sample]
    rejects: tuple[Reject, ...]
    versions: dict[str, str]
    records: RecordsFile | None = None

    @property
    def repair(self) -> str:
        """How to make this shard again, for messages."""
        return REPAIR_SHARD if self.records is None else REPAIR_INDEXED

    def content(self) -> dict[str, Any]:
        """The JSON content of the file. A sample is a short row: key, captions, then offset, size and CRC-32 of the JPEG and of the JSON."""
        rows = [[s.key, s.captions, s.jpg.offset, s.jpg.size, s.jpg.crc32, s.json.offset, s.json.size, s.json.crc32] for s in self.samples]
        content = {
            "format_version": FORMAT_VERSION,
            "split": self.split,
            "index": self.index,
            "config_digest": self.config_digest,
            "source_digest": self.source_digest,
            "photographs_sha256": self.photographs_sha256,
            "tar_bytes": self.tar_bytes,
            "tar_sha256": self.tar_sha256,
            **({} if self.records is None else {"records": asdict(self.records)}),
            "versions": self.versions,
            "sample_fields": ["key", "captions", "jpg_offset", "jpg_size", "jpg_crc32", "json_offset", "json_size", "json_crc32"],
            "samples": rows,
            "rejects": [asdict(reject) for reject in self.rejects],
        }
        return sealed(content)


def read_sidecar(path: Path) -> Sidecar:
    """Read one sidecar. Check types, order and that every member lies inside its file.

    Raises:
        InputError: It is missing.
        DamageError: It is damaged.
        MismatchError: It has another format version.
    """
    content = read_versioned_json(path, what="shard sidecar", format_version=FORMAT_VERSION, repair=REPAIR_SIDECAR)
    check_seal(path, content, REPAIR_SIDECAR)
    try:
        rows = [[check_count(number) for number in row[1:]] for row in content["samples"]]
        samples = SampleColumns([str(row[0]) for row in content["samples"]], np.array(rows, dtype=np.int64).reshape(len(rows), 7))
        sidecar = Sidecar(
            split=str(content["split"]),
            index=check_count(content["index"]),
            config_digest=str(content["config_digest"]),
            source_digest=str(content["source_digest"]),
            photographs_sha256=str(content["photographs_sha256"]),
            tar_bytes=check_count(content["tar_bytes"]),
            tar_sha256=str(content["tar_sha256"]),
            samples=samples,
            rejects=tuple(Reject(**reject) for reject in content["rejects"]),
            versions=dict(content["versions"]),
            records=_records_file(content["records"]) if "records" in content else None,
        )
        if not samples.fit_inside(sidecar.tar_bytes, sidecar.tar_bytes if sidecar.records is None else sidecar.records.bytes):
            raise ValueError("a member ends beyond its file")
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise DamageError(f"{path}: damaged sidecar ({error}). {REPAIR_SIDECAR}") from None
    return sidecar


def _records_file(content: dict[str, Any]) -> RecordsFile:
    return RecordsFile(bytes=check_count(content["bytes"]), sha256=str(content["sha256"]))


def split_digest(sidecars: Sequence[Sidecar]) -> str:
    """What identifies a split's content: the digest of its tars' digests, in order, each with that of its records file if it has one."""
    return json_digest([sidecar.tar_sha256 if sidecar.records is None else [sidecar.tar_sha256, sidecar.records.sha256] for sidecar in sidecars])


def reject_lines(split: str, sidecars: Sequence[Sidecar]) -> list[bytes]:
    """The lines of ``rejects.jsonl`` for a split."""
    return [reject_line(split, reject) for sidecar in sidecars for reject in sidecar.rejects]
