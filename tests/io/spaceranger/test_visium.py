"""Reading Visium folders: the versions, the repairs, the refusals, and other readers' opinion."""

from __future__ import annotations

import gzip
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from PIL import Image
from spatialdata import read_zarr

import sealst as sl
from sealst._data.crops.reader import read_crops
from sealst._errors import DataError, ScaleError, SealstWarning
from sealst._section import image_levels, region_crops, regions_of
from sealst.io._spaceranger.visium import recognise

COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


def table_of(sdata: Any) -> AnnData:
    return sdata.tables["table"]


def check(sdata: Any, files: Any, scale: float = 1.0) -> None:
    """Barcodes, counts and coordinates are those that were written."""
    table = table_of(sdata)
    assert list(table.obs["spot_id"]) == files.names
    np.testing.assert_array_equal(table.X.toarray(), files.table)
    np.testing.assert_array_equal(table.obsm["spatial"], files.xy[files.tissue] * scale)
    np.testing.assert_array_equal(table.obs[["array_row", "array_col"]], files.array[files.tissue])
    assert list(table.var["gene_ids"]) == list(files.features["id"][:-1])


# -- layouts ----------------------------------------------------------------------------------------------------------
def test_section_as_written(visium: Any) -> None:
    sdata = sl.io.read_visium(visium.outs, visium.image, patient="P1", organ="breast")
    check(sdata, visium)
    table = table_of(sdata)
    assert set(sdata.images) == {"run_he"}
    assert table.obs["technology"].unique().tolist() == ["Visium"]
    assert table.obs["patient"].unique().tolist() == ["P1"]
    assert table.obs["in_tissue"].dtype == bool
    circles = sdata.shapes["run_spots"]
    assert list(circles.index) == visium.names
    entry = table.uns["sealst"]["read_visium"]
    assert entry["mpp"] == pytest.approx(visium.mpp, rel=1e-3)
    assert entry["mpp_source"] == "the pitch of the array"
    np.testing.assert_allclose(circles["radius"], 27.5 / entry["mpp"])
    assert (entry["counts"], entry["positions"]) == ("filtered_feature_bc_matrix.h5", "tissue_positions.csv")
    assert entry["positions_without_counts"] == len(visium.barcodes) - len(visium.names)


def test_survives_zarr(visium: Any, tmp_path: Path) -> None:
    sdata = sl.io.read_visium(visium.outs, visium.image)
    sdata.write(tmp_path / "s.zarr")
    back = table_of(read_zarr(tmp_path / "s.zarr"))
    assert back.uns["sealst"]["read_visium"] == table_of(sdata).uns["sealst"]["read_visium"]
    assert list(back.var["gene_ids"]) == list(table_of(sdata).var["gene_ids"])


@pytest.mark.parametrize("name", ["tissue_positions_list.csv", "tissue_positions.csv"])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_positions_csv(visium: Any, name: str, header: bool, packed: bool) -> None:
    path = visium.save_positions(name=name, header=header)
    if packed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    check(sl.io.read_visium(visium.outs, visium.image), visium)


def test_positions_parquet_and_order(visium: Any) -> None:
    visium.save_positions(visium.positions.sample(frac=1, random_state=0), name="tissue_positions.parquet")
    check(sl.io.read_visium(visium.outs, visium.image), visium)


def test_renamed_and_moved_columns(visium: Any, caplog: pytest.LogCaptureFixture) -> None:
    frame = visium.positions.rename(columns={"pxl_row_in_fullres": "imagerow", "pxl_col_in_fullres": "Image col"})
    visium.save_positions(frame[frame.columns[::-1]])
    with caplog.at_level(logging.INFO, logger="sealst"):
        check(sl.io.read_visium(visium.outs, visium.image), visium)
    assert "took column(s) 'imagerow' as 'pxl_row_in_fullres', 'Image col' as 'pxl_col_in_fullres'" in caplog.text


@pytest.mark.parametrize("packed", [True, False])
def test_mtx_folder(visium: Any, packed: bool, write_mtx: Callable[..., None]) -> None:
    (visium.outs / "filtered_feature_bc_matrix.h5").unlink()
    folder = visium.outs / "filtered_feature_bc_matrix"
    write_mtx(folder, visium.counts[visium.tissue], visium.names, visium.features, packed=packed)
    check(sl.io.read_visium(folder, visium.image), visium)
    sdata = sl.io.read_visium(visium.outs, visium.image)
    check(sdata, visium)
    if packed:
        theirs = sc.read_10x_mtx(folder)
        np.testing.assert_array_equal(theirs.X.toarray(), table_of(sdata).X.toarray())
        assert list(theirs.obs_names) == list(table_of(sdata).obs["spot_id"])
        assert list(theirs.var["gene_ids"]) == list(table_of(sdata).var["gene_ids"])


