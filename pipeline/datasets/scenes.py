"""The drawn scenes: what is in a scene, and random ones.

A scene has one or two groups of equal shapes. A group has a shape, a colour, a size and a count. Groups are above or inside one another:
horizontal flips, which training uses, keep these relations.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

COLOURS = {
    "red": (208, 38, 42),
    "green": (38, 158, 64),
    "blue": (40, 74, 208),
    "yellow": (240, 214, 40),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "star")

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
