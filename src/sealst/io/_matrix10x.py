"""Feature-barcode matrices of 10x Genomics, as a file (h5) or as a folder (mtx); of Space Ranger and Xenium alike."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from sealst._core.sparse import check_bounds
from sealst._errors import DataError
from sealst._files import visible
from sealst._validate import listed

GENES = "Gene Expression"
#: what reading a damaged, truncated or empty file raises
READ_ERRORS = (ValueError, OSError, EOFError, KeyError, zlib.error)
_PARTS = ("data", "indices", "indptr", "shape")


def read_h5(path: Path) -> tuple[sp.csr_matrix, np.ndarray, pd.DataFrame]:
    """Counts (barcodes, features), barcodes, and the features with columns `symbol`, `gene_ids` and what is stated."""
    import scanpy as sc

    try:
        _check_h5(path)
        with warnings.catch_warnings():
            # Symbols that occur twice are summed, barcodes refused.
            warnings.filterwarnings("ignore", message="(Variable|Observation) names are not unique")
            data = sc.read_10x_h5(path, gex_only=False)
    except DataError:
        raise
    except Exception as error:  # scanpy raises a bare Exception for absent datasets
        raise DataError(f"{path} could not be read as a 10x feature-barcode matrix (truncated?): {error}") from error
    return sp.csr_matrix(data.X), data.obs_names.to_numpy(), data.var.assign(symbol=data.var_names)


def _check_h5(path: Path) -> None:
    """Refuse matrices whose indices lie outside; version 2 of the format has one for every genome."""
    with h5py.File(path) as file:
        for name, group in file.items():
            if isinstance(group, h5py.Group) and all(part in group for part in _PARTS):
                features, barcodes = (int(n) for n in group["shape"][:])
                values, indices, indptr = (group[part] for part in _PARTS[:3])
                check_bounds(values, indices, indptr, (barcodes, features), where=f"{path.name} ({name})")


def read_mtx(folder: Path, prefix: str) -> tuple[sp.csr_matrix, np.ndarray, pd.DataFrame]:
    """As `read_h5`, from ``matrix.mtx``, ``barcodes.tsv`` and ``features.tsv``, plain or gzipped, with a prefix."""
    # scanpy reads either gzipped files of version 3 or plain ones of version 2; unpacked version 3 is as common.
    from scipy.io import mmread

    held = visible(folder)
    paths = {}
    for name in ("matrix.mtx", "barcodes.tsv", "features.tsv"):
        wanted = [f"{prefix}{name}", f"{prefix}{name}.gz"]
        wanted += [w.replace("features", "genes") for w in wanted]
        paths[name] = next((held[w] for w in wanted if w in held), None)
        if paths[name] is None:
            raise DataError(f"{str(folder)!r} lacks {prefix}{name} (or {name}.gz); it holds {listed(held)}.")
    try:
        matrix = sp.csr_matrix(mmread(paths["matrix.mtx"]).T, dtype=np.float32)
        lines = {
            n: pd.read_csv(p, sep="\t", header=None, dtype=str, keep_default_na=False)
            for n, p in paths.items()
            if n != "matrix.mtx"
        }
    except READ_ERRORS as error:
        raise DataError(f"{str(folder)!r} could not be read as a 10x feature-barcode matrix: {error}") from error
    barcodes, features = lines["barcodes.tsv"][0].to_numpy(), lines["features.tsv"]
    if matrix.shape != (len(barcodes), len(features)):
        raise DataError(
            f"{str(folder)!r}: the matrix is {matrix.shape[0]} x {matrix.shape[1]} (barcodes x features), but there "
            f"are {len(barcodes)} barcodes and {len(features)} features. The files are of different matrices."
        )
    names = dict(enumerate(("gene_ids", "symbol", "feature_types")))
    features = features.rename(columns=names)
    return matrix, barcodes, features.assign(symbol=features.get("symbol", features["gene_ids"]))
