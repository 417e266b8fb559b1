"""Shard dataset or feature files -> what is damaged in them: tars against sidecars, blocks against their checksums.

Nothing is repaired here: the command that made them, run again, keeps what is whole and makes the rest anew.
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
from shards.layout import DATASET_FILE, REJECTS_FILE, SHARD_FILE, sidecar_path, tar_path
from shards.sidecar import Sidecar, read_sidecar, reject_lines, split_digest
from shards.tar import damaged_members, parse_record, read_member


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """One shard: what it holds by its sidecar, and what is wrong with it."""

    tar: Path
    images: int
    captions: int
    bytes: int
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """One split; ``problems`` are of the split as a whole."""

    name: str
    shards: tuple[ShardReport, ...]
    problems: tuple[str, ...]

    @property
    def damaged(self) -> tuple[ShardReport, ...]:
        return tuple(shard for shard in self.shards if shard.problems)

    @property
    def whole(self) -> bool:
        return not self.damaged and not self.problems


@dataclass(frozen=True, kw_only=True)
class FeatureReport:
    """One feature file: what it holds, or what is wrong with it."""

    path: Path
    problem: str | None
    images: int = 0
    captions: int = 0
    views: int = 0
    dim: int = 0
    network: str = ""


def feature_files(path: Path) -> list[Path]:
    """The feature files that ``path`` is or holds; none where it is a shard dataset, or a folder of something else.

    Raises:
        InputError: It is not there, or a file of another kind.
    """
    if path.is_dir():
        return [] if (path / DATASET_FILE).is_file() else sorted(path.glob("*.h5"))
    if path.suffix == ".h5":
        return [path]
    problem = "not a feature file (its name does not end in .h5)" if path.exists() else "no such file or folder"
    raise InputError(f"{path}: {problem}. Give a shard dataset's folder, a feature file or a folder of them.")


def verify_features(path: Path) -> FeatureReport:
    """Check a feature file to the last block, as every reader does when it opens one."""
    try:
        file = open_features(path)
    except CapstreamError as error:
        return FeatureReport(path=path, problem=str(error))
    made = file.provenance
    return FeatureReport(
        path=path,
        problem=None,
        images=file.table.images,
        captions=file.table.captions,
        views=len(made.views),
        dim=file.dim,
        network=f"{made.backbone}, {made.weights}, {made.precision}",
    )


def verify(folder: Path, *, deep: bool = False, workers: int = 1, quiet: bool = True) -> list[SplitReport]:
    """Check every shard of a dataset.

    Args:
        folder: A shard dataset.
        deep: Decode every image, and read every tar with webdataset's own reader too.
        workers: Processes.

    Returns:
        A report for each split, whole or not.

    Raises:
        InputError: ``folder`` is no shard dataset, or an empty one.
        DamageError, MismatchError: ``dataset.json`` itself cannot be used.
    """
    dataset = read_dataset_file(folder)
    if not dataset.splits:
        raise InputError(f"{folder}: holds no split yet. Run the shard command to its end first.")
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
    """Check one shard to the last byte."""
    tar = tar_path(folder, split, dataset.splits[split], index)
    try:
        sidecar = read_sidecar(sidecar_path(tar))
    except CapstreamError as error:
        return ShardReport(tar=tar, images=0, captions=0, bytes=0, problems=(str(error),))
    problems = [*_against_dataset(sidecar, dataset, split, index), *_against_tar(tar, sidecar)]
    if deep and not problems:
        problems += _deep(Shard(path=tar, sidecar=sidecar), dataset)
    return ShardReport(
        tar=tar,
        images=len(sidecar.samples),
        captions=sum(sample.captions for sample in sidecar.samples),
        bytes=sidecar.tar_bytes,
        problems=tuple(problems),
    )


def _against_dataset(sidecar: Sidecar, dataset: DatasetFile, split: str, index: int) -> list[str]:
    problems = []
    if (sidecar.split, sidecar.index) != (split, index):
        problems.append(f"the sidecar is that of {sidecar.split}-{sidecar.index:06d}")
    if sidecar.config_digest != dataset.config_digest:
        problems.append(f"was made with config {sidecar.config_digest}, dataset.json has {dataset.config_digest}")
    return problems


def _against_tar(tar: Path, sidecar: Sidecar) -> list[str]:
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
        problems.append(f"SHA-256 is {found}, the sidecar says {sidecar.tar_sha256}")
    return problems


def _deep(shard: Shard, dataset: DatasetFile) -> list[str]:
    problems = []
    try:
        deque(shard_samples(shard), maxlen=0)
    except CapstreamError as error:
        problems.append(f"webdataset's own reader does not find what the sidecar lists: {error}")
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
                problems.append(f"sample {sample.key}.jpg has {image.width}x{image.height} pixels, not what {resize} makes")
            if len(record["captions"]) != sample.captions:
                problems.append(f"sample {sample.key} has {len(record['captions'])} captions, the sidecar says {sample.captions}")
    return problems


def _split_problems(folder: Path, dataset: DatasetFile, name: str) -> tuple[str, ...]:
    """What no single shard can tell: the split as ``dataset.json`` has it, its rejects, and files too many."""
    entry = dataset.splits[name]
    problems = []
    try:
        sidecars = [read_sidecar(sidecar_path(tar_path(folder, name, entry, index))) for index in range(entry["shards"])]
    except CapstreamError:
        return ()  # the shard's own report says so
    found = split_digest(sidecars)
    if found != entry.get("digest"):
        problems.append(f"the shards have digest {found}, dataset.json says {entry.get('digest')}")
    counts = (sum(len(s.samples) for s in sidecars), sum(sample.captions for s in sidecars for sample in s.samples))
    if counts != (entry.get("images"), entry.get("captions")):
        problems.append(f"{counts[0]} images and {counts[1]} captions, dataset.json says {entry.get('images')} and {entry.get('captions')}")
    rejects = folder / REJECTS_FILE
    lines = rejects.read_bytes().splitlines(keepends=True) if rejects.is_file() else []
    wanted = reject_lines(name, sidecars)
    if [line for line in lines if line in set(wanted)] != wanted:
        problems.append(f"{rejects} does not hold this split's rejects as the sidecars have them")
    for path in sorted(folder.iterdir()):
        match = SHARD_FILE.fullmatch(path.name)
        if match and match[1] == name and int(match[2]) >= entry["shards"]:
            problems.append(f"{path} belongs to no shard that dataset.json lists")
    return tuple(problems)
