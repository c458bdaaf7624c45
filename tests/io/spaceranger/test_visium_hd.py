"""Reading Visium HD folders, and merging their bins."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import shapely.geometry
from anndata import AnnData
from PIL import Image
from spatialdata.transformations import Scale, set_transformation

import sealst as sl
from sealst._errors import DataError, ScaleError, SealstWarning
from sealst._section import image_levels
from sealst.io._spaceranger.visium_hd import recognise


def table_of(sdata: Any) -> AnnData:
    return sdata.tables["table"]


def entry_of(sdata: Any) -> dict[str, Any]:
    return table_of(sdata).uns["sealst"]["read_visium_hd"]


def expected(files: Any, bin_um: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Array positions, counts, number of 2 µm bins and centres of merged bins, one bin at a time."""
    k = bin_um // 2
    genes = (files.features["type"] == "Gene Expression").to_numpy()
    array, counts, n, centres = [], [], [], []
    for row, col in sorted({(r // k, c // k) for r, c in files.array[files.tissue]}):
        block = (files.array[:, 0] // k == row) & (files.array[:, 1] // k == col)
        array.append((row, col))
        counts.append(files.counts[block & files.tissue][:, genes].sum(0))
        n.append((block & files.tissue).sum())
        centres.append(files.xy[block].mean(0))
    return np.array(array), np.array(counts), np.array(n), np.array(centres)


# -- bins -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bin_um", [4, 10, 16])
def test_merged_bins(make_visium_hd: Callable[..., Any], bin_um: int) -> None:
    files = make_visium_hd(sizes=(2,))
    sdata = sl.io.read_visium_hd(files.outs, files.image, bin_um=bin_um, section="hd")
    array, counts, n, centres = expected(files, bin_um)
    table = table_of(sdata)
    np.testing.assert_array_equal(table.obs[["array_row", "array_col"]], array)
    np.testing.assert_array_equal(table.X.toarray(), counts)
    np.testing.assert_array_equal(table.obs["n_bins"], n)
    assert n.min() < (bin_um // 2) ** 2, "partly filled bins are what this is about"
    np.testing.assert_allclose(table.obsm["spatial"], centres, atol=1e-6)
    assert table.obs["spot_id"].iloc[0] == f"s_{bin_um:03d}um_{array[0, 0]:05d}_{array[0, 1]:05d}-1"
    assert (entry_of(sdata)["bin_um"], entry_of(sdata)["source_bin_um"]) == (bin_um, 2)
    squares = sdata.shapes["hd_spots"].geometry
    np.testing.assert_allclose(shapely.area(squares), (bin_um / entry_of(sdata)["mpp"]) ** 2)
    assert entry_of(sdata)["mpp"] == pytest.approx(files.mpp, rel=1e-6)


def test_bent_positions_keep_their_bend(make_visium_hd: Callable[..., Any]) -> None:
    files = make_visium_hd(sizes=(2,))
    part = files.bins(2)
    # A quadratic bend of up to 2 µm, as no affine map describes.
    bend = 4 * ((files.array[:, 1] - 40) / 40) ** 2
    frame = files.positions.assign(pxl_row_in_fullres=files.xy[:, 1] + bend)
    frame.to_parquet(part / "spatial" / "tissue_positions.parquet", index=False)
    sdata = sl.io.read_visium_hd(files.outs, files.image, bin_um=8)
    *_, centres = expected(files, 8)
    away = table_of(sdata).obsm["spatial"] - centres
    k = table_of(sdata).obs["array_col"].to_numpy()
    np.testing.assert_allclose(away[:, 1], 4 * ((k * 4 + 1.5 - 40) / 40) ** 2, atol=0.3)


def test_largest_bins_that_divide(visium_hd: Any) -> None:
    for bin_um, source in {16: 16, 48: 16, 24: 8, 8: 8, 6: 2}.items():
        sdata = sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, bin_um=bin_um)
        assert entry_of(sdata)["source_bin_um"] == source
    shutil.rmtree(visium_hd.bins(2))
    with pytest.raises(DataError, match=r"divide `bin_um` 12: there are '8', '16' µm"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, bin_um=12)


def test_own_bins_and_merged_bins_agree(visium_hd: Any) -> None:
    direct = table_of(sl.io.read_visium_hd(visium_hd.bins(16), visium_hd.image, bin_um=16))
    merged = table_of(sl.io.read_visium_hd(visium_hd.bins(2), visium_hd.image, bin_um=16))
    assert list(direct.obs["spot_id"]) == list(merged.obs["spot_id"])
    np.testing.assert_array_equal(direct.X.toarray(), merged.X.toarray())
    np.testing.assert_allclose(direct.obsm["spatial"], merged.obsm["spatial"], atol=1e-6)
    assert (direct.obs["n_bins"] == 1).all()
    assert merged.obs["n_bins"].max() == 64


@pytest.mark.parametrize("bin_um", [0, 3, -2, 2.5, "16"])
def test_bin_size_is_even(visium_hd: Any, bin_um: Any) -> None:
    with pytest.raises(DataError, match="`bin_um` must be a positive multiple of 2"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, bin_um=bin_um)


def test_bins_off_tissue(visium_hd: Any) -> None:
    part = visium_hd.bins(16)
    shutil.copy(part / "filtered_feature_bc_matrix.h5", part / "raw_feature_bc_matrix.h5")
    frame = visium_hd.bins(16) / "spatial" / "tissue_positions.parquet"
    import pandas as pd

    table = pd.read_parquet(frame)
    table["in_tissue"] = (table["array_col"] < 3).astype(int)
    table.to_parquet(frame, index=False)
    kept = table_of(sl.io.read_visium_hd(part, visium_hd.image, bin_um=32, counts="raw"))
    assert kept.obs["array_col"].max() == 1
    assert set(kept.obs.loc[kept.obs["array_col"] == 1, "n_bins"]) <= {1, 2}
    every = table_of(sl.io.read_visium_hd(part, visium_hd.image, bin_um=32, counts="raw", in_tissue=False))
    assert set(every.obs.loc[every.obs["array_col"] > 1, "in_tissue"]) == {False}
    assert every.X.sum() > kept.X.sum()


# -- other readers ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bin_um", [2, 8, 16])
def test_agrees_with_spatialdata_io(visium_hd: Any, bin_um: int) -> None:
    spatialdata_io = pytest.importorskip("spatialdata_io")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = spatialdata_io.visium_hd(
            visium_hd.outs, dataset_id="", load_segmentations_only=False, bin_size=bin_um, gex_only=True
        )
    ours = sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, bin_um=bin_um, section="s")
    a, b = theirs.tables[f"square_{bin_um:03d}um"], table_of(ours)
    assert list(a.obs_names) == list(b.obs["spot_id"])
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())
    np.testing.assert_array_equal(a.obsm["spatial"], b.obsm["spatial"])
    np.testing.assert_array_equal(a.obs[["array_row", "array_col"]], b.obs[["array_row", "array_col"]])
    assert list(a.var["gene_ids"]) == list(b.var["gene_ids"])
    mine, other = ours.shapes["s_spots"].geometry, theirs.shapes[f"_square_{bin_um:03d}um"].geometry
    np.testing.assert_allclose(shapely.bounds(mine.to_numpy()), shapely.bounds(other.to_numpy()), atol=1e-6)


# -- picture, scale, paths --------------------------------------------------------------------------------------------
def test_small_picture(visium_hd: Any) -> None:
    with pytest.warns(SealstWarning, match=r"hires picture is used, with 1 µm per pixel"):
        sdata = sl.io.read_visium_hd(visium_hd.outs, bin_um=8)
    full = sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, bin_um=8)
    np.testing.assert_allclose(table_of(sdata).obsm["spatial"] * 2, table_of(full).obsm["spatial"])
    with pytest.raises(ScaleError, match="size of Space Ranger's hires picture"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.outs / "spatial" / "tissue_hires_image.png")


def test_contradictory_scale(visium_hd: Any) -> None:
    import json

    path = visium_hd.bins(16) / "spatial" / "scalefactors_json.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"microns_per_pixel": 0.25}))
    with pytest.raises(ScaleError, match=r"0\.5 µm per pixel by the pitch of the array, 0\.25 by microns_per_pixel"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image)
    path.write_text(json.dumps(held | {"bin_size_um": 8.0}))
    with pytest.raises(DataError, match="scale factors for bins of 8 µm in a folder of 16 µm"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image)
    path.unlink()
    assert entry_of(sl.io.read_visium_hd(visium_hd.outs, visium_hd.image))["mpp"] == pytest.approx(0.5, rel=1e-6)


def test_interchanged_columns(visium_hd: Any) -> None:
    import pandas as pd

    path = visium_hd.bins(8) / "spatial" / "tissue_positions.parquet"
    frame = pd.read_parquet(path)
    frame.assign(array_row=frame["array_col"], array_col=frame["array_row"]).to_parquet(path, index=False)
    with pytest.raises(DataError, match=r"barcodes of 8 µm bins contradict the table of positions, e\.g\. s_008um_"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, bin_um=8)


def test_paths(visium_hd: Any, visium: Any, tmp_path: Path) -> None:
    for path in (visium_hd.outs.parent, visium_hd.outs / "binned_outputs", visium_hd.bins(16)):
        sdata = sl.io.read_visium_hd(path, visium_hd.image, bin_um=16)
        assert set(sdata.images) == {"run_hd_he"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"No folder of bins .*it holds none"):
        sl.io.read_visium_hd(tmp_path / "empty", visium_hd.image)
    with pytest.raises(DataError, match=r"No folder of bins .*use `sl\.io\.read_visium`"):
        sl.io.read_visium_hd(visium.outs, visium.image)
    assert recognise(visium_hd.outs)
    assert recognise(visium_hd.outs.parent)
    assert not recognise(visium.outs)


def test_segmented_outputs_are_named_as_what_they_are(visium_hd: Any, tmp_path: Path) -> None:
    for name in ("segmented_outputs", "Visium_HD_X_segmented_outputs"):
        inner = tmp_path / "outs" / name
        inner.mkdir(parents=True)
        (inner / "filtered_feature_cell_matrix.h5").write_bytes(b"x")
        (inner / "cell_segmentations.geojson").write_text("{}")
        for path in (tmp_path, tmp_path / "outs", inner):
            for read in (sl.io.read, sl.io.read_visium_hd):
                with pytest.raises(DataError, match=r"segmented outputs of Visium HD.*'binned_outputs'"):
                    read(path)
            (problem,) = sl.io.check(path).problems
            assert "segmented outputs of Visium HD" in problem.text
        # Beside bins they are of no concern.
        shutil.copytree(inner, visium_hd.outs / name)
        assert sl.io.read(visium_hd.outs, image=visium_hd.image, bin_um=16).tables["table"].n_obs
        shutil.rmtree(tmp_path / "outs")


def test_bins_of_a_download_have_a_prefix(visium_hd: Any) -> None:
    expected = table_of(sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, bin_um=16))
    renamed = (visium_hd.outs / "binned_outputs").rename(visium_hd.outs / "Visium_HD_X_binned_outputs")
    for path in (visium_hd.outs, renamed):
        found = table_of(sl.io.read(path, image=visium_hd.image, bin_um=16))
        np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())


