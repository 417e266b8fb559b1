"""Tokens <-> ids. Ids 0 to 3 are <pad>, <start>, <end>, <unk>; then come words by descending frequency, ties by code point."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

PAD, START, END, UNK = "<pad>", "<start>", "<end>", "<unk>"
SPECIAL = (PAD, START, END, UNK)


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of distinct words; a word's id is its index. ``language`` is theirs, a BCP 47 tag.

    >>> vocabulary = Vocabulary((PAD, START, END, UNK, "a", "dog"))
    >>> vocabulary.encode(["a", "cat"]), vocabulary.decode([4, 5])
    ([4, 3], ['a', 'dog'])
    """

    words: tuple[str, ...]
    language: str = "en"
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ids = {word: index for index, word in enumerate(self.words)}
        if len(ids) != len(self.words):
            repeated = next(word for index, word in enumerate(self.words) if ids[word] != index)
            raise ValueError(f"the word {repeated!r} occurs twice")
        object.__setattr__(self, "_ids", ids)

    def __len__(self) -> int:
        return len(self.words)

    def id(self, word: str) -> int:
        """A word's id; the id of <unk> for unknown words.

        Raises:
            KeyError: The word is unknown and the vocabulary has no <unk>.
        """
        found = self._ids.get(word)
        return self._ids[UNK] if found is None else found

    def encode(self, tokens: Iterable[str]) -> list[int]:
        """Ids of ``tokens``; unknown ones become <unk>. <start> and <end> are not added."""
        return [self.id(token) for token in tokens]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """Words of ``ids``."""
        return [self.words[index] for index in ids]


def build_vocabulary(counts: Mapping[str, int], *, min_count: int, language: str = "en") -> Vocabulary:
    """The four special words, then the words that occur at least ``min_count`` times.

    A token in a caption that is spelled like a special word (such as "<unk>") is not added a second time.
    """
    kept = sorted((word for word, count in counts.items() if count >= min_count and word not in SPECIAL), key=lambda w: (-counts[w], w))
    return Vocabulary((*SPECIAL, *kept), language)


def check_special(words: Sequence[str]) -> None:
    """Raise ValueError unless ``words`` begin with the four special words, which training and decoding need."""
    if tuple(words[: len(SPECIAL)]) != SPECIAL:
        raise ValueError(f"the first words are {list(words[: len(SPECIAL)])}, not {list(SPECIAL)}")
