"""Distances from training spots, on the scale of patients that were left out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sealst._core.scores.novelty import (
    MAX_COMPONENTS,
    N_PICTURE,
    N_WITHIN,
    Scale,
    fit_novelty,
    most_unlike,
    picture_features,
)
from sealst._errors import DataError

D = 24


def cohort(rng, n_patients, *, n=80, between=0.5):
    """Embeddings, pictures and patients, which differ by `between` of the deviation of spots."""
    who = np.repeat(np.arange(n_patients), n)
    mix = np.random.default_rng(99).normal(size=(D, D))
    values = rng.normal(size=(len(who), D + N_PICTURE))
    values += between * rng.normal(size=(n_patients, D + N_PICTURE))[who]
    return values[:, :D] @ mix, values[:, D:], who


def test_a_wide_cohort_is_calibrated():
    """With many patients, a twentieth of the spots of others lies beyond the 95th percentile, and of sections."""
    rng = np.random.default_rng(0)
    z, picture, who = cohort(rng, 40)
    cloud, scale = fit_novelty(z, picture, groups=who, units=who)
    other, other_picture, owner = cohort(rng, 60)
    distances = cloud.log_distances(other, other_picture)
    assert 0.02 < (scale.of_spots(distances) > 0.95).mean() < 0.09
    sections = np.array([most_unlike(scale.of_section(distances[owner == i])) for i in range(60)])
    assert (sections > 0.95).mean() < 0.12
    assert 0.3 < np.median(sections) < 0.7


@pytest.mark.parametrize("n_patients", [2, 4])
def test_few_patients_give_few_false_alarms_and_still_tell_what_is_far(n_patients):
    flagged, spots, parts = [], [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        z, picture, who = cohort(rng, n_patients)
        cloud, scale = fit_novelty(z, picture, groups=who, units=who)
        other, other_picture, owner = cohort(rng, 6)
        known = cloud.log_distances(other, other_picture)
        flagged += [most_unlike(scale.of_section(known[owner == i])) > 0.95 for i in range(6)]
        other_picture[:, :6] += 6
        new = cloud.log_distances(other, other_picture)
        truth = np.repeat([0, 1], len(known))
        spots.append(roc_auc_score(truth, scale.of_spots(np.concatenate([known, new]))))
        parts.append(scale.of_section(new))
    assert np.mean(flagged) <= 0.1
    assert min(spots) > 0.95
    # Of the picture's stain, and of nothing else.
    assert (np.median(parts, axis=0) > 0.95).tolist() == [False, True, False]


def test_sections_of_a_patient_count_once():
    rng = np.random.default_rng(0)
    means = np.array([0.0, 0.0, 0.0, 3.0])
    distances = np.repeat(means, 5)[:, None] + 0.01 * rng.normal(size=(20, 3))
    units = np.repeat(np.arange(4), 5)
    scale = Scale.of(distances, groups=np.array([0, 0, 0, 1])[units], units=units)
    np.testing.assert_allclose(scale.level, 1.5, atol=0.05)
    assert scale.freedom == 3
    # (1.5² + 1.5² of the two patients, and two more of 0.25²) over 3, and the mean itself is not known exactly
    np.testing.assert_allclose(scale.spread, np.sqrt((2 * 1.5**2 + 2 * 0.25**2) / 3 * 1.5), rtol=0.05)
    assert scale.within.shape == (3, N_WITHIN)
    assert (np.diff(scale.within) >= 0).all()
    # Of three parts that are each at the median, the largest of three draws is below it once in eight.
    few = np.repeat([[-50.0], [1.5], [50.0]], 3, axis=1)
    np.testing.assert_allclose(scale.of_spots(few), [0, 1 / 8, 1], atol=0.02)
    many = np.linspace(-3, 6, 9000)[:, None].repeat(3, axis=1)
    apart = np.concatenate([scale.of_spots(part) for part in np.split(many, 9)])
    np.testing.assert_allclose(scale.of_spots(many), apart, atol=1e-5)


def test_what_cannot_be_said_is_refused():
    rng = np.random.default_rng(0)
    z, picture = rng.normal(size=(5, D)), rng.normal(size=(5, N_PICTURE))
    with pytest.raises(DataError, match="no fold"):
        fit_novelty(z, picture, groups=np.zeros(5), units=np.zeros(5))
    z, picture, who = cohort(rng, 2, n=4)
    with pytest.raises(DataError, match="4 spots are too few"):
        fit_novelty(z, picture, groups=who, units=who)
    z, picture, who = cohort(rng, 3, n=400)
    assert len(fit_novelty(z, picture, groups=who, units=who)[0].directions) == min(D, MAX_COMPONENTS)


def test_what_never_varies_in_training_is_no_trouble():
    rng = np.random.default_rng(0)
    z, picture, who = cohort(rng, 3)
    picture[:, 6:] = 0.0
    cloud, scale = fit_novelty(z, picture, groups=who, units=who)
    assert np.isfinite(scale.of_spots(cloud.log_distances(z, picture))).all()
    assert scale.of_section(cloud.log_distances(z, picture + 1.0))[2] > 0.95


def test_pictures_are_told_by_stain_and_detail():
    rng = np.random.default_rng(0)
    fine = rng.integers(60, 200, (6, 64, 64, 3), dtype=np.uint8)
    coarse = fine[:, :32, :32].repeat(2, axis=1).repeat(2, axis=2)
    dark = (fine // 2).astype(np.uint8)
    features = {name: picture_features(crops) for name, crops in (("fine", fine), ("coarse", coarse), ("dark", dark))}
    assert {f.shape for f in features.values()} == {(6, N_PICTURE)}
    # Half the light is log 2 more of density, and the detail is where it was.
    np.testing.assert_allclose(features["dark"][:, :3] - features["fine"][:, :3], np.log(2), atol=0.02)
    np.testing.assert_allclose(features["dark"][:, 6:], features["fine"][:, 6:], atol=0.05)
    # Enlarged twice, what was between two pixels is between two pairs of them: half the energy, one scale further up.
    np.testing.assert_allclose(features["coarse"][:, 6], -np.log(2), atol=0.05)
    np.testing.assert_allclose(features["coarse"][:, 7], features["fine"][:, 6], atol=0.3)
    np.testing.assert_allclose(picture_features(np.zeros((2, 1, 1, 3), dtype=np.uint8))[:, 6:], 0)
    flat = picture_features(np.full((1, 32, 32, 3), 255, dtype=np.uint8))
    np.testing.assert_allclose(flat, 0, atol=1e-6)


def gradient_energy(grey):
    down, across = (np.square(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2))
    return down + across


@pytest.mark.parametrize("shape", [(64, 64), (37, 50), (9, 21)])
def test_numbers_of_pictures_are_those_of_their_definition(shape):
    crops = np.random.default_rng(1).integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    density = -np.log((crops.astype(float) + 1) / 256)
    grey, levels = density[..., 1], []
    for _ in range(3):
        levels.append(np.log(gradient_energy(grey) + 1e-5))
        even = grey[:, : grey.shape[1] // 2 * 2, : grey.shape[2] // 2 * 2]
        grey = (even[:, ::2, ::2] + even[:, 1::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, 1::2]) / 4
    thin, detail = density[:, ::2, ::2], np.stack(levels, axis=1)
    expected = [thin.mean(axis=(1, 2)), thin.std(axis=(1, 2)), detail[:, :-1] - detail[:, 1:]]
    np.testing.assert_allclose(picture_features(crops), np.hstack(expected), rtol=1e-5, atol=1e-6)