def test_damaged_matrix(visium_hd: Any) -> None:
    path = visium_hd.bins(16) / "filtered_feature_bc_matrix.h5"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="could not be read as a 10x"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image)


def test_bins_of_another_size(visium_hd: Any) -> None:
    shutil.copy(visium_hd.bins(8) / "filtered_feature_bc_matrix.h5", visium_hd.bins(16))
    with pytest.raises(DataError, match=r"0 of \d+ barcodes .*'s_008um_.*positions: 's_016um_"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image)


# -- crops ------------------------------------------------------------------------------------------------------------
def test_crops_show_their_bin(make_visium_hd: Callable[..., Any], dotted: Callable[..., Any]) -> None:
    files = make_visium_hd(sizes=(2,), turn=0.2)
    *_, centres = expected(files, 16)
    image = dotted(files.image.shape[1::-1], centres, 6)
    path = files.outs.parent / "slide.png"
    Image.fromarray(image).save(path)
    sdata = sl.io.read_visium_hd(files.outs, path, bin_um=16, section="hd")
    sl.pp.pair_crops(sdata, crop_um=16, crop_px=32, min_inside=0.9)
    pixels = np.asarray(image_levels(sdata.images["hd_he"])[0])
    squares = sdata.shapes["hd_spots_crops"].geometry.centroid
    assert len(squares) == len(centres)
    for i, point in enumerate(squares):
        assert pixels[0, int(point.y), int(point.x)] == 20, f"bin {i} is not centred on its dot"
        np.testing.assert_allclose((point.x, point.y), centres[i], atol=1e-6)


