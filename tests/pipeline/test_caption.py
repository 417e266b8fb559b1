import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from cli import cli
from model.decoding import Decoding, decode, sentence
from pipeline import caption as caption_module
from pipeline.caption import caption_images
from pipeline.evaluate import open_run_backbone
from pipeline.images import Resize, decode_image
from pipeline.pictures import draw_captions
from pipeline.run import open_run
from shards.errors import DamageError, InputError
from tests.conftest import Small


def scenes(small: Small, count: int) -> list[str]:
    return [str(small.source / "images" / f"scene_{number:06}.jpg") for number in range(count)]


def test_any_image_file_gets_a_line_and_a_bad_one_its_problem(small: Small, tmp_path: Path) -> None:
    (source,) = scenes(small, 1)
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
        forms.append(str(tmp_path / name))
    (tmp_path / "cut.jpg").write_bytes(Path(source).read_bytes()[:500])
    bad = [str(tmp_path / "cut.jpg"), str(tmp_path / "none.jpg")]
    results = list(caption_images(run=small.run, images=[bad[0], *forms, bad[1]], device="cpu"))
    assert [r.name for r in results] == [bad[0], *forms, bad[1]]
    assert all(len(r.captions) == 1 for r in results[1:-1])
    assert "truncated" in str(results[0].problem)
    assert "no such file" in str(results[-1].problem)
    alone = next(iter(caption_images(run=small.run, images=[source], device="cpu")))
    assert results[1].captions[0].caption == alone.captions[0].caption


def test_captions_are_decoded_from_what_the_network_sees_in_the_middle_of_the_resized_photograph(small: Small) -> None:
    run, names, decoding = open_run(small.run, device=torch.device("cpu")), scenes(small, 6), Decoding(beam=3)
    pixels = [np.asarray(decode_image(Path(name).read_bytes(), name, Resize(size=64)).image) for name in names]
    crop = run.config.network.declared_preprocessing().crop
    corner = (64 - crop) // 2
    cropped = torch.from_numpy(np.stack([array[corner : corner + crop, corner : corner + crop] for array in pixels]))
    features = open_run_backbone(run)(cropped).half()
    wanted = [[sentence(h.words) for h in found] for found in decode(run.captioner, features, run.vocabulary, decoding)]
    found = list(caption_images(run=small.run, images=names, decoding=decoding, device="cpu"))
    assert [[c.caption for c in photograph.captions] for photograph in found] == wanted


def test_groups_and_bad_files_between_change_no_caption(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    names = scenes(small, 11)
    decoding = Decoding(samples=3, seed=4)
    wanted = [r.captions for r in caption_images(run=small.run, images=names, decoding=decoding, device="cpu")]
    monkeypatch.setattr(caption_module, "images_per_pass", lambda device: 4)
    grouped = [r.captions for r in caption_images(run=small.run, images=names, decoding=decoding, device="cpu")]
    assert [[c.caption for c in captions] for captions in grouped] == [[c.caption for c in captions] for captions in wanted]
    broken = [*names[:2], "none.jpg", *names[3:]]
    with_a_bad_one = [r.captions for r in caption_images(run=small.run, images=broken, decoding=decoding, device="cpu")]
    assert with_a_bad_one[2] == ()
    del with_a_bad_one[2], wanted[2]
    assert [[c.caption for c in captions] for captions in with_a_bad_one] == [[c.caption for c in captions] for captions in wanted]


def test_many_photographs_go_through_an_arithmetic_that_was_judged_on_the_first(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caption_module, "FAST_FROM_PHOTOGRAPHS", 8)
    notes: list[str] = []
    names = ["none.jpg", *scenes(small, 8)]
    results = list(caption_images(run=small.run, images=names, precision="bf16", device="cpu", report=notes.append))
    assert len(notes) == 1
    assert "bf16" in notes[0]
    assert [len(r.captions) for r in results] == [0, *[1] * 8]


def test_the_command_prints_captions_alone_and_all_it_was_asked_for(small: Small, run_cli: Callable[..., Result]) -> None:
    names = scenes(small, 2)
    one = run_cli("caption", "--run", small.run, names[0])
    assert one.exit_code == 0
    (line,) = one.stdout.splitlines()
    assert not line.startswith(names[0])
    assert one.stderr.splitlines()[-1].startswith("Next: python cli.py caption")
    several = run_cli("caption", "--run", small.run, *names, "--beam", "4", "--best", "2")
    assert [line.partition(": ")[0] for line in several.stdout.splitlines()] == [names[0], names[0], names[1], names[1]]
    assert all(line.endswith(")") and "  (-" in line for line in several.stdout.splitlines())


def test_json_lines_hold_captions_with_scores_or_the_problem(small: Small, tmp_path: Path) -> None:
    names = scenes(small, 2)
    listed = "\n".join([names[0], str(tmp_path / "none.jpg"), names[1]])
    result = CliRunner().invoke(cli, ["caption", "--run", str(small.run), "-", "--json", "--samples", "3", "--top-k", "5"], input=listed)
    assert result.exit_code == 1
    assert "1 of 3 photographs could not be captioned" in result.stderr
    first, missing, last = (json.loads(line) for line in result.stdout.splitlines())
    assert [first["image"], missing["image"], last["image"]] == listed.splitlines()
    assert [len(one["captions"]) for one in (first, last)] == [3, 3]
    assert all(c["score"] < 0 and isinstance(c["caption"], str) for c in first["captions"])
    assert "no such file" in missing["problem"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--beam", "0"], "beam is 0"),
        (["--temperature", "0"], "temperature"),
        (["--samples", "2", "--top-p", "2"], "top_p"),
        (["--out", "x.png"], "--show"),
    ],
)
def test_impossible_options_are_one_plain_line(small: Small, run_cli: Callable[..., Result], options: list[str], says: str) -> None:
    result = run_cli("caption", "--run", small.run, *scenes(small, 1), *options)
    assert result.exit_code != 0
    assert says in result.stderr


def test_a_run_without_its_random_weights_says_so(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    (tmp_path / "run" / "backbone.safetensors").unlink()
    with pytest.raises(DamageError, match=r"backbone\.safetensors.*missing"):
        list(caption_images(run=tmp_path / "run", images=[str(tmp_path / "x.jpg")], device="cpu"))


def test_the_picture_shows_every_photograph(small: Small, tmp_path: Path) -> None:
    draw_captions([(name, "a $5 bill, $x^2$ and\na long caption " * 3) for name in scenes(small, 5)], tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert picture.shape == (800, 1520, 3)
    assert picture.std() > 10


def test_a_picture_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.jpg"):
        draw_captions([("x.jpg", "c")], tmp_path / "p.txt")
