"""What `tl.embed` does beside the encoder: processor time per crop, as a whole and in parts.

C2 of her2st (noise without SEALST_SHARED) with spots every 56 µm, crops of 112 µm at 224 px, batches of 64. The blocks
of the encoder are taken out, so that nothing but what is around them is left: reading crops, turning and mirroring them
for further views, images in [0, 1], mean and deviation taken out of them, collecting. A SEAL model makes novelty
besides. Numbers are milliseconds of one core, of all threads together, median over rounds; on a GPU what a core does is
in its way.

    python benchmarks/embed_overhead.py [--work DIR] [--rounds 5] [--crops 2048] [--beside SRC]

With `--beside` another version (the folder `src` of its checkout) is measured in the same run, in turn with this one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from crop_reading import PX, tissue, written

BATCH = 64


def bare(encoder: object) -> object:
    """The encoder with nothing between its input and its output."""
    import torch

    def forward(images: torch.Tensor) -> torch.Tensor:
        standard = encoder._normalised(images)  # type: ignore[attr-defined]
        return standard[:, :, :: PX // 8, :: PX // 8].flatten(1)

    encoder.forward = forward  # type: ignore[attr-defined]
    return encoder


def measured(store: Path) -> dict[str, float]:
    """Milliseconds of processor time per crop (of views: per view), once each."""
    import spatialdata
    import torch

    import sealst as sl
    from sealst import _section
    from sealst._core.device import to_images
    from sealst._core.scores.novelty import picture_features
    from sealst._core.space.views import symmetry
    from sealst._data.crops.reader import read_crops

    torch.set_num_threads(1)
    sdata = spatialdata.read_zarr(store)
    sdata.tables["table"] = sdata.tables["table"][: ARGS.crops].copy()
    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    source = _section.region_crops(sdata, table, region).source
    crops = read_crops(source.levels, source.boxes[:BATCH], PX)
    encoder = bare(sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False))
    images = to_images(crops, torch.device("cpu"))

    def timed(run: Callable[[], object], n: int) -> float:
        run()
        started = time.process_time()
        run()
        return (time.process_time() - started) / n * 1e3

    def embed(views: int) -> Callable[[], object]:
        return lambda: sl.tl.embed(sdata, encoder, views=views, progress=False)  # type: ignore[arg-type]

    n, normalised = len(source.boxes), encoder._normalised  # type: ignore[attr-defined]
    return {
        "tl.embed, 1 view": timed(embed(1), n),
        "tl.embed, 8 views, per view": timed(embed(8), 8 * n),
        "  reading": timed(lambda: read_crops(source.levels, source.boxes, PX), n),
        "  a further view": timed(lambda: [symmetry(crops, code) for code in range(1, 8)], 7 * BATCH),
        "  images": timed(lambda: to_images(crops, torch.device("cpu")), BATCH),
        "  mean and deviation": timed(lambda: normalised(images), BATCH),
        "novelty": timed(lambda: picture_features(crops), BATCH),
    }


def child(store: Path, source: Path | None) -> dict[str, float]:
    command = [sys.executable, __file__, "--store", str(store), "--crops", str(ARGS.crops)]
    other = {} if source is None else {"PYTHONPATH": str(source)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | other)
    if done.returncode:
        sys.exit(f"measuring failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    versions = {"this version": None} | ({"beside": ARGS.beside} if ARGS.beside else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    with tempfile.TemporaryDirectory(dir=ARGS.work) as folder:
        store = written(tissue(), 0.688, 56, Path(folder) / "section.zarr")
        for _ in range(ARGS.rounds):
            for name, source in versions.items():
                found[name].append(child(store, source))
    print(f"ms of a core per crop, median of {ARGS.rounds}\n{'':32}" + "".join(f"{name:>14}" for name in versions))
    for part in found["this version"][0]:
        print(f"{part:32}" + "".join(f"{np.median([r[part] for r in rounds]):14.3f}" for rounds in found.values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--crops", type=int, default=2048, help="of the section's, which lie side by side")
    parser.add_argument("--beside", type=Path, help="folder src of another version, which is measured, too")
    parser.add_argument("--work", type=Path, default=None, help="folder for scratch files")
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    ARGS = parser.parse_args()
    if ARGS.store:
        warnings.filterwarnings("ignore")
        logging.getLogger("sealst").setLevel("ERROR")
        print(json.dumps(measured(ARGS.store)))
    else:
        main()
