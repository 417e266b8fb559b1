"""Annotations and photographs -> WebDataset shards: every image once, resized, with all its tokenized captions.

A shard is one task: a worker process reads, resizes, encodes and commits it alone, and returns a few numbers. It trades a little
work for certainty: each run checks the digest of every shard that is already there, and makes again only those that changed.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.caption_files import CaptionSource, SplitCaptions, read_splits
from pipeline.captions import CaptionedImage
from pipeline.executors import run_tasks
from pipeline.images import ImageError, Resize, read_image_file, stored_jpeg
from pipeline.progress import Progress
from pipeline.tokenizer import RULE
from shards.atomic import digest, disk_errors, exclusive, file_sha256, write_json
from shards.errors import CapstreamError, InputError, MismatchError, OccupiedError
from shards.manifest import (
    DATASET_FILE,
    REJECTS_FILE,
    SHARD_FILE,
    DatasetFile,
    Reject,
    Sidecar,
    check_split_name,
    library_versions,
    read_dataset_file,
    read_sidecar,
    records_path,
    reject_lines,
    shard_path,
    sidecar_path,
    split_digest,
    tar_path,
    write_rejects,
)
from shards.tar import write_tar


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """What decides a shard's bytes, beside the input: the pixels' size, the JPEG quality, the tokenizer."""

    resize: Resize = field(default_factory=Resize)
    quality: int = 95

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise InputError(f"--quality {self.quality}: must lie between 1 and 100.")

    def content(self) -> dict[str, Any]:
        """As it is kept in ``dataset.json``."""
        return {"resize": asdict(self.resize), "jpeg_quality": self.quality, "tokenizer": RULE, "key": "%09d of the position in the plan"}


@dataclass(frozen=True, kw_only=True)
class ShardSummary:
    """What a run of :func:`write_shards` did to one split."""

    shards: int
    kept: int
    images: int
    captions: int
    rejects: dict[str, int]
    digest: str


class NothingUsableError(InputError):
    """No image of a split can be used."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to make one shard.

    Attributes:
        start: Position of ``records[0]`` in the split's plan; keys are positions.
        plan_rejects: What the annotation file itself lost; kept in the first shard's sidecar.
    """

    out: Path
    split: str
    index: int
    start: int
    records: tuple[CaptionedImage, ...]
    plan_rejects: tuple[Reject, ...]
    images: Path
    config: ShardConfig
    check_sources: bool
    retry_rejected: bool


@dataclass(frozen=True, kw_only=True)
class _Result:
    kept: bool
    rejects: dict[str, int]


def write_splits(*, captions: CaptionSource, split: str | None = None, **settings: Any) -> dict[str, ShardSummary]:
    """Write every split that the captions name, or one of them; as :func:`pipeline.caption_files.splits_of` says.

    Args:
        settings: As for :func:`write_shards`.

    Raises:
        InputError: As :func:`write_shards`; a split of which no image can be used is told when all others are there.
    """
    empty: list[InputError] = []
    done = {}
    for name, part in read_splits(captions, split).items():
        try:
            done[name] = write_shards(captions=part, split=name, **settings)
        except NothingUsableError as error:
            empty.append(error)
    if empty:
        raise empty[0]
    return done


def write_shards(
    *,
    images: Path,
    captions: Path | SplitCaptions,
    out: Path,
    split: str = "train",
    config: ShardConfig,
    shard_size: int = 1000,
    limit: int | None = None,
    max_rejects: float = 1.0,
    check_sources: bool = False,
    retry_rejected: bool = False,
    workers: int = 1,
    quiet: bool = True,
) -> ShardSummary:
    """Write one split of a shard dataset; run again, it keeps what is whole and makes the rest.

    Args:
        images: The folder that the annotation's file names are relative to.
        captions: A captions file, as :func:`pipeline.caption_files.read_captions` reads it; or what was read.
        out: The dataset's folder: new, empty, or a dataset with the same config.
        split: Name of the split that is written.
        shard_size: Images per shard (positions in the plan; rejected images leave gaps).
        limit: Take the first ``limit`` images only.
        max_rejects: Stop as soon as more than this share of the images had to be left out.
        check_sources: Compare the photographs with what the shards were made from by their bytes, not by name and size.
        retry_rejected: Make shards with rejected photographs again.
        workers: Processes; the bytes do not depend on it.

    Raises:
        InputError: Missing or malformed input, too many rejects, or nothing left to write.
        OccupiedError: ``out`` holds something else, or is being written to.
        MismatchError: ``out`` was made with another config, or the split from another annotation.
        ResourceError: Disk full, not allowed.
    """
    check_split_name(split)
    if shard_size < 1:
        raise InputError(f"--shard-size {shard_size}: must be at least 1.")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: must be at least 1.")
    if not 0 <= max_rejects <= 1:
        raise InputError(f"--max-rejects {max_rejects}: a share between 0 and 1 is expected.")
    if not images.is_dir():
        raise InputError(f"{images}: no such folder (--images should name the folder that holds the photographs).")
    check_out(out)
    if isinstance(captions, Path):
        captions = read_splits(CaptionSource(paths=(captions,)), split)[split]
    records = captions.records[:limit]
    plan = {
        "planned": len(records),
        "shard_size": shard_size,
        "limit": limit,
        "plan_digest": digest([[r.image_id, r.file_name, [[c.id, c.text] for c in r.captions]] for r in records]),
    }
    with exclusive(out, split, f"writing split {split!r}"):
        _check_same(out, split, config, plan)
        _sweep(out, split, shards=-(-len(records) // shard_size) or 1)
        tasks = [
            ShardTask(
                out=out,
                split=split,
                index=index,
                start=start,
                records=records[start : start + shard_size],
                plan_rejects=captions.rejects if index == 0 else (),
                images=images,
                config=config,
                check_sources=check_sources,
                retry_rejected=retry_rejected,
            )
            for index, start in enumerate(range(0, max(len(records), 1), shard_size))
        ]
        kept = _run(out, split, tasks, allowed=math.floor(max_rejects * len(records)), workers=workers, quiet=quiet)
        return _finish(images, out, split, config, plan, shards=len(tasks), kept=kept)


def check_out(out: Path) -> None:
    """Refuse an output folder that holds something else than shards.

    Raises:
        OccupiedError: It does; names one such file.
    """
    with disk_errors(out):
        if out.exists() and not out.is_dir():
            raise OccupiedError(f"{out}: is a file. Choose a new or empty folder for --out.")
        if not out.is_dir() or (out / DATASET_FILE).is_file():
            return
        ours = (DATASET_FILE, REJECTS_FILE)
        strangers = sorted(p.name for p in out.iterdir() if not p.name.startswith(".") and p.name not in ours and not SHARD_FILE.fullmatch(p.name))
    if strangers:
        raise OccupiedError(f"{out}: holds something else than shards ({strangers[0]}). Choose a new or empty folder for --out.")


def _check_same(out: Path, split: str, config: ShardConfig, plan: dict[str, Any]) -> None:
    """A dataset has one config, and a committed split one plan."""
    if not (out / DATASET_FILE).is_file():
        return
    dataset = read_dataset_file(out)
    differing = differences(dataset.config, config.content())
    if differing:
        raise MismatchError(f"{out}: was made with another config: {differing}. Choose another --out, or give the options of the first run.")
    if split in dataset.splits:
        differing = differences({key: dataset.splits[split].get(key) for key in plan}, plan)
        if differing:
            raise MismatchError(
                f"{out}: split {split!r} was made from other input: {differing}. Choose another --split or --out, or delete the folder."
            )


def differences(there: dict[str, Any], now: dict[str, Any]) -> str:
    """What two configs or plans do not have in common, in words; nothing if they are the same."""
    there, now = _flat(there), _flat(now)
    return "; ".join(f"{key} is {there.get(key)!r} there, {now.get(key)!r} now" for key in {**there, **now} if there.get(key) != now.get(key))


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= {f"{key}.{name}": inner for name, inner in _flat(value).items()} if isinstance(value, dict) else {key: value}
    return flat


def _sweep(out: Path, split: str, *, shards: int) -> None:
    """Remove what an interrupted run left: temporary files, and shards beyond the end of an uncommitted plan."""
    with disk_errors(out):
        for path in out.iterdir():
            if path.name.endswith(".tmp") and SHARD_FILE.fullmatch(path.name[1 : -len(".tmp")]) and path.name.startswith(f".{split}-"):
                path.unlink()
            match = SHARD_FILE.fullmatch(path.name)
            if match and match[1] == split and int(match[2]) >= shards:
                path.unlink()


def _run(out: Path, split: str, tasks: Sequence[ShardTask], *, allowed: int, workers: int, quiet: bool) -> int:
    """Do the tasks; returns how many shards were kept as they were."""
    kept = 0
    reasons: Counter[str] = Counter()
    total = sum(len(task.records) for task in tasks)
    with (
        closing(run_tasks(write_shard, [(task,) for task in tasks], workers=workers)) as results,
        Progress(f"Sharding {split}", total=total, unit="images", quiet=quiet) as progress,
    ):
        for task, result in zip(tasks, results, strict=True):
            kept += result.kept
            reasons.update(result.rejects)
            progress.advance(len(task.records), note=f"{reasons.total()} rejects")
            if reasons.total() > allowed:
                break
    if reasons.total() > allowed:
        done = [shard_path(out, split, task.index) for task in tasks]
        with exclusive(out, "dataset", f"finishing a split of {out.name}"):
            _write_rejects(out, split, [read_sidecar(sidecar_path(tar)) for tar in done if sidecar_path(tar).is_file()])
        raise InputError(
            f"{out}: stopped: {reasons.total()} of {total} photographs were left out ({_totals(reasons)}), --max-rejects allows {allowed}. "
            f"Each has a line in {out / REJECTS_FILE}. Check --images, or give a larger --max-rejects; finished shards are kept."
        )
    return kept


def _totals(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def commit_split(out: Path, split: str, config: dict[str, Any], plan: dict[str, Any], tars: Sequence[Path], *, kept: int) -> ShardSummary:
    """All shards are there: write ``rejects.jsonl``, and the split into ``dataset.json`` if any image is usable.

    Args:
        config: Of the dataset.
        plan: What ``dataset.json`` is to say of the split, beside the numbers.
        tars: The split's tars, in order, with their sidecars.
        kept: How many of them were there already.
    """
    sidecars = [read_sidecar(sidecar_path(tar)) for tar in tars]
    reasons = Counter(reject.reason for sidecar in sidecars for reject in sidecar.rejects)
    summary = ShardSummary(
        shards=len(sidecars),
        kept=kept,
        images=sum(len(sidecar.samples) for sidecar in sidecars),
        captions=sum(sample.captions for sidecar in sidecars for sample in sidecar.samples),
        rejects=dict(sorted(reasons.items())),
        digest=split_digest(sidecars),
    )
    with exclusive(out, "dataset", f"finishing a split of {out.name}"):
        _commit_split(out, split, config, plan, summary, sidecars)
    return summary


def _finish(images: Path, out: Path, split: str, config: ShardConfig, plan: dict[str, Any], *, shards: int, kept: int) -> ShardSummary:
    tars = [shard_path(out, split, index) for index in range(shards)]
    summary = commit_split(out, split, config.content(), plan, tars, kept=kept)
    if summary.images == 0:
        totals = _totals(summary.rejects) or "the annotation lists none"
        raise NothingUsableError(f"{out}: no image of split {split!r} could be used ({totals}). See {out / REJECTS_FILE}; check --images {images}.")
    return summary


def _commit_split(out: Path, split: str, config: dict[str, Any], plan: dict[str, Any], summary: ShardSummary, sidecars: Sequence[Sidecar]) -> None:
    known = read_dataset_file(out).splits if (out / DATASET_FILE).is_file() else {}
    entry = {
        **plan,
        "shards": summary.shards,
        "images": summary.images,
        "captions": summary.captions,
        "rejects": summary.rejects,
        "versions": sidecars[0].versions,
        "digest": summary.digest,
    }
    splits = {**known, split: entry} if summary.images else known
    updated = DatasetFile(config=config, splits=dict(sorted(splits.items())))
    _write_rejects(out, split, sidecars)
    if summary.images and known.get(split) != entry:
        updated.write(out)


def _write_rejects(out: Path, split: str, sidecars: Sequence[Sidecar]) -> None:
    """Gather ``rejects.jsonl`` from this split's sidecars and those of the splits that are there already."""
    known = read_dataset_file(out).splits if (out / DATASET_FILE).is_file() else {}
    lines = []
    for name in sorted({*known, split}):
        of_split = sidecars
        if name != split:
            of_split = [read_sidecar(sidecar_path(tar_path(out, name, known[name], index))) for index in range(known[name]["shards"])]
        lines += reject_lines(name, of_split)
    write_rejects(out, lines)


