"""Spots under the mouse: what the widget holds, and the names that it gives back."""

from __future__ import annotations

import base64
import io
import logging
import sys

import numpy as np
import pytest
from PIL import Image

import sealst as sl
from sealst._data.crops.reader import read_crops

#: a spot of `filled` without a crop, and one with
NO_CROP, SPOT = "toy_2x1", "toy_4x1"


@pytest.fixture
def section(filled):
    table = filled.tables["table"]
    table.obs["kind"] = np.where(np.arange(table.n_obs) % 2, "odd", "even")
    return filled


@pytest.fixture(autouse=True)
def _needs_the_widget(request):
    if "without" not in request.node.name:
        pytest.importorskip("jscatter", reason="the widget is jupyter-scatter's (sealst[notebook])")


def frame_of(scatter):
    """What the widget was given; it has no call that hands it out."""
    return scatter._data


def test_spots_stand_in_micrometres_as_in_the_picture(section):
    # This spot has its centre at (75 + 4 * 90, 75 + 90) px of 1 µm; the axis of the plot points upwards.
    frame = frame_of(sl.pl.explore(section, "EPCAM"))
    np.testing.assert_allclose(frame.loc[SPOT, ["x_um", "y_um"]].astype(float), (435, -165))
    assert set(section.tables["table"].obs_names) - set(frame.index) == {NO_CROP}


def test_values_are_those_of_maps_to_four_digits(section):
    table = section.tables["table"]
    frame = frame_of(sl.pl.explore(section, ["seal_expression:EPCAM", "kind"]))
    stored = table.obsm["seal_expression"].loc[frame.index, "EPCAM"]
    np.testing.assert_allclose(frame["seal_expression:EPCAM"], stored, rtol=1e-3)
    assert (frame["kind"].astype(str) == table.obs.loc[frame.index, "kind"].astype(str)).all()


def test_the_picture_under_the_mouse_is_the_crop(section):
    frame = frame_of(sl.pl.explore(section, "EPCAM"))
    address = frame.loc[SPOT, "crop"]
    head, _, body = address.partition(",")
    assert head == "data:image/jpeg;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))), dtype=float)
    table = section.tables["table"]
    paired = sl._section.region_crops(section, table, sl._section.regions_of(table)[0])
    at = table.obs_names[paired.rows].get_loc(SPOT)
    (expected,) = read_crops(paired.levels, paired.boxes[[at]], paired.crop_px)
    assert picture.shape == expected.shape
    assert np.abs(picture - expected).mean() < 12  # JPEG


def test_no_crops_above_the_number_asked_for(section, caplog):
    with caplog.at_level(logging.INFO, logger="sealst"):
        frame = frame_of(sl.pl.explore(section, "EPCAM", n_crops=10))
    assert "crop" not in frame
    assert "35 spots, `n_crops` is 10" in caplog.text
    assert "crop" not in frame_of(sl.pl.explore(section, "EPCAM", n_crops=0))


def test_chosen_spots_come_back_by_name(section):
    scatter = sl.pl.explore(section, "kind")
    chosen = ["toy_0x0", SPOT]
    assert list(scatter.selection(chosen).selection()) == chosen


def test_colours_of_categories_are_those_of_the_table(section):
    section.tables["table"].uns["kind_colors"] = ["#ff0000", "#0000ff"]
    assert sl.pl.explore(section, "kind").color()["map"] == [(1, 0, 0, 1), (0, 0, 1, 1)]


def test_the_section_is_left_as_it_was(section):
    table = section.tables["table"]
    before = (table.obs.copy(), list(table.obsm), list(section.shapes))
    sl.pl.explore(section, ["EPCAM", "kind"])
    assert before[0].equals(table.obs)
    assert before[1:] == (list(table.obsm), list(section.shapes))


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"color": "EPCAMM"}, sl.MissingKeyError, "EPCAM"),
        ({"color": []}, sl.DataError, "names nothing"),
        ({"color": "EPCAM", "n_crops": -1}, sl.DataError, "n_crops"),
        ({"color": "EPCAM", "height": 0}, sl.DataError, "height"),
    ],
)
def test_what_cannot_be_shown_is_said(section, options, error, said):
    with pytest.raises(error, match=said):
        sl.pl.explore(section, **options)


def test_values_that_no_spot_has_are_said(section):
    section.tables["table"].obs["empty"] = np.nan
    with pytest.raises(sl.DataError, match="nothing to show"):
        sl.pl.explore(section, "empty")


def test_the_extra_is_named_where_it_is_without_the_widget(section, monkeypatch):
    monkeypatch.setitem(sys.modules, "jscatter", None)
    with pytest.raises(sl.DataError, match=r"sealst\[notebook\]"):
        sl.pl.explore(section, "EPCAM")