def test_download_with_prefix(visium: Any) -> None:
    name = "V1_Breast_filtered_feature_bc_matrix.h5"
    (visium.outs / "filtered_feature_bc_matrix.h5").rename(visium.outs / name)
    sdata = sl.io.read_visium(visium.outs, visium.image)
    check(sdata, visium)
    assert set(sdata.images) == {"V1_Breast_he"}


def flatten(visium: Any, folder: Path, prefix: str) -> None:
    """All files in one folder, gzipped, as repositories of data keep them."""
    folder.mkdir(exist_ok=True)
    shutil.copy(visium.outs / "filtered_feature_bc_matrix.h5", folder / f"{prefix}filtered_feature_bc_matrix.h5")
    for path in visium.spatial.iterdir():
        (folder / f"{prefix}{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


def test_flat_folder_of_samples(visium: Any, tmp_path: Path) -> None:
    flatten(visium, tmp_path / "flat", "GSM1_A_")
    check(sl.io.read_visium(tmp_path / "flat", visium.image), visium)
    with pytest.warns(SealstWarning, match="hires picture"):
        check(sl.io.read_visium(tmp_path / "flat"), visium, 0.5)
    flatten(visium, tmp_path / "flat", "GSM2_B_")
    with pytest.raises(DataError, match=r"several samples.*'GSM1_A_', 'GSM2_B_'.*`sample=`"):
        sl.io.read_visium(tmp_path / "flat", visium.image)
    sdata = sl.io.read_visium(tmp_path / "flat", visium.image, sample="GSM2_B")
    assert table_of(sdata).obs["section"].unique().tolist() == ["GSM2_B"]


def test_paths_that_are_repaired(visium: Any) -> None:
    for path in (visium.outs.parent, visium.spatial, visium.outs / "filtered_feature_bc_matrix.h5", str(visium.outs)):
        check(sl.io.read_visium(path, visium.image), visium)


def test_raw_counts_and_spots_off_tissue(visium: Any) -> None:
    visium.save_matrix("raw")
    sdata = sl.io.read_visium(visium.outs, visium.image, counts="raw")
    check(sdata, visium)
    assert table_of(sdata).uns["sealst"]["read_visium"]["outside_tissue"] == (~visium.tissue).sum()
    every = sl.io.read_visium(visium.outs, visium.image, counts="raw", in_tissue=False)
    assert list(table_of(every).obs["spot_id"]) == visium.barcodes
    np.testing.assert_array_equal(table_of(every).obs["in_tissue"], visium.tissue)


def test_symbols_are_summed(visium: Any, caplog: pytest.LogCaptureFixture) -> None:
    features = visium.features.copy()
    features.loc[[1, 4], "name"] = "VIM"
    features.loc[5, "name"] = " "
    visium.save_matrix(features=features)
    with caplog.at_level(logging.INFO, logger="sealst"):
        table = table_of(sl.io.read_visium(visium.outs, visium.image))
    assert "10 genes have 8 symbols" in caplog.text
    assert list(table.var_names[:4]) == ["EPCAM", "VIM", "COL1A1", "ENSG00000000005"]
    np.testing.assert_array_equal(table[:, "VIM"].X.toarray()[:, 0], visium.table[:, [1, 2, 4]].sum(1))
    np.testing.assert_array_equal(table[:, "ACTB"].X.toarray()[:, 0], visium.table[:, 7])
    assert table.var.loc["VIM", "gene_ids"] == "ENSG00000000001"


# -- other readers ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("version", [1, 2])
def test_agrees_with_spatialdata_io(visium: Any, version: int) -> None:
    spatialdata_io = pytest.importorskip("spatialdata_io")
    if version == 1:
        visium.save_positions(name="tissue_positions_list.csv", header=False)
    slide = visium.save_picture()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = spatialdata_io.visium(visium.outs, dataset_id="s", fullres_image_file=slide)
    ours = sl.io.read_visium(visium.outs, slide, section="s")
    a, b = table_of(theirs), table_of(ours)
    assert list(a.obs_names) == list(b.obs["spot_id"])
    assert list(a.var_names) == list(b.var_names)
    assert list(a.var["gene_ids"]) == list(b.var["gene_ids"])
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())
    np.testing.assert_array_equal(a.obsm["spatial"], b.obsm["spatial"])
    np.testing.assert_array_equal(a.obs[["array_row", "array_col"]], b.obs[["array_row", "array_col"]])
    pixels = np.asarray(image_levels(theirs.images["s_full_image"])[0])
    np.testing.assert_array_equal(pixels, np.asarray(image_levels(ours.images["s_he"])[0]))


