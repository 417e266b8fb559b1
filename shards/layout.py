"""Names of the files in the folder of a shard dataset."""

import re
from pathlib import Path
from typing import Any

from shards.errors import SettingsError

DATASET_FILE = "dataset.json"
REJECTS_FILE = "rejects.jsonl"
MIRROR_FILE = "remote.json"
SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,63}")
MAX_SHARDS = 10**6  # a shard's number has six digits
SHARD_FILE = re.compile(rf"({SPLIT_NAME.pattern})-(\d{{6}})\.(tar|json)")
# A tar that was made elsewhere. Its sidecar takes its name, which must not be that of another file of the dataset.
INDEXED_TAR = re.compile(rf"(?!(?:{Path(DATASET_FILE).stem}|{Path(MIRROR_FILE).stem})\.tar)[A-Za-z0-9][A-Za-z0-9_.-]{{0,199}}\.tar")


def shard_path(folder: Path, split: str, index: int) -> Path:
    """``folder/SPLIT-000123.tar``."""
    return folder / f"{split}-{index:06d}.tar"


def tar_path(folder: Path, split: str, summary: dict[str, Any], index: int) -> Path:
    """A shard's tar, by the summary of its split in ``dataset.json``. A tar that was made elsewhere keeps its own name."""
    return folder / summary["tars"][index] if "tars" in summary else shard_path(folder, split, index)


def sidecar_path(tar: Path) -> Path:
    """A tar's sidecar, next to it."""
    return tar.with_suffix(".json")


def records_path(tar: Path) -> Path:
    """The file next to a tar that holds its records: for a tar that was made elsewhere, and in a mirror, where the tar may be removed."""
    return tar.with_suffix(".records")


def check_split_name(name: str) -> str:
    """Return ``name`` if it is valid in file names and HDF5 groups.

    Raises:
        SettingsError: It is not.
    """
    if not SPLIT_NAME.fullmatch(name):
        raise SettingsError(f"`split` {name!r}: a split's name consists of letters, digits and underscores, at most 64.")
    return name
