"""A few drawn scenes in place of real images."""

from pathlib import Path

import pytest

from tests.conftest import Small


@pytest.fixture
def dataset(small: Small, tmp_path: Path) -> Path:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "images").symlink_to(small.source / "images")
    (tmp_path / "dataset" / "captions.json").write_bytes((small.source / "captions_train.json").read_bytes())
    return tmp_path / "dataset"
