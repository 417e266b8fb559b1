"""Verify shards and feature files: compare tars with their sidecars, and blocks with their checksums.

Nothing is repaired here. The command that made the files, run again, keeps what is intact and makes the rest again.
"""

from collections import deque
from dataclasses import dataclass
from pathlib import Path

from pipeline.execution.executors import run_tasks
from pipeline.execution.progress import Progress
from pipeline.images.decode import ImageError, Resize, decode_image
from pipeline.sharding.read_samples import shard_samples
from shards.dataset import DatasetFile, Shard, check_size, read_dataset_file
from shards.digests import file_sha256
from shards.errors import CapstreamError, InputError
from shards.features import open_features
from shards.layout import REJECTS_FILE, SHARD_FILE, sidecar_path, tar_path
from shards.sidecar import Sidecar, read_sidecar, reject_lines, split_digest
from shards.tar import damaged_members, parse_record, read_member


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """One shard: its content according to its sidecar, and its problems."""

    tar: Path
    images: int
    captions: int
    bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """One split; ``problems`` are those that do not belong to a single shard."""

    name: str
    shards: tuple[ShardReport, ...]
    problems: tuple[str, ...]

    @property
    def damaged(self) -> tuple[ShardReport, ...]:
        return tuple(shard for shard in self.shards if shard.problems)

    @property
    def intact(self) -> bool:
        return not self.damaged and not self.problems


@dataclass(frozen=True, kw_only=True)
class FeatureReport:
    """One feature file: its content, or its problem."""

    path: Path
    problem: str | None
    images: int = 0
    captions: int = 0
    views: int = 0
    positions: int = 0
    dim: int = 0
    network: str = ""


def verify_features(path: Path) -> FeatureReport:
    """Check every block of a feature file, as every reader does when it opens one."""
    try:
        file = open_features(path)
    except CapstreamError as error:
        return FeatureReport(path=path, problem=str(error))
    provenance = file.provenance
    return FeatureReport(
        path=path,
        problem=None,
        images=file.table.images,
        captions=file.table.captions,
        views=len(provenance.views),
        positions=file.features.shape[2],
        dim=file.dim,
        network=f"{provenance.backbone}, {provenance.weights}, {provenance.precision}",
    )


def verify(folder: Path, *, deep: bool = False, workers: int = 1, quiet: bool = True) -> list[SplitReport]:
    """Check every shard of a dataset.

    Args:
        folder: A shard dataset.
        deep: Also decode every image, and read every tar with webdataset's own reader.
        workers: Number of processes.
        quiet: Show no progress.

    Returns:
        A report for each split, intact or not.

    Raises:
        InputError: ``folder`` is not a shard dataset, or has no split.
        DamageError, MismatchError: ``dataset.json`` itself is damaged.
    """
    dataset = read_dataset_file(folder)
    if not dataset.splits:
        raise InputError(f"{folder}: has no split yet. Let the shard command finish first.")
    tasks = [(folder, dataset, name, index, deep) for name, entry in dataset.splits.items() for index in range(entry["shards"])]
    reports: dict[str, list[ShardReport]] = {name: [] for name in dataset.splits}
    damaged = 0
    with Progress("Verifying", total=len(tasks), unit="shards", quiet=quiet) as progress:
        for (_, _, name, _, _), report in zip(tasks, run_tasks(verify_shard, tasks, workers=workers), strict=True):
            reports[name].append(report)
            damaged += bool(report.problems)
            progress.advance(1, note=f"{damaged} damaged")
    return [SplitReport(name=name, shards=tuple(shards), problems=_split_problems(folder, dataset, name)) for name, shards in reports.items()]


def verify_shard(folder: Path, dataset: DatasetFile, split: str, index: int, deep: bool) -> ShardReport:
    """Check every byte of one shard."""
    tar = tar_path(folder, split, dataset.splits[split], index)
    try:
        sidecar = read_sidecar(sidecar_path(tar))
    except CapstreamError as error:
        return ShardReport(tar=tar, images=0, captions=0, bytes=0, problems=(str(error),))
    problems = [*_compare_with_dataset(sidecar, dataset, split, index), *_compare_with_tar(tar, sidecar)]
    if deep and not problems:
        problems += _check_content(Shard(path=tar, sidecar=sidecar), dataset)
    return ShardReport(
        tar=tar,
        images=len(sidecar.samples),
        captions=sum(sample.captions for sample in sidecar.samples),
        bytes=sidecar.tar_bytes,
        problems=tuple(problems),
    )


