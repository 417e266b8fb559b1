"""Options that several commands share, and what is made of what they were given.

Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click
from click.core import ParameterSource

from pipeline.console.errors import note
from pipeline.runs.train_config import KINDS, TrainConfig, option
from shards.paths import Location

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from dataclasses import Field

    from model.decoding import Decoding
    from pipeline.captions.read import CaptionSource
    from pipeline.execution.executors import Cluster

P = ParamSpec("P")
R = TypeVar("R")
Folder = click.Path(path_type=Path)
RESIZE_MODE = click.Choice(["squash", "shortest", "pad", "none"])
FILTER = click.Choice(["lanczos", "bicubic", "bilinear", "box"])


def cores() -> int:
    """How many worker processes there are by default."""
    from pipeline.execution.executors import default_workers

    return default_workers()


def place(value: str) -> Location:
    """A folder, or a URL as it was typed: as a path it would lose one of its slashes."""
    return value if "://" in value else Path(value)


def shard_cache_folder() -> Path:
    """Where remote shards are kept by default."""
    from shards.mirror import default_cache

    return default_cache()


def shards_options(help_text: str, *, required: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """--shards, and the options of the cache that shards at a URL go to."""
    shards = click.option("--shards", type=place, metavar="PATH|URL", required=required, default=None, help=help_text)
    return lambda function: shards(shard_cache_options(function))


def shard_cache_options(function: Callable[P, R]) -> Callable[P, R]:
    """The cache that shards at a URL go to."""
    folder = click.option(
        "--shard-cache",
        type=Folder,
        default=shard_cache_folder,
        show_default="~/.cache/capstream",
        help="Of shards at a URL: where they are kept.",
    )
    gigabytes = click.option(
        "--shard-cache-gb",
        type=click.FloatRange(min=0, min_open=True),
        default=50.0,
        help="Of shards at a URL: how many gigabytes of tars are kept; the least recently used ones go first.",
    )
    return folder(gigabytes(function))


def local_shards(shards: Location, cache: Path, gigabytes: float) -> Path:
    """The folder of a shard dataset, which for one at a URL is its mirror in the cache."""
    from shards.remote import localize

    return localize(shards, cache=cache, cache_bytes=int(gigabytes * 1e9))


def together(*options: Callable[[Any], Any]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Several options as one decorator, in the order of the help."""

    def add(function: Callable[P, R]) -> Callable[P, R]:
        for add_one in reversed(options):
            function = add_one(function)
        return function

    return add


# Where the tasks of a command run; :func:`chosen_cluster` takes what they were given.
executor_option = together(
    click.option("--executor", type=click.Choice(["local", "ray"]), default="local", help="Where tasks run: processes here, or Ray."),
    click.option(
        "--ray-address",
        default=None,
        metavar="HOST:PORT|auto",
        help="A Ray cluster's head. Without it Ray runs on this machine, with --workers CPUs.",
    ),
    click.option("--task-id", type=int, default=None, help="Do only share I of the work, from 0; the same command without it finishes it."),
    click.option("--num-tasks", type=int, default=None, help="With --task-id: how many shares there are."),
)


def chosen_cluster(executor: str, ray_address: str | None, workers: int | None, task_id: int | None) -> "AbstractContextManager[Cluster | None]":
    """The cluster that the options ask for, to be opened; of the local executor None."""
    if executor == "local":
        if ray_address is not None:
            raise click.UsageError("--ray-address goes with --executor ray.")
        return contextlib.nullcontext()
    if task_id is not None:
        raise click.UsageError("--task-id goes with --executor local: Ray itself gives the work to all its machines.")
    if ray_address is not None and typed("workers"):
        raise click.UsageError("--workers goes with a Ray of this machine's own: a cluster at --ray-address has the CPUs that it was started with.")
    from pipeline.execution.ray_cluster import ray_cluster

    return ray_cluster(ray_address, cpus=workers, report=note)


device_option = click.option("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...; auto takes a GPU where there is one.")
workers_option = click.option("--workers", type=click.IntRange(1), default=cores, show_default="all cores", help="Worker processes.")


checkpoint_option = click.option(
    "--checkpoint",
    type=click.Choice(["latest", "best", "average"]),
    default="latest",
    help="Which of the run's checkpoints: the newest, the one whose captions scored best on val, or the mean of the weights of all that are kept.",
)


columns_option = click.option(
    "--column", "columns", multiple=True, metavar="ROLE=NAME", help="Of tables: the column of each image, caption or split."
)


