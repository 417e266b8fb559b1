"""Imports point one way, read from the imports themselves; and help costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

# Each top-level package imports only itself and what is listed here.
PACKAGES = {"shards": {"shards"}, "model": {"model"}, "pipeline": {"pipeline", "model", "shards"}}
OURS = {"cli", "pipeline", "model", "shards", "benchmarks", "tests"}
# The packages of pipeline/, from top to bottom: each imports only what stands below it. Those on one line do not import each other.
ROOMS = [
    {"demo"},
    {"inspection", "reporting"},
    {"evaluation"},
    {"training"},
    {"loading"},
    {"features"},
    {"captioning"},
    {"console"},
    {"runs"},
    {"sharding"},
    {"datasets"},
    {"captions"},
    {"images"},
    {"backbone"},
    {"execution"},
]
# What runs a command may import what the command does, when it runs.
COMMANDS = "pipeline.console.commands"


def imported_modules(path: Path, *, at_import: bool = False) -> set[str]:
    """The dotted names of all modules that a file imports; ``at_import``: only those that importing it imports."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def imported(path: Path) -> set[str]:
    """The top-level packages that a file imports."""
    return {name.partition(".")[0] for name in imported_modules(path)}


def files_of(package: str) -> list[Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return files


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_of_the_packages_point_one_way(package: str) -> None:
    for path in files_of(package):
        assert imported(path) & OURS <= PACKAGES[package], path


def room_of(module: str) -> str | None:
    """The package of pipeline/ that a module is in."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else None


def test_every_package_of_pipeline_has_its_place_in_the_order() -> None:
    found = {path.parent.name for path in (ROOT / "pipeline").glob("*/__init__.py")} | {
        path.stem for path in (ROOT / "pipeline").glob("*.py") if path.stem != "__init__"
    }
    assert found == set().union(*ROOMS)


def test_packages_of_pipeline_import_only_what_stands_below_them() -> None:
    level = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
    wrong = []
    for path in files_of("pipeline"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        room = room_of(module)
        for name in imported_modules(path, at_import=module.startswith(COMMANDS)):
            other = room_of(name)
            if room is not None and other is not None and other != room and level[other] <= level[room]:
                wrong.append(f"{module} imports {name}")
    assert wrong == []


def test_shards_know_no_torch() -> None:
    for path in files_of("shards"):
        assert not imported(path) & {"torch", "torchvision", "webdataset", "safetensors"}, path


def test_nothing_loads_a_pickle() -> None:
    for folder in (*PACKAGES, "benchmarks"):
        for path in files_of(folder):
            text = path.read_text()
            assert not imported(path) & {"pickle", "dill", "joblib"}, path
            assert text.count("torch.load(") == text.count("weights_only=True"), path
            assert "allow_pickle=True" not in text, path


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom cli import cli\ntry: cli(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'h5py', 'PIL', 'nltk', 'fsspec', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
