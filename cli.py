"""Capstream's command line: each command parses, calls one function of ``pipeline/``, prints, and says what to run next.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

import io
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.console.errors import INTERRUPTED, note, reported
from pipeline.console.options import (
    FILTER,
    RESIZE_MODE,
    Folder,
    caption_source,
    captions_options,
    checkpoint_option,
    chosen_cluster,
    chosen_columns,
    chosen_decoding,
    columns_option,
    decoding_options,
    device_option,
    executor_option,
    local_shards,
    place,
    shard_cache_options,
    shards_options,
    training_options,
    typed,
    workers_option,
)
from pipeline.console.settings import PREFIX, SettableCommand, read_defaults
from pipeline.execution.messages import Telling, log_line, next_step, say, show_rejects, tell_as
from shards.paths import Location

if TYPE_CHECKING:
    from pipeline.evaluation.score_file import ScoreFile
    from pipeline.evaluation.scoring import Ptb
    from pipeline.features.cache_features import CacheSummary
    from pipeline.inspection.verify import FeatureReport, SplitReport
    from pipeline.runs.checkpoints import CheckpointChoice
    from shards.errors import OnError

# Captioning fewer photographs than this shows no progress.
QUIET_BELOW = 100
LARGE_PAGE = 300_000_000


class FlowGroup(click.Group):
    """Lists the commands in the order in which data flows through them, and does what the options before a command say."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        tell_as(quiet=ctx.params["quiet"], as_json=ctx.params["log_json"])
        try:
            if ctx.params["config"] is not None:
                ctx.default_map = read_defaults(ctx.params["config"], self.commands)
            return super().invoke(ctx)
        except click.ClickException as error:
            if not Telling.as_json:
                raise
            log_line("error", error.format_message(), exit_code=error.exit_code)
            ctx.exit(error.exit_code)


def speaks() -> bool:
    """Whether this process reports: of those that torchrun has started, only the first does."""
    return os.environ.get("RANK", "0") == "0"


def example(*lines: str) -> str:
    """The end of a command's help: what to type."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)


def command(name: str, *examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """A command whose failures are reported and whose help ends with an example."""

    def make(function: Callable[..., None]) -> click.Command:
        return cli.command(name, cls=SettableCommand, epilog=example(*examples))(reported(function))

    return make


@click.group(cls=FlowGroup, context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110})
@click.version_option("0.1.0", prog_name="capstream")
@click.option(
    "--config",
    type=Folder,
    envvar=f"{PREFIX}_CONFIG",
    help="A TOML file of options, with a table for each command: docs/settings.md.",
)
@click.option("--quiet", is_flag=True, envvar=f"{PREFIX}_QUIET", help="No progress, and no last line that says what to run next.")
@click.option("--log-json", is_flag=True, envvar=f"{PREFIX}_LOG_JSON", help="On standard error a JSON object per line: messages, progress, results.")
def cli(**_: object) -> None:
    """Capstream: photographs and captions in, a captioning model out. The commands, in the order data flows.

    Each of their options may stand in the environment too (CAPSTREAM_TRAIN_BATCH_SIZE), or in a file (--config).
    """
    # A file's name need not be text in any encoding
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


@command(
    "download",
    "python cli.py download coco2014",
    "python cli.py download coco2017 --parts annotations,val",
    "python cli.py download coco2014 --base-url https://mirror.example.org/coco",
)
@click.argument("dataset", type=click.Choice(["coco2014", "coco2017", "flickr8k", "karpathy-splits"]))
@click.option("--root", type=Folder, default=Path("data"), help="Folder for the archives and for what is in them.")
@click.option("--parts", default=None, show_default="all", help="Some of the dataset's parts, with commas between them: annotations,train,val.")
@click.option("--base-url", default=None, show_default="the publisher's", help="A mirror's address, with the same folders below it.")
def download(dataset: str, root: Path, parts: str | None, base_url: str | None) -> None:
    """Fetch DATASET's archives from where they are published, check and unpack them. Run again, it goes on where it stopped."""
    from pipeline.datasets.download import download

    chosen = [part.strip() for part in parts.split(",")] if parts is not None else []
    summary = download(dataset, root=root, parts=chosen, base_url=base_url, quiet=False)
    for archive in summary.archives:
        how = f"{archive.written:,} of them written now" if archive.written else "all were there already"
        say(f"{archive.name}: {archive.files:,} files, {archive.bytes / 1e6:,.1f} MB, whole in {archive.into} ({how}).")
    left = [archive.archive for archive in summary.archives if archive.archive is not None]
    if left:
        size = sum(path.stat().st_size for path in left) / 1e6
        say(f"Archives that are no longer needed ({size:,.1f} MB): {' '.join(shlex.quote(str(path)) for path in left)}")
    next_step(f"python cli.py {summary.next_step}")


