"""``caption``: caption images with a trained run."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.console.command import command
from pipeline.console.decoding_options import DecodingOptions, decoding_options
from pipeline.console.errors import print_note
from pipeline.console.options import PATH, checkpoint_option, device_option
from pipeline.execution.messages import print_data, print_json, print_next_step
from shards.paths import shell_quoted

if TYPE_CHECKING:
    from model.decoding import Decoding
    from pipeline.captioning.captioner import CaptionerConfig, ImageCaptions
    from pipeline.runs.checkpoints import CheckpointChoice

# Captioning fewer images than this shows no progress.
PROGRESS_FROM_IMAGES = 100


@command(
    "caption",
    "python cli.py caption --run runs/first holiday/*.jpg",
    "python cli.py caption --run runs/first dog.jpg --show --out dog.png",
    "python cli.py caption --run runs/attention dog.jpg --show --attention --out words.png",
    "python cli.py caption --run runs/first photos/ https://example.org/cat.jpg --beam 5 --best 3 --json > captions.jsonl",
    "find /photos -name '*.jpg' | python cli.py caption --run runs/first - > captions.txt",
)
@click.argument("images", nargs=-1, required=True)
@click.option("--run", "runs", type=PATH, required=True, multiple=True, help="Folder of a trained run. Repeat the option for an ensemble of runs.")
@decoding_options
@click.option("--best", type=click.IntRange(1), default=None, show_default="1, or all --samples", help="Number of captions per image.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per image and line: captions with scores, or the problem.")
@click.option("--show", is_flag=True, help="Show the images with their captions in a window, or write them to the file of --out.")
@click.option("--attention", is_flag=True, help="With --show and --out: draw where the decoder looked for each word of the best caption.")
@click.option("--out", type=PATH, default=None, help="With --show: image file to write (.png, .jpg, .pdf, .svg).")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), default="auto", help="Precision of the frozen backbone.")
@click.option(
    "--weights", default=None, show_default="as recorded in the run", help="Weights file of the backbone, if it has moved since the training."
)
@checkpoint_option
@device_option
def caption(
    images: tuple[str, ...],
    runs: tuple[Path, ...],
    decoding: DecodingOptions,
    best: int | None,
    as_json: bool,
    show: bool,
    attention: bool,
    out: Path | None,
    precision: str,
    weights: str | None,
    checkpoint: "CheckpointChoice",
    device: str,
) -> None:
    """Caption images with a trained run.

    IMAGES are files, folders, quoted glob patterns, URLs, or - to read a list of them from standard input.
    Hidden images of a folder are left out.

    Prints one caption per line. With several images, a line begins with the image's name. With several captions per image, it ends with the
    caption's log-probability.
    """
    from pipeline.captioning.caption import caption_images
    from pipeline.captioning.captioner import CaptionerConfig
    from pipeline.captioning.draw import check_can_draw, draw_captions
    from pipeline.captioning.inputs import named_images

    if out is not None and not show:
        raise click.UsageError("--out requires --show.")
    if attention and (out is None or as_json or best is not None):
        raise click.UsageError("--attention requires --show and --out, and goes without --json and --best.")
    chosen = decoding.config()
    _check_best(best, chosen)
    names = named_images(images, sys.stdin, print_note)
    if show:
        check_can_draw(out, names)
    run, *others = runs
    config = CaptionerConfig(run=run, ensemble=others, decoding=chosen, precision=precision, device=device, weights=weights, checkpoint=checkpoint)
    shown: list[tuple[str, str]] = []
    if attention and out is not None:
        failed = _draw_attention(config, names, out)
    else:
        captioned = caption_images(config, names, quiet=len(names) < PROGRESS_FROM_IMAGES, report=print_note)
        shown, failed = _print_captions(captioned, count=best or chosen.samples or 1, named=len(names) > 1, as_json=as_json)
    if show and shown:
        problem = draw_captions(shown, out)
        left_out = len(names) - failed - len(shown)
        if out is not None:
            print_note(f"Wrote {out}{f', without the last {left_out} images' if left_out else ''}.")
        if problem:
            print_note(problem)
    if failed:
        raise click.ClickException(f"{failed} of {len(names)} images could not be captioned (listed above). Check their paths and formats.")
    _print_next(run, images, shown=show)


def _draw_attention(config: "CaptionerConfig", names: Sequence[str], out: Path) -> int:
    """Print the captions of the first images, and draw where the decoder looked; returns how many images failed."""
    from pipeline.captioning.attention import MAX_ATTENTION_IMAGES, caption_attention, check_attention, draw_attention
    from pipeline.captioning.captioner import ImageCaptioner
    from pipeline.images.decode import ImageError

    captioner = ImageCaptioner(config, report=print_note)
    check_attention(captioner)
    tried, found = names[:MAX_ATTENTION_IMAGES], []
    for name in tried:
        try:
            found.append(caption_attention(captioner, name, name))
        except ImageError as error:
            print_note(f"No caption: {error}")
            continue
        print_data(f"{name}: {found[-1].caption}" if len(names) > 1 else found[-1].caption)
    if found:
        problem = draw_attention(found, out)
        print_note(f"Wrote {out}{f', without the last {len(names) - len(tried)} images' if len(names) > len(tried) else ''}.")
        if problem:
            print_note(problem)
    return len(tried) - len(found)


def _check_best(best: int | None, decoding: "Decoding") -> None:
    if best is not None and best > decoding.hypotheses:
        at_most = "only one caption" if decoding.hypotheses == 1 else f"only {decoding.hypotheses} captions"
        raise click.UsageError(f"--best {best}: the decoding gives {at_most} per image. Use --beam {best} or --samples {best}.")


def _print_captions(captioned: "Iterable[ImageCaptions]", *, count: int, named: bool, as_json: bool) -> tuple[list[tuple[str, str]], int]:
    """Print captions as they come.

    Returns:
        (image name, caption) of the images that ``--show`` draws, and the number of images that failed.
    """
    from pipeline.captioning.caption import json_line, lines
    from pipeline.captioning.draw import MAX_SHOWN
    from pipeline.execution.library_warnings import FileWarnings

    shown: list[tuple[str, str]] = []
    failed, warnings = 0, FileWarnings()
    for image in captioned:
        if image.warnings:
            warnings = warnings.add({image.name: list(image.warnings)})
        if image.problem is not None:
            failed += 1
            print_note(f"No caption: {image.problem}")
        elif len(shown) < MAX_SHOWN:
            shown.append((image.name, image.captions[0].caption))
        if as_json:
            print_json(json_line(image, count))
            continue
        for line in lines(image, count, named=named):
            print_data(line)
    warnings.print()
    return shown, failed


def _print_next(run: Path, images: tuple[str, ...], *, shown: bool) -> None:
    folder, first, more = shell_quoted(run), shell_quoted(images[0]), " ..." if len(images) > 1 else ""
    figure = f"python cli.py caption --run {folder} --show --out captions.png {first}{more}"
    scores = f"python cli.py evaluate --run {folder}"
    print_next_step(scores if shown or images == ("-",) else figure, err=True)
