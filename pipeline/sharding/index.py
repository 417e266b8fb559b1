"""Tars that another program wrote, such as img2dataset, become a split of a shard dataset.

The tars stay as they are, and nothing is unpacked. What the readers need and the tars lack (ids, tokens, the position of every image) goes
into a file of records and a sidecar next to each tar. Images keep their size; an image that does not have the declared one is rejected.
"""

import hashlib
import itertools
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.captions.languages import ENGLISH, language_rules, language_tag
from pipeline.captions.scripts import SAMPLE, language_advice
from pipeline.execution.executors import run_tasks
from pipeline.execution.library_warnings import FileWarnings, gathered_warnings
from pipeline.execution.progress import Progress
from pipeline.images.decode import Resize
from pipeline.sharding.external_tars import SampleFields, external_samples, usable_key
from pipeline.sharding.source_images import SourceImageHasher
from pipeline.sharding.splits import SplitSummary, commit_split, differences, intact_sidecar, summary_of
from pipeline.sharding.tar_members import TarError
from shards.atomic import committed_file, disk_errors, hold_lock
from shards.dataset import open_split, read_dataset_file
from shards.digests import file_sha256, json_digest
from shards.errors import InputError, MismatchError, OccupiedError
from shards.json_files import read_json, write_json
from shards.layout import DATASET_FILE, INDEXED_TAR, REJECTS_FILE, check_split_name, records_path, sidecar_path
from shards.output import Output
from shards.rejects import Reject
from shards.sidecar import Member, RecordsFile, Sample, Sidecar, key_number, read_sidecar
from shards.tar import read_records, record_bytes
from shards.versions import library_versions


@dataclass(frozen=True, kw_only=True)
class IndexTask:
    """All that a worker needs to index one tar."""

    tar: Path
    split: str
    index: int
    resize: Resize
    language: str
    fields: SampleFields


def index_tars(
    folder: Path,
    *,
    resize: Resize,
    language: str = ENGLISH,
    split: str = "train",
    tars: Sequence[str] = (),
    fields: SampleFields | None = None,
    workers: int = 1,
    report: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
) -> SplitSummary:
    """Make tars of a folder a split of a shard dataset. Run again, it keeps what is complete and up to date, and indexes the rest.

    Args:
        folder: The folder of the tars, which becomes the dataset. A sample of a tar is all members with one key: an image, and its captions.
        resize: How the images were resized. Images that do not have a size that it produces are rejected.
        language: The captions' language, as :func:`pipeline.captions.languages.language_rules` takes it.
        split: Name of the split.
        tars: Patterns of the tars' names; by default all tars that no other split has.
        fields: Which members hold image and captions.
        workers: Processes.
        report: Takes a line if the captions seem to be in another language.
        quiet: Show no progress.

    Raises:
        InputError: There are no such tars, their names or keys are not allowed, no sample is usable, or no package splits this language.
        OccupiedError: The folder holds shards, or a file where a sidecar would be, or another process is writing to it.
        MismatchError: Other tars of the folder were indexed with other settings.
        ResourceError: Disk full, not allowed.
    """
    check_split_name(split)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Give the folder that holds the tars.")
    language_rules(language).check_installed()
    with hold_lock(folder, split, f"indexing split {split!r}"):
        fields = fields or SampleFields()
        config = _config(resize, language, fields)
        chosen = _choose_tars(folder, split, tars, config)
        tasks = [IndexTask(tar=tar, split=split, index=index, resize=resize, language=language, fields=fields) for index, tar in enumerate(chosen)]
        kept, warnings = 0, FileWarnings()
        with (
            closing(run_tasks(index_tar, [(task,) for task in tasks], workers=workers)) as results,
            Progress(f"Indexing {split}", total=len(tasks), unit="tars", quiet=quiet) as progress,
        ):
            for was_kept, of_tar in results:
                kept, warnings = kept + was_kept, warnings.join(of_tar)
                progress.advance(1)
        sidecars = [read_sidecar(sidecar_path(tar)) for tar in chosen]
        _check_keys(chosen, sidecars)
        summary = summary_of(sidecars, kept=kept, committed=True, warnings=warnings)
        commit_split(Output(folder=folder), split, config, {"tars": [tar.name for tar in chosen]}, summary, sidecars)
    if not summary.images:
        counts = ", ".join(f"{count} {reason}" for reason, count in summary.rejects.items()) or "the tars are empty"
        check = " Check `size` and `mode`." if "other_size" in summary.rejects else ""
        raise InputError(f"{folder}: no sample of these tars could be used ({counts}). See {folder / REJECTS_FILE}.{check}")
    if advice := language_advice(_some_captions(folder, split), language):
        report(advice)
    return summary


