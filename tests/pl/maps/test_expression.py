from __future__ import annotations

import logging
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

import sealst as sl


def _titles(figure: Figure) -> list[str]:
    return [ax.get_title().replace("\n", " ") for ax in figure.axes]


def test_measured_beside_predicted_with_the_correlation_over_shared_spots(filled):
    figure = sl.pl.expression(filled, ["EPCAM", "VIM"])
    table = filled.tables["table"]
    expected = []
    for gene in ("EPCAM", "VIM"):
        both = pd.DataFrame({"m": table.to_df("lognorm")[gene], "p": table.obsm["seal_expression"][gene]}).dropna()
        assert len(both) == 35
        expected += [f"{gene}, measured", f"{gene}, predicted, r = {both['m'].corr(both['p']):.2f}".replace("-", "−")]
    assert _titles(figure) == expected


def test_circles_lie_on_the_spots_with_their_true_size(filled, spots_of):
    ax = sl.pl.expression(filled, "EPCAM", maps="measured").axes[0]
    circles = spots_of(ax)
    table = filled.tables["table"]
    np.testing.assert_allclose(circles.get_offsets(), table.obsm["spatial"])
    np.testing.assert_allclose(circles.get_array(), table.to_df("lognorm")["EPCAM"], rtol=1e-6)
    # 55 µm across at 1 µm per pixel, in units of the axes.
    np.testing.assert_allclose(circles.get_widths(), 55)
    assert circles._units == "xy"


def test_values_follow_the_spots_when_shapes_are_in_another_order(filled, spots_of):
    before = spots_of(sl.pl.expression(filled, "EPCAM", maps="predicted").axes[0]).get_offsets()
    filled.shapes["toy_spots"] = filled.shapes["toy_spots"].iloc[::-1]
    after = spots_of(sl.pl.expression(filled, "EPCAM", maps="predicted").axes[0]).get_offsets()
    np.testing.assert_array_equal(before, after)


def test_spots_without_a_prediction_stay_hollow(filled, spots_of):
    measured, predicted = (spots_of(ax) for ax in sl.pl.expression(filled, "EPCAM").axes)
    assert len(measured.get_offsets()) == len(predicted.get_offsets()) == 36
    assert np.ma.count_masked(measured.get_array()) == 0
    hollow = np.ma.getmaskarray(predicted.get_array())
    assert list(filled.tables["table"].obs_names[hollow]) == ["toy_2x1"]
    predicted.figure.canvas.draw()
    assert predicted.get_facecolors()[hollow][0, 3] == 0
    assert predicted.get_edgecolors()[hollow][0, 3] == 1


def test_shared_scale_is_one_scale_and_own_is_two(filled, spots_of):
    shared = [spots_of(ax).get_clim() for ax in sl.pl.expression(filled, "EPCAM", scale="shared").axes]
    assert shared[0] == shared[1]
    table = filled.tables["table"]
    pooled = np.concatenate([table.to_df("lognorm")["EPCAM"], table.obsm["seal_expression"]["EPCAM"].dropna()])
    np.testing.assert_allclose(shared[0], np.percentile(pooled, [1, 99]), rtol=1e-6)
    measured, predicted = (spots_of(ax).get_clim() for ax in sl.pl.expression(filled, "EPCAM", scale="own").axes)
    # The prediction is shrunk to 0.3 of the measured range.
    assert np.ptp(predicted) < 0.6 * np.ptp(measured)


def test_one_colour_bar_per_scale(filled):
    def bars(figure: Figure) -> list[str]:
        return [child.get_ylabel() for ax in figure.axes for child in ax.child_axes]

    one = "log1p CP10k, one scale for both"
    assert bars(sl.pl.expression(filled, "EPCAM", scale="shared")) == [one]
    assert bars(sl.pl.expression(filled, "EPCAM", scale="own")) == ["log1p CP10k, own scale"] * 2
    maps = ["measured", "predicted", "residual"]
    assert bars(sl.pl.expression(filled, "EPCAM", maps=maps, scale="shared")) == [one, "measured − predicted"]
    # A map alone has nothing to share colours with.
    assert bars(sl.pl.expression(filled, "EPCAM", maps="predicted")) == ["log1p CP10k"]


