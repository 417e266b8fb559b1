"""Weight averaging: with ``average_last``, the weights used for captioning are the average of those after each of the last epochs.

Izmailov et al., 2018, "Averaging weights leads to wider optima and better generalization". The training itself continues with the
unaveraged weights. :attr:`pipeline.runs.checkpoints.TrainingPosition.averaged` counts the epochs in the average.
"""

from dataclasses import replace

from torch.optim.swa_utils import AveragedModel

from model.captioner import Captioner
from pipeline.runs.checkpoints import TrainingPosition
from pipeline.runs.train_config import TrainConfig


def without_stale_average(position: TrainingPosition, settings: TrainConfig, steps_per_epoch: int) -> TrainingPosition:
    """Discard an average that contains epochs which are no longer among the last ones, because ``epochs`` was raised on resuming.

    >>> position = TrainingPosition(epoch=4, step_in_epoch=0, step=48, averaged=3)
    >>> without_stale_average(position, TrainConfig(epochs=4, average_last=3), 12).averaged
    3
    >>> without_stale_average(position, TrainConfig(epochs=5, average_last=3), 12).averaged
    0
    """
    averageable = max(0, position.step // steps_per_epoch - _first_averaged_epoch(settings))
    return position if position.averaged <= averageable else replace(position, averaged=0)


def average_epoch(average: AveragedModel, captioner: Captioner, position: TrainingPosition, settings: TrainConfig) -> TrainingPosition:
    """After the last step of epoch ``position.epoch``: add its weights and BatchNorm statistics to the average, if it is one of the last epochs."""
    if position.epoch < _first_averaged_epoch(settings):
        return position
    average.n_averaged.fill_(position.averaged)
    average.update_parameters(captioner)
    return replace(position, averaged=position.averaged + 1)


def _first_averaged_epoch(settings: TrainConfig) -> int:
    """The first epoch, counted from 0, in the average; without ``average_last`` none is."""
    return max(0, settings.epochs - (settings.average_last or 0))
