"""Fonts for text in figures: matplotlib's own font has no Chinese, Japanese, Korean or Thai characters, and would draw boxes.

An installed font that has them is used in addition. Where there is none, the characters are drawn as "?", and a line says what to install.
"""

import contextlib
import functools
import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontEntry
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
# These fonts have every character, drawn as a box that names its script. Matplotlib has one, macOS another.
PLACEHOLDERS = ("Last Resort", ".LastResort")
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
    region = _region(characters)
    for search in (_known_fonts, _new_fonts):
        for font in sorted(search(), key=lambda font: _preference(font, region)) if characters else ():
            having = characters & set(map(chr, _characters(font.fname)))
            if having:
                families.append(font.name)
                characters -= having
            if not characters:
                break
    return tuple(families), characters


def _region(characters: Iterable[str]) -> str:
    """The variant of a Chinese-Japanese-Korean font: the same code point is written differently in Japan and in China."""
    scripts = {unicodedata.name(character, "").partition(" ")[0] for character in characters}
    return "KR" if "HANGUL" in scripts else "JP" if scripts & {"HIRAGANA", "KATAKANA"} else "SC"


def _preference(font: "FontEntry", region: str) -> tuple[int, bool, bool, bool, str, str]:
    """The sort key of fonts: those for reading first, upright and regular ones before others."""
    place = next((place for place, begin in enumerate(PREFERRED) if font.name.startswith(begin)), len(PREFERRED))
    regular = font.style == "normal" and font.weight in (400, "normal", "regular")
    return place, "Mono" in font.name, not font.name.endswith(region), not regular, font.name, font.fname


def _known_fonts() -> list["FontEntry"]:
    """The fonts that matplotlib knows."""
    from matplotlib.font_manager import fontManager

    return [font for font in fontManager.ttflist if not font.name.startswith(PLACEHOLDERS)]


def _new_fonts() -> list["FontEntry"]:
    """The fonts that were installed since matplotlib listed them. From now on it knows them."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    before = len(fontManager.ttflist)
    for file in sorted(set(findSystemFonts()) - {font.fname for font in fontManager.ttflist}):
        with contextlib.suppress(OSError, RuntimeError, ValueError):  # not a font that matplotlib can draw
            fontManager.addfont(file)
    return [font for font in fontManager.ttflist[before:] if not font.name.startswith(PLACEHOLDERS)]


@functools.lru_cache(maxsize=1000)
def _characters(file: str) -> frozenset[int]:
    """The code points that a font has; none for one that cannot be read."""
    from matplotlib.font_manager import get_font

    try:
        return frozenset(get_font(file).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()
