"""Votes of the nearest reference profiles for labels, on plain arrays."""

from __future__ import annotations

import numpy as np
from sklearn.preprocessing import normalize

from sealst._errors import DataError
from sealst._validate import check_positive

# Values per temporary array: 32 MB of float64.
_BLOCK = 2**22
# Cosines of equal vectors differ by this much at most, depending on where a matrix product blocks them.
_TIE = 1e-12


def nearest_votes(
    query: np.ndarray,
    reference: np.ndarray,
    codes: np.ndarray,
    *,
    n_labels: int,
    n_neighbors: int,
    temperature: float,
    balance: bool = False,
) -> np.ndarray:
    r"""Share of every label among the nearest reference rows of each query.

    With cosines :math:`s_j` of the nearest rows :math:`N`, labels :math:`l_j` and a label's number of rows
    :math:`n_c`,

    .. math:: v_c \propto b_c \sum_{j \in N,\, l_j = c} \exp(s_j / \tau), \qquad \sum_c v_c = 1,

    where :math:`b_c` is 1, or :math:`1 / n_c` with `balance`.

    Parameters
    ----------
    query
        Embeddings (n, d), finite; normalised inside.
    reference
        Embeddings (m, d), finite; normalised inside.
    codes
        Label of every reference row, int (m,), 0 … n_labels - 1; every label occurs.
    n_labels
        Number of labels.
    n_neighbors
        Number of nearest rows, at most m. Rows as similar as the last of them (within 1e-12) vote too, so that the
        order of the reference does not matter.
    temperature
        :math:`\tau`; the smaller, the more the nearest row counts. ``inf`` weighs all alike.
    balance
        Whether to weigh labels as if they were equally frequent in the reference.

    Returns
    -------
    float64 (n, n_labels), rows sum to 1.

    Raises
    ------
    DataError
        When shapes do not fit or a parameter is out of range.

    Examples
    --------
    >>> z = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    >>> nearest_votes(z[:1], z, np.array([0, 1, 1]), n_labels=2, n_neighbors=3, temperature=np.inf).round(3)
    array([[0.333, 0.667]])
    >>> nearest_votes(z[:1], z, np.array([0, 1, 1]), n_labels=2, n_neighbors=3, temperature=np.inf, balance=True)
    array([[0.5, 0.5]])
    """
    if query.ndim != 2 or reference.ndim != 2 or query.shape[1] != reference.shape[1]:
        raise DataError(f"`query` and `reference` must be (n, d) and (m, d), found {query.shape}, {reference.shape}.")
    if codes.shape != (len(reference),):
        raise DataError(f"`codes` must hold one label for each of {len(reference)} rows, found {codes.shape}.")
    check_positive("n_neighbors", n_neighbors)
    if n_neighbors != int(n_neighbors) or n_neighbors > len(reference):
        raise DataError(
            f"`n_neighbors` must be a whole number from 1 to the {len(reference)} labelled reference profiles, found "
            f"{n_neighbors!r}."
        )
    if temperature != np.inf:
        check_positive("temperature", temperature)
    onehot = np.zeros((len(codes), n_labels))
    onehot[np.arange(len(codes)), codes] = 1.0
    if balance:
        onehot /= onehot.sum(axis=0)
    pool = normalize(np.asarray(reference, dtype=np.float64)).T
    votes, step = np.empty((len(query), n_labels)), max(1, _BLOCK // len(codes))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        s = normalize(np.asarray(query[part], dtype=np.float64)) @ pool
        last = np.partition(s, -n_neighbors, axis=1)[:, -n_neighbors, None]
        # From the largest, so that no small temperature overflows.
        weights = np.where(s >= last - _TIE, np.exp((s - s.max(axis=1, keepdims=True)) / temperature), 0.0)
        votes[part] = weights @ onehot
    return votes / votes.sum(axis=1, keepdims=True)
