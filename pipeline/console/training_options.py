"""The options of ``train``, one for each setting of :class:`pipeline.runs.train_config.TrainConfig`."""

from dataclasses import Field, fields
from typing import Any

import click

from pipeline.console.options import Decorator, grouped
from pipeline.runs.train_config import SETTING_TYPES, TrainConfig


def option(name: str) -> str:
    """A setting as it is written on the command line.

    >>> option("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def _training_option(setting: "Field[Any]") -> Decorator:
    kind, off_option = SETTING_TYPES[setting.name], setting.metadata["off_option"]
    if setting.default is None:
        shown = None
    elif kind is bool:
        shown = off_option.removeprefix("--")
    else:
        shown = f"{setting.default:g}" if kind is float else setting.default
    return click.option(
        f"{option(setting.name)}/{off_option}" if kind is bool else option(setting.name),
        type=kind if isinstance(kind, type) else click.Choice(kind),
        default=None,  # so that a recipe and a resumed run can tell what was given
        show_default=setting.metadata["none_means"],
        help=setting.metadata["purpose"] + (f" [default: {shown}]" if shown is not None else ""),
    )


# The command gets a dict of all settings as ``settings``; those that were not given are None.
training_options = grouped("settings", dict, *(_training_option(setting) for setting in fields(TrainConfig)))
