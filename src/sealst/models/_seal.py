"""The SEAL model: image encoder with adapter, gene autoencoder, expression head and the gene panel."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
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
from sealst.models._adapter import Adapter, add_adapter
from sealst.models._encoder import Encoder, evaluating
from sealst.models._gene_vae import GeneVAE, GeneVAEParams
from sealst.models._head import HeadParams, image_head
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
        adapter: Adapter,
        gene_vae: GeneVAEParams,
        head: HeadParams | None = None,
    ) -> None:
        super().__init__()
        self.encoder = add_adapter(encoder, adapter)
        self.panel, self.crop, self.adapter, self.gene_vae_params = panel, crop, adapter, gene_vae
        self.head = head or HeadParams()
        self.dim = encoder.spec.dim
        self.gene_vae = GeneVAE(len(panel), self.dim, gene_vae)
        self.image_head = image_head(self.dim, len(panel), self.head)
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
        return self.adapter.n_trunk(self.encoder.spec.n_blocks) if self.encoder.supports_trunk else 0

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with any trained weight, the panel, or how crops are fed.

        File names, licences and other facts about the encoder do not count: they may be corrected.
        """
        panel = (self.panel.fingerprint, self.panel.layer, self.panel.target_sum)
        parts = (self.adapter.facts(), asdict(self.head), self.gene_vae_params.facts())
        facts = (self.encoder.spec.feeding(), asdict(self.crop), *parts, panel)
        digest = hashlib.sha256(repr(facts).encode())
        for name, tensor in sorted(self.trained_state().items()):
            digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def own_state(self) -> dict[str, torch.Tensor]:
        """Gene autoencoder and head."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.")}

    def trained_state(self) -> dict[str, torch.Tensor]:
        """Adapter, gene autoencoder and head: everything training changes."""
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
    def frozen_encoder(self) -> Iterator[SealModel]:
        """Inside a ``with`` block, images are embedded by the base encoder, without the adapter."""
        with self.encoder.without_adapter():
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

    def export_timm(self, path: str | Path, *, evaluation: pd.DataFrame | None = None, overwrite: bool = False) -> Path:
        """Write the image encoder as a plain timm folder, with the adapter merged into its weights.

        ``timm.create_model("local-dir:<folder>", pretrained=True)`` loads it with nothing of ours installed, and it
        takes the place of the encoder it came from. Where timm knows no such pooling (``"cls+mean"``, attention), it
        returns all tokens, and the folder's card has the lines that pool them. What was written is loaded again and
        compared; embeddings agree to 1e-5 of the largest value, or there is no folder.

        Parameters
        ----------
        path
            New folder.
        evaluation
            Table from `sealst.tl.evaluate`, for the card.
        overwrite
            Whether to replace an earlier export.

        Returns
        -------
        The folder: ``config.json``, ``model.safetensors``, ``README.md``.

        Raises
        ------
        CheckpointError
            When the folder exists, or timm's own architecture gives other embeddings.
        DataError
            When the adapter cannot be merged.

        Warns
        -----
        When the licence of the base encoder does not allow merged weights to be passed on.

        Examples
        --------
        >>> model.export_timm("my_encoder")  # doctest: +SKIP
        """
        from sealst.models._export import export_timm

        return export_timm(self, Path(path), evaluation=evaluation, overwrite=overwrite)

    def export_adapter(
        self, path: str | Path, *, evaluation: pd.DataFrame | None = None, overwrite: bool = False
    ) -> Path:
        """Write the LoRA layers alone, in peft's format, with the hash of the weights that they belong to.

        Parameters
        ----------
        path
            New folder.
        evaluation
            Table from `sealst.tl.evaluate`, for the card.
        overwrite
            Whether to replace an earlier export.

        Returns
        -------
        The folder: ``adapter_config.json``, ``adapter_model.safetensors``, ``base.json``, ``README.md``.

        Raises
        ------
        CheckpointError
            When the folder exists.
        DataError
            When the adapter is not LoRA.

        Examples
        --------
        >>> model.export_adapter("my_adapter")  # doctest: +SKIP
        """
        from sealst.models._export import export_adapter

        return export_adapter(self, Path(path), evaluation=evaluation, overwrite=overwrite)

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, revision: str | None = None, message: str | None = None
    ) -> str:
        """Commit the model to a repository of the model hub, with the token in the environment variable ``HF_TOKEN``.

        What is pushed is the folder that `save` writes, without the base encoder's weights (random ones are always
        stored). An earlier model in the repository is replaced, other files in it are removed; its history keeps both.

        Parameters
        ----------
        repo_id
            ``"owner/name"``; made when it does not exist.
        private
            Whether a new repository is private. An existing one that is public needs ``private=False``.
        revision
            Branch; made when it does not exist. Default: the main branch.
        message
            Title of the commit; default: the model's fingerprint.

        Returns
        -------
        Hash of the commit, to be passed to `from_pretrained` as `revision`.

        Raises
        ------
        DataError
            When `repo_id` is not ``"owner/name"``.
        CheckpointError
            When there is no token, the hub refuses it or cannot be reached, or the repository is public (with
            ``private=True``) or holds something else than a model.

        Examples
        --------
        >>> commit = model.push_to_hub("my-lab/seal-breast")  # doctest: +SKIP
        """
        from sealst.models._hub import push_model

        return push_model(self, repo_id, private=private, revision=revision, message=message)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        encoder: str | None = None,
        weights: str | Path | None = None,
        device: str | None = None,
    ) -> SealModel:
        """Load a model from a folder or from the model hub.

        Parameters
        ----------
        name
            Model folder, or ``"owner/name"`` on the hub. A folder of that name comes first; ``"hf-hub:owner/name"``
            always means the hub. Private models need a token in the environment variable ``HF_TOKEN``.
        revision
            Branch, tag or full commit hash on the hub. A hash that is in the cache on disk needs no network.
        encoder, weights, device
            As for `sealst.models.load`.

        Returns
        -------
        The model, in evaluation mode. When the hub cannot be reached, the copy in the cache is loaded, and a warning in
        the log says which commit that is.

        Raises
        ------
        CheckpointError
            When the model cannot be fetched, or for the reasons that `sealst.models.load` has.
        WeightsError
            When the base weights cannot be had.

        Examples
        --------
        >>> model = sl.models.SealModel.from_pretrained("my-lab/seal-breast")  # doctest: +SKIP
        """
        from sealst.models._hub import fetch_model
        from sealst.models._store import load

        return load(fetch_model(name, revision=revision), encoder=encoder, weights=weights, device=device)

    def __repr__(self) -> str:
        spec = self.encoder.spec
        trained = sum(t.numel() for t in self.trained_state().values())
        return (
            f"SealModel {self.fingerprint}\n"
            f"  encoder: {spec.key} ({spec.pool}, {self.dim})\n"
            f"  adapter: {self.adapter.describe(spec.n_blocks)}\n"
            f"  panel:   {len(self.panel)} genes ({', '.join(self.panel.genes[:4])}, …)\n"
            f"  crops:   {self.crop.crop_um:g} µm at {self.crop.crop_px} px\n"
            f"  trained: {trained / 1e6:.2f} M parameters"
        )

    def _embed_batch(self, crops: torch.Tensor) -> torch.Tensor:
        with autocast(self.device, self.encoder.spec.precision):
            return self.encoder(crops.permute(0, 3, 1, 2).float() / 255)

    def _batched(self, function: Any, data: np.ndarray, width: int, batch_size: int | None) -> np.ndarray:
        size = batch_size or settings.batch_size
        out = np.empty((len(data), width), dtype=np.float32)
        with evaluating(self), torch.inference_mode(), autocast(self.device):
            for start in range(0, len(data), size):
                batch = torch.from_numpy(np.ascontiguousarray(data[start : start + size])).to(self.device)
                out[start : start + size] = function(batch).float().cpu().numpy()
        return out
