import itertools
from unicodedata import normalize

import pytest

from model.decoding import ScoredCaption
from model.metrics import BLEU, bleu, cider, corpus_scores, rouge_l
from model.ptb import ptb_tokens
from pipeline.evaluation import java
from pipeline.evaluation.java import JavaError, find_java
from pipeline.evaluation.scoring import Prediction, ScoringConfig, score_texts
from shards.errors import InputError

REFERENCES = [("A red dog runs.", "The dog is running!"), ("Two cats sleep on a sofa.", "Cats, asleep"), ("A man eats fish.", "a man's dinner")]
CAPTIONS = ["a red dog runs", "two cats on a", "a man eats fish."]

NO_JAVA = ScoringConfig(java=False)


def predictions(captions: list[str] = CAPTIONS) -> list[Prediction]:
    return [
        Prediction(image_id=10 + row, file_name=f"{row}.jpg", caption=caption, references=references)
        for row, (caption, references) in enumerate(zip(captions, REFERENCES, strict=False))
    ]


def test_scores_are_those_of_the_ptb_tokens_and_intervals_hold_them() -> None:
    found = score_texts(predictions(), split="val", made_by={"command": "x"}, training=["A RED dog runs!"], scoring=NO_JAVA)
    candidates, references = list(map(ptb_tokens, CAPTIONS)), [list(map(ptb_tokens, group)) for group in REFERENCES]
    expected = corpus_scores(candidates, references)
    assert {name: found.scores[name].value for name in expected} == expected
    of_images = {**dict(zip(BLEU, bleu(candidates, references).images, strict=True))}
    of_images |= {"rouge_l": rouge_l(candidates, references).images, "cider": cider(candidates, references).images}
    for row, image in enumerate(found.images):
        assert {name: image.scores[name] for name in of_images} == {name: values[row] for name, values in of_images.items()}
        assert set(image.scores) == set(found.scores)
    assert all(interval.low <= interval.value <= interval.high for interval in found.scores.values())
    assert {name: round(found.scores[name].value, 3) for name in ("distinct", "novel", "mean_length", "bad_endings")} == {
        "distinct": 1.0,
        "novel": 0.667,
        "mean_length": 4.0,
        "bad_endings": 0.333,
    }
    assert found.made_by["command"] == "x"
    assert found.made_by["tokenizer"].startswith("model.ptb")
    assert found.made_by["intervals"]["resamples"] == 1000
    assert "pycocoevalcap" in found.made_by["versions"]
    assert found.notes == ()


def test_the_same_captions_have_the_same_intervals() -> None:
    first, second = (score_texts(predictions(), split="", made_by={}, scoring=NO_JAVA) for _ in range(2))
    assert first == second


def test_one_images_interval_is_its_value() -> None:
    found = score_texts(predictions(CAPTIONS[:1]), split="", made_by={}, scoring=NO_JAVA)
    assert all(interval.low == interval.value == interval.high for interval in found.scores.values())


def test_without_training_captions_there_is_no_novel_score() -> None:
    assert "novel" not in score_texts(predictions(), split="", made_by={}, scoring=NO_JAVA).scores


def test_alternatives_are_kept_with_their_image() -> None:
    other = (ScoredCaption(caption="a red dog runs", score=-1.0), ScoredCaption(caption="a dog", score=-2.0))
    image = Prediction(image_id=1, file_name="", caption="a red dog runs", references=REFERENCES[0], alternatives=other)
    assert score_texts([image], split="", made_by={}, scoring=NO_JAVA).images[0].alternatives == other


def test_no_images_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to score"):
        score_texts([], split="", made_by={}, scoring=NO_JAVA)


