"""Existing features and their captions -> feature files, as ``cache-features`` makes them.

Which network made the features is known only if it is declared. Otherwise a run that is trained on them can caption features, but not
images.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.encoder import feature_shape, mean_is_pooled
from model.feature_layout import GRID, POOLED, REGIONS
from pipeline.backbone.backbones import IMPORTED, KEPT_FILE, RANDOM, Network, open_backbone, wanted_crop
from pipeline.captions.languages import ENGLISH, language_rules, language_tag
from pipeline.captions.read import CaptionSource, SplitCaptions, first_captions, read_captions, splits_of
from pipeline.captions.records import CaptionedImage, ListedImage
from pipeline.captions.scripts import language_advice
from pipeline.execution.progress import Progress
from pipeline.features.feature_folder import check_feature_folder
from pipeline.features.npy_files import FeatureArrays, FeatureIndex, open_npy, padded, read_half
from pipeline.features.views import CENTER
from pipeline.images.decode import Resize
from shards.atomic import disk_errors, hold_lock
from shards.caption_table import CaptionTable, table_from_records
from shards.digests import json_digest
from shards.errors import InputError, MismatchError, SettingsError
from shards.feature_writer import write_features
from shards.features import FeatureFile, Provenance, feature_path, open_features
from shards.layout import REJECTS_FILE
from shards.output import Output
from shards.rejects import Reject, reject_line, write_rejects
from shards.versions import library_versions

CHUNK_IMAGES = 1000
UNKNOWN = "unknown"


@dataclass(frozen=True, kw_only=True)
class ImportedSplit:
    """One split's feature file; ``kept``: it existed already."""

    split: str
    path: Path
    images: int
    captions: int
    kept: bool


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """The result of an import.

    Attributes:
        dim: Features per image.
        network: The network that made them; its ``preprocessing`` is None if it was not declared.
        rejects: Number of inputs that were left out, by reason.
        positions: The largest number of positions of an image.
        zeros: Number of images whose features are all 0.
    """

    splits: tuple[ImportedSplit, ...]
    dim: int
    network: Network
    rejects: dict[str, int]
    positions: int
    zeros: int


@dataclass(frozen=True, kw_only=True)
class DeclaredNetwork:
    """The network that made imported features, and how the images were resized before.

    Attributes:
        backbone, weights: As for :func:`pipeline.backbone.backbones.open_backbone`, but not random.
        size, mode, filter: As for :class:`pipeline.images.decode.Resize`; by default images were squashed to the network's crop.

    Raises:
        InputError: Random weights.
    """

    backbone: str
    weights: str
    size: int | None = None
    mode: str | None = None
    filter: str | None = None

    def __post_init__(self) -> None:
        if self.weights == RANDOM:
            raise SettingsError("`weights` random: new random weights are not those that made the features. Give the weights file.")

    def resize(self) -> dict[str, Any]:
        """The fields of a :class:`pipeline.images.decode.Resize` that were declared."""
        return {name: value for name in ("size", "mode", "filter") if (value := getattr(self, name)) is not None}


def declared_network(*, backbone: str | None, weights: str | None, size: int | None, mode: str | None, filter: str | None) -> DeclaredNetwork | None:
    """The network that options declare; None if they declare none.

    Raises:
        InputError: An incomplete declaration.
    """
    if (backbone is None) != (weights is None):
        given, missing = ("backbone", "weights") if weights is None else ("weights", "backbone")
        raise SettingsError(f"`{given}` was given without `{missing}`. Both declare the network that made the features: give both, or omit both.")
    if backbone is None or weights is None:
        if (size, mode, filter) != (None, None, None):
            raise SettingsError("`size`, `resize` and `filter` describe how images were prepared for a network: give `backbone` and `weights` too.")
        return None
    return DeclaredNetwork(backbone=backbone, weights=weights, size=size, mode=mode, filter=filter)


@dataclass(frozen=True, kw_only=True)
class _SplitImport:
    """A split's images in order, the places of their features, and the captions' language."""

    split: str
    language: str
    records: tuple[CaptionedImage, ...]
    places: tuple[int, ...]


