"""Tars that somebody else made (img2dataset, for example) -> sidecars and records beside them, so that they are read as shards.

The tars stay as they are, and nothing is unpacked: what the readers need and such tars lack (ids, tokens, the place of every byte) goes
into a file of records and a sidecar beside each. Images stay in the size that they have; what is not of the declared one is left out.
"""

import hashlib
import itertools
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.captions.records import storable
from pipeline.captions.tokenizer import RULE, tokenize
from pipeline.execution.executors import run_tasks
from pipeline.execution.progress import Progress
from pipeline.images.decode import MAX_FILE_BYTES, ImageError, Resize, decode_image
from pipeline.sharding.splits import ShardSummary, SourceImages, commit_split, differences, summary_of, whole_sidecar
from shards.atomic import committed_file, disk_errors, hold_lock
from shards.dataset import read_dataset_file
from shards.digests import file_sha256, json_digest
from shards.errors import InputError, MismatchError, OccupiedError
from shards.json_files import read_json, write_json
from shards.layout import DATASET_FILE, INDEXED_TAR, REJECTS_FILE, check_split_name, records_path, sidecar_path
from shards.output import Output
from shards.paths import IMAGE_SUFFIXES
from shards.rejects import Reject
from shards.sidecar import Member, RecordsFile, Sample, Sidecar, read_sidecar
from shards.tar import record_bytes
from shards.versions import library_versions

MAX_MEMBERS = 300_000
# Of a header with all that an archiver has added to it.
MAX_HEADER_BYTES = 1 << 16
MAX_TEXT_BYTES = 1 << 20
KEY = re.compile(r"[0-9]{1,18}")  # as a number it is the image's id, which has 64 bits
MEMBER_NAME = re.compile(r"((?:.*/)?[^./]+)(\.[^/]+)")  # webdataset's: the key ends at the first dot of the last part


class TarError(Exception):
    """A tar of which nothing can be used."""


@dataclass(frozen=True, kw_only=True)
class IndexTask:
    """All that a worker needs to index one tar."""

    tar: Path
    split: str
    index: int
    resize: Resize


def index_tars(folder: Path, *, resize: Resize, split: str = "train", tars: Sequence[str] = (), workers: int = 1, quiet: bool = True) -> ShardSummary:
    """Make tars of a folder a split of a shard dataset; run again, it keeps what is whole and reads the rest.

    Args:
        folder: Where the tars are, and the dataset will be. A sample of a tar is consecutive members of one name: an image, and its caption
            as ``.txt`` or as ``caption`` of a ``.json``.
        resize: How the images were given their size before; those that cannot have been are rejects.
        split: Name of the split.
        tars: Patterns of the tars' names; by default all that no other split has.
        workers: Processes.

    Raises:
        InputError: There are no such tars, their names or keys cannot be used, or no sample is usable.
        OccupiedError: The folder holds shards, or a file where a sidecar would be, or is being written to.
        MismatchError: Other tars of the folder were indexed with other settings.
        ResourceError: Disk full, not allowed.
    """
    check_split_name(split)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give the folder that holds the tars.")
    with hold_lock(folder, split, f"indexing split {split!r}"):
        chosen = _chosen(folder, split, tars, resize)
        tasks = [IndexTask(tar=tar, split=split, index=index, resize=resize) for index, tar in enumerate(chosen)]
        kept = 0
        with (
            closing(run_tasks(index_tar, [(task,) for task in tasks], workers=workers)) as results,
            Progress(f"Indexing {split}", total=len(tasks), unit="tars", quiet=quiet) as progress,
        ):
            for there in results:
                kept += there
                progress.advance(1)
        sidecars = [read_sidecar(sidecar_path(tar)) for tar in chosen]
        _check_keys(chosen, sidecars)
        summary = summary_of(sidecars, kept=kept, committed=True)
        commit_split(Output(folder=folder), split, _config(resize), {"tars": [tar.name for tar in chosen]}, summary, sidecars)
    if not summary.images:
        totals = ", ".join(f"{count} {reason}" for reason, count in summary.rejects.items()) or "the tars are empty"
        check = " Check --size and --resize." if "other_size" in summary.rejects else ""
        raise InputError(f"{folder}: no sample of these tars could be used ({totals}). See {folder / REJECTS_FILE}.{check}")
    return summary


def _config(resize: Resize) -> dict[str, Any]:
    """As it is kept in ``dataset.json``."""
    return {"resize": asdict(resize), "tokenizer": RULE, "key": "as in the tar"}


