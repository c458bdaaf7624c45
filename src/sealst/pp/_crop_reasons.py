"""The one place where measures of crops become `crop_ok` and `crop_reason`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst import _section
from sealst._errors import OrderError
from sealst._keys import Keys

OK, OUTSIDE, LOST, NOT_PAIRED = "ok", "outside image", "lost pixels", "not paired"
LITTLE_TISSUE, LOW_QUALITY = "little tissue", "low quality: "


def base_reasons(table: AnnData) -> np.ndarray:
    """Reasons as `pp.pair_crops` left them: what measures of the crops added is taken back."""
    if Keys.CROP_REASON not in table.obs:
        raise OrderError("The table has no `.obs['crop_reason']`. Run `sl.pp.pair_crops(sdata)` first.")
    reasons = table.obs[Keys.CROP_REASON].astype(object).to_numpy().copy()
    added = [r == LITTLE_TISSUE or str(r).startswith(LOW_QUALITY) for r in reasons]
    reasons[added] = OK
    return reasons


def crop_reasons(
    table: AnnData, columns: Mapping[str, np.ndarray], tissue: Mapping[str, Any], quality: Mapping[str, Any]
) -> np.ndarray:
    """Reason of every crop from the measures and thresholds of all calls, whatever their order.

    Parameters
    ----------
    table
        Table with crops.
    columns
        Columns of ``.obs`` that are about to be written; others are read from the table.
    tissue, quality
        Entries of ``.uns["sealst"]`` by region. Those made from other crops than the present ones do not count.
    """
    reasons = base_reasons(table)
    crops = _section.recorded(table, "crops")
    for region in _section.regions_of(table):
        present = crops.get(region.name, {})
        limits: list[tuple[str, str, float, float]] = []
        if of_present_crops(entry := tissue.get(region.name, {}), present):
            limits.append((LITTLE_TISSUE, Keys.TISSUE_FRACTION, float(entry["min_tissue"]), np.inf))
        if of_present_crops(entry := quality.get(region.name, {}), present):
            for metric, (low, high) in entry["thresholds"].items():
                limits.append((LOW_QUALITY + metric, Keys.quality(metric), float(low), float(high)))
        for reason, column, low, high in limits:
            # A measure that is missing, or a column that was dropped, accuses nobody.
            values = columns[column] if column in columns else table.obs.get(column, np.full(table.n_obs, np.nan))
            values = np.asarray(values, dtype=float)[region.rows]
            outside = (values < low - 1e-9) | (values > high + 1e-9)
            mine = reasons[region.rows]
            reasons[region.rows] = np.where(outside & (mine == OK), reason, mine)
    return reasons


def of_present_crops(entry: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    """Whether an entry was made from the crops that a region has now."""
    # Tissue does not depend on the pixels of a crop, and its entries do not hold them.
    keys = [key for key in ("boxes", "image_key", "crop_px") if key != "crop_px" or key in entry]
    return bool(entry) and all(entry.get(key) == present.get(key) for key in keys)


def write_reasons(table: AnnData, reasons: np.ndarray) -> None:
    """Write `crop_reason` and `crop_ok`."""
    table.obs[Keys.CROP_REASON] = pd.Categorical(reasons)
    table.obs[Keys.CROP_OK] = reasons == OK
