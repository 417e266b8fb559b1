"""``demo``: run all stages on the built-in dataset."""

from pathlib import Path

import click

from pipeline.console.command import command
from pipeline.console.options import PATH, device_option, workers_option
from pipeline.execution.messages import print_next_step, print_result


@command("demo", "python cli.py demo", "python cli.py demo --out runs/pretrained --weights IMAGENET1K_V1")
@click.option("--out", type=PATH, default=Path("runs/demo"), help="Folder for all files of the demo.")
@click.option("--images", type=int, default=None, show_default="2200", help="Number of scenes.")
@click.option("--weights", default="random", help="random works offline; IMAGENET1K_V1 uses a pretrained ResNet-152.")
@workers_option
@device_option
def demo(out: Path, images: int | None, weights: str, workers: int, device: str) -> None:
    """Run all stages on the built-in dataset. The stages are synth, shard, vocab, cache-features, train, evaluate and caption."""
    from pipeline.demo import IMAGES, DemoConfig, demo

    config = DemoConfig(out=out, images=IMAGES if images is None else images, weights=weights, workers=workers, device=device)
    result = demo(config, print_result)
    for line in result.table():
        print_result(line)
    print_result(f"Picture of captioned scenes: {result.picture}")
    print_next_step(
        "train on your own images and captions: python cli.py shard --images IMAGES --captions CAPTIONS --out data/shards "
        "(docs/tutorial.md has every step; first run: . .venv/bin/activate)"
    )
