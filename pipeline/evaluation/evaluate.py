"""Run + split -> captions of all its images, and what they are worth: a score file, and a result file for others to score."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.decoding import Decoding, ScoredCaption, sentence
from pipeline.backbone.backbones import recorded_network
from pipeline.captioning.captioner import CaptionerConfig, ImageCaptioner, scored_captions
from pipeline.evaluation.coco_results import check_results_place, results_path, write_results
from pipeline.evaluation.score_file import ScoreFile, check_scores_place, scores_path, write_scores
from pipeline.evaluation.scoring import Prediction, Ptb, check_tokenizer, score_texts
from pipeline.execution.prefetch import map_ahead
from pipeline.execution.progress import Progress
from pipeline.loading.sources import ShardSource
from pipeline.runs.checkpoints import CheckpointChoice
from pipeline.runs.run import Run
from shards.caption_table import CaptionTable, table_of_split
from shards.dataset import open_split, read_dataset_file
from shards.errors import CapstreamError, InputError
from shards.features import check_network, feature_path, open_features
from shards.layout import check_split_name, records_path
from shards.remote import origin


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a run on a split.

    Attributes:
        scores: What was written to ``out``.
        captions: One per image, those without references included: (COCO image id, file name, caption). ``results`` has them too.
    """

    scores: ScoreFile
    captions: tuple[tuple[int, str, str], ...]
    out: Path
    results: Path


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """A split, opened for captioning: batches are float16 (images, feature_dim)."""

    table: CaptionTable
    batches: Iterable[Tensor]
    path: str
    digest: str
    views: tuple[str, ...]


def evaluate(
    *,
    run: Path,
    others: Sequence[Path] = (),
    features: Path | None = None,
    shards: Path | None = None,
    split: str = "val",
    weights: str | None = None,
    out: Path | None = None,
    results: Path | None = None,
    batch_size: int = 128,
    checkpoint: CheckpointChoice = "latest",
    decoding: Decoding = Decoding(),  # noqa: B008 - frozen
    ptb: Ptb = "builtin",
    java: bool = True,
    device: str = "auto",
    command: str = "",
    report: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
) -> Evaluation:
    """Caption a whole split and score it against its captions.

    Args:
        run: A run directory.
        others: More runs that caption together with it, as :func:`pipeline.runs.run.open_caption_model` says; ``out`` has to be given then.
        features, shards: One of the two: feature files, or shards that go through the run's own backbone.
        weights: With ``shards``: where the backbone's weights are, if no longer at the place that the run recorded.
        out: The score file, by default ``RUN/SPLIT.scores.json``.
        results: The captions in COCO's result format, by default beside ``out``.
        checkpoint: Of the run, as for :func:`pipeline.runs.run.open_run`.
        decoding: How captions are made: an image's caption is the first hypothesis; where there are more, the score file has them all.
        ptb, java: As :func:`pipeline.evaluation.scoring.score_texts`.
        command: The command line, for the score file.
        report: Takes a line for each damaged checkpoint that was passed over, and for each step of scoring that takes a while.

    Raises:
        InputError: Wrong names or folders, or a split without any caption.
        MismatchError: The features are of another network than the run's.
        DamageError, ResourceError: As the parts say.
    """
    check_split_name(split)
    if (features is None) == (shards is None):
        raise InputError("Give one of --features DIR (cached) and --shards DIR (raw).")
    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size}: must be at least 1.")
    check_tokenizer(ptb)
    if others and out is None:
        raise InputError("Scores of several runs together belong to none of them alone: give --out FILE.")
    out = scores_path(run, split) if out is None else out
    results = results_path(out) if results is None else results
    if out.resolve() == results.resolve():
        raise InputError(f"--out and --results are both {out}: choose different names.")
    check_scores_place(out)
    check_results_place(results)
    # fp32: the features that cached features in fp32 would be
    config = CaptionerConfig(run=run, ensemble=others, decoding=decoding, precision="fp32", device=device, weights=weights, checkpoint=checkpoint)
    captioner = ImageCaptioner(config, report=report)
    opened = captioner.run
    if features is not None:
        data = _cached(opened, feature_path(features, split), batch_size)
    else:
        assert shards is not None
        data = _raw(captioner, shards, split, batch_size)
    if not data.table.captions:
        raise InputError(f"{data.path}: no image of split {split!r} has a caption to compare with. Choose another --split.")
    captions, alternatives = _captioned(captioner, data, split, quiet)
    table = data.table
    write_results(results, zip(table.image_ids.tolist(), captions, strict=True))
    notes: list[str] = []
    training = _training_captions(opened, features, shards, notes)
    without = int((table.caption_counts == 0).sum())
    if without:
        notes.append(f"{without:,} of {table.images:,} images have no reference: they are captioned in {results.name}, and not scored.")
    made_by = {
        "command": command,
        "run": str(run),
        "others": [str(other) for other in others],
        "checkpoint": {"step": opened.position.step, "which": checkpoint},
        "decoding": asdict(decoding),
        "data": {"kind": "features" if features is not None else "shards", "path": data.path, "digest": data.digest, "views": list(data.views)},
    }
    images = list(_judged(table, captions, alternatives))
    scores = score_texts(images, split=split, made_by=made_by, training=training, notes=notes, ptb=ptb, java=java, say=report)
    write_scores(out, scores)
    named = tuple(zip(table.image_ids.tolist(), table.file_names, captions, strict=True))
    return Evaluation(scores=scores, captions=named, out=out, results=results)