@command("synth", "python cli.py synth data/synth --images 3000")
@click.argument("out", type=Folder)
@click.option("--images", type=int, default=3000, help="How many scenes to draw; every tenth is for validation.")
@click.option("--seed", type=int, default=0, help="The same seed draws the same files.")
@workers_option
def synth(out: Path, images: int, seed: int, workers: int) -> None:
    """Draw the built-in dataset into OUT: scenes with five true captions each, in COCO's own format."""
    from pipeline.datasets.synthetic import synthesize

    counts = synthesize(out, images=images, seed=seed, workers=workers, quiet=False)
    say(f"Drew {counts['train']} training and {counts['val']} validation images into {out}.")
    next_step(f"python cli.py shard --images {out}/images --captions {out}/captions_train.json --out {out}-shards --split train")


@command(
    "shard",
    "python cli.py shard --images data/train2014 --captions data/captions_train2014.json --out data/shards --split train",
    "python cli.py shard --images data/Flickr8k --captions dataset_flickr8k.json --out data/shards",
    "python cli.py shard --images https://host/train2014 --captions captions_train2014.json --out s3://bucket/shards --executor ray",
)
@click.option("--images", type=place, metavar="PATH|URL", required=True, help="Folder that the annotation's file names are relative to, or its URL.")
@captions_options("Captions in any form: COCO, Karpathy, Flickr, CSV, JSON lines, Parquet, a folder; several come together.", several=True)
@click.option("--out", type=place, metavar="PATH|URL", required=True, help="The dataset's folder, or s3://bucket/path; another --split adds to it.")
@click.option("--size", type=int, default=256, help="Side of the resized images, in pixels.")
@click.option(
    "--resize",
    "mode",
    type=RESIZE_MODE,
    default="squash",
    help="squash to a square; shortest: the shorter side becomes SIZE; pad: the longer side, in a grey square; none: stay, at least SIZE.",
)
@click.option("--filter", "filter_", type=FILTER, default="lanczos", help="Resampling filter.")
@click.option("--quality", type=int, default=95, help="JPEG quality of the stored images.")
@workers_option
@click.option("--shard-size", type=int, default=1000, help="Images per shard.")
@click.option("--limit", type=int, default=None, help="Take the first N images only.")
@click.option("--max-rejects", type=float, default=1.0, help="Stop as soon as more than this share of the images had to be left out.")
@click.option("--check-sources", is_flag=True, help="Compare photographs by their bytes with what the shards hold, not by name and size.")
@click.option("--retry-rejected", is_flag=True, help="Make shards with rejected photographs again.")
@executor_option
def shard(
    images: Location,
    captions: tuple[Path, ...],
    split: str | None,
    split_lists: tuple[str, ...],
    columns: tuple[str, ...],
    no_restval: bool,
    out: Location,
    size: int,
    mode: str,
    filter_: str,
    quality: int,
    workers: int,
    shard_size: int,
    limit: int | None,
    max_rejects: float,
    check_sources: bool,
    retry_rejected: bool,
    executor: str,
    ray_address: str | None,
    task_id: int | None,
    num_tasks: int | None,
) -> None:
    """Resize images and tokenize captions into WebDataset tars. Run again, it keeps what is whole and makes only the rest."""
    from pipeline.execution.executors import warm_up

    opening = chosen_cluster(executor, ray_address, workers, task_id)
    if workers > 1 and executor == "local":  # before the slow imports of this process: both go on side by side
        warm_up("pipeline.sharding.shard", "nltk.tokenize")
    from pipeline.execution.array_tasks import pick_array_task
    from pipeline.images.decode import Resize
    from pipeline.sharding.shard import ShardConfig, write_splits
    from shards.manifest import REJECTS_FILE

    array_task = pick_array_task(task_id, num_tasks)
    config = ShardConfig(resize=Resize(size=size, mode=mode, filter=filter_), quality=quality)
    with opening as cluster:
        done = write_splits(
            images=images,
            captions=caption_source(captions, split_lists, columns, no_restval),
            out=out,
            split=split,
            config=config,
            shard_size=shard_size,
            limit=limit,
            max_rejects=max_rejects,
            check_sources=check_sources,
            retry_rejected=retry_rejected,
            workers=workers,
            cluster=cluster,
            array_task=array_task,
            quiet=False,
        )
    for name, summary in done.items():
        kept = f"{summary.kept} were there already"
        kept = "all were there already and are whole: nothing was written" if summary.kept == summary.shards else kept
        whose = f"split {name} holds" if array_task is None else f"{array_task} of split {name} comes to"
        say(f"{out}: {whose} {summary.images} images with {summary.captions} captions in {summary.shards} shards ({kept}).")
        show_rejects(summary.rejects, below(out, REJECTS_FILE) if summary.committed else None)
    if array_task is not None:
        next_step("python cli.py shard with the same options, but without --task-id and --num-tasks, once all tasks are done: it commits the splits")
        return
    vocabulary, features = (out.parent / "vocab.json", f"{out}-features") if isinstance(out, Path) else ("data/vocab.json", "data/features")
    next_step(f"python cli.py vocab --shards {out} --out {vocabulary}, or python cli.py cache-features --shards {out} --out {features}")


