"""Japanese captions, split into Sudachi's short units (SplitMode.A), about those of UniDic, and written without spaces between them."""

import functools
from typing import Any

from pipeline.captions.languages import Language
from pipeline.captions.segmentation import segmented_language, spans_of

# Sudachi accepts up to 49,149 bytes at a time.
PIECE_CHARACTERS = 10_000


@functools.cache
def _tokenizer() -> Any:
    from sudachipy import Dictionary, SplitMode

    return Dictionary(dict="small").tokenizer(mode=SplitMode.A)


def _words(text: str) -> list[str]:
    pieces = (text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))
    return [morpheme.surface() for piece in pieces for morpheme in _tokenizer().tokenize(piece)]


JAPANESE: Language = segmented_language(
    "sudachipy SplitMode.A(NFC(text).lower()), small dictionary",
    lambda text: spans_of(_words(text)),
    packages=("sudachipy", "sudachidict_small"),
    extra="ja",
    keep_spaces=False,
)
