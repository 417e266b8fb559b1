from pathlib import Path

import pytest

from pipeline.runs.recipes import RECIPES, chosen_settings, read_settings
from pipeline.runs.train_config import TrainConfig
from shards.errors import InputError


def test_the_defaults_are_the_tutorials_recipe() -> None:
    config = TrainConfig(**chosen_settings({}))
    assert config == TrainConfig()
    assert (config.embedding_dim, config.hidden_dim, config.layers, config.min_count) == (256, 512, 1, 4)
    assert (config.lr, config.batch_size, config.epochs, config.schedule) == (1e-3, 128, 5, "constant")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_valid_settings_and_records_its_name(name: str) -> None:
    assert TrainConfig(**chosen_settings({"recipe": name})).recipe == name


def test_explicit_settings_override_the_file_and_the_file_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('recipe = "strong"\nbatch-size = 32\nlr = 1\ntie_weights = false\n')
    settings = chosen_settings({"lr": 0.25}, config=file)
    assert settings["lr"] == 0.25
    assert settings["batch_size"] == 32
    assert settings["tie_weights"] is False
    assert settings["epochs"] == RECIPES["strong"]["epochs"]


def test_a_training_from_an_initial_run_takes_over_its_architecture_only() -> None:
    start = TrainConfig(**chosen_settings({"recipe": "strong", "hidden_dim": 77, "seed": 9}))
    settings = chosen_settings({"self_critical": True}, initial_run=start)
    assert settings["recipe"] == "self-critical"
    assert settings["hidden_dim"] == 77
    assert settings["tie_weights"] == start.tie_weights
    assert TrainConfig(**settings).seed == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batch-sise = 3", "batch-sise"),
        ("batch-size = 3.5", "batch-size is 3.5, but must be of type int"),
        ("batch-size = true", "but must be of type int"),
        ('lr = "fast"', "lr is 'fast', but must be of type float"),
        ("schedule = 3", "but must be of type str"),
        ("[train]\nlr = 1.0", "train"),
        ("lr =", "cannot be read as a TOML file"),
    ],
)
def test_an_invalid_file_is_refused_with_its_name_and_the_setting(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        read_settings(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_and_an_unknown_recipe_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.toml"):
        read_settings(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"weak.*tutorial, strong"):
        chosen_settings({"recipe": "weak"})
