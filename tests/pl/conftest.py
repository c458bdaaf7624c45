"""A section with every slot that plots read, and an evaluation, filled without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.collections import EllipseCollection
from spatialdata import SpatialData

import sealst as sl
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._evaluation import Evaluation

NO_CROP = "toy_2x1"
GENES = ("EPCAM", "KRT8", "KRT18", "ERBB2", "VIM", "COL1A1", "COL1A2", "FN1", "SPARC", "CD3E")
GENES += ("MS4A1", "CD74", "HLA-DRA", "IGKC", "ACTB", "GAPDH", "SCGB2A2", "MKI67", "PECAM1", "ENSG00000211592")
#: how much of the signal a method sees, how much it adds of its own, and how much it shrinks
METHODS = {
    "frozen + ridge": (0.55, 0.5, 0.7),
    "adapted + ridge": (0.75, 0.45, 0.8),
    "seal head": (0.7, 0.5, 1.1),
    "seal retrieval": (0.6, 0.4, 0.5),
    "st-net": (0.5, 0.6, 1.3),
    "bleep": (0.45, 0.6, 0.6),
    "colour + ridge": (0.25, 0.3, 0.4),
    "mean": (0.0, 0.0, 0.0),
}
#: section to (patient, fold)
SECTIONS = {"B4": ("B", "0"), "C2": ("C", "1"), "C3": ("C", "1")}
SEEDS = (0, 1)
PATHWAYS = ("HALLMARK_HYPOXIA", "HALLMARK_EPITHELIAL_MESENCHYMAL_TRANSITION", "HALLMARK_ESTROGEN_RESPONSE_EARLY")
FACTS = {
    "preset": "cv",
    "encoder": "UNI2-h",
    "folds": {"0": ["B4"], "1": ["C2", "C3"]},
    "seeds": [0, 1],
    "versions": {"sealst": "0.9", "torch": "2.9.1", "scikit-learn": "1.7.2"},
}


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def paired(toy_section: Callable[..., SpatialData]) -> SpatialData:
    """36 spots with crops of 60 µm and normalised counts; nothing predicted."""
    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_um=60, crop_px=32)
    sl.pp.normalize(sdata)
    return sdata


@pytest.fixture
def filled(paired: SpatialData) -> SpatialData:
    """The same with predictions, pathway scores and a query's similarity; one spot has no crop."""
    table = paired.tables["table"]
    rng = np.random.default_rng(0)
    reason = table.obs["crop_reason"].astype(str)
    reason[NO_CROP] = "outside image"
    table.obs["crop_reason"] = pd.Categorical(reason)
    table.obs["crop_ok"] = (reason == "ok").to_numpy()

    def frame(columns: list[str], values: np.ndarray) -> pd.DataFrame:
        out = pd.DataFrame(values.astype(np.float32), index=table.obs_names, columns=columns)
        out.loc[NO_CROP] = np.nan
        return out

    measured = table.to_df("lognorm")
    shrunk = measured.mean() + 0.3 * (measured - measured.mean())
    known = [g for g in table.var_names if g != "ACTB"]
    table.obsm["seal_expression"] = frame(known, shrunk[known].to_numpy() + rng.normal(0, 0.05, (36, len(known))))
    table.obsm["seal_pathways"] = frame(
        ["HALLMARK_EPITHELIAL_MESENCHYMAL_TRANSITION", "Hypoxia", "TGFb"], rng.normal(size=(36, 3)).cumsum(axis=0)
    )
    table.obsm["X_seal"] = frame([str(i) for i in range(4)], rng.normal(size=(36, 4))).to_numpy()
    similarity = np.linspace(-0.4, 0.9, 36, dtype=np.float32)
    similarity[table.obs_names == NO_CROP] = np.nan
    table.obs["seal_similarity"] = similarity
    table.obs["seal_similarity_rank"] = pd.Series(-similarity).rank().to_numpy()
    table.uns["sealst"] = {**table.uns["sealst"], "retrieve": {"seal_similarity": {"query": "EPCAM, KRT8"}}}
    return paired


