"""What the fork server of :mod:`tests.processes` imports for the processes that it starts."""

import matplotlib.pyplot
import torch._dynamo
import torch.distributed
import torch.utils.tensorboard

import pipeline.captioning.caption
import pipeline.features.import_features
import tests.servers

__all__ = ["matplotlib", "pipeline", "tests", "torch"]
