"""The commands of the command line by name, in the order in which data flows through them.

An entry names the module and the command in it, so that a command is imported only when it is used. A new command needs a module in
``pipeline/console/commands/`` and a line here.
"""

import click

from model.registry import Registry

COMMANDS = Registry[click.Command](
    "command",
    **{
        "download": "pipeline.console.commands.download:download",
        "synth": "pipeline.console.commands.synth:synth",
        "shard": "pipeline.console.commands.shard:shard",
        "index": "pipeline.console.commands.index:index",
        "verify": "pipeline.console.commands.verify:verify",
        "stats": "pipeline.console.commands.stats:stats",
        "vocab": "pipeline.console.commands.vocab:vocab",
        "backbones": "pipeline.console.commands.backbones:backbones",
        "cache-features": "pipeline.console.commands.cache_features:cache_features",
        "import-features": "pipeline.console.commands.import_features:import_features",
        "train": "pipeline.console.commands.train:train",
        "curves": "pipeline.console.commands.curves:curves",
        "caption": "pipeline.console.commands.caption:caption",
        "evaluate": "pipeline.console.commands.evaluate:evaluate",
        "report": "pipeline.console.commands.report:report",
        "demo": "pipeline.console.commands.demo:demo",
        "doctor": "pipeline.console.commands.doctor:doctor",
    },
)
