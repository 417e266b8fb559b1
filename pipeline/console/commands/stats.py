"""``stats``: statistics of shards and feature files."""

from pathlib import Path

import click

from pipeline.console.command import command
from pipeline.console.errors import print_note
from pipeline.console.options import PATH, location
from pipeline.console.shard_options import ShardCache, shard_cache_options
from pipeline.execution.messages import print_json, print_next_step, print_result
from shards.paths import Location, shell_quoted


@command("stats", "python cli.py stats data/shards", "python cli.py stats data/features/train.h5 --plot train.png")
@click.argument("path", type=location, metavar="PATH|URL")
@shard_cache_options
@click.option("--plot", type=PATH, default=None, help="Plot the statistics to this file (.png, .jpg, .pdf, .svg).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def stats(path: Location, shard_cache: ShardCache, plot: Path | None, as_json: bool) -> None:
    """Show statistics of shards or feature files.

    These are counts, caption lengths, frequent words, image sizes and rejects of a shard dataset, a feature file or a folder of feature files.
    """
    from pipeline.inspection.stats import stats, stats_json
    from shards.features import find_feature_files

    found = stats(shard_cache.local(path), plot=plot, quiet=False)
    if as_json:
        print_json(stats_json(path, found), indent=1)
    else:
        for split in found:
            for line in split.lines():
                print_result(line)
    if plot is not None:
        print_note(f"Wrote {plot}.")
    if isinstance(path, Path) and (files := find_feature_files(path)):
        print_next_step(f"python cli.py train --features {shell_quoted(files[0].parent)} --out runs/first", err=as_json)
    else:
        print_next_step(f"python cli.py vocab --shards {shell_quoted(path)} --min-count 4 --out data/vocab.json", err=as_json)
