"""What a training can be told: each setting once, with its default, its limits and what it is for.

The command line makes its options of this, :mod:`pipeline.runs.recipes` reads files of it, runs record it. Imports nothing heavy, so that ``--help``
answers at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from model.decoder_config import DECODERS, DecoderConfig, ImageInput
from shards.errors import InputError, OnError

MAX_LR = 1e6
MAX_COUNT = 2**31 - 1
OF_CROSS_ENTROPY = ("label_smoothing", "scheduled_sampling", "accumulate")


class Limits(NamedTuple):
    """What a number has to be, as a test and in words."""

    hold: Callable[[float], bool]
    words: str


COUNT = Limits(lambda value: 1 <= value <= MAX_COUNT, f"at least 1, and at most {MAX_COUNT}")
AMOUNT = Limits(lambda value: 0 <= value <= MAX_COUNT, f"at least 0, and at most {MAX_COUNT}")
SHARE = Limits(lambda value: 0 <= value < 1, "at least 0 and below 1")
FACTOR = Limits(lambda value: 0 < value <= 1, "greater than 0, and at most 1")
RATE = Limits(lambda value: 0 < value <= MAX_LR, f"greater than 0, and at most {MAX_LR:g}")
MINUTES = Limits(lambda value: 0 <= value < math.inf, "0 (never by the clock) or more")
# BatchNorm cannot normalise a single image.
BATCH = Limits(lambda value: 2 <= value <= MAX_COUNT, f"at least 2, for BatchNorm to normalise, and at most {MAX_COUNT}")


def setting(default: Any, purpose: str, limits: Limits | None = None, *, absent: str | None = None, opposite: str | None = None) -> Any:
    """A field of :class:`TrainConfig`.

    Args:
        purpose: One sentence for ``--help``.
        absent: Where the default is None: what that comes to.
        opposite: Of a switch: the option that says no.
    """
    return field(default=default, metadata={"purpose": purpose, "limits": limits, "absent": absent, "opposite": opposite})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training's settings; the defaults are the tutorial's recipe. docs/recipes.md has the sources of those that come from papers.

    Attributes:
        recipe: The recipe that the settings came from; what else was said stands in its field.
        batch_size: Units per step, over all processes.
        lr: The learning rate of Adam (Kingma and Ba, 2015); with ``weight_decay`` that of AdamW (Loshchilov and Hutter, 2019).
        schedule: ``constant``; ``step``: times ``lr_decay`` after every ``lr_decay_epochs`` epochs; ``cosine``: down to 0 (Loshchilov and
            Hutter, 2017, without restarts).
        warmup_steps: Steps in which the rate rises to what the schedule says (Goyal et al., 2017).
        weight_decay: What all weights of matrices lose each step, times the learning rate; biases and BatchNorm's scales lose nothing.
        clip_norm: The gradients' norm is cut to this (Pascanu et al., 2013).
        label_smoothing, scheduled_sampling: As for :meth:`model.captioner.Captioner.forward`. The share of own words rises evenly from 0 over the
            first ``scheduled_sampling_epochs`` epochs.
        average_last: As in Izmailov et al., 2018, "Averaging weights leads to wider optima and better generalization"; see
            :mod:`pipeline.training.averaging`.
        self_critical: Rennie et al., 2017; see :mod:`pipeline.training.self_critical`.
        precision: What ``auto`` came to is what a run records.
        val_images: Spread over all of the split.
        decoder ... tie_weights: As for :class:`model.decoder_config.DecoderConfig`.
    """

    recipe: str = setting("tutorial", "tutorial, strong, or self-critical: what the options below are, where they are not given.")
    self_critical: bool = setting(
        False,
        "Train for CIDEr-D of drawn captions, from a run that speaks already (--from), instead of for the captions' words.",
        opposite="--cross-entropy",
    )
    samples: int = setting(5, "With --self-critical: captions drawn of each image.", COUNT)
    min_count: int = setting(4, "Without --vocab: keep words that occur this often.", COUNT)
    epochs: int = setting(5, "Passes over all captions.", COUNT)
    batch_size: int = setting(128, "Units per step: images with up to --captions-per-image captions.", BATCH)
    lr: float = setting(1e-3, "Adam's learning rate.", RATE)
    schedule: Literal["constant", "step", "cosine"] = setting(
        "constant", "How the rate changes: step: by --lr-decay every --lr-decay-epochs; cosine: down to 0 at the end."
    )
    lr_decay: float = setting(0.8, "With --schedule step: what the rate is multiplied by.", FACTOR)
    lr_decay_epochs: int = setting(3, "With --schedule step: epochs between two falls.", COUNT)
    warmup_steps: int = setting(0, "Steps in which the rate rises from nearly 0.", AMOUNT)
    weight_decay: float = setting(0.0, "AdamW's decay of matrices.", AMOUNT)
    clip_norm: float = setting(0.0, "Cut the gradients' norm to this; 0: never.", AMOUNT)
    label_smoothing: float = setting(0.0, "Share of each target that all words have in common.", SHARE)
    scheduled_sampling: float = setting(0.0, "Scheduled sampling: share of input words that the model draws itself.", SHARE)
    scheduled_sampling_epochs: int = setting(10, "Epochs in which that share rises from 0.", COUNT)
    patience: int | None = setting(None, "End after so many epochs without better captions of val.", COUNT, absent="never")
    average_last: int | None = setting(None, "Caption with the mean of the weights at the ends of so many last epochs.", COUNT, absent="never")
    decoder: str = setting(DecoderConfig.decoder, f"The decoder: {', '.join(DECODERS)}.")
    embedding_dim: int = setting(DecoderConfig.embedding_dim, "Size of word and image embeddings.", COUNT)
    hidden_dim: int = setting(DecoderConfig.hidden_dim, "Size of the LSTM's state.", COUNT)
    layers: int = setting(DecoderConfig.layers, "LSTM layers.", COUNT)
    feature_dropout: float = setting(DecoderConfig.feature_dropout, "Share of an image's features that a step leaves out.", SHARE)
    input_dropout: float = setting(DecoderConfig.input_dropout, "Share of the LSTM's inputs that a step leaves out.", SHARE)
    output_dropout: float = setting(DecoderConfig.output_dropout, "Share of the LSTM's outputs that a step leaves out, between layers too.", SHARE)
    image_input: ImageInput = setting(DecoderConfig.image_input, "The image is the LSTM's first input, or stands beside every word too.")
    tie_weights: bool = setting(DecoderConfig.tie_weights, "Scores of words are products with their own embeddings.", opposite="--no-tie-weights")
    captions_per_image: int = setting(1, "Captions that share one image in a step.", COUNT)
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "ComputedBackbone of the decoder, and of the network beside it; auto: bf16 where the device does it well."
    )
    accumulate: int = setting(1, "Pieces of a batch that go through the decoder one by one, for memory.", COUNT)
    checkpoint_minutes: float = setting(10.0, "Minutes between checkpoints; 0: only by steps and at the end.", MINUTES)
    checkpoint_every: int | None = setting(None, "Steps between checkpoints, beside those by the clock.", COUNT, absent="by the clock alone")
    keep_checkpoints: int = setting(3, "How many of the newest are kept, beside the best.", COUNT)
    val_images: int = setting(5000, "Val images that are captioned and scored after each epoch.", COUNT)
    log_every: int = setting(10, "Steps between lines of metrics.jsonl.", COUNT)
    seed: int = setting(0, "Of initial weights and of the order of training.", AMOUNT)
    augment: Literal["tutorial", "none"] = setting("tutorial", "With --shards: random crop and flip, or none.")
    on_error: OnError = setting("fail", "With --shards: what to do about damaged samples; skipped ones are counted and named.")

    def __post_init__(self) -> None:
        for known in fields(self):
            value, limits, kind = getattr(self, known.name), known.metadata["limits"], KINDS[known.name]
            if value is None and known.default is None:
                continue
            if not of_its_type(known.name, value):
                raise InputError(f"{option(known.name)} {value!r}: must be of type {kind_name(known.name)}.")
            if not isinstance(kind, type) and value not in kind:
                raise InputError(f"{option(known.name)} {value}: must be {', '.join(kind[:-1])} or {kind[-1]}.")
            if limits is not None and not limits.hold(value):
                raise InputError(f"{option(known.name)} {value}: must be {limits.words}.")
        if self.decoder not in DECODERS:
            raise InputError(f"`decoder` {self.decoder}: {DECODERS.unknown(self.decoder)}")
        for name in OF_CROSS_ENTROPY if self.self_critical else ():
            if getattr(self, name) != getattr(type(self), name):
                raise InputError(f"{option(name)} {getattr(self, name)}: --self-critical would not use it. Leave it away.")
        if self.self_critical and self.samples < 2:
            raise InputError(f"--samples {self.samples}: must be at least 2; each caption is compared with the others of its image.")

    def lr_at(self, step: int, per_epoch: int) -> float:
        """The learning rate of step ``step``, counted from 0, of ``per_epoch`` in an epoch."""
        warm = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "step":
            return self.lr * warm * self.lr_decay ** (step // per_epoch // self.lr_decay_epochs)
        if self.schedule == "cosine":
            return self.lr * warm * 0.5 * (1 + math.cos(math.pi * step / (per_epoch * self.epochs)))
        return self.lr * warm

    def scheduled_sampling_at(self, step: int, per_epoch: int) -> float:
        """The share of own words at a step."""
        return self.scheduled_sampling * min(1.0, step / (per_epoch * self.scheduled_sampling_epochs))


def option(name: str) -> str:
    """A setting as it is written on the command line.

    >>> option("batch_size")
    '--batch-size'
    """
    return f"--{name.replace('_', '-')}"


def _type(name: str) -> type:
    kind = KINDS[name]
    return kind if isinstance(kind, type) else str


def of_its_type(name: str, value: object) -> bool:
    """Whether a value can be this setting's, as far as its type goes; a whole number will do for a float.

    >>> of_its_type("lr", 1), of_its_type("epochs", 1.0), of_its_type("epochs", True), of_its_type("schedule", "never")
    (True, False, False, True)
    """
    return type(value) is _type(name) or (type(value) is int and _type(name) is float)  # not isinstance(): a bool is an int


def kind_name(name: str) -> str:
    """The type of a setting's value, in a word."""
    return _type(name).__name__


def _kind(hint: Any) -> type | tuple[str, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if isinstance(hint, UnionType):
        return _kind(next(one for one in get_args(hint) if one is not NoneType))
    kind: type = hint
    return kind


# Of each setting the type of its value, where there is one, or the texts that it may be.
KINDS = {name: _kind(hint) for name, hint in get_type_hints(TrainConfig).items()}
