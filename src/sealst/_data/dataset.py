"""Pairs of image (crop or cached tokens) and expression, served in batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from sealst._data.stacked import Stacked


class Measured(NamedTuple):
    """Which genes count for which spot: one row per section, so that no mask of spots by genes is kept."""

    #: bool (sections, genes)
    table: np.ndarray
    #: row of `table` of every spot, (n,)
    section: np.ndarray


class Draw(NamedTuple):
    """Spots of a batch, and which version of each crop."""

    rows: np.ndarray
    views: np.ndarray


class PairDataset(Dataset[dict[str, Any]]):
    """Spots as pairs of image and expression, fetched a batch at a time.

    Parameters
    ----------
    images
        uint8 crops (n, px, px, 3), in an array or on disk; or tokens (n, views, t, w), in an array or on disk; or None
        for expression alone.
    expression
        log1p-CP10k that the gene encoder sees and both decoders reconstruct, (n, genes).
    measured
        Which genes the spots' sections measure; None where all measure all. Batches then have a ``"mask"``, bool
        (batch, genes).
    extra
        Further values of every spot, (n, …), by their name in a batch.
    """

    def __init__(
        self,
        images: np.ndarray | Stacked | None,
        expression: np.ndarray,
        *,
        measured: Measured | None = None,
        extra: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.images, self.expression, self.extra = images, expression, dict(extra or {})
        self.measured = None if measured is None or measured.table.all() else measured

    def __len__(self) -> int:
        return len(self.expression)

    @property
    def caches_tokens(self) -> bool:
        """Whether images are tokens of the frozen blocks."""
        return self.images is not None and self.images.dtype != np.uint8

    @property
    def views(self) -> int:
        """Versions of each crop."""
        return self.images.shape[1] if self.images is not None and self.caches_tokens else 1

    def __getitem__(self, draw: Draw) -> dict[str, torch.Tensor]:
        """One batch: a fancy index into the arrays beats collating single items."""
        rows = np.asarray(draw.rows)
        batch = {"expression": torch.from_numpy(self.expression[rows])}
        batch |= {name: torch.from_numpy(values[rows]) for name, values in self.extra.items()}
        if self.measured is not None:
            batch["mask"] = torch.from_numpy(self.measured.table[self.measured.section[rows]])
        if self.images is not None:
            is_crops = self.images.dtype == np.uint8
            key: Any = rows if is_crops else (rows, draw.views)
            picked = self.images[key]
            if not isinstance(picked, torch.Tensor):
                picked = torch.from_numpy(np.ascontiguousarray(picked))
            batch["crops" if is_crops else "tokens"] = picked
        return batch


def as_is(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Collate function: the dataset returns whole batches."""
    return batch


def joined_expression(train: PairDataset, more: PairDataset) -> PairDataset:
    """Expression of the training spots and of tables without images, for the warm-up."""
    parts = [_measured(train), _measured(more)]
    table = np.concatenate([part.table for part in parts])
    section = np.concatenate([parts[0].section, parts[1].section + len(parts[0].table)])
    expression = np.concatenate([train.expression, more.expression])
    extra = {}
    for name, values in train.extra.items():
        if name in more.extra:
            extra[name] = np.concatenate([values, more.extra[name]])
        elif name == "organ":
            # Nothing is known of the organs of tables.
            extra[name] = np.concatenate([values, np.full(len(more), -1)])
    return PairDataset(None, expression, measured=Measured(table, section), extra=extra)


def _measured(data: PairDataset) -> Measured:
    if data.measured is not None:
        return data.measured
    return Measured(np.ones((1, data.expression.shape[1]), bool), np.zeros(len(data), dtype=int))
