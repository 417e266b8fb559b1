"""A training's log: ``metrics.jsonl`` for programs, TensorBoard events for looking at."""

import json
import math
from pathlib import Path

import torch

from pipeline.run import METRICS_FILE, Position
from shards.atomic import committed_file
from shards.errors import InputError

LOG_EVERY = 10


def perplexity(loss: float) -> float:
    """Exp of a loss in nats per token; finite, so that it can be written as JSON."""
    return math.exp(min(loss, 100.0))


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard events; lines beyond the checkpoint that a training goes on from are taken back."""

    def __init__(self, out: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / METRICS_FILE
        kept = []
        if path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + b"\n")
                except (ValueError, KeyError, TypeError):
                    break  # a line that was being written when the process was killed
        with committed_file(path) as file:
            file.writelines(kept)
        self._file = path.open("ab")
        self._events = SummaryWriter(str(out), purge_step=step + 1)

    def write(self, line: dict[str, float | int]) -> None:
        """Add one line."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        for name, value in line.items():
            if name not in ("step", "epoch"):
                self._events.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._file.close()
        self._events.close()


class Meter:
    """Means over the steps since the last line of the log; ``captions_per_second`` and ``note`` are of that line."""

    def __init__(self) -> None:
        self.note = ""
        self.captions_per_second: float | None = None
        self._reset()

    def _reset(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.captions, self.waited, self.seconds = 0, 0.0, 1e-9

    def add(self, loss: torch.Tensor, captions: int, *, waited: float, seconds: float) -> None:
        self.losses.append(loss)
        self.captions += captions
        self.waited += waited
        self.seconds += seconds

    def write(self, log: MetricsLog, position: Position, lr: float) -> float:
        """Log the means and start anew; returns the last step's loss."""
        values = torch.stack(self.losses).tolist()
        loss, rate, waiting = sum(values) / len(values), self.captions / self.seconds, self.waited / self.seconds
        if not math.isfinite(loss):
            raise InputError(f"The loss became {loss} by step {position.step}: the training diverged. Start again with a smaller --lr than {lr}.")
        log.write(
            {
                "step": position.step,
                "epoch": position.epoch,
                "loss": values[-1],
                "mean_loss": loss,
                "perplexity": perplexity(values[-1]),
                "lr": lr,
                "captions_per_second": round(rate, 1),
                "data_wait": round(waiting, 4),
            }
        )
        self.note = f"loss {loss:.3f}, {rate:,.0f} captions/s, {100 * waiting:.0f}% waiting for data"
        self.captions_per_second = rate
        self._reset()
        last: float = values[-1]
        return last
