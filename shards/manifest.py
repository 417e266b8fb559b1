"""What says that a shard is whole: the sidecar beside each tar, and ``dataset.json`` over all of them.

A shard exists when its sidecar does (it is written after the tar); a split exists when ``dataset.json`` lists it.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from shards.atomic import committed_file, digest, read_own_json, write_json
from shards.errors import DamageError, InputError, MismatchError
from shards.mirror import MIRROR_FILE, Mirror, open_records, open_tar, read_mirror

FORMAT_VERSION = 1
DATASET_FILE = "dataset.json"
REJECTS_FILE = "rejects.jsonl"
REPAIR_SHARD = "Run the shard command again: it rebuilds this shard."
REPAIR_INDEXED = "Run the index command again: it reads this tar anew."
REPAIR_SIDECAR = "Run the shard command again (index, for tars made elsewhere): it makes it anew."
REPAIR_DATASET = "Delete it, then run the shard command of each split again: whole shards are kept. Of tars made elsewhere: the index command."
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,63}")
MAX_SHARDS = 10**6  # a shard's number has six digits
SHARD_FILE = re.compile(rf"({SPLIT_NAME.pattern})-(\d{{6}})\.(tar|json)")
# A tar that was made elsewhere: its sidecar has its name, and must not take that of another file of the dataset.
INDEXED_TAR = re.compile(rf"(?!(?:{Path(DATASET_FILE).stem}|{Path(MIRROR_FILE).stem})\.tar)[A-Za-z0-9][A-Za-z0-9_.-]{{0,199}}\.tar")


@dataclass(frozen=True, kw_only=True)
class Reject:
    """One input that was left out: what it was, the class of the reason, and the reason in words."""

    file: str
    reason: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file inside a tar: where its bytes begin, how many there are, and their CRC-32."""

    offset: int
    size: int
    crc32: int


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a shard: its key, the number of its captions, its two members."""

    key: str
    captions: int
    jpg: Member
    json: Member


class SampleColumns(Sequence[Sample]):
    """Samples held as columns, about 120 bytes each instead of 700: a split's sidecars stay in memory while it is worked on."""

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

    def inside(self, tar_bytes: int, records_bytes: int) -> bool:
        """Whether all JPEGs and all records lie in files of so many bytes."""
        offsets, sizes = self._numbers[:, (1, 4)], self._numbers[:, (2, 5)]
        return bool((offsets <= (tar_bytes, records_bytes) - sizes).all())  # a sum of hostile numbers could overflow


