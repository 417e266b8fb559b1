"""Recipes: named sets of training settings, and settings from a TOML file. Settings given explicitly override both.

The tutorial's recipe is the defaults of :class:`pipeline.runs.train_config.TrainConfig`. docs/recipes.md has the measurements behind the others.
"""

import tomllib
from pathlib import Path
from typing import Any

from pipeline.runs.train_config import SETTING_TYPES, TrainConfig, has_setting_type, setting_type_name
from shards.errors import SettingsError
from shards.found_instead import near_name

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
# What a recipe changes for a decoder
OF_DECODER: dict[tuple[str, str], dict[str, Any]] = {
    ("tutorial", "attention"): {"embedding_dim": 512, "lr": 5e-4, "clip_norm": 5.0},
    ("tutorial", "transformer"): {
        "embedding_dim": 512,
        "hidden_dim": 2048,
        "layers": 3,
        "encoder_layers": 3,
        "lr": 3e-4,
        "warmup_steps": 200,
        "clip_norm": 5.0,
        "output_dropout": 0.1,
    },
    ("strong", "lstm"): {"image_input": "every_step"},
    ("strong", "attention"): {"embedding_dim": 512, "lr": 1e-3, "feature_dropout": 0.3},
    ("strong", "transformer"): {
        "embedding_dim": 512,
        "hidden_dim": 2048,
        "layers": 3,
        "encoder_layers": 1,
        "lr": 5e-4,
        "warmup_steps": 500,
        "feature_dropout": 0.3,
        "input_dropout": 0.2,
        "output_dropout": 0.3,
    },
}
# The settings that a training takes over from the run that its initial weights come from.
ARCHITECTURE = ("decoder", "embedding_dim", "hidden_dim", "layers", "encoder_layers", "heads", "image_input", "tie_weights", "min_count")
MAX_BYTES = 1 << 20


def chosen_settings(given: dict[str, Any], *, config: Path | None = None, initial_run: TrainConfig | None = None) -> dict[str, Any]:
    """Settings of a new training.

    Later sources override earlier ones: the recipe, the architecture of the initial run, the TOML file, ``given``.

    Args:
        given: Fields of :class:`TrainConfig`, from the command line.
        config: A TOML file of such fields.
        initial_run: The settings of the run that the initial weights come from.

    Raises:
        InputError: Unknown recipe; or as :func:`read_settings`.
    """
    from_file = read_settings(config) if config is not None else {}
    explicit = {**from_file, **given}
    if explicit.get("self_critical") and "recipe" not in explicit:
        explicit["recipe"] = "self-critical"
    recipe = explicit.get("recipe", "tutorial")
    if recipe not in RECIPES:
        choose = f"Choose one of {', '.join(RECIPES)}; or put settings into a TOML file and give it as `config`."
        raise SettingsError(f"`recipe` {recipe}: unknown.{near_name(recipe, RECIPES)} {choose}")
    architecture = {name: getattr(initial_run, name) for name in ARCHITECTURE} if initial_run is not None else {}
    decoder = explicit.get("decoder") or architecture.get("decoder") or TrainConfig.decoder
    return {**RECIPES[recipe], **OF_DECODER.get((recipe, decoder), {}), **architecture, **explicit}


def read_settings(path: Path) -> dict[str, Any]:
    """Fields of :class:`TrainConfig` from a TOML file. Names are those of the command line, with - or _.

    Raises:
        InputError: The file is missing or not TOML, or a setting has an unknown name or a wrong type.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.loads(file.read(MAX_BYTES).decode())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as a TOML file ({error}). Example of a line: batch-size = 64") from None
    settings = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in SETTING_TYPES:
            known = ", ".join(known.replace("_", "-") for known in SETTING_TYPES)
            raise SettingsError(f"{path}: unknown setting {key!r}.{near_name(key.replace('_', '-'), known.split(', '))} The settings are {known}.")
        if not has_setting_type(name, value):
            raise SettingsError(f"{path}: {key} is {value!r}, but must be of type {setting_type_name(name)}.")
        settings[name] = value
    return settings
