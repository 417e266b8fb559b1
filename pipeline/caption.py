"""Run + photographs -> captions."""

import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.decoder import Speaker
from model.decoding import Decoding, Hypothesis, decode, sentence
from model.encoder import FrozenBackbone
from model.preprocessing import center_crop
from pipeline.arithmetic import choose_arithmetic, compile_where_it_pays, pick_precision, prepare_device
from pipeline.backbones import pick_device, reopen_backbone
from pipeline.cache_features import AGREEMENT_IMAGES
from pipeline.checkpoints import Which, checkpoint_folder
from pipeline.executors import default_workers
from pipeline.images import ImageError, Resize, decode_image
from pipeline.photographs import photograph_bytes
from pipeline.prefetch import ahead
from pipeline.progress import Progress
from pipeline.run import Run, kept_weights, open_run, open_speaker
from pipeline.scores import Alternative
from pipeline.training_data import images_per_pass
from shards.errors import DamageError

# From so many photographs on, judging a faster arithmetic on some of them costs less than it saves.
FAST_FROM_PHOTOGRAPHS = 256
GREEDY = Decoding()
# Hypotheses that are followed together: with 10,000 words, sampling holds 0.4 MB for each.
ROWS_AT_ONCE = 2048


@dataclass(frozen=True, kw_only=True)
class CaptionedPhotograph:
    """A photograph's captions, the best first, or why there are none.

    Attributes:
        name: The file or URL.
        captions: All that decoding found; scores as in :class:`model.decoding.Hypothesis`.
        problem: Why there are none.
    """

    name: str
    captions: tuple[Alternative, ...] = ()
    problem: str | None = None

    def lines(self, count: int, *, named: bool, as_json: bool) -> Iterator[str]:
        """The best ``count`` captions as lines of output; nothing for a problem, unless as JSON.

        Args:
            named: The photograph's name stands before each caption.
            as_json: One line instead: ``{"image", "captions": [{"caption", "score"}, ...]}``, or ``{"image", "problem"}``.
        """
        if as_json:
            found = {"captions": [asdict(one) for one in self.captions[:count]]} if self.problem is None else {"problem": self.problem}
            yield json.dumps({"image": self.name, **found})  # in ASCII: a name need not be text in any encoding
            return
        for one in self.captions[:count]:
            yield (f"{self.name}: " if named else "") + one.caption + (f"  ({one.score:.2f})" if count > 1 else "")