def below(folder: Location, name: str) -> Location:
    """A file in a folder, or in one at a URL."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


@command(
    "index",
    "python cli.py index data/cc3m --size 256 --resize shortest",
    "python cli.py index data/cc3m --size 256 --resize shortest --split val --tars '0033*.tar'",
)
@click.argument("folder", type=Folder)
@click.option("--split", default="train", help="Name of the split that the tars become.")
@click.option(
    "--tars", multiple=True, metavar="PATTERN", help="Which of the folder's tars; may be given several times. [default: all in no other split]"
)
@click.option("--size", type=int, default=256, help="The size that the images were given: img2dataset's --image_size.")
@click.option(
    "--resize",
    "mode",
    type=RESIZE_MODE,
    required=True,
    help="How: shortest for img2dataset's keep_ratio and center_crop, pad for border, none for no (at least SIZE) and keep_ratio_largest.",
)
@workers_option
def index(folder: Path, split: str, tars: tuple[str, ...], size: int, mode: str, workers: int) -> None:
    """Make the tars of img2dataset in FOLDER usable as --shards: writes sidecars beside them, and leaves the tars as they are."""
    from pipeline.images.decode import Resize
    from pipeline.sharding.index import index_tars
    from shards.manifest import REJECTS_FILE

    summary = index_tars(folder, split=split, tars=tars, resize=Resize(size=size, mode=mode), workers=workers, quiet=False)
    kept = f"{summary.kept} were indexed already"
    say(f"{folder}: split {split} holds {summary.images} images with {summary.captions} captions in {summary.shards} tars ({kept}).")
    show_rejects(summary.rejects, folder / REJECTS_FILE)
    next_step(f"python cli.py verify {folder} --deep, or python cli.py cache-features --shards {folder} --out {folder}-features")


@command("verify", "python cli.py verify data/shards --deep", "python cli.py verify data/features")
@click.argument("path", type=Folder)
@click.option("--deep", is_flag=True, help="Of shards: decode every image too.")
@workers_option
def verify(path: Path, deep: bool, workers: int) -> None:
    """Check a shard dataset, a feature file or a folder of feature files to the byte."""
    from pipeline.inspection.verify import feature_files, verify, verify_features

    if files := feature_files(path):
        report_features([verify_features(file) for file in files])
        next_step(f"python cli.py train --features {files[0].parent} --out runs/first")
        return
    report_shards(path, verify(path, deep=deep, workers=workers, quiet=False))
    say("Everything is whole" + (", and every image decodes." if deep else "."))
    next_step(f"python cli.py cache-features --shards {path} --out {path}-features")


def report_features(reports: "list[FeatureReport]") -> None:
    """A line for each feature file; an error that names the damaged ones."""
    for report in reports:
        what = f"{report.images:,} images, {report.captions:,} captions, {report.views} view(s) of {report.dim} features ({report.network})"
        say(f"{report.path}: whole: {what}") if report.problem is None else note(report.problem)
    bad = [str(report.path) for report in reports if report.problem is not None]
    if bad:
        raise click.ClickException(f"{', '.join(bad)}: damaged or missing; the lines above say what to do.")


def report_shards(folder: Path, reports: "list[SplitReport]") -> None:
    """A table of the splits; a line for each problem, and an error that says what to do."""
    say(f"{'split':<16}{'shards':>8}{'images':>10}{'captions':>10}{'MB':>10}{'damaged':>9}")
    for report in reports:
        images, captions, size = (sum(getattr(shard, name) for shard in report.shards) for name in ("images", "captions", "bytes"))
        say(f"{report.name:<16}{len(report.shards):>8}{images:>10,}{captions:>10,}{size / 1e6:>10,.1f}{len(report.damaged):>9}")
    for report in reports:
        for problem in report.problems:
            note(f"{folder}: split {report.name}: {problem}")
        for shard in report.damaged:
            more = f" (and {len(shard.problems) - 1} more)" if len(shard.problems) > 1 else ""
            first = shard.problems[0]
            note((first if first.startswith(str(shard.tar)) else f"{shard.tar}: {first}") + more)
    bad = [report.name for report in reports if not report.whole]
    if bad:
        raise click.ClickException(
            f"{folder}: damaged (split {', '.join(bad)}). Run the shard command of that split again (index, for tars made "
            f"elsewhere), with the options of the first time and --out {folder}: it keeps what is whole and makes only the rest anew."
        )


@command("stats", "python cli.py stats data/shards", "python cli.py stats data/features/train.h5 --plot train.png")
@click.argument("place", type=place, metavar="PATH|URL")
@shard_cache_options
@click.option("--plot", type=Folder, default=None, help="Draw it into this picture too (.png, .jpg, .pdf, .svg).")
@click.option("--json", "as_json", is_flag=True, help="As one JSON document.")
def stats(place: Location, shard_cache: Path, shard_cache_gb: float, plot: Path | None, as_json: bool) -> None:
    """Say what is in a shard dataset, a feature file or a folder of feature files: counts, lengths, words, sizes, what was left out."""
    from pipeline.inspection.stats import as_json as document
    from pipeline.inspection.stats import stats
    from pipeline.inspection.verify import feature_files

    found = stats(local_shards(place, shard_cache, shard_cache_gb), plot=plot, quiet=False)
    if as_json:
        click.echo(document(place, found))
    else:
        for split in found:
            for line in split.lines():
                say(line)
    if plot is not None:
        note(f"Wrote {plot}.")
    if isinstance(place, Path) and (files := feature_files(place)):
        next_step(f"python cli.py train --features {files[0].parent} --out runs/first", err=as_json)
    else:
        next_step(f"python cli.py vocab --shards {place} --min-count 4 --out data/vocab.json", err=as_json)


@command("vocab", "python cli.py vocab --shards data/shards --min-count 4 --out data/vocab.json")
@shards_options("A shard dataset: a folder or a URL.", required=True)
@click.option("--split", default="train", help="Whose captions to count.")
@click.option("--min-count", type=int, default=4, help="Keep words that occur at least this often.")
@click.option("--out", type=Folder, required=True, help="The vocabulary file (JSON).")
def vocab(shards: Location, shard_cache: Path, shard_cache_gb: float, split: str, min_count: int, out: Path) -> None:
    """Count the captions' words and number those that occur often enough."""
    from pipeline.captions.vocabulary import make_vocabulary

    summary = make_vocabulary(shards=local_shards(shards, shard_cache, shard_cache_gb), split=split, min_count=min_count, out=out)
    size = len(summary.vocabulary)
    say(f"{out}: {size} words (4 of them special) of {summary.distinct} distinct ones; they cover {100 * summary.coverage:.2f}% of all tokens.")
    features = f"{shards}-features" if isinstance(shards, Path) else "data/features"
    next_step(f"python cli.py cache-features --shards {shards} --out {features}, then train with --vocab {out}")


