"""``import-features``: make feature files from existing arrays."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.console.caption_options import CaptionOptions, captions_options, language_option
from pipeline.console.command import command
from pipeline.console.errors import print_note
from pipeline.console.options import FILTER, PATH, RESIZE_MODE
from pipeline.execution.messages import print_next_step, print_rejects, print_result
from shards.paths import shell_quoted

if TYPE_CHECKING:
    from pipeline.features.import_features import ImportSummary


@command(
    "import-features",
    "python cli.py import-features --npy features.npy --captions dataset_flickr8k.json --out data/flickr8k",
    "python cli.py import-features --npy features.npy --captions dataset_flickr8k.json --out data/flickr8k --backbone resnet152 \\",
    "    --weights IMAGENET1K_V1 --size 256 --resize shortest --filter bilinear",
)
@click.option("--npy", type=PATH, required=True, help="Array whose row i belongs to the image with imgid i, or folder of one .npy or .npz per image.")
@captions_options("Captions in any format that shard accepts, for example a Karpathy split file such as dataset_coco.json.")
@language_option
@click.option("--out", type=PATH, required=True, help="Folder for the feature files SPLIT.h5.")
@click.option(
    "--backbone",
    default=None,
    show_default="unknown",
    help="Network that computed the features, as for cache-features. Without it, a run trained on them cannot caption images.",
)
@click.option(
    "--weights",
    default=None,
    show_default="unknown",
    help="With --backbone: name of its published weights, or a .pth or .safetensors file.",
)
@click.option("--size", type=int, default=None, show_default="the network's crop size", help="With --backbone: size that the images were resized to.")
@click.option(
    "--resize",
    "mode",
    type=RESIZE_MODE,
    default=None,
    show_default="squash",
    help="With --backbone: how the images were resized, as for shard.",
)
@click.option(
    "--filter",
    "filter_",
    type=FILTER,
    default=None,
    show_default="lanczos",
    help="With --backbone: resampling filter that the images were resized with.",
)
def import_features(
    npy: Path,
    captions: CaptionOptions,
    split: str | None,
    language: str,
    out: Path,
    backbone: str | None,
    weights: str | None,
    size: int | None,
    mode: str | None,
    filter_: str | None,
) -> None:
    """Make feature files from existing arrays and captions."""
    from pipeline.features.import_features import declared_network, import_features

    summary = import_features(
        npy=npy,
        captions=captions.source(),
        out=out,
        split=split,
        language=language,
        declared=declared_network(backbone=backbone, weights=weights, size=size, mode=mode, filter=filter_),
        report=print_note,
        quiet=False,
    )
    _print_summary(npy, out, summary)


def _print_summary(npy: Path, out: Path, summary: "ImportSummary") -> None:
    from shards.layout import REJECTS_FILE

    print_rejects(summary.rejects, out / REJECTS_FILE)
    if summary.zeros:
        print_note(f"{npy}: the features of {summary.zeros} images are all zeros. Check that they were computed.")
    known = summary.network.preprocessing is not None
    if not known:
        print_note("The network is unknown (no --backbone and --weights): a run trained on these features cannot caption images.")
    positions = f"up to {summary.positions} positions with " if summary.positions > 1 else ""
    for made in summary.splits:
        how = "complete already" if made.kept else f"imported, {summary.network.backbone}" if known else "imported"
        print_result(f"{made.path}: {made.images} images with {made.captions} captions, {positions}{summary.dim} features each ({how}).")
    print_next_step(f"python cli.py train --features {shell_quoted(out)} --out runs/first")
