import os
from pathlib import Path
from typing import Any

import pytest
import torch

from model.encoder import build_backbone, with_crop
from model.networks import random_info, random_state
from pipeline.backbone.precision import choose_precision, compile_if_worthwhile, decoder_autocast, pick_precision
from shards.errors import InputError
from tests.processes import run_python

CPU = torch.device("cpu")
PREPROCESSING = with_crop(random_info(64), size=64, mode="squash", filter="lanczos")
SAMPLE = torch.randint(0, 256, (4, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, "fp32"), ({}, "fp32")],
)
def test_auto_takes_bf16_on_processors_that_have_it_in_hardware(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], expected: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert pick_precision("auto", CPU) == expected
    assert pick_precision("fp16", CPU) == "fp16"
    with pytest.raises(InputError, match=r"`precision` tf32: must be one of auto, fp32, bf16, fp16"):
        pick_precision("tf32", CPU)


@pytest.mark.parametrize(("capabilities", "precision", "onednn"), [({}, "bf16", False), ({}, "fp32", True), ({"avx512_bf16": True}, "bf16", True)])
def test_a_bf16_decoder_leaves_onednn_out_where_the_processor_has_no_bfloat16_and_only_there(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, Any], precision: str, onednn: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    backend: Any = torch.backends.mkldnn
    with pytest.raises(ZeroDivisionError), decoder_autocast(precision, CPU):
        assert backend.enabled is onednn
        assert torch.is_autocast_enabled("cpu") is (precision == "bf16")
        raise ZeroDivisionError
    assert backend.enabled is True
    assert not torch.is_autocast_enabled("cpu")


def test_what_was_decided_is_said_and_recorded() -> None:
    exact = build_backbone("squeezenet1_1", random_state("squeezenet1_1", seed=0), PREPROCESSING)
    plain = choose_precision(exact, precision="fp32", device=CPU, sample=SAMPLE)
    assert (plain.precision, plain.notes, plain.details["smallest_cosine"]) == ("fp32", (), None)
    lowered = choose_precision(exact, precision="bf16", device=CPU, sample=SAMPLE)
    assert lowered.precision == "bf16"
    assert lowered.details["smallest_cosine"] == pytest.approx(1.0, abs=1e-3)
    assert lowered.details["tensors_sha256"] != plain.details["tensors_sha256"]
    assert lowered.notes[0].startswith("Precision bf16: smallest cosine similarity to fp32 features 0.99")
    assert choose_precision(exact, precision="bf16", device=CPU, sample=SAMPLE).details == lowered.details


def test_a_precision_that_agrees_badly_is_used_only_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    state = random_state("squeezenet1_1", seed=0)
    state["features.0.weight"] *= 1e-3
    state["features.0.bias"] += 100.0  # differences between images drown in what all have in common
    exact = build_backbone("squeezenet1_1", state, PREPROCESSING)
    from model.encoder import calibrate

    calibrate(exact, [SAMPLE])
    by_itself = choose_precision(exact, precision="auto", device=CPU, sample=SAMPLE)
    assert by_itself.precision == "fp32"
    assert "does not agree well enough" in by_itself.notes[0]
    asked = choose_precision(exact, precision="bf16", device=CPU, sample=SAMPLE)
    assert asked.precision == "bf16"
    assert "as requested, although it agrees badly" in asked.notes[0]


def test_a_short_pass_is_not_compiled() -> None:
    exact = build_backbone("squeezenet1_1", random_state("squeezenet1_1", seed=0), PREPROCESSING)
    arithmetic = choose_precision(exact, precision="fp32", device=CPU, sample=SAMPLE)
    assert compile_if_worthwhile(arithmetic, sample=SAMPLE, views=9_999, views_per_pass=4) is arithmetic


def test_without_a_compiler_a_long_pass_says_so_and_runs_uncompiled(tmp_path: Path) -> None:
    code = (
        "from tests.pipeline.backbone.test_precision import *\n"
        "exact = build_backbone('squeezenet1_1', random_state('squeezenet1_1', seed=0), PREPROCESSING)\n"
        "arithmetic = choose_precision(exact, precision='fp32', device=CPU, sample=SAMPLE)\n"
        "tried = compile_if_worthwhile(arithmetic, sample=SAMPLE, views=10_000, views_per_pass=4)\n"
        "assert tried.frozen is arithmetic.frozen and not tried.details['compiled']\n"
        "print(tried.notes)"
    )
    environment = {**os.environ, "PATH": str(tmp_path), "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = run_python(code, environment=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torch.compile does not work here" in done.stdout
    assert "runs uncompiled" in done.stdout
