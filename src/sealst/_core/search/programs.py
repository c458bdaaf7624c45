"""Programs: the few directions in which predictions of expression vary, in which spots and profiles are compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sealst._core.scores.probes import within_sections

#: programs, at most
MOST = 256
#: a program along which predictions vary less than this share of the first is rounding
_LEAST = 1e-6


@dataclass(frozen=True, eq=False)
class Programs:
    """Coordinates of predicted and of measured expression, in which both are compared.

    A program is a direction of expression: a principal component of what was predicted for the training spots within
    their sections. Both sides have the same deviation along each, so that what is predicted too timidly is no further
    away, and it is the root of what was predicted: what hardly varies in predictions says little.

    Attributes
    ----------
    patterns
        Programs in rows, float64 (programs, genes), of length 1.
    image_scale, gene_scale
        What multiplies the coordinates of predictions, and of measured profiles, (programs,).

    Examples
    --------
    >>> programs = sl.models.Programs(np.array([[0.6, 0.8]]), np.array([2.0]), np.array([1.0]))
    >>> programs.of_predictions(np.array([[1.0, 0.0], [0.0, 1.0]])).round(3).tolist()
    [[1.2], [1.6]]
    >>> programs.of_profiles(np.array([[1.0, 0.0]])).tolist()
    [[0.6]]
    """

    patterns: np.ndarray
    image_scale: np.ndarray
    gene_scale: np.ndarray

    def __len__(self) -> int:
        return len(self.patterns)

    def of_predictions(self, expression: np.ndarray) -> np.ndarray:
        """Coordinates (n, programs) of predicted expression (n, genes)."""
        return np.asarray(expression @ self.patterns.T * self.image_scale)

    def of_profiles(self, deviation: np.ndarray) -> np.ndarray:
        """Coordinates (n, programs) of measured expression less the profile from which it deviates, (n, genes)."""
        return np.asarray(deviation @ self.patterns.T * self.gene_scale)

    def reading(self, weights: np.ndarray) -> np.ndarray:
        """What of coordinates of predictions is a weighted sum (genes,) of predicted genes, (programs,)."""
        return np.asarray(self.patterns @ weights / self.image_scale)


def fit_programs(
    x: np.ndarray,
    coef: np.ndarray,
    truth: np.ndarray,
    *,
    sections: np.ndarray,
    known: np.ndarray | None = None,
) -> Programs:
    """Programs of a linear readout, from the spots that it was fitted to.

    Parameters
    ----------
    x
        Embeddings (n, d).
    coef
        Coefficients of the readout, (d, genes).
    truth
        Expression of single spots, (n, genes).
    sections
        Section of every row, (n,).
    known
        bool (n, genes): whether a row's section measures a gene. None where all do.

    Returns
    -------
    As many programs as the readout has directions, and 256 at most: of a readout of a low rank they say all that it
    predicts. Of genes that it predicts by their mean they say nothing.
    """
    centred = _deviation(x, sections)
    # Predictions (n, genes) may be many: the deviations of embeddings in their own axes are (d, d), and give the same.
    variance, axes = np.linalg.eigh(centred.T @ centred / len(centred))
    _, size, patterns = np.linalg.svd(np.sqrt(variance.clip(0))[:, None] * (axes.T @ coef), full_matrices=False)
    n = min(MOST, int((size > _LEAST * size[0]).sum()) if size[0] > 0 else 0)
    # Rounding would be read as a prediction.
    size, patterns = size[:n], np.where(coef.any(axis=0), patterns[:n], 0)
    # A component has no sign of its own.
    patterns = patterns * np.sign(patterns[np.arange(n), np.abs(patterns).argmax(axis=1)])[:, None]
    deviation = _deviation(truth, sections)
    measured = (deviation if known is None else deviation * known) @ patterns.T
    spread = np.maximum(measured.std(axis=0), 1e-9)
    weight = np.sqrt(size / size[0]) if n else size
    return Programs(patterns, weight / size, weight / spread)


def _deviation(values: np.ndarray, sections: np.ndarray) -> np.ndarray:
    found = within_sections(np.asarray(values, dtype=np.float64), sections)
    return found - found.mean(axis=0)
