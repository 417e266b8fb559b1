"""The synthetic dataset: drawn scenes with correct captions, in COCO's format, so that everything can be tried offline.

The dataset trades variety for correctness: every caption is right, and every caption names every colour-and-shape pair of its scene. Image i is
the same for any number of images, and in any language of the captions.
"""

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from pipeline.datasets.scene_captions import WORDINGS, scene_captions
from pipeline.datasets.scenes import COLOURS, Scene, ShapeGroup, random_scene
from pipeline.execution.executors import run_tasks
from pipeline.execution.progress import Progress
from shards.atomic import committed_file, disk_errors, hold_lock
from shards.errors import OccupiedError, SettingsError
from shards.json_files import write_json

VAL_EVERY = 10
# What the folder of a dataset may hold already, with what a killed run leaves.
OWN_FILE = re.compile(r"images|\.synth\.lock|(\.)?captions_(train|val)\.json(?(1)\.tmp(\.lock)?)")
SUPERSAMPLING = 2


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


def synthetic_sample(seed: int, index: int, language: str = "en") -> tuple[bytes, tuple[int, int], list[str]]:
    """Image ``index`` of the dataset with this seed: (JPEG bytes, (width, height) in pixels, captions)."""
    rng = np.random.default_rng([seed, index])
    scene = random_scene(rng)
    captions = scene_captions(scene, rng, language)
    image = draw_scene(scene, rng)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=92)
    return buffer.getvalue(), image.size, captions


def _draw_range(out: Path, seed: int, language: str, start: int, stop: int) -> list[tuple[int, tuple[int, int], list[str]]]:
    drawn = []
    for index in range(start, stop):
        jpeg, size, captions = synthetic_sample(seed, index, language)
        with committed_file(out / "images" / file_name(index)) as file:
            file.write(jpeg)
        drawn.append((index, size, captions))
    return drawn


def file_name(index: int) -> str:
    """The name of image ``index`` inside ``images/``."""
    return f"scene_{index:06d}.jpg"


def synthesize(out: Path, *, images: int, seed: int = 0, language: str = "en", workers: int = 1, quiet: bool = True) -> dict[str, int]:
    """Draw the dataset into ``out``: ``images/*.jpg``, ``captions_train.json``, ``captions_val.json``.

    Every tenth image is in split val, so that each split of a larger dataset contains that of a smaller one.

    Args:
        out: A folder that is missing, empty, or holds an earlier synthetic dataset.
        images: The number of images, at least ``VAL_EVERY``.
        seed: The same seed draws the same bytes.
        language: Of the captions, one of :data:`pipeline.datasets.scene_captions.WORDINGS`.
        workers: Processes.
        quiet: Show no progress.

    Returns:
        The number of images by split.

    Raises:
        InputError: ``images`` or ``seed`` out of range, or no captions in this language.
        OccupiedError: ``out`` holds something else, or another process is drawing into it.
    """
    if images < VAL_EVERY:
        raise SettingsError(f"`images` {images}: must be at least {VAL_EVERY}, because every {VAL_EVERY}th image is in split val.")
    if seed < 0:
        raise SettingsError(f"`seed` {seed}: must not be negative.")
    if language not in WORDINGS:
        raise SettingsError(f"`language` {language}: {WORDINGS.unknown(language)}")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        others = sorted(p.name for p in out.iterdir() if not OWN_FILE.fullmatch(p.name))
    if others:
        raise OccupiedError(f"{out}: holds something other than a synthetic dataset ({others[0]}). Choose a new or empty folder.")
    with hold_lock(out, "synth", "drawing a dataset"):
        return _draw(out, images, seed, language, workers, quiet)


def _draw(out: Path, images: int, seed: int, language: str, workers: int, quiet: bool) -> dict[str, int]:
    chunk = 50
    tasks = [(out, seed, language, start, min(start + chunk, images)) for start in range(0, images, chunk)]
    by_split: dict[str, list[tuple[int, tuple[int, int], list[str]]]] = {"train": [], "val": []}
    with Progress("Drawing", total=images, unit="images", quiet=quiet) as progress:
        for drawn in run_tasks(_draw_range, tasks, workers=workers):
            progress.advance(len(drawn))
            for sample in drawn:
                by_split["val" if sample[0] % VAL_EVERY == VAL_EVERY - 1 else "train"].append(sample)
    for split, samples in by_split.items():
        write_json(out / f"captions_{split}.json", coco_json(samples, seed=seed, language=language, split=split))
    return {split: len(samples) for split, samples in by_split.items()}


def coco_json(samples: list[tuple[int, tuple[int, int], list[str]]], *, seed: int, language: str, split: str) -> dict[str, Any]:
    """The samples as a COCO caption file (https://cocodataset.org/#format-data, "Image Captioning")."""
    captions_in = "" if language == "en" else f", captions in {language}"
    return {
        "info": {"description": f"Capstream's drawn scenes, {split} split, seed {seed}{captions_in}", "version": "1"},
        "licenses": [],
        "images": [{"id": index + 1, "file_name": file_name(index), "width": width, "height": height} for index, (width, height), _ in samples],
        "annotations": [
            {"id": (index + 1) * 10 + position, "image_id": index + 1, "caption": caption}
            for index, _, captions in samples
            for position, caption in enumerate(captions)
        ],
    }
