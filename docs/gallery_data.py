"""Synthetic data behind the gallery: a drawn section and slide, and made-up results. Nothing here was measured.

Types come from where they are defined: `sl.tl` would load torch, which no figure needs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import cKDTree
from sklearn.metrics import average_precision_score, roc_auc_score
from sksurv.metrics import concordance_index_censored
from spatialdata import SpatialData

import sealst as sl
from sealst._core.scores.slide_evaluation import SlideEvaluation
from sealst._evaluation import Evaluation

GENES = ("ERBB2", "EPCAM", "COL1A1", "VIM", "MS4A1", "CD3E")
#: per method of an evaluation: how much of the signal it sees, how much noise it adds, how much it shrinks
METHODS = {
    "frozen + ridge": (0.55, 0.45, 0.7),
    "adapted + ridge": (0.8, 0.35, 0.8),
    "seal head": (0.75, 0.4, 1.1),
    "mean": (0.0, 0.0, 0.0),
}
PATHWAYS = ("ESTROGEN_RESPONSE", "EPITHELIAL_MESENCHYMAL_TRANSITION", "HYPOXIA", "INTERFERON_GAMMA_RESPONSE")
SECTIONS = ("P1_S1", "P2_S1", "P3_S1")


def smoothed(values: np.ndarray, xy: np.ndarray, k: int = 7) -> np.ndarray:
    """Mean over the nearest spots."""
    return values[cKDTree(xy).query(xy, k=k)[1]].mean(axis=1)


@cache
def section() -> SpatialData:
    """A drawn section with spots, and predictions that are a smoothed copy of its expression."""
    with sl.settings.override(progress=False):
        sdata = sl.datasets.synthetic(size_um=900, mpp=0.5, seed=3)
        sl.pp.pair_crops(sdata, crop_um=64, crop_px=128)
        sl.pp.normalize(sdata)
    table, rng = sdata.tables["table"], np.random.default_rng(0)
    measured = table.to_df("lognorm")[list(known_genes(table))]
    smooth = smoothed(measured.to_numpy(), table.obsm["spatial"])
    noisy = measured.mean().to_numpy() + 0.8 * (smooth - measured.mean().to_numpy())
    noisy = np.clip(noisy + rng.normal(0, 0.1, noisy.shape), 0, None)
    table.obsm["seal_expression"] = pd.DataFrame(noisy, measured.index, measured.columns)
    programs = table.obsm["truth_programs"]
    scores = programs.iloc[:, :3].to_numpy() * 6 + rng.normal(0, 0.6, (table.n_obs, 3))
    table.obsm["seal_pathways"] = pd.DataFrame(scores, table.obs_names, [str(c).upper() for c in programs.columns[:3]])
    likeness = programs["epithelium"].to_numpy() * 0.9 - 0.3 + rng.normal(0, 0.05, table.n_obs)
    table.obs["seal_similarity"] = likeness
    table.obs["seal_similarity_rank"] = pd.Series(-likeness).rank().to_numpy()
    table.uns["sealst"] = {**table.uns["sealst"], "retrieve": {"seal_similarity": {"query": "EPCAM, KRT8"}}}
    return sdata


def known_genes(table: AnnData) -> list[str]:
    """Genes of the gallery that the section has, filled up with its first ones."""
    found = [gene for gene in GENES if gene in table.var_names]
    return [*found, *(str(g) for g in table.var_names if g not in found)][:20]


@cache
def tiled() -> SpatialData:
    """The same picture cut into tiles, with made-up labels, expression and attention."""
    source = section()
    spots = source.tables["table"]
    with sl.settings.override(progress=False):
        sdata = SpatialData(images=dict(source.images))
        sl.pp.tile(sdata, crop_um=56)
        sl.pp.pair_crops(sdata, crop_um=56, crop_px=112)
    table, rng = sdata.tables["table"], np.random.default_rng(1)
    nearest = cKDTree(spots.obsm["spatial"]).query(table.obsm["spatial"], k=3)[1]
    composition = spots.obsm["truth_composition"]
    shares = composition.to_numpy()[nearest].mean(axis=1)
    names = composition.columns.to_numpy()[shares.argmax(axis=1)]
    table.obs["tissue_class"] = pd.Categorical(names)
    activity = spots.obsm["truth_programs"]["epithelium"].to_numpy()[nearest].mean(axis=1)
    weights = np.exp(5 * activity + smoothed(rng.normal(0, 0.8, (table.n_obs, 1)), table.obsm["spatial"]).ravel())
    table.obs["seal_attention"] = weights / weights.sum()
    genes = spots.obsm["seal_expression"]
    table.obsm["seal_expression"] = pd.DataFrame(genes.to_numpy()[nearest].mean(axis=1), table.obs_names, genes.columns)
    table.obsm["X_seal"] = np.column_stack([activity, rng.normal(size=table.n_obs)])
    return sdata


@cache
def evaluation() -> Evaluation:
    """An evaluation of three sections, of which one keeps its spots."""
    rng = np.random.default_rng(5)
    spots = held_out_spots()
    genes, rows, pathways = [], [], []
    for fold, name in enumerate(SECTIONS):
        keys = {"fold": str(fold), "seed": 0, "section": name, "patient": name[:2]}
        level = rng.uniform(0.15, 0.75, spots.n_vars)
        for method, (share, *_) in METHODS.items():
            r = np.clip(share * level + rng.normal(0, 0.04 * (share > 0), spots.n_vars), -1, 1)
            scores = {"pearson": r, "spearman": 0.95 * r, "r2": r**2, "slope": np.full_like(r, 0.8)}
            genes.append(pd.DataFrame({**keys, "method": method, "gene": spots.var_names, **scores}))
            for metric, value in (("pearson", r.mean()), ("spearman", 0.95 * r.mean())):
                half = 0.05 * (share > 0)
                ends = {"low": value - half, "high": value + half}
                rows.append({**keys, "method": method, "genes": "hvg50", "metric": metric, "value": value, **ends})
            for i, pathway in enumerate(PATHWAYS):
                value = share * (0.9 - 0.22 * i) + rng.normal(0, 0.06)
                pathways.append({**keys, "method": method, "pathway": pathway, "pearson": value, "n_genes": 30})
    pathway_table = pd.DataFrame(pathways).query("method != 'mean'")
    return Evaluation(pd.DataFrame(rows), pd.concat(genes), pathway_table, {SECTIONS[0]: spots}, {})


def learning_curve() -> pd.DataFrame:
    """Made-up scores of models that learned from some of eight training patients."""
    rng, rows = np.random.default_rng(9), []
    for fold in range(3):
        level = rng.normal(0, 0.03)
        for n in (2, 4, 8):
            for draw in range(3 if n < 8 else 1):
                for method, gain in (("frozen + ridge", 0.02), ("adapted + ridge", 0.06)):
                    value = 0.12 + level + gain * np.log2(n) + rng.normal(0, 0.04 / n)
                    facts = {"fraction": n / 8, "n_patients": n, "n_sections": 2 * n, "n_spots": 900 * n}
                    rows.append({**facts, "fold": str(fold), "draw": draw, "seed": 0, "method": method, "value": value})
    return pd.DataFrame(rows).assign(metric="pearson", genes="hvg50")


def held_out_spots() -> AnnData:
    """Spots of the section with a prediction by every method."""
    table, rng = section().tables["table"], np.random.default_rng(2)
    frame = table.to_df("lognorm")[list(table.obsm["seal_expression"].columns)]
    spots = AnnData(frame.astype(np.float32), obsm={"spatial": table.obsm["spatial"] * 0.5})
    mean, smooth = frame.to_numpy().mean(0), smoothed(frame.to_numpy(), table.obsm["spatial"])
    for method, (share, noise, size) in METHODS.items():
        other = rng.normal(0, noise * frame.to_numpy().std(0) * 0.5, frame.shape)
        spots.layers[method] = (mean + size * (share * (smooth - mean) + other)).astype(np.float32)
    return spots


def history() -> pd.DataFrame:
    """Losses and validation metrics of a training."""
    epoch = np.arange(1, 13)
    warm = pd.DataFrame({"stage": "warmup", "epoch": epoch[:4], "train_loss": 3 / epoch[:4] ** 0.3})
    contrast, image = 4 / epoch**0.35 + 1, 1.5 / epoch**0.3
    align = pd.DataFrame({"stage": "align", "epoch": epoch, "train_contrast": contrast, "train_image": image})
    align["train_loss"] = contrast + image
    align["val_pearson"] = 0.3 - 0.2 / epoch
    align["baseline_pearson"] = 0.18
    return pd.concat([warm, align], ignore_index=True)


@cache
def slides(task: str, n: int = 90) -> SlideEvaluation:
    """Held-out results of a slide-level model on made-up patients, adapted beside frozen."""
    rng = np.random.default_rng(11)
    target = {"classification": "HRD", "regression": "proliferation", "survival": "survival"}[task]
    cause = rng.normal(size=n)
    names = {"slide": [f"S{i}" for i in range(n)], "patient": [f"P{i}" for i in range(n)]}
    base = pd.DataFrame({**names, "fold": (np.arange(n) % 5).astype(str), "target": target})
    if task == "survival":
        time, until = rng.exponential(40 * np.exp(-1.3 * cause)), rng.uniform(20, 110, n)
        base["time"], base["event"] = np.minimum(time, until), time <= until
    elif task == "regression":
        base["truth"] = 2 + cause + rng.normal(0, 0.3, n)
    else:
        base["truth"] = np.where(cause + rng.normal(0, 0.4, n) > 0.3, "deficient", "proficient")
    parts = []
    for method, noise in (("X_seal", 0.6), ("X_frozen", 1.4)):
        seen = cause + rng.normal(0, noise, n)
        part = base.assign(method=method, prediction=(2 + seen / (1 + noise)) if task == "regression" else seen)
        if task == "classification":
            p = 1 / (1 + np.exp(-1.6 * (seen - 0.3)))
            part = part.assign(p_proficient=1 - p, p_deficient=p)
            part["prediction"] = np.where(p > 0.5, "deficient", "proficient")
        parts.append(part)
    classes = {target: ["proficient", "deficient"]} if task == "classification" else {}
    facts = {"task": task, "targets": [target], "classes": classes, "aggregator": "abmil", "folds": 5, "seed": 0}
    facts |= {"keys": ["X_seal", "X_frozen"], "version": sl.__version__}
    predictions = pd.concat(parts, ignore_index=True)
    rows = [row for metric, score in SCORES[task].items() for row in scored(predictions, metric, score, target, n=n)]
    return SlideEvaluation(pd.DataFrame(rows), predictions, facts)


def scored(
    predictions: pd.DataFrame, metric: str, score: Callable[[pd.DataFrame], float], target: str, *, n: int
) -> list[dict[str, object]]:
    """Rows of a metric: pooled with an interval over patients, the paired difference, and fold by fold."""
    rng = np.random.default_rng(0)
    draws = [rng.integers(n, size=n) for _ in range(60)]
    rows: list[dict[str, object]] = []
    frames = {name: own.reset_index(drop=True) for name, own in predictions.groupby("method", sort=False)}
    values = {name: np.array([score(own.iloc[d]) for d in draws]) for name, own in frames.items()}
    pooled = {name: score(own) for name, own in frames.items()}
    pair = "X_seal - X_frozen"
    values[pair] = values["X_seal"] - values["X_frozen"]
    pooled[pair] = pooled["X_seal"] - pooled["X_frozen"]
    for name, value in pooled.items():
        low, high = np.quantile(values[name], [0.025, 0.975])
        same = {"method": name, "target": target, "metric": metric}
        rows.append({"fold": "", **same, "value": value, "low": low, "high": high, "n": n, "n_patients": n})
        if name in frames:
            parts = frames[name].groupby("fold")
            rows += [{"fold": fold, **same, "value": score(own), "n": len(own)} for fold, own in parts]
    return rows


def _deficient(score: Callable[..., float]) -> Callable[[pd.DataFrame], float]:
    return lambda frame: float(score(frame["truth"] == "deficient", frame["p_deficient"]))


def _c_index(frame: pd.DataFrame) -> float:
    return float(concordance_index_censored(frame["event"], frame["time"], frame["prediction"])[0])


SCORES: dict[str, dict[str, Callable[[pd.DataFrame], float]]] = {
    "classification": {"auroc": _deficient(roc_auc_score), "average_precision": _deficient(average_precision_score)},
    "regression": {"pearson": lambda frame: float(frame["truth"].corr(frame["prediction"]))},
    "survival": {"c_index": _c_index},
}
