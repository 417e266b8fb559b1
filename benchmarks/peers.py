"""Other tools, each in its own environment under ``.venv/peers``, because their pinned versions conflict with one another and with ours.

    python -m benchmarks.peers [NAME ...]

creates the environments that do not exist yet. Nothing else installs anything; tools that are missing are reported with the reason.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workload import ROOT, say
from shards.json_files import write_json

FOLDER = ROOT / ".venv" / "peers"
LIMIT_SECONDS = 900
READY = "ready.json"
# Packages that the tools use in the versions of constraints.txt.
SHARED = ("torch", "torchvision", "simplejpeg", "numpy", "webdataset", "h5py")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A tool to compare with.

    Attributes:
        package: The name of its package.
        module: The module that is imported to check that it works.
        requirements: What pip installs; None: it is in our own environment.
        needs: What the system needs to build it.
    """

    package: str
    module: str
    requirements: tuple[str, ...] | None
    needs: str = ""


TORCH = ("torch", "simplejpeg")
PEERS = {
    "img2dataset": Peer(package="img2dataset", module="img2dataset", requirements=("img2dataset==1.47.0",)),
    "webdataset": Peer(package="webdataset", module="webdataset", requirements=None),
    "litdata": Peer(package="litdata", module="litdata", requirements=("litdata==0.2.76", "pillow==13.0.0", *TORCH)),
    "mosaicml-streaming": Peer(
        package="mosaicml-streaming",
        module="torch",  # its own import may need a workaround (benchmarks/peer_ways.py)
        requirements=("mosaicml-streaming==0.13.0", "pillow==13.0.0", "torchvision", *TORCH),
    ),
    "ffcv": Peer(
        package="ffcv",
        module="ffcv.loader",
        requirements=("ffcv==1.0.2", "pillow==13.0.0", *TORCH),
        needs="libopencv-dev and libturbojpeg0-dev (Debian's names), a C++ compiler and pkg-config",
    ),
}


class NotInstalledError(Exception):
    """A tool is not installed; the message is the reason."""


def interpreter(name: str, *, install: bool = False) -> str:
    """The Python interpreter of a tool's environment.

    Args:
        name: One of :data:`PEERS`.
        install: Create the environment if it does not exist.

    Raises:
        NotInstalledError: There is none, or it could not be created.
    """
    peer, folder = PEERS[name], FOLDER / name
    if peer.requirements is None:
        return sys.executable
    record = folder / READY
    found = json.loads(record.read_text()) if record.is_file() else {}
    if found.get("requirements") != list(peer.requirements) or (install and found["problem"]):
        if not install:
            raise NotInstalledError(f"it has no environment (`make peers`{f'; building it needs {peer.needs}' if peer.needs else ''})")
        found = make(name, folder)
    if found["problem"]:
        raise NotInstalledError(found["problem"])
    return str(folder / "bin" / "python")


def make(name: str, folder: Path) -> dict[str, object]:
    """Create a tool's environment and record whether it works."""
    peer = PEERS[name]
    assert peer.requirements is not None
    say(f"installing {name} into {folder}")
    versions = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(SHARED) and "==" in line)
    wanted = [f"{requirement}=={versions[requirement]}" if requirement in versions else requirement for requirement in peer.requirements]
    python = str(folder / "bin" / "python")
    steps = [
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [python, "-m", "pip", "install", "--quiet", *wanted],
        [python, "-c", f"import {peer.module}"],
    ]
    problem = ""
    for step in steps:
        try:
            done = subprocess.run(step, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            problem = f"installing it took more than {LIMIT_SECONDS // 60} minutes"
            break
        if done.returncode != 0:
            problem = reason(done.stderr or done.stdout) + (f" (it needs {peer.needs})" if peer.needs else "")
            break
    found: dict[str, object] = {"requirements": list(peer.requirements), "problem": problem}
    write_json(folder / READY, found)
    return found


def reason(text: str) -> str:
    """The most useful line of a failure: pip's first error, or else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error:", "fatal")) or "Error:" in line]
    return (errors or lines[-1:] or ["it failed without a message"])[0]


def version(python: str, package: str) -> str:
    """The version of a package in another environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


def main(argv: Sequence[str] | None = None) -> int:
    """Create environments; the exit code is the number of failures."""
    parser = argparse.ArgumentParser(description="Create the environments of the tools that the benchmarks compare with.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"tools, of {', '.join(PEERS)}; default: all")
    names = parser.parse_args(argv).names
    if unknown := set(names) - set(PEERS):
        parser.error(f"{', '.join(sorted(unknown))}: no such tool; choose from {', '.join(PEERS)}")
    missing = 0
    for name in names or PEERS:
        try:
            python = interpreter(name, install=True)
            print(f"{name} {version(python, PEERS[name].package)}: {python}")
        except NotInstalledError as problem:
            missing += 1
            print(f"{name}: not installed: {problem}")
    return missing


if __name__ == "__main__":
    sys.exit(main())
