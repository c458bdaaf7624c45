from __future__ import annotations

import numpy as np
import pytest

import sealst as sl


def _titles(figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes]


def test_crops_are_the_pixels_that_the_model_sees(filled):
    names = ["toy_3x2", "toy_0x0"]
    figure = sl.pl.crops(filled, spots=names)
    assert _titles(figure) == names
    for ax, (x, y) in zip(figure.axes, [(75 + 90 * 3, 75 + 90 * 2), (75, 75)], strict=True):
        pixels = np.asarray(ax.images[0].get_array()).astype(float)
        assert pixels.shape == (32, 32, 3)
        # Red is x and green is y of the image, in 255 steps over 600 px: the centre of the crop is the spot.
        np.testing.assert_allclose(pixels[15:17, 15:17, :2].mean((0, 1)), [x * 255 / 600, y * 255 / 600], atol=2)


def test_random_draw_depends_on_the_seed_only(filled):
    first = _titles(sl.pl.crops(filled, n_crops=6))
    assert len(first) == 6
    assert first == _titles(sl.pl.crops(filled, n_crops=6))
    assert first != _titles(sl.pl.crops(filled, n_crops=6, seed=1))


def test_more_crops_than_spots_shows_all_that_have_one(filled):
    titles = _titles(sl.pl.crops(filled, n_crops=100))
    assert len(titles) == 35
    assert "toy_2x1" not in titles


@pytest.mark.parametrize("ascending", [False, True])
def test_ordered_by_a_gene_or_a_column(filled, ascending):
    table = filled.tables["table"]
    usable = table.obs["crop_ok"].to_numpy()
    for name, values in (
        ("EPCAM", table.to_df("lognorm")["EPCAM"][usable]),
        ("seal_similarity", table.obs["seal_similarity"][usable]),
    ):
        expected = values.sort_values(ascending=ascending, kind="stable").index[:3]
        titles = _titles(sl.pl.crops(filled, n_crops=3, order_by=name, ascending=ascending))
        assert [t.split("\n")[0] for t in titles] == list(expected)
        value = f"{values[expected[0]]:.3g}".replace("-", "−")
        assert titles[0].split("\n")[1] == f"{name.removeprefix('seal_')} {value}"


def test_gene_that_is_only_predicted_orders_too(filled):
    table = filled.tables["table"]
    del table.layers["lognorm"]
    best = table.obsm["seal_expression"]["VIM"].idxmax()
    assert _titles(sl.pl.crops(filled, n_crops=1, order_by="vim"))[0].startswith(best)


def test_scale_bar_stands_in_the_first_crop_only(filled):
    figure = sl.pl.crops(filled, n_crops=3)
    bars = [[a for a in ax.artists if hasattr(a, "size_bar")] for ax in figure.axes]
    assert [len(b) for b in bars] == [1, 0, 0]
    # Axes are in µm: 60 µm crops.
    assert figure.axes[0].get_xlim() == (0, 60)
    length = float(bars[0][0].txt_label.get_text().removesuffix(" µm"))
    assert bars[0][0].size_bar.get_children()[0].get_width() == length == 10


def test_titles_from_a_column_or_a_list(filled):
    filled.tables["table"].obs["label"] = [f"t{i}" for i in range(36)]
    assert _titles(sl.pl.crops(filled, spots=["toy_1x0"], title_by="label")) == ["t1"]
    assert _titles(sl.pl.crops(filled, n_crops=2, title=["tumour", "stroma"])) == ["tumour", "stroma"]
    assert _titles(sl.pl.crops(filled, n_crops=1, title="tumour")) == ["tumour"]
    with pytest.raises(sl.DataError, match=r"one text per crop \(2\), found 1"):
        sl.pl.crops(filled, n_crops=2, title=["tumour"])
    with pytest.raises(sl.DataError, match=r"one text per crop \(2\), found 'label'"):
        sl.pl.crops(filled, n_crops=2, title="label")
    with pytest.raises(sl.MissingKeyError, match="`title_by` 'cluster' is no column of `.obs`"):
        sl.pl.crops(filled, title_by="cluster")
    with pytest.raises(sl.DataError, match="pass one of them"):
        sl.pl.crops(filled, n_crops=1, title="tumour", title_by="label")


