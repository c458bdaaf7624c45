"""One fitted network of a slide model: standardises embeddings, pools them, and returns predictions in their unit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from sealst.models._slides.aggregators import Aggregator, Pooled, build_aggregator


class SlideOutput(NamedTuple):
    """Prediction of one slide."""

    #: probabilities (n_classes,), or one number: the prediction in its unit, or the log risk
    value: np.ndarray
    #: weight of every tile (n_tiles,), sums to 1
    attention: np.ndarray


class SlideNet(nn.Module):
    """Aggregator with the moments of its training slides.

    Parameters
    ----------
    aggregator
        Name in `AGGREGATORS`.
    dim, n_out
        Length of an embedding, and number of outputs.
    hidden, attention, dropout
        See `Aggregator`.
    """

    centre: torch.Tensor
    scale: torch.Tensor
    out_centre: torch.Tensor
    out_scale: torch.Tensor

    def __init__(self, aggregator: str, dim: int, n_out: int, *, hidden: int, attention: int, dropout: float) -> None:
        super().__init__()
        self.pool: Aggregator = build_aggregator(
            aggregator, dim, n_out, hidden=hidden, attention=attention, dropout=dropout
        )
        self.dim, self.n_out = dim, n_out
        self.register_buffer("centre", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.register_buffer("out_centre", torch.zeros(()))
        self.register_buffer("out_scale", torch.ones(()))

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.centre.device

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Everything that fitting changes."""
        return self.state_dict()

    def forward(self, tiles: torch.Tensor, label: int | None = None) -> Pooled:
        """Pool the tiles (n, dim) of one slide; outputs are logits, standardised numbers or log risks."""
        return self.pool((tiles - self.centre) / self.scale, label)

    def predict(self, features: np.ndarray, xy: np.ndarray | None) -> SlideOutput:
        """Prediction and attention of one slide, all of its tiles at once, deterministic.

        Parameters
        ----------
        features
            Embeddings (n, dim).
        xy
            Centres (n, 2), for aggregators that look at the order of tiles; None takes the order as it is.
        """
        order = slide_order(xy, len(features), ordered=self.pool.ordered)
        tiles = torch.as_tensor(np.asarray(features, dtype=np.float32)[order], device=self.device)
        self.eval()
        with torch.inference_mode():
            pooled = self(tiles)
        logits = pooled.streams.float().mean(dim=0)
        if self.n_out > 1:
            value = logits.softmax(dim=0).cpu().numpy().astype(np.float64)
        else:
            value = (logits * self.out_scale + self.out_centre).cpu().numpy().astype(np.float64)
        attention = np.empty(len(features))
        attention[order] = pooled.attention.double().cpu().numpy()
        return SlideOutput(value, attention / attention.sum())


def slide_order(xy: np.ndarray | None, n: int, *, ordered: bool) -> np.ndarray:
    """Rows of tiles from top to bottom and left to right where order matters, as they are otherwise."""
    return np.lexsort((xy[:, 0], xy[:, 1])) if ordered and xy is not None else np.arange(n)
