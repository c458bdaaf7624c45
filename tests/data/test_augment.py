from __future__ import annotations

import pytest
import torch

from sealst._data.augment import (
    AUGMENTATION_VERSIONS,
    AUGMENTATIONS,
    blur,
    colour_jitter,
    dihedral,
    erase,
    stain_jitter,
)


def images(n: int = 6, px: int = 16) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.rand(n, 3, px, px)


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_presets_keep_shape_and_range_and_do_not_touch_their_input(name):
    x = images()
    kept = x.clone()
    out = AUGMENTATIONS[name](x)
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(x, kept)
    assert torch.equal(out, x) == (name == "none")


def test_dihedral_gives_the_eight_symmetries_of_the_square():
    x = images(1).repeat(8, 1, 1, 1)
    out = dihedral(x, torch.arange(8))
    assert len({tuple(o.flatten().tolist()) for o in out}) == 8
    assert torch.equal(out[0], x[0])
    for turned in out:
        assert torch.equal(turned.flatten().sort().values, x[0].flatten().sort().values)


def test_every_crop_draws_its_own_augmentation():
    x = images(1).repeat(16, 1, 1, 1)
    torch.manual_seed(1)
    for function in (dihedral, lambda v: colour_jitter(v, 0.2), lambda v: stain_jitter(v, 0.2), erase, blur):
        assert len({tuple(o.flatten().tolist()) for o in function(x)}) > 4


def test_no_strength_changes_nothing():
    x = images().clamp(0.02, 0.98)
    torch.testing.assert_close(colour_jitter(x, 0.0), x)
    torch.testing.assert_close(stain_jitter(x, 0.0), x, rtol=1e-4, atol=1e-4)


def test_stain_jitter_scales_optical_density_along_the_stains():
    white = torch.ones(2, 3, 4, 4)
    torch.testing.assert_close(stain_jitter(white, 0.5), white)


def test_erased_square_has_the_crops_mean_colour_and_bounded_area():
    torch.manual_seed(3)
    x = images(20, 32)
    out = erase(x, share=0.1)
    changed = (out != x).any(1)
    assert changed.any()
    assert (changed.float().mean((1, 2)) <= 0.13).all()
    for before, after, hole in zip(x, out, changed, strict=True):
        if hole.any():
            torch.testing.assert_close(after[:, hole], before.mean((1, 2))[:, None].expand(-1, int(hole.sum())))


def test_stain_preset_varies_the_stains_and_keeps_glass_nearly_white():
    torch.manual_seed(0)
    white = AUGMENTATIONS["stain"](torch.ones(64, 3, 8, 8))
    assert white.min() > 0.95
    assert white.std() > 0
    pink = torch.tensor([0.9, 0.5, 0.8])[:, None, None].expand(64, 3, 8, 8)
    out = AUGMENTATIONS["stain"](pink)[:, :, 0, 0]
    assert out.std(0).min() > 0.005
    torch.testing.assert_close(out.mean(0), pink[0, :, 0, 0], atol=0.02, rtol=0)


def test_stain_shift_adds_optical_density_along_the_stains():
    torch.manual_seed(0)
    x = torch.full((200, 3, 2, 2), 0.5)
    torch.testing.assert_close(stain_jitter(x, 0.0, shift=0.0), x, rtol=1e-4, atol=1e-4)
    added = -torch.log(stain_jitter(x, 0.0, shift=0.1)) + torch.log(x)
    stains = torch.tensor([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105], [0.268, 0.570, 0.776]])
    amounts = added[:, :, 0, 0] @ torch.linalg.inv(stains / stains.norm(dim=1, keepdim=True))
    assert amounts.abs().max() <= 0.1001
    assert amounts.abs().max(0).values.min() > 0.09
    assert amounts.std(0).min() > 0.04


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_presets_repeat_under_a_seed(name):
    x = images()
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(AUGMENTATIONS[name](x))
    assert torch.equal(*results)


def test_blur_is_a_gaussian_of_a_width_of_its_own_per_crop():
    torch.manual_seed(0)
    flat = images(5, 1).expand(5, 3, 20, 20)
    torch.testing.assert_close(blur(flat), flat)
    point = torch.zeros(200, 3, 31, 31)
    point[:, :, 15, 15] = 1
    out = blur(point, 1.5)
    torch.testing.assert_close(out.sum((2, 3)), torch.ones(200, 3))
    assert torch.equal(out, out.flip(2)), "symmetric"
    torch.testing.assert_close(out, out.transpose(2, 3))
    at = torch.arange(31.0) - 15
    width = (out[:, 0].sum(1) * at**2).sum(1).sqrt()
    assert width.min() < 0.1
    assert 1.4 < width.max() < 1.5
    assert 0.6 < width.mean() < 0.9
    expected = torch.exp(-0.5 * (at / width.max()) ** 2)
    torch.testing.assert_close(out[width.argmax(), 0, 15] / out[width.argmax(), 0, 15, 15], expected, atol=0.02, rtol=0)


def test_blur_takes_crops_smaller_than_its_reach():
    assert blur(images(2, 3)).shape == (2, 3, 3, 3)


#: some pixels of each preset, as its present version makes them
PIXELS = {
    "hard": [0.3606, 0.5256, 0.4274, 0.0905],
    "none": [0.4963, 0.0363, 0.894, 0.9119],
    "soft": [0.2691, 0.2154, 0.0973, 0.1532],
    "stain": [0.3375, 0.2404, 0.0771, 0.1103],
}


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_a_changed_preset_has_a_new_version(name):
    """Cached tokens are found by the version: where this fails, raise it and store the new pixels here."""
    assert AUGMENTATION_VERSIONS == {"none": 1, "soft": 1, "stain": 1, "hard": 2}
    x = images()
    torch.manual_seed(1)
    assert AUGMENTATIONS[name](x)[:3].flatten()[::577][:5].tolist() == pytest.approx(PIXELS[name], abs=2e-3)
