"""The HTML report of runs: scores, training curves, every image with its captions, and the settings, on one self-contained page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.reporting.html_page import page_parts
from pipeline.reporting.page_content import page_content
from pipeline.reporting.reported_runs import ReportedRun, first_image, merge_images, read_runs
from pipeline.reporting.thumbnails import RequestedImage, Thumbnails, folder_thumbnails, shard_thumbnails
from shards.atomic import check_output_file, committed_file
from shards.errors import CapstreamError, InputError, SettingsError
from shards.layout import check_split_name


@dataclass(frozen=True, kw_only=True)
class ReportSummary:
    """What was written.

    Attributes:
        path: The page.
        bytes: Its size.
        runs: The names of the runs on it.
        images: Number of images.
        thumbnails: Number of images with a thumbnail; None if none were requested.
        missing, damaged: Number of images without a thumbnail, by reason.
        images_per_second: How fast the thumbnails were made.
        notes: A line for each inconsistency between the runs.
    """

    path: Path
    bytes: int
    runs: tuple[str, ...]
    images: int
    thumbnails: int | None
    missing: int
    damaged: int
    images_per_second: float
    notes: tuple[str, ...]


def report(
    *, runs: Sequence[Path], out: Path, split: str = "val", shards: Path | None = None, images: Path | None = None, quiet: bool = True
) -> ReportSummary:
    """Write the page of runs that were evaluated on the same split.

    Args:
        runs: Run folders or score files. The others are compared with the first.
        out: The page, a file whose name ends in .html.
        split: Selects the score file in a run folder, and the split of ``shards``.
        shards: Make thumbnails from this shard dataset.
        images: Make thumbnails from the images in this folder. With neither, thumbnails are made from the shards that a run was trained or
            scored on, if it was on local shards; otherwise the page has none.
        quiet: Show no progress.

    Raises:
        InputError: ``out`` has another file name extension, both ``shards`` and ``images`` are given, none of the images is found, a score file
            is missing, a run is given twice, or there are too many runs.
        MismatchError: The runs have no image in common, or were evaluated on different splits.
        DamageError: A score file, log or config is damaged.
        ResourceError: Disk full, access denied.
    """
    if out.suffix.lower() != ".html":
        raise SettingsError(f"`out` {out}: a report is an HTML page. Give it a name that ends in .html.")
    if out.is_dir():
        raise InputError(f"`out` {out}: is a folder. Give the name of the page: {out / 'report.html'}")
    check_output_file(out)
    if shards is not None and images is not None:
        raise SettingsError("`shards` and `images` were both given. Omit one: the images of the page come from one place.")
    check_split_name(split)
    reported = read_runs(runs, split)
    rows, notes = merge_images(reported)
    requested = [RequestedImage(image_id=first.image_id, file_name=first.file_name) for first in map(first_image, rows)]
    thumbnails: Thumbnails | None = None
    if shards is not None:
        thumbnails = shard_thumbnails(shards, split, requested, quiet=quiet)
    elif images is not None:
        thumbnails = folder_thumbnails(images, requested, quiet=quiet)
    elif (recorded := _recorded_shards(reported)) is not None:
        try:
            thumbnails = shard_thumbnails(recorded, reported[0].scores.split or split, requested, quiet=quiet)
            notes.append(f"The images are from {recorded}, the shards of the run.")
        except CapstreamError as error:
            notes.append(f"The shards of the run have no images for the page: {error}")
    parts = page_parts(page_content(reported, rows, notes, with_thumbnails=thumbnails is not None), thumbnails)
    size = 0
    with committed_file(out) as file:
        for part in parts:
            size += file.write(part)
    return ReportSummary(
        path=out,
        bytes=size,
        runs=tuple(run.name for run in reported),
        images=len(rows),
        thumbnails=None if thumbnails is None else len(rows) - thumbnails.count("missing") - thumbnails.count("damaged"),
        missing=0 if thumbnails is None else thumbnails.count("missing"),
        damaged=0 if thumbnails is None else thumbnails.count("damaged"),
        images_per_second=0.0 if thumbnails is None else thumbnails.images_per_second,
        notes=tuple(notes),
    )


def _recorded_shards(runs: Sequence[ReportedRun]) -> Path | None:
    """The local shards that the first such run was scored or trained on. Remote ones are fetched only if they are asked for."""
    for run in runs:
        scored, trained = run.scores.made_by.get("data"), run.config or {}
        for kind, place in ((scored or {}).get("kind"), (scored or {}).get("path")), (trained.get("source"), trained.get("data")):
            if kind == "shards" and isinstance(place, str) and "://" not in place:
                return Path(place)
    return None
