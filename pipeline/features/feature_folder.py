"""The folder of feature files: what may be in it, and whether a file in it is the one that is asked for."""

import re
from pathlib import Path

from pipeline.backbone.backbones import KEPT_FILE, Network
from pipeline.features.previews import ENDING, previews_path
from shards.dataset import Split
from shards.errors import MismatchError, OccupiedError
from shards.features import FeatureFile, Provenance, feature_path, open_features
from shards.layout import SPLIT_NAME
from shards.output import Output

FILE_OF_A_SPLIT = re.compile(rf"{SPLIT_NAME.pattern}(\.h5|{re.escape(ENDING)})")


def check_feature_folder(output: Output, *also: str) -> None:
    """Check that an output folder holds only feature files, what belongs to them, and files named ``also``.

    Raises:
        OccupiedError: It holds something else; names one such file.
    """
    out = output.folder
    if out.exists() and not out.is_dir():
        raise OccupiedError(f"{out}: is a file. Choose a new or empty folder as `out`.")
    others = [n for n in output.names() if not n.startswith(".") and n not in (KEPT_FILE, *also) and not FILE_OF_A_SPLIT.fullmatch(n)]
    if others:
        raise OccupiedError(f"{out}: holds other files than features ({others[0]}). Choose a new or empty folder as `out`.")


def files_of_split(split: str) -> tuple[str, str]:
    """The names of a split's feature file and of its previews."""
    folder = Path()
    return feature_path(folder, split).name, previews_path(folder, split).name


def existing_features(split: Split, out: Path, network: Network, views: tuple[str, ...], precision: str) -> FeatureFile | None:
    """The split's feature file, if there is one.

    Raises:
        MismatchError: It was made from other shards, or in another way than is asked for; names both sides.
    """
    target = feature_path(out, split.name)
    if not target.is_file():
        return None
    file = open_features(target)
    check_made_from(file, split)
    for what, found, asked in differences(file.provenance, network, views, precision):
        raise MismatchError(f"{target}: holds features with another {what}: {found}, not {asked}. Choose another `out`.")
    return file


def differences(found: Provenance, network: Network, views: tuple[str, ...], precision: str) -> list[tuple[str, str, str]]:
    """How features differ from those that are asked for: (what differs, as found, as asked for)."""
    sides = [
        ("backbone", found.backbone, network.backbone),
        ("digest of the weights", found.weights_sha256, network.weights_sha256),
        ("preprocessing", f"{found.preprocessing}", f"{network.content()['preprocessing']}"),
        ("layout", found.layout, network.layout),
        ("views", ", ".join(found.views), ", ".join(views)),
        ("precision", found.precision, found.precision if precision == "auto" else precision),
    ]
    return [side for side in sides if side[1] != side[2]]


def check_made_from(features: FeatureFile, split: Split) -> None:
    """Check that a feature file was made from these shards.

    Raises:
        MismatchError: It was made from others; names both digests.
    """
    if features.provenance.split_digest != split.digest:
        raise MismatchError(
            f"{features.path}: was made from shards with digest {features.provenance.split_digest}; split {split.name!r} of "
            f"{split.folder} has {split.digest}. Delete it, or choose another `out`, and cache again."
        )
