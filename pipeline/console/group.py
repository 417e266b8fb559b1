"""The group of all commands: it imports a command when it is asked for, and applies the options that come before a command."""

from typing import Any

import click

from pipeline.console.settings import read_defaults
from pipeline.execution.messages import MessageSettings, configure_messages, log_message


class CommandGroup(click.Group):
    """Lists its commands in the order of their table, and applies ``--config``, ``--quiet`` and ``--log-json``.

    ``commands`` may be a :class:`model.registry.Registry`, which imports a command when it is looked up.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        configure_messages(quiet=ctx.params["quiet"], as_json=ctx.params["log_json"])
        try:
            if ctx.params["config"] is not None:
                ctx.default_map = read_defaults(ctx.params["config"], self.commands)
            return super().invoke(ctx)
        except click.ClickException as error:
            if not MessageSettings.as_json:
                raise
            log_message("error", error.format_message(), exit_code=error.exit_code)
            ctx.exit(error.exit_code)
