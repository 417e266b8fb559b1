"""Run + split -> captions of all its images and their scores: a score file, and a result file that other tools can score."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model.decoding import ScoredCaption
from model.feature_layout import POOLED
from pipeline.backbone.backbones import Network, pooled_network, recorded_network
from pipeline.captioning.captioner import CaptionerConfig, ImageCaptioner, scored_captions
from pipeline.evaluation.coco_results import check_results_place, results_path, write_results
from pipeline.evaluation.score_file import ScoreFile, check_scores_place, scores_path, write_scores
from pipeline.evaluation.scoring import Prediction, ScoringConfig, score_texts
from pipeline.execution.prefetch import map_ahead
from pipeline.execution.progress import Progress
from pipeline.loading.feature_source import FeatureSource
from pipeline.loading.sources import ShardSource
from pipeline.runs.recorded_data import recorded_data
from pipeline.runs.run import Run, RunConfig, read_config, refuse_differences
from shards.atomic import WRITER_SECONDS, hold_lock
from shards.caption_table import CaptionTable, table_of_split
from shards.dataset import open_split, read_dataset_file
from shards.errors import CapstreamError, InputError, SettingsError
from shards.features import check_network, feature_path, open_features
from shards.layout import check_split_name, records_path
from shards.mirror import DEFAULT_CACHE_BYTES
from shards.remote import origin


@dataclass(frozen=True, kw_only=True)
class EvaluationSource:
    """What to caption: a split of cached features or of shards.

    Attributes:
        features: A folder of feature files.
        shards: A shard dataset, whose images go through the run's backbone. With neither, the data that the run was trained on are used.
        shard_cache, shard_cache_bytes: As for :class:`pipeline.training.config.DataConfig`.
        split: The split's name.
        batch_size: Images per batch, at least 1.

    Raises:
        SettingsError: Both ``features`` and ``shards``, not a name of a split, or an impossible batch size.
    """

    features: Path | None = None
    shards: Path | None = None
    shard_cache: Path | None = None
    shard_cache_bytes: int = DEFAULT_CACHE_BYTES
    split: str = "val"
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_split_name(self.split)
        if self.features is not None and self.shards is not None:
            raise SettingsError("`features` and `shards` were both given. Omit one: captions are made from cached features or from raw images.")
        if self.batch_size < 1:
            raise SettingsError(f"`batch_size` {self.batch_size}: must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class EvaluationFiles:
    """Where to write.

    Attributes:
        out: The score file, by default ``RUN/SPLIT.scores.json``. An evaluation of several runs has no default.
        results: The captions in COCO's result format, by default next to ``out``.
    """

    out: Path | None = None
    results: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Scores of a run on a split.

    Attributes:
        scores: The content of ``out``.
        captions: One per image, including images without references: (COCO image id, file name, caption). ``results`` has them too.
    """

    scores: ScoreFile
    captions: tuple[tuple[int, str, str], ...]
    out: Path
    results: Path


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """A split, opened for captioning; its batches are features, float16 (images, positions, dim), and their mask, if any."""

    table: CaptionTable
    batches: Iterable[tuple[Tensor, Tensor | None]]
    path: str
    digest: str
    views: tuple[str, ...]


