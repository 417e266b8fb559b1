"""Statistics of a shard dataset or of feature files: counts, caption lengths, words, image sizes and rejects.

Only the records are read, as for the vocabulary; no image is opened. Image sizes are those of the original images, which are in the records
but not in feature files.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model.vocabulary import SPECIAL
from pipeline.execution.progress import Progress
from pipeline.images.figures import COLOURS, check_figure_name, save_figure
from shards.caption_table import CaptionTable, table_from_records
from shards.dataset import Shard, Split, open_split, read_dataset_file
from shards.errors import DamageError, InputError
from shards.features import find_feature_files, open_features
from shards.layout import REJECTS_FILE
from shards.paths import Location, shell_quoted
from shards.tar import read_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

THRESHOLDS = tuple(range(1, 11))
COMMON_SIZES = 5
MAX_REJECT_LINE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """The distribution of whole numbers: how often each value occurs (``values``, in order), and statistics of all of them."""

    smallest: int
    mean: float
    median: float
    percentile_95: float
    largest: int
    values: dict[int, int]

    def __str__(self) -> str:
        if self.smallest == self.largest:
            return f"all {self.smallest:,}"
        spread = f"{self.smallest:,} to {self.largest:,}, median {self.median:,g}, 95th percentile {self.percentile_95:,g}"
        return f"{spread}, mean {self.mean:,.1f}"


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The size of the vocabulary of words that occur at least ``min_count`` times, special words included, and its share of all tokens."""

    min_count: int
    words: int
    share: float


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """Sizes of the original images in pixels, where their records have them; ``common`` are the most frequent sizes, as WIDTHxHEIGHT."""

    width: Distribution
    height: Distribution
    landscape: int
    portrait: int
    square: int
    common: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class SplitStats:
    """Statistics of a split. Distributions are None without captions; ``caption_lengths`` are in tokens; feature files have no ``sizes``."""

    name: str
    images: int
    captions: int
    tokens: int
    distinct_words: int
    captions_per_image: Distribution | None
    caption_lengths: Distribution | None
    coverage: tuple[Coverage, ...]
    sizes: ImageSizes | None
    rejects: dict[str, int]

    def lines(self) -> list[str]:
        """The lines that people read."""
        lines = [f"{self.name}: {self.images:,} images, {self.captions:,} captions, {self.tokens:,} tokens, {self.distinct_words:,} distinct words"]
        if self.captions_per_image is not None:
            lines.append(f"  captions per image  {self.captions_per_image}")
        if self.caption_lengths is not None:
            lines.append(f"  tokens per caption  {self.caption_lengths}")
        for title, cells in (
            ("minimum count", [f"{one.min_count}" for one in self.coverage]),
            ("words", [f"{one.words:,}" for one in self.coverage]),
            ("tokens covered", [f"{100 * one.share:.2f}%" for one in self.coverage]),
        ):
            lines.append(f"  {title:<20}{''.join(f'{cell:>9}' for cell in cells)}")
        if self.sizes is not None:
            shapes = f"{self.sizes.landscape:,} landscape, {self.sizes.portrait:,} portrait, {self.sizes.square:,} square"
            common = ", ".join(f"{size} ({count:,})" for size, count in self.sizes.common.items())
            lines += [f"  width of originals  {self.sizes.width}", f"  height of originals {self.sizes.height}"]
            lines.append(f"  shapes              {shapes}; most frequent: {common}")
        left_out = ", ".join(f"{count:,} {reason}" for reason, count in self.rejects.items())
        return [*lines, f"  left out            {left_out or 'nothing'}"]


def stats(path: Path, *, plot: Path | None = None, quiet: bool = True) -> tuple[SplitStats, ...]:
    """Compute the statistics of a shard dataset, a feature file or a folder of feature files.

    Args:
        path: The dataset, file or folder.
        plot: Plot them to this .png, .jpg, .pdf or .svg file.
        quiet: Show no progress.

    Raises:
        InputError: ``path`` is none of these, or ``plot`` has another file name extension.
        DamageError, MismatchError: A file is damaged.
        ResourceError: The plot cannot be written, or a remote tar cannot be fetched.
    """
    if plot is not None:
        check_figure_name(plot, "plot")
    files = find_feature_files(path)
    if files:
        rejects = _read_rejects(files[0].parent)
        found = tuple(_stats_of_features(file, rejects) for file in files)
    else:
        found = tuple(_stats_of_split(open_split(path, name), quiet=quiet) for name in read_dataset_file(path).splits)
        if not found:
            raise InputError(f"{path}: has no split yet. Add one with: python cli.py shard --out {shell_quoted(path)}")
    if plot is not None:
        draw_stats(found, plot)
    return found


def _stats_of_features(path: Path, rejects: Mapping[str, dict[str, int]]) -> SplitStats:
    file = open_features(path)
    return _split_stats(file.provenance.split, file.table, None, rejects.get(file.provenance.split, {}))


def _stats_of_split(split: Split, *, quiet: bool) -> SplitStats:
    sizes: list[tuple[int, int]] = []
    with Progress(f"Reading {split.name}", total=split.images, unit="images", quiet=quiet) as progress:
        table = table_from_records((_records(shard, sizes, progress) for shard in split.shards), language=split.language)
    rejects = Counter(reject.reason for shard in split.shards for reject in shard.sidecar.rejects)
    return _split_stats(split.name, table, np.array(sizes, np.int64).reshape(-1, 2), dict(rejects.most_common()))


