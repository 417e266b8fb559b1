"""Fonts for the text of figures. The font with Korean and Chinese characters is made here, so that the tests need no installed one."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from pipeline.images import fonts
from pipeline.images.figures import image_grid, save_figure, wrapped
from pipeline.reporting.curves import draw_curves

PIXELS = np.zeros((8, 8, 3), np.uint8)


def make_font(path: Path, name: str, characters: str) -> None:
    """A font whose characters are triangles."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    pen.lineTo((900, 0))
    pen.lineTo((450, 900))
    pen.closePath()
    glyph = pen.glyph()
    names = [".notdef", *(f"uni{ord(character):04X}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(character): f"uni{ord(character):04X}" for character in characters})
    builder.setupGlyf(dict.fromkeys(names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=1000, descent=-200)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)


@pytest.fixture
def only_default_font(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with no fonts but matplotlib's own, one of which has a box for every character."""
    own = [font for font in font_manager.fontManager.ttflist if Path(font.fname).is_relative_to(matplotlib.get_data_path())]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    fonts._families_with.cache_clear()
    yield
    fonts._families_with.cache_clear()


def saved(tmp_path: Path, text: str) -> tuple[str | None, list[str]]:
    """What saving a figure with this text says, and the text that was drawn, without any warning of matplotlib."""
    figure = image_grid([(PIXELS, text)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        problem = save_figure(figure, tmp_path / "figure.png")
    return problem, [axis.get_title() for axis in figure.axes]


@pytest.mark.usefixtures("only_default_font")
def test_characters_that_no_font_has_are_named_and_drawn_as_question_marks(tmp_path: Path) -> None:
    problem, drawn = saved(tmp_path, "café 개 一只狗")
    assert drawn == ["café ? ???"]
    assert problem is not None
    assert problem.startswith("No installed font has 4 characters (Cjk, Hangul: 一只狗개): they are drawn as ?.")
    assert "fonts-noto-cjk" in problem


@pytest.mark.usefixtures("only_default_font")
def test_an_installed_font_draws_what_the_default_one_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_font(tmp_path / "korean.ttf", "Hangul Test", "개")
    make_font(tmp_path / "chinese.ttf", "Noto Sans CJK Test", "一只狗")
    font_manager.fontManager.addfont(tmp_path / "chinese.ttf")
    # Installed after matplotlib listed the fonts of the machine
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / "korean.ttf")])
    assert saved(tmp_path, "café 개 一只狗") == (None, ["café 개 一只狗"])


@pytest.mark.usefixtures("only_default_font")
@pytest.mark.parametrize(("characters", "family"), [("개", "Noto Sans CJK KR"), ("いぬ", "Noto Sans CJK JP"), ("狗", "Noto Sans CJK SC")])
def test_the_variant_of_a_font_is_that_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, characters: str, family: str) -> None:
    for region in ("HK", "JP", "KR", "SC"):
        make_font(tmp_path / f"{region}.ttf", f"Noto Sans CJK {region}", "개いぬ狗")
        make_font(tmp_path / f"mono{region}.ttf", f"Noto Sans Mono CJK {region}", "개いぬ狗")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(path) for path in tmp_path.iterdir()])
    assert fonts._families_with(frozenset(characters)) == ((family,), frozenset())


@pytest.mark.usefixtures("only_default_font")
def test_the_names_of_runs_in_a_legend_are_drawn_as_all_text_is(tmp_path: Path) -> None:
    run, said = tmp_path / "한국", list[str]()
    run.mkdir()
    (run / "config.json").write_text("{}")
    line = {"step": 10, "epochs": 1.0, "mean_loss": 5.0, "lr": 0.001, "captions_per_second": 400.0, "data_wait": 0.0}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_curves([run], tmp_path / "curves.png", report=said.append)
    assert [line.partition(":")[0] for line in said] == ["No installed font has 2 characters (Hangul"]


def test_plain_text_keeps_its_font(tmp_path: Path) -> None:
    assert saved(tmp_path, "a dog, café") == (None, ["a dog, café"])


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a dog runs over the grass", ["a dog runs", "over the", "grass"]),
        ("一只狗在草地上奔跑。", ["一只狗在草", "地上奔跑。"]),
        ("一只狗在草，地上", ["一只狗在草，", "地上"]),
        ("개가 잔디 위에서 뛴다", ["개가 잔디", "위에서", "뛴다"]),
        ("แมวนอนอยู่บนเตียงแมวนอน", None),
        ("", []),
    ],
)
def test_lines_are_wrapped_by_their_width(text: str, lines: list[str] | None) -> None:
    found = wrapped(text, 10).splitlines()
    assert lines is None or found == lines
    assert all(len(line) <= 20 for line in found)
    assert "".join(found).replace(" ", "") == text.replace(" ", "")
