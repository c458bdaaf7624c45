"""Raw counts, log-normalised counts and their spot-context version as layers of a table."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from sealst import _section
from sealst._core.space import lattice
from sealst._docs import documented
from sealst._errors import DataError, MissingKeyError
from sealst._keys import Keys
from sealst._logging import logger, quiet_import, warn
from sealst._section import Data, Region, for_writing, sections_of
from sealst._validate import (
    check_choice,
    check_counts,
    check_fraction,
    check_gene_names,
    check_key,
    check_positive,
    listed,
)

_STEP = "normalize"
# Settings in which all sections of a table must agree.
_COMMON = ("target_sum", "source", "context", "context_weight")


@documented
def normalize(
    data: Data,
    *,
    table_key: str = Keys.TABLE,
    region: str | Sequence[str] | None = None,
    layer: str | None = None,
    target_sum: float = 1e4,
    context: bool = True,
    context_weight: float = 0.5,
    grid: Literal["auto", "hex", "square"] = "auto",
    copy: bool = False,
) -> Data | None:
    """Keep raw counts, log-normalise them, and mix every spot with its array neighbours.

    `lognorm` is ``log1p(counts * target_sum / total of the spot)``. `context` is the same of the mixed counts
    ``(1 - w) * counts + w * mean(counts of the neighbours)``: the view that the gene encoder of SEAL is trained on
    (Hemker et al., arXiv 2602.14177). Neighbours are the up to 6 (hex) or 4 (square) spots next to a spot on its array,
    in the same section, and in the table: spots at the edge of the tissue have fewer, and a spot without any keeps its
    own counts. They are found from ``.obsm["spatial"]``, whatever its unit, rotation and jitter. A later call replaces
    the layers that an earlier one wrote.

    Parameters
    ----------
    data
        SpatialData, or the AnnData of its table. Sections (regions, or ``.obs["section"]``) never mix.
    %(table_key)s
    region
        Regions to normalise; default all. Rows of other regions keep what the layers hold, or stay zero. All regions
        of a table must be normalised alike.
    layer
        Layer with the raw counts; None is ``.X``.
    target_sum
        Counts per spot after library-size normalisation.
    context
        Whether to write the context layer. Without, a context layer from before is removed.
    context_weight
        Share `w` of the neighbours, 0 to 1.
    grid
        Kind of spot array: ``"hex"`` (Visium), ``"square"`` (legacy Spatial Transcriptomics, Visium HD bins), or
        ``"auto"``, which tells them apart by the symmetry of the positions, per section.
    copy
        Whether to return a copy of `data` with the new slots, and leave it as it is.

    Returns
    -------
    None, or with `copy` a copy of `data`. Writes, all CSR float32 (n_obs, n_vars):

    - ``.layers["counts"]``: raw counts
    - ``.layers["lognorm"]``: log1p of counts scaled to `target_sum`; zero for spots without counts
    - ``.layers["context"]``: the same of the mixed counts
    - ``.uns["sealst"]["normalize"]``: parameters, and per section its grid and mean number of neighbours

    Raises
    ------
    DataError
        When the matrix does not hold raw counts, gene names are empty or occur twice, a section has fewer than two
        spots, the grid is not clear, or a layer of one of these names is there that this call did not write.
    MissingKeyError
        When the layer, or the positions, are absent.

    Examples
    --------
    >>> import sealst as sl
    >>> sdata = sl.datasets.synthetic(size_um=600, n_genes=144)
    >>> sl.pp.normalize(sdata)
    >>> sdata.tables["table"].layers["context"].shape == sdata.tables["table"].shape
    True
    """
    check_choice("grid", grid, ("auto", *lattice.GRIDS))
    check_positive("target_sum", target_sum)
    check_fraction("context_weight", context_weight)
    table = _section.get_table(data, table_key)
    parts = sections_of(table, region)
    check_gene_names(list(table.var_names), where="`table.var_names`")
    if layer is not None:
        check_key(_section.layer_names(table), layer, where="`table.layers`", hint="Leave `layer` out to use `.X`.")
    source = table.X if layer is None else table.layers[layer]
    where = "`table.X`" if layer is None else f"`table.layers[{layer!r}]`"
    if source is None:
        raise DataError(f"{where} is empty; raw counts are needed. Name the layer that holds them with `layer=`.")
    check_counts(source, where=where)
    counts = sp.csr_matrix(source, dtype=np.float32, copy=True)
    counts.eliminate_zeros()
    common = {
        "target_sum": float(target_sum),
        "source": "X" if layer is None else layer,
        "context": bool(context),
        "context_weight": float(context_weight) if context else 0.0,
    }
    earlier = _earlier_facts(table, parts, common)
    if not _section.recorded(table, _STEP):
        taken = [key for key in (Keys.LOGNORM, Keys.CONTEXT) if key in table.layers]
        # Raw counts under their usual name are no obstacle as long as they are these.
        if Keys.COUNTS in table.layers and (sp.csr_matrix(table.layers[Keys.COUNTS]) != counts).nnz:
            taken.insert(0, Keys.COUNTS)
        if taken:
            raise DataError(
                f"`table.layers` holds {listed(taken)}, which `sl.pp.normalize` did not write and would replace. "
                f"Rename or delete them (`del table.layers[{taken[0]!r}]`); if the raw counts are in a layer, name it "
                "with `layer=`."
            )
    rows = np.concatenate([part.rows for part in parts])
    layers = {Keys.LOGNORM: _lognorm(counts[rows], target_sum)}
    facts = [_Facts(part.section) for part in parts]
    if context:
        graphs = [_neighbours(data, table, part, grid) for part in parts]
        facts = [
            _Facts(p.section, kind, graph.sum() / len(p.rows)) for p, (kind, graph) in zip(parts, graphs, strict=True)
        ]
        mixed = [
            lattice.smooth_context(counts[part.rows], graph, context_weight)
            for part, (_, graph) in zip(parts, graphs, strict=True)
        ]
        layers[Keys.CONTEXT] = _lognorm(sp.vstack(mixed, format="csr"), target_sum)
    layers = {key: _in_table_order(table, key, values, rows=rows, keep=bool(earlier)) for key, values in layers.items()}

    empty = rows[np.diff(counts.indptr)[rows] == 0]
    if empty.size:
        warn(
            f"{empty.size} of {rows.size} spots have no counts; their `lognorm` is zero for every gene "
            f"(e.g. {listed(table.obs_names[empty[:3]])}). Drop them before training."
        )
    given, target = for_writing(data, table_key, copy=copy)
    _write(target, {Keys.COUNTS: counts, **layers}, common=common, facts=earlier + facts)
    return given if copy else None


@dataclass(frozen=True)
class _Facts:
    """What is recorded of a section."""

    section: str
    grid: str = "none"
    mean_neighbours: float = 0.0


def normalization_of(table: AnnData) -> dict[str, Any] | None:
    """What `normalize` recorded in a table; None where it has not run or its layer is gone."""
    stored = _section.recorded(table, _STEP)
    return stored if stored and Keys.LOGNORM in table.layers else None


def _earlier_facts(table: AnnData, parts: Sequence[Region], common: dict[str, Any]) -> list[_Facts]:
    """Facts of the sections that are not normalised now but were before; these must have been normalised alike."""
    stored = normalization_of(table)
    if stored is None:
        return []
    now, present = {p.section for p in parts}, {p.section for p in sections_of(table)}
    columns = zip(stored["sections"], stored["grids"], stored["mean_neighbours"], strict=True)
    kept = [_Facts(str(s), str(g), float(n)) for s, g, n in columns if str(s) in present - now]
    different = [key for key in _COMMON if stored[key] != common[key]]
    if kept and different:
        raise DataError(
            f"Section(s) {listed(f.section for f in kept)} were normalised with "
            f"{', '.join(f'{key}={stored[key]}' for key in different)}, now found "
            f"{', '.join(f'{key}={common[key]}' for key in different)}. "
            "Normalise all regions alike: leave out `region`."
        )
    return kept


def _lognorm(counts: sp.csr_matrix, target_sum: float) -> sp.csr_matrix:
    import scanpy as sc

    light = AnnData(counts.copy())
    with warnings.catch_warnings():
        # `normalize` says it with names.
        warnings.filterwarnings("ignore", message="Some cells have zero counts")
        sc.pp.normalize_total(light, target_sum=target_sum)
    sc.pp.log1p(light)
    return sp.csr_matrix(light.X, dtype=np.float32)


def _neighbours(data: Data, table: AnnData, part: Region, grid: str) -> tuple[str, sp.csr_matrix]:
    """Kind of grid and adjacency (spots, spots) of a section."""
    with quiet_import():
        from squidpy.gr.neighbors import RadiusBuilder

    if Keys.SPATIAL in table.obsm:
        xy = np.asarray(table.obsm[Keys.SPATIAL], dtype=float)[part.rows, :2]
    elif isinstance(data, SpatialData):
        centres = _section.spot_table(data, part).geometry.centroid
        xy = np.column_stack([centres.x, centres.y])
    else:
        raise MissingKeyError(
            f"'spatial' not found in `table.obsm`; found: {listed(table.obsm)}. The neighbours of a spot need "
            "positions: add them as (x, y), pass the SpatialData, or use `context=False`."
        )
    if not np.isfinite(xy).all():
        raise DataError(
            f"`table.obsm['spatial']` holds NaN or infinite positions for {(~np.isfinite(xy)).any(axis=1).sum()} spots "
            f"of section {part.section!r}. Drop these spots, or use `context=False`."
        )
    # squidpy's GridBuilder cuts at 1.3 times the median of all distances found: jittered squares then gain diagonals
    # and lose sides, and where half of the spots are missing the second ring counts as neighbours.
    try:
        kind = lattice.detect_grid(xy) if grid == "auto" else grid
        candidates, _ = RadiusBuilder(radius=lattice.REACH * lattice.pitch(xy)).build(xy)
        return kind, lattice.keep_neighbours(candidates, xy, kind)
    except DataError as error:
        raise DataError(f"Section {part.section!r}: {error}") from error


def _in_table_order(table: AnnData, key: str, values: sp.csr_matrix, *, rows: np.ndarray, keep: bool) -> sp.csr_matrix:
    """Bring rows into the order of the table; the other rows hold what they held, or zeros."""
    if np.array_equal(rows, np.arange(table.n_obs)):
        return values
    others = np.setdiff1d(np.arange(table.n_obs), rows)
    if keep and key in table.layers:
        old = sp.csr_matrix(table.layers[key][others], dtype=np.float32)
    else:
        old = sp.csr_matrix((len(others), table.n_vars), dtype=np.float32)
    return sp.vstack([values, old], format="csr")[np.argsort(np.concatenate([rows, others]))]


def _write(target: AnnData, layers: dict[str, Any], *, common: dict[str, Any], facts: Sequence[_Facts]) -> None:
    for key, values in layers.items():
        target.layers[key] = values
    if Keys.CONTEXT not in layers and Keys.CONTEXT in target.layers:
        del target.layers[Keys.CONTEXT]
    columns = {
        "sections": np.array([f.section for f in facts], dtype=object),
        "grids": np.array([f.grid for f in facts], dtype=object),
        "mean_neighbours": np.array([f.mean_neighbours for f in facts]),
    }
    _section.record(target, _STEP, {**common, **columns})
    logger.info("Wrote %s in `table.layers` (sections %s).", listed(layers), listed(f.section for f in facts))
