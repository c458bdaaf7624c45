from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

import sealst as sl


@pytest.fixture
def labelled(filled):
    table = filled.tables["table"]
    names = np.array(["tumour", "stroma", "fat"])[np.arange(36) % 3].astype(object)
    names[1] = None
    table.obs["class"] = pd.Categorical(names, categories=["tumour", "stroma", "fat"])
    table.obs["flag"] = np.arange(36) % 2 == 0
    return filled


@pytest.mark.parametrize(
    ("name", "slot", "title"),
    [
        ("seal_similarity", lambda t: t.obs["seal_similarity"], "seal_similarity"),
        ("epcam", lambda t: t.to_df("lognorm")["EPCAM"], "EPCAM, measured"),
        ("seal_expression:EPCAM", lambda t: t.obsm["seal_expression"]["EPCAM"], "seal_expression:EPCAM"),
        ("hypoxia", lambda t: t.obsm["seal_pathways"]["Hypoxia"], "Hypoxia"),
        ("X_seal:2", lambda t: t.obsm["X_seal"][:, 2], "X_seal:2"),
    ],
)
def test_every_kind_of_name_is_found_and_drawn(filled, spots_of, name, slot, title):
    figure = sl.pl.slide(filled, name)
    wanted = np.asarray(slot(filled.tables["table"]), dtype=float)
    np.testing.assert_allclose(spots_of(figure.axes[0]).get_array().filled(np.nan), wanted, rtol=1e-6)
    assert figure.axes[0].get_title() == title
    # The crops in order of the same name: the first one has the highest value.
    table = filled.tables["table"]
    usable = np.where(table.obs["crop_ok"], wanted, -np.inf)
    first = sl.pl.crops(filled, n_crops=1, order_by=name).axes[0].get_title()
    assert first.startswith(table.obs_names[usable.argmax()])


def test_predictions_alone_are_found_by_the_genes_name(filled, spots_of):
    table = filled.tables["table"]
    table.obsm["seal_expression"]["XIST"] = np.arange(36.0)
    figure = sl.pl.slide(filled, "xist")
    assert figure.axes[0].get_title() == "XIST, predicted"
    np.testing.assert_array_equal(spots_of(figure.axes[0]).get_array(), np.arange(36))


@pytest.mark.parametrize(("value", "limits"), [(1.0, (0, 1)), (-2.0, (-2, 0)), (0.0, (0, 1))])
def test_a_constant_is_coloured_between_0_and_it(filled, spots_of, value, limits):
    filled.tables["table"].obs["const"] = value
    assert spots_of(sl.pl.slide(filled, "const").axes[0]).get_clim() == limits


@pytest.mark.parametrize(("grey", "colour"), [(0, "white"), (255, "black")])
def test_the_scale_bar_is_seen_on_any_background(grey, colour):
    picture = np.full((100, 120, 3), grey, dtype=np.uint8)
    xy = np.array([[30.0, 30], [60, 30], [30, 60], [60, 60]])
    sdata = sl.io.from_arrays(picture, np.ones((4, 1)), xy, genes=["A"], mpp=1.0, spot_um=10, section="s")
    sdata.tables["table"].obs["n"] = range(4)
    (bar,) = (a for a in sl.pl.slide(sdata, "n").axes[0].artists if isinstance(a, AnchoredSizeBar))
    assert bar.txt_label.get_children()[0].get_color() == colour


