import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from model.decoding import ScoredCaption
from model.intervals import RESAMPLES, mean_bounds
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.score_file import Interval, ScoredImage, ScoreFile, scores_path, write_scores
from pipeline.images.decode import Resize
from pipeline.reporting.report import label, paired_difference, report, safe_json
from pipeline.reporting.thumbnails import SIDE, RequestedImage, folder_thumbnails, shard_thumbnails
from pipeline.sharding.shard import ShardConfig, write_shards
from shards.caption_table import table_of_split
from shards.dataset import open_split
from shards.errors import DamageError, InputError, MismatchError
from shards.json_files import write_json
from tests import ROOT
from tests.conftest import Small

HOSTILE = "</script><img src=x onerror=alert(1)><!-- & \u2028 \u202e \ud800"


def scored(image_id: int, *, file_name: str = "", caption: str = "a dog", cider: float = 0.5, **other: Any) -> ScoredImage:
    values: dict[str, Any] = {"references": ("a dog on a sofa", "the dog sleeps"), "scores": {"cider": cider}, **other}
    return ScoredImage(image_id=image_id, file_name=file_name or f"{image_id}.jpg", caption=caption, **values)


def score_file(*images: ScoredImage, split: str = "val", **other: Any) -> ScoreFile:
    mean = float(np.mean([image.scores["cider"] for image in images])) if images else 0.0
    values: dict[str, Any] = {
        "made_by": {"command": "python cli.py evaluate"},
        "scores": {"cider": Interval(value=mean, low=mean, high=mean)},
        **other,
    }
    return ScoreFile(split=split, images=images, **values)


JUDGING = ["CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L"]


def run_with(folder: Path, scores: ScoreFile) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_scores(scores_path(folder, "val"), scores)
    return folder


def content_of(page: Path) -> dict[str, Any]:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    content: dict[str, Any] = json.loads(found)
    return content


