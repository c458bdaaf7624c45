"""Crops as images: stored pixels as the tensors that encoders and augmentations take."""

from __future__ import annotations

import numpy as np
import torch


def to_images(crops: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 crops (n, h, w, 3) → float32 (n, 3, h, w) in [0, 1] on a device, in memory still channels-last."""
    tensor = torch.from_numpy(np.ascontiguousarray(crops)) if isinstance(crops, np.ndarray) else crops
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