def test_categories_have_a_legend_and_the_tables_own_colours(labelled, spots_of):
    table = labelled.tables["table"]
    table.uns["class_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    ax = sl.pl.slide(labelled, "class", alpha=0.5).axes[0]
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["tumour", "stroma", "fat"]
    assert [to_hex(h.get_color()) for h in legend.legend_handles] == ["#ff0000", "#00ff00", "#0000ff"]
    spots = spots_of(ax)
    spots.update_scalarmappable()
    faces = spots.get_facecolor()
    np.testing.assert_allclose(faces[0], [1, 0, 0, 0.5])
    np.testing.assert_allclose(faces[2], [0, 0, 1, 0.5])
    # Without a label: hollow.
    assert faces[1, 3] == 0
    flags = sl.pl.slide(labelled, "flag").axes[0].get_legend()
    assert [text.get_text() for text in flags.get_texts()] == ["False", "True"]


def test_several_maps_titles_and_the_picture_alone(labelled):
    figure = sl.pl.slide(labelled, ["class", "EPCAM"], title=["A", "B"])
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == ["A", "B"]
    # The legend of the first map ends before the second map starts.
    figure.draw_without_rendering()
    first, second = figure.axes[:2]
    assert first.get_legend().get_window_extent().x1 < second.get_window_extent().x0
    plain = sl.pl.slide(labelled).axes[0]
    assert plain.images
    assert not plain.collections
    beside = sl.pl.slide(labelled, [None, "EPCAM"]).axes
    assert [len(ax.collections) for ax in beside[:2]] == [0, 1]
    with pytest.raises(sl.DataError, match="`title` must hold one text per panel \\(2\\), found 'A'"):
        sl.pl.slide(labelled, ["class", "EPCAM"], title="A")


def test_tiles_without_genes(labelled, spots_of):
    table = labelled.tables["table"]
    tiles = table[:, []].copy()
    del tiles.layers
    labelled.tables["table"] = tiles
    figure = sl.pl.slide(labelled, ["ERBB2", "hypoxia"])
    assert [ax.get_title() for ax in figure.axes[:2]] == ["ERBB2, predicted", "Hypoxia"]


def test_what_cannot_be_shown_is_refused(labelled):
    with pytest.raises(sl.MissingKeyError, match=r"`color` 'VIN' is neither .*Closest: 'VIM'.*'key:column'"):
        sl.pl.slide(labelled, "VIN")
    labelled.tables["table"].obs["in_tissue"] = 1
    with pytest.raises(sl.MissingKeyError, match=r"Closest: 'in_tissue'"):
        sl.pl.slide(labelled, "in_tissu")
    with pytest.raises(
        sl.MissingKeyError, match=r"'9' not found in the columns of `.obsm\['X_seal'\]`; found: '0', '1'"
    ):
        sl.pl.slide(labelled, "X_seal:9")
    with pytest.raises(sl.MissingKeyError, match="'a' not found in the columns of"):
        sl.pl.slide(labelled, "X_seal:a")
    with pytest.raises(sl.MissingKeyError, match="'NOPE' not found in `.obsm\\['seal_expression'\\]`"):
        sl.pl.slide(labelled, "seal_expression:NOPE")
    labelled.tables["table"].obs["many"] = [f"c{i}" for i in range(36)]
    with pytest.raises(sl.DataError, match="has 36 categories; at most 20"):
        sl.pl.slide(labelled, "many")
    with pytest.raises(sl.DataError, match=r"`\.obs\['class'\]` must hold numbers"):
        sl.pl.crops(labelled, order_by="class")
    with pytest.raises(sl.DataError, match="`alpha` must lie between 0 and 1"):
        sl.pl.slide(labelled, "class", alpha=2)
    _, ax = plt.subplots()
    with pytest.raises(sl.DataError, match="`ax` takes one panel, found 2"):
        sl.pl.slide(labelled, ["class", "EPCAM"], ax=ax)


# -- attention --------------------------------------------------------------------------------------------------------
@pytest.fixture
def attended(filled):
    weights = np.arange(36.0) ** 2
    weights[0] = np.nan
    filled.tables["table"].obs["seal_attention"] = weights / np.nansum(weights)
    return filled


def test_attention_is_scaled_to_percentiles_and_the_label_says_so(attended, spots_of):
    figure = sl.pl.attention(attended, n_crops=4)
    values = spots_of(figure.axes[0]).get_array().filled(np.nan)
    assert np.isnan(values[0])
    np.testing.assert_allclose(values[1:], 100 * (np.arange(35) + 0.5) / 35)
    assert [bar.get_ylabel() for bar in figure.axes[0].child_axes] == ["attention (percentile within the slide)"]
    linear = sl.pl.attention(attended, n_crops=4, scale="linear")
    mean = np.nanmean(np.arange(1, 36) ** 2)
    np.testing.assert_allclose(spots_of(linear.axes[0]).get_array()[1:], np.arange(1, 36) ** 2 / mean, rtol=1e-6)


def test_most_attended_crops_stand_beside_and_are_circled(attended):
    table = attended.tables["table"]
    order = [row for row in np.arange(36)[::-1] if table.obs["crop_ok"].iloc[row]][:3]
    figure = sl.pl.attention(attended, n_crops=3)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    mean = np.nanmean(np.arange(1, 36) ** 2)
    assert titles == [f"{table.obs_names[r]}\n{r**2 / mean:.1f} × the mean" for r in order]
    (circles,) = [c for c in figure.axes[0].collections if c.get_gid() == "attended"]
    wanted = table.obsm["spatial"][order]
    np.testing.assert_allclose(np.sort(circles.get_offsets(), axis=0), np.sort(wanted, axis=0))
    # 35² + 34² + ... reach half of the sum of squares with 8 tiles.
    squares = np.arange(36)[::-1] ** 2
    half = int((squares.cumsum() < squares.sum() / 2).sum()) + 1
    assert (
        figure.texts[0]
        .get_text()
        .endswith(f"half of the attention lies on {half} of 35 tiles ({100 * half / 35:.2g} %)")
    )


def test_attention_map_alone_goes_into_given_axes(attended, spots_of):
    beside = spots_of(sl.pl.attention(attended, n_crops=3).axes[0]).get_array()
    _, ax = plt.subplots()
    assert sl.pl.attention(attended, n_crops=0, ax=ax) is ax
    np.testing.assert_array_equal(spots_of(ax).get_array(), beside)
    assert "half of the attention" in ax.get_title().replace("\n", " ")


def test_what_is_no_attention_is_refused(attended):
    table = attended.tables["table"]
    with pytest.raises(
        sl.OrderError, match=r"'x' not found in `.obs`.*Run `sl.tl.predict_slide\(sdata, model\)` first"
    ):
        sl.pl.attention(attended, key="x")
    table.obs["seal_attention"] -= 0.1
    with pytest.raises(sl.DataError, match="must hold weights that are not negative"):
        sl.pl.attention(attended)
    table.obs["seal_attention"] = np.nan
    with pytest.raises(sl.DataError, match="found in this region: none"):
        sl.pl.attention(attended)
