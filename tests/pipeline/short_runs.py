"""What tests of trainings look at: the log, the weights; and a Ctrl-C at a step."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.loading.batches import CaptionBatch
from pipeline.runs.checkpoints import find_checkpoint
from pipeline.training.cross_entropy import CrossEntropyStep


def lines(run: Path) -> list[dict[str, Any]]:
    """The log without what depends on the clock."""
    clock = ("captions_per_second", "data_wait")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(run)[0] / "model.safetensors")


def same(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is pressed while a step is computed."""
    compute = CrossEntropyStep.__call__

    def call(self: CrossEntropyStep, batch: CaptionBatch) -> torch.Tensor:
        if batch.epoch * self.per_epoch + batch.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, batch)

    monkeypatch.setattr(CrossEntropyStep, "__call__", call)
