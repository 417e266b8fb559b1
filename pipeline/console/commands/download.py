"""``download``: fetch a published dataset."""

from pathlib import Path

import click

from pipeline.console.command import command
from pipeline.console.options import PATH
from pipeline.execution.messages import print_next_step, print_result
from shards.paths import shell_quoted


@command(
    "download",
    "python cli.py download coco2014",
    "python cli.py download coco2017 --parts annotations,val",
    "python cli.py download coco2014 --base-url https://mirror.example.org/coco",
)
@click.argument("dataset", type=click.Choice(["coco2014", "coco2017", "flickr8k", "karpathy-splits"]))
@click.option("--root", type=PATH, default=Path("data"), help="Folder for the archives and the extracted files.")
@click.option("--parts", default=None, show_default="all", help="Comma-separated parts of the dataset, for example annotations,train,val.")
@click.option("--base-url", default=None, show_default="the publisher's", help="URL of a mirror with the publisher's folder layout.")
def download(dataset: str, root: Path, parts: str | None, base_url: str | None) -> None:
    """Download, verify and extract DATASET. Running it again resumes."""
    from pipeline.datasets.download import download

    chosen = [part.strip() for part in parts.split(",")] if parts is not None else []
    summary = download(dataset, root=root, parts=chosen, base_url=base_url, quiet=False)
    for archive in summary.archives:
        how = f"{archive.written:,} extracted now" if archive.written else "all extracted before"
        print_result(f"{archive.name}: {archive.files:,} files, {archive.bytes / 1e6:,.1f} MB, complete in {archive.into} ({how}).")
    left = [archive.archive for archive in summary.archives if archive.archive is not None]
    if left:
        size = sum(path.stat().st_size for path in left) / 1e6
        print_result(f"Archives that can be deleted ({size:,.1f} MB): {' '.join(shell_quoted(path) for path in left)}")
    print_next_step(f"python cli.py {summary.next_step}")
