"""``evaluate``: score captions."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.console.caption_options import chosen_columns, columns_option, encoding_option
from pipeline.console.command import command, typed_command
from pipeline.console.decoding_options import DecodingOptions, decoding_options
from pipeline.console.errors import print_note
from pipeline.console.options import PATH, checkpoint_option, device_option, typed
from pipeline.console.shard_options import ShardCache, shards_options
from pipeline.execution.messages import print_next_step, print_result
from shards.paths import Location

if TYPE_CHECKING:
    from pipeline.evaluation.score_file import ScoreFile
    from pipeline.evaluation.scoring import Ptb
    from pipeline.runs.checkpoints import CheckpointChoice

# Parameters that captions from a file do not use; the decoding options are further ones.
FOR_RUNS = ("runs", "features", "shards", "shard_cache", "shard_cache_gb", "split", "results", "weights", "batch_size", "checkpoint", "device")


@command(
    "evaluate",
    "python cli.py evaluate --run runs/first",
    "python cli.py evaluate --run runs/first --features data/features --beam 5",
    "python cli.py evaluate --run runs/first --shards data/shards --split test --checkpoint best",
    "python cli.py evaluate --captions results.json --references captions_val2014.json",
)
@click.option("--run", "runs", type=PATH, multiple=True, help="Folder of a trained run. Repeat the option for an ensemble of runs.")
@click.option("--features", type=PATH, default=None, show_default="those of the run", help="Folder of cached features.")
@shards_options("Folder or URL of shards, to caption raw images.", show_default="those of the run")
@click.option("--split", default="val", help="Split to caption and score.")
@decoding_options
@click.option("--captions", type=PATH, default=None, help="Instead of --run: a file of captions in COCO's result format.")
@click.option("--references", type=PATH, default=None, help="With --captions: reference captions, in any format that shard accepts.")
@columns_option
@encoding_option
@click.option("--language", default="en", metavar="TAG", help="With --captions: their language, such as en, zh, ja, ko or de.")
@click.option("--out", type=PATH, default=None, show_default="RUN/SPLIT.scores.json, or next to --captions", help="Score file to write.")
@click.option(
    "--results",
    type=PATH,
    default=None,
    show_default="next to the score file",
    help="With --run: file for the captions in COCO's result format.",
)
@click.option(
    "--ptb",
    type=click.Choice(["builtin", "java"]),
    default="builtin",
    help="PTB tokenizer: the built-in one, or Stanford's original, which requires Java.",
)
@click.option("--no-java", is_flag=True, help="Skip METEOR and SPICE even if Java is available.")
@click.option(
    "--weights",
    default=None,
    show_default="as recorded in the run",
    help="With --shards: weights file of the backbone, if it has moved since the training.",
)
@click.option("--batch-size", type=int, default=128, help="Images per batch.")
@checkpoint_option
@device_option
def evaluate(
    runs: tuple[Path, ...],
    features: Path | None,
    shards: Location | None,
    shard_cache: ShardCache,
    split: str,
    decoding: DecodingOptions,
    captions: Path | None,
    references: Path | None,
    columns: tuple[str, ...],
    encoding: str | None,
    language: str,
    out: Path | None,
    results: Path | None,
    ptb: "Ptb",
    no_java: bool,
    weights: str | None,
    batch_size: int,
    checkpoint: "CheckpointChoice",
    device: str,
) -> None:
    """Score the captions of a run, or those in a file.

    The scores are BLEU, ROUGE-L and CIDEr, and with Java also METEOR and SPICE. For a run, a split is captioned first.
    """
    if captions is not None or references is not None:
        if captions is None or references is None:
            raise click.UsageError("--captions and --references must be given together.")
        if unused := [*typed(*FOR_RUNS), *decoding.typed()]:
            raise click.UsageError(f"--captions and --references score existing captions. Omit {', '.join(unused)}.")
        _score_file(captions, references, columns, encoding, language, out, ptb, not no_java)
        return
    if columns or encoding:
        raise click.UsageError(f"{'--column' if columns else '--encoding'} requires --references.")
    if typed("language"):
        raise click.UsageError("--language requires --references: a run knows the language of its captions.")
    if not runs:
        raise click.UsageError("Give --run, or give --captions with --references.")
    from pipeline.captioning.captioner import CaptionerConfig
    from pipeline.evaluation.evaluate import EvaluationFiles, EvaluationSource, evaluate
    from pipeline.evaluation.score_file import scores_path
    from pipeline.evaluation.scoring import ScoringConfig

    run, *others = runs
    result = evaluate(
        CaptionerConfig(run=run, ensemble=others, decoding=decoding.config(), device=device, weights=weights, checkpoint=checkpoint),
        EvaluationSource(
            features=features,
            shards=shard_cache.local_or_none(shards),
            shard_cache=shard_cache.folder,
            shard_cache_bytes=shard_cache.max_bytes,
            split=split,
            batch_size=batch_size,
        ),
        scoring=ScoringConfig(ptb=ptb, java=not no_java),
        files=EvaluationFiles(out=out, results=results),
        command=typed_command(),
        report=print_note,
        quiet=False,
    )
    _print_scores(result.scores)
    print_result(f"{result.out}: scores of {len(result.scores.images)} captions. {result.results}: {len(result.captions)} captions.")
    in_run = result.out == scores_path(run, split)
    page = ["report", str(run if in_run else result.out)]
    page += ["--shards", str(shards)] if shards else []
    page += ["--split", split] if split != "val" and (shards or in_run) else []
    _print_report_command(page, result.out)


def _score_file(
    captions: Path,
    references: Path,
    columns: tuple[str, ...],
    encoding: str | None,
    language: str,
    out: Path | None,
    ptb: "Ptb",
    java: bool,
) -> None:
    from pipeline.evaluation.evaluate_results import score_results
    from pipeline.evaluation.scoring import ScoringConfig

    result = score_results(
        captions=captions,
        references=references,
        columns=chosen_columns(columns),
        encoding=encoding,
        language=language,
        out=out,
        scoring=ScoringConfig(ptb=ptb, java=java),
        command=typed_command(),
        report=print_note,
    )
    _print_scores(result.scores)
    print_result(f"{result.out}: scores of {len(result.scores.images)} captions.")
    _print_report_command(["report", str(result.out)], result.out)


def _print_scores(scores: "ScoreFile") -> None:
    """A table of scores with their confidence intervals, then notes on what was not computed."""
    print_result(f"{'score':12}{'value':>9}   95% interval")
    for name, found in scores.scores.items():
        print_result(f"{name:12}{found.value:9.4f}   {found.low:.4f} to {found.high:.4f}")
    for line in scores.notes:
        print_note(line)


def _print_report_command(arguments: list[str], scores: Path) -> None:
    print_next_step(shlex.join(["python", "cli.py", *arguments, "--out", str(scores.with_name("report.html"))]))
