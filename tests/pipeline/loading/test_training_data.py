"""Raw training compiles its network only where enough images will pass through it."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.backbone.backbones import KEPT_FILE
from pipeline.loading.training_data import RawConfig, open_raw
from tests.conftest import Small


def test_a_training_that_stops_early_does_not_compile_the_network(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_for: list[int] = []

    def compiled(frozen: Any, views: int) -> Any:
        compiled_for.append(views)
        return frozen

    monkeypatch.setattr("pipeline.backbone.precision.COMPILE_FROM_IMAGES", 30)
    monkeypatch.setattr("pipeline.backbone.precision.compiled", compiled)
    shutil.copy(small.features / KEPT_FILE, tmp_path)  # the random weights of the small dataset's features
    for max_images, calls in ((29, 0), (30, 1), (None, 2)):
        config = RawConfig(backbone="resnet18", weights="random", augment="none", precision="fp32", threads=1, max_images=max_images)
        open_raw(small.shards, tmp_path, config, torch.device("cpu"))
        assert len(compiled_for) == calls
