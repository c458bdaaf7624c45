from __future__ import annotations

import gc
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

import sealst as sl
from sealst._data.arena import Arena


def test_arrays_are_what_was_put_in_and_leave_no_file(tmp_path: Path) -> None:
    arena = Arena(tmp_path, block=4096)
    rng = np.random.default_rng(0)
    given = [rng.normal(size=(n, 7)).astype(dtype) for n, dtype in ((3, np.float32), (40, np.float64), (500, np.int16))]
    kept = [arena.keep(values) for values in given]
    for values, one in zip(given, kept, strict=True):
        np.testing.assert_array_equal(one, values)
        assert one.dtype == values.dtype
    # In files that lie nowhere: a process that is killed leaves none.
    assert not any(tmp_path.iterdir())
    kept[0][...] = 1
    np.testing.assert_array_equal(kept[1], given[1])


def test_arrays_outlive_the_arena(tmp_path: Path) -> None:
    kept = Arena(tmp_path, block=4096).keep(np.arange(10_000.0))
    gc.collect()
    assert kept.sum() == np.arange(10_000.0).sum()


def test_what_cannot_be_mapped_stays(tmp_path: Path) -> None:
    arena, names = Arena(tmp_path), np.array(["a", "bc"])
    assert arena.keep(names) is names
    assert arena.keep(np.empty((0, 5), np.float32)).shape == (0, 5)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 1000))
    with pytest.raises(sl.DataError, match=r"find 0.0 GiB free in .* `sl.settings.cache_dir`"):
        Arena(tmp_path, block=4096).empty((10,))
