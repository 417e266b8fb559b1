"""Capstream's command line: the group of all commands, and the options that come before a command.

The commands are in :mod:`pipeline.console.command_table`. Nothing heavy is imported before a command runs, so that ``--help`` answers at once.
"""

import io
import sys

import click

from pipeline.console.command_table import COMMANDS
from pipeline.console.group import CommandGroup
from pipeline.console.options import PATH
from pipeline.console.settings import PREFIX


@click.group(
    cls=CommandGroup,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110},
)
@click.version_option("0.1.0", prog_name="capstream")
@click.option(
    "--config",
    type=PATH,
    envvar=f"{PREFIX}_CONFIG",
    help="TOML file with a table of options for each command. See docs/settings.md.",
)
@click.option("--quiet", is_flag=True, envvar=f"{PREFIX}_QUIET", help="Print neither progress nor the suggested next command.")
@click.option("--log-json", is_flag=True, envvar=f"{PREFIX}_LOG_JSON", help="Write messages, progress and results to standard error as JSON lines.")
def cli(**_: object) -> None:
    """Capstream trains models that caption images. The commands are listed in the order in which data flows through them.

    Each option of a command can also be set by an environment variable (CAPSTREAM_TRAIN_BATCH_SIZE) or in a file (--config).
    """
    # A file's name need not be text in any encoding
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


if __name__ == "__main__":
    cli()
