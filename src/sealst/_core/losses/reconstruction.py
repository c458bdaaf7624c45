"""Reconstruction losses of predicted expression: by gene, by spot, and on the structure of a batch (`mmd`, `pls`).

All but `negative_binomial` compare expression in per-gene standardised units and return a scalar. Statistics over the
batch are those of the tensors given: for a batch that is spread over devices, gather it (with gradient) first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sealst._core.losses.inputs import (
    centred,
    check_batch,
    correlation,
    in_float32,
    mean,
    measured,
    n_measured,
    standardised,
)
from sealst._errors import DataError
from sealst._validate import check_positive, whole

# Lowest expected share of a spot's counts: 1 count per million, of which no spot sees one. It bounds the gradient of a
# logarithm, which is otherwise infinite at a mean of 0.
_MIN_SHARE = 1e-6
# A dispersion beyond these bounds is Poisson, or all zeros, to every digit of float32.
_LOG_THETA = (-15.0, 15.0)


@in_float32
def mse(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over measured entries.

    Parameters
    ----------
    pred, target
        Expression (B, G), standardised per gene with the panel's mean and standard deviation.
    mask
        bool, (G,) or (B, G), True where the gene was measured; None when all were. Entries outside count for nothing,
        whatever they hold (NaN included); when no entry is measured the loss is 0.

    Raises
    ------
    DataError
        When shapes do not fit, or `mask` is not bool.

    Examples
    --------
    >>> mse(torch.zeros(2, 3), torch.ones(2, 3)).item()
    1.0
    """
    pred, target, weight = measured(pred, target, mask)
    return mean(F.mse_loss(pred, target, reduction="none"), weight)


