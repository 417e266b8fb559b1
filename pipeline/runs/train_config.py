"""The settings of a training: each one once, with its default, its valid values and its help text.

The command line makes its options from these fields, :mod:`pipeline.runs.recipes` reads them from files, and runs record them. This module
imports nothing heavy, so that ``--help`` answers at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from model.decoder_config import DECODERS, DecoderConfig, ImageInput, decoder_problems
from model.limits import SIZE_LIMITS
from shards.errors import OnError, SettingsError

MAX_LR = 1e6
MAX_COUNT = 2**31 - 1
CROSS_ENTROPY_ONLY = ("label_smoothing", "scheduled_sampling", "accumulate")


class ValueRange(NamedTuple):
    """The valid values of a number: a test, and a description for error messages."""

    contains: Callable[[float], bool]
    description: str


POSITIVE_INTEGER = ValueRange(lambda value: 1 <= value <= MAX_COUNT, f"at least 1, and at most {MAX_COUNT}")
NON_NEGATIVE = ValueRange(lambda value: 0 <= value <= MAX_COUNT, f"at least 0, and at most {MAX_COUNT}")
PROBABILITY = ValueRange(lambda value: 0 <= value < 1, "at least 0 and below 1")
DECAY_FACTOR = ValueRange(lambda value: 0 < value <= 1, "greater than 0, and at most 1")
THREADS = ValueRange(lambda value: 1 <= value <= 4096, "at least 1, and at most 4096")
LEARNING_RATE = ValueRange(lambda value: 0 < value <= MAX_LR, f"greater than 0, and at most {MAX_LR:g}")
MINUTES = ValueRange(lambda value: 0 <= value <= MAX_COUNT, f"at least 0 (0: no time-based checkpoints), and at most {MAX_COUNT}")
# BatchNorm cannot normalize a single image.
BATCH_SIZE = ValueRange(lambda value: 2 <= value <= MAX_COUNT, f"at least 2, because BatchNorm needs two images, and at most {MAX_COUNT}")


def size_range(name: str) -> ValueRange:
    """The valid values of one of the decoder's sizes."""
    largest = SIZE_LIMITS[name]
    return ValueRange(lambda value: 1 <= value <= largest, f"at least 1, and at most {largest}")


