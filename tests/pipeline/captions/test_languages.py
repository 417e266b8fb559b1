import subprocess
import sys
from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.captions.languages import language_rules, language_tag
from pipeline.captions.scripts import language_advice
from pipeline.captions.spacing import normalized
from shards.errors import InputError

TAGS = ["en", "zh", "ja", "ko", "de", "th", "tr"]
# Letters that have a decomposed form, from several scripts, and what usually separates words
PIECES = ["é", "Å", "ệ", "한국", "개가", "가", "が", "ガ", "犬", "İ", "ῆ", "क़", "a", "dog", "￭", "▁", ",", ". ", "«", "» ", " ", "\u200b", "😀"]
texts = st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=20)


@pytest.mark.parametrize(
    ("tag", "caption", "tokens"),
    [
        ("en", "A man's café.", ["a", "man", "'s", "café", "."]),
        ("zh", "一只狗在草地上奔跑。", ["一只", "狗", "在", "草地", "上", "奔跑", "。"]),
        ("zh-Hant", "iPhone 12 手机", ["iphone", "12", "手机"]),
        ("ja", "犬が草の上を走っている。", ["犬", "が", "草", "の", "上", "を", "走っ", "て", "いる", "。"]),
        ("ko", "예쁜 개가 잔디 위에서 뛰었다.", ["예쁜", "개", "￭가", "잔디", "위", "￭에서", "뛰", "￭었", "￭다", "."]),
        ("ko", "고양이가 갔다, 했어요", ["고양이", "￭가", "갔", "￭다", ",", "했", "￭어요"]),
        ("de", "Ein Hund läuft, e-Bike.", ["ein", "hund", "läuft", ",", "e", "￭-", "￭bike", "."]),
        ("fr", "L'homme, qui est là ?", ["l'homme", ",", "qui", "est", "là", "▁?"]),
        ("th", "แมวนอนอยู่บนเตียง", ["แมว", "นอน", "อยู่", "บน", "เตียง"]),
        ("tr", "IŞIK İle", ["ışık", "ile"]),
        ("de", "😀👍🏽 ok 𠮷", ["😀", "￭👍🏽", "ok", "▁𠮷"]),
    ],
)
def test_captions_are_split_as_their_language_is(tag: str, caption: str, tokens: list[str]) -> None:
    assert language_rules(tag).tokenize(caption) == tokens


@pytest.mark.parametrize(
    ("tag", "caption"),
    [
        ("en", "a man's dog, asleep."),
        ("zh", "一只狗在草地上奔跑，iphone 12。"),
        ("ja", "赤い大きな円が二つ、青い四角の上にあります。"),
        ("ko", '예쁜 고양이가 "잔디" 위에서 3마리를 봤다.'),
        ("fr", "l'homme, qui est là ? « oui » 3,5 m"),
        ("de", "„ein hund-halter“ läuft (schnell)."),
        ("th", "แมวนอนอยู่บนเตียง สีแดง 2 ตัว"),
        ("hi", "एक कुत्ता घास पर दौड़ रहा है।"),
        ("ar", "كلب يركض، وقطة؟"),
        ("es", "¿un perro? ¡sí!"),
    ],
)
def test_tokens_are_joined_to_the_caption_as_it_was_written(tag: str, caption: str) -> None:
    rules = language_rules(tag)
    assert rules.join(rules.tokenize(caption)) == normalize("NFC", caption)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["ko", "de", "th"]), texts)
def test_any_text_is_joined_as_it_was_but_for_invisible_characters(tag: str, text: str) -> None:
    rules = language_rules(tag)
    visible = " ".join(normalized(text).split())
    joined = rules.join(rules.tokenize(text))
    if visible.isprintable():
        assert joined == visible
    assert rules.tokenize(joined) is not None


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(TAGS), texts)
def test_canonically_equivalent_captions_have_the_same_tokens_and_scored_tokens(tag: str, text: str) -> None:
    rules = language_rules(tag)
    forms = [text, normalize("NFC", text), normalize("NFD", text)]
    tokens = rules.tokenize(text)
    assert all(rules.tokenize(form) == tokens for form in forms)
    assert all(rules.scored(form) == rules.scored(text) for form in forms)
    assert all(normalize("NFC", token) == token for token in tokens)
    assert all(token.strip() and not any(map(str.isspace, token)) for token in tokens if tag != "en")


def test_scores_compare_words_without_their_marks_and_punctuation() -> None:
    rules = language_rules("ko")
    assert rules.scored('개가 "뛴다".') == ["개", "가", "뛴다"]
    assert [rules.scored_word(token) for token in ("￭가", ".", "￭”")] == ["가", "", ""]


def test_captions_beyond_the_limit_of_a_segmenter_are_split() -> None:
    assert len(language_rules("ja").tokenize("犬が走る。" * 5000)) >= 20_000


def test_tags_are_checked_and_put_into_their_usual_case() -> None:
    assert [language_tag(tag) for tag in ("EN", "zh-hant-tw", "sr-Latn")] == ["en", "zh-Hant-TW", "sr-Latn"]
    for wrong in ("korean", "", "../x", "k", "zh_CN"):
        with pytest.raises(InputError, match="not a language tag"):
            language_rules(wrong)


def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    with pytest.raises(InputError, match=r"requires not-there: pip install '\.\[ko\]'"):
        replace(language_rules("ko"), packages=("not-there",)).check_installed()


def test_captions_are_joined_without_the_package_that_splits_them() -> None:
    code = """
import sys
for name in ("jieba", "sudachipy", "kiwipiepy", "icu4py"):
    sys.modules[name] = None
from pipeline.captions.languages import language_rules
print([language_rules(tag).join(tokens) for tag, tokens in (("zh", ["一只", "狗"]), ("ko", ["개", "￭가"]), ("ja", ["犬"]), ("de", ["ein", "hund"]))])
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['一只狗', '개가', '犬', 'ein hund']"


@pytest.mark.parametrize(
    ("text", "advised"),
    [
        ("一只狗在草地上奔跑。", "zh"),
        ("犬が草の上を走っている。", "ja"),
        ("개가 잔디 위에서 뛰고 있다.", "ko"),
        ("แมวนอนอยู่บนเตียง", "th"),
        ("ein Hund läuft über das Gras", None),
        ("Собака бежит по траве", None),
        ("a sign that says 犬", None),
        ("😀", None),
    ],
)
def test_a_language_is_advised_by_the_script_of_most_captions(text: str, advised: str | None) -> None:
    advice = language_advice([text] * 3 + ["A dog."] * 2, "en")
    assert (advice is None) == (advised is None)
    assert advised is None or f"give `language` {advised}," in str(advice)
    assert language_advice([text] * 2 + ["A dog."] * 3, "en") is None
    assert language_advice([text], "zh") is None
    assert language_advice([], "en") is None