# -- cells ------------------------------------------------------------------------------------------------------------
N_CELLS = 40


def write_cells(files: Any, write_h5: Callable[..., None], folder: str = "segmented_outputs") -> tuple[Any, np.ndarray]:
    """Add cells as Space Ranger 4 writes them; returns outlines by id and counts by rows of the matrix."""
    rng = np.random.default_rng(5)
    inside = files.outs / folder
    (inside / "spatial").mkdir(parents=True)
    height, width = files.image.shape[:2]
    centres = rng.uniform([20, 20], [width - 20, height - 20], (N_CELLS, 2))
    outlines = shapely.buffer(shapely.points(centres), 9, quad_segs=4)
    features = [
        {"type": "Feature", "properties": {"cell_id": i + 1}, "geometry": shapely.geometry.mapping(one)}
        for i, one in enumerate(outlines)
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (inside / "cell_segmentations.geojson").write_text(text)
    # Cells without counts are left out by Space Ranger, and rows have an order of their own.
    rows = rng.permutation(N_CELLS)[: N_CELLS - 3]
    counts = rng.poisson(2.0, (len(rows), len(files.features)))
    names = [f"cellid_{i + 1:09d}-1" for i in rows]
    write_h5(inside / "filtered_feature_cell_matrix.h5", counts, names, files.features)
    shutil.copy(files.bins(16) / "spatial" / "scalefactors_json.json", inside / "spatial")
    return pd.Series(outlines[rows], index=names), counts[:, :-1]


def test_cells_beside_the_bins(visium_hd: Any, write_h5: Callable[..., None]) -> None:
    outlines, counts = write_cells(visium_hd, write_h5)
    sdata = sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, section="hd", cells=True)
    table = sdata.tables["hd_cells_table"]
    assert list(table.obs["cell_id"]) == list(outlines.index) == list(sdata.shapes["hd_cells"].index)
    np.testing.assert_array_equal(table.X.toarray(), counts)
    assert shapely.equals_exact(sdata.shapes["hd_cells"].geometry, outlines.to_numpy(), 1e-6).all()
    entry = table.uns["sealst"]["read_visium_hd"]
    assert (entry["cells_without_outline"], entry["outlines_without_counts"]) == (0, 3)
    plain = sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, section="hd")
    assert set(plain.tables) == {"table"}
    np.testing.assert_array_equal(table_of(sdata).X.toarray(), table_of(plain).X.toarray())