def _some_captions(folder: Path, split: str) -> list[str]:
    """Captions of the first samples of a split."""
    records = itertools.chain.from_iterable(map(read_records, open_split(folder, split).shards))
    return [record["captions"][0]["text"] for _, record in itertools.islice(records, SAMPLE)]


def _config(resize: Resize, language: str, fields: SampleFields) -> dict[str, Any]:
    """The dataset's config, as ``dataset.json`` has it."""
    rule = language_rules(language).rule
    return {"resize": asdict(resize), "language": language_tag(language), "tokenizer": rule, "key": "as in the tar", "fields": asdict(fields)}


def _choose_tars(folder: Path, split: str, patterns: Sequence[str], config: dict[str, Any]) -> list[Path]:
    """The tars of the split, sorted by name."""
    owner = _indexed_tars(folder, config)
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".tar" and not path.name.startswith(".") and path.is_file())
    if patterns:
        names = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        taken = next((name for name in names if owner.get(name, split) != split), None)
        if taken is not None:
            raise InputError(
                f"{folder / taken}: is in split {owner[taken]!r}. Choose other `tars`, or delete {folder / DATASET_FILE} and index all of them again."
            )
    names = [name for name in names if owner.get(name, split) == split]
    if not names:
        if patterns:
            raise InputError(f"{folder}: has no .tar file that matches {', '.join(patterns)}. Choose other `tars`.")
        if owner:
            raise InputError(f"{folder}: all its tars are in other splits already ({', '.join(sorted(set(owner.values())))}).")
        raise InputError(f"{folder}: has no .tar file. Give the folder that img2dataset wrote, its --output_folder.")
    for name in names:
        if not INDEXED_TAR.fullmatch(name):
            raise InputError(
                f"{folder / name}: a shard cannot have this name. Allowed are letters, digits, hyphens, underscores and dots, but not the names "
                f"of the dataset's own files, such as {DATASET_FILE}. Rename it."
            )
        _check_free_for_sidecar(sidecar_path(folder / name))
    return [folder / name for name in names]