def test_agrees_with_squidpy(visium: Any) -> None:
    import squidpy as sq

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sq.read.visium(visium.outs, library_id="s")
    ours = table_of(sl.io.read_visium(visium.outs, visium.image))
    assert list(theirs.obs_names) == list(ours.obs["spot_id"])
    np.testing.assert_array_equal(theirs.X.toarray(), ours.X.toarray())
    np.testing.assert_array_equal(theirs.obsm["spatial"], ours.obsm["spatial"])


# -- scale ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("turn", "mirror"), [(0.0, True), (0.3, False), (np.pi / 2, False), (-2.0, True)])
def test_scale_of_turned_arrays(make_visium: Callable[..., Any], turn: float, mirror: bool) -> None:
    files = make_visium(turn=turn, mirror=mirror)
    sdata = sl.io.read_visium(files.outs, files.image)
    assert table_of(sdata).uns["sealst"]["read_visium"]["mpp"] == pytest.approx(1.0, rel=2e-3)


@pytest.mark.parametrize("spot_um", [55.0, 65.0])
def test_spot_diameter_by_either_documentation(make_visium: Callable[..., Any], spot_um: float) -> None:
    files = make_visium(spot_um=spot_um)
    check(sl.io.read_visium(files.outs, files.image), files)


def test_contradictory_spot_diameter(visium: Any) -> None:
    visium.factors(spot_diameter_fullres=80.0)
    with pytest.raises(ScaleError, match=r"per pixel by the pitch of the array, 0\.8125 by spot_diameter_fullres"):
        sl.io.read_visium(visium.outs, visium.image)


def test_given_scale(visium: Any) -> None:
    entry = table_of(sl.io.read_visium(visium.outs, visium.image, mpp=1.02)).uns["sealst"]["read_visium"]
    assert (entry["mpp"], entry["mpp_source"]) == (1.02, "mpp")
    with pytest.raises(ScaleError, match=r"1\.2 µm per pixel by `mpp`, 0\.9998 by the pitch"):
        sl.io.read_visium(visium.outs, visium.image, mpp=1.2)


def test_scale_of_the_file(visium: Any, tmp_path: Path) -> None:
    slide = sl.io.open_image(visium.save_picture(), mpp=0.99)
    check(sl.io.read_visium(visium.outs, slide), visium)
    wrong = sl.io.open_image(tmp_path / "run" / "slide.png", mpp=0.5)
    with pytest.raises(ScaleError, match=r"0\.9998 µm per pixel by the pitch of the array, 0\.5 by the image file"):
        sl.io.read_visium(visium.outs, wrong)


def test_stretched_array(visium: Any) -> None:
    frame = visium.positions.assign(pxl_col_in_fullres=visium.xy[:, 0] * 0.9)
    visium.save_positions(frame)
    with pytest.raises(ScaleError, match="stretched unevenly by the positions, 11% more"):
        sl.io.read_visium(visium.outs, visium.image)


def test_one_row_of_spots_needs_a_scale(visium: Any) -> None:
    visium.save_positions(visium.positions[visium.array[:, 0] == 2])
    keep = (visium.array[:, 0] == 2) & visium.tissue
    visium.save_matrix(
        counts=visium.counts[keep], barcodes=[b for b, k in zip(visium.barcodes, keep, strict=True) if k]
    )
    with pytest.raises(ScaleError, match="spots lie in one line.*`mpp=`"):
        sl.io.read_visium(visium.outs, visium.image)
    assert table_of(sl.io.read_visium(visium.outs, visium.image, mpp=1.0)).n_obs == keep.sum()


