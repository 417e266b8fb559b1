"""The options for decoding: how captions are generated."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from pipeline.console.options import grouped, typed
from shards.errors import SettingsError

if TYPE_CHECKING:
    from model.decoding import Decoding


@dataclass(frozen=True)
class DecodingOptions:
    """Settings of :class:`model.decoding.Decoding` as the user gave them. They are checked, and torch is imported, by :meth:`config`."""

    settings: dict[str, Any]

    def config(self) -> "Decoding":
        """The decoding to use.

        Raises:
            click.UsageError: Options that do not go together.
            InputError: A value out of range.
        """
        from model.decoding import Decoding

        if self.settings["groups"] == 1 and typed("diversity"):
            raise click.UsageError("--diversity requires --groups 2 or more.")
        if self.settings["samples"] and typed("length_penalty"):
            raise click.UsageError("--length-penalty is for beam search. It cannot be combined with --samples.")
        try:
            return Decoding(**self.settings)
        except ValueError as error:
            message = re.sub(rf"`?\b({'|'.join(self.settings)})\b`?", r"`\1`", str(error))
            raise SettingsError(f"{message}.") from None

    def typed(self) -> list[str]:
        """The decoding options that were typed on the command line."""
        return typed(*self.settings)


def _decoding_options(**settings: Any) -> DecodingOptions:
    return DecodingOptions(settings)


# The command gets DecodingOptions as ``decoding``.
decoding_options = grouped(
    "decoding",
    _decoding_options,
    click.option("--beam", type=int, default=1, help="Beam size; 1 is greedy search."),
    click.option("--length-penalty", type=float, default=0.0, help="Beam search: length penalty. Values above 0 favor longer captions."),
    click.option("--block-ngrams", type=int, default=0, show_default="off", help="Do not repeat any sequence of N words within a caption."),
    click.option("--groups", type=int, default=1, help="Diverse beam search: number of groups, each of --beam hypotheses."),
    click.option("--diversity", type=float, default=0.5, help="With --groups: penalty for words that earlier groups chose at the same position."),
    click.option("--samples", type=int, default=0, show_default="off", help="Sample N captions per image at random."),
    click.option("--temperature", type=float, default=1.0, help="With --samples: softmax temperature. Values below 1 favor likely words."),
    click.option("--top-k", type=int, default=0, show_default="all words", help="With --samples: sample from the N most likely words."),
    click.option(
        "--top-p",
        type=float,
        default=1.0,
        help="With --samples: sample from the smallest set of words whose probabilities add up to P (nucleus sampling).",
    ),
    click.option("--seed", type=int, default=0, help="With --samples: random seed."),
    click.option("--max-words", type=int, default=20, help="Truncate captions to N words."),
)
