"""Captions and images -> WebDataset shards: every image once, resized, with all its tokenized captions.

A shard is one task, which :mod:`pipeline.sharding.shard_task` does alone. This trades some work for certainty: each run checks every existing
shard, and writes again only those that changed.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.captions.read import CaptionSource, SplitCaptions, first_captions, read_splits
from pipeline.captions.scripts import language_advice
from pipeline.execution.array_tasks import ArrayTask, writer_lock
from pipeline.execution.executors import Cluster, run_tasks
from pipeline.execution.library_warnings import FileWarnings
from pipeline.execution.progress import Progress
from pipeline.sharding.config import ShardConfig
from pipeline.sharding.shard_task import ShardTask, write_shard
from pipeline.sharding.source_images import check_source_images
from pipeline.sharding.splits import SplitSummary, commit_split, differences, summary_of, write_all_rejects
from pipeline.sharding.stored_images import check_stored_images
from shards.atomic import hold_lock
from shards.dataset import read_dataset_file
from shards.digests import json_digest
from shards.errors import InputError, MismatchError, OccupiedError, ResourceError
from shards.layout import DATASET_FILE, REJECTS_FILE, SHARD_FILE, check_split_name, shard_path, sidecar_path
from shards.output import Output, open_output
from shards.paths import Location
from shards.sidecar import Sidecar, read_sidecar


class NothingUsableError(InputError):
    """No image of a split can be used."""


def write_splits(
    *,
    images: Location | None,
    captions: CaptionSource,
    out: Location,
    split: str | None = None,
    config: ShardConfig,
    workers: int = 1,
    cluster: Cluster | None = None,
    array_task: ArrayTask | None = None,
    report: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
) -> dict[str, SplitSummary]:
    """Write every split that the captions name, or one of them; see :func:`pipeline.captions.read.splits_of`.

    Args:
        captions: Where the captions come from.
        split: The split to write, or the name of the only one.
        report: Takes a line if the captions seem to be in another language.
        images, out, config, workers, cluster, array_task, quiet: As for :func:`write_shards`.

    Raises:
        InputError: As :func:`write_shards`. A split without a usable image is reported after the others are written.
    """
    empty: list[InputError] = []
    written = {}
    captions = replace(captions, image_files=images)
    splits = read_splits(captions, split)
    if captions.holdout and split is not None:
        _check_held_out(out, read_splits(captions), config)
    for advice in filter(None, [language_advice(first_captions(splits.values()), config.language)]):
        report(advice)
    for name, of_split in splits.items():
        try:
            written[name] = write_shards(
                images=images,
                captions=of_split,
                out=out,
                split=name,
                config=config,
                workers=workers,
                cluster=cluster,
                array_task=array_task,
                quiet=quiet,
            )
        except NothingUsableError as error:
            empty.append(error)
    if empty:
        raise empty[0]
    return written


def write_shards(
    *,
    images: Location | None,
    captions: Path | SplitCaptions,
    out: Location,
    split: str = "train",
    config: ShardConfig,
    workers: int = 1,
    cluster: Cluster | None = None,
    array_task: ArrayTask | None = None,
    quiet: bool = True,
) -> SplitSummary:
    """Write one split of a shard dataset. Run again, it keeps shards that are complete and up to date, and writes the rest.

    Args:
        images: The folder, or its URL, that the captions' file names are relative to. None if the captions are tables that hold the images.
        captions: A captions file, as :func:`pipeline.captions.read.read_captions` reads it; or the captions of the split.
        out: The dataset's folder, or its URL in S3: new, empty, or a dataset with the same config.
        split: Name of the split to write.
        config: How it is written.
        workers: Processes. The bytes do not depend on their number.
        cluster: Runs the tasks in place of processes of this machine.
        array_task: Write only the shards of this task, and commit nothing.
        quiet: Show no progress.

    Raises:
        InputError: Missing or malformed input, too many rejects, or no usable image.
        OccupiedError: ``out`` holds something else, or another process is writing to it.
        MismatchError: ``out`` was made with another config, or the split from other captions.
        ResourceError: Disk full, not allowed, no network.
    """
    check_split_name(split)
    if images is not None:
        check_source_images(images)
    if isinstance(captions, Path):
        captions = read_splits(CaptionSource(paths=(captions,), image_files=images), split)[split]
    if images is None:
        check_stored_images(captions.records, split)
    tasks = _shard_tasks(images, captions, out, split, config)
    plan = _plan(captions, config)
    with open_output(out) as output:
        check_out(output)
        with writer_lock(output.folder, split, array_task, f"writing split {split!r}"):
            output.fetch([DATASET_FILE])
            _check_same(output.folder, split, config, plan)
            if array_task is None:
                _remove_leftovers(output, split, shards=len(tasks))
            else:
                tasks = array_task.select(tasks)
            kept, warnings = _run(output, tasks, workers=workers, cluster=cluster, quiet=quiet)
            sidecars = _sidecars(output, split, tasks)
            summary = summary_of(sidecars, kept=kept, committed=array_task is None, warnings=warnings)
            if array_task is None:
                commit_split(output, split, config.content(), plan, summary, sidecars)
                if summary.images == 0:
                    raise NothingUsableError(
                        f"{output.folder}: no image of split {split!r} could be used ({_counts(summary.rejects) or 'the captions list none'}). "
                        f"See {output.folder / REJECTS_FILE}; check `{'captions' if images is None else f'images` {images}'}."
                    )
            return summary


def _plan(captions: SplitCaptions, config: ShardConfig) -> dict[str, Any]:
    """What a split is made of, as its entry in ``dataset.json`` has it."""
    records = captions.records[: config.limit]
    return {
        "planned": len(records),
        "shard_size": config.shard_size,
        "limit": config.limit,
        "plan_digest": json_digest([[r.image_id, r.file_name, [[c.id, c.text] for c in r.captions]] for r in records]),
    }


def _shard_tasks(images: Location | None, captions: SplitCaptions, out: Location, split: str, config: ShardConfig) -> list[ShardTask]:
    """One task per shard, at least one."""
    records = captions.records[: config.limit]
    return [
        ShardTask(
            out=out,
            split=split,
            index=index,
            start=start,
            records=records[start : start + config.shard_size],
            plan_rejects=captions.rejects if index == 0 else (),
            images=images,
            config=config,
        )
        for index, start in enumerate(range(0, max(len(records), 1), config.shard_size))
    ]


def check_out(output: Output) -> None:
    """Refuse an output folder that holds something other than shards.

    Raises:
        OccupiedError: It does; names one such file.
    """
    out = output.folder
    if out.exists() and not out.is_dir():
        raise OccupiedError(f"{out}: is a file. Choose a new or empty folder for `out`.")
    names = output.names()
    known = (DATASET_FILE, REJECTS_FILE)
    others = [name for name in names if not name.startswith(".") and name not in known and not SHARD_FILE.fullmatch(name)]
    if others and DATASET_FILE not in names:
        raise OccupiedError(f"{out}: holds something other than shards ({others[0]}). Choose a new or empty folder for `out`.")


def _check_same(out: Path, split: str, config: ShardConfig, plan: dict[str, Any]) -> None:
    """A dataset has one config, and a committed split one plan."""
    if not (out / DATASET_FILE).is_file():
        return
    dataset = read_dataset_file(out)
    differing = differences(dataset.config, config.content())
    if differing:
        raise MismatchError(f"{out}: was made with another config: {differing}. Choose another `out`, or use the options of the first run.")
    if split in dataset.splits:
        differing = differences({key: dataset.splits[split].get(key) for key in plan}, plan)
        if differing:
            raise MismatchError(
                f"{out}: split {split!r} was made from other input: {differing}. Choose another `split` or `out`, or delete the folder."
            )


def _check_held_out(out: Location, splits: dict[str, SplitCaptions], config: ShardConfig) -> None:
    """Where one split is written alone, the others that ``out`` has must be those of the same holdout: no image may be in two splits."""
    with open_output(out) as output:
        output.fetch([DATASET_FILE])
        for name, captions in splits.items():
            _check_same(output.folder, name, config, _plan(captions, config))


def _remove_leftovers(output: Output, split: str, *, shards: int) -> None:
    """Remove what an interrupted run left: temporary files, locks, and shards beyond the end of an uncommitted plan."""
    for name in output.names():
        hidden = re.fullmatch(r"\.(.+?)(\.tmp|\.lock|\.tmp\.lock)", name)
        match = SHARD_FILE.fullmatch(hidden[1] if hidden else name)
        if not match or match[1] != split:
            continue
        if hidden and name.endswith(".lock"):
            with suppress(OccupiedError), hold_lock(output.folder, name.removeprefix(".").removesuffix(".lock"), "writing this shard"):
                pass  # no process holds it, and taking it has removed it
        elif hidden or int(match[2]) >= shards:
            output.remove(name)


def _run(output: Output, tasks: Sequence[ShardTask], *, workers: int, cluster: Cluster | None, quiet: bool) -> tuple[int, FileWarnings]:
    """Run the tasks; returns how many shards were kept, and the warnings about images.

    Raises:
        InputError: More images were rejected than the config allows.
    """
    kept, warnings = 0, FileWarnings()
    if not tasks:
        return kept, warnings
    reasons: Counter[str] = Counter()
    total = sum(len(task.records) for task in tasks)
    allowed = math.floor(tasks[0].config.max_rejects * total)
    with (
        closing(run_tasks(write_shard, [(task,) for task in tasks], workers=workers, cluster=cluster)) as results,
        Progress(f"Sharding {tasks[0].split}", total=total, unit="images", quiet=quiet) as progress,
    ):
        for task, result in zip(tasks, results, strict=True):
            kept += result.kept
            warnings = warnings.join(result.warnings)
            reasons.update(result.rejects)
            progress.advance(len(task.records), note=f"{reasons.total()} rejects")
            if reasons.total() > allowed:
                break
    if reasons.total() > allowed:
        _report_rejects_so_far(output, tasks)
        raise InputError(
            f"{output.folder}: stopped: {reasons.total()} of {total} images were rejected ({_counts(reasons)}), and `max_rejects` allows {allowed}. "
            f"Each has a line in {output.folder / REJECTS_FILE}. Check `images`, or increase `max_rejects`. Finished shards are kept."
        )
    return kept, warnings


def _report_rejects_so_far(output: Output, tasks: Sequence[ShardTask]) -> None:
    """Write ``rejects.jsonl`` with the rejects of the shards that are finished."""
    out, split = output.folder, tasks[0].split
    sidecars = [sidecar_path(shard_path(out, split, task.index)) for task in tasks]
    output.fetch([DATASET_FILE, *(sidecar.name for sidecar in sidecars)])
    with hold_lock(out, "dataset", f"finishing a split of {out.name}"):
        write_all_rejects(output, split, [read_sidecar(sidecar) for sidecar in sidecars if sidecar.is_file()])


def _counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))


def _sidecars(output: Output, split: str, tasks: Sequence[ShardTask]) -> list[Sidecar]:
    """The sidecars of all tasks.

    Raises:
        ResourceError: A machine of a cluster wrote them to another place.
    """
    paths = [sidecar_path(shard_path(output.folder, split, task.index)) for task in tasks]
    output.fetch(path.name for path in paths)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise ResourceError(
            f"{output.folder}: {len(missing)} of {len(paths)} shards were written, but are not here ({missing[0]}). On a cluster `out` must be a "
            "folder that all machines share under this path, or a place in S3."
        )
    return [read_sidecar(path) for path in paths]
