"""Backbones: from a name and weights to the frozen network, and back from what an artefact recorded."""

import difflib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model.backbone_sources import WeightsInfo, source_name, source_of
from model.encoder import FrozenBackbone, backbone_state, build_backbone, calibrate, feature_shape, with_crop
from model.feature_layout import POOLED, check_layout
from model.limits import FILTERS, MAX_SIDE, RESIZE_MODES, check_type
from model.networks import (
    backbone_names,
    describe,
    download_state,
    info_of_file,
    published_weights,
    random_info,
    random_state,
    state_digest,
    weights_digest,
    weights_names,
)
from model.preprocessing import Preprocessing
from pipeline.backbone.weights_files import read_weights
from shards.atomic import committed_file
from shards.errors import DamageError, InputError, MismatchError, ResourceError, SettingsError, first_line
from shards.features import FeatureFile, Provenance

RANDOM = "random"
IMPORTED = "imported"  # features whose network was not declared
KEPT_FILE = "backbone.safetensors"


@dataclass(frozen=True, kw_only=True)
class Network:
    """Which network made features, as artefacts record it: enough to build it again, and to refuse another one.

    For imported features whose network was not declared, ``backbone`` and ``weights`` are :data:`IMPORTED`, the digest is that of their
    file, and there is no preprocessing.
    """

    backbone: str
    weights: str
    weights_sha256: str
    preprocessing: Preprocessing | None
    layout: str = POOLED

    def sides(self, other: "Network") -> list[tuple[str, object, object]]:
        """What must be equal for both to make the same features: (what it is, here, in ``other``)."""
        return [
            ("backbone", self.backbone, other.backbone),
            ("digest of the backbone's weights", self.weights_sha256, other.weights_sha256),
            ("preprocessing", self.preprocessing, other.preprocessing),
            ("layout of the features", self.layout, other.layout),
        ]

    def declared_preprocessing(self) -> Preprocessing:
        """How images are prepared for the network.

        Raises:
            InputError: The network was not declared.
        """
        if self.preprocessing is None:
            raise _undeclared()
        return self.preprocessing

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Self:
        """From :meth:`content`; raises KeyError, TypeError or ValueError for anything else."""
        names = {name: content[name] for name in ("backbone", "weights", "weights_sha256", "layout")}
        for name, value in names.items():
            check_type(name, value, str)
        check_layout(names["layout"])
        return cls(**names, preprocessing=parse_preprocessing(content["preprocessing"]))


def _undeclared() -> InputError:
    return InputError(
        "The features were imported without declaring their network, which images would have to pass through. Import them again with "
        "python cli.py import-features --backbone NAME --weights FILE, and train on those."
    )


def recorded_network(provenance: Provenance) -> Network:
    """The network that made a feature file."""
    return Network(
        backbone=provenance.backbone,
        weights=provenance.weights,
        weights_sha256=provenance.weights_sha256,
        preprocessing=parse_preprocessing(provenance.preprocessing),
        layout=provenance.layout,
    )


def pooled_network(file: FeatureFile) -> Network:
    """The network of a feature file, as a decoder of one vector uses it: with pooled features, for which the mean over the positions stands.

    Raises:
        MismatchError: The mean over the positions is something else.
    """
    provenance = file.provenance
    if not provenance.mean_is_pooled:
        raise MismatchError(
            f"{file.path}: holds {provenance.layout} features of {provenance.backbone}, whose mean over the positions is not what this network "
            "pools: captions of photographs would be made from other numbers. Cache them with: python cli.py cache-features --features pooled, "
            "or train a `decoder` that sees the positions."
        )
    return replace(recorded_network(provenance), layout=POOLED)


def parse_preprocessing(content: dict[str, Any] | None) -> Preprocessing | None:
    """From JSON; raises KeyError, TypeError or ValueError for anything else."""
    if content is None:
        return None
    for name in ("mean", "std"):
        check_type(name, content[name], list)
        for value in content[name]:
            check_type(name, value, float)
    mean, std = ((float(red), float(green), float(blue)) for red, green, blue in (content["mean"], content["std"]))
    return Preprocessing(**{name: content[name] for name in ("size", "mode", "filter", "crop")}, mean=mean, std=std)


def list_backbones(pattern: str = "") -> Iterator[tuple[str, int, int, list[str]]]:
    """Name, features per image, frozen parameters and published weights of each network whose name contains ``pattern``.

    ``timm:PATTERN`` lists timm's instead of torchvision's.

    Raises:
        InputError: No network matches, or the library is not installed.
    """
    with _library_of(pattern):
        names = backbone_names(pattern)
    if not names:
        guess = _near_backbones(pattern)
        raise InputError(f"{pattern}: no classification network of {source_name(pattern)} has this in its name. {guess}Omit it to list all.")
    return ((name, *describe(name), weights_names(name)) for name in names)


