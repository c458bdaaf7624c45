from __future__ import annotations

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import spatialdata as sd
import tifffile
from spatialdata.transformations import Identity, Scale, set_transformation

import sealst as sl
from sealst.io._stores import formats as _formats


def value(report, name):
    (found,) = report.facts.loc[report.facts["name"] == name, "value"]
    return found


def texts(report, level=None):
    return [p.text for p in report.problems if level in (None, p.level)]


def state(sdata):
    table = sdata.tables["table"]
    return (
        [sorted(map(str, part)) for part in (sdata.images, sdata.shapes, sdata.labels, table.uns, table.layers)],
        table.obs.copy(),
        table.X.copy(),
    )


def test_a_good_section_has_no_problems_and_is_left_alone(toy_section):
    sdata = toy_section()
    before = state(sdata)
    report = sl.io.check(sdata)
    assert report.ok
    assert report.problems == ()
    assert report.format == "SpatialData"
    assert value(report, "image 'toy_he'") == "600 x 600 px, 3 channels, uint8, 2 level(s), 1 µm/px"
    assert value(report, "used") == "1 µm/px by the image's 'um' coordinate system"
    assert value(report, "centre inside the image") == "36 of 36 (100.0%)"
    assert value(report, "pitch") == "90 px = 90 µm"
    assert value(report, "grid") == "square"
    assert value(report, "possible (112 µm)") == "36 of 36"
    assert value(report, "on tissue (at least 15%)") == "36 of 36 (100.0%)"
    assert value(report, "symbols like human") == "8 (100.0%)"
    assert value(report, "raw counts") == "X"
    assert value(report, "patient") == "p1"
    assert value(report, "median per spot") == np.median(np.asarray(sdata.tables["table"].X.sum(1)))
    after = state(sdata)
    assert before[0] == after[0]
    pd.testing.assert_frame_equal(before[1], after[1])
    assert (before[2] != after[2]).nnz == 0


def test_the_report_reads_well_in_terminal_notebook_and_json(toy_section):
    sdata = toy_section()
    sdata.tables["table"].obs["patient"] = "<b>"
    text = str(sl.io.check(sdata))
    assert text.startswith("SpatialData: SpatialData\n\nelements\n  image 'toy_he'")
    assert "\nscale of toy_spots\n" in text
    assert text.endswith("No problems found.")
    del sdata.tables["table"].obs["patient"]
    report = sl.io.check(sdata, mpp=3)
    lines = str(report).splitlines()
    assert [line[:9] for line in lines[-2:]] == ["✗ error: ", "! warning"]
    assert "<li><b>warning</b>" in report._repr_html_()
    sdata.tables["table"].obs["patient"] = "<b>"
    assert "&lt;b&gt;" in sl.io.check(sdata)._repr_html_()
    assert json.loads(json.dumps(report.to_dict(), default=str))["ok"] is False


def test_contradictory_and_unknown_scales(toy_section):
    sdata = toy_section()
    report = sl.io.check(sdata, mpp=0.5)
    (text,) = texts(report, "error")
    assert "`sl.pp.pair_crops` will refuse: Contradictory scale" in text
    assert "1 µm per pixel" in text
    assert "0.5 by `mpp`" in text
    assert value(report, "`mpp`") == "0.5 µm/px"
    sdata.tables["table"].obs["technology"] = "Visium"
    (text,) = texts(sl.io.check(sdata))
    assert "1 µm per pixel by the image's 'um' coordinate system, but 1.111 by the pitch of Visium (100 µm)" in text
    set_transformation(sdata.images["toy_he"], {"global": Identity()}, set_all=True)
    report = sl.io.check(sdata)
    assert not report.ok
    assert any("The physical scale of image 'toy_he'" in t and "`pitch_um=`" in t for t in texts(report, "error"))
    assert any("it would be 1.111 µm per pixel" in t for t in texts(report, "warning"))
    assert sl.io.check(sdata, pitch_um=100).ok


def test_a_reduced_copy_is_recognised(toy_section):
    sdata = toy_section()
    sdata.images["toy_hires_image"] = sdata.images.pop("toy_he")
    set_transformation(sdata.images["toy_hires_image"], {"global": Scale([8, 8], axes=("x", "y"))}, set_all=True)
    found = texts(sl.io.check(sdata, pitch_um=100))
    assert any("looks like a reduced copy (its name holds 'hires')" in t for t in found)
    assert any("36 of 36 spots" not in t and "spots of 'toy_spots' lie" in t for t in found)
    report = sl.io.check(sdata, mpp=8)
    assert any("8 µm per pixel; nuclei are about 8 µm wide" in t for t in texts(report, "warning"))


