import json

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.runs.checkpoints import TrainingPosition
from pipeline.training.distributed import ProcessGroup
from pipeline.training.metrics_log import AverageMeter
from shards.errors import InputError
from tests.conftest import Small


def test_tensorboard_shows_scores_and_captions_with_their_images(small: Small) -> None:
    events = EventAccumulator(str(small.run), size_guidance={"images": 0, "tensors": 0}).Reload()
    logged = [json.loads(line) for line in (small.run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "captions_per_second", "val_loss", "val_cider"):
        assert [event.value for event in events.Scalars(name)] == pytest.approx([line[name] for line in logged if name in line], rel=1e-6)
    pictures = events.Images("val/captions")
    assert [event.step for event in pictures] == [12, 24]
    assert pictures[0].width > 1000  # four images side by side
    assert pictures[0].encoded_image_string.startswith(b"\x89PNG")
    assert b"(reference: " in events.Tensors("val/caption 0/text_summary")[0].tensor_proto.string_val[0]


def test_a_line_has_averages_since_the_last_one_and_the_last_loss() -> None:
    meter = AverageMeter(ProcessGroup())
    for loss, waited in ((2.0, 0.1), (4.0, 0.3)):
        meter.update(torch.tensor(loss), 50, data_seconds=waited, seconds=1.0)
    line = meter.log_line(TrainingPosition(epoch=1, step_in_epoch=5, step=17), lr=0.5, steps_per_epoch=20)
    assert (line["step"], line["epoch"], line["epochs"], line["lr"]) == (17, 1, 1.25, 0.5)
    assert (line["loss"], line["mean_loss"], line["captions_per_second"], line["data_wait"]) == (4.0, 3.0, 50.0, 0.2)
    assert line["perplexity"] == pytest.approx(54.598150033)
    meter.update(torch.tensor(float("nan")), 50, data_seconds=0, seconds=1.0)
    with pytest.raises(InputError, match="diverged"):
        meter.log_line(TrainingPosition(epoch=1, step_in_epoch=5, step=18), lr=0.5, steps_per_epoch=20)
