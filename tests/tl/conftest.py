from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
from spatialdata import SpatialData

import sealst as sl

ENCODER = "vit_tiny_patch16_224"
FAST = {"epochs": 2, "batch_size": 16, "views": 2, "lr": 1e-3, "weight_decay": 0.05, "warmup_epochs": 1}


def prepare(sdata: SpatialData) -> SpatialData:
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    sl.pp.normalize(sdata)
    return sdata


def train(sections, **options):
    """Finetune a tiny encoder with random weights, in seconds."""
    defaults = {
        "encoder": ENCODER,
        "pretrained": False,
        "params": FAST,
        "gene_encoder": {"hidden": (16,)},
        "n_genes": 8,
        "seed": 0,
        "device": "cpu",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sl.SealstWarning)
        return sl.tl.finetune(sections, **(defaults | options))


@pytest.fixture
def ready(toy_section: Callable[..., SpatialData]) -> Callable[..., SpatialData]:
    """Build a toy section with crops and normalised expression."""

    def build(**options) -> SpatialData:
        return prepare(toy_section(**options))

    return build


@pytest.fixture(scope="session")
def _trained() -> list:
    return []


@pytest.fixture
def model(ready, _trained):
    """One small model for all tests that only use it."""
    if not _trained:
        _trained.append(train([ready(section="a", patient="p1"), ready(section="b", patient="p2", seed=1)]))
    return _trained[0]


@pytest.fixture
def finetune():
    """Call `sl.tl.finetune` with settings that take seconds."""
    return train


@pytest.fixture
def fast():
    """Training parameters that take seconds."""
    return dict(FAST)
