"""What a query found, as a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sealst import _section
from sealst._docs import documented
from sealst._errors import OrderError
from sealst._keys import Keys
from sealst._section import Data
from sealst._validate import listed, patient_names


@documented
def hits(
    data: Data,
    *,
    key: str = Keys.SIMILARITY,
    region: str | Sequence[str] | None = None,
    table_key: str = Keys.TABLE,
) -> pd.DataFrame:
    """Hits of a query, best first, in the columns that the hits of an index have.

    Parameters
    ----------
    data
        Section(s) that were searched, see `sealst.tl.retrieve`; or their table alone.
    key
        Column of ``.obs`` with the similarities, which names the query.
    %(region)s
    %(table_key)s

    Returns
    -------
    DataFrame with one row per recorded hit and the columns `rank` (1 = most similar), `section`, `obs_name`,
    `similarity` (-1 to 1), `patient`, `organ`, `technology` (text, empty where unknown), `x_um`, `y_um` (centre of the
    crop in µm, NaN where not known) and `query` (what was asked, in words).

    Raises
    ------
    OrderError
        When nothing was asked under that name.

    Examples
    --------
    >>> sl.tl.retrieve(sdata, model, "ERBB2", n_hits=20)  # doctest: +SKIP
    >>> sl.get.hits(sdata).to_csv("hits.csv", index=False)  # doctest: +SKIP
    """
    table = _section.get_table(data, table_key)
    stored = _section.recorded(table, "retrieve")
    entry = stored.get(key, {})
    if not {"hits", "sections", "regions", "similarities"} <= set(entry):
        raise OrderError(
            f"No hits are recorded for {key!r} in `.uns['sealst']['retrieve']`; found: {listed(stored)}. Run "
            "`sl.tl.retrieve(sdata, model, query)` first, or name another query with `key=`."
        )
    sections = {(one.name, one.section): one for one in _section.sections_of(table, region)}
    found = pd.DataFrame(
        {
            "section": np.asarray(entry["sections"], dtype=str),
            "obs_name": np.asarray(entry["hits"], dtype=str),
            "similarity": np.asarray(entry["similarities"], dtype=float),
        }
    )
    owners = list(zip(np.asarray(entry["regions"], dtype=str), found["section"], strict=True))
    asked = np.array([owner in sections for owner in owners], dtype=bool)
    found, owners = found[asked].reset_index(drop=True), [o for o, kept in zip(owners, asked, strict=True) if kept]
    found.insert(0, "rank", np.arange(1, len(found) + 1))
    rows = [
        _section.row_of(table, name, [sections[owner]]) for name, owner in zip(found["obs_name"], owners, strict=True)
    ]
    obs = table.obs.iloc[rows]
    for column in (Keys.PATIENT, Keys.ORGAN, Keys.TECHNOLOGY):
        values = obs[column] if column in obs else pd.Series("", index=obs.index)
        values = patient_names(values).fillna("") if column == Keys.PATIENT else values.astype(str)
        found[column] = values.to_numpy(dtype=object)
    places = np.full((table.n_obs, 2), np.nan)
    for owner in dict.fromkeys(owners):
        places[sections[owner].rows] = _section.centres_um(data, table, sections[owner])
    found["x_um"], found["y_um"] = places[rows].T if rows else (np.zeros(0), np.zeros(0))
    return found.assign(query=str(entry.get("query", "")))
