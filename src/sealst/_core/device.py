"""How networks run: on which device, in how many processes, in which precision and mode, and on which pixels."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from sealst._errors import DataError
from sealst._settings import settings
from sealst._validate import check_choice, listed

#: ``"auto"`` is bf16 where the device is fast at it, else full precision
PRECISIONS = ("auto", "float32", "float16", "bfloat16")
#: types of matrix products under ``settings.precision``
_CHOSEN = {"32-true": torch.float32, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}


def n_devices(devices: Any = 1, kind: str = "cpu") -> int:
    """How many devices of a node Lightning's argument `devices` asks for.

    Parameters
    ----------
    devices
        A number; ``-1`` or ``"auto"`` for all; a list of device numbers; or one of these as text, such as ``"0,1"``.
    kind
        Type of the devices, as torch calls it.
    """
    chosen = _parse_devices(devices)
    if isinstance(chosen, list):
        n = len(chosen) if kind != "cpu" else 0
    elif chosen == -1:
        n = torch.cuda.device_count() if kind == "cuda" else int(kind == "mps" or devices == "auto")
        if devices == "auto" and hasattr(sys, "ps1"):
            # As Lightning does: a session at a prompt cannot be started again on the others.
            n = min(n, 1)
    else:
        n = chosen
    if n < 1:
        raise DataError(
            f"`trainer_kwargs['devices']` is {devices!r}, which names no device of kind {kind!r}; pass a number from 1 "
            "on, or, for GPUs, 'auto' or a list of their numbers such as [0, 1]."
        )
    return n


def _parse_devices(devices: Any) -> int | list[int]:
    """A number of devices (-1 for all), or which."""
    found = -1 if devices == "auto" else devices
    if isinstance(found, str):
        with contextlib.suppress(ValueError):
            found = [int(part) for part in found.split(",") if part.strip()] if "," in found else int(found)
    if isinstance(found, Sequence) and not isinstance(found, str) and all(type(i) is int for i in found):
        return list(found)
    if type(found) is int and found >= -1:
        return found
    raise DataError(
        f"`trainer_kwargs['devices']` must be a number, 'auto', or numbers of devices such as [0, 1] or '0,1', found "
        f"{devices!r}."
    )


def processes(devices: Any = 1, num_nodes: int = 1, kind: str = "cpu") -> tuple[int, int]:
    """How many processes train together, and the number of this one among them.

    The launcher's environment counts, else what is asked of Lightning, which starts the others itself. `kind` is the
    type of the devices.
    """
    local, environment = n_devices(devices, kind), os.environ
    world = int(environment.get("WORLD_SIZE", local * num_nodes))
    if world == 1:
        return 1, 0
    if "RANK" in environment:
        return world, int(environment["RANK"])
    if "LOCAL_RANK" in environment:
        node = int(environment.get("NODE_RANK", environment.get("GROUP_RANK", 0)))
        return world, node * local + int(environment["LOCAL_RANK"])
    return world, int(environment.get("SLURM_PROCID", 0)) if _srun() else 0


def _srun() -> bool:
    """Whether SLURM started this process as one of several, by Lightning's rule: not a shell that it gave to a user."""
    return "SLURM_NTASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def resolve_device(name: str | None = None, devices: Any = 1) -> torch.device:
    """Turn ``None`` (settings), ``"auto"`` or a torch device name into a usable device.

    Of several processes on a node each has a GPU of its own, unless a number is named: of those in `devices`
    (Lightning's argument) where it lists some.
    """
    name = settings.device if name is None else name
    if name == "auto":
        if torch.cuda.is_available():
            return _own_gpu(devices)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DataError(
            f"`device` must be 'auto' or a torch device such as 'cpu' or 'cuda:0', found {name!r}."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DataError(f"`device` is {name!r}, but torch finds no CUDA device; use 'cpu' or 'auto'.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = listed(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        raise DataError(f"`device` is {name!r}, but torch finds {found}; use one of them, 'cpu' or 'auto'.")
    return _own_gpu(devices) if device == torch.device("cuda") else device


def _own_gpu(devices: Any) -> torch.device:
    """The GPU on which Lightning trains in this process, or the current one where no launcher numbers processes."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID") if _srun() else None)
    if local is None:
        return torch.device("cuda")
    chosen, number = _parse_devices(devices), int(local)
    if isinstance(chosen, list) and number < len(chosen):
        return torch.device("cuda", chosen[number])
    # Some launchers show every process its own GPU alone.
    return torch.device("cuda", number) if number < torch.cuda.device_count() else torch.device("cuda")


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


def training_autocast(device: torch.device, precision: str) -> torch.autocast:
    """Precision of a forward pass outside Lightning that belongs to a training inside it.

    Parameters
    ----------
    device
        Where both run.
    precision
        Lightning's precision of the training, such as ``"bf16-mixed"``; ``"auto"`` as for `autocast`.
    """
    if precision == "auto":
        return autocast(device)
    if not precision.startswith(("16", "bf16")):
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=False)
    # On CPUs Lightning takes bf16 where it is asked for float16.
    half = precision.startswith("16") and device.type != "cpu"
    return torch.autocast(device.type, dtype=torch.float16 if half else torch.bfloat16)


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


def to_images(crops: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 crops (n, h, w, 3) → float32 (n, 3, h, w) in [0, 1] on a device, in memory still channels-last."""
    if device.type == "cpu" and (isinstance(crops, np.ndarray) or crops.device.type == "cpu"):
        pixels = np.ascontiguousarray(crops)
        images = np.empty(pixels.shape, dtype=np.float32)
        # In one step: torch takes one to convert and another to divide, in memory that is new each time.
        np.divide(pixels, np.float32(255), out=images, dtype=np.float32, casting="unsafe")
        return torch.from_numpy(images).permute(0, 3, 1, 2)
    tensor = torch.from_numpy(np.ascontiguousarray(crops)) if isinstance(crops, np.ndarray) else crops
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Inside a ``with`` block, a module and all in it are in evaluation mode; afterwards as they were."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True
