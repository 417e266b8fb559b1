"""One shard: a worker process, here or on a cluster, reads, resizes, encodes and commits it alone, and returns a few numbers."""

from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.captions.records import CaptionedImage
from pipeline.execution.array_tasks import WORKER_SECONDS
from pipeline.execution.library_warnings import FileWarnings, gathered_warnings
from pipeline.images.decode import ImageError, stored_jpeg
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.source_images import SourceImageHasher, check_source_images, read_source_images, source_image_sizes
from pipeline.sharding.splits import intact_sidecar
from pipeline.sharding.stored_images import read_stored_images, stored_image_stamps
from shards.atomic import hold_lock
from shards.digests import json_digest
from shards.json_files import write_json
from shards.layout import shard_path, sidecar_path
from shards.output import Output, open_output
from shards.paths import Location
from shards.rejects import Reject
from shards.sidecar import Sidecar
from shards.tar import write_tar
from shards.versions import library_versions


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a worker needs to write one shard.

    Attributes:
        start: Position of ``records[0]`` in the split's plan. Keys are positions.
        plan_rejects: Rejects of the captions file itself, which the sidecar of the first shard keeps.
        images: Where the images are; None if the tables of the captions hold them.
    """

    out: Location
    split: str
    index: int
    start: int
    records: tuple[CaptionedImage, ...]
    plan_rejects: tuple[Reject, ...]
    images: Location | None
    config: ShardConfig

    @property
    def names(self) -> list[str]:
        """The file names of the source images."""
        return [record.file_name for record in self.records]


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What a worker did.

    Attributes:
        kept: Whether the shard was up to date and nothing was written.
        rejects: How many images were rejected, by reason.
        warnings: The images that were used despite a warning.
    """

    kept: bool
    rejects: dict[str, int]
    warnings: FileWarnings = FileWarnings()  # noqa: RUF009 - frozen


def write_shard(task: ShardTask) -> ShardResult:
    """Write one shard and its sidecar, unless the same shard already exists."""
    task.config.rules.check_installed()  # again: another machine of a cluster may lack a package that the first one has
    if task.images is not None:
        check_source_images(task.images)  # a machine without the folder must not reject all images as missing
    with open_output(task.out) as output:
        tar = shard_path(output.folder, task.split, task.index)
        # The worker of a killed run may still be finishing on another machine
        with hold_lock(tar.parent, tar.name, "writing this shard", wait_seconds=WORKER_SECONDS):
            return _write_shard(task, output, tar)


def _write_shard(task: ShardTask, output: Output, tar: Path) -> ShardResult:
    config_digest = json_digest(task.config.content())
    versions = library_versions("pillow", "pillow-simd", "simplejpeg", *task.config.rules.packages)
    existing = intact_sidecar(output, tar)
    if existing and (existing.config_digest, existing.versions) == (config_digest, versions) and _is_current(task, existing):
        return ShardResult(kept=True, rejects=_counted(existing.rejects[len(task.plan_rejects) :]))
    output.remove(sidecar_path(tar).name)  # an old sidecar must never be next to a new tar
    rejects: list[Reject] = []
    read = SourceImageHasher()
    with gathered_warnings() as gathered:
        samples, tar_bytes, tar_sha256 = write_tar(tar, _tar_records(task, rejects, read))
    for reject in rejects:
        gathered.pop(reject.file, None)
    sidecar = Sidecar(
        split=task.split,
        index=task.index,
        config_digest=config_digest,
        source_digest=_source_digest(task, _stamps(task, read)),
        photographs_sha256=read.hexdigest(),
        tar_bytes=tar_bytes,
        tar_sha256=tar_sha256,
        samples=samples,
        rejects=(*task.plan_rejects, *rejects),
        versions=versions,
    )
    output.upload(tar.name, mark=tar_sha256)
    write_json(sidecar_path(tar), sidecar.content())
    output.upload(sidecar_path(tar).name)
    return ShardResult(kept=False, rejects=_counted(rejects), warnings=FileWarnings().add(gathered))


def _is_current(task: ShardTask, existing: Sidecar) -> bool:
    """Whether an existing shard was made from the same captions and source images, and need not be retried."""
    if existing.source_digest != _source_digest(task, _stamps(task)):
        return False
    if task.config.retry_rejected and len(existing.rejects) > len(task.plan_rejects):
        return False
    return not task.config.check_sources or _source_images_sha256(task) == existing.photographs_sha256


def _source_digest(task: ShardTask, stamps: Sequence[int | list[int] | None]) -> str:
    sources = [[r.image_id, r.file_name, stamp, [[c.id, c.text] for c in r.captions]] for r, stamp in zip(task.records, stamps, strict=True)]
    return json_digest([task.start, sources, [asdict(reject) for reject in task.plan_rejects]])


def _source_images(task: ShardTask) -> Generator[bytes | ImageError, None, None]:
    return read_stored_images(task.records) if task.images is None else read_source_images(task.images, task.names)


def _source_images_sha256(task: ShardTask) -> str:
    hasher = SourceImageHasher()
    for data in _source_images(task):
        hasher.add(data)
    return hasher.hexdigest()


def _stamps(task: ShardTask, read: SourceImageHasher | None = None) -> Sequence[int | list[int] | None]:
    """What tells a changed source image without reading it: its size, or its table's. Sizes that were read are not looked up again."""
    if task.images is None:
        return stored_image_stamps(task.records)
    sizes = read.sizes if read is not None else [None] * len(task.names)
    unread = iter(source_image_sizes(task.images, [name for name, size in zip(task.names, sizes, strict=True) if size is None]))
    return [next(unread) if size is None else size for size in sizes]


def _counted(rejects: Sequence[Reject]) -> dict[str, int]:
    return dict(Counter(reject.reason for reject in rejects))


def _tar_records(task: ShardTask, rejects: list[Reject], read: SourceImageHasher) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """(key, JPEG bytes, record) of each usable image; the others are added to ``rejects``, and all source images to ``read``."""
    with closing(_source_images(task)) as source_images:
        for position, (record, data) in enumerate(zip(task.records, source_images, strict=True), task.start):
            read.add(data)
            try:
                if isinstance(data, ImageError):
                    raise data
                jpeg, width, height = stored_jpeg(data, record.file_name, task.config.resize, task.config.quality, task.config.shape)
            except ImageError as error:
                rejects.append(Reject(file=record.file_name, reason=error.reason, message=str(error)))
                continue
            content = {"image_id": record.image_id, "file_name": record.file_name, "width": width, "height": height}
            yield f"{position:09d}", jpeg, {**content, "captions": record.tokenized(task.config.rules)}
