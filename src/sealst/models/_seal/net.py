"""The network of a SEAL model: image encoder with adapter, gene autoencoder and expression head; no files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sealst._core.device import autocast, evaluating, to_images
from sealst._core.genes.panel import GenePanel
from sealst._core.search.programs import Programs
from sealst._core.space.geometry import CropSpec
from sealst._errors import DataError, PanelError
from sealst._html import text_as_html
from sealst.models._adapters import Adapter, add_adapter
from sealst.models._encoders.encoder import Encoder, ImageModel, base_name, plain_key
from sealst.models._genes import GeneEncoder, GeneEncoderParams
from sealst.models._intervals import Intervals
from sealst.models._local import LocalHead
from sealst.models._novelty import Novelty
from sealst.models._seal.heads import HeadParams, ProjectionParams, image_head
from sealst.models._seal.readout import FIELDS, HEAD, Readout, check_readout
from sealst.models._seal.reliability import UNKNOWN, Reliability


def own_parts(
    dim: int,
    n_genes: int,
    gene_encoder: GeneEncoderParams,
    head: HeadParams,
    projection: ProjectionParams,
    organs: Sequence[str],
) -> dict[str, nn.Module]:
    """What a model has beside its encoder, by the name that it has there."""
    parts: dict[str, nn.Module] = {
        "gene_encoder": gene_encoder.build(n_genes, dim),
        "image_head": image_head(dim, n_genes, head),
        "image_projection": projection.build(dim),
        "gene_projection": projection.build(dim),
    }
    if organs:
        parts["organ_embedding"] = embedding = nn.Embedding(len(organs), dim)
        nn.init.zeros_(embedding.weight)
    return parts


class SealNet(nn.Module):
    """Image encoder and gene autoencoder in one embedding space, for the genes of a panel; see `SealModel`."""

    panel_mean: torch.Tensor
    panel_std: torch.Tensor
    gene_encoder: GeneEncoder
    image_head: nn.Module
    image_projection: nn.Module
    gene_projection: nn.Module
    organ_embedding: nn.Embedding | None

    def __init__(
        self,
        encoder: Encoder,
        panel: GenePanel,
        *,
        crop: CropSpec,
        adapter: Adapter,
        gene_encoder: GeneEncoderParams,
        head: HeadParams | None = None,
        projection: ProjectionParams | None = None,
        organs: Sequence[str] = (),
        stored: bool = False,
    ) -> None:
        super().__init__()
        # Weights of what is stored come from files next.
        self.encoder = add_adapter(encoder, adapter, stored=stored)
        self.panel, self.crop, self.adapter, self.gene_params = panel, crop, adapter, gene_encoder
        self.head, self.projection = head or HeadParams(), projection or ProjectionParams()
        self.dim = encoder.spec.dim
        #: organs that the gene decoder was told of in training, and a vector for each
        self.organs, self.organ_embedding = tuple(organs), None
        parts = own_parts(self.dim, len(panel), gene_encoder, self.head, self.projection, self.organs)
        for name, part in parts.items():
            setattr(self, name, part)
        #: what predicts expression unless the head is asked for, best first; empty where only the head was trained
        self.fitted = nn.ModuleDict()
        self.register_buffer("panel_mean", torch.tensor(panel.mean), persistent=False)
        self.register_buffer("panel_std", torch.tensor(panel.std), persistent=False)
        self.history = pd.DataFrame()
        self.provenance: dict[str, Any] = {}
        #: how far predictions can be believed; None where nothing is known of it
        self.reliability: Reliability | None = None
        # what training looked like, by which other sections are told from it; None where that was not kept
        self.novelty: Novelty | None = None
        # what predicts the expression of single patches; None where none was fitted
        self.local: LocalHead | None = None
        # how far single spots of new patients may lie from predictions; None where nothing is known of it
        self.intervals: Intervals | None = None
        self.eval()

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return self.panel_mean.device

    @property
    def n_trunk(self) -> int:
        """How many of the encoder's first blocks no adapter touches."""
        return self.adapter.n_trunk(self.encoder.spec.n_blocks) if self.encoder.supports_trunk else 0

    @property
    def shared_dim(self) -> int:
        """Length of what is compared between images and expression."""
        return self.projection.size(self.dim)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any trained weight, the panel, or how crops are fed.

        File names, licences and other facts about the encoder do not count: they may be corrected.
        """
        panel = (self.panel.fingerprint, self.panel.layer, self.panel.target_sum)
        fitted = map(self.readout_of, self.fitted)
        parts = (
            self.adapter.facts(),
            asdict(self.head),
            self.gene_params.facts(),
            asdict(self.projection),
            self.organs,
            *(one.width for one in fitted if one and one.width),
            *([self.fields] if self.fields else []),
        )
        facts = (self.encoder.spec.feeding(), asdict(self.crop), *parts, panel)
        digest = hashlib.sha256(repr(facts).encode())
        for name, tensor in sorted(self.trained_state().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def image_fingerprint(self) -> str:
        """16 hex digits that change with what makes an embedding of a crop: adapter and feeding, but no readout."""
        facts = (self.encoder.spec.feeding(), asdict(self.crop), self.adapter.facts())
        digest = hashlib.sha256(repr(facts).encode())
        for name, tensor in sorted(self.encoder.adapted_state().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def origin(self) -> str:
        """What it was made of (encoder, adapter, crops), as `Evaluation.facts` names it; not what was trained."""
        return f"{base_name(self.encoder)}, {self.adapter.describe(self.encoder.spec.n_blocks)}, {self.crop}"

    def own_state(self) -> dict[str, torch.Tensor]:
        """Gene autoencoder, head, projections and vectors of organs."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.")}

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The adapter and `own_state`: everything training changes."""
        return self.own_state() | {f"encoder.{k}": v for k, v in self.encoder.adapted_state().items()}

    def load_trained(self, state: Mapping[str, torch.Tensor]) -> None:
        """Fill what training changes, in place."""
        own = self.trained_state()
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)

    def rates(self) -> dict[str, float]:
        """Learning rates of parameters relative to that of the run, where they are not 1."""
        return {f"encoder.{k}": v for k, v in self.adapter.rates(self.encoder).items()}

    def standardise(self, x: torch.Tensor) -> torch.Tensor:
        """log1p-CP10k → z-scores of the panel."""
        return (x - self.panel_mean) / self.panel_std

    def unstandardise(self, x: torch.Tensor) -> torch.Tensor:
        """Inverse of `standardise`, clipped at 0, since log1p expression has no negative values."""
        return (x * self.panel_std + self.panel_mean).clamp_min(0)

    @contextmanager
    def frozen_encoder(self) -> Iterator[SealNet]:
        """Inside a ``with`` block, images are embedded by the base encoder, without the adapter."""
        with self.encoder.without_adapter():
            yield self

    def embed_images(self, crops: np.ndarray, *, views: int = 1, batch_size: int | None = None) -> np.ndarray:
        """Embeddings of crops.

        Parameters
        ----------
        crops
            uint8, (n, crop_px, crop_px, 3).
        views
            Over how many flips and rotations of each crop to average, 1 (as it is) to 8.
        batch_size
            Crops per forward pass; default ``settings.batch_size``.

        Returns
        -------
        float32 (n, dim), deterministic.

        Examples
        --------
        >>> z = model.embed_images(crops)  # doctest: +SKIP
        """
        return self.encoder.embed(crops, views=views, batch_size=batch_size)

    def trunk_tokens(self, crops: np.ndarray) -> torch.Tensor:
        """Tokens (n, tokens, width) of crops behind the `n_trunk` blocks that no adapter touches, in one pass."""
        with self.encoder.inference():
            return self.encoder.trunk(to_images(crops, self.device), self.n_trunk)

    def embed_tokens(self, tokens: torch.Tensor) -> np.ndarray:
        """Embeddings, float32 (n, dim), of crops from their `trunk_tokens`."""
        with self.encoder.inference():
            return self.encoder.tail(tokens.to(self.device), self.n_trunk).float().cpu().numpy()

    def embed_both(self, crops: np.ndarray, *, tokens: torch.Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings by the base encoder and by the adapted one; the blocks that they share run once.

        Parameters
        ----------
        crops
            uint8, (n, crop_px, crop_px, 3); all of them are one forward pass.
        tokens
            Their `trunk_tokens`, where these are known.

        Returns
        -------
        Of the base and of the adapted encoder, float32 (n, dim), deterministic.

        Examples
        --------
        >>> frozen, adapted = model.embed_both(crops)  # doctest: +SKIP
        """
        if self.n_trunk:
            embed = partial(self.embed_tokens, self.trunk_tokens(crops) if tokens is None else tokens)
        else:
            embed = partial(self.embed_images, crops, batch_size=len(crops))
        adapted = embed()
        with self.frozen_encoder():
            return embed(), adapted

    def embed_genes(self, x: np.ndarray, *, batch_size: int = 4096) -> np.ndarray:
        """Embeddings of expression profiles; of a variational encoder the posterior mean through the flows.

        Parameters
        ----------
        x
            log1p-CP10k in panel order, (n, genes); see `GenePanel.extract`.

        Returns
        -------
        float32 (n, dim), deterministic.
        """
        x = np.asarray(x, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != len(self.panel):
            raise PanelError(f"Expression must be (n, {len(self.panel)}) in panel order, found {x.shape}.")
        return self._batched(lambda b: self.gene_encoder(self.standardise(b)).z, x, self.dim, batch_size)

    @property
    def readouts(self) -> tuple[str, ...]:
        """Ways to predict expression from an image embedding, the one that is used first."""
        return (*self.fitted, HEAD)

    @property
    def readout(self) -> Readout | None:
        """What predicts unless another is asked for; None where that is the head."""
        return next((self.readout_of(name) for name in self.fitted), None)

    def readout_of(self, name: str | None = None) -> Readout | None:
        """A fitted readout by its name, by default the first; None for the head."""
        name = check_readout(name, self.readouts)
        fitted: Any = None if name == HEAD else self.fitted[name]
        return fitted

    @property
    def crop_readout(self) -> str:
        """The first of `readouts` that sees nothing but a spot's crop."""
        kinds = ((name, self.readout_of(name)) for name in self.readouts)
        return next(name for name, fitted in kinds if fitted is None or fitted.sees_crop_alone)

    @property
    def fields(self) -> tuple[float, ...]:
        """Sides in µm of the fields of view that a readout sees, the crop's first; empty where none sees several."""
        return next((one.fields for one in map(self.readout_of, self.fitted) if one and one.fields), ())

    def fields_of(self, readout: str | None = None) -> tuple[float, ...]:
        """Sides in µm of the fields of view that this readout sees; empty where it sees the crop's alone."""
        return () if (fitted := self.readout_of(readout)) is None else fitted.fields

    def use_readouts(self, fitted: Sequence[Readout]) -> None:
        """Predict by these from now on, the first of them unless another is asked for."""
        self.fitted = nn.ModuleDict({one.kind: one for one in fitted}).to(self.device)

    def target_of(self, readout: str | None = None) -> str:
        """Layer that a readout was fitted to, see `readouts`."""
        fitted = self.readout_of(readout)
        return self.panel.layer if fitted is None else str(fitted.facts["target"])

    def predict_expression(
        self, z: np.ndarray, *, readout: str | None = None, xy: np.ndarray | None = None, batch_size: int = 4096
    ) -> np.ndarray:
        """Expression predicted from image embeddings.

        Parameters
        ----------
        z
            Image embeddings, (n, dim); for a readout that sees several fields of view, ``"fields"``, those of each
            side by side, (n, fields * dim), see `fields`.
        readout
            One of `readouts`; default the first, which was chosen by held-out training sections.
        xy
            Centres of the crops in µm, (n, 2), all of one section; needed by a readout that sees what lies around a
            spot, ``"surroundings"``.

        Returns
        -------
        float32 (n, genes), log1p-CP10k, not negative, in panel order.

        Raises
        ------
        DataError
            When the model has no such readout, or it needs `xy`.
        """
        z, fitted = self._embeddings(z, max(1, len(self.fields_of(readout)))), self.readout_of(readout)
        if fitted is None:
            return self._batched(lambda b: self.unstandardise(self.image_head(b)), z, len(self.panel), batch_size)
        return self._batched(lambda b: fitted(b).clamp_min(0), fitted.inputs(z, xy), len(self.panel), batch_size)

    @property
    def search_readout(self) -> str | None:
        """The first of `readouts` in whose programs expression is compared with images; None where none has any.

        Readouts of several fields of view are left out: embeddings of one field are what is stored of a section.
        """
        return self._searched(crop_alone=False)

    @property
    def crop_search_readout(self) -> str | None:
        """The same of those that see nothing but a spot's crop."""
        return self._searched(crop_alone=True)

    def _searched(self, *, crop_alone: bool) -> str | None:
        fitted = ((name, self.readout_of(name)) for name in self.fitted)
        fits = ((n, one) for n, one in fitted if one and one.facts.get("programs") and not one.fields)
        return next((n for n, one in fits if one.sees_crop_alone or not crop_alone), None)

    def image_programs(self, z: np.ndarray, *, readout: str, xy: np.ndarray | None = None) -> np.ndarray:
        """Coordinates of crops in the programs of a readout, float64 (n, programs), less their mean.

        Parameters
        ----------
        z
            Image embeddings, (n, dim), of one section: what differs between sections is not predicted.
        readout
            One that has programs, see `search_readout`.
        xy
            Centres of the crops in µm, (n, 2); needed by a readout that sees what lies around a spot.
        """
        fitted, programs = self._with_programs(readout)
        # Without all genes of all spots on the way, and without the levels, which the mean takes along.
        into = programs.of_predictions(fitted.weight.T.cpu().double().numpy())
        coordinates = fitted.inputs(self._embeddings(z), xy) @ into
        return np.asarray(coordinates - coordinates.mean(axis=0))

    def programs_of(self, readout: str) -> Programs:
        """Programs of a readout, see `search_readout`."""
        return self._with_programs(readout)[1]

    def _with_programs(self, readout: str) -> tuple[Readout, Programs]:
        fitted = self.readout_of(readout)
        if fitted is None or (programs := fitted.programs) is None:
            raise DataError(f"The readout {readout!r} of this model has no programs; see `search_readout`.")
        return fitted, programs

    def shared_images(self, z: np.ndarray, *, batch_size: int = 4096) -> np.ndarray:
        """Image embeddings in the space in which images and expression are compared, by cosine.

        Parameters
        ----------
        z
            Image embeddings, (n, dim).

        Returns
        -------
        float32 (n, shared_dim); without projection heads `z` itself.

        Examples
        --------
        >>> shared = model.shared_images(model.embed_images(crops))  # doctest: +SKIP
        """
        return self._batched(self.image_projection, self._embeddings(z), self.shared_dim, batch_size)

    def shared_genes(self, z: np.ndarray, *, batch_size: int = 4096) -> np.ndarray:
        """Embeddings of expression in the space in which they are compared with images; see `shared_images`.

        Parameters
        ----------
        z
            Embeddings of expression, (n, dim).

        Returns
        -------
        float32 (n, shared_dim); without projection heads `z` itself.
        """
        return self._batched(self.gene_projection, self._embeddings(z), self.shared_dim, batch_size)

    def image_model(self, *, frozen: bool = False) -> ImageModel:
        """Return the adapted encoder (or with `frozen` the base) as other tools take it; see `ImageModel`."""
        name = f"seal-{plain_key(self.encoder.spec.key)}-{self.fingerprint[:8]}{'-frozen' if frozen else ''}"
        mpp = self.crop.crop_um / self.crop.crop_px
        return ImageModel(self, name=name, crop_px=self.crop.crop_px, mpp=mpp, frozen=frozen)

    def __repr__(self) -> str:
        # Without the fingerprint, for which every trained weight is read.
        spec = self.encoder.spec
        trained = sum(t.numel() for t in self.trained_state().values())
        first, *others = self.readouts
        more = f" (or {', '.join(others)})" if others else ""
        crops = f"{self.crop.crop_um:g} µm at {self.crop.crop_px} px"
        if self.fields:
            crops += f"; {FIELDS!r} sees {', '.join(f'{um:g}' for um in self.fields)} µm"
        return (
            f"SealModel of {self.dim} dimensions\n"
            f"  encoder: {spec.key} ({spec.pool}, {self.dim})\n"
            f"  adapter: {self.adapter.describe(spec.n_blocks)}\n"
            f"  genes:   {self.gene_params.describe()}\n"
            f"  panel:   {len(self.panel)} genes ({', '.join(self.panel.genes[:4])}, …)\n"
            f"  predicts by: {first}{more}\n"
            f"  reliability: {UNKNOWN if self.reliability is None else self.reliability.summary()}\n"
            f"{'' if self.local is None else f'  local:   {self.local.summary()}{chr(10)}'}"
            f"  crops:   {crops}\n"
            f"  trained: {trained / 1e6:.2f} M parameters\n"
            f"  device:  {self.device}"
        )

    def _repr_html_(self) -> str:
        return text_as_html(repr(self))

    def _embeddings(self, z: np.ndarray, n_fields: int = 1) -> np.ndarray:
        z, width = np.asarray(z, dtype=np.float32), n_fields * self.dim
        if z.ndim != 2 or z.shape[1] != width:
            of = f" of {n_fields} fields side by side" if n_fields > 1 else ""
            raise DataError(f"Embeddings{of} must be (n, {width}), found {z.shape}.")
        return z

    def _batched(self, function: Any, data: np.ndarray, width: int, size: int) -> np.ndarray:
        out = np.empty((len(data), width), dtype=np.float32)
        with evaluating(self), torch.inference_mode(), autocast(self.device):
            for start in range(0, len(data), size):
                batch = torch.from_numpy(np.ascontiguousarray(data[start : start + size])).to(self.device)
                out[start : start + size] = function(batch).float().cpu().numpy()
        return out
