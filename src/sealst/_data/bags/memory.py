"""Bags for a training loop: kept in memory up to a budget, tiles drawn by a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset

from sealst._data.bags.bags import Bag, Bags, BlankSlideError
from sealst._errors import DataError
from sealst._validate import listed


class BagStore:
    """Reads bags by name and keeps those that fit into memory.

    Parameters
    ----------
    bags
        Slides, with the embedding to read.
    budget_mb
        Megabytes of embeddings to keep.
    """

    def __init__(self, bags: Bags, budget_mb: float) -> None:
        self.bags, self.left = bags, int(budget_mb * 2**20)
        self._kept: dict[int, Bag] = {}
        self._dim: int | None = None

    def __getitem__(self, row: int) -> Bag:
        if row in self._kept:
            return self._kept[row]
        bag = self._read(row)
        if bag is None:
            raise self._blank(row)
        found = int(bag.features.shape[1])
        self._dim = found if self._dim is None else self._dim
        if found != self._dim:
            raise DataError(
                f"Slide {bag.name!r} has embeddings of {found} numbers, those before it of {self._dim}; embed all "
                "slides with one model."
            )
        if bag.features.nbytes <= self.left:
            self.left -= bag.features.nbytes
            self._kept[row] = bag
        return bag

    def _read(self, row: int) -> Bag | None:
        """A slide; None where it has no tile with an embedding."""
        try:
            bag: Bag = self.bags[row]
        except BlankSlideError:
            return None
        return bag if len(bag) else None

    def _blank(self, row: int) -> BlankSlideError:
        """Error that names every slide without a tile, once one was met."""
        names = self.bags.obs.index
        found = [i for i in range(len(names)) if i == row or (i not in self._kept and self._read(i) is None)]
        return BlankSlideError(
            f"Slide{'s' * (len(found) > 1)} {listed(names[found])}: no tile has a finite embedding {self.bags.key!r}; "
            f"leave {'them' if len(found) > 1 else 'the slide'} out (`bags.take(rows)`)."
        )

    def dim(self, row: int) -> int:
        """Length of an embedding, of the first slide that was read; of a row where none was."""
        return int(self[row].features.shape[1]) if self._dim is None else self._dim

    def moments(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of every feature over slides, each slide weighing the same; float32 (dim,)."""
        sums, squares = np.zeros((2, self.dim(int(rows[0]))))
        for row in rows:
            features = self[int(row)].features.astype(np.float64)
            sums += features.mean(axis=0)
            squares += (features**2).mean(axis=0)
        mean = sums / len(rows)
        deviation = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0.0))
        # A feature that never varies says nothing; dividing by its rounding error would make it loud.
        deviation[deviation <= 1e-6 * np.maximum(1.0, np.abs(mean))] = 1.0
        return mean.astype(np.float32), deviation.astype(np.float32)


def same_slides(stores: Sequence[BagStore], rows: Sequence[np.ndarray]) -> list[list[tuple[int, int]]]:
    """Slides that are one slide under several names: groups of (store, row) whose tiles are the same, in any order.

    Slides without tiles, and those whose tiles are all alike, are compared with nothing.
    """
    found: dict[bytes, list[tuple[int, int]]] = {}
    for i, (store, wanted) in enumerate(zip(stores, rows, strict=True)):
        for row in wanted:
            try:
                digest = _digest(store[int(row)].features)
            except BlankSlideError:
                continue
            if digest is not None:
                found.setdefault(digest, []).append((i, int(row)))
    return [group for group in found.values() if len(group) > 1]


def _digest(features: np.ndarray) -> bytes | None:
    """Digest of embeddings (tiles, dim), whatever their order; None where all are the same."""
    bits = np.ascontiguousarray(features, dtype=np.float32).view(np.uint32).astype(np.uint64)
    weight = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], dtype=np.uint64) | np.uint64(1)
    # Sums of products modulo 2^64.
    tiles = np.sort((bits * weight).sum(axis=1, dtype=np.uint64))
    return None if tiles[0] == tiles[-1] else hashlib.sha256(tiles.tobytes()).digest()


class Sample(NamedTuple):
    """Tiles of one slide and its label."""

    features: np.ndarray
    xy: np.ndarray | None
    label: Any


class BagDataset(Dataset):
    """Slides of one side of a fold.

    Parameters
    ----------
    store
        Where bags come from.
    rows
        Rows of the store.
    labels
        One per row: class number, number, or (time, event).
    max_tiles
        Tiles to draw from a slide; None takes all.
    seed
        Seed of the draws; `epoch` changes them.
    """

    def __init__(
        self, store: BagStore, rows: np.ndarray, labels: np.ndarray, *, max_tiles: int | None, seed: int
    ) -> None:
        self.store, self.rows, self.labels = store, rows, labels
        self.max_tiles, self.seed, self.epoch = max_tiles, seed, 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Sample:
        bag = self.store[int(self.rows[i])]
        if self.max_tiles is None or len(bag) <= self.max_tiles:
            return Sample(bag.features, bag.xy, self.labels[i])
        rng = np.random.default_rng([self.seed, self.epoch, i])
        drawn = np.sort(rng.choice(len(bag), self.max_tiles, replace=False))
        return Sample(bag.features[drawn], None if bag.xy is None else bag.xy[drawn], self.labels[i])
