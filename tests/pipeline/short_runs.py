"""Short trainings for tests: a training on the CPU, its log, its weights, and a Ctrl-C at a step."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.loading.batches import CaptionBatch
from pipeline.runs.checkpoints import latest_checkpoint
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.cross_entropy import CrossEntropyStep
from pipeline.training.loop import TrainSummary
from pipeline.training.train import train


def train_on_cpu(
    *,
    out: Path,
    settings: dict[str, Any] | None = None,
    init_from: Path | None = None,
    resume: bool = False,
    max_steps: int | None = None,
    **data: Any,
) -> TrainSummary:
    """Train on the CPU; the other arguments are fields of :class:`DataConfig`."""
    runtime = RuntimeConfig(device="cpu")
    return train(out=out, data=DataConfig(**data), settings=settings, init_from=init_from, resume=resume, max_steps=max_steps, runtime=runtime)


def lines(run: Path) -> list[dict[str, Any]]:
    """The lines of the log, without the values that depend on the clock."""
    clock = ("captions_per_second", "data_wait")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(latest_checkpoint(run)[0] / "model.safetensors")


def same(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


def interrupted_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C during a step, counted from 1."""
    compute = CrossEntropyStep.__call__

    def call(self: CrossEntropyStep, batch: CaptionBatch) -> torch.Tensor:
        if batch.epoch * self.steps_per_epoch + batch.step == step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, batch)

    monkeypatch.setattr(CrossEntropyStep, "__call__", call)
