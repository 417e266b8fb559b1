import json
import math
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import Result

from cli import cli
from model.limits import SIZE_LIMITS
from pipeline.console.settings import options_of
from pipeline.console.training_options import option
from pipeline.runs.run import open_run, read_config
from pipeline.runs.train_config import SETTING_TYPES, TrainConfig
from shards.errors import DamageError, InputError, MismatchError
from tests import ROOT
from tests.conftest import Small

SECTION = (ROOT / "docs/commands.md").read_text().split("\n## train\n")[1].split("\n## ")[0]


def test_the_step_schedule_decays_every_few_epochs() -> None:
    config = TrainConfig(lr=1.0, schedule="step", lr_decay=0.5, lr_decay_epochs=2)
    assert [config.lr_at(epoch * 10 + 9, 10) for epoch in range(5)] == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_the_cosine_schedule_anneals_to_zero() -> None:
    config = TrainConfig(lr=2.0, schedule="cosine", epochs=4)
    assert config.lr_at(0, 10) == 2.0
    assert config.lr_at(20, 10) == pytest.approx(1.0)
    assert config.lr_at(40, 10) == pytest.approx(0.0)


def test_warmup_is_linear_under_every_schedule() -> None:
    for schedule in ("constant", "step", "cosine"):
        cold, warm = (TrainConfig(lr=1.0, schedule=schedule, warmup_steps=steps, epochs=3) for steps in (0, 3))
        shares = [warm.lr_at(step, 10) / cold.lr_at(step, 10) for step in range(6)]
        assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_scheduled_sampling_rises_linearly_and_stays() -> None:
    config = TrainConfig(scheduled_sampling=0.2, scheduled_sampling_epochs=4)
    assert [config.scheduled_sampling_at(step, 5) for step in (0, 5, 10, 20, 50)] == pytest.approx([0.0, 0.05, 0.1, 0.2, 0.2])


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr_decay": 0.0},
        {"lr_decay": 1.1},
        {"lr_decay_epochs": 0},
        {"warmup_steps": -1},
        {"weight_decay": -0.1},
        {"clip_norm": float("nan")},
        {"label_smoothing": 1.0},
        {"scheduled_sampling": -0.1},
        {"scheduled_sampling_epochs": 0},
        {"patience": 0},
        {"self_critical": True, "samples": 1},
        {"self_critical": True, "label_smoothing": 0.1},
        {"self_critical": True, "scheduled_sampling": 0.1},
        {"self_critical": True, "accumulate": 2},
        {"input_dropout": 1.0},
        {"feature_dropout": -0.1},
        {"image_input": "twice"},
        {"schedule": "steps"},
        {"seed": 2**70},
        {"seed": True},
        {"batch_size": None},
        {"lr": None},
        {"lr": "fast"},
        {"epochs": 2.5},
        {"tie_weights": "yes"},
        {"captions_per_image": 2**70},
        {"checkpoint_minutes": 10**400},
        {"hidden_dim": 2**40},
        {"embedding_dim": 2**20},
        {"layers": 10**6},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"`{list(wrong)[-1]}`"):
        TrainConfig(**wrong)


