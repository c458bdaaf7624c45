"""Corruption of expression for masked and denoising autoencoders; on per-gene standardised expression."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sealst._errors import DataError
from sealst._validate import check_fraction


def mask_genes(x: Tensor, share: float, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Hide entries at random behind 0, which is the gene's mean.

    Every entry is hidden independently, in each spot others. To score the reconstruction of what was hidden, pass
    ``hidden`` (and the section's mask of measured genes, joined by ``&``) as the mask of a reconstruction loss.

    Source: Vincent et al., *Extracting and Composing Robust Features with Denoising Autoencoders*, ICML 2008.

    Parameters
    ----------
    x
        Standardised expression, any shape; not changed.
    share
        Probability of hiding an entry, in [0, 1].
    generator
        Source of randomness, on any device; None takes torch's own.

    Returns
    -------
    The masked copy, and bool of the same shape: True where hidden.

    Raises
    ------
    DataError
        When `share` lies outside [0, 1].

    Examples
    --------
    >>> masked, hidden = mask_genes(torch.ones(2, 5), 0.4)
    >>> bool((masked[hidden] == 0).all() and (masked[~hidden] == 1).all())
    True
    """
    check_fraction("share", share)
    hidden = torch.rand(x.shape, generator=generator, device=_source(x, generator)) < share
    hidden = hidden.to(x.device)
    return x.masked_fill(hidden, 0), hidden


def add_noise(x: Tensor, sd: float, generator: torch.Generator | None = None) -> Tensor:
    """Add Gaussian noise to a copy.

    Parameters
    ----------
    x
        Standardised expression, any shape; not changed.
    sd
        Standard deviation >= 0, in units of each gene's own.
    generator
        Source of randomness, on any device; None takes torch's own.

    Raises
    ------
    DataError
        When `sd` is negative or not finite.

    Examples
    --------
    >>> add_noise(torch.ones(2, 5), 0.0).unique().tolist()
    [1.0]
    """
    if not math.isfinite(sd) or sd < 0:
        raise DataError(f"`sd` must be a number from 0, found {sd!r}.")
    noise = torch.randn(x.shape, generator=generator, device=_source(x, generator))
    return x + sd * noise.to(x)


def _source(x: Tensor, generator: torch.Generator | None) -> torch.device:
    return x.device if generator is None else generator.device
