"""Sections as domains: gradient reversal against a classifier of sections, and sampling that balances them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sealst._errors import DataError
from sealst._validate import check_fraction


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * grad, None


def reverse_gradient(x: Tensor, weight: float = 1.0) -> Tensor:
    r"""Identity whose gradient is multiplied by :math:`-\text{weight}`.

    Between an encoder and a classifier of sections it makes the classifier learn to tell sections apart, and the
    encoder to hide them.

    Source: Ganin and Lempitsky, *Unsupervised Domain Adaptation by Backpropagation*, ICML 2015.

    Parameters
    ----------
    x
        Any floating tensor.
    weight
        Factor >= 0; the publication raises it from 0 to 1 over training.

    Raises
    ------
    DataError
        When `weight` is negative or not finite.

    Examples
    --------
    >>> x = torch.ones(2, requires_grad=True)
    >>> (3 * reverse_gradient(x, 0.5)).sum().backward()
    >>> x.grad.tolist()
    [-1.5, -1.5]
    """
    if not np.isfinite(weight) or weight < 0:
        raise DataError(f"`weight` must be a number from 0, found {weight!r}.")
    return _Reversed.apply(x, float(weight))


def balanced_weights(labels: np.ndarray, *, power: float = 1.0) -> np.ndarray:
    """Probability of sampling each spot such that every section has the same expected share.

    With two levels, such as organ and section, every organ has the same share and every section the same share of its
    organ's. A spot of section s gets ``1 / (n_organs * n_sections_of_the_organ * n_spots_of_s)``, raised to `power` and
    scaled to a sum of 1.

    Parameters
    ----------
    labels
        Section of every spot, (n,); or several levels with the outermost first, (n, levels). Equal names under
        different outer labels are different groups.
    power
        From 0 (all spots alike, so that sections count by their size) to 1 (balanced).

    Returns
    -------
    float64 (n,), summing to 1.

    Raises
    ------
    DataError
        When there is no spot, a label is missing, the shape is another one, or `power` lies outside [0, 1].

    Examples
    --------
    >>> balanced_weights(np.array(["A", "A", "A", "B"])).round(3).tolist()
    [0.167, 0.167, 0.167, 0.5]
    """
    check_fraction("power", power)
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or labels.size == 0:
        raise DataError(
            f"`labels` must have the shape (n,) or (n, levels) with at least one spot, found {labels.shape}."
        )
    columns = labels.reshape(len(labels), -1).T
    if missing := sum(value is None or value != value for value in columns.ravel()):  # NaN differs from itself
        raise DataError(f"`labels` has {missing} missing values; name them or leave the spots out.")
    weights, outer = np.ones(len(labels)), np.zeros(len(labels), dtype=np.int64)
    for column in columns:
        code = np.unique(column.astype(str), return_inverse=True)[1].reshape(-1)
        pairs, inner = np.unique(np.stack([outer, code]), axis=1, return_inverse=True)
        # Each group gets its part of the share of the group it lies in.
        weights /= np.bincount(pairs[0])[outer]
        outer = inner.reshape(-1)
    weights = (weights / np.bincount(outer)[outer]) ** power
    return weights / weights.sum()
