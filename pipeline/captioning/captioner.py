"""An opened run that captions images: the frozen network, the captioner's weights and the vocabulary, loaded once.

The command line, evaluation and Python programs stand on it::

    captioner = ImageCaptioner(CaptionerConfig(run=Path("runs/demo")))
    for found in captioner.caption(["dog.jpg", jpeg_bytes, pixels]):
        print(found.name, found.captions[0].caption)
"""

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from model.decoding import Decoding, Hypothesis, ScoredCaption, decode
from model.encoder import FrozenBackbone, mean_is_pooled
from model.preprocessing import Preprocessing, center_crop
from pipeline.backbone.backbones import reopen_backbone
from pipeline.backbone.extraction import extract_features
from pipeline.backbone.precision import AGREEMENT_IMAGES, choose_precision, compile_if_worthwhile, pick_precision
from pipeline.captioning.inputs import image_bytes
from pipeline.captions.languages import Language, language_rules
from pipeline.execution.devices import images_per_pass, pick_device, prepare_device
from pipeline.execution.executors import default_workers
from pipeline.execution.library_warnings import gathered_warnings
from pipeline.execution.prefetch import map_ahead
from pipeline.images.decode import ImageError, Resize, decode_image
from pipeline.runs.checkpoints import CheckpointChoice, checkpoint_folder
from pipeline.runs.run import kept_weights, open_caption_model, open_run
from shards.errors import DamageError, MismatchError

# A file or URL, the bytes of an image file, or pixels, uint8 (height, width, 3).
ImageInput: TypeAlias = str | Path | bytes | NDArray[np.uint8]

# Below this number of images, testing a faster precision takes longer than it saves.
FAST_FROM_IMAGES = 256
# Hypotheses decoded in one batch: sampling from 10,000 words needs 0.4 MB for each.
HYPOTHESES_AT_ONCE = 2048


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """Which weights caption images, and how.

    Attributes:
        run: A run directory.
        ensemble: More runs that caption together with it; see :func:`pipeline.runs.run.open_caption_model`.
        decoding: Greedy search by default.
        precision: Of the frozen network, as for ``cache-features``; ``auto`` stays with fp32 for a few images.
        device: As for :func:`pipeline.execution.devices.pick_device`.
        weights: Where the backbone's weights are, if they are no longer where the run recorded them.
        checkpoint: As for :func:`pipeline.runs.run.open_run`.
    """

    run: Path
    ensemble: Sequence[Path] = ()
    decoding: Decoding = Decoding()  # noqa: RUF009 - frozen
    precision: str = "auto"
    device: str = "auto"
    weights: str | None = None
    checkpoint: CheckpointChoice = "latest"


@dataclass(frozen=True, kw_only=True)
class ImageCaptions:
    """The captions of an image, the best first, or why there are none.

    Attributes:
        name: The file or URL; the image's number if it was given as bytes or pixels.
        captions: All captions that decoding found; scores as in :class:`model.decoding.Hypothesis`.
        problem: Why there are none.
        warnings: What Pillow warned about while it decoded the image.
    """

    name: str
    captions: tuple[ScoredCaption, ...] = ()
    problem: str | None = None
    warnings: tuple[str, ...] = ()


