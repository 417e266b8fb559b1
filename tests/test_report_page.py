"""The report's page in a real browser: the system's own Chromium, headless, driven by Playwright."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from model.decoding import ScoredCaption
from pipeline.evaluation.score_file import Interval, ScoredImage, ScoreFile, scores_path, write_scores
from pipeline.reporting.report import report
from shards.json_files import write_json

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><svg onload=alert(1)> &lt;b&gt; {{SCRIPT}} javascript:alert(1)"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MANY = 5000
WORDS = ("a", "dog", "cat", "man", "woman", "bus", "street", "table", "red", "blue", "small", "sits", "near", "on", "with", "kite")

Open = Callable[..., "Page"]


def unavailable(message: str) -> None:
    """Skip the test, or fail it where everything must be available."""
    if os.environ.get("CAPSTREAM_REQUIRE_DATA"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        unavailable(f"no Chromium on PATH (looked for {', '.join(BROWSERS)}): the report's page cannot be tested")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        unavailable("playwright is not installed: pip install -e '.[dev]'")
    as_root = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=[*ARGUMENTS, *as_root])
        yield started
        started.close()


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Open]:
    """Open a file. At the end, check that the page made no request, logged nothing and opened no dialog."""
    contexts: list[Any] = []
    wrong: list[str] = []
    requests: list[tuple[str, list[str]]] = []

    def asked(dialog: Any) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def opened(path: Path, *, width: int = 1280, height: int = 900, **options: Any) -> "Page":
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        page = context.new_page()
        asked_for: list[str] = []
        requests.append((path.as_uri(), asked_for))
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("dialog", asked)
        page.on("request", lambda request: asked_for.append(request.url))
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    wrong += [url for own, asked_for in requests for url in asked_for if url != own and not url.startswith((f"{own}#", "data:"))]
    assert wrong == []


def write_run(folder: Path, count: int, *, seed: int, text: str = "", file_name: str = "picture-{}.png") -> Path:
    """A run with scores and a short log. The CIDEr of each image is unique; images 0 to 9 have the same caption in every run."""
    source, images = random.Random(seed), []
    for n in range(count):
        caption = text or ("the same words" if n < 10 else " ".join(source.choices(WORDS, k=5 + n % 7)))
        written = "the same words" if n < 10 else f"picture {n}"
        images.append(
            ScoredImage(
                image_id=1000 + n,
                file_name=file_name.format(n),
                caption=caption,
                references=(text or f"{written} for real", "two birds"),
                scores={"cider": ((n * 7919 + 13 * seed) % count) / count * 4, "rouge_l": source.random()},
                alternatives=(ScoredCaption(caption=caption, score=-4.25), ScoredCaption(caption=f"{caption} again", score=-5.5)),
            )
        )
    mean = sum(image.scores["cider"] for image in images) / count
    scores = {name: Interval(value=mean / 4, low=mean / 4 - 0.01, high=mean / 4 + 0.01) for name in ("bleu_4", "cider", "distinct")}
    made_by = {"command": f"python cli.py evaluate --beam {seed}", "versions": {"torch": "2"}, text or "tokenizer": text or "nltk"}
    folder.mkdir(parents=True)
    write_scores(
        scores_path(folder, "val"), ScoreFile(split="val", made_by=made_by, scores=scores, images=tuple(images), notes=(text or "No METEOR here.",))
    )
    write_json(folder / "config.json", {"train": {"lr": seed / 1000, "epochs": 2}})
    lines: list[dict[str, float]] = [
        {"step": n, "epochs": n / 10, "mean_loss": 5 / n, "lr": 0.001, "captions_per_second": 400.0 + n, "data_wait": 0} for n in range(1, 21)
    ]
    lines += [{"step": 10 * n, "epochs": n, "val_loss": 3 / n, "val_cider": 0.4 * n} for n in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """one.html (120 images, some without a thumbnail), two.html, hostile.html."""
    base = tmp_path_factory.mktemp("pages")
    pictures = base / "pictures"
    pictures.mkdir()
    for n in range(118):
        Image.new("RGB", (60 + n, 80), (n, 100, 200)).save(pictures / f"picture-{n}.png")
    (pictures / "picture-118.png").write_bytes(b"no picture")
    first, second = (write_run(base / name, 120, seed=seed) for name, seed in (("first", 1), ("second", 2)))
    report(runs=[first], out=base / "one.html", images=pictures)
    report(runs=[first, second], out=base / "two.html", images=pictures)
    strange = write_run(base / "<b>strange", 3, seed=1, text=HOSTILE, file_name=HOSTILE + "{}")
    report(runs=[strange, write_run(base / "strange", 3, seed=2, text=HOSTILE)], out=base / "hostile.html")
    return base


def captions(page: "Page") -> list[str]:
    return page.locator("#cards .caption-text").all_inner_texts()


def ciders(page: "Page") -> list[float]:
    return [float(text.split()[1]) for text in page.locator("#cards .body .results .meta").all_inner_texts()]


def status(page: "Page") -> str:
    return page.locator("#status").inner_text()


def test_the_page_shows_scores_curves_and_settings(pages: Path, open_page: Open) -> None:
    page = open_page(pages / "one.html")
    assert page.title() == "first: caption scores"
    assert page.locator("#summary").inner_text() == "first on the split val: 120 images."
    rows = page.locator("#score-table tbody tr").all_inner_texts()
    assert [re.split(r"\s", row)[0] for row in rows] == ["CIDEr", "BLEU-4", "Distinct"]
    assert "0.496" in rows[0]
    assert "95% interval 0.486 to 0.506" in re.sub(r"\s+", " ", rows[0])
    assert page.locator("#notes").inner_text() == "No METEOR here."
    assert page.locator("svg.chart").count() == 4
    told = [chart.get_attribute("aria-label") or "" for chart in page.locator("svg.chart").all()]
    assert "first, training: from 5 to 0.25; first, validation: from 3 to 1.5" in told[0]
    page.locator("#curve-panels summary").click()
    assert page.locator("#curve-panels tbody tr").all_inner_texts() == ["1\t10\t3.0000\t0.4000", "2\t20\t1.5000\t0.8000"]
    settings = page.locator("#settings tr").all_inner_texts()
    assert "command\tpython cli.py evaluate --beam 1" in settings
    assert "train.lr\t0.001" in settings


def test_the_gallery_begins_with_the_worst_and_sorts_by_score_length_id_and_name(pages: Path, open_page: Open) -> None:
    page = open_page(pages / "one.html")
    assert status(page) == "120 images; 1 to 48 shown, by CIDEr, worst first."
    assert ciders(page) == sorted(ciders(page))
    assert ciders(page)[0] == 0.0
    page.get_by_label("Order").select_option(label="Best first")
    assert ciders(page) == sorted(ciders(page), reverse=True)
    assert ciders(page)[0] == pytest.approx(119 / 30, abs=1e-3)
    page.get_by_label("Sort by").select_option(label="Caption length in words")
    assert status(page).endswith("by Caption length in words, longest first.")
    lengths = [len(text.split()) for text in captions(page)]
    assert lengths == sorted(lengths, reverse=True)
    page.get_by_label("Order").select_option(label="Shortest first")
    assert len(captions(page)[0].split()) == 3
    page.get_by_label("Sort by").select_option(label="Image id")
    assert page.locator("#cards h3").first.inner_text() == "picture-0.png · 1000"
    page.get_by_label("Sort by").select_option(label="File name")
    assert [name.split(" ")[0] for name in page.locator("#cards h3").all_inner_texts()][:3] == ["picture-0.png", "picture-1.png", "picture-2.png"]


def test_the_gallery_is_filtered_by_words_and_by_a_range_of_the_score(pages: Path, open_page: Open) -> None:
    page = open_page(pages / "one.html")
    search = page.get_by_label("Search captions")
    search.fill("SAME words")
    assert status(page) == "10 of 120 images match; 1 to 10 shown, by CIDEr, worst first."
    assert captions(page) == ["the same words"] * 10
    assert page.locator("#cards mark").first.inner_text() == "same"
    search.fill("picture-17")
    assert page.locator("#cards > li").count() == 1
    search.fill("nobody wrote this")
    assert status(page) == "None of 120 images matches. Change or clear the filters."
    page.get_by_role("button", name="Clear filters").click()
    assert status(page).startswith("120 images;")
    page.get_by_label("Lowest value").fill("1")
    page.get_by_label("Highest value").fill("1.5")
    assert status(page).startswith("16 of 120 images match")
    assert all(1 <= value <= 1.5 for value in ciders(page))
    page.get_by_role("button", name="Clear filters").click()
    bar = page.locator("#histograms button").nth(2)
    text = bar.get_attribute("aria-label") or ""
    bar.click()
    assert status(page).split(" ")[0] == text.split(": ")[1].split(" ")[0]
    assert text.startswith("0.4 to 0.6: ")
    assert all(0.4 <= value < 0.6 for value in ciders(page))


def test_a_card_opens_to_references_scores_and_alternatives_and_says_when_a_thumbnail_is_missing(pages: Path, open_page: Open) -> None:
    page = open_page(pages / "one.html")
    page.get_by_label("Search captions").fill("picture-3.png")
    card = page.locator("#cards > li")
    card.locator("img").wait_for()
    assert card.locator("img").get_attribute("alt") == "the same words for real"
    assert card.locator("img").evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])") == [151, 192]
    assert card.locator("details").inner_text() == "References, scores, alternatives"
    card.locator("summary").click()
    card.get_by_text("two birds").wait_for()  # a card's details are made when it opens
    text = card.inner_text()
    assert "the same words for real" in text
    assert "two birds" in text
    assert "ROUGE-L" in text
    assert re.search(r"the same words again\s+−5.50", text)
    for name, said in (("picture-118.png", "The image is damaged."), ("picture-119.png", "The image was not found.")):
        page.get_by_label("Search captions").fill(name)
        page.locator("#cards .none").wait_for()
        assert card.locator(".none").inner_text() == said


def test_everything_can_be_done_from_the_keyboard(pages: Path, open_page: Open) -> None:
    page = open_page(pages / "one.html")
    focused = "document.activeElement.id || document.activeElement.innerText"

    def tab_to(wanted: str) -> None:
        for _ in range(80):
            page.keyboard.press("Tab")
            if page.evaluate(focused) == wanted:
                assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
                return
        raise AssertionError(f"no way to {wanted} by the Tab key")

    tab_to("Skip to the gallery")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "gallery"
    tab_to("search")
    page.keyboard.type("same")
    assert status(page).startswith("10 of 120")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    tab_to("sort")
    page.keyboard.press("ArrowDown")
    assert "by ROUGE-L, worst first" in status(page)
    tab_to("order")
    page.keyboard.press("ArrowDown")
    assert "by ROUGE-L, best first" in status(page)
    tab_to("Next")
    page.keyboard.press("Enter")
    assert "49 to 96 shown" in status(page)
    assert page.evaluate(focused) == "Next"
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # there is no fourth page: it stays, and the focus too
    assert "97 to 120 shown" in status(page)
    tab_to("References, scores, alternatives")
    page.keyboard.press("Enter")
    assert page.locator("#cards details[open]").count() == 1


def test_two_runs_are_shown_side_by_side(pages: Path, open_page: Open) -> None:
    page = open_page(pages / "two.html")
    heads = page.locator("#score-table thead th").all_inner_texts()
    assert [re.sub(r"\s+", " ", head) for head in heads] == ["A first", "B second"]
    assert page.locator("#notes p").count() == 1  # the same note in both runs
    assert re.search(r"CIDEr, B minus A: [+−]?0\.\d{3} \(95% interval .* The interval contains 0", page.locator("#differences").inner_text())
    assert page.locator("#cards > li").first.locator(".caption-text").count() == 2
    page.get_by_label("Sort by").select_option(label="CIDEr: B minus A")
    gains = [float(text.replace("\u2212", "-").strip("()")) for text in page.locator("#cards .gain").all_inner_texts()]
    assert gains == sorted(gains)
    page.get_by_label("Order").select_option(label="Largest gain first")
    gains = [float(text.replace("\u2212", "-").strip("()")) for text in page.locator("#cards .gain").all_inner_texts()]
    assert gains == sorted(gains, reverse=True)
    page.get_by_label("Only where captions differ").check()
    assert status(page).startswith("110 of 120 images match")
    differing = page.locator("#settings tr.differs").count()
    assert differing == 2  # the command and the learning rate
    page.get_by_label("Only differences").check()
    assert page.locator("#settings tbody tr:visible").count() == differing


@pytest.mark.parametrize("name", ["one.html", "two.html", "hostile.html"])
def test_a_narrow_screen_needs_no_sideways_scrolling(pages: Path, open_page: Open, name: str) -> None:
    page = open_page(pages / name, width=360, height=740)
    for summary in page.locator("summary").all()[:4]:
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_a_narrow_screen_breaks_no_scores_name_inside_a_word(pages: Path, open_page: Open) -> None:
    page = open_page(pages / "two.html", width=360, height=740)
    lines = (
        "cells => cells.map((cell) => { const text = document.createRange(); text.selectNodeContents(cell); return text.getClientRects().length; })"
    )
    assert page.locator("#score-table tbody th").evaluate_all(lines) == [1, 1, 2]  # CIDEr, BLEU-4, Distinct captions


def test_text_keeps_its_contrast_in_light_and_dark(pages: Path, open_page: Open) -> None:
    grounds = {}
    for scheme in ("light", "dark"):
        page = open_page(pages / "two.html", color_scheme=scheme)
        page.locator("#cards summary").first.click()
        grounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert page.evaluate(LOW_CONTRAST) == []
    assert grounds["light"] != grounds["dark"]


# Texts whose contrast with their background is below 4.5 to 1 (WCAG 2.2, relative luminance and contrast ratio).
LOW_CONTRAST = """() => {
  const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const part = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([red, green, blue]) => 0.2126 * part(red) + 0.7152 * part(green) + 0.0722 * part(blue);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll("body *:not(script):not(option)")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text || element.disabled || element.getAttribute("aria-disabled") === "true") continue;
    const style = getComputedStyle(element);
    const [a, b] = [light(parse(element instanceof SVGElement ? style.fill : style.color)), light(ground(element))];
    if ((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5) found.push(`${element.tagName}: ${element.textContent.slice(0, 40)}`);
  }
  return found;
}"""


def test_every_control_has_a_name_and_every_picture_a_text(pages: Path, open_page: Open) -> None:
    page = open_page(pages / "two.html")
    page.locator("#cards > li").first.scroll_into_view_if_needed()
    page.locator("#cards img").first.wait_for()
    assert page.evaluate("[...document.images].filter((image) => !image.alt).length") == 0
    unnamed = "(one) => !(one.labels?.length || one.getAttribute('aria-label') || one.innerText.trim())"
    assert page.evaluate(f"[...document.querySelectorAll('input, select, button')].filter({unnamed}).length") == 0
    assert page.locator("#status[aria-live=polite]").count() == 1


def test_hostile_text_is_shown_and_does_nothing(pages: Path, open_page: Open) -> None:
    page = open_page(pages / "hostile.html")
    for summary in page.locator("summary").all():
        summary.click()
    page.get_by_label("Search captions").fill("<img src=x")
    assert status(page).startswith("3 of 3 images match")
    assert HOSTILE in captions(page)[0]
    assert page.locator("img, #cards script, #cards svg, iframe, object").count() == 0
    assert "taken" not in page.title()
    assert page.evaluate("document.scripts.length") == 2


def test_the_browser_itself_refuses_markup_scripts_and_fetches(pages: Path, browser: "Browser") -> None:
    page = browser.new_page()
    page.goto((pages / "one.html").as_uri())
    assert page.evaluate("() => { try { document.body.innerHTML = '<p>'; return 'allowed'; } catch (error) { return error.name; } }") == "TypeError"
    refused = """() => new Promise((done) => {
      document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
      fetch("http://127.0.0.1:9/").catch(() => null);
    })"""
    assert page.evaluate(refused) == "connect-src"
    page.evaluate("() => document.body.append(Object.assign(document.createElement('style'), { textContent: 'body { color: red !important }' }))")
    assert page.evaluate("getComputedStyle(document.body).color") != "rgb(255, 0, 0)"
    page.close()


def test_bare_captions_without_scores_references_or_pictures_make_a_page_of_three_runs(tmp_path: Path, open_page: Open) -> None:
    for name in ("a", "b", "c"):
        images = tuple(
            ScoredImage(image_id=n, file_name="", caption="" if n == 2 else f"{name} said {n}", references=(), scores={})
            for n in (range(1, 5) if name != "c" else range(3, 7))
        )
        write_scores(tmp_path / f"{name}.scores.json", ScoreFile(split="", made_by={}, scores={}, images=images))
    report(runs=[tmp_path / f"{name}.scores.json" for name in "abc"], out=tmp_path / "bare.html")
    page = open_page(tmp_path / "bare.html")
    assert page.locator("#summary").inner_text() == "A a, B b and C c: 6 images."
    assert "a and c have 2 of 6 images in common" in page.locator("#notes").inner_text()
    assert "C and A have no per-image score in common" in page.locator("#differences").inner_text()
    assert page.locator("#curve-panels .note").count() == 3
    assert status(page) == "6 images; 1 to 6 shown, by Caption length of A, in words, shortest first."
    cards = page.locator("#cards > li").all_inner_texts()
    assert cards[0].startswith("Image 2\n")
    assert cards[0].count("(empty caption)") == 2
    assert all("Not captioned by this run." in card for card in cards[-2:])  # images without a value come last


@pytest.mark.full
def test_five_thousand_images_open_quickly_and_only_visible_ones_are_in_the_page(tmp_path: Path, open_page: Open) -> None:
    Image.effect_noise((160, 120), 60).convert("RGB").save(tmp_path / "picture.jpg")
    runs = [write_run(tmp_path / name, MANY, seed=seed, file_name="picture.jpg") for name, seed in (("first", 1), ("second", 2))]
    made = report(runs=runs, out=tmp_path / "many.html", images=tmp_path)
    assert (made.images, made.thumbnails) == (MANY, MANY)
    page = open_page(tmp_path / "many.html")
    assert status(page).startswith("5,000 images; 1 to 48 shown")
    assert page.locator("img").count() == 0  # the gallery is further down
    assert page.locator("script[type='text/plain']").count() == MANY // 250
    page.locator("#cards > li").first.scroll_into_view_if_needed()
    page.locator("#cards img").first.wait_for()
    assert 0 < page.locator("img").count() < 48
    assert page.locator("script[type='text/plain']").count() > 0  # most blocks are still unparsed
    assert page.evaluate("document.querySelectorAll('*').length") < 5000
    took = page.evaluate("""() => {
      const sort = document.getElementById("sort");
      const began = performance.now();
      sort.value = "gain-0-1";
      sort.dispatchEvent(new Event("change", { bubbles: true }));
      return performance.now() - began;
    }""")
    assert took < 2000  # some tens of milliseconds; a busy machine may take longer
    page.get_by_role("button", name="Last").first.click()
    assert "4,993 to 5,000 shown" in status(page)
    assert page.locator("#cards > li").count() == 8
    page.get_by_label("Search captions").fill("kite")
    assert re.match(r"[\d,]+ of 5,000 images match", status(page))


def test_captions_carry_their_language_and_have_its_fonts_and_words(tmp_path: Path, open_page: Open) -> None:
    for name, language, caption in (("zh", "zh-Hant", "一隻狗在草地上奔跑。"), ("ko", "ko", "개가 뛴다."), ("odd", "x'><b>", "a dog")):
        image = ScoredImage(image_id=1, file_name="", caption=caption, references=(caption,), scores={"cider": 1.0})
        made_by = {"language": language}
        write_scores(tmp_path / f"{name}.scores.json", ScoreFile(split="", made_by=made_by, scores={}, images=(image,)))
        report(runs=[tmp_path / f"{name}.scores.json"], out=tmp_path / f"{name}.html")
        page = open_page(tmp_path / f"{name}.html")
        page.locator("#cards summary").click()
        expected = language if name != "odd" else "en"  # the page's own
        for place in ("#cards .caption-text bdi", "#cards details li"):
            assert page.locator(place).evaluate("element => element.closest('[lang]').lang") == expected
        font = page.locator("#cards .caption-text bdi").evaluate("element => getComputedStyle(element).fontFamily")
        assert ({"zh": "JhengHei", "ko": "Malgun"}.get(name, "Segoe UI")) in font
        page.get_by_label("Sort by").select_option(label="Caption length in words")
        page.get_by_label("Lowest value").fill("2")
        assert status(page).startswith("1 of 1 image")
        page.get_by_label("Lowest value").fill("9")
        assert status(page).startswith("None of 1 image")
