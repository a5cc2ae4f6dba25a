"""One thread a worker: the suite runs its files side by side, and threads of several workers would fight for cores."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_gradients():
    """Nothing here trains."""
    with torch.no_grad():
        yield
