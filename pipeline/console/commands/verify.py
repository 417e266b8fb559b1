"""``verify``: check shards and feature files for damage."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.console.command import command
from pipeline.console.errors import print_note
from pipeline.console.options import PATH, workers_option
from pipeline.execution.messages import print_next_step, print_result
from shards.paths import shell_quoted

if TYPE_CHECKING:
    from pipeline.inspection.verify import FeatureReport, SplitReport


@command("verify", "python cli.py verify data/shards --deep", "python cli.py verify data/features")
@click.argument("path", type=PATH)
@click.option("--deep", is_flag=True, help="For shards: decode every image as well.")
@workers_option
def verify(path: Path, deep: bool, workers: int) -> None:
    """Check shards or feature files for damage. PATH is a shard dataset, a feature file or a folder of feature files; every byte is checked."""
    from pipeline.inspection.verify import verify, verify_features
    from shards.features import find_feature_files

    if files := find_feature_files(path):
        _report_features([verify_features(file) for file in files])
        print_next_step(f"python cli.py train --features {shell_quoted(files[0].parent)} --out runs/first")
        return
    _report_shards(path, verify(path, deep=deep, workers=workers, quiet=False))
    print_result("All shards are intact" + (" and every image can be decoded." if deep else "."))
    print_next_step(f"python cli.py cache-features --shards {shell_quoted(path)} --out {shell_quoted(f'{path}-features')}")


def _report_features(reports: "list[FeatureReport]") -> None:
    for report in reports:
        if report.problem is not None:
            print_note(report.problem)
            continue
        positions = f"{report.positions} positions with " if report.positions > 1 else ""
        contents = f"{report.images:,} images, {report.captions:,} captions, {report.views} view(s) of {positions}{report.dim} features"
        print_result(f"{report.path}: intact: {contents} ({report.network})")
    bad = [str(report.path) for report in reports if report.problem is not None]
    if bad:
        raise click.ClickException(f"{', '.join(bad)}: damaged or missing. See the lines above for how to repair it.")


def _report_shards(folder: Path, reports: "list[SplitReport]") -> None:
    print_result(f"{'split':<16}{'shards':>8}{'images':>10}{'captions':>10}{'MB':>10}{'damaged':>9}")
    for report in reports:
        images, captions, size = (sum(getattr(shard, name) for shard in report.shards) for name in ("images", "captions", "bytes"))
        print_result(f"{report.name:<16}{len(report.shards):>8}{images:>10,}{captions:>10,}{size / 1e6:>10,.1f}{len(report.damaged):>9}")
    for report in reports:
        for problem in report.problems:
            print_note(f"{folder}: split {report.name}: {problem}")
        for shard in report.damaged:
            more = f" (and {len(shard.problems) - 1} more)" if len(shard.problems) > 1 else ""
            first = shard.problems[0]
            print_note((first if first.startswith(str(shard.tar)) else f"{shard.tar}: {first}") + more)
    bad = [report.name for report in reports if not report.intact]
    if bad:
        raise click.ClickException(
            f"{folder}: damaged (split {', '.join(bad)}). Run the shard command of that split again with its original options and "
            f"--out {folder} (for tars made elsewhere, the index command). It keeps intact shards and recreates the rest."
        )
