"""How the tiles of a slide become one prediction; a new way is one class and one line of `AGGREGATORS`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import pandas as pd
import torch
from torch import nn

from sealst._validate import check_choice, need

_WHAT = "This aggregator"


class Pooled(NamedTuple):
    """What an aggregator makes of one slide."""

    #: (streams, n_out); each stream is trained on the label, their mean is the prediction
    streams: torch.Tensor
    #: weight of every tile (n_tiles,), not negative, sums to 1
    attention: torch.Tensor
    #: further loss of this slide, given its label
    extra: torch.Tensor | None = None


class Aggregator(nn.Module):
    """Base: tiles (n, dim) to `Pooled`.

    Parameters
    ----------
    dim
        Length of an embedding.
    n_out
        Number of outputs: classes, or 1.
    hidden
        Width that embeddings are brought to first.
    attention
        Width of the attention.
    dropout
        Share of units that is set to zero in training.
    """

    #: whether the result depends on the order of tiles, which is then that of rows of the slide
    ordered: ClassVar[bool] = False
    #: module of the extra "slide" that it is made of
    needs: ClassVar[str] = ""

    def __init__(self, dim: int, n_out: int, *, hidden: int, attention: int, dropout: float) -> None:
        super().__init__()
        self.dim, self.n_out, self.hidden, self.width = dim, n_out, hidden, attention
        self.dropout = dropout

    @classmethod
    def library(cls) -> Any:
        """The module that it is made of, or what to install; None where it is all ours."""
        return need(cls.needs, extra="slide", what=_WHAT) if cls.needs else None

    def projection(self) -> nn.Module:
        """First layer of every network."""
        return nn.Sequential(nn.Linear(self.dim, self.hidden), nn.ReLU(), nn.Dropout(self.dropout))

    def forward(self, tiles: torch.Tensor, label: int | None = None) -> Pooled:
        """Pool the tiles of one slide; `label` is its class while a classifier is trained."""
        raise NotImplementedError


class MeanPool(Aggregator):
    """Mean of all tiles, each with the same weight."""

    def __init__(self, dim: int, n_out: int, **options: Any) -> None:
        super().__init__(dim, n_out, **options)
        self.net = self.projection()
        self.classifier = nn.Linear(self.hidden, n_out)

    def forward(self, tiles: torch.Tensor, label: int | None = None) -> Pooled:
        out = self.classifier(self.net(tiles).mean(dim=0, keepdim=True))
        return Pooled(out, tiles.new_full((len(tiles),), 1 / len(tiles)))


class Abmil(Aggregator):
    """Gated attention (Ilse et al. 2018), torchmil's."""

    needs = "torchmil.models"

    def __init__(self, dim: int, n_out: int, **options: Any) -> None:
        super().__init__(dim, n_out, **options)
        models = self.library()
        self.net = models.ABMIL((dim,), att_dim=self.width, gated=True, feat_ext=self.projection())
        self.net.classifier = nn.Linear(self.hidden, n_out)

    def forward(self, tiles: torch.Tensor, label: int | None = None) -> Pooled:
        out, scores = self.net(tiles[None], return_att=True)
        return Pooled(out.reshape(1, self.n_out), scores[0].softmax(dim=0))


class Clam(Aggregator):
    """Attention with clustering of the most and least attended tiles (CLAM; Lu et al. 2021), torchmil's.

    Clustering needs classes; for numbers and survival this is plain gated attention.
    """

    needs = "torchmil.models"
    #: weight of the clustering loss, as published
    _WEIGHT = 0.3
    #: tiles per cluster, as published
    _TILES = 8

    def __init__(self, dim: int, n_out: int, **options: Any) -> None:
        super().__init__(dim, n_out, **options)
        models = self.library()
        self.net = models.CLAM_SB(
            (dim,), att_dim=self.width, gated=True, k_sample=self._TILES, feat_ext=self.projection()
        )
        self.net.classifier = nn.Linear(self.hidden, n_out)
        self.net.inst_classifiers = nn.ModuleList(nn.Linear(self.hidden, 2) for _ in range(n_out if n_out > 1 else 0))
        # torchmil's default loss is for one output; this is the cross-entropy of its two.
        self.net.inst_loss_fn = _TwoClassLoss()

    def forward(self, tiles: torch.Tensor, label: int | None = None) -> Pooled:
        out, scores, inner = self.net(tiles[None], return_att=True, return_emb=True)
        extra = None
        if label is not None and self.n_out > 1:
            own = self.net.inst_eval(scores[0], inner[0], self.net.inst_classifiers[label])[0]
            others = [
                self.net.inst_eval_out(scores[0], inner[0], classifier)[0]
                for i, classifier in enumerate(self.net.inst_classifiers)
                if i != label
            ]
            extra = self._WEIGHT * (own + sum(others))
        return Pooled(out.reshape(1, self.n_out), scores[0].softmax(dim=0), extra)


