"""Rows of unit length, as every comparison by cosine takes them.

scikit-learn's `normalize` gives the same numbers; it takes a second to import, and who only searches does not
wait for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def unit_rows(x: ArrayLike) -> Any:
    """Rows (n, d), each divided by its length, in the type of `x`; rows of zeros stay.

    Examples
    --------
    >>> unit_rows([[3.0, 4.0], [0.0, 0.0]])
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    values = np.asarray(x)
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values))
    # Of a length that is nothing but rounding there is no direction.
    lengths[lengths < 10 * np.finfo(lengths.dtype).eps] = 1.0
    return values / lengths[:, None]
