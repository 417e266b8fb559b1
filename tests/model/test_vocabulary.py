import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.vocabulary import END, SPECIAL, START, UNK, Vocabulary, build_vocabulary


def test_the_worked_example_encodes_as_documented() -> None:
    vocabulary = Vocabulary((START, "PyTorch", "is", "a", "deep", "learning", "library", ".", END))
    assert vocabulary.encode([START, "PyTorch", "is", "deep", ".", END]) == [0, 1, 2, 4, 7, 8]


def test_words_are_ordered_by_frequency_and_ties_by_code_point() -> None:
    vocabulary = build_vocabulary({"b": 5, "a": 5, "z": 9, "rare": 3, UNK: 99}, min_count=4)
    assert vocabulary.words == (*SPECIAL, "z", "a", "b")
    assert vocabulary.encode(["rare", "z"]) == [vocabulary.id(UNK), 4]


def test_a_word_that_occurs_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' occurs twice"):
        Vocabulary((*SPECIAL, "a", "a"))


@given(st.dictionaries(st.text(), st.integers(1, 9)))
def test_known_words_are_decoded_as_encoded(counts: dict[str, int]) -> None:
    vocabulary = build_vocabulary(counts, min_count=2)
    known = [word for word, count in counts.items() if count >= 2]
    assert vocabulary.decode(vocabulary.encode(known)) == known