@command("backbones", "python cli.py backbones resnet")
@click.argument("pattern", default="")
def backbones(pattern: str) -> None:
    """List the networks that --backbone takes, or those with PATTERN in their name."""
    from pipeline.backbone.backbones import list_backbones

    listed = list_backbones(pattern)
    say(f"{'network':<22}{'features':>9}{'parameters':>13}  published weights")
    for name, dim, parameters, weights in listed:
        say(f"{name:<22}{dim:>9,}{parameters / 1e6:>11,.1f} M  {', '.join(weights)}")
    next_step("python cli.py cache-features --shards data/shards --out data/features --backbone resnet152")


@command(
    "cache-features",
    "python cli.py cache-features --shards data/shards --out data/features --backbone resnet152",
    "python cli.py cache-features --shards data/shards --out data/timm --backbone timm:resnet50.a1_in1k --split train --views random:4",
)
@shards_options("A shard dataset: a folder or a URL.", required=True)
@click.option("--out", type=place, metavar="PATH|URL", required=True, help="Folder for SPLIT.h5, or s3://bucket/path.")
@click.option("--split", "splits", multiple=True, help="Which split; may be given several times. [default: all]")
@click.option("--backbone", default="resnet152", help="torchvision's name of a classification network, or timm:NAME; see the backbones command.")
@click.option(
    "--weights",
    default=None,
    show_default="IMAGENET1K_V1, or the network's first ones",
    help="A published name, random, or the path of a .pth or .safetensors file.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="ComputedBackbone of the network; auto: the fastest that the device does well and that agrees with fp32.",
)
@click.option("--views", default="center", help="Crops to store of each image: center, flip, ten-crop or random:K. Training draws one of them.")
@click.option("--batch-size", type=int, default=None, show_default="32 on a CPU, 256 on a GPU", help="Views per forward pass.")
@click.option("--on-error", type=click.Choice(["fail", "skip"]), default="fail", help="At damaged samples; skipped ones are counted and named.")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=None,
    show_default="1 beside a CPU; beside GPUs all cores, shared out",
    help="Processes that decode, for each device.",
)
@click.option("--device", default="auto", help="auto (all GPUs, else the CPU), cpu, cuda:0, cuda:0,cuda:1 ...: one process each.")
@executor_option
def cache_features(
    shards: Location,
    shard_cache: Path,
    shard_cache_gb: float,
    out: Location,
    splits: tuple[str, ...],
    backbone: str,
    weights: str | None,
    precision: str,
    views: str,
    batch_size: int | None,
    on_error: "OnError",
    workers: int | None,
    device: str,
    executor: str,
    ray_address: str | None,
    task_id: int | None,
    num_tasks: int | None,
) -> None:
    """Put every image through the frozen network once and keep its pooled features."""
    from pipeline.execution.executors import warm_up

    opening = chosen_cluster(executor, ray_address, workers, task_id)
    if executor == "local":  # before torch's slow import: both go on side by side
        warm_up("pipeline.features.pixel_batches")
    from pipeline.execution.array_tasks import pick_array_task
    from pipeline.features.cache_features import CacheConfig, cache_features

    array_task = pick_array_task(task_id, num_tasks)
    local = local_shards(shards, shard_cache, shard_cache_gb)
    with opening as cluster:
        summaries = cache_features(
            shards=local,
            out=out,
            config=CacheConfig(
                splits=splits,
                backbone=backbone,
                weights=weights,
                precision=precision,
                views=views,
                batch_size=batch_size,
                device=device,
                workers=workers if cluster is None else None,
                on_error=on_error,
            ),
            cluster=cluster,
            array_task=array_task,
            report=note,
            quiet=False,
        )
    for summary in summaries:
        for line in summary.notes:
            note(line)
        say(describe_cache(summary))
    if not all(summary.committed for summary in summaries):
        next_step(
            "python cli.py cache-features with the same options, but without --task-id and --num-tasks, once all tasks are done: it joins their parts"
        )
        return
    next_step(f"python cli.py train --features {out} --out runs/first")


