"""An opened run captions what Python programs have at hand, again and again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.captioning.captioner import CaptionerConfig, ImageCaptioner
from tests.conftest import Small


def test_a_path_bytes_and_pixels_of_one_image_have_one_caption(small: Small, tmp_path: Path) -> None:
    source = tmp_path / "scene.png"  # lossless: its pixels are those of the array
    Image.open(small.source / "images" / "scene_000001.jpg").save(source)
    pixels = np.asarray(Image.open(source))
    captioner = ImageCaptioner(CaptionerConfig(run=small.run, device="cpu"))
    found = list(captioner.caption([source, str(source), source.read_bytes(), pixels]))
    assert [one.name for one in found] == [str(source), str(source), "2", "3"]
    assert len({one.captions[0].caption for one in found}) == 1
    scores = [one.captions[0].score for one in found]
    assert scores == pytest.approx([scores[0]] * 4, abs=1e-3)
    again = list(captioner.caption([pixels]))  # the opened run is still usable
    assert again[0].captions[0].score == pytest.approx(scores[0], abs=1e-3)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (b"no image", "1: not an image"),
        (np.zeros((4, 4), np.uint8), r"1: pixels have to be uint8 (height, width, 3), not uint8 (4, 4)"),
        (np.zeros((4, 4, 3), np.float32), r"1: pixels have to be uint8 (height, width, 3), not float32 (4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), r"1: pixels have to be uint8 (height, width, 3), not uint8 (0, 4, 3)"),
        ("none.jpg", "none.jpg: no such file"),
    ],
)
def test_what_is_no_image_gets_its_problem_and_stops_nothing(small: Small, image: object, says: str) -> None:
    good = small.source / "images" / "scene_000001.jpg"
    captioner = ImageCaptioner(CaptionerConfig(run=small.run, device="cpu"))
    first, bad, last = captioner.caption([good, image, good])  # type: ignore[list-item]
    assert str(bad.problem).startswith(says)
    assert bad.captions == ()
    assert first.captions == last.captions != ()
