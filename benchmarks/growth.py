"""Seconds and memory a spot of what a cohort goes through, as it grows: does the cost grow in a straight line?

Drawn sections of 1,000 spots are written to zarr, more and more of them (`--grow number`, four patients), or four of
them that get larger and larger (`--grow size`). A spot is a crop of 32 µm at 32 px, 1,000 genes are measured (50 of
them in a spot) and the model has 500; the encoder is timm's `test_vit` with random weights (64 dimensions), so that
what is measured is all but the encoder. Rows:

- reading: all crops, section by section
- select_genes: 500 genes over all sections
- embed: and the sections written back, from which the indices are built
- finetune, first / again: one epoch; the tokens of the frozen blocks are made, or lie there. epoch: of the latter alone
- evaluate: a model on held-out patients, four folds, the preset "cv"
- build_index: exact; ivf: by faiss, where it is installed
- retrieve: 20 signatures asked of the exact index
- embed_slides: pyramidal TIFFs of some 1,000 tiles (or four that get larger)

Every row and size is a process of its own that has done the same on 200 spots before. Memory is the highest resident
memory (`resource.getrusage`) above that, and, of it, what is no mapped file (looked at every 20 ms; the system drops
files from memory when it needs it). "exponent" is the slope of log seconds (MiB) on log spots over all sizes, "last"
that between the last two, where what is done once no longer counts; an exclamation mark says that it is above 1.05.
"kB a spot" is what memory grew by between the last two sizes. Other work on the machine disturbs the processor's time
less than that of the clock.

    python benchmarks/growth.py [--sizes 1000 4000 16000 64000 200000] [--grow number size] [--rows ...] [--work DIR]

A row that took more than `--patience` seconds of the processor goes no further. 200,000 spots take some 1.2 GB of
scratch files.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import logging
import math
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PITCH, PX, GENES, PANEL, SPOTS, PATIENTS = 20, 32, 1000, 500, 1000, 4
ENCODER = "test_vit"
#: an exponent above this is no straight line
STRAIGHT = 1.05
WARM = 200


# -- sections and slides ----------------------------------------------------------------------------------------------
def parts(size: int, grow: str) -> list[int]:
    """Spots of every section of a cohort."""
    if grow == "size":
        return [size // PATIENTS] * PATIENTS
    n = max(PATIENTS, round(size / SPOTS))
    return [size // n] * n


def section_path(work: Path, number: int, spots: int) -> Path:
    return work / "sections" / f"n{spots}_{number:04d}.zarr"


def sections(work: Path, size: int, grow: str) -> list[Path]:
    return [section_path(work, i, spots) for i, spots in enumerate(parts(size, grow))]


def slides(work: Path, size: int, grow: str) -> list[Path]:
    return [work / "slides" / f"n{spots}_{i:04d}.tif" for i, spots in enumerate(parts(size, grow))]


def picture(seed: int, side: int) -> Any:
    """Drawn tissue, (side, side, 3); of larger ones it repeats."""
    import sealst as sl

    if seed not in _DRAWN:
        drawn = sl.datasets.synthetic(size_um=1000, mpp=1.0, seed=seed % PATIENTS)
        pixels = drawn.images["P1_S1_he"]["scale0"]["image"].to_numpy()
        _DRAWN[seed] = np.moveaxis(pixels, 0, -1)
    tile = np.roll(_DRAWN[seed], (37 * seed) % 1000, axis=1)
    n = -(-side // len(tile))
    return np.ascontiguousarray(np.tile(tile, (n, n, 1))[:side, :side])


_DRAWN: dict[int, Any] = {}


def write_section(path: Path, number: int, spots: int) -> None:
    import scipy.sparse as sp

    import sealst as sl

    rng = np.random.default_rng(number)
    across = math.ceil(math.sqrt(spots))
    row, column = np.divmod(np.arange(spots), across)
    rate = np.random.default_rng(0).gamma(0.5, 0.1, GENES)
    # Some genes differ from place to place.
    counts = [
        sp.csr_matrix(rng.poisson(rate * rng.gamma(4, 0.25, GENES), (min(1000, spots - i), GENES)), dtype=np.float32)
        for i in range(0, spots, 1000)
    ]
    # A picture of its own for every section, as they are compared.
    pixels = picture(number % PATIENTS, PITCH * (across + 3))
    pixels = np.roll(pixels, 13 * number, axis=0)
    xy = np.column_stack([PITCH * (column + 2.0), PITCH * (row + 2.0)])
    sdata = sl.io.from_arrays(
        pixels, sp.vstack(counts, format="csr"), xy, mpp=1.0, spot_um=18.0,
        genes=[f"GENE{i:04d}" for i in range(GENES)], section=path.stem, patient=f"P{number % PATIENTS}",
    )  # fmt: skip
    sl.pp.pair_crops(sdata, crop_um=float(PX), crop_px=PX)
    sl.pp.normalize(sdata)
    sdata.write(path)


def write_slide(path: Path, number: int, tiles: int) -> None:
    import tifffile

    pixels = picture(number % PATIENTS, PX * math.ceil(math.sqrt(tiles / 0.9)))
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for factor in (1, 2, 4, 8):
            file.write(
                pixels[::factor, ::factor], tile=(256, 256), photometric="rgb", compression="jpeg", metadata=None,
                resolution=(1e4 / factor, 1e4 / factor), resolutionunit="CENTIMETER", subfiletype=int(factor > 1),
            )  # fmt: skip


def prepare(work: Path, size: int, grow: str) -> None:
    """Write what a size needs and is not there yet."""
    import sealst as sl

    for folder in ("sections", "slides"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    for number, (path, spots) in enumerate(zip(sections(work, size, grow), parts(size, grow), strict=True)):
        if not path.is_dir():
            write_section(path, number, spots)
    first: dict[tuple[int, int], Path] = {}
    for number, (path, tiles) in enumerate(zip(slides(work, size, grow), parts(size, grow), strict=True)):
        # Four different ones; the others are further names of them.
        key = number % PATIENTS, tiles
        if not path.exists():
            if key in first:
                os.link(first[key], path)
            else:
                write_slide(path, number, tiles)
        first.setdefault(key, path)
    if not (work / "model").is_dir():
        # Of a patient that is nowhere else.
        path = work / "other.zarr"
        if not path.is_dir():
            write_section(path, 10_001, SPOTS)
        sdata = sl.io.read(path)
        sdata.tables["table"].obs["patient"] = "other"
        with sl.settings.override(cache_dir=work / "cache"):
            model = train([sdata], None)
        model.save(work / "model")


def train(cohort: Any, panel: Any, **options: Any) -> Any:
    import sealst as sl

    params = {"epochs": 1, "batch_size": 256, "views": 1, "cache": "trunk", "augmentation": "none"}
    return sl.tl.finetune(
        cohort, encoder=ENCODER, pretrained=False, panel=panel, n_genes=PANEL, params=params, seed=0, device="cpu",
        progress=False, adapter={"kind": "lora", "n_blocks": 1, "dropout": 0.0}, **options,
    )  # fmt: skip


# -- rows: what is measured -------------------------------------------------------------------------------------------
class Row:
    """One row at one size, in a process of its own."""

    def __init__(self, work: Path, size: int, grow: str) -> None:
        import sealst as sl

        self.work, self.size, self.grow = work, size, grow
        self.cohort = sl.io.Collection([str(path) for path in sections(work, size, grow)])
        self.model = sl.models.load(work / "model", device="cpu")
        self.index = work / f"index_{grow}_{size}"
        #: seconds of a part by the clock and of the processor, which are reported beside the whole
        self.part: tuple[float, float] | None = None

    def reading(self) -> int:
        from sealst import _section
        from sealst._data.crops.source import iter_source

        n = 0
        for sdata in self.cohort:
            for one in _section.paired_table(sdata).sections:
                n += sum(len(crops) for _, crops in iter_source(one.source, PX))
        return n

    def select_genes(self) -> int:
        import sealst as sl

        sl.pp.select_genes(self.cohort, PANEL, min_spots=0.0)
        return self.size

    def embed(self) -> int:
        import sealst as sl

        def one(sdata: Any) -> None:
            sl.tl.embed(sdata, self.model, progress=False)

        self.cohort.apply(one)
        return self.size

    def finetune_first(self) -> int:
        import sealst as sl

        with tempfile.TemporaryDirectory(dir=self.work) as folder, sl.settings.override(cache_dir=Path(folder)):
            train(self.cohort, self.model.panel)
        return self.size

    def finetune(self) -> int:
        import lightning as L

        import sealst as sl

        began: list[tuple[float, float]] = []
        took: list[tuple[float, float]] = []

        class Clock(L.Callback):
            def on_train_epoch_start(self, *_: Any) -> None:
                began.append(now())

            def on_train_epoch_end(self, *_: Any) -> None:
                took.append(since(began[-1]))

        with sl.settings.override(cache_dir=self.work / "cache"):
            train(self.cohort, self.model.panel, trainer_kwargs={"callbacks": [Clock()]})
        self.part = took[0]
        return self.size

    def evaluate(self) -> int:
        import sealst as sl

        sl.tl.evaluate(self.cohort, self.model, progress=False, seed=0)
        return self.size

    def build_index(self, kind: str = "exact") -> int:
        import sealst as sl

        path = self.index if kind == "exact" else self.index.with_name(f"{self.index.name}_{kind}")
        return len(sl.tl.build_index(self.cohort, path, kind=kind, overwrite=True))

    def build_ivf(self) -> int:
        return self.build_index("ivf")

    def retrieve(self) -> int:
        import sealst as sl

        index, genes = sl.tl.SealIndex.load(self.index), self.model.panel.genes
        for i in range(20):
            sl.tl.retrieve(index, self.model, list(genes[i : i + 5]))
        return self.size

    def embed_slides(self) -> int:
        import pandas as pd

        import sealst as sl

        paths = slides(self.work, self.size, self.grow)
        frame = pd.DataFrame({"path": [str(p) for p in paths], "patient": [p.stem for p in paths], "mpp": 1.0})
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            found = sl.tl.embed_slides(frame, self.model, Path(folder) / "out", progress=False)
        # A small piece of the drawn tissue may be glass.
        if (found["status"] == "failed").any():
            raise SystemExit(f"embed_slides: {found['status'].value_counts().to_dict()}")
        return int(found["n_tiles"].sum())


ROWS: dict[str, Callable[[Row], int]] = {
    "reading": Row.reading,
    "select_genes": Row.select_genes,
    "embed": Row.embed,
    "finetune, first": Row.finetune_first,
    "finetune, again": Row.finetune,
    "evaluate": Row.evaluate,
    "build_index": Row.build_index,
    "build_index, ivf": Row.build_ivf,
    "retrieve": Row.retrieve,
    "embed_slides": Row.embed_slides,
}
#: what a row leaves for itself or for others, made before the clock runs
BEFORE: dict[str, Callable[[Row], int]] = {"finetune, again": Row.finetune, "retrieve": Row.build_index}
#: a row whose part has a line of its own
PARTS = {"finetune, again": "finetune, epoch"}


# -- measuring --------------------------------------------------------------------------------------------------------
def now() -> tuple[float, float]:
    """By the clock, and of the processor."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    clock, busy = now()
    return clock - began[0], busy - began[1]


