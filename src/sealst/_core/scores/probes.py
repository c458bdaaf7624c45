"""What a trained model is compared with: a ridge probe on frozen features, retrieval imputation, and the mean.

All on plain arrays. The ridge probe standardises features, optionally reduces them by PCA, and fits a ridge regression
with intercept; everything is fitted on training rows only, inside the cross-validation too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import scipy.linalg
import scipy.sparse as sp
from numpy.typing import ArrayLike

from sealst._core.scores.metrics import gene_pearson
from sealst._core.space.views import check_views
from sealst._errors import DataError
from sealst._validate import check_choice, check_count, check_positive, listed

#: default grid of the ridge penalty, for standardised features
ALPHAS: tuple[float, ...] = tuple(np.logspace(-1, 6, 15).tolist())

_N_FOLDS = 5
#: spots that the deviation of all sections counts for in that of one
_PRIOR_SPOTS = 50
# A correlation over two rows is 1 or -1 by construction.
_MIN_HELD_OUT = 3


@dataclass(frozen=True, eq=False)
class RidgeProbe:
    """A fitted ridge probe.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(60, 4))
    >>> probe = ridge_probe(x, x @ rng.normal(size=(4, 3)))
    >>> probe.predict(x[:5]).shape
    (5, 3)
    """

    #: penalty of the ridge regression
    alpha: float
    #: penalties that were compared, ascending
    alphas: np.ndarray
    #: mean gene Pearson over held-out folds of each penalty; NaN where only one was given
    scores: np.ndarray
    #: mean and standard deviation of the training features, float64 (d,)
    mean: np.ndarray
    scale: np.ndarray
    #: what the ridge's coefficients were multiplied by, for every gene alike; 1 where only one penalty was given,
    #: or where predictions ran against the targets
    stretch: float
    #: coefficients on standardised features, PCA and `stretch` folded in, float64 (d, G)
    coef: np.ndarray
    #: mean of the training targets, float64 (G,)
    intercept: np.ndarray
    #: what `ridge_probe` was asked to predict: as `test_x`, an array, a list of arrays, or None
    predictions: Any = None

    def predict(self, x: ArrayLike) -> np.ndarray:
        """Predict targets, float32 (n, G), from features (n, d)."""
        features = _matrix(x, "x")
        if features.shape[1] != len(self.mean):
            raise DataError(f"The probe was fitted on {len(self.mean)} features, `x` has {features.shape[1]}.")
        return ((features - self.mean) / self.scale @ self.coef + self.intercept).astype(np.float32)


def ridge_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    test_x: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    groups: ArrayLike | None = None,
    sections: ArrayLike | None = None,
    alphas: Sequence[float] | np.ndarray = ALPHAS,
    n_components: int | None = None,
    max_folds: int = 10,
    seed: int = 0,
) -> RidgeProbe:
    """Fit a ridge regression from frozen features to expression, with the penalty chosen by grouped cross-validation.

    The penalty is the one with the highest mean over folds of the mean Pearson correlation over genes of a held-out
    fold; of equal ones the largest. Scaling and PCA are refitted in every fold. One eigendecomposition per fold serves
    every penalty.

    A correlation does not ask how far predictions spread, and may choose a penalty under which they hardly do. So
    coefficients are multiplied by one factor for all genes: the slope of held-out targets over their predictions within
    a fold, every gene in units of its deviation there. It changes no correlation, only R² and slopes.

    Parameters
    ----------
    train_x
        Features (n, d), finite.
    train_y
        Targets (n, G), finite.
    test_x
        Features to predict, (m, d), or a list of such arrays (one per section); None when only the probe is wanted.
    groups
        Group of every training row, (n,), e.g. section or patient. With two or more groups, each group is held out
        once. Without, folds are random: neighbouring spots then stand on both sides, and the penalty comes out small.
    sections
        Section of every training row, (n,). Where given, what differs between sections (depth, stain, scanner) is not
        learned: see `within_sections`. Predictions have the mean level of the sections.
    alphas
        Penalties to compare, for standardised features; a single one is taken without cross-validation.
    n_components
        Principal components to keep; None keeps all. Capped at the rank of the features.
    max_folds
        Most folds to run. Where there are more groups, whole groups are dealt to this many folds.
    seed
        Seed of the random folds (only without groups).

    Returns
    -------
    RidgeProbe with `.predict(x)`, `.alpha`, `.scores`, and `.predictions` for `test_x`.

    Raises
    ------
    DataError
        When shapes do not fit, values are not finite, penalties are not positive, or there are too few rows to hold
        any out.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, section = rng.normal(size=(60, 4)), np.repeat(["a", "b", "c"], 20)
    >>> probe = ridge_probe(x, x @ rng.normal(size=(4, 3)), x[:5], groups=section)
    >>> probe.predictions.shape
    (5, 3)
    """
    x, y = _matrix(train_x, "train_x"), _matrix(train_y, "train_y")
    grid = np.unique(np.asarray(alphas, dtype=np.float64))
    if len(x) != len(y) or len(x) < 2:
        raise DataError(f"`train_x` has {len(x)} rows and `train_y` {len(y)}; expected the same number, at least 2.")
    if not grid.size or not (np.isfinite(grid) & (grid > 0)).all():
        raise DataError(f"`alphas` must be positive numbers, found {grid.tolist()}.")
    if n_components is not None:
        check_count("n_components", n_components)
    if max_folds < 2:
        raise DataError(f"`max_folds` must be at least 2, found {max_folds!r}.")
    scores, stretch = np.full(len(grid), np.nan), np.ones(len(grid))
    if sections is not None:
        labels = _labels(sections, len(x), "sections")
        x, y = within_sections(x, labels), within_sections(y, labels, deviation=True)
    if len(grid) > 1:
        folds = inner_folds(len(x), groups, max_folds, seed)
        by_fold = np.stack([_fold_scores(x, y, grid, a, b, n_components) for a, b in folds])
        # A fold in which no gene varies says nothing about the penalty.
        usable = np.isfinite(by_fold[:, 0]).all(axis=1)
        scores = by_fold[usable, 0].mean(axis=0) if usable.any() else by_fold[0, 0]
        # Slope of held-out targets over their predictions. Those that run against the targets hold nothing to stretch.
        covariance, variance = by_fold[:, 1:].sum(axis=0)
        slope = np.divide(covariance, variance, out=np.ones_like(covariance), where=variance > 0)
        stretch = np.where(slope > 0, slope, 1.0)
    # The last of equal maxima: the largest penalty.
    best = len(grid) - 1 - int(np.argmax(np.nan_to_num(scores, nan=-np.inf)[::-1]))
    fit = Spectral(x, y, n_components)
    probe = RidgeProbe(
        alpha=float(grid[best]),
        alphas=grid,
        scores=scores,
        mean=fit.scaler.mean_,
        scale=fit.scaler.scale_,
        stretch=float(stretch[best]),
        coef=stretch[best] * (fit.basis @ (fit.target / (fit.eigenvalues + grid[best])[:, None])),
        intercept=fit.intercept,
    )
    if test_x is None:
        return probe
    if isinstance(test_x, list | tuple) and all(np.ndim(part) == 2 for part in test_x):
        return replace(probe, predictions=[probe.predict(part) for part in test_x])
    return replace(probe, predictions=probe.predict(test_x))  # type: ignore[arg-type]


class Spectral:
    """Ridge regression of every penalty at once: ``coef(alpha) = basis @ (target / (eigenvalues + alpha))``.

    With standardised X and centred Y, either from XᵀX = V Λ Vᵀ (basis V, target VᵀXᵀY) or, when there are fewer rows
    than features, from XXᵀ = U Λ Uᵀ (basis XᵀU, target UᵀY). The leading components are those of PCA.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, n_components: int | None) -> None:
        from sklearn.preprocessing import StandardScaler

        self.scaler = StandardScaler().fit(x)
        self.intercept = y.mean(axis=0)
        x, y = self.scaler.transform(x), y - self.intercept
        wide = len(x) < x.shape[1]
        gram = x @ x.T if wide else x.T @ x
        size = len(gram)
        if n_components is None or n_components >= size:
            self.eigenvalues, vectors = scipy.linalg.eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
        else:
            leading = [size - n_components, size - 1]
            self.eigenvalues, vectors = scipy.linalg.eigh(
                gram, subset_by_index=leading, overwrite_a=True, check_finite=False
            )
        # Rounding can leave an eigenvalue of 0 slightly below it.
        self.eigenvalues = np.maximum(self.eigenvalues, 0.0)
        self.basis = x.T @ vectors if wide else vectors
        self.target = vectors.T @ y if wide else vectors.T @ (x.T @ y)

    def coef(self, alphas: np.ndarray) -> np.ndarray:
        """Coefficients C (d, genes) under a penalty for every gene."""
        return self.basis @ (self.target / (self.eigenvalues[:, None] + alphas))

    def of(self, columns: slice) -> Spectral:
        """The regression of some of the targets."""
        part = copy(self)
        part.target, part.intercept = self.target[:, columns], self.intercept[columns]
        return part

    def likelihood(self, y: np.ndarray, alphas: np.ndarray, *, lost: int) -> np.ndarray:
        """Restricted log-likelihood of targets y = X b + e under each penalty, (penalties, genes), up to a constant.

        A penalty is the variance of e over that of the elements of b, both normal; `lost` is how many means were taken
        out of the rows.
        """
        y, size = y - self.intercept, self.eigenvalues[:, None]
        wide = self.basis.shape[0] > self.basis.shape[1]
        # Squares of the targets along the rows' principal directions.
        along = self.target**2 if wide else self.target**2 / np.maximum(size, 1e-9)
        total, n = (y**2).sum(axis=0), len(y) - lost
        out = np.empty((len(alphas), y.shape[1]))
        for i, alpha in enumerate(alphas):
            left = total - (along * (size / (size + alpha))).sum(axis=0)
            out[i] = -0.5 * (n * np.log(np.maximum(left, 1e-12)) + np.log1p(self.eigenvalues / alpha).sum())
        return out

    def directions(self, alphas: np.ndarray, most: int) -> np.ndarray:
        """Orthonormal directions over genes in which predictions X C vary, most first, (at most `most`, genes).

        Predictions projected to the first r of them are those of the best coefficients of rank r.
        """
        # |X basis|² is diagonal: the eigenvalues, and their square where the basis is XᵀU.
        size = self.eigenvalues * (self.basis**2).sum(axis=0)
        varying = np.sqrt(size)[:, None] * (self.target / (self.eigenvalues[:, None] + alphas))
        # The few that are wanted, by the smaller Gram matrix: several times as fast as all of them.
        tall = len(varying) > varying.shape[1]
        gram = varying.T @ varying if tall else varying @ varying.T
        last = len(gram) - 1
        found, vectors = scipy.linalg.eigh(gram, subset_by_index=[max(0, last + 1 - most), last], check_finite=False)
        vectors = vectors[:, found > 1e-12 * found[-1]][:, ::-1]
        if tall:
            return np.asarray(vectors.T)
        rows = vectors.T @ varying
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _fold_scores(
    x: np.ndarray, y: np.ndarray, grid: np.ndarray, train: np.ndarray, held: np.ndarray, n_components: int | None
) -> np.ndarray:
    """Mean gene Pearson on held-out rows, and covariance with and variance of predictions, (3, penalties).

    NaN and zeros where no held-out gene varies.
    """
    fit = Spectral(x[train], y[train], n_components)
    # Only the ranking of penalties is read from these, for which float32 is enough and twice as fast.
    projected = (fit.scaler.transform(x[held]) @ fit.basis).astype(np.float32)
    target = fit.target.astype(np.float32)
    truth = y[held]
    varies = np.ptp(truth, axis=0) > 0
    if not varies.any():
        return np.stack([np.full(len(grid), np.nan), np.zeros(len(grid)), np.zeros(len(grid))])
    target, truth = target[:, varies], truth[:, varies]
    weight = 1 / truth.var(axis=0)
    wanted = ((truth - truth.mean(axis=0)) * weight).astype(np.float32)
    shrinkage = (1 / (fit.eigenvalues + grid[:, None])).astype(np.float32)

    def score(shrunk: np.ndarray) -> tuple[float, float, float]:
        found = (projected * shrunk) @ target
        return np.nanmean(gene_pearson(found, truth)), np.vdot(found, wanted), found.var(axis=0) @ weight * len(found)

    return np.array([score(shrunk) for shrunk in shrinkage]).T


