"""How slides are divided into steps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import sealst as sl
from sealst._train.params import SlideParams
from sealst._train.slide_engine import CLASSIFICATION, SURVIVAL, EvenSteps, _n_steps


def sizes_of(n: int, batch_size: int, task: str) -> list[int]:
    job = SimpleNamespace(learn=range(n), task=task)
    steps = _n_steps(job, SlideParams(batch_size=batch_size))
    order = EvenSteps(n, steps, torch.Generator().manual_seed(0))
    first, second = list(order), list(order)
    assert len(order) == len(first) == len(second)
    assert all(sorted(row for step in epoch for row in step) == list(range(n)) for epoch in (first, second))
    assert n < 20 or first != second
    return [len(step) for step in first]


@given(n=st.integers(2, 400), batch_size=st.integers(1, 70))
@example(n=57, batch_size=8)
def test_every_slide_once_and_steps_alike(n, batch_size):
    sizes = sizes_of(n, batch_size, CLASSIFICATION)
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


@given(n=st.integers(2, 400), batch_size=st.integers(2, 70))
@example(n=3, batch_size=2)
@example(n=166, batch_size=16)
def test_survival_always_has_slides_to_compare(n, batch_size):
    sizes = sizes_of(n, batch_size, SURVIVAL)
    assert min(sizes) >= 2
    assert max(sizes) <= batch_size + 1
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(("n", "batch_size"), [(1, 8), (9, 1)])
def test_survival_without_any_is_refused(n, batch_size):
    with pytest.raises(sl.DataError, match=f"a step would have 1 of {n} training slides"):
        sizes_of(n, batch_size, SURVIVAL)
