"""Recipes: settings of a training under one name, or in a TOML file; what else is said goes over them.

The tutorial's recipe is :class:`pipeline.runs.train_config.TrainConfig` as it stands. docs/recipes.md has the measurements that chose the others.
"""

import tomllib
from pathlib import Path
from typing import Any

from pipeline.runs.train_config import KINDS, TrainConfig, kind_name, of_its_type, option
from shards.errors import InputError

RECIPES: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "strong": {
        "epochs": 10,
        "lr": 2e-3,
        "schedule": "cosine",
        "warmup_steps": 200,
        "weight_decay": 0.05,
        "clip_norm": 5.0,
        "label_smoothing": 0.1,
        "input_dropout": 0.4,
        "output_dropout": 0.4,
        "image_input": "every_step",
        "tie_weights": True,
    },
    "self-critical": {
        "self_critical": True,
        "epochs": 18,
        "batch_size": 32,
        "lr": 4e-4,
        "schedule": "constant",
        "average_last": 12,
        "clip_norm": 5.0,
        "feature_dropout": 0.3,
        "captions_per_image": 1000,
    },
}
# What a training that starts from another run's weights has from that run.
ARCHITECTURE = ("decoder", "embedding_dim", "hidden_dim", "layers", "image_input", "tie_weights", "min_count")
MAX_BYTES = 1 << 20


def chosen_settings(said: dict[str, Any], *, config: Path | None = None, start: TrainConfig | None = None) -> dict[str, Any]:
    """Settings of a new training: a recipe's, over them the run's whose weights it starts from, the TOML file's, and what was said.

    Args:
        said: Fields of :class:`TrainConfig`, from the command line.
        config: A TOML file of such fields.
        start: The settings of the run whose weights the training starts from: the architecture comes from there.

    Raises:
        InputError: No such recipe; or as :func:`read_settings`.
    """
    written = read_settings(config) if config is not None else {}
    given = {**written, **said}
    if given.get("self_critical") and "recipe" not in given:
        given["recipe"] = "self-critical"
    recipe = given.get("recipe", "tutorial")
    if recipe not in RECIPES:
        raise InputError(
            f"--recipe {recipe}: there is no such recipe. There are {', '.join(RECIPES)}; or write your own in a TOML file for --config."
        )
    architecture = {name: getattr(start, name) for name in ARCHITECTURE} if start is not None else {}
    return {**RECIPES[recipe], **architecture, **given}


def read_settings(path: Path) -> dict[str, Any]:
    """Fields of :class:`TrainConfig` from a TOML file, named as on the command line, with - or _.

    Raises:
        InputError: No such file, no TOML, or a name or type that does not fit.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.loads(file.read(MAX_BYTES).decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a TOML file that can be read ({error}). A line is, for example: batch-size = 64") from None
    settings = {}
    for written, value in content.items():
        name = written.replace("-", "_")
        if name not in KINDS:
            names = ", ".join(known.replace("_", "-") for known in KINDS)
            raise InputError(f"{path}: there is no setting {written!r}. There are {names}.")
        if not of_its_type(name, value):
            raise InputError(f"{path}: {written} is {value!r}, it must be of type {kind_name(name)}, as for {option(written)}.")
        settings[name] = value
    return settings
