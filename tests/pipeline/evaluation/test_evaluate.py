import contextlib
import io
import json
import shlex
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from model.captioner import Ensemble
from model.decoding import Decoding, decode
from model.metrics import corpus_scores
from model.ptb import ptb_tokens
from pipeline.captioning.captioner import CaptionerConfig
from pipeline.captions.english import sentence
from pipeline.evaluation import evaluate as evaluate_module
from pipeline.evaluation.evaluate import Evaluation, EvaluationFiles, EvaluationSource, evaluate
from pipeline.evaluation.evaluate_results import score_results
from pipeline.evaluation.score_file import ScoreFile, read_scores
from pipeline.evaluation.scoring import ScoringConfig, score_texts
from pipeline.runs.run import open_run
from shards.errors import InputError, MismatchError, SettingsError
from shards.features import FeatureFile, open_features
from tests.conftest import TINY_MODEL, Small, diverged
from tests.pipeline.short_runs import train_on_cpu

NO_JAVA = ScoringConfig(java=False)


def on_cpu(run: Path, **more: Any) -> CaptionerConfig:
    return CaptionerConfig(run=run, device="cpu", **more)


def cached(small: Small, out: Path, *, captioner: CaptionerConfig | None = None, command: str = "", **source: Any) -> Evaluation:
    """The evaluation of the small run on cached features, by default its own."""
    split = EvaluationSource(**{"features": small.features, **source})
    return evaluate(captioner or on_cpu(small.run), split, scoring=NO_JAVA, files=EvaluationFiles(out=out), command=command)


def test_scores_and_results_are_written_and_agree(small: Small, tmp_path: Path) -> None:
    result = cached(small, tmp_path / "x.scores.json", command="python cli.py evaluate")
    assert read_scores(tmp_path / "x.scores.json") == result.scores
    assert result.results == tmp_path / "x.results.json"
    written = json.loads(result.results.read_text())
    table = open_features(small.features / "val.h5").table
    assert [entry["image_id"] for entry in written] == table.image_ids.tolist()
    captions = [ptb_tokens(entry["caption"]) for entry in written]
    expected = corpus_scores(captions, [list(map(ptb_tokens, texts)) for texts in table.reference_texts()])
    assert {name: result.scores.scores[name].value for name in expected} == expected
    assert {"distinct", "novel", "mean_length", "bad_endings"} <= set(result.scores.scores)
    assert [image.references for image in result.scores.images] == table.reference_texts()
    assert [image.file_name for image in result.scores.images] == list(table.file_names)


def test_the_score_file_records_how_it_was_made(small: Small, tmp_path: Path) -> None:
    made_by = cached(small, tmp_path / "s.json", command="c").scores.made_by
    file = open_features(small.features / "val.h5")
    assert made_by["command"] == "c"
    assert made_by["run"] == str(small.run)
    assert made_by["checkpoint"]["which"] == "latest"
    assert made_by["checkpoint"]["step"] > 0
    assert made_by["decoding"]["beam"] == 1
    assert made_by["data"] == {"kind": "features", "path": str(file.path), "digest": file.digest, "views": ["center"]}
    assert made_by["versions"].keys() >= {"torch", "pycocoevalcap"}