def _indexed_tars(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """The splits of the tars that are indexed already, by name; checks that they were indexed with the same settings."""
    if not (folder / DATASET_FILE).is_file():
        return {}
    dataset = read_dataset_file(folder)
    owner: dict[str, str] = {}
    for name, entry in dataset.splits.items():
        if "tars" not in entry:
            raise OccupiedError(f"{folder}: holds shards that the shard command wrote. They need no index.")
        owner |= dict.fromkeys(entry["tars"], name)
    differing = differences(dataset.config, config)
    if differing:
        raise MismatchError(f"{folder}: was indexed with other settings: {differing}. Use the options of the first run, or delete {DATASET_FILE}.")
    return owner


def _check_free_for_sidecar(path: Path) -> None:
    """Refuse to overwrite a file that is not a sidecar."""
    if path.exists():
        content = read_json(path, what="shard sidecar", repair="Move it away: the tar's sidecar must have this name.")
        if not (isinstance(content, dict) and "self_digest" in content):
            raise OccupiedError(f"{path}: is not a sidecar, but the tar's sidecar must have this name. Move it away, or rename the tar.")


def _check_keys(tars: Sequence[Path], sidecars: Sequence[Sidecar]) -> None:
    """Refuse tars with common keys: an image's id must be unique."""
    keys = [np.fromiter((key_number(sample.key) for sample in sidecar.samples), np.int64) for sidecar in sidecars]
    found, counts = np.unique(np.concatenate(keys), return_counts=True)
    if (counts == 1).all():
        return
    key = found[counts > 1][0]
    first, other, *_ = (tar for tar, own in zip(tars, keys, strict=True) if key in own)
    name = next(sample.key for sidecar in sidecars for sample in sidecar.samples if key_number(sample.key) == key)
    raise InputError(f"{other}: has a sample {name}, and so has {first}: they come from different downloads. Index them in separate folders.")


def index_tar(task: IndexTask) -> tuple[bool, FileWarnings]:
    """Write a tar's records and sidecar; returns whether the same ones already existed, and the warnings about images."""
    tar = task.tar
    config_digest = json_digest(_config(task.resize, task.language, task.fields))
    versions = library_versions("pillow", "pillow-simd", "simplejpeg", *language_rules(task.language).packages)
    existing = intact_sidecar(Output(folder=tar.parent), tar)
    wanted = (task.split, task.index, config_digest, versions)
    if existing and (existing.split, existing.index, existing.config_digest, existing.versions) == wanted and _distinct_numbers(existing):
        return True, FileWarnings()
    with disk_errors(tar):
        sidecar_path(tar).unlink(missing_ok=True)  # an old sidecar must never be next to new records
    with tar.open("rb") as file, committed_file(records_path(tar)) as out:
        try:
            records = _write_records(task, file, out)
        except TarError as problem:
            out.seek(0)
            out.truncate()
            reject = Reject(file=tar.name, reason="damaged_tar", message=f"{tar.name}: {problem}")
            records = replace(NO_RECORDS, rejects=(reject,))
    sidecar = Sidecar(
        split=task.split,
        index=task.index,
        config_digest=config_digest,
        source_digest=json_digest([tar.name]),
        photographs_sha256=records.images_sha256,
        tar_bytes=tar.stat().st_size,
        tar_sha256=file_sha256(tar),
        samples=records.samples,
        rejects=records.rejects,
        versions=versions,
        records=records.file,
    )
    write_json(sidecar_path(tar), sidecar.content())
    return False, records.warnings


def _distinct_numbers(sidecar: Sidecar) -> bool:
    """Whether a sidecar's keys are as :func:`index_tar` writes them. If not, another program wrote it."""
    return len({key_number(sample.key) for sample in sidecar.samples if usable_key(sample.key)}) == len(sidecar.samples)


@dataclass(frozen=True, kw_only=True)
class _TarRecords:
    """What the sidecar says about a tar's samples."""

    samples: tuple[Sample, ...]
    rejects: tuple[Reject, ...]
    images_sha256: str
    file: RecordsFile
    warnings: FileWarnings = FileWarnings()  # noqa: RUF009 - frozen


NO_RECORDS = _TarRecords(
    samples=(), rejects=(), images_sha256=SourceImageHasher().hexdigest(), file=RecordsFile(bytes=0, sha256=hashlib.sha256().hexdigest())
)


def _write_records(task: IndexTask, file: IO[bytes], out: IO[bytes]) -> _TarRecords:
    """Write the records of a tar's usable samples to ``out``, one after the other.

    Raises:
        TarError: The tar cannot be used.
    """
    rejects: list[Reject] = []
    samples: list[Sample] = []
    images = SourceImageHasher()
    offset, sha256 = 0, hashlib.sha256()
    warnings = FileWarnings()
    with gathered_warnings() as gathered:
        for sample in external_samples(task.tar, file, task.resize, language_rules(task.language), task.fields, rejects):
            text = record_bytes(sample.record)
            jpg = Member(offset=sample.offset, size=len(sample.image), crc32=zlib.crc32(sample.image))
            json = Member(offset=offset, size=len(text), crc32=zlib.crc32(text))
            samples.append(Sample(key=sample.key, captions=len(sample.record["captions"]), jpg=jpg, json=json))
            images.add(sample.image)
            out.write(text)
            sha256.update(text)
            offset += len(text)
            name = sample.record["file_name"]
            if name in gathered:
                warnings = warnings.add({f"{task.tar.name}: {name}": gathered[name]})
            gathered.clear()
    records = RecordsFile(bytes=offset, sha256=sha256.hexdigest())
    return _TarRecords(samples=tuple(samples), rejects=tuple(rejects), images_sha256=images.hexdigest(), file=records, warnings=warnings)
