"""Several arrays are indexed as one."""

from __future__ import annotations

import numpy as np

from sealst._data.stacked import Stacked


def test_stacked_arrays_are_one() -> None:
    whole = np.arange(40, dtype=np.float32).reshape(20, 2)
    stacked = Stacked([whole[:5], whole[5:5], whole[5:6], whole[6:]], [2], np.float32)
    assert stacked.shape == (20, 2)
    for part in (slice(None), slice(2, 4), slice(3, 15), slice(6, 30), slice(8, 8), slice(15, 3, -2)):
        np.testing.assert_array_equal(stacked[part], whole[part])
    rows = np.array([19, 0, 5, 5, 4, 12])
    np.testing.assert_array_equal(stacked[rows], whole[rows])
    assert Stacked([], [3], np.float32)[:].shape == (0, 3)
