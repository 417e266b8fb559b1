"""``index``: make existing tars usable as shards."""

from pathlib import Path

import click

from pipeline.console.caption_options import language_option
from pipeline.console.command import command
from pipeline.console.errors import print_note
from pipeline.console.options import PATH, RESIZE_MODE, workers_option
from pipeline.execution.messages import print_next_step, print_rejects, print_result
from shards.paths import shell_quoted


def _parse_fields(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:  # noqa: ARG001 - click's
    fields: dict[str, str] = {}
    for value in values:
        name, equals, ending = value.partition("=")
        if not equals or name not in ("image", "caption"):
            raise click.BadParameter(f"{value}: write image=EXT, caption=EXT or caption=EXT:PATH.")
        if name in fields:
            raise click.BadParameter(f"{name} is given twice.")
        fields[name] = ending
    return fields


@command(
    "index",
    "python cli.py index data/cc3m --size 256 --resize shortest",
    "python cli.py index data/cc3m --size 256 --resize shortest --split val --tars '0033*.tar'",
    "python cli.py index data/webdataset --size 256 --resize none --field image=input.jpg --field caption=json:text.en",
)
@click.argument("folder", type=PATH)
@click.option("--split", default="train", help="Name of the split that the tars form.")
@click.option(
    "--tars",
    multiple=True,
    metavar="PATTERN",
    show_default="all that belong to no other split",
    help="Glob pattern of the tars to index. Repeat the option for several patterns.",
)
@click.option("--size", type=int, default=256, help="Size that the images were resized to: img2dataset's --image_size.")
@click.option(
    "--resize",
    "mode",
    type=RESIZE_MODE,
    required=True,
    help="How the images were resized. Of img2dataset's modes, shortest is keep_ratio and center_crop, pad is border, "
    "none is no (if at least SIZE) and keep_ratio_largest.",
)
@language_option
@click.option(
    "--field",
    "fields",
    multiple=True,
    metavar="NAME=EXT[:PATH]",
    callback=_parse_fields,
    help="Which member of a sample is its image or its caption: image=input.jpg, caption=outputs.txt, or a value in a JSON member, "
    "caption=json:text.en. By default any image, and .txt or else caption in .json. Repeat the option for both.",
)
@workers_option
def index(folder: Path, split: str, tars: tuple[str, ...], size: int, mode: str, language: str, fields: dict[str, str], workers: int) -> None:
    """Make the WebDataset tars in FOLDER, such as those of img2dataset, usable as shards.

    Writes sidecar files next to the tars and leaves the tars unchanged. FOLDER can then be given as --shards.
    """
    from pipeline.images.decode import Resize
    from pipeline.sharding.external_tars import SampleFields
    from pipeline.sharding.index import index_tars
    from shards.layout import REJECTS_FILE

    summary = index_tars(
        folder,
        split=split,
        tars=tars,
        resize=Resize(size=size, mode=mode),
        language=language,
        fields=SampleFields(**fields),
        workers=workers,
        report=print_note,
        quiet=False,
    )
    kept = f" ({summary.kept} indexed already)" if summary.kept else ""
    print_result(f"{folder}: split {split}: {summary.images} images with {summary.captions} captions in {summary.shards} tars{kept}.")
    print_rejects(summary.rejects, folder / REJECTS_FILE)
    summary.warnings.print()
    shards, features = shell_quoted(folder), shell_quoted(f"{folder}-features")
    print_next_step(f"python cli.py verify {shards} --deep, or python cli.py cache-features --shards {shards} --out {features}")