def captions_options(help_text: str, *, several: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """--captions, and what says how it is to be read."""
    return together(
        click.option("--captions", type=Folder, required=True, multiple=several, help=help_text),
        click.option("--split", default=None, show_default="train, or all that the captions name", help="Which split, or what to call the only one."),
        click.option(
            "--split-list", "split_lists", multiple=True, metavar="SPLIT=FILE", help="A split's images, one name per line; once for each split."
        ),
        columns_option,
        click.option("--no-restval", is_flag=True, help="Of Karpathy's files: keep split restval apart; else it becomes part of train."),
    )


def pair(written: str, value: str) -> tuple[str, str]:
    """The two sides of NAME=VALUE."""
    name, equals, rest = value.partition("=")
    if not (name and equals and rest):
        raise click.UsageError(f"{written} {value}: two things with = between them are expected.")
    return name, rest


def chosen_columns(columns: tuple[str, ...]) -> dict[str, str]:
    """What :data:`columns_option` asks for."""
    from pipeline.captions.tables import USUAL

    roles = dict(pair("--column", value) for value in columns)
    if unknown := [role for role in roles if role not in USUAL]:
        raise click.UsageError(f"--column {unknown[0]}=...: the roles are {', '.join(USUAL)}.")
    return roles


def caption_source(captions: tuple[Path, ...], split_lists: tuple[str, ...], columns: tuple[str, ...], no_restval: bool) -> "CaptionSource":
    """What the options of :func:`captions_options` ask for."""
    from pipeline.captions.read import CaptionSource
    from shards.manifest import check_split_name

    lists = [pair("--split-list", value) for value in split_lists]
    return CaptionSource(
        paths=captions,
        split_lists=tuple((check_split_name(split), Path(file)) for split, file in lists),
        columns=chosen_columns(columns),
        restval=not no_restval,
    )


# How captions are made, for the commands that make them; :func:`chosen_decoding` takes what they were given.
decoding_options = together(
    click.option("--beam", type=int, default=1, help="Beam search with so many hypotheses; 1 is greedy."),
    click.option("--length-penalty", type=float, default=0.0, help="Beam search: above 0 longer captions count for more."),
    click.option("--block-ngrams", type=int, default=0, show_default="any may", help="No sequence of so many words comes twice in a caption."),
    click.option("--groups", type=int, default=1, help="Beam search: groups of --beam hypotheses that avoid each other's words."),
    click.option("--diversity", type=float, default=0.5, help="With --groups: how strongly they do."),
    click.option("--samples", type=int, default=0, help="Draw so many captions at random instead of searching."),
    click.option("--temperature", type=float, default=1.0, help="With --samples: below 1 likely words become likelier still."),
    click.option("--top-k", type=int, default=0, show_default="all", help="With --samples: only from the so many likeliest words."),
    click.option("--top-p", type=float, default=1.0, help="With --samples: only from the likeliest words that have this share together."),
    click.option("--seed", type=int, default=0, help="With --samples: the same seed draws the same captions."),
    click.option("--max-words", type=int, default=20, help="Captions are cut behind so many words."),
)


def chosen_decoding(settings: dict[str, Any]) -> "Decoding":
    """The decoding that the options of :func:`decoding_options` ask for."""
    from model.decoding import Decoding
    from shards.errors import InputError

    if settings["groups"] == 1 and typed("diversity"):
        raise click.UsageError("--diversity is for --groups: give 2 of these or more.")
    if settings["samples"] and typed("length_penalty"):
        raise click.UsageError("--length-penalty is for a search: --samples draws captions as they come.")
    try:
        return Decoding(**settings)
    except ValueError as error:
        said = re.sub(rf"`?\b({'|'.join(settings)})\b`?", r"`\1`", str(error))
        raise InputError(f"{said}.") from None


def _training_option(setting: "Field[Any]") -> Callable[[Any], Any]:
    kind, opposite = KINDS[setting.name], setting.metadata["opposite"]
    if setting.default is None:
        shown = setting.metadata["absent"]
    elif kind is bool:
        shown = opposite.removeprefix("--")
    else:
        shown = f"{setting.default:g}" if kind is float else setting.default
    return click.option(
        f"{option(setting.name)}/{opposite}" if kind is bool else option(setting.name),
        type=kind if isinstance(kind, type) else click.Choice(kind),
        default=None,
        help=f"{setting.metadata['purpose']} [default: {shown}]",
    )


# Each setting of :class:`pipeline.runs.train_config.TrainConfig`. What is not given is None, so that a recipe and a resumed run can tell it.
training_options = together(*(_training_option(setting) for setting in fields(TrainConfig)))


def typed(*names: str) -> list[str]:
    """Those of this command's options that were typed, by the names of their parameters."""
    context = click.get_current_context()
    there = [(parameter.name or "", parameter.opts[0]) for parameter in context.command.params]
    return [written for name, written in there if name in names and context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
