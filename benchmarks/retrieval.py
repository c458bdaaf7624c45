"""Search of a million embeddings: exact, with faiss, and with approximate indices, in one run.

The embeddings are synthetic: 2,000 clusters with normal centres in 32 dimensions, normal spread of half their distance
within, mapped into 384 dimensions by one random matrix, with a tenth of isotropic noise, and scaled to unit length.
Queries are 100 further points of the same clusters. Twenty sections hold 50,000 each. The 50 most similar are asked
for, all queries at once, with:

- ours: `SealIndex.search` of kind "exact" on memory-mapped vectors, float64 similarities and table of hits included;
- faiss flat: `IndexFlatIP` in memory;
- numpy: one matrix product, `argpartition`, sort;
- ours, "ivf" and "hnsw" with the defaults of the package.

Other jobs share the machine: the ways take turns, and the best and the median of all rounds are given, by the clock,
and the median of the processor's time (of all threads), which other work disturbs less. Building takes minutes; indices
that the folder holds already are used again, and their time of building is that of the first run.

    python benchmarks/retrieval.py --folder FOLDER [--n 1000000] [--rounds 5] [--threads 2] [--skip hnsw]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

DIM, LATENT, CLUSTERS, SECTIONS, QUERIES, K = 384, 32, 2_000, 20, 100, 50
MODEL = "synthetic"


def points(n: int, seed: int) -> np.ndarray:
    """Embeddings of one section, or the queries."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    lift = shared.standard_normal((LATENT, DIM)).astype(np.float32) / np.sqrt(np.float32(LATENT))
    centres = shared.standard_normal((CLUSTERS, LATENT)).astype(np.float32)
    z = centres[own.integers(0, CLUSTERS, n)] + 0.5 * own.standard_normal((n, LATENT), dtype=np.float32)
    x = z @ lift + 0.1 * own.standard_normal((n, DIM), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


class Tables(Sequence):
    """Sections that are made when they are asked for."""

    def __init__(self, n: int) -> None:
        self.n = n // SECTIONS

    def __len__(self) -> int:
        return SECTIONS

    def __getitem__(self, i: int) -> ad.AnnData:
        if i >= SECTIONS:
            raise IndexError(i)
        names = [f"s{i:02d}_{j}" for j in range(self.n)]
        facts = {"section": f"s{i:02d}", "patient": f"p{i // 2}", "organ": ("breast", "lung", "colon", "skin")[i % 4]}
        obs = pd.DataFrame(facts | {"technology": "none"}, index=names)
        table = ad.AnnData(np.zeros((self.n, 1), dtype=np.float32), obs=obs)
        table.obsm["X_seal"] = points(self.n, i)
        table.uns["sealst"] = {"embed": {"X_seal": {"model": MODEL, "modality": "image"}}}
        return table


def built(kind: str) -> Any:
    """The index of a kind, built unless the folder holds it."""
    import sealst as sl

    folder, clock = ARGS.folder / kind, ARGS.folder / f"{kind}.json"
    if not (folder / "config.json").exists() or not clock.exists():
        start, busy = time.perf_counter(), time.process_time()
        sl.tl.build_index(Tables(ARGS.n), folder, kind=kind, overwrite=True)
        facts = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy}
        clock.write_text(json.dumps(facts))
    facts = json.loads(clock.read_text())
    index = sl.tl.SealIndex.load(folder)
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**30
    print(f"{index.kind:6} {len(index):,} vectors, {size:.2f} GiB, built in {facts['seconds']:.0f} s "
          f"({facts['cpu']:.0f} s of the processor), {index._snapshot.config['options']}", flush=True)  # fmt: skip
    return index


def numpy_search(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
    similarity = queries @ x.T
    found = np.argpartition(similarity, -K, axis=1)[:, -K:]
    order = np.argsort(-np.take_along_axis(similarity, found, axis=1), axis=1)
    return np.take_along_axis(found, order, axis=1)


def measure(ways: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float, float]]:
    """Best and median seconds, and median seconds of the processor, of ways that take turns."""
    clock: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(ARGS.rounds):
        for name, way in ways.items():
            start, cpu = time.perf_counter(), time.process_time()
            way()
            clock[name].append(time.perf_counter() - start)
            busy[name].append(time.process_time() - cpu)
    return {n: (min(clock[n]), float(np.median(clock[n])), float(np.median(busy[n]))) for n in ways}


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)]))


