"""The arrow rule, read from the imports themselves, and that help costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

ALLOWED = {"shards": {"shards"}, "model": {"model"}, "pipeline": {"pipeline", "model", "shards"}}
OURS = {"cli", "pipeline", "model", "shards", "benchmarks", "tests"}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) & OURS <= ALLOWED[package], path


def test_shards_know_no_torch() -> None:
    for path in (ROOT / "shards").rglob("*.py"):
        assert not imported(path) & {"torch", "torchvision", "webdataset", "safetensors"}, path


def test_nothing_loads_a_pickle() -> None:
    for folder in (*ALLOWED, "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
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
