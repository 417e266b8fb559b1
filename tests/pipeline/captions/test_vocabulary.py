from unicodedata import normalize

import pytest

from pipeline.captions.languages import language_rules
from pipeline.captions.vocabulary import vocabulary_of
from shards.caption_table import table_from_records


@pytest.mark.parametrize(("language", "text", "words"), [("en", "a café", {"a", "café"}), ("ko", "한국 개가", {"한국", "개", "￭가"})])
def test_words_in_either_unicode_form_stand_once_in_the_vocabulary(language: str, text: str, words: set[str]) -> None:
    rules = language_rules(language)
    captions = [{"id": n, "text": form, "tokens": rules.tokenize(form)} for n, form in enumerate((normalize("NFC", text), normalize("NFD", text)))]
    table = table_from_records([[("0", {"image_id": 0, "file_name": "x", "captions": captions})]], language=language)
    found = vocabulary_of(table, min_count=2)
    assert (set(found.vocabulary.words[4:]), found.vocabulary.language, found.coverage) == (words, language, 1.0)
