"""What a training fixes so that the same sums have the same bits."""

import os

import pytest
import torch

from pipeline.training.reproducibility import fixed_threads
from tests.conftest import Small
from tests.processes import run_python

# MKL's own answer: 1 is off, 2 is AUTO, 3 is COMPATIBLE. The symbol is that of the MKL inside PyTorch's wheels.
MODE = """
import ctypes, sys, torch
from pathlib import Path
from pipeline.training.config import DataConfig, RuntimeConfig
from pipeline.training.train import train
settings = {"min_count": 1, "embedding_dim": 16, "hidden_dim": 16, "precision": "fp32"}
train(out=Path(sys.argv[2]), data=DataConfig(features=Path(sys.argv[1])), settings=settings, max_steps=1, runtime=RuntimeConfig(device="cpu"))
library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
print(getattr(library, "mkl_serv_cbwr_get", lambda _: "no MKL")(1))
"""


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="PyTorch has no MKL here")  # type: ignore[no-untyped-call]
@pytest.mark.parametrize(("chosen", "mode"), [(None, "2"), ("COMPATIBLE", "3")])
def test_a_training_multiplies_in_mkls_reproducible_mode_unless_the_user_chose_one(
    small: Small, tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch, chosen: str | None, mode: str
) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    if chosen is not None:
        monkeypatch.setenv("MKL_CBWR", chosen)
    found = run_python(MODE, small.features, tmp_path, check=True).stdout.split()[-1]
    if found == "MKL":
        pytest.skip("this MKL does not say its mode")
    assert found == mode


def test_the_number_of_threads_is_restored_after_an_error() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), fixed_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
