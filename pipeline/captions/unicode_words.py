"""Captions in any other language, split at ICU's word boundaries: Unicode's rules, with dictionaries for Thai, Lao, Khmer and Burmese."""

from collections.abc import Iterator

from pipeline.captions.languages import Language
from pipeline.captions.segmentation import segmented_language, spans_of

# Capital I has no dot there: its lower case is ı, and that of İ is i.
DOTLESS_I = frozenset(("tr", "az"))
_TURKIC = str.maketrans({"I": "ı", "İ": "i"})


def words_of(tag: str) -> Language:
    """The rules of a language without rules of its own.

    Args:
        tag: Its code in ISO 639, in lower case.
    """

    def spans(text: str) -> Iterator[tuple[int, int]]:
        from icu4py.breakers import WordBreaker

        # Not segments(): it counts UTF-16 units.
        return spans_of(list(WordBreaker(text, tag)))

    return segmented_language(
        f"ICU word boundaries for {tag}, NFC(text).lower()",
        spans,
        packages=("icu4py",),
        extra="icu",
        capitals=_TURKIC if tag in DOTLESS_I else None,
    )
