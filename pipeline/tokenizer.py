"""Caption -> tokens.

The rule, whole: the caption is lower-cased (``str.lower``) and given to NLTK's ``word_tokenize`` with ``preserve_line=True``,
that is, to NLTK's Treebank word tokenizer on the caption as one line. Nothing is downloaded: sentence splitting, which needs
NLTK's punkt data, is left out. A full stop is therefore split off at the caption's end only ("a dog. a cat." -> "a", "dog.",
"a", "cat", "."); commas, quotes, brackets and contractions ("isn't" -> "is", "n't") are split everywhere.
"""

import functools
from collections.abc import Callable

RULE = "nltk.word_tokenize(text.lower(), preserve_line=True)"


@functools.cache
def _word_tokenize() -> Callable[..., list[str]]:
    from nltk.tokenize import word_tokenize

    function: Callable[..., list[str]] = word_tokenize
    return function


def tokenize(text: str) -> list[str]:
    """Split one caption into tokens.

    >>> tokenize("A man's dog, asleep.")
    ['a', 'man', "'s", 'dog', ',', 'asleep', '.']
    """
    return _word_tokenize()(text.lower(), preserve_line=True)
