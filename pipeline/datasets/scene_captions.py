"""Captions of the drawn scenes, in every language that ``synth`` knows.

Each wording draws the same random numbers, so that the images do not depend on the language.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from model.registry import Registry
from pipeline.datasets.scenes import COLOURS, SHAPES, Relation, Scene, ShapeGroup

CAPTIONS_PER_IMAGE = 5
# One wording of a relation, and its words for "small" and "large" where it has its own, so that a model can learn each wording. {a} and {b}
# are noun phrases; in English {is} and {are} agree with a and b.
Template = tuple[str, Mapping[str, str]]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How a language describes scenes.

    Attributes:
        templates: Six for each relation.
        noun_phrase: The phrase of a group, given the template's words for sizes.
        stop: The end of a caption.
    """

    templates: Mapping[Relation, tuple[Template, ...]]
    noun_phrase: Callable[[ShapeGroup, Mapping[str, str]], str]
    stop: str = "."


def scene_captions(scene: Scene, rng: np.random.Generator, language: str = "en") -> list[str]:
    """Five captions of a scene in different wordings."""
    wording = WORDINGS[language]
    templates = wording.templates[scene.relation]
    captions = []
    for index in sorted(rng.choice(len(templates), CAPTIONS_PER_IMAGE, replace=False)):
        template, size_words = templates[int(index)]
        verbs = ["is" if group.count == 1 else "are" for group in (scene.groups[0], scene.groups[-1])]
        phrases = [wording.noun_phrase(group, size_words) for group in (scene.groups[0], scene.groups[-1])]
        captions.append(template.format_map({"a": phrases[0], "b": phrases[1], "is": verbs[0], "are": verbs[1]}) + wording.stop)
    return captions


COUNT_WORDS = ("a", "two", "three", "four")
ENGLISH_TEMPLATES: dict[Relation, tuple[Template, ...]] = {
    "alone": (
        ("{a}", {}),
        ("there {is} {a}", {}),
        ("a picture of {a}", {"small": "little", "large": "big"}),
        ("{a} on a plain background", {}),
        ("{a} and nothing else", {"small": "tiny", "large": "huge"}),
        ("this drawing shows {a}", {"small": "little", "large": "big"}),
    ),
    "above": (
        ("{a} above {b}", {}),
        ("{b} below {a}", {}),
        ("there {is} {a} above {b}", {}),
        ("a picture of {a} over {b}", {"small": "little", "large": "big"}),
        ("{b} {are} under {a}", {"small": "tiny", "large": "huge"}),
        ("{a} with {b} underneath", {"small": "little", "large": "big"}),
    ),
    "inside": (
        ("{a} inside {b}", {}),
        ("{b} with {a} inside it", {}),
        ("there {is} {a} inside {b}", {}),
        ("a picture of {a} in {b}", {"small": "little", "large": "big"}),
        ("{b} {are} around {a}", {"small": "tiny", "large": "huge"}),
        ("{a} surrounded by {b}", {"small": "little", "large": "big"}),
    ),
}


def _english_phrase(group: ShapeGroup, size_words: Mapping[str, str]) -> str:
    """For example "two little red stars"."""
    plural = "s" if group.count > 1 else ""
    return f"{COUNT_WORDS[group.count - 1]} {size_words.get(group.size, group.size)} {group.colour} {group.shape}{plural}"


