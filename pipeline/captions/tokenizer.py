"""Caption -> tokens.

A caption is lower-cased (``str.lower``) and tokenized with NLTK's ``word_tokenize`` with ``preserve_line=True``, that is, with NLTK's
Treebank word tokenizer on the caption as one line. Nothing is downloaded, because sentences are not split, which would need NLTK's punkt
data. A full stop is therefore split off only at the caption's end ("a dog. a cat." -> "a", "dog.", "a", "cat", "."). Commas, quotes,
brackets and contractions ("isn't" -> "is", "n't") are split everywhere.
"""

import functools
import re
from collections.abc import Callable

RULE = "nltk.word_tokenize(text.lower(), preserve_line=True)"
# Captions that NLTK would split only at spaces, commas and the last full stop: words of ASCII letters and digits, joined by single
# hyphens, without the words that NLTK splits ("cannot" -> "can", "not"). A space follows each comma.
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
