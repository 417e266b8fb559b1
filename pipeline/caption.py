"""Run + photographs -> captions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.decoding import greedy, sentence
from model.encoder import FrozenBackbone
from model.precision import folded
from model.preprocessing import center_crop
from pipeline.arithmetic import prepare_device
from pipeline.backbones import pick_device, reopen_backbone
from pipeline.checkpoints import Which
from pipeline.executors import default_workers
from pipeline.images import ImageError, Resize, load_photograph
from pipeline.prefetch import ahead
from pipeline.progress import Progress
from pipeline.run import Run, kept_weights, open_run

BATCH_SIZE = 32


@dataclass(frozen=True, kw_only=True)
class CaptionedPhotograph:
    """A caption, or why there is none."""

    path: Path
    caption: str | None
    problem: str | None = None


def caption_images(
    *, run: Path, images: Sequence[Path], device: str = "auto", weights: str | None = None, checkpoint: Which = "latest", quiet: bool = True
) -> Iterator[CaptionedPhotograph]:
    """Caption photographs, in the order given; a file that is no image gets its problem instead, and the others go on.

    Args:
        run: A run directory.
        images: Image files of any kind that :mod:`pipeline.images` opens.
        weights: Where the backbone's weights are, if no longer at the place that the run recorded.
        checkpoint: Of the run, as for :func:`pipeline.run.open_run`.

    Raises:
        InputError, DamageError, MismatchError, ResourceError: The run or its backbone cannot be opened.
    """
    opened = open_run(run, device=pick_device(device), checkpoint=checkpoint)
    frozen = open_run_backbone(opened, weights=weights)
    resize = run_resize(opened)
    groups = [images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)]

    def load(paths: Sequence[Path]) -> list[NDArray[np.uint8] | str]:
        return [_load(path, resize) for path in paths]

    with Progress("Captioning", total=len(images), unit="images", quiet=quiet) as progress:
        for paths, loaded in zip(groups, ahead(load, groups, threads=default_workers()), strict=True):
            pixels = [item for item in loaded if not isinstance(item, str)]
            captions = iter(caption_pixels(opened, frozen, [torch.from_numpy(array) for array in pixels]) if pixels else [])
            for path, item in zip(paths, loaded, strict=True):
                if isinstance(item, str):
                    yield CaptionedPhotograph(path=path, caption=None, problem=item)
                else:
                    yield CaptionedPhotograph(path=path, caption=sentence(next(captions)))
            progress.advance(len(paths))


def _load(path: Path, resize: Resize) -> NDArray[np.uint8] | str:
    try:
        return load_photograph(path, resize)
    except ImageError as error:
        return str(error)


def open_run_backbone(run: Run, *, weights: str | None = None) -> FrozenBackbone:
    """The frozen network that a run's features came from, on the run's device."""
    device = next(run.captioner.parameters()).device
    prepare_device(device)
    return folded(reopen_backbone(run.config.network, kept=kept_weights(run.folder), weights=weights)).to(device)


def run_resize(run: Run) -> Resize:
    """How photographs get the size of the shards that the run was trained on."""
    preprocessing = run.config.network.preprocessing
    return Resize(size=preprocessing.size, mode=preprocessing.mode, filter=preprocessing.filter)


def caption_pixels(run: Run, frozen: FrozenBackbone, pixels: Sequence[Tensor]) -> list[list[str]]:
    """Words for resized photographs, each uint8 (height, width, 3)."""
    device = next(run.captioner.parameters()).device
    features = frozen(center_crop(pixels, run.config.network.preprocessing.crop).to(device)).half()
    return greedy(run.captioner, features, run.vocabulary)