KOREAN_TEMPLATES: dict[Relation, tuple[Template, ...]] = {
    "alone": (
        ("{a}", {}),
        ("{a}가 있다", {}),
        ("{a}를 그린 그림", {"small": "조그만", "large": "커다란"}),
        ("단순한 배경에 {a}가 있다", {}),
        ("{a} 말고는 아무것도 없다", {"small": "아주 작은", "large": "아주 큰"}),
        ("이 그림에는 {a}가 보인다", {"small": "조그만", "large": "커다란"}),
    ),
    "above": (
        ("{b} 위에 {a}", {}),
        ("{a} 아래에 {b}", {}),
        ("{b} 위에 {a}가 있다", {}),
        ("{b} 위쪽에 {a}가 있는 그림", {"small": "조그만", "large": "커다란"}),
        ("{b}는 {a} 밑에 있다", {"small": "아주 작은", "large": "아주 큰"}),
        ("아래쪽에 {b}가 있고 위쪽에 {a}가 있다", {"small": "조그만", "large": "커다란"}),
    ),
    "inside": (
        ("{b} 안에 {a}", {}),
        ("안에 {a}가 들어 있는 {b}", {}),
        ("{b} 안에 {a}가 있다", {}),
        ("{b} 속에 {a}가 있는 그림", {"small": "조그만", "large": "커다란"}),
        ("{b}가 {a}를 둘러싸고 있다", {"small": "아주 작은", "large": "아주 큰"}),
        ("{b}에 둘러싸인 {a}", {"small": "조그만", "large": "커다란"}),
    ),
}
KOREAN_WORDS = {
    "small": "작은",
    "large": "큰",
    "red": "빨간",
    "green": "초록",
    "blue": "파란",
    "yellow": "노란",
    "white": "하얀",
    "circle": "원",
    "square": "사각형",
    "star": "별",
}


def _korean_phrase(group: ShapeGroup, size_words: Mapping[str, str]) -> str:
    """For example "조그만 빨간 별 두 개"; 가, 는 and 를 can follow the counter 개 whatever the shape is."""
    words = {**KOREAN_WORDS, **size_words}
    return f"{words[group.size]} {words[group.colour]} {words[group.shape]} {('한', '두', '세', '네')[group.count - 1]} 개"


CHINESE_TEMPLATES: dict[Relation, tuple[Template, ...]] = {
    "alone": (
        ("{a}", {}),
        ("这里有{a}", {}),
        ("一幅画着{a}的图片", {"small": "小小的", "large": "大大的"}),
        ("纯色背景上有{a}", {}),
        ("只有{a}，没有别的东西", {"small": "很小的", "large": "巨大的"}),
        ("这幅画里有{a}", {"small": "小小的", "large": "大大的"}),
    ),
    "above": (
        ("{a}在{b}上面", {}),
        ("{b}在{a}下面", {}),
        ("{b}的上方有{a}", {}),
        ("一幅{a}在{b}上方的图片", {"small": "小小的", "large": "大大的"}),
        ("{a}的下方是{b}", {"small": "很小的", "large": "巨大的"}),
        ("上面是{a}，下面是{b}", {"small": "小小的", "large": "大大的"}),
    ),
    "inside": (
        ("{a}在{b}里面", {}),
        ("里面有{a}的{b}", {}),
        ("{b}里有{a}", {}),
        ("一幅{a}在{b}中的图片", {"small": "小小的", "large": "大大的"}),
        ("{b}围着{a}", {"small": "很小的", "large": "巨大的"}),
        ("{a}被{b}包围", {"small": "小小的", "large": "大大的"}),
    ),
}
CHINESE_WORDS = {
    "small": "小的",
    "large": "大的",
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "white": "白色",
    "circle": "圆形",
    "square": "正方形",
    "star": "五角星",
}


def _chinese_phrase(group: ShapeGroup, size_words: Mapping[str, str]) -> str:
    """For example "两个小小的红色五角星"."""
    words = {**CHINESE_WORDS, **size_words}
    return f"{'一两三四'[group.count - 1]}个{words[group.size]}{words[group.colour]}{words[group.shape]}"


WORDINGS: Registry[Wording] = Registry(
    "language of the drawn scenes",
    en=Wording(templates=ENGLISH_TEMPLATES, noun_phrase=_english_phrase),
    ko=Wording(templates=KOREAN_TEMPLATES, noun_phrase=_korean_phrase),
    zh=Wording(templates=CHINESE_TEMPLATES, noun_phrase=_chinese_phrase, stop="。"),
)

_PAIR = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})s?\b")


def named_pairs(captions: Iterable[str]) -> set[tuple[str, str]]:
    """The (colour, shape) pairs that English captions name.

    >>> sorted(named_pairs(["two red stars above a tiny blue circle"]))
    [('blue', 'circle'), ('red', 'star')]
    """
    return {(match[1], match[2]) for caption in captions for match in _PAIR.finditer(caption)}
