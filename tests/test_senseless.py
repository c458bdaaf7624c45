"""Values that are numbers, and mean nothing: refused by name before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sealst as sl
from sealst._core.search.exact import top_k
from sealst._train.params import SlideParams, TrainParams
from sealst._validate import check_count, check_embedding, check_mpp, check_positive
from sealst.models import GeneMLPParams, GeneTransformerParams, LoraParams, ProjectionParams

TINY = "vit_tiny_patch16_224"


# -- counts, and numbers that are none --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cls", "field", "value", "text"),
    [
        (TrainParams, "epochs", 2.5, "`params.epochs` must be a whole number, found 2.5"),
        (TrainParams, "epochs", True, "`params.epochs` must be a whole number, found True"),
        (TrainParams, "views", 1.5, "`params.views`"),
        (TrainParams, "patience", 0.5, "`params.patience`"),
        (TrainParams, "chunk_size", 7.5, "`params.chunk_size`"),
        (TrainParams, "num_workers", 0.5, "`params.num_workers`"),
        (TrainParams, "warmup_epochs", 1.5, "`params.warmup_epochs`"),
        (TrainParams, "accumulate", 1.5, "`params.accumulate`"),
        (TrainParams, "noise", float("nan"), "`params.noise` must be a number, found nan"),
        (TrainParams, "lr", "fast", "`params.lr` must be a number, found 'fast'"),
        (SlideParams, "epochs", 2.5, "`params.epochs`"),
        (SlideParams, "weight_decay", float("nan"), "`params.weight_decay` must be a number"),
        (LoraParams, "r", 2.5, "`adapter.r` must be a whole number, found 2.5"),
        (LoraParams, "n_blocks", True, "`adapter.n_blocks`"),
        (GeneMLPParams, "hidden", (16.5,), "`gene_encoder.hidden` must be a whole number, found 16.5"),
        (GeneTransformerParams, "n_layers", 1.5, "`gene_encoder.n_layers`"),
        (ProjectionParams, "dim", 2.5, "`projection.dim`"),
    ],
)
def test_parameters(cls, field, value, text):
    with pytest.raises(sl.DataError, match=text):
        cls(**{field: value})


def test_counts_and_sizes():
    for value in (2.5, 3.0, np.float64(2)):
        with pytest.raises(sl.DataError, match="`n_hits` must be a whole number"):
            check_count("n_hits", value)
    for check in (check_count, check_positive, check_mpp):
        with pytest.raises(sl.DataError, match="`x` must be a positive number, found True"):
            check("x", True)
    check_count("n_hits", np.int64(3))
    check_positive("x", np.float32(0.5))


@pytest.mark.parametrize("mpp", [1e-9, 1e-3, 1e5])
def test_scales_that_no_picture_has(mpp):
    with pytest.raises(sl.DataError, match=r"`mpp` is .* µm per pixel; pictures of tissue have 0.01 to 1000"):
        check_mpp("mpp", mpp)
    image, xy = np.zeros((64, 64, 3), np.uint8), np.array([[8, 8], [40, 40]])
    options = {"genes": ["A"], "spot_um": 5}
    with pytest.raises(sl.DataError, match="`mpp` is"):
        sl.io.from_arrays(image, np.ones((2, 1)), xy, mpp=mpp, **options)
    sdata = sl.io.from_arrays(image, np.ones((2, 1)), xy, mpp=1.0, **options)
    with pytest.raises(sl.DataError, match="`mpp` is"):
        sl.pp.pair_crops(sdata, crop_um=16, crop_px=16, mpp=mpp)


def test_usual_scales_pass():
    for mpp in (0.12, 0.25, 0.5, 0.69, 3.4, 11.5, 100.0):
        check_mpp("mpp", mpp)


@pytest.mark.parametrize("radius", [-5.0, 0.0, float("nan")])
def test_spots_without_a_size_give_no_scale(radius):
    rng = np.random.default_rng(0)
    xy = np.array([[20, 20], [60, 20], [20, 60], [60, 60.0]])
    sdata = sl.io.from_arrays(
        rng.integers(0, 255, (80, 80, 3), np.uint8), np.ones((4, 1)), xy, genes=["A"], mpp=1.0, spot_um=10, section="s"
    )
    spots = sdata.shapes["s_spots"]
    # After parsing, which would notice.
    spots.loc[spots.index[0], "radius"] = radius
    with pytest.raises(sl.ScaleError, match="some of its circles have no radius above 0"):
        sl.pp.pair_crops(sdata, crop_um=16, crop_px=16, spot_um=10)


# -- embeddings and weights -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [1e300, -1e30, float("inf")])
def test_embeddings_that_cannot_be_compared(value, tmp_path):
    features = np.random.default_rng(0).normal(size=(5, 4))
    features[2, 1] = value
    with pytest.raises(sl.DataError, match=r"Slide 'a': .* holds 1 values that are infinite or too large to compare"):
        sl.io.read_bags({"a": features, "b": features[:2]})[0]
    check_embedding(np.array([[1e15, np.nan]]), where="x")


def test_vectors_of_an_index_that_are_no_numbers():
    vectors = np.eye(4, dtype=np.float32)
    vectors[2, 0] = np.nan
    for query in (np.ones((1, 4)), np.ones((3, 4))):
        with pytest.raises(sl.DataError, match="1 vectors of the index hold NaN or infinite values .first: row 2"):
            top_k(query, vectors, 2)


def folder_of(tmp_path: Path) -> Path:
    """A small encoder in a local folder, as timm stores it."""
    encoder = sl.models.build_encoder(TINY, pretrained=False)
    folder = tmp_path / "encoder"
    folder.mkdir()
    state = {name: tensor.contiguous() for name, tensor in encoder.base_state().items()}
    save_file(state, folder / "model.safetensors")
    config = {"architecture": TINY, "num_classes": 0, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_weights_that_are_no_numbers(tmp_path):
    folder = folder_of(tmp_path)
    sl.models.build_encoder(f"local-dir:{folder}")
    state = load_file(folder / "model.safetensors")
    state["blocks.3.attn.qkv.weight"][5, 7] = torch.nan
    save_file(state, folder / "model.safetensors")
    with pytest.raises(
        sl.WeightsError, match=r"1 tensors of .* hold NaN or infinite weights .first: 'blocks.3.attn.qkv.weight'"
    ):
        sl.models.build_encoder(f"local-dir:{folder}")


@pytest.mark.parametrize("std", [[0.5, 0, 0.5], [0.5, -1, 0.5], [0.5, float("nan"), 0.5]])
def test_pixels_that_would_be_divided_by_nothing(tmp_path, std):
    folder = folder_of(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["std"] = std
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(sl.WeightsError, match=r"`encoder\.std` must be a (positive )?number, found"):
        sl.models.build_encoder(f"local-dir:{folder}")