def evaluate(
    captioner: CaptionerConfig,
    source: EvaluationSource,
    *,
    scoring: ScoringConfig = ScoringConfig(),  # noqa: B008 - frozen
    files: EvaluationFiles = EvaluationFiles(),
    command: str = "",
    report: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
) -> Evaluation:
    """Caption all images of a split and score the captions against the references.

    Args:
        captioner: Which run or ensemble captions, and how. An image's caption is the best one that decoding finds; the score file also
            lists the others. The precision ``auto`` is fp32 here, as for cached features in fp32.
        source: What to caption.
        scoring: How to score.
        files: Where to write.
        command: The command line, for the score file.
        report: Takes a line for the data if they are those of the run, for each damaged checkpoint that was skipped, and for each step of scoring
            that takes a while.

    Raises:
        InputError: Wrong names or folders, or a split without captions.
        MismatchError: The features were made by another network than the run's, or the references are in another language.
        DamageError: A file is damaged, or the model's scores contain NaN.
        ResourceError: The disk is full or not writable, or the weights cannot be downloaded.
    """
    config, _ = read_config(captioner.run)
    out, results = _checked_files(captioner, source.split, files)
    source = _with_recorded_data(captioner, config, source, report)
    opened = ImageCaptioner(captioner, report=report)
    scoring.check_language(opened.run.vocabulary.language)
    data = _cached(opened, source) if source.features is not None else _raw(opened, source)
    refuse_differences(
        [("language", opened.run.vocabulary.language, data.table.language)],
        f"{captioner.run} and {data.path} do not belong together: the references have another",
        "Choose data in the run's language.",
    )
    if not data.table.captions:
        raise InputError(f"{data.path}: no image of the split {source.split!r} has a reference caption. Choose another `split`.")
    captions, alternatives = _caption_all(opened, data, source.split, quiet)
    # A second evaluation into the same files waits here, so that scores and captions are of one of them.
    with hold_lock(out.parent, out.name, f"writing {out.name}", wait_seconds=WRITER_SECONDS):
        write_results(results, zip(data.table.image_ids.tolist(), captions, strict=True))
        notes = _unscored(data.table, results)
        training = _training_captions(opened.run, source, notes)
        scores = score_texts(
            list(_predictions(data.table, captions, alternatives)),
            split=source.split,
            made_by=_provenance(opened, source, data, command),
            language=opened.run.vocabulary.language,
            training=training,
            notes=notes,
            scoring=scoring,
            report=report,
        )
        write_scores(out, scores)
    named = tuple(zip(data.table.image_ids.tolist(), data.table.file_names, captions, strict=True))
    return Evaluation(scores=scores, captions=named, out=out, results=results)


def _unscored(table: CaptionTable, results: Path) -> list[str]:
    """A line about the images without a reference, if there are any."""
    without = int((table.caption_counts == 0).sum())
    if not without:
        return []
    return [f"{without:,} of {table.images:,} images have no reference: their captions are in {results.name}, but are not scored."]


def _with_recorded_data(captioner: CaptionerConfig, config: RunConfig, source: EvaluationSource, report: Callable[[str], None]) -> EvaluationSource:
    """The data of the run, if no others are given."""
    if source.features is None and source.shards is None:
        folder = recorded_data(captioner.run, config, cache=source.shard_cache, cache_bytes=source.shard_cache_bytes)
        source = replace(source, features=folder) if config.source == "features" else replace(source, shards=folder)
        report(f"Split {source.split} of the {config.source} that the run was trained on: {origin(folder)}")
    if source.features is not None and captioner.weights is not None:
        raise SettingsError("`weights` requires `shards`: cached features need no backbone.")
    return source


def _checked_files(captioner: CaptionerConfig, split: str, files: EvaluationFiles) -> tuple[Path, Path]:
    """The places of the score file and of the result file, checked before any work starts."""
    if captioner.ensemble and files.out is None:
        raise SettingsError("The scores of an ensemble belong to none of its runs: give `out`, a file for them.")
    out = scores_path(captioner.run, split) if files.out is None else files.out
    results = results_path(out) if files.results is None else files.results
    if out.resolve() == results.resolve():
        raise SettingsError(f"`out` and `results` are both {out}: choose different names.")
    check_scores_place(out)
    check_results_place(results)
    return out, results


def _caption_all(captioner: ImageCaptioner, data: EvaluationData, split: str, quiet: bool) -> tuple[list[str], list[tuple[ScoredCaption, ...]]]:
    """Each image's caption, and all captions that decoding found where there is more than one."""
    captions: list[str] = []
    alternatives: list[tuple[ScoredCaption, ...]] = []
    with Progress(f"Captioning {split}", total=data.table.images, unit="images", quiet=quiet) as progress:
        for batch, mask in data.batches:
            numbers = range(len(captions), len(captions) + len(batch))
            for hypotheses in captioner.caption_features(batch, mask=mask, numbers=numbers):
                captions.append(captioner.language.join(hypotheses[0].words))
                alternatives.append(scored_captions(hypotheses, captioner.language) if len(hypotheses) > 1 else ())
            progress.advance(len(batch))
    return captions, alternatives


