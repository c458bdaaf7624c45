"""The form of an encoder that other tools take."""

from __future__ import annotations

import inspect
import pickle
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import sealst as sl
from sealst.models import Encoder, build_encoder

PX = 32
TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def tiny() -> Encoder:
    return build_encoder(TINY, pretrained=False)


def batch_of(images, crops) -> torch.Tensor:
    return torch.stack([images.transform(crop) for crop in crops])


# -- transform --------------------------------------------------------------------------------------------------------
def test_transform_scales_and_orders_axes(model, crops):
    transform = model.image_model().transform
    found = transform(crops[0])
    assert found.dtype == torch.float32
    assert found.shape == (3, PX, PX)
    np.testing.assert_array_equal(found.numpy(), np.moveaxis(crops[0], 2, 0).astype(np.float32) / 255)
    assert torch.equal(transform(Image.fromarray(crops[0])), found)
    assert torch.equal(model.image_model().get_transform()(crops[0]), found)


def test_transform_resizes_other_sizes_with_antialiasing(model):
    picture = np.random.default_rng(0).integers(0, 255, (3 * PX, 3 * PX, 3), dtype=np.uint8)
    transform = model.image_model().transform
    found = transform(picture)
    assert found.shape == (3, PX, PX)
    resized = Image.fromarray(picture).resize((PX, PX), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found.numpy(), np.moveaxis(np.asarray(resized), 2, 0).astype(np.float32) / 255)
    # Noise averages out under an antialiasing filter, and would stay without.
    assert found.std() < 0.6 * transform(picture[:PX, :PX]).std()


def test_transform_takes_squares_rounded_by_one_pixel(model):
    assert model.image_model().transform(np.zeros((PX, PX + 1, 3), np.uint8)).shape == (3, PX, PX)


def test_transform_takes_pictures_of_other_modes(model):
    grey = Image.fromarray(np.full((PX, PX), 51, dtype=np.uint8))
    assert torch.allclose(model.image_model().transform(grey), torch.full((3, PX, PX), 0.2))


def test_transform_can_be_pickled(model, crops):
    transform = model.image_model().transform
    assert torch.equal(pickle.loads(pickle.dumps(transform))(crops[0]), transform(crops[0]))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((PX, PX, 3), np.float32), "uint8 array.*found float32"),
        (np.zeros((PX, PX), np.uint8), r"uint8 array.*found uint8 \(32, 32\)"),
        (np.zeros((3, PX, PX), np.uint8), r"found uint8 \(3, 32, 32\)"),
        ("tile.png", "found str"),
        (np.zeros((PX, 2 * PX, 3), np.uint8), "must be square, found 64 x 32 px"),
    ],
)
def test_transform_refuses_other_things(model, image, message):
    with pytest.raises(sl.DataError, match=message):
        model.image_model().transform(image)


