"""``shard``: images and captions to WebDataset shards."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.captions.formats import format_names
from pipeline.console.caption_options import CaptionOptions, captions_options, language_option
from pipeline.console.command import command
from pipeline.console.errors import print_note
from pipeline.console.executor_options import NEXT_AFTER_ARRAY, ExecutorOptions, executor_options
from pipeline.console.options import FILTER, RESIZE_MODE, location, workers_option
from pipeline.execution.messages import print_next_step, print_rejects, print_result
from shards.paths import Location, shell_quoted

if TYPE_CHECKING:
    from pipeline.execution.array_tasks import ArrayTask
    from pipeline.sharding.splits import SplitSummary


@command(
    "shard",
    "python cli.py shard --images data/train2014 --captions data/captions_train2014.json --out data/shards --split train",
    "python cli.py shard --images photos --captions captions.csv --out data/shards --holdout val=0.1",
    "python cli.py shard --images data/Flickr8k --captions dataset_flickr8k.json --out data/shards",
    "python cli.py shard --captions 'data/train-*.parquet' --out data/shards",
    "python cli.py shard --images https://host/train2014 --captions captions_train2014.json --out s3://bucket/shards --executor ray",
)
@click.option(
    "--images",
    type=location,
    metavar="PATH|URL",
    default=None,
    show_default="the images in Parquet or Arrow captions",
    help="Folder or URL that the file names in the captions are relative to. Not needed if the captions are tables that hold the images.",
)
@captions_options(f"Captions in one of the formats {format_names()}. Repeat the option to merge several.", several=True)
@language_option
@click.option(
    "--out", type=location, metavar="PATH|URL", required=True, help="Folder of the shard dataset, or s3://bucket/path. Another --split adds to it."
)
@click.option("--size", type=int, default=256, help="Side of the resized images in pixels.")
@click.option(
    "--resize",
    "mode",
    type=RESIZE_MODE,
    default="squash",
    help="squash: to a square; shortest: shorter side to SIZE; pad: longer side to SIZE, padded to a square; "
    "none: keep the size, but enlarge images whose shorter side is below SIZE.",
)
@click.option("--filter", "filter_", type=FILTER, default="lanczos", help="Resampling filter.")
@click.option("--min-side", type=int, default=8, help="Reject images whose shorter side has fewer pixels.")
@click.option("--max-aspect", type=float, default=20.0, help="Reject images whose longer side is more than this many times the shorter one.")
@click.option("--quality", type=int, default=95, help="JPEG quality of the stored images.")
@workers_option
@click.option("--shard-size", type=int, default=1000, help="Images per shard.")
@click.option("--limit", type=int, default=None, show_default="all", help="Use only the first N images.")
@click.option("--max-rejects", type=float, default=1.0, help="Stop when more than this fraction of the images has been rejected.")
@click.option("--check-sources", is_flag=True, help="Compare source images with existing shards by content, instead of by name and size.")
@click.option("--retry-rejected", is_flag=True, help="Recreate shards that have rejected images.")
@executor_options
def shard(
    images: Location | None,
    captions: CaptionOptions,
    split: str | None,
    language: str,
    out: Location,
    size: int,
    mode: str,
    filter_: str,
    min_side: int,
    max_aspect: float,
    quality: int,
    workers: int,
    shard_size: int,
    limit: int | None,
    max_rejects: float,
    check_sources: bool,
    retry_rejected: bool,
    executor: ExecutorOptions,
) -> None:
    """Write images and captions to WebDataset shards.

    Images are resized and captions are tokenized. Running it again keeps complete shards and creates the rest.
    """
    from pipeline.execution.executors import preload_workers

    opening = executor.cluster(workers)
    if workers > 1 and executor.is_local:  # before this process's own slow imports, so that both run in parallel
        preload_workers("pipeline.sharding.shard", *(["nltk.tokenize"] if language == "en" else []))
    from pipeline.images.decode import Resize, ShapeLimits
    from pipeline.sharding.config import ShardConfig
    from pipeline.sharding.shard import write_splits

    array_task = executor.array_task()
    config = ShardConfig(
        resize=Resize(size=size, mode=mode, filter=filter_),
        shape=ShapeLimits(min_side=min_side, max_aspect=max_aspect),
        quality=quality,
        language=language,
        shard_size=shard_size,
        limit=limit,
        max_rejects=max_rejects,
        check_sources=check_sources,
        retry_rejected=retry_rejected,
    )
    with opening as cluster:
        done = write_splits(
            images=images,
            captions=captions.source(),
            out=out,
            split=split,
            config=config,
            workers=workers,
            cluster=cluster,
            array_task=array_task,
            report=print_note,
            quiet=False,
        )
    _print_splits(out, done, array_task)


def _print_splits(out: Location, done: "dict[str, SplitSummary]", array_task: "ArrayTask | None") -> None:
    from shards.dataset import read_dataset_file
    from shards.layout import REJECTS_FILE

    rejects_file = out / REJECTS_FILE if isinstance(out, Path) else f"{out.rstrip('/')}/{REJECTS_FILE}"
    for name, summary in done.items():
        kept = " (all complete already, nothing written)" if summary.kept == summary.shards else f" ({summary.kept} complete already)"
        what = f"split {name}" if array_task is None else f"split {name}, {array_task}"
        counts = f"{summary.images} images with {summary.captions} captions in {summary.shards} shards"
        print_result(f"{out}: {what}: {counts}{kept if summary.kept else ''}.")
        print_rejects(summary.rejects, rejects_file if summary.committed else None)
        summary.warnings.print()
    if array_task is not None:
        print_next_step(f"python cli.py shard {NEXT_AFTER_ARRAY}; it commits the splits")
        return
    if isinstance(out, Path) and "val" not in read_dataset_file(out).splits:
        print_note(
            "There is no split val, on which train validates and evaluate scores. Add one with `split` val, or take it from these images with "
            "`holdout` val=0.1 and another `out`."
        )
    vocabulary, features = (out.parent / "vocab.json", f"{out}-features") if isinstance(out, Path) else ("data/vocab.json", "data/features")
    shards = shell_quoted(out)
    cache = f"python cli.py cache-features --shards {shards} --out {shell_quoted(features)}"
    print_next_step(f"python cli.py vocab --shards {shards} --out {shell_quoted(vocabulary)}, or {cache}")