class ImageCaptioner:
    """Captions images with a run.

    Args:
        config: What to open.
        expected_images: How many images will be captioned. A faster precision and compiling pay off only for many.
        report: Receives a line for each damaged checkpoint that was skipped, and for each decision about the precision.

    Attributes:
        run: The opened run.
        model: The run's captioner, or the ensemble.
        network: The network whose features the model takes, with their layout.
        pools: Whether a member of the model sees the mean over the positions where the network's pooled features are meant.
        device: Where they are.

    Raises:
        InputError, DamageError, MismatchError: The run cannot be opened, or a setting is impossible.
    """

    def __init__(self, config: CaptionerConfig, *, expected_images: int = 1, report: Callable[[str], None] = lambda _: None) -> None:
        self.config, self.expected_images, self.report = config, expected_images, report
        self.device = pick_device(config.device)
        pick_precision(config.precision, self.device)
        self.run = open_run(config.run, device=self.device, checkpoint=config.checkpoint)
        for note in self.run.notes:
            report(note)
        opened = open_caption_model(self.run, config.ensemble, checkpoint=config.checkpoint)
        self.model, self.network, self.pools = opened.model, opened.network, opened.pools
        self._exact: FrozenBackbone | None = None
        self._frozen: FrozenBackbone | None = None

    @property
    def language(self) -> Language:
        """How the vocabulary's words are joined to captions."""
        return language_rules(self.run.vocabulary.language)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images are resized, cropped and normalised.

        Raises:
            InputError: The run was trained on imported features whose network was not declared.
        """
        return self.network.declared_preprocessing()

    def open_backbone(self) -> None:
        """Load the frozen network now instead of with the first image. Captioning features does not need it.

        Raises:
            InputError, MismatchError, ResourceError: As :func:`pipeline.backbone.backbones.reopen_backbone`.
        """
        if self._exact is None:
            prepare_device(self.device)
            self._exact = reopen_backbone(self.network, kept=kept_weights(self.run.folder), weights=self.config.weights)
            if self.pools and not mean_is_pooled(self._exact):
                raise MismatchError(
                    f"{self.config.run}: the mean over the {self.network.layout} features of {self.network.backbone} is not what it pools: runs on "
                    "pooled features cannot caption together with others."
                )

    def load(self, image: ImageInput, name: str) -> NDArray[np.uint8]:
        """Decode and resize an image: uint8 (height, width, 3).

        Args:
            name: For error messages.

        Raises:
            ImageError: It cannot be read, or is not an image.
        """
        p = self.preprocessing
        return np.array(decode_image(_file_bytes(image, name), name, Resize(size=p.size, mode=p.mode, filter=p.filter)).image, dtype=np.uint8)

    def extract(self, images: Tensor) -> Tensor:
        """Features of cropped images: uint8 (images, crop, crop, 3) -> float16 (images, positions, dim).

        The first images decide about the precision, if the config leaves it open.
        """
        if self._frozen is None:
            self._frozen = self._prepared(images[:AGREEMENT_IMAGES])
        return extract_features(self._frozen, images.to(self.device), batch_size=images_per_pass(self.device))

    def _prepared(self, sample: Tensor) -> FrozenBackbone:
        self.open_backbone()
        assert self._exact is not None
        few = self.config.precision == "auto" and self.expected_images < FAST_FROM_IMAGES
        computed = choose_precision(self._exact, precision="fp32" if few else self.config.precision, device=self.device, sample=sample)
        computed = compile_if_worthwhile(computed, sample=sample, views=self.expected_images, views_per_pass=images_per_pass(self.device))
        for note in computed.notes:
            self.report(note)
        return computed.frozen

    def caption_features(self, features: Tensor, *, mask: Tensor | None = None, numbers: Sequence[int]) -> list[list[Hypothesis]]:
        """Decode captions from features, float (images, positions, dim).

        Args:
            mask: bool (images, positions): which positions are real and not padding; None: all of them.
            numbers: The number of each image among all, for sampling; see :func:`model.decoding.decode`.

        Raises:
            DamageError: The model's scores contain NaN; names the checkpoint.
        """
        size = max(1, HYPOTHESES_AT_ONCE // self.config.decoding.hypotheses)
        found: list[list[Hypothesis]] = []
        try:
            for start in range(0, len(features), size):
                those = slice(start, start + size)
                real = None if mask is None else mask[those].to(self.device)
                batch = features[those].to(self.device)
                found += decode(self.model, batch, self.run.vocabulary, self.config.decoding, mask=real, numbers=numbers[those])
        except ValueError as error:
            checkpoint = checkpoint_folder(self.run.folder, self.run.position.step)
            raise DamageError(
                f"{checkpoint}: {error}. Choose another `checkpoint` (best or latest). If the training's loss grew, train again into another "
                "folder with a smaller learning rate."
            ) from None
        return found

    def caption(self, images: Sequence[ImageInput]) -> Iterator[ImageCaptions]:
        """Caption images in the order given. An image that cannot be read gets a ``problem`` instead of captions.

        Images are decoded in the background, and pass through the network in batches.
        """
        names = [str(image) if isinstance(image, str | Path) else str(number) for number, image in enumerate(images)]
        size = images_per_pass(self.device)
        crop = self.preprocessing.crop
        loading = map_ahead(self._load_or_error, zip(images, names, strict=True), threads=default_workers(), depth=2 * size)
        for start in range(0, len(names), size):
            loaded = list(itertools.islice(loading, size))
            readable = [start + place for place, (item, _) in enumerate(loaded) if not isinstance(item, ImageError)]
            found: Iterator[list[Hypothesis]] = iter(())
            if readable:
                pixels = center_crop([torch.from_numpy(item) for item, _ in loaded if not isinstance(item, ImageError)], crop)
                found = iter(self.caption_features(self.extract(pixels), numbers=readable))
            for name, (item, warnings) in zip(names[start : start + size], loaded, strict=True):
                if isinstance(item, ImageError):
                    yield ImageCaptions(name=name, problem=str(item))
                else:
                    yield ImageCaptions(name=name, captions=scored_captions(next(found), self.language), warnings=warnings)

    def _load_or_error(self, image_and_name: tuple[ImageInput, str]) -> tuple[NDArray[np.uint8] | ImageError, tuple[str, ...]]:
        with gathered_warnings() as gathered:
            try:
                pixels = self.load(*image_and_name)
            except ImageError as error:
                return error, ()
        return pixels, tuple(itertools.chain.from_iterable(gathered.values()))


def scored_captions(hypotheses: Sequence[Hypothesis], language: Language) -> tuple[ScoredCaption, ...]:
    """Hypotheses as text."""
    return tuple(ScoredCaption(caption=language.join(hypothesis.words), score=hypothesis.score) for hypothesis in hypotheses)


def _file_bytes(image: ImageInput, name: str) -> bytes:
    """The bytes of an image file; pixels become a lossless one, so that they are resized like any other image."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return image_bytes(str(image))
    return _encoded(image, name)


def _encoded(pixels: NDArray[np.uint8], name: str) -> bytes:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ImageError("not_an_image", f"{name}: pixels have to be uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}")
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()
