"""Run + split -> scores and the captions that they are of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.decoding import greedy, sentence
from model.metrics import score_captions
from pipeline.backbones import pick_device, recorded_network
from pipeline.caption import open_run_backbone
from pipeline.checkpoints import Which
from pipeline.prefetch import ahead
from pipeline.progress import Progress
from pipeline.run import Run, open_run
from pipeline.sources import ShardSource
from shards.atomic import write_json
from shards.caption_table import CaptionTable, table_of_split
from shards.errors import InputError
from shards.features import check_network, feature_path, open_features
from shards.manifest import check_split_name, open_split


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a run on a split, and one caption per image: (COCO image id, file name, caption)."""

    scores: dict[str, float]
    captions: tuple[tuple[int, str, str], ...]


def evaluate(
    *,
    run: Path,
    features: Path | None = None,
    shards: Path | None = None,
    split: str = "val",
    weights: str | None = None,
    out: Path | None = None,
    batch_size: int = 128,
    checkpoint: Which = "latest",
    device: str = "auto",
    quiet: bool = True,
) -> Evaluation:
    """Caption a whole split greedily and score it against its captions.

    Args:
        run: A run directory.
        features, shards: One of the two: feature files, or shards that go through the run's own backbone.
        weights: With ``shards``: where the backbone's weights are, if no longer at the place that the run recorded.
        checkpoint: Of the run, as for :func:`pipeline.run.open_run`.
        out: Where to write ``{"scores": {...}, "captions": [{"image_id", "caption"}]}``.

    Raises:
        InputError: Wrong names or folders.
        MismatchError: The features are of another network than the run's.
        DamageError, ResourceError: As the parts say.
    """
    check_split_name(split)
    if (features is None) == (shards is None):
        raise InputError("Give one of --features DIR (cached) and --shards DIR (raw).")
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: must be at least 1.")
    opened = open_run(run, device=pick_device(device), checkpoint=checkpoint)
    if features is not None:
        table, batches = _cached_batches(opened, feature_path(features, split), batch_size)
    else:
        assert shards is not None
        table, batches = _raw_batches(opened, shards, split, batch_size, weights)
    torch_device = next(opened.captioner.parameters()).device
    words: list[list[str]] = []
    with Progress(f"Captioning {split}", total=table.images, unit="images", quiet=quiet) as progress:
        for batch in batches:
            words.extend(greedy(opened.captioner, batch.to(torch_device), opened.vocabulary))
            progress.advance(len(batch))
    captions = tuple(zip(table.image_ids.tolist(), table.file_names, map(sentence, words), strict=True))
    evaluation = Evaluation(scores=score_captions(words, table.references()), captions=captions)
    if out is not None:
        results = [{"image_id": image_id, "caption": caption} for image_id, _, caption in captions]
        write_json(out, {"scores": evaluation.scores, "captions": results})
    return evaluation


def run_network(run: Run) -> dict[str, object]:
    """What must be equal for features to suit a run, in the form of :meth:`shards.features.Provenance.network`."""
    network = run.config.network
    content = network.content()
    return {key: content[key] for key in ("backbone", "weights_sha256", "preprocessing")}


def _cached_batches(run: Run, path: Path, batch_size: int) -> tuple[CaptionTable, Iterator[Tensor]]:
    file = open_features(path)
    found = recorded_network(file.provenance).content()
    there = {key: found[key] for key in ("backbone", "weights_sha256", "preprocessing")}
    check_network(f"{run.folder}", run_network(run), f"{path}", there)
    starts = range(0, file.table.images, batch_size)
    return file.table, (torch.from_numpy(np.array(file.mean_view(start, start + batch_size))) for start in starts)


def _raw_batches(run: Run, shards: Path, split_name: str, batch_size: int, weights: str | None) -> tuple[CaptionTable, Iterator[Tensor]]:
    split = open_split(shards, split_name)
    preprocessing = run.config.network.preprocessing
    resize = split.config["resize"]
    wanted = {"size": preprocessing.size, "mode": preprocessing.mode, "filter": preprocessing.filter}
    check_network(f"{run.folder}", wanted, f"{shards}", resize)
    frozen = open_run_backbone(run, weights=weights)
    table = table_of_split(split)
    source = ShardSource(split, table, preprocessing, "none")
    device = next(run.captioner.parameters()).device
    starts: Sequence[int] = range(0, table.images, batch_size)

    def load(start: int) -> Tensor:
        rows = np.arange(start, min(start + batch_size, table.images))
        return source.images(rows, np.zeros((len(rows), 3)))

    return table, (frozen(pixels.to(device)).half() for pixels in ahead(load, starts, threads=source.threads))
