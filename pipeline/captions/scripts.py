"""In which script captions are written, to notice that English rules do not fit them."""

import re
from collections import Counter
from collections.abc import Sequence

SAMPLE = 1000
# Scripts whose words English rules do not find, each with its languages; the first that matches decides, as Japanese has Chinese characters too
_SCRIPTS = (
    ("Japanese", "ja", re.compile("[\u3041-\u30ff]")),
    ("Chinese", "zh", re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")),
    ("Korean", "ko", re.compile("[\uac00-\ud7a3\u1100-\u11ff]")),
    ("Thai", "th", re.compile("[\u0e01-\u0e7f]")),
    ("Lao", "lo", re.compile("[\u0e80-\u0eff]")),
    ("Burmese", "my", re.compile("[\u1000-\u109f]")),
    ("Khmer", "km", re.compile("[\u1780-\u17ff]")),
)


def language_advice(texts: Sequence[str], language: str) -> str | None:
    """A line of advice if most captions are in a script whose words the rules of English do not find; else None.

    Args:
        texts: Captions, of which up to :data:`SAMPLE` are looked at, spread evenly.
        language: What the captions are split as.

    >>> language_advice(["一只狗在草地上奔跑。"], "en")
    'Most captions are Chinese, and contain no spaces: give `language` zh, or each of them is one word.'
    """
    if not texts or language.partition("-")[0] != "en":
        return None
    sample = texts[:: -(-len(texts) // SAMPLE)]
    found = Counter(script for text in sample if not text.isascii() and (script := _script(text)))
    if 2 * found.total() <= len(sample):
        return None
    (name, tag), _ = found.most_common(1)[0]
    if tag == "ko":
        return f"Most captions are {name}: give `language` {tag}, or each noun is another word with each particle."
    return f"Most captions are {name}, and contain no spaces: give `language` {tag}, or each of them is one word."


def _script(text: str) -> tuple[str, str] | None:
    """Name and language of the script of at least half of the letters."""
    letters = sum(map(str.isalpha, text))
    every = sum(len(pattern.findall(text)) for _, _, pattern in _SCRIPTS)
    if 2 * every < max(letters, 1):
        return None
    return next((name, tag) for name, tag, pattern in _SCRIPTS if pattern.search(text))
