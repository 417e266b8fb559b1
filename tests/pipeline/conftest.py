from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.caching import cache_features
from tests.conftest import Small


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Sums of floats depend on the number of threads; training on several has to be reproducible too."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def grid(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of the small dataset with four positions."""
    out = tmp_path_factory.mktemp("grid")
    cache_features(shards=small.shards, out=out, backbone="resnet18", weights="random", device="cpu", precision="fp32", layout="grid")
    return out
