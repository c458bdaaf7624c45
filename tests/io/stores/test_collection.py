from __future__ import annotations

import gc
import os
import shutil
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import zarr
from PIL import Image
from spatialdata._io.format import SpatialDataContainerFormatV01
from spatialdata.models import Labels2DModel
from spatialdata.transformations import Identity

import sealst as sl
from sealst._files import is_store, stores_in
from sealst._system.exchange import exchange
from sealst.cli._sections import is_several, open_sections
from sealst.io._stores import saving
from sealst.io._stores import store as _store
from sealst.io._stores.formats import format_of


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Folder with three stores, not to be changed: sections a, b, c of patients p0, p1, p2."""
    folder = tmp_path_factory.mktemp("stores")
    for i, name in enumerate("abc"):
        section(name, patient=f"p{i}", seed=i).write(folder / f"{name}.zarr")
    return folder


@pytest.fixture
def store(stores, tmp_path):
    """One store that may be changed, alone in its folder."""
    return Path(shutil.copytree(stores / "a.zarr", tmp_path / "own" / "a.zarr"))


def section(name, *, patient="p0", seed=0, mpp=1.0):
    """4 x 4 spots in a plain image of 300 x 300 px."""
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(16), 4)
    return sl.io.from_arrays(
        rng.integers(0, 255, (300, 300, 3), dtype=np.uint8),
        rng.poisson(9.0, (16, 3)),
        np.column_stack([60.0 + 60 * column, 60.0 + 60 * row]),
        genes=["EPCAM", "VIM", "CD3E"],
        mpp=mpp,
        spot_um=30,
        section=name,
        patient=patient,
        organ="breast",
    )


def entries(folder):
    """What lies in a folder, without locks."""
    return [p.name for p in folder.iterdir() if not p.name.endswith(".lock")]


@pytest.fixture
def opened(monkeypatch):
    """Weak references to every section that is read from a store, and the most that were alive at once."""
    alive: list[weakref.ref] = []
    most = [0]
    read = _store.read_zarr

    def counted(path, **options):
        gc.collect()
        sdata = read(path, **options)
        alive.append(weakref.ref(sdata))
        most[0] = max(most[0], sum(one() is not None for one in alive))
        return sdata

    monkeypatch.setattr(_store, "read_zarr", counted)
    return alive, most


def prepare(sdata):
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=32)
    sl.pp.normalize(sdata)


def test_a_folder_of_stores_opens_one_at_a_time(stores, opened):
    alive, most = opened
    sections = sl.io.read_collection(stores)
    assert (len(sections), sections.names) == (3, ["a", "b", "c"])
    assert repr(sections) == "Collection of 3 section(s): 'a', 'b', 'c'"
    assert list(sections.manifest.columns) == ["section", "path", "format"]
    assert not alive
    for i in (0, 2, 1, -1):
        assert sections[i].tables["table"].n_obs == 16
    assert most[0] == 1
    assert sections[1] is sections[1]
    assert sections["b"] is sections[1]
    assert [s.tables["table"].obs["patient"].iloc[0] for s in sections] == ["p0", "p1", "p2"]
    with pytest.raises(IndexError):
        _ = sections[3]
    with pytest.raises(sl.MissingKeyError, match="'x' not found in the collection; found: 'a', 'b', 'c'"):
        _ = sections["x"]


def test_keep_holds_more_sections(stores, opened):
    alive, most = opened
    sections = sl.io.read_collection(stores, keep=2)
    for i in (0, 1, 0, 1):
        _ = sections[i]
    assert len(alive) == 2
    _ = sections[2]
    # The one used longest ago went.
    _ = sections[1]
    assert (len(alive), most[0]) == (3, 2)


def test_slices_and_subsets_are_collections(stores):
    sections = sl.io.read_collection(stores)
    assert isinstance(sections[1:], sl.io.Collection)
    assert sections[1:].names == ["b", "c"]
    assert sections.subset(["c", "a"]).names == ["c", "a"]


def test_sections_can_be_replaced_by_objects_in_memory(stores, tmp_path):
    (tmp_path / "cohort.csv").write_text(f"path,section,stage\n{stores / 'a.zarr'},x,1\n{stores / 'b.zarr'},y,2\n")
    sections = sl.io.read_collection(tmp_path / "cohort.csv")
    mine = section("anything")
    changed = sections.replaced({"y": mine})
    assert changed.names == ["x", "y"]
    assert changed["y"] is mine
    # The others keep what the manifest states, and are opened again.
    assert set(changed["x"].tables["table"].obs["stage"]) == {1.0}
    assert list(changed.manifest["path"] == "") == [False, True]
    assert sections["y"] is not mine
    with pytest.raises(sl.MissingKeyError, match="'z' not found in the collection"):
        sections.replaced({"z": mine})


def test_paths_and_objects_can_be_mixed(stores):
    mine = section("mine")
    sections = sl.io.Collection([stores / "a.zarr", mine])
    assert sections.names == ["a", "mine"]
    assert sections[1] is mine
    sections.save(mine)
    sl.pp.normalize(sections[1])
    _ = sections[0], sections[1]
    assert "lognorm" in sections[1].tables["table"].layers


def test_refuses_what_is_no_list_of_sections(stores, tmp_path):
    with pytest.raises(TypeError, match=r"must be a list of paths or SpatialData, found SpatialData: use \[section\]"):
        sl.io.Collection(section("toy"))
    with pytest.raises(sl.DataError, match="`sections` is empty"):
        sl.io.Collection([])
    with pytest.raises(sl.DataError, match="`keep` must be a whole number, 1 or more, found 0"):
        sl.io.Collection([section("toy")], keep=0)
    with pytest.raises(sl.DataError, match=r"Section name\(s\) 'toy' occur twice in the collection"):
        sl.io.Collection([section("toy"), section("toy")])
    with pytest.raises(sl.DataError, match="Nothing at .*none.zarr"):
        sl.io.Collection([tmp_path / "none.zarr"])
    with pytest.raises(sl.DataError, match=r"is itself one section; use \[path\]"):
        sl.io.read_collection(stores / "a.zarr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(sl.DataError, match="holds no SpatialData zarr store"):
        sl.io.read_collection(tmp_path / "empty")


# -- saving -----------------------------------------------------------------------------------------------------------
def test_preparation_is_written_back(store):
    pixels = {p: p.stat().st_mtime_ns for p in (store / "images").rglob("*") if p.is_file()}
    sections = sl.io.read_collection(store.parent)
    for s in sections:
        prepare(s)
        sections.save(s)
    again = sd.read_zarr(store)
    table = again.tables["table"]
    assert {"counts", "lognorm", "context"} <= set(table.layers)
    assert table.obs["crop_ok"].all()
    assert table.uns["sealst"]["crops"]["a_spots"]["crop_px"] == 32
    assert np.array_equal(again.shapes["a_spots_crops"].index, table.obs["spot_id"])
    assert pixels == {p: p.stat().st_mtime_ns for p in (store / "images").rglob("*") if p.is_file()}
    assert entries(store.parent) == ["a.zarr"]

    def again_smaller(sdata):
        sl.pp.pair_crops(sdata, crop_um=32, crop_px=32)
        del sdata.tables["table"].layers["context"]

    sections.apply(again_smaller)
    again = sd.read_zarr(store)
    assert again.shapes["a_spots_crops"].area.iloc[0] == pytest.approx(32**2)
    assert "context" not in again.tables["table"].layers


def test_new_and_replaced_labels_are_written(store):
    sections = sl.io.read_collection(store.parent)
    s = sections[0]
    sl.pp.pair_crops(s, crop_um=64, crop_px=32)
    sl.pp.tissue(s)
    sections.save(s)
    assert np.asarray(sd.read_zarr(store).labels["a_tissue"]).any()
    empty = np.zeros(s.labels["a_tissue"].shape, dtype=np.uint8)
    s.labels["a_tissue"] = Labels2DModel.parse(empty, dims=("y", "x"))
    sections.save(s)
    again = sd.read_zarr(store)
    assert not np.asarray(again.labels["a_tissue"]).any()
    assert again.images["a_he"]["scale0"]["image"].data.compute().any()
    assert entries(store.parent) == ["a.zarr"]


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_crash_while_saving_loses_nothing(store, monkeypatch, exchanging):
    """At every step of a save; where names cannot be exchanged, elements are moved aside first."""
    moved = []

    def breaking(real):
        def call(source, target):
            # Folders only: zarr renames files while it writes.
            if Path(source).is_dir():
                moved.append(Path(source).name)
                if len(moved) == fail_at:
                    raise KeyboardInterrupt
            return real(source, target)

        return call

    real = exchange if exchanging else lambda a, b: False
    for fail_at in (1, 2) if exchanging else (1, 2, 3, 4):
        sections = sl.io.read_collection(store.parent)
        s = sections[0]
        s.tables["table"].obs["run"] = fail_at
        moved.clear()
        with monkeypatch.context() as patch:
            patch.setattr(saving, "exchange", breaking(real) if exchanging else real)
            patch.setattr(saving.os, "replace", os.replace if exchanging else breaking(os.replace))
            with pytest.raises(KeyboardInterrupt):
                sections.save(s)
        again = sl.io.read_collection(store.parent)["a"]
        assert again.tables["table"].obs["run"].eq(fail_at).all()
        assert len(again.shapes["a_spots"]) == 16
        assert entries(store.parent) == ["a.zarr"]
        assert not list(store.glob(".*"))
    assert moved == ["a_spots", "table"] if exchanging else ["a_spots", "a_spots", "table", "table"]


def test_a_save_that_would_undo_anothers_is_refused(store):
    """Two processes with one store; here two collections."""
    mine, theirs = sl.io.read_collection(store.parent), sl.io.read_collection(store.parent)
    s, t = mine[0], theirs[0]
    t.tables["table"].obs["theirs"] = 1.0
    theirs.save(t)
    s.tables["table"].obs["mine"] = 1.0
    before = {p: p.read_bytes() for p in store.rglob("*") if p.is_file()}
    with pytest.raises(sl.InUseError, match=r"by somebody else.*'shapes/a_spots', 'tables/table'\)\. Nothing was"):
        mine.save(s)
    assert {p: p.read_bytes() for p in store.rglob("*") if p.is_file()} == before
    # Read again, both are kept; and whoever saves may save again.
    again = sl.io.read_collection(store.parent)
    again[0].tables["table"].obs["mine"] = 1.0
    again.save(again[0])
    again[0].tables["table"].obs["more"] = 1.0
    again.save(again[0])
    assert {"theirs", "mine", "more"} <= set(sd.read_zarr(store).tables["table"].obs)


def test_an_element_that_two_add_is_not_lost(store):
    mine = sl.io.read_collection(store.parent)
    s = mine[0]
    # What does not touch the elements does not count.
    (store / "notes.txt").touch()
    mine.save(s)
    theirs = sl.io.read_collection(store.parent)
    t = theirs[0]
    for one in (s, t):
        one.shapes["extra"] = one.shapes["a_spots"].copy()
    theirs.save(t)
    with pytest.raises(sl.InUseError, match="'shapes/extra'"):
        mine.save(s)


def test_an_opened_section_is_watched_from_when_it_joins_a_collection(store):
    opened = sd.read_zarr(store)
    mine = sl.io.Collection([opened])
    theirs = sl.io.read_collection(store.parent)
    theirs.save(theirs[0])
    with pytest.raises(sl.InUseError, match="changed by somebody else"):
        mine.save(opened)


def test_a_save_that_was_cut_off_may_be_repeated(store, monkeypatch):
    sections = sl.io.read_collection(store.parent)
    s = sections[0]
    s.tables["table"].obs["mine"] = 1.0
    with monkeypatch.context() as patch:
        patch.setattr(_store.zarr, "consolidate_metadata", lambda *a: pytest.fail("cut off"))
        with pytest.raises(pytest.fail.Exception, match="cut off"):
            sections.save(s)
    sections.save(s)
    assert "mine" in sd.read_zarr(store).tables["table"].obs


def test_a_store_that_another_process_wrote_meanwhile_is_not_replaced(store, tmp_path):
    section, target = sd.read_zarr(store), tmp_path / "new.zarr"
    _store.write_whole(section, target)
    with pytest.raises(sl.InUseError, match="written by another process meanwhile"):
        _store.write_whole(section, target)
    _store.write_whole(section, target, overwrite=True)


def test_a_failed_save_leaves_the_store_as_it_was(store):
    sections = sl.io.read_collection(store.parent)
    s = sections[0]
    s.tables["table"].obs["mine"] = 1.0
    s.tables["table"].uns["unwritable"] = object()
    with pytest.raises(Exception, match="object"):
        sections.save(s)
    assert "mine" not in sd.read_zarr(store).tables["table"].obs
    assert entries(store.parent) == ["a.zarr"]


def test_unsaved_changes_are_not_lost_silently(stores):
    sections = sl.io.read_collection(stores)
    sl.pp.normalize(sections[0])
    with pytest.warns(sl.SealstWarning, match=r"Section 'a' was changed and not saved, and is dropped now"):
        _ = sections[1]


def test_only_own_sections_are_saved(stores, store):
    sections = sl.io.Collection([store, stores / "b.zarr"])
    with pytest.raises(sl.DataError, match="not one of the collection"):
        sections.save(section("z"))
    first = sections[0]
    _ = sections[1]
    # Also when it was dropped in between.
    first.tables["table"].obs["late"] = 2.0
    sections.save(first)
    assert "late" in sections[0].tables["table"].obs


# -- manifests --------------------------------------------------------------------------------------------------------
def test_a_manifest_completes_the_sections(stores):
    (stores / "cohort.csv").write_text(
        "path,section,patient,batch,organ,age,code,grade\n"
        "a.zarr,first,P1,x,lung,61,007,3\n"
        "\n"
        "c.zarr,second,P2,y,,54.5,011,\n"
    )
    sections = sl.io.read_collection(stores / "cohort.csv")
    assert sections.names == ["first", "second"]
    manifest = sections.manifest
    assert manifest["patient"].tolist() == ["P1", "P2"]
    assert manifest["format"].tolist() == ["zarr", "zarr"]
    assert manifest["age"].tolist() == [61, 54.5]
    table = sections[0].tables["table"]
    found = {key: table.obs[key].iloc[0] for key in ("section", "patient", "batch", "organ", "age", "code", "grade")}
    assert found == {
        "section": "first", "patient": "P1", "batch": "x", "organ": "lung", "age": 61, "code": "007", "grade": 3
    }  # fmt: skip
    second = sections["second"].tables["table"].obs
    # An empty field states nothing.
    assert second["organ"].iloc[0] == "breast"
    assert "grade" not in second
    folds = sl.pp.split(list(sections))
    assert [fold.test_sections for fold in folds] == [["first"], ["second"]]


def test_manifest_facts_are_saved_with_the_section(store):
    (store.parent / "cohort.tsv").write_text("path\tpatient\na.zarr\tP9\n")
    sl.io.read_collection(store.parent / "cohort.tsv").apply(lambda sdata: None)
    assert sd.read_zarr(store).tables["table"].obs["patient"].eq("P9").all()


def test_manifest_errors_name_the_lines(stores):
    (stores / "cohort.csv").write_text(
        "path,section,mpp,format\na.zarr,one,,\nnowhere.zarr,two,,\n\n,three,,\nb.zarr,one,,\nc.zarr,x y,-1,tape\n"
    )
    with pytest.raises(sl.DataError) as caught:
        sl.io.read_collection(stores / "cohort.csv")
    text = str(caught.value)
    assert "cohort.csv has 4 problem(s)" in text
    assert "line 3: Nothing at" in text
    assert "line 5: `path` is empty" in text
    assert "line 6: section 'one' is already on line 2" in text
    assert "line 7: `format` must be one of 'visium'" in text
    (stores / "cohort.csv").write_text("path,section,mpp\nc.zarr,x y,1\nc.zarr,z,-1\n")
    with pytest.raises(sl.DataError, match=r"(?s)line 2: `section` must be a name .*line 3: `mpp` must be a positive"):
        sl.io.read_collection(stores / "cohort.csv")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "file\na.zarr\n", "has no column 'path'; found: 'file'"),
        ("m.csv", "path\n", "lists no section"),
        ("m.csv", "", "could not be read as a table"),
        ("m.csv", "path,crop_ok\na.zarr,1\n", r"has column\(s\) 'crop_ok', which sealst writes itself"),
        ("m.xlsx", "path\n", "a manifest ends in .csv, .tsv, .txt, found '.xlsx'"),
    ],
)
def test_refuses_files_that_are_no_manifest(stores, name, text, message):
    (stores / name).write_text(text)
    with pytest.raises(sl.DataError, match=message):
        sl.io.read_collection(stores / name)
    with pytest.raises(sl.DataError, match="No manifest and no folder at"):
        sl.io.read_collection(stores / "none.csv")


def test_a_stated_scale_completes_or_is_checked(stores, tmp_path):
    sdata = section("d")
    sd.transformations.set_transformation(sdata.images["d_he"], {"global": Identity()}, set_all=True)
    sdata.write(tmp_path / "d.zarr")
    (tmp_path / "m.csv").write_text(f"path,mpp\nd.zarr,0.5\n{stores / 'a.zarr'},0.5\n")
    sections = sl.io.read_collection(tmp_path / "m.csv")
    d = sections["d"]
    sl.pp.pair_crops(d, crop_um=32)
    assert d.tables["table"].uns["sealst"]["crops"]["d_spots"]["mpp"] == pytest.approx(0.5)
    sections.save(d)
    with pytest.raises(sl.ScaleError, match="Contradictory scale for image 'a_he': 1 µm per pixel .* 0.5 by the manif"):
        _ = sections["a"]


def raw_folder(folder):
    """Folder of the legacy array: 4 x 4 spots, pitch 60 px."""
    folder.mkdir()
    row, column = np.divmod(np.arange(16), 4)
    spots = pd.DataFrame({"x": column, "y": row, "pixel_x": 60 + 60 * column, "pixel_y": 60 + 60 * row})
    spots.to_csv(folder / "S_selection.tsv", sep="\t", index=False)
    counts = np.random.default_rng(0).poisson(9.0, (16, 3))
    names = [f"{x}x{y}" for x, y in zip(column, row, strict=True)]
    pd.DataFrame(counts, index=names, columns=["EPCAM", "VIM", "CD3E"]).to_csv(folder / "S.tsv.gz", sep="\t")
    Image.new("RGB", (300, 300), "pink").save(folder / "S.png")
    return folder


def test_raw_files_are_read_and_converted(tmp_path):
    raw = raw_folder(tmp_path / "raw")
    (tmp_path / "m.csv").write_text("path,section,patient,organ,image,batch\nraw,S,C,breast,raw/S.png,7\n")
    sections = sl.io.read_collection(tmp_path / "m.csv")
    assert sections.manifest["format"].tolist() == ["st"]
    assert sections.manifest["image"].tolist() == [raw / "S.png"]
    with pytest.raises(sl.DataError, match="was read from st files, which are left as they are"):
        sections.save(sections[0])
    with pytest.raises(sl.DataError, match="Sections 'S' are raw files"):
        sections.apply(sl.pp.normalize)
    converted = sections.write(tmp_path / "out")
    converted.apply(sl.pp.normalize)
    table = sd.read_zarr(tmp_path / "out" / "S.zarr").tables["table"]
    assert (table.n_obs, table.obs["patient"].iloc[0], table.obs["batch"].iloc[0]) == (16, "C", "7")
    assert "lognorm" in table.layers
    with pytest.raises(sl.DataError, match=r"already holds 'S.zarr'; name another folder"):
        sections.write(tmp_path / "out")
    (tmp_path / "m.csv").write_text("path,image\nraw,none.png\n")
    with pytest.raises(sl.DataError, match="line 2: no image at"):
        sl.io.read_collection(tmp_path / "m.csv")


def test_removed_elements_are_removed_and_placements_written(store):
    sections = sl.io.read_collection(store.parent)
    s = sections[0]
    sl.pp.pair_crops(s, crop_um=[40, 20], crop_px=32)
    sections.save(s)
    sl.pp.pair_crops(s, crop_um=40, crop_px=32)
    sd.transformations.set_transformation(s.images["a_he"], sd.transformations.Scale([2, 2], axes=("x", "y")), "um")
    sections.save(s)
    back = sd.read_zarr(store)
    assert sorted(back.shapes) == ["a_spots", "a_spots_crops"]
    scale = sd.transformations.get_transformation(back.images["a_he"], "um")
    np.testing.assert_allclose(np.diag(scale.to_affine_matrix(("x", "y"), ("x", "y")))[:2], 2)


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_image_computed_from_itself_is_saved_once(store, in_memory):
    sections = sl.io.Collection([sd.read_zarr(store)] if in_memory else [store])
    s = sections[0]
    old = np.asarray(s.images["a_he"]["scale0"]["image"])
    inverted = 255 - s.images["a_he"]["scale0"]["image"]
    del s.images["a_he"]
    s.images["a_he"] = sd.models.Image2DModel.parse(inverted.drop_vars(["x", "y"]), c_coords=["r", "g", "b"])
    sections.save(s)
    for found in (s, sd.read_zarr(store)):
        np.testing.assert_array_equal(np.asarray(found.images["a_he"]), 255 - old)


@pytest.mark.parametrize("sign", [",", ";", "\t"])
def test_a_manifest_is_read_whatever_separates_its_columns(store, sign):
    manifest = store.parent / "m.csv"
    manifest.write_text("path;section;age\na.zarr;mine;63\n".replace(";", sign))
    sections = sl.io.read_collection(manifest)
    assert sections.names == ["mine"]
    assert sections[0].tables["table"].obs["age"].eq(63).all()
    manifest.write_text("section|age\nmine|63\n")
    with pytest.raises(sl.DataError, match="no column 'path'.*commas, semicolons or tabs separate the columns"):
        sl.io.read_collection(manifest)


def test_a_decimal_comma_of_a_manifest_is_no_separator(store):
    manifest = store.parent / "m.csv"
    manifest.write_text("path;section;age\na.zarr;mine;63,5\n")
    assert sl.io.read_collection(manifest)[0].tables["table"].obs["age"].eq(63.5).all()


def test_check_leaves_a_save_that_was_cut_off_as_it_is(store, monkeypatch):
    sections = sl.io.read_collection(store.parent)
    s = sections[0]
    s.tables["table"].obs["run"] = 1

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(saving, "_run", stop)
        with pytest.raises(KeyboardInterrupt):
            sections.save(s)
    before = sorted(str(p) for p in store.parent.rglob("*"))
    report = sl.io.check(store)
    assert any("A save was cut off; `sl.io.read(path)` finishes it" in p.text for p in report.problems)
    assert sorted(str(p) for p in store.parent.rglob("*")) == before
    assert sl.io.read(store).tables["table"].obs["run"].eq(1).all()
    assert not any("cut off" in p.text for p in sl.io.check(store).problems)


def test_writing_repeats_no_news_of_a_dependency(tmp_path, recwarn):
    sl.io.Collection([section("toy")]).write(tmp_path / "stores")
    assert not [w for w in recwarn if "zarr v" in str(w.message)]


def test_what_is_a_store_has_one_answer(store, tmp_path):
    """A SpatialData store of any version is one, a zarr group of another kind is none: in readers and commands."""
    folder = tmp_path / "mixed"
    shutil.copytree(store, folder / "new")
    for name, said in (("told.zarr", True), ("old", False)):
        section("o").write(folder / name, sdata_formats=SpatialDataContainerFormatV01())
        if not said:
            (folder / name / ".zattrs").unlink()
            (folder / name / ".zmetadata").unlink()
    zarr.create_group(folder / "plain.zarr", zarr_format=3).create_array("x", data=np.zeros(3))
    zarr.create_group(folder / "plain2", zarr_format=2, attributes={"encoding-type": "anndata"})
    zarr.create_group(folder / "picture.zarr", zarr_format=2, attributes={"multiscales": []}).create_group("labels")
    (folder / "notes.zarr").mkdir()
    expected = ["new", "old", "told.zarr"]
    assert [p.name for p in stores_in(folder)] == expected
    assert [p.name for p in sorted(folder.iterdir()) if is_store(p)] == expected
    with pytest.warns(UserWarning, match="not stored in the most current format"):
        assert all(len(sd.read_zarr(p).images) for p in stores_in(folder))
    # Reader and command say the same of each.
    assert sl.io.read_collection(folder).names == ["new", "old", "told"]
    assert open_sections([folder]).names == ["new", "old", "told"]
    for path in folder.iterdir():
        if is_store(path):
            assert format_of(path).name == "zarr"
            assert not is_several(path)
        else:
            with pytest.raises(sl.DataError, match="is not recognised"):
                format_of(path)
    for path in stores_in(folder):
        shutil.rmtree(path)
    assert not is_several(folder)
    with pytest.raises(sl.DataError, match="holds no SpatialData zarr store"):
        sl.io.read_collection(folder)
