"""Bags from every source, joined with labels by name; and files that other pipelines read."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from shapely.geometry import box
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel

import sealst as sl

N, DIM = 7, 5


def features(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, DIM)).astype(np.float32)


def table_of(name: str, seed: int = 0, *, patient: str = "p1", frozen: str | None = None) -> AnnData:
    """Tiles of 112 µm at 0.25 µm per pixel, fed as 224 px."""
    table = AnnData(np.zeros((N, 0), dtype=np.float32))
    table.obs_names = [f"{name}_{i}" for i in range(N)]
    table.obs["section"], table.obs["patient"] = name, patient
    table.obsm["X_seal"] = features(seed)
    table.obsm["spatial"] = np.column_stack([np.arange(N) * 448 + 224.0, np.full(N, 224.0)])
    made = {"X_seal": {"model": "a" * 16}}
    if frozen:
        table.obsm["X_frozen"], made["X_frozen"] = features(seed + 100), {"model": frozen}
    tile = {"tile_um": 112.0, "step_um": 112.0, "mpp": 0.25}
    crops = {f"{name}_spots": {"crop_um": 112.0, "crop_px": 224, "mpp": 0.25}}
    table.uns["sealst"] = {"embed": made, "crops": crops, "tile": tile}
    return table


def labels_of(*names: str, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"slide": names, "patient": [f"p{i}" for i in range(len(names))], **columns})


def embedded(folder: Path) -> Path:
    """Folder as `tl.embed_slides` writes it: two slides, and one that failed."""
    (folder / "slides").mkdir(parents=True)
    for i, name in enumerate(("01", "02")):
        table_of(name, i, frozen="base").write_h5ad(folder / "slides" / f"{name}.h5ad")
    manifest = pd.DataFrame({"slide": ["01", "02", "03"], "patient": ["A", "B", "C"], "path": "x.svs", "file": "",
                             "n_tiles": N, "status": ["done", "done", "failed"], "seconds": 1.0,
                             "digest": ["d", "e", ""], "grade": [1, 3, 2]})  # fmt: skip
    manifest.to_csv(folder / "manifest.csv", index=False)
    return folder


# -- sources ----------------------------------------------------------------------------------------------------------
def test_folder_of_embedded_slides(tmp_path: Path) -> None:
    with pytest.warns(sl.SealstWarning, match="1 slide.* not embedded and left out: '03'"):
        bags = sl.io.read_bags(embedded(tmp_path))
    assert list(bags.obs.index) == ["01", "02"]
    assert list(bags.obs["patient"]) == ["A", "B"]
    assert list(bags.obs["grade"]) == [1, 3]
    assert set(bags.obs) == {"patient", "grade"}
    assert set(bags.keys) == {"X_seal", "X_frozen"}
    assert bags.facts["models"] == {"X_seal": "a" * 16, "X_frozen": "base"}
    np.testing.assert_array_equal(bags[1].features, features(1))
    np.testing.assert_array_equal(bags.with_key("X_frozen")[1].features, features(101))
    assert bags[0].xy is not None
    assert bags[0].xy[1].tolist() == [672, 224]
    assert bags[0].tiles[0] == "01_0"
    again = pickle.loads(pickle.dumps(bags))
    np.testing.assert_array_equal(again[0].features, bags[0].features)


def test_slides_of_one_file_are_pointed_out(tmp_path: Path) -> None:
    """As after a slide was renamed in the manifest."""
    folder = embedded(tmp_path)
    manifest = pd.read_csv(folder / "manifest.csv", dtype=str)
    manifest.assign(digest="d", status="done").iloc[:2].to_csv(folder / "manifest.csv", index=False)
    with pytest.warns(sl.SealstWarning, match=r"Slides '01', '02' were made from the same file.*prune=True"):
        sl.io.read_bags(folder)


def test_names_in_a_manifest_are_kept(tmp_path: Path) -> None:
    """NA is a name like any other; among labels it is a missing value, and None is a class."""
    folder = embedded(tmp_path)
    manifest = pd.read_csv(folder / "manifest.csv", dtype=str).iloc[:2]
    manifest = manifest.assign(slide=["NA", "02"], patient=["NA", "None"], grade=["NA", "3"], kind=["None", "NA"])
    manifest.to_csv(folder / "manifest.csv", index=False)
    (folder / "slides" / "01.h5ad").rename(folder / "slides" / "NA.h5ad")
    obs = sl.io.read_bags(folder).obs
    assert list(obs.index) == ["NA", "02"]
    assert list(obs["patient"]) == ["NA", "None"]
    assert obs["grade"].isna().tolist() == [True, False]
    assert obs["grade"].iloc[1] == 3
    assert obs["kind"].iloc[0] == "None"
    assert obs["kind"].isna().iloc[1]


def test_another_column_of_the_manifest_is_the_patient(tmp_path: Path) -> None:
    """Without labels; numbers in it are names."""
    folder = embedded(tmp_path)
    manifest = pd.read_csv(folder / "manifest.csv", dtype=str).iloc[:2].assign(case_id=["007", "007"])
    manifest.to_csv(folder / "manifest.csv", index=False)
    bags = sl.io.read_bags(folder, patient_key="case_id")
    assert list(bags.obs["patient"]) == ["007", "007"]
    assert "case_id" not in bags.obs
    with pytest.raises(sl.MissingKeyError, match=r"'case' .*the manifest of the source.*'case_id'"):
        sl.io.read_bags(folder, patient_key="case")
    with pytest.raises(sl.MissingKeyError, match=r"'case_id' .*`patient_key=`, in a table with `labels=`"):
        sl.io.read_bags({"s1": features()}, patient_key="case_id")
    with pytest.raises(sl.DataError, match=r"`slide_key='barcode'` names a column of `labels`"):
        sl.io.read_bags(folder, slide_key="barcode")
    with pytest.raises(sl.MissingKeyError, match=r"'barcode' .*the columns of `labels`"):
        sl.io.read_bags(folder, labels=labels_of("01", "02"), slide_key="barcode")


def test_bags_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    with pytest.warns(sl.SealstWarning, match="left out"):
        bags = sl.io.read_bags(embedded(tmp_path))
    (tmp_path / "slides" / "02.h5ad").unlink()
    assert len(bags[0]) == N
    with pytest.raises(FileNotFoundError):
        bags[1]


def test_incomplete_folders(tmp_path: Path) -> None:
    with pytest.raises(sl.DataError, match="is no folder"):
        sl.io.read_bags(tmp_path / "none")
    with pytest.raises(sl.DataError, match=r"holds neither manifest.csv .* nor .h5 files"):
        sl.io.read_bags(tmp_path)
    folder = embedded(tmp_path / "a")
    (folder / "slides" / "02.h5ad").unlink()
    with pytest.warns(sl.SealstWarning), pytest.raises(sl.DataError, match="'02' of manifest.csv have no file"):
        sl.io.read_bags(folder)
    (folder / "slides" / "02.h5ad").write_bytes(b"nothing")
    with pytest.warns(sl.SealstWarning), pytest.raises(sl.DataError, match="not a table of tiles, or damaged"):
        sl.io.read_bags(folder)


def test_sections_in_memory_one_slide_each() -> None:
    both = AnnData(np.zeros((2 * N, 0), dtype=np.float32))
    both.obs["section"] = np.repeat(["s1", "s2"], N)
    both.obs["patient"] = np.repeat(["A", "B"], N)
    both.obsm["X_seal"] = np.concatenate([features(1), features(2)])
    bags = sl.io.read_bags(both)
    assert list(bags.obs["patient"]) == ["A", "B"]
    np.testing.assert_array_equal(bags[1].features, features(2))
    assert bags[0].xy is None
    named = sl.io.read_bags({"x": table_of("s1"), "y": table_of("s1", 1, patient="p2")})
    assert list(named.obs.index) == ["x", "y"]
    with pytest.raises(sl.DataError, match="'s1' occurs twice"):
        sl.io.read_bags([table_of("s1"), table_of("s1")])


def test_a_real_section_of_ours(toy_section) -> None:
    sdata = toy_section(section="toy", patient="P")
    table = sdata.tables["table"]
    table.obsm["X_seal"] = np.ones((table.n_obs, 3), dtype=np.float32)
    bags = sl.io.read_bags([sdata])
    assert list(bags.obs.index) == ["toy"]
    assert list(bags.obs["patient"]) == ["P"]
    np.testing.assert_array_equal(bags[0].xy, table.obsm["spatial"])


def test_feature_tables_of_lazyslide() -> None:
    tiles = gpd.GeoDataFrame(
        {"tile_id": np.arange(N)[::-1]}, geometry=[box(100 * i, 0, 100 * i + 50, 50) for i in range(N)]
    )
    obs = pd.DataFrame(
        {"tile_id": np.arange(N), "library_id": pd.Categorical(["tiles"] * N)}, index=np.arange(N).astype(str)
    )
    table = TableModel.parse(
        AnnData(features(), obs=obs), region="tiles", region_key="library_id", instance_key="tile_id"
    )
    sdata = SpatialData(shapes={"tiles": ShapesModel.parse(tiles)}, tables={"uni_tiles": table})
    with pytest.warns(sl.SealstWarning, match="each counts as a patient of its own"):
        bags = sl.io.read_bags({"slide": sdata})
    assert bags.keys == ("uni_tiles",)
    np.testing.assert_array_equal(bags[0].features, features())
    # Tiles are joined by id, and the shapes stand in the other order.
    assert bags[0].xy is not None
    assert bags[0].xy[0].tolist() == [100 * (N - 1) + 25, 25]


@pytest.mark.parametrize("batched", [False, True])
def test_files_of_trident_and_clam(tmp_path: Path, batched: bool) -> None:
    for i, name in enumerate(("s1", "s2")):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["features"] = features(i)[None] if batched else features(i)
            coords = file.create_dataset("coords", data=np.arange(2 * N).reshape(N, 2))
            if i == 0:
                coords.attrs["patch_size_level0"] = 512
    bags = sl.io.read_bags(tmp_path, labels=labels_of("s1", "s2"))
    assert bags.keys == ("features",)
    np.testing.assert_array_equal(bags[1].features, features(1))
    assert bags[0].xy is not None
    assert bags[0].xy[0].tolist() == [256, 257]
    assert bags[1].xy is None
    with h5py.File(tmp_path / "s2.h5", "r+") as file:
        del file["features"]
    with pytest.raises(sl.DataError, match="no dataset 'features'"):
        sl.io.read_bags(tmp_path)


# -- files of CLAM and TRIDENT ----------------------------------------------------------------------------------------
CORNERS = np.column_stack([np.arange(N) * 512 + 1024, np.arange(N) * 256])


def write_features(path: Path, seed: int = 0, corners: np.ndarray = CORNERS, **attributes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["features"] = features(seed)
        file.create_dataset("coords", data=corners).attrs.update(attributes)


def spoiled(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return spoil


def replaced(file: h5py.File, content: Any) -> None:
    del file["features"]
    file["features"] = content


@pytest.mark.filterwarnings("ignore::sealst.SealstWarning")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoiled(lambda file: replaced(file, np.full((N, 3), b"x"))), "must hold numbers, found array"),
        (spoiled(lambda file: replaced(file, 5)), "holds no dataset 'features' of tiles"),
        (spoiled(lambda file: replaced(file, h5py.ExternalLink("/etc/passwd", "/x"))), "holds no dataset 'features'"),
        (spoiled(lambda file: (file.pop("features"), file.create_group("features"))), "holds no dataset 'features'"),
        (
            spoiled(lambda file: file["coords"].attrs.update(patch_size_level0="wide")),
            "attribute 'patch_size_level0' of tiles must be a number, 0 or more, found 'wide'",
        ),
        (spoiled(lambda file: file["coords"].attrs.update(patch_size=np.nan, patch_level=0)), "'patch_size' of tiles"),
        (lambda path: path.write_text("no"), "cannot be opened as HDF5"),
    ],
)
def test_files_of_strangers(tmp_path: Path, spoil: Callable[[Path], None], said: str) -> None:
    write_features(tmp_path / "s0.h5")
    spoil(tmp_path / "s0.h5")
    with pytest.raises(sl.DataError, match=said):
        _ = sl.io.read_bags(tmp_path, labels=labels_of("s0"))[0]


def test_corners_of_clam_are_no_centres(tmp_path: Path) -> None:
    for i in range(2):
        write_features(tmp_path / "h5_files" / f"s{i}.h5", i)
    for folder in (tmp_path, tmp_path / "h5_files"):
        with pytest.warns(sl.SealstWarning, match=r"2 slide\(s\) \('s0', 's1'\) hold the corners .* Pass `level0_px=`"):
            bags = sl.io.read_bags(folder, labels=labels_of("s0", "s1"))
        assert bags[0].xy is None
        np.testing.assert_array_equal(bags[1].features, features(1))
        assert bags.facts["tiles"]["s0"] == {}
        with pytest.raises(sl.DataError, match=r"no positions .*`level0_px=` of `sl\.io\.read_bags`"):
            sl.io.write_trident(bags, tmp_path.with_name("out"), crop_px=256, level0_px=512, mpp=0.25)
        bags = sl.io.read_bags(folder, labels=labels_of("s0", "s1"), level0_px=512)
        assert bags[0].xy is not None
        np.testing.assert_array_equal(bags[0].xy, CORNERS + 256)
        assert bags.facts["tiles"]["s0"] == {"level0_px": 512}


@pytest.mark.parametrize("where", ["features/h5_files", "h5_files"])
@pytest.mark.parametrize(
    ("attributes", "side"),
    [
        ({"patch_size": 256, "patch_level": 1, "downsample": (4.0, 4.0)}, 1024),
        ({"patch_size": 256, "patch_level": 0, "downsample": (1.0, 1.0)}, 256),
        ({"patch_size": 512, "patch_level": 0}, 512),
        ({"patch_size": 256, "patch_size_level0": 300}, 300),
    ],
)
def test_clam_wrote_the_size_of_a_tile_to_its_patches(
    where: str, attributes: dict[str, Any], side: float, tmp_path: Path
) -> None:
    write_features(tmp_path / where / "s.h5")
    write_features(tmp_path / "patches" / "s.h5", **attributes)
    bags = sl.io.read_bags(tmp_path / where, labels=labels_of("s"))
    assert bags[0].xy is not None
    np.testing.assert_array_equal(bags[0].xy, CORNERS + side / 2)
    assert bags.facts["tiles"]["s"] == {"level0_px": side}
    with pytest.raises(sl.DataError, match=r"`level0_px` is 64, but tiles of s\.h5 have .* by the files themselves"):
        sl.io.read_bags(tmp_path / where, labels=labels_of("s"), level0_px=64)
    # Patches of another run say nothing of these tiles.
    write_features(tmp_path / "patches" / "s.h5", corners=CORNERS + 1, **attributes)
    with pytest.warns(sl.SealstWarning, match="hold the corners"):
        assert sl.io.read_bags(tmp_path / where, labels=labels_of("s"))[0].xy is None


def test_stated_size_of_tiles_must_be_that_of_the_files(tmp_path: Path) -> None:
    write_features(tmp_path / "s.h5", patch_size_level0=512)
    assert sl.io.read_bags(tmp_path, labels=labels_of("s"), level0_px=512).facts["tiles"]["s"]["level0_px"] == 512
    with pytest.raises(sl.DataError, match=r"`level0_px` is 256, but tiles of s\.h5 have 512 px"):
        sl.io.read_bags(tmp_path, labels=labels_of("s"), level0_px=256)
    with pytest.raises(sl.DataError, match="`level0_px` belongs to files of features"):
        sl.io.read_bags({"s": features()}, labels=labels_of("s"), level0_px=256)


def test_whole_job_of_trident(tmp_path: Path) -> None:
    job, tiling = tmp_path / "job", tmp_path / "job" / "20x_256px_0px_overlap"
    for name in ("uni_v1", "conch_v15"):
        write_features(tiling / f"features_{name}" / "s.h5", patch_size_level0=512, patch_size=256)
    for other in (job / "contours", tiling / "patches", tiling / "slide_features_titan"):
        other.mkdir()
    bags = sl.io.read_bags(job, labels=labels_of("s"), key="uni_v1")
    assert bags.keys == ("conch_v15", "uni_v1")
    assert bags[0].xy is not None
    np.testing.assert_array_equal(bags[0].xy, CORNERS + 256)
    write_features(job / "10x_256px_0px_overlap" / "features_uni_v1" / "s.h5", patch_size_level0=1024)
    with pytest.raises(sl.DataError, match="several tilings, '10x_256px_0px_overlap', '20x_256px_0px_overlap'; name"):
        sl.io.read_bags(job)


def test_files_that_are_no_features_beside_good_ones(tmp_path: Path) -> None:
    write_features(tmp_path / "s.h5", patch_size_level0=512)
    (tmp_path / "._s.h5").write_bytes(b"\0" * 20)
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "t.h5").touch()
    with pytest.warns(sl.SealstWarning, match=r"1 file\(s\) are empty \(0 bytes\).* left out: 't\.h5'"):
        bags = sl.io.read_bags(tmp_path, labels=labels_of("s"))
    assert list(bags.obs.index) == ["s"]
    (tmp_path / "s.h5").unlink()
    with pytest.warns(sl.SealstWarning, match="0 bytes"), pytest.raises(sl.DataError, match=r"neither manifest\.csv"):
        sl.io.read_bags(tmp_path)


# -- rows -------------------------------------------------------------------------------------------------------------
def test_tiles_without_embedding_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    x = features()
    x[2, 1] = np.nan
    bags = sl.io.read_bags({"s": x, "t": np.full((3, DIM), np.nan)}, labels=labels_of("s", "t"))
    with caplog.at_level(logging.INFO, logger="sealst"):
        assert bags[0].tiles.tolist() == ["0", "1", "3", "4", "5", "6"]
        assert len(bags[0]) == N - 1
    assert caplog.text.count("s: 1 of 7 tiles have no 'features'") == 1
    with pytest.raises(sl.DataError, match="'t': no tile has a finite embedding"):
        bags[1]


# -- embeddings and labels --------------------------------------------------------------------------------------------
def test_embeddings_must_be_of_one_model() -> None:
    tables = {"a": table_of("a", frozen="base"), "b": table_of("b", frozen="other")}
    with pytest.raises(sl.DataError, match=r"'X_frozen' were made by 2 models \('base', 'other'\)"):
        sl.io.read_bags(tables)
    assert sl.io.read_bags({"a": table_of("a", frozen="base"), "b": table_of("b")}).keys == ("X_seal",)
    with pytest.raises(sl.MissingKeyError, match="'X_uni' not found in the embeddings"):
        sl.io.read_bags({"a": table_of("a")}, key="X_uni")
    bare = table_of("b")
    del bare.obsm["X_seal"]
    with pytest.raises(sl.DataError, match="No embedding is common to all slides; 'b' has none"):
        sl.io.read_bags({"a": table_of("a"), "b": bare})


@pytest.mark.parametrize(("change", "models"), [
    ({}, None),
    ({"pool": "mean"}, r"'uni \(cls\) at 112 µm', 'uni \(mean\) at 112 µm'"),
    ({"crop_um": 56.0}, r"at 112 µm', 'uni \(cls\) at 56 µm'"),
    ({"fingerprint": "uni-0123abcd"}, "'uni-0123abcd at 112 µm'"),
])  # fmt: skip
def test_embeddings_of_one_encoder_may_differ(change: dict, models: str | None) -> None:
    tables = {"a": table_of("a"), "b": table_of("b")}
    entry = {"model": "uni", "pool": "cls", "crop_um": 112.0}
    for table, made in zip(tables.values(), (entry, entry | change), strict=True):
        table.uns["sealst"]["embed"]["X_seal"] = made
    if models is None:
        assert sl.io.read_bags(tables).facts["models"] == {"X_seal": "uni (cls) at 112 µm"}
    else:
        with pytest.raises(sl.DataError, match=rf"made by 2 models \(.*{models}"):
            sl.io.read_bags(tables)


@pytest.mark.parametrize("missing", [np.nan, None, " "])
def test_a_patient_that_is_missing_in_a_table(missing: Any) -> None:
    tables = {"a": table_of("a", patient=missing), "b": table_of("b")}
    tables["b"].obs["patient"] = [missing] * (N - 1) + ["q"]
    with pytest.warns(sl.SealstWarning, match=r"patient of 1 slide\(s\) is unknown \('a'\)"):
        assert list(sl.io.read_bags(tables).obs["patient"]) == ["a", "q"]


def test_a_patient_that_is_missing_on_disk(tmp_path: Path) -> None:
    folder = embedded(tmp_path)
    manifest = pd.read_csv(folder / "manifest.csv", dtype=str).drop(columns="patient").iloc[:2]
    manifest.to_csv(folder / "manifest.csv", index=False)
    table_of("01", patient=np.nan).write_h5ad(folder / "slides" / "01.h5ad")  # type: ignore[arg-type]
    with pytest.warns(sl.SealstWarning, match=r"unknown \('01'\)"):
        assert list(sl.io.read_bags(folder).obs["patient"]) == ["01", "p1"]


@pytest.mark.parametrize("kind", [int, float, str, "csv"])
def test_patients_are_the_same_text_everywhere(kind: Any, tmp_path: Path) -> None:
    """Whether or not every slide has one, and whatever type they are."""
    labels: Any = labels_of("a", "b", y=[0, 1])
    labels["patient"] = [" 1", "2 "] if kind in (str, "csv") else np.array([1, 2], dtype=kind)
    if kind == "csv":
        labels.to_csv(tmp_path / "l.csv", index=False)
        labels = tmp_path / "l.csv"
    assert list(sl.io.read_bags({"a": features(), "b": features()}, labels=labels).obs["patient"]) == ["1", "2"]
    with pytest.warns(sl.SealstWarning):
        bags = sl.io.read_bags(dict.fromkeys("abc", features()), labels=labels)
    assert list(bags.obs["patient"]) == ["1", "2", "c"]
    if kind != "csv":
        assert list(bags.with_labels(labels).obs["patient"]) == ["1", "2", "c"]
    table = table_of("t")
    table.obs["patient"] = 1.0
    assert list(sl.io.read_bags({"t": table}).obs["patient"]) == ["1"]


def test_text_of_a_label_file(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text("name,case,y,kind\n007,001,NA,None\nNA,NA,2,x\n", encoding="utf-8")
    arrays = {"007": features(), "NA": features()}
    obs = sl.io.read_bags(arrays, labels=path, slide_key="name", patient_key="case").obs
    assert list(obs["patient"]) == ["001", "NA"]
    assert obs["y"].dtype == float
    assert list(obs["kind"]) == ["None", "x"]
    path.write_bytes("name,y\n007,Müller\n".encode("latin-1"))
    with pytest.raises(sl.DataError, match=r"l\.csv' is no UTF-8 text \(byte 12 is 0xfc\)\. Save it so"):
        sl.io.read_bags(arrays, labels=path, slide_key="name")
    path.write_text("", encoding="utf-8")
    with pytest.raises(sl.DataError, match=r"l\.csv could not be read as a table"):
        sl.io.read_bags(arrays, labels=path)


def test_further_labels() -> None:
    with pytest.warns(sl.SealstWarning):
        bags = sl.io.read_bags(dict.fromkeys("ab", features()))
    table = pd.DataFrame({"slide": ["b", "a", "z"], "y": [1, 2, 3]})
    for labels in (table, table.set_index("slide")):
        assert bags.with_labels(labels).obs["y"].tolist() == [2, 1]
    with pytest.raises(sl.DataError, match="slides are 'a', 'b', labels of '0', '1', '2'"):
        bags.with_labels(table.drop(columns="slide"))
    with pytest.raises(sl.DataError, match="'b' more than once"):
        bags.with_labels(pd.concat([table, table[:1]]))


@pytest.mark.parametrize("ending", ["csv", "tsv", "frame", "index"])
def test_labels_are_joined_by_name(tmp_path: Path, ending: str) -> None:
    table = labels_of("03", "02", "99", grade=[3, 2, 9], case=["x", "y", "z"])
    labels: Any = table.set_index("slide") if ending == "index" else table
    if ending in ("csv", "tsv"):
        labels = tmp_path / f"labels.{ending}"
        table.to_csv(labels, index=False, sep="," if ending == "csv" else "\t")
    arrays = {name: features() for name in ("02", "03", "04")}
    with pytest.warns(sl.SealstWarning) as caught:
        bags = sl.io.read_bags(arrays, labels=labels, patient_key="case")
    texts = [str(w.message) for w in caught]
    assert any("1 of 3 slides have no row in `labels`: '04'" in t for t in texts)
    assert any("1 row(s) of `labels` have no embeddings and are left out: '99'" in t for t in texts)
    assert any("patient of 1 slide(s) is unknown ('04')" in t for t in texts)
    assert list(bags.obs["patient"]) == ["y", "x", "04"]
    assert list(bags.obs["grade"].iloc[:2]) == [2, 3]
    assert bags.obs["grade"].isna().iloc[2]


def test_labels_that_do_not_fit(tmp_path: Path) -> None:
    arrays = {"s1": features()}
    with pytest.raises(sl.DataError, match=r"slides are 's1', labels of 's1.svs'.*Names must agree"):
        sl.io.read_bags(arrays, labels=labels_of("s1.svs"))
    with pytest.raises(sl.DataError, match="'s1' more than once"):
        sl.io.read_bags(arrays, labels=labels_of("s1", "s1"))
    with pytest.raises(sl.MissingKeyError, match="'case' not found in the columns"):
        sl.io.read_bags(arrays, labels=labels_of("s1"), patient_key="case")
    with pytest.raises(sl.DataError, match="no file"):
        sl.io.read_bags(arrays, labels=tmp_path / "l.csv")
    with pytest.raises(sl.DataError, match=r"must be a file of '.csv'"):
        sl.io.read_bags(arrays, labels=tmp_path / "l.xlsx")
    with pytest.raises(TypeError, match="must be AnnData, SpatialData or an array"):
        sl.io.read_bags({"s1": [1, 2]})  # type: ignore[dict-item]
    with pytest.raises(sl.DataError, match="`source` is empty"):
        sl.io.read_bags({})
    mixed = table_of("s")
    mixed.obs["patient"] = ["A"] * (N - 1) + ["B"]
    with pytest.raises(sl.DataError, match="tiles of 2 patients, 'A', 'B'"):
        sl.io.read_bags([mixed])


# -- files for other pipelines ----------------------------------------------------------------------------------------
def written(folder: Path) -> Path:
    tables = {name: table_of(name, i, patient=f"p{i}") for i, name in enumerate(("s1", "s2"))}
    return sl.io.write_trident(sl.io.read_bags(tables), folder, name="seal")


def test_round_trip(tmp_path: Path) -> None:
    bags = sl.io.read_bags(written(tmp_path), labels=labels_of("s1", "s2"))
    assert bags.keys == ("seal",)
    assert bags.facts["models"] == {"seal": "a" * 16}
    for i, bag in enumerate(bags):
        original = table_of(bag.name, i)
        np.testing.assert_array_equal(bag.features, original.obsm["X_seal"])
        np.testing.assert_array_equal(bag.xy, original.obsm["spatial"])
        assert list(bag.tiles) == list(original.obs_names)
    second = sl.io.write_trident(bags, tmp_path / "again")
    assert sorted(p.name for p in second.rglob("*.h5")) == ["s1.h5", "s1_patches.h5", "s2.h5", "s2_patches.h5"]


def test_attributes_that_readers_look_at(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path) / "features_seal" / "s1.h5") as file:
        assert file["features"].dtype == np.float32
        assert file["coords"][:].tolist() == [[448 * i, 0] for i in range(N)]
        attributes = dict(file["coords"].attrs)
    expected = {"patch_size": 224, "patch_size_level0": 448, "level0_magnification": 40, "target_magnification": 20}
    assert {k: attributes[k] for k in expected} == expected
    assert (attributes["overlap"], attributes["name"]) == (0, "s1")


def test_a_plain_loop_reads_it(tmp_path: Path) -> None:
    """As pipelines after CLAM (Lu et al. 2021) read features."""
    sizes = {}
    for path in sorted((written(tmp_path) / "features_seal").glob("*.h5")):
        with h5py.File(path, "r") as file:
            sizes[path.stem] = (file["features"][:].shape, file["coords"][:].shape)
    assert sizes == dict.fromkeys(("s1", "s2"), ((N, DIM), (N, 2)))


def test_torchmil_reads_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchmil.datasets")
    folder = written(tmp_path)
    labels_of("s1", "s2", y=[0, 1]).to_csv(tmp_path / "labels.csv", index=False)
    data = datasets.TridentWSIDataset(
        base_path=f"{folder}/", labels_path=str(tmp_path / "labels.csv"), feature_extractor="seal",
        bag_keys=["X", "Y", "adj", "coords"], patch_size=448, wsi_name_col="slide", wsi_label_col="y",
    )  # fmt: skip
    assert len(data) == 2
    bag = data[1]
    np.testing.assert_array_equal(bag["X"].numpy(), features(1))
    assert bag["Y"].tolist() == [1]
    # Tiles that touch are neighbours: the row of 7 has 6 pairs.
    assert (bag["adj"].to_dense() > 0).sum() == 12


def test_nothing_is_overwritten_or_half_written(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with pytest.raises(sl.DataError, match=r"'s1', 's2' exist in .*`overwrite=True`"):
        written(tmp_path)
    bags = sl.io.read_bags({"s1": table_of("s1", 9)})
    sl.io.write_trident(bags, folder, name="seal", overwrite=True)
    with h5py.File(folder / "features_seal" / "s1.h5") as file:
        np.testing.assert_array_equal(file["features"][:], features(9))
    unsized = sl.io.read_bags({"s": features()}, labels=labels_of("s"))
    with pytest.raises(sl.DataError, match="'crop_px', 'level0_px', 'mpp' of its tiles are not recorded"):
        sl.io.write_trident(unsized, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(sl.DataError, match="has no positions"):
        sl.io.write_trident(unsized, tmp_path / "b", crop_px=224, level0_px=448, mpp=0.25)
    assert not list((tmp_path / "b").rglob("*.h5*"))


@pytest.mark.parametrize("name", ["x/y", "..", "a\\b", "CON", "aux.1", "x.", "x ", "ü" * 130, "a:b"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(sl.DataError, match="Slide name .* cannot name a file"):
        sl.io.write_trident(sl.io.read_bags({"s1": table_of("s1"), name: table_of("s2")}), out)
    with pytest.raises(sl.DataError, match="Encoder name .* cannot name a file"):
        sl.io.write_trident(sl.io.read_bags({"s1": table_of("s1")}), out, name=name)
    assert not list(tmp_path.rglob("*"))
    # Others may have spaces and brackets, as slides do.
    sl.io.write_trident(sl.io.read_bags({"s 1 (2)": table_of("s1")}), out)
