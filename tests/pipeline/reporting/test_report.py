import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from model.decoding import ScoredCaption
from model.intervals import RESAMPLES
from pipeline.captioning.captioner import CaptionerConfig
from pipeline.evaluation.evaluate import EvaluationSource, evaluate
from pipeline.evaluation.score_file import Interval, ScoredImage, ScoreFile, scores_path, write_scores
from pipeline.evaluation.scoring import ScoringConfig
from pipeline.reporting.report import report
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


def thumbnails_of(page: Path) -> list[str]:
    blocks = re.findall(r'<script type="text/plain" id="thumbnails-\d+">(.*?)</script>', page.read_text(), flags=re.DOTALL)
    return [line for block in blocks for line in block.split("\n")]


def test_a_page_has_scores_curves_settings_and_thumbnails_and_is_reproducible(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    source = EvaluationSource(features=small.features)
    evaluate(CaptionerConfig(run=small.run, device="cpu"), source, scoring=ScoringConfig(java=False))
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
    assert [line[:4] for line in thumbnails_of(out)] == ["/9j/"] * 4
    before = out.read_bytes()
    report(runs=[small.run], out=out, shards=small.shards)
    assert out.read_bytes() == before


def test_no_file_name_leads_out_of_the_folder_and_missing_images_are_counted(tmp_path: Path, run_cli: Callable[..., Result]) -> None:
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
    good, bad, *others = thumbnails_of(tmp_path / "page.html")
    assert good.startswith("/9j/")
    assert (bad, set(others)) == ("damaged", {"missing"})


def test_images_that_cannot_be_found_are_an_error(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", score_file(scored(1)))
    with pytest.raises(InputError, match=r"none of the 1 images is here \(the first: 1.jpg\)"):
        report(runs=[run], out=tmp_path / "page.html", images=tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        report(runs=[run], out=tmp_path / "page.html", images=tmp_path / "no")
    with pytest.raises(InputError, match=r"were both given\. Omit one"):
        report(runs=[run], out=tmp_path / "page.html", images=tmp_path, shards=tmp_path)
    assert not (tmp_path / "page.html").exists()


def test_a_page_without_thumbnails_says_so_in_one_line(tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    run = run_with(tmp_path / "run", score_file(scored(1)))
    result = run_cli("report", run, "--out", tmp_path / "page.html")
    assert result.output.count("Add them with --shards DIR or --images DIR") == 1
    assert thumbnails_of(tmp_path / "page.html") == []


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
    assert f"python cli.py evaluate --run {small.run} --split test\n" in result.output
    with pytest.raises(InputError, match="no such run"):
        report(runs=[tmp_path / "no"], out=tmp_path / "page.html")
    with pytest.raises(InputError, match="holds shards, not a run"):
        report(runs=[small.shards], out=tmp_path / "page.html")
    with pytest.raises(MismatchError, match=r"format version \d+; this program reads a score file of format version 1"):
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


def test_score_files_are_named_without_their_extension_unless_two_names_would_be_equal(tmp_path: Path) -> None:
    run = run_with(tmp_path / "first", score_file(scored(1)))
    others = [tmp_path / name for name in ("first.scores.json", "second.scores.json", "third.json", "fourth")]
    for path in others:
        write_scores(path, score_file(scored(1)))
    made = report(runs=[run, *others], out=tmp_path / "page.html")
    assert made.runs == ("first", "first.scores.json", "second", "third", "fourth")


def test_runs_that_cannot_be_compared_are_refused_and_inconsistencies_are_noted(tmp_path: Path) -> None:
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
        "first and near have 2 of 4 images in common and are compared over these.",
        "1 images have other references or another file name in near than in first: their scores are hardly comparable. "
        "Those of the first run are shown.",
    )
    content = content_of(page)
    (difference,) = content["differences"][0]
    assert (difference["change"][0], difference["images"], difference["higher"], difference["equal"]) == (0.5, 2, 1, 1)
    assert [[own is not None for own in image[3]] for image in content["images"]] == [[True, True], [True, True], [True, False], [False, True]]
    assert content["images"][0][2] == ["a dog on a sofa", "the dog sleeps"]


def test_the_documentation_names_the_number_of_resamples() -> None:
    for name in ("metrics.md", "report.md"):
        assert f"{RESAMPLES:,} " in (ROOT / "docs" / name).read_text(), name


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((scored(1, cider=float("nan")),), "a score of image 1 is not finite"),
        ((scored(1, alternatives=(ScoredCaption(caption="a", score=float("-inf")),)),), "a score of image 1 is not finite"),
        ((scored(1), scored(1)), "image 1 occurs twice"),
        ((), "has no images"),
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
