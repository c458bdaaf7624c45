from __future__ import annotations

import numpy as np
import pytest

import sealst as sl
from sealst.models import CropSpec, GeneVAEParams, LoraParams, SealModel, build_encoder

ENCODER = "vit_tiny_patch16_224"
PX = 32


@pytest.fixture
def panel() -> sl.GenePanel:
    rng = np.random.default_rng(0)
    return sl.GenePanel(tuple(f"G{i}" for i in range(20)), rng.uniform(0.5, 2, 20), rng.uniform(0.5, 1, 20))


@pytest.fixture
def model(panel: sl.GenePanel) -> SealModel:
    import torch

    from sealst._core.device import seeded

    with seeded(1):
        made = SealModel(
            build_encoder(ENCODER, pretrained=False, pool="cls+mean"),
            panel,
            crop=CropSpec(16.0, PX),
            lora=LoraParams(n_blocks=2),
            gene_vae=GeneVAEParams(hidden=(32, 16)),
            head_hidden=16,
        )
        # LoRA's B starts at zero: give every trained tensor a value, so that losing one is seen.
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
    return made


@pytest.fixture
def crops() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 255, (7, PX, PX, 3), dtype=np.uint8)