def test_long_names_are_shortened_and_stay_apart(filled):
    table = filled.tables["table"]
    table.obs_names = [f"V1_Breast_Cancer_Block_A_{n}" for n in table.obs_names]
    figure = sl.pl.crops(filled, n_crops=4, n_cols=2)
    renderer = figure.canvas.get_renderer()
    boxes = [ax.title.get_window_extent(renderer) for ax in figure.axes]
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[2].y1 < figure.axes[0].get_window_extent(renderer).y0
    names = list(table.obs_names)
    for title in _titles(figure):
        start, end = title.split("…")
        assert any(name.startswith(start) and name.endswith(end) for name in names)


def test_several_regions_are_drawn_from_together(toy_section):
    import spatialdata as sd

    both = sd.concatenate([toy_section(section=n, patient=n) for n in ("a", "b")], concatenate_tables=True)
    sl.pp.pair_crops(both, crop_um=60, crop_px=32)
    figure = sl.pl.crops(both, spots=["b_0x0", "a_5x5", "b_1x0"])
    red = [np.asarray(ax.images[0].get_array())[15:17, 15:17, 0].mean() for ax in figure.axes]
    np.testing.assert_allclose(red, np.array([75, 75 + 450, 165]) * 255 / 600, atol=2)
    assert all(t.startswith("b_") for t in _titles(sl.pl.crops(both, n_crops=5, region="b_spots")))


def test_what_is_missing_is_named(filled, toy_section):
    with pytest.raises(sl.OrderError, match=r"Region 'toy_spots' has no crops .* Run `sl\.pp\.pair_crops\(sdata\)`"):
        sl.pl.crops(toy_section())
    with pytest.raises(sl.MissingKeyError, match=r"Spot\(s\) 'nobody' not found in `\.obs_names` \(e\.g\. 'toy_0x0'\)"):
        sl.pl.crops(filled, spots=["toy_0x0", "nobody"])
    with pytest.raises(sl.DataError, match=r"1 of the spots have no crop to show: 'toy_2x1 \(outside image\)'"):
        sl.pl.crops(filled, spots="toy_2x1")
    with pytest.raises(sl.MissingKeyError, match="`order_by` 'XIST' is neither a column of `.obs`"):
        sl.pl.crops(filled, order_by="XIST")
    with pytest.raises(sl.DataError, match=r"`\.obs\['section'\]` must hold numbers"):
        sl.pl.crops(filled, order_by="section")
    with pytest.raises(sl.DataError, match="`n_crops` must be a positive number, found 0"):
        sl.pl.crops(filled, n_crops=0)


def test_the_region_says_which_spot_of_a_name_is_shown(toy_section):
    import anndata as ad
    import spatialdata as sd

    parts = [toy_section(section=name, seed=i, patient=name) for i, name in enumerate("ab")]
    for sdata in parts:
        sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    tables = [sdata.tables["table"].copy() for sdata in parts]
    for table in tables:
        table.obs_names = table.obs["spot_id"].astype(str).to_numpy()
    joined = ad.concat(tables, uns_merge="unique")
    joined.obs["region"] = joined.obs["region"].astype("category")
    names = ["a_spots", "b_spots"]
    joined.uns["spatialdata_attrs"] = {"region": names, "region_key": "region", "instance_key": "spot_id"}
    joined.uns["sealst"] = {"crops": {n: t.uns["sealst"]["crops"][n] for n, t in zip(names, tables, strict=True)}}
    kinds = {kind: {k: v for s in parts for k, v in getattr(s, kind).items()} for kind in ("images", "shapes")}
    both = sd.SpatialData(**kinds, tables={"table": joined})
    shown = {}
    for name, own in zip(names, parts, strict=True):
        figure = sl.pl.crops(both, spots=["3x2"], region=name)
        shown[name] = np.asarray(figure.axes[0].images[0].get_array())
        alone = sl.pl.crops(own, spots=[f"{name[0]}_3x2"])
        np.testing.assert_array_equal(shown[name], np.asarray(alone.axes[0].images[0].get_array()))
    assert (shown["a_spots"] != shown["b_spots"]).any()
    with pytest.raises(sl.DataError, match="'3x2' is a spot of 2 sections; say which with `region=`: 'a_spots'"):
        sl.pl.crops(both, spots=["3x2"])