def import_features(
    *,
    npy: Path,
    captions: CaptionSource,
    out: Path,
    split: str | None = None,
    language: str = ENGLISH,
    declared: DeclaredNetwork | None = None,
    report: Callable[[str], None] = lambda _: None,
    quiet: bool = True,
) -> ImportSummary:
    """Write ``OUT/SPLIT.h5`` for every split that the captions name, and ``OUT/rejects.jsonl`` for what was left out.

    Args:
        npy: An array, float (images, dim) or (images, positions, dim), whose row i belongs to the image with imgid i, or to the i-th image of a
            file without imgids; or a folder with one file per image, named after the image's file name (with or without extension) or its id.
            Its files may have different numbers of positions.
        captions: One captions file of any form.
        out: A new or empty folder, or one with the same import.
        split: As for :func:`pipeline.captions.read.splits_of`.
        language: The captions' language, as :func:`pipeline.captions.languages.language_rules` takes it.
        declared: The network that made the features, if it is known.
        report: Takes a line if the captions seem to be in another language.

    Raises:
        InputError: Missing or malformed input, no package that splits this language, features that are NaN or inf or do not fit into
            float16, or nothing left to write.
        MismatchError: The network has a different number of features; or ``out`` holds features of another network, or of other input.
        OccupiedError: ``out`` holds something else, or is being written to.
        ResourceError: Weights cannot be downloaded, disk full, not allowed.
    """
    language_rules(language).check_installed()
    check_feature_folder(Output(folder=out), REJECTS_FILE)
    if len(captions.paths) != 1:
        raise SettingsError(f"{captions}: give one `captions` only: the rows of a feature matrix are in the order of its images.")
    read = read_captions(captions)
    splits = splits_of(read, captions, split)
    for advice in filter(None, [language_advice(first_captions(splits.values()), language)]):
        report(advice)
    arrays, found = open_npy(npy, read.listed)
    plans, rejects = _plan(splits, read.listed, arrays, found, language_tag(language))
    zeros, counts = _check_all(arrays, plans, quiet=quiet)
    source, positions = arrays.sha256(), max(counts.values(), default=1)
    if declared is not None:
        network, averages = _opened_network(arrays, declared, _layout(set(counts.values())), kept=out / KEPT_FILE)
    else:
        layout = POOLED if positions == 1 else REGIONS
        network, averages = Network(backbone=IMPORTED, weights=IMPORTED, weights_sha256=source, preprocessing=None, layout=layout), True
    with hold_lock(out, "cache", "importing features"):
        provenances = {plan.split: _provenance(plan, network, averages, arrays, source) for plan in plans}
        there = _existing_files(out, provenances)
        write_rejects(out, [reject_line(split, reject) for split, reject in rejects])
        if not plans:
            totals = ", ".join(f"{count} {reason}" for reason, count in _reasons(rejects).items()) or "it lists no images"
            raise InputError(
                f"{captions}: none of its images could be used ({totals}). See {out / REJECTS_FILE}, and check that `npy` {npy} belongs to it."
            )
        files = tuple(_import_split(plan, out, arrays, counts, provenances[plan.split], there.get(plan.split), quiet=quiet) for plan in plans)
    return ImportSummary(splits=files, positions=positions, dim=arrays.dim, network=network, rejects=_reasons(rejects), zeros=zeros)


def _layout(counts: set[int]) -> str:
    """The layout of a network's features, by the numbers of positions of all images.

    Raises:
        SettingsError: No network makes them.
    """
    side = math.isqrt(max(counts, default=1))
    if counts - {side * side}:
        shown = ", ".join(map(str, sorted(counts)[:5]))
        raise SettingsError(f"`backbone`: a network gives each image the positions of a square grid, but these features have {shown}. Omit it.")
    return POOLED if side == 1 else f"{GRID}:{side}"


def _opened_network(arrays: FeatureArrays, declared: DeclaredNetwork, layout: str, *, kept: Path) -> tuple[Network, bool]:
    """Open the declared network. Without the images, only the number of its features can be checked.

    Returns:
        The network, and whether the mean over its positions is what it pools.
    """
    backbone, weights = declared.backbone, declared.weights
    crop = wanted_crop(backbone, weights)
    resize = Resize(**{"size": crop, **declared.resize()})
    if resize.size < crop:
        raise InputError(f"`size` {resize.size}: these weights of {backbone} expect a crop of {crop} pixels. Give the size before the crop.")
    network, frozen = open_backbone(backbone=backbone, weights=weights, resize=asdict(resize), kept=kept, layout=layout, sample=lambda _: ())
    _, dim = feature_shape(frozen)
    if dim != arrays.dim:
        raise MismatchError(f"{arrays.path}: has {arrays.dim} features per image, {backbone} has {dim}. Declare the network that made them, or none.")
    return network, mean_is_pooled(frozen)


def _plan(
    splits: dict[str, SplitCaptions], images: Sequence[ListedImage], arrays: FeatureArrays, found: FeatureIndex, language: str
) -> tuple[list[_SplitImport], list[tuple[str, Reject]]]:
    """The splits that have images with captions and features, and what is left out as (split, reject), features without image last."""
    listed = {image.image_id: image for image in images}
    plans = []
    rejects = []
    for split, captions in splits.items():
        rejects += [(split, reject) for reject in captions.rejects]
        usable = [record for record in captions.records if record.image_id in found.places]
        for record in captions.records:
            if record.image_id not in found.places:
                message = arrays.missing(listed[record.image_id])
                rejects.append((split, Reject(file=record.file_name, reason="missing_features", message=message)))
        if usable:
            places = tuple(found.places[record.image_id] for record in usable)
            plans.append(_SplitImport(split=split, language=language, records=tuple(usable), places=places))
    rejects += [("", reject) for reject in found.unclaimed]
    return plans, rejects


