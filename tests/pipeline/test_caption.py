import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.caption import caption_images
from pipeline.pictures import draw_captions
from shards.errors import DamageError, InputError
from tests.conftest import Small


def test_any_image_file_gets_a_line_and_a_bad_one_its_problem(small: Small, tmp_path: Path) -> None:
    source = small.source / "images" / "scene_000000.jpg"
    image = Image.open(source)
    forms = [source]
    for mode, name in (
        ("L", "grey.jpg"),
        ("CMYK", "print.jpg"),
        ("P", "palette.gif"),
        ("RGBA", "alpha.png"),
        ("RGB", "photo mit ümlaut.png"),
        ("RGB", "x.bmp"),
    ):
        image.convert(mode).save(tmp_path / name)
        forms.append(tmp_path / name)
    (tmp_path / "cut.jpg").write_bytes(source.read_bytes()[:500])
    results = list(caption_images(run=small.run, images=[*forms, tmp_path / "cut.jpg", tmp_path / "none.jpg"], device="cpu"))
    assert [r.path for r in results] == [*forms, tmp_path / "cut.jpg", tmp_path / "none.jpg"]
    assert all(r.caption is not None for r in results[:-2])
    assert [r.caption for r in results[-2:]] == [None, None]
    assert "truncated" in str(results[-2].problem)
    assert "no such file" in str(results[-1].problem)
    assert results[0].caption == next(iter(caption_images(run=small.run, images=[source], device="cpu"))).caption


def test_a_run_without_its_random_weights_says_so(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    (tmp_path / "run" / "backbone.safetensors").unlink()
    with pytest.raises(DamageError, match=r"backbone\.safetensors.*missing"):
        list(caption_images(run=tmp_path / "run", images=[tmp_path / "x.jpg"], device="cpu"))


def test_the_picture_shows_every_photograph(small: Small, tmp_path: Path) -> None:
    images = [small.source / "images" / f"scene_00000{i}.jpg" for i in range(5)]
    draw_captions([(path, "a $5 bill, $x^2$ and\na long caption " * 3) for path in images], tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert picture.shape == (800, 1520, 3)
    assert picture.std() > 10


def test_a_picture_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.jpg"):
        draw_captions([(tmp_path / "x.jpg", "c")], tmp_path / "p.txt")
