"""Agreement of measured and predicted scores, column by column."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sealst._core.scores.metrics import gene_pearson, gene_spearman
from sealst._errors import DataError
from sealst._validate import listed

#: fewest rows a correlation is given for: through two points it is always 1 or -1
MIN_ROWS = 3


def agreement(measured: pd.DataFrame, predicted: pd.DataFrame) -> pd.DataFrame:
    """Correlation of measured and predicted values over the rows where both are known.

    Parameters
    ----------
    measured, predicted
        One row per spot, one column per pathway (or gene); NaN where unknown. Rows and columns are matched by name;
        what only one of the two has is left out.

    Returns
    -------
    DataFrame indexed by shared column, in the order of `measured`: ``pearson`` and ``spearman`` (float64; NaN below 3
    rows or where the measured values are constant, 0 where only the predicted ones are, as `gene_pearson` counts them)
    and ``n`` (int64, rows compared).

    Raises
    ------
    DataError
        When no row or column is shared, or names of rows occur twice and are not the same on both sides.

    Examples
    --------
    >>> measured = pd.DataFrame({"hypoxia": [1.0, 2.0, 3.0, np.nan], "other": 0.0})
    >>> agreement(measured, pd.DataFrame({"hypoxia": [2.0, 4.0, 9.0, 1.0]})).round(2)
             pearson  spearman  n
    hypoxia     0.97       1.0  3
    """
    a, b = _match(measured, predicted)
    x, y = a.to_numpy(dtype=np.float64), b.to_numpy(dtype=np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    n = known.sum(axis=0)
    values = np.full((x.shape[1], 2), np.nan)
    # Columns that share their rows, as those of one scoring do, are correlated together.
    patterns, which = np.unique(known, axis=1, return_inverse=True)
    for i in range(patterns.shape[1]):
        rows, columns = np.flatnonzero(patterns[:, i]), np.flatnonzero(which.ravel() == i)
        if len(rows) >= MIN_ROWS:
            p, t = y[np.ix_(rows, columns)], x[np.ix_(rows, columns)]
            values[columns] = np.column_stack([gene_pearson(p, t), gene_spearman(p, t)])
    frame = pd.DataFrame(values, index=a.columns, columns=["pearson", "spearman"])
    return frame.assign(n=n.astype(np.int64))


def _match(measured: pd.DataFrame, predicted: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    for name, frame in (("measured", measured), ("predicted", predicted)):
        if not isinstance(frame, pd.DataFrame):
            raise TypeError(f"`{name}` must be a DataFrame with named rows and columns, found {type(frame).__name__}.")
        if not frame.columns.is_unique:
            raise DataError(f"Columns of `{name}` occur twice: {listed(frame.columns[frame.columns.duplicated()])}.")
    columns = [c for c in measured.columns if c in predicted.columns]
    if not columns:
        raise DataError(
            f"`measured` and `predicted` share no column; they begin {listed(measured.columns[:3])} and "
            f"{listed(predicted.columns[:3])}. Score both with the same gene sets."
        )
    if measured.index.equals(predicted.index):
        return measured[columns], predicted[columns]
    for name, frame in (("measured", measured), ("predicted", predicted)):
        if not frame.index.is_unique:
            raise DataError(
                f"Rows of `{name}` cannot be matched, their names occur twice: "
                f"{listed(frame.index[frame.index.duplicated()], 3)}."
            )
    rows = measured.index[measured.index.isin(predicted.index)]
    if not len(rows):
        raise DataError(
            f"`measured` and `predicted` share no row; they begin {listed(measured.index[:3])} and "
            f"{listed(predicted.index[:3])}."
        )
    return measured.loc[rows, columns], predicted.loc[rows, columns]
