from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sealst as sl
from sealst._core.scores.neighbourhoods import nearest, neighbours_kept, robustness_index


def cohort(seed: int, biology: float, technical: float, n: int = 240):
    """Embeddings that lie along a label and a confounder, each as strongly as said."""
    rng = np.random.default_rng(seed)
    label, patient = rng.integers(0, 3, n), rng.integers(0, 4, n)
    z = rng.normal(size=(n, 12))
    z[:, :3] += biology * np.eye(3)[label]
    z[:, 3:7] += technical * np.eye(4)[patient]
    return z, label, patient, np.char.add("s", (patient * 2 + rng.integers(0, 2, n)).astype(str))


@given(st.integers(0, 10_000), st.integers(1, 12))
def test_nearest_are_those_of_every_pair(seed, k):
    rng = np.random.default_rng(seed)
    z, groups = rng.normal(size=(30, 4)), rng.integers(0, 5, 30)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    found = nearest(z, k, groups)
    for i in range(30):
        allowed = np.flatnonzero(groups != groups[i])
        expected = allowed[np.argsort(-(unit[allowed] @ unit[i]))][:k]
        assert found[i][found[i] >= 0].tolist() == expected.tolist()


def test_neighbours_are_kept_by_turning_and_lost_by_chance():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(400, 16))
    turned = z @ np.linalg.qr(rng.normal(size=(16, 16)))[0]
    assert neighbours_kept(z, turned) == pytest.approx(1)
    assert neighbours_kept(z, rng.normal(size=(400, 16))) == pytest.approx(10 / 399, abs=0.01)
    kept = [neighbours_kept(z, z + noise * rng.normal(size=z.shape)) for noise in (0.1, 0.5, 1, 4)]
    assert 1 > kept[0] > kept[1] > kept[2] > kept[3] > 10 / 399
    assert neighbours_kept(z[:3], z[:3]) == 1
    assert np.isnan(neighbours_kept(z[:1], z[:1]))


def test_the_index_says_which_of_the_two_is_stronger():
    robust, even, weak = (robustness_index(*cohort(0, *how)).value for how in ((5, 0), (0, 0), (0, 5)))
    assert robust > 0.9
    # A third of all have the same label; of the seven other sections one is of the same patient.
    assert even == pytest.approx(1 / 3 * 6 / 7 / (1 / 3 * 6 / 7 + 2 / 3 * 1 / 7), abs=0.05)
    assert weak < 0.1


@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_index_of_the_reference(seed):
    croma = pytest.importorskip("croma", reason="croma is not installed")
    z, label, patient, section = cohort(seed, 2, 2)
    rows = np.arange(len(z)).astype(str)
    manifest = pd.DataFrame({"sample_id": rows, "image_path": rows, "group_id": section})
    manifest = manifest.assign(label=label.astype(str), center=patient.astype(str))
    expected = croma.RI.compute(z, manifest, confounder_column="center", k_candidates=[5, 11, 21])
    found = robustness_index(z, label, patient, section)
    assert found.k == expected.k
    assert found.value == pytest.approx(expected.value, abs=1e-6)
    assert found.support == pytest.approx(expected.support, abs=1e-6)


def test_a_single_group_is_refused():
    z, label, patient, _ = cohort(0, 1, 1)
    with pytest.raises(sl.DataError, match="No spot has a neighbour of another group"):
        robustness_index(z, label, patient, np.zeros(len(z)))
