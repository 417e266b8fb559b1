"""``vocab``: build a vocabulary."""

from pathlib import Path

import click

from pipeline.console.command import command
from pipeline.console.options import PATH
from pipeline.console.shard_options import ShardCache, shards_options
from pipeline.execution.messages import print_next_step, print_result
from shards.paths import Location, shell_quoted


@command("vocab", "python cli.py vocab --shards data/shards --min-count 4 --out data/vocab.json")
@shards_options("Folder or URL of a shard dataset.", required=True)
@click.option("--split", default="train", help="Split whose captions are counted.")
@click.option("--min-count", type=int, default=4, help="Keep words that occur at least this often.")
@click.option("--out", type=PATH, required=True, help="Vocabulary file to write (JSON).")
def vocab(shards: Location, shard_cache: ShardCache, split: str, min_count: int, out: Path) -> None:
    """Build a vocabulary from the words of the captions."""
    from pipeline.captions.vocabulary import make_vocabulary

    summary = make_vocabulary(shards=shard_cache.local(shards), split=split, min_count=min_count, out=out)
    size, coverage = len(summary.vocabulary), 100 * summary.coverage
    print_result(f"{out}: {size} words (4 of them special) of {summary.distinct} distinct words. They cover {coverage:.2f}% of all tokens.")
    features = f"{shards}-features" if isinstance(shards, Path) else "data/features"
    print_next_step(
        f"python cli.py cache-features --shards {shell_quoted(shards)} --out {shell_quoted(features)}, then train with --vocab {shell_quoted(out)}"
    )