@pytest.mark.full
@pytest.mark.skipif(find_java() is None, reason="there is no Java here")
def test_meteor_has_an_interval_and_missing_spice_jars_are_noted() -> None:
    said: list[str] = []
    found = score_texts(predictions(), split="", made_by={}, report=said.append)
    meteor = found.scores["meteor"]
    assert 0 < meteor.low < meteor.value < meteor.high <= 1
    assert all("meteor" in image.scores for image in found.images)
    assert "METEOR, in Java" in said
    if "spice" not in found.scores:
        assert any(note.startswith("SPICE: missing ") for note in found.notes)


@pytest.mark.skipif(find_java() is None, reason="there is no Java here")
def test_the_stanford_tokenizer_can_be_used() -> None:
    found = score_texts(predictions(), split="", made_by={}, training=["A RED dog runs!"], scoring=ScoringConfig(ptb="java", java=False))
    built_in = score_texts(predictions(), split="", made_by={}, training=["A RED dog runs!"], scoring=NO_JAVA)
    assert found.scores == built_in.scores
    assert found.made_by["tokenizer"].startswith("Stanford")


def test_where_java_fails_the_other_scores_are_computed_and_notes_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise JavaError("Java failed (exit code 3).")

    monkeypatch.setattr(java, "require", lambda *_, **__: None)
    scoring = ScoringConfig(ptb="java")  # as if Java were installed
    monkeypatch.setattr(java, "require", fail)
    found = score_texts(predictions(), split="", made_by={}, training=["a"], scoring=scoring)
    assert found.scores["cider"].value > 0
    assert "meteor" not in found.scores
    assert found.made_by["tokenizer"].startswith("model.ptb")
    assert found.notes[0] == "Java failed (exit code 3). The built-in tokenizer was used instead."
    assert len(found.notes) == 3


def test_a_tokenizer_that_is_not_available_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(InputError, match=r"`ptb` java: .*no java on the PATH.*omit `ptb`"):
        ScoringConfig(ptb="java")


def test_captions_and_references_are_compared_in_one_unicode_form() -> None:
    text = "한국 café"
    for language in ("en", "ko"):
        for caption, reference in itertools.permutations([normalize("NFC", text), normalize("NFD", text)]):
            image = Prediction(image_id=1, file_name="", caption=caption, references=(reference,))
            found = score_texts([image], split="", made_by={}, language=language, training=[reference], scoring=NO_JAVA)
            assert found.scores["bleu_1"].value == pytest.approx(1, abs=1e-6)
            assert found.scores["novel"].value == 0


def test_captions_in_another_language_are_compared_by_its_words_and_without_metrics_of_english() -> None:
    images = [
        Prediction(image_id=1, file_name="", caption="개가 뛴다.", references=("그 개는 뛴다", "고양이")),
        Prediction(image_id=2, file_name="", caption="별 두 개가 있다", references=("별 두 개.",)),
    ]
    found = score_texts(images, split="", made_by={}, language="ko", scoring=ScoringConfig(java=True))
    candidates = [["개", "가", "뛴다"], ["별", "두", "개", "가", "있", "다"]]
    expected = corpus_scores(candidates, [[["그", "개", "는", "뛴다"], ["고양이"]], [["별", "두", "개"]]])
    assert {name: found.scores[name].value for name in expected} == expected
    assert not {"meteor", "spice", "bad_endings"} & found.scores.keys()
    assert found.made_by["language"] == "ko"
    assert found.made_by["tokenizer"].startswith("kiwipiepy")
    assert "kiwipiepy" in found.made_by["versions"]
    assert any(note.startswith("BLEU, ROUGE-L and CIDEr compare the tokens of kiwipiepy") for note in found.notes)
    assert "Left out, because they know English words only: METEOR, SPICE, Bad endings." in found.notes


def test_the_stanford_tokenizer_is_refused_for_another_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "require", lambda *_, **__: None)
    scoring = ScoringConfig(ptb="java")
    scoring.check_language("en")
    with pytest.raises(InputError, match="`ptb` java: it splits English, but the language of these captions is zh"):
        scoring.check_language("zh")
