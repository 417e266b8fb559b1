"""``doctor``: check the environment."""

from pathlib import Path

import click

from pipeline.console.command import command
from pipeline.console.options import PATH
from pipeline.execution.messages import print_json, print_next_step, print_result


@command("doctor", "python cli.py doctor", "python cli.py doctor --json > report.json")
@click.option("--root", type=PATH, default=Path("data"), help="Folder of datasets, shards and features.")
@click.option("--runs", type=PATH, default=Path("runs"), help="Folder of runs.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for example to attach to a bug report.")
def doctor(root: Path, runs: Path, as_json: bool) -> None:
    """Check the environment and suggest fixes.

    Checks programs, device, disk space and data. The exit code is always 0.
    """
    from pipeline.inspection.doctor import doctor

    diagnosis = doctor(root=root, runs=runs)
    if as_json:
        print_json([vars(check) for check in diagnosis.checks], indent=1)
    else:
        for check in diagnosis.checks:
            print_result(f"{'ok' if check.ok else '--':4}{check.name:10}{check.found}")
            if not check.ok:
                print_result(f"{'':14}{check.advice}")
    print_next_step(f"python cli.py {diagnosis.next_step}", err=as_json)