def test_cells_lie_on_a_picture_of_another_scale(visium_hd: Any, write_h5: Callable[..., None]) -> None:
    outlines, _ = write_cells(visium_hd, write_h5, "Visium_HD_segmented_outputs")
    with pytest.warns(SealstWarning, match="hires picture"):
        sdata = sl.io.read_visium_hd(visium_hd.outs, section="hd", cells=True)
    centres = shapely.get_coordinates(shapely.centroid(outlines.to_numpy()))
    np.testing.assert_allclose(sdata.tables["hd_cells_table"].obsm["spatial"] * 2, centres, atol=1e-6)


def test_cells_agree_with_spatialdata_io_and_are_embedded(visium_hd: Any, write_h5: Callable[..., None]) -> None:
    spatialdata_io = pytest.importorskip("spatialdata_io")
    write_cells(visium_hd, write_h5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = spatialdata_io.visium_hd(
            visium_hd.outs, dataset_id="hd", load_segmentations_only=True, gex_only=True,
            fullres_image_file=visium_hd.save_picture(),
        )  # fmt: skip
    mpp = Scale([visium_hd.mpp] * 2, axes=("x", "y"))
    set_transformation(theirs.images["hd_full_image"], mpp, "um")
    ours = sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, section="hd", cells=True)
    a, b = theirs.tables["cell_segmentations"], ours.tables["hd_cells_table"]
    assert list(a.obs["cell_id"]) == list(b.obs["cell_id"])
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())
    sl.tl.embed(theirs, "sealst-tiny", at="hd_cell_segmentations", crop_um=112, image_key="hd_full_image")
    sl.tl.embed(ours, "sealst-tiny", at="hd_cells", crop_um=112)
    assert b.obsm["X_seal"].shape == (N_CELLS - 3, 256)
    np.testing.assert_allclose(a.obsm["X_seal"], b.obsm["X_seal"], atol=1e-3)