def describe_cache(summary: "CacheSummary") -> str:
    """One line for a split's feature file."""
    how = "was there already" if summary.kept else f"{summary.images_per_second:,.1f} images/s"
    views = f"{summary.views} views of " if summary.views > 1 else ""
    path = summary.path if summary.committed else f"{summary.path}: parts of this task"
    return f"{path}: {summary.images} images, {views}{summary.dim} features each, {summary.precision} ({how})."


@command(
    "import-features",
    "python cli.py import-features --npy features.npy --captions dataset_flickr8k.json --out data/flickr8k",
    "python cli.py import-features --npy features.npy --captions dataset_flickr8k.json --out data/flickr8k --backbone resnet152 \\",
    "    --weights IMAGENET1K_V1 --size 256 --resize shortest --filter bilinear",
)
@click.option(
    "--npy", type=Folder, required=True, help="A matrix whose row i is of the image with imgid i; or a folder with a .npy or .npz file per image."
)
@captions_options("Captions in any form, as for shard: a Karpathy split file, as dataset_coco.json, for example.")
@click.option("--out", type=Folder, required=True, help="Folder for SPLIT.h5.")
@click.option(
    "--backbone", default=None, help="The network that made the features, as for cache-features. Without it no photograph can be captioned."
)
@click.option("--weights", default=None, help="With --backbone: its weights, a published name or the path of a .pth or .safetensors file.")
@click.option("--size", type=int, default=None, show_default="the network's crop", help="With --backbone: size that the photographs were given.")
@click.option(
    "--resize",
    "mode",
    type=RESIZE_MODE,
    default=None,
    show_default="squash",
    help="With --backbone: how they were given it, as for shard.",
)
@click.option(
    "--filter",
    "filter_",
    type=FILTER,
    default=None,
    show_default="lanczos",
    help="With --backbone: by what resampling filter.",
)
def import_features(
    npy: Path,
    captions: Path,
    split: str | None,
    split_lists: tuple[str, ...],
    columns: tuple[str, ...],
    no_restval: bool,
    out: Path,
    backbone: str | None,
    weights: str | None,
    size: int | None,
    mode: str | None,
    filter_: str | None,
) -> None:
    """Make feature files from features that you have already, and their captions."""
    from pipeline.features.import_features import import_features
    from shards.manifest import REJECTS_FILE

    summary = import_features(
        npy=npy,
        captions=caption_source((captions,), split_lists, columns, no_restval),
        out=out,
        split=split,
        backbone=backbone,
        weights=weights,
        size=size,
        mode=mode,
        filter=filter_,
        quiet=False,
    )
    show_rejects(summary.rejects, out / REJECTS_FILE)
    if summary.zeros:
        note(f"{npy}: the features of {summary.zeros} images are all 0. Were they computed?")
    if summary.network.preprocessing is None:
        note("No network was declared (--backbone, --weights): a run trained on these features cannot caption photographs.")
    for made in summary.splits:
        how = "was there already" if made.kept else f"imported, {summary.network.backbone}" if summary.network.preprocessing else "imported"
        say(f"{made.path}: {made.images} images with {made.captions} captions, {summary.dim} features each ({how}).")
    next_step(f"python cli.py train --features {out} --out runs/first")


@command(
    "train",
    "python cli.py train --features data/features --out runs/first",
    "python cli.py train --shards data/shards --backbone resnet152 --out runs/raw",
    "python cli.py train --out runs/first --resume --epochs 8",
    "torchrun --nproc-per-node=2 cli.py train --features data/features --out runs/two --batch-size 256",
)
@click.option("--features", type=Folder, default=None, help="Cached features (train.h5, and val.h5 if there is one).")
@shards_options("Raw images from shards, a folder or a URL, through the frozen network at every step.")
@click.option("--out", type=Folder, required=True, help="The run's folder.")
@click.option("--vocab", type=Folder, default=None, help="A vocabulary file. [default: built from the training captions]")
@click.option("--config", "config_file", type=Folder, default=None, help="A TOML file of the options from --recipe on; given ones go over it.")
@click.option("--from", "start", type=Folder, default=None, help="A run whose best weights are those of the first step; sizes and vocabulary too.")
@click.option("--backbone", default=None, help="With --shards: the frozen network. [default: resnet152]")
@click.option("--weights", default=None, help="With --shards: as for cache-features. [default: IMAGENET1K_V1, or the network's first ones]")
@click.option("--resume", is_flag=True, help="Go on where the run stopped, or start it.")
@click.option("--workers", type=click.IntRange(1), default=None, show_default="all cores", help="With --shards: threads that decode images.")
@device_option
@training_options
def train(
    features: Path | None,
    shards: Location | None,
    shard_cache: Path,
    shard_cache_gb: float,
    out: Path,
    vocab: Path | None,
    config_file: Path | None,
    start: Path | None,
    backbone: str | None,
    weights: str | None,
    resume: bool,
    workers: int | None,
    device: str,
    **settings: Any,
) -> None:
    """Train the captioner, from cached features or from raw shards: the same loop, batches and log."""
    from pipeline.training.interruption import Interrupted
    from pipeline.training.train import train

    try:
        summary = train(
            out=out,
            features=features,
            shards=local_shards(shards, shard_cache, shard_cache_gb) if shards else None,
            vocab=vocab,
            backbone=backbone,
            weights=weights,
            settings=settings,
            config_file=config_file,
            start=start,
            resume=resume,
            workers=workers,
            device=device,
            quiet=False,
            shard_cache=shard_cache,
            shard_cache_bytes=int(shard_cache_gb * 1e9),
        )
    except Interrupted as interrupted:
        if speaks():
            note(f"{interrupted} Go on with: python cli.py train --out {out} --resume")
        sys.exit(INTERRUPTED)
    if not speaks():
        return
    for line in summary.notes:
        note(line)
    val = f", on val {summary.val_loss:.4f}" if summary.val_loss is not None else ""
    best = f"; the best captions of val came after step {summary.best.step}, CIDEr {summary.best.cider:.3f}" if summary.best is not None else ""
    loss = f"; loss {summary.loss:.4f}{val}{best}" if summary.loss is not None else "; there was nothing left to do"
    say(f"{out}: trained to step {summary.steps}{loss}.")
    flag = f"--features {features}" if features else f"--shards {shards}" if shards else "--features DIR"
    next_step(f"python cli.py evaluate --run {out} {flag} --split {'val' if val else 'train'}, or python cli.py caption --run {out} PHOTO.jpg")


