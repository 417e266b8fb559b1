import json
import stat
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from model.intervals import resampled_sums
from model.ptb import ptb_tokens
from pipeline.evaluation import java
from pipeline.evaluation.java import NEEDS, SPICE_LIBRARIES, JavaError, find_java, java_command, java_tokens, meteor, require, spice

needs_java = pytest.mark.skipif(find_java() is None, reason="there is no Java here")


def program(folder: Path, script: str) -> None:
    """Write a program called java that runs ``script``."""
    path = folder / "java"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder JAVA_HOME/bin, for a fake java; all jars seem to be installed."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    for name in {name for names in NEEDS.values() for name in names}:
        jar = tmp_path / "package" / name
        jar.parent.mkdir(parents=True, exist_ok=True)
        jar.touch()
    monkeypatch.setattr(java, "package_folder", lambda: tmp_path / "package")
    return tmp_path / "bin"


@needs_java
def test_the_built_in_tokenizer_agrees_with_the_stanford_one_on_999_of_1000_real_captions(data: Path) -> None:
    content = json.loads((data / "coco-captions" / "captions_val2017.json").read_text())
    flickr = json.loads((data / "flickr8k-features" / "dataset_flickr8k.json").read_text())
    for captions in (
        [annotation["caption"] for annotation in content["annotations"]],
        [sentence["raw"] for image in flickr["images"] for sentence in image["sentences"]],
    ):
        assert len(captions) in (25_014, 35_000)
        theirs = java_tokens(captions)
        differing = [(text, there) for text, there in zip(captions, theirs, strict=True) if ptb_tokens(text) != there]
        assert len(differing) <= 0.001 * len(captions), differing[:10]


@needs_java
def test_the_built_in_tokenizer_agrees_on_hard_texts() -> None:
    texts = [
        "the '90s 'n' O'Brien's 3 1/2-inch 10,000-seat arena, R&B",
        "He can't, won't, isn't; gonna (maybe) [x] see www.a.com at 10:30 p.m. daily",
    ]
    texts += [
        "Café naïve ½ £5 “quote” it’s",
        "A K. Smith at 5ft. tall, no. 5, U.S.-made black/white t-shirt, Mr.Jones",
        "odd\x0bline\u2028ends\r\nhere",
        "",
        "end",
    ]
    assert list(map(ptb_tokens, texts)) == java_tokens(texts)


@needs_java
def test_the_java_tokenizer_gives_what_pycocoevalcap_gives() -> None:
    from pycocoevalcap.tokenizer import ptbtokenizer

    texts = ["A man's dog (asleep).", "Don't stop!", "the '90s", "a K.", "The end"]
    theirs = ptbtokenizer.PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    assert [" ".join(tokens) for tokens in java_tokens(texts)] == [theirs[i][0] for i in range(len(texts))]


@needs_java
def test_meteor_equals_pycocoevalcaps_and_the_sum_over_all_images_gives_the_corpus_score() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    captions = ["a dog runs on grass", "a red cat sits", "two men walk", "a cat", ""]
    references = [["the dog is running", "a dog running on the grass"], ["a blue cat sits here"], ["two men walk", "men"], ["a cat"], ["a bus"]]
    scorer = Meteor()
    corpus, images = scorer.compute_score(dict(enumerate(references)), {i: [text] for i, text in enumerate(captions)})
    asked = []

    def sums_of(counts: np.ndarray) -> np.ndarray:
        asked.append(counts)
        return np.concatenate([counts.sum(axis=0)[None], resampled_sums(counts, resamples=20)])

    found = meteor(captions, references, sums_of)
    assert found.corpus == corpus
    assert found.images.tolist() == images
    assert found.resampled[0] == corpus
    assert found.resampled.shape == (21,)
    assert asked[0].shape == (5, 23)
    assert found.resampled[1:].std() > 0


ITALIAN = "-Duser.language=it -Duser.country=IT -Duser.language.format=it -Duser.country.format=IT"


@needs_java
@pytest.mark.parametrize("variable", ["JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS"])
def test_options_of_the_environment_do_not_change_the_locale(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, f"{ITALIAN} -Dfile.encoding=ISO-8859-1 -Duser.extensions=u-nu-arab")
    command = [*java_command(str(find_java())), "-XshowSettings:all", "-version"]
    shown = subprocess.run(command, capture_output=True, text=True, env=java.java_environment(), timeout=60, check=True).stderr
    for setting in ("default locale = English (United States)", "default format locale = English (United States)", "file.encoding = UTF-8"):
        assert f" {setting}\n" in shown


