"""Run + photographs -> captions."""

import itertools
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from model.decoding import Decoding, Hypothesis, ScoredCaption
from model.encoder import FrozenBackbone
from model.preprocessing import center_crop
from pipeline.backbone.backbones import reopen_backbone
from pipeline.backbone.precision import AGREEMENT_IMAGES, choose_precision, compile_if_worthwhile, pick_precision
from pipeline.captioning.decode import decode_run, scored_captions
from pipeline.captioning.inputs import image_bytes
from pipeline.execution.devices import images_per_pass, pick_device, prepare_device
from pipeline.execution.executors import default_workers
from pipeline.execution.prefetch import ahead
from pipeline.execution.progress import Progress
from pipeline.images.decode import ImageError, Resize, decode_image
from pipeline.runs.checkpoints import CheckpointChoice
from pipeline.runs.run import Run, kept_weights, open_caption_model, open_run

# From so many photographs on, judging a faster arithmetic on some of them costs less than it saves.
FAST_FROM_IMAGES = 256
GREEDY = Decoding()


@dataclass(frozen=True, kw_only=True)
class ImageCaptions:
    """A photograph's captions, the best first, or why there are none.

    Attributes:
        name: The file or URL.
        captions: All that decoding found; scores as in :class:`model.decoding.Hypothesis`.
        problem: Why there are none.
    """

    name: str
    captions: tuple[ScoredCaption, ...] = ()
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
    checkpoint: CheckpointChoice = "latest",
    quiet: bool = True,
    report: Callable[[str], None] | None = None,
) -> Generator[ImageCaptions, None, None]:
    """Caption photographs, in the order given; one that cannot be read gets its problem instead, and the others go on.

    Args:
        run: A run directory.
        others: More runs that caption together with it, as :func:`pipeline.runs.run.open_caption_model` says.
        images: Files and URLs, as :func:`pipeline.captioning.inputs.named_images` gives them.
        decoding: How captions are made; by default greedily.
        precision: Of the frozen network, as for ``cache-features``; ``auto`` stays with fp32 for a few photographs, where judging
            anything faster would take longer than it saves.
        weights: Where the backbone's weights are, if no longer at the place that the run recorded.
        checkpoint: Of the run, as for :func:`pipeline.runs.run.open_run`.
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
    model = open_caption_model(opened, others, checkpoint=checkpoint)
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
                    asked = "fp32" if precision == "auto" and len(images) < FAST_FROM_IMAGES else precision
                    arithmetic = choose_precision(exact, precision=asked, device=chosen_device, sample=pixels[:AGREEMENT_IMAGES])
                    arithmetic = compile_if_worthwhile(arithmetic, sample=pixels[:AGREEMENT_IMAGES], views=len(images), views_per_pass=size)
                    frozen = arithmetic.frozen
                    if report is not None:
                        for note in arithmetic.notes:
                            report(note)
                # Rounded like cached features.
                features = frozen(pixels.to(chosen_device)).half()
                found = iter(decode_run(opened, model, features, decoding, numbers=there))
            for number, item in zip(group, loaded, strict=True):
                if isinstance(item, ImageError):
                    yield ImageCaptions(name=images[number], problem=str(item))
                else:
                    yield ImageCaptions(name=images[number], captions=scored_captions(next(found)))
            failed += len(group) - len(there)
            progress.advance(len(group), note=f"{failed} failed" if failed else "")


def _load(name: str, resize: Resize) -> NDArray[np.uint8] | ImageError:
    try:
        return np.array(decode_image(image_bytes(name), name, resize).image, dtype=np.uint8)
    except ImageError as error:
        return error


def run_resize(run: Run) -> Resize:
    """How photographs get the size of the shards that the run was trained on.

    Raises:
        InputError: It was trained on features that were imported without a declared network.
    """
    preprocessing = run.config.network.declared_preprocessing()
    return Resize(size=preprocessing.size, mode=preprocessing.mode, filter=preprocessing.filter)
