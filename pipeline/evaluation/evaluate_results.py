"""Result file from any source + references -> scores, without a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pipeline.captions.languages import ENGLISH
from pipeline.captions.read import CaptionSource, read_captions
from pipeline.captions.records import CaptionedImage
from pipeline.captions.scripts import language_advice
from pipeline.evaluation.coco_results import read_results
from pipeline.evaluation.score_file import ENDING, ScoreFile, check_scores_place, write_scores
from pipeline.evaluation.scoring import Prediction, ScoringConfig, score_texts
from shards.digests import file_sha256
from shards.errors import InputError, SettingsError


@dataclass(frozen=True, kw_only=True)
class ScoredResults:
    """The scores of a result file, and where they were written."""

    scores: ScoreFile
    out: Path


def score_results(
    *,
    captions: Path,
    references: Path,
    columns: Mapping[str, str] = MappingProxyType({}),
    encoding: str | None = None,
    language: str = ENGLISH,
    out: Path | None = None,
    scoring: ScoringConfig = ScoringConfig(),  # noqa: B008 - frozen
    command: str = "",
    report: Callable[[str], None] = lambda _: None,
) -> ScoredResults:
    """Score a file in COCO's result format against reference captions.

    Args:
        captions: A JSON list of ``{"image_id", "caption"}``, one caption per image. Images without one are counted, but not scored.
        references: The reference captions of all splits, as :func:`pipeline.captions.read.read_captions` reads them.
        columns, encoding: Of references in a table, as for :class:`pipeline.captions.read.CaptionSource`.
        language: Of captions and references, as :func:`pipeline.captions.languages.language_rules` takes it.
        out: The score file; by default ``NAME.scores.json`` next to ``captions``.
        command: The command line, for the score file.
        report: Takes a line for each step that takes a while.

    Raises:
        InputError: A file is missing or has the wrong form, ``out`` is another kind of file, an image has no reference or two captions.
        ResourceError: The disk is full or not writable.
    """
    out = captions.with_name(f"{captions.name.removesuffix('.json')}{ENDING}") if out is None else out
    for given, setting in ((captions, "captions"), (references, "references")):
        if out.resolve() == given.resolve():
            raise SettingsError(f"`out` {out}: is the file of `{setting}`, which would be overwritten. Choose another name.")
    check_scores_place(out)
    scoring.check_language(language)
    notes: list[str] = []
    truth = _read_references(references, columns, encoding, notes)
    found = read_results(captions, list(truth))
    if advice := language_advice([record.captions[0].text for record in truth.values()], language):
        report(advice)
    if len(found) < len(truth):
        notes.insert(0, f"{len(truth) - len(found):,} of {len(truth):,} images have no caption: the scores are of the other images.")
    notes.append("novel: a result file does not say what its model was trained on.")
    images = [
        Prediction(
            image_id=image_id,
            file_name=truth[image_id].file_name,
            caption=caption,
            references=tuple(reference.text for reference in truth[image_id].captions),
        )
        for image_id, caption in found.items()
    ]
    made_by = {
        "command": command,
        "captions": str(captions),
        "captions_sha256": file_sha256(captions),
        "references": str(references),
        "references_sha256": file_sha256(references),
    }
    scores = score_texts(images, split="", made_by=made_by, language=language, notes=notes, scoring=scoring, report=report)
    write_scores(out, scores)
    return ScoredResults(scores=scores, out=out)


def _read_references(references: Path, columns: Mapping[str, str], encoding: str | None, notes: list[str]) -> dict[int, CaptionedImage]:
    """The images of all splits by their ids; a note where entries were rejected."""
    read = read_captions(CaptionSource(paths=(references,), columns=columns, encoding=encoding))
    records = [record for split in read.splits.values() for record in split]
    rejects = [reject for split in read.rejects.values() for reject in split]
    if not records:
        raise InputError(f"{references}: no image has a usable caption. Give the `references` that these captions were made for.")
    if rejects:
        notes.append(f"{references}: {len(rejects):,} entries were rejected; the first: {rejects[0].message}.")
    return {record.image_id: record for record in records}
