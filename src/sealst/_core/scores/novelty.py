"""How unlike the spots of a training others are: distances of embedding and picture, by held-out patients.

Distances are Mahalanobis distances with a shrunk covariance (Ledoit & Wolf 2004), as logarithms, of embedding, stain
and detail by themselves: in one covariance the many components of an embedding would drown the few numbers by which a
wrong magnification shows. Whom the summary has not seen is further away than whom it was made of, so the scale comes
from groups that are left out in turn, and the part that is most unlike counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from scipy import special

from sealst._core.scores.probes import inner_folds
from sealst._errors import DataError

#: what a picture's numbers are: optical density of the channels (mean, deviation), and how fine its detail is
N_STAIN, N_DETAIL = 6, 2
N_PICTURE = N_STAIN + N_DETAIL
#: what a distance is of
EMBEDDING, STAIN, DETAIL = "embedding", "stain", "detail"
PARTS = (EMBEDDING, STAIN, DETAIL)
#: principal components of embeddings, at most, and spots that each needs
MAX_COMPONENTS, _SPOTS_PER_COMPONENT = 32, 5
#: differences of held-out spots from the mean of their section are kept as so many quantiles
N_WITHIN = 49
#: logarithms of distances vary between patients; what is taken for known of that deviation beforehand, and as how many
#: further patients it counts
_PRIOR_SPREAD, _PRIOR_PATIENTS = 0.25, 2.0
#: of one grey level alone nothing is left but the camera's noise
_NO_DETAIL = 1e-5
#: of a spot that is the mean itself, so that its logarithm is a number
_NO_DISTANCE = 1e-6
#: added to standardised variances, so that what does not vary in training has one
_LEAST_VARIANCE = 1e-6
#: distances at which percentiles of many spots are computed
_CURVE = 4000
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)


def picture_features(crops: np.ndarray) -> np.ndarray:
    """Stain and detail of crops, uint8 (n, px, px, 3), as float32 (n, `N_PICTURE`).

    Mean and deviation of the optical density of each channel; and logarithms of the ratios of gradient energy at one
    scale and the next, twice as coarse: a picture that is enlarged twice has its detail one scale further up.
    """
    # Numba and the machine code take a while to import.
    from sealst._core.picture import stain_and_energy

    found = np.empty((len(crops), N_STAIN + N_DETAIL + 1), dtype=np.float32)
    stain_and_energy(np.ascontiguousarray(crops), _DENSITY, found)
    levels = np.log(found[:, N_STAIN:] + np.float32(_NO_DETAIL))
    return np.hstack([found[:, :N_STAIN], levels[:, :-1] - levels[:, 1:]])


@dataclass(frozen=True, eq=False)
class Cloud:
    """Mean and covariance of spots: of the principal components of their embeddings, and of their pictures."""

    #: mean embedding (d,), and principal directions (k, d)
    centre: np.ndarray
    directions: np.ndarray
    #: mean and deviation of components and picture, (k + N_PICTURE,), and covariance of what is standardised by them,
    #: which is that of each of `PARTS`, and 0 between them
    mean: np.ndarray
    scale: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, z: np.ndarray, picture: np.ndarray, n_components: int) -> Cloud:
        """Of embeddings (n, d) and `picture_features` (n, `N_PICTURE`)."""
        from sklearn.covariance import LedoitWolf
        from sklearn.decomposition import PCA

        pca = PCA(n_components, random_state=0).fit(z)
        x = np.hstack([pca.transform(z), picture])
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        x = (x - mean) / scale
        parts = [LedoitWolf(assume_centered=True).fit(x[:, part]).covariance_ for part in _parts(n_components)]
        covariance = scipy.linalg.block_diag(*parts) + _LEAST_VARIANCE * np.eye(len(mean))
        return cls(pca.mean_, pca.components_, mean, scale, covariance)

    def log_distances(self, z: np.ndarray, picture: np.ndarray) -> np.ndarray:
        """Logarithms of distances (n, parts), by each of `PARTS`; a usual distance is near 0."""
        components = (z - self.centre) @ self.directions.T
        x = (np.hstack([components, picture]) - self.mean) / self.scale
        squares = []
        for part in _parts(len(self.directions)):
            root = scipy.linalg.cholesky(self.covariance[part, part], lower=True)
            unit = scipy.linalg.solve_triangular(root, x[:, part].T, lower=True, check_finite=False)
            squares.append(np.square(unit).mean(axis=0))
        found: np.ndarray = np.log(np.column_stack(squares) + _NO_DISTANCE) / 2
        return found


def _parts(n_components: int) -> tuple[slice, slice, slice]:
    """Where `PARTS` are among components and picture."""
    stain = slice(n_components, n_components + N_STAIN)
    return slice(n_components), stain, slice(stain.stop, stain.stop + N_DETAIL)


@dataclass(frozen=True, eq=False)
class Scale:
    """What distances of a further patient's spots are to be expected, from groups that were left out in turn.

    The mean over the spots of a section varies between patients; what is expected of the next one is a t-distribution
    about the mean of those seen, wider by what their number leaves unknown.
    """

    #: mean over held-out groups by each part, (parts,), and how far the next may lie from it
    level: np.ndarray
    spread: np.ndarray
    #: degrees of freedom of `spread`
    freedom: float
    #: quantiles of a spot's difference from the mean of its section, (parts, `N_WITHIN`)
    within: np.ndarray

    @classmethod
    def of(cls, held_out: np.ndarray, *, groups: np.ndarray, units: np.ndarray) -> Scale:
        """From log distances (n, parts) of spots by models that have not seen their `groups`.

        `units` are the sections; those of one group lie as far from the mean as those of others, but count once.
        """
        _, first, unit = np.unique(units, return_index=True, return_inverse=True)
        means = np.stack([held_out[unit == i].mean(axis=0) for i in range(len(first))])
        _, owner = np.unique(groups[first], return_inverse=True)
        n = int(owner.max()) + 1
        by_group = np.stack([means[owner == i].mean(axis=0) for i in range(n)])
        level = by_group.mean(axis=0)
        square = np.stack([np.square(means[owner == i] - level).mean(axis=0) for i in range(n)]).sum(axis=0)
        freedom = n - 1 + _PRIOR_PATIENTS
        variance = (square + _PRIOR_PATIENTS * _PRIOR_SPREAD**2) / freedom
        within = np.quantile(held_out - means[unit], (np.arange(N_WITHIN) + 0.5) / N_WITHIN, axis=0).T
        return cls(level, np.sqrt(variance * (1 + 1 / n)), freedom, within)

    def of_spots(self, log_distances: np.ndarray) -> np.ndarray:
        """Percentile (0 to 1) of spots, (n,), among those of a further patient, by the part that is most unlike."""
        return most_unlike(np.column_stack([self._of_part(x, i) for i, x in enumerate(log_distances.T)]))

    def of_section(self, log_distances: np.ndarray) -> np.ndarray:
        """Percentile (0 to 1) of a section, of which these are spots, by each part, (parts,)."""
        away = (log_distances.mean(axis=0) - self.level) / self.spread
        percentile: np.ndarray = special.stdtr(self.freedom, away)
        return percentile

    def _of_part(self, x: np.ndarray, part: int) -> np.ndarray:
        # Of many spots the curve is computed at some distances and read between them.
        at = x if len(x) <= _CURVE else np.linspace(x.min(), x.max(), _CURVE)
        away = (at[:, None] - self.level[part] - self.within[part]) / self.spread[part]
        percentile: np.ndarray = special.stdtr(self.freedom, away).mean(axis=1)
        return percentile if at is x else np.interp(x, at, percentile)


def most_unlike(percentiles: np.ndarray) -> np.ndarray:
    """Percentile of the largest of some percentiles, (..., parts), which one in so many may be by chance (Šidák)."""
    return np.asarray(percentiles.max(axis=-1) ** percentiles.shape[-1])


def fit_novelty(
    z: np.ndarray, picture: np.ndarray, *, groups: np.ndarray, units: np.ndarray, max_folds: int = 10
) -> tuple[Cloud, Scale]:
    """Summary of training spots, and the scale on which distances from it are read.

    Parameters
    ----------
    z
        Embeddings (n, d) of crops as they are, one view.
    picture
        `picture_features` of these crops.
    groups
        Group of every spot that is left out as one, (n,): patients, or sections where there is one patient.
    units
        Section of every spot, (n,).
    max_folds
        Most folds; where there are more groups, whole groups are dealt to this many folds.

    Raises
    ------
    DataError
        When nothing can be held out.
    """
    folds = inner_folds(len(z), groups, max_folds, seed=0)
    smallest = min(len(seen) for seen, _ in folds)
    n_components = min(MAX_COMPONENTS, z.shape[1], smallest // _SPOTS_PER_COMPONENT)
    if n_components < 1:
        raise DataError(f"{smallest} spots are too few to say what others are like.")
    held_out = np.full((len(z), len(PARTS)), np.nan)
    for seen, held in folds:
        held_out[held] = Cloud.of(z[seen], picture[seen], n_components).log_distances(z[held], picture[held])
    known = np.isfinite(held_out).all(axis=1)
    scale = Scale.of(held_out[known], groups=groups[known], units=units[known])
    return Cloud.of(z, picture, n_components), scale