# -- pictures ---------------------------------------------------------------------------------------------------------
def test_small_pictures_are_the_last_resort(visium: Any) -> None:
    with pytest.warns(SealstWarning, match=r"hires picture is used, with 2 µm per pixel.*pass `image=`"):
        sdata = sl.io.read_visium(visium.outs)
    check(sdata, visium, 0.5)
    entry = table_of(sdata).uns["sealst"]["read_visium"]
    assert (entry["image"], entry["coordinate_scale"]) == ("hires", 0.5)
    assert entry["mpp"] == pytest.approx(2, rel=1e-3)
    (visium.spatial / "tissue_hires_image.png").unlink()
    with pytest.warns(SealstWarning, match=r"lowres picture is used, with 6\.67 µm"):
        check(sl.io.read_visium(visium.outs), visium, 0.15)


@pytest.mark.parametrize("kind", ["hires", "lowres"])
def test_small_picture_passed_as_full(visium: Any, kind: str) -> None:
    path = visium.spatial / f"tissue_{kind}_image.png"
    with pytest.raises(ScaleError, match=rf"{kind} picture, \d+ x \d+ pixels, but .* about 960 x 1000\. Pass the"):
        sl.io.read_visium(visium.outs, path)
    # Also without the factors that tell the full size.
    visium.factors(tissue_hires_scalef=None, tissue_lowres_scalef=None)
    with pytest.raises(ScaleError, match=f"size of Space Ranger's {kind} picture"):
        sl.io.read_visium(visium.outs, path)


def test_resized_picture(visium: Any) -> None:
    small = np.asarray(Image.fromarray(visium.image).resize((720, 750)))
    with pytest.raises(ScaleError, match=r"720 x 750 .*960 x 1000: it was resized\..*`coordinate_scale=0\.75`"):
        sl.io.read_visium(visium.outs, small)
    sdata = sl.io.read_visium(visium.outs, small, coordinate_scale=0.75)
    check(sdata, visium, 0.75)
    assert table_of(sdata).uns["sealst"]["read_visium"]["mpp"] == pytest.approx(4 / 3, rel=1e-3)
    with pytest.raises(ScaleError, match=r"times `coordinate_scale` 0\.5"):
        sl.io.read_visium(visium.outs, small, coordinate_scale=0.5)
    with pytest.raises(DataError, match="`coordinate_scale` belongs to a picture"):
        sl.io.read_visium(visium.outs, coordinate_scale=0.5)


def test_turned_and_cut_pictures(visium: Any) -> None:
    with pytest.raises(ScaleError, match="1000 x 960 .*turned by 90 degrees"):
        sl.io.read_visium(visium.outs, np.ascontiguousarray(np.rot90(visium.image)))
    with pytest.raises(ScaleError, match="800 x 1000 .*another picture, or was cut"):
        sl.io.read_visium(visium.outs, visium.image[:, :800])


def test_spots_outside_without_small_pictures(visium: Any) -> None:
    for path in visium.spatial.glob("*.png"):
        path.unlink()
    check(sl.io.read_visium(visium.outs, visium.image), visium)
    with pytest.raises(ScaleError, match=r"spots lie outside the image: they span x .* image is 480 x 500"):
        sl.io.read_visium(visium.outs, visium.image[::2, ::2].copy())


def test_cytassist_is_no_histology(visium: Any) -> None:
    path = visium.spatial / "cytassist_image.tiff"
    Image.fromarray(visium.image[:300, :300]).save(path)
    with pytest.raises(DataError, match="CytAssist's own picture"):
        sl.io.read_visium(visium.outs, path)
    with pytest.warns(SealstWarning, match="hires picture"):
        check(sl.io.read_visium(visium.outs), visium, 0.5)
    # A run without a microscope's picture: the small pictures show CytAssist's.
    Image.fromarray(visium.image).save(path)
    with pytest.raises(DataError, match="CytAssist's picture alone"):
        sl.io.read_visium(visium.outs)


# -- damaged input ----------------------------------------------------------------------------------------------------
def _damaged(visium: Any, part: str, at: int, value: int) -> None:
    with h5py.File(visium.outs / MATRIX, "r+") as file:
        file["matrix"][part][at] = value


def _words_for_counts(visium: Any) -> None:
    with h5py.File(visium.outs / MATRIX, "r+") as file:
        n = len(file["matrix/data"])
        del file["matrix/data"]
        file["matrix/data"] = np.full(n, b"x")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _moved_spot(v: Any) -> None:
    frame = v.positions
    frame.loc[5, "pxl_col_in_fullres"] += 120
    v.save_positions(frame)


