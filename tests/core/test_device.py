from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import sealst as sl
from sealst._core.device import resolve_device, seeded


def test_seeded_repeats_and_restores():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002

    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    with seeded(5):
        first = draw()
    with seeded(5):
        assert draw() == first

    def fail():
        with seeded(5):
            draw()
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert draw() == expected


def test_device_names():
    assert resolve_device("cpu") == torch.device("cpu")
    with sl.settings.override(device="cpu"):
        assert resolve_device() == torch.device("cpu")
    with pytest.raises(sl.DataError, match="found 'gpu'"):
        resolve_device("gpu")
