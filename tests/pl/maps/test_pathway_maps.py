from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import sealst as sl


def test_one_map_per_pathway_with_its_scores(filled, spots_of):
    figure = sl.pl.pathways(filled)
    scores = filled.tables["table"].obsm["seal_pathways"]
    assert [ax.get_title().replace("\n", "") for ax in figure.axes] == list(scores.columns)
    for ax, name in zip(figure.axes, scores, strict=True):
        drawn = spots_of(ax)
        np.testing.assert_allclose(drawn.get_array().filled(np.nan), scores[name])
        np.testing.assert_allclose(drawn.get_clim(), np.nanpercentile(scores[name], [1, 99]), rtol=1e-5)
        assert [child.get_ylabel() for child in ax.child_axes] == ["score"]


def test_long_names_are_wrapped_inside_their_map(filled):
    figure = sl.pl.pathways(filled)
    ax = figure.axes[0]
    assert ax.get_title() == "HALLMARK_EPITHELIAL_MESENCHYMAL_\nTRANSITION"
    renderer = figure.canvas.get_renderer()
    assert ax.title.get_window_extent(renderer).width <= ax.get_window_extent(renderer).width * 1.02
    assert ax.title.get_window_extent(renderer).y1 <= figure.bbox.y1


def test_chosen_pathways_keep_their_order(filled):
    figure = sl.pl.pathways(filled, ["TGFb", "Hypoxia"], percentiles=(0, 100))
    assert [ax.get_title() for ax in figure.axes] == ["TGFb", "Hypoxia"]


def test_case_is_told_apart_only_where_both_exist(filled, spots_of):
    scores = filled.tables["table"].obsm["seal_pathways"]
    scores["TGFB"] = -scores["TGFb"]
    figure = sl.pl.pathways(filled, ["hypoxia", "TGFB"])
    assert [ax.get_title() for ax in figure.axes] == ["Hypoxia", "TGFB"]
    np.testing.assert_allclose(spots_of(figure.axes[1]).get_array().filled(np.nan), scores["TGFB"])


def test_many_pathways_are_cut_to_the_most_variable(filled):
    table = filled.tables["table"]
    rng = np.random.default_rng(0)
    table.obsm["many"] = pd.DataFrame(
        rng.normal(size=(36, 20)) * np.arange(1, 21) ** 2, index=table.obs_names, columns=[f"p{i}" for i in range(20)]
    )
    figure = sl.pl.pathways(filled, key="many")
    expected = table.obsm["many"].std().nlargest(12).index
    assert [ax.get_title() for ax in figure.axes] == list(expected)


def test_single_pathway_goes_into_given_axes(filled):
    _, ax = plt.subplots()
    assert sl.pl.pathways(filled, "Hypoxia", ax=ax) is ax
    assert ax.get_title() == "Hypoxia"
    assert sl.pl.pathways(filled, "Hypoxia", title="no air", ax=ax).get_title() == "no air"
    with pytest.raises(sl.DataError, match="`ax` takes one panel, found 3"):
        sl.pl.pathways(filled, ax=ax)


def test_what_is_missing_is_named(filled, paired):
    with pytest.raises(
        sl.MissingKeyError, match=r"'HYPOXIC' not found in `\.obsm\['seal_pathways'\]`; closest: 'Hypoxia'"
    ):
        sl.pl.pathways(filled, "HYPOXIC")
    table = filled.tables["table"]
    table.obsm["seal_pathways"].loc[:, "TGFb"] = np.nan
    with pytest.raises(sl.DataError, match="holds no score of 'TGFb'"):
        sl.pl.pathways(filled, "TGFb")
    table.obsm["seal_pathways"] = table.obsm["X_seal"]
    with pytest.raises(sl.DataError, match="must be a DataFrame with named columns, found ndarray"):
        sl.pl.pathways(filled)
    del table.obsm["seal_pathways"]
    with pytest.raises(
        sl.OrderError, match=r"'seal_pathways' not found in `\.obsm`.*Run `sl\.tl\.pathways\(sdata, net\)`"
    ):
        sl.pl.pathways(filled)