@pytest.mark.parametrize(
    ("shift", "factor", "said"), [(0, 1, "one scale for both"), (0, 0.6, "one scale for both"), (5, 1, "own scale")]
)
def test_the_scale_is_shared_where_both_ranges_overlap(filled, spots_of, shift, factor, said):
    table = filled.tables["table"]
    measured = table.to_df("lognorm")[["EPCAM"]].astype(float)
    table.obsm["seal_expression"] = shift + measured.mean() + factor * (measured - measured.mean())
    axes = sl.pl.expression(filled, "EPCAM").axes
    limits = [spots_of(ax).get_clim() for ax in axes]
    bars = [child.get_ylabel() for ax in axes for child in ax.child_axes]
    assert set(bars) == {f"log1p CP10k, {said}"}
    assert (limits[0] == limits[1]) == (said == "one scale for both")
    # No map is of one colour.
    for ax, (low, high) in zip(axes, limits, strict=True):
        values = spots_of(ax).get_array()
        assert np.ptp(np.clip(values, low, high)) > 0.5 * (high - low)


def test_residual_is_measured_minus_predicted_around_zero(filled, spots_of):
    figure = sl.pl.expression(filled, "KRT8", maps=["measured", "predicted", "residual"])
    assert len(figure.axes) == 3
    residual = spots_of(figure.axes[2])
    table = filled.tables["table"]
    expected = table.to_df("lognorm")["KRT8"] - table.obsm["seal_expression"]["KRT8"]
    np.testing.assert_allclose(residual.get_array().filled(np.nan), expected, rtol=1e-5)
    low, high = residual.get_clim()
    assert low == -high
    assert residual.get_cmap().name == "PuOr_r"


def test_gene_in_one_source_only_leaves_an_empty_map(filled):
    figure = sl.pl.expression(filled, "ACTB")
    assert _titles(figure) == ["ACTB, measured", "ACTB, predicted"]
    assert [t.get_text() for t in figure.axes[1].texts] == ["not predicted"]


def test_genes_are_found_in_any_case_spelled_as_stored_and_in_the_order_asked(filled):
    titles = _titles(sl.pl.expression(filled, ["vim", "Epcam"]))
    assert [title.split(",")[0] for title in titles] == ["VIM", "VIM", "EPCAM", "EPCAM"]
    # A column on disk may not be called as the gene is.
    table = filled.tables["table"]
    frame = table.obsm["seal_expression"][["VIM"]].set_axis(["IG_V"], axis=1)
    table.obsm["seal_expression"] = frame
    table.uns["sealst"] = {**table.uns["sealst"], "predict": {"seal_expression": {"genes": np.array(["IG/V"])}}}
    assert _titles(sl.pl.expression(filled, "ig/v", maps="predicted")) == ["IG/V, predicted"]


def test_constant_gene_has_no_correlation(filled):
    table = filled.tables["table"]
    layer = table.layers["lognorm"].tolil()
    layer[:, table.var_names.get_loc("VIM")] = 0
    table.layers["lognorm"] = layer.tocsr()
    assert "r undefined" in _titles(sl.pl.expression(filled, "VIM"))[1]


def test_only_measured_or_only_predicted(filled, caplog):
    table = filled.tables["table"]
    predicted = table.obsm.pop("seal_expression")
    with caplog.at_level(logging.INFO, logger="sealst"):
        assert _titles(sl.pl.expression(filled, ["EPCAM", "VIM"])) == ["EPCAM, measured", "VIM, measured"]
    assert "sl.tl.predict(sdata, model)" in caplog.text
    table.obsm["seal_expression"] = predicted
    del table.layers["lognorm"]
    assert _titles(sl.pl.expression(filled, ["EPCAM", "VIM"])) == ["EPCAM, predicted", "VIM, predicted"]


@pytest.mark.parametrize("n", [1, 8])
def test_many_genes_fit_without_overlap(filled, n):
    genes = list(filled.tables["table"].var_names[:n])
    figure = sl.pl.expression(filled, genes)
    assert len(figure.axes) == 2 * n
    renderer = figure.canvas.get_renderer()
    boxes = [box for ax in figure.axes if (box := ax.get_tightbbox(renderer)) is not None]
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            overlap = max(0, min(one.x1, other.x1) - max(one.x0, other.x0)) * max(
                0, min(one.y1, other.y1) - max(one.y0, other.y0)
            )
            assert overlap < 0.01 * one.width * one.height
        # Nothing is cut at the figure's edge.
        assert one.x0 >= -1
        assert one.x1 <= figure.bbox.width + 1
        assert one.y1 <= figure.bbox.height + 1