def write_shard(task: ShardTask) -> _Result:
    """Make one shard and its sidecar, unless the very same is there already."""
    tar = shard_path(task.out, task.split, task.index)
    config_digest = digest(task.config.content())
    paths = [task.images / r.file_name for r in task.records]
    sources = [[r.image_id, r.file_name, _file_size(path), [[c.id, c.text] for c in r.captions]] for r, path in zip(task.records, paths, strict=True)]
    source_digest = digest([task.start, sources, [asdict(reject) for reject in task.plan_rejects]])
    versions = library_versions("pillow", "pillow-simd", "simplejpeg", "nltk")
    there = whole_sidecar(tar)
    if there and (there.config_digest, there.source_digest, there.versions) == (config_digest, source_digest, versions):
        of_photographs = there.rejects[len(task.plan_rejects) :]
        retry = task.retry_rejected and of_photographs
        changed = task.check_sources and _photographs_sha256(paths) != there.photographs_sha256
        if not retry and not changed:
            return _Result(kept=True, rejects=_reasons(of_photographs))
    with disk_errors(tar):
        sidecar_path(tar).unlink(missing_ok=True)  # so that an old sidecar never stands beside a new tar
    rejects: list[Reject] = []
    read = PhotographsHash()
    samples, tar_bytes, tar_sha256 = write_tar(tar, _tar_records(task, rejects, read))
    sidecar = Sidecar(
        split=task.split,
        index=task.index,
        config_digest=config_digest,
        source_digest=source_digest,
        photographs_sha256=read.digest(),
        tar_bytes=tar_bytes,
        tar_sha256=tar_sha256,
        samples=samples,
        rejects=(*task.plan_rejects, *rejects),
        versions=versions,
    )
    write_json(sidecar_path(tar), sidecar.content())
    return _Result(kept=False, rejects=_reasons(rejects))


