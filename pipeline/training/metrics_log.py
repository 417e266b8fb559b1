"""A training's log: ``metrics.jsonl`` for programs, TensorBoard events for looking at."""

import json
import math
from pathlib import Path

import torch

from pipeline.images.figures import image_grid
from pipeline.runs.checkpoints import TrainingPosition
from pipeline.runs.run import METRICS_FILE
from pipeline.training.distributed import ProcessGroup, all_reduce_sum
from pipeline.training.validation import ValidationResult
from shards.atomic import committed_file
from shards.errors import InputError


def perplexity(loss: float) -> float:
    """Exp of a loss in nats per token; finite, so that it can be written as JSON."""
    return math.exp(min(loss, 100.0))


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard events; lines beyond the checkpoint that a training goes on from are taken back.

    Args:
        position: Of that checkpoint.
        validated: Whether it was saved after its step's validation, if there was one.
    """

    def __init__(self, out: Path, position: TrainingPosition, *, validated: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / METRICS_FILE
        kept = []
        if path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    content = json.loads(line)
                    if content["step"] < position.step or (content["step"] == position.step and (validated or "val_loss" not in content)):
                        kept.append(line + b"\n")
                except (ValueError, KeyError, TypeError):
                    break  # a line that was being written when the process was killed
        with committed_file(path) as file:
            file.writelines(kept)
        self._file = path.open("ab")
        self._events = SummaryWriter(str(out), purge_step=position.step + 1)

    def write(self, line: dict[str, float | int]) -> None:
        """Add one line."""
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        for name, value in line.items():
            if name not in ("step", "epoch", "epochs"):
                self._events.add_scalar(name, value, line["step"])

    def validated(self, position: TrainingPosition, found: ValidationResult) -> None:
        """A line of scores, and a picture of some captions."""
        line = {
            "step": position.step,
            "epoch": position.epoch,
            "epochs": position.epoch + 1.0,
            "val_loss": found.loss,
            "val_perplexity": perplexity(found.loss),
        }
        self.write(line if found.cider is None else {**line, "val_cider": found.cider})
        for number, shown in enumerate(found.shown):
            self._events.add_text(f"val/caption {number}", f"{shown.caption}\n\n(reference: {shown.reference})", position.step)
        pictures = [(s.pixels, f"{s.caption}\n({s.reference})") for s in found.shown if s.pixels is not None]
        if pictures:
            self._events.add_figure("val/captions", image_grid(pictures), position.step, close=False)
        self._events.flush()

    def close(self) -> None:
        self._file.close()
        self._events.close()


class Meter:
    """Means over the steps since the last line of the log; ``captions_per_second`` and ``note`` are of that line.

    Args:
        rewarded: The losses are minus rewards, as in self-critical training, and no entropies.
    """

    def __init__(self, processes: ProcessGroup, *, rewarded: bool = False) -> None:
        self._rewarded = rewarded
        self.note = ""
        self.captions_per_second: float | None = None
        self.waited_share = 0.0
        self._world = processes
        self._reset()

    def _reset(self) -> None:
        self.losses: list[torch.Tensor] = []
        self.captions, self.waited, self.seconds = 0, 0.0, 1e-9

    def add(self, loss: torch.Tensor, captions: int, *, waited: float, seconds: float) -> None:
        """One step: this process's part of its loss, and the captions of all processes."""
        self.losses.append(loss)
        self.captions += captions
        self.waited += waited
        self.seconds += seconds

    def line(self, position: TrainingPosition, lr: float, steps_per_epoch: int) -> dict[str, float | int]:
        """A line of the log, the same in all processes, after which the means start anew.

        Raises:
            InputError: The loss is not finite.
        """
        values = all_reduce_sum(torch.stack(self.losses).double().cpu(), self._world).tolist()
        loss, rate, waiting = sum(values) / len(values), self.captions / self.seconds, self.waited / self.seconds
        if not math.isfinite(loss):
            raise InputError(f"The loss became {loss} by step {position.step}: the training diverged. Start again with a smaller --lr than {lr}.")
        shown = f"reward {-loss:.3f}" if self._rewarded else f"loss {loss:.3f}"
        self.note = f"{shown}, {rate:,.0f} captions/s, {100 * waiting:.0f}% waiting for data"
        self.captions_per_second, self.waited_share = rate, waiting
        self._reset()
        return {
            "step": position.step,
            "epoch": position.epoch,
            "epochs": round(position.epoch + position.step_in_epoch / steps_per_epoch, 6),
            "loss": values[-1],
            "mean_loss": loss,
            **({"reward": -loss} if self._rewarded else {"perplexity": perplexity(values[-1])}),
            "lr": lr,
            "captions_per_second": round(rate, 1),
            "data_wait": round(waiting, 4),
        }
