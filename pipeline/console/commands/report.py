"""``report``: write an HTML page about runs."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.console.command import command
from pipeline.console.errors import print_note
from pipeline.console.options import PATH
from pipeline.console.shard_options import ShardCache, shards_options
from pipeline.execution.messages import print_next_step, print_result
from shards.paths import Location, shell_quoted

if TYPE_CHECKING:
    from pipeline.reporting.report import ReportSummary

LARGE_PAGE_BYTES = 300_000_000


@command(
    "report",
    "python cli.py report runs/first --out report.html",
    "python cli.py report runs/first --shards data/shards --out report.html",
    "python cli.py report runs/first runs/second --images data/val2014 --out report.html",
)
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, help="Page to write (.html).")
@click.option("--split", default="val", help="Split of the scores, RUN/SPLIT.scores.json as written by evaluate, and of --shards.")
@click.option("--images", type=PATH, default=None, help="Show images from this folder. File names are relative to it.")
@shards_options("Show images from these shards: a folder or a URL.", show_default="those of the run, if it is of local shards")
def report(runs: tuple[Path, ...], out: Path, split: str, images: Path | None, shards: Location | None, shard_cache: ShardCache) -> None:
    """Write an HTML page about RUNS.

    RUNS are run folders or score files. The page shows their scores, training curves, and every image with its captions. It works offline.
    """
    from pipeline.reporting.report import report

    made = report(runs=runs, out=out, split=split, shards=shard_cache.local_or_none(shards), images=images, quiet=False)
    _print_summary(out, made)
    page, run = shell_quoted(out), shell_quoted(runs[0])
    compare = "" if len(made.runs) > 1 else f", then compare with another run: python cli.py report {run} OTHER_RUN --out {page}"
    print_next_step(f"open {page} in a browser{compare}")


def _print_summary(out: Path, made: "ReportSummary") -> None:
    for line in made.notes:
        print_note(line)
    if made.thumbnails is None:
        print_result("The page shows captions without images. Add them with --shards DIR or --images DIR.")
    else:
        lost = "".join(f", {count:,} {what}" for count, what in ((made.missing, "not found"), (made.damaged, "damaged")) if count)
        print_result(f"Images: {made.thumbnails:,} of {made.images:,}{lost} ({made.images_per_second:,.0f} images/s).")
    runs = "1 run" if len(made.runs) == 1 else f"{len(made.runs)} runs"
    print_result(f"{out}: {made.images:,} images, {runs}, {made.bytes / 1e6:,.1f} MB.")
    if made.bytes > LARGE_PAGE_BYTES:
        print_note("Browsers open a page of this size slowly or not at all. Without images it is much smaller.")
