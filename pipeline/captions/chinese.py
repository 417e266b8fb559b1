"""Chinese captions, split into words by jieba, and written without spaces between them."""

import functools
from collections.abc import Callable

from pipeline.captions.languages import Language
from pipeline.captions.segmentation import segmented_language, spans_of


@functools.cache
def _cut() -> Callable[[str], list[str]]:
    from jieba import Tokenizer

    tokenizer = Tokenizer()
    # jieba itself would load the dictionary from a cache in the temporary folder, which any user can write to.
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    function: Callable[[str], list[str]] = tokenizer.lcut
    return function


CHINESE: Language = segmented_language(
    "jieba.lcut(NFC(text).lower())",
    lambda text: spans_of(_cut()(text)),
    packages=("jieba",),
    extra="zh",
    keep_spaces=False,
)
