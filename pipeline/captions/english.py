"""English captions, the default.

A caption is put into Unicode's normal form C, lower-cased (``str.lower``) and tokenized with NLTK's ``word_tokenize`` with
``preserve_line=True``, that is, with NLTK's Treebank word tokenizer on the caption as one line. Nothing is downloaded, because sentences are
not split, which would need NLTK's punkt data. A full stop is therefore split off only at the caption's end ("a dog. a cat." -> "a", "dog.",
"a", "cat", "."). Commas, quotes, brackets and contractions ("isn't" -> "is", "n't") are split everywhere.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence

from model.ptb import ptb_tokens
from pipeline.captions.languages import Language

RULE = "nltk.word_tokenize(NFC(text).lower(), preserve_line=True)"
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
    lowered = text.lower()
    plain = _PLAIN.fullmatch(lowered)
    if plain is None or _SPLIT_WORDS.search(lowered):
        return _word_tokenize()(lowered if text.isascii() else _composed(_composed(text).lower()), preserve_line=True)
    if plain["stop"]:
        lowered = lowered.rstrip(" .") + " ."
    return lowered.replace(",", " ,").split()


def sentence(words: Sequence[str]) -> str:
    """Join tokens into text with NLTK's detokenizer, which attaches punctuation and contractions.

    >>> sentence(["a", "man", "'s", "dog", ",", "asleep", "."])
    "a man's dog, asleep."
    """
    from nltk.tokenize.treebank import TreebankWordDetokenizer

    text: str = TreebankWordDetokenizer().detokenize(words)
    return text


def scored_tokens(text: str) -> list[str]:
    """The tokens of the COCO evaluation; the same for canonically equivalent texts."""
    return ptb_tokens(text if text.isascii() else _composed(text))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


ENGLISH_RULES = Language(
    rule=RULE,
    tokenize=tokenize,
    join=sentence,
    scored=scored_tokens,
    scored_word=lambda word: word if ptb_tokens(word) else "",
    scored_rule="model.ptb, built in",
    packages=("nltk",),
    english=True,
)
