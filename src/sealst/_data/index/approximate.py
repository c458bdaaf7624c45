"""faiss indices over unit vectors: built block by block, mapped from disk, searched with filters.

IVF and HNSW hold 8-bit copies of the vectors, a quarter of their size. They name candidates; similarities are computed
from the vectors themselves.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sealst._core.search.exact import Rows
from sealst._errors import CheckpointError, DataError
from sealst._validate import check_positive, listed

KINDS = ("flat", "ivf", "hnsw")
#: defaults, tuned on a million vectors of 384 dimensions: benchmarks/retrieval.py
_DEFAULTS: dict[str, dict[str, int]] = {
    "exact": {},
    "flat": {},
    "ivf": {"n_lists": 0, "n_probe": 32},
    "hnsw": {"links": 16, "ef_construction": 40, "ef_search": 200},
}
_BLOCK = 65_536
#: vectors per list that train IVF, and iterations; vectors that train the 8-bit codes of HNSW
_PER_LIST, _ITERATIONS, _CODES = 64, 10, 65_536
#: candidates per hit that is wanted: 8-bit copies mix up near ones
_OVERSAMPLED = 2
_MOST_LISTS = 4096


def faiss_module() -> Any:
    """Return faiss, or raise with the extra that brings it."""
    try:
        import faiss
    except ImportError as error:
        raise DataError(
            "This kind of index needs faiss, which is not installed: `pip install \"sealst[index]\"`. `kind='exact'` "
            "needs nothing more."
        ) from error
    return faiss


def has_faiss() -> bool:
    """Whether faiss can be imported."""
    try:
        faiss_module()
    except DataError:
        return False
    return True


def resolve_options(kind: str, params: Mapping[str, int] | None) -> dict[str, int]:
    """Options of a kind of index, defaults filled in; whole numbers above 0."""
    known = _DEFAULTS[kind]
    given = dict(params or {})
    if unknown := sorted(set(given) - set(known), key=str):
        raise DataError(f"`params` of kind {kind!r} has no {listed(unknown)}; known: {listed(known)}.")
    for name, value in given.items():
        check_positive(f"params[{name!r}]", value)
    return known | {name: int(value) for name, value in given.items()}


def check_options(kind: str, options: Mapping[str, int]) -> None:
    """Raise unless an index of a kind has just these options."""
    if set(options) != set(_DEFAULTS[kind]):
        raise DataError(f"`options` of kind {kind!r} must be {listed(_DEFAULTS[kind])}, found {listed(options)}.")


def build(kind: str, vectors: Rows, options: Mapping[str, int]) -> Any:
    """Build a faiss index of all vectors, without ever holding their float32 at once (but for ``"flat"``)."""
    faiss, (n, dim) = faiss_module(), vectors.shape
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "ivf":
        # About the square root of n, more where lists would get long.
        lists = options["n_lists"] or int(np.clip(2 * np.sqrt(n), 1, _MOST_LISTS))
        lists = max(1, min(lists, n // 4))
        quantizer = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, dim, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
        )
        index.cp.niter, index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = _ITERATIONS, _PER_LIST, 1
        index.cp.spherical = True
        index.train(_sample(vectors, _PER_LIST * lists))
    else:
        index = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, options["links"], faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = options["ef_construction"]
        index.train(_sample(vectors, _CODES))
    extend(index, vectors, 0)
    return index


def _sample(vectors: Rows, most: int) -> np.ndarray:
    n = vectors.shape[0]
    rows = np.arange(n) if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))
    return np.ascontiguousarray(vectors[rows])


def extend(index: Any, vectors: Rows, start: int) -> None:
    """Add the vectors from a row on."""
    for begin in range(start, vectors.shape[0], _BLOCK):
        index.add(np.ascontiguousarray(vectors[begin : begin + _BLOCK]))


def write(index: Any, path: Path) -> None:
    """Write an index to a file."""
    faiss_module().write_index(index, str(path))


def read(path: Path, *, mmap: bool) -> Any:
    """Read an index, or map it."""
    faiss = faiss_module()
    # Older faiss maps the lists of IVF alone.
    flags = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP) if mmap else 0
    try:
        return faiss.read_index(str(path), flags)
    except RuntimeError as error:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
        raise CheckpointError(
            f"faiss cannot read {str(path)!r} ({str(error)[:200]}). Build the index again."
        ) from error


def candidates(
    index: Any, kind: str, queries: np.ndarray, k: int, *, options: Mapping[str, int], keep: np.ndarray | None
) -> np.ndarray:
    """Rows that are probably among the k most similar of each query, int64 (q, m), -1 for none."""
    faiss = faiss_module()
    found = min(int(index.ntotal), k if kind == "flat" else _OVERSAMPLED * k)
    # The selector reads this array: it lives as long as the search.
    bits = None if keep is None else np.packbits(keep, bitorder="little")
    chosen: dict[str, Any] = {}
    if bits is not None:
        chosen["sel"] = faiss.IDSelectorBitmap(len(keep), faiss.swig_ptr(bits))  # type: ignore[arg-type]
    # Where few may be found, more has to be looked at.
    share = 1.0 if keep is None else max(float(keep.mean()), 1e-3)
    if kind == "ivf":
        probes = min(int(index.nlist), int(np.ceil(options["n_probe"] / share)))
        parameters = faiss.SearchParametersIVF(nprobe=probes, **chosen)
    elif kind == "hnsw":
        parameters = faiss.SearchParametersHNSW(efSearch=max(int(options["ef_search"] / share), found), **chosen)
    else:
        parameters = faiss.SearchParameters(**chosen)
    x = np.ascontiguousarray(queries, dtype=np.float32)
    rows = index.search(x, found, params=parameters)[1]
    return np.where((rows >= 0) & (rows < index.ntotal), rows, -1)