def _compare_with_dataset(sidecar: Sidecar, dataset: DatasetFile, split: str, index: int) -> list[str]:
    problems = []
    if (sidecar.split, sidecar.index) != (split, index):
        problems.append(f"its sidecar belongs to {sidecar.split}-{sidecar.index:06d}")
    if sidecar.config_digest != dataset.config_digest:
        problems.append(f"was made with config {sidecar.config_digest}, but dataset.json has {dataset.config_digest}")
    return problems


def _compare_with_tar(tar: Path, sidecar: Sidecar) -> list[str]:
    try:
        check_size(tar, sidecar)
    except CapstreamError as error:
        return [str(error)]
    problems: list[str] = []
    shard = Shard(path=tar, sidecar=sidecar)
    with shard.open() as file, shard.open_records() as records:
        for sample in sidecar.samples:
            problems += map(str, damaged_members(file, records, shard, sample))
    found = file_sha256(tar)
    if found != sidecar.tar_sha256:
        problems.append(f"SHA-256 is {found}, but the sidecar lists {sidecar.tar_sha256}")
    return problems


def _check_content(shard: Shard, dataset: DatasetFile) -> list[str]:
    problems = []
    try:
        deque(shard_samples(shard), maxlen=0)
    except CapstreamError as error:
        problems.append(f"webdataset's reader does not find what the sidecar lists: {error}")
    resize = Resize(**dataset.config["resize"])
    with shard.open() as file, shard.open_records() as records:
        for sample in shard.sidecar.samples:
            try:
                image = decode_image(read_member(file, shard, sample.key, "jpg", sample.jpg), f"sample {sample.key}.jpg").image
                record = parse_record(shard, sample.key, read_member(records, shard, sample.key, "json", sample.json))
            except (ImageError, CapstreamError) as error:
                problems.append(str(error))
                continue
            if not resize.made(*image.size):
                problems.append(f"sample {sample.key}.jpg has {image.width}x{image.height} pixels, which {resize} does not produce")
            if len(record["captions"]) != sample.captions:
                problems.append(f"sample {sample.key} has {len(record['captions'])} captions, but the sidecar lists {sample.captions}")
    return problems


def _split_problems(folder: Path, dataset: DatasetFile, name: str) -> tuple[str, ...]:
    """Problems that do not belong to a single shard: the summary in ``dataset.json``, the rejects, and superfluous files."""
    entry = dataset.splits[name]
    problems = []
    try:
        sidecars = [read_sidecar(sidecar_path(tar_path(folder, name, entry, index))) for index in range(entry["shards"])]
    except CapstreamError:
        return ()  # in the shard's own report
    found = split_digest(sidecars)
    if found != entry.get("digest"):
        problems.append(f"the shards have digest {found}, but dataset.json lists {entry.get('digest')}")
    counts = (sum(len(s.samples) for s in sidecars), sum(sample.captions for s in sidecars for sample in s.samples))
    if counts != (entry.get("images"), entry.get("captions")):
        problems.append(f"{counts[0]} images and {counts[1]} captions, but dataset.json lists {entry.get('images')} and {entry.get('captions')}")
    rejects = folder / REJECTS_FILE
    lines = rejects.read_bytes().splitlines(keepends=True) if rejects.is_file() else []
    expected = reject_lines(name, sidecars)
    if [line for line in lines if line in set(expected)] != expected:
        problems.append(f"{rejects} does not list this split's rejects as the sidecars do")
    for path in sorted(folder.iterdir()):
        match = SHARD_FILE.fullmatch(path.name)
        if match and match[1] == name and int(match[2]) >= entry["shards"]:
            problems.append(f"{path} does not belong to a shard that dataset.json lists")
    return tuple(problems)