class Anonymous(threading.Thread):
    """Peak of what is resident and no mapped file, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended, self.before = False, self.now()
        self.peak = self.before

    def now(self) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
        return math.nan

    def run(self) -> None:
        while not self.ended:
            self.peak = max(self.peak, self.now())
            time.sleep(0.02)


def highest() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def one(work: Path, name: str, size: int, grow: str) -> dict[str, Any]:
    """One row at one size, in this process."""
    ROWS[name](Row(work, WARM, grow))
    row = Row(work, size, grow)
    anonymous, before = Anonymous(), highest()
    anonymous.start()
    began = now()
    n = ROWS[name](row)
    took, busy = since(began)
    anonymous.ended = True
    found = {"n": n, "seconds": took, "busy": busy, "part": row.part, "mib": highest() - before}
    return found | {"anonymous": anonymous.peak - anonymous.before}


def in_a_fork(do: Callable[..., Any], *given: Any) -> Any:
    """Do something in a process of its own, in which libraries are loaded and nothing has run."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=lambda: send.send(do(*given)))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"{do.__name__}{given} failed")
    return receive.recv()


def slope(points: list[tuple[float, float]]) -> float:
    """Exponent of y in x."""
    usable = [(math.log(x), math.log(y)) for x, y in points if x > 0 and y > 0]
    if len(usable) < 2:
        return math.nan
    return statistics.linear_regression(*zip(*usable, strict=True)).slope


