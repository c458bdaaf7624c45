"""Embedding and training on a CUDA device: crops per second and memory, side by side in one run.

A drawn section of 4,900 spots is written to zarr at 0.4 µm per pixel, so that crops of 112 µm are cut from the chunks
on disk and resized to 224 px. Its pixels are noise, which hardly compresses: chunks are not decoded at the speed of
real ones. Weights are random, so that no download is needed.

- encoder alone: forward passes over one batch of crops that lies in the device's memory. This is the limit.
- tl.embed: from the section on disk to the table.
- training: one epoch of alignment, LoRA in the last block(s), "soft" augmentation, the median over all epochs but the
  first; with the memory that torch held at most. Plain runs the whole encoder in every step, cached trains on tokens.

    python benchmarks/gpu.py [--encoders vit_small_patch14_dinov2 ...] [--epochs 4] [--batch-size 384] [--pool cls]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

import sealst as sl

ENCODERS = ("vit_small_patch14_dinov2", "vit_large_patch16_224", "uni2-h")
SIDE, GENES = 70, 2000
#: what differs between trainings
WAYS: dict[str, dict[str, Any]] = {
    "plain": {"cache": "none"},
    "plain, 2 workers": {"cache": "none", "num_workers": 2},
    "plain, chunks of 64": {"cache": "none", "chunk_size": 64},
    "plain, float32": {"cache": "none", "precision": "32-true"},
    "plain, compiled": {"cache": "none", "compile": True},
    "cached": {"cache": "trunk", "views": 2},
}


class Clock(L.Callback):
    """Seconds of epochs."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        torch.cuda.synchronize()
        self.started = time.perf_counter()

    def on_train_epoch_end(self, *_: Any) -> None:
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.started)


def section(folder: Path) -> Any:
    """A square lattice of spots, 100 µm apart, on disk and read from there."""
    from spatialdata import read_zarr

    rng = np.random.default_rng(0)
    px, pitch = 250 * (SIDE + 1), 250
    tile = rng.integers(0, 255, (500, 500, 3), dtype=np.uint8)
    image = np.tile(tile, (px // 500 + 1, px // 500 + 1, 1))[:px, :px]
    row, column = (a.ravel() for a in np.divmod(np.arange(SIDE**2), SIDE))
    xy = np.column_stack([pitch * (column + 1.0), pitch * (row + 1.0)])
    counts = rng.poisson(rng.gamma(0.5, 2.0, GENES), (SIDE**2, GENES))
    sdata = sl.io.from_arrays(
        image, counts, xy, genes=[f"G{i}" for i in range(GENES)], mpp=0.4, spot_um=55, section="drawn", patient="p",
    )  # fmt: skip
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    sl.pp.normalize(sdata)
    sdata.write(folder / "section.zarr")
    return read_zarr(folder / "section.zarr")


def limit(model: Any, n: int) -> float:
    """Crops per second of the encoder alone."""
    from sealst._core.device import autocast

    encoder, device = model.encoder.eval(), model.device
    images = torch.rand(n, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    seconds = []
    for _ in range(12):
        torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.inference_mode(), autocast(device, encoder.spec.precision):
            encoder(images)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return n / float(np.median(seconds[2:]))


def embedding(sdata: Any, model: Any, batch_size: int) -> float:
    """Crops per second of `tl.embed`, the better of two runs: the first one loads kernels."""
    rates = []
    with sl.settings.override(batch_size=batch_size):
        for _ in range(2):
            started = time.perf_counter()
            sl.tl.embed(sdata, model, progress=False)
            rates.append(SIDE**2 / (time.perf_counter() - started))
    return max(rates)


def training(sdata: Any, encoder: str, way: dict[str, Any]) -> tuple[Any, float, float, float]:
    """The model, seconds of an epoch, seconds before the first one, and GiB at most."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    clock, started = Clock(), time.perf_counter()
    params = {"epochs": ARGS.epochs, "batch_size": ARGS.batch_size, "warmup_epochs": 0, "views": 1}
    model = sl.tl.finetune(
        sdata, encoder=encoder, pretrained=False, pool=ARGS.pool, adapter={"kind": "lora", "n_blocks": ARGS.blocks},
        params=params | way, n_genes=GENES, seed=0, device="cuda", progress=False,
        trainer_kwargs={"callbacks": [clock]},
    )  # fmt: skip
    before = time.perf_counter() - started - sum(clock.seconds)
    return model, float(np.median(clock.seconds[1:])), before, torch.cuda.max_memory_allocated() / 2**30


def report(sdata: Any, encoder: str) -> None:
    n = SIDE**2
    print(f"\n{encoder}\n{'training':24}{'epoch, s':>10}{'crops/s':>10}{'before, s':>10}{'GiB':>8}", flush=True)
    model = None
    for name in ARGS.ways or WAYS:
        model, epoch, before, memory = training(sdata, encoder, WAYS[name])
        print(f"{name:24}{epoch:10.2f}{n / epoch:10.0f}{before:10.1f}{memory:8.1f}", flush=True)
    print(f"{'embedding':24}{'crops/s':>10}{'x limit':>10}")
    most = limit(model, 256)
    print(f"{'encoder alone (limit)':24}{most:10.0f}{1:10.2f}")
    for size in (64, 256):
        found = embedding(sdata, model, size)
        print(f"{f'tl.embed, batches of {size}':24}{found:10.0f}{found / most:10.2f}", flush=True)


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("sealst").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        sdata = section(Path(name))
        with sl.settings.override(cache_dir=Path(name)):
            print(
                f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {SIDE**2} spots, {GENES} genes, batches "
                f"of {ARGS.batch_size}, LoRA in the last {ARGS.blocks} block(s), pool {ARGS.pool}; section drawn in "
                f"{time.perf_counter() - started:.0f} s"
            )
            for encoder in ARGS.encoders:
                report(sdata, encoder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="trainings; default all")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=384)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--pool", default="cls")
    ARGS = parser.parse_args()
    main()