def _provenance(captioner: ImageCaptioner, source: EvaluationSource, data: EvaluationData, command: str) -> dict[str, Any]:
    """``made_by`` of the score file."""
    config = captioner.config
    return {
        "command": command,
        "run": str(config.run),
        "others": [str(other) for other in config.ensemble],
        "checkpoint": {"step": captioner.run.position.step, "which": config.checkpoint},
        "decoding": asdict(config.decoding),
        "data": {
            "kind": "features" if source.features is not None else "shards",
            "path": data.path,
            "digest": data.digest,
            "views": list(data.views),
        },
    }


def _predictions(table: CaptionTable, captions: Sequence[str], alternatives: Sequence[tuple[ScoredCaption, ...]]) -> Iterator[Prediction]:
    for row, references in enumerate(table.reference_texts()):
        if references:
            yield Prediction(
                image_id=int(table.image_ids[row]),
                file_name=table.file_names[row],
                caption=captions[row],
                references=references,
                alternatives=alternatives[row],
            )


def _training_captions(run: Run, source: EvaluationSource, notes: list[str]) -> tuple[str, ...] | None:
    """The training captions next to the split, as they were written; None, and a note, where they are not available."""
    missing = "novel: the training captions are not available"
    try:
        if source.features is not None:
            path = feature_path(source.features, "train")
            if not path.is_file():
                notes.append(f"{missing} (there is no {path}).")
                return None
            file = open_features(path)
            texts, digest, kind, place = file.table.texts, file.digest, "features", str(path)
        else:
            assert source.shards is not None
            place = origin(source.shards)
            if "train" not in read_dataset_file(source.shards).splits:
                notes.append(f"{missing} ({place} has no split 'train').")
                return None
            split = open_split(source.shards, "train")
            if any(shard.mirror is not None and not records_path(shard.path).is_file() for shard in split.shards):
                notes.append(f"{missing} (those of {place} have not been fetched).")
                return None
            texts, digest, kind = table_of_split(split).texts, split.digest, "shards"
    except CapstreamError as error:
        notes.append(f"novel: the training captions cannot be read ({error})")
        return None
    if run.config.source == kind and run.config.data_digest != digest:
        notes.append(f"novel: compared with the training captions of {place}, which the run was not trained on.")
    return texts


def comparable(network: Network) -> dict[str, object]:
    """What must be equal for features to fit a run, in the form of :meth:`shards.features.Provenance.network`."""
    content = network.content()
    return {key: content[key] for key in ("backbone", "weights_sha256", "preprocessing", "layout")}


def _cached(captioner: ImageCaptioner, source: EvaluationSource) -> EvaluationData:
    assert source.features is not None
    path = feature_path(source.features, source.split)
    file = open_features(path)
    pooled = captioner.network.layout == POOLED
    there = pooled_network(file) if captioner.pools else recorded_network(file.provenance)
    there = there if pooled else replace(there, layout=file.provenance.layout)
    check_network(f"{captioner.run.folder}", comparable(captioner.network), f"{path}", comparable(there))
    features = FeatureSource(file, pooled=pooled, memory_bytes=0)

    def read(start: int) -> tuple[Tensor, Tensor | None]:
        rows = np.arange(start, min(start + source.batch_size, file.table.images))
        return features.images(rows, np.zeros((len(rows), 3))), features.mask(rows)

    batches = map_ahead(read, range(0, file.table.images, source.batch_size), threads=features.threads)
    return EvaluationData(table=file.table, batches=batches, path=str(path), digest=file.digest, views=file.provenance.views)


def _raw(captioner: ImageCaptioner, source: EvaluationSource) -> EvaluationData:
    assert source.shards is not None
    split = open_split(source.shards, source.split)
    preprocessing = captioner.preprocessing
    wanted = {"size": preprocessing.size, "mode": preprocessing.mode, "filter": preprocessing.filter}
    check_network(f"{captioner.run.folder}", wanted, f"{source.shards}", split.config["resize"])
    captioner.open_backbone()
    table = table_of_split(split)
    images = ShardSource(split, table, preprocessing, "none")
    starts: Sequence[int] = range(0, table.images, source.batch_size)

    def load(start: int) -> Tensor:
        rows = np.arange(start, min(start + source.batch_size, table.images))
        return images.images(rows, np.zeros((len(rows), 3)))

    batches = ((captioner.extract(pixels), None) for pixels in map_ahead(load, starts, threads=images.threads))
    return EvaluationData(table=table, batches=batches, path=origin(source.shards), digest=split.digest, views=("center",))
