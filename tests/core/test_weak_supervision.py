"""Expression of patches, learned from spots."""

from __future__ import annotations

import numpy as np

from sealst._core.scores.probes import within_sections
from sealst._core.weak_supervision import tune_local


def mixed_spots(n=400, tokens=12, width=6, seed=0):
    """Spots over patches of two kinds; the first gene follows the kind, the second what tokens do not show."""
    rng = np.random.default_rng(seed)
    share = rng.beta(0.5, 0.5, n)
    kind = rng.random((n, tokens)) < share[:, None]
    x = rng.standard_normal((n, tokens, width))
    x[..., 0] += 3 * kind
    section = np.repeat([0, 1], n // 2)
    counts = np.stack([np.where(kind, 60.0, 2.0).mean(axis=1), 10 * rng.gamma(2, 0.5, n)], axis=1)
    # Sections have levels of their own.
    counts *= np.array([1.0, 3.0])[section][:, None]
    return x.astype(np.float16), np.log1p(counts), section, kind


def tuned(x, truth, section, **options):
    """From a linear readout of the mean tokens."""
    share = np.ones(x.shape[:2], dtype=np.float32)
    mean = within_sections(x.astype(float).mean(axis=1), section)
    coef = np.linalg.lstsq(mean - mean.mean(axis=0), within_sections(truth, section), rcond=None)[0]
    return tune_local(x, share, truth, coef, sections=section, **({"epochs": 100} | options))


def test_patches_are_told_apart_though_spots_were_measured():
    x, truth, section, kind = mixed_spots()
    weight, bias = tuned(x, truth, section)
    local = np.exp(x.astype(float) @ weight + bias)
    assert np.corrcoef(np.log1p(local[..., 0]).ravel(), kind.ravel())[0, 1] > 0.8
    # 60 against 2 is the truth.
    ratio = local[..., 0][kind].mean() / local[..., 0][~kind].mean()
    assert ratio > 4
    # What tokens do not show is not made up.
    assert local[..., 1][kind].mean() / local[..., 1][~kind].mean() < 1.3


def test_means_over_tokens_are_what_was_measured_at_the_mean_level():
    x, truth, section, _ = mixed_spots()
    weight, bias = tuned(x, truth, section)
    summed = np.log1p(np.exp(x.astype(float) @ weight + bias).mean(axis=1))
    for own in (section == 0, section == 1):
        assert np.corrcoef(summed[own, 0], truth[own, 0])[0, 1] > 0.9
    # Between the two sections, whose levels differ by a factor of 3.
    assert truth[section == 0, 0].mean() < summed[:, 0].mean() < truth[section == 1, 0].mean()


def test_the_same_seed_gives_the_same_numbers():
    x, truth, section, _ = mixed_spots(n=100)
    first, second = (tuned(x, truth, section, seed=1) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert not np.array_equal(first[0], tuned(x, truth, section, seed=2)[0])


def test_spots_do_not_count_for_genes_that_their_section_does_not_measure():
    x, truth, section, _ = mixed_spots()
    known = np.ones(truth.shape, dtype=bool)
    known[section == 1, 0] = False
    other = truth.copy()
    other[section == 1, 0] = 7.0
    first, second = (tuned(x, values, section, known=known) for values in (truth, other))
    # The gene's deviation within sections is taken over all spots; a constant has none.
    assert np.corrcoef(first[0][:, 0], second[0][:, 0])[0, 1] > 0.95


def test_where_the_linear_readout_found_nothing_patches_are_alike():
    x, truth, section, _ = mixed_spots(n=100)
    share = np.ones(x.shape[:2], dtype=np.float32)
    weight, bias = tune_local(x, share, truth, np.zeros((x.shape[2], 2)), sections=section)
    assert not weight.any()
    summed = np.log1p(np.exp(bias))
    assert (np.abs(summed - truth.mean(axis=0)) < 0.5).all()
