"""Where a decoder looked for each word of a caption, as pictures: the image as the network saw it, bright where the attention was high."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from model.captioner import Captioner
from model.preprocessing import center_crop
from model.vocabulary import END, START
from pipeline.captioning.captioner import ImageCaptioner, ImageInput
from pipeline.images.figures import image_grid, save_figure
from shards.errors import InputError, SettingsError

# An image has a picture for each of its words.
MAX_ATTENTION_IMAGES = 12
# Brightness where a decoder did not look, and the share of the colour map where it looked most
DARKEST, COLOURED = 0.35, 0.55


@dataclass(frozen=True, kw_only=True)
class CaptionAttention:
    """A caption, and where each of its tokens was found.

    Attributes:
        pixels: The crop that the network saw, uint8 (crop, crop, 3).
        caption: The caption as text.
        tokens: Its words, and the end token.
        weights: float32 (tokens, positions); rows add up to 1.
    """

    pixels: NDArray[np.uint8]
    caption: str
    tokens: tuple[str, ...]
    weights: NDArray[np.float32]


def check_attention(captioner: ImageCaptioner) -> None:
    """Check that a run's decoder looks at a grid of positions.

    Raises:
        SettingsError: It does not, or there are several runs.
    """
    if not isinstance(captioner.model, Captioner):
        raise SettingsError("`attention`: an ensemble looks where its members look. Choose one of its runs.")
    if captioner.model.decoder.pooled:
        raise SettingsError(
            f"`attention`: the decoder {captioner.model.config.decoder} of {captioner.config.run} sees one vector, and looks at no part of an image. "
            "Choose a run of the decoder attention or transformer, on grid features."
        )


def caption_attention(captioner: ImageCaptioner, image: ImageInput, name: str) -> CaptionAttention:
    """Caption an image, and find where the decoder looked for each token of its best caption.

    Args:
        captioner: Passed :func:`check_attention`.
        name: The image's name, for messages.

    Raises:
        ImageError: The image cannot be read.
        InputError: Its features are no square grid.
    """
    assert isinstance(captioner.model, Captioner)
    pixels = center_crop([torch.from_numpy(captioner.load(image, name))], captioner.preprocessing.crop)
    features = captioner.extract(pixels)
    side = int(features.shape[1] ** 0.5)
    if side < 2 or side * side != features.shape[1]:
        raise InputError(f"{captioner.config.run}: was trained on {features.shape[1]} positions per image, which are no grid to look at.")
    words = captioner.caption_features(features, numbers=[0])[0][0].words
    vocabulary = captioner.run.vocabulary
    weights = attention_of(captioner.model, features.to(captioner.device), vocabulary.encode([START, *words]))
    return CaptionAttention(
        pixels=pixels[0].numpy(), caption=captioner.language.join(words), tokens=(*words, END), weights=weights.float().cpu().numpy()
    )


@torch.inference_mode()
def attention_of(model: Captioner, features: Tensor, tokens: Sequence[int]) -> Tensor:
    """Where a decoder looks to predict the token after each of ``tokens``.

    Args:
        model: In eval mode; its decoder has attention.
        features: float (1, positions, feature_dim).
        tokens: <start> and the caption's words.

    Returns:
        float (tokens, positions).
    """
    state, rows = model.first_state(features), []
    for token in tokens:
        _, state = model.decoding_step(torch.tensor([token], device=features.device), state)
        weights = model.decoder.attention_weights(state)
        assert weights is not None
        rows.append(weights[0])
    return torch.stack(rows)


def draw_attention(found: Sequence[CaptionAttention], out: Path) -> str | None:
    """Write a picture: for each image the crop with its caption, then the crop for each token.

    Returns:
        A line about characters that no font has, as :func:`pipeline.images.fonts.choose_fonts` returns it.

    Raises:
        ResourceError: Disk full, not allowed.
    """
    panels = []
    for one in found:
        panels.append((one.pixels, one.caption))
        for token, weights in zip(one.tokens, one.weights, strict=True):
            panels.append((highlighted(one.pixels, weights), "(end)" if token == END else token))
    return save_figure(image_grid(panels), out)


def highlighted(pixels: NDArray[np.uint8], weights: NDArray[np.float32]) -> NDArray[np.uint8]:
    """An image, bright and coloured where the attention is high.

    Args:
        pixels: uint8 (side, side, 3).
        weights: (N * N,), the positions row by row; scaled to the largest one.
    """
    from matplotlib import colormaps

    side = round(len(weights) ** 0.5)
    grid = torch.from_numpy(weights.reshape(1, 1, side, side) / weights.max())
    # (height, width, 1), from 0 to 1: positions are the middles of the grid's cells
    heat = functional.interpolate(grid, size=pixels.shape[:2], mode="bilinear", align_corners=False)[0, 0, :, :, None].numpy()
    colours = colormaps["inferno"](heat[..., 0])[..., :3] * 255
    mixed = pixels * (DARKEST + (1 - DARKEST) * heat) * (1 - COLOURED * heat) + colours * (COLOURED * heat)
    result: NDArray[np.uint8] = np.clip(mixed, 0, 255).astype(np.uint8)
    return result
