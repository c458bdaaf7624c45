"""Losses of spatial expression-aligned learning by name, and the KL term of the gene encoder.

The functions live in `contrastive` and `reconstruction`; each takes tensors and returns a scalar.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sealst._core.losses.contrastive import clip_loss, siglip_loss, soft_clip_loss
from sealst._core.losses.inputs import in_float32
from sealst._core.losses.reconstruction import (
    barlow,
    barlow_std_mse,
    huber,
    l1,
    mmd,
    mse,
    negative_binomial,
    pearson,
    pearson_genes,
    pls,
)
from sealst._errors import DataError


@in_float32
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
    "pearson_genes": pearson_genes,
    "mmd": mmd,
    "pls": pls,
}

#: losses of predicted log1p expression, called as ``loss(pred, counts, mask, library=..., log_theta=...)``; apart from
#: the others, so that all entries of a registry are called in one way
COUNT_RECONSTRUCTION: dict[str, Callable[..., Tensor]] = {"nb": negative_binomial}