@pytest.mark.full
@needs_java
def test_under_a_locale_with_decimal_commas_meteor_and_the_tokenizer_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    captions, references = ["a dog runs on grass", "two men walk"], [["the dog is running"], ["two men walk"]]
    texts = ["A TITLE costs 1,234.5 dollars", "0,5 or 0.5 I"]

    def measured() -> tuple[object, ...]:
        scores = meteor(captions, references, lambda counts: counts.sum(axis=0)[None])
        return scores.corpus, scores.images.tolist(), scores.resampled.tolist(), java_tokens(texts)

    expected = measured()
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", ITALIAN)
    assert measured() == expected


@needs_java
def test_under_a_locale_with_decimal_commas_the_java_tokenizer_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", ITALIAN)
    assert java_tokens(["A TITLE costs 1,234.5 dollars", "0,5"]) == [["a", "title", "costs", "1,234.5", "dollars"], ["0,5"]]


def test_every_java_process_gets_its_locale(fake: Path) -> None:
    program(fake, f'printf "%s\\n" "$*" >> {fake}/asked; exit 1')
    for ask in (lambda: java_tokens(["a"]), lambda: meteor(["a"], [["a"]]), lambda: spice(["a"], [["a"]])):
        with pytest.raises(JavaError):
            ask()
    asked = (fake / "asked").read_text().splitlines()
    assert len(asked) == 3
    assert all("-Duser.language=en " in line and "-Duser.country.format=US " in line for line in asked)


def test_without_java_the_error_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    for ask in (lambda: java_tokens(["a"]), lambda: meteor(["a"], [["a"]]), lambda: spice(["a"], [["a"]])):
        with pytest.raises(JavaError, match=r"there is no java on the PATH.*Install"):
            ask()


def test_missing_jars_are_named_with_their_place_and_nothing_is_downloaded(fake: Path) -> None:
    program(fake, "exit 0")
    for name in SPICE_LIBRARIES:
        (fake.parent / "package" / "spice" / "lib" / name).unlink()
    with pytest.raises(JavaError, match=r"SPICE: missing \S+spice/lib/stanford-corenlp-3.6.0.jar and \S+models.jar. Put these files there"):
        spice(["a"], [["a"]])
    assert not (fake.parent / "package" / "spice" / "lib" / SPICE_LIBRARIES[0]).exists()


def test_a_java_that_fails_is_reported_with_its_last_line(fake: Path) -> None:
    program(fake, "echo first >&2; echo 'Could not reserve enough space' >&2; exit 3")
    for ask in (lambda: java_tokens(["a"]), lambda: meteor(["a"], [["a"]]), lambda: spice(["a"], [["a"]])):
        with pytest.raises(JavaError, match=r"failed \(exit code 3\): Could not reserve enough space"):
            ask()


def test_a_java_that_hangs_is_killed(fake: Path) -> None:
    program(fake, "sleep 60")  # not exec: the script starts a program that must be killed too
    began = time.monotonic()
    for ask in (
        lambda: java_tokens(["a"], seconds=0.3),
        lambda: meteor(["a"] * 5, [["b"]] * 5, seconds=0.3),
        lambda: spice(["a"], [["a"]], seconds=0.3),
    ):
        with pytest.raises(JavaError, match=r"did not answer within 0 s and was stopped"):
            ask()
    assert time.monotonic() - began < 20


def test_a_java_that_answers_nonsense_is_reported(fake: Path) -> None:
    program(fake, "while read line; do echo hello; done")
    with pytest.raises(JavaError, match="statistics do not have the form"):
        meteor(["a"], [["b"]])
    with pytest.raises(JavaError, match="returned 1 lines for 3 captions"):
        program(fake, "cat > /dev/null; printf x")
        java_tokens(["a", "b", "c"])


def test_spice_reads_the_scores_of_its_jar_by_image(fake: Path) -> None:
    answer = [{"image_id": 1, "scores": {"All": {"f": 0.5}}}, {"image_id": 0, "scores": {"All": {"f": None}}}]
    (fake / "answer.json").write_text(json.dumps(answer))
    program(fake, f'while [ "$1" != -out ]; do shift; done; cp {fake}/answer.json "$2"')
    found = spice(["a dog", "a cat"], [["a dog"], ["a cat", "cats"]])
    assert np.isnan(found[0])
    assert found[1] == 0.5
    (fake / "answer.json").write_text("[]")
    with pytest.raises(JavaError, match="SPICE's answer cannot be read"):
        spice(["a"], [["a"]])


def test_java_home_comes_first(fake: Path) -> None:
    program(fake, "exit 0")
    assert find_java() == str(fake / "java")
    assert require(*NEEDS["METEOR"], what="METEOR")[0] == str(fake / "java")
