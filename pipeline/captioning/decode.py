"""TODO pipeline/captioning/decode.py."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from model.captioner import CaptionModel
from model.decoding import Decoding, Hypothesis, ScoredCaption, decode, sentence
from pipeline.runs.checkpoints import checkpoint_folder
from pipeline.runs.run import Run
from shards.errors import DamageError

# Hypotheses that are followed together: with 10,000 words, sampling holds 0.4 MB for each.
ROWS_AT_ONCE = 2048


def decode_run(run: Run, model: CaptionModel, features: Tensor, decoding: Decoding, *, numbers: Sequence[int]) -> list[list[Hypothesis]]:
    """Captions of a batch of images, as :func:`model.decoding.decode` makes them with a run's captioner, or one that speaks with it.

    Raises:
        DamageError: The captioner's scores are not finite; names its checkpoint.
    """
    size = max(1, ROWS_AT_ONCE // decoding.hypotheses)
    try:
        return [
            found
            for start in range(0, len(features), size)
            for found in decode(model, features[start : start + size], run.vocabulary, decoding, numbers=numbers[start : start + size])
        ]
    except ValueError as error:
        checkpoint = checkpoint_folder(run.folder, run.position.step)
        raise DamageError(
            f"{checkpoint}: {error}. Take another checkpoint (--checkpoint best or latest), or train again into another folder, "
            "with a smaller --lr if the training's loss grew."
        ) from None


def scored_captions(hypotheses: Iterable[Hypothesis]) -> tuple[ScoredCaption, ...]:
    """Hypotheses as files and people read them."""
    return tuple(ScoredCaption(caption=sentence(hypothesis.words), score=hypothesis.score) for hypothesis in hypotheses)
