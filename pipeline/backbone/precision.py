"""How the frozen network is computed: BatchNorm folded, in the fastest precision that agrees with float32, compiled for long passes.

Measured by benchmarks/bench_cache.py --steps on two cores: torch.compile makes ResNet-152 10 % faster after 8 seconds of compiling, and
ResNet-18 5 % faster after 3 seconds; both pay off from 10,000 images on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from model.encoder import FrozenBackbone, backbone_state
from model.networks import state_digest
from model.precision import AGREEMENT, Lowered, compiled, folded, lower
from shards.errors import InputError, SettingsError, first_line

# Half of them correct the network of lower precision, the other half test it.
AGREEMENT_IMAGES = 32
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
COMPILE_FROM_IMAGES = 10_000


@dataclass(frozen=True, kw_only=True)
class ComputedBackbone:
    """A network in the precision in which it is computed.

    Attributes:
        frozen: The network, on its device.
        precision: fp32, bf16 or fp16.
        kept: The layers that stay float32 in a lower precision.
        details: What decides the last bits of the features, as a feature file records it.
        notes: A line for each decision.
    """

    frozen: FrozenBackbone
    precision: str
    kept: tuple[str, ...]
    details: dict[str, Any]
    notes: tuple[str, ...]


def pick_precision(precision: str, device: torch.device) -> str:
    """``auto`` is bf16 on devices that multiply bfloat16 at full speed, fp16 on GPUs that lack bfloat16, else fp32.

    On CPUs, bf16 needs AVX-512 BF16 or AMX: without them it is several times slower than float32.

    Raises:
        InputError: No such precision.
    """
    if precision not in PRECISIONS:
        raise SettingsError(f"`precision` {precision}: must be one of {', '.join(PRECISIONS)}.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bf16" if found.get("avx512_bf16") or found.get("amx_bf16") else "fp32"


def decoder_precision(precision: str, device: torch.device) -> Literal["fp32", "bf16"]:
    """The precision of a decoder: as :func:`pick_precision`, but never fp16, whose gradients would need loss scaling.

    Raises:
        InputError: No such precision.
    """
    return "bf16" if pick_precision(precision, device) == "bf16" else "fp32"


@contextmanager
def decoder_autocast(precision: str, device: torch.device) -> Iterator[None]:
    """Run the decoder's matrix products in ``fp32`` or ``bf16``.

    oneDNN's bfloat16 LSTM fails on processors without bfloat16 instructions. There, PyTorch's own is used, which is slow but works.
    """
    without_onednn = precision == "bf16" and device.type == "cpu" and decoder_precision("auto", device) != "bf16"
    onednn: Any = torch.backends.mkldnn
    before = onednn.enabled
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        try:
            if without_onednn:
                onednn.enabled = False
            yield
        finally:
            if without_onednn:
                onednn.enabled = before


def choose_precision(exact: FrozenBackbone, *, precision: str, device: torch.device, sample: Tensor) -> ComputedBackbone:
    """Fold a network's BatchNorm and convert it to a precision.

    Args:
        exact: The network in float32.
        precision: As for :func:`pick_precision`; ``auto`` falls back to fp32 where the faster one does not agree with it.
        sample: Some images, uint8 (images, crop, crop, 3).

    Raises:
        InputError: No such precision, or one that this network cannot run in here.
    """
    chosen = pick_precision(precision, device)
    frozen, sample = folded(exact.to(device)), sample.to(device)
    lowered, notes = None, []
    if chosen != "fp32" and len(sample):
        lowered, note = _lowered(frozen, chosen, sample, asked=precision)
        notes.append(note)
    if lowered is not None:
        frozen = lowered.backbone
    kept = lowered.kept if lowered is not None else ()
    details = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "compiled": False,
        "fp32_layers": len(kept) if lowered is not None else None,
        "smallest_cosine": round(lowered.cosine, 7) if lowered is not None else None,
        "tensors_sha256": state_digest(backbone_state(frozen)),
    }
    return ComputedBackbone(frozen=frozen, precision="fp32" if lowered is None else chosen, kept=kept, details=details, notes=tuple(notes))


def compile_if_worthwhile(computed: ComputedBackbone, *, sample: Tensor, views: int, views_per_pass: int) -> ComputedBackbone:
    """Compile the network for a long pass on a CPU, and check that it still gives the same features.

    Args:
        sample: Some images, uint8 (images, crop, crop, 3).
        views: Images in the whole pass.
        views_per_pass: Images in one forward pass.
    """
    frozen = computed.frozen
    if next(frozen.parameters()).device.type != "cpu" or views < COMPILE_FROM_IMAGES or not len(sample):
        return computed
    fast = compiled(frozen, views_per_pass)
    batch = sample[torch.arange(views_per_pass) % len(sample)]
    try:
        cosine = float(functional.cosine_similarity(frozen(batch).flatten(1).double(), fast(batch).flatten(1).double(), dim=1).min())
    except (RuntimeError, OSError, TypeError, AttributeError, AssertionError) as error:  # usually there is no C++ compiler
        problem = f"torch.compile does not work here ({first_line(error)})"
    else:
        if cosine >= AGREEMENT:
            return replace(computed, frozen=fast, details={**computed.details, "compiled": True})
        problem = f"torch.compile changes this network's features (cosine {cosine:.5f})"
    return replace(computed, notes=(*computed.notes, f"{problem}: the network runs uncompiled, about 10 % slower."))


def _lowered(frozen: FrozenBackbone, precision: str, sample: Tensor, *, asked: str) -> tuple[Lowered | None, str]:
    """The network in ``precision`` if it can be used, and a line about the decision."""
    try:
        lowered = lower(frozen, precision, sample)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError) as error:  # a layer that does not support this precision here
        if asked != "auto":
            reason = first_line(error)
            raise InputError(f"`precision` {precision}: this network cannot run in it here ({reason}). Choose fp32.") from None
        return None, f"Precision fp32: {precision} does not work with this network here ({first_line(error)})."
    layers = f", the first {len(lowered.kept)} layers in fp32" if lowered.kept else ""
    agreement = f"smallest cosine similarity to fp32 features {lowered.cosine:.5f} on {lowered.judges} images"
    if lowered.agrees:
        return lowered, f"Precision {precision}{layers}: {agreement}."
    if asked == "auto":
        return None, f"Precision fp32: {precision} does not agree well enough with fp32 for this network ({agreement})."
    return lowered, f"Precision {precision}{layers}, as requested, although it agrees badly: {agreement}."
