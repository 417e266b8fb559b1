"""Makes the rules of a language from a function that says where its words begin and end."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pipeline.captions.languages import Language
from pipeline.captions.spacing import join_tokens, marked_tokens, normalized, scored_word

Spans = Iterable[tuple[int, int]]


def segmented_language(
    rule: str,
    spans: Callable[[str], Spans],
    *,
    packages: tuple[str, ...],
    extra: str,
    keep_spaces: bool = True,
    capitals: Mapping[int, str] | None = None,
) -> Language:
    """The rules of a language whose scores compare the same tokens, without punctuation.

    Args:
        rule, packages, extra: As for :class:`pipeline.captions.languages.Language`.
        spans: Start and end of each word of a normalized text, in order.
        keep_spaces: As for :func:`pipeline.captions.spacing.marked_tokens`.
        capitals: Lower case of letters for which ``str.lower`` is wrong in this language.
    """

    def tokenize(text: str) -> list[str]:
        if capitals is not None:
            text = unicodedata.normalize("NFC", text).translate(capitals)
        text = normalized(text)
        return marked_tokens(text, spans(text), keep_spaces=keep_spaces)

    def scored(text: str) -> list[str]:
        return [word for token in tokenize(text) if (word := scored_word(token))]

    return Language(
        rule=rule,
        tokenize=tokenize,
        join=join_tokens,
        scored=scored,
        scored_word=scored_word,
        scored_rule=f"{rule}, without punctuation",
        packages=packages,
        extra=extra,
    )


def spans_of(words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of words that make up a whole text."""
    start = 0
    for word in words:
        yield start, start + len(word)
        start += len(word)
