"""``synth``: generate the built-in dataset."""

from pathlib import Path

import click

from pipeline.console.command import command
from pipeline.console.options import PATH, workers_option
from pipeline.execution.messages import print_next_step, print_result
from shards.paths import shell_quoted


@command("synth", "python cli.py synth data/synth --images 3000")
@click.argument("out", type=PATH)
@click.option("--images", type=int, default=3000, help="Number of scenes. Every tenth goes to the val split.")
@click.option("--seed", type=int, default=0, help="Random seed. The same seed gives the same files.")
@click.option("--language", type=click.Choice(["en", "ko", "zh"]), default="en", help="Language of the captions. The images are the same.")
@workers_option
def synth(out: Path, images: int, seed: int, language: str, workers: int) -> None:
    """Generate the built-in dataset in OUT. It has drawings of simple scenes with five correct captions each, in COCO format."""
    from pipeline.datasets.synthetic import synthesize

    counts = synthesize(out, images=images, seed=seed, language=language, workers=workers, quiet=False)
    print_result(f"Generated {counts['train']} train and {counts['val']} val images in {out}.")
    tag = "" if language == "en" else f" --language {language}"
    folder, captions, made = (shell_quoted(f"{out}{rest}") for rest in ("/images", "/captions_train.json", "-shards"))
    print_next_step(f"python cli.py shard --images {folder} --captions {captions} --out {made} --split train{tag}")