def pictures_of(page: Path) -> list[str]:
    blocks = re.findall(r'<script type="text/plain" id="pictures-\d+">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.split("\n")]


def test_a_runs_page_holds_scores_curves_settings_and_its_shards_pictures_and_is_the_same_again(
    small: Small, tmp_path: Path, run_cli: Callable[..., Result]
) -> None:
    evaluate(run=small.run, features=small.features, java=False, device="cpu")
    out = tmp_path / "report.html"
    result = run_cli("report", small.run, "--shards", small.shards, "--out", out)
    assert result.exit_code == 0, result.output
    assert "Images: 4 of 4 (" in result.output
    assert f"{out}: 4 images, 1 run, " in result.output
    assert result.output.splitlines()[-1].startswith(f"Next: open {out} in a browser")
    content = content_of(out)
    assert [score["label"] for score in content["scores"]] == [*JUDGING, "Distinct captions", "Novel captions", "Mean length in words", "Bad endings"]
    (run,) = content["runs"]
    assert len(run["curves"]["training"]["epochs"]) > 0
    assert len(run["curves"]["validation"]["val_cider"]) == 2
    assert ["train.epochs", ["2"]] in content["settings"][1]["rows"]
    assert all(len(image[2]) == 5 for image in content["images"])
    assert [picture[:4] for picture in pictures_of(out)] == ["/9j/"] * 4
    before = out.read_bytes()
    report(runs=[small.run], out=out, shards=small.shards)
    assert out.read_bytes() == before


def test_pictures_of_photographs_are_small_upright_and_keep_their_shape(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (400, 100), "red").save(tmp_path / "wide.jpg")
    Image.new("RGB", (400, 100), "red").save(tmp_path / "turned.jpg", exif=turned)
    Image.new("L", (3, 2)).save(tmp_path / "tiny.png")
    wanted = [RequestedImage(image_id=n, file_name=name) for n, name in enumerate(("wide.jpg", "turned.jpg", "tiny.png"))]
    made = folder_thumbnails(tmp_path, wanted)
    (tmp_path / "out").mkdir()
    sizes = []
    for picture in made.pictures:
        assert isinstance(picture, bytes)
        (tmp_path / "out" / "picture.jpg").write_bytes(picture)
        with Image.open(tmp_path / "out" / "picture.jpg") as image:
            sizes.append(image.size)
    assert sizes == [(SIDE, SIDE // 4), (SIDE // 4, SIDE), (SIDE, SIDE * 2 // 3)]


@pytest.mark.parametrize("mode", ["squash", "pad", "shortest", "none"])
def test_pictures_of_shards_have_the_photographs_shape(tmp_path: Path, mode: str) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (400, 200), "red").save(tmp_path / "images" / "1.jpg")
    captions = {"images": [{"id": 7, "file_name": "1.jpg"}], "annotations": [{"id": 1, "image_id": 7, "caption": "red"}]}
    write_json(tmp_path / "captions.json", captions)
    config = ShardConfig(resize=Resize(size=64, mode=mode))
    write_shards(images=tmp_path / "images", captions=tmp_path / "captions.json", out=tmp_path / "shards", split="val", config=config, workers=1)
    (picture,) = shard_thumbnails(tmp_path / "shards", "val", [RequestedImage(image_id=7, file_name="1.jpg")]).pictures
    assert isinstance(picture, bytes)
    (tmp_path / "picture.jpg").write_bytes(picture)
    with Image.open(tmp_path / "picture.jpg") as image:
        assert image.size == (SIDE, SIDE // 2)
        assert np.asarray(image).astype(int).min(axis=(0, 1))[0] > 200  # red to the edges: no padding


def test_no_file_name_leads_out_of_the_folder_and_what_is_lost_is_counted(tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "secret.jpg")
    Image.new("RGB", (40, 30)).save(folder / "good.jpg")
    (folder / "bad.jpg").write_bytes((folder / "good.jpg").read_bytes()[:200])
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    os.mkfifo(folder / "pipe.jpg")
    strange = ["../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg", "circle.jpg", "pipe.jpg", "gone.jpg", "a\0b", "\ud800", "x" * 5000, "."]
    names = ["good.jpg", "bad.jpg", *strange]
    run = run_with(tmp_path / "run", score_file(*(scored(n, file_name=name) for n, name in enumerate(names))))
    result = run_cli("report", run, "--images", folder, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert f"Images: 1 of {len(names)}, {len(strange)} not found, 1 damaged (" in result.output
    good, bad, *others = pictures_of(tmp_path / "page.html")
    assert good.startswith("/9j/")
    assert (bad, set(others)) == ("damaged", {"missing"})


def test_a_damaged_sample_and_an_image_of_another_name_have_no_picture(small: Small, tmp_path: Path) -> None:
    split = open_split(small.shards, "val")
    table = table_of_split(split)
    folder = tmp_path / "shards"
    folder.mkdir()
    for file in small.shards.iterdir():
        if not file.name.startswith("."):
            (folder / file.name).write_bytes(file.read_bytes())
    _, sample = split.sample(0)
    with (folder / "val-000000.tar").open("rb+") as tar:
        tar.seek(sample.jpg.offset + 100)
        tar.write(b"\0\1\2\3")
    wanted = [RequestedImage(image_id=int(i), file_name=name) for i, name in zip(table.image_ids, table.file_names, strict=True)]
    wanted[1] = replace(wanted[1], file_name="other.jpg")
    wanted[2] = replace(wanted[2], file_name="")  # a file of results knows no names
    made = shard_thumbnails(folder, "val", wanted)
    assert made.pictures[:2] == ("damaged", "missing")
    assert all(isinstance(picture, bytes) for picture in made.pictures[2:])
    with pytest.raises(InputError, match="holds none of the 1 images"):
        shard_thumbnails(folder, "val", [RequestedImage(image_id=-5, file_name="")])


def test_pictures_that_are_nowhere_are_an_error(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", score_file(scored(1)))
    with pytest.raises(InputError, match=r"none of the 1 photographs is here \(the first: 1.jpg\)"):
        report(runs=[run], out=tmp_path / "page.html", images=tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        report(runs=[run], out=tmp_path / "page.html", images=tmp_path / "no")
    with pytest.raises(InputError, match="not both"):
        report(runs=[run], out=tmp_path / "page.html", images=tmp_path, shards=tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_without_pictures_one_line_says_so(tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    run = run_with(tmp_path / "run", score_file(scored(1)))
    result = run_cli("report", run, "--out", tmp_path / "page.html")
    assert result.output.count("--shards DIR or --images DIR adds them") == 1
    assert pictures_of(tmp_path / "page.html") == []


@pytest.mark.parametrize("name", ["page", "page.pdf", "page.html.txt"])
def test_a_page_is_called_html(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"ends in \.html"):
        report(runs=[tmp_path], out=tmp_path / name)
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        report(runs=[tmp_path], out=tmp_path / "folder.html")


def test_a_run_without_scores_names_the_command_that_makes_them(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    result = run_cli("report", small.run, "--split", "test", "--out", tmp_path / "page.html")
    assert result.exit_code == 1
    assert f"python cli.py evaluate --run {small.run} --features DIR --split test --out {small.run}/test.scores.json" in result.output
    with pytest.raises(InputError, match="no such run"):
        report(runs=[tmp_path / "no"], out=tmp_path / "page.html")
    with pytest.raises(InputError, match=r"not a run \(there is no config.json\), and it holds no val\.scores\.json"):
        report(runs=[small.shards], out=tmp_path / "page.html")
    with pytest.raises(MismatchError, match=r"format version \d+; of a score file this program reads 1"):
        report(runs=[small.run / "config.json"], out=tmp_path / "page.html")
    with pytest.raises(InputError, match="no such score file"):
        report(runs=[tmp_path / "no.json"], out=tmp_path / "page.html")


def test_a_score_file_alone_and_a_run_without_a_log_say_what_is_missing(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", score_file(scored(1)))
    write_json(run / "config.json", {"format_version": 3})
    alone = tmp_path / "theirs.scores.json"
    write_scores(alone, score_file(scored(1), split="", made_by={}))
    made = report(runs=[run, alone], out=tmp_path / "page.html")
    assert made.runs == ("run", "theirs")
    content = content_of(tmp_path / "page.html")
    assert [entry["curves"] for entry in content["runs"]] == [None, None]
    assert [entry["curvesNote"].split(":")[0] for entry in content["runs"]] == ["No training log", "A score file alone"]
    assert [table["missing"] for table in content["settings"]] == [["theirs"], ["theirs"]]


def test_score_files_are_called_without_their_ending_unless_two_would_be_called_alike(tmp_path: Path) -> None:
    run = run_with(tmp_path / "first", score_file(scored(1)))
    others = [tmp_path / name for name in ("first.scores.json", "second.scores.json", "third.json", "fourth")]
    for path in others:
        write_scores(path, score_file(scored(1)))
    made = report(runs=[run, *others], out=tmp_path / "page.html")
    assert made.runs == ("first", "first.scores.json", "second", "third", "fourth")


def test_runs_that_cannot_be_compared_are_refused_and_what_differs_is_noted(tmp_path: Path) -> None:
    first = run_with(tmp_path / "first", score_file(scored(1), scored(2), scored(3)))
    page = tmp_path / "page.html"
    with pytest.raises(MismatchError, match="no image in common"):
        report(runs=[first, run_with(tmp_path / "far", score_file(scored(4)))], out=page)
    with pytest.raises(MismatchError, match="first: 'val', other: 'test'"):
        report(runs=[first, run_with(tmp_path / "other", score_file(scored(1), split="test"))], out=page)
    with pytest.raises(InputError, match="given twice"):
        report(runs=[first, tmp_path / "far" / ".." / "first"], out=page)
    with pytest.raises(InputError, match="9 runs: a report shows 1 to 8"):
        report(runs=[first] * 9, out=page)
    near = run_with(tmp_path / "near", score_file(scored(4), scored(1, references=("a cat",), cider=1.5), scored(2, cider=0.5)))
    made = report(runs=[first, near], out=page)
    assert made.notes == (
        "first and near have 2 of 4 images in common; they are compared over these.",
        "1 images have other references or another file name in near than in first: their scores compare little. The first run's are shown.",
    )
    content = content_of(page)
    (difference,) = content["differences"][0]
    assert (difference["change"][0], difference["images"], difference["higher"], difference["equal"]) == (0.5, 2, 1, 1)
    assert [[own is not None for own in image[3]] for image in content["images"]] == [[True, True], [True, True], [True, False], [False, True]]
    assert content["images"][0][2] == ["a dog on a sofa", "the dog sleeps"]


def test_the_interval_of_a_difference_is_that_of_the_normal_approximation_and_pairs_images() -> None:
    random = np.random.default_rng(3)
    before = random.gamma(1.5, 0.6, 2000)
    after = before + random.normal(0.02, 0.1, 2000)
    found = paired_difference("cider", before, after)
    gains = after - before
    width = 1.96 * gains.std() / 2000**0.5
    assert found.change.value == pytest.approx(gains.mean())
    assert (found.change.low, found.change.high) == pytest.approx((gains.mean() - width, gains.mean() + width), abs=0.1 * width)
    assert found.higher + found.lower + found.equal == found.images == 2000
    assert paired_difference("cider", before, after) == found


def test_documents_name_the_resamples_that_are_drawn() -> None:
    for name in ("metrics.md", "report.md"):
        assert f"{RESAMPLES:,} " in (ROOT / "docs" / name).read_text(), name


def test_the_difference_from_a_run_that_scores_nothing_has_the_interval_of_the_score_itself() -> None:
    scores = np.random.default_rng(4).gamma(1.5, 0.6, 300)
    (low,), (high,) = mean_bounds(scores[:, None])
    assert paired_difference("cider", np.zeros(300), scores).change == Interval(value=float(scores.mean()), low=low, high=high)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((scored(1, cider=float("nan")),), "a score of image 1 is not finite"),
        ((scored(1, alternatives=(ScoredCaption(caption="a", score=float("-inf")),)),), "a score of image 1 is not finite"),
        ((scored(1), scored(1)), "image 1 occurs twice"),
        ((), "holds no images"),
    ],
)
def test_a_score_file_that_cannot_be_shown_is_refused(tmp_path: Path, images: tuple[ScoredImage, ...], message: str) -> None:
    run = run_with(tmp_path / "run", score_file(scored(1)))
    path = scores_path(run, "val")
    content = json.loads(path.read_bytes())
    content["images"] = [image.__dict__ | {"alternatives": [one.__dict__ for one in image.alternatives]} for image in images]
    path.write_text(json.dumps(content))
    with pytest.raises((DamageError, InputError), match=message):
        report(runs=[run], out=tmp_path / "page.html")


def test_hostile_text_ends_no_element_and_the_policy_names_style_and_script_by_digest(tmp_path: Path) -> None:
    image = scored(1, file_name=HOSTILE, caption=HOSTILE, references=(HOSTILE,), alternatives=(ScoredCaption(caption=HOSTILE, score=-1.0),))
    run = run_with(tmp_path / "r<b>un", score_file(image, notes=(HOSTILE,), made_by={HOSTILE: {HOSTILE: [HOSTILE]}}))
    page = tmp_path / "page.html"
    report(runs=[run], out=page)
    text = page.read_bytes().decode("utf-8")
    assert content_of(page)["images"][0][:3] == [1, HOSTILE, [HOSTILE]]
    assert "onerror=alert(1)>" not in text
    assert text.count("</script>") == 2
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    for name in ("style", "script"):
        (own,) = re.findall(rf"<{name}>(.*?)</{name}>", text, flags=re.DOTALL)
        assert f"{name}-src 'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policy[1]
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


def test_json_for_a_page_is_ascii_without_brackets_and_reads_back() -> None:
    content = {"a": HOSTILE, "b": [1.5, None, "é\u2029"]}
    made = safe_json(content)
    assert made.isascii()
    assert not set(made) & set(b"<>&")
    assert json.loads(made) == content


def test_scores_that_nobody_foresaw_are_shown_under_their_own_name() -> None:
    assert label("rouge_l") == "ROUGE-L"
    assert label("word_error_rate") == "word error rate"