class _TwoClassLoss(nn.Module):
    """Cross-entropy of two outputs (n, 2), with targets (n, 1) as torchmil hands them."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits, target.reshape(-1).long())


class Dsmil(Aggregator):
    """The most telling tile, and attention by likeness to it (DSMIL; Li et al. 2021), torchmil's."""

    needs = "torchmil.models"

    def __init__(self, dim: int, n_out: int, **options: Any) -> None:
        super().__init__(dim, n_out, **options)
        models = self.library()
        self.net = models.DSMIL((dim,), att_dim=self.width, dropout=self.dropout, feat_ext=self.projection())
        self.net.inst_classifier = nn.Linear(self.hidden, n_out)
        self.net.bag_classifier = _JointHead(self.hidden, n_out)

    def forward(self, tiles: torch.Tensor, label: int | None = None) -> Pooled:
        bag, weights, each = self.net(tiles[None], return_att=True, return_inst_pred=True)
        highest = each.reshape(len(tiles), self.n_out).max(dim=0).values
        # (n, outputs): every output has a map of its own, each sums to 1.
        attention = weights.reshape(len(tiles), self.n_out).mean(dim=1)
        return Pooled(torch.stack([bag.reshape(self.n_out), highest]), attention)


class _JointHead(nn.Module):
    """Outputs from the pooled tiles of all outputs, (1, n_out, hidden) to (1, n_out, 1)."""

    def __init__(self, hidden: int, n_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden * n_out, n_out)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.linear(pooled.flatten(1)).unsqueeze(-1)


class TransMil(Aggregator):
    """Nyström transformer over tiles in the order of the slide (TransMIL; Shao et al. 2021), torchmil's.

    Its attention is that of the class token in the last layer, averaged over heads; the approximation can make it
    negative, which counts as 0.
    """

    needs = "torchmil.models"
    ordered = True
    _HEADS = 4
    _LANDMARKS = 32

    def __init__(self, dim: int, n_out: int, **options: Any) -> None:
        super().__init__(dim, n_out, **options)
        models = self.library()
        width = -(-self.hidden // self._HEADS) * self._HEADS
        self.net = models.TransMIL(
            (dim,), att_dim=width, n_heads=self._HEADS, n_landmarks=self._LANDMARKS, dropout=self.dropout,
            feat_ext=self.projection(),
        )  # fmt: skip
        self.net.classifier = nn.Linear(width, n_out)

    def forward(self, tiles: torch.Tensor, label: int | None = None) -> Pooled:
        out, scores = self.net(tiles[None], return_att=True)
        positive = scores[0].clamp(min=0)
        total = positive.sum()
        even = torch.full_like(positive, 1 / len(tiles))
        attention = torch.where(total > 0, positive / total.clamp(min=torch.finfo(total.dtype).tiny), even)
        return Pooled(out.reshape(1, self.n_out), attention)


#: every value that `tl.fit_slide(aggregator=)` takes
AGGREGATORS: Mapping[str, type[Aggregator]] = MappingProxyType(
    {"abmil": Abmil, "mean": MeanPool, "transmil": TransMil, "clam": Clam, "dsmil": Dsmil}
)


def list_aggregators() -> pd.DataFrame:
    """Ways to make one prediction of the tiles of a slide, as `sealst.tl.fit_slide` takes them.

    Returns
    -------
    Table, one row per name (the index): ``about``, and ``ordered`` (whether the result depends on where tiles lie).

    Examples
    --------
    >>> import sealst as sl
    >>> bool(sl.models.list_aggregators().loc["transmil", "ordered"])
    True
    """
    rows = {name: {"about": (c.__doc__ or "").splitlines()[0], "ordered": c.ordered} for name, c in AGGREGATORS.items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("aggregator")


def check_aggregator(name: str) -> None:
    """Refuse a name that no aggregator has, and one whose library is not installed."""
    check_choice("aggregator", name, list(AGGREGATORS))
    AGGREGATORS[name].library()


def build_aggregator(name: str, dim: int, n_out: int, **options: Any) -> Aggregator:
    """Aggregator by its name in `AGGREGATORS`."""
    check_choice("aggregator", name, sorted(AGGREGATORS))
    return AGGREGATORS[name](dim, n_out, **options)
