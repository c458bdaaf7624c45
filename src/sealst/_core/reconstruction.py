"""Reconstruction losses of predicted expression, gene by gene or spot by spot.

All but `negative_binomial` compare expression in per-gene standardised units and return a scalar. Statistics over the
batch are those of the tensors given: for a batch that is spread over devices, gather it (with gradient) first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sealst._core.loss_input import check_batch, correlation, in_float32, mean, measured, standardised
from sealst._validate import check_positive


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
    return mean(1 - r, (weight.sum(1) >= 2).to(r.dtype))


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
    diagonal = ((1 - r).square() * (weight.sum(0) >= 2)).sum()
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
    both = weight.T @ weight
    cross = standardised(pred, weight, dim=0).T @ standardised(target, weight, dim=0) / both.clamp(min=1)
    diagonal = torch.eye(len(cross), dtype=cross.dtype, device=cross.device)
    penalty = diagonal * (1 - cross).square() + off_diagonal * (1 - diagonal) * cross.square()
    return (penalty * (both >= 2)).sum()
