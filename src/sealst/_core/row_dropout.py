"""Dropout that does not depend on how a batch is cut into chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from sealst._core.seeds import mixed_seed

#: rows of a batch whose masks are drawn together
_ROWS = 16


class RowDropout(nn.Dropout):
    """Dropout whose mask follows from a seed, the layer and the number of the row in its batch.

    Whoever knows the batch says so (`numbered_rows`). Without that it is plain dropout.
    """

    #: seed of the layer in this pass, and number of the first row
    draw: tuple[int, int] | None = None

    # Seeds are no part of a graph: a compiler would make a new one at every step.
    @torch.compiler.disable
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Values of rows (b, ...), some of them set to 0 and the others scaled up, in training mode."""
        if not self.training or not self.p or self.draw is None:
            return F.dropout(x, self.p, self.training)
        seed, first = self.draw
        generator, drawn, end = torch.Generator(x.device), [], first + len(x)
        for start in range(first // _ROWS * _ROWS, end, _ROWS):
            generator.manual_seed(mixed_seed(seed, start))
            # One byte a value is kept for the way back.
            mask = torch.empty((_ROWS, *x.shape[1:]), dtype=torch.bool, device=x.device)
            mask.bernoulli_(1 - self.p, generator=generator)
            drawn.append(mask[max(first - start, 0) : end - start])
        # Where all is dropped, nothing is to be scaled.
        return x * torch.cat(drawn) * (1 / max(1 - self.p, 1e-9))


def row_dropouts(module: nn.Module) -> list[RowDropout]:
    """Put `RowDropout` in the place of every layer of a module that drops anything; returns them in order."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Dropout and child.p:
                own: Any = RowDropout(child.p, child.inplace)
                parent.register_module(name, own.train(child.training))
    return [child for child in module.modules() if isinstance(child, RowDropout)]


@contextmanager
def numbered_rows(layers: list[RowDropout], seed: int, first: int) -> Iterator[None]:
    """Inside a ``with`` block, the rows that pass are those of a batch (by its seed) from number `first` on."""
    for number, layer in enumerate(layers):
        layer.draw = mixed_seed(seed, number), first
    try:
        yield
    finally:
        for layer in layers:
            layer.draw = None
