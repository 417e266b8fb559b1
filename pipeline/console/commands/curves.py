"""``curves``: plot training curves."""

from pathlib import Path

import click

from pipeline.console.command import command
from pipeline.console.errors import print_note
from pipeline.console.options import PATH
from pipeline.execution.messages import print_next_step, print_result
from shards.paths import shell_quoted


@command("curves", "python cli.py curves runs/first runs/second --out curves.png")
@click.argument("runs", type=PATH, nargs=-1, required=True)
@click.option("--out", type=PATH, required=True, help="Image file to write (.png, .jpg, .pdf, .svg).")
def curves(runs: tuple[Path, ...], out: Path) -> None:
    """Plot the training curves of RUNS in one figure. It shows loss, scores, learning rate and throughput by epoch."""
    from pipeline.reporting.curves import draw_curves

    for run in draw_curves(runs, out, report=print_note):
        last, lowest, highest = run.training[-1], run.best("val_loss", min), run.best("val_cider", max)
        val = f"; lowest val loss {lowest['val_loss']:.4f} after step {lowest['step']:,.0f}" if lowest is not None else ""
        scored = f"; highest val CIDEr {highest['val_cider']:.3f} after step {highest['step']:,.0f}" if highest is not None else ""
        print_result(f"{run.name}: step {last['step']:,.0f}, loss {last['mean_loss']:.4f}{val}{scored}")
    print_next_step(f"open {shell_quoted(out)}, or caption an image: python cli.py caption --run {shell_quoted(runs[0])} IMAGE.jpg")
