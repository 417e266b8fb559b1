"""``backbones``: list the available networks."""

import click

from pipeline.console.command import command
from pipeline.execution.messages import print_next_step, print_result


@command("backbones", "python cli.py backbones resnet")
@click.argument("pattern", default="")
def backbones(pattern: str) -> None:
    """List the networks available as --backbone. With PATTERN, list only those whose name contains it."""
    from pipeline.backbone.backbones import list_backbones

    listed = list_backbones(pattern)
    print_result(f"{'network':<22}{'features':>9}{'parameters':>13}  published weights")
    for name, dim, parameters, weights in listed:
        print_result(f"{name:<22}{dim:>9,}{parameters / 1e6:>11,.1f} M  {', '.join(weights)}")
    print_next_step("python cli.py cache-features --shards data/shards --out data/features --backbone resnet152")