def test_image_under_the_spots_is_the_right_part(filled):
    ax = sl.pl.expression(filled, "EPCAM", maps="predicted").axes[0]
    picture = ax.images[0]
    left, right, bottom, top = picture.get_extent()
    pixels = np.asarray(picture.get_array()).astype(float)
    # Red rises along x and green along y over 600 px.
    x = left + (np.arange(pixels.shape[1]) + 0.5) * (right - left) / pixels.shape[1]
    y = top + (np.arange(pixels.shape[0]) + 0.5) * (bottom - top) / pixels.shape[0]
    np.testing.assert_allclose(pixels[:, :, 0].mean(0), x * 255 / 600, atol=2)
    np.testing.assert_allclose(pixels[:, :, 1].mean(1), y * 255 / 600, atol=2)
    assert ax.get_xlim() == (left, right)
    assert ax.get_ylim() == (bottom, top)


def test_scale_bar_has_its_length_in_um(toy_section):
    sdata = toy_section(mpp=0.5)
    sl.pp.normalize(sdata)
    ax = sl.pl.expression(sdata, "EPCAM").axes[0]
    (bar,) = [a for a in ax.artists if hasattr(a, "size_bar")]
    text = bar.txt_label.get_text()
    length = float(text.removesuffix(" µm"))
    assert bar.size_bar.get_children()[0].get_width() * 0.5 == pytest.approx(length)
    assert length == 50


def test_region_must_be_named_where_there_are_several(toy_section, spots_of):
    import spatialdata as sd

    parts = [toy_section(section=name, patient=name) for name in ("a", "b")]
    both = sd.concatenate(parts, concatenate_tables=True)
    sl.pp.normalize(both)
    names = list(both.tables["table"].uns["spatialdata_attrs"]["region"])
    with pytest.raises(sl.DataError, match="A map shows one region, the table has 2"):
        sl.pl.expression(both, "EPCAM")
    ax = sl.pl.expression(both, "EPCAM", region=names[1]).axes[0]
    own = (both.tables["table"].obs["region"] == names[1]).to_numpy()
    np.testing.assert_allclose(spots_of(ax).get_array(), both.tables["table"].to_df("lognorm")["EPCAM"][own], rtol=1e-6)


def test_no_layer_is_x(filled, spots_of):
    table = filled.tables["table"]
    ax = sl.pl.expression(filled, "EPCAM", layer=None, maps="measured").axes[0]
    assert ax.get_title() == "EPCAM, measured (X)"
    raw = np.asarray(table[:, "EPCAM"].X.todense()).ravel()
    np.testing.assert_allclose(spots_of(ax).get_array().filled(np.nan), raw, rtol=1e-5)
    with pytest.raises(sl.DataError, match=r"Measured values in `\.X` are not in the unit of predictions"):
        sl.pl.expression(filled, "EPCAM", layer=None, scale="shared")
    assert len(sl.pl.expression(filled, "EPCAM", layer=None).axes) == 2
    (alone,) = sl.pl.expression(filled, "EPCAM", maps="residual").axes[:1]
    assert alone.get_title() == "EPCAM, residual"
    with pytest.raises(sl.DataError, match="`maps` must be one of 'measured', 'predicted', 'residual'"):
        sl.pl.expression(filled, "EPCAM", maps="difference")


def test_missing_slots_name_the_call_to_run(toy_section, filled):
    with pytest.raises(sl.OrderError, match=r"sl\.pp\.normalize\(sdata\).*sl\.tl\.predict\(sdata, model\)"):
        sl.pl.expression(toy_section(), "EPCAM")
    with pytest.raises(sl.OrderError, match=r"'other' not found in `\.obsm`; found: .*sl\.tl\.predict"):
        sl.pl.expression(filled, "EPCAM", predicted_key="other")
    with pytest.raises(sl.OrderError, match="Layer 'smooth' not found"):
        sl.pl.expression(filled, "EPCAM", layer="smooth")
    with pytest.raises(sl.MissingKeyError, match=r"'EPCAN' not found in layer 'lognorm' or .*closest: 'EPCAM'"):
        sl.pl.expression(filled, "EPCAN")
    with pytest.raises(sl.DataError, match="`genes` names nothing"):
        sl.pl.expression(filled, [])
    del filled.tables["table"].obsm["seal_expression"]
    with pytest.raises(sl.OrderError, match="Expected both of layer 'lognorm'.*predictions 'seal_expression'"):
        sl.pl.expression(filled, "EPCAM", maps="residual")