def test_cells_of_another_run_than_the_bins(visium_hd: Any, write_h5: Callable[..., None]) -> None:
    write_cells(visium_hd, write_h5)
    path = visium_hd.outs / "segmented_outputs" / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"microns_per_pixel": 0.27}))
    with pytest.raises(ScaleError, match=r"0\.5 µm per pixel by the pitch of the array, 0\.27 by .* of the cells"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, cells=True)
    assert table_of(sl.io.read_visium_hd(visium_hd.outs, visium_hd.image)).n_obs


@pytest.mark.parametrize("damage", ["absent", "matrix", "text", "no id", "other"])
def test_segmented_outputs_that_are_refused(visium_hd: Any, write_h5: Callable[..., None], damage: str) -> None:
    outlines, counts = write_cells(visium_hd, write_h5)
    folder = visium_hd.outs / "segmented_outputs"
    path, matrix = folder / "cell_segmentations.geojson", folder / "filtered_feature_cell_matrix.h5"
    if damage == "absent":
        shutil.rmtree(folder)
    elif damage == "matrix":
        matrix.unlink()
    elif damage == "text":
        path.write_text(path.read_text()[:500])
    elif damage == "no id":
        path.write_text(path.read_text().replace("cell_id", "cell"))
    else:
        names = [name.replace("cellid_", "cell_") for name in outlines.index]
        write_h5(matrix, np.column_stack([counts, counts[:, :1]]), names, visium_hd.features)
    message = {"text": "GeoJSON", "no id": "'cell_id'", "other": "of one run"}
    with pytest.raises(DataError, match=message.get(damage, "cells=True")):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, cells=True)


def write_nuclei(outs: Path, outlines: pd.Series) -> gpd.GeoSeries:
    """Add nuclei of all cells but one as Space Ranger 4 writes them, two of them of one cell; the shapes by cell."""
    inner = gpd.GeoSeries(shapely.buffer(shapely.centroid(outlines.to_numpy()), 4, quad_segs=4), index=outlines.index)
    first, second, last = outlines.index[[0, 1, -1]]
    rows = [(first if name == second else name, one) for name, one in inner.items() if name != last]
    features = [
        {"type": "Feature", "properties": {"cell_id": int(name[7:16])}, "geometry": shapely.geometry.mapping(one)}
        for name, one in rows
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    (outs / "segmented_outputs" / "nucleus_segmentations.geojson").write_text(text)
    inner[first] = inner[first].union(inner[second])
    return inner.drop([second, last])


def test_nuclei_beside_cells(visium_hd: Any, write_h5: Callable[..., None]) -> None:
    outlines, _ = write_cells(visium_hd, write_h5)
    with pytest.raises(DataError, match=r"`nuclei=True` needs one 'nucleus_segmentations\.geojson'"):
        sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, nuclei=True)
    expected = write_nuclei(visium_hd.outs, outlines)
    (visium_hd.outs / "segmented_outputs" / "graphclust_annotated_nucleus_segmentations.geojson").write_text("{}")
    sdata = sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, section="hd", cells=True, nuclei=True)
    found = sdata.shapes["hd_nuclei"]
    assert list(found.index) == list(expected.index)
    assert shapely.equals(found.geometry.to_numpy(), expected.to_numpy()).mean() > 0.9
    np.testing.assert_allclose(shapely.area(found.geometry.to_numpy()), shapely.area(expected.to_numpy()))
    sl.tl.embed(sdata, "sealst-tiny", at="hd_nuclei", crop_um=112)
    table = sdata.tables["hd_nuclei_table"]
    assert list(table.obs["instance_id"]) == list(expected.index)
    assert table.obsm["X_seal"].shape == (N_CELLS - 5, 256)
    alone = sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, section="hd", nuclei=True)
    assert set(alone.shapes) == {"hd_spots", "hd_nuclei"}