@command("curves", "python cli.py curves runs/first runs/second --out curves.png")
@click.argument("runs", type=Folder, nargs=-1, required=True)
@click.option("--out", type=Folder, required=True, help="The picture to write (.png, .jpg, .pdf, .svg).")
def curves(runs: tuple[Path, ...], out: Path) -> None:
    """Draw the training curves of RUNS in one picture: loss, scores, learning rate and speed, over epochs."""
    from pipeline.reporting.curves import draw_curves

    for run in draw_curves(runs, out):
        last, lowest, highest = run.training[-1], run.best("val_loss", min), run.best("val_cider", max)
        val = f"; lowest val loss {lowest['val_loss']:.4f} after step {lowest['step']:,.0f}" if lowest is not None else ""
        scored = f"; highest val CIDEr {highest['val_cider']:.3f} after step {highest['step']:,.0f}" if highest is not None else ""
        say(f"{run.name}: step {last['step']:,.0f}, loss {last['mean_loss']:.4f}{val}{scored}")
    next_step(f"look at {out}, then caption a picture: python cli.py caption --run {runs[0]} PHOTO.jpg")


@command(
    "caption",
    "python cli.py caption --run runs/first holiday/*.jpg",
    "python cli.py caption --run runs/first dog.jpg --show --out dog.png",
    "python cli.py caption --run runs/first photographs/ https://example.org/cat.jpg --beam 5 --best 3 --json > captions.jsonl",
    "find /photographs -name '*.jpg' | python cli.py caption --run runs/first - > captions.txt",
)
@click.argument("images", nargs=-1, required=True)
@click.option("--run", "runs", type=Folder, required=True, multiple=True, help="A run that train has made; several caption together, as an ensemble.")
@decoding_options
@click.option("--best", type=click.IntRange(1), default=None, help="How many captions to give of each, with scores. [default: 1, or all --samples]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line and photograph: captions with scores, or the problem.")
@click.option("--show", is_flag=True, help="Show the pictures with their captions; with --out write them to a file instead.")
@click.option("--out", type=Folder, default=None, help="With --show: the picture to write (.png, .jpg, .pdf, .svg).")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", help="ComputedBackbone of the frozen network.")
@click.option("--weights", default=None, help="Where the backbone's weights are now, if they have moved since training.")
@checkpoint_option
@device_option
def caption(
    images: tuple[str, ...],
    runs: tuple[Path, ...],
    best: int | None,
    as_json: bool,
    show: bool,
    out: Path | None,
    precision: str,
    weights: str | None,
    checkpoint: "CheckpointChoice",
    device: str,
    **decoding_settings: Any,
) -> None:
    """Caption photographs: IMAGES are files, folders, patterns in quotes, URLs, or - for a list of these on standard input.

    Each line of output is a caption; with more than one photograph its name stands before it, with more than one caption its
    log-probability behind.
    """
    from pipeline.captioning.caption import caption_images, lines
    from pipeline.captioning.captioner import CaptionerConfig
    from pipeline.captioning.draw import MAX_SHOWN, check_can_draw, draw_captions
    from pipeline.captioning.inputs import named_images

    if out is not None and not show:
        raise click.UsageError("--out writes the picture that --show draws: give --show too.")
    decoding = chosen_decoding(decoding_settings)
    if best is not None and best > decoding.hypotheses:
        at_most = "one caption" if decoding.hypotheses == 1 else f"{decoding.hypotheses} captions"
        raise click.UsageError(f"--best {best}: {at_most} of each photograph will be found. Give --beam {best} or --samples {best}.")
    names = named_images(images, sys.stdin)
    if show:
        check_can_draw(out, names)
    count = best or decoding.samples or 1
    failed = 0
    shown: list[tuple[str, str]] = []
    run, *others = runs
    config = CaptionerConfig(run=run, ensemble=others, decoding=decoding, precision=precision, device=device, weights=weights, checkpoint=checkpoint)
    captioned = caption_images(config, names, quiet=len(names) < QUIET_BELOW, report=note)
    for photograph in captioned:
        if photograph.problem is not None:
            failed += 1
            note(f"No caption: {photograph.problem}")
        elif len(shown) < MAX_SHOWN:
            shown.append((photograph.name, photograph.captions[0].caption))
        for line in lines(photograph, count, named=len(names) > 1, as_json=as_json):
            click.echo(line)  # data, and no message
    if show and shown:
        draw_captions(shown, out)
        left_out = len(names) - failed - len(shown)
        if out is not None:
            note(f"Wrote {out}{f', without the last {left_out} photographs' if left_out else ''}.")
    if failed:
        raise click.ClickException(f"{failed} of {len(names)} photographs could not be captioned (named above). Check their paths and formats.")
    place, first, more = shlex.quote(str(run)), shlex.quote(images[0]), " ..." if len(images) > 1 else ""
    picture = f"python cli.py caption --run {place} --show --out captions.png {first}{more}"
    scores = f"python cli.py evaluate --run {place} --features DIR"
    next_step(scores if show or images == ("-",) else picture, err=True)