def caption_images(
    *,
    run: Path,
    images: Sequence[str],
    others: Sequence[Path] = (),
    decoding: Decoding = GREEDY,
    precision: str = "auto",
    device: str = "auto",
    weights: str | None = None,
    checkpoint: Which = "latest",
    quiet: bool = True,
    report: Callable[[str], None] | None = None,
) -> Generator[CaptionedPhotograph, None, None]:
    """Caption photographs, in the order given; one that cannot be read gets its problem instead, and the others go on.

    Args:
        run: A run directory.
        others: More runs that caption together with it, as :func:`pipeline.run.open_speaker` says.
        images: Files and URLs, as :func:`pipeline.photographs.named_photographs` gives them.
        decoding: How captions are made; by default greedily.
        precision: Of the frozen network, as for ``cache-features``; ``auto`` stays with fp32 for a few photographs, where judging
            anything faster would take longer than it saves.
        weights: Where the backbone's weights are, if no longer at the place that the run recorded.
        checkpoint: Of the run, as for :func:`pipeline.run.open_run`.
        report: Told of damaged checkpoints that were passed over, and what was decided about the arithmetic.

    Raises:
        InputError, DamageError, MismatchError, ResourceError: The run or its backbone cannot be opened.
    """
    chosen_device = pick_device(device)
    pick_precision(precision, chosen_device)
    opened = open_run(run, device=chosen_device, checkpoint=checkpoint)
    if report is not None:
        for note in opened.notes:
            report(note)
    speaker = open_speaker(opened, others, checkpoint=checkpoint)
    resize, crop = run_resize(opened), opened.config.network.declared_preprocessing().crop
    size = images_per_pass(chosen_device)
    groups = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]

    def load(name: str) -> NDArray[np.uint8] | ImageError:
        return _load(name, resize)

    with Progress("Captioning", total=len(images), unit="images", quiet=quiet) as progress:
        loading = ahead(load, images, threads=default_workers(), depth=2 * size)
        prepare_device(chosen_device)
        exact = reopen_backbone(opened.config.network, kept=kept_weights(run), weights=weights)
        frozen: FrozenBackbone | None = None
        failed = 0
        for group in groups:
            loaded = list(itertools.islice(loading, len(group)))
            there = [number for number, item in zip(group, loaded, strict=True) if not isinstance(item, ImageError)]
            found: Iterator[list[Hypothesis]] = iter(())
            if there:
                pixels = center_crop([torch.from_numpy(item) for item in loaded if not isinstance(item, ImageError)], crop)
                if frozen is None:  # the first photographs that can be read are those that the arithmetic is judged on
                    asked = "fp32" if precision == "auto" and len(images) < FAST_FROM_PHOTOGRAPHS else precision
                    arithmetic = choose_arithmetic(exact, precision=asked, device=chosen_device, sample=pixels[:AGREEMENT_IMAGES])
                    arithmetic = compile_where_it_pays(arithmetic, sample=pixels[:AGREEMENT_IMAGES], views=len(images), views_per_pass=size)
                    frozen = arithmetic.frozen
                    if report is not None:
                        for note in arithmetic.notes:
                            report(note)
                # Rounded like cached features.
                features = frozen(pixels.to(chosen_device)).half()
                found = iter(decode_run(opened, speaker, features, decoding, numbers=there))
            for number, item in zip(group, loaded, strict=True):
                if isinstance(item, ImageError):
                    yield CaptionedPhotograph(name=images[number], problem=str(item))
                else:
                    yield CaptionedPhotograph(name=images[number], captions=as_alternatives(next(found)))
            failed += len(group) - len(there)
            progress.advance(len(group), note=f"{failed} failed" if failed else "")


def decode_run(run: Run, speaker: Speaker, features: Tensor, decoding: Decoding, *, numbers: Sequence[int]) -> list[list[Hypothesis]]:
    """Captions of a batch of images, as :func:`model.decoding.decode` makes them with a run's captioner, or one that speaks with it.

    Raises:
        DamageError: The captioner's scores are not finite; names its checkpoint.
    """
    size = max(1, ROWS_AT_ONCE // decoding.hypotheses)
    try:
        return [
            found
            for start in range(0, len(features), size)
            for found in decode(speaker, features[start : start + size], run.vocabulary, decoding, numbers=numbers[start : start + size])
        ]
    except ValueError as error:
        checkpoint = checkpoint_folder(run.folder, run.position.step)
        raise DamageError(
            f"{checkpoint}: {error}. Take another checkpoint (--checkpoint best or latest), or train again into another folder, "
            "with a smaller --lr if the training's loss grew."
        ) from None


def as_alternatives(hypotheses: Iterable[Hypothesis]) -> tuple[Alternative, ...]:
    """Hypotheses as files and people read them."""
    return tuple(Alternative(caption=sentence(hypothesis.words), score=hypothesis.score) for hypothesis in hypotheses)


def _load(name: str, resize: Resize) -> NDArray[np.uint8] | ImageError:
    try:
        return np.array(decode_image(photograph_bytes(name), name, resize).image, dtype=np.uint8)
    except ImageError as error:
        return error


def run_resize(run: Run) -> Resize:
    """How photographs get the size of the shards that the run was trained on.

    Raises:
        InputError: It was trained on features that were imported without a declared network.
    """
    preprocessing = run.config.network.declared_preprocessing()
    return Resize(size=preprocessing.size, mode=preprocessing.mode, filter=preprocessing.filter)
