"""Annotations and photographs -> WebDataset shards: every image once, resized, with all its tokenized captions.

A shard is one task: a worker process, here or on a cluster, reads, resizes, encodes and commits it alone, and returns a few numbers. It
trades a little work for certainty: each run checks every shard that is already there, and makes again only those that changed.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.captions.read import CaptionSource, SplitCaptions, read_splits
from pipeline.captions.records import CaptionedImage
from pipeline.captions.tokenizer import RULE
from pipeline.execution.array_tasks import WORKER_SECONDS, ArrayTask, writer_lock
from pipeline.execution.executors import Cluster, run_tasks
from pipeline.execution.progress import Progress
from pipeline.images.decode import ImageError, Resize, stored_jpeg
from pipeline.sharding.source_images import check_originals, original_sizes, read_originals
from pipeline.sharding.splits import ShardSummary, SourceImages, commit_split, differences, gather_rejects, summary_of, whole_sidecar
from shards.atomic import hold_lock
from shards.dataset import read_dataset_file
from shards.digests import json_digest
from shards.errors import InputError, MismatchError, OccupiedError, ResourceError
from shards.json_files import write_json
from shards.layout import DATASET_FILE, REJECTS_FILE, SHARD_FILE, check_split_name, shard_path, sidecar_path
from shards.output import Output, open_output
from shards.paths import Location
from shards.rejects import Reject
from shards.sidecar import Sidecar, read_sidecar
from shards.tar import write_tar
from shards.versions import library_versions


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


class NothingUsableError(InputError):
    """No image of a split can be used."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to make one shard.

    Attributes:
        start: Position of ``records[0]`` in the split's plan; keys are positions.
        plan_rejects: What the annotation file itself lost; kept in the first shard's sidecar.
    """

    out: Location
    split: str
    index: int
    start: int
    records: tuple[CaptionedImage, ...]
    plan_rejects: tuple[Reject, ...]
    images: Location
    config: ShardConfig
    check_sources: bool
    retry_rejected: bool


@dataclass(frozen=True, kw_only=True)
class _Result:
    kept: bool
    rejects: dict[str, int]


def write_splits(*, captions: CaptionSource, split: str | None = None, **settings: Any) -> dict[str, ShardSummary]:
    """Write every split that the captions name, or one of them; as :func:`pipeline.captions.read.splits_of` says.

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
    images: Location,
    captions: Path | SplitCaptions,
    out: Location,
    split: str = "train",
    config: ShardConfig,
    shard_size: int = 1000,
    limit: int | None = None,
    max_rejects: float = 1.0,
    check_sources: bool = False,
    retry_rejected: bool = False,
    workers: int = 1,
    cluster: Cluster | None = None,
    array_task: ArrayTask | None = None,
    quiet: bool = True,
) -> ShardSummary:
    """Write one split of a shard dataset; run again, it keeps what is whole and makes the rest.

    Args:
        images: The folder that the annotation's file names are relative to, or its URL.
        captions: A captions file, as :func:`pipeline.captions.read.read_captions` reads it; or what was read.
        out: The dataset's folder, or its URL in S3: new, empty, or a dataset with the same config.
        split: Name of the split that is written.
        shard_size: Images per shard (positions in the plan; rejected images leave gaps).
        limit: Take the first ``limit`` images only.
        max_rejects: Stop as soon as more than this share of the images had to be left out.
        check_sources: Compare the photographs with what the shards were made from by their bytes, not by name and size.
        retry_rejected: Make shards with rejected photographs again.
        workers: Processes; the bytes do not depend on it.
        cluster: Runs the tasks instead of processes here.
        array_task: Make only these shards, and commit nothing.

    Raises:
        InputError: Missing or malformed input, too many rejects, or nothing left to write.
        OccupiedError: ``out`` holds something else, or is being written to.
        MismatchError: ``out`` was made with another config, or the split from another annotation.
        ResourceError: Disk full, not allowed, no network.
    """
    check_split_name(split)
    if shard_size < 1:
        raise InputError(f"--shard-size {shard_size}: must be at least 1.")
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: must be at least 1.")
    if not 0 <= max_rejects <= 1:
        raise InputError(f"--max-rejects {max_rejects}: a share between 0 and 1 is expected.")
    check_originals(images)
    if isinstance(captions, Path):
        captions = read_splits(CaptionSource(paths=(captions,)), split)[split]
    records = captions.records[:limit]
    plan = {
        "planned": len(records),
        "shard_size": shard_size,
        "limit": limit,
        "plan_digest": json_digest([[r.image_id, r.file_name, [[c.id, c.text] for c in r.captions]] for r in records]),
    }
    with open_output(out) as output:
        check_out(output)
        with writer_lock(output.folder, split, array_task, f"writing split {split!r}"):
            output.fetch([DATASET_FILE])
            _check_same(output.folder, split, config, plan)
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
            if array_task is None:
                _sweep(output, split, shards=len(tasks))
            else:
                tasks = array_task.select(tasks)
            kept = _run(output, split, tasks, max_rejects=max_rejects, workers=workers, cluster=cluster, quiet=quiet)
            sidecars = _sidecars(output, split, tasks)
            summary = summary_of(sidecars, kept=kept, committed=array_task is None)
            if array_task is None:
                commit_split(output, split, config.content(), plan, summary, sidecars)
                if summary.images == 0:
                    raise NothingUsableError(
                        f"{output.folder}: no image of split {split!r} could be used ({_totals(summary.rejects) or 'the annotation lists none'}). "
                        f"See {output.folder / REJECTS_FILE}; check --images {images}."
                    )
            return summary