def inner_folds(n: int, groups: ArrayLike | None, max_folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and held-out rows of every fold: whole groups, or random rows where there is but one group."""
    from sklearn.model_selection import GroupKFold, KFold

    labels = np.zeros(n) if groups is None else _labels(groups, n, "groups")
    n_groups = len(np.unique(labels))
    if n_groups > 1:
        folds = list(GroupKFold(min(n_groups, max_folds)).split(labels, groups=labels))
    elif n >= 2 * _MIN_HELD_OUT:
        n_folds = min(_N_FOLDS, max_folds, n // _MIN_HELD_OUT)
        folds = list(KFold(n_folds, shuffle=True, random_state=seed).split(labels))
    else:
        folds = []
    folds = [(train, held) for train, held in folds if len(held) >= _MIN_HELD_OUT and len(train) >= 2]
    if not folds:
        raise DataError(
            f"{n} training rows in {n_groups} group(s) leave no fold with {_MIN_HELD_OUT} held-out rows to choose the "
            "penalty on. Give more rows, or one penalty with `alphas=[...]`."
        )
    return folds


def _labels(labels: ArrayLike, n: int, name: str) -> np.ndarray:
    found = np.asarray(labels)
    if found.shape != (n,):
        raise DataError(f"`{name}` must name one {name[:-1]} for each of {n} training rows, found shape {found.shape}.")
    return found


def within_sections(values: np.ndarray, sections: np.ndarray, *, deviation: bool = False) -> np.ndarray:
    """Take out what differs between sections, as a mixed model with a level (and a scale) for every section does.

    Parameters
    ----------
    values
        float (n, columns).
    sections
        Section of every row, (n,).
    deviation
        Whether a column's deviation within its section becomes that of all sections too. It is estimated from the
        section's spots and from `_PRIOR_SPOTS` more of the deviation of all, so that small sections borrow.

    Returns
    -------
    float64 (n, columns): deviations from the section's mean, on top of the mean over sections.
    """
    _, which, n = np.unique(sections, return_inverse=True, return_counts=True)
    of_section = sp.csr_matrix((np.ones(len(which)), (which, np.arange(len(which)))))
    means = of_section @ values / n[:, None]
    centred = values - means[which]
    if deviation:
        squares = of_section @ centred**2
        common = squares.sum(axis=0) / len(values)
        own = (squares + _PRIOR_SPOTS * common) / (n[:, None] + _PRIOR_SPOTS)
        centred *= np.sqrt(np.divide(common, own, out=np.ones_like(own), where=own > 0))[which]
    return centred + means.mean(axis=0)


def _matrix(x: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(x, dtype=np.float64)
    if values.ndim != 2 or not values.shape[1]:
        raise DataError(f"`{name}` must be a matrix (rows, columns >= 1), found shape {values.shape}.")
    bad = ~np.isfinite(values).all(axis=1)
    if bad.any():
        raise DataError(
            f"`{name}` holds NaN or infinite values in {bad.sum()} of {len(values)} rows. Keep the spots that have a "
            "crop, e.g. `table.obs['crop_ok']`."
        )
    return values


def mean_baseline(train_y: ArrayLike, n_test: int) -> np.ndarray:
    """Predict the mean of the training targets for every test row: what a useful model must beat.

    Parameters
    ----------
    train_y
        Targets (n, G), finite.
    n_test
        Number of rows to predict.

    Returns
    -------
    float32 (n_test, G).

    Raises
    ------
    DataError
        When `train_y` is not a finite matrix with at least one row.

    Examples
    --------
    >>> mean_baseline([[0.0, 2.0], [2.0, 4.0]], 1)
    array([[1., 3.]], dtype=float32)
    """
    y = _matrix(train_y, "train_y")
    if not len(y):
        raise DataError("`train_y` has no rows; expected at least 1.")
    return np.tile(y.mean(axis=0, dtype=np.float64).astype(np.float32), (n_test, 1))


def knn_impute(query_z: ArrayLike, ref_z: ArrayLike, ref_y: Any, *, k: int = 50) -> np.ndarray:
    """Impute expression as the mean over the k reference spots most similar to the query (BLEEP).

    Parameters
    ----------
    query_z
        Embeddings of the query images, (n, d).
    ref_z
        Embeddings of the reference spots, (m, d); expression embeddings for image-to-expression imputation.
    ref_y
        Expression of the reference spots, (m, G), dense or sparse.
    k
        Neighbours by cosine similarity, equally weighted; all m where the reference is smaller.

    Returns
    -------
    float32 (n, G), in the unit of `ref_y`.

    Raises
    ------
    DataError
        When shapes do not fit or embeddings are not finite.

    References
    ----------
    Xie et al., *Spatially Resolved Gene Expression Prediction from Histology Images via Bi-modal Contrastive
    Learning*, NeurIPS 2023 (simple average over 50 neighbours).

    Examples
    --------
    >>> knn_impute([[1.0, 0.0]], [[2.0, 0.1], [0.0, 1.0]], [[4.0], [0.0]], k=1)
    array([[4.]], dtype=float32)
    """
    from sklearn.neighbors import NearestNeighbors

    query, reference = _matrix(query_z, "query_z"), _matrix(ref_z, "ref_z")
    y = ref_y.astype(np.float32) if sp.issparse(ref_y) else np.asarray(ref_y, dtype=np.float32)
    if y.ndim != 2 or len(reference) != y.shape[0] or not len(reference):
        raise DataError(f"`ref_z` has {len(reference)} rows, `ref_y` the shape {y.shape}; expected (rows, genes).")
    if query.shape[1] != reference.shape[1]:
        raise DataError(f"`query_z` has {query.shape[1]} dimensions, `ref_z` {reference.shape[1]}.")
    check_count("k", k)
    k = min(int(k), len(reference))
    index = NearestNeighbors(n_neighbors=k, metric="cosine", algorithm="brute").fit(reference)
    summed = index.kneighbors_graph(query).astype(np.float32) @ y
    return np.asarray(summed.toarray() if sp.issparse(summed) else summed, dtype=np.float32) / np.float32(k)


@dataclass(frozen=True)
class Protocol:
    """How expression is predicted from frozen embeddings and scored.

    Examples
    --------
    >>> import sealst as sl
    >>> sl.tl.Protocol(name="cv of 200 genes", n_genes=200).alpha
    'cv'
    """

    #: its name in reports
    name: str
    #: genes in a default set
    n_genes: int = 50
    #: ``"train"`` chooses the most variable and most expressed genes of the training sections of every fold; ``"all"``
    #: one set of variable genes of all sections, test sections included, as HEST-bench does
    genes: Literal["train", "all"] = "train"
    #: ``"lognorm"`` (log1p of counts per 10,000) or ``"log1p_counts"`` (no library-size normalisation)
    target: Literal["lognorm", "log1p_counts"] = "lognorm"
    #: principal components of the standardised features that the probe sees; None is all features
    n_components: int | None = None
    #: penalty of the ridge regression: a number, ``"cv"`` (inner cross-validation over patients), or ``"hest"``
    #: (100 / features / genes)
    alpha: float | Literal["cv", "hest"] = "cv"
    #: whether the ridge regression has an intercept
    intercept: bool = True
    #: seed of the PCA
    seed: int = 0
    #: flips and rotations of each crop that features are the mean of, 1 to 8
    views: int = 8
    #: whether probes are fitted within sections (see `ridge_probe`), so that differences between them do not count
    within_sections: bool = True
    #: whether probes may see the mean embedding around a spot beside that of its crop, where that predicts held-out
    #: training sections better
    surroundings: bool = True

    def __post_init__(self) -> None:
        check_count("preset.n_genes", self.n_genes)
        check_choice("preset.genes", self.genes, ("train", "all"))
        check_choice("preset.target", self.target, ("lognorm", "log1p_counts"))
        if isinstance(self.alpha, str):
            check_choice("preset.alpha", self.alpha, ("cv", "hest"))
        else:
            check_positive("preset.alpha", self.alpha)
        check_views(self.views)
        if self.within_sections and self.alpha != "cv":
            raise DataError("`preset.within_sections` belongs to `preset.alpha` 'cv'; leave one of them out.")
        if self.surroundings and not (self.within_sections and self.n_components is None):
            raise DataError(
                "`preset.surroundings` belongs to `preset.within_sections` without `preset.n_components`; set it to "
                "False, or leave them as they are."
            )
        if self.alpha == "cv" and not self.intercept:
            raise DataError("`preset.alpha` 'cv' has an intercept; pass a number for a regression without one.")

    def probe(
        self, x: np.ndarray, y: np.ndarray, groups: np.ndarray, sections: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Fit a probe from features (n, d) to expression (n, G), and return its prediction."""
        from sklearn.decomposition import PCA
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if self.alpha == "cv":
            within = sections if self.within_sections else None
            options: dict[str, Any] = {"n_components": self.n_components, "seed": self.seed}
            return ridge_probe(x, y, groups=groups, sections=within, **options).predict
        steps: list = [StandardScaler()]
        width = x.shape[1]
        if self.n_components is not None:
            width = min(self.n_components, *x.shape)
            steps.append(PCA(width, random_state=self.seed))
        alpha = 100 / (width * y.shape[1]) if self.alpha == "hest" else float(self.alpha)
        ridge = Ridge(alpha=alpha, solver="lsqr", fit_intercept=self.intercept, random_state=0)
        fitted = make_pipeline(*steps, ridge).fit(np.asarray(x, np.float64), np.asarray(y, np.float64))

        def predict(z: np.ndarray) -> np.ndarray:
            return np.asarray(fitted.predict(np.asarray(z, np.float64))).reshape(len(z), -1)

        return predict


#: protocols by name. ``"cv"`` is ours: nothing is chosen on test data. ``"plain"`` is the same on the crop as it is,
#: fitted across sections. ``"hest"`` is HEST-bench's (Jaume et al. 2024), with its choices: genes from test sections
#: too, raw counts, a nearly unpenalised regression on 256 components.
PRESETS: dict[str, Protocol] = {
    "cv": Protocol("cv"),
    "plain": Protocol("plain", views=1, within_sections=False, surroundings=False),
    "hest": Protocol(
        "hest",
        genes="all",
        target="log1p_counts",
        n_components=256,
        alpha="hest",
        intercept=False,
        seed=1,
        views=1,
        within_sections=False,
        surroundings=False,
    ),
}


def resolve_protocol(preset: str | Protocol) -> Protocol:
    """Protocol by its name, or as given."""
    if isinstance(preset, Protocol):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise DataError(f"`preset` must be one of {listed(PRESETS)} or a Protocol, found {preset!r}.")
    return PRESETS[preset]
