"""What the losses share: precision, checks, and statistics over measured entries.

Half-precision inputs are promoted to float32 and autocast is switched off inside a loss, because similarities divided
by a small temperature and batch variances lose too much in 8 to 11 bits; float64 inputs stay float64.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor

from sealst._errors import DataError

P = ParamSpec("P")

# In standardised units a gene varies by about 1; below this it counts as constant. It bounds the gradient of a
# correlation, which is otherwise infinite where the prediction is constant.
MIN_VARIANCE = 1e-6


def in_float32(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run a loss in float32 (or in float64 where its inputs are), also under autocast."""

    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        with torch.autocast(tensors[0].device.type if tensors else "cpu", enabled=False):
            return loss(*map(promote, args), **{k: promote(v) for k, v in kwargs.items()})

    def promote(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    return wrapped


def check_batch(x: Tensor, what: str) -> None:
    """Raise unless the batch has two rows."""
    if len(x) < 2:
        raise DataError(
            f"{what} needs at least 2 spots in the batch, found {len(x)}. "
            "Raise the batch size, or drop the incomplete last batch (`drop_last=True`)."
        )


def measured(
    pred: Tensor, target: Tensor, mask: Tensor | None, *, name: str = "target"
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Prediction and truth with 0 where not measured, and the weight (1 measured, 0 not) of every entry.

    Without a mask there is no weight: a product by 1 is another pass over the batch, and on the way back one more.
    """
    if pred.ndim != 2 or pred.shape != target.shape:
        raise DataError(
            f"`pred` and `{name}` must have one shape (B, G), found {tuple(pred.shape)} and {tuple(target.shape)}."
        )
    if mask is None:
        return pred, target, None
    if mask.dtype != torch.bool or tuple(mask.shape) not in (tuple(pred.shape), tuple(pred.shape[1:])):
        raise DataError(
            f"`mask` must be bool of shape {tuple(pred.shape[1:])} or {tuple(pred.shape)}, "
            f"found {mask.dtype} {tuple(mask.shape)}."
        )
    mask = mask.expand(pred.shape)
    # `where` and not a product: 0 * NaN is NaN.
    return torch.where(mask, pred, 0), torch.where(mask, target, 0), mask.to(pred.dtype)


def n_measured(x: Tensor, weight: Tensor | None, *, dim: int, keepdim: bool = False) -> Tensor:
    """How many entries along `dim` are measured."""
    if weight is None:
        shape = list(x.shape)
        shape[dim : dim + 1] = [1] if keepdim else []
        return x.new_full(shape, x.shape[dim])
    return weight.sum(dim, keepdim=keepdim)


def mean(x: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over measured entries, 0 where there is none."""
    if weight is None:
        return x.sum() / max(1, x.numel())
    return (x * weight).sum() / weight.sum().clamp(min=1)


def centred(x: Tensor, weight: Tensor | None, *, dim: int) -> Tensor:
    """Difference from the mean over measured entries along `dim`, 0 where not measured."""
    if weight is None:
        return x - x.sum(dim, keepdim=True) / max(1, x.shape[dim])
    n = weight.sum(dim, keepdim=True).clamp(min=1)
    return (x - (x * weight).sum(dim, keepdim=True) / n) * weight


def standardised(x: Tensor, weight: Tensor | None, *, dim: int) -> Tensor:
    """Differences from the mean divided by the biased standard deviation along `dim`; constants become 0."""
    n = n_measured(x, weight, dim=dim, keepdim=True).clamp(min=1)
    x = centred(x, weight, dim=dim)
    variance = x.square().sum(dim, keepdim=True) / n
    return x / variance.clamp(min=MIN_VARIANCE).sqrt()


def correlation(pred: Tensor, target: Tensor, weight: Tensor | None, *, dim: int) -> Tensor:
    """Correlation over measured entries along `dim`, 0 where a side is constant."""
    product = standardised(pred, weight, dim=dim) * standardised(target, weight, dim=dim)
    return product.sum(dim) / n_measured(pred, weight, dim=dim).clamp(min=1)
