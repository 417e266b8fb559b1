"""A shard dataset: ``dataset.json``, its splits and their shards. A split exists when ``dataset.json`` lists it.

Opening a split reads its sidecars and no tar. The tars' content is checked where it is read, member by member (:mod:`shards.tar`).
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shards.digests import json_digest
from shards.errors import DamageError, InputError, MismatchError
from shards.found_instead import instead_of_shards, no_split
from shards.json_files import check_count, check_seal, read_versioned_json, sealed, write_json
from shards.layout import DATASET_FILE, INDEXED_TAR, MAX_SHARDS, SPLIT_NAME, records_path, sidecar_path, tar_path
from shards.mirror import Mirror, open_records, open_tar, read_mirror
from shards.sidecar import REPAIR_SIDECAR, Sample, Sidecar, read_sidecar, split_digest

FORMAT_VERSION = 2
REPAIR_DATASET = (
    "Delete it, then run the shard command of each split again: complete shards are kept. For tars made elsewhere, run the index command."
)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A tar and its sidecar.

    Attributes:
        path: The tar. In a mirror it is fetched when it is opened.
        sidecar: What is known of the tar, without the ``skipped`` samples.
        skipped: Keys of damaged samples that were left out.
        mirror: Where the tar is fetched from, for a remote dataset.
    """

    path: Path
    sidecar: Sidecar
    skipped: tuple[str, ...] = ()
    mirror: Mirror | None = None

    def open(self) -> BinaryIO:
        """Open the tar for reading; fetch a remote one first.

        Raises:
            FileNotFoundError: The tar is missing.
            InputError, DamageError, ResourceError: A remote tar cannot be fetched; as :func:`shards.mirror.open_tar`.
        """
        if self.mirror is None:
            return self.path.open("rb")
        return open_tar(self.path, self.mirror, tar_bytes=self.sidecar.tar_bytes, tar_sha256=self.sidecar.tar_sha256)

    def open_records(self) -> BinaryIO:
        """Open the file that holds the records: the tar itself, or the records file of a tar that was made elsewhere.

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
    """All shards of one split, in order; ``digest`` identifies the content, ``config`` is how it was made."""

    name: str
    folder: Path
    shards: tuple[Shard, ...]
    digest: str
    config: dict[str, Any]

    @property
    def language(self) -> str:
        """The language of the captions, a BCP 47 tag."""
        return str(self.config["language"])

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
        """The sample with number ``row`` in the split, and its shard."""
        index = int(np.searchsorted(self._shard_ends, row, side="right"))
        samples = self.shards[index].sidecar.samples
        return self.shards[index], samples[row - int(self._shard_ends[index])]  # negative: counted from the shard's end

    def skipped_note(self) -> str | None:
        """A line about the damaged samples that were left out, or None."""
        lost = [f"{shard.path.name} {key}" for shard in self.shards for key in shard.skipped]
        if not lost:
            return None
        shown = ", ".join(lost[:5]) + (", ..." if len(lost) > 5 else "")
        return f"{self.folder}: skipped {len(lost)} damaged samples of split {self.name!r} ({shown}). Run the shard command again to repair them."


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """``dataset.json``: one config for all splits, and a summary of each."""

    config: dict[str, Any]
    splits: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def config_digest(self) -> str:
        return json_digest(self.config)

    def write(self, folder: Path) -> None:
        content = {
            "format_version": FORMAT_VERSION,
            "config": self.config,
            "config_digest": self.config_digest,
            "splits": self.splits,
        }
        write_json(folder / DATASET_FILE, sealed(content))


def read_dataset_file(folder: Path, name: str = DATASET_FILE) -> DatasetFile:
    """Read and check ``dataset.json``, or the file ``name`` that is to replace it.

    Raises:
        InputError: The folder is no shard dataset.
        DamageError: The file is damaged.
        MismatchError: It has another format version.
    """
    path = folder / name
    if not path.is_file():
        raise InputError(f"{folder}: {instead_of_shards(folder)}")
    content = read_versioned_json(path, what="dataset file", format_version=FORMAT_VERSION, repair=REPAIR_DATASET)
    check_seal(path, content, REPAIR_DATASET)
    try:
        found = DatasetFile(config=dict(content["config"]), splits={str(k): dict(v) for k, v in content["splits"].items()})
        for split, summary in found.splits.items():
            _check_summary(split, summary)
        resize = found.config["resize"]
        if set(resize) != {"size", "mode", "filter"} or not (isinstance(resize["mode"], str) and isinstance(resize["filter"], str)):
            raise ValueError("config.resize is not {size, mode, filter}")
        check_count(resize["size"])
        if not isinstance(found.config["language"], str):
            raise ValueError("config.language is not a string")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamageError(f"{path}: damaged ({error!r}). {REPAIR_DATASET}") from None
    return found


def _check_summary(split: str, summary: dict[str, Any]) -> None:
    if not SPLIT_NAME.fullmatch(split):
        raise ValueError(f"{split!r} is not a valid split name")
    if check_count(summary["shards"]) > MAX_SHARDS:
        raise ValueError(f"{summary['shards']} shards")
    tars = summary.get("tars")
    if tars is not None and (len(set(tars)) != summary["shards"] or not all(INDEXED_TAR.fullmatch(tar) for tar in tars)):
        raise ValueError(f"the tars of split {split}")


def open_split(folder: Path, split: str, *, check_tars: bool = True) -> Split:
    """Read a split's sidecars and check them against ``dataset.json`` and the sizes of the tars.

    Args:
        folder: A shard dataset, or a mirror of one.
        split: The split's name.
        check_tars: Refuse a split with a tar that is missing or has another size. Not for a mirror, whose tars are fetched when needed.

    Raises:
        InputError: No such dataset or split.
        DamageError: A tar or sidecar is missing or has another size.
        MismatchError: The sidecars are not those that ``dataset.json`` lists.
    """
    dataset, mirror = read_dataset_file(folder), read_mirror(folder)
    if split not in dataset.splits:
        raise InputError(no_split(mirror.url if mirror is not None else str(folder), split, list(dataset.splits)))
    summary = dataset.splits[split]
    shards = []
    for index in range(summary["shards"]):
        tar = tar_path(folder, split, summary, index)
        if not sidecar_path(tar).is_file():
            raise DamageError(f"{tar}: its sidecar is missing. {REPAIR_SIDECAR}")
        sidecar = read_sidecar(sidecar_path(tar))
        if check_tars and mirror is None:
            check_size(tar, sidecar)
        shards.append(Shard(path=tar, sidecar=sidecar, mirror=mirror))
    found = split_digest([shard.sidecar for shard in shards])
    if found != summary.get("digest"):
        raise MismatchError(
            f"{folder}: the shards of split {split!r} have digest {found}, but {DATASET_FILE} lists {summary.get('digest')}. "
            "Run the shard command again."
        )
    return Split(name=split, folder=folder, shards=tuple(shards), digest=found, config=dataset.config)


def check_size(tar: Path, sidecar: Sidecar) -> None:
    """Refuse a tar, or a records file, of another size than its sidecar lists.

    Raises:
        DamageError: Names the tar and the first sample that is lost, if any.
    """
    size = tar.stat().st_size if tar.is_file() else 0
    if size == sidecar.tar_bytes:
        path = records_path(tar)
        if sidecar.records is not None and not (path.is_file() and path.stat().st_size == sidecar.records.bytes):
            raise DamageError(f"{path}: missing, or not of the {sidecar.records.bytes} bytes that its sidecar lists. {sidecar.repair}")
        return
    lost = [sample.key for sample in sidecar.samples if max(sample.jpg.offset + sample.jpg.size, sample.json.offset + sample.json.size) > size]
    samples = f" Sample {lost[0]} and all after it ({len(lost)} samples) are lost." if lost else ""
    found = f"has {size} bytes" if tar.is_file() else "is missing"
    raise DamageError(f"{tar}: {found}, but its sidecar lists {sidecar.tar_bytes} bytes.{samples} {sidecar.repair}")
