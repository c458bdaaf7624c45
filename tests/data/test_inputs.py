from __future__ import annotations

import numpy as np
import pytest
import torch

from sealst._data import store
from sealst._data.dataset import PairDataset, as_is
from sealst._data.prefetch import prefetch
from sealst._data.store import CropSource, gather_crops


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


def test_dataset_serves_whole_batches_and_random_views_only_in_training():
    tokens = np.arange(6 * 4, dtype=np.float16).reshape(6, 4, 1, 1)
    x = np.arange(6, dtype=np.float32)[:, None]
    rows = [4, 0, 3]
    held = as_is(PairDataset(tokens, x, train=False).__getitems__(rows))
    assert held["tokens"].flatten().tolist() == [16, 0, 12]
    assert held["expression"].flatten().tolist() == rows
    torch.manual_seed(0)
    train = PairDataset(tokens, x, train=True)
    seen = {int(train.__getitems__([1])["tokens"]) for _ in range(60)}
    assert seen == {4, 5, 6, 7}
    crops = np.zeros((6, 2, 2, 3), dtype=np.uint8)
    assert set(PairDataset(crops, x, train=True).__getitems__(rows)) == {"crops", "expression"}
    assert set(PairDataset(None, x, train=True).__getitems__(rows)) == {"expression"}


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
