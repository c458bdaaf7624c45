from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import sealst as sl


def test_map_on_the_left_best_and_worst_crops_on_the_right(filled, spots_of):
    figure = sl.pl.retrieval(filled, n_crops=4)
    table = filled.tables["table"]
    similarity = table.obs["seal_similarity"]
    overview, *crops = figure.axes
    np.testing.assert_allclose(spots_of(overview).get_array().filled(np.nan), similarity, rtol=1e-6)
    assert all(ax.get_position().x0 > overview.get_position().x1 for ax in crops)

    order = similarity.dropna().sort_values(ascending=False)
    expected = [*order.index[:4], *order.index[::-1][:4]]
    titles = [ax.get_title().split("\n") for ax in crops]
    assert [t[0] for t in titles] == expected
    assert titles[0][1] == "#1  0.90"
    assert titles[4][1] == "#35  −0.40"
    assert min(ax.get_position().y0 for ax in crops[:4]) > max(ax.get_position().y1 for ax in crops[4:])
    texts = [t.get_text() for t in figure.texts]
    assert texts == ["Query: EPCAM, KRT8", "Most similar", "Least similar"]


def test_map_alone_goes_into_given_axes(filled, spots_of):
    _, ax = plt.subplots()
    assert sl.pl.retrieval(filled, n_crops=0, ax=ax) is ax
    assert ax.get_title() == "Query: EPCAM, KRT8"
    expected = filled.tables["table"].obs["seal_similarity"]
    np.testing.assert_allclose(spots_of(ax).get_array().filled(np.nan), expected, rtol=1e-6)
    alone = sl.pl.retrieval(filled, n_crops=0, title="tumour").axes
    assert [one.get_title() for one in alone] == ["tumour"]
    with pytest.raises(sl.DataError, match="`ax` takes one panel, found 9.*`n_crops=0`"):
        sl.pl.retrieval(filled, n_crops=4, ax=ax)
    with pytest.raises(sl.DataError, match="`n_crops` must be a whole number, 0 or more, found -1"):
        sl.pl.retrieval(filled, n_crops=-1)


def test_titles_stay_inside_and_apart(filled):
    figure = sl.pl.retrieval(filled, title="HALLMARK_EPITHELIAL_MESENCHYMAL_TRANSITION " * 4)
    renderer = figure.canvas.get_renderer()
    heading = figure.texts[0].get_window_extent(renderer)
    assert heading.x0 >= 0
    assert heading.x1 <= figure.bbox.x1
    for text in figure.texts[1:]:
        box = text.get_window_extent(renderer)
        assert box.y1 <= heading.y0 + 1
        titles = [ax.title.get_window_extent(renderer) for ax in figure.axes[1:]]
        assert not any(box.overlaps(title) for title in titles)


def test_no_spot_is_both_most_and_least_similar(filled):
    table = filled.tables["table"]
    table.obs.loc[table.obs_names[5:], "seal_similarity"] = np.nan
    crops = sl.pl.retrieval(filled, n_crops=8).axes[1:]
    names = [ax.get_title().split("\n")[0] for ax in crops]
    assert len(names) == 4
    assert len(set(names)) == 4


def test_without_rank_or_query(filled):
    table = filled.tables["table"]
    del table.obs["seal_similarity_rank"]
    del table.uns["sealst"]["retrieve"]
    figure = sl.pl.retrieval(filled, n_crops=1)
    assert figure.axes[1].get_title().split("\n")[1] == "0.90"
    assert figure.texts[0].get_text() == "Similarity to the query"


def test_ranks_are_those_of_the_same_query(filled):
    table = filled.tables["table"]
    table.obs["plasma"] = -table.obs["seal_similarity"]
    assert sl.pl.retrieval(filled, key="plasma", n_crops=1).axes[1].get_title().split("\n")[1] == "0.40"
    table.obs["plasma_rank"] = table.obs["plasma"].rank(ascending=False)
    title = sl.pl.retrieval(filled, key="plasma", n_crops=1).axes[1].get_title()
    assert title.split("\n")[1] == "#1  0.40"
    # A column of one's own has no ranks, and does not get another's; a name that is given must be there.
    table.obs["score"] = table.obs["seal_similarity"]
    assert sl.pl.retrieval(filled, key="score", n_crops=1).axes[1].get_title().split("\n")[1] == "0.90"
    with pytest.raises(sl.OrderError, match=r"'ranks' not found in `\.obs`.*key_added='seal_similarity'"):
        sl.pl.retrieval(filled, rank_key="ranks")


def test_what_is_missing_is_named(filled, paired):
    table = filled.tables["table"]
    with pytest.raises(
        sl.OrderError, match=r"'other' not found in `\.obs`.*Run `sl\.tl\.retrieve\(sdata, model, query\)`"
    ):
        sl.pl.retrieval(filled, key="other")
    table.obs["seal_similarity"] = np.nan
    with pytest.raises(sl.DataError, match=r"0 spot\(s\) of region 'toy_spots' have a crop and a similarity"):
        sl.pl.retrieval(filled)
    del table.uns["sealst"]["crops"]
    with pytest.raises(sl.OrderError, match=r"Run `sl\.pp\.pair_crops\(sdata\)` first"):
        sl.pl.retrieval(filled)
