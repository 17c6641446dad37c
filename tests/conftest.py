"""Fixtures that every test may use: a device, the image data, a fixed seed."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

# The test machines have two cores; more threads than cores make small tensors slower.
torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device that a numerical test runs on: the CPU always, CUDA where there is one."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with the image data, named by COMPANION_DATA."""
    root = os.environ.get("COMPANION_DATA")
    if not root:
        pytest.skip("image data: set COMPANION_DATA to the folder that holds them")
    if not Path(root).is_dir():
        pytest.skip(f"image data: COMPANION_DATA={root} is no folder")
    return Path(root)
