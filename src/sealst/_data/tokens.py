"""Trunk cache: tokens that enter the first adapted block, computed once per crop and augmented view.

With adapters in the last k of L blocks the first L - k never change, so their output is kept (half precision) and only
the tail is run in training.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sealst._data.crop_cache import CachedCrops
from sealst._data.store import allocate
from sealst._logging import progress


def to_images(crops: np.ndarray, device: torch.device) -> torch.Tensor:
    """uint8 (b, px, px, 3) → float (b, 3, px, px) in [0, 1] on a device."""
    tensor = torch.from_numpy(np.ascontiguousarray(crops))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)


def cache_tokens(
    trunk: Callable[[torch.Tensor], torch.Tensor],
    crops: np.ndarray | CachedCrops,
    *,
    augment: Callable[[torch.Tensor], torch.Tensor],
    views: int,
    path: Path,
    device: torch.device,
    batch_size: int,
    show: bool | None = None,
) -> np.ndarray:
    """Run the trunk over every crop and view.

    Parameters
    ----------
    trunk
        Images (b, 3, px, px) in [0, 1] → tokens (b, t, w).
    crops
        uint8 (n, px, px, 3).
    augment
        Random augmentation of a batch of images, applied to every view but the first.
    views
        How many versions of each crop to keep; the first is the crop itself.
    path
        Where to put the memory map when the cache is large.
    device, batch_size
        Where and in which portions to run.
    show
        Progress bar; None follows the settings.

    Returns
    -------
    float16 (n, views, t, w).
    """
    cache: np.ndarray | None = None
    with torch.inference_mode(), progress(None, "trunk cache", total=len(crops) * views, show=show) as bar:
        for view in range(views):
            for start in range(0, len(crops), batch_size):
                images = to_images(crops[start : start + batch_size], device)
                tokens = trunk(images if view == 0 else augment(images))
                if cache is None:
                    cache = allocate((len(crops), views, *tokens.shape[1:]), np.float16, path)
                cache[start : start + len(images), view] = tokens.half().cpu().numpy()
                bar.update(len(images))
    if cache is None:
        raise ValueError("no crops to cache")
    return cache


def token_bytes(n: int, views: int, n_tokens: int, width: int) -> int:
    """Size of a trunk cache in bytes."""
    return n * views * n_tokens * width * 2
