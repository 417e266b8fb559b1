"""The mean of the weights at the ends of a training's last epochs: what captions, where ``--average-last`` asks for it.

Izmailov et al., 2018, "Averaging weights leads to wider optima and better generalization". The training itself goes on with its own
weights. How many epochs' ends the mean has is in :attr:`pipeline.runs.checkpoints.TrainingPosition.averaged`.
"""

from dataclasses import replace

from torch.optim.swa_utils import AveragedModel

from model.captioner import Captioner
from pipeline.runs.checkpoints import TrainingPosition
from pipeline.runs.train_config import TrainConfig


def without_stale_average(position: TrainingPosition, settings: TrainConfig, per_epoch: int) -> TrainingPosition:
    """Where a training stands, without a mean that has ends of epochs in it that are not among the last: ``--epochs`` was raised.

    >>> position = TrainingPosition(epoch=4, step_in_epoch=0, step=48, averaged=3)
    >>> without_stale_average(position, TrainConfig(epochs=4, average_last=3), 12).averaged
    3
    >>> without_stale_average(position, TrainConfig(epochs=5, average_last=3), 12).averaged
    0
    """
    most = max(0, position.step // per_epoch - _first(settings))
    return position if position.averaged <= most else replace(position, averaged=0)


def average_epoch(mean: AveragedModel, captioner: Captioner, position: TrainingPosition, settings: TrainConfig) -> TrainingPosition:
    """At the end of epoch ``position.epoch``: take its weights into the mean, BatchNorm's running averages too, if it is one of the last."""
    if position.epoch < _first(settings):
        return position
    mean.n_averaged.fill_(position.averaged)
    mean.update_parameters(captioner)
    return replace(position, averaged=position.averaged + 1)


def _first(settings: TrainConfig) -> int:
    """The first epoch, from 0, whose end is wanted; without ``--average-last`` there is none."""
    return max(0, settings.epochs - (settings.average_last or 0))