def typed_command() -> str:
    """The command line as it was typed, for the files that it makes."""
    return shlex.join(["python", "cli.py", *sys.argv[1:]])


@command(
    "evaluate",
    "python cli.py evaluate --run runs/first --features data/features",
    "python cli.py evaluate --run runs/first --features data/features --beam 5",
    "python cli.py evaluate --run runs/first --shards data/shards --split test --checkpoint best",
    "python cli.py evaluate --captions results.json --references captions_val2014.json",
)
@click.option("--run", "runs", type=Folder, multiple=True, help="A run that train has made; several caption together, as an ensemble.")
@click.option("--features", type=Folder, default=None, help="Cached features of the split.")
@shards_options("Raw images of the split: a folder or a URL of shards.")
@click.option("--split", default="val", help="Which split to caption and score.")
@decoding_options
@click.option("--captions", type=Folder, default=None, help="Instead of --run: captions in COCO's result format, whoever made them.")
@click.option("--references", type=Folder, default=None, help="With --captions: what to compare with, captions in any form that shard takes.")
@columns_option
@click.option("--out", type=Folder, default=None, help="The score file. [default: RUN/SPLIT.scores.json, or beside --captions]")
@click.option("--results", type=Folder, default=None, help="With --run: the captions in COCO's result format. [default: beside the score file]")
@click.option(
    "--ptb", type=click.Choice(["builtin", "java"]), default="builtin", help="The tokenizer: built in, or the Stanford one itself, which needs Java."
)
@click.option("--no-java", is_flag=True, help="Leave out METEOR and SPICE even where Java is there.")
@click.option("--weights", default=None, help="With --shards: where the backbone's weights are now, if they have moved since training.")
@click.option("--batch-size", type=int, default=128, help="Images per batch.")
@checkpoint_option
@device_option
def evaluate(
    runs: tuple[Path, ...],
    features: Path | None,
    shards: Location | None,
    shard_cache: Path,
    shard_cache_gb: float,
    split: str,
    captions: Path | None,
    references: Path | None,
    columns: tuple[str, ...],
    out: Path | None,
    results: Path | None,
    ptb: "Ptb",
    no_java: bool,
    weights: str | None,
    batch_size: int,
    checkpoint: "CheckpointChoice",
    device: str,
    **decoding_settings: Any,
) -> None:
    """Caption a split and score it, or score captions from a file: BLEU, ROUGE-L, CIDEr, and with Java METEOR and SPICE."""
    scoring: Any = {"out": out, "ptb": ptb, "java": not no_java, "command": typed_command(), "report": note}
    if captions is not None or references is not None:
        if captions is None or references is None:
            raise click.UsageError("Give --captions and --references together, or give --run.")
        of_runs = ("runs", "features", "shards", "shard_cache", "shard_cache_gb", "split", "results", "weights", "batch_size", "checkpoint", "device")
        if unused := typed(*of_runs, *decoding_settings):
            raise click.UsageError(f"With --captions and --references nothing is captioned: leave out {', '.join(unused)}.")
        from pipeline.evaluation.evaluate_results import score_results

        scored = score_results(captions=captions, references=references, columns=chosen_columns(columns), **scoring)
        show_scores(scored.scores)
        say(f"{scored.out}: scores of {len(scored.scores.images)} captions.")
        next_step(shlex.join(["python", "cli.py", "report", str(scored.out), "--out", str(scored.out.with_name("report.html"))]))
        return
    if columns:
        raise click.UsageError("--column is for --references.")
    if not runs:
        raise click.UsageError("Give --run with --features or --shards, or give --captions and --references.")
    if features is not None and typed("weights"):
        raise click.UsageError("--weights is for --shards: cached features need no network.")
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.evaluation.score_file import scores_path

    run, *others = runs
    result = evaluate(
        run=run,
        others=others,
        features=features,
        shards=local_shards(shards, shard_cache, shard_cache_gb) if shards else None,
        split=split,
        weights=weights,
        results=results,
        decoding=chosen_decoding(decoding_settings),
        batch_size=batch_size,
        checkpoint=checkpoint,
        device=device,
        quiet=False,
        **scoring,
    )
    show_scores(result.scores)
    say(f"{result.out}: scores of {len(result.scores.images)} captions; {result.results}: {len(result.captions)} captions for others to score.")
    in_its_place = result.out == scores_path(run, split)
    shown = ["report", str(run if in_its_place else result.out)]
    shown += ["--shards", str(shards)] if shards else []
    shown += ["--split", split] if split != "val" and (shards or in_its_place) else []
    next_step(shlex.join(["python", "cli.py", *shown, "--out", str(result.out.with_name("report.html"))]))