def test_nuclei_without_bins(cells_alone: tuple[Any, pd.Series, np.ndarray]) -> None:
    files, outlines, _ = cells_alone
    expected = write_nuclei(files.outs, outlines)
    sdata = sl.io.read_visium_hd(files.outs, section="hd", cells=True, nuclei=True)
    shapes = sdata.shapes["hd_nuclei"].geometry.to_numpy()
    np.testing.assert_allclose(shapely.area(shapes) * 4, shapely.area(expected.to_numpy()))


# -- cells without bins -----------------------------------------------------------------------------------------------
@pytest.fixture
def cells_alone(visium_hd: Any, write_h5: Callable[..., None]) -> tuple[Any, pd.Series, np.ndarray]:
    """Segmented outputs whose bins were not copied, with the files that Space Ranger 4 writes beside the cells."""
    outlines, counts = write_cells(visium_hd, write_h5)
    folder = visium_hd.outs / "segmented_outputs"
    for name in ("tissue_hires_image.png", "tissue_lowres_image.png"):
        shutil.copy(visium_hd.outs / "spatial" / name, folder / "spatial")
    held = json.loads((folder / "spatial" / "scalefactors_json.json").read_text())
    kept = {name: held[name] for name in held if name.startswith("tissue_") or name == "microns_per_pixel"}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(kept))
    add_copies(folder)
    for path in visium_hd.outs.iterdir():
        if path.is_file():
            path.unlink()
        elif path != folder:
            shutil.rmtree(path)
    return visium_hd, outlines, counts


def add_copies(folder: Path, prefix: str = "") -> None:
    """Further outlines: nuclei, and copies with clusters."""
    text = (folder / f"{prefix}cell_segmentations.geojson").read_text()
    for name in ("graphclust_annotated_cell", "graphclust_annotated_nucleus", "nucleus"):
        (folder / f"{prefix}{name}_segmentations.geojson").write_text(text)


@pytest.mark.parametrize("prefix", ["", "Visium_HD_X_"])
def test_copies_of_the_outlines_are_no_second_ones(visium_hd: Any, write_h5: Callable[..., None], prefix: str) -> None:
    outlines, _ = write_cells(visium_hd, write_h5)
    folder = visium_hd.outs / "segmented_outputs"
    for name in ("cell_segmentations.geojson", "filtered_feature_cell_matrix.h5"):
        (folder / name).rename(folder / f"{prefix}{name}")
    add_copies(folder, prefix)
    sdata = sl.io.read_visium_hd(visium_hd.outs, visium_hd.image, section="hd", cells=True)
    assert list(sdata.shapes["hd_cells"].index) == list(outlines.index)


