"""Weights files of other programs: a state dict as .pth or .safetensors, read without running any code in it."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from shards.errors import InputError, first_line

STATE_DICT = "Save the network's state_dict(), which holds tensors alone, as .pth or .safetensors, and give that file."


def load_tensors(path: Path) -> Any:
    """What :func:`torch.load` reads with ``weights_only``, on the CPU.

    Raises:
        ValueError: The problem in words: torch's own messages advise to load the file without ``weights_only``, which runs any code in it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:  # torch raises other OSErrors for damaged files
        raise ValueError(f"cannot be read ({first_line(error)})") from None
    except Exception as error:  # torch and its unpickler raise many kinds of errors for untrusted bytes
        if "torchscript" in str(error).lower():
            raise ValueError("is a TorchScript archive, which contains code") from None
        if type(error).__name__ == "UnpicklingError" and "weights" in str(error).lower():
            raise ValueError("holds Python objects besides tensors, which could run code when loaded") from None
        raise ValueError("is no file of tensors, or damaged") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a .pth or .safetensors file.

    Raises:
        InputError: It is neither, or holds something else than dense tensors.
    """
    try:
        state = load_file(path) if path.suffix == ".safetensors" else load_tensors(path)
    except Exception as error:  # safetensors raises many kinds of errors, too
        problem = str(error) if isinstance(error, ValueError) else f"cannot be read ({first_line(error)})"
        raise InputError(f"{path}: not a weights file: it {problem}. {STATE_DICT}") from None
    if isinstance(state, dict) and (nested := [name for name, value in state.items() if _is_state(value)]):
        raise InputError(f"{path}: not a state dict, but its entry {str(nested[0])!r} is one. Save that entry alone, and give that file.")
    if not _is_state(state):
        raise InputError(f"{path}: not a state dict (names to tensors). {STATE_DICT}")
    _check_tensors(path, state)
    return state


def _is_state(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())


def _check_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Refuse tensors that no network computes with, before their error looks like one of the image's size."""
    for name, tensor in state.items():
        if tensor.is_meta:
            raise InputError(f"{path}: {name} has no data (it is on PyTorch's meta device). Load the network's weights before its state is saved.")
        if tensor.layout != torch.strided:
            raise InputError(f"{path}: {name} is sparse ({str(tensor.layout).removeprefix('torch.')}). Save it dense: tensor.to_dense()")
        if tensor.is_quantized or tensor.is_complex() or (tensor.is_floating_point() and tensor.itemsize < 2):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise InputError(f"{path}: {name} has values of type {kind}. Save the weights as float32, float16 or bfloat16.")