def _chosen(folder: Path, split: str, patterns: Sequence[str], resize: Resize) -> list[Path]:
    """The tars of the split, in the order of their names."""
    owner: dict[str, str] = {}
    if (folder / DATASET_FILE).is_file():
        dataset = read_dataset_file(folder)
        for name, summary in dataset.splits.items():
            if "tars" not in summary:
                raise OccupiedError(f"{folder}: holds shards that the shard command made. They need no index.")
            owner |= dict.fromkeys(summary["tars"], name)
        differing = differences(dataset.config, _config(resize))
        if differing:
            raise MismatchError(f"{folder}: was indexed in another way: {differing}. Give the options of the first time, or delete {DATASET_FILE}.")
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".tar" and not path.name.startswith(".") and path.is_file())
    if patterns:
        names = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        taken = next((name for name in names if owner.get(name, split) != split), None)
        if taken is not None:
            raise InputError(
                f"{folder / taken}: is in split {owner[taken]!r}. Give other --tars, or delete {folder / DATASET_FILE} and index all again."
            )
    names = [name for name in names if owner.get(name, split) == split]
    if not names:
        if patterns:
            raise InputError(f"{folder}: holds no .tar file of these names ({', '.join(patterns)}). Give other --tars.")
        if owner:
            raise InputError(f"{folder}: all its tars are in other splits already ({', '.join(sorted(set(owner.values())))}).")
        raise InputError(f"{folder}: holds no .tar file. Give the folder that img2dataset wrote, its --output_folder.")
    for name in names:
        if not INDEXED_TAR.fullmatch(name):
            raise InputError(
                f"{folder / name}: this name cannot be a shard's: letters, digits, hyphens, underscores and dots are allowed, and {DATASET_FILE} is "
                "the dataset's own. Rename it."
            )
        _check_stranger(sidecar_path(folder / name))
    return [folder / name for name in names]


def _check_stranger(path: Path) -> None:
    """Refuse to write over a file that is no sidecar."""
    if path.exists():
        content = read_json(path, what="shard sidecar", repair="Move it away: the tar's sidecar would be here.")
        if not (isinstance(content, dict) and "self_digest" in content):
            raise OccupiedError(f"{path}: is no sidecar, and the tar's would be here. Move it away, or rename the tar.")


def _check_keys(tars: Sequence[Path], sidecars: Sequence[Sidecar]) -> None:
    """Refuse tars that have keys in common: an image's id would be no name for it."""
    keys = [np.fromiter((int(sample.key) for sample in sidecar.samples), np.int64) for sidecar in sidecars]
    found, counts = np.unique(np.concatenate(keys), return_counts=True)
    if (counts == 1).all():
        return
    key = found[counts > 1][0]
    first, other, *_ = (tar for tar, own in zip(tars, keys, strict=True) if key in own)
    raise InputError(f"{other}: has a sample {key}, and so has {first}: they come from different downloads. Index them in folders of their own.")


def _distinct_numbers(sidecar: Sidecar) -> bool:
    """Whether a sidecar has keys as :func:`index_tar` writes them; with others it is somebody else's."""
    return len({int(sample.key) for sample in sidecar.samples if KEY.fullmatch(sample.key)}) == len(sidecar.samples)


def index_tar(task: IndexTask) -> bool:
    """Write a tar's records and sidecar; says whether the very same were there already."""
    tar, records = task.tar, records_path(task.tar)
    config_digest = json_digest(_config(task.resize))
    versions = library_versions("pillow", "pillow-simd", "simplejpeg", "nltk")
    there = whole_sidecar(Output(folder=tar.parent), tar)
    if (
        there
        and _distinct_numbers(there)
        and (there.split, there.index, there.config_digest, there.versions) == (task.split, task.index, config_digest, versions)
    ):
        return True
    with disk_errors(tar):
        sidecar_path(tar).unlink(missing_ok=True)  # so that an old sidecar never stands beside new records
    rejects: list[Reject] = []
    samples: list[Sample] = []
    images = SourceImages()
    with tar.open("rb") as file, committed_file(records) as out:
        offset, records_sha256 = 0, hashlib.sha256()
        try:
            for key, image, data, record in _samples(file, task, rejects):
                text = record_bytes(record)
                jpg = Member(offset=image.offset_data, size=len(data), crc32=zlib.crc32(data))
                samples.append(Sample(key=key, captions=1, jpg=jpg, json=Member(offset=offset, size=len(text), crc32=zlib.crc32(text))))
                images.add(data)
                out.write(text)
                records_sha256.update(text)
                offset += len(text)
        except TarError as problem:
            samples, rejects, images = [], [Reject(file=tar.name, reason="damaged_tar", message=f"{tar.name}: {problem}")], SourceImages()
            offset, records_sha256 = 0, hashlib.sha256()
            out.seek(0)
            out.truncate()
    sidecar = Sidecar(
        split=task.split,
        index=task.index,
        config_digest=config_digest,
        source_digest=json_digest([tar.name]),
        photographs_sha256=images.digest(),
        tar_bytes=tar.stat().st_size,
        tar_sha256=file_sha256(tar),
        samples=tuple(samples),
        rejects=tuple(rejects),
        versions=versions,
        records=RecordsFile(bytes=offset, sha256=records_sha256.hexdigest()),
    )
    write_json(sidecar_path(tar), sidecar.content())
    return False


