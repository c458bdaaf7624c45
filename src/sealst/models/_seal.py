"""The SEAL model: image encoder with adapter, gene autoencoder, expression head and the gene panel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from sealst._core.device import autocast
from sealst._core.panel import GenePanel
from sealst._errors import DataError, PanelError
from sealst._settings import settings
from sealst.models._adapter import LoraParams, add_lora
from sealst.models._encoder import Encoder
from sealst.models._gene_vae import GeneVAE, GeneVAEParams
from sealst.models._image_model import ImageModel, plain_key


@dataclass(frozen=True)
class CropSpec:
    """The crops a model was trained on."""

    #: side in µm
    crop_um: float
    #: side in pixels
    crop_px: int


class SealModel(nn.Module):
    """Image encoder and gene autoencoder in one embedding space (SEAL; Hemker et al. 2026, arXiv 2602.14177).

    Made by `sealst.tl.finetune` or `sealst.models.load`. Networks work on expression standardised per gene with the
    panel's mean and standard deviation; the public methods take and return log1p-CP10k.

    Attributes
    ----------
    panel
        Genes in the order of every expression matrix.
    dim
        Length of an embedding; the base encoder's.
    crop
        Crop size in µm and pixels.
    history
        Training log, one row per epoch.
    """

    panel_mean: torch.Tensor
    panel_std: torch.Tensor

    def __init__(
        self,
        encoder: Encoder,
        panel: GenePanel,
        *,
        crop: CropSpec,
        lora: LoraParams,
        gene_vae: GeneVAEParams,
        head_hidden: int = 512,
    ) -> None:
        super().__init__()
        self.encoder = add_lora(encoder, lora)
        self.panel, self.crop, self.lora, self.gene_vae_params = panel, crop, lora, gene_vae
        self.head_hidden = head_hidden
        self.dim = encoder.spec.dim
        self.gene_vae = GeneVAE(len(panel), self.dim, gene_vae)
        self.image_head = nn.Sequential(
            nn.LayerNorm(self.dim), nn.Linear(self.dim, head_hidden), nn.ReLU(), nn.Linear(head_hidden, len(panel))
        )
        self.register_buffer("panel_mean", torch.tensor(panel.mean), persistent=False)
        self.register_buffer("panel_std", torch.tensor(panel.std), persistent=False)
        self.history = pd.DataFrame()
        self.provenance: dict[str, Any] = {}
        self.eval()

    @property
    def device(self) -> torch.device:
        """Device of the model's parameters."""
        return self.panel_mean.device

    @property
    def n_trunk(self) -> int:
        """How many of the encoder's first blocks no adapter touches."""
        return self.encoder.spec.n_blocks - self.lora.n_blocks if self.encoder.supports_trunk else 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any trained weight, the panel, or how crops are fed.

        File names, licences and other facts about the encoder do not count: they may be corrected.
        """
        return self.digest(self.encoder.spec.feeding())

    def digest(self, spec: dict[str, Any]) -> str:
        """Fingerprint with these facts of the encoder in it."""
        panel = (self.panel.fingerprint, self.panel.layer, self.panel.target_sum)
        facts = (spec, asdict(self.crop), self.lora.r, float(self.lora.alpha), self.lora.n_blocks, panel)
        digest = hashlib.sha256(repr(facts).encode())
        for name, tensor in sorted(self.trained_state().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Adapter, gene autoencoder and head: everything training changes."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.") or "lora_" in k}

    def standardise(self, x: torch.Tensor) -> torch.Tensor:
        """log1p-CP10k → z-scores of the panel."""
        return (x - self.panel_mean) / self.panel_std

    def unstandardise(self, x: torch.Tensor) -> torch.Tensor:
        """Inverse of `standardise`, clipped at 0, since log1p expression has no negative values."""
        return (x * self.panel_std + self.panel_mean).clamp_min(0)

    @contextmanager
    def frozen_encoder(self) -> Iterator[SealModel]:
        """Inside a ``with`` block, images are embedded by the base encoder, without the adapter."""
        with self.encoder.backbone.disable_adapter():
            yield self

    def embed_images(self, crops: np.ndarray, *, batch_size: int | None = None) -> np.ndarray:
        """Embeddings of crops.

        Parameters
        ----------
        crops
            uint8, (n, crop_px, crop_px, 3).
        batch_size
            Crops per forward pass; default ``settings.batch_size``.

        Returns
        -------
        float32 (n, dim), deterministic.

        Examples
        --------
        >>> z = model.embed_images(crops)  # doctest: +SKIP
        """
        crops = np.asarray(crops)
        if crops.ndim != 4 or crops.shape[3] != 3 or crops.dtype != np.uint8:
            raise DataError(f"Crops must be uint8 (n, height, width, 3), found {crops.dtype} {crops.shape}.")
        return self._batched(self._embed_batch, crops, self.dim, batch_size)

    def embed_genes(self, x: np.ndarray, *, batch_size: int = 4096) -> np.ndarray:
        """Embeddings of expression profiles: the posterior mean through the flows.

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
        return self._batched(lambda b: self.gene_vae(self.standardise(b)).z, x, self.dim, batch_size)

    def predict_expression(self, z: np.ndarray, *, batch_size: int = 4096) -> np.ndarray:
        """Expression predicted from image embeddings.

        Parameters
        ----------
        z
            Image embeddings, (n, dim).

        Returns
        -------
        float32 (n, genes), log1p-CP10k, not negative, in panel order.
        """
        z = np.asarray(z, dtype=np.float32)
        if z.ndim != 2 or z.shape[1] != self.dim:
            raise DataError(f"Embeddings must be (n, {self.dim}), found {z.shape}.")
        return self._batched(lambda b: self.unstandardise(self.image_head(b)), z, len(self.panel), batch_size)

    def image_model(self, *, frozen: bool = False) -> ImageModel:
        """Return the adapted encoder (or with `frozen` the base) as other tools take it; see `ImageModel`."""
        name = f"seal-{plain_key(self.encoder.spec.key)}-{self.fingerprint[:8]}{'-frozen' if frozen else ''}"
        mpp = self.crop.crop_um / self.crop.crop_px
        return ImageModel(self, name=name, crop_px=self.crop.crop_px, mpp=mpp, frozen=frozen)

    def save(self, path: str | Path, *, include_base: bool = False, overwrite: bool = False) -> Path:
        """Write the model to a folder, atomically.

        Parameters
        ----------
        path
            New folder.
        include_base
            Whether to store the base encoder's weights too (mind their licence). Random base weights always are.
        overwrite
            Whether to replace an existing model folder.

        Returns
        -------
        The folder.
        """
        from sealst.models._store import save_model

        return save_model(self, Path(path), include_base=include_base, overwrite=overwrite)

    def __repr__(self) -> str:
        spec = self.encoder.spec
        trained = sum(t.numel() for t in self.trained_state().values())
        return (
            f"SealModel {self.fingerprint}\n"
            f"  encoder: {spec.key} ({spec.pool}, {self.dim}), LoRA r={self.lora.r} on the last "
            f"{self.lora.n_blocks} of {spec.n_blocks} blocks\n"
            f"  panel:   {len(self.panel)} genes ({', '.join(self.panel.genes[:4])}, …)\n"
            f"  crops:   {self.crop.crop_um:g} µm at {self.crop.crop_px} px\n"
            f"  trained: {trained / 1e6:.2f} M parameters"
        )

    def _embed_batch(self, crops: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.encoder.spec.precision):
            return self.encoder(crops.permute(0, 3, 1, 2).float() / 255)

    def _batched(self, function: Any, data: np.ndarray, width: int, batch_size: int | None) -> np.ndarray:
        if self.training:
            self.eval()
        size = batch_size or settings.batch_size
        out = np.empty((len(data), width), dtype=np.float32)
        with torch.inference_mode(), autocast(self.device):
            for start in range(0, len(data), size):
                batch = torch.from_numpy(np.ascontiguousarray(data[start : start + size])).to(self.device)
                out[start : start + size] = function(batch).float().cpu().numpy()
        return out