def setting(default: Any, purpose: str, valid: ValueRange | None = None, *, none_means: str | None = None, off_option: str | None = None) -> Any:
    """A field of :class:`TrainConfig`.

    Args:
        purpose: The help text, one sentence.
        none_means: For a default of None: what None means, as the help text shows it.
        off_option: For a boolean: the option that turns it off.
    """
    return field(default=default, metadata={"purpose": purpose, "valid": valid, "none_means": none_means, "off_option": off_option})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The settings of a training; the defaults are the tutorial's recipe. docs/recipes.md has the sources of those that come from papers.

    Attributes:
        recipe: The recipe that supplied the defaults; settings given explicitly have replaced them.
        batch_size: Units per step, over all processes.
        lr: Learning rate of Adam (Kingma and Ba, 2015); with ``weight_decay`` of AdamW (Loshchilov and Hutter, 2019).
        schedule: ``constant``; ``step``: multiplied by ``lr_decay`` after every ``lr_decay_epochs`` epochs; ``cosine``: annealed to 0
            (Loshchilov and Hutter, 2017, without restarts).
        warmup_steps: Steps of linear warmup to the scheduled learning rate (Goyal et al., 2017).
        weight_decay: Decoupled weight decay of all weight matrices; biases and BatchNorm's parameters are not decayed.
        clip_norm: Maximum gradient norm (Pascanu et al., 2013).
        label_smoothing, scheduled_sampling: As for :meth:`model.captioner.Captioner.forward`. The scheduled-sampling probability rises linearly
            from 0 over the first ``scheduled_sampling_epochs`` epochs.
        average_last: Izmailov et al., 2018, "Averaging weights leads to wider optima and better generalization"; see
            :mod:`pipeline.training.averaging`.
        self_critical: Rennie et al., 2017; see :mod:`pipeline.training.self_critical`.
        precision: A run records the precision that ``auto`` selected.
        threads: The last bits of sums depend on it, so a run records the number, and is resumed with the same one.
        val_images: Spread evenly over the split.
        decoder ... tie_weights: As for :class:`model.decoder_config.DecoderConfig`.

    Raises:
        InputError: A value has the wrong type or is out of range.
    """

    recipe: str = setting("tutorial", "Named set of defaults for the options below: tutorial, strong or self-critical.")
    self_critical: bool = setting(
        False,
        "Maximize CIDEr-D of sampled captions instead of minimizing the cross-entropy; needs a trained run (--from).",
        off_option="--cross-entropy",
    )
    samples: int = setting(5, "With --self-critical: captions sampled per image.", POSITIVE_INTEGER)
    min_count: int = setting(4, "Without --vocab: keep words that occur at least this often.", POSITIVE_INTEGER)
    epochs: int = setting(5, "Passes over all captions.", POSITIVE_INTEGER)
    batch_size: int = setting(128, "Units per step; a unit is an image with up to --captions-per-image of its captions.", BATCH_SIZE)
    lr: float = setting(1e-3, "Learning rate of Adam.", LEARNING_RATE)
    schedule: Literal["constant", "step", "cosine"] = setting(
        "constant", "Learning-rate schedule. step: multiply by --lr-decay every --lr-decay-epochs; cosine: anneal to 0."
    )
    lr_decay: float = setting(0.8, "With --schedule step: factor of each learning-rate decay.", DECAY_FACTOR)
    lr_decay_epochs: int = setting(3, "With --schedule step: epochs between two decays.", POSITIVE_INTEGER)
    warmup_steps: int = setting(0, "Steps of linear learning-rate warmup.", NON_NEGATIVE)
    weight_decay: float = setting(0.0, "AdamW's weight decay of weight matrices; biases and BatchNorm are not decayed.", NON_NEGATIVE)
    clip_norm: float = setting(0.0, "Clip the gradient norm to this value; 0: no clipping.", NON_NEGATIVE)
    label_smoothing: float = setting(0.0, "Label smoothing of the cross-entropy.", PROBABILITY)
    scheduled_sampling: float = setting(0.0, "Probability of replacing an input word by one sampled from the model.", PROBABILITY)
    scheduled_sampling_epochs: int = setting(10, "Epochs over which --scheduled-sampling rises linearly from 0.", POSITIVE_INTEGER)
    patience: int | None = setting(None, "Stop after N epochs without a better validation CIDEr.", POSITIVE_INTEGER, none_means="never")
    average_last: int | None = setting(
        None, "Caption with the average of the weights after each of the last N epochs.", POSITIVE_INTEGER, none_means="no averaging"
    )
    decoder: str = setting(DecoderConfig.decoder, f"The decoder: {', '.join(DECODERS)}.")
    embedding_dim: int = setting(
        DecoderConfig.embedding_dim, "Size of word and image embeddings; a transformer's width.", size_range("embedding_dim")
    )
    hidden_dim: int = setting(
        DecoderConfig.hidden_dim,
        "Hidden size of the LSTMs and of additive attention; of a transformer's feed-forward layers.",
        size_range("hidden_dim"),
    )
    layers: int = setting(DecoderConfig.layers, "Layers of the LSTM, or of the transformer's decoder.", size_range("layers"))
    encoder_layers: int = setting(
        DecoderConfig.encoder_layers, "With --decoder transformer: layers of its encoder over the positions.", size_range("encoder_layers")
    )
    heads: int = setting(DecoderConfig.heads, "With --decoder transformer: attention heads.", size_range("heads"))
    feature_dropout: float = setting(DecoderConfig.feature_dropout, "Dropout probability on image features.", PROBABILITY)
    input_dropout: float = setting(
        DecoderConfig.input_dropout, "Dropout probability on the decoder's inputs: the words, and with lstm the image.", PROBABILITY
    )
    output_dropout: float = setting(
        DecoderConfig.output_dropout, "Dropout probability on the decoder's outputs, between an LSTM's layers and in a transformer's.", PROBABILITY
    )
    image_input: ImageInput = setting(
        DecoderConfig.image_input,
        "With --decoder lstm: once: the image is the LSTM's first input; every_step: it is also concatenated to every word's embedding.",
    )
    tie_weights: bool = setting(
        DecoderConfig.tie_weights, "Share the weights of the word embedding and of the output layer.", off_option="--no-tie-weights"
    )
    captions_per_image: int = setting(1, "Captions of one image that share its features in a step, at most.", POSITIVE_INTEGER)
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "auto", "Precision of the decoder, and with --shards of the backbone; auto: bf16 where the device supports it well."
    )
    threads: int | None = setting(
        None, "On a CPU: threads for the matrix products; resuming uses the run's.", THREADS, none_means="PyTorch's default"
    )
    accumulate: int = setting(1, "Chunks in which the decoder processes a batch, accumulating gradients, to save memory.", POSITIVE_INTEGER)
    checkpoint_minutes: float = setting(10.0, "Minutes between checkpoints; 0: no time-based checkpoints.", MINUTES)
    checkpoint_every: int | None = setting(
        None, "Steps between checkpoints, in addition to the time-based ones.", POSITIVE_INTEGER, none_means="only time-based checkpoints"
    )
    keep_checkpoints: int = setting(3, "Newest checkpoints to keep, in addition to the best one.", POSITIVE_INTEGER)
    val_images: int = setting(5000, "Validation images to caption and score after each epoch.", POSITIVE_INTEGER)
    log_every: int = setting(10, "Steps between two lines of metrics.jsonl.", POSITIVE_INTEGER)
    seed: int = setting(0, "Random seed of the initial weights and of the order of the data.", NON_NEGATIVE)
    augment: Literal["tutorial", "none"] = setting("tutorial", "With --shards: random crops and flips, or none.")
    on_error: OnError = setting("fail", "With --shards: what to do about damaged samples; skipped ones are counted and reported.")

    def __post_init__(self) -> None:
        for setting_field in fields(self):
            if getattr(self, setting_field.name) is not None or setting_field.default is not None:
                _check_value(setting_field.name, getattr(self, setting_field.name), setting_field.metadata["valid"])
        if self.decoder not in DECODERS:
            raise SettingsError(f"`decoder` {self.decoder}: {DECODERS.unknown(self.decoder)}")
        for name, problem in decoder_problems(self):
            raise SettingsError(f"`{name}` {getattr(self, name)}: {problem}")
        for name in CROSS_ENTROPY_ONLY if self.self_critical else ():
            if getattr(self, name) != getattr(type(self), name):
                raise SettingsError(f"`{name}` {getattr(self, name)}: has no effect with `self_critical`. Omit it.")
        if self.self_critical and self.samples < 2:
            raise SettingsError(f"`samples` {self.samples}: must be at least 2; each caption is compared with the others of its image.")

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate at global step ``step``, counted from 0."""
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "step":
            return self.lr * warmup * self.lr_decay ** (step // steps_per_epoch // self.lr_decay_epochs)
        if self.schedule == "cosine":
            return self.lr * warmup * 0.5 * (1 + math.cos(math.pi * step / (steps_per_epoch * self.epochs)))
        return self.lr * warmup

    def scheduled_sampling_at(self, step: int, steps_per_epoch: int) -> float:
        """The scheduled-sampling probability at global step ``step``, counted from 0."""
        return self.scheduled_sampling * min(1.0, step / (steps_per_epoch * self.scheduled_sampling_epochs))


def _check_value(name: str, value: object, valid: ValueRange | None) -> None:
    setting_type = SETTING_TYPES[name]
    if not has_setting_type(name, value):
        raise SettingsError(f"`{name}` {value!r}: must be of type {setting_type_name(name)}.")
    if not isinstance(setting_type, type) and value not in setting_type:
        raise SettingsError(f"`{name}` {value}: must be {', '.join(setting_type[:-1])} or {setting_type[-1]}.")
    if valid is not None and isinstance(value, (int, float)) and not valid.contains(value):
        raise SettingsError(f"`{name}` {value}: must be {valid.description}.")


def _value_type(name: str) -> type:
    setting_type = SETTING_TYPES[name]
    return setting_type if isinstance(setting_type, type) else str


def has_setting_type(name: str, value: object) -> bool:
    """Whether a value has the type of this setting; an int is accepted for a float.

    >>> has_setting_type("lr", 1), has_setting_type("epochs", 1.0), has_setting_type("epochs", True), has_setting_type("schedule", "never")
    (True, False, False, True)
    """
    return type(value) is _value_type(name) or (type(value) is int and _value_type(name) is float)  # not isinstance(): a bool is an int


def setting_type_name(name: str) -> str:
    """The name of a setting's type, such as ``int``."""
    return _value_type(name).__name__


def _type_or_choices(hint: Any) -> type | tuple[str, ...]:
    if get_origin(hint) is Literal:
        return get_args(hint)
    if isinstance(hint, UnionType):
        return _type_or_choices(next(one for one in get_args(hint) if one is not NoneType))
    value_type: type = hint
    return value_type


# The type of each setting's value, or its choices.
SETTING_TYPES = {name: _type_or_choices(hint) for name, hint in get_type_hints(TrainConfig).items()}