def numbers(hits: pd.DataFrame) -> np.ndarray:
    """Rows of hits, (queries, K), from the names of the spots."""
    section = hits["section"].astype(str).str[1:].astype(int).to_numpy()
    row = section * (ARGS.n // SECTIONS) + hits["obs_name"].str.split("_").str[1].astype(int).to_numpy()
    return row.reshape(-1, K)


OPENING = """
import sys, time
import sealst as sl
from sealst.tl import SealIndex
import numpy as np
def memory():
    lines = [line.split() for line in open("/proc/self/status")]
    return [int(line[1]) / 1024 for key in ("RssAnon:", "RssFile:") for line in lines if line[0] == key]
SealIndex.load(sys.argv[3]).search(np.ones(384))  # what is imported on first use
before, start = memory(), time.perf_counter()
index = SealIndex.load(sys.argv[1], mmap=sys.argv[2] == "mapped")
opened, took = memory(), time.perf_counter() - start
start = time.perf_counter()
index.search(np.random.default_rng(0).standard_normal(index.dim))
first, after = time.perf_counter() - start, memory()
grown = lambda now: "own {:6.0f}, of files {:6.0f}".format(*(b - a for a, b in zip(before, now)))
print(f"{index.kind:6} {sys.argv[2]:7} opened in {took * 1000:6.0f} ms, MiB: {grown(opened)}; "
      f"first search {first * 1000:6.0f} ms, MiB: {grown(after)}")
"""


def opening(kinds: list[str]) -> None:
    import sealst as sl

    small = ARGS.folder / "small"
    if not (small / "config.json").exists():
        sl.tl.build_index(Tables(2_000), small, kind="hnsw")
    print("\nopening, in a process of its own; memory that a process has for itself, and mapped files that it shares")
    for kind in kinds:
        for way in ("mapped", "read") if kind == "exact" else ("mapped",):
            call = [sys.executable, "-c", OPENING, str(ARGS.folder / kind), way, str(small)]
            print(subprocess.run(call, check=True, capture_output=True, text=True).stdout.strip(), flush=True)


def main() -> None:
    import faiss

    faiss.omp_set_num_threads(ARGS.threads)
    kinds = [kind for kind in ("exact", "ivf", "hnsw") if kind not in ARGS.skip]
    indices = {kind: built(kind) for kind in kinds}
    queries = points(QUERIES, 10_000)
    opening(kinds)

    # The mapped vectors of the exact index, so that they need no memory twice.
    x = indices["exact"]._snapshot.vectors[:]
    flat = faiss.IndexFlatIP(DIM)
    for start in range(0, len(x), 50_000):
        flat.add(x[start : start + 50_000])
    truth = flat.search(queries, K)[1]
    ways: dict[str, Callable[[], Any]] = {"ours, exact": lambda: indices["exact"].search(queries, K)}
    ways |= {"faiss flat": lambda: flat.search(queries, K), "numpy": lambda: numpy_search(x, queries)}
    ways |= {f"ours, {kind}": lambda kind=kind: indices[kind].search(queries, K) for kind in kinds[1:]}
    ways |= {"ours, 1 of 4 organs": lambda: indices["exact"].search(queries, K, where={"organ": "lung"})}
    ways |= {"ours, one query": lambda: indices["exact"].search(queries[0], K)}
    ways |= {"ours, one direction": lambda: indices["exact"].ask(queries[0], K, shift=True)}
    ways |= {"faiss, one query": lambda: flat.search(queries[:1], K)}
    times = measure(ways)

    found = {"ours, exact": numbers(indices["exact"].search(queries, K)), "numpy": numpy_search(x, queries)}
    found |= {f"ours, {kind}": numbers(indices[kind].search(queries, K)) for kind in kinds[1:]}
    print(f"\n{QUERIES} queries, top {K}, {ARGS.rounds} rounds, {ARGS.threads} threads")
    print(
        f"{'seconds':20}{'best':>9}{'median':>9}{'CPU':>9}{'speed against faiss flat: best, median, CPU':>47}"
        f"{'recall':>9}"
    )
    for name, taken in times.items():
        base = times["faiss, one query" if "one" in name and "1 of" not in name else "faiss flat"]
        ratio = "".join(f"{b / t:>9.2f}" for b, t in zip(base, taken, strict=True))
        hit = f"{recall(found[name], truth):9.4f}" if name in found else ""
        print(f"{name:20}" + "".join(f"{t:9.3f}" for t in taken) + f"{ratio:>47}" + hit)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\nhighest memory of this process {highest:.1f} GiB, pages of mapped files included")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--n", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--skip", nargs="*", default=[])
    ARGS = parser.parse_args()
    ARGS.folder.mkdir(parents=True, exist_ok=True)
    main()
