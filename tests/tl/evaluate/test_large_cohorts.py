"""What changes when an evaluation is too large for memory, or for work that grows with the square."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import sealst as sl
from sealst.tl._evaluate import evaluate, methods, score_rows
from sealst.tl._evaluate.views import SectionView


@pytest.fixture
def sides(ready):
    train = [ready(section="a", patient="p1"), ready(section="b", patient="p2", seed=1)]
    return train, [ready(section="c", patient="p3", seed=2), ready(section="d", patient="p4", seed=3)]


def evaluated(sides, model, **options):
    train, test = sides
    return sl.tl.evaluate(train, model, test=test, genes={"mine": ["EPCAM", "KRT8", "VIM"]}, **options)


def test_what_lies_in_files_gives_the_same(sides, model, monkeypatch):
    found = evaluated(sides, model, control=True)
    kept: list[SectionView] = []
    plain = SectionView.kept_in
    monkeypatch.setattr(SectionView, "kept_in", lambda view, arena: kept.append(view) or plain(view, arena))
    monkeypatch.setattr(evaluate, "ROOM", 0)
    again = evaluated(sides, model, control=True)
    assert [view.name for view in kept] == ["a", "b", "c", "d"]
    pd.testing.assert_frame_equal(found.table, again.table)
    pd.testing.assert_frame_equal(found.genes, again.genes)
    assert not any(path.is_file() for path in sl.settings.cache_dir.iterdir())


def test_folds_that_cut_through_sections_lie_in_files_too(sides, model, monkeypatch):
    sections = [*sides[0], sides[1][0]]
    names = {"abc"[i]: one.tables["table"].obs_names.to_numpy() for i, one in enumerate(sections)}
    cut = [sl.pp.Split({"a": names["a"], "b": names["b"][:25]}, {"c": names["c"][5:]}, "cut")]
    options = {"folds": cut, "genes": {"mine": ["EPCAM", "VIM"]}, "allow_shared_patients": True}
    found = sl.tl.evaluate(sections, model, **options)
    kept: list[int] = []
    plain = SectionView.kept_in
    monkeypatch.setattr(SectionView, "kept_in", lambda view, arena: kept.append(len(view)) or plain(view, arena))
    monkeypatch.setattr(evaluate, "ROOM", 0)
    again = sl.tl.evaluate(sections, model, **options)
    assert kept == [36, 36, 36, 25, 31]
    pd.testing.assert_frame_equal(found.table, again.table)


def test_of_many_training_spots_some_of_every_section_are_learned_from(sides, model, monkeypatch, caplog):
    found = evaluated(sides, model, control=True).table
    monkeypatch.setattr(methods, "MOST_LEARNED", 60)
    with caplog.at_level("INFO", logger="sealst"):
        fewer = evaluated(sides, model, control=True).table
    assert "3 genes are learned from 60 of 72 training spots" in caplog.text
    key = ["section", "method", "metric", "genes"]
    both = found.set_index(key)["value"].to_frame("all").join(fewer.set_index(key)["value"].rename("some"))
    assert len(both) == len(found) == len(fewer)
    pearson = both.xs("pearson", level="metric").loc[["c", "d"]]
    probes = pearson.loc[(slice(None), ["adapted + ridge", "colour + ridge", "frozen + ridge"]), :]
    assert not np.allclose(probes["all"], probes["some"])
    np.testing.assert_allclose(probes["all"], probes["some"], atol=0.25)
    # What is not fitted here does not change.
    head = both.xs("seal head", level="method").xs("pearson", level="metric")
    pd.testing.assert_series_equal(head["all"], head["some"], check_names=False)


def test_of_a_large_section_some_spots_are_the_pool(sides, model, monkeypatch):
    monkeypatch.setattr(score_rows, "_MAX_POOL", 20)
    rows = evaluated(sides, model).table.query("metric == 'R@10'")
    assert set(rows["section"]) == {"c", "d"}
    assert (rows["pool"] == 20).all()
    np.testing.assert_allclose(rows["chance"], 0.5)
