"""``cache-features``: compute and store the features of all images."""

from typing import TYPE_CHECKING

import click

from pipeline.console.command import command
from pipeline.console.errors import print_note
from pipeline.console.executor_options import NEXT_AFTER_ARRAY, ExecutorOptions, executor_options
from pipeline.console.options import location
from pipeline.console.shard_options import ShardCache, shards_options
from pipeline.execution.messages import print_next_step, print_result
from shards.paths import Location, shell_quoted

if TYPE_CHECKING:
    from pipeline.features.cache_features import CacheSummary
    from shards.errors import OnError


@command(
    "cache-features",
    "python cli.py cache-features --shards data/shards --out data/features --backbone resnet152",
    "python cli.py cache-features --shards data/shards --out data/grid --features grid:7",
    "python cli.py cache-features --shards data/shards --out data/timm --backbone timm:resnet50.a1_in1k --split train --views random:4",
)
@shards_options("Folder or URL of a shard dataset.", required=True)
@click.option("--out", type=location, metavar="PATH|URL", required=True, help="Folder for the feature files SPLIT.h5, or s3://bucket/path.")
@click.option("--split", "splits", multiple=True, show_default="all", help="Split to process. Repeat the option for several splits.")
@click.option("--backbone", default="resnet152", help="Name of a torchvision classification network, or timm:NAME. See the backbones command.")
@click.option(
    "--weights",
    default=None,
    show_default="IMAGENET1K_V1, or else the network's first published weights",
    help="Name of published weights, random, or a .pth or .safetensors file.",
)
@click.option(
    "--features",
    "layout",
    metavar="pooled|grid[:N]",
    default="pooled",
    help="pooled: one vector per image. grid: one for each position of the network's last feature map, or patch; grid:N: averaged to N x N.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Precision of the backbone. auto: the fastest that the device supports well and that agrees with fp32.",
)
@click.option("--views", default="center", help="Crops of each image to store: center, flip, ten-crop or random:K. Training picks one at random.")
@click.option("--batch-size", type=int, default=None, show_default="32 on a CPU, 256 on a GPU", help="Views per forward pass.")
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip"]),
    default="fail",
    help="What to do about damaged samples. Skipped samples are counted and listed.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=None,
    show_default="1 on a CPU; on GPUs, the number of cores divided among them",
    help="Decoding processes per device.",
)
@click.option("--device", default="auto", help="auto (all GPUs, or else the CPU), cpu, cuda:0, cuda:0,cuda:1 ... One process per device.")
@executor_options
def cache_features(
    shards: Location,
    shard_cache: ShardCache,
    out: Location,
    splits: tuple[str, ...],
    backbone: str,
    weights: str | None,
    layout: str,
    precision: str,
    views: str,
    batch_size: int | None,
    on_error: "OnError",
    workers: int | None,
    device: str,
    executor: ExecutorOptions,
) -> None:
    """Compute and store image features. Every image passes through the frozen backbone once.

    Decoders that look at the parts of an image need --features grid (train --decoder attention or transformer).
    """
    from pipeline.execution.executors import preload_workers

    opening = executor.cluster(workers)
    if executor.is_local:  # before the slow import of torch, so that both run in parallel
        preload_workers("pipeline.features.pixel_batches")
    from pipeline.features.cache_features import CacheConfig, cache_features

    array_task = executor.array_task()
    local = shard_cache.local(shards)
    with opening as cluster:
        summaries = cache_features(
            shards=local,
            out=out,
            config=CacheConfig(
                splits=splits,
                backbone=backbone,
                weights=weights,
                layout=layout,
                precision=precision,
                views=views,
                batch_size=batch_size,
                device=device,
                workers=workers if cluster is None else None,
                on_error=on_error,
            ),
            cluster=cluster,
            array_task=array_task,
            report=print_note,
            quiet=False,
        )
    for summary in summaries:
        for line in summary.notes:
            print_note(line)
        print_result(_describe(summary))
    if not all(summary.committed for summary in summaries):
        print_next_step(f"python cli.py cache-features {NEXT_AFTER_ARRAY}; it joins the parts")
        return
    decoder = " --decoder attention" if layout != "pooled" else ""
    print_next_step(f"python cli.py train --features {shell_quoted(out)}{decoder} --out runs/first")


def _describe(summary: "CacheSummary") -> str:
    how = "complete already" if summary.kept else f"{summary.images_per_second:,.1f} images/s"
    views = f"{summary.views} views of " if summary.views > 1 else ""
    positions = f"{summary.positions} positions with " if summary.positions > 1 else ""
    path = summary.path if summary.committed else f"{summary.path}: parts of this array task"
    return f"{path}: {summary.images} images, {views}{positions}{summary.dim} features each, {summary.precision} ({how})."
