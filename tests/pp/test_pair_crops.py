from __future__ import annotations

import shutil

import numpy as np
import pytest
import spatialdata as sd
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

import sealst as sl
from sealst import _section
from sealst._data.crops.reader import read_crops

SIZE = 400


def ramp(size: int = SIZE) -> np.ndarray:
    """An image that holds its own coordinates: red = x / 2, green = y / 2."""
    y, x = np.mgrid[:size, :size]
    return np.stack([x // 2, y // 2, np.zeros_like(x)], axis=2).astype(np.uint8)


def lattice(n: int = 5, pitch: float = 60.0, start: float = 80.0) -> np.ndarray:
    i, j = np.mgrid[:n, :n]
    return np.column_stack([start + pitch * j.ravel(), start + pitch * i.ravel()])


def section(xy: np.ndarray | None = None, mpp: float = 0.5, name: str = "s", spot_um: float = 20.0) -> SpatialData:
    xy = lattice() if xy is None else xy
    counts = np.random.default_rng(0).poisson(3, (len(xy), 4)) + 1
    return sl.io.from_arrays(
        ramp(), counts, xy, genes=["A", "B", "C", "D"], mpp=mpp, spot_um=spot_um, section=name, thumbnail=False
    )


def bare(frame):
    """Shapes without the transformations they carry, so that others can be given."""
    frame = frame.copy()
    frame.attrs = {}
    return frame


def crops_of(sdata: SpatialData, px: int) -> tuple[np.ndarray, np.ndarray]:
    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    crops = _section.region_crops(sdata, table, region)
    rows, boxes = crops.rows, crops.boxes
    image = sdata.images[_section.crop_definition(table, region)["image_key"]]
    return rows, read_crops(_section.image_levels(image)[:1], boxes, px)


def centre_xy(crops: np.ndarray) -> np.ndarray:
    """Coordinates of the pixel in the middle of a crop, read from the ramp."""
    half = crops.shape[1] // 2
    return crops[:, half - 1 : half + 1, half - 1 : half + 1, :2].mean((1, 2)) * 2


@given(
    dx=st.floats(-15, 15),
    dy=st.floats(-15, 15),
    mpp=st.sampled_from([0.25, 0.5, 1.0]),
    crop_um=st.sampled_from([16.0, 32.0]),
)
@settings(max_examples=25, deadline=None)
def test_crop_centre_is_the_spot(dx, dy, mpp, crop_um):
    sdata = section(lattice() + [dx, dy], mpp=mpp)
    sl.pp.pair_crops(sdata, crop_um=crop_um, crop_px=32)
    rows, crops = crops_of(sdata, 32)
    expected = sdata.tables["table"].obsm["spatial"][rows] - 0.5
    np.testing.assert_allclose(centre_xy(crops), expected, atol=1.6)
    side = sdata.shapes["s_spots_crops"].bounds.eval("maxx - minx")
    np.testing.assert_allclose(side, crop_um / mpp)


@given(
    angle=st.floats(-np.pi, np.pi),
    scale=st.floats(0.5, 2.0),
    shift=st.tuples(st.floats(-50, 50), st.floats(-50, 50)),
    mirror=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_spots_in_their_own_frame_land_on_the_same_pixels(angle, scale, shift, mirror):
    """Spots stored in a rotated, scaled, mirrored, translated frame, tied to the image by their transformation."""
    sdata = section()
    true = sdata.tables["table"].obsm["spatial"].copy()
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirror:
        turn = turn @ np.diag([-1.0, 1.0])
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = turn, shift
    inverse = np.linalg.inv(matrix)
    spots = sdata.shapes["s_spots"].copy()
    local = true @ inverse[:2, :2].T + inverse[:2, 2]
    import shapely

    spots["geometry"] = shapely.points(local)
    affine = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
    sdata.shapes["s_spots"] = ShapesModel.parse(bare(spots), transformations={"global": affine})
    sl.pp.pair_crops(sdata, crop_um=16, crop_px=32)
    bounds = sdata.shapes["s_spots_crops"].bounds.to_numpy()
    np.testing.assert_allclose((bounds[:, :2] + bounds[:, 2:]) / 2, true, atol=1e-6)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_image_with_scaled_and_translated_frame(factor):
    """Image placed in "global" by scale and translation; the crop follows."""
    sdata = section()
    image = sdata.images["s_he"]
    matrix = np.array([[factor, 0, 30.0], [0, factor, -10.0], [0, 0, 1]])
    set_transformation(image, Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y")), "global")
    true = sdata.tables["table"].obsm["spatial"].copy()
    spots = sdata.shapes["s_spots"].copy()
    import shapely

    spots["geometry"] = shapely.points(true * factor + [30.0, -10.0])
    sdata.shapes["s_spots"] = ShapesModel.parse(bare(spots), transformations={"global": Identity()})
    sl.pp.pair_crops(sdata, crop_um=16, crop_px=32, pitch_um=30.0)
    bounds = sdata.shapes["s_spots_crops"].bounds.to_numpy()
    np.testing.assert_allclose((bounds[:, :2] + bounds[:, 2:]) / 2, true, atol=1e-6)


def test_spots_at_the_edge_are_padded_with_white_or_dropped():
    xy = np.vstack([lattice(), [[2.0, 200.0]]])
    sdata = section(xy)
    sl.pp.pair_crops(sdata, crop_um=32, crop_px=64)
    rows, crops = crops_of(sdata, 64)
    assert 25 in rows
    edge = crops[list(rows).index(25)]
    assert (edge[:, :28] == 255).all()
    assert (edge[:, 32:, 2] == 0).all()
    sl.pp.pair_crops(sdata, crop_um=32, crop_px=64, min_inside=1.0)
    obs = sdata.tables["table"].obs
    assert not obs["crop_ok"].iloc[25]
    assert obs["crop_reason"].iloc[25] == "outside image"
    assert obs["crop_ok"].iloc[:25].all()


def test_a_size_as_text_is_named_whole():
    with pytest.raises(sl.DataError, match="`crop_um` must be a positive number, found '112'"):
        sl.pp.pair_crops(section(), crop_um="112")


def test_join_is_by_id_not_by_order():
    sdata = section()
    shuffled = sdata.shapes["s_spots"].sample(frac=1.0, random_state=0)
    sdata.shapes["s_spots"] = ShapesModel.parse(bare(shuffled), transformations={"global": Identity()})
    sl.pp.pair_crops(sdata, crop_um=16, crop_px=32)
    rows, crops = crops_of(sdata, 32)
    np.testing.assert_allclose(centre_xy(crops), sdata.tables["table"].obsm["spatial"][rows] - 0.5, atol=1.6)


@pytest.mark.parametrize(
    ("stated", "expected"),
    [({"mpp": 0.5}, 0.5), ({"pitch_um": 30.0}, 0.5), ({"spot_um": 20.0}, 0.5), ({"mpp": 0.5, "pitch_um": 30.0}, 0.5)],
)
def test_scale_from_each_source(stated, expected):
    sdata = section()
    plain = Image2DModel.parse(ramp(), dims=("y", "x", "c"), c_coords=["r", "g", "b"])
    del sdata.images["s_he"]
    sdata.images["s_he"] = plain
    sl.pp.pair_crops(sdata, crop_um=16, crop_px=32, **stated)
    assert sdata.tables["table"].uns["sealst"]["crops"]["s_spots"]["mpp"] == pytest.approx(expected)


def test_several_regions_and_provenance_survive_zarr(tmp_path):
    import spatialdata as sd

    sdata = section()
    sl.pp.pair_crops(sdata, crop_um=16, crop_px=32)
    sdata.write(tmp_path / "s.zarr")
    back = sd.read_zarr(tmp_path / "s.zarr")
    assert back.tables["table"].uns["sealst"]["crops"]["s_spots"]["crop_px"] == 32
    rows, crops = crops_of(back, 32)
    np.testing.assert_array_equal(crops, crops_of(sdata, 32)[1])


def _no_table(s):
    del s.tables["table"]


def _no_image(s):
    del s.images["s_he"]


def _two_images(s):
    other = s.images["s_he"]
    del s.images["s_he"]
    s.images["a"], s.images["b"] = other, other


def _no_shapes(s):
    del s.shapes["s_spots"]


def _lost_spot(s):
    kept = s.shapes["s_spots"].iloc[1:]
    s.shapes["s_spots"] = ShapesModel.parse(bare(kept), transformations={"global": Identity()})


def _no_scale(s):
    del s.images["s_he"]
    s.images["s_he"] = Image2DModel.parse(ramp(), dims=("y", "x", "c"))


def _hires_copy(s):
    del s.images["s_he"]
    small = np.ascontiguousarray(ramp()[::4, ::4])
    s.images["s_he"] = Image2DModel.parse(small, dims=("y", "x", "c"))


def _float_image(s):
    del s.images["s_he"]
    s.images["s_he"] = Image2DModel.parse((ramp() / 255).astype("float32"), dims=("y", "x", "c"))


def _grey_image(s):
    del s.images["s_he"]
    s.images["s_he"] = Image2DModel.parse(ramp()[..., :1], dims=("y", "x", "c"))


def _oblong_pixels(s):
    set_transformation(s.images["s_he"], Scale([0.5, 0.7], axes=("x", "y")), "um")


def _one_spot(s):
    table = s.tables["table"][:1].copy()
    del s.tables["table"]
    s.tables["table"] = table


BAD = [
    (_float_image, {"mpp": 0.5}, sl.DataError, r"'s_he' is float32 with 3 channel\(s\); H&E must be uint8"),
    (_grey_image, {"mpp": 0.5}, sl.DataError, r"'s_he' is uint8 with 1 channel\(s\)"),
    (None, {"crop_px": 32.7}, sl.DataError, "`crop_px` must be a whole number, found 32.7"),
    (_no_table, {}, sl.MissingKeyError, r"'table' not found in `sdata.tables`"),
    (_no_image, {}, sl.MissingKeyError, "holds no image"),
    (_two_images, {}, sl.MissingKeyError, "name one with `image_key=`"),
    (None, {"image_key": "x"}, sl.MissingKeyError, "'x' not found in `sdata.images`; found: 's_he'"),
    (_no_shapes, {}, sl.MissingKeyError, "'s_spots' not found in `sdata.shapes`"),
    (_lost_spot, {}, sl.DataError, "1 of 25 spots of the table have no shape"),
    (_no_scale, {}, sl.ScaleError, r"unknown. Pass `mpp=`"),
    (_hires_copy, {"mpp": 0.5}, sl.DataError, r"lie outside image 's_he' \(100 x 100 px\)"),
    (_oblong_pixels, {}, sl.ScaleError, "not square: 0.7 by 0.5"),
    (None, {"mpp": 0.6}, sl.ScaleError, "Contradictory scale .* 0.5 .* 0.6 by `mpp`"),
    (None, {"pitch_um": 100.0}, sl.ScaleError, "Contradictory scale .* 1.667 by `pitch_um`"),
    (None, {"coordinate_system": "mm"}, sl.MissingKeyError, "'mm' not found in the element's coordinate systems"),
    (None, {"region": "q"}, sl.MissingKeyError, "'q' not found in the table's regions"),
    (None, {"crop_um": -1}, sl.DataError, "`crop_um` must be a positive number, found -1"),
    (None, {"min_inside": 2}, sl.DataError, "`min_inside` must lie between 0 and 1"),
    (_one_spot, {}, sl.DataError, r"has 1 spot\(s\); at least 2"),
]


@pytest.mark.parametrize(("damage", "options", "error", "text"), BAD, ids=[b[3][:30] for b in BAD])
def test_bad_input_is_refused_and_nothing_written(damage, options, error, text):
    sdata = section()
    if damage is not None:
        damage(sdata)
    before = set(sdata.shapes)
    with pytest.raises(error, match=text):
        sl.pp.pair_crops(sdata, **({"crop_um": 16, "crop_px": 32} | options))
    assert set(sdata.shapes) == before
    if "table" in sdata.tables:
        assert "crop_ok" not in sdata.tables["table"].obs
        assert "sealst" not in sdata.tables["table"].uns


def test_own_crops_are_replaced_and_shapes_of_others_are_not():
    sdata = section()
    sdata.shapes["s_spots_crops"] = sdata.shapes["s_spots"]
    with pytest.raises(sl.DataError, match=r"shapes\['s_spots_crops'\]` is there, which `sl.pp.pair_crops` did not"):
        sl.pp.pair_crops(sdata, crop_um=16, crop_px=32)
    assert sdata.shapes["s_spots_crops"] is sdata.shapes["s_spots"]
    del sdata.shapes["s_spots_crops"]
    sl.pp.pair_crops(sdata, crop_um=[16, 32], crop_px=32)
    assert "s_spots_crops_32um" in sdata.shapes
    sl.pp.pair_crops(sdata, crop_um=20, crop_px=32)
    assert sdata.tables["table"].uns["sealst"]["crops"]["s_spots"]["crop_um"] == 20
    assert set(sdata.shapes) == {"s_spots", "s_spots_crops"}, "a later pairing replaces all sizes"


def test_enlarged_crops_are_announced():
    sdata = section(mpp=4.0, spot_um=160)
    with pytest.warns(sl.SealstWarning, match="enlarged 8.0 times"):
        sl.pp.pair_crops(sdata, crop_um=16, crop_px=32)


def test_crops_before_pairing_name_the_call():
    table = section().tables["table"]
    (region,) = _section.regions_of(table)
    with pytest.raises(sl.OrderError, match=r"Run `sl.pp.pair_crops\(sdata\)` first"):
        _section.crop_definition(table, region)


def test_levels_of_an_image_with_odd_sides_agree_up_to_the_far_corner():
    y, x = np.mgrid[:401, :399]
    image = np.stack([x * 255 / 400, y * 255 / 400, x * 0], axis=2).astype(np.uint8)
    sdata = sl.io.from_arrays(
        image, np.ones((2, 1)), np.array([[60, 60], [330, 330.0]]), genes=["A"], mpp=1.0, spot_um=20, thumbnail=False
    )
    levels = _section.image_levels(sdata.images["section_he"])
    assert len(levels) > 1
    boxes = np.array([[10, 10, 110, 110], [280, 280, 380, 380.0]])
    fine, coarse = (read_crops(levels, boxes, 25, level=i).astype(float) for i in (0, 1))
    np.testing.assert_allclose(fine.mean((1, 2)), coarse.mean((1, 2)), atol=0.6)


def test_crops_that_all_lie_outside_are_refused():
    sdata = section()
    with pytest.raises(sl.DataError, match=r"No spot of 's_spots' has 50 % of its crop of 5000 µm inside image 's_he'"):
        sl.pp.pair_crops(sdata, crop_um=5000)
    assert "s_crops" not in sdata.shapes


def test_a_store_that_is_gone_is_named_and_not_read_as_black(tmp_path):
    """Zarr reads the missing chunks of an image as zeros."""
    written = section()
    written.write(tmp_path / "s.zarr")
    read = sd.read_zarr(tmp_path / "s.zarr")
    sl.pp.pair_crops(read, crop_um=20)
    shutil.rmtree(tmp_path / "s.zarr")
    encoder = sl.models.build_encoder("vit_tiny_patch16_224", pretrained=False)
    for call in (
        lambda: sl.pp.pair_crops(read, crop_um=20),
        lambda: sl.tl.embed(read, encoder, device="cpu"),
        lambda: sl.pl.slide(read),
        lambda: sl.pl.crops(read, n_crops=1),
    ):
        with pytest.raises(sl.DataError, match=r"is read from '.*s.zarr', which is not there any more"):
            call()
    # Of a store that lost chunks, zarr reads the others.
    written.write(tmp_path / "part.zarr")
    for chunks in (tmp_path / "part.zarr" / "images" / "s_he").glob("*/c"):
        shutil.rmtree(chunks)
    part = sd.read_zarr(tmp_path / "part.zarr")
    sl.pp.pair_crops(part, crop_um=20)
    with pytest.raises(sl.DataError, match="All 25 crops of 's' are of a single colour: the picture is not there"):
        sl.tl.embed(part, encoder, device="cpu")
    # What is in memory needs no store.
    sl.pp.pair_crops(written, crop_um=20)
