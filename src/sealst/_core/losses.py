"""Losses of spatial expression-aligned learning: contrastive, reconstruction, and the KL term of the gene encoder.

Every function takes tensors and returns a scalar. Half-precision inputs are promoted to float32 and autocast is
switched off inside, because similarities divided by a small temperature and batch variances lose too much in 8 to 11
bits; float64 inputs stay float64. Statistics over the batch are those of the tensors given: for a batch that is spread
over devices, gather it (with gradient) first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
import torch.nn.functional as F
from torch import Tensor

from sealst._errors import DataError
from sealst._validate import check_positive

P = ParamSpec("P")

# In standardised units a gene varies by about 1; below this it counts as constant. It bounds the gradient of a
# correlation, which is otherwise infinite where the prediction is constant.
_MIN_VARIANCE = 1e-6
_MIN_NORM = 1e-6


def _in_float32(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    @functools.wraps(loss)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        with torch.autocast(tensors[0].device.type if tensors else "cpu", enabled=False):
            return loss(*map(_promote, args), **{k: _promote(v) for k, v in kwargs.items()})

    return wrapped


def _promote(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


# --- contrastive ------------------------------------------------------------------------------------------------------


@_in_float32
def clip_loss(image: Tensor, gene: Tensor, *, temperature: float | Tensor = 0.05) -> Tensor:
    r"""Symmetric cross entropy between paired image and gene embeddings (CLIP).

    With cosine similarities :math:`s_{ij}` and temperature :math:`\tau`:
    :math:`L = -\frac{1}{2B} \sum_i \left[\log \mathrm{softmax}_j(s_{ij}/\tau)_i
    + \log \mathrm{softmax}_j(s_{ji}/\tau)_i\right]`.

    Source: Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021; the
    fixed temperature 0.05 is that of Hemker et al., arXiv 2602.14177 (2026).

    Parameters
    ----------
    image, gene
        Embeddings (B, d); row i of both belongs to spot i. They are L2-normalised inside.
    temperature
        :math:`\tau` > 0; a tensor where it is learned.

    Returns
    -------
    Scalar tensor, mean over the batch; :math:`\log B` at chance.

    Raises
    ------
    DataError
        When shapes differ, the batch holds one spot (it has no negatives), or the temperature is not positive.

    Examples
    --------
    >>> z = torch.eye(4)
    >>> bool(clip_loss(z, z) < clip_loss(z, z.flip(0)))
    True
    """
    image, gene = _unit_pair(image, gene, temperature)
    return _symmetric_cross_entropy(image @ gene.T / temperature, torch.arange(len(image), device=image.device))


@_in_float32
def soft_clip_loss(image: Tensor, gene: Tensor, *, temperature: float | Tensor = 0.05) -> Tensor:
    r"""Symmetric cross entropy with soft targets from the similarities within each modality (BLEEP).

    Targets are :math:`T = \mathrm{softmax}_j\left(\frac{1}{2\tau}(u_{ij} + v_{ij})\right)`, where u are the cosine
    similarities among the images and v those among the expression profiles, so that spots that look and express alike
    are not pushed apart. The loss is the cross entropy of `clip_loss`, with rows of T in place of the diagonal.

    Gradients flow through the targets, as published. Both directions use the rows of T, which are distributions; the
    publication uses the columns for the second, which sum to 1 only approximately. Arguments, return value and errors
    as in `clip_loss`; the temperature is that of logits and targets.

    Source: Xie et al., *Spatially Resolved Gene Expression Prediction from Histology Images via Bi-modal Contrastive
    Learning*, NeurIPS 2023.

    Examples
    --------
    >>> z = torch.eye(4)
    >>> bool(soft_clip_loss(z, z) < soft_clip_loss(z, z.flip(0)))
    True
    """
    image, gene = _unit_pair(image, gene, temperature)
    targets = F.softmax((image @ image.T + gene @ gene.T) / (2 * temperature), dim=1)
    return _symmetric_cross_entropy(image @ gene.T / temperature, targets)


@_in_float32
def siglip_loss(
    image: Tensor, gene: Tensor, *, temperature: float | Tensor = 0.1, bias: float | Tensor = -10.0
) -> Tensor:
    r"""Pairwise sigmoid loss (SigLIP): every pair is a binary decision of its own.

    :math:`L = -\frac{1}{B} \sum_{ij} \log \sigma\left(y_{ij} (s_{ij}/\tau + b)\right)`, where y is 1 for a pair and
    -1 otherwise, and s are cosine similarities. Temperature 0.1 and bias -10 are the publication's starting values,
    where both are learned. Arguments, return value and errors as in `clip_loss`.

    Source: Zhai et al., *Sigmoid Loss for Language Image Pre-Training*, ICCV 2023.

    Examples
    --------
    >>> z = torch.eye(4)
    >>> bool(siglip_loss(z, z) < siglip_loss(z, z.flip(0)))
    True
    """
    image, gene = _unit_pair(image, gene, temperature)
    logits = image @ gene.T / temperature + bias
    signs = 2 * torch.eye(len(image), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(image)


def _unit_pair(image: Tensor, gene: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    if image.ndim != 2 or image.shape != gene.shape:
        raise DataError(
            f"`image` and `gene` must be embeddings of one shape (B, d), found {tuple(image.shape)} and "
            f"{tuple(gene.shape)}."
        )
    _check_batch(image, "A contrastive loss")
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
    return F.normalize(image, dim=1, eps=_MIN_NORM), F.normalize(gene, dim=1, eps=_MIN_NORM)


def _check_batch(x: Tensor, what: str) -> None:
    if len(x) < 2:
        raise DataError(
            f"{what} needs at least 2 spots in the batch, found {len(x)}. "
            "Raise the batch size, or drop the incomplete last batch (`drop_last=True`)."
        )


def _symmetric_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


# --- reconstruction: all in per-gene standardised units ---------------------------------------------------------------


@_in_float32
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
    pred, target, weight = _measured(pred, target, mask)
    return _mean(F.mse_loss(pred, target, reduction="none"), weight)


@_in_float32
def l1(pred: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute error over measured entries; arguments as in `mse`.

    Examples
    --------
    >>> l1(torch.zeros(2, 3), -2 * torch.ones(2, 3)).item()
    2.0
    """
    pred, target, weight = _measured(pred, target, mask)
    return _mean(F.l1_loss(pred, target, reduction="none"), weight)


