"""Tests of scores between groups of spots, on plain frames."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from sealst._errors import DataError
from sealst._validate import listed

#: fewest replicates a test can be made of
MIN_REPLICATES = 2


class ReplicateTest(NamedTuple):
    """Test of means over replicates, one value per column."""

    #: t-values; 0 where nothing differs
    score: np.ndarray
    #: p-values, two-sided
    pval: np.ndarray
    #: difference of the replicates' means
    difference: np.ndarray
    #: means of both sides over replicates
    means: tuple[np.ndarray, np.ndarray]
    #: replicates on either side
    n: tuple[int, int]
    #: ``"paired"`` or ``"unpaired"``
    design: str


def replicate_test(
    group: pd.DataFrame, reference: pd.DataFrame, *, of_group: np.ndarray, of_reference: np.ndarray, name: str
) -> ReplicateTest:
    """Compare two groups of spots by the means of their replicates (sections, patients).

    Where at least two replicates hold spots of both sides, the paired t-test of their differences: what a replicate
    adds to all of its spots cancels. Where no replicate holds both, Welch's t-test of the replicates' means.

    Parameters
    ----------
    group, reference
        Scores of the spots of both sides, the same columns; finite.
    of_group, of_reference
        Replicate of every row.
    name
        Name of the group, for errors.

    Raises
    ------
    DataError
        When there are too few replicates for either test.

    Examples
    --------
    >>> a, b = pd.DataFrame({"p": [3.0, 5.0, 8.0]}), pd.DataFrame({"p": [1.0, 2.0, 4.0]})
    >>> which = np.array(["s1", "s2", "s3"])
    >>> result = replicate_test(a, b, of_group=which, of_reference=which, name="tumour")
    >>> result.design, result.difference, result.score.round(2)
    ('paired', array([3.]), array([5.2]))
    """
    x, y = group.groupby(of_group).mean(), reference.groupby(of_reference).mean()
    both = x.index.intersection(y.index)
    if len(both) >= MIN_REPLICATES:
        x, y, design = x.loc[both], y.loc[both], "paired"
    elif not len(both) and min(len(x), len(y)) >= MIN_REPLICATES:
        design = "unpaired"
    else:
        raise DataError(
            f"Group {name!r} lies in replicate(s) {listed(x.index)}, its reference in {listed(y.index)}: {len(both)} "
            "hold both. At least 2 with both are needed for a paired test, or at least 2 on either side and none with "
            "both for an unpaired one. Without `replicate`, spots are compared."
        )
    a, b = x.to_numpy(), y.to_numpy()
    # Columns that do not vary between replicates divide by 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        if design == "paired":
            score = (a - b).mean(axis=0) / ((a - b).std(axis=0, ddof=1) / np.sqrt(len(a)))
            pval = 2 * stats.t.sf(np.abs(score), len(a) - 1)
        else:
            score, pval = stats.ttest_ind(a, b, equal_var=False)
    unknown = np.isnan(score)
    score, pval = np.where(unknown, 0.0, score), np.where(unknown, 1.0, pval)
    means = a.mean(axis=0), b.mean(axis=0)
    return ReplicateTest(score, pval, means[0] - means[1], means, (len(a), len(b)), design)