def told(value: float) -> str:
    if math.isnan(value):
        return f"{'-':>10}"
    return f"{value:9.2f}{'!' if value > STRAIGHT else ' '}"


def before(work: Path, name: str, size: int, grow: str) -> None:
    for spots in (WARM, size):
        BEFORE[name](Row(work, spots, grow))


def grown(args: argparse.Namespace, grow: str) -> dict[str, dict[int, dict[str, Any]]]:
    """What every row took, by size."""
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in args.rows}
    in_a_fork(prepare, args.work, WARM, grow)
    for size in args.sizes:
        rows = [name for name in args.rows if all(row["busy"] <= args.patience for row in found[name].values())]
        if not rows:
            break
        in_a_fork(prepare, args.work, size, grow)
        for name in rows:
            if name in BEFORE:
                in_a_fork(before, args.work, name, size, grow)
            found[name][size] = row = in_a_fork(one, args.work, name, size, grow)
            shown = {key: round(row[key], 3) for key in ("n", "seconds", "busy", "mib", "anonymous")}
            print(grow, name, size, shown, row["part"] or "", file=sys.stderr, flush=True)
    return found


def report(args: argparse.Namespace, grow: str) -> None:
    found = grown(args, grow)
    timed = dict(found)
    for name, by_size in found.items():
        if name in PARTS:
            timed[PARTS[name]] = {
                size: row | dict(zip(("seconds", "busy"), row["part"], strict=True)) for size, row in by_size.items()
            }
    what = {"number": f"More and more sections of {SPOTS:,} spots", "size": f"{PATIENTS} sections that get larger"}
    for key, title in (("busy", "ms of the processor a spot"), ("seconds", "ms a spot by the clock")):
        table(f"{what[grow]}: {title}", args.sizes, timed, key, lambda row, key=key: f"{row[key] / row['n'] * 1e3:.3f}")
    for key, title in (("mib", "MiB at the peak"), ("anonymous", "MiB at the peak, without mapped files")):
        title, kb = f"{what[grow]}: {title}", 2**20 / 1e3
        table(title, args.sizes, found, key, lambda row, key=key: f"{row[key]:.0f}", unit=kb)


