"""Tiles of a slide without spots."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from spatialdata import SpatialData
from spatialdata.models import Image2DModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, get_transformation, set_transformation

import sealst as sl
from sealst import _section
from sealst._section import multiscale
from sealst._section.pyramid import levels_of

HEIGHT, WIDTH = 1500, 2000
#: tissue, (x0, y0, x1, y1) in pixels
TISSUE = (400, 300, 1400, 1200)


def slide_image() -> np.ndarray:
    """Glass with one rectangle of stained texture."""
    rng = np.random.default_rng(0)
    image = np.full((HEIGHT, WIDTH, 3), 242, dtype=np.uint8)
    x0, y0, x1, y1 = TISSUE
    grain = rng.normal(0, 30, ((y1 - y0) // 10, (x1 - x0) // 10, 1)).repeat(10, 0).repeat(10, 1)
    image[y0:y1, x0:x1] = np.clip(np.array([180, 110, 170]) + grain, 0, 255).astype(np.uint8)
    return image


@pytest.fixture(scope="module")
def he() -> np.ndarray:
    return slide_image()


@pytest.fixture
def slide(he: np.ndarray) -> SpatialData:
    """Slide at 1 µm per pixel, as `sl.io.read_wsi` returns it."""
    transforms = {"global": Identity(), "um": Scale([1.0, 1.0], axes=("x", "y"))}
    facts = {"patient": "p3", "organ": "colon", "technology": "H&E"}
    return SpatialData(images={"s_he": multiscale(levels_of(he), transforms)}, attrs={"s_he": facts})


def test_tiles_are_squares_on_a_grid(slide: SpatialData) -> None:
    sl.pp.tile(slide, crop_um=100, min_tissue=0)
    table, shapes = slide.tables["table"], slide.shapes["s_spots"]
    assert table.shape == (15 * 20, 0)
    assert list(table.obs["spot_id"]) == list(shapes.index)
    bounds = shapes.loc["3x2"].geometry.bounds
    assert bounds == (300, 200, 400, 300)
    assert (shapes.area == 100**2).all()
    row = table.obs.set_index("spot_id").loc["3x2"]
    assert (row["array_col"], row["array_row"]) == (3, 2)
    np.testing.assert_allclose(table.obsm["spatial"][list(table.obs["spot_id"]).index("3x2")], (350, 250))
    for key, value in {"region": "s_spots", "section": "s", "patient": "p3", "organ": "colon"}.items():
        assert (table.obs[key] == value).all(), key
    assert table.uns["sealst"]["tile"]["tile_um"] == 100
    assert max(table.uns["spatial"]["s"]["images"]["hires"].shape) == 800


def test_tiles_may_overlap_and_stay_inside(slide: SpatialData) -> None:
    sl.pp.tile(slide, crop_um=112, step_um=50.5, min_tissue=0, patient="other", thumbnail=False)
    x0, y0, x1, y1 = slide.shapes["s_spots"].bounds.to_numpy().T
    assert x0.min() == y0.min() == 0
    assert WIDTH - 50.5 < x1.max() <= WIDTH
    assert HEIGHT - 50.5 < y1.max() <= HEIGHT
    np.testing.assert_allclose(np.diff(np.unique(x0.round(6))), 50.5)
    assert (slide.tables["table"].obs["patient"] == "other").all()
    assert "spatial" not in slide.tables["table"].uns


def test_only_tiles_with_tissue_are_kept(slide: SpatialData) -> None:
    sl.pp.tile(slide, crop_um=100, min_tissue=0)
    every = slide.tables["table"]
    x0, y0 = slide.shapes["s_spots"].bounds.to_numpy()[:, :2].T
    inside = (x0 >= TISSUE[0]) & (x0 < TISSUE[2]) & (y0 >= TISSUE[1]) & (y0 < TISSUE[3])
    fraction = every.obs["tissue_fraction"].to_numpy()
    assert fraction[inside].min() > 0.6
    assert fraction[~inside].max() < 0.4
    sl.pp.tile(slide, crop_um=100, min_tissue=0.5)
    table = slide.tables["table"]
    assert set(table.obs["spot_id"]) == set(every.obs["spot_id"][inside])
    assert len(slide.shapes["s_spots"]) == table.n_obs == 90
    np.testing.assert_array_equal(table.obs["tissue_fraction"], fraction[inside])


def test_tiles_are_spots_to_later_calls(slide: SpatialData, tmp_path) -> None:
    sl.pp.tile(slide, crop_um=200)
    sl.pp.pair_crops(slide, crop_um=200, crop_px=32)
    table = slide.tables["table"]
    assert table.obs["crop_ok"].all()
    sl.tl.embed(slide, "vit_tiny_patch16_224", pretrained=False, device="cpu")
    found = table.obsm["X_seal"]
    assert found.shape[0] == table.n_obs >= 20
    assert np.isfinite(found).all()
    assert np.ptp(found, axis=0).max() > 0
    slide.write(tmp_path / "a.zarr")
    again = sd.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(again.tables["table"].obsm["X_seal"], found)
    assert again.tables["table"].shape == (table.n_obs, 0)


def test_tiles_follow_the_image_into_its_frame(he: np.ndarray) -> None:
    """An image that is half as large as the system 'global', shifted, and 2 µm per pixel."""
    placed = Sequence(
        [
            Scale([2.0, 2.0], axes=("x", "y")),
            Affine(np.array([[1, 0, 70], [0, 1, 30], [0, 0, 1]]), ("x", "y"), ("x", "y")),
        ]
    )
    transforms = {"global": placed, "um": Scale([2.0, 2.0], axes=("x", "y"))}
    sdata = SpatialData(images={"s_he": multiscale(levels_of(he), transforms)})
    sl.pp.tile(sdata, crop_um=400)
    shapes, table = sdata.shapes["s_spots"], sdata.tables["table"]
    assert np.allclose(shapes.area, 200**2)
    centres = np.column_stack([shapes.centroid.x, shapes.centroid.y])
    np.testing.assert_allclose(table.obsm["spatial"], centres * 2 + [70, 30])
    np.testing.assert_allclose(_section.affine(shapes, "global"), _section.affine(sdata.images["s_he"], "global"))
    sl.pp.pair_crops(sdata, crop_um=400)
    np.testing.assert_allclose(sdata.shapes["s_spots_crops"].bounds, shapes.bounds)


def test_nothing_is_lost_or_left_behind(slide: SpatialData, toy_section) -> None:
    def elements() -> list[str]:
        return sorted(name for _, name, _ in slide.gen_elements())

    before = elements()
    with pytest.raises(sl.DataError, match=r"A tile is 1600 px wide, more than image 's_he' \(2000 x 1500 px\)"):
        sl.pp.tile(slide, crop_um=1600)
    with pytest.raises(sl.DataError, match=r"0 of 2 tiles of 1000 µm .* hold 1 tissue \(most: 0\.[0-9]+\); at least 2"):
        sl.pp.tile(slide, crop_um=1000, min_tissue=1)
    with pytest.raises(sl.DataError, match="`min_tissue` must lie between 0 and 1"):
        sl.pp.tile(slide, min_tissue=50)
    assert elements() == before

    sl.pp.tile(slide, crop_um=100)
    sl.pp.pair_crops(slide, crop_um=[100, 200])
    table, before = slide.tables["table"], elements()
    table.obs["grade"] = 1
    with pytest.raises(sl.DataError, match=r"`sdata.tables\['table'\]` holds 'grade', which sealst did not write"):
        sl.pp.tile(slide, crop_um=200)
    del table.obs["grade"]
    with pytest.raises(sl.DataError, match="A tile is 1600 px"):
        sl.pp.tile(slide, crop_um=1600)
    assert elements() == before
    assert slide.tables["table"] is table
    sl.pp.tile(slide, crop_um=200)
    assert elements() == ["s_he", "s_spots", "table"], "crops of the old tiles are gone"

    measured = toy_section(section="m")
    with pytest.raises(sl.DataError, match=r"`sdata.tables\['table'\]` holds measured spots"):
        sl.pp.tile(measured, crop_um=100)
    with pytest.raises(sl.DataError, match=r"shapes\['m_spots'\]` is there, which `sl.pp.tile` did not write"):
        sl.pp.tile(measured, crop_um=100, table_key="tiles")
    sl.pp.tile(measured, crop_um=100, table_key="tiles", section="m_tiles", min_tissue=0)
    assert measured.tables["table"].n_obs == 36
    assert measured.tables["tiles"].n_obs == 36


def test_slides_that_cannot_be_tiled(slide: SpatialData, he: np.ndarray) -> None:
    with pytest.raises(sl.MissingKeyError, match=r"Expected one H&E image, found none.*read_wsi"):
        sl.pp.tile(SpatialData())
    with pytest.raises(sl.MissingKeyError, match="'x' not found in `sdata.images`"):
        sl.pp.tile(slide, image_key="x")
    slide.images["t_he"] = Image2DModel.parse(he, dims=("y", "x", "c"))
    with pytest.raises(sl.MissingKeyError, match=r"found 's_he', 't_he'\. Name it with `image_key=`"):
        sl.pp.tile(slide)
    with pytest.raises(sl.ScaleError, match=r"Image 't_he' has no coordinate system 'um'"):
        sl.pp.tile(slide, image_key="t_he")
    set_transformation(slide.images["t_he"], Scale([1.0, 1.0], axes=("x", "y")), "um")
    sl.pp.tile(slide, image_key="t_he", table_key="t", crop_um=100)
    assert slide.tables["t"].n_obs == 90
    assert set(get_transformation(slide.shapes["t_spots"], get_all=True)) == {"global", "um"}
    with pytest.raises(TypeError, match="Expected a SpatialData, found AnnData"):
        sl.pp.tile(slide.tables["t"])
