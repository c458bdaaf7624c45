"""What all gene encoders share: their parameters' class, the code they give, and plain layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from sealst._validate import check_fraction, check_positive


class GeneCode(NamedTuple):
    """Code of a batch of expression profiles; of encoders that are not variational, `z` alone."""

    #: code, (B, dim); of a variational encoder after the flows
    z: torch.Tensor
    #: posterior mean and log variance before the flows, (B, dim)
    mu: torch.Tensor | None = None
    logvar: torch.Tensor | None = None
    #: summed log |det| of the flows, (B,)
    log_det: torch.Tensor | None = None


class GeneEncoder(nn.Module, ABC):
    """Autoencoder of expression profiles, standardised per gene of the panel; `decoder` is its way back."""

    decoder: nn.Module

    @abstractmethod
    def forward(self, x: torch.Tensor, *, sample: bool = False) -> GeneCode:
        """Encode profiles (B, genes); deterministic in evaluation mode, unless a variational one is to `sample`."""

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Standardised expression (B, genes) from codes (B, dim)."""
        return self.decoder(z)


@dataclass(frozen=True)
class GeneEncoderParams(ABC):
    """Which gene encoder, and its sizes. Subclasses are frozen dataclasses."""

    #: its name in `sealst.tl.finetune(gene_encoder=...)` and in a model's ``config.json``
    kind: ClassVar[str]
    #: whether codes can be sampled, which the KL term needs
    variational: ClassVar[bool] = False
    #: fields that change a code though no weight shows them
    _hidden_facts: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, (list, tuple)):
                object.__setattr__(self, name, tuple(int(v) for v in value))
                for width in getattr(self, name):
                    check_positive(f"gene_encoder.{name}", width)
            elif name in ("dropout", "mask"):
                check_fraction(f"gene_encoder.{name}", value)

    @abstractmethod
    def build(self, n_genes: int, dim: int) -> GeneEncoder:
        """Network from profiles of `n_genes` to codes of `dim`, and back."""

    @abstractmethod
    def describe(self) -> str:
        """A few words for people."""

    @property
    def mask_share(self) -> float:
        """Share of genes to hide in training, where the user does not say."""
        return 0.0

    def facts(self) -> dict[str, Any]:
        """What changes a code beside the weights themselves."""
        return {"kind": self.kind, **{name: getattr(self, name) for name in self._hidden_facts}}

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {"kind": self.kind, **values}


def layers(widths: Sequence[int], dropout: float, norm: bool) -> list[nn.Module]:
    """Linear layers between widths, each followed by batch normalisation (with `norm`), ReLU and dropout."""
    out: list[nn.Module] = []
    for a, b in zip(widths[:-1], widths[1:], strict=True):
        out.append(nn.Linear(a, b))
        if norm:
            out.append(nn.BatchNorm1d(b))
        out.append(nn.ReLU())
        if dropout:
            out.append(nn.Dropout(dropout))
    return out


def decoder(widths: Sequence[int], n_genes: int, dropout: float) -> nn.Sequential:
    """Network from codes (B, widths[0]) to standardised expression (B, genes)."""
    return nn.Sequential(*layers(widths, dropout, norm=False), nn.Linear(widths[-1], n_genes))


@dataclass(frozen=True)
class GeneMLPParams(GeneEncoderParams):
    """Plain autoencoder: no sampling, no flows."""

    kind: ClassVar[str] = "mlp"
    #: hidden widths of the encoder; the decoder mirrors them
    hidden: tuple[int, ...] = (1024, 512)
    #: dropout in the decoder
    dropout: float = 0.4

    def build(self, n_genes: int, dim: int) -> GeneMLP:
        """The network."""
        return GeneMLP(n_genes, dim, self)

    def describe(self) -> str:
        """Widths."""
        return f"autoencoder ({', '.join(map(str, self.hidden))})"


@dataclass(frozen=True)
class GeneMAEParams(GeneMLPParams):
    """Masked autoencoder (after He et al. 2022): sees which genes are hidden, and learns from the others what they are.

    A second input channel marks hidden genes. A gene counts as hidden where its standardised value is exactly 0: there
    training hides it, or a section does not measure it.
    """

    kind: ClassVar[str] = "mae"
    #: share of genes that training hides, where `params.mask_genes` is not given
    mask: float = 0.3

    def build(self, n_genes: int, dim: int) -> GeneMLP:
        """The network."""
        return GeneMLP(n_genes, dim, self, marks_hidden=True)

    def describe(self) -> str:
        """Widths."""
        return f"masked autoencoder ({', '.join(map(str, self.hidden))})"

    @property
    def mask_share(self) -> float:
        """That of the field `mask`."""
        return self.mask


class GeneMLP(GeneEncoder):
    """Autoencoder with batch normalisation; with `marks_hidden` its input says which genes are 0, that is hidden."""

    def __init__(self, n_genes: int, dim: int, params: GeneMLPParams, *, marks_hidden: bool = False) -> None:
        super().__init__()
        hidden = list(params.hidden)
        widths = [2 * n_genes if marks_hidden else n_genes, *hidden]
        self.marks_hidden = marks_hidden
        self.body = nn.Sequential(*layers(widths, 0.0, norm=True), nn.Linear(widths[-1], dim))
        self.decoder = decoder([dim, *reversed(hidden)], n_genes, params.dropout)

    def forward(self, x: torch.Tensor, *, sample: bool = False) -> GeneCode:
        """Encode profiles (B, genes); there is nothing to sample."""
        return GeneCode(self.body(torch.cat([x, (x == 0).to(x.dtype)], dim=1) if self.marks_hidden else x))
