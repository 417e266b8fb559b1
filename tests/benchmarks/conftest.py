"""A few drawn scenes in the place of photographs."""

from pathlib import Path

import pytest

from tests.conftest import Small


@pytest.fixture
def photographs(small: Small, tmp_path: Path) -> Path:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "images").symlink_to(small.source / "images")
    (tmp_path / "photographs" / "captions.json").write_bytes((small.source / "captions_train.json").read_bytes())
    return tmp_path / "photographs"
