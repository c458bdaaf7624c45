"""Image encoders: timm vision transformers by name or from a local folder."""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from sealst._core.device import seeded
from sealst._errors import DataError, WeightsError
from sealst._validate import check_choice, listed
from sealst.models._spec import POOLS, EncoderSpec

_LOCAL = "local-dir:"


class Encoder(nn.Module):
    """A vision transformer that turns crops into embeddings, split where cached tokens can enter.

    Parameters
    ----------
    vit
        timm vision transformer without classifier.
    spec
        Its facts.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vit: VisionTransformer, spec: EncoderSpec) -> None:
        super().__init__()
        self.backbone: Any = vit
        self.spec = spec
        #: constructor arguments beyond the architecture's own, for a folder that timm loads
        self.model_args: dict[str, Any] = {}
        self.register_buffer("mean", torch.tensor(spec.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(1, 3, 1, 1), persistent=False)

    @property
    def vit(self) -> Any:
        """The timm module, with LoRA layers in place where an adapter was added."""
        return self.backbone.get_base_model() if hasattr(self.backbone, "get_base_model") else self.backbone

    def trunk(self, images: torch.Tensor, n_blocks: int) -> torch.Tensor:
        """Tokens (B, tokens, width) after the first `n_blocks` blocks, before the final norm.

        Parameters
        ----------
        images
            Crops (B, 3, H, W), float in [0, 1].
        n_blocks
            How many blocks to run, at least 1.
        """
        side = images.shape[-1]
        if side % self.spec.patch_px or images.shape[-2] % self.spec.patch_px:
            raise DataError(
                f"Crops of {side} px do not divide into the encoder's patches of {self.spec.patch_px} px. Pair crops "
                f"again with `crop_px={max(side // self.spec.patch_px, 1) * self.spec.patch_px}`."
            )
        found = self.vit.forward_intermediates(
            (images - self.mean) / self.std,
            indices=[n_blocks - 1],
            return_prefix_tokens=True,
            norm=False,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        # timm gives prefix tokens apart, and none where there are none.
        return found[0] if self.spec.n_prefix == 0 else torch.cat([found[0][1], found[0][0]], dim=1)

    def tail(self, tokens: torch.Tensor, n_blocks: int) -> torch.Tensor:
        """Embeddings (B, dim) from tokens that went through the first `n_blocks` blocks."""
        vit = self.vit
        tokens = vit.norm(vit.blocks[n_blocks:](tokens))
        return torch.cat([vit.fc_norm(part) for part in self._pooled(tokens)], dim=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, dim) of crops (B, 3, H, W), float in [0, 1]."""
        return self.tail(self.trunk(images, self.spec.n_blocks), self.spec.n_blocks)

    def _pooled(self, tokens: torch.Tensor) -> list[torch.Tensor]:
        parts = {"cls": tokens[:, 0], "mean": tokens[:, self.spec.n_prefix :].mean(1)}
        return [parts[name] for name in self.spec.pool.split("+")]


def build_encoder(encoder: str, *, pretrained: bool = True, pool: str = "cls", seed: int = 0) -> Encoder:
    """Build an image encoder with its pretrained weights.

    Parameters
    ----------
    encoder
        Name of a timm vision transformer (``"vit_small_patch16_224"``, ``"hf-hub:owner/name"``), or
        ``"local-dir:<folder>"`` with timm's ``config.json`` and ``model.safetensors``.
    pretrained
        False builds random weights from `seed`; never done silently.
    pool
        ``"cls"``, ``"mean"`` (of the patch tokens) or ``"cls+mean"`` (concatenated, twice as long).
    seed
        Seed of random weights.

    Returns
    -------
    The encoder, in evaluation mode, on the CPU.

    Raises
    ------
    WeightsError
        When the name is unknown, the model is no vision transformer, or weights cannot be had.

    Examples
    --------
    >>> import sealst as sl
    >>> sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False).spec.dim
    192
    """
    check_choice("pool", pool, POOLS)
    _check_name(encoder, pretrained)
    with seeded(seed):
        vit: Any = _create(encoder, pretrained)
    if pool != "mean" and not vit.has_class_token:
        raise DataError(f"{encoder!r} has no class token; use `pool='mean'`.")
    config = timm.data.resolve_model_data_config(vit)
    width = vit.num_features
    spec = EncoderSpec(
        key=encoder,
        arch=str(vit.pretrained_cfg.get("architecture", encoder)),
        pretrained=pretrained,
        pool=pool,
        dim=width * len(pool.split("+")),
        n_blocks=len(vit.blocks),
        n_prefix=vit.num_prefix_tokens,
        patch_px=int(vit.patch_embed.patch_size[0]),
        mean=tuple(float(v) for v in config["mean"]),
        std=tuple(float(v) for v in config["std"]),
        licence=str(vit.pretrained_cfg.get("license") or "unknown"),
        seed=seed,
    )
    built = Encoder(vit, spec).eval()
    built.model_args = _model_args(encoder)
    return built


def _model_args(encoder: str) -> dict[str, Any]:
    if not encoder.startswith(_LOCAL):
        return {}
    config = json.loads((Path(encoder.removeprefix(_LOCAL)) / "config.json").read_text(encoding="utf-8"))
    return dict(config.get("model_args", {}))


def _check_name(encoder: str, pretrained: bool) -> None:
    if encoder.startswith(_LOCAL):
        folder = Path(encoder.removeprefix(_LOCAL))
        needed = ["config.json"] + (["model.safetensors"] if pretrained else [])
        if missing := [name for name in needed if not (folder / name).is_file()]:
            raise WeightsError(
                f"Folder {str(folder)!r} lacks {listed(missing)}. A local encoder is a timm folder: config.json and "
                "model.safetensors."
            )
    elif Path(encoder).is_dir():
        raise WeightsError(f"{encoder!r} is a folder: pass '{_LOCAL}{encoder}'.")
    elif not encoder.startswith("hf-hub:") and not timm.is_model(encoder.split(".")[0]):
        near = difflib.get_close_matches(encoder, timm.list_models("*vit*"), n=4)
        raise WeightsError(
            f"No encoder is named {encoder!r}; near names: {listed(near)}. Pass a timm vision transformer or "
            "'local-dir:<folder>'."
        )


def _create(encoder: str, pretrained: bool) -> VisionTransformer:
    try:
        vit = timm.create_model(encoder, pretrained=pretrained, num_classes=0, dynamic_img_size=True)
    except TypeError as error:
        raise WeightsError(f"{encoder!r} is not a vision transformer that timm can build for any crop size.") from error
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise WeightsError(
            f"Weights of {encoder!r} could not be loaded ({type(error).__name__}: {str(error).splitlines()[0]}). Put "
            "config.json and model.safetensors into a folder and pass 'local-dir:<folder>'; gated weights need access "
            "to be granted on the model's page and a token in HF_TOKEN. `pretrained=False` builds random weights."
        ) from error
    if not isinstance(vit, VisionTransformer):
        raise WeightsError(f"{encoder!r} is a {type(vit).__name__}; a timm VisionTransformer is needed.")
    return vit


def weights_hash(module: nn.Module) -> str:
    """sha256 over names, shapes and values of a module's parameters and buffers (adapters excluded), hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if "lora_" in name:
            continue
        digest.update(json.dumps([name.replace(".base_layer", ""), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()
