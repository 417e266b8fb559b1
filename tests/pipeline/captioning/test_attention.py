"""Where decoders look: one row of weights for each word, drawn over the crop that the network saw."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from model.captioner import Captioner
from pipeline.captioning.attention import attention_of, caption_attention, check_attention, highlighted
from pipeline.captioning.captioner import CaptionerConfig, ImageCaptioner
from shards.errors import SettingsError
from tests.conftest import TINY_MODEL, Small
from tests.pipeline.short_runs import train_on_cpu


@pytest.fixture(scope="module")
def runs(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    for decoder, more in (("attention", {}), ("transformer", {"heads": 2, "layers": 2})):
        train_on_cpu(out=base / decoder, features=grid, settings={**TINY_MODEL, "decoder": decoder, "epochs": 1, **more})
    return {decoder: base / decoder for decoder in ("attention", "transformer")}


@pytest.mark.parametrize("decoder", ["attention", "transformer"])
def test_every_token_of_the_caption_has_weights_over_the_grid(small: Small, runs: dict[str, Path], decoder: str) -> None:
    captioner = ImageCaptioner(CaptionerConfig(run=runs[decoder], device="cpu"))
    check_attention(captioner)
    image = small.source / "images/scene_000000.jpg"
    found = caption_attention(captioner, image, "scene")
    (usual,) = captioner.caption([image])
    assert found.caption == usual.captions[0].caption
    assert found.pixels.shape == (56, 56, 3)
    assert found.tokens[-1] == "<end>"
    assert found.weights.shape == (len(found.tokens), 4)
    np.testing.assert_allclose(found.weights.sum(axis=1), 1, atol=1e-5)


def test_the_weights_are_those_of_the_steps_that_predict_each_token(runs: dict[str, Path]) -> None:
    captioner = ImageCaptioner(CaptionerConfig(run=runs["transformer"], device="cpu"))
    model = captioner.model
    assert isinstance(model, Captioner)
    features = torch.randn(1, 4, 512)
    whole, begun = attention_of(model, features, [1, 5, 6]), attention_of(model, features, [1, 5])
    torch.testing.assert_close(whole[:2], begun)
    assert not torch.allclose(whole[2], whole[1])


def test_the_image_is_bright_and_coloured_where_the_weight_is_high() -> None:
    pixels = np.full((64, 64, 3), 100, np.uint8)
    drawn = highlighted(pixels, np.array([0.7, 0.1, 0.1, 0.1], np.float32)).astype(int)
    assert drawn[:16, :16].sum() > 1.5 * drawn[48:, 48:].sum()
    assert drawn.shape == (64, 64, 3)
    flat = highlighted(pixels, np.full(4, 0.25, np.float32))
    assert np.ptp(flat.reshape(-1, 3), axis=0).max() == 0


def test_a_decoder_of_one_vector_and_an_ensemble_are_refused(small: Small, runs: dict[str, Path]) -> None:
    with pytest.raises(SettingsError, match=r"the decoder lstm of .* sees one vector, and looks at no part of an image"):
        check_attention(ImageCaptioner(CaptionerConfig(run=small.run, device="cpu")))
    with pytest.raises(SettingsError, match="Choose one of its runs"):
        check_attention(ImageCaptioner(CaptionerConfig(run=runs["attention"], ensemble=[runs["attention"]], device="cpu")))


def test_the_command_draws_the_words_of_each_image_and_names_what_failed(
    small: Small, runs: dict[str, Path], tmp_path: Path, run_cli: Callable[..., Result]
) -> None:
    out, images = tmp_path / "words.png", small.source / "images"
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    drawn = run_cli(
        "caption", "--run", runs["attention"], images / "scene_000000.jpg", tmp_path / "broken.jpg", "--show", "--attention", "--out", out
    )
    assert drawn.exit_code == 1
    assert "No caption: " in drawn.output
    assert "1 of 2 images could not be captioned" in drawn.output
    assert f"Wrote {out}." in drawn.output
    with Image.open(out) as picture:
        assert picture.width > 1000
    for wrong in (["--attention", "--out", out], ["--show", "--attention"], ["--show", "--attention", "--out", out, "--best", 1]):
        assert run_cli("caption", "--run", runs["attention"], images / "scene_000000.jpg", *wrong).exit_code == 2