def _reasons(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(Counter(reject.reason for reject in rejects))


class PhotographsHash:
    """SHA-256 over a shard's photographs: over the SHA-256 of each file in order, zeros for one that cannot be read."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, data: bytes | None) -> None:
        """Add the next photograph's bytes."""
        self._hash.update(bytes(32) if data is None else hashlib.sha256(data).digest())

    def digest(self) -> str:
        return self._hash.hexdigest()


def _photographs_sha256(paths: Sequence[Path]) -> str:
    found = PhotographsHash()
    for path in paths:
        try:
            found.add(read_image_file(path))
        except ImageError:
            found.add(None)
    return found.digest()


def _file_size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None


def whole_sidecar(tar: Path) -> Sidecar | None:
    """The sidecar of a shard that is whole to the last byte, records beside it too, or None."""
    try:
        sidecar = read_sidecar(sidecar_path(tar))
        whole = tar.stat().st_size == sidecar.tar_bytes and file_sha256(tar) == sidecar.tar_sha256
        whole = whole and (sidecar.records is None or file_sha256(records_path(tar)) == sidecar.records.sha256)
    except (CapstreamError, OSError):
        return None
    return sidecar if whole else None


def _tar_records(task: ShardTask, rejects: list[Reject], read: PhotographsHash) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    for position, record in enumerate(task.records, task.start):
        data = None
        try:
            data = read_image_file(task.images / record.file_name)
            jpeg, width, height = stored_jpeg(data, record.file_name, task.config.resize, task.config.quality)
        except ImageError as error:
            rejects.append(Reject(file=record.file_name, reason=error.reason, message=str(error)))
            continue
        finally:
            read.add(data)
        place = {"image_id": record.image_id, "file_name": record.file_name, "width": width, "height": height}
        content = {**place, "captions": record.tokenized()}
        yield f"{position:09d}", jpeg, content
