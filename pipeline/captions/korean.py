"""Korean captions, split by Kiwi into morphemes as they are written.

A particle or an ending that is attached to its word is a token that is marked as such (``개``, ``￭가``), so that nouns are counted with any
particle, and captions are joined with Korean spacing. Morphemes that are contracted into one syllable ("갔" is 가 and 았) are one token.
"""

import functools
from collections.abc import Iterator
from typing import Any

from pipeline.captions.languages import Language
from pipeline.captions.segmentation import segmented_language


@functools.cache
def _kiwi() -> Any:
    from kiwipiepy import Kiwi

    return Kiwi(num_workers=1)


def _spans(text: str) -> Iterator[tuple[int, int]]:
    return ((morpheme.start, morpheme.start + morpheme.len) for morpheme in _kiwi().tokenize(text))


KOREAN: Language = segmented_language(
    "kiwipiepy morphemes as written, NFC(text).lower()",
    _spans,
    packages=("kiwipiepy", "kiwipiepy_model"),
    extra="ko",
)
