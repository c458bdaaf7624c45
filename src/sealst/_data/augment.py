"""Augmentation of H&E crops in batch, on the device: (B, 3, H, W) float in [0, 1] → the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from sealst._core.space.views import N_SYMMETRIES

# Optical densities of haematoxylin, eosin and a residual (Ruifrok & Johnston 2001), rows normalised.
_HED = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])


def _uniform(n: int, low: float, high: float, like: torch.Tensor, channels: int = 1) -> torch.Tensor:
    return torch.empty(n, channels, 1, 1, device=like.device, dtype=like.dtype).uniform_(low, high)


def dihedral(x: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
    """Flip and rotate each crop by one of the eight symmetries of the square."""
    which = torch.randint(0, N_SYMMETRIES, (len(x),), device=x.device) if which is None else which
    out = torch.empty_like(x)
    for code in range(N_SYMMETRIES):
        mine = which == code
        if mine.any():
            turned = torch.rot90(x[mine], code % 4, dims=(2, 3))
            out[mine] = turned.flip(3) if code >= 4 else turned
    return out


def colour_jitter(x: torch.Tensor, strength: float) -> torch.Tensor:
    """Brightness, contrast and saturation, each scaled by up to ±`strength` per crop."""
    n = len(x)
    x = x * _uniform(n, 1 - strength, 1 + strength, x)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * _uniform(n, 1 - strength, 1 + strength, x)
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * _uniform(n, 1 - strength, 1 + strength, x)).clamp(0, 1)


def stain_jitter(x: torch.Tensor, strength: float, shift: float = 0.0) -> torch.Tensor:
    """Scale each stain by up to ±`strength` and shift it by up to ±`shift`, per crop (in optical density).

    Haematoxylin, eosin and a residual are taken apart in optical density, changed and put together again, as in the
    HED augmentation of Tellez et al. (2018). A shift tints what is not stained, so it should be small.
    """
    stains = (_HED / _HED.norm(dim=1, keepdim=True)).to(x)
    density = -torch.log(x.clamp(1 / 255, 1))
    amounts = torch.einsum("bchw,cs->bshw", density, torch.linalg.inv(stains))
    amounts = amounts * _uniform(len(x), 1 - strength, 1 + strength, x, channels=3)
    if shift:
        amounts = amounts + _uniform(len(x), -shift, shift, x, channels=3)
    return torch.exp(-torch.einsum("bshw,sc->bchw", amounts, stains)).clamp(0, 1)


def erase(x: torch.Tensor, share: float = 0.1) -> torch.Tensor:
    """Fill one random square of each crop, of up to `share` of its area, with the crop's mean colour."""
    n, _, height, width = x.shape
    side = (torch.rand(n, device=x.device) * share * height * width).sqrt()
    top, left = torch.rand(n, device=x.device) * (height - side), torch.rand(n, device=x.device) * (width - side)
    rows, cols = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    in_rows = (rows >= top[:, None]) & (rows < (top + side)[:, None])
    in_cols = (cols >= left[:, None]) & (cols < (left + side)[:, None])
    hole = (in_rows[:, :, None] & in_cols[:, None, :])[:, None]
    return torch.where(hole, x.mean((2, 3), keepdim=True), x)


def blur(x: torch.Tensor, sigma: float = 1.5) -> torch.Tensor:
    """Blur each crop by a Gaussian of its own width, drawn from 0 to `sigma` pixels; edges are repeated outwards."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    # A width of 0 would be 0 / 0; at a tenth of a pixel nothing is left of the neighbours.
    widths = _uniform(len(x), 0, sigma, x).clamp(min=0.1)
    weights = torch.exp(-0.5 * (offsets / widths) ** 2)
    weights = weights / weights.sum(-1, keepdim=True)
    # Shifted sums: a convolution would want the same weights for all crops, or a group for each.
    for dim in (2, 3):
        n = x.shape[dim]
        sides = (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0)
        padded, x = F.pad(x, sides, mode="replicate"), torch.zeros_like(x)
        for i in range(len(offsets)):
            x.addcmul_(weights[..., i : i + 1], padded.narrow(dim, i, n))
    return x.clamp(0, 1)


def _none(x: torch.Tensor) -> torch.Tensor:
    return x


def _soft(x: torch.Tensor) -> torch.Tensor:
    return colour_jitter(dihedral(x), 0.1)


def _stain(x: torch.Tensor) -> torch.Tensor:
    return stain_jitter(dihedral(x), 0.2, shift=0.02)


def _hard(x: torch.Tensor) -> torch.Tensor:
    return erase(blur(colour_jitter(stain_jitter(dihedral(x), 0.25), 0.15)))


#: raised with every change of what a preset does to an image, so that tokens of the old one are not taken for new
AUGMENTATION_VERSIONS = {"none": 1, "soft": 1, "stain": 1, "hard": 2}

#: named presets: none; soft (flips, rotations by 90°, mild colour jitter); stain (flips, rotations by 90°, stains
#: scaled by up to ±20 % and shifted by up to ±0.02 of optical density); hard (soft, with stain scaling,
#: Gaussian blur of up to 1.5 pixels and erasing)
AUGMENTATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": _none,
    "soft": _soft,
    "stain": _stain,
    "hard": _hard,
}