def test_bad_options_raise(filled):
    with pytest.raises(sl.DataError, match="`scale` must be one of 'auto', 'shared', 'own'"):
        sl.pl.expression(filled, "EPCAM", scale="both")
    with pytest.raises(sl.DataError, match="`percentiles` must be two rising numbers"):
        sl.pl.expression(filled, "EPCAM", percentiles=(99, 1))
    with pytest.raises(sl.DataError, match="Measured values in layer 'counts' are not in the unit of predictions"):
        sl.pl.expression(filled, "EPCAM", layer="counts", scale="shared")
    with pytest.raises(TypeError, match="Expected a SpatialData, which holds the H&E, found AnnData"):
        sl.pl.expression(filled.tables["table"], "EPCAM")
    assert len(sl.pl.expression(filled, "EPCAM", layer="counts", scale="own").axes) == 2


def test_given_axes_are_drawn_into_for_a_single_map(filled, spots_of):
    _, (left, right) = plt.subplots(1, 2)
    assert sl.pl.expression(filled, "EPCAM", maps="predicted", ax=right) is right
    assert len(spots_of(right).get_offsets()) == 36
    assert not left.collections
    with pytest.raises(sl.DataError, match="`ax` takes one panel, found 2"):
        sl.pl.expression(filled, "EPCAM", ax=left)


def test_saved_file_is_complete_and_nothing_else_is_left(filled, tmp_path):
    path = tmp_path / "figures" / "maps.png"
    sl.pl.expression(filled, "EPCAM", save=path)
    assert [p.name for p in path.parent.iterdir()] == ["maps.png"]
    picture = Image.open(path)
    assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 20
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500
    sl.pl.expression(filled, "EPCAM", save=tmp_path / "maps.pdf")
    assert (tmp_path / "maps.pdf").read_bytes().startswith(b"%PDF")


def test_the_resolution_of_the_settings_holds(filled, tmp_path):
    with plt.rc_context({"savefig.dpi": 60}):
        sl.pl.expression(filled, "EPCAM", save=tmp_path / "maps.png")
    assert Image.open(tmp_path / "maps.png").info["dpi"] == pytest.approx((60, 60), abs=0.1)


def test_a_failed_save_keeps_the_old_file(filled, tmp_path, monkeypatch):
    path = tmp_path / "maps.png"
    path.write_text("old")
    monkeypatch.setattr(Figure, "savefig", lambda self, name, **_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        sl.pl.expression(filled, "EPCAM", save=path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_unknown_file_format_is_refused_before_drawing(filled, tmp_path):
    with pytest.raises(sl.DataError, match="`save` must end in a picture format .*found '.*maps'"):
        sl.pl.expression(filled, "EPCAM", save=tmp_path / "maps")
    assert not plt.get_fignums()


def test_show_is_called_only_on_demand(filled, monkeypatch):
    calls = []
    monkeypatch.setattr(plt, "show", lambda: calls.append(1))
    sl.pl.expression(filled, "EPCAM")
    assert len(plt.get_fignums()) == 1
    closed = sl.pl.expression(filled, "EPCAM", show=False)
    assert isinstance(closed, Figure)
    assert len(plt.get_fignums()) == 1
    assert not calls
    sl.pl.expression(filled, "EPCAM", show=True)
    assert calls == [1]


def test_global_settings_and_the_section_stay_as_they_are(filled):
    before, obs = dict(mpl.rcParams), filled.tables["table"].obs.copy()
    keys = (set(filled.tables["table"].obsm), set(filled.shapes))
    sl.pl.expression(filled, "EPCAM", maps=["measured", "predicted", "residual"])
    assert dict(mpl.rcParams) == before
    pd.testing.assert_frame_equal(filled.tables["table"].obs, obs)
    assert (set(filled.tables["table"].obsm), set(filled.shapes)) == keys


def test_plots_need_no_torch():
    code = "import sys, sealst.pl; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False).returncode == 0


def test_spots_that_are_squares_are_drawn_as_squares(filled):
    import geopandas as gpd
    from matplotlib.collections import PolyCollection
    from shapely import box
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import get_transformation

    old = filled.shapes["toy_spots"]
    squares = gpd.GeoDataFrame(geometry=[box(p.x - 20, p.y - 20, p.x + 20, p.y + 20) for p in old.geometry])
    squares.index = old.index
    transforms = get_transformation(old, get_all=True)
    del filled.shapes["toy_spots"]
    filled.shapes["toy_spots"] = ShapesModel.parse(squares, transformations=dict(transforms))
    ax = sl.pl.expression(filled, "EPCAM", maps="predicted").axes[0]
    (drawn,) = [c for c in ax.collections if isinstance(c, PolyCollection)]
    assert len(drawn.get_paths()) == 36
    corners = drawn.get_paths()[0].get_extents()
    assert (corners.width, corners.height) == (40, 40)
    np.testing.assert_allclose([corners.x0 + 20, corners.y0 + 20], filled.tables["table"].obsm["spatial"][0])
