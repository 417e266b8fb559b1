from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Sums of floats depend on the number of threads; training on several has to be reproducible too."""
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