# -- embeddings -------------------------------------------------------------------------------------------------------
def test_adapted_embeddings_are_those_of_embed_images(model, crops):
    images = model.image_model()
    found = images(batch_of(images, crops))
    np.testing.assert_allclose(found.numpy(), model.embed_images(crops), rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
    assert found.device.type == "cpu"
    assert not found.requires_grad
    assert torch.equal(images.encode_image(batch_of(images, crops)), found)


def test_frozen_embeddings_are_those_of_the_base(model, crops):
    images, adapted = model.image_model(frozen=True), model.image_model()
    with model.frozen_encoder():
        base = model.embed_images(crops)
    np.testing.assert_allclose(images(batch_of(images, crops)).numpy(), base, rtol=0, atol=1e-6)
    after = adapted(batch_of(adapted, crops)).numpy()
    assert np.abs(after - base).max() > 1e-3
    np.testing.assert_allclose(after, model.embed_images(crops), rtol=0, atol=1e-6)


def test_dropout_is_off_whatever_the_mode(model, crops):
    images = model.image_model()
    expected = model.embed_images(crops)
    model.train()
    images.train()
    np.testing.assert_allclose(images(batch_of(images, crops)).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [TINY, "resnet18"])
def test_plain_encoder(name, crops):
    encoder = build_encoder(name, pretrained=False)
    images = encoder.image_model(crop_px=PX)
    with torch.inference_mode():
        expected = encoder(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)
    assert torch.allclose(images(batch_of(images, crops)), expected, rtol=0, atol=1e-6)


def test_facts(model, tiny):
    images = model.image_model()
    assert (images.crop_px, images.mpp) == (PX, 0.5)
    assert images.model is model.encoder
    plain = tiny.image_model()
    assert (plain.crop_px, plain.mpp) == (224, None)
    text = repr(images)
    assert "32 px at 0.5 µm per pixel" in text
    assert "384 values (cls+mean)" in text
    assert images.name in text


def test_size_must_be_one(tiny):
    with pytest.raises(sl.DataError, match="`crop_px` must be a positive number, found 0"):
        tiny.image_model(crop_px=0)


def test_precision_is_that_of_the_record(tiny):
    for name, dtype in (
        ("auto", torch.bfloat16),
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
    ):
        assert Encoder(tiny.vit, replace(tiny.spec, precision=name)).image_model().precision is dtype


def test_moves_a_seal_model_as_a_whole(model):
    assert model.image_model().to("meta")._owner is model
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert model.device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3, 48, 48), r"float batch \(n, 3, 32, 32\), found torch.float32 \(2, 3, 48, 48\)"),
        (torch.zeros(3, PX, PX), "float batch"),
        (torch.zeros(2, 3, PX, PX, dtype=torch.uint8), "found torch.uint8"),
        (torch.full((2, 3, PX, PX), 2.2), "from 0 to 1, found 2.20 to 2.20"),
        (torch.full((2, 3, PX, PX), -1.8), "subtracts mean and deviation itself"),
    ],
)
def test_batches_of_another_transform_are_refused(model, batch, message):
    with pytest.raises(sl.DataError, match=message):
        model.image_model()(batch)


# -- names ------------------------------------------------------------------------------------------------------------
def test_names_are_unique_and_usable(model, tiny):
    plain = tiny.image_model()
    assert plain.name == build_encoder(TINY, pretrained=False).image_model().name
    assert plain.name.startswith(f"{TINY}-")
    assert model.image_model().name == f"seal-{TINY}-{model.fingerprint[:8]}"
    names = [
        plain.name,
        tiny.image_model(crop_px=PX).name,
        build_encoder(TINY, pretrained=False, seed=1).image_model().name,
        build_encoder(TINY, pretrained=False, pool="mean").image_model().name,
        model.image_model().name,
        model.image_model(frozen=True).name,
        # The encoder of a SEAL model carries the adapter.
        model.encoder.image_model().name,
        build_encoder(TINY, pretrained=False, pool="cls+mean").image_model().name,
    ]
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B" in n).add_(0.1)
    names += [model.image_model().name, model.encoder.image_model().name]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) for name in names)


@pytest.mark.parametrize(
    ("key", "start"),
    [
        ("virchow2-cls+mean", "virchow2-cls-mean-"),
        ("hf-hub:owner/some name", "some-name-"),
        ("local-dir:/data/my encoder/", "my-encoder-"),
        ("local-dir:_own", "own-"),
    ],
)
def test_names_of_keys_that_are_no_names(tiny, key, start):
    assert Encoder(tiny.vit, replace(tiny.spec, key=key)).image_model().name.startswith(start)


# -- other tools ------------------------------------------------------------------------------------------------------
class Pictures(Dataset):
    """PIL pictures, transformed in the workers of a loader."""

    def __init__(self, crops, transform) -> None:
        self.pictures, self.transform = [Image.fromarray(c) for c in crops], transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i):
        return self.transform(self.pictures[i]), i


class PatchEncoder(nn.Module):
    """What TRIDENT wraps a custom encoder in."""

    def __init__(self, enc_name, model, transforms, precision) -> None:
        super().__init__()
        self.enc_name, self.model, self.eval_transforms, self.precision = enc_name, model, transforms, precision

    def forward(self, batch):
        return self.model(batch)


