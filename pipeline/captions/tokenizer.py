"""Caption -> tokens.

The rule, whole: the caption is lower-cased (``str.lower``) and given to NLTK's ``word_tokenize`` with ``preserve_line=True``,
that is, to NLTK's Treebank word tokenizer on the caption as one line. Nothing is downloaded: sentence splitting, which needs
NLTK's punkt data, is left out. A full stop is therefore split off at the caption's end only ("a dog. a cat." -> "a", "dog.",
"a", "cat", "."); commas, quotes, brackets and contractions ("isn't" -> "is", "n't") are split everywhere.
"""

import functools
import re
from collections.abc import Callable

RULE = "nltk.word_tokenize(text.lower(), preserve_line=True)"
# Captions on which the rule only splits at spaces, commas and the last full stop: words of ASCII letters and digits, joined by
# single hyphens, and none of those that NLTK splits ("cannot" -> "can", "not"). A comma has a space behind it.
_WORD = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_PLAIN = re.compile(rf" *{_WORD}(?:,? +{_WORD})*(?P<stop> *\.)? *")
_SPLIT_WORDS = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b")


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
    text = text.lower()
    plain = _PLAIN.fullmatch(text)
    if plain is None or _SPLIT_WORDS.search(text):
        return _word_tokenize()(text, preserve_line=True)
    if plain["stop"]:
        text = text.rstrip(" .") + " ."
    return text.replace(",", " ,").split()