@in_float32
def l1(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error over measured entries; arguments as in `mse`.

    Examples
    --------
    >>> l1(torch.zeros(2, 3), -2 * torch.ones(2, 3)).item()
    2.0
    """
    pred, target, weight = measured(pred, target, mask)
    return mean(F.l1_loss(pred, target, reduction="none"), weight)


@in_float32
def huber(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, delta: float = 1.0) -> Tensor:
    """Huber loss over measured entries: squared up to `delta`, linear beyond; arguments as in `mse`.

    Half the squared error where ``|error| <= delta``, else ``delta * (|error| - delta / 2)`` (Huber 1964).

    Examples
    --------
    >>> huber(torch.zeros(2, 3), 3 * torch.ones(2, 3)).item()
    2.5
    """
    check_positive("delta", delta)
    pred, target, weight = measured(pred, target, mask)
    return mean(F.huber_loss(pred, target, reduction="none", delta=delta), weight)


@in_float32
def pearson(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - r of every spot, r over its measured genes; the mean over spots.

    A spot whose prediction or truth is constant over genes has r = 0. Spots with fewer than two measured genes are
    left out of the mean. Arguments as in `mse`.

    Examples
    --------
    >>> x = torch.randn(4, 5)
    >>> abs(round(pearson(2 * x + 1, x).item(), 4))
    0.0
    """
    pred, target, weight = measured(pred, target, mask)
    r = correlation(pred, target, weight, dim=1)
    return mean(1 - r, (n_measured(pred, weight, dim=1) >= 2).to(r.dtype))


@in_float32
def pearson_genes(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - r of every gene over the spots of the batch that measure it; the mean over genes.

    A gene whose prediction or truth is constant over the batch has r = 0. Genes measured in fewer than two spots of the
    batch are left out of the mean. Arguments as in `mse`, errors as in `barlow_std_mse`.

    Examples
    --------
    >>> x = torch.randn(6, 5)
    >>> abs(round(pearson_genes(2 * x + 1, x).item(), 4))
    0.0
    """
    check_batch(pred, "`pearson_genes`")
    pred, target, weight = measured(pred, target, mask)
    r = correlation(pred, target, weight, dim=0)
    return mean(1 - r, (n_measured(pred, weight, dim=0) >= 2).to(r.dtype))


@in_float32
def barlow_std_mse(
    pred: Tensor, target: Tensor, mask: Tensor | None = None, *, corr_weight: float = 0.05, mse_weight: float = 5.0
) -> Tensor:
    r"""Diagonal Barlow term plus standardised mean squared error, the reconstruction loss of SEAL.

    :math:`L = 0.05 \sum_g (1 - r_g)^2 + 5\,\mathrm{MSE}`, where :math:`r_g` is the correlation of prediction and truth
    of gene g over the batch, both standardised with the biased variance.

    The first term is a *sum* over genes, as published: it grows with the panel. With `mask`, :math:`r_g` runs over the
    spots in which the gene was measured, and the sum over the genes measured in at least two spots of the batch. A
    gene that is constant over these has :math:`r_g = 0`: it adds `corr_weight`, without a gradient where the truth is
    the constant one. (Variances are floored at 1e-6 to keep gradients bounded.)

    Source: Hemker et al., *Towards Spatial Transcriptomics-driven Pathology Foundation Models*, arXiv 2602.14177, 2026.

    Parameters
    ----------
    pred, target, mask
        As in `mse`.
    corr_weight, mse_weight
        Weights of the two terms.

    Raises
    ------
    DataError
        When shapes do not fit, `mask` is not bool, or the batch holds one spot (it has no correlation).

    Examples
    --------
    >>> x = torch.randn(8, 5)
    >>> abs(round(barlow_std_mse(x, x).item(), 4))
    0.0
    """
    check_batch(pred, "`barlow_std_mse`")
    pred, target, weight = measured(pred, target, mask)
    r = correlation(pred, target, weight, dim=0)
    diagonal = ((1 - r).square() * (n_measured(pred, weight, dim=0) >= 2)).sum()
    return corr_weight * diagonal + mse_weight * mean((pred - target).square(), weight)


@in_float32
def barlow(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, off_diagonal: float = 5e-3) -> Tensor:
    r"""Barlow Twins loss on the gene by gene cross-correlation of prediction and truth over the batch.

    :math:`L = \sum_g (1 - C_{gg})^2 + \lambda \sum_{g \ne h} C_{gh}^2`, where C is the correlation of predicted gene g
    with measured gene h, both standardised with the biased variance. Genes are correlated in truth, so a perfect
    prediction does not reach 0.

    With `mask`, a gene is standardised over the spots in which it was measured, and :math:`C_{gh}` runs over the spots
    in which both were; pairs with fewer than two such spots are left out. Constant genes correlate by 0.

    Source: Zbontar et al., *Barlow Twins: Self-Supervised Learning via Redundancy Reduction*, ICML 2021.

    Parameters
    ----------
    pred, target, mask
        As in `mse`; errors as in `barlow_std_mse`.
    off_diagonal
        :math:`\lambda`.

    Examples
    --------
    >>> x = torch.randn(64, 3)
    >>> bool(barlow(x, x) < barlow(x.flip(0), x))
    True
    """
    check_batch(pred, "`barlow`")
    pred, target, weight = measured(pred, target, mask)
    present = torch.ones_like(pred) if weight is None else weight
    both = present.T @ present
    cross = standardised(pred, weight, dim=0).T @ standardised(target, weight, dim=0) / both.clamp(min=1)
    diagonal = torch.eye(len(cross), dtype=cross.dtype, device=cross.device)
    penalty = diagonal * (1 - cross).square() + off_diagonal * (1 - diagonal) * cross.square()
    return (penalty * (both >= 2)).sum()


@in_float32
def negative_binomial(
    pred: Tensor,
    counts: Tensor,
    mask: Tensor | None = None,
    *,
    library: Tensor,
    log_theta: Tensor,
    target_sum: float = 1e4,
) -> Tensor:
    r"""Negative log likelihood of counts under a negative binomial whose mean is the predicted expression.

    With :math:`\mu_{bg} = \mathrm{expm1}(p_{bg})\, l_b / s` for prediction p, library l and `target_sum` s:
    :math:`L = -\mathrm{mean}_{bg} \log\left[\frac{\Gamma(x + \theta_g)}{\Gamma(\theta_g)\, x!}
    \left(\frac{\theta_g}{\theta_g + \mu}\right)^{\theta_g} \left(\frac{\mu}{\theta_g + \mu}\right)^x\right]`;
    the variance is :math:`\mu + \mu^2 / \theta`. Fractional counts, such as sums with the neighbours', are allowed (a
    quasi-likelihood with the same minimum at the mean).

    A mean below one millionth of the library counts as that. Below, the gradient that lowers the prediction further is
    dropped and the one that raises it is kept, so that no entry is stuck at 0; likewise for `log_theta` outside ±15.

    Source: Lopez et al., *Deep generative modeling for single-cell transcriptomics*, Nature Methods 15, 2018; Hilbe,
    *Negative Binomial Regression*, 2011 (NB2).

    Parameters
    ----------
    pred
        Expression (B, G) as log1p of counts scaled to `target_sum`; *not* standardised.
    counts
        Counts (B, G), not negative, of the spots that `library` sums.
    mask
        As in `mse`.
    library
        Counts of each spot over all genes, (B,).
    log_theta
        Logarithm of the dispersion of each gene, (G,), usually learned; :math:`\theta \to \infty` is Poisson.
    target_sum
        Counts per spot to which `pred` refers.

    Returns
    -------
    Scalar tensor in nats, mean over measured entries; 0 where there is none.

    Raises
    ------
    DataError
        When shapes do not fit, `mask` is not bool, or `target_sum` is not positive.

    Examples
    --------
    >>> counts = torch.tensor([[3.0, 97.0]])
    >>> right, flat = torch.log1p(100 * counts), torch.log1p(torch.full((1, 2), 5e3))
    >>> options = {"library": counts.sum(1), "log_theta": torch.zeros(2)}
    >>> bool(negative_binomial(right, counts, **options) < negative_binomial(flat, counts, **options))
    True
    """
    check_positive("target_sum", target_sum)
    pred, counts, weight = measured(pred, counts, mask, name="counts")
    if library.shape != pred.shape[:1] or log_theta.shape != pred.shape[1:]:
        raise DataError(
            f"`library` must have the shape {tuple(pred.shape[:1])} and `log_theta` {tuple(pred.shape[1:])}, found "
            f"{tuple(library.shape)} and {tuple(log_theta.shape)}."
        )
    counts = counts.to(pred.dtype)
    level = _Bounded.apply(pred, math.log1p(_MIN_SHARE * target_sum), math.inf)
    # log(expm1(level)), which does not overflow; an empty spot expects next to nothing.
    log_mu = level + torch.log(-torch.expm1(-level)) + torch.log(library.clamp(min=_MIN_SHARE) / target_sum)[:, None]
    log_theta = _Bounded.apply(log_theta, *_LOG_THETA)
    theta = log_theta.exp()
    choices = torch.lgamma(counts + 1) - _log_rising(counts, theta)
    return mean(choices + (theta + counts) * F.softplus(log_mu - log_theta) - counts * log_mu, weight)


def _log_rising(x: Tensor, theta: Tensor) -> Tensor:
    """log(gamma(x + theta) / gamma(theta) / theta^x), which goes to 0 as theta grows."""
    small, large = theta.clamp(max=20), theta.clamp(min=20)
    exact = torch.lgamma(x + small) - torch.lgamma(small) - x * small.log()
    # The difference of two large numbers loses every digit in float32; Stirling's series cancels them on paper.
    series = (large + x - 0.5) * torch.log1p(x / large) - x + _stirling_rest(large + x) - _stirling_rest(large)
    return torch.where(theta < 20, exact, series)


def _stirling_rest(z: Tensor) -> Tensor:
    return (1 / 12 - (1 / 360 - (1 / 1260 - 1 / 1680 / z**2) / z**2) / z**2) / z


class _Bounded(torch.autograd.Function):
    """Clamp whose gradient is dropped only where a step along it would lead further out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        return grad * (((x >= low) | (grad < 0)) & ((x <= high) | (grad > 0))), None, None


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
    n_genes = n_measured(pred, weight, dim=1).mean()
    least = _MIN_BANDWIDTH * 2 * n_genes.clamp(min=1)
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
    whole("n_axes", n_axes, least=1)
    check_batch(pred, "`pls`")
    pred, target, weight = measured(pred, target, mask)
    pred, target = centred(pred, weight, dim=0), centred(target, weight, dim=0)
    x = target.detach()
    if len(x) > x.shape[1]:
        squared, axes = torch.linalg.eigh(x.T @ x)
    else:
        squared, left = torch.linalg.eigh(x @ x.T)
        axes = F.normalize(x.T @ left, dim=0)
    # `eigh` sorts upwards.
    axes, explained = axes[:, -n_axes:].flip(1), squared[-n_axes:].flip(0).clamp(min=0)
    along_pred, along_true = pred @ axes, target @ axes
    r = correlation(along_pred, along_true, torch.ones_like(along_pred), dim=0)
    total = explained.sum()
    return (explained / torch.where(total > 0, total, 1) * (1 - r)).sum()
