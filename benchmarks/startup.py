"""What one waits for before anything happens: processor time of imports, first calls, pages of help and refusals.

Every step runs in a process of its own, which counts the processor time of importing each package (its modules, without
what they import in turn); of several runs the fastest counts. Steps of a notebook follow each other in one process:
torch, a model that was saved, a section, and then the first `sl.tl.embed`, `predict` and `retrieve`, with what they
compute on 16 spots with a very small encoder. Commands are told beside a bare interpreter.

    python benchmarks/startup.py [--repeat 3] [--src DIR] [--packages 6]

`--src` measures another checkout (its `src`), such as that of an earlier version.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

#: makes a section and a model with LoRA in the working directory
SETUP = """
import numpy as np, sealst as sl
rng = np.random.default_rng(0)
xy = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2) * 60.0 + 60
genes = tuple(f"G{i}" for i in range(30))
sdata = sl.io.from_arrays(
    rng.integers(0, 255, (300, 300, 3), dtype=np.uint8), rng.poisson(2, (16, 30)), xy,
    genes=genes, mpp=1.0, spot_um=50, section="s1", patient="p1",
)
sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
sl.pp.normalize(sdata)
sdata.write("s1.zarr")
model = sl.models.SealModel(
    sl.models.build_encoder("test_vit", pretrained=False), sl.GenePanel(genes, np.zeros(30), np.ones(30)),
    crop=sl.models.CropSpec(64.0, 32), adapter=sl.models.LoraParams(),
    gene_encoder=sl.models.GeneVAEParams(hidden=(8,)), head=sl.models.HeadParams(8),
)
model.save("model")
open("there.h5ad", "w").close()
"""

#: counts the processor time of every import
PREAMBLE = """
import json, sys, time, importlib.abc
from collections import Counter
SPENT, MODULES, OPEN = Counter(), Counter(), []
class Timed:
    def __init__(self, loader, package):
        self.loader, self.package = loader, package
    def __getattr__(self, name):
        return getattr(self.loader, name)
    def create_module(self, spec):
        return self.loader.create_module(spec)
    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        began = time.process_time()
        OPEN.append(0.0)
        try:
            self.loader.exec_module(module)
        finally:
            took = time.process_time() - began
            SPENT[self.package] += took - OPEN.pop()
            MODULES[self.package] += 1
            if OPEN:
                OPEN[-1] += took
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        for finder in sys.meta_path[1:]:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                package = name.partition(".")[0]
                if not isinstance(spec.loader, type | None) and package not in sys.stdlib_module_names:
                    spec.loader = Timed(spec.loader, package)
                return spec
sys.meta_path.insert(0, Finder())
ROWS, LAST = [], [time.process_time()]
def step(name):
    now = time.process_time()
    ROWS.append([name, now - LAST[0], dict(SPENT), dict(MODULES)])
    SPENT.clear(), MODULES.clear()
    LAST[0] = time.process_time()
"""

#: steps of a notebook
NOTEBOOK = """
import logging; logging.disable()
import torch; step("import torch")
import sealst as sl; step("import sealst")
model = sl.models.load("model", device="cpu"); step("sl.models.load")
sdata = sl.io.read("s1.zarr"); step("sl.io.read")
sl.tl.embed(sdata, model); step("sl.tl.embed")
sl.tl.predict(sdata, model); step("sl.tl.predict")
sl.tl.retrieve(sdata, model, "G1"); step("sl.tl.retrieve")
"""

COMMANDS = {
    "sealst --help": ["--help"],
    "sealst finetune --help": ["finetune", "--help"],
    "an --out that exists": ["embed", "s1.zarr", "--model", "model", "--out", "there.h5ad"],
    "an unknown gene": ["retrieve", "s1.zarr", "--model", "model", "--genes", "HER2"],
    "an unknown encoder": ["finetune", "s1.zarr", "--encoder", "vit_tinny", "--out", "new"],
    "a missing input": ["predict", "nothing.zarr", "--model", "model"],
    "a wrong value": ["finetune", "s1.zarr", "--encoder", "uni", "--epochs", "0", "--out", "new"],
}
COMMAND = """
sys.argv = ["sealst", *{arguments!r}]
from sealst.cli import main
try:
    main()
except SystemExit:
    step({name!r})
"""

Row = tuple[str, float, dict[str, float], dict[str, int]]


def run(code: str, folder: Path, src: Path) -> list[Any]:
    """Rows that a piece of code has counted, in a process of its own."""
    single = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "SEALST_CACHE": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(json.dumps(ROWS))"], cwd=folder, check=True, capture_output=True,
        text=True, env=os.environ | single | {"PYTHONPATH": str(src)},
    )  # fmt: skip
    return list(json.loads(done.stdout.splitlines()[-1]))


def fastest(code: str, folder: Path, args: argparse.Namespace) -> list[Row]:
    """Of every step the run that took the least time."""
    runs = [run(PREAMBLE + code, folder, args.src) for _ in range(args.repeat)]
    return [min(rows, key=lambda row: row[1]) for rows in zip(*runs, strict=True)]


def line(name: str, seconds: float, spent: dict[str, float], modules: dict[str, int], most: int) -> str:
    largest = sorted(spent, key=lambda package: -spent[package])[:most]
    told = ", ".join(f"{package} {spent[package]:.2f} ({modules[package]})" for package in largest)
    return f"| {name} | {seconds:.2f} | {told} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="runs of every step")
    parser.add_argument("--src", type=Path, default=ROOT / "src", help="folder with the package that is measured")
    parser.add_argument("--packages", type=int, default=6, help="packages that are named for each step")
    args = parser.parse_args()
    args.src = args.src.resolve()
    out = ["| step | processor time (s) | of it imports of: s (modules) |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run(f"import json; ROWS = []\n{SETUP}", folder, args.src)
        out += [line(*row, args.packages) for row in fastest(NOTEBOOK, folder, args)]
        for name, arguments in COMMANDS.items():
            code = COMMAND.format(arguments=arguments, name=name)
            out += [line(*row, args.packages) for row in fastest(code, folder, args)]
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
