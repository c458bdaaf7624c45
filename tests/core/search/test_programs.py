from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.search.programs import Programs, fit_programs


def drawn(seed: int = 0, *, n: int = 60, d: int = 12, genes: int = 30, rank: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    sections = np.repeat(["a", "b"], n // 2)
    x = rng.normal(size=(n, d)) + 5 * (sections == "b")[:, None]
    coef = rng.normal(size=(d, rank)) @ rng.normal(size=(rank, genes))
    return {"x": x, "coef": coef, "truth": x @ coef + rng.normal(size=(n, genes)), "sections": sections}


def within(values: np.ndarray, sections: np.ndarray) -> np.ndarray:
    return np.concatenate([values[sections == name] - values[sections == name].mean(0) for name in np.unique(sections)])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), rank=st.integers(1, 5))
def test_programs_are_the_principal_components_of_predictions(seed: int, rank: int) -> None:
    data = drawn(seed, rank=rank)
    found = fit_programs(**data)
    predicted = within(data["x"], data["sections"]) @ data["coef"]
    _, size, vectors = np.linalg.svd(predicted, full_matrices=False)
    assert len(found) == rank
    np.testing.assert_allclose(np.abs(np.sum(found.patterns * vectors[:rank], axis=1)), 1, atol=1e-8)
    # Both sides vary alike along each, by the root of what predictions do.
    wanted = np.sqrt(size[:rank] / size[0])
    np.testing.assert_allclose(found.of_predictions(predicted).std(axis=0), wanted, rtol=1e-8)
    measured = within(data["truth"], data["sections"])
    np.testing.assert_allclose(found.of_profiles(measured).std(axis=0), wanted, rtol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_sum_of_genes_is_read_exactly(seed: int) -> None:
    data = drawn(seed)
    found = fit_programs(**data)
    predicted = within(data["x"], data["sections"]) @ data["coef"]
    weights = np.random.default_rng(seed).normal(size=predicted.shape[1])
    np.testing.assert_allclose(
        found.of_predictions(predicted) @ found.reading(weights), predicted @ weights, atol=1e-8 * np.abs(weights).sum()
    )


def test_what_a_section_does_not_measure_does_not_count() -> None:
    data = drawn()
    known = np.ones(data["truth"].shape, dtype=bool)
    known[data["sections"] == "b", ::2] = False
    changed = data | {"truth": np.where(known, data["truth"], 7.0)}
    a, b = (fit_programs(**one, known=known) for one in (data, changed))
    np.testing.assert_allclose(a.gene_scale, b.gene_scale, rtol=1e-9)


def test_levels_of_sections_do_not_count() -> None:
    data = drawn()
    moved = data | {"x": data["x"] + 3 * (data["sections"] == "a")[:, None]}
    a, b = (fit_programs(**one) for one in (data, moved))
    np.testing.assert_allclose(a.patterns, b.patterns, atol=1e-8)
    np.testing.assert_allclose(a.image_scale, b.image_scale, rtol=1e-8)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_as_many_as_the_readout_has_directions(rank: int) -> None:
    assert len(fit_programs(**drawn(rank=rank))) == rank


def test_parts_that_were_fitted_apart_are_all_kept() -> None:
    data = drawn(d=20)
    other = drawn(1, d=20, rank=4)["coef"]
    data["coef"] = np.hstack([data["coef"][:, :15], other[:, 15:]])
    found = fit_programs(**data)
    assert len(found) == 7
    predicted = within(data["x"], data["sections"]) @ data["coef"]
    for gene in (0, 29):
        read = found.of_predictions(predicted) @ found.reading(np.eye(30)[gene])
        np.testing.assert_allclose(read, predicted[:, gene], atol=1e-8)


def test_genes_that_are_predicted_by_their_mean_are_not_read() -> None:
    data = drawn()
    data["coef"][:, 4] = 0
    found = fit_programs(**data)
    assert not found.reading(np.eye(30)[4]).any()
    assert found.reading(np.eye(30)[5]).any()


def test_a_readout_that_predicts_the_mean_has_none() -> None:
    data = drawn()
    found = fit_programs(**(data | {"coef": np.zeros_like(data["coef"])}))
    assert isinstance(found, Programs)
    assert len(found) == 0
