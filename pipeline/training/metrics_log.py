"""The log of a training: ``metrics.jsonl`` for programs, and TensorBoard events."""

import json
import math
from pathlib import Path

import torch

from pipeline.images.figures import image_grid
from pipeline.images.fonts import choose_fonts
from pipeline.runs.checkpoints import TrainingPosition
from pipeline.runs.run import METRICS_FILE
from pipeline.training.distributed import ProcessGroup
from pipeline.training.validation import ValidationResult
from shards.atomic import committed_file, disk_errors
from shards.errors import InputError


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats per token, limited to exp(100) so that it is finite and can be written as JSON."""
    return math.exp(min(loss, 100.0))


class MetricsLog:
    """Writes ``metrics.jsonl`` and TensorBoard events. On resuming, the lines after the checkpoint are removed first.

    Args:
        out: The run's folder.
        position: The checkpoint's position.
        after_validation: Whether the checkpoint was saved after the validation of its step, if there was one.
    """

    def __init__(self, out: Path, position: TrainingPosition, *, after_validation: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = out / METRICS_FILE
        kept = []
        if path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    content = json.loads(line)
                    if content["step"] < position.step or (content["step"] == position.step and (after_validation or "val_loss" not in content)):
                        kept.append(line + b"\n")
                except (ValueError, KeyError, TypeError):
                    break  # a line that was being written when the process was killed
        with committed_file(path) as file:
            file.writelines(kept)
        # Unbuffered: closing the file after a failed write does not try to write again
        self._path, self._file = path, path.open("ab", buffering=0)
        self._events = SummaryWriter(str(out), purge_step=position.step + 1)

    def write(self, line: dict[str, float | int]) -> None:
        """Append one line, and add its values to the TensorBoard events.

        Raises:
            ResourceError: The disk is full.
        """
        with disk_errors(self._path):
            rest = json.dumps(line).encode() + b"\n"
            while rest:
                rest = rest[self._file.write(rest) :]
            for name, value in line.items():
                if name not in ("step", "epoch", "epochs"):
                    self._events.add_scalar(name, value, line["step"])

    def write_validation(self, position: TrainingPosition, result: ValidationResult) -> None:
        """Append a line with the scores, and add the example captions, with their images, to the TensorBoard events."""
        line = {
            "step": position.step,
            "epoch": position.epoch,
            "epochs": position.epoch + 1.0,
            "val_loss": result.loss,
            "val_perplexity": perplexity(result.loss),
        }
        self.write(line if result.cider is None else {**line, "val_cider": result.cider})
        with disk_errors(self._path):
            for number, example in enumerate(result.examples):
                self._events.add_text(f"val/caption {number}", f"{example.caption}\n\n(reference: {example.reference})", position.step)
            pictures = [(e.pixels, f"{e.caption}\n({e.reference})") for e in result.examples if e.pixels is not None]
            if pictures:
                figure = image_grid(pictures)
                choose_fonts(figure)
                self._events.add_figure("val/captions", figure, position.step, close=False)
            self._events.flush()

    def close(self) -> None:
        self._file.close()
        with disk_errors(self._path):
            self._events.flush()  # raises what TensorBoard's thread could not write; close() would not
            self._events.close()


class AverageMeter:
    """Averages over the steps since the last line of the log.

    Args:
        self_critical: Whether the losses are negative rewards, as in self-critical training, instead of cross-entropies.

    Attributes:
        progress_note, captions_per_second, data_wait: Of the last line; ``data_wait`` is the fraction of the time spent waiting for data.
    """

    def __init__(self, processes: ProcessGroup, *, self_critical: bool = False) -> None:
        self._processes = processes
        self._self_critical = self_critical
        self.progress_note = ""
        self.captions_per_second: float | None = None
        self.data_wait = 0.0
        self._reset()

    def _reset(self) -> None:
        self._losses: list[torch.Tensor] = []
        self._captions, self._data_seconds, self._seconds = 0, 0.0, 1e-9

    def update(self, loss: torch.Tensor, captions: int, *, data_seconds: float, seconds: float) -> None:
        """Add one step.

        Args:
            loss: This process's part of the step's loss, float32 ().
            captions: Captions of the batch, over all processes.
            data_seconds: Seconds spent waiting for the batch, part of ``seconds``.
            seconds: Duration of the step.
        """
        self._losses.append(loss)
        self._captions += captions
        self._data_seconds += data_seconds
        self._seconds += seconds

    def log_line(self, position: TrainingPosition, lr: float, steps_per_epoch: int) -> dict[str, float | int]:
        """The line of ``metrics.jsonl`` for the steps since the last one, the same in all processes; then reset the averages.

        Raises:
            InputError: The loss is NaN or inf.
        """
        losses = self._processes.all_reduce(torch.stack(self._losses).double().cpu()).tolist()
        mean_loss = sum(losses) / len(losses)
        rate, data_wait = self._captions / self._seconds, self._data_seconds / self._seconds
        if not math.isfinite(mean_loss):
            raise InputError(f"The loss is {mean_loss} at step {position.step}: the training diverged. Start again with a smaller `lr` than {lr}.")
        objective = f"reward {-mean_loss:.3f}" if self._self_critical else f"loss {mean_loss:.3f}"
        self.progress_note = f"{objective}, {rate:,.0f} captions/s, {100 * data_wait:.0f}% waiting for data"
        self.captions_per_second, self.data_wait = rate, data_wait
        self._reset()
        return {
            "step": position.step,
            "epoch": position.epoch,
            "epochs": round(position.epoch + position.step_in_epoch / steps_per_epoch, 6),
            "loss": losses[-1],
            "mean_loss": mean_loss,
            **({"reward": -mean_loss} if self._self_critical else {"perplexity": perplexity(losses[-1])}),
            "lr": lr,
            "captions_per_second": round(rate, 1),
            "data_wait": round(data_wait, 4),
        }
