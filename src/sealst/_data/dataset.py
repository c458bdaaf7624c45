"""Pairs of image (crop or cached tokens) and expression, served in batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from sealst._data.crop_cache import CachedCrops
from sealst._data.token_store import Tokens


class Measured(NamedTuple):
    """Which genes count for which spot: one row per section, so that no mask of spots by genes is kept."""

    #: bool (sections, genes)
    table: np.ndarray
    #: row of `table` of every spot, (n,)
    section: np.ndarray


class PairDataset(Dataset[dict[str, Any]]):
    """Spots as pairs of image and expression.

    Parameters
    ----------
    images
        uint8 crops (n, px, px, 3), in an array or on disk; or tokens (n, views, t, w), in an array or on disk; or None
        for expression alone.
    expression
        log1p-CP10k that the gene encoder sees and both decoders reconstruct, (n, genes).
    train
        Whether to draw a random view; otherwise the first (the crop as it is).
    measured
        Which genes the spots' sections measure; None where all measure all. Batches then have a ``"mask"``, bool
        (batch, genes).
    """

    def __init__(
        self,
        images: np.ndarray | CachedCrops | Tokens | None,
        expression: np.ndarray,
        *,
        train: bool,
        measured: Measured | None = None,
    ) -> None:
        self.images, self.expression, self.train = images, expression, train
        self.measured = None if measured is None or measured.table.all() else measured

    def __len__(self) -> int:
        return len(self.expression)

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """One batch, fetched at once: a fancy index into the arrays beats collating single items."""
        rows = np.asarray(indices)
        batch = {
            "expression": torch.from_numpy(self.expression[rows]),
        }
        if self.measured is not None:
            batch["mask"] = torch.from_numpy(self.measured.table[self.measured.section[rows]])
        if self.images is not None:
            is_crops = self.images.dtype == np.uint8
            key: Any = rows if is_crops else (rows, self._views(len(rows)))
            picked = self.images[key]
            if not isinstance(picked, torch.Tensor):
                picked = torch.from_numpy(np.ascontiguousarray(picked))
            batch["crops" if is_crops else "tokens"] = picked
        return batch

    def _views(self, n: int) -> np.ndarray:
        count = self.images.shape[1] if self.images is not None else 1
        if not self.train or count == 1:
            return np.zeros(n, dtype=int)
        return torch.randint(0, count, (n,)).numpy()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([index])


def as_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collate function: the dataset returns whole batches."""
    return batch