def _reasons(rejects: Sequence[tuple[str, Reject]]) -> dict[str, int]:
    return dict(sorted(Counter(reject.reason for _, reject in rejects).items()))


def _check_all(arrays: FeatureArrays, plans: Sequence[_SplitImport], *, quiet: bool) -> tuple[int, dict[int, int]]:
    """Read all features once before anything is written.

    Returns:
        The number of images whose features are all 0, and by place the number of positions.
    """
    places = sorted(place for plan in plans for place in plan.places)
    zeros, counts = 0, dict[int, int]()
    with Progress("Checking features", total=len(places), unit="images", quiet=quiet) as progress:
        for start in range(0, len(places), CHUNK_IMAGES):
            chunk = places[start : start + CHUNK_IMAGES]
            for place, features in zip(chunk, read_half(arrays, chunk), strict=True):
                zeros += not features.any()
                counts[place] = len(features)
            progress.advance(len(chunk))
    return zeros, counts


def _provenance(plan: _SplitImport, network: Network, averages: bool, arrays: FeatureArrays, source: str) -> Provenance:
    rules = language_rules(plan.language)
    images = [
        [record.image_id, record.file_name, arrays.label(place), [[caption.id, caption.text] for caption in record.captions]]
        for record, place in zip(plan.records, plan.places, strict=True)
    ]
    return Provenance(
        backbone=network.backbone,
        weights=network.weights,
        weights_sha256=network.weights_sha256,
        preprocessing=network.content()["preprocessing"],
        layout=network.layout,
        mean_is_pooled=averages,
        views=(CENTER,),
        precision=UNKNOWN,
        arithmetic={"imported_from": arrays.path.name, "imported_sha256": source, "imported_dtype": arrays.dtype()},
        split=plan.split,
        language=plan.language,
        split_digest=json_digest([source, rules.rule, images]),
        versions=library_versions("numpy", *rules.packages, "h5py"),
    )


def _existing_files(out: Path, provenances: dict[str, Provenance]) -> dict[str, FeatureFile]:
    """The feature files in ``out`` by split; MismatchError if one is not of this import."""
    with disk_errors(out):
        files = sorted(path for path in out.glob("*.h5") if not path.name.startswith("."))
    there = {}
    for path in files:
        provenance = provenances.get(path.stem)
        if provenance is None:
            raise MismatchError(f"{path}: not a split of this import (which makes {', '.join(provenances) or 'none'}). Choose another `out`.")
        file = open_features(path)
        holds, asked = ({**each.network(), "digest of features and captions": each.split_digest} for each in (file.provenance, provenance))
        for what, value in asked.items():
            if holds[what] != value:
                raise MismatchError(
                    f"{path}: holds other features: {what} is {holds[what]}, not {value}. Choose another `out`, or delete the folder."
                )
        there[path.stem] = file
    return there


def _import_split(
    plan: _SplitImport,
    out: Path,
    arrays: FeatureArrays,
    counts: Mapping[int, int],
    provenance: Provenance,
    there: FeatureFile | None,
    *,
    quiet: bool,
) -> ImportedSplit:
    path = feature_path(out, plan.split)
    if there is not None:
        return ImportedSplit(split=plan.split, path=path, images=there.table.images, captions=there.table.captions, kept=True)
    positions = max(counts.values())
    with Progress(f"Importing {plan.split}", total=len(plan.places), unit="images", quiet=quiet) as progress:

        def read(places: Sequence[int]) -> NDArray[np.float16]:
            progress.advance(len(places))
            return padded(read_half(arrays, places), positions)[:, np.newaxis]

        starts = range(0, len(plan.places), CHUNK_IMAGES)
        chunks = [(functools.partial(read, plan.places[start : start + CHUNK_IMAGES]), _table(plan, start)) for start in starts]
        shape, own = (positions, arrays.dim), [counts[place] for place in plan.places]
        images, captions = write_features(path, lambda: chunks, shape=shape, provenance=provenance, counts=own)
    return ImportedSplit(split=plan.split, path=path, images=images, captions=captions, kept=False)


def _table(plan: _SplitImport, start: int) -> CaptionTable:
    """The captions of the chunk of images that begins at ``start``."""
    records = enumerate(plan.records[start : start + CHUNK_IMAGES], start)
    rules = language_rules(plan.language)
    return table_from_records(
        [
            (
                (f"{position:09d}", {"image_id": record.image_id, "file_name": record.file_name, "captions": record.tokenized(rules)})
                for position, record in records
            )
        ],
        language=plan.language,
    )
