"""What a path leads to instead of what was expected: the end of an error message, with the next step that fits.

A folder of photographs, of features or of a run is easily given where shards are wanted, and advice that does not look at it is wrong: shards
cannot be written into a folder that holds photographs.
"""

import difflib
import itertools
import os
from collections.abc import Iterable
from pathlib import Path

from shards.layout import DATASET_FILE
from shards.paths import IMAGE_SUFFIXES, shell_quoted

MAX_NAMES = 10_000
RUN_FILES = {"config.json", "vocab.json"}


def near_name(name: str, names: Iterable[str]) -> str:
    """A sentence that names the nearest of some names; empty if none is near. Begins with a space.

    >>> near_name("storng", ["tutorial", "strong"])
    ' Did you mean strong?'
    """
    near = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {near[0]}?" if near else ""


def did_you_mean(path: Path) -> str:
    """A sentence that names the entry of the path's folder whose name is nearest; empty if there is none. Begins with a space."""
    near = difflib.get_close_matches(path.name, _names(path.parent), n=1, cutoff=0.7)
    return f" Did you mean {path.parent / near[0]}?" if near and not path.exists() else ""


def instead_of_shards(path: Path) -> str:
    """What is at a path that is no shard dataset, and what to do."""
    make = "python cli.py shard --images {images} --captions CAPTIONS --out {out}"
    names = _names(path)
    if not path.exists():
        return f"no such folder.{did_you_mean(path)} Make a shard dataset with: {make.format(images='IMAGES', out=shell_quoted(path))}"
    if not path.is_dir():
        return "is a file. Give the folder of a shard dataset."
    if any(name.endswith(".h5") for name in names):
        return "holds feature files, not shards. Give it as features, or give the folder of the shards that they were made from."
    if set(names) >= RUN_FILES:
        return "holds a run, not shards. Give the folder of a shard dataset."
    problem = f"not a shard dataset (it has no {DATASET_FILE})."
    if any(name.endswith(".tar") for name in names):
        return f"{problem} To use tars that another program wrote: python cli.py index {shell_quoted(path)} --resize MODE"
    out = shell_quoted(path.with_name(f"{path.name or 'data'}-shards"))
    if any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        return f"{problem} It holds images. Make shards from them with: {make.format(images=shell_quoted(path), out=out)}"
    return f"{problem} Make one with: {make.format(images='IMAGES', out=out if names else shell_quoted(path))}"


def instead_of_features(path: Path) -> str:
    """What is at a path that is no folder of feature files, and what to do."""
    make = "python cli.py cache-features --shards {shards} --out {out}"
    names = _names(path)
    if not path.exists():
        return f"no such folder.{did_you_mean(path)} Make the feature files with: {make.format(shards='SHARDS', out=shell_quoted(path))}"
    if not path.is_dir():
        is_features = path.suffix == ".h5"
        return f"is a feature file. Give its folder: {path.parent}" if is_features else "is a file. Give a folder of feature files."
    if DATASET_FILE in names:
        made = make.format(shards=shell_quoted(path), out=shell_quoted(path.with_name(f"{path.name}-features")))
        return f"holds shards, not features. Give it as `shards`, or make features from it with: {made}"
    if set(names) >= RUN_FILES:
        return "holds a run, not features. Give a folder of feature files."
    return f"holds no feature files. Make them with: {make.format(shards='SHARDS', out=shell_quoted(path))}"


def instead_of_run(path: Path) -> str:
    """What is at a path that is no run, and what to do."""
    names = _names(path)
    make = "python cli.py train --features FEATURES --out {out}"
    if not path.exists():
        return f"no such run.{did_you_mean(path)} Train one with: {make.format(out=shell_quoted(path))}"
    if not path.is_dir():
        return "is a file, not a run. Give the folder of a run."
    if "checkpoints" in names and not (path / "config.json").exists():
        return "not a run (it has no config.json). Restore the file."
    runs = sorted(name for name in names if (path / name / "config.json").is_file())
    if runs:
        return f"not a run (it has no config.json), but a folder of runs. Did you mean {path / runs[0]}?"
    if DATASET_FILE in names or any(name.endswith(".h5") for name in names):
        return f"holds {'shards' if DATASET_FILE in names else 'features'}, not a run. Train one with: {make.format(out='runs/first')}"
    if path.name.startswith("step-") or path.name == "checkpoints":
        return f"not a run (it has no config.json). Did you mean {path.parents[1 if path.name.startswith('step-') else 0]}?"
    out = "runs/first" if any(not name.startswith(".") for name in names) else shell_quoted(path)
    return f"not a run (it has no config.json). Train one with: {make.format(out=out)}"


def no_split(place: str, split: str, available: list[str]) -> str:
    """The message about a split that a dataset or a folder of features does not have.

    Args:
        place: The dataset's place.
        split: The missing split.
        available: Its splits.
    """
    listed = ", ".join(sorted(available)) or "none"
    hold_out = f" A new dataset gets one from the images without a split with: python cli.py shard --holdout {split}=0.1"
    return (
        f"{place}: there is no split {split!r} (available: {listed}).{near_name(split, available)} Choose another `split`."
        f"{hold_out if split != 'train' else ''}"
    )


def _names(folder: Path) -> list[str]:
    """Some names in a folder; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in itertools.islice(entries, MAX_NAMES)]
    except (OSError, ValueError):
        return []