@dataclass(frozen=True, kw_only=True)
class RecordsFile:
    """The file beside a tar that was made elsewhere which holds its records, one JSON after the other: its size and SHA-256."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """All that is known of one tar without opening it.

    ``source_digest`` is over the inputs that it was made from, by name and size; ``photographs_sha256`` over their bytes. ``records`` says
    where the records are if the tar was made elsewhere; else they are in the tar.
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
        """What makes this shard anew, for messages."""
        return REPAIR_SHARD if self.records is None else REPAIR_INDEXED

    def content(self) -> dict[str, Any]:
        """As JSON; samples are written as short rows: key, captions, then offset, size and CRC-32 of the JPEG and of the JSON."""
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
        return _sealed(content)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar and what its sidecar says; ``skipped`` samples of it were damaged and are not in ``sidecar`` any more.

    In a mirror the tar comes when it is opened: ``mirror`` says from where.
    """

    path: Path
    sidecar: Sidecar
    skipped: tuple[str, ...] = ()
    mirror: Mirror | None = None

    def open(self) -> BinaryIO:
        """The tar, for reading; a remote one is made local first.

        Raises:
            FileNotFoundError: It is not there.
            InputError, DamageError, ResourceError: A remote one cannot be fetched; as :func:`shards.mirror.open_tar`.
        """
        if self.mirror is None:
            return self.path.open("rb")
        return open_tar(self.path, self.mirror, tar_bytes=self.sidecar.tar_bytes, tar_sha256=self.sidecar.tar_sha256)

    def open_records(self) -> BinaryIO:
        """What holds the records, for reading: the tar itself, or the file beside one that was made elsewhere.

        Raises:
            FileNotFoundError, InputError, DamageError, ResourceError: As :meth:`open`.
        """
        records, path = self.sidecar.records, records_path(self.path)
        if records is None:
            return self.open()
        if self.mirror is None:
            return path.open("rb")
        return open_records(path, self.mirror, records_bytes=records.bytes, records_sha256=records.sha256)

    @property
    def repair(self) -> str:
        """What to do about damage in the tar or the records, for messages."""
        if self.mirror is None:
            return self.sidecar.repair
        also = "" if self.sidecar.records is None else f" and {records_path(self.path).name}"
        return f"Delete this file{also}: it is fetched from {self.mirror.url} again."


@dataclass(frozen=True, kw_only=True)
class Split:
    """All shards of one split, in order; ``digest`` identifies the content, ``config`` what made it."""

    name: str
    folder: Path
    shards: tuple[Shard, ...]
    digest: str
    config: dict[str, Any]

    @property
    def images(self) -> int:
        return sum(len(shard.sidecar.samples) for shard in self.shards)

    @property
    def captions(self) -> int:
        return sum(sample.captions for shard in self.shards for sample in shard.sidecar.samples)

    @functools.cached_property
    def _shard_ends(self) -> NDArray[np.int64]:
        return np.cumsum([len(shard.sidecar.samples) for shard in self.shards])

    def sample(self, row: int) -> tuple[Shard, Sample]:
        """The sample that stands at ``row`` among all of the split, and its shard."""
        index = int(np.searchsorted(self._shard_ends, row, side="right"))
        samples = self.shards[index].sidecar.samples
        return self.shards[index], samples[row - int(self._shard_ends[index])]  # counted from the shard's end

    def skipped_note(self) -> str | None:
        """A line about the damaged samples that were left out, or None."""
        lost = [f"{shard.path.name} {key}" for shard in self.shards for key in shard.skipped]
        if not lost:
            return None
        shown = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        return f"{self.folder}: skipped {len(lost)} damaged samples of split {self.name!r} ({shown}). The shard command, run again, repairs them."


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """``dataset.json``: one config for all splits, and a summary of each."""

    config: dict[str, Any]
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def config_digest(self) -> str:
        return digest(self.config)

    def write(self, folder: Path) -> None:
        content = {
            "format_version": FORMAT_VERSION,
            "config": self.config,
            "config_digest": self.config_digest,
            "splits": self.splits,
        }
        write_json(folder / DATASET_FILE, _sealed(content))


def _sealed(content: dict[str, Any]) -> dict[str, Any]:
    """``content`` with a digest over all of it: a bit that flips anywhere in the file is noticed."""
    return {**content, "self_digest": digest(content)}


def _check_seal(path: Path, content: dict[str, Any], repair: str) -> None:
    written = content.get("self_digest")
    found = digest({key: value for key, value in content.items() if key != "self_digest"})
    if written != found:
        raise DamageError(f"{path}: damaged: its content has digest {found}, it says {written}. {repair}")


def shard_path(folder: Path, split: str, index: int) -> Path:
    """``folder/SPLIT-000123.tar``."""
    return folder / f"{split}-{index:06d}.tar"


def tar_path(folder: Path, split: str, summary: dict[str, Any], index: int) -> Path:
    """A shard's tar, by what ``dataset.json`` says of its split: one that was made elsewhere has the name that it came with."""
    return folder / summary["tars"][index] if "tars" in summary else shard_path(folder, split, index)


def records_path(tar: Path) -> Path:
    """Where a tar's records are kept if it was made elsewhere, and in a mirror, where the tar itself may go."""
    return tar.with_suffix(".records")


def sidecar_path(tar: Path) -> Path:
    """The sidecar's place beside its tar."""
    return tar.with_suffix(".json")


