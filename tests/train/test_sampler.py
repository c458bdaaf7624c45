from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealst._train.sampler import InOrder, SegmentSampler


def epoch_of(sampler, epoch):
    draws = []
    for part in range(sampler.segments_per_epoch):
        sampler.set_epoch(epoch * sampler.segments_per_epoch + part)
        draws += list(sampler)
    return draws


@given(n=st.integers(16, 200), batch=st.integers(2, 16), max_steps=st.integers(1, 20), views=st.integers(1, 4))
def test_an_epoch_visits_no_spot_twice_and_leaves_out_less_than_its_parts(n, batch, max_steps, views):
    sampler = SegmentSampler(n, batch_size=batch, views=views, seed=0, max_steps=max_steps)
    draws = epoch_of(sampler, 1)
    rows = np.concatenate([d.rows for d in draws])
    assert len(set(rows)) == len(rows)
    assert all(len(d.rows) == batch for d in draws)
    assert all(len(d.rows) == len(d.views) and d.views.max() < views for d in draws)
    assert len(draws) > n // batch - sampler.segments_per_epoch
    assert all(len(list(sampler)) == len(sampler) <= max_steps for _ in range(1))


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_one(world):
    alone = epoch_of(SegmentSampler(64, batch_size=16, views=3, seed=5), 2)
    parts = [epoch_of(SegmentSampler(64, batch_size=16, views=3, seed=5, rank=r, world=world), 2) for r in range(world)]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert sorted(whole.rows) == sorted(np.concatenate([s.rows for s in shares]))
        assert {len(s.rows) for s in shares} == {16 // world}


def test_order_depends_on_seed_and_epoch_alone():
    def rows(seed, epoch):
        return [d.rows.tolist() for d in epoch_of(SegmentSampler(40, batch_size=8, views=1, seed=seed), epoch)]

    assert rows(0, 0) == rows(0, 0)
    assert rows(0, 0) != rows(0, 1)
    assert rows(0, 0) != rows(1, 0)


def test_a_later_stretch_starts_where_an_earlier_one_ended():
    whole = epoch_of(SegmentSampler(60, batch_size=4, views=1, seed=0, max_steps=5), 0)
    later = SegmentSampler(60, batch_size=4, views=1, seed=0, max_steps=5)
    later.first = 2
    later.set_epoch(0)
    assert [d.rows.tolist() for d in later] == [d.rows.tolist() for d in whole[10:15]]


def test_in_order_covers_all():
    draws = list(InOrder(10, 4))
    assert np.concatenate([d.rows for d in draws]).tolist() == list(range(10))
    assert len(draws) == len(InOrder(10, 4)) == 3


def test_weights_decide_how_often_a_spot_is_drawn():
    weights = np.r_[np.full(50, 0.9 / 50), np.full(50, 0.1 / 50)]
    sampler = SegmentSampler(100, batch_size=10, views=1, seed=0, weights=weights)
    rows = np.concatenate([d.rows for epoch in range(20) for d in epoch_of(sampler, epoch)])
    assert (rows < 50).mean() == pytest.approx(0.9, abs=0.03)


@given(n=st.integers(2, 60), batch=st.integers(1, 6), world=st.integers(1, 5))
def test_processes_share_spots_in_order(n, batch, world):
    size = min(batch * world, n)
    alone = list(InOrder(n, size))
    parts = [list(InOrder(n, size, rank=r, world=world)) for r in range(world)]
    joined = []
    for whole, *shares in zip(alone, *parts, strict=True):
        assert {len(s.rows) for s in shares} == {-(-len(whole.rows) // world)}
        joined += [row for share in shares for row in share.rows]
    assert joined[:n] == list(range(n))
    assert len(joined) < n + world


@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 20))
def test_batches_of_one_section(n_sections: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sections = np.repeat(np.arange(n_sections), rng.integers(batch, 5 * batch, n_sections))
    rng.shuffle(sections)
    sampler = SegmentSampler(len(sections), batch_size=batch, views=1, seed=seed, sections=sections)
    drawn = epoch_of(sampler, 0)
    rows = np.concatenate([draw.rows for draw in drawn])
    assert len(np.unique(rows)) == len(rows) == len(sections) // batch * batch
    pure = [len(np.unique(sections[draw.rows])) == 1 for draw in drawn]
    # Sections fill as many batches as they can alone.
    assert sum(pure) >= sum(np.bincount(sections) // batch)


def test_batches_of_one_section_are_those_of_one_process_on_several() -> None:
    sections = np.repeat([0, 1, 2], [40, 33, 23])
    options = {"batch_size": 16, "views": 3, "seed": 5, "sections": sections}
    alone = epoch_of(SegmentSampler(96, **options), 1)
    parts = [epoch_of(SegmentSampler(96, **options, rank=r, world=2), 1) for r in range(2)]
    for whole, *shares in zip(alone, *parts, strict=True):
        assert sorted(whole.rows) == sorted(np.concatenate([share.rows for share in shares]))
