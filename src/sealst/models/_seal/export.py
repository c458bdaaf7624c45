"""Adapted encoders as folders that others load: a timm folder with everything merged, or peft's adapter alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models.eva import Eva
from torch import nn

from sealst._core.device import evaluating
from sealst._core.seeds import seeded
from sealst._errors import CheckpointError, DataError
from sealst._files import new_folder, write_json
from sealst._logging import logger, warn
from sealst._version import __version__
from sealst.models._adapters import LoraParams, save_adapter
from sealst.models._encoders.blocks import AttentionPooler
from sealst.models._encoders.encoder import weights_hash
from sealst.models._seal.card import adapter_card, public_name, timm_card

if TYPE_CHECKING:
    import pandas as pd

    from sealst.models._encoders.encoder import Encoder
    from sealst.models._seal.net import SealNet

#: largest difference to our own embeddings, relative to the largest value among them
TOLERANCE = 1e-5
POOLER_FILE = "attention_pooler.safetensors"
#: how timm names our poolings; others are taken from the tokens that it returns
_POOLS = {"cls": "token", "mean": "avg"}


def export_timm(model: SealNet, path: Path, *, evaluation: pd.DataFrame | None, overwrite: bool) -> Path:
    """Write and check a timm folder; see `SealModel.export_timm`."""
    spec = model.encoder.spec
    if spec.derivatives is False:
        warn(
            f"The licence of {spec.key!r} ({spec.licence}) does not allow derivatives to be passed on, and merged "
            "weights are one. Keep this folder to yourself; `model.export_adapter` holds no weights of theirs."
        )
    with seeded(0), new_folder(path, overwrite=overwrite, marker="config.json") as work:
        vit, args, px = model.encoder.merged(), dict(spec.model_args), model.crop.crop_px
        if spec.family == "vit":
            if spec.pool.startswith("attn"):
                pooler = {k: v.contiguous() for k, v in vit.attn_pool.state_dict().items()}
                save_file(pooler, work / POOLER_FILE)
            # Poolers of ours are no part of timm's module.
            vit.attn_pool, vit.global_pool = None, _POOLS.get(spec.pool, "")
            args |= {"dynamic_img_size": True, "global_pool": vit.global_pool}
            normed = "use_fc_norm" if isinstance(vit, Eva) else "fc_norm"
            args |= {normed: not isinstance(vit.fc_norm, nn.Identity)}
        # timm writes down what its module says about itself.
        vit.pretrained_cfg = dict(vit.pretrained_cfg) | {
            "architecture": spec.arch,
            "num_classes": 0,
            "input_size": [3, px, px],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": 1.0,
            "license": spec.licence,
        }
        timm.models.save_for_hf(vit, str(work), model_args=args, safe_serialization=True)
        difference = _difference(model, work)
        if not difference <= TOLERANCE:
            raise CheckpointError(
                f"timm's own {spec.arch!r} gives other embeddings than the model (relative difference {difference:.1e}"
                f", at most {TOLERANCE:.0e} is allowed), so nothing was written. Export the adapter instead: "
                "`model.export_adapter`."
            )
        card = timm_card(model, difference=difference, evaluation=evaluation)
        (work / "README.md").write_text(card, encoding="utf-8")
    logger.info("timm folder: %s (relative difference to the model %.1e)", path, difference)
    return path


def _difference(model: SealNet, folder: Path) -> float:
    """Relative difference between the folder, loaded by timm, and the model, on random crops on the CPU."""
    encoder, device, px = model.encoder, model.device, model.crop.crop_px
    images = torch.rand(2, 3, px, px, generator=torch.Generator().manual_seed(0))
    try:
        model.cpu()
        with evaluating(model), torch.inference_mode():
            expected = encoder(images)
            loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            found = _pooled(encoder, loaded((images - encoder.mean) / encoder.std), folder)
    finally:
        model.to(device)
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max())


def _pooled(encoder: Encoder, out: torch.Tensor, folder: Path) -> torch.Tensor:
    spec = encoder.spec
    if out.ndim == 2:
        return out
    if spec.pool.startswith("attn"):
        pooler = AttentionPooler(spec.width, **spec.pooler_args)
        pooler.load_state_dict(load_file(folder / POOLER_FILE))
        pooled = pooler(out)
        return pooler.project(pooled) if spec.pool == "attn-proj" else pooled
    parts = {"cls": out[:, 0], "mean": out[:, spec.n_prefix :].mean(1)}
    return torch.cat([parts[name] for name in spec.pool.split("+")], dim=1)


def export_adapter(model: SealNet, path: Path, *, evaluation: pd.DataFrame | None, overwrite: bool) -> Path:
    """Write the adapter alone, in peft's format; see `SealModel.export_adapter`."""
    encoder, spec = model.encoder, model.encoder.spec
    if not isinstance(model.adapter, LoraParams):
        raise DataError(
            f"The adapter of this model is {model.adapter.kind!r}, which peft does not know; only LoRA is exported "
            "alone. Save the whole model with `model.save`."
        )
    with new_folder(path, overwrite=overwrite, marker="adapter_config.json") as work:
        save_adapter(encoder, work)
        config = json.loads((work / "adapter_config.json").read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = spec.hf_id or public_name(spec)
        write_json(work / "adapter_config.json", config)
        base = {"sealst": __version__, "sha256": weights_hash(encoder.base_state()), "fingerprint": model.fingerprint}
        write_json(work / "base.json", base | {"encoder": spec.to_dict() | {"key": public_name(spec)}})
        (work / "README.md").write_text(adapter_card(model, evaluation=evaluation), encoding="utf-8")
    return path