@pytest.mark.parametrize(
    ("name", "value"), [("lr_decay", None), ("epochs", None), ("batch_size", "many"), ("tie_weights", 1), ("schedule", ["step"])]
)
def test_a_run_config_with_impossible_values_is_damaged(small: Small, tmp_path: Path, name: str, value: object) -> None:
    config = json.loads((small.run / "config.json").read_text())
    config["train"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamageError, match=f"config.json: not a valid run config .*`{name}`"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", [name for name in SETTING_TYPES if name != "recipe"])
def test_the_reference_lists_every_setting_with_its_default(name: str) -> None:
    default = getattr(TrainConfig, name)
    rows = re.findall(rf"^\| `{option(name)}[ `].*", SECTION, flags=re.MULTILINE)
    shown = "" if default in (None, False) else rf"\b{re.escape(f'{default:g}' if isinstance(default, float) else str(default))}\b"
    assert any(re.search(shown, row) for row in rows), rows


def test_every_setting_is_an_option_of_train_that_is_none_unless_typed() -> None:
    options = {str(option.name): option for option in options_of(cli.commands["train"])}
    assert set(SETTING_TYPES) < set(options)
    assert {options[name].default for name in SETTING_TYPES} == {None}
    assert "[default: 0.001]" in str(options["lr"].help)
    assert options["patience"].show_default == "never"
    assert "[default: cross-entropy]" in str(options["self_critical"].help)
    assert options["tie_weights"].secondary_opts == ["--no-tie-weights"]
    schedule = options["schedule"].type
    assert isinstance(schedule, click.Choice)
    assert schedule.choices == ("constant", "step", "cosine")


@pytest.mark.parametrize(
    ("typed", "settings"), [("--lr 0.5 --tie-weights", {"lr": 0.5, "tie_weights": True}), ("--cross-entropy", {"self_critical": False})]
)
def test_typed_settings_are_told_from_others(typed: str, settings: dict[str, Any]) -> None:
    given = cli.commands["train"].make_context("train", ["--out", "run", *typed.split()]).params
    assert {name: given[name] for name in SETTING_TYPES if given[name] is not None} == settings


def wrong_values(folder: tuple[str, ...], names: Iterable[str], *values: Any) -> list[tuple[tuple[str, ...], Any]]:
    return [((*folder, name), value) for name in names for value in values]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        *wrong_values(("decoder",), SIZE_LIMITS, 2**40, 0, -1, 32.0, "32", True, None, [32], 10**400),
        *wrong_values(("train",), ("embedding_dim", "hidden_dim", "layers"), 2**40, 32.0, True, 10**6),
        *wrong_values(("decoder",), ("input_dropout", "feature_dropout"), 1.0, -0.1, "0.5", True, math.nan),
        *wrong_values(("decoder",), ("decoder", "image_input", "tie_weights"), 1, ["lstm"], "never", None),
        *wrong_values(("network",), ("backbone", "weights", "weights_sha256"), 1, None, {}),
        *wrong_values(("network", "preprocessing"), ("size", "crop"), 2**40, 0, 64.0, "64", True, None),
        *wrong_values(("network", "preprocessing"), ("mode", "filter"), "none such", 1, None),
        *wrong_values(("network", "preprocessing"), ("mean", "std"), [1, 1], [True] * 3, [math.nan] * 3, [10**400] * 3, "111"),
        *wrong_values(("network", "preprocessing"), ("std",), [1, 0, 1]),
        *wrong_values((), ("source", "data", "data_digest", "vocabulary_digest", "network", "versions", "train"), 1, [1], None),
        *wrong_values((), ("source",), "neither"),
        *wrong_values((), ("versions",), {"torch": 2}),
        *wrong_values((), ("start",), {"run": "x"}, {"run": "x", "checkpoint": "y", "sha256": 1}, 5, ["run"]),
    ],
)
def test_every_value_of_a_run_config_is_checked_before_anything_is_built(small: Small, tmp_path: Path, place: tuple[str, ...], value: object) -> None:
    config = json.loads((small.run / "config.json").read_text())
    inner = config
    for name in place[:-1]:
        inner = inner[name]
    assert place[-1] in inner
    inner[place[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(DamageError, match=r"config\.json: not a valid run config"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["embedding_dim", "hidden_dim", "layers"])
def test_the_weights_are_compared_with_the_sizes_of_the_config_before_these_take_memory(small: Small, tmp_path: Path, name: str) -> None:
    shutil.copytree(small.run, tmp_path / "run")
    config = json.loads((small.run / "config.json").read_text())
    config["decoder"][name] = SIZE_LIMITS[name]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(MismatchError, match=r"the weights do not fit the run's config: .* has shape .*, but by the config"):
        open_run(tmp_path / "run", device=torch.device("cpu"))


def test_options_have_the_limits_of_files(run_cli: Callable[..., Result], small: Small, tmp_path: Path) -> None:
    result = run_cli("train", "--features", small.features, "--out", tmp_path / "run", "--hidden-dim", 2**40)
    assert result.exit_code == 2
    assert f"--hidden-dim {2**40}: must be at least 1, and at most {SIZE_LIMITS['hidden_dim']}.\n" in result.output
