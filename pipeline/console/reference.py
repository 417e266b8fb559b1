"""The reference of all commands as Markdown, generated from the commands themselves: docs/commands.md.

``make reference`` writes the file, and a test compares it with the commands.
"""

import inspect
import re
from collections.abc import Iterable

import click

from pipeline.console.settings import options_of, written_name

# Pages of the documentation about a command.
PAGES = {
    "download": ("getting-data.md",),
    "shard": ("captions.md", "languages.md", "clusters.md", "remote.md"),
    "index": ("readers.md", "languages.md"),
    "verify": ("resuming.md",),
    "backbones": ("backbones.md",),
    "cache-features": ("caching.md", "backbones.md", "clusters.md", "remote.md"),
    "import-features": ("importing.md", "languages.md"),
    "train": ("training.md", "recipes.md"),
    "caption": ("decoding.md",),
    "evaluate": ("metrics.md", "decoding.md", "languages.md"),
    "report": ("report.md",),
}
INTRODUCTION = """\
<!-- Generated from the commands by `make reference`. Do not edit. -->
# Commands

Run a command from the checkout as `python cli.py COMMAND`, with the environment activated (`. .venv/bin/activate`). `python cli.py COMMAND --help`
prints its options. Each command ends by suggesting the next one.

Each option can also be set by an environment variable, such as `CAPSTREAM_TRAIN_BATCH_SIZE`, or in a file given with `--config`. See
[settings.md](settings.md), also for exit codes and shell completion."""
NOT_RUN = "<!-- not run: the usage of a command and examples -->"
# Descriptions of training's settings and of some other options end with their default.
DEFAULT = re.compile(r" ?\[default: (.+)\]$")
OPTION = re.compile(r"(?<![\w`-])--[a-z][\w-]*")


def reference(group: click.Group) -> str:
    """All commands of a group with their usage, examples and options, as Markdown."""
    context = click.Context(group, info_name="python cli.py", **group.context_settings)
    commands = {name: command for name in group.list_commands(context) if (command := group.get_command(context, name)) and not command.hidden}
    summaries = [(f"[`{name}`](#{name})", _marked(command.get_short_help_str(limit=200))) for name, command in commands.items()]
    blocks = [INTRODUCTION, _table(("Command", "What it does"), summaries), "## Options before the command", options_table(group, context)]
    for name, command in commands.items():
        blocks += command_section(name, command, context)
    return "\n\n".join(blocks) + "\n"


def command_section(name: str, command: click.Command, parent: click.Context) -> list[str]:
    """The blocks of a command's section."""
    context = click.Context(command, info_name=name, parent=parent)
    usage = [f"    {parent.info_name} {name} {' '.join(command.collect_usage_pieces(context))}"]
    examples = [f"    {line.removeprefix('  ')}" for line in (command.epilog or "").splitlines()[2:]]
    pages = ", ".join(f"[{page}]({page})" for page in PAGES.get(name, ()))
    about = [_marked(inspect.cleandoc(command.help or ""))] + ([f"See {pages}."] if pages else [])
    blocks = [f"## {name}", *about, f"{NOT_RUN}\n" + "\n".join([*usage, "", *examples])]
    return [*blocks, options_table(command, context)] if options_of(command) else blocks


def options_table(command: click.Command, context: click.Context) -> str:
    """The options of a command with their defaults and descriptions."""
    rows = [(f"`{_written(option, context)}`", shown_default(option), _described(option)) for option in options_of(command)]
    return _table(("Option", "Default", "Description"), rows)


def shown_default(option: click.Option) -> str:
    """The default of an option in Markdown; empty if there is none. Defaults that depend on the machine are described in words.

    >>> shown_default(click.Option(["--size"], default=256, show_default=True))
    '`256`'
    >>> shown_default(click.Option(["--workers"], default=lambda: 2, show_default="number of cores"))
    'number of cores'
    """
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return _marked(option.show_default)
    if found := DEFAULT.search(option.help or ""):
        return f"`{found[1]}`"
    if option.is_flag:
        return "off"
    if callable(option.default):
        raise ValueError(f"--{written_name(option)}: a default that is computed needs show_default=...")
    return f"`{option.default}`" if isinstance(option.default, (str, int, float)) or hasattr(option.default, "__fspath__") else ""


def _written(option: click.Option, context: click.Context) -> str:
    names = " / ".join(name for name in (*option.opts, *option.secondary_opts) if name.startswith("--"))
    if option.is_flag or isinstance(option.type, click.Choice):
        return names
    return f"{names} {option.make_metavar(context).removesuffix(' RANGE').replace('|', ' or ')}"


def _described(option: click.Option) -> str:
    text = DEFAULT.sub("", option.help or "")
    choices = option.type.choices if isinstance(option.type, click.Choice) else ()
    if all(re.search(rf"\b{choice}\b", text) for choice in choices):
        return _marked(text)
    return f"{_marked(text)} One of {', '.join(f'`{choice}`' for choice in choices)}."


def _marked(text: str) -> str:
    """A text with its options in backticks."""
    return OPTION.sub(r"`\g<0>`", text)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join([_row(head), "|---" * len(head) + "|", *map(_row, rows)])


def _row(cells: tuple[str, ...]) -> str:
    escaped = [cell.replace("|", "\\|") for cell in cells]
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in escaped)
