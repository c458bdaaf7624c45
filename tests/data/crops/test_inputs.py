from __future__ import annotations

import numpy as np
import pytest

from sealst._data.crops import source as store
from sealst._data.crops.reader import prefetch
from sealst._data.crops.source import CropSource, gather_crops
from sealst._data.dataset import Draw, PairDataset, as_is


def test_prefetch_keeps_order_and_passes_errors_on():
    assert list(prefetch(iter(range(20)))) == list(range(20))
    assert list(prefetch(iter([]))) == []

    def broken():
        yield 1
        raise OSError("damaged chunk")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="damaged chunk"):
        next(items)


def test_crops_of_several_sources_come_in_their_order_in_memory_and_on_disk(tmp_path, monkeypatch):
    images = [np.full((3, 40, 40), 10 * (i + 1), dtype=np.uint8) for i in range(3)]
    sources = [CropSource([im], np.array([[0, 0, 8, 8.0]] * (i + 1))) for i, im in enumerate(images)]
    expected = [10, 20, 20, 30, 30, 30]
    for limit in (2**30, 0):
        monkeypatch.setattr(store, "MAX_RAM_BYTES", limit)
        crops = gather_crops(sources, 8, tmp_path)
        assert crops.shape == (6, 8, 8, 3)
        assert crops[:, 0, 0, 0].tolist() == expected
        assert isinstance(crops, np.memmap) == (limit == 0)


def test_dataset_serves_whole_batches_of_the_spots_and_views_drawn():
    tokens = np.arange(6 * 4, dtype=np.float16).reshape(6, 4, 1, 1)
    x = np.arange(6, dtype=np.float32)[:, None]
    rows, views = np.array([4, 0, 3]), np.array([0, 1, 3])
    data = PairDataset(tokens, x, extra={"domain": np.arange(6) // 2})
    batch = as_is(data[Draw(rows, views)])
    assert batch["tokens"].flatten().tolist() == [16, 1, 15]
    assert batch["expression"].flatten().tolist() == rows.tolist()
    assert batch["domain"].tolist() == [2, 0, 1]
    assert data.views == 4
    crops = PairDataset(np.zeros((6, 2, 2, 3), dtype=np.uint8), x)
    assert set(crops[Draw(rows, views)]) == {"crops", "expression"}
    assert crops.views == 1
    assert set(PairDataset(None, x)[Draw(rows, views)]) == {"expression"}


@pytest.mark.parametrize("limit", [10**9, 100, 0])
def test_rows_are_the_same_in_memory_and_on_disk(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(store, "MAX_RAM_BYTES", limit)
    parts = [np.random.default_rng(i).normal(size=(n, 5)).astype(np.float32) for i, n in enumerate((3, 0, 7, 2))]
    rows = store.Rows(tmp_path / "rows.f32")
    for part in parts:
        rows.add(part)
    found = rows.finished()
    np.testing.assert_array_equal(found, np.concatenate(parts))
    assert isinstance(found, np.memmap) == (limit < 10**9)
