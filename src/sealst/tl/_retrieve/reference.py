"""The profile from which a direction query raises its genes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from sealst import _section
from sealst._errors import DataError, MissingKeyError
from sealst._validate import check_key, listed
from sealst.models import SealModel
from sealst.tl._retrieve.questions import profile_in_panel

Reference: TypeAlias = pd.Series | str | np.ndarray | Mapping[str, Any]


def reference_profile(
    reference: Reference | None, model: SealModel, *, table: AnnData | None = None
) -> tuple[np.ndarray, str] | None:
    """Profile in panel order (G,), log1p-CP10k, and what it is called; None for the panel's mean.

    Parameters
    ----------
    reference
        A profile by gene, or spots of the table: a boolean column, a boolean array, or values of columns.
    model
        Whose panel is asked for.
    table
        Table with measured expression; an index has none.
    """
    if reference is None:
        return None
    if isinstance(reference, pd.Series) and reference.dtype != bool:
        name = reference.name if isinstance(reference.name, str) else "profile"
        return profile_in_panel(reference, model)[0], name
    if table is None:
        raise DataError(
            "An index holds no expression: `reference` must be a Series of log1p-CP10k by gene, found "
            f"{type(reference).__name__}. Average the spots of a section, or pass its table instead of the index."
        )
    rows, name = _rows(reference, table)
    model.panel.require_names()
    values = _section.expression(table, model.panel, rows).mean(axis=0)
    return np.asarray(values, dtype=np.float64).ravel(), name


def _rows(reference: Any, table: AnnData) -> tuple[np.ndarray, str]:
    if isinstance(reference, str):
        check_key(table.obs.columns, reference, where="`.obs`", hint="`reference` names a boolean column.")
        mask, name = table.obs[reference].to_numpy(), reference
    elif isinstance(reference, Mapping):
        mask, name = _matching(reference, table), ", ".join(f"{k}: {v}" for k, v in reference.items())
    elif isinstance(reference, pd.Series):
        # By name, as everything that carries names.
        if not reference.index.equals(table.obs_names):
            raise DataError("A boolean Series as `reference` must have the table's `.obs_names` as its index.")
        mask, name = reference.to_numpy(), "spots"
    else:
        mask, name = np.asarray(reference), "spots"
    if mask.dtype != bool or mask.shape != (table.n_obs,):
        raise DataError(
            f"`reference` must choose spots by True and False, ({table.n_obs},) bool, found {mask.dtype} {mask.shape}."
            " A group of a column is chosen by a mapping, e.g. `{'cluster': 'stroma'}`."
        )
    if not mask.any():
        raise DataError(f"`reference` chooses no spot ({name}).")
    return np.flatnonzero(mask), name


def _matching(reference: Mapping[str, Any], table: AnnData) -> np.ndarray:
    mask = np.ones(table.n_obs, dtype=bool)
    for column, wanted in reference.items():
        check_key(table.obs.columns, column, where="`.obs`", hint="`reference` maps columns to values.")
        values = [wanted] if isinstance(wanted, str) or not np.iterable(wanted) else list(wanted)
        stored = table.obs[column].astype(str)
        if absent := [v for v in values if str(v) not in set(stored)]:
            raise MissingKeyError(
                f"`reference`: no spot has {column} {listed(absent)}; found: {listed(sorted(set(stored)))}."
            )
        mask &= stored.isin([str(v) for v in values]).to_numpy()
    return mask
