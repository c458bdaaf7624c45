"""Evaluation protocols: which genes, which target, which probe. Each is named and complete."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sealst._core.scores.probes import ridge_probe
from sealst._errors import DataError
from sealst._validate import check_choice, check_positive, listed


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

    def __post_init__(self) -> None:
        check_positive("preset.n_genes", self.n_genes)
        check_choice("preset.genes", self.genes, ("train", "all"))
        check_choice("preset.target", self.target, ("lognorm", "log1p_counts"))
        if isinstance(self.alpha, str):
            check_choice("preset.alpha", self.alpha, ("cv", "hest"))
        else:
            check_positive("preset.alpha", self.alpha)
        if self.alpha == "cv" and not self.intercept:
            raise DataError("`preset.alpha` 'cv' has an intercept; pass a number for a regression without one.")

    def probe(self, x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """Fit a probe from features (n, d) to expression (n, G), and return its prediction."""
        if self.alpha == "cv":
            return ridge_probe(x, y, groups=groups, n_components=self.n_components, seed=self.seed).predict
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


#: protocols by name. ``"cv"`` is ours: nothing is chosen on test data. ``"hest"`` is HEST-bench's (Jaume et al. 2024),
#: with its choices: genes from test sections too, raw counts, a nearly unpenalised regression on 256 components.
PRESETS: dict[str, Protocol] = {
    "cv": Protocol("cv"),
    "hest": Protocol(
        "hest", genes="all", target="log1p_counts", n_components=256, alpha="hest", intercept=False, seed=1
    ),
}


def resolve_protocol(preset: str | Protocol) -> Protocol:
    """Protocol by its name, or as given."""
    if isinstance(preset, Protocol):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise DataError(f"`preset` must be one of {listed(PRESETS)} or a Protocol, found {preset!r}.")
    return PRESETS[preset]
