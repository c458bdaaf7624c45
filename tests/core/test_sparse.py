"""Sparse matrices whose indices lie outside are refused by everything that reads them, before scipy follows them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr

import sealst as sl
from sealst._core.sparse import check_bounds, check_sparse
from sealst._section import read_h5ad

N, GENES = 6, 5
#: how each damages arrays of a compressed matrix with 6 rows and 5 columns, and what is said of it
DAMAGE: dict[str, tuple[Callable[[Any], None], str]] = {
    "index too large": (lambda m: m["indices"].__setitem__(0, 10**6), "`indices` hold 1000000, outside 0 to 4"),
    "index of the next column": (lambda m: m["indices"].__setitem__(-1, GENES), "`indices` hold 5, outside 0 to 4"),
    "negative index": (lambda m: m["indices"].__setitem__(3, -1), "`indices` hold -1, outside 0 to 4"),
    "row that ends beyond": (lambda m: m["indptr"].__setitem__(2, 10**6), "`indptr` does not rise from 0"),
    "row that begins before": (lambda m: m["indptr"].__setitem__(1, -3), "`indptr` does not rise from 0"),
    "first row left out": (lambda m: m["indptr"].__setitem__(0, 1), "`indptr` does not rise from 0"),
    "last values left out": (lambda m: m["indptr"].__setitem__(-1, int(m["indptr"][-2])), "`indptr` ends at"),
}


def matrix() -> sp.csr_matrix:
    return sp.csr_matrix(np.random.default_rng(0).poisson(2.0, (N, GENES)).astype(np.float32) + 1)


@pytest.mark.parametrize("damage", DAMAGE)
def test_bounds(damage: str) -> None:
    whole = matrix()
    arrays = {"data": whole.data, "indices": whole.indices, "indptr": whole.indptr}
    check_bounds(*arrays.values(), whole.shape, where="x")
    change, why = DAMAGE[damage]
    change(arrays)
    with pytest.raises(sl.DataError, match=f"The sparse matrix in x is damaged: {why}"):
        check_bounds(*arrays.values(), whole.shape, where="x")


def test_parts_of_other_matrices() -> None:
    whole = matrix()
    for values, indices, indptr, why in (
        (whole.data[:-1], whole.indices, whole.indptr, "30 indices and 29 values"),
        (whole.data, whole.indices, whole.indptr[:-1], "`indptr` has 6 entries, 7 are needed"),
        (whole.data, whole.indices, np.array([]), "no whole numbers"),
        (whole.data, whole.indices.astype(float), whole.indptr, "no whole numbers"),
    ):
        with pytest.raises(sl.DataError, match=why):
            check_bounds(values, indices, indptr, whole.shape, where="x")
    check_bounds(np.zeros(0), np.zeros(0, int), np.zeros(4, int), (3, 0), where="x")


@pytest.mark.parametrize("kind", ["csr", "csc", "coo"])
def test_every_kind_of_matrix(kind: str) -> None:
    whole = matrix().asformat(kind)
    check_sparse(whole, where="x")
    check_sparse(whole.toarray(), where="x")
    (whole.indices if kind != "coo" else whole.coords[1])[0] = 99
    with pytest.raises(sl.DataError, match="The sparse matrix in x is damaged: .*99"):
        check_sparse(whole, where="x")


# -- what reads them --------------------------------------------------------------------------------------------------
def table(slot: str = "X") -> ad.AnnData:
    found = ad.AnnData(matrix())
    found.layers["a"], found.obsm["b"] = matrix(), matrix()
    found.obsp["c"] = sp.csr_matrix(np.ones((N, N)))
    found.raw = found
    return found


@pytest.mark.parametrize("slot", ["X", "layers/a", "obsm/b", "raw/X"])
@pytest.mark.parametrize(
    "damage", ["index too large", "negative index", "row that ends beyond", "last values left out"]
)
def test_tables_on_disk(slot: str, damage: str, tmp_path: Path) -> None:
    table().write_h5ad(tmp_path / "a.h5ad")
    read_h5ad(tmp_path / "a.h5ad")
    change, why = DAMAGE[damage]
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        change(file[slot])
    with pytest.raises(sl.DataError, match=rf"The sparse matrix in a\.h5ad \(.*\) is damaged: {why}"):
        read_h5ad(tmp_path / "a.h5ad")


def test_stores(tmp_path: Path) -> None:
    sdata = sl.datasets.synthetic(size_um=400, n_genes=144)
    sdata.write(tmp_path / "a.zarr")
    indices = zarr.open_group(tmp_path / "a.zarr" / "tables" / "table" / "X", mode="r+", use_consolidated=False)[
        "indices"
    ]
    indices[0] = 10**6
    for read in (sl.io.read, lambda path: sl.io.read_collection(path.parent)[0]):
        with pytest.raises(sl.DataError, match=r"table 'table' of a\.zarr \(X\) is damaged: `indices` hold 1000000"):
            read(tmp_path / "a.zarr")
    (problem,) = sl.io.check(tmp_path / "a.zarr").problems
    assert problem.level == "error"
    assert "`indices` hold 1000000" in problem.text


def test_arrays() -> None:
    counts = sp.csc_matrix(matrix())
    counts.indices[0] = 99
    image, xy = np.full((64, 64, 3), 200, np.uint8), np.arange(2.0 * N).reshape(N, 2)
    with pytest.raises(
        sl.DataError, match="The sparse matrix in `counts` is damaged: `indices` hold 99, outside 0 to 5"
    ):
        sl.io.from_arrays(image, counts, xy, genes=list("abcde"), mpp=0.5, spot_um=5)
