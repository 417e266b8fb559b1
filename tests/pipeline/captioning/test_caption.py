import json
import os
import shlex
import shutil
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from cli import cli
from model.decoding import Decoding, decode
from model.precision import folded
from pipeline.backbone.backbones import reopen_backbone
from pipeline.captioning import captioner as captioner_module
from pipeline.captioning.caption import caption_images
from pipeline.captioning.captioner import CaptionerConfig
from pipeline.captioning.draw import draw_captions
from pipeline.captions.english import sentence
from pipeline.images.decode import Resize, decode_image
from pipeline.runs.run import kept_weights, open_run
from shards import fetch as fetch_module
from shards.errors import DamageError, InputError
from tests.conftest import Small, diverged


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
    results = list(caption_images(CaptionerConfig(run=small.run, device="cpu"), [bad[0], *forms, bad[1]]))
    assert [r.name for r in results] == [bad[0], *forms, bad[1]]
    assert all(len(r.captions) == 1 for r in results[1:-1])
    assert "truncated" in str(results[0].problem)
    assert "no such file" in str(results[-1].problem)
    alone = next(iter(caption_images(CaptionerConfig(run=small.run, device="cpu"), [source])))
    assert results[1].captions[0].caption == alone.captions[0].caption


def test_captions_are_decoded_from_what_the_network_sees_in_the_middle_of_the_resized_photograph(small: Small) -> None:
    names, config = scenes(small, 6), CaptionerConfig(run=small.run, decoding=Decoding(beam=3), device="cpu")
    run = open_run(small.run, device=torch.device("cpu"))
    frozen = reopen_backbone(run.config.network, kept=kept_weights(run.folder))
    pixels = [np.asarray(decode_image(Path(name).read_bytes(), name, Resize(size=64)).image) for name in names]
    crop = run.config.network.declared_preprocessing().crop
    corner = (64 - crop) // 2
    cropped = torch.from_numpy(np.stack([array[corner : corner + crop, corner : corner + crop] for array in pixels]))
    features = folded(frozen)(cropped).half()
    wanted = [[sentence(h.words) for h in found] for found in decode(run.captioner, features, run.vocabulary, config.decoding)]
    found = list(caption_images(config, names))
    assert [[c.caption for c in photograph.captions] for photograph in found] == wanted


