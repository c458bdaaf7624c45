from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.space.tissue import box_fractions, solid, texture, tighten, unusable

coordinate = st.floats(-4, 14, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    corner=st.tuples(coordinate, coordinate),
    size=st.tuples(st.floats(0.05, 12), st.floats(0.05, 12)),
)
def test_fraction_is_the_area_of_tissue_pixels_cut_by_the_box(seed, corner, size):
    mask = np.random.default_rng(seed).random((7, 9)) < 0.5
    x0, y0 = corner
    x1, y1 = x0 + size[0], y0 + size[1]
    across = np.clip(np.minimum(np.arange(9) + 1, x1) - np.maximum(np.arange(9), x0), 0, None)
    down = np.clip(np.minimum(np.arange(7) + 1, y1) - np.maximum(np.arange(7), y0), 0, None)
    expected = (down @ mask @ across) / (size[0] * size[1])
    assert box_fractions(mask, np.array([[x0, y0, x1, y1]]))[0] == pytest.approx(expected, abs=1e-6)


def test_outside_of_the_mask_is_no_tissue():
    mask = np.ones((10, 20), dtype=bool)
    boxes = np.array([[-5, 0, 5, 10], [15, 0, 25, 10], [0, 5, 10, 15], [30, 30, 40, 40], [2, 2, 8, 8]])
    np.testing.assert_allclose(box_fractions(mask, boxes), [0.5, 0.5, 0.5, 0, 1])


def test_x_and_y_are_not_swapped():
    mask = np.zeros((10, 20), dtype=bool)
    mask[:, 15:] = True
    np.testing.assert_allclose(box_fractions(mask, np.array([[15, 0, 20, 5], [0, 5, 5, 10]])), [1, 0])


def test_no_boxes_give_no_fractions():
    assert box_fractions(np.ones((3, 3), dtype=bool), np.empty((0, 4))).shape == (0,)


def picture(height: int = 100, width: int = 120, value: int = 230) -> np.ndarray:
    return np.full((3, height, width), value, dtype=np.uint8)


def test_inset_beside_an_outlined_section_is_unusable():
    image = picture(value=0)
    image[:, :30, 90:] = 230  # pasted rectangle
    rows, columns = np.mgrid[:100, :120]
    outline = (rows - 65) ** 2 + (columns - 45) ** 2 < 30**2
    image[:, outline] = 150
    out = unusable(image)
    assert out[:30, 90:].all()
    assert not out[outline].any()
    assert out[image.max(axis=0) == 0].all()


def test_rectangles_alone_are_fields_of_the_scanner():
    image = picture(value=0)
    image[:, 10:40, 10:40] = 200
    image[:, 50:90, 60:110] = 200
    np.testing.assert_array_equal(unusable(image), image.max(axis=0) == 0)


def test_dark_specks_do_not_make_an_inset_of_the_picture():
    image = picture()
    image[:, 50:53, 50:53] = 3
    assert unusable(image).sum() == 9


def test_glass_of_any_colour_is_smooth_and_tissue_is_not():
    rng = np.random.default_rng(0)
    image = picture()
    image[0, :, :60] = 190  # smeared eosin: another colour, as smooth
    image[:, 30:60, 70:100] = rng.integers(200, 240, (3, 30, 30))  # pale tissue
    out = texture(image, 2, ignore=np.zeros((100, 120), dtype=bool))
    assert out[30:60, 70:100].min() > 0.5
    assert out[10:90, :55].max() == 0
    assert out[70:].max() <= out[30:60, 70:100].max()


def test_edges_of_blacked_out_background_are_no_texture():
    image = picture()
    image[:, :50] = 0
    out = texture(image, 3, ignore=image.max(axis=0) == 0)
    assert out.max() == 0


def test_rim_seen_by_the_window_is_taken_back():
    rng = np.random.default_rng(0)
    image = picture()
    truth = np.zeros((100, 120), dtype=bool)
    truth[30:70, 40:90] = True
    image[:, truth] = rng.integers(60, 200, (3, truth.sum()))
    none = np.zeros_like(truth)
    seen = texture(image, 3, ignore=none) > 0.5
    assert seen.sum() > truth.sum()
    np.testing.assert_array_equal(tighten(seen, 3, ignore=none), truth)


def test_smooth_but_dark_is_tissue():
    image = picture()
    image[0, :50] -= 20  # tint
    image[:, 60:90, 20:60] = 150
    out = solid(image, np.ones((100, 120), dtype=bool))
    assert (out[60:90, 20:60] == 1).all()
    assert out.sum() == 30 * 40


def test_without_glass_nothing_is_dark():
    assert not solid(picture(value=100), np.ones((100, 120), dtype=bool)).any()
    assert not solid(picture(), np.zeros((100, 120), dtype=bool)).any()
