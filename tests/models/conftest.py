from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sealst as sl
from sealst.models import CropSpec, EncoderSpec, GeneVAEParams, HeadParams, LoraParams, SealModel, build_encoder

ENCODER = "vit_tiny_patch16_224"
PX = 32


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread: networks this small only wait for each other's."""
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.fixture
def panel() -> sl.GenePanel:
    rng = np.random.default_rng(0)
    return sl.GenePanel(tuple(f"G{i}" for i in range(20)), rng.uniform(0.5, 2, 20), rng.uniform(0.5, 1, 20))


@pytest.fixture
def model(panel: sl.GenePanel) -> SealModel:
    from sealst._core.seeds import seeded

    with seeded(1):
        made = SealModel(
            build_encoder(ENCODER, pretrained=False, pool="cls+mean"),
            panel,
            crop=CropSpec(16.0, PX),
            adapter=LoraParams(n_blocks=2),
            gene_encoder=GeneVAEParams(hidden=(32, 16)),
            head=HeadParams(16),
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


@pytest.fixture
def small() -> Callable[[EncoderSpec], EncoderSpec]:
    """Shrink a record: same structure, two blocks of 48 values per token, a grid of 2 x 2 patches."""

    def shrunk(spec: EncoderSpec) -> EncoderSpec:
        side = 2 * spec.patch_px
        args = dict(spec.model_args) | {"embed_dim": 48, "depth": 2, "num_heads": 2, "img_size": side}
        pooler = dict(spec.pooler_args) | ({"dim": 16, "heads": 4} if spec.pooler_args else {})
        made = replace(spec, model_args=args, pooler_args=pooler, width=48, n_blocks=2, input_px=side)
        return replace(made, dim=made.dim_of(spec.pool))

    return shrunk


@pytest.fixture(scope="session")
def her2st_crops(shared_dir: Path) -> Callable[[np.ndarray], torch.Tensor]:
    """Cut squares of 224 px with given top-left corners from a real section, as (n, 3, 224, 224) in [0, 1]."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        path = shared_dir / "data" / "her2st" / "C2" / "5714_HE_BT_C2.jpg"
        picture = np.asarray(Image.open(path).convert("RGB"))

    def cut(corners: np.ndarray) -> torch.Tensor:
        crops = np.stack([picture[y : y + 224, x : x + 224] for x, y in corners])
        return torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255

    return cut
