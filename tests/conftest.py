"""One thread for every test, and the devices that are there."""

import pytest
import torch

torch.set_num_threads(1)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> torch.device:
    """Each device present, in turn."""
    return torch.device(request.param)
