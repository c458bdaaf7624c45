"""Crops under any placement of image and spots, at several magnifications."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from spatialdata.models import ShapesModel
from spatialdata.transformations import Affine, set_transformation

import sealst as sl
from sealst import _section
from sealst._data.crops.reader import read_crops

SIZE, MPP = 400, 0.5


def ramp() -> np.ndarray:
    """An image that holds its own coordinates: red = x / 2, green = y / 2."""
    y, x = np.mgrid[:SIZE, :SIZE]
    return np.stack([x // 2, y // 2, np.zeros_like(x)], axis=2).astype(np.uint8)


def section(xy: np.ndarray, image: np.ndarray | None = None):
    return sl.io.from_arrays(
        ramp() if image is None else image, np.ones((len(xy), 2)), xy, genes=["A", "B"], mpp=MPP, spot_um=10,
        section="s", thumbnail=False,
    )  # fmt: skip


def as_affine(matrix: np.ndarray) -> Affine:
    return Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))


def placed(linear: np.ndarray, shift: tuple[float, float]) -> np.ndarray:
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = linear, shift
    return matrix


def turned(angle: float, scale: float, mirror: bool) -> np.ndarray:
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return turn @ np.diag([-1.0 if mirror else 1.0, 1.0])


shifts = st.tuples(st.floats(-500, 500), st.floats(-500, 500))
similarities = st.builds(
    placed, st.builds(turned, st.floats(-np.pi, np.pi), st.floats(0.2, 5.0), st.booleans()), shifts
)
#: spots may be stretched and sheared too: only their centres count
affines = st.builds(
    lambda angle, mirror, a, b, shear, shift: placed(
        turned(angle, 1.0, mirror) @ np.array([[a, shear], [0.0, b]]), shift
    ),
    st.floats(-np.pi, np.pi), st.booleans(), st.floats(0.2, 5.0), st.floats(0.2, 5.0), st.floats(-2.0, 2.0), shifts,
)  # fmt: skip
lattices = st.builds(
    lambda n, pitch, x, y, angle: (
        (np.stack(np.meshgrid(np.arange(n), np.arange(n)), -1).reshape(-1, 2) - (n - 1) / 2)
        * pitch
        @ turned(angle, 1.0, False).T
        + [200 + x, 200 + y]
    ),
    st.integers(2, 5), st.floats(15, 40), st.floats(-20, 20), st.floats(-20, 20), st.floats(-np.pi, np.pi),
)  # fmt: skip


@given(image=similarities, spots=affines, xy=lattices, crop_um=st.floats(8, 40))
@settings(max_examples=60, deadline=None)
def test_the_centre_pixel_of_every_crop_is_the_spots(image, spots, xy, crop_um):
    sdata = section(xy)
    # The spot at pixel p of the image stands at image @ p in "global", and at spots^-1 @ image @ p in its own frame.
    to_own = np.linalg.inv(spots) @ image
    local = xy @ to_own[:2, :2].T + to_own[:2, 2]
    frame = sdata.shapes["s_spots"].copy()
    frame.attrs = {}
    frame["geometry"] = shapely.points(local)
    sdata.shapes["s_spots"] = ShapesModel.parse(frame, transformations={"global": as_affine(spots)})
    set_transformation(sdata.images["s_he"], as_affine(image), "global")
    sl.pp.pair_crops(sdata, crop_um=crop_um, crop_px=32)
    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    crops = _section.region_crops(sdata, table, region)
    rows, source = crops.rows, crops.source
    assert len(rows) == len(xy)
    crops = read_crops(source.levels[:1], source.boxes, 32)
    centre = crops[:, 15:17, 15:17, :2].mean((1, 2)) * 2
    # Red and green hold every second coordinate: the floor costs one pixel, its mean half of one.
    np.testing.assert_allclose(centre, xy - 0.5, atol=1.6)


@given(image=st.builds(placed, st.builds(lambda r: np.diag([1.0, r]), st.floats(1.05, 4.0)), shifts))
@settings(max_examples=10, deadline=None)
def test_an_image_that_is_stretched_is_refused(image):
    sdata = section(np.array([[100.0, 100.0], [200.0, 200.0]]))
    set_transformation(sdata.images["s_he"], as_affine(image), "global")
    with pytest.raises(sl.ScaleError, match="stretched unevenly"):
        sl.pp.pair_crops(sdata, crop_um=20)


def smooth(seed: int, size: int = 256) -> np.ndarray:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(size, size)), 6)
    return np.stack([((field - field.min()) / np.ptp(field) * 255).round()] * 3).astype(np.uint8)


@given(seed=st.integers(0, 50), side=st.floats(60, 120), x=st.floats(0, 130), y=st.floats(0, 130), odd=st.booleans())
@settings(max_examples=30, deadline=None)
def test_another_level_changes_the_crop_by_resampling_error_only(seed, side, x, y, odd):
    from sealst._section import pyramid as _pyramid

    size = 255 if odd else 256
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_pyramid, "CHUNK_PX", 64)
        levels = _pyramid.levels_of(np.moveaxis(smooth(seed)[:, :size, :size], 0, 2))
    box = np.array([[x, y, x + side, y + side]]) * (size / 256)
    by_level = [read_crops(levels[:2], box, 30, level=i).astype(float) for i in (0, 1)]
    # A crop that is displaced by half a pixel of the coarse level differs by about 3 on these images.
    assert np.abs(by_level[0] - by_level[1])[:, 2:-2, 2:-2].mean() < 1.0


@given(value=st.integers(0, 255), side=st.floats(5, 90), x=st.floats(0, 60), y=st.floats(0, 60), px=st.integers(4, 40))
@settings(max_examples=30, deadline=None)
def test_a_constant_image_gives_constant_crops(value, side, x, y, px):
    level = da.full((3, 150, 150), value, dtype=np.uint8, chunks=(3, 37, 41))
    assert (read_crops([level], np.array([[x, y, x + side, y + side]]), px) == value).all()


# -- magnifications ---------------------------------------------------------------------------------------------------
def test_several_magnifications_are_concentric(tmp_path):
    sdata = section(np.array([[100.0, 120.0], [200.0, 180.0], [15.0, 200.0]]))
    sl.pp.pair_crops(sdata, crop_um=[20, 10, 40.5], crop_px=32)
    table = sdata.tables["table"]
    entry = table.uns["sealst"]["crops"]["s_spots"]
    assert entry["sizes"] == {"20": "s_spots_crops", "10": "s_spots_crops_10um", "40.5": "s_spots_crops_40.5um"}
    for um, key in ((20, "s_spots_crops"), (10, "s_spots_crops_10um"), (40.5, "s_spots_crops_40.5um")):
        bounds = sdata.shapes[key].bounds.to_numpy()
        np.testing.assert_allclose((bounds[:, :2] + bounds[:, 2:]) / 2, table.obsm["spatial"])
        np.testing.assert_allclose(bounds[:, 2] - bounds[:, 0], um / MPP)
    sdata.write(tmp_path / "s.zarr")
    sl.pp.pair_crops(sdata, crop_um=10, crop_px=32)
    assert [k for k in sdata.shapes if "crops" in k] == ["s_spots_crops"]


def test_a_spot_needs_a_crop_of_every_size():
    xy = np.array([[100.0, 120.0], [200.0, 180.0], [12.0, 200.0]])
    sdata = section(xy)
    # 100 µm are 200 px: a square around x = 12 lies inside by 56 %.
    sl.pp.pair_crops(sdata, crop_um=[20, 100], crop_px=32, min_inside=0.6)
    assert list(sdata.tables["table"].obs["crop_ok"]) == [True, True, False]
    sl.pp.pair_crops(sdata, crop_um=20, crop_px=32, min_inside=0.6)
    assert sdata.tables["table"].obs["crop_ok"].all()


def test_each_size_shows_its_own_square():
    sdata = section(np.array([[100.0, 120.0], [200.0, 180.0]]))
    sl.pp.pair_crops(sdata, crop_um=[20, 40], crop_px=20)
    table = sdata.tables["table"]
    (region,) = _section.regions_of(table)
    crops = {}
    for um in (20.0, 40.0):
        source = _section.region_crops(sdata, table, region, um).source
        crops[um] = read_crops(source.levels, source.boxes, 20)[0].astype(float)
    # Red rises by half a level per pixel; a crop of twice the side spans twice the range around the same centre.
    spans = {um: np.ptp(c[..., 0].mean(0)) for um, c in crops.items()}
    assert spans[40.0] == pytest.approx(2 * spans[20.0], rel=0.1)
    assert crops[40.0].mean() == pytest.approx(crops[20.0].mean(), abs=1)


@pytest.mark.parametrize(
    ("crop_um", "text"),
    [([], "`crop_um` is empty"), ([56, 56.0], "names a size twice"), ([56, -1], "`crop_um` must be a positive number")],
)
def test_bad_sizes_are_refused(crop_um, text):
    sdata = section(np.array([[100.0, 120.0], [200.0, 180.0]]))
    with pytest.raises(sl.DataError, match=text):
        sl.pp.pair_crops(sdata, crop_um=crop_um)
    assert list(sdata.shapes) == ["s_spots"]


def test_embeddings_name_and_keep_their_size():
    sdata = section(np.array([[100.0, 120.0], [200.0, 180.0], [250.0, 200.0]]))
    sl.pp.pair_crops(sdata, crop_um=[56, 112], crop_px=32)
    table = sdata.tables["table"]
    for um in (56, 112):
        sl.tl.embed(sdata, "vit_tiny_patch16_224", pretrained=False, crop_um=um, key_added=f"X_{um}")
        assert table.uns["sealst"]["embed"][f"X_{um}"]["crops"]["s_spots"]["crop_um"] == um
    assert np.abs(table.obsm["X_56"] - table.obsm["X_112"]).max() > 1e-3
    sl.tl.embed(sdata, "vit_tiny_patch16_224", pretrained=False, key_added="X")
    np.testing.assert_array_equal(table.obsm["X"], table.obsm["X_56"])
    with pytest.raises(sl.DataError, match=r"has crops of 56, 112 µm, not of 224 µm.*crop_um=\[224"):
        sl.tl.embed(sdata, "vit_tiny_patch16_224", pretrained=False, crop_um=224)


def test_a_crop_outside_the_image_is_never_usable():
    xy = np.vstack([np.full((20, 2), 200.0) + np.arange(20)[:, None], [[-5000.0, -5000.0]]])
    sdata = section(xy)
    sl.pp.pair_crops(sdata, crop_um=20, min_inside=0)
    assert not sdata.tables["table"].obs["crop_ok"].iloc[-1]


def test_crops_at_the_edge_of_a_cut_image_drop_out():
    sdata = section(np.array([[100.0, 100.0], [200.0, 200.0], [300.0, 300.0]]))
    sl.pp.pair_crops(sdata, crop_um=40, crop_px=32, min_inside=0.6)
    cut = sdata.query.bounding_box(
        ("x", "y"), min_coordinate=[0, 0], max_coordinate=[200, 390], target_coordinate_system="global"
    )
    table = cut.tables["table"]
    (region,) = _section.regions_of(table)
    crops = _section.region_crops(cut, table, region)
    rows, boxes = crops.rows, crops.boxes
    assert list(table.obs_names[rows]) == ["s_0"]
    np.testing.assert_allclose(boxes, [[60, 60, 140, 140]])


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["b", "g", "r"], "are 'b', 'g', 'r', not red, green, blue"),
        (["DAPI", "PanCK", "CD45"], "are called 'DAPI', 'PanCK', 'CD45'.* no colours of an H&E, as in fluorescence"),
        (["Channel 1", "Channel 2", "Channel 3"], None),
    ],
)
def test_channels_that_are_not_red_green_and_blue_are_refused(names, text):
    sdata = section(np.array([[100.0, 100.0], [200.0, 200.0]]))
    element = sdata.images["s_he"]["scale0"]["image"].assign_coords(c=names)
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    del sdata.images["s_he"]
    sdata.images["s_he"] = Image2DModel.parse(
        element.data, dims=("c", "y", "x"), c_coords=names, transformations={"global": Identity()}
    )
    if text is None:
        sl.pp.pair_crops(sdata, mpp=0.5)
        return
    with pytest.raises(sl.DataError, match=text):
        sl.pp.pair_crops(sdata, mpp=0.5)


@pytest.mark.parametrize(("crop_um", "text"), [(0.0001, "less than one pixel")])
def test_sizes_in_the_wrong_unit_are_refused(crop_um, text):
    sdata = section(np.array([[100.0, 100.0], [200.0, 200.0]]))
    with pytest.raises(sl.DataError, match=text):
        sl.pp.pair_crops(sdata, crop_um=crop_um)


def test_a_table_is_not_enough():
    sdata = section(np.array([[100.0, 100.0], [200.0, 200.0]]))
    with pytest.raises(TypeError, match="pass the SpatialData, not its table"):
        sl.pp.pair_crops(sdata.tables["table"])
    with pytest.raises(TypeError, match="Several sections go one by one"):
        sl.pp.pair_crops([sdata])


def test_aligned_width_alone_is_resampled():
    level = da.random.randint(0, 255, (3, 129, 1024), chunks=(3, 64, 64)).astype(np.uint8)
    coarse = level[:, :128:2, ::2]
    assert read_crops([level, coarse], np.array([[0, -129.0, 256, 127]]), 128).shape == (1, 128, 128, 3)


# -- distances between spots ------------------------------------------------------------------------------------------
GRID = np.stack(np.meshgrid([100.0, 160, 220, 280], [100.0, 160, 220, 280]), -1).reshape(-1, 2)


def um_per_unit(sdata) -> float:
    return sdata.tables["table"].uns["sealst"]["crops"]["s_spots"]["um_per_unit"]


@settings(max_examples=20, deadline=None)
@given(image=similarities, positions=similarities)
def test_distances_are_in_um_whatever_the_positions_are_given_in(image, positions):
    sdata = section(GRID)
    for element in (sdata.images["s_he"], sdata.shapes["s_spots"]):
        set_transformation(element, as_affine(image), "placed")
    xy = GRID @ positions[:2, :2].T + positions[:2, 2]
    sdata.tables["table"].obsm["spatial"] = xy
    sl.pp.pair_crops(sdata, crop_um=10, crop_px=8, coordinate_system="placed")
    step = np.linalg.norm(xy[1] - xy[0]) * um_per_unit(sdata)
    assert step == pytest.approx(60 * MPP, rel=1e-6)


def test_positions_elsewhere_give_no_distances_and_say_so():
    sdata = section(GRID)
    sdata.tables["table"].obsm["spatial"] = GRID * [1.0, 3.0]
    with pytest.warns(sl.SealstWarning, match=r"`.obsm\['spatial'\]` is not where the spots of 's_spots' lie"):
        sl.pp.pair_crops(sdata, crop_um=10, crop_px=8)
    assert np.isnan(um_per_unit(sdata))


def test_a_missing_position_is_left_out_of_the_scale():
    sdata = section(GRID)
    sdata.tables["table"].obsm["spatial"][0] = np.nan
    sl.pp.pair_crops(sdata, crop_um=10, crop_px=8)
    assert um_per_unit(sdata) == pytest.approx(MPP)
