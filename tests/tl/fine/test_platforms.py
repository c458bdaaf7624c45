"""Cells as other readers lay them out: several images, cells with counts, no spots."""

from __future__ import annotations

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, Sequence, set_transformation

import sealst as sl

MPP, MORPHOLOGY = 0.25, 0.2125
N = 50


def outlines(seed=0):
    """Cells in µm on a lattice."""
    at = np.stack(np.meshgrid(np.arange(20, 180, 20), np.arange(20, 180, 20)), -1).reshape(-1, 2)[:N]
    return shapely.buffer(shapely.points(at + np.random.default_rng(seed).uniform(-3, 3, at.shape)), 5)


def picture():
    image = np.random.default_rng(1).integers(120, 255, (3, 800, 800)).astype(np.uint8)
    image[:, 300:500, 200:600] //= 2
    return image


def as_xenium() -> SpatialData:
    """As `spatialdata_io.xenium` lays a run out: cells in pixels of the morphology image, the H&E aligned to it."""
    cells = outlines()
    in_pixels = {"global": Scale([1 / MORPHOLOGY] * 2, axes=("x", "y"))}
    ids = [f"cell-{i}" for i in range(N)]
    boundaries = ShapesModel.parse(gpd.GeoDataFrame(geometry=cells, index=ids), transformations=in_pixels)
    centres = shapely.get_coordinates(shapely.centroid(cells))
    circles = ShapesModel.parse(centres, geometry=0, radius=5.0, index=ids, transformations=in_pixels)
    # Turned by a quarter: x of the H&E is y of the morphology image.
    turn = Affine(
        [[0, MPP / MORPHOLOGY, 0], [-MPP / MORPHOLOGY, 0, 200 / MORPHOLOGY], [0, 0, 1]],
        input_axes=("x", "y"),
        output_axes=("x", "y"),
    )
    he = Image2DModel.parse(
        picture(), dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={"global": turn}, scale_factors=[2]
    )
    focus = Image2DModel.parse(
        np.zeros((1, 940, 940), dtype=np.uint16), dims=("c", "y", "x"), transformations={"global": Identity()}
    )
    counts = AnnData(
        np.random.default_rng(0).poisson(2, (N, 6)).astype(np.float32),
        obs=pd.DataFrame(
            {"region": pd.Categorical(["cell_circles"] * N), "cell_id": ids}, index=list(map(str, range(N)))
        ),
        var=pd.DataFrame(index=list("ABCDEF")),
    )
    table = TableModel.parse(counts, region="cell_circles", region_key="region", instance_key="cell_id")
    return SpatialData(
        images={"morphology_focus": focus, "he_image": he},
        shapes={"cell_circles": circles, "cell_boundaries": boundaries},
        tables={"table": table},
    )


@pytest.fixture
def xenium():
    sdata = as_xenium()
    he = sdata.images["he_image"]
    set_transformation(he, Scale([MPP, MPP], axes=("x", "y")), "um")
    return sdata


def test_xenium_cells_beside_their_counts(xenium):
    sl.tl.embed(xenium, "sealst-tiny", at="cell_circles", crop_um=112, image_key="he_image")
    table = xenium.tables["table"]
    assert table.obsm["X_seal"].shape == (N, 256)
    assert np.isfinite(table.obsm["X_seal"]).all()
    assert table.n_vars == 6


def test_outlines_of_xenium_cells_that_the_table_names_by_their_circles(xenium):
    sl.tl.embed(xenium, "sealst-tiny", at="cell_circles", crop_um=112, image_key="he_image")
    sl.tl.embed(xenium, "sealst-tiny", at="cell_boundaries", crop_um=112, image_key="he_image")
    other = xenium.tables["cell_boundaries_table"]
    assert other.obs["instance_id"].tolist() == xenium.tables["table"].obs["cell_id"].tolist()
    np.testing.assert_allclose(other.obsm["X_seal"], xenium.tables["table"].obsm["X_seal"], atol=0.02)


