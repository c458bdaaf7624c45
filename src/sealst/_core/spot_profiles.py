"""Fingerprints of spots' counts, to find copies of a section under another name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

#: profiles with fewer detected genes may agree by chance
MIN_GENES = 20


def profile_digests(counts: Any, genes: Sequence[str]) -> np.ndarray:
    """One number per spot that depends on its counts by gene, whatever the order of genes.

    Parameters
    ----------
    counts
        Counts (n, G), sparse or dense.
    genes
        Names of the columns.

    Returns
    -------
    uint64 (n,); equal for equal profiles, 0 for spots with fewer than 20 detected genes.

    Examples
    --------
    >>> int(profile_digests(np.ones((1, 3)), ["A", "B", "C"])[0])
    0
    """
    x = sp.csr_matrix(counts)
    weight = np.array([_number(g) for g in genes], dtype=np.uint64)
    # Sums of products modulo 2^64: independent of the order of columns, and of genes that are not expressed.
    value = x.data.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(1)
    terms = value * weight[x.indices] * (x.data > 0)
    out = np.zeros(x.shape[0], dtype=np.uint64)
    np.add.at(out, np.repeat(np.arange(x.shape[0]), np.diff(x.indptr)), terms)
    detected = np.diff(sp.csr_matrix(x > 0).indptr)
    out[detected < MIN_GENES] = 0
    return out


def _number(gene: str) -> int:
    return int.from_bytes(hashlib.sha256(gene.encode()).digest()[:8], "little") | 1