def test_spots_outside_the_image_and_off_the_tissue(toy_section):
    sdata = toy_section()
    spots = sdata.shapes["toy_spots"]
    set_transformation(spots, {"global": Scale([4, 4], axes=("x", "y"))}, set_all=True)
    report = sl.io.check(sdata)
    assert value(report, "centre inside the image") == "1 of 36 (2.8%)"
    assert any("35 of 36 spots of 'toy_spots' lie outside image" in t for t in texts(report, "error"))
    pixels = np.full((600, 600, 3), 245, dtype=np.uint8)
    pixels[:120, :120] = np.random.default_rng(0).integers(60, 220, (120, 120, 3))
    sdata = sl.io.from_arrays(
        pixels,
        np.full((36, 1), 5.0),
        toy_section().tables["table"].obsm["spatial"],
        genes=["EPCAM"],
        mpp=1.0,
        spot_um=50,
        section="glass",
    )
    report = sl.io.check(sdata)
    assert any("crops of 'glass_spots' lie on tissue: do image and spots belong" in t for t in texts(report, "warning"))


@pytest.mark.parametrize(
    ("names", "fact", "message"),
    [
        ([f"ENSG0000000000{i}" for i in range(8)], ("Ensembl ids (human)", "8 (100.0%)"), "named by Ensembl id"),
        (
            ["Epcam", "Krt8", "Vim", "Col1a1", "Cd3e", "Ms4a1", "Erbb2", "Actb"],
            ("symbols like mouse", "8 (100.0%)"),
            "pass `species='mouse'`",
        ),
        ([str(i) for i in range(8)], ("numbers", "8 (100.0%)"), "Few gene names look like symbols (found '0', '1'"),
        (
            ["EPCAM", "epcam", "VIM", "CD3E", "BLANK_0001", "NegControlProbe_1", "CD8A", "C1orf43"],
            ("control probes", "2 (25.0%)"),
            "2 gene names differ only in case ('EPCAM', 'epcam')",
        ),
    ],
)
def test_gene_names(toy_section, names, fact, message):
    sdata = toy_section()
    sdata.tables["table"].var_names = names
    report = sl.io.check(sdata)
    assert report.ok
    assert value(report, fact[0]) == fact[1]
    assert any(message in t for t in texts(report, "warning"))


def test_known_and_duplicate_genes(toy_section):
    sdata = toy_section()
    report = sl.io.check(sdata)
    (known,) = report.facts.loc[report.facts["name"].str.startswith("known to HGNC"), "value"]
    assert known == "8 (100.0%)"
    sdata.tables["table"].var_names = ["EPCAM"] * 2 + list(sdata.tables["table"].var_names[2:])
    assert any("Duplicate gene names in `table.var_names`: 'EPCAM'" in t for t in texts(sl.io.check(sdata), "error"))


def test_counts_that_are_not_raw(toy_section):
    sdata = toy_section()
    table = sdata.tables["table"]
    table.layers["raw"] = table.X.copy()
    table.X = sp.csr_matrix(np.log1p(table.X.toarray()))
    report = sl.io.check(sdata)
    assert report.ok
    assert value(report, "raw counts") == "layer 'raw'"
    assert any("Call `sl.pp.normalize(sdata, layer='raw')`" in t for t in texts(report, "warning"))
    del table.layers["raw"]
    assert any(
        "`sl.pp.normalize` will refuse: `table.X` does not hold raw counts" in t for t in texts(sl.io.check(sdata))
    )
    shallow = toy_section(depth=0.5)
    assert any("The median spot has" in t for t in texts(sl.io.check(shallow), "warning"))


def test_a_prepared_section_says_so(toy_section):
    sdata = toy_section()
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    sl.pp.normalize(sdata)
    report = sl.io.check(sdata)
    assert report.ok
    assert value(report, "paired") == "36 of 36, 64 µm"
    assert value(report, "normalised layers") == "lognorm, context"