def check_split_name(name: str) -> str:
    """Return ``name`` if it can name files and groups everywhere.

    Raises:
        InputError: It cannot.
    """
    if not SPLIT_NAME.fullmatch(name):
        raise InputError(f"--split {name!r}: a split's name is made of letters, digits and underscores, 64 at most.")
    return name


@functools.cache
def library_versions(*packages: str) -> dict[str, str]:
    """Installed versions of ``packages``; those that are absent are left out."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def read_dataset_file(folder: Path, name: str = DATASET_FILE) -> DatasetFile:
    """Read and check ``dataset.json``, or the file ``name`` that is to become it.

    Raises:
        InputError: The folder is no shard dataset.
        DamageError: The file is damaged.
        MismatchError: It was written in another format version.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(f"{folder}: not a shard dataset (there is no {DATASET_FILE}). Make one with: python cli.py shard --out {folder}")
    content = read_own_json(path, what="dataset file", format_version=FORMAT_VERSION, repair=REPAIR_DATASET)
    _check_seal(path, content, REPAIR_DATASET)
    try:
        found = DatasetFile(config=dict(content["config"]), splits={str(k): dict(v) for k, v in content["splits"].items()})
        for split, summary in found.splits.items():
            if not SPLIT_NAME.fullmatch(split):
                raise ValueError(f"{split!r} is no split's name")
            if _natural(summary["shards"]) > MAX_SHARDS:
                raise ValueError(f"{summary['shards']} shards")
            names = summary.get("tars")
            if names is not None and (len(set(names)) != summary["shards"] or not all(INDEXED_TAR.fullmatch(name) for name in names)):
                raise ValueError(f"the tars of split {split}")
        resize = found.config["resize"]
        if set(resize) != {"size", "mode", "filter"} or not (isinstance(resize["mode"], str) and isinstance(resize["filter"], str)):
            raise ValueError("config.resize is not {size, mode, filter}")
        _natural(resize["size"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamageError(f"{path}: damaged ({error!r}). {REPAIR_DATASET}") from None
    return found


def read_sidecar(path: Path) -> Sidecar:
    """Read one sidecar, checking types, order and that every member lies inside the tar.

    Raises:
        InputError: It is missing.
        DamageError: It is damaged.
        MismatchError: Another format version.
    """
    content = read_own_json(path, what="shard sidecar", format_version=FORMAT_VERSION, repair=REPAIR_SIDECAR)
    _check_seal(path, content, REPAIR_SIDECAR)
    try:
        rows = [[_natural(number) for number in row[1:]] for row in content["samples"]]
        samples = SampleColumns([str(row[0]) for row in content["samples"]], np.array(rows, dtype=np.int64).reshape(len(rows), 7))
        sidecar = Sidecar(
            split=str(content["split"]),
            index=_natural(content["index"]),
            config_digest=str(content["config_digest"]),
            source_digest=str(content["source_digest"]),
            photographs_sha256=str(content["photographs_sha256"]),
            tar_bytes=_natural(content["tar_bytes"]),
            tar_sha256=str(content["tar_sha256"]),
            samples=samples,
            rejects=tuple(Reject(**reject) for reject in content["rejects"]),
            versions=dict(content["versions"]),
            records=_records_file(content["records"]) if "records" in content else None,
        )
        if not samples.inside(sidecar.tar_bytes, sidecar.tar_bytes if sidecar.records is None else sidecar.records.bytes):
            raise ValueError("a member ends beyond its file")
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise DamageError(f"{path}: damaged sidecar ({error}). {REPAIR_SIDECAR}") from None
    return sidecar


def _records_file(content: dict[str, Any]) -> RecordsFile:
    return RecordsFile(bytes=_natural(content["bytes"]), sha256=str(content["sha256"]))


def reject_lines(split: str, sidecars: Sequence[Sidecar]) -> list[bytes]:
    """A split's lines of ``rejects.jsonl``: ASCII, so that no text of a reject can break a line."""
    return [reject_line(split, reject) for sidecar in sidecars for reject in sidecar.rejects]


def reject_line(split: str, reject: Reject) -> bytes:
    """One line of ``rejects.jsonl``."""
    return json.dumps({"split": split, **asdict(reject)}, ensure_ascii=True).encode() + b"\n"


def write_rejects(folder: Path, lines: Sequence[bytes]) -> bool:
    """Commit ``rejects.jsonl``, unless the very same is there already; returns whether it was not."""
    path, content = folder / REJECTS_FILE, b"".join(lines)
    if path.is_file() and path.read_bytes() == content:
        return False
    with committed_file(path) as file:
        file.write(content)
    return True


def _natural(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"a count was expected, found {value!r}")
    return value


def split_digest(sidecars: Sequence[Sidecar]) -> str:
    """What identifies a split's content: the digest over its tars' digests, in order, each with that of its records if they are beside it."""
    return digest([sidecar.tar_sha256 if sidecar.records is None else [sidecar.tar_sha256, sidecar.records.sha256] for sidecar in sidecars])


def open_split(folder: Path, split: str, *, whole: bool = True) -> Split:
    """Read a split's sidecars and check them against ``dataset.json`` and against the sizes of the tars.

    The tars' content is checked where it is read, member by member.

    Args:
        whole: Refuse a split with a tar that is missing or has another size. A mirror's tars may be missing: they come when they are needed.

    Raises:
        InputError: No such dataset or split.
        DamageError: A tar or sidecar is missing or has another size.
        MismatchError: The sidecars are not those that ``dataset.json`` lists.
    """
    dataset, mirror = read_dataset_file(folder), read_mirror(folder)
    if split not in dataset.splits:
        known = ", ".join(sorted(dataset.splits)) or "none"
        place = mirror.url if mirror is not None else folder
        raise InputError(f"{place}: there is no split {split!r} (there: {known}). Add it with: python cli.py shard --split {split} …")
    summary = dataset.splits[split]
    shards = []
    for index in range(summary["shards"]):
        tar = tar_path(folder, split, summary, index)
        if not sidecar_path(tar).is_file():
            raise DamageError(f"{tar}: its sidecar is missing. {REPAIR_SIDECAR}")
        sidecar = read_sidecar(sidecar_path(tar))
        if whole and mirror is None:
            check_size(tar, sidecar)
        shards.append(Shard(path=tar, sidecar=sidecar, mirror=mirror))
    found = split_digest([shard.sidecar for shard in shards])
    if found != summary.get("digest"):
        raise MismatchError(
            f"{folder}: the shards of split {split!r} have digest {found}, {DATASET_FILE} says {summary.get('digest')}. Run the shard command again."
        )
    return Split(name=split, folder=folder, shards=tuple(shards), digest=found, config=dataset.config)


def check_size(tar: Path, sidecar: Sidecar) -> None:
    """Refuse a tar of another size than its sidecar lists.

    Raises:
        DamageError: Names the tar and the first sample that is lost, if one is.
    """
    size = tar.stat().st_size if tar.is_file() else 0
    if size == sidecar.tar_bytes:
        path = records_path(tar)
        if sidecar.records is not None and not (path.is_file() and path.stat().st_size == sidecar.records.bytes):
            raise DamageError(f"{path}: is missing, or has not the {sidecar.records.bytes} bytes that its sidecar says. {sidecar.repair}")
        return
    lost = [sample.key for sample in sidecar.samples if max(sample.jpg.offset + sample.jpg.size, sample.json.offset + sample.json.size) > size]
    samples = f" Sample {lost[0]} and what follows ({len(lost)} samples) are lost." if lost else ""
    there = f"has {size} bytes" if tar.is_file() else "is missing"
    raise DamageError(f"{tar}: {there}, its sidecar says {sidecar.tar_bytes} bytes.{samples} {sidecar.repair}")