def test_groups_and_bad_files_between_change_no_caption(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    names = scenes(small, 11)
    decoding = Decoding(samples=3, seed=4)
    wanted = [r.captions for r in caption_images(CaptionerConfig(run=small.run, decoding=decoding, device="cpu"), names)]
    monkeypatch.setattr(captioner_module, "images_per_pass", lambda device: 4)
    monkeypatch.setattr(captioner_module, "HYPOTHESES_AT_ONCE", 8)  # two images
    grouped = [r.captions for r in caption_images(CaptionerConfig(run=small.run, decoding=decoding, device="cpu"), names)]
    assert [[c.caption for c in captions] for captions in grouped] == [[c.caption for c in captions] for captions in wanted]
    broken = [*names[:2], "none.jpg", *names[3:]]
    with_a_bad_one = [r.captions for r in caption_images(CaptionerConfig(run=small.run, decoding=decoding, device="cpu"), broken)]
    assert with_a_bad_one[2] == ()
    del with_a_bad_one[2], wanted[2]
    assert [[c.caption for c in captions] for captions in with_a_bad_one] == [[c.caption for c in captions] for captions in wanted]


def test_many_photographs_go_through_an_arithmetic_that_was_judged_on_the_first(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioner_module, "FAST_FROM_IMAGES", 8)
    notes: list[str] = []
    names = ["none.jpg", *scenes(small, 8)]
    results = list(caption_images(CaptionerConfig(run=small.run, precision="bf16", device="cpu"), names, report=notes.append))
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
    assert "1 of 3 images could not be captioned" in result.stderr
    first, missing, last = (json.loads(line) for line in result.stdout.splitlines())
    assert [first["image"], missing["image"], last["image"]] == listed.splitlines()
    assert [len(one["captions"]) for one in (first, last)] == [3, 3]
    assert all(c["score"] < 0 and isinstance(c["caption"], str) for c in first["captions"])
    assert "no such file" in missing["problem"]


def test_a_name_that_is_text_in_no_encoding_is_listed_captioned_and_printed(small: Small, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xe9t\xe9.jpg"
    Path(os.fsdecode(name)).write_bytes(Path(scenes(small, 1)[0]).read_bytes())
    listed = name + b"\n" + name + b".none\n"
    plain = CliRunner().invoke(cli, ["caption", "--run", str(small.run), "-"], input=listed)
    assert plain.stdout.startswith(f"{tmp_path}/\\udcff\\udce9t\\udce9.jpg: ")
    assert f"No caption: {tmp_path}/\\udcff\\udce9t\\udce9.jpg.none: no such file" in plain.stderr
    lines = CliRunner().invoke(cli, ["caption", "--run", str(small.run), "-", "--json"], input=listed).stdout.splitlines()
    assert [os.fsencode(json.loads(line)["image"]) for line in lines] == listed.splitlines()


def test_what_to_run_next_can_be_pasted_into_a_shell(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    name = tmp_path / "Mum's dog [1].jpg"
    name.write_bytes(Path(scenes(small, 1)[0]).read_bytes())
    said = run_cli("caption", "--run", small.run, name).stderr.splitlines()[-1]
    assert shlex.split(said)[1:4] == ["python", "cli.py", "caption"]
    assert shlex.split(said)[-1] == str(name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--beam", "0"], "Error: --beam is 0, it must be at least 1.\n"),
        (["--temperature", "0"], "--temperature"),
        (["--samples", "2", "--top-p", "2"], "Error: --top-p is 2.0, "),
        (["--top-k", "3"], "Error: --temperature, --top-k and --top-p need --samples, which is 0.\n"),
        (["--samples", "2", "--beam", "2"], "captions are either sampled or searched for"),
        (["--samples", "2", "--length-penalty", "1"], "--length-penalty is for beam search"),
        (["--diversity", "1"], "--diversity requires --groups"),
        (["--best", "3"], "only one caption per image. Use --beam 3 or --samples 3"),
        (["--best", "5", "--beam", "2", "--groups", "2"], "only 4 captions per image"),
        (["--out", "x.png"], "--show"),
        (["--show", "--out", "x.txt"], "x.txt: a figure is written as .png"),
    ],
)
def test_impossible_options_are_one_plain_line(small: Small, run_cli: Callable[..., Result], options: list[str], says: str) -> None:
    result = run_cli("caption", "--run", small.run, *scenes(small, 1), *options)
    assert result.exit_code != 0
    assert says in result.stderr
    assert result.stdout == ""  # before any work


@pytest.mark.parametrize("options", [[], ["--beam", "3"], ["--samples", "2"]], ids=["greedy", "beam", "samples"])
def test_a_checkpoint_whose_scores_are_no_numbers_is_named_with_the_next_step(
    small: Small, tmp_path: Path, run_cli: Callable[..., Result], options: list[str]
) -> None:
    checkpoint = diverged(small.run, tmp_path / "run")
    result = run_cli("caption", "--run", tmp_path / "run", *scenes(small, 1), *options)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {checkpoint}: the model's scores contain NaN")
    assert "Choose another --checkpoint (best or latest)" in result.stderr


def test_photographs_of_one_pass_are_read_side_by_side_and_two_passes_ahead(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server answers two requests at a time, or none: whoever asks for one after the other gets nothing."""
    photograph = Path(scenes(small, 1)[0]).read_bytes()
    pair, asked = threading.Barrier(2, timeout=30), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            try:
                pair.wait()
            except threading.BrokenBarrierError:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(photograph)))
            self.end_headers()
            self.wfile.write(photograph)

        def log_message(self, format: str, *args: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch_module, "BACKOFF_SECONDS", ())
    monkeypatch.setattr(captioner_module, "default_workers", lambda: 2)
    monkeypatch.setattr(captioner_module, "images_per_pass", lambda device: 4)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        urls = [f"http://127.0.0.1:{server.server_port}/{n}.jpg" for n in range(40)]
        assert [one.problem for one in caption_images(CaptionerConfig(run=small.run, device="cpu"), urls[:4])] == [None] * 4
        asked.clear()
        results = caption_images(CaptionerConfig(run=small.run, device="cpu"), urls)
        assert [next(results).problem for _ in range(4)] == [None] * 4
        assert len(asked) <= 4 + 2 * 4
        results.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_run_without_its_random_weights_says_so(small: Small, tmp_path: Path) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    (tmp_path / "run" / "backbone.safetensors").unlink()
    with pytest.raises(DamageError, match=r"backbone\.safetensors.*missing"):
        list(caption_images(CaptionerConfig(run=tmp_path / "run", device="cpu"), [str(tmp_path / "x.jpg")]))


def test_the_picture_shows_every_photograph(small: Small, tmp_path: Path) -> None:
    draw_captions([(name, "a $5 bill, $x^2$ and\na long caption " * 3) for name in scenes(small, 5)], tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert picture.shape == (800, 1520, 3)
    assert picture.std() > 10


def test_a_picture_is_never_drawn_over_a_photograph(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    photograph = Path(shutil.copy(scenes(small, 1)[0], tmp_path / "a.jpg"))
    before = photograph.read_bytes()
    result = run_cli("caption", "--run", small.run, tmp_path, "--show", "--out", tmp_path / "x" / ".." / "a.jpg")
    assert result.exit_code == 2
    assert "a.jpg: this is one of the images" in result.stderr
    assert photograph.read_bytes() == before


def test_a_picture_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png, \.jpg"):
        draw_captions([("x.jpg", "c")], tmp_path / "p.txt")
