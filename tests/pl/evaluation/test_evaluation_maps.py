from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest

import sealst as sl

ADAPTED = "adapted + ridge"


def maps_of(figure):
    return [ax for ax in figure.axes if ax.get_title()]


def scaled(values):
    values = np.asarray(values, dtype=float)
    return (values - values.mean()) / values.std()


def columns(evaluation, section, gene):
    spots = evaluation.spots[section][:, gene]
    return np.asarray(spots.X).ravel(), np.asarray(spots.layers[ADAPTED]).ravel()


def test_residual_is_measured_minus_predicted_in_z_scores(evaluation, spots_of):
    figure = sl.pl.residual_maps(evaluation, "vim", section="B4")
    maps = maps_of(figure)
    r = np.corrcoef(*columns(evaluation, "B4", "VIM"))[0, 1]
    assert [ax.get_title() for ax in maps] == ["VIM, measured", f"VIM, {ADAPTED}, r = {r:.2f}", "VIM, residual"]
    measured, predicted = (scaled(v) for v in columns(evaluation, "B4", "VIM"))
    shown = [spots_of(ax) for ax in maps]
    np.testing.assert_allclose(shown[0].get_array(), measured, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shown[2].get_array(), measured - predicted, rtol=1e-4, atol=1e-4)
    # Colours of the residual are symmetric about white; the other two share theirs.
    assert shown[2].norm.vmin == -shown[2].norm.vmax
    assert (shown[0].norm.vmin, shown[0].norm.vmax) == (shown[1].norm.vmin, shown[1].norm.vmax)
    assert shown[2].cmap.name == "PuOr_r"


def test_single_map_goes_into_given_axes_as_it_is_drawn_beside_others(evaluation, spots_of):
    beside = spots_of(maps_of(sl.pl.residual_maps(evaluation, "VIM", section="B4"))[2])
    _, ax = plt.subplots()
    assert sl.pl.residual_maps(evaluation, "VIM", section="B4", maps="residual", title="missed", ax=ax) is ax
    np.testing.assert_array_equal(spots_of(ax).get_array(), beside.get_array())
    assert ax.get_title() == "missed"
    figure = sl.pl.residual_maps(evaluation, "VIM", section="B4", maps=["residual", "measured"], title=["a", "b"])
    assert [ax.get_title() for ax in maps_of(figure)] == ["a", "b"]
    with pytest.raises(sl.DataError, match="`maps` must be one of"):
        sl.pl.residual_maps(evaluation, "VIM", section="B4", maps="rest")


def test_amounts_are_compared_in_log1p_units(evaluation, spots_of):
    figure = sl.pl.residual_maps(evaluation, "VIM", section="B4", scale="log1p")
    measured, predicted = columns(evaluation, "B4", "VIM")
    np.testing.assert_allclose(spots_of(maps_of(figure)[2]).get_array(), measured - predicted, atol=1e-5)
    labels = [ax.get_ylabel() for ax in figure.axes if ax not in maps_of(figure)]
    labels += [child.get_ylabel() for ax in maps_of(figure) for child in ax.child_axes]
    assert "measured − predicted (log1p CP10k)" in labels


def test_without_he_spots_stand_in_um_with_a_scale_bar(evaluation, spots_of):
    ax = maps_of(sl.pl.residual_maps(evaluation, "VIM", section="B4"))[0]
    xy = evaluation.spots["B4"].obsm["spatial"]
    np.testing.assert_allclose(spots_of(ax).get_offsets(), xy)
    bar = ax.artists[0] if len(ax.artists) else None
    assert bar is not None
    assert bar.txt_label.get_text() == "200 µm"
    # y goes down, as in the picture.
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_what_does_not_vary_has_no_z_score(evaluation):
    figure = sl.pl.residual_maps(evaluation, "VIM", section="B4", method="mean")
    texts = [t.get_text() for ax in maps_of(figure) for t in ax.texts]
    assert texts == ["does not vary", "undefined"]


