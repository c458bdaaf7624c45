"""The SEAL model: its network, and what can be done with it on disk, in other tools and on the model hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from sealst._evaluation import Evaluation
from sealst._files import absolute
from sealst.models._seal.export import export_adapter, export_timm
from sealst.models._seal.hub import fetch_model, push_model
from sealst.models._seal.net import SealNet
from sealst.models._seal.reliability import Reliability
from sealst.models._seal.rely import reliability_by
from sealst.models._seal.store import read_model, save_model


class SealModel(SealNet):
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
    reliability
        How far predictions can be believed, see `Reliability`; None where that is unknown.
    intervals
        How far single spots of new patients may lie from what is predicted, for ``intervals=`` of `sealst.tl.predict`;
        None where that is unknown.
    novelty
        What training looked like; by it `sealst.tl.embed` says how unlike a section is. None in models from before.
    local
        What predicts the expression of single patches and cells, see `sealst.tl.fit_local`; None where none was fitted.
    """

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
        return save_model(self, absolute(path), include_base=include_base, overwrite=overwrite)

    def rely_on(self, evaluation: Evaluation) -> Reliability:
        """Keep what an evaluation says of this model's genes, for those who predict with it.

        The evaluation either trained models in folds on the sections of this model, with its encoder, adapter and
        crops (``sl.tl.evaluate(sections, recipe)``), or tested this very model on patients that it has not seen
        (``sl.tl.evaluate(sections, model, test=others)``). Of the genes that it scored, what `sealst.tl.predict` writes
        is kept; pass ``genes={"panel": model.panel.genes}`` to score all.

        Parameters
        ----------
        evaluation
            Result of `sealst.tl.evaluate` with the preset ``"cv"``. Of several seeds the first counts. Counts are not
            in it, so ceilings are not known.

        Returns
        -------
        What is now ``model.reliability``, and saved with the model.

        Raises
        ------
        DataError
            When the evaluation is of another model, of other sections, crops, adapters or views, or has no predictions
            of single spots.

        Examples
        --------
        >>> found = sl.tl.evaluate(sections, recipe, genes={"panel": model.panel.genes})  # doctest: +SKIP
        >>> model.rely_on(found)  # doctest: +SKIP
        """
        self.reliability = reliability_by(self, evaluation)
        return self.reliability

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of what `predict` returns: the genes of the panel."""
        return self.panel.genes

    def get_transform(self) -> Callable[[Image.Image | np.ndarray], torch.Tensor]:
        """Transform by which other tools feed images, see `ImageModel`."""
        return self.image_model().transform

    def predict(self, image: torch.Tensor) -> dict[str, np.ndarray]:
        """Expression of images that another tool cuts, in the form that LazySlide's ``tile_prediction`` asks for.

        By the readout that sees the crop alone, as `sealst.tl.predict` does for tiles.

        Parameters
        ----------
        image
            Batch from `get_transform`, float (n, 3, crop_px, crop_px) in [0, 1], on any device. Cut the images at the
            model's own scale: ``model.crop.crop_um`` is the side of one.

        Returns
        -------
        By gene, float32 (n,), log1p-CP10k.

        Raises
        ------
        DataError
            When the images are of another size, or not in [0, 1].

        Examples
        --------
        >>> zs.pp.tile_tissues(wsi, model.crop.crop_px, mpp=model.image_model().mpp)  # doctest: +SKIP
        >>> zs.tl.tile_prediction(wsi, model)  # doctest: +SKIP
        """
        z = self.image_model().encode_image(image).numpy()
        values = self.predict_expression(z, readout=self.crop_readout)
        return {gene: values[:, i] for i, gene in enumerate(self.panel.genes)}

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
            ``.table`` of what `sealst.tl.evaluate` returns, for the card.
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
        return export_timm(self, absolute(path), evaluation=evaluation, overwrite=overwrite)

    def export_adapter(
        self, path: str | Path, *, evaluation: pd.DataFrame | None = None, overwrite: bool = False
    ) -> Path:
        """Write the LoRA layers alone, in peft's format, with the hash of the weights that they belong to.

        Parameters
        ----------
        path
            New folder.
        evaluation
            ``.table`` of what `sealst.tl.evaluate` returns, for the card.
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
        return export_adapter(self, absolute(path), evaluation=evaluation, overwrite=overwrite)

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
        return load(fetch_model(name, revision=revision), encoder=encoder, weights=weights, device=device)


def load(
    path: str | Path,
    *,
    encoder: str | None = None,
    weights: str | Path | None = None,
    device: str | None = None,
) -> SealModel:
    """Load a model that `SealModel.save` wrote.

    Parameters
    ----------
    path
        Model folder.
    encoder
        Where the base weights are now, when they have moved since training: ``"local-dir:<folder>"`` or a timm name.
    weights
        File or folder with the base weights, for an encoder known by name; see `build_encoder`.
    device
        Device; default ``settings.device``.

    Returns
    -------
    The model, in evaluation mode; predictions equal those before saving.

    Raises
    ------
    CheckpointError
        When a file is missing or damaged, a tensor is missing, unexpected or of another shape, or the base weights are
        not those the adapter was trained on.
    WeightsError
        When the base weights cannot be had.

    Examples
    --------
    >>> model = sl.models.load("my_model")  # doctest: +SKIP
    """
    return read_model(absolute(path), SealModel, encoder=encoder, weights=weights, device=device)