@_in_float32
def huber(pred: Tensor, target: Tensor, mask: Tensor | None = None, *, delta: float = 1.0) -> Tensor:
    """Huber loss over measured entries: squared up to `delta`, linear beyond; arguments as in `mse`.

    Half the squared error where ``|error| <= delta``, else ``delta * (|error| - delta / 2)`` (Huber 1964).

    Examples
    --------
    >>> huber(torch.zeros(2, 3), 3 * torch.ones(2, 3)).item()
    2.5
    """
    check_positive("delta", delta)
    pred, target, weight = _measured(pred, target, mask)
    return _mean(F.huber_loss(pred, target, reduction="none", delta=delta), weight)


@_in_float32
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
    pred, target, weight = _measured(pred, target, mask)
    r = _correlation(pred, target, weight, dim=1)
    return _mean(1 - r, (weight.sum(1) >= 2).to(r.dtype))


@_in_float32
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
    _check_batch(pred, "`barlow_std_mse`")
    pred, target, weight = _measured(pred, target, mask)
    r = _correlation(pred, target, weight, dim=0)
    diagonal = ((1 - r).square() * (weight.sum(0) >= 2)).sum()
    return corr_weight * diagonal + mse_weight * _mean((pred - target).square(), weight)


@_in_float32
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
    _check_batch(pred, "`barlow`")
    pred, target, weight = _measured(pred, target, mask)
    both = weight.T @ weight
    cross = _standardised(pred, weight, dim=0).T @ _standardised(target, weight, dim=0) / both.clamp(min=1)
    diagonal = torch.eye(len(cross), dtype=cross.dtype, device=cross.device)
    penalty = diagonal * (1 - cross).square() + off_diagonal * (1 - diagonal) * cross.square()
    return (penalty * (both >= 2)).sum()