def table(
    title: str,
    sizes: list[int],
    lines: dict[str, dict[int, dict[str, Any]]],
    key: str,
    cell: Callable[[dict[str, Any]], str],
    *,
    unit: float | None = None,
) -> None:
    """Print a table with exponents, and with `unit` (kB of one) by how much a spot adds."""
    heads = "".join(f"{size:>10,}" for size in sizes)
    print(f"\n{title}\n{'':20}{heads}{'exponent':>10}{'last':>10}" + (f"{'kB a spot':>10}" if unit else ""))
    for name, by_size in lines.items():
        cells = "".join(f"{cell(by_size[size]) if size in by_size else '':>10}" for size in sizes)
        points = [(row["n"], row[key]) for row in by_size.values()]
        line = f"{name:20}{cells}{told(slope(points))}{told(slope(points[-2:]))}"
        if unit and len(points) > 1:
            (few, less), (many, more) = points[-2:]
            line += f"{(more - less) * unit / (many - few):10.2f}"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 4000, 16_000, 64_000, 200_000], help="spots")
    parser.add_argument("--grow", nargs="+", choices=("number", "size"), default=["number"])
    usual = [name for name in ROWS if not name.endswith("ivf") or importlib.util.find_spec("faiss")]
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=usual)
    parser.add_argument("--patience", type=float, default=300, help="processor seconds after which a row stops")
    parser.add_argument("--work", type=Path, default=None, help="folder for scratch files, which stay there")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("sealst").setLevel("ERROR")
    for name in ("lightning", "peft", "scanpy", "sklearn.linear_model", "tifffile", "timm"):
        importlib.import_module(name)
    import sealst as sl

    for name in ("build_index", "embed", "embed_slides", "evaluate", "finetune", "retrieve"):
        getattr(sl.tl, name)
    with tempfile.TemporaryDirectory() as folder:
        args.work = (args.work or Path(folder)).absolute()
        args.work.mkdir(parents=True, exist_ok=True)
        print(f"Spots {', '.join(f'{size:,}' for size in args.sizes)}; {os.cpu_count()} cores", flush=True)
        for grow in args.grow:
            report(args, grow)


if __name__ == "__main__":
    main()
