import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from model.metrics import corpus_scores
from model.ptb import ptb_tokens
from pipeline.evaluation.evaluate_results import score_results
from pipeline.evaluation.score_file import read_scores
from pipeline.evaluation.scoring import ScoringConfig
from shards.errors import InputError

NO_JAVA = ScoringConfig(java=False)


@pytest.fixture
def coco(data: Path, tmp_path: Path) -> Path:
    """A folder with one human caption of 300 images as results.json and the others as references.json."""
    content = json.loads((data / "coco-captions" / "captions_val2017.json").read_text())
    images = content["images"][:300]
    kept = {image["id"] for image in images}
    first: dict[int, str] = {}
    others = []
    for annotation in content["annotations"]:
        if annotation["image_id"] in kept:
            if annotation["image_id"] in first:
                others.append(annotation)
            else:
                first[annotation["image_id"]] = annotation["caption"]
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": i, "caption": text} for i, text in first.items()]))
    (tmp_path / "references.json").write_text(json.dumps({"images": images, "annotations": others}))
    return tmp_path


def test_a_result_file_is_scored_like_pycocotools_and_pycocoevalcap_score_it(coco: Path) -> None:
    from pycocotools.coco import COCO

    found = score_results(captions=coco / "results.json", references=coco / "references.json", scoring=NO_JAVA, command="c")
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco / "references.json"))
        result = truth.loadRes(str(coco / "results.json"))
    ids = [image.image_id for image in found.scores.images]
    candidates = [ptb_tokens(result.imgToAnns[i][0]["caption"]) for i in ids]
    references = [[ptb_tokens(annotation["caption"]) for annotation in truth.imgToAnns[i]] for i in ids]
    expected = corpus_scores(candidates, references)
    assert {name: found.scores.scores[name].value for name in expected} == expected
    assert found.out == coco / "results.scores.json"
    assert read_scores(found.out) == found.scores
    assert found.scores.split == ""
    assert found.scores.made_by["command"] == "c"
    assert found.scores.notes == ("novel: a result file does not say what its model was trained on.",)


def test_images_without_a_caption_are_counted_and_not_scored(coco: Path) -> None:
    entries = json.loads((coco / "results.json").read_text())
    (coco / "some.json").write_text(json.dumps(entries[::3]))
    found = score_results(captions=coco / "some.json", references=coco / "references.json", scoring=NO_JAVA)
    assert len(found.scores.images) == 100
    assert found.scores.notes[0] == "200 of 300 images have no caption: the scores are of the other images."


def test_references_may_have_any_form_that_shard_reads(coco: Path) -> None:
    content = json.loads((coco / "references.json").read_text())
    raws: dict[int, list[str]] = {}
    for annotation in content["annotations"]:
        raws.setdefault(annotation["image_id"], []).append(annotation["caption"])
    images = [
        {
            "filename": image["file_name"],
            "imgid": number,
            "cocoid": image["id"],
            "split": "val",
            "sentences": [{"raw": raw} for raw in raws[image["id"]]],
        }
        for number, image in enumerate(content["images"])
    ]
    (coco / "karpathy.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    found, wanted = (
        score_results(captions=coco / "results.json", references=coco / name, scoring=NO_JAVA) for name in ("karpathy.json", "references.json")
    )
    assert found.scores.scores == wanted.scores.scores


def test_the_command_prints_scores_with_intervals_and_what_is_missing(coco: Path, run_cli: Callable[..., Result]) -> None:
    entries = json.loads((coco / "results.json").read_text())
    (coco / "results.json").write_text(json.dumps(entries[1:]))
    result = run_cli("evaluate", "--captions", coco / "results.json", "--references", coco / "references.json", "--no-java")
    assert result.exit_code == 0, result.output
    assert "95% interval" in result.output
    assert "1 of 300 images have no caption" in result.output
    assert result.output.splitlines()[-1] == f"Next: python cli.py report {coco}/results.scores.json --out {coco}/report.html"


def test_inputs_are_never_overwritten(coco: Path) -> None:
    for name, setting in (("results.json", "captions"), ("references.json", "references")):
        with pytest.raises(InputError, match=rf"`out` \S+{name}: is the file of `{setting}`"):
            score_results(captions=coco / "results.json", references=coco / "references.json", out=coco / name, scoring=NO_JAVA)


def test_columns_of_a_table_of_references_can_be_named(coco: Path, run_cli: Callable[..., Result]) -> None:
    (coco / "table.csv").write_text("picture,words\na.jpg,a red square\nb.jpg,a blue circle\n")
    (coco / "two.json").write_text(json.dumps([{"image_id": n, "caption": "a red square"} for n in (0, 1)]))
    typed = ("evaluate", "--captions", coco / "two.json", "--references", coco / "table.csv", "--no-java")
    result = run_cli(*typed)
    assert result.exit_code == 1
    assert "--column image=NAME and --column caption=NAME" in " ".join(result.output.split())
    result = run_cli(*typed, "--column", "image=picture", "--column", "caption=words")
    assert result.exit_code == 0, result.output
    assert "scores of 2 captions" in result.output


def test_references_of_another_form_are_refused_by_name(coco: Path) -> None:
    with pytest.raises(InputError, match=r"results\.json: no column of images"):
        score_results(captions=coco / "results.json", references=coco / "results.json", scoring=NO_JAVA)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--captions", "a.json"],
        ["--references", "a.json"],
        ["--captions", "a.json", "--references", "b.json", "--run", "r"],
        ["--captions", "a.json", "--references", "b.json", "--results", "r.json"],
        ["--captions", "a.json", "--references", "b.json", "--split", "val"],
        ["--captions", "a.json", "--references", "b.json", "--beam", "5"],
        ["--features", "f"],
    ],
)
def test_options_of_both_modes_together_are_a_usage_error(run_cli: Callable[..., Result], arguments: list[str]) -> None:
    result = run_cli("evaluate", *arguments)
    assert result.exit_code == 2
    assert "--references" in result.output
    assert arguments[-2] in result.output or len(arguments) == 2


@pytest.mark.parametrize("java", [False, pytest.param(True, marks=pytest.mark.full)])
def test_captions_without_a_word_score_0_and_are_counted(coco: Path, java: bool) -> None:
    entries = json.loads((coco / "results.json").read_text())
    entries[3]["caption"], entries[5]["caption"] = "", " ... "
    (coco / "gaps.json").write_text(json.dumps(entries))
    found = score_results(captions=coco / "gaps.json", references=coco / "references.json", scoring=ScoringConfig(java=java))
    assert "2 of 300 captions contain no word: they score 0." in found.scores.notes
    judging = ("bleu_1", "bleu_4", "rouge_l", "cider")
    assert [found.scores.images[place].scores[name] for place in (3, 5) for name in judging] == [0.0] * 8
    whole = score_results(captions=coco / "results.json", references=coco / "references.json", scoring=NO_JAVA).scores.scores
    assert all(found.scores.scores[name].value < whole[name].value for name in ("rouge_l", "cider"))  # means over images
