from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._data.crops import reader as chunks_module
from sealst._data.crops.reader import iter_crops, read_crops


def _ramp(height: int, width: int) -> np.ndarray:
    """Image whose first two channels hold the pixel's own coordinates."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, np.full_like(x, 7)]).astype(np.uint8)


@given(
    x=st.integers(-20, 130),
    y=st.integers(-20, 130),
    px=st.sampled_from([8, 16, 32]),
    chunk=st.sampled_from([13, 50, 200]),
)
@settings(max_examples=60, deadline=None)
def test_aligned_crop_is_the_exact_slice_with_white_outside(x, y, px, chunk):
    image = _ramp(120, 110)
    padded = np.full((3, 220, 220), 255, dtype=np.uint8)
    padded[:, 50:170, 50:160] = image
    level = da.from_array(image, chunks=(3, chunk, chunk))
    crop = read_crops([level], np.array([[x, y, x + px, y + px]]), px)[0]
    expected = padded[:, y + 50 : y + 50 + px, x + 50 : x + 50 + px]
    np.testing.assert_array_equal(crop, np.moveaxis(expected, 0, 2))


@given(x=st.floats(0, 60), y=st.floats(0, 60), side=st.floats(10, 60), value=st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_constant_image_gives_constant_crops(x, y, side, value):
    image = np.full((3, 120, 120), value, dtype=np.uint8)
    crop = read_crops([da.from_array(image, chunks=(3, 40, 40))], np.array([[x, y, x + side, y + side]]), 16)
    assert (crop == value).all()


@given(cx=st.floats(20, 30), cy=st.floats(20, 30), side=st.floats(8, 36))
@settings(max_examples=40, deadline=None)
def test_centre_of_the_crop_is_the_centre_of_the_box(cx, cy, side):
    # On a linear ramp the mean of a crop is the value at its centre. It rises by 5 a pixel, so that rounding to whole
    # numbers moves the centre by a tenth of a pixel at most.
    ramp = np.tile(5 * np.arange(50), (50, 1))
    box = np.array([[cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2]])
    image = np.stack([ramp, ramp.T, ramp]).astype(np.uint8)
    crop = read_crops([da.from_array(image, chunks=(3, 16, 16))], box, 16)[0]
    np.testing.assert_allclose(crop.mean((0, 1))[:2] / 5 + 0.5, [cx, cy], atol=0.11)


def test_order_is_kept_and_every_chunk_is_decoded_once():
    decoded = []

    def block(block_info=None):
        decoded.append(block_info[None]["chunk-location"])
        return np.full(block_info[None]["chunk-shape"], len(decoded) % 250, dtype=np.uint8)

    level = da.map_blocks(block, chunks=((3,), (100,) * 4, (100,) * 4), dtype=np.uint8, meta=np.empty((0, 0, 0), "u1"))
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 350, (200, 2))
    boxes = np.hstack([corners, corners + 40])
    seen = []
    for positions, crops in iter_crops([level], boxes, 20, batch_size=7):
        assert len(positions) == len(crops) <= 7
        seen.extend(positions)
    assert sorted(seen) == list(range(200))
    assert len(decoded) == len(set(decoded)) == 16


def test_coarser_level_changes_crop_by_resampling_error_only():
    rng = np.random.default_rng(1)
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(rng.normal(size=(512, 512)), 12)
    smooth = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    fine = np.stack([smooth] * 3)
    coarse = fine.reshape(3, 256, 2, 256, 2).mean((2, 4)).round().astype(np.uint8)
    boxes = np.array([[50.3, 70.9, 290.3, 310.9], [200, 220, 440, 460]])
    a = read_crops([fine, coarse], boxes, 60, level=0).astype(float)
    b = read_crops([fine, coarse], boxes, 60, level=1).astype(float)
    assert np.abs(a - b).mean() < 1.0
    automatic = read_crops([fine, coarse], boxes, 60)
    np.testing.assert_array_equal(automatic, b.astype(np.uint8))


def test_no_boxes_give_no_crops():
    assert read_crops([_ramp(10, 10)], np.empty((0, 4)), 8).shape == (0, 8, 8, 3)


@pytest.mark.parametrize("dtype", ["numpy", "dask"])
def test_in_memory_and_dask_agree(dtype):
    image = _ramp(100, 100)
    level = image if dtype == "numpy" else da.from_array(image, chunks=(1, 33, 33))
    crop = read_crops([level], np.array([[10.5, 20.5, 70.5, 80.5]]), 30)
    np.testing.assert_array_equal(crop, read_crops([image], np.array([[10.5, 20.5, 70.5, 80.5]]), 30))


def counting(chunks: tuple[int, int], size: int = 32) -> tuple[da.Array, list]:
    """A level of many chunks that notes which of them are decoded."""
    decoded = []

    def block(block_info=None):
        decoded.append(block_info[None]["chunk-location"])
        return np.full(block_info[None]["chunk-shape"], len(decoded) % 250, dtype=np.uint8)

    rows, columns = chunks
    level = da.map_blocks(
        block, chunks=((3,), (size,) * rows, (size,) * columns), dtype=np.uint8, meta=np.empty((0, 0, 0), "u1")
    )
    return level, decoded


def dense(height: int, width: int, side: int, step: int) -> np.ndarray:
    y, x = np.mgrid[0 : height - side : step, 0 : width - side : step]
    corners = np.column_stack([x.ravel(), y.ravel()]).astype(float)
    return np.hstack([corners, corners + side])


@pytest.mark.parametrize("chunks", [(3, 60), (60, 3), (20, 20)])
def test_overlapping_crops_decode_every_chunk_once_whatever_the_shape_of_the_image(chunks):
    level, decoded = counting(chunks)
    boxes = dense(chunks[0] * 32, chunks[1] * 32, 24, 12)
    n = sum(len(positions) for positions, _ in iter_crops([level], boxes, 12, batch_size=50))
    assert n == len(boxes)
    assert len(decoded) == len(set(decoded)) == chunks[0] * chunks[1]


def test_chunks_in_memory_are_bounded_and_the_crops_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3, 640, 640), np.uint8)
    boxes = rng.permutation(dense(640, 640, 100, 30))
    expected = read_crops([image], boxes, 20)
    held = []
    monkeypatch.setattr(chunks_module, "MAX_BYTES", 20 * 3 * 32**2)
    load = chunks_module.WindowReader.load

    def watched(self, *args):
        stop = load(self, *args)
        held.append(sum(c.nbytes for c in self._kept.values()))
        return stop

    monkeypatch.setattr(chunks_module.WindowReader, "load", watched)
    np.testing.assert_array_equal(read_crops([da.from_array(image, chunks=(3, 32, 32))], boxes, 20), expected)
    # One crop needs up to 5 x 5 chunks, which are then more than the limit.
    assert max(held) <= 25 * 3 * 32**2


def test_a_wide_image_holds_no_more_chunks_than_a_narrow_one():
    held = {}
    for columns in (40, 160):
        level, _ = counting((12, columns))
        original = chunks_module.WindowReader.load
        most = []

        def watched(self, *args, original=original, most=most):
            stop = original(self, *args)
            most.append(len(self._kept))
            return stop

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunks_module.WindowReader, "load", watched)
            # The limit is what two stripes need: chunks on the border between stripes are not hoarded.
            patch.setattr(chunks_module, "MAX_BYTES", 60 * 3 * 32**2)
            for _ in iter_crops([level], dense(12 * 32, columns * 32, 24, 16), 24, batch_size=32):
                pass
        held[columns] = max(most)
    assert held[160] <= held[40]


def test_a_chunk_that_cannot_be_decoded_is_an_error():
    def block(block_info=None):
        raise OSError("damaged tile")

    level = da.map_blocks(block, chunks=((3,), (50, 50), (50, 50)), dtype=np.uint8, meta=np.empty((0, 0, 0), "u1"))
    with pytest.raises(OSError, match="damaged tile"):
        read_crops([level], np.array([[10, 10, 40, 40.0]]), 30)
