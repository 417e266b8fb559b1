"""Train a caption decoder: the loop, the losses, validation, the metrics log and distributed training."""