def _nan_spot(v: Any) -> None:
    frame = v.positions.astype({"pxl_row_in_fullres": float})
    frame.loc[frame["barcode"] == v.names[0], "pxl_row_in_fullres"] = np.nan
    v.save_positions(frame)


def _both(v: Any, column: str, change: Callable[[Any], Any]) -> None:
    frame = v.positions
    frame[column] = change(frame[column])
    v.save_positions(frame)


def _delete(*names: str) -> Callable[[Any], None]:
    def delete(v: Any) -> None:
        for name in names:
            path = v.outs / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return delete


MATRIX, POSITIONS, FACTORS = (
    "filtered_feature_bc_matrix.h5",
    "spatial/tissue_positions.csv",
    "spatial/scalefactors_json.json",
)
HIRES, LOWRES = "spatial/tissue_hires_image.png", "spatial/tissue_lowres_image.png"

#: what is wrong, how it comes about, whether the full-resolution picture is passed, and what the error says
DAMAGE = {
    "no matrix": (_delete(MATRIX), True, r"No 'filtered_feature_bc_matrix\.h5'.*it holds 'spatial'"),
    "other matrix": (lambda v: (v.save_matrix("raw"), _delete(MATRIX)(v)), True, r"pass `counts='raw'`"),
    "aggregated": (
        lambda v: (_delete("spatial/tissue_positions.csv")(v), (v.outs / "aggr_tissue_positions.csv").touch()),
        True,
        r"is the output of `spaceranger aggr` .*Read the `outs` folder of each section by itself",
    ),
    "truncated matrix": (lambda v: _cut(v.outs / MATRIX), True, r"could not be read as a 10x.*truncated"),
    "index outside": (lambda v: _damaged(v, "indices", 0, 10**6), True, "is damaged: `indices` hold 1000000"),
    "index before": (lambda v: _damaged(v, "indices", 0, -1), True, "`indices` hold -1, outside"),
    "row outside": (lambda v: _damaged(v, "indptr", 2, 10**6), True, "`indptr` does not rise from 0"),
    "values left out": (lambda v: _damaged(v, "indptr", -1, 0), True, "`indptr` does not rise from 0"),
    "empty matrix": (lambda v: (v.outs / MATRIX).write_bytes(b""), True, "could not be read as a 10x"),
    "no genes": (
        lambda v: v.save_matrix(features=v.features.assign(type="Antibody Capture")), True, "no counts of genes",
    ),
    "no barcodes": (lambda v: v.save_matrix(counts=v.counts[:0], barcodes=[]), True, r"no counts of genes: 0 barcode"),
    "all zero": (lambda v: v.save_matrix(counts=0 * v.counts[v.tissue]), True, "every value is zero"),
    "barcode twice in counts": (
        lambda v: v.save_matrix(barcodes=[v.names[1], *v.names[1:]]), True, "matrix.h5: barcode.* more than once",
    ),
    "no positions": (_delete(POSITIONS), True, r"No table of positions.*tissue_positions_list\.csv"),
    "a pipe for positions": (
        lambda v: (_delete(POSITIONS)(v), os.mkfifo(v.outs / POSITIONS)), True, r"No table of positions",
    ),
    "words for counts": (_words_for_counts, True, r"is damaged: its values are \|S1, no numbers"),
    "empty positions": (lambda v: (v.outs / POSITIONS).write_text(""), True, "empty"),
    "header alone": (lambda v: v.save_positions(v.positions[:0]), True, "holds no positions"),
    "truncated gz": (
        lambda v: (v.save_positions().with_suffix(".csv.gz").write_bytes(
            gzip.compress(v.positions.to_csv(index=False).encode())[:300]), _delete(POSITIONS)(v)),
        True, "could not be read as a table of positions",
    ),
    "truncated parquet": (
        lambda v: _cut(v.save_positions(name="tissue_positions.parquet")), True, "could not be read as a table",
    ),
    "unknown column": (
        lambda v: v.save_positions(v.positions.rename(columns={"pxl_row_in_fullres": "a"})), True,
        "no column for 'pxl_row_in_fullres'",
    ),
    "ambiguous column": (
        lambda v: v.save_positions(v.positions.rename(columns={"pxl_row_in_fullres": "imagerow"}).assign(y=1)), True,
        "more than one column for 'pxl_row_in_fullres'",
    ),
    "column missing, no header": (
        lambda v: v.save_positions(v.positions[COLUMNS[:-1]], header=False), True, "has 5 columns and no header",
    ),
    "text for numbers": (lambda v: _both(v, "array_row", lambda c: "x"), True, "'array_row' holds no whole number"),
    "in_tissue not a flag": (lambda v: _both(v, "in_tissue", lambda c: c + 1), True, "'in_tissue' must be 0 or 1"),
    "none in tissue": (lambda v: _both(v, "in_tissue", lambda c: 0), True, "'in_tissue' 1. Pass `in_tissue=False`"),
    "tissue of another section": (
        lambda v: _both(v, "in_tissue", lambda c: np.roll(c, 9)), True, "different sections or runs",
    ),
    "barcode twice in positions": (
        lambda v: _both(v, "barcode", lambda c: c.where(c.index != 3, c[4])), True, "positions.csv: barcode.*more than",
    ),
    "suffix": (
        lambda v: _both(v, "barcode", lambda c: c.str[:-2]), True,
        r"'[ACGT]{16}-1'.*by the suffix \('-1'\) alone",
    ),
    "case": (lambda v: _both(v, "barcode", lambda c: c.str.lower()), True, "upper and lower case alone"),
    "prefix": (lambda v: v.save_matrix(barcodes=[f"P1_{b}" for b in v.names]), True, "have a prefix: remove it"),
    "other slide": (lambda v: _both(v, "barcode", lambda c: "X" + c), True, "from one run of Space Ranger"),
    "a few barcodes by chance": (
        lambda v: _both(v, "barcode", lambda c: c.where(c.index > 42, "X" + c)), True,
        r"\d of \d+ barcodes.*have a position",
    ),
    "NaN coordinates": (_nan_spot, True, "1 of 35 barcodes have no finite pixel coordinates"),
    "spot off the array": (_moved_spot, True, "1 of 48 positions lie more than 50 µm from their place"),
    "rows shuffled": (
        lambda v: v.save_positions(v.positions.assign(array_row=np.roll(v.array[:, 0], 7))), True,
        "from their place|unevenly",
    ),
    "row and column interchanged": (
        lambda v: v.save_positions(
            v.positions.rename(columns={"array_row": "array_col", "array_col": "array_row"})), True,
        "stretched unevenly.*interchanged",
    ),
    "factors damaged": (lambda v: _cut(v.outs / FACTORS), True, "is damaged: it is no JSON"),
    "no factors, no picture": (_delete(FACTORS), False, r"no picture.*\(factors found: none\).*Pass `image=`"),
    "no factor, no picture": (
        lambda v: v.factors(tissue_hires_scalef=None, tissue_lowres_scalef=None), False, "no picture.*'spot_diameter",
    ),
    "no small pictures": (_delete(HIRES, LOWRES), False, "has no 'tissue_hires_image.png'"),
    "hires truncated": (lambda v: _cut(v.outs / HIRES), False, "could not be read as an image"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_input(visium: Any, case: str) -> None:
    damage, with_picture, message = DAMAGE[case]
    damage(visium)
    with pytest.raises(DataError, match=message):
        sl.io.read_visium(visium.outs, visium.image if with_picture else None)


#: damage that the full-resolution picture, or the other small one, makes up for
REPAIRED = {
    "no factors": (_delete(FACTORS), True),
    "no diameter": (lambda v: v.factors(spot_diameter_fullres=None), True),
    "no small pictures": (_delete(HIRES, LOWRES), True),
    "no hires factor": (lambda v: v.factors(tissue_hires_scalef=None), True),
    "NaN off tissue": (
        lambda v: v.save_positions(v.positions.assign(pxl_row_in_fullres=np.where(v.tissue, v.xy[:, 1], np.nan))), True,
    ),
    "no lowres": (_delete(LOWRES), False),
}  # fmt: skip


@pytest.mark.parametrize("case", REPAIRED)
def test_repaired_input(visium: Any, case: str) -> None:
    damage, with_picture = REPAIRED[case]
    damage(visium)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SealstWarning)
        sdata = sl.io.read_visium(visium.outs, visium.image if with_picture else None)
    check(sdata, visium, 1.0 if with_picture else 0.5)


def test_positions_that_lack_a_few(visium: Any) -> None:
    visium.save_positions(visium.positions[lambda f: f["barcode"] != visium.names[2]])
    with pytest.warns(SealstWarning, match=r"1 barcode\(s\) with counts have no position"):
        table = table_of(sl.io.read_visium(visium.outs, visium.image))
    assert list(table.obs["spot_id"]) == [b for b in visium.names if b != visium.names[2]]
    np.testing.assert_array_equal(table.X.toarray(), np.delete(visium.table, 2, axis=0))


def test_paths_that_are_refused(visium: Any, visium_hd: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`path`: nothing at"):
        sl.io.read_visium(tmp_path / "absent", visium.image)
    with pytest.raises(DataError, match="No 'filtered_feature.*Name the folder of one sample: 'run'"):
        sl.io.read_visium(tmp_path, visium.image)
    with pytest.raises(DataError, match="`image`: no file at"):
        sl.io.read_visium(visium.outs, "absent.tif")
    for path in (visium_hd.outs, visium_hd.bins(8)):
        with pytest.raises(DataError, match=r"of Visium HD, with bins of .*read_visium_hd"):
            sl.io.read_visium(path, visium.image)


def test_recognise(visium: Any, tmp_path: Path) -> None:
    assert recognise(visium.outs)
    assert recognise(visium.outs.parent)
    flatten(visium, tmp_path / "flat", "GSM1_A_")
    assert recognise(tmp_path / "flat")
    assert not recognise(visium.spatial)
    assert not recognise(tmp_path / "absent")


# -- crops ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fallback", [False, True])
@pytest.mark.parametrize(("turn", "mirror"), [(0.0, False), (0.4, True)])
def test_crops_centre_on_the_spots(
    make_visium: Callable[..., Any], dot_colour: Callable[[int], Any], fallback: bool, turn: float, mirror: bool
) -> None:
    files = make_visium(turn=turn, mirror=mirror)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SealstWarning)
        sdata = sl.io.read_visium(files.outs, None if fallback else files.save_picture(), section="s")
        sl.pp.pair_crops(sdata, crop_um=112, crop_px=56)
    table = table_of(sdata)
    crops = region_crops(sdata, table, regions_of(table)[0])
    rows, boxes = crops.rows, crops.boxes
    crops = read_crops(image_levels(sdata.images["s_he"]), boxes, 56)
    written = {b: i for i, b in enumerate(files.barcodes)}
    assert len(rows) > 20
    for crop, row in zip(crops, rows, strict=True):
        expected = dot_colour(written[table.obs["spot_id"].iloc[row]])
        assert np.abs(crop[27:29, 27:29].astype(int).mean((0, 1)) - expected).max() <= 4
        # The dot is 16 µm wide, 8 pixels of the crop, and lies in the middle.
        dark = crop[:, :, 0] < 120
        dark[:16] = dark[40:] = dark[:, :16] = dark[:, 40:] = False
        y, x = np.nonzero(dark)
        assert abs(x.mean() + 0.5 - 28) < 0.75
        assert abs(y.mean() + 0.5 - 28) < 0.75


def tissue_picture(height: int, width: int) -> np.ndarray:
    """A picture that looks different each way round."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    grey = 230 - 150 * np.exp(-((x - 0.3) ** 2 + (y - 0.35) ** 2) / 0.02) - 90 * np.exp(-((x - 0.7) ** 2) / 0.005)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda x: x[:, ::-1], "mirrored left to right"),
        (lambda x: x[::-1], "upside down"),
        (lambda x: x[::-1, ::-1], "turned by 180 degrees"),
    ],
)
def test_a_picture_that_lies_otherwise_than_space_rangers_is_refused(visium: Any, turn: Any, words: str) -> None:
    from PIL import Image

    hires = next(visium.outs.rglob("tissue_hires_image.png"))
    height, width = visium.image.shape[:2]
    full = tissue_picture(height, width)
    with Image.open(hires) as small:
        size = small.size
    Image.fromarray(full).resize(size).save(hires)
    sl.io.read_visium(visium.outs, full)
    with pytest.raises(sl.DataError, match=words):
        sl.io.read_visium(visium.outs, np.ascontiguousarray(turn(full)))
    with pytest.warns(sl.SealstWarning, match="hardly resembles"):
        sl.io.read_visium(visium.outs, np.random.default_rng(0).integers(0, 255, full.shape, dtype=np.uint8))


def test_pixel_columns_that_are_interchanged_are_said(make_visium: Callable[..., Any]) -> None:
    files = make_visium(mirror=True)
    with pytest.warns(sl.SealstWarning, match="the array lies mirrored on the picture"):
        sl.io.read_visium(files.outs, files.image)