def check_out(output: Output) -> None:
    """Refuse an output folder that holds something else than shards.

    Raises:
        OccupiedError: It does; names one such file.
    """
    out = output.folder
    if out.exists() and not out.is_dir():
        raise OccupiedError(f"{out}: is a file. Choose a new or empty folder for --out.")
    names = output.names()
    ours = (DATASET_FILE, REJECTS_FILE)
    strangers = [name for name in names if not name.startswith(".") and name not in ours and not SHARD_FILE.fullmatch(name)]
    if strangers and DATASET_FILE not in names:
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


def _sweep(output: Output, split: str, *, shards: int) -> None:
    """Remove what an interrupted run left: temporary files, locks, and shards beyond the end of an uncommitted plan."""
    for name in output.names():
        hidden = re.fullmatch(r"\.(.+)\.(tmp|lock)", name)
        match = SHARD_FILE.fullmatch(hidden[1] if hidden else name)
        if not match or match[1] != split:
            continue
        if hidden and hidden[2] == "lock":
            with suppress(OccupiedError), hold_lock(output.folder, hidden[1], "writing this shard"):
                pass  # nobody holds it: it is gone now
        elif hidden or int(match[2]) >= shards:
            output.remove(name)


def _run(output: Output, split: str, tasks: Sequence[ShardTask], *, max_rejects: float, workers: int, cluster: Cluster | None, quiet: bool) -> int:
    """Do the tasks; returns how many shards were kept as they were."""
    kept = 0
    reasons: Counter[str] = Counter()
    total = sum(len(task.records) for task in tasks)
    allowed = math.floor(max_rejects * total)
    with (
        closing(run_tasks(write_shard, [(task,) for task in tasks], workers=workers, cluster=cluster)) as results,
        Progress(f"Sharding {split}", total=total, unit="images", quiet=quiet) as progress,
    ):
        for task, result in zip(tasks, results, strict=True):
            kept += result.kept
            reasons.update(result.rejects)
            progress.advance(len(task.records), note=f"{reasons.total()} rejects")
            if reasons.total() > allowed:
                break
    if reasons.total() > allowed:
        out = output.folder
        done = [sidecar_path(shard_path(out, split, task.index)) for task in tasks]
        output.fetch([DATASET_FILE, *(sidecar.name for sidecar in done)])
        with hold_lock(out, "dataset", f"finishing a split of {out.name}"):
            gather_rejects(output, split, [read_sidecar(sidecar) for sidecar in done if sidecar.is_file()])
        raise InputError(
            f"{out}: stopped: {reasons.total()} of {total} photographs were left out ({_totals(reasons)}), --max-rejects allows {allowed}. "
            f"Each has a line in {out / REJECTS_FILE}. Check --images, or give a larger --max-rejects; finished shards are kept."
        )
    return kept