def _near_backbones(name: str) -> str:
    near = difflib.get_close_matches(name, backbone_names(source_of(name).prefix), n=4, cutoff=0.4)
    return f"Did you mean {', '.join(near)}? " if near else ""


@contextmanager
def _library_of(backbone: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        library, install = source_name(backbone), source_of(backbone).install
        raise InputError(f"{backbone}: needs {library} ({error}). {f'Install it with: {install}' if install else ''}".rstrip()) from None


def known_weights(backbone: str) -> list[str]:
    """Names of a network's published weights, the default first.

    Raises:
        InputError: There is no such network (names similar ones), or it is the undeclared one of imported features.
    """
    if backbone == IMPORTED:
        raise _undeclared()
    try:
        with _library_of(backbone):
            return weights_names(backbone)
    except KeyError:
        library, prefix = source_name(backbone), source_of(backbone).prefix
        raise SettingsError(
            f"`backbone` {backbone}: {library} has no classification network of this name{' with these weights' if '.' in backbone else ''}. "
            f"{_near_backbones(backbone)}List them with: python cli.py backbones {prefix}".rstrip()
        ) from None


def open_backbone(
    *,
    backbone: str,
    weights: str | None,
    resize: dict[str, Any],
    kept: Path,
    sample: Callable[[int], Iterable[Tensor]],
    layout: str = POOLED,
    seed: int = 0,
) -> tuple[Network, FrozenBackbone]:
    """Find a network's weights and freeze it.

    Args:
        backbone: torchvision's name of a classification network, or ``timm:NAME``.
        weights: A published name, ``random``, or the path of a .pth or .safetensors file; None takes the default published ones.
        resize: The shards' resize settings (size, mode, filter).
        kept: The file of random weights; read if it exists, else written.
        layout: Of the features, as in :mod:`model.feature_layout`.
        sample: Returns, for a crop size, batches of uint8 (images, crop, crop, 3) that calibrate random weights.

    Raises:
        InputError: Unknown names, a weights file that is missing or does not fit, shards too small for the crop.
        ResourceError: Published weights cannot be downloaded.
        MismatchError: The stored random weights are of another network.
    """
    if weights == RANDOM:
        known_weights(backbone)
        return _random_backbone(backbone, resize, kept, sample, layout, seed)
    weights, info, path = _find_weights(backbone, weights)
    # Before the download, since the shards may be too small for these weights.
    preprocessing = _fit(info, resize)
    state = _download(backbone, weights) if path is None else read_weights(path)
    frozen = _build(backbone, weights, state, preprocessing, layout)
    digest = weights_digest(backbone, state)
    return Network(backbone=backbone, weights=weights, weights_sha256=digest, preprocessing=preprocessing, layout=layout), frozen


def wanted_crop(backbone: str, weights: str) -> int:
    """Side in pixels of the crop that weights expect.

    Raises:
        InputError: Unknown names, or no such file.
    """
    return _find_weights(backbone, weights)[1].crop


def _find_weights(backbone: str, weights: str | None) -> tuple[str, WeightsInfo, Path | None]:
    """The name of weights as artefacts record it, what they expect, and their file; None for published ones."""
    published = known_weights(backbone)
    choices = ", ".join([*published[:6], RANDOM]) + ", or a path of a .pth or .safetensors file"
    if weights is None:
        if not published:
            raise SettingsError(f"`backbone` {backbone}: has no published weights. Choose `weights`: {choices}.")
        weights = published[0]
    if weights in published:
        return weights, published_weights(backbone, weights), None
    path = Path(weights)
    if not path.is_file():
        raise InputError(f"`weights` {weights}: neither a file nor published weights of {backbone}. Choose {choices}.")
    return str(path.resolve()), info_of_file(backbone, path.name), path


def reopen_backbone(network: Network, *, kept: Path, weights: str | None = None) -> FrozenBackbone:
    """Build the network that an artefact recorded.

    Args:
        kept: The artefact's own copy of random weights.
        weights: Where the same weights are now, if they are no longer at the recorded path.

    Raises:
        InputError, ResourceError: The weights cannot be found or downloaded.
        MismatchError: They are not the recorded ones.
    """
    preprocessing = network.declared_preprocessing()
    if network.weights == RANDOM:
        state, source = _read_kept(kept, network.backbone), str(kept)
    else:
        source = weights or network.weights
        try:
            published = known_weights(network.backbone)
        except SettingsError as error:  # by another version of the library; nobody has typed the name
            raise InputError(str(error)) from None
        if source in published:
            state = _download(network.backbone, source)
        elif Path(source).is_file():
            state = read_weights(Path(source))
        else:
            raise InputError(
                f"{source}: the weights that made this run's features are no longer there (SHA-256 of their tensors: "
                f"{network.weights_sha256}). Restore the file, or set `weights` to its new path."
            )
    found = state_digest(state) if network.weights == RANDOM else weights_digest(network.backbone, state)
    if found != network.weights_sha256:
        raise MismatchError(f"{source}: these weights have digest {found}; the features were made with {network.weights_sha256}.")
    return _build(network.backbone, source, state, preprocessing, network.layout)


def _fit(info: WeightsInfo, resize: dict[str, Any]) -> Preprocessing:
    if resize["size"] > MAX_SIDE or resize["mode"] not in RESIZE_MODES or resize["filter"] not in FILTERS:
        raise InputError(
            f"No images are resized with `size` {resize['size']}, `mode` {resize['mode']} and `filter` {resize['filter']}: the size is at most "
            f"{MAX_SIDE} pixels, the mode one of {', '.join(RESIZE_MODES)}, the filter one of {', '.join(FILTERS)}."
        )
    try:
        return with_crop(info, size=resize["size"], mode=resize["mode"], filter=resize["filter"])
    except ValueError:
        raise InputError(
            f"These weights expect a crop of {info.crop} pixels, but the shards hold images of {resize['size']}. Make the shards again with "
            f"`size` {max(256, info.crop * 8 // 7)} or more, or choose another `backbone`."
        ) from None


def _build(backbone: str, source: str, state: dict[str, Tensor], preprocessing: Preprocessing, layout: str) -> FrozenBackbone:
    """Build a network and test it on one image."""
    try:
        frozen = build_backbone(backbone, state, preprocessing, layout)
    except ValueError as error:
        raise InputError(f"{source}: these weights do not fit {backbone}. {error}. Choose weights of this network.") from None
    except (RuntimeError, AssertionError) as error:
        raise _crop_error(backbone, preprocessing, error) from None
    try:
        feature_shape(frozen)
    except ValueError as error:
        if layout == POOLED:
            raise _crop_error(backbone, preprocessing, error) from None
        raise InputError(f"{backbone}: has no {layout} features: {error}.") from None
    except (RuntimeError, AssertionError) as error:
        raise _crop_error(backbone, preprocessing, error) from None
    return frozen


def _crop_error(backbone: str, preprocessing: Preprocessing, error: Exception) -> InputError:
    crop = preprocessing.crop
    return InputError(f"{backbone} cannot take images of {crop} pixels ({first_line(error)}). Make the shards again with a larger `size`.")


def _download(backbone: str, name: str) -> dict[str, Tensor]:
    try:
        return download_state(backbone, name)
    except (OSError, RuntimeError) as error:
        raise ResourceError(
            f"The weights {name} of {backbone} could not be downloaded ({error}). Without network access, set `weights` to the path of a "
            ".pth or .safetensors file, or to random for experiments whose captions do not matter."
        ) from None


def _random_backbone(
    backbone: str, resize: dict[str, Any], kept: Path, sample: Callable[[int], Iterable[Tensor]], layout: str, seed: int
) -> tuple[Network, FrozenBackbone]:
    preprocessing = _fit(random_info(int(resize["size"])), resize)
    if kept.is_file():
        frozen = _build(backbone, str(kept), _read_kept(kept, backbone), preprocessing, layout)
    else:
        try:
            state = random_state(backbone, seed=seed, crop=preprocessing.crop)
        except (RuntimeError, AssertionError) as error:
            raise _crop_error(backbone, preprocessing, error) from None
        frozen = _build(backbone, RANDOM, state, preprocessing, layout)
        calibrate(frozen, sample(preprocessing.crop))
        keep_weights(frozen, backbone, kept)
    digest = state_digest(backbone_state(frozen))
    return Network(backbone=backbone, weights=RANDOM, weights_sha256=digest, preprocessing=preprocessing, layout=layout), frozen


def keep_weights(frozen: FrozenBackbone, backbone: str, path: Path) -> None:
    """Commit random weights next to what was made with them."""
    with committed_file(path) as file:
        file.write(save(backbone_state(frozen), metadata={"backbone": backbone}))


def _read_kept(path: Path, backbone: str) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            made_for = (file.metadata() or {}).get("backbone")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise DamageError(f"{path}: the random backbone's weights are missing. Cache the features again into a new folder.") from None
    except (SafetensorError, OSError) as error:
        raise DamageError(f"{path}: damaged weights ({error}). Cache the features again into a new folder.") from None
    if made_for != backbone:
        raise MismatchError(f"{path}: holds random weights of {made_for}, not of {backbone}. Choose another `out`.")
    return state
