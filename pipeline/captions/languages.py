"""The languages of captions: how a caption is split into tokens, how tokens are joined to a caption, and what the scores compare.

A language is given by its BCP 47 tag, such as ``en``, ``ko`` or ``zh-Hant``. Languages with rules of their own are registered under their
primary subtag; the others are split at Unicode's word boundaries. A language's library is imported when its first caption is split, so that
captions can be joined without it.
"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from model.registry import Registry
from shards.errors import InputError, SettingsError

ENGLISH = "en"
TAG = re.compile(r"([A-Za-z]{2,3})((?:-[A-Za-z0-9]{2,8})*)")


@dataclass(frozen=True, kw_only=True)
class Language:
    """The rules of a language.

    Attributes:
        rule: How captions are split, in a line. Artefacts record it: shards with another rule are not kept.
        tokenize: Splits a caption into tokens. Canonically equivalent texts have the same tokens.
        join: Joins tokens to a caption, as the language is written.
        scored: Splits a caption into the tokens that BLEU, ROUGE-L and CIDEr compare, without punctuation.
        scored_word: How one token of ``tokenize`` is compared; empty: not at all.
        scored_rule: How captions are split for the scores, in a line.
        packages: The packages that split captions. Their versions are recorded, because their dictionaries decide the tokens.
        extra: The extra of this package that installs them.
        english: Whether METEOR and SPICE, which know English words, can score its captions.
    """

    rule: str
    tokenize: Callable[[str], list[str]]
    join: Callable[[Sequence[str]], str]
    scored: Callable[[str], list[str]]
    scored_word: Callable[[str], str]
    scored_rule: str
    packages: tuple[str, ...]
    extra: str = ""
    english: bool = False

    def check_installed(self) -> None:
        """Check that captions can be split here.

        Raises:
            InputError: A package is missing; names the extra that installs it.
        """
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                raise InputError(f"`language`: splitting these captions requires {package}: pip install '.[{self.extra}]'") from None


LANGUAGES: Registry[Language] = Registry(
    "language",
    en="pipeline.captions.english:ENGLISH_RULES",
    zh="pipeline.captions.chinese:CHINESE",
    ja="pipeline.captions.japanese:JAPANESE",
    ko="pipeline.captions.korean:KOREAN",
)


@functools.cache
def language_rules(tag: str) -> Language:
    """The rules of a language.

    Args:
        tag: As :func:`language_tag` accepts it.

    Raises:
        SettingsError: It is not a language tag.
    """
    tag = language_tag(tag)
    primary = tag.partition("-")[0]
    if primary in LANGUAGES:
        return LANGUAGES[primary]
    from pipeline.captions.unicode_words import words_of

    return words_of(primary)


def language_tag(text: str) -> str:
    """A BCP 47 language tag in its usual case.

    Raises:
        SettingsError: Not of the form of a tag: a code of ISO 639, and perhaps a script or a region.

    >>> language_tag("KO"), language_tag("zh-hant-tw")
    ('ko', 'zh-Hant-TW')
    """
    found = TAG.fullmatch(text)
    if not found:
        raise SettingsError(f"`language` {text[:50]!r}: not a language tag. Give a code of ISO 639 such as en, zh, ja, ko or de.")
    rest = (part.title() if len(part) == 4 else part.upper() if len(part) == 2 else part.lower() for part in found[2].split("-")[1:])
    return "-".join([found[1].lower(), *rest])