def test_missing_parts_are_reported(toy_section):
    sdata = toy_section()
    del sdata.tables["table"].obs["patient"]
    report = sl.io.check(sdata)
    assert report.ok
    assert any("`.obs['patient']` is absent" in t for t in texts(report, "warning"))
    assert any("'no' not found in the table's regions" in t for t in texts(sl.io.check(sdata, region="no"), "error"))
    assert any("'no' not found in `sdata.tables`" in t for t in texts(sl.io.check(sdata, table_key="no"), "error"))
    assert any("'no' not found in `sdata.images`" in t for t in texts(sl.io.check(sdata, image_key="no"), "error"))
    del sdata.images["toy_he"]
    assert any("holds no image" in t for t in texts(sl.io.check(sdata), "error"))
    report = sl.io.check(sd.SpatialData(images={"he": toy_section().images["toy_he"]}))
    assert report.ok
    assert "Cut it into tiles: `sl.pp.tile(sdata)`" in texts(report)[0]


def test_few_spots_and_shared_positions(toy_section):
    report = sl.io.check(toy_section(n=3))
    assert any("needs at least 16 spots with a crop, 9 have one" in t for t in texts(report, "error"))
    sdata = toy_section()
    spots = sdata.shapes["toy_spots"]
    spots.loc[spots.index[1], "geometry"] = spots.geometry.iloc[0]
    assert any("share positions" in t for t in texts(sl.io.check(sdata), "error"))


# -- formats ----------------------------------------------------------------------------------------------------------
def test_what_is_no_section_is_reported_with_what_was_found(tmp_path):
    report = sl.io.check(tmp_path / "nothing")
    assert not report.ok
    assert "Nothing at" in texts(report)[0]
    (tmp_path / "counts.xlsx").touch()
    report = sl.io.check(tmp_path)
    assert report.format == "not recognised"
    assert "found 'counts.xlsx'. Expected one of" in texts(report)[0]
    for one in _formats.FORMATS.values():
        assert f"- {one.name} ({one.reader}): {one.needs}" in texts(report)[0]
    with pytest.raises(sl.DataError, match="is not recognised; found 'counts.xlsx'"):
        sl.io.read(tmp_path)


def test_a_table_without_a_picture_says_what_can_be_done_with_it(toy_section, tmp_path):
    table = toy_section().tables["table"].copy()
    table.write_h5ad(tmp_path / "t.h5ad")
    report = sl.io.check(tmp_path / "t.h5ad")
    assert report.ok
    assert value(report, "spots") == table.n_obs
    assert "spatial" in value(report, "slots in .obsm")
    assert "`sl.tl.pathways`, `sl.tl.build_index` and `sl.tl.retrieve` take it" in texts(report, "warning")[-1]
    (tmp_path / "broken.h5ad").write_bytes(b"no table")
    assert not sl.io.check(tmp_path / "broken.h5ad").ok


def test_a_damaged_store_is_reported(toy_section, tmp_path):
    toy_section().write(tmp_path / "s.zarr")
    assert sl.io.check(tmp_path / "s.zarr").ok
    (tmp_path / "s.zarr" / "tables" / "table" / "X" / "data" / "zarr.json").write_text("{")
    report = sl.io.check(tmp_path / "s.zarr")
    assert report.format.startswith("zarr")
    assert not report.ok


def test_readers_are_there_and_ambiguity_is_refused(tmp_path, monkeypatch):
    for one in _formats.FORMATS.values():
        if one.reader.startswith("sl.io."):
            assert hasattr(sl.io, one.reader.removeprefix("sl.io."))
    always = [_formats.Format(n, lambda path: True, lambda path, **kw: kw, n, "") for n in ("x", "y")]
    monkeypatch.setattr(_formats, "FORMATS", {one.name: one for one in always})
    with pytest.raises(sl.DataError, match="looks like several formats: 'x', 'y'. Name one with `format=`"):
        sl.io.read(tmp_path)
    assert sl.io.read(tmp_path, format="y", section="s") == {"section": "s"}
    with pytest.raises(sl.DataError, match="`format` must be one of 'x', 'y', found 'z'"):
        sl.io.read(tmp_path, format="z")


def test_a_real_section_from_its_folder(shared_dir):
    folder = shared_dir / "data" / "her2st" / "C2"
    report = sl.io.check(folder)
    assert report.ok
    assert report.format == "st (sl.io.read_st)"
    assert value(report, "centre inside the image") == "187 of 187 (100.0%)"
    assert value(report, "on tissue (at least 15%)").startswith("187 of 187")
    assert value(report, "pitch").endswith("= 199 µm")
    assert float(value(report, "symbols like human").split("(")[1].rstrip("%)")) > 95
    sdata = sl.io.read(folder, section="mine", patient="C", organ="breast")
    assert list(sdata.images) == ["mine_he"]