@pytest.fixture
def spots_of() -> Callable[[plt.Axes], EllipseCollection]:
    """The circles of a map."""

    def find(ax: plt.Axes) -> EllipseCollection:
        (circles,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
        return circles

    return find


# -- a made-up evaluation: smooth tissue, noisy counts, methods of different quality -----------------------------------
def hexagonal(n: int, *, seed: int = 0) -> np.ndarray:
    """Positions in µm of a Visium-like lattice of about 0.7 n² spots in a rounded piece of tissue."""
    row, column = (a.ravel().astype(float) for a in np.divmod(np.arange(n * n), n))
    xy = np.column_stack([100 * column + 50 * (row % 2), 86.6 * row])
    centre, angle = xy.mean(0), np.arctan2(*(xy - xy.mean(0)).T)
    reach = np.linalg.norm((xy - centre) / (xy.max(0) - centre), axis=1)
    return xy[reach < 0.9 + 0.12 * np.cos(3 * angle + seed)]


def make_spots(xy: np.ndarray, *, names: list[str] | None = None, genes: tuple[str, ...] = GENES, seed: int) -> AnnData:
    """Held-out spots of one section with predictions by every method."""
    rng = np.random.default_rng(seed)
    place = xy / np.ptp(xy, axis=0).max() * 6
    fields = np.stack([np.sin(place @ rng.normal(0, 1, 2) + rng.uniform(0, 6)) for _ in range(4)], axis=1)
    loads = rng.normal(0, 0.5, (4, len(genes))) * np.linspace(1.2, 0.1, len(genes))
    signal = fields @ loads
    level = rng.uniform(0.8, 2.5, len(genes))
    measured = np.clip(level + signal + rng.normal(0, 0.35, signal.shape), 0, None)
    spots = AnnData(measured.astype(np.float32), obsm={"spatial": xy.astype(float)})
    spots.obs_names = names or [f"{seed}_{i}" for i in range(len(xy))]
    spots.var_names = list(genes)
    deviation = signal.std(0).mean()
    for method, (share, noise, size) in METHODS.items():
        own = np.stack([np.sin(place @ rng.normal(0, 1, 2) + rng.uniform(0, 6)) for _ in genes], axis=1)
        seen = share * signal + noise * deviation * (own + rng.normal(0, 0.3, own.shape))
        spots.layers[method] = (measured.mean(0) + size * seen).astype(np.float32)
    return spots


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(0), b - b.mean(0)
    spread = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return np.divide((a * b).sum(0), spread, out=np.zeros_like(spread), where=spread > 1e-6)


def _gene_rows(keys: dict[str, object], spots: AnnData, method: str, rng: np.random.Generator) -> pd.DataFrame:
    measured, predicted = (np.asarray(m, dtype=float) for m in (spots.X, spots.layers[method]))
    r = np.clip(_correlations(measured, predicted) + rng.normal(0, 0.02 * (method != "mean"), len(GENES)), -1, 1)
    spread = predicted.std(0)
    slope = np.divide(r * measured.std(0), spread, out=np.full(len(r), np.nan), where=spread > 1e-6)
    moran = np.linspace(0.7, 0.02, len(GENES))
    maps = {"moran_measured": moran, "moran_predicted": 0.9 * moran, "moran_residual": 0.3 * moran}
    scores = {"pearson": r, "spearman": 0.95 * r, "r2": 1 - (1 - r**2) * 1.1, "slope": slope}
    return pd.DataFrame({**keys, "method": method, "gene": list(GENES), **scores, **maps})


def _metric_rows(genes: pd.DataFrame) -> list[dict[str, object]]:
    keys = ["fold", "seed", "section", "patient", "method"]
    rows = []
    for values, part in genes.groupby(keys, sort=False):
        own = dict(zip(keys, values, strict=True))
        for name, some in (("hvg10", part.iloc[:10]), ("heg10", part.iloc[10:])):
            for metric in ("pearson", "spearman", "r2", "spot_pearson", "moran_agreement"):
                value = some[metric if metric in some else "pearson"].mean()
                rows.append({**own, "genes": name, "metric": metric, "value": value})
            rows.append({**own, "genes": name, "metric": "calibration_slope", "value": some["slope"].mean()})
    return rows


def _retrieval_rows(keys: dict[str, object], pool: int, rng: np.random.Generator) -> list[dict[str, object]]:
    rows = []
    for method, good in (("adapted", 0.3), ("frozen", 0.08), ("frozen + ridge", 0.15)):
        for prefix in ("", "gene→image ") if method == "adapted" else ("",):
            own = {**keys, "method": method, "genes": "", "pool": pool}
            for k in (1, 5, 10, 50):
                value = min(1, k / pool + good * k**0.4 / 2.5 + rng.normal(0, 0.004))
                rows.append({**own, "metric": f"{prefix}R@{k}", "value": value, "chance": k / pool})
            rank = pool * (0.5 - good)
            rows.append({**own, "metric": f"{prefix}median_rank", "value": rank, "chance": (pool + 1) / 2})
    return rows


def make_evaluation(
    spots: Mapping[str, AnnData],
    sections: Mapping[str, tuple[str, str]] = SECTIONS,
    *,
    seeds: tuple[int, ...] = SEEDS,
    difference: bool = True,
) -> Evaluation:
    """An evaluation of these spots; `sections` says of which patient and in which fold each section is."""
    rng = np.random.default_rng(7)
    genes, retrieval, pathways = [], [], []
    for seed in seeds:
        for section, (patient, fold) in sections.items():
            keys = {"fold": fold, "seed": seed, "section": section, "patient": patient}
            genes += [_gene_rows(keys, spots[section], method, rng) for method in METHODS]
            retrieval += _retrieval_rows(keys, spots[section].n_obs, rng)
            for pathway in PATHWAYS:
                for method, (share, *_) in METHODS.items():
                    r = share * rng.uniform(0.5, 1)
                    scores = {"pathway": pathway, "pearson": r, "spearman": 0.9 * r, "n_genes": 12}
                    pathways.append({**keys, "method": method, **scores})
        for fold in dict.fromkeys(f for _, f in sections.values()):
            pool = sum(spots[s].n_obs for s, (_, f) in sections.items() if f == fold)
            keys = {"fold": fold, "seed": seed, "section": "", "patient": ""}
            retrieval += _retrieval_rows(keys, pool, rng)
    per_gene = pd.concat(genes, ignore_index=True)
    pooled = per_gene.assign(section="", patient="")
    keys = ["fold", "seed", "section", "patient", "method", "gene"]
    pooled = pooled.groupby(keys, sort=False, as_index=False).mean(numeric_only=True)
    rows = [*_metric_rows(per_gene), *_metric_rows(pooled), *retrieval]
    if difference:
        same = {"fold": "", "seed": 0, "section": "", "patient": "", "metric": "difference"}
        rows.append({**same, "method": "adapted + ridge", "genes": "hvg10", "value": 0.08, "low": 0.05, "high": 0.11})
    table = pd.DataFrame(rows).assign(organ="breast", technology="ST")
    table["low"] = table.get("low", pd.Series(np.nan, table.index)).fillna(table["value"] - 0.04)
    table["high"] = table.get("high", pd.Series(np.nan, table.index)).fillna(table["value"] + 0.04)
    return Evaluation(table, per_gene, pd.DataFrame(pathways), dict(spots), dict(FACTS))


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """Two folds, three sections of two patients, eight methods, 20 genes, two seeds."""
    spots = {name: make_spots(hexagonal(16 + 3 * i, seed=i), seed=i) for i, name in enumerate(SECTIONS)}
    return make_evaluation(spots)


@pytest.fixture
def toy_evaluation(toy_section: Callable[..., SpatialData]) -> tuple[Evaluation, SpatialData]:
    """One section whose H&E is at hand: spots of the toy section, of which the first has no crop."""
    sdata = toy_section()
    table = sdata.tables["table"]
    row, column = np.divmod(np.arange(36), 6)
    xy = np.column_stack([75 + 90.0 * column, 75 + 90.0 * row])[1:]
    spots = {"toy": make_spots(xy, names=list(table.obs_names[1:]), seed=0)}
    return make_evaluation(spots, {"toy": ("p1", "0")}, seeds=(0,)), sdata


@pytest.fixture
def evaluation_of() -> Callable[..., Evaluation]:
    """Build an evaluation of many sections."""

    def build(n: int) -> Evaluation:
        names = {f"TENX{90 + i}": (f"patient {i // 2}", str(i % 4)) for i in range(n)}
        spots = {s: make_spots(hexagonal(10, seed=i), seed=i) for i, s in enumerate(names)}
        return make_evaluation(spots, names, seeds=(0,))

    return build


# -- slide-level evaluations, 40 patients with a slide each, in four folds ---------------------------------------------
def make_slides(task: str, target: str, metric: tuple[str, float, float, float]) -> SlideEvaluation:
    """Held-out slides of two embeddings, of which the first sees more; the table has one number, of the first."""
    rng, n = np.random.default_rng(3), 40
    cause = rng.normal(size=n)
    names = {"slide": [f"S{i}" for i in range(n)], "patient": [f"P{i}" for i in range(n)]}
    base = pd.DataFrame({**names, "fold": (np.arange(n) // 10).astype(str), "target": target})
    parts = []
    for method, noise in (("X_frozen", 1.5), ("X_seal", 0.5)):
        seen = cause + rng.normal(0, noise, n)
        part = base.assign(method=method, prediction=seen)
        if task == "classification":
            p = 1 / (1 + np.exp(-2 * seen))
            part = part.assign(truth=np.where(cause > 0, "high", "low"), p_high=p, p_low=1 - p)
            part["prediction"] = np.where(p > 0.5, "high", "low")
        elif task == "regression":
            part["truth"] = cause
        else:
            # Every fold's model has a scale of its own.
            part["prediction"] += 100 * (np.arange(n) // 10)
            part["time"], part["event"] = 10 * np.exp(-cause), np.arange(n) % 3 > 0
        parts.append(part)
    name, value, low, high = metric
    row = {"fold": "", "method": "X_seal", "target": target, "metric": name, "value": value, "low": low, "high": high}
    fold = {**row, "fold": "0", "low": np.nan, "high": np.nan}
    table = pd.DataFrame([row, {**row, "method": "X_seal - X_frozen", "value": 0.1, "low": -0.02, "high": 0.2}, fold])
    table["n"] = table["n_patients"] = n
    classes = {target: ["low", "high"]} if task == "classification" else {}
    facts = {"task": task, "targets": [target], "classes": classes, "aggregator": "abmil", "folds": 4, "seed": 0}
    facts |= {"keys": ["X_seal", "X_frozen"], "version": "0.9"}
    return SlideEvaluation(table, pd.concat(parts, ignore_index=True), facts)


@pytest.fixture(scope="module")
def classified() -> SlideEvaluation:
    return make_slides("classification", "grade", ("auroc", 0.9, 0.8, 0.97))


@pytest.fixture(scope="module")
def regressed() -> SlideEvaluation:
    return make_slides("regression", "score", ("pearson", 0.8, 0.6, 0.9))


@pytest.fixture(scope="module")
def survived() -> SlideEvaluation:
    return make_slides("survival", "death", ("c_index", 0.7, 0.6, 0.8))