def _totals(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def _sidecars(output: Output, split: str, tasks: Sequence[ShardTask]) -> list[Sidecar]:
    """Those of all shards that were made.

    Raises:
        ResourceError: A machine of a cluster has written them to somewhere else.
    """
    paths = [sidecar_path(shard_path(output.folder, split, task.index)) for task in tasks]
    output.fetch(path.name for path in paths)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ResourceError(
            f"{output.folder}: {len(missing)} of {len(paths)} shards are not here, though they were made ({missing[0]}). On a cluster --out has to "
            "be a folder that all machines share under this very path, or a place in S3."
        )
    return [read_sidecar(path) for path in paths]


def write_shard(task: ShardTask) -> _Result:
    """Make one shard and its sidecar, unless the very same is there already."""
    check_originals(task.images)  # a machine that does not have the folder must not take all photographs for missing
    with open_output(task.out) as output:
        tar = shard_path(output.folder, task.split, task.index)
        # A worker of a run that was killed may be about to end, on another machine.
        with hold_lock(tar.parent, tar.name, "writing this shard", wait_seconds=WORKER_SECONDS):
            return _write_shard(task, output, tar)


def _write_shard(task: ShardTask, output: Output, tar: Path) -> _Result:
    config_digest = json_digest(task.config.content())
    names = [record.file_name for record in task.records]
    versions = library_versions("pillow", "pillow-simd", "simplejpeg", "nltk")
    there = whole_sidecar(output, tar)
    if (
        there
        and (there.config_digest, there.versions) == (config_digest, versions)
        and there.source_digest == _source_digest(task, original_sizes(task.images, names))
    ):
        of_photographs = there.rejects[len(task.plan_rejects) :]
        retry = task.retry_rejected and of_photographs
        changed = task.check_sources and _photographs_sha256(task.images, names) != there.photographs_sha256
        if not retry and not changed:
            return _Result(kept=True, rejects=_reasons(of_photographs))
    output.remove(sidecar_path(tar).name)  # so that an old sidecar never stands beside a new tar
    rejects: list[Reject] = []
    read = SourceImages()
    samples, tar_bytes, tar_sha256 = write_tar(tar, _tar_records(task, rejects, read))
    sidecar = Sidecar(
        split=task.split,
        index=task.index,
        config_digest=config_digest,
        source_digest=_source_digest(task, _sizes(task.images, names, read)),
        photographs_sha256=read.digest(),
        tar_bytes=tar_bytes,
        tar_sha256=tar_sha256,
        samples=samples,
        rejects=(*task.plan_rejects, *rejects),
        versions=versions,
    )
    output.upload(tar.name, mark=tar_sha256)
    write_json(sidecar_path(tar), sidecar.content())
    output.upload(sidecar_path(tar).name)
    return _Result(kept=False, rejects=_reasons(rejects))


def _source_digest(task: ShardTask, sizes: Sequence[int | None]) -> str:
    sources = [[r.image_id, r.file_name, size, [[c.id, c.text] for c in r.captions]] for r, size in zip(task.records, sizes, strict=True)]
    return json_digest([task.start, sources, [asdict(reject) for reject in task.plan_rejects]])


def _reasons(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(Counter(reject.reason for reject in rejects))


def _photographs_sha256(images: Location, names: Sequence[str]) -> str:
    found = SourceImages()
    for data in read_originals(images, names):
        found.add(data)
    return found.digest()


def _sizes(images: Location, names: Sequence[str], read: SourceImages) -> list[int | None]:
    """As :func:`original_sizes`, which is only asked for what could not be read."""
    unread = iter(original_sizes(images, [name for name, size in zip(names, read.sizes, strict=True) if size is None]))
    return [next(unread) if size is None else size for size in read.sizes]


def _tar_records(task: ShardTask, rejects: list[Reject], read: SourceImages) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    with closing(read_originals(task.images, [record.file_name for record in task.records])) as originals:
        for position, (record, data) in enumerate(zip(task.records, originals, strict=True), task.start):
            read.add(data)
            try:
                if isinstance(data, ImageError):
                    raise data
                jpeg, width, height = stored_jpeg(data, record.file_name, task.config.resize, task.config.quality)
            except ImageError as error:
                rejects.append(Reject(file=record.file_name, reason=error.reason, message=str(error)))
                continue
            place = {"image_id": record.image_id, "file_name": record.file_name, "width": width, "height": height}
            content = {**place, "captions": record.tokenized()}
            yield f"{position:09d}", jpeg, content
