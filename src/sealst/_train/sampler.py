"""Which spots form which batch: a function of seed and step alone, whatever the number of workers or processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from sealst._data.dataset import Draw

#: longest stretch of steps between two checkpoints
MAX_SEGMENT_STEPS = 500


class SegmentSampler(Sampler[Draw]):
    """Batches of one stretch of an epoch at a time, so that training can stop and go on inside an epoch.

    Parameters
    ----------
    n
        Spots.
    batch_size
        Spots per step over all processes; an epoch ends before an incomplete batch.
    views
        Versions of each crop to draw from.
    seed
        Seed of order and views.
    weights
        Probability of each spot to be drawn, (n,); None visits every spot once per epoch.
    sections
        Section of each spot, (n,): batches are then of one section each, as far as sections fill them; what is left
        over is mixed. None mixes all.
    max_steps
        Longest stretch, in steps.
    rank, world
        This process and how many there are; each takes every `world`-th spot of a batch.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int,
        views: int,
        seed: int,
        weights: np.ndarray | None = None,
        sections: np.ndarray | None = None,
        max_steps: int = MAX_SEGMENT_STEPS,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.n, self.batch_size, self.views, self.seed, self.weights = n, batch_size, views, seed, weights
        self.sections = sections
        self.rank, self.world, self.first, self.segment = rank, world, 0, 0
        steps = max(1, n // batch_size)
        self.segments_per_epoch = -(-steps // max_steps)
        #: all stretches are equally long; what does not divide is left out of this epoch
        self.steps = steps // self.segments_per_epoch

    @property
    def epoch(self) -> int:
        """Epoch that the present stretch belongs to."""
        return self.segment // self.segments_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Go to a stretch; Lightning calls it with what it takes for the number of the epoch."""
        self.segment = self.first + epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Draw]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.n) if self.weights is None else rng.choice(self.n, self.n, p=self.weights)
        views = rng.integers(0, self.views, self.n)
        order = order if self.sections is None else self._by_section(order, rng)
        start = (self.segment % self.segments_per_epoch) * self.steps
        for step in range(start, start + self.steps):
            own = slice(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world)
            yield Draw(order[own], views[own])

    def _by_section(self, order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The same draws, put together so that batches are of one section."""
        size, sections = self.batch_size, np.asarray(self.sections)[order]
        order = order[np.argsort(sections, kind="stable")]
        full, rest = [], []
        for part in np.split(order, np.cumsum(np.unique(sections, return_counts=True)[1])[:-1]):
            whole = len(part) // size * size
            full.append(part[:whole])
            rest.append(part[whole:])
        left = rng.permutation(np.concatenate(rest))
        batches = np.concatenate([*full, left[: len(left) // size * size]]).reshape(-1, size)
        return np.concatenate([rng.permutation(batches).ravel(), left[len(left) // size * size :]])


class InOrder(Sampler[Draw]):
    """All spots, their first view, in order; of every batch each process takes one stretch.

    Stretches of a batch are equally long, as what processes exchange must be: the last ones repeat its last spot, where
    the batch does not divide. Put together they are the batch in order, and then the repetitions.
    """

    def __init__(self, n: int, batch_size: int, *, rank: int = 0, world: int = 1) -> None:
        self.n, self.batch_size, self.rank, self.world = n, batch_size, rank, world

    def __len__(self) -> int:
        return -(-self.n // self.batch_size)

    def __iter__(self) -> Iterator[Draw]:
        for start in range(0, self.n, self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, self.n))
            share = -(-len(rows) // self.world)
            own = rows.take(np.arange(self.rank * share, (self.rank + 1) * share), mode="clip")
            yield Draw(own, np.zeros(len(own), dtype=int))