def test_cells_are_met_through_the_alignment(xenium):
    """The same cells in the frame of the H&E itself."""
    sl.tl.embed(xenium, "sealst-tiny", at="cell_circles", crop_um=112, image_key="he_image")
    x, y = shapely.get_coordinates(shapely.centroid(outlines())).T
    plain = sl.io.from_arrays(
        np.moveaxis(picture(), 0, 2), np.ones((2, 2)), np.array([[100.0, 100], [500, 500]]), genes=["A", "B"], mpp=MPP,
        spot_um=55, section="s",
    )  # fmt: skip
    # x of the H&E runs against y of the cells, and its y along their x.
    own = np.column_stack([(200 - y) / MPP, x / MPP])
    plain.shapes["cells"] = ShapesModel.parse(own, geometry=0, radius=5 / MPP, transformations={"global": Identity()})
    sl.tl.embed(plain, "sealst-tiny", at="cells", crop_um=112)
    wanted = plain.tables["cells_table"].obsm["X_seal"]
    # Pyramids of the two were made by different means.
    np.testing.assert_allclose(xenium.tables["table"].obsm["X_seal"], wanted, atol=0.06)


def test_several_images_and_no_scale_are_told():
    sdata = as_xenium()
    with pytest.raises(sl.MissingKeyError, match="image_key"):
        sl.tl.embed(sdata, "sealst-tiny", at="cell_circles", crop_um=112)
    with pytest.raises(sl.ScaleError, match="'um'"):
        sl.tl.embed(sdata, "sealst-tiny", at="cell_circles", crop_um=112, image_key="he_image")
    with pytest.raises(sl.DataError, match="crop_um"):
        sl.tl.embed(sdata, "sealst-tiny", at="cell_circles", image_key="he_image")
    with pytest.raises(sl.DataError, match="uint16"):
        sl.tl.embed(sdata, "sealst-tiny", at="cell_circles", crop_um=112, image_key="morphology_focus")


def test_segmented_outputs_of_visium_hd():
    """Cells as GeoJSON with `cell_id`, as Space Ranger's ``segmented_outputs`` have them, and their counts."""
    cells = outlines()
    features = gpd.GeoDataFrame({"cell_id": np.arange(1, N + 1)}, geometry=cells)
    features.geometry = features.geometry.scale(1 / MPP, 1 / MPP, origin=(0, 0))
    read = gpd.GeoDataFrame.from_features(features.to_geo_dict()).set_index("cell_id")
    he = Image2DModel.parse(
        picture(), dims=("c", "y", "x"), c_coords=["r", "g", "b"],
        transformations={"global": Identity(), "um": Scale([MPP, MPP], axes=("x", "y"))}, scale_factors=[2],
    )  # fmt: skip
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * N), "cell_id": np.arange(N, 0, -1)})
    obs.index = [f"cellid_{i:09d}-1" for i in obs["cell_id"]]
    table = TableModel.parse(
        AnnData(np.ones((N, 3), dtype=np.float32), obs=obs), region="cells", region_key="region", instance_key="cell_id"
    )
    shapes = ShapesModel.parse(read, transformations={"global": Identity()})
    sdata = SpatialData(images={"hd_he": he}, shapes={"cells": shapes}, tables={"segmented": table})
    sl.tl.embed(sdata, "sealst-tiny", at="cells", crop_um=112)
    found = sdata.tables["segmented"].obsm["X_seal"]
    sdata.labels["raster"] = Labels2DModel.parse(
        rasterised(read), dims=("y", "x"), transformations={"global": Sequence([Identity()])}
    )
    sl.tl.embed(sdata, "sealst-tiny", at="raster", crop_um=112)
    other = sdata.tables["raster_table"]
    assert other.obs["instance_id"].tolist() == list(range(1, N + 1))
    # Rows of the table run the other way.
    np.testing.assert_allclose(found[::-1], other.obsm["X_seal"], atol=0.1)


def rasterised(cells: gpd.GeoDataFrame) -> np.ndarray:
    labels = np.zeros((800, 800), dtype=np.int32)
    y, x = (np.mgrid[:800, :800] + 0.5).reshape(2, -1)
    tree = shapely.STRtree(cells.geometry.to_numpy())
    point, cell = tree.query(shapely.points(x, y), predicate="within")
    labels.ravel()[point] = cells.index.to_numpy()[cell]
    return labels
