"""Devices and seeds."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from sealst._errors import DataError
from sealst._settings import settings
from sealst._validate import check_choice

#: ``"auto"`` is bf16 where the device is fast at it, else full precision
PRECISIONS = ("auto", "float32", "float16", "bfloat16")
#: types of matrix products under ``settings.precision``
_CHOSEN = {"32-true": torch.float32, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def processes(devices: Any = 1, num_nodes: int = 1) -> tuple[int, int]:
    """How many processes train together, and the number of this one among them.

    The launcher's environment counts, else what is asked of Lightning, which starts the others itself.
    """
    local = devices if isinstance(devices, int) else len(devices)
    world = int(os.environ.get("WORLD_SIZE", max(1, local) * num_nodes))
    if world == 1:
        return 1, 0
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
    return world, int(ranks[0]) if ranks else 0


def resolve_device(name: str | None = None) -> torch.device:
    """Turn ``None`` (settings), ``"auto"`` or a torch device name into a usable device."""
    name = settings.device if name is None else name
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DataError(
            f"`device` must be 'auto' or a torch device such as 'cpu' or 'cuda:0', found {name!r}."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"`device` is {name!r}, but torch finds no CUDA device; use 'cpu' or 'auto'.")
    return device


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch inside a ``with`` block and restore the caller's random state afterwards."""
    python, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  the state that libraries use
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)  # noqa: NPY002


def has_bf16(device: torch.device) -> bool:
    """Whether a device is fast at bf16: CUDA from compute capability 8."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, precision: str = "auto") -> torch.autocast:
    """Precision of a forward pass: that of ``settings.precision``, else full wherever the device is not CUDA.

    Parameters
    ----------
    device
        Where the pass runs.
    precision
        One of `PRECISIONS`; what holds while ``settings.precision`` is ``"auto"``.
    """
    dtype = cuda_dtype(precision, bf16=has_bf16(device))
    if dtype == torch.float32 or (device.type != "cuda" and settings.precision == "auto"):
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=False)
    return torch.autocast(device.type, dtype=dtype)


def cuda_dtype(precision: str, *, bf16: bool) -> torch.dtype:
    """Type that matrices are multiplied in on CUDA, by whether the device is fast at bf16 (compute capability 8).

    What ``settings.precision`` states counts first.
    """
    check_choice("precision", precision, PRECISIONS)
    if settings.precision != "auto":
        return _CHOSEN[settings.precision]
    if precision == "auto":
        return torch.bfloat16 if bf16 else torch.float32
    if precision == "bfloat16" and not bf16:
        return torch.float16
    return getattr(torch, precision)
