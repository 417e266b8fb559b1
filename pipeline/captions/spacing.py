"""Tokens that remember how they were spaced, so that a caption can be joined again as it was written.

Most spacing follows from the characters: no space before a comma, none between Chinese characters, one between other words. A token that was
written in another way has a mark, as in OpenNMT's Tokenizer: ``￭`` for a token that follows without a space, such as a Korean particle, and
``▁`` for one that follows after a space, such as a French question mark.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

JOINED, SPACED = "￭", "▁"
# Scripts that are written without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Japanese, Chinese, and their punctuation
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u19e0-\u19ff\u3000-\u30ff\u3100-\u312f\u31a0-\u31ff\u3400-\u9fff\ua9e0-\ua9ff\uaa60-\uaa7f"
    "\uf900-\ufaff\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff9f\U00020000-\U0003ffff"
)
UNSPACED = re.compile(f"[{_UNSPACED}]")
_NO_SPACE_BEFORE = frozenset(".,!?;:%…،؛؟।॥")
_NO_SPACE_AFTER = frozenset("¿¡")
_MARKS = str.maketrans({JOINED: " ", SPACED: " "})


def normalized(text: str) -> str:
    """The text in lower case and in Unicode's normal form C, without the characters that mark tokens.

    Texts that Unicode calls canonically equivalent, such as "é" as one character or as two, become the same text.
    """
    text = text.encode("utf-8", "replace").decode()  # the segmenters accept no lone surrogates
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()).translate(_MARKS)


def marked_tokens(text: str, spans: Iterable[tuple[int, int]], *, keep_spaces: bool = True) -> list[str]:
    """The tokens of a text, each with a mark if its spacing does not follow from the characters.

    Args:
        text: As :func:`normalized` returns it.
        spans: Start and end of each token, in order. Overlapping ones, such as the parts of a contraction, are one token; characters in none
            of them are tokens too.
        keep_spaces: Mark a token after an unusual space too. Without it, such spaces are lost: in Chinese they mean nothing.

    >>> marked_tokens("큰 개가 있다.", [(0, 1), (2, 3), (3, 4), (5, 6), (6, 7), (7, 8)])
    ['큰', '개', '￭가', '있', '￭다', '.']
    """
    tokens: list[str] = []
    before, end = "", 0
    for start, stop in _pieces(text, spans):
        token = text[start:stop]
        if before:
            spaced = any(map(str.isspace, text[end:start]))
            if spaced and keep_spaces and not _space_between(before, token):
                token = SPACED + token
            elif not spaced and _space_between(before, token):
                token = JOINED + token
        tokens.append(token)
        before, end = text[start:stop], stop
    return tokens


def join_tokens(tokens: Sequence[str]) -> str:
    """The text of tokens, spaced as their marks and their characters say.

    >>> join_tokens(["큰", "개", "￭가", "있", "￭다", "."]), join_tokens(["一只", "狗", "，", "iphone", "12", "。"])
    ('큰 개가 있다.', '一只狗，iphone 12。')
    """
    text = before = ""
    for token in tokens:
        word = unmarked(token)
        if before and (token[0] == SPACED or (token[0] != JOINED and _space_between(before, word))):
            text += " "
        text += word
        before = word or before
    return text


def unmarked(token: str) -> str:
    """A token without its mark."""
    return token[1:] if token[:1] in (JOINED, SPACED) else token


def scored_word(token: str) -> str:
    """A token as the scores compare it: without its mark, and empty if it is punctuation.

    >>> scored_word("￭가"), scored_word("。")
    ('가', '')
    """
    word = unmarked(token)
    return "" if all(unicodedata.category(character)[0] == "P" for character in word) else word


def _pieces(text: str, spans: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Spans that cover everything in a text but spaces and invisible characters, in order and without overlap."""
    cuts, end = {0, len(text)}, 0
    for start, stop in spans:
        if start >= end:
            cuts.update((start, stop))
        elif stop > end:  # begins inside the one before, and extends it
            cuts.discard(end)
            cuts.add(stop)
        end = max(end, stop)
    ordered = sorted(cuts)
    for first, last in itertools.pairwise(ordered):
        for found in re.finditer(r"\S+", text[first:last]):
            if not all(unicodedata.category(character) in ("Cf", "Cc") for character in found[0]):
                yield first + found.start(), first + found.end()


def _space_between(before: str, after: str) -> bool:
    """Whether two words are usually written with a space between them."""
    last, first = before[-1], after[0]
    if first in _NO_SPACE_BEFORE or last in _NO_SPACE_AFTER or UNSPACED.match(first) or UNSPACED.match(last):
        return False
    return unicodedata.category(first) not in ("Pe", "Pf") and unicodedata.category(last) not in ("Ps", "Pi")