def show_scores(scores: "ScoreFile") -> None:
    """A table of scores with their intervals, then what could not be measured."""
    say(f"{'score':12}{'value':>9}   95% interval")
    for name, found in scores.scores.items():
        say(f"{name:12}{found.value:9.4f}   {found.low:.4f} to {found.high:.4f}")
    for line in scores.notes:
        note(line)


@command(
    "report",
    "python cli.py report runs/first --shards data/shards --out report.html",
    "python cli.py report runs/first runs/second --images data/val2014 --out report.html",
)
@click.argument("runs", type=Folder, nargs=-1, required=True)
@click.option("--out", type=Folder, required=True, help="The page to write (.html).")
@click.option("--split", default="val", help="Whose scores: those that evaluate has put into RUN/SPLIT.scores.json; and of which split of --shards.")
@click.option("--images", type=Folder, default=None, help="Pictures: the folder that the photographs' file names are relative to.")
@shards_options("Pictures: the shards of the split, a folder or a URL.")
def report(
    runs: tuple[Path, ...], out: Path, split: str, images: Path | None, shards: Location | None, shard_cache: Path, shard_cache_gb: float
) -> None:
    """Write one page that shows RUNS (folders, or score files): scores, curves, every image with its captions. It needs no network."""
    from pipeline.reporting.report import report

    place = local_shards(shards, shard_cache, shard_cache_gb) if shards else None
    made = report(runs=runs, out=out, split=split, shards=place, images=images, quiet=False)
    for line in made.notes:
        note(line)
    if made.pictures is None:
        say("The page shows captions without pictures: --shards DIR or --images DIR adds them.")
    else:
        lost = [f"{count:,} {what}" for count, what in ((made.missing, "not found"), (made.damaged, "damaged")) if count]
        say(f"Pictures: {made.pictures:,} of {made.images:,}{''.join(f', {one}' for one in lost)} ({made.images_per_second:,.0f} images/s).")
    say(f"{out}: {made.images:,} images, {len(made.runs)} {'run' if len(made.runs) == 1 else 'runs'}, {made.bytes / 1e6:,.1f} MB.")
    if made.bytes > LARGE_PAGE:
        note("A page of this size opens slowly, and in some browsers not at all: without pictures it is much smaller.")
    other = "" if len(made.runs) > 1 else f", then compare with another run: python cli.py report {runs[0]} OTHER_RUN --out {out}"
    next_step(f"open {out} in a browser{other}")


@command("demo", "python cli.py demo", "python cli.py demo --out runs/pretrained --weights IMAGENET1K_V1")
@click.option("--out", type=Folder, default=Path("runs/demo"), help="Folder for everything that the demo makes.")
@click.option("--images", type=int, default=None, help="How many scenes to draw. [default: what the demo was measured with]")
@click.option("--weights", default="random", help="random needs no network; IMAGENET1K_V1 takes pretrained ResNet-152.")
@workers_option
@device_option
def demo(out: Path, images: int | None, weights: str, workers: int, device: str) -> None:
    """The whole way on the built-in dataset: synth, shard, vocab, cache-features, train, evaluate, caption."""
    from pipeline.demo import demo

    result = demo(out=out, images=images, weights=weights, workers=workers, device=device, say=say)
    say(result.table())
    next_step(f"look at {result.picture}, then caption a picture: python cli.py caption --run {result.run} {result.example}")


@command("doctor", "python cli.py doctor", "python cli.py doctor --json > report.json")
@click.option("--root", type=Folder, default=Path("data"), help="Folder of data: datasets, shards, features.")
@click.option("--runs", type=Folder, default=Path("runs"), help="Folder of runs.")
@click.option("--json", "as_json", is_flag=True, help="As JSON, to go with a report of a problem.")
def doctor(root: Path, runs: Path, as_json: bool) -> None:
    """Say what is here to work with, and what to do about what is not: programs, device, disk, data. Exit code 0 in any case."""
    from pipeline.inspection.doctor import doctor

    diagnosis = doctor(root=root, runs=runs)
    if as_json:
        click.echo(json.dumps([vars(check) for check in diagnosis.checks], indent=1))
    else:
        for check in diagnosis.checks:
            say(f"{'ok' if check.ok else '--':4}{check.name:10}{check.found}")
            if not check.ok:
                say(f"{'':14}{check.advice}")
    next_step(f"python cli.py {diagnosis.next_step}", err=as_json)


if __name__ == "__main__":
    cli()
