"""The options for captions in any format."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.console.options import Locations, grouped, name_and_value, together
from shards.paths import Location

if TYPE_CHECKING:
    from pipeline.captions.read import CaptionSource


@dataclass(frozen=True, kw_only=True)
class CaptionOptions:
    """Captions as the user gave them."""

    captions: tuple[Location, ...]
    split_lists: tuple[str, ...]
    holdout: tuple[str, ...]
    columns: tuple[str, ...]
    encoding: str | None
    no_restval: bool

    def source(self) -> "CaptionSource":
        """What to read."""
        from pipeline.captions.holdout import parse_holdout
        from pipeline.captions.read import CaptionSource
        from shards.layout import check_split_name

        lists = [name_and_value("--split-list", text) for text in self.split_lists]
        return CaptionSource(
            paths=self.captions,
            split_lists=tuple((check_split_name(split), Path(file)) for split, file in lists),
            holdout=parse_holdout(self.holdout),
            columns=chosen_columns(self.columns),
            restval=not self.no_restval,
            encoding=self.encoding,
        )


columns_option = click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="ROLE=NAME",
    show_default="recognized by common names",
    help="For tables: name of the column with the image, caption or split. Repeat the option for several columns.",
)


encoding_option = click.option(
    "--encoding", default=None, show_default="utf-8", help="Encoding of captions in text files, such as cp949, cp932, gb18030 or cp1252."
)


language_option = click.option(
    "--language",
    default="en",
    metavar="TAG",
    help="Language of the captions, such as en, zh, ja, ko or de: decides how they are split into words, and joined again.",
)


def chosen_columns(columns: tuple[str, ...]) -> dict[str, str]:
    """The columns that :data:`columns_option` names, by role.

    Raises:
        click.UsageError: Not of the form ROLE=NAME, or an unknown role.
    """
    from pipeline.captions.tables import USUAL_COLUMNS

    roles = dict(name_and_value("--column", text) for text in columns)
    if unknown := [role for role in roles if role not in USUAL_COLUMNS]:
        raise click.UsageError(f"--column {unknown[0]}=...: unknown role. Choose one of: {', '.join(USUAL_COLUMNS)}.")
    return roles


def _caption_options(captions: Location | tuple[Location, ...], **others: Any) -> CaptionOptions:
    return CaptionOptions(captions=captions if isinstance(captions, tuple) else (captions,), **others)


def captions_options(help_text: str, *, several: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``--captions`` and the options for how to read them. The command gets CaptionOptions as ``captions``, and ``split``."""
    split = click.option(
        "--split",
        default=None,
        show_default="all splits of the captions; train if they name none",
        help="The split to use, or the name of the only split.",
    )
    read = grouped(
        "captions",
        _caption_options,
        click.option("--captions", type=Locations(), metavar="PATH|URL", required=True, multiple=several, help=help_text),
        click.option(
            "--split-list",
            "split_lists",
            multiple=True,
            metavar="SPLIT=FILE",
            help="File with the image names of a split, one per line. Repeat the option for each split.",
        ),
        click.option(
            "--holdout",
            multiple=True,
            metavar="SPLIT=FRACTION",
            help="For images without a split: put this fraction of them into SPLIT, such as val=0.1 or val=0.1,test=0.1; the others are train. "
            "The file name alone decides.",
        ),
        columns_option,
        encoding_option,
        click.option("--no-restval", is_flag=True, help="For Karpathy splits: keep the restval split separate instead of adding it to train."),
    )
    return together(read, split)
