"""Contrastive losses of paired image and gene embeddings.

Every function takes tensors and returns a scalar. For a batch that is spread over devices, gather the embeddings (with
gradient) first.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sealst._core.losses.inputs import check_batch, in_float32
from sealst._errors import DataError
from sealst._validate import check_positive

_MIN_NORM = 1e-6


@in_float32
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


@in_float32
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


@in_float32
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
    check_batch(image, "A contrastive loss")
    if not isinstance(temperature, Tensor):
        check_positive("temperature", temperature)
    return F.normalize(image, dim=1, eps=_MIN_NORM), F.normalize(gene, dim=1, eps=_MIN_NORM)


def _symmetric_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
