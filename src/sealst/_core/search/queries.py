"""Query vectors, similarities, hits and votes of a retrieval, on plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sealst._core.genes.asked import check_asked
from sealst._core.rows import unit_rows
from sealst._errors import DataError, PanelError
from sealst._validate import check_count, check_positive, listed

# Cosines of equal vectors differ by this many decimals at most, depending on how a matrix product is blocked.
TIE_DECIMALS = 10
_MIN_SHIFT = 1e-9
#: standard deviations by which a query raises its genes, unless told otherwise
QUERY_STD = 10.0


def gene_weights(weights: Mapping[str, float], genes: Sequence[str]) -> np.ndarray:
    """Weight of every panel gene, float64 (G,), of unit length; genes match by upper-cased symbol.

    Parameters
    ----------
    weights
        Weight per gene of the query; finite, not all 0. Only their proportions matter.
    genes
        Genes of the panel.

    Raises
    ------
    PanelError
        When a gene is not in the panel, with near names; or occurs twice.
    DataError
        When there are no genes, or weights are not usable.

    Examples
    --------
    >>> gene_weights({"Epcam": 3, "VIM": -4}, ["VIM", "EPCAM", "CD3E"])
    array([-0.8,  0.6,  0. ])
    """
    if not weights:
        raise DataError("`query` names no gene; pass at least one of `model.panel.genes`.")
    position = {g.upper(): i for i, g in enumerate(genes)}
    names = [str(g).strip().upper() for g in weights]
    check_asked(weights, genes, query=True)
    if len(set(names)) < len(names):
        raise PanelError(f"A gene of `query` occurs twice: {listed(sorted({g for g in names if names.count(g) > 1}))}.")
    try:
        values = np.array([float(w) for w in weights.values()])
    except (TypeError, ValueError) as error:
        raise DataError(f"The weights of `query` must be numbers, found {listed(weights.values(), 4)}.") from error
    if not np.isfinite(values).all() or not values.any():
        raise DataError(f"The weights of `query` must be finite and not all 0, found {listed(values.tolist(), 4)}.")
    out = np.zeros(len(genes))
    out[[position[name] for name in names]] = values
    return out / np.linalg.norm(out)


def shifted_profiles(mean: np.ndarray, std: np.ndarray, weights: np.ndarray, *, n_std: float) -> np.ndarray:
    """Return the panel's mean profile and the same moved along a signature, float32 (2, G).

    Parameters
    ----------
    mean, std
        Statistics of the panel, (G,).
    weights
        Direction of the signature in standardised expression, (G,), of unit length.
    n_std
        Length of the shift, in standard deviations of a gene.
    """
    return np.stack([mean, mean + n_std * weights * std]).astype(np.float32)


def direction(embeddings: np.ndarray) -> np.ndarray:
    """Direction from the first to the second of two embeddings (2, d) after normalising both; float64 (d,).

    Only the angle of an embedding matters to a cosine, so its change of length is no part of the query.
    """
    start, end = unit_rows(np.asarray(embeddings, dtype=np.float64))
    shift = end - start
    if np.linalg.norm(shift) < _MIN_SHIFT:
        raise DataError("The model's gene encoder does not react to these genes; was it trained?")
    return shift


def centred(z: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Normalised embeddings minus the mean of their group, float64 (n, d)."""
    unit = unit_rows(np.asarray(z, dtype=np.float64))
    for group in np.unique(groups):
        unit[groups == group] -= unit[groups == group].mean(axis=0)
    return unit


def cosine(query: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Cosine of a vector (d,) with rows (n, d), float64 (n,); a row of zeros has 0."""
    rows = unit_rows(np.asarray(z, dtype=np.float64))
    return np.clip(rows @ unit_rows(np.asarray(query, dtype=np.float64)[None])[0], -1, 1)


def mean_ranks(similarity: np.ndarray) -> np.ndarray:
    """Ranks, 1 = most similar; ties take the mean of the ranks they share.

    Examples
    --------
    >>> mean_ranks(np.array([0.5, 0.9, 0.5]))
    array([2.5, 1. , 2.5])
    """
    _, place, counts = np.unique(-np.round(similarity, TIE_DECIMALS), return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[place])


def spaced_hits(
    similarity: np.ndarray, xy: np.ndarray | None, groups: np.ndarray, *, n: int, min_um: float
) -> np.ndarray:
    """Positions of the most similar spots, best first, none closer than `min_um` to a better one of its group.

    Parameters
    ----------
    similarity
        (n_spots,), finite; spots with equal similarity come in their order.
    xy
        Positions in µm, (n_spots, 2); unused when `min_um` is 0.
    groups
        Section of every spot, (n_spots,); distances between sections do not exist.
    n
        Most hits to return; fewer when all other spots are too close.
    min_um
        Smallest distance between two hits in µm.

    Examples
    --------
    >>> spaced_hits(np.array([3.0, 2.0, 1.0]), np.array([[0, 0], [50, 0], [200, 0]]), np.zeros(3), n=2, min_um=100)
    array([0, 2])
    """
    order = np.argsort(-np.round(similarity, TIE_DECIMALS), kind="stable")
    if not min_um or xy is None:
        return order[:n]
    hits: list[int] = []
    while len(order) and len(hits) < n:
        best = order[0]
        hits.append(int(best))
        far = (groups[order] != groups[best]) | (np.linalg.norm(xy[order] - xy[best], axis=1) >= min_um)
        far[0] = False
        order = order[far]
    return np.array(hits, dtype=np.int64)


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
    check_count("n_neighbors", n_neighbors)
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
    pool = unit_rows(np.asarray(reference, dtype=np.float64)).T
    votes, step = np.empty((len(query), n_labels)), max(1, _BLOCK // len(codes))
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        s = unit_rows(np.asarray(query[part], dtype=np.float64)) @ pool
        last = np.partition(s, -n_neighbors, axis=1)[:, -n_neighbors, None]
        # From the largest, so that no small temperature overflows.
        weights = np.where(s >= last - _TIE, np.exp((s - s.max(axis=1, keepdims=True)) / temperature), 0.0)
        votes[part] = weights @ onehot
    return votes / votes.sum(axis=1, keepdims=True)