def test_by_default_scores_are_written_into_the_run_by_the_splits_name(small: Small, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(small.run, run)
    result = evaluate(on_cpu(run), EvaluationSource(features=small.features), scoring=NO_JAVA)
    assert result.out == run / "val.scores.json"
    assert result.results == run / "val.results.json"
    assert result.out.is_file()
    assert result.results.is_file()


def test_pycocotools_loads_the_results_and_scoring_the_file_gives_the_same(small: Small, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    result = cached(small, tmp_path / "val.scores.json")
    references = small.source / "captions_val.json"
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(references)).loadRes(str(result.results))
    assert {i: found[0]["caption"] for i, found in loaded.imgToAnns.items()} == {i: caption for i, _, caption in result.captions}
    again = score_results(captions=result.results, references=references, scoring=NO_JAVA).scores
    assert {name: value for name, value in result.scores.scores.items() if name != "novel"} == again.scores


def test_raw_and_cached_evaluation_agree_and_batch_size_changes_nothing(small: Small, tmp_path: Path) -> None:
    first = cached(small, tmp_path / "a.json", split="train")
    again = cached(small, tmp_path / "b.json", split="train", batch_size=1)
    assert again.scores == first.scores
    assert again.captions == first.captions
    shards = EvaluationSource(shards=small.shards, split="train")
    raw = evaluate(on_cpu(small.run), shards, scoring=NO_JAVA, files=EvaluationFiles(out=tmp_path / "raw.json"))
    same = sum(a == b for a, b in zip(raw.captions, first.captions, strict=True))
    assert same >= 0.9 * len(first.captions)  # batches of another size round differently
    assert "novel" in raw.scores.scores
    assert raw.scores.made_by["data"]["views"] == ["center"]


def test_all_captions_of_a_beam_are_kept_and_the_best_is_the_caption(small: Small, tmp_path: Path) -> None:
    assert all(image.alternatives == () for image in cached(small, tmp_path / "a.json").scores.images)
    beam = cached(small, tmp_path / "b.json", captioner=on_cpu(small.run, decoding=Decoding(beam=3)))
    assert beam.scores.made_by["decoding"]["beam"] == 3
    for image in beam.scores.images:
        assert len(image.alternatives) > 1
        assert image.alternatives[0].caption == image.caption
        scores = [alternative.score for alternative in image.alternatives]
        assert scores == sorted(scores, reverse=True)


def test_two_evaluations_into_the_same_files_leave_the_captions_and_scores_of_one_of_them(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scoring, second_done = tmp_path / "x.scores.json", threading.Event(), threading.Event()

    def slow(*args: Any, **kwargs: Any) -> ScoreFile:
        if not scoring.is_set():
            scoring.set()
            second_done.wait(0.5)  # the time in which the second evaluation would write both files
        return score_texts(*args, **kwargs)

    monkeypatch.setattr(evaluate_module, "score_texts", slow)
    short = on_cpu(small.run, decoding=Decoding(max_words=2))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(cached, small, out, captioner=short)
        assert scoring.wait(60)
        second = pool.submit(cached, small, out)
        second.add_done_callback(lambda _: second_done.set())
        assert first.result().captions != second.result().captions
    captions = [entry["caption"] for entry in json.loads((tmp_path / "x.results.json").read_text())]
    assert [image.caption for image in read_scores(out).images] == captions


def test_unavailable_training_captions_are_noted(small: Small, tmp_path: Path) -> None:
    (tmp_path / "val.h5").write_bytes((small.features / "val.h5").read_bytes())
    result = cached(small, tmp_path / "s.json", features=tmp_path)
    assert "novel" not in result.scores.scores
    assert any("the training captions are not available" in note and "train.h5" in note for note in result.scores.notes)
    (tmp_path / "train.h5").write_bytes(b"no such thing")
    result = cached(small, tmp_path / "s.json", features=tmp_path)
    assert any("the training captions cannot be read" in note for note in result.scores.notes)
    (tmp_path / "train.h5").write_bytes((small.features / "val.h5").read_bytes())
    result = cached(small, tmp_path / "s.json", features=tmp_path)
    assert "novel" in result.scores.scores
    assert any("which the run was not trained on" in note for note in result.scores.notes)


def test_images_without_a_reference_are_captioned_and_not_scored(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_the_first(path: Path) -> FeatureFile:
        file = open_features(path)
        table = file.table
        begin = int(table.caption_counts[0])
        columns = {name: getattr(table, name)[begin:] for name in ("image_rows", "caption_ids", "texts")}
        offsets = table.offsets[begin:] - table.offsets[begin]
        cut = replace(table, tokens=table.tokens[table.offsets[begin] :], offsets=np.asarray(offsets), **columns)
        cut.check()
        return replace(file, table=cut)

    monkeypatch.setattr(evaluate_module, "open_features", without_the_first)
    result = cached(small, tmp_path / "s.json")
    assert len(result.captions) == 4
    assert len(json.loads(result.results.read_text())) == 4
    assert [image.image_id for image in result.scores.images] == [image_id for image_id, _, _ in result.captions[1:]]
    assert any("1 of 4 images have no reference" in note for note in result.scores.notes)


def test_features_of_another_network_are_refused_with_both_sides(small: Small, tmp_path: Path) -> None:
    from tests.caching import cache_features

    cache_features(shards=small.shards, out=tmp_path / "other", splits=["val"], backbone="squeezenet1_1", weights="random", device="cpu")
    with pytest.raises(MismatchError, match=r"resnet18.*squeezenet1_1"):
        cached(small, tmp_path / "s.json", features=tmp_path / "other")


@pytest.mark.parametrize("data", ["features", "shards"])
def test_a_checkpoint_with_nan_scores_is_named_with_the_next_step(small: Small, tmp_path: Path, run_cli: Callable[..., Result], data: str) -> None:
    checkpoint = diverged(small.run, tmp_path / "run")
    result = run_cli("evaluate", "--run", tmp_path / "run", f"--{data}", getattr(small, data))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {checkpoint}: the model's scores contain NaN")
    assert "Choose another --checkpoint (best or latest)" in result.stderr
    assert not list((tmp_path / "run").glob("val.*"))


def test_the_command_ends_with_the_next_command_for_what_it_wrote(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    run = shutil.copytree(small.run, tmp_path / "my run")
    evaluated = ["evaluate", "--run", run, "--features", small.features, "--no-java"]
    for options, wanted in (
        ([], [run, "--out", run / "report.html"]),
        (["--split", "train"], [run, "--split", "train", "--out", run / "report.html"]),
        (["--out", tmp_path / "other"], [tmp_path / "other", "--out", tmp_path / "report.html"]),
    ):
        result = run_cli(*evaluated, *options)
        assert result.exit_code == 0
        said = shlex.split(result.stdout.splitlines()[-1])
        assert said == ["Next:", "python", "cli.py", "report", *map(str, wanted)]
        assert run_cli(*said[3:]).exit_code == 0


def test_only_score_files_and_result_files_are_overwritten(small: Small, tmp_path: Path) -> None:
    run = shutil.copytree(small.run, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name in ("config.json", "metrics.jsonl", "backbone.safetensors", "checkpoints"):
        for files in (EvaluationFiles(out=run / name), EvaluationFiles(out=tmp_path / "s.json", results=run / name)):
            with pytest.raises(InputError, match=rf"{name}: is (another kind of file, which would be overwritten|a folder)"):
                evaluate(on_cpu(run), EvaluationSource(features=small.features), files=files)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    first = cached(small, tmp_path / "s.json")
    assert cached(small, tmp_path / "s.json").scores == first.scores


def test_weights_together_with_cached_features_are_a_usage_error(small: Small, run_cli: Callable[..., Result]) -> None:
    result = run_cli("evaluate", "--run", small.run, "--features", small.features, "--weights", "w.pth")
    assert result.exit_code == 2
    assert "--weights requires --shards" in result.stderr


def test_what_is_missing_is_named(small: Small, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a run"):
        evaluate(on_cpu(tmp_path), EvaluationSource(features=small.features))
    with pytest.raises(InputError, match=r"features: there is no split 'test' \(available: train, val\). Choose another `split`. A new dataset gets"):
        cached(small, tmp_path / "s.json", split="test")


def test_settings_that_contradict_each_other_are_refused(small: Small, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"`features` and `shards` were both given. Omit one"):
        EvaluationSource(features=small.features, shards=small.shards)
    with pytest.raises(InputError, match="`batch_size` 0: must be at least 1"):
        EvaluationSource(features=small.features, batch_size=0)
    with pytest.raises(InputError, match="`ptb` other: must be one of builtin, java"):
        ScoringConfig(ptb="other")  # type: ignore[arg-type]
    files = EvaluationFiles(out=tmp_path / "s.json", results=tmp_path / "s.json")
    with pytest.raises(InputError, match="`out` and `results` are both"):
        evaluate(on_cpu(small.run), EvaluationSource(features=small.features), files=files)


def test_runs_caption_as_an_ensemble_and_mismatching_ones_are_refused(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    settings = {**TINY_MODEL, "epochs": 1, "seed": 7, "hidden_dim": 40}
    train_on_cpu(out=tmp_path / "second", features=small.features, vocab=small.run / "vocab.json", settings=settings)
    together = cached(small, tmp_path / "both.json", captioner=on_cpu(small.run, ensemble=[tmp_path / "second"]))
    assert together.scores.made_by["others"] == [str(tmp_path / "second")]
    runs = [open_run(folder, device=torch.device("cpu")) for folder in (small.run, tmp_path / "second")]
    features = torch.from_numpy(np.array(open_features(small.features / "val.h5").mean_view()))
    found = decode(Ensemble([run.captioner for run in runs]).eval(), features, runs[0].vocabulary, Decoding())
    assert [caption for _, _, caption in together.captions] == [sentence(hypotheses[0].words) for hypotheses in found]

    ours = ("evaluate", "--run", small.run, "--run", tmp_path / "second", "--features", small.features, "--no-java", "--device", "cpu")
    refused = run_cli(*ours)
    assert refused.exit_code == 2
    assert "give --out, a file for them" in refused.output
    assert run_cli(*ours, "--out", tmp_path / "c.json").exit_code == 0
    images = sorted(map(str, (small.source / "images").glob("*.jpg")))[:2]
    one, both = (run_cli("caption", *images, *runs, "--device", "cpu") for runs in (ours[1:3], ours[1:5]))
    assert one.exit_code == both.exit_code == 0

    train_on_cpu(out=tmp_path / "third", features=small.features, settings={**settings, "min_count": 40}, max_steps=1)
    with pytest.raises(MismatchError, match=r"cannot caption together.*digest of the vocabulary: expected \w+, found \w+"):
        cached(small, tmp_path / "x.json", captioner=on_cpu(small.run, ensemble=[tmp_path / "third"]))


def test_the_average_is_the_mean_of_the_weights_of_all_checkpoints(small: Small, tmp_path: Path) -> None:
    settings = {**TINY_MODEL, "epochs": 2, "checkpoint_every": 4, "keep_checkpoints": 2}
    train_on_cpu(out=tmp_path / "run", features=small.features, settings=settings)
    kept = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(kept) >= 2
    states = [load_file(path / "model.safetensors") for path in kept]
    average = open_run(tmp_path / "run", device=torch.device("cpu"), checkpoint="average")
    for key, value in average.captioner.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, torch.stack([state[key] for state in states]).mean(dim=0))
        else:
            assert value == states[-1][key]
    (kept[0] / "model.safetensors").write_bytes(b"damaged")
    fewer = open_run(tmp_path / "run", device=torch.device("cpu"), checkpoint="average").captioner.state_dict()
    torch.testing.assert_close(
        fewer["decoder.word_scores.output.weight"], torch.stack([s["decoder.word_scores.output.weight"] for s in states[1:]]).mean(dim=0)
    )


def test_the_data_of_the_run_are_the_default(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    command = ("evaluate", "--run", small.run, "--no-java", "--device", "cpu", "--out")
    given, default = run_cli(*command, tmp_path / "a.json", "--features", small.features), run_cli(*command, tmp_path / "b.json")
    assert given.exit_code == default.exit_code == 0, default.output
    assert f"Split val of the features that the run was trained on: {small.features}" in default.stderr
    first, second = (read_scores(tmp_path / name) for name in ("a.json", "b.json"))
    assert (first.scores, first.images) == (second.scores, second.images)
    assert second.made_by["data"] == first.made_by["data"]
    refused = run_cli(*command, tmp_path / "c.json", "--weights", "w.pth")
    assert (refused.exit_code, "--weights requires --shards" in refused.output) == (2, True)


def test_data_of_the_run_that_are_gone_or_have_no_val_are_named(small: Small, tmp_path: Path, run_cli: Callable[..., Result]) -> None:
    shutil.copytree(small.features, tmp_path / "f", ignore=shutil.ignore_patterns("val*"))
    run = tmp_path / "run"
    assert "There is no val split: nothing was validated" in "".join(
        train_on_cpu(out=run, features=tmp_path / "f", settings=TINY_MODEL, max_steps=1).notes
    )
    command = ("evaluate", "--run", run, "--no-java", "--device", "cpu")
    result = run_cli(*command)
    assert result.exit_code == 1
    assert f"{tmp_path / 'f'}: there is no split 'val' (available: train). Choose another --split." in result.output
    assert "python cli.py shard --holdout val=0.1" in result.output
    assert run_cli(*command, "--split", "train").exit_code == 0
    shutil.rmtree(tmp_path / "f")
    result = run_cli(*command)
    assert (result.exit_code, "are no longer there. Give --features, the folder where they are now." in result.output) == (1, True)
