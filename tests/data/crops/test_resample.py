"""Crops are what the definition says, in exact arithmetic; and the same whoever cuts them."""

from __future__ import annotations

import os
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import sealst as sl
from sealst._data.crops import reader, resample
from sealst._data.crops.reader import iter_crops, read_crops

PICTURE = Path(os.environ.get("SEALST_SHARED", "")) / "data" / "her2st" / "C2" / "5714_HE_BT_C2.jpg"


def cubic(x: np.ndarray) -> np.ndarray:
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))


def weights(low: float, high: float, n: int, px: int) -> np.ndarray:
    """Weights (px, n) of the pixels of a line."""
    step = (high - low) / px
    centres = low + (np.arange(px) + 0.5) * step
    found = cubic((np.arange(n) + 0.5 - centres[:, None]) / max(step, 1))
    return found / found.sum(axis=1, keepdims=True)


def reference(image: np.ndarray, box: np.ndarray, px: int) -> np.ndarray:
    """A crop (px, px, 3) of an image (3, y, x), in float64. What a box holds beyond the image is white."""
    height, width = image.shape[1:]
    (x0, y0), (x1, y1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
    left, top, right, bottom = max(-x0, 0), max(-y0, 0), max(x1 - width, 0), max(y1 - height, 0)
    whole = np.pad(image.astype(float), ((0, 0), (top, bottom), (left, right)), constant_values=255)
    x0, y0, x1, y1 = box + np.array([left, top, left, top])
    by_y, by_x = weights(y0, y1, whole.shape[1], px), weights(x0, x1, whole.shape[2], px)
    return np.clip(np.einsum("ih,chw,jw->ijc", by_y, whole, by_x, optimize=True), 0, 255)


@given(
    x=st.floats(-60, 120),
    y=st.floats(-60, 120),
    side=st.floats(5, 150),
    px=st.sampled_from([1, 7, 16, 33, 70]),
    chunk=st.sampled_from([23, 64, 200]),
    seed=st.integers(0, 5),
)
@example(x=0.0, y=0.0, side=120.0, px=7, chunk=64, seed=0)
@example(x=-0.25, y=99.5, side=20.5, px=33, chunk=23, seed=1)
@settings(max_examples=80, deadline=None)
def test_crops_are_those_of_exact_arithmetic(x, y, side, px, chunk, seed):
    # Noise of black and white is as far from smooth as can be.
    image = np.random.default_rng(seed).choice(np.array([0, 255], dtype=np.uint8), (3, 120, 110))
    box = np.array([x, y, x + side, y + side])
    found = read_crops([da.from_array(image, chunks=(3, chunk, chunk))], box[None], px)[0]
    apart = np.abs(found - reference(image, box, px))
    assert apart.max() < 0.75
    # Of rounding alone a quarter.
    assert apart.size < 1000 or apart.mean() < 0.3


@given(x=st.floats(0, 20), y=st.floats(0, 20), side=st.floats(8, 90))
@settings(max_examples=40, deadline=None)
def test_a_ramp_stays_a_ramp(x, y, side):
    ramp = np.tile(np.arange(120), (120, 1))
    image = np.stack([2 * ramp, 2 * ramp.T, 255 - ramp - ramp.T]).astype(np.uint8)
    crop = read_crops([da.from_array(image, chunks=(3, 50, 50))], np.array([[x, y, x + side, y + side]]), 32)[0]
    at = (np.arange(32) + 0.5) * side / 32 - 0.5
    # Near the picture's edge there is nothing to go on with.
    inner = np.flatnonzero((min(x, y) + at > 2 * side / 32 + 2) & (max(x, y) + at < 117 - 2 * side / 32))
    across, down = np.meshgrid(x + at[inner], y + at[inner])
    expected = np.stack([2 * across, 2 * down, 255 - across - down], axis=2)
    assert np.abs(crop[np.ix_(inner, inner)] - expected).max(initial=0) < 0.75


def test_what_lies_beyond_the_picture_is_white():
    image = np.zeros((3, 100, 100), dtype=np.uint8)
    level = da.from_array(image, chunks=(3, 64, 64))
    beyond = [[-50.5, 10.5, -10.5, 50.5], [110, 0, 150, 40], [0, -300, 40, -260], [200.5, 200.5, 240.5, 240.5]]
    assert (read_crops([level], np.array(beyond), 20) == 255).all()
    corner = read_crops([level], np.array([[-20.0, -20, 20, 20]]), 20)[0]
    assert (corner[:8] == 255).all()
    assert (corner[:, :8] == 255).all()
    assert (corner[12:, 12:] == 0).all()


@pytest.mark.skipif(not PICTURE.exists(), reason="needs the her2st pictures of SEALST_SHARED")
def test_tissue_is_as_pillow_resizes_it():
    # Windows that hold all that the filter sees; Pillow clips between the axes what rings beyond black and white.
    pixels = np.asarray(Image.open(PICTURE).convert("RGB").crop((4000, 4000, 5200, 5200)))
    level = da.from_array(pixels.transpose(2, 0, 1), chunks=(3, 512, 512))
    for side, px in ((325.63, 224), (162.79, 224), (700.3, 224)):
        corners = np.random.default_rng(0).uniform(20, 480, (6, 2))
        boxes = np.hstack([corners, corners + side])
        apart = []
        for box, crop in zip(boxes, read_crops([level], boxes, px), strict=True):
            assert np.abs(crop - reference(level.compute(), box, px)).max() < 0.75
            resized = Image.fromarray(pixels).resize((px, px), Image.Resampling.BICUBIC, box=tuple(box))
            apart.append(np.abs(crop.astype(int) - np.asarray(resized)))
        assert (np.stack(apart) > 1).mean() < 1e-3
        assert np.stack(apart).mean() < 0.25


@pytest.fixture
def level() -> da.Array:
    image = np.random.default_rng(0).integers(0, 256, (3, 300, 300), dtype=np.uint8)
    return da.from_array(image, chunks=(3, 64, 64))


@pytest.fixture
def boxes() -> np.ndarray:
    corners = np.random.default_rng(1).uniform(-20, 250, (90, 2))
    return np.hstack([corners, corners + 61.7])


@pytest.mark.parametrize("n_jobs", [1, 3, 16])
def test_crops_are_the_same_in_any_number_of_threads_and_batches(level, boxes, n_jobs, monkeypatch):
    monkeypatch.setattr(reader, "_PORTION", 20)
    expected = read_crops([level.compute()], boxes, 24)
    for batch_size in (1, 7, 64, 500):
        out = np.zeros_like(expected)
        with sl.settings.override(n_jobs=n_jobs):
            for positions, crops in iter_crops([level], boxes, 24, batch_size=batch_size):
                out[positions] = crops
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(
    "form",
    [
        lambda image: image,
        lambda image: np.ascontiguousarray(np.moveaxis(image, 0, 2)).transpose(2, 0, 1),
        lambda image: np.concatenate([image, image[:1]]),
        lambda image: np.frombuffer(image.tobytes(), dtype=np.uint8).reshape(image.shape),
        lambda image: da.from_array(image, chunks=(3, 300, 300)),
        lambda image: da.from_array(image, chunks=(1, 100, 300)),
        lambda image: da.from_array(image, chunks=(2, (7, 293), (250, 50))),
        lambda image: da.from_array(np.concatenate([image, image[:1]]), chunks=(4, 64, 64)),
        lambda image: da.from_array(np.pad(image, ((0, 0), (5, 5), (9, 9))), chunks=(3, 64, 64))[:, 5:-5, 9:-9],
    ],
    ids=["array", "channels last", "alpha", "read-only", "one chunk", "by channel", "uneven", "lazy alpha", "cut out"],
)
def test_crops_do_not_depend_on_how_a_picture_lies_in_memory(level, boxes, form):
    image = level.compute()
    np.testing.assert_array_equal(read_crops([form(image)], boxes, 24), read_crops([level], boxes, 24))


def test_crops_are_cut_without_the_interpreter_lock():
    assert resample.cut.targetoptions["nogil"]