def test_cells_without_bins(cells_alone: tuple[Any, pd.Series, np.ndarray]) -> None:
    files, outlines, counts = cells_alone
    with pytest.warns(SealstWarning, match="what lies between cells is missing"):
        sdata = sl.io.read_visium_hd(files.outs, files.image, bin_um=32, section="hd", patient="p", cells=True)
    cells, table = sdata.tables["hd_cells_table"], table_of(sdata)
    assert list(cells.obs["cell_id"]) == list(outlines.index)
    np.testing.assert_array_equal(cells.X.toarray(), counts)
    assert shapely.equals_exact(sdata.shapes["hd_cells"].geometry, outlines.to_numpy(), 1e-6).all()
    assert entry_of(sdata)["mpp"] == files.mpp
    assert entry_of(sdata)["mpp_source"] == "microns_per_pixel"
    # One cell at a time.
    side = 32 / files.mpp
    centres = shapely.get_coordinates(shapely.centroid(outlines.to_numpy()))
    sums: dict[tuple[int, int], Any] = {}
    for (x, y), own in zip(centres, counts, strict=True):
        place = int(y // side), int(x // side)
        n, total = sums.get(place, (0, 0))
        sums[place] = n + 1, total + own
    height, width = files.image.shape[:2]
    sums = {p: s for p, s in sorted(sums.items()) if (p[0] + 0.5) * side < height and (p[1] + 0.5) * side < width}
    assert list(map(tuple, table.obs[["array_row", "array_col"]].to_numpy())) == list(sums)
    assert list(table.obs["n_cells"]) == [n for n, _ in sums.values()]
    np.testing.assert_array_equal(table.X.toarray(), [total for _, total in sums.values()])
    np.testing.assert_allclose(table.obsm["spatial"], [((c + 0.5) * side, (r + 0.5) * side) for r, c in sums])
    np.testing.assert_allclose(shapely.area(sdata.shapes["hd_spots"].geometry), side**2)
    sl.tl.embed(sdata, "sealst-tiny", at="hd_cells", crop_um=112)
    assert np.isfinite(cells.obsm["X_seal"]).all()


@pytest.mark.parametrize("place", [".", "outs", "outs/segmented_outputs"])
def test_cells_without_bins_and_picture(cells_alone: tuple[Any, pd.Series, np.ndarray], place: str) -> None:
    files, outlines, _ = cells_alone
    with pytest.warns(SealstWarning, match=r"hires picture is used, with 1 µm per pixel"):
        sdata = sl.io.read(files.outs.parent / place, cells=True, bin_um=32)
    assert set(sdata.images) == {"run_hd_he"}
    assert entry_of(sdata)["mpp"] == 1
    centres = shapely.get_coordinates(shapely.centroid(outlines.to_numpy()))
    np.testing.assert_allclose(sdata.tables["run_hd_cells_table"].obsm["spatial"] * 2, centres, atol=1e-6)


def test_scale_of_cells_without_bins(cells_alone: tuple[Any, pd.Series, np.ndarray]) -> None:
    files, *_ = cells_alone
    with pytest.raises(ScaleError, match=r"0\.25 µm per pixel by `mpp`, 0\.5 by microns_per_pixel"):
        sl.io.read_visium_hd(files.outs, files.image, cells=True, mpp=0.25)
    shutil.rmtree(files.outs / "segmented_outputs" / "spatial")
    with pytest.raises(ScaleError, match=r"unknown\. .*'microns_per_pixel'.*'spatial'.*`mpp=`"):
        sl.io.read_visium_hd(files.outs, files.image, cells=True)
    assert entry_of(sl.io.read_visium_hd(files.outs, files.image, cells=True, mpp=0.5))["mpp_source"] == "mpp"
    with pytest.raises(DataError, match=r"no picture.*tissue_hires_image\.png"):
        sl.io.read_visium_hd(files.outs, cells=True, mpp=0.5)


def test_cells_without_bins_that_are_refused(cells_alone: tuple[Any, pd.Series, np.ndarray], tmp_path: Path) -> None:
    files, *_ = cells_alone
    with pytest.raises(DataError, match=r"segmented outputs.*`cells=True`.*'binned_outputs'"):
        sl.io.read_visium_hd(files.outs, files.image)
    with pytest.raises(DataError, match="`counts` is 'raw'"):
        sl.io.read_visium_hd(files.outs, files.image, cells=True, counts="raw")
    with pytest.raises(ScaleError, match=r"is \d+ x \d+ pixels .*but the coordinates belong to one of about"):
        sl.io.read_visium_hd(files.outs, np.full((50, 90, 3), 230, np.uint8), cells=True)
    (files.outs / "segmented_outputs" / "filtered_feature_cell_matrix.h5").unlink()
    with pytest.raises(DataError, match=r"`cells=True` needs one 'filtered_feature_cell_matrix\.h5'"):
        sl.io.read_visium_hd(files.outs, files.image, cells=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"No folder of bins \(.*\) or of cells \('segmented_outputs'\).*it holds none"):
        sl.io.read_visium_hd(tmp_path / "empty", files.image, cells=True)
