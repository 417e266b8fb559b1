"""Anybody's result file + references -> scores, without a run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from pipeline.captions.read import CaptionSource, read_captions
from pipeline.evaluation.coco_results import read_results
from pipeline.evaluation.score_file import ENDING, ScoreFile, check_scores_place, write_scores
from pipeline.evaluation.scoring import Prediction, Ptb, check_tokenizer, score_texts
from shards.digests import file_sha256
from shards.errors import InputError


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
    out: Path | None = None,
    ptb: Ptb = "builtin",
    java: bool = True,
    command: str = "",
    report: Callable[[str], None] = lambda _: None,
) -> ScoredResults:
    """Score a file in COCO's result format against captions that people wrote.

    Args:
        captions: A JSON list of ``{"image_id", "caption"}``, a caption for each image; images without one are counted and not scored.
        references: What people wrote, as :func:`pipeline.captions.read.read_captions` reads it, of all splits.
        columns: Of a table of references, as for :class:`pipeline.captions.read.CaptionSource`.
        out: The score file; by default ``NAME.scores.json`` beside ``captions``.
        ptb, java: As :func:`pipeline.evaluation.scoring.score_texts`.
        command: The command line, for the score file.
        report: Takes a line for each step that takes a while.

    Raises:
        InputError: A file is missing or not of its form, or ``out`` is something else; an image has no reference, or two captions.
        ResourceError: Disk full, not allowed.
    """
    check_tokenizer(ptb)
    out = captions.with_name(f"{captions.name.removesuffix('.json')}{ENDING}") if out is None else out
    for given, option in ((captions, "--captions"), (references, "--references")):
        if out.resolve() == given.resolve():
            raise InputError(f"--out {out}: this is the file of {option}, which would be lost. Choose another name.")
    check_scores_place(out)
    read = read_captions(CaptionSource(paths=(references,), columns=columns))
    records = [record for some in read.splits.values() for record in some]
    rejects = [reject for some in read.rejects.values() for reject in some]
    if not records:
        raise InputError(f"{references}: no image has a usable caption to compare with. Give the --references that these captions were made for.")
    truth = {record.image_id: record for record in records}
    found = read_results(captions, list(truth))
    notes = []
    if len(found) < len(truth):
        notes.append(f"{len(truth) - len(found):,} of {len(truth):,} images have no caption: the scores are of the others.")
    if rejects:
        notes.append(f"{references}: {len(rejects):,} entries could not be used; the first: {rejects[0].message}.")
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
    notes.append("novel: a result file does not say what its model was trained on.")
    scores = score_texts(images, split="", made_by=made_by, notes=notes, ptb=ptb, java=java, say=report)
    write_scores(out, scores)
    return ScoredResults(scores=scores, out=out)