def test_readers_take_the_options_of_the_check(tmp_path, monkeypatch):
    known = sl.datasets.synthetic(size_um=400)
    asked = {}

    def read(path, **options):
        asked.update(options)
        return known

    formats = {name: _formats.Format(name, lambda path: True, read, name, "") for name in ("x", "y")}
    monkeypatch.setattr(_formats, "FORMATS", formats)
    assert "Name one with `format=`" in texts(sl.io.check(tmp_path))[0]
    assert sl.io.check(tmp_path, format="y", counts="raw", sample="A1", mpp=0.5).format == "y (y)"
    assert asked == {"counts": "raw", "sample": "A1", "mpp": 0.5}
    with pytest.raises(sl.DataError, match="'counts', 'format': these are for a reader, and `data` is a SpatialData"):
        sl.io.check(known, counts="raw", format="x")


@pytest.mark.parametrize("spots", [False, True])
def test_a_picture_without_light_background_is_said(spots, tmp_path):
    """Fluorescence that was rendered as red, green and blue; black around the section is no such thing."""
    image, _ = tissue_picture()
    padded = np.zeros((1000, 1040, 3), np.uint8)
    padded[:500, :520] = image
    for picture, dark in ((image, False), (padded, False), (image // 4, True), (255 - image, True)):
        tifffile.imwrite(tmp_path / "s.tif", picture, photometric="rgb", resolution=(1e4, 1e4), resolutionunit=3)
        sdata = sl.io.read_wsi(tmp_path / "s.tif")
        if spots:
            xy = np.array([[100.0, 100.0], [200.0, 200.0]])
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                sdata = sl.io.from_arrays(picture, np.ones((2, 1)), xy, genes=["A"], mpp=1.0, spot_um=55)
            assert any("has no light background" in str(w.message) for w in caught) == dark
        found = [t for t in texts(sl.io.check(sdata), "warning") if "has no light background" in t]
        assert len(found) == dark


def test_a_prepared_slide_is_good_without_genes(tmp_path):
    image, _ = tissue_picture()
    options = {"photometric": "rgb", "resolution": (1e4, 1e4), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "s.tif", image, **options)
    sdata = sl.io.read_wsi(tmp_path / "s.tif")
    sl.pp.tile(sdata, crop_um=56)
    sl.pp.pair_crops(sdata, crop_um=56)
    sdata.write(tmp_path / "s.zarr")
    for data in (sdata, tmp_path / "s.zarr"):
        report = sl.io.check(data)
        assert report.ok, texts(report)
        assert value(report, "possible (112 µm)") == f"{sdata.tables['table'].n_obs} of {sdata.tables['table'].n_obs}"


# -- scale and axes that nothing else contradicts ---------------------------------------------------------------------
def tissue_picture() -> tuple[np.ndarray, np.ndarray]:
    """Nearly square picture with tissue that is wider than high, and where it is."""
    height, width = 500, 520
    y, x = np.mgrid[:height, :width]
    inside = ((y - height / 2) / (0.25 * height)) ** 2 + ((x - width / 2) / (0.45 * width)) ** 2 < 1
    image = np.full((height, width, 3), 245, np.uint8)
    image[inside] = (200, 120, 180)
    image[inside & (np.random.default_rng(0).random(inside.shape) < 0.12)] = (90, 50, 140)
    return image, inside


def spotted(kind="square", *, swapped=False, array=False, everywhere=False, mpp=10.0, **options):
    """Spots as printed on legacy ST (square) or Visium (hex) at 10 µm per pixel, under tissue or everywhere."""
    image, inside = tissue_picture()
    pitch, spot = {"square": (20.0, 100.0), "hex": (10.0, 55.0)}[kind]
    row, column = (axis.ravel() for axis in np.mgrid[: int(480 / pitch), : int(480 / pitch)])
    x = pitch * (column + 0.7 + (0.5 * (row % 2) if kind == "hex" else 0))
    y = pitch * (row * (np.sqrt(0.75) if kind == "hex" else 1) + 0.7)
    kept = everywhere | inside[y.astype(int), x.astype(int)]
    xy = np.column_stack([y, x] if swapped else [x, y])[kept]
    places = np.column_stack([row, 2 * column + row % 2 if kind == "hex" else column])[kept]
    genes = ["ERBB2", "EPCAM", "CD3E", "VIM", "KRT8", "GAPDH", "ACTB", "PTPRC"]
    options = {"spot_um": spot, "patient": "p"} | ({"array": places} if array else {}) | options
    return sl.io.from_arrays(image, np.full((len(xy), 8), 20), xy, genes=genes, mpp=mpp, **options)


@pytest.mark.parametrize(
    ("kind", "technology"),
    [
        *zip(
            ["square"] * 4 + ["hex"] * 3, ["unknown", "10x", "ST", "legacy ST", "unknown", "10x", "Visium"], strict=True
        )
    ],
)
def test_pitch_contradicts_a_wrong_scale_whatever_the_label(kind, technology):
    report = sl.io.check(spotted(kind, technology=technology))
    assert not [t for t in texts(report) if "apart by a scale" in t or "by the pitch of" in t]
    for mpp in (7.27, 13.0, 20.0):
        found = "\n".join(texts(sl.io.check(spotted(kind, technology=technology, mpp=mpp)), "warning"))
        if technology in ("unknown", "10x"):
            name, um = {"square": ("legacy ST", 200), "hex": ("Visium", 100)}[kind]
            assert f"µm apart by a scale of {mpp:.4g} µm per pixel" in found
            assert f"those of {name}, which are as large, {um} µm. By that the image has 10 µm per pixel" in found
        else:
            assert f"{mpp:.4g} µm per pixel by the image's 'um' coordinate system, but 10 by the pitch of" in found


def test_pitch_and_size_of_spots_that_no_array_has():
    assert value(sl.io.check(spotted("hex")), "confirmed by") == "pitch and spots, which are those of Visium"
    report = sl.io.check(spotted("hex", mpp=5.0, spot_um=30))
    assert value(report, "not confirmed") == "no known array has spots of 30 µm every 50 µm"
    (text,) = [t for t in texts(sl.io.check(spotted("hex", mpp=5.0, spot_um=80))) if "overlap" in t]
    assert "Spots of 80 µm lie 50 µm apart" in text
    assert not [t for t in texts(sl.io.check(spotted(spot_um=200, spot_shape="square"))) if "bins touch" in t]
    (text,) = [t for t in texts(sl.io.check(spotted(spot_um=128, spot_shape="square"))) if "bins touch" in t]
    assert "by their side the image would have 6.4 µm per pixel" in text


@pytest.mark.parametrize("reader", ["read_st", "read_hest"])
def test_an_array_is_compared_with_the_pitch_it_was_read_with(reader):
    sdata = spotted(technology="Spatial Transcriptomics", mpp=7.0)
    sdata.tables["table"].uns["sealst"] = {reader: {"pitch_um": 140.0, "mpp": 7.0, "mpp_source": "argument"}}
    assert not [t for t in texts(sl.io.check(sdata)) if "by the pitch of" in t]


@pytest.mark.parametrize("kind", ["square", "hex"])
def test_interchanged_axes_show_in_tissue_and_in_the_array(kind):
    report = sl.io.check(spotted(kind))
    assert value(report, "x and y").startswith("as tissue has it (100% on it, ")
    assert not [t for t in texts(report) if "swapped" in t or "interchanged" in t]
    (text,) = [t for t in texts(sl.io.check(spotted(kind, swapped=True))) if "interchanged" in t]
    assert "lie on tissue, and 100% with x and y interchanged: are the columns of the coordinates swapped?" in text
    assert not [t for t in texts(sl.io.check(spotted(kind, array=True, everywhere=True))) if "interchanged" in t]
    (text,) = [t for t in texts(sl.io.check(spotted(kind, array=True, swapped=True))) if "interchanged" in t]
    assert "The array of 'section_spots' lies mirrored on the image" in text


def test_axes_that_tissue_does_not_tell():
    for swapped in (False, True):
        report = sl.io.check(spotted("square", everywhere=True, swapped=swapped))
        assert value(report, "x and y") == "not decided: as much tissue lies under the spots if they were interchanged"
        report = sl.io.check(spotted("hex", everywhere=True, swapped=swapped))
        assert value(report, "x and y").startswith("not decided")
        assert any("Rows of the hexagonal array 'section_spots' run along y" in t for t in texts(report)) == swapped
