"""Crops turned and mirrored, and means over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sealst as sl
from sealst._core.space.views import N_SYMMETRIES, over_views, symmetry
from sealst._data.augment import dihedral


def crops(n: int = 3, px: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, px, px, 3), dtype=np.uint8)


@pytest.mark.parametrize("code", range(N_SYMMETRIES))
def test_codes_are_those_of_augmentation(code: int) -> None:
    images = torch.from_numpy(crops()).permute(0, 3, 1, 2)
    turned = dihedral(images, torch.full((3,), code)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(symmetry(crops(), code), turned)


def test_the_eight_differ() -> None:
    assert len({symmetry(crops(), code).tobytes() for code in range(N_SYMMETRIES)}) == N_SYMMETRIES


@given(st.integers(0, 7), st.integers(0, 100))
def test_a_mean_over_all_views_does_not_know_how_the_slide_lay(code: int, seed: int) -> None:
    def corner(x: np.ndarray) -> np.ndarray:
        return x[:, 0, :2].reshape(len(x), -1).astype(np.float32)

    x = crops(seed=seed)
    np.testing.assert_allclose(over_views(corner, symmetry(x, code), 8), over_views(corner, x, 8), rtol=1e-6)


def test_one_view_is_the_crop_as_it_is() -> None:
    seen: list[np.ndarray] = []
    over_views(lambda x: seen.append(x) or x.mean((1, 2)), crops(), 1)
    assert len(seen) == 1
    np.testing.assert_array_equal(seen[0], crops())


def test_an_encoder_averages_views() -> None:
    encoder = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
    x = crops(2, 32)
    single = [encoder.embed(symmetry(x, code)) for code in range(4)]
    np.testing.assert_allclose(encoder.embed(x, views=4), np.mean(single, axis=0), atol=1e-6)
    np.testing.assert_array_equal(encoder.embed(x, views=1), encoder.embed(x))


@pytest.mark.parametrize("views", [0, 9, 2.5, True, "8"])
def test_numbers_of_views_that_there_are_not(views: object) -> None:
    encoder = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
    with pytest.raises(sl.DataError, match="views"):
        encoder.embed(crops(1, 32), views=views)
