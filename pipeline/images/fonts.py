"""Fonts for text in figures: matplotlib's own font has no Chinese, Japanese, Korean or Thai characters, and would draw boxes.

An installed font that has them is used in addition. Where there is none, the characters are drawn as "?", and a line says what to install.
"""

import functools
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Text

# Fonts for reading, before whatever else is installed; complete ones first
PREFERRED = (
    "Noto Sans CJK",
    "Noto Sans",
    "Source Han Sans",
    "PingFang",
    "Hiragino",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "NanumGothic",
    "WenQuanYi",
    "Droid Sans Fallback",
)
ADVICE = "install one, such as Noto Sans (on Debian and Ubuntu: apt install fonts-noto-cjk, or fonts-noto for all scripts)"
SHOWN = 5


def choose_fonts(figure: "Figure") -> str | None:
    """Give each text of a figure the fonts that have its characters.

    Returns:
        A line about characters that no installed font has, which are replaced by "?"; or None.
    """
    from matplotlib.text import Text

    missing: set[str] = set()
    for text in figure.findobj(Text):
        if isinstance(text, Text) and not text.get_text().isascii():
            missing |= _fitted(text)
    if not missing:
        return None
    shown = "".join(sorted(missing)[:SHOWN]) + ("..." if len(missing) > SHOWN else "")
    names = sorted({unicodedata.name(character, "?").partition(" ")[0].capitalize() for character in missing})
    return f"No installed font has {len(missing)} characters ({', '.join(names[:SHOWN])}: {shown}): they are drawn as ?. To see them, {ADVICE}."


def _fitted(text: "Text") -> set[str]:
    """Choose the fonts of one text, and replace the characters that no font has; returns these."""
    from matplotlib.font_manager import findfont

    wanted = {character for character in text.get_text() if not character.isspace()}
    missing = {character for character in wanted if ord(character) not in _characters(findfont(text.get_fontproperties()))}
    families, without = _families_with(frozenset(missing))
    if families:
        text.set_fontfamily([*text.get_fontfamily(), *families])
    if without:
        text.set_text("".join("?" if character in without else character for character in text.get_text()))
    return set(without)


@functools.lru_cache(maxsize=1000)
def _families_with(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Names of installed fonts that have the characters, and the characters that none has."""
    families: list[str] = []
    for search in (_known_fonts, _new_fonts):
        for name, file in search() if characters else ():
            having = characters & set(map(chr, _characters(file)))
            if having:
                families.append(name)
                characters -= having
            if not characters:
                break
    return tuple(families), characters


def _known_fonts() -> Iterator[tuple[str, str]]:
    """(name, file) of the fonts that matplotlib knows, the preferred ones first."""
    from matplotlib.font_manager import fontManager

    def place(name: str) -> int:
        return next((place for place, begin in enumerate(PREFERRED) if name.startswith(begin)), len(PREFERRED))

    def order(font: tuple[str, str, str]) -> tuple[int, bool, str, str]:
        name, file, style = font
        return place(name), style != "normal", name, file

    return ((name, file) for name, file, _ in sorted({(font.name, font.fname, font.style) for font in fontManager.ttflist}, key=order))


def _new_fonts() -> Iterable[tuple[str, str]]:
    """(name, file) of fonts that were installed since matplotlib listed them."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    known = {font.fname for font in fontManager.ttflist}
    for file in sorted(set(findSystemFonts()) - known):
        try:
            fontManager.addfont(file)
        except (OSError, RuntimeError, ValueError):  # not a font that matplotlib can draw
            continue
        yield fontManager.ttflist[-1].name, file


@functools.lru_cache(maxsize=1000)
def _characters(file: str) -> frozenset[int]:
    """The code points that a font has; none for one that cannot be read."""
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(file).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
