"""Reconstruction losses on the structure of a batch: the distribution of its profiles and its leading axes.

Both compare expression in per-gene standardised units. What they take from the truth to set themselves up (bandwidth,
axes, weights) is constant to the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sealst._core.losses.inputs import centred, check_batch, correlation, in_float32, measured
from sealst._errors import DataError
from sealst._validate import check_positive

# Lowest bandwidth, as a share of the expected squared distance of two spots whose genes vary by 1: where most spots of
# a batch are alike, a bandwidth near 0 would leave every prediction out of reach of the truth.
_MIN_BANDWIDTH = 0.01


@in_float32
def mmd(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, *, bandwidths: Sequence[float] = (0.25, 0.5, 1, 2, 4)
) -> Tensor:
    r"""Squared maximum mean discrepancy between the predicted and the true profiles of the batch.

    :math:`L = \frac{1}{B^2} \sum_{ij} \left[k(p_i, p_j) + k(t_i, t_j) - 2 k(p_i, t_j)\right]` with
    :math:`k(x, y) = \frac{1}{M} \sum_m \exp\left(-\frac{\lVert x - y \rVert^2}{b_m s}\right)`, where s is the (lower)
    median squared distance between two true profiles of the batch and :math:`b_m` are `bandwidths`.

    It asks that the predictions spread as the truth does, which a mean squared error does not reward, and does not ask
    which prediction belongs to which spot: it is an addition to a loss by spot, not a replacement.

    The biased estimate is taken, pairs of a spot with itself included. It is never negative and 0 for a perfect
    prediction; the unbiased one is lower by terms of order 1/B, and assumes samples that are drawn independently, while
    row i of both belongs to one spot here. With `mask`, unmeasured entries are 0 (the gene's mean) in prediction and
    truth. Distances over the genes that two spots share would not come from one space, and the result could be
    negative.

    Source: Gretton et al., *A Kernel Two-Sample Test*, Journal of Machine Learning Research 13, 2012.

    Parameters
    ----------
    pred, target, mask
        As in `reconstruction.mse`.
    bandwidths
        Multiples of the median squared distance, each > 0.

    Returns
    -------
    Scalar tensor in [0, 2].

    Raises
    ------
    DataError
        When shapes do not fit, `mask` is not bool, the batch holds one spot, or a bandwidth is not positive.

    Examples
    --------
    >>> x = torch.randn(16, 5)
    >>> bool(mmd(x.flip(0), x) < mmd(0.1 * x, x))
    True
    """
    if not bandwidths:
        raise DataError("`bandwidths` must hold at least one multiple of the median squared distance, found none.")
    for multiple in bandwidths:
        check_positive("bandwidths", multiple)
    check_batch(pred, "`mmd`")
    pred, target, weight = measured(pred, target, mask)
    among_true = _squared_distances(target, target)
    rows, columns = torch.triu_indices(len(pred), len(pred), 1, device=pred.device)
    least = _MIN_BANDWIDTH * 2 * (weight.sum() / len(weight)).clamp(min=1)
    scale = torch.maximum(among_true.detach()[rows, columns].median(), least)

    def kernel(distances: Tensor) -> Tensor:
        return torch.stack([torch.exp(-distances / (b * scale)).mean() for b in bandwidths]).mean()

    among_predicted, between = _squared_distances(pred, pred), _squared_distances(pred, target)
    return kernel(among_predicted) + kernel(among_true) - 2 * kernel(between)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squared = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
    # Rounding makes the distance of a row to itself slightly negative.
    return squared.clamp(min=0)


@in_float32
def pls(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, n_axes: int = 10) -> Tensor:
    r"""1 - r of prediction and truth along the truth's leading axes of variation over the batch.

    :math:`L = \sum_k w_k \left[1 - \mathrm{corr}(P v_k, T v_k)\right]`, where :math:`v_k` are the leading right
    singular vectors of the truth T, centred per gene over the batch, and :math:`w_k \propto \sigma_k^2` the variance
    that each explains, summing to 1. Programs of many genes count by what they explain; noise of single genes hardly.

    The axes and weights are those of the truth and constant to the gradient: nothing is propagated through the
    decomposition, whose derivative grows without bound where two singular values meet. It costs an eigendecomposition
    of the smaller of (B, B) and (G, G). With `mask`, a gene is centred over the spots in which it was measured and 0 in
    the others, on both sides. A prediction that is constant along an axis has r = 0 there. Where the truth does not
    vary at all, there is no axis and the loss is 0.

    Source: after partial least squares (Wold, *Estimation of principal components and related models by iterative least
    squares*, 1966; Wold et al., Chemometrics and Intelligent Laboratory Systems 58, 2001), which seeks directions along
    which two tables vary together; here the directions are fixed by the truth.

    Parameters
    ----------
    pred, target, mask
        As in `reconstruction.mse`.
    n_axes
        Number of axes; fewer where batch or panel are smaller.

    Returns
    -------
    Scalar tensor in [0, 2].

    Raises
    ------
    DataError
        When shapes do not fit, `mask` is not bool, the batch holds one spot, or `n_axes` is not a whole number >= 1.

    Examples
    --------
    >>> x = torch.randn(16, 5)
    >>> abs(round(pls(2 * x + 1, x).item(), 4))
    0.0
    """
    if not isinstance(n_axes, int) or n_axes < 1:
        raise DataError(f"`n_axes` must be a whole number from 1, found {n_axes!r}.")
    check_batch(pred, "`pls`")
    pred, target, weight = measured(pred, target, mask)
    pred, target = centred(pred, weight, dim=0), centred(target, weight, dim=0)
    axes, explained = _leading_axes(target.detach(), n_axes)
    along_pred, along_true = pred @ axes, target @ axes
    r = correlation(along_pred, along_true, torch.ones_like(along_pred), dim=0)
    total = explained.sum()
    return (explained / torch.where(total > 0, total, 1) * (1 - r)).sum()


def _leading_axes(x: Tensor, n_axes: int) -> tuple[Tensor, Tensor]:
    """Leading right singular vectors (G, k) of `x` and their squared singular values (k,)."""
    if len(x) > x.shape[1]:
        squared, axes = torch.linalg.eigh(x.T @ x)
    else:
        squared, left = torch.linalg.eigh(x @ x.T)
        axes = torch.nn.functional.normalize(x.T @ left, dim=0)
    # `eigh` sorts upwards.
    return axes[:, -n_axes:].flip(1), squared[-n_axes:].flip(0).clamp(min=0)
