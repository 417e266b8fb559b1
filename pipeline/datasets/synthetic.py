"""The synthetic dataset: drawn scenes with correct captions, in COCO's format, so that everything can be tried offline.

A scene has one or two groups of equal shapes. A group has a shape, a colour, a size and a count. Groups are above or inside one another:
horizontal flips, which training uses, keep these relations. The dataset trades variety for correctness: every caption is right, and every
caption names every colour-and-shape pair of its scene. Image i is the same for any number of images.
"""

import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw

from pipeline.execution.executors import run_tasks
from pipeline.execution.progress import Progress
from shards.atomic import committed_file, disk_errors, hold_lock
from shards.errors import InputError, OccupiedError
from shards.json_files import write_json

COLOURS = {
    "red": (208, 38, 42),
    "green": (38, 158, 64),
    "blue": (40, 74, 208),
    "yellow": (240, 214, 40),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "star")
COUNT_WORDS = ("a", "two", "three", "four")
VAL_EVERY = 10
# What the folder of a dataset may hold already, with what a killed run leaves.
OWN_FILE = re.compile(r"images|\.synth\.lock|(\.)?captions_(train|val)\.json(?(1)\.tmp(\.lock)?)")
SUPERSAMPLING = 2

Size = Literal["small", "large"]
Relation = Literal["alone", "above", "inside"]


@dataclass(frozen=True, kw_only=True)
class ShapeGroup:
    """``count`` equal shapes."""

    shape: str
    colour: str
    size: Size
    count: int


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two groups. ``groups[0]`` is alone, above ``groups[1]``, or inside it."""

    relation: Relation
    groups: tuple[ShapeGroup, ...]


# Each template is one wording. {a} and {b} are noun phrases; {is} and {are} agree with a and b. A template chooses its words for "small"
# and "large", so that a model can learn each wording.
TEMPLATES: dict[Relation, tuple[tuple[str, dict[str, str]], ...]] = {
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
CAPTIONS_PER_IMAGE = 5

_PAIR = re.compile(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})s?\b")


def named_pairs(captions: Iterable[str]) -> set[tuple[str, str]]:
    """The (colour, shape) pairs that the captions name.

    >>> sorted(named_pairs(["two red stars above a tiny blue circle"]))
    [('blue', 'circle'), ('red', 'star')]
    """
    return {(match[1], match[2]) for caption in captions for match in _PAIR.finditer(caption)}


def random_scene(rng: np.random.Generator) -> Scene:
    """Sample a scene. Two groups never have both colour and shape in common."""
    relation: Relation = ("alone", "alone", "above", "inside")[int(rng.integers(4))]
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    first, second = (kinds[int(i)] for i in rng.choice(len(kinds), 2, replace=False))

    def group(kind: tuple[str, str], size: Size, most: int) -> ShapeGroup:
        return ShapeGroup(colour=kind[0], shape=kind[1], size=size, count=int(rng.integers(1, most + 1)))

    sizes: tuple[Size, Size] = ("small", "large")
    if relation == "alone":
        return Scene(relation=relation, groups=(group(first, sizes[int(rng.integers(2))], 4),))
    if relation == "above":
        groups = tuple(group(kind, sizes[int(rng.integers(2))], 2) for kind in (first, second))
        return Scene(relation=relation, groups=groups)
    while second[0] == first[0]:  # a shape inside another one of the same colour would be invisible
        second = kinds[int(rng.integers(len(kinds)))]
    return Scene(relation=relation, groups=(group(first, "small", 1), group(second, "large", 1)))


def noun_phrase(group: ShapeGroup, size_words: dict[str, str]) -> str:
    """For example "two little red stars"."""
    plural = "s" if group.count > 1 else ""
    return f"{COUNT_WORDS[group.count - 1]} {size_words.get(group.size, group.size)} {group.colour} {group.shape}{plural}"


def scene_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five captions of a scene in different wordings."""
    templates = TEMPLATES[scene.relation]
    captions = []
    for index in sorted(rng.choice(len(templates), CAPTIONS_PER_IMAGE, replace=False)):
        template, size_words = templates[int(index)]
        verbs = ["is" if group.count == 1 else "are" for group in (scene.groups[0], scene.groups[-1])]
        phrases = [noun_phrase(group, size_words) for group in (scene.groups[0], scene.groups[-1])]
        captions.append(template.format_map({"a": phrases[0], "b": phrases[1], "is": verbs[0], "are": verbs[1]}) + ".")
    return captions