class _Headers:
    """A tar for the standard library's reader, which gets headers of it and no content, and no more at a time than headers have."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > MAX_HEADER_BYTES:
            raise TarError(f"a header of {size} bytes")
        return self._file.read(size)


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The regular files of a tar that is whole to its end mark; of links, folders and the like nothing is read."""
    size = file.seek(0, 2)
    file.seek(0)
    last = -1
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:  # type: ignore[call-overload]
            for number, member in enumerate(tar):
                if number >= MAX_MEMBERS:
                    raise TarError(f"more than {MAX_MEMBERS} members")
                if not (last < member.offset and 0 <= member.size <= size - member.offset_data):
                    raise TarError(f"{member.name!r:.100} does not lie in it")
                last = member.offset
                if member.isreg() and not member.issparse():
                    yield member
            end = tar.offset
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as problem:
        raise TarError(f"no whole tar without compression ({problem})") from None
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise TarError(f"ends at byte {end} without an end mark: it was cut, or is damaged there")


def _samples(file: IO[bytes], task: IndexTask, rejects: list[Reject]) -> Iterator[tuple[str, tarfile.TarInfo, bytes, dict[str, Any]]]:
    """(key, image, its bytes, record) of each sample that can be used; what cannot goes to ``rejects``."""
    named = ((match, member) for member in _members(file) if (match := MEMBER_NAME.fullmatch(member.name)))
    seen: set[int] = set()
    # The headers are all read before the first content is: both have one place in the file.
    for key, group in itertools.groupby(list(named), key=lambda each: each[0][1]):
        parts: dict[str, tarfile.TarInfo] = {}
        for match, member in group:
            parts.setdefault(match[2].lower(), member)
        try:
            if not KEY.fullmatch(key):
                raise ImageError("key_is_no_number", f"{key[:100]}: the key of a sample should be a number of 18 digits at most")
            if int(key) in seen:
                raise ImageError("duplicate_image_id", f"{key}: there is a sample of this number before; the first is kept")
            image = next((parts[ending] for ending in IMAGE_SUFFIXES if ending in parts), None)
            if image is None:
                raise ImageError("no_image", f"{key}: has no image ({', '.join(IMAGE_SUFFIXES)})")
            data = _content(file, image, MAX_FILE_BYTES)
            photograph = decode_image(data, image.name)
            size = photograph.image.size
            if not task.resize.made(*size):
                raise ImageError(
                    "other_size", f"{image.name}: has {size[0]}x{size[1]} pixels, which {task.resize.mode} {task.resize.size} does not make"
                )
            facts = _facts(file, parts)
            text = storable(_text(file, parts, facts))
            if not text.strip():
                raise ImageError("no_captions", f"{key}: neither {key}.txt nor caption of {key}.json holds text")
        except ImageError as problem:
            rejects.append(Reject(file=f"{task.tar.name}: {key[:100]}", reason=problem.reason, message=str(problem)))
            continue
        seen.add(int(key))
        original = facts.get("original_width"), facts.get("original_height")
        width, height = original if all(type(side) is int and 0 < side < 1 << 31 for side in original) else size
        record = {"image_id": int(key), "file_name": image.name, "width": width, "height": height}
        yield key, image, data, {**record, "captions": [{"id": int(key), "text": text, "tokens": tokenize(text)}]}


def _content(file: IO[bytes], member: tarfile.TarInfo, at_most: int) -> bytes:
    if member.size > at_most:
        raise ImageError("too_large", f"{member.name}: {member.size} bytes, more than the limit of {at_most}")
    file.seek(member.offset_data)
    return file.read(member.size)


def _facts(file: IO[bytes], parts: dict[str, tarfile.TarInfo]) -> dict[str, Any]:
    """What a sample's JSON says, if it has one."""
    if ".json" not in parts:
        return {}
    try:
        content = json.loads(_content(file, parts[".json"], MAX_TEXT_BYTES))
    except (ValueError, RecursionError) as problem:
        raise ImageError("malformed_row", f"{parts['.json'].name}: not JSON ({problem})") from None
    return content if isinstance(content, dict) else {}


def _text(file: IO[bytes], parts: dict[str, tarfile.TarInfo], facts: dict[str, Any]) -> str:
    if ".txt" not in parts:
        caption = facts.get("caption")
        return caption if isinstance(caption, str) else ""
    try:
        return _content(file, parts[".txt"], MAX_TEXT_BYTES).decode("utf-8")
    except UnicodeDecodeError as problem:
        raise ImageError("malformed_row", f"{parts['.txt'].name}: not UTF-8 ({problem.reason})") from None