def test_spots_are_joined_to_the_he_by_name(toy_evaluation, spots_of):
    result, sdata = toy_evaluation
    shuffled = result.spots["toy"][np.random.default_rng(0).permutation(35)].copy()
    result = dataclasses.replace(result, spots={"toy": shuffled})
    ax = maps_of(sl.pl.residual_maps(result, "VIM", sdata=sdata))[0]
    spots = spots_of(ax)
    # The first spot was not evaluated, so it is not drawn.
    assert len(spots.get_array()) == 35
    xy = np.asarray(spots.get_offsets())
    by_place = {tuple(p): v for p, v in zip(xy.round().tolist(), spots.get_array(), strict=True)}
    expected = scaled(np.asarray(shuffled[:, "VIM"].X).ravel())
    for place, value in zip(shuffled.obsm["spatial"].round().tolist(), expected, strict=True):
        assert by_place[tuple(place)] == pytest.approx(value, abs=1e-4)
    assert ax.images[0].get_array().shape[0] > 100


def test_maps_of_a_section_that_is_not_there(evaluation, toy_evaluation):
    _, sdata = toy_evaluation
    with pytest.raises(sl.DataError, match="`sdata` holds none of the spots of section 'B4'"):
        sl.pl.residual_maps(evaluation, "VIM", section="B4", sdata=sdata)
    with pytest.raises(sl.DataError, match="Maps show one section, the Evaluation has 3: 'B4', 'C2', 'C3'"):
        sl.pl.residual_maps(evaluation, "VIM")
    with pytest.raises(sl.MissingKeyError, match="'VIMM' not found in the evaluated genes; closest: 'VIM'"):
        sl.pl.residual_maps(evaluation, "VIMM", section="B4")
    with pytest.raises(sl.MissingKeyError, match="`method`: 'uni' not found"):
        sl.pl.residual_maps(evaluation, "VIM", section="B4", method="uni")
    with pytest.raises(sl.DataError, match="`.spots` is empty"):
        sl.pl.residual_maps(dataclasses.replace(evaluation, spots={}), "VIM")


def line_of(ax, method):
    (line,) = [one for one in ax.lines if one.get_label() == method]
    return np.asarray(line.get_xydata())


def test_a_calibrated_method_lies_on_the_diagonal_and_a_bold_one_is_flatter(evaluation):
    spots = evaluation.spots["B4"].copy()
    spots.layers["true"] = np.asarray(spots.X)
    spots.layers["bold"] = np.asarray(spots.X).mean(0) + 2 * (np.asarray(spots.X) - np.asarray(spots.X).mean(0))
    result = dataclasses.replace(evaluation, spots={"B4": spots})
    ax = sl.pl.calibration(result, methods=["true", "bold", "mean"]).axes[0]
    exact, bold, mean = (line_of(ax, m) for m in ("true", "bold", "mean"))
    assert exact.shape == (10, 2)
    np.testing.assert_allclose(exact[:, 0], exact[:, 1], atol=1e-6)
    np.testing.assert_allclose(bold[:, 1], bold[:, 0] / 2, atol=1e-6)
    # The mean of the section itself is one point at the origin.
    np.testing.assert_allclose(mean, [[0, 0]], atol=1e-5)


def test_calibration_of_twenty_sections_has_one_legend(evaluation_of):
    figure = sl.pl.calibration(evaluation_of(20), methods=["mean", ADAPTED])
    assert len(figure.axes) == 20
    (legend,) = [ax.get_legend() for ax in figure.axes if ax.get_legend()]
    assert [t.get_text() for t in legend.get_texts()] == ["mean", ADAPTED, "calibrated"]
    assert not [ax for ax in figure.axes if ax.get_window_extent().overlaps(legend.get_window_extent())]
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_calibration_into_given_axes(evaluation):
    _, ax = plt.subplots()
    assert sl.pl.calibration(evaluation, sections="C2", genes=["VIM"], n_bins=4, ax=ax) is ax
    assert line_of(ax, ADAPTED).shape == (4, 2)
    with pytest.raises(sl.DataError, match="`ax` takes one panel, found 3"):
        sl.pl.calibration(evaluation, ax=ax)
    with pytest.raises(sl.MissingKeyError, match="`genes`: 'NOPE' not found"):
        sl.pl.calibration(evaluation, genes=["NOPE"])