def _measured(pred: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction and truth with 0 where not measured, and the weight (1 measured, 0 not) of every entry."""
    if pred.ndim != 2 or pred.shape != target.shape:
        raise DataError(
            f"`pred` and `target` must have one shape (B, G), found {tuple(pred.shape)} and {tuple(target.shape)}."
        )
    if mask is None:
        return pred, target, torch.ones_like(pred)
    if mask.dtype != torch.bool or tuple(mask.shape) not in (tuple(pred.shape), tuple(pred.shape[1:])):
        raise DataError(
            f"`mask` must be bool of shape {tuple(pred.shape[1:])} or {tuple(pred.shape)}, "
            f"found {mask.dtype} {tuple(mask.shape)}."
        )
    mask = mask.expand(pred.shape)
    # `where` and not a product: 0 * NaN is NaN.
    return torch.where(mask, pred, 0), torch.where(mask, target, 0), mask.to(pred.dtype)


def _mean(x: Tensor, weight: Tensor) -> Tensor:
    return (x * weight).sum() / weight.sum().clamp(min=1)


def _standardised(x: Tensor, weight: Tensor, *, dim: int) -> Tensor:
    n = weight.sum(dim, keepdim=True).clamp(min=1)
    centred = (x - (x * weight).sum(dim, keepdim=True) / n) * weight
    variance = centred.square().sum(dim, keepdim=True) / n
    return centred / variance.clamp(min=_MIN_VARIANCE).sqrt()


def _correlation(pred: Tensor, target: Tensor, weight: Tensor, *, dim: int) -> Tensor:
    product = _standardised(pred, weight, dim=dim) * _standardised(target, weight, dim=dim)
    return product.sum(dim) / weight.sum(dim).clamp(min=1)


# --- gene encoder -----------------------------------------------------------------------------------------------------


@_in_float32
def kl_with_flows(mu: Tensor, logvar: Tensor, log_det: Tensor) -> Tensor:
    r"""KL term of a variational encoder whose latent passes through normalising flows.

    :math:`\frac{1}{B} \sum_b \left[\mathrm{KL}(\mathcal{N}(\mu_b, \sigma_b^2) \,\|\, \mathcal{N}(0, I))
    - \log|\det|_b\right]` with :math:`\mathrm{KL} = \frac12 \sum_j (\sigma_j^2 + \mu_j^2 - 1 - \log \sigma_j^2)`.
    The prior is taken at the latent before the flows; the result can be negative.

    Source: Rezende and Mohamed, *Variational Inference with Normalizing Flows*, ICML 2015; the prior term as in Hemker
    et al., arXiv 2602.14177 (2026).

    Parameters
    ----------
    mu, logvar
        Mean and log variance of the latent before the flows, (B, d).
    log_det
        Sum over the flows of :math:`\log|\det|` of their Jacobians, (B,); zeros without flows.

    Returns
    -------
    Scalar tensor, summed over dimensions and averaged over the batch.

    Examples
    --------
    >>> kl_with_flows(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)).item()
    0.0
    """
    if mu.ndim != 2 or mu.shape != logvar.shape or log_det.shape != mu.shape[:1]:
        raise DataError(
            "`mu` and `logvar` must have one shape (B, d) and `log_det` the shape (B,), found "
            f"{tuple(mu.shape)}, {tuple(logvar.shape)} and {tuple(log_det.shape)}."
        )
    kl = (logvar.exp() + mu.square() - 1 - logvar).sum(1) / 2
    return (kl - log_det).mean()


#: losses of paired embeddings, called as ``loss(image, gene, temperature=...)``
CONTRASTIVE: dict[str, Callable[..., Tensor]] = {
    "clip": clip_loss,
    "soft_clip": soft_clip_loss,
    "siglip": siglip_loss,
}

#: losses of predicted expression in standardised units, called as ``loss(pred, target, mask)``
RECONSTRUCTION: dict[str, Callable[..., Tensor]] = {
    "barlow_std_mse": barlow_std_mse,
    "mse": mse,
    "pearson": pearson,
    "barlow": barlow,
    "huber": huber,
    "l1": l1,
}
