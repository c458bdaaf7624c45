from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch

import sealst as sl
from sealst._core.device import PRECISIONS, autocast, cuda_dtype, resolve_device, seeded


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


@pytest.mark.parametrize(
    ("precision", "fast", "slow"),
    [
        ("auto", torch.bfloat16, torch.float32),
        ("float32", torch.float32, torch.float32),
        ("float16", torch.float16, torch.float16),
        ("bfloat16", torch.bfloat16, torch.float16),
    ],
)
def test_precision_on_cuda(precision, fast, slow):
    assert cuda_dtype(precision, bf16=True) is fast
    assert cuda_dtype(precision, bf16=False) is slow
    with warnings.catch_warnings():
        # torch says so where there is no CUDA device, and keeps the type.
        warnings.filterwarnings("ignore", "User provided device_type|CUDA is not available")
        context = autocast(torch.device("cuda"), precision)
    here = fast if torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False) else slow
    if here is torch.float32:
        assert not context._enabled
    else:
        assert context.fast_dtype is here
        assert context._enabled == torch.cuda.is_available()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision_is_full_on_the_cpu(precision):
    with torch.autocast("cpu", dtype=torch.bfloat16), autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def test_unknown_precision():
    with pytest.raises(sl.DataError, match="`precision` must be one of 'auto'.*found 'fp16'"):
        cuda_dtype("fp16", bf16=True)