@pytest.mark.parametrize("mixed", [False, True])
def test_loop_of_a_patch_encoder(model, crops, mixed):
    images = model.image_model()
    encoder = PatchEncoder(images.name, images, images.transform, images.precision).to("cpu").eval()
    loader = DataLoader(Pictures(crops, encoder.eval_transforms), batch_size=3, num_workers=1)
    found = []
    dtype = torch.bfloat16 if mixed else encoder.precision
    for batch, _ in loader:
        with torch.autocast("cpu", dtype=dtype, enabled=mixed), torch.inference_mode():
            found.append(encoder(batch).cpu().numpy())
    # Mixed precision around it changes nothing: the encoder decides for itself.
    np.testing.assert_allclose(np.concatenate(found), model.embed_images(crops, batch_size=3), rtol=0, atol=1e-6)


def test_what_lazyslide_looks_for_is_found_without_instances(model, tiny):
    """Also by Python 3.12, whose protocols do not see what `__getattr__` gives, such as submodules."""
    for images in (model.image_model(), tiny.image_model()):
        for name in ("model", "name", "get_transform", "to", "try_compile", "encode_image"):
            inspect.getattr_static(images, name)


def test_lazyslide_protocol(model, tiny):
    lazyslide = pytest.importorskip("lazyslide_models", reason="LazySlide is not installed")
    assert isinstance(model.image_model(), lazyslide.ImageModelProtocol)
    assert isinstance(tiny.image_model(), lazyslide.ImageModelProtocol)
    assert not isinstance(model.image_model(), lazyslide.ImageTextModelProtocol)


def write_slide(path, image, mpp):
    """Tiled TIFF of two levels that states its scale."""
    with tifffile.TiffWriter(path) as file:
        for factor in (1, 2):
            level, per_cm = image[::factor, ::factor], 1e4 / (mpp * factor)
            file.write(
                level, tile=(64, 64), photometric="rgb", compression="zlib", metadata=None,
                resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", subfiletype=int(factor > 1),
            )  # fmt: skip


@pytest.mark.parametrize("tile_px", [PX, 2 * PX])
def test_lazyslide_extracts_the_same_embeddings(model, tmp_path, tile_px):
    wsidata = pytest.importorskip("wsidata", reason="wsidata is not installed")
    zs = pytest.importorskip("lazyslide", reason="LazySlide is not installed")
    image = np.random.default_rng(5).integers(0, 255, (128, 192, 3), dtype=np.uint8)
    write_slide(tmp_path / "slide.tif", image, mpp=0.5)
    wsi = wsidata.open_wsi(tmp_path / "slide.tif", store=None)
    images = model.image_model()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Contours for tissues not found")
        zs.pp.tile_tissues(wsi, tile_px, mpp=images.mpp)
    zs.tl.feature_extraction(wsi, images, device="cpu", pbar=False)
    corners = wsi.shapes["tiles"].bounds[["minx", "miny"]].to_numpy().astype(int)
    assert len(corners) == 128 * 192 // tile_px**2
    tiles = [Image.fromarray(image[y : y + tile_px, x : x + tile_px]).resize((PX, PX)) for x, y in corners]
    expected = model.embed_images(np.stack([np.asarray(t) for t in tiles]))
    found = np.asarray(wsi.tables[f"{images.name}_tiles"].X)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_lazyslide_predicts_the_same_expression(model, tmp_path):
    wsidata = pytest.importorskip("wsidata", reason="wsidata is not installed")
    zs = pytest.importorskip("lazyslide", reason="LazySlide is not installed")
    image = np.random.default_rng(6).integers(0, 255, (128, 192, 3), dtype=np.uint8)
    write_slide(tmp_path / "slide.tif", image, mpp=0.5)
    wsi = wsidata.open_wsi(tmp_path / "slide.tif", store=None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Contours for tissues not found")
        zs.pp.tile_tissues(wsi, PX, mpp=model.image_model().mpp)
    zs.tl.tile_prediction(wsi, model, device="cpu", pbar=False)
    tiles = wsi.shapes["tiles"]
    corners = tiles.bounds[["minx", "miny"]].to_numpy().astype(int)
    crops = np.stack([image[y : y + PX, x : x + PX] for x, y in corners])
    expected = model.predict_expression(model.embed_images(crops), readout=model.crop_readout)
    found = tiles[list(model.columns)].to_numpy()
    assert found.shape == (128 * 192 // PX**2, len(model.panel))
    assert found.std() > 0
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