def _records(shard: Shard, sizes: list[tuple[int, int]], progress: Progress) -> Iterator[tuple[str, dict[str, Any]]]:
    for sample, record in read_records(shard):
        width, height = record.get("width"), record.get("height")
        if isinstance(width, int) and isinstance(height, int) and 0 < width < 2**31 and 0 < height < 2**31:
            sizes.append((width, height))
        progress.advance(1)
        yield sample.key, record


def _read_rejects(folder: Path) -> dict[str, dict[str, int]]:
    """What the import-features command left out, by split and reason."""
    path = folder / REJECTS_FILE
    found: dict[str, Counter[str]] = {}
    if not path.is_file():
        return {}
    with path.open("rb") as lines:
        for number, line in enumerate(iter(lambda: lines.readline(MAX_REJECT_LINE), b""), 1):
            try:
                content = json.loads(line)
                found.setdefault(str(content["split"]), Counter())[str(content["reason"])] += 1
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DamageError(
                    f"{path}: line {number} is not a reject ({error!r}). Delete the file; the command that made it writes it again."
                ) from None
    return {split: dict(counts.most_common()) for split, counts in found.items()}


def _split_stats(name: str, table: CaptionTable, sizes: NDArray[np.int64] | None, rejects: dict[str, int]) -> SplitStats:
    return SplitStats(
        name=name,
        images=table.images,
        captions=table.captions,
        tokens=len(table.tokens),
        distinct_words=len(table.words),
        captions_per_image=distribution(table.caption_counts),
        caption_lengths=distribution(np.diff(table.offsets)),
        coverage=coverage(table),
        sizes=image_sizes(sizes) if sizes is not None and len(sizes) else None,
        rejects=rejects,
    )


def distribution(values: NDArray[np.int64]) -> Distribution | None:
    """The distribution of int64 (n,) values; None if there are none.

    >>> distribution(np.array([3, 1, 1, 3])).values
    {1: 2, 3: 2}
    """
    if not len(values):
        return None
    found, counts = np.unique(values, return_counts=True)
    return Distribution(
        smallest=int(found[0]),
        mean=float(values.mean()),
        median=float(np.median(values)),
        percentile_95=float(np.percentile(values, 95)),
        largest=int(found[-1]),
        values=dict(zip(found.tolist(), counts.tolist(), strict=True)),
    )


def coverage(table: CaptionTable) -> tuple[Coverage, ...]:
    """The size and coverage of :func:`pipeline.captions.vocabulary.vocabulary_of` for each of :data:`THRESHOLDS`."""
    counts = np.bincount(table.tokens, minlength=len(table.words))
    plain = np.array([word not in SPECIAL for word in table.words], bool)
    kept = [counts[plain & (counts >= threshold)] for threshold in THRESHOLDS]
    total = max(len(table.tokens), 1)
    return tuple(
        Coverage(min_count=threshold, words=len(SPECIAL) + len(words), share=float(words.sum() / total))
        for threshold, words in zip(THRESHOLDS, kept, strict=True)
    )


def image_sizes(sizes: NDArray[np.int64]) -> ImageSizes:
    """Statistics of image sizes, int64 (images, 2): width and height; at least one image."""
    width, height = sizes.T
    common = Counter(map(tuple, sizes.tolist())).most_common(COMMON_SIZES)
    widths, heights = distribution(width), distribution(height)
    assert widths is not None
    assert heights is not None
    return ImageSizes(
        width=widths,
        height=heights,
        landscape=int((width > height).sum()),
        portrait=int((width < height).sum()),
        square=int((width == height).sum()),
        common={f"{wide}x{high}": count for (wide, high), count in common},
    )


def stats_json(path: Location, found: tuple[SplitStats, ...]) -> dict[str, Any]:
    """All statistics, for JSON."""
    return {"of": str(path), "splits": [asdict(split) for split in found]}


def draw_stats(found: tuple[SplitStats, ...], out: Path) -> None:
    """Plot caption lengths, coverage, image sizes and rejects, with a colour per split.

    Raises:
        ResourceError: Disk full, access denied.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    for index, split in enumerate(found):
        _draw_split(axes.flat, split, COLOURS[index % len(COLOURS)])
    titles = ("Caption lengths (share of captions)", "Tokens in the vocabulary (%)", "Original images: width (solid), height (dotted)", "Left out")
    labels = (("tokens", ""), ("minimum count of a word", ""), ("pixels", "images"), ("images or captions", ""))
    for axis, title, (x, y) in zip(axes.flat, titles, labels, strict=True):
        axis.set_title(title, fontsize=11, loc="left")
        axis.set(xlabel=x, ylabel=y)
        axis.grid(visible=True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis, empty, text in (
        (axes.flat[2], all(split.sizes is None for split in found), "feature files have no sizes"),
        (axes.flat[3], not any(split.rejects for split in found), "nothing"),
    ):
        if empty:
            axis.text(0.5, 0.5, text, ha="center", va="center", color="gray", transform=axis.transAxes)
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(4, len(found)), frameon=False)
    save_figure(figure, out, "plot")


def _draw_split(axes: "Sequence[Axes]", split: SplitStats, colour: str) -> None:
    lengths, covered, sizes, rejects = axes
    if split.caption_lengths is not None:
        values = split.caption_lengths.values
        lengths.plot(list(values), [count / split.captions for count in values.values()], color=colour, label=split.name)
    covered.plot(THRESHOLDS, [100 * one.share for one in split.coverage], color=colour, marker="o", markersize=4)
    if split.sizes is not None:
        for seen, line in ((split.sizes.width, "-"), (split.sizes.height, ":")):
            sizes.hist(list(seen.values), bins=40, weights=list(seen.values.values()), histtype="step", color=colour, linestyle=line)
    rejects.barh([f"{split.name}: {reason}" for reason in split.rejects], list(split.rejects.values()), color=colour)
