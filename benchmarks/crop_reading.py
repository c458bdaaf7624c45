"""Crops per second and peak memory of ways to read the crops of a section, side by side.

Two sections are written to zarr with chunks of 1024 px: C2 of her2st (9,274 x 9,911 px) with spots every 56 µm, and a
synthetic slide of 40,000 x 40,000 px (0.25 µm per pixel, made of pieces of that section) with spots every 100 µm. Every
contender returns crops of 112 µm at 224 px as uint8 and runs in a process of its own. Slow ones read a sample of the
spots. Memory is the peak resident size above that of the process before it reads. "core ms" is processor time per crop,
of all threads together: a thousand by that is the crops that a core makes in a second. "lock ms" is for how long others
have to wait for the interpreter lock per crop, by the clock: a thread of compiled code wakes at random times and looks
whether it gets the lock at once. Whatever the number of cores, no more than a thousand by that are made in a second.

    python benchmarks/crop_reading.py [--work DIR] [--slide-px 40000] [--small-px 10000] [--beside SRC]

With `--beside` the reader of another version (the folder `src` of its checkout) is measured in the same run.

Real pixels are looked for in the folder that SEALST_SHARED names (default ../shared); without it noise takes their
place. Linux only: memory is read from /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
CROP_UM, PX = 112.0, 224
SAMPLE = 100


# -- sections ---------------------------------------------------------------------------------------------------------
def lattice(width: int, height: int, mpp: float, pitch_um: float) -> np.ndarray:
    margin = 0.6 * CROP_UM / mpp
    x, y = (np.arange(margin, size - margin, pitch_um / mpp) for size in (width, height))
    return np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)


def written(image: object, mpp: float, pitch_um: float, path: Path) -> Path:
    import sealst as sl

    height, width = image.shape[:2] if isinstance(image, np.ndarray) else image.shape  # type: ignore[attr-defined]
    xy = lattice(width, height, mpp, pitch_um)
    counts = np.ones((len(xy), 2))
    sdata = sl.io.from_arrays(
        image, counts, xy, genes=["A", "B"], mpp=mpp, spot_um=55, section="s", thumbnail=False  # type: ignore[arg-type]
    )  # fmt: skip
    sl.pp.pair_crops(sdata, crop_um=CROP_UM, crop_px=PX)
    sdata.write(path)
    return path


def tissue() -> np.ndarray:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    folder = Path(os.environ.get("SEALST_SHARED", ROOT.parent / "shared")) / "data" / "her2st"
    if (picture := folder / "C2" / "5714_HE_BT_C2.jpg").exists():
        return np.asarray(Image.open(picture).convert("RGB"))
    return np.random.default_rng(0).integers(0, 255, (9911, 9274, 3), dtype=np.uint8)


def slide(px: int, tile: np.ndarray) -> object:
    """A lazy pyramid whose chunks are pieces of the tissue."""
    import dask.array as da

    import sealst as sl

    n = px // 1024
    pieces = [tile[y : y + 1024, x : x + 1024] for y in range(2048, 7168, 1024) for x in range(2048, 7168, 1024)]

    def chunk(block_info: dict) -> np.ndarray:
        _, row, column = block_info[None]["chunk-location"]
        _, height, width = block_info[None]["chunk-shape"]
        piece = np.rot90(pieces[(7 * row + column) % len(pieces)], (row + column) % 4)
        return np.ascontiguousarray(np.moveaxis(piece[:height, :width], 2, 0))

    sizes = (1024,) * n + ((px - n * 1024,) if px % 1024 else ())
    level = da.map_blocks(chunk, chunks=((3,), sizes, sizes), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    return sl.io.SlideImage((level,))


# -- measuring --------------------------------------------------------------------------------------------------------
def memory_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise RuntimeError(f"no {field} in /proc/self/status")


class LockProbe(threading.Thread):
    """Finds out for which share of the time the interpreter lock is held by others."""

    #: seconds from which on it was not there at once
    WAITED = 2e-5

    def __init__(self) -> None:
        super().__init__(daemon=True)
        from numba import njit

        libc = ctypes.CDLL(None)
        sleep, clock = libc.usleep, libc.clock_gettime
        sleep.argtypes, sleep.restype = [ctypes.c_uint32], ctypes.c_int
        clock.argtypes, clock.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_int

        @njit(nogil=True)
        def woken(microseconds: int, now: np.ndarray) -> None:
            sleep(microseconds)
            clock(1, now.ctypes)

        self._woken, self._now = woken, np.zeros(2, dtype=np.int64)
        self.n = self.held = 0
        self.stopped = False
        self._woken(1, self._now)

    def run(self) -> None:
        waits = np.random.default_rng(0).integers(100, 600, 1000).tolist()
        while not self.stopped:
            self._woken(waits[self.n % 1000], self._now)
            waited = time.perf_counter() - (self._now[0] + self._now[1] * 1e-9)
            self.n += 1
            self.held += bool(waited > self.WAITED)


def start() -> None:
    """Everything is imported and opened: from here on time and memory count."""
    ARGS.probe = LockProbe()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    ARGS.ready = memory_kib("VmRSS")
    ARGS.probe.start()
    ARGS.started, ARGS.busy = time.perf_counter(), time.process_time()


# -- contenders: number of crops read ---------------------------------------------------------------------------------
def opened(store: Path) -> tuple[object, object]:
    import spatialdata

    from sealst import _section

    sdata = spatialdata.read_zarr(store)
    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    return sdata, _section.region_crops(sdata, table, region).source


def level_of(source: object) -> tuple[object, np.ndarray]:
    """zarr array of the level to read and the boxes in its pixels."""
    import zarr

    from sealst._core.space.geometry import pick_level

    levels = source.levels  # type: ignore[attr-defined]
    boxes = source.boxes  # type: ignore[attr-defined]
    downsamples = np.array([levels[0].shape[2] / level.shape[2] for level in levels])
    used = pick_level(downsamples, float(np.median(boxes[:, 2] - boxes[:, 0])) / PX)
    array = zarr.open_group(ARGS.store / "images" / "s_he", mode="r")[str(used) if ARGS.plain_names else f"s{used}"]
    return array, boxes / downsamples[used]


def sealst_reader(store: Path) -> int:
    from sealst._data.crops.source import iter_source

    _, source = opened(store)
    start()
    return sum(len(crops) for _, crops in iter_source(source, PX))  # type: ignore[arg-type]


def cache_of(store: Path) -> object:
    from sealst._data.crops.cache import CropCache

    return CropCache(next(store.parent.glob(f"{store.stem}-cache/*.zarr")))


def sealst_cache(store: Path) -> int:
    from sealst._data.crops.cache import iter_cached

    cache = cache_of(store)
    start()
    return sum(len(crops) for _, crops in iter_cached(cache, cache.boxes, 64))  # type: ignore[arg-type, attr-defined]


def sealst_cache_shuffled(store: Path) -> int:
    from sealst._data.crops.cache import CachedRows

    cache = cache_of(store)
    crops = CachedRows(cache, np.arange(len(cache.boxes)))  # type: ignore[arg-type, attr-defined]
    order = np.random.default_rng(0).permutation(len(crops))[:1024]
    start()
    return sum(len(crops[order[i : i + 64]]) for i in range(0, len(order), 64))


def plain_slice(store: Path) -> int:
    from PIL import Image

    array, boxes = level_of(opened(store)[1])
    sample = np.random.default_rng(0).permutation(len(boxes))[: 4 * SAMPLE]
    start()
    for x0, y0, x1, y1 in boxes[np.sort(sample)].round().astype(int):
        pixels = np.asarray(array[:, max(y0, 0) : y1, max(x0, 0) : x1])  # type: ignore[index]
        np.asarray(Image.fromarray(np.moveaxis(pixels, 0, 2)).resize((PX, PX), Image.Resampling.BICUBIC))
    return len(sample)


def image_tiles(store: Path, rasterize: bool) -> int:
    from spatialdata.dataloader import ImageTilesDataset

    from sealst import _section

    sdata, _ = opened(store)
    table = sdata.tables["table"]  # type: ignore[attr-defined]
    (region,) = _section.regions_of(table)
    side = CROP_UM / _section.crop_definition(table, region)["mpp"]
    options = {"rasterize_kwargs": {"target_width": PX}} if rasterize else {}
    tiles = ImageTilesDataset(
        sdata=sdata, regions_to_images={"s_spots": "s_he"}, regions_to_coordinate_systems={"s_spots": "global"},
        tile_dim_in_units=side, rasterize=rasterize, table_name="table", return_annotations="spot_id", **options,
    )  # fmt: skip
    start()
    sample = np.random.default_rng(0).permutation(len(tiles))[:SAMPLE]
    for i in np.sort(sample):
        np.asarray(tiles[int(i)][0])
    return len(sample)


def decode_once(store: Path) -> int:
    """The physical limit of one thread: every chunk that a crop touches is decoded once, nothing is cut."""
    array, boxes = level_of(opened(store)[1])
    size = array.chunks[1]  # type: ignore[attr-defined]
    touched = set()
    start()
    for x0, y0, x1, y1 in boxes:
        rows = range(int(max(y0, 0)) // size, int(y1 - 1) // size + 1)
        touched |= {(r, c) for r in rows for c in range(int(max(x0, 0)) // size, int(x1 - 1) // size + 1)}
    for row, column in touched:
        array[:, row * size : (row + 1) * size, column * size : (column + 1) * size]  # type: ignore[index]
    return len(boxes)


CONTENDERS: dict[str, Callable[[Path], int]] = {
    "sealst reader": sealst_reader,
    "sealst cache": sealst_cache,
    "sealst cache, shuffled": sealst_cache_shuffled,
    "zarr slice per crop": plain_slice,
    "ImageTilesDataset": lambda store: image_tiles(store, rasterize=False),
    "ImageTilesDataset, rasterised": lambda store: image_tiles(store, rasterize=True),
    "each chunk decoded once": decode_once,
}


# -- running ----------------------------------------------------------------------------------------------------------
def child() -> None:
    """One contender in this process; prints what it measured as JSON."""
    warnings.filterwarnings("ignore")
    import PIL.Image  # noqa: F401
    import spatialdata.dataloader  # noqa: F401

    import sealst._data.crops.source  # noqa: F401

    ARGS.plain_names = (ARGS.store / "images" / "s_he" / "0").exists()
    n = CONTENDERS[ARGS.contender](ARGS.store)
    seconds, busy = time.perf_counter() - ARGS.started, time.process_time() - ARGS.busy
    ARGS.probe.stopped = True
    mib, held = (memory_kib("VmHWM") - ARGS.ready) / 1024, seconds * ARGS.probe.held / max(ARGS.probe.n, 1)
    print(json.dumps({"n": n, "seconds": seconds, "busy": busy, "held": held, "mib": mib}))


def measured(name: str, store: Path, source: Path | None = None) -> dict[str, float]:
    command = [sys.executable, __file__, "--contender", name, "--store", str(store)]
    other = {} if source is None else {"PYTHONPATH": str(source)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | other)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def cached(store: Path) -> None:
    import spatialdata

    import sealst as sl

    sl.pp.cache_crops(spatialdata.read_zarr(store), store.parent / f"{store.stem}-cache", progress=False)


def report(title: str, store: Path, names: list[str]) -> None:
    # Once before: what is compiled is kept, and the store lies in memory.
    measured("sealst reader", store)
    rows = {name: measured(name, store) for name in names}
    if ARGS.beside is not None:
        rows["sealst reader, beside"] = measured("sealst reader", store, ARGS.beside)
    rate = {name: row["n"] / row["seconds"] for name, row in rows.items()}
    print(
        f"\n{title}\n{'':32}{'crops':>8}{'crops/s':>10}{'x ImageTiles':>14}{'x slice':>10}{'core ms':>10}"
        f"{'lock ms':>10}{'peak MiB':>10}"
    )
    tiles = max((r for name, r in rate.items() if name.startswith("ImageTiles")), default=float("nan"))
    plain = rate.get("zarr slice per crop", float("nan"))
    for name, row in rows.items():
        print(
            f"{name:32}{int(row['n']):8}{rate[name]:10.1f}{rate[name] / tiles:14.1f}{rate[name] / plain:10.1f}"
            f"{row['busy'] / row['n'] * 1e3:10.3f}{row['held'] / row['n'] * 1e3:10.3f}{row['mib']:10.0f}"
        )


def main() -> None:
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(dir=ARGS.work) as name:
        folder, pixels = Path(name), tissue()
        size = f"{pixels.shape[1]:,} x {pixels.shape[0]:,} px"
        her2st = written(pixels, 0.688, 56, folder / "her2st.zarr")
        cached(her2st)
        report(f"her2st C2, {size}, spots every 56 µm", her2st, list(CONTENDERS))
        for px in (ARGS.small_px, ARGS.slide_px):
            store = written(slide(px, pixels), 0.25, 100, folder / f"slide{px}.zarr")
            cached(store)
            report(f"Slide, {px:,} x {px:,} px, spots every 100 µm", store, list(CONTENDERS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=None, help="folder for some 10 GiB of scratch files")
    parser.add_argument("--slide-px", type=int, default=40_000)
    parser.add_argument("--small-px", type=int, default=10_000)
    parser.add_argument("--beside", type=Path, help="folder src of another version, whose reader is measured, too")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    ARGS = parser.parse_args()
    child() if ARGS.contender else main()