def _captioned(captioner: ImageCaptioner, data: EvaluationData, split: str, quiet: bool) -> tuple[list[str], list[tuple[ScoredCaption, ...]]]:
    """Each image's caption, and all that decoding found where that is more than one."""
    captions: list[str] = []
    alternatives: list[tuple[ScoredCaption, ...]] = []
    with Progress(f"Captioning {split}", total=data.table.images, unit="images", quiet=quiet) as progress:
        for batch in data.batches:
            numbers = range(len(captions), len(captions) + len(batch))
            for hypotheses in captioner.caption_features(batch, numbers=numbers):
                captions.append(sentence(hypotheses[0].words))
                alternatives.append(scored_captions(hypotheses) if len(hypotheses) > 1 else ())
            progress.advance(len(batch))
    return captions, alternatives


def _judged(table: CaptionTable, captions: Sequence[str], alternatives: Sequence[tuple[ScoredCaption, ...]]) -> Iterator[Prediction]:
    for row, references in enumerate(table.reference_texts()):
        if references:
            yield Prediction(
                image_id=int(table.image_ids[row]),
                file_name=table.file_names[row],
                caption=captions[row],
                references=references,
                alternatives=alternatives[row],
            )


def _training_captions(run: Run, features: Path | None, shards: Path | None, notes: list[str]) -> tuple[str, ...] | None:
    """The training captions beside the split, as they were written; None, and a note, where they are not at hand."""
    try:
        if features is not None:
            path = feature_path(features, "train")
            if not path.is_file():
                notes.append(f"novel: the training captions are not at hand (there is no {path}).")
                return None
            file = open_features(path)
            texts, digest, kind, place = file.table.texts, file.digest, "features", str(path)
        else:
            assert shards is not None
            if "train" not in read_dataset_file(shards).splits:
                notes.append(f"novel: the training captions are not at hand (there is no split 'train' in {origin(shards)}).")
                return None
            split = open_split(shards, "train")
            if any(shard.mirror is not None and not records_path(shard.path).is_file() for shard in split.shards):
                notes.append(f"novel: the training captions are not at hand (those of {origin(shards)} have not been fetched).")
                return None
            texts, digest, kind, place = table_of_split(split).texts, split.digest, "shards", origin(shards)
    except CapstreamError as error:
        notes.append(f"novel: the training captions cannot be read ({error})")
        return None
    if run.config.source == kind and run.config.data_digest != digest:
        notes.append(f"novel: compared with the training captions of {place}, which is not what the run was trained on.")
    return texts


def run_network(run: Run) -> dict[str, object]:
    """What must be equal for features to suit a run, in the form of :meth:`shards.features.Provenance.network`."""
    network = run.config.network
    content = network.content()
    return {key: content[key] for key in ("backbone", "weights_sha256", "preprocessing")}


def _cached(run: Run, path: Path, batch_size: int) -> EvaluationData:
    file = open_features(path)
    found: dict[str, Any] = recorded_network(file.provenance).content()
    there = {key: found[key] for key in ("backbone", "weights_sha256", "preprocessing")}
    check_network(f"{run.folder}", run_network(run), f"{path}", there)
    starts = range(0, file.table.images, batch_size)
    batches = (torch.from_numpy(np.array(file.mean_view(start, start + batch_size))) for start in starts)
    return EvaluationData(table=file.table, batches=batches, path=str(path), digest=file.digest, views=file.provenance.views)


def _raw(captioner: ImageCaptioner, shards: Path, split_name: str, batch_size: int) -> EvaluationData:
    split = open_split(shards, split_name)
    preprocessing = captioner.preprocessing
    resize = split.config["resize"]
    wanted = {"size": preprocessing.size, "mode": preprocessing.mode, "filter": preprocessing.filter}
    check_network(f"{captioner.run.folder}", wanted, f"{shards}", resize)
    captioner.open_backbone()
    table = table_of_split(split)
    source = ShardSource(split, table, preprocessing, "none")
    starts: Sequence[int] = range(0, table.images, batch_size)

    def load(start: int) -> Tensor:
        rows = np.arange(start, min(start + batch_size, table.images))
        return source.images(rows, np.zeros((len(rows), 3)))

    batches = (captioner.extract(pixels) for pixels in map_ahead(load, starts, threads=source.threads))
    return EvaluationData(table=table, batches=batches, path=origin(shards), digest=split.digest, views=("center",))
