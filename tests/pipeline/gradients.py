"""Computes one batch's gradients as a training does, in one process or in several: for test_distributed.py to compare.

The arguments are OUT KIND DATA CHUNKS UNITS, where KIND is features or shards; the main process writes the gradients to OUT.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from model.captioner import Captioner
from model.decoder_config import DecoderConfig
from pipeline.backbone.backbones import KEPT_FILE
from pipeline.captions.vocabulary import vocabulary_of
from pipeline.loading.batches import EncodedCaptions, to_device, training_batches
from pipeline.loading.training_data import RawConfig, TrainingData, feature_extractor, open_cached, open_raw
from pipeline.runs.train_config import TrainConfig
from pipeline.training.cross_entropy import CrossEntropyStep
from pipeline.training.distributed import ProcessGroup, process_group
from pipeline.training.validation import Validator

CPU = torch.device("cpu")


def open_data(kind: str, data: Path, *, pooled: bool) -> TrainingData:
    if kind == "features":
        return open_cached(data, CPU, pooled=pooled)
    kept = data.parent / "features"
    assert (kept / KEPT_FILE).is_file()
    return open_raw(data, kept, RawConfig(backbone="resnet18", weights="random", augment="tutorial", precision="fp32", threads=1), CPU)


def gradients(kind: str, path: Path, *, chunks: int, units: int, processes: ProcessGroup, decoder: str = "lstm") -> dict[str, torch.Tensor]:
    """Gradients, BatchNorm statistics, loss and validation scores of one batch of ``units`` units."""
    data = open_data(kind, path, pooled=decoder == "lstm")
    torch.manual_seed(0)
    vocabulary = vocabulary_of(data.source.table, min_count=1).vocabulary
    sizes: dict[str, Any] = {"feature_dim": data.feature_dim, "vocabulary_size": len(vocabulary), "embedding_dim": 16, "hidden_dim": 24}
    captioner = Captioner(DecoderConfig(**sizes, decoder=decoder))
    model = captioner if processes.world_size == 1 else DistributedDataParallel(captioner, broadcast_buffers=False)
    extract_features = feature_extractor(data)
    step = CrossEntropyStep(captioner, model, extract_features, TrainConfig(accumulate=chunks, precision="fp32"), 1, processes)
    encoded = EncodedCaptions(data.source.table, vocabulary)
    batch = next(training_batches(data.source, encoded, seed=1, epoch=0, batch_size=units, captions_per_image=2, rank_slice=processes.rank_slice))
    loss = processes.all_reduce(step(to_device(batch, CPU)))
    assert data.val is not None
    validator = Validator(data.val, vocabulary, extract_features, data.val_pictures, images=3, device=CPU, processes=processes)
    validation = validator.validate(captioner)
    found = {name: parameter.grad for name, parameter in captioner.named_parameters() if parameter.grad is not None}
    found |= {name: buffer.float() for name, buffer in captioner.named_buffers()}
    return found | {"loss": loss, "val_loss": torch.tensor(validation.loss), "val_cider": torch.tensor(validation.cider or 0.0)}


def main() -> None:
    out, kind, data, chunks, units, decoder = sys.argv[1:]
    with process_group(CPU) as processes:
        found = gradients(kind, Path(data), chunks=int(chunks), units=int(units), processes=processes, decoder=decoder)
        if processes.is_main_process:
            save_file({name: value.contiguous() for name, value in found.items()}, out)
        processes.barrier()