def _outline(shape: str, x: float, y: float, radius: float) -> list[tuple[float, float]]:
    """Corners of a square or a star around (x, y)."""
    if shape == "square":
        half = radius * 0.86
        return [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    points = []
    for corner in range(10):
        reach = radius * (0.42 if corner % 2 else 1.12)
        angle = -math.pi / 2 + 2 * math.pi * corner / 10
        points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return points


def _draw_group(draw: ImageDraw.ImageDraw, group: ShapeGroup, rng: np.random.Generator, box: tuple[float, float, float, float]) -> None:
    """Draw a group as a row with jittered positions inside ``box`` (left, top, right, bottom), scaled to the box."""
    left, top, right, bottom = box
    cell = (right - left) / group.count
    unit = min(bottom - top, (right - left) / 2.2)
    radius = unit * (0.42 if group.size == "large" else 0.25) * float(rng.uniform(0.93, 1.07))
    radius = min(radius, cell * 0.45)
    for position in range(group.count):
        room_x, room_y = max(cell / 2 - radius * 1.15, 0.0), max((bottom - top) / 2 - radius * 1.15, 0.0)
        x = left + cell * (position + 0.5) + float(rng.uniform(-0.5, 0.5)) * room_x
        y = (top + bottom) / 2 + float(rng.uniform(-0.5, 0.5)) * room_y
        _draw_shape(draw, group, x, y, radius, rng)


def _draw_shape(draw: ImageDraw.ImageDraw, group: ShapeGroup, x: float, y: float, radius: float, rng: np.random.Generator) -> None:
    shade = rng.integers(-8, 9, size=3)
    fill = tuple(int(v) for v in np.clip(np.array(COLOURS[group.colour]) + shade, 0, 255))
    if group.shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    else:
        draw.polygon(_outline(group.shape, x, y, radius), fill=fill)


def draw_scene(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw a scene as an RGB image of 220 to 320 pixels a side, on a noisy background between grey and beige."""
    width, height = (int(v) for v in rng.integers(220, 321, size=2))
    big = (width * SUPERSAMPLING, height * SUPERSAMPLING)
    tone = rng.integers(125, 166) + rng.integers(-8, 9, size=3)
    image = Image.new("RGB", big, tuple(int(v) for v in tone))
    draw = ImageDraw.Draw(image)
    margin = 0.07
    left, right = margin * big[0], (1 - margin) * big[0]
    top, bottom = margin * big[1], (1 - margin) * big[1]
    middle = (top + bottom) / 2
    if scene.relation == "inside":
        inner, outer = scene.groups
        radius = min(right - left, bottom - top) * float(rng.uniform(0.40, 0.46))
        x = (left + right) / 2 + float(rng.uniform(-1, 1)) * ((right - left) / 2 - radius)
        y = middle + float(rng.uniform(-1, 1)) * max((bottom - top) / 2 - radius, 0.0)
        _draw_shape(draw, outer, x, y, radius, rng)
        _draw_shape(draw, inner, x, y, radius * float(rng.uniform(0.38, 0.44)), rng)
    elif scene.relation == "above":
        _draw_group(draw, scene.groups[0], rng, (left, top, right, middle))
        _draw_group(draw, scene.groups[1], rng, (left, middle, right, bottom))
    else:
        quarter = (bottom - top) / 4
        _draw_group(draw, scene.groups[0], rng, (left, top + quarter, right, bottom - quarter))
    pixels = np.asarray(image.reduce(SUPERSAMPLING), dtype=np.int16)
    noise = rng.integers(-6, 7, size=pixels.shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def synthetic_sample(seed: int, index: int) -> tuple[bytes, tuple[int, int], list[str]]:
    """Image ``index`` of the dataset with this seed: (JPEG bytes, (width, height) in pixels, captions)."""
    rng = np.random.default_rng([seed, index])
    scene = random_scene(rng)
    captions = scene_captions(scene, rng)
    image = draw_scene(scene, rng)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=92)
    return buffer.getvalue(), image.size, captions


def _draw_range(out: Path, seed: int, start: int, stop: int) -> list[tuple[int, tuple[int, int], list[str]]]:
    drawn = []
    for index in range(start, stop):
        jpeg, size, captions = synthetic_sample(seed, index)
        with committed_file(out / "images" / file_name(index)) as file:
            file.write(jpeg)
        drawn.append((index, size, captions))
    return drawn


def file_name(index: int) -> str:
    """The name of image ``index`` inside ``images/``."""
    return f"scene_{index:06d}.jpg"


def synthesize(out: Path, *, images: int, seed: int = 0, workers: int = 1, quiet: bool = True) -> dict[str, int]:
    """Draw the dataset into ``out``: ``images/*.jpg``, ``captions_train.json``, ``captions_val.json``.

    Every tenth image is in split val, so that each split of a larger dataset contains that of a smaller one.

    Args:
        out: A folder that is missing, empty, or holds an earlier synthetic dataset.
        images: The number of images, at least ``VAL_EVERY``.
        seed: The same seed draws the same bytes.
        workers: Processes.
        quiet: Show no progress.

    Returns:
        The number of images by split.

    Raises:
        InputError: ``images`` or ``seed`` out of range.
        OccupiedError: ``out`` holds something else, or another process is drawing into it.
    """
    if images < VAL_EVERY:
        raise InputError(f"`images` {images}: must be at least {VAL_EVERY}, because every {VAL_EVERY}th image is in split val.")
    if seed < 0:
        raise InputError(f"`seed` {seed}: must not be negative.")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        others = sorted(p.name for p in out.iterdir() if not OWN_FILE.fullmatch(p.name))
    if others:
        raise OccupiedError(f"{out}: holds something other than a synthetic dataset ({others[0]}). Choose a new or empty folder.")
    with hold_lock(out, "synth", "drawing a dataset"):
        return _draw(out, images, seed, workers, quiet)


def _draw(out: Path, images: int, seed: int, workers: int, quiet: bool) -> dict[str, int]:
    chunk = 50
    tasks = [(out, seed, start, min(start + chunk, images)) for start in range(0, images, chunk)]
    by_split: dict[str, list[tuple[int, tuple[int, int], list[str]]]] = {"train": [], "val": []}
    with Progress("Drawing", total=images, unit="images", quiet=quiet) as progress:
        for drawn in run_tasks(_draw_range, tasks, workers=workers):
            progress.advance(len(drawn))
            for sample in drawn:
                by_split["val" if sample[0] % VAL_EVERY == VAL_EVERY - 1 else "train"].append(sample)
    for split, samples in by_split.items():
        write_json(out / f"captions_{split}.json", coco_json(samples, seed=seed, split=split))
    return {split: len(samples) for split, samples in by_split.items()}


def coco_json(samples: list[tuple[int, tuple[int, int], list[str]]], *, seed: int, split: str) -> dict[str, Any]:
    """The samples as a COCO caption file (https://cocodataset.org/#format-data, "Image Captioning")."""
    return {
        "info": {"description": f"Capstream's drawn scenes, {split} split, seed {seed}", "version": "1"},
        "licenses": [],
        "images": [{"id": index + 1, "file_name": file_name(index), "width": width, "height": height} for index, (width, height), _ in samples],
        "annotations": [
            {"id": (index + 1) * 10 + position, "image_id": index + 1, "caption": caption}
            for index, _, captions in samples
            for position, caption in enumerate(captions)
        ],
    }
