from __future__ import annotations

import gzip
import json
import logging
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.io
import scipy.sparse as sp
import shapely
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata import SpatialData
from spatialdata.transformations import Scale, set_transformation

import sealst as sl
from sealst._core.space.geometry import apply_affine
from sealst._section import image_levels, mpp_of
from sealst.io._xenium import pooling as _xenium_tables
from sealst.io._xenium import runs as _xenium
from sealst.models._local import LocalHead

PIXEL_UM, SCALE = 0.2125, 1.29
MPP = PIXEL_UM * SCALE
WIDTH, HEIGHT = 660, 500
POOL_UM = 20.0
SIDE = POOL_UM / MPP
GENES = ["ACTA2", "CD3E", "EPCAM", "NA"]
CONTROLS = ["NegControlProbe_00042", "NegControlCodeword_0500", "UnassignedCodeword_0001", "BLANK_0069"]
CENTRES = np.array([[150.0, 120.0], [400.0, 300.0], [600.0, 60.0]])


def similarity(scale: float, turn: float, *, mirrored: bool, shift: tuple[float, float]) -> np.ndarray:
    c, s = scale * np.cos(turn), scale * np.sin(turn)
    flip = -1 if mirrored else 1
    return np.array([[flip * c, -s, shift[0]], [flip * s, c, shift[1]], [0, 0, 1]])


#: a quarter turn, as H&E slides come, and mirrored
MATRIX = similarity(SCALE, np.pi / 2 + 0.02, mirrored=True, shift=(900.0, 350.0))


def to_um(pixels: np.ndarray, matrix: np.ndarray = MATRIX) -> np.ndarray:
    return apply_affine(matrix, pixels) * PIXEL_UM


def picture() -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), (230, 180, 200), dtype=np.uint8)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for cx, cy in CENTRES:
        image[np.hypot(x - cx, y - cy) < 6] = (20, 10, 90)
    return image


def transcript_frame(n: int = 3000) -> pd.DataFrame:
    """Transcripts over the whole image and a little beyond; `he_x`, `he_y` are the truth."""
    rng = np.random.default_rng(1)
    pixels = rng.uniform([-15, -15], [WIDTH + 15, HEIGHT + 15], (n, 2))
    names = rng.choice([*GENES, *CONTROLS], n, p=[0.3, 0.3, 0.2, 0.1, *[0.025] * 4])
    # A cluster of one gene at each dot of the picture.
    dense = rng.normal(np.repeat(CENTRES, 200, axis=0), 1.5)
    pixels, names = np.vstack([pixels, dense]), np.concatenate([names, np.repeat("EPCAM", len(dense))])
    um = to_um(pixels)
    return pd.DataFrame(
        {
            "transcript_id": np.arange(len(um), dtype=np.uint64),
            "cell_id": "UNASSIGNED",
            "x_location": um[:, 0],
            "y_location": um[:, 1],
            "z_location": 20.0,
            "feature_name": names,
            "qv": rng.choice([5.0, 19.99, 20.0, 40.0], len(um), p=[0.1, 0.1, 0.2, 0.6]),
            "is_gene": ~np.isin(names, CONTROLS),
            "he_x": pixels[:, 0],
            "he_y": pixels[:, 1],
        }
    )


def cell_frame(n: int = 120) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    pixels = rng.uniform([0, 0], [WIDTH, HEIGHT], (n, 2))
    um = to_um(pixels)
    ids = [f"aaaa{i:04d}-1" for i in range(n)]
    return pd.DataFrame(
        {"cell_id": ids, "x_centroid": um[:, 0], "y_centroid": um[:, 1], "he_x": pixels[:, 0], "he_y": pixels[:, 1]}
    )


def cell_counts(n: int = 120) -> np.ndarray:
    return np.random.default_rng(3).poisson(1.0, (n, len(GENES) + 1))


def write_matrix(path: Path, counts: np.ndarray, ids: list[str]) -> None:
    features = [*GENES, CONTROLS[0]]
    by_cell = sp.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = by_cell.data, by_cell.indices, by_cell.indptr
        group["shape"] = np.array(counts.shape[::-1])
        group["barcodes"] = np.array(ids, dtype="S")
        kinds = ["Gene Expression"] * len(GENES) + ["Negative Control Probe"]
        for key, values in {
            "id": [f"ENSG{i:011d}" for i in range(len(features))],
            "name": features,
            "feature_type": kinds,
            "genome": ["GRCh38"] * len(features),
        }.items():
            group[f"features/{key}"] = np.array(values, dtype="S")


def write_image(path: Path, *, mpp: float | None = MPP) -> None:
    size = {} if mpp is None else {"PhysicalSizeX": mpp, "PhysicalSizeY": mpp}
    tifffile.imwrite(path, picture(), photometric="rgb", tile=(128, 128), metadata={"axes": "YXS", **size}, ome=True)


class Run:
    """A Xenium output folder with its H&E; every part can be replaced before reading."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.manifest(pixel_size=PIXEL_UM, region_name="Region 1", analysis_sw_version="xenium-1.0.2", run_name="run")
        self.transcripts(transcript_frame())
        cells = cell_frame()
        cells.drop(columns=["he_x", "he_y"]).assign(cell_area=60.0).to_parquet(folder / "cells.parquet")
        write_matrix(folder / "cell_feature_matrix.h5", cell_counts(), list(cells["cell_id"]))
        self.image, self.alignment = folder / "s_he_image.ome.tif", folder / "s_he_imagealignment.csv"
        write_image(self.image)
        self.align(MATRIX)

    def manifest(self, **facts: Any) -> None:
        (self.folder / "experiment.xenium").write_text(json.dumps(facts))

    def transcripts(self, frame: pd.DataFrame, name: str = "transcripts.parquet", **options: Any) -> None:
        for old in self.folder.glob("transcripts.*"):
            old.unlink()
        frame = frame.drop(columns=["he_x", "he_y"], errors="ignore")
        if name.endswith("parquet"):
            frame.to_parquet(self.folder / name, **options)
        else:
            frame.to_csv(self.folder / name, index=False)

    def align(self, matrix: np.ndarray) -> None:
        pd.DataFrame(matrix).to_csv(self.alignment, header=False, index=False)

    def read(self, **changes: Any) -> SpatialData:
        return sl.io.read_xenium(**({"path": self.folder, "pool_um": POOL_UM} | changes))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "outs")


def table_of(sdata: SpatialData) -> pd.DataFrame:
    """Counts by row and column of the square."""
    table = sdata.tables["table"]
    index = pd.MultiIndex.from_frame(table.obs[["array_row", "array_col"]])
    return pd.DataFrame(table.X.toarray().astype(int), index=index, columns=table.var_names)


def brute_force(frame: pd.DataFrame, side: float = SIDE, *, edge: bool = False) -> pd.DataFrame:
    """The same by a pandas groupby over the true positions in the H&E; `edge` keeps squares centred beyond it."""
    used = frame[(frame["qv"] >= 20) & ~frame["feature_name"].isin(CONTROLS)]
    used = used[used["he_x"].between(0, WIDTH, inclusive="left") & used["he_y"].between(0, HEIGHT, inclusive="left")]
    rows, cols = (used["he_y"] // side).astype(int), (used["he_x"] // side).astype(int)
    if not edge:
        centred = ((cols + 0.5) * side < WIDTH) & ((rows + 0.5) * side < HEIGHT)
        used, rows, cols = used[centred], rows[centred], cols[centred]
    return pd.crosstab([rows, cols], used["feature_name"])


def assert_counts(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert list(found.columns) == list(expected.columns)
    assert list(found.index) == list(expected.index)
    np.testing.assert_array_equal(found.to_numpy(), expected.to_numpy())


# -- what is read -----------------------------------------------------------------------------------------------------
def test_counts_equal_a_groupby(run: Run) -> None:
    sdata = run.read()
    table = sdata.tables["table"]
    expected = brute_force(transcript_frame())
    assert_counts(table_of(sdata), expected)
    np.testing.assert_array_equal(table.obs["n_transcripts"], expected.sum(axis=1))
    np.testing.assert_allclose(table.obsm["spatial"], (np.array(list(expected.index))[:, ::-1] + 0.5) * SIDE)
    assert table.obs["n_transcripts"].dtype.kind == "i"
    facts = {"patient": "Region_1", "section": "Region_1", "organ": "unknown", "technology": "Xenium"}
    assert table.obs[list(facts)].drop_duplicates().to_dict("records") == [facts]


def test_every_transcript_is_accounted_for(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="sealst"):
        entry = run.read().tables["table"].uns["sealst"]["read_xenium"]
    frame = transcript_frame()
    control = frame["feature_name"].isin(CONTROLS)
    low = ~control & (frame["qv"] < 20)
    left = brute_force(frame, edge=True).to_numpy().sum()
    kept = brute_force(frame).to_numpy().sum()
    assert kept < left
    assert entry["transcripts"] == len(frame)
    assert (entry["controls"], entry["low_quality"]) == (control.sum(), low.sum())
    assert entry["outside_image"] == len(frame) - control.sum() - low.sum() - left
    assert (entry["beyond_edge"], entry["without_position"]) == (left - kept, 0)
    assert f"controls {control.sum()}, low quality {low.sum()}" in caplog.text


def test_cells_are_counted_by_centroid(run: Run) -> None:
    obs = run.read().tables["table"].obs
    cells = cell_frame()
    expected = pd.crosstab((cells["he_y"] // SIDE).astype(int), (cells["he_x"] // SIDE).astype(int))
    for row, col, n in obs[["array_row", "array_col", "n_cells"]].itertuples(index=False):
        assert n == expected.reindex(index=[row], columns=[col], fill_value=0).to_numpy().item()
    (run.folder / "cells.parquet").unlink()
    assert "n_cells" not in run.read().tables["table"].obs


def test_cells_pooled_by_centroid(run: Run) -> None:
    sdata = run.read(source="cells")
    cells = cell_frame()
    counts = pd.DataFrame(cell_counts()[:, : len(GENES)], columns=GENES)
    expected = counts.groupby([(cells["he_y"] // SIDE).astype(int), (cells["he_x"] // SIDE).astype(int)]).sum()
    rows, cols = (expected.index.get_level_values(i) for i in (0, 1))
    expected = expected[(expected.sum(axis=1) > 0) & ((cols + 0.5) * SIDE < WIDTH) & ((rows + 0.5) * SIDE < HEIGHT)]
    assert_counts(table_of(sdata), expected)
    assert list(sdata.tables["table"].var["gene_ids"]) == [f"ENSG{i:011d}" for i in range(len(GENES))]


def test_squares_and_scale(run: Run) -> None:
    sdata = run.read()
    entry = sdata.tables["table"].uns["sealst"]["read_xenium"]
    assert mpp_of(sdata.images["Region_1_he"]) == pytest.approx(MPP)
    assert entry["mpp_source"] == "alignment"
    np.testing.assert_allclose(entry["alignment"], MATRIX)
    np.testing.assert_allclose(sdata.shapes["Region_1_spots"].area, SIDE**2)
    np.testing.assert_array_equal(image_levels(sdata.images["Region_1_he"])[0].to_numpy().transpose(1, 2, 0), picture())


def test_the_result_can_be_stored(run: Run, tmp_path: Path) -> None:
    run.read().write(tmp_path / "s.zarr")
    entry = SpatialData.read(tmp_path / "s.zarr").tables["table"].uns["sealst"]["read_xenium"]
    assert entry["pool_um"] == POOL_UM


@pytest.mark.parametrize("layout", ["bytes", "categories", "batches", "v1", "csv.gz", "csv"])
def test_layouts_of_transcripts(run: Run, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = transcript_frame()
    expected = brute_force(frame)
    if layout == "bytes":
        frame["feature_name"] = frame["feature_name"].str.encode("utf-8")
        run.transcripts(frame)
    elif layout == "categories":
        run.transcripts(frame.astype({"feature_name": "category"}))
    elif layout == "batches":
        monkeypatch.setattr(_xenium_tables, "_BATCH", 170)
        run.transcripts(frame, row_group_size=400)
    elif layout == "v1":
        run.transcripts(frame.drop(columns="is_gene").astype({"x_location": "float32", "qv": "float32"}))
    else:
        monkeypatch.setattr(_xenium_tables, "_BLOCK", 20_000)
        run.transcripts(frame, f"transcripts.{layout}")
    assert_counts(table_of(run.read()), expected)


def test_what_is_no_gene_by_its_flag_or_has_no_name(run: Run) -> None:
    frame = transcript_frame()
    frame.loc[frame.index[::7], ["feature_name", "is_gene"]] = ["Custom_Feature", False]
    frame.loc[frame.index[::11], "feature_name"] = None
    run.transcripts(frame)
    table = run.read().tables["table"]
    named = frame[frame["feature_name"].isin(GENES) & frame["is_gene"]]
    assert_counts(table_of(run.read()), brute_force(named))
    assert table.uns["sealst"]["read_xenium"]["controls"] == len(frame) - len(named)


def test_cells_from_a_csv_file(run: Run) -> None:
    expected = table_of(run.read(source="cells"))
    cells = pd.read_parquet(run.folder / "cells.parquet")
    cells.to_csv(run.folder / "cells.csv.gz", index=False)
    (run.folder / "cells.parquet").unlink()
    assert_counts(table_of(run.read(source="cells")), expected)
    cells.assign(cell_id=cells["cell_id"].str.encode("utf-8")).to_parquet(run.folder / "cells.parquet")
    assert_counts(table_of(run.read(source="cells")), expected)


def test_thin_squares_can_be_left_out(run: Run) -> None:
    sdata = run.read(min_counts=30)
    expected = brute_force(transcript_frame())
    expected = expected[expected.sum(axis=1) >= 30]
    assert_counts(table_of(sdata), expected)
    entry = sdata.tables["table"].uns["sealst"]["read_xenium"]
    assert entry["squares_below_min_counts"] == len(brute_force(transcript_frame())) - len(expected)


def test_image_in_the_frame_of_the_morphology_image(run: Run) -> None:
    run.alignment.unlink()
    frame = transcript_frame()
    frame[["x_location", "y_location"]] = frame[["he_x", "he_y"]] * PIXEL_UM
    run.transcripts(frame)
    write_image(run.image, mpp=None)
    with pytest.raises(sl.DataError, match=r"found none.*`alignment='identity'`"):
        run.read()
    sdata = run.read(alignment="identity")
    assert_counts(table_of(sdata), brute_force(frame, POOL_UM / PIXEL_UM))
    assert mpp_of(sdata.images["Region_1_he"]) == pytest.approx(PIXEL_UM)


def test_files_can_lie_elsewhere(run: Run, tmp_path: Path) -> None:
    expected = table_of(run.read())
    image = run.image.rename(tmp_path / "scan.ome.tif")
    alignment = run.alignment.rename(tmp_path / "scanalignment.csv")
    assert_counts(table_of(run.read(image=image)), expected)  # by the name of the image
    alignment = alignment.rename(tmp_path / "other.csv")
    assert_counts(table_of(run.read(image=image, alignment=alignment)), expected)
    array = run.read(
        image=picture(), alignment=MATRIX.tolist(), path=run.folder / "experiment.xenium", section="s", patient="p"
    )
    assert_counts(table_of(array), expected)
    assert array.tables["table"].obs["patient"].iloc[0] == "p"


def test_what_xenium_explorer_exports(run: Run) -> None:
    """A folder, or the zip of it, with `matrix.csv` and keypoints; found by the name of the image."""
    expected = table_of(run.read())
    image = run.folder / "H&E scan.ome.tif"
    (run.folder / "s_he_image.ome.tif").rename(image)
    exported = run.folder / "H&E scan_alignment_files"
    exported.mkdir()
    (run.folder / "s_he_imagealignment.csv").rename(exported / "matrix.csv")
    (exported / "keypoints.csv").write_text("fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n")
    archive = run.folder / "exported.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in exported.iterdir():
            file.write(path, f"{exported.name}/{path.name}")
    for alignment in (exported, exported / "matrix.csv", archive, None):
        assert_counts(table_of(run.read(image=image, alignment=alignment)), expected)
    image = image.rename(run.folder / "renamed.ome.tif")
    assert_counts(table_of(run.read(image=image)), expected)
    (exported / "matrix.csv").unlink()
    with pytest.raises(sl.DataError, match=r"Expected one alignment .*or folder '\*_alignment_files'"):
        run.read(image=image)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("keypoints.csv", "")
    with pytest.raises(sl.DataError, match=r"exported\.zip holds 0 files 'matrix\.csv', not one"):
        run.read(image=image, alignment=archive)


def test_downloads_have_a_prefix(run: Run) -> None:
    expected, cells = table_of(run.read()), table_of(run.read(source="cells"))
    for name in ("transcripts.parquet", "experiment.xenium", "cells.parquet", "cell_feature_matrix.h5"):
        (run.folder / name).rename(run.folder / f"Xenium_V1_hBreast_{name}")
        (run.folder / f"._Xenium_V1_hBreast_{name}").write_bytes(b"\0" * 20)
    assert_counts(table_of(run.read()), expected)
    assert_counts(table_of(sl.io.read(run.folder, pool_um=POOL_UM)), expected)
    assert_counts(table_of(run.read(source="cells")), cells)
    (run.folder / "other_transcripts.parquet").touch()
    with pytest.raises(sl.DataError, match=r"files of several runs, 'Xenium_V1_hBreast_transcripts\.parquet', 'other_"):
        run.read()


def test_matrix_of_cells_as_a_folder(run: Run) -> None:
    expected = table_of(run.read(source="cells"))
    folder = run.folder / "cell_feature_matrix"
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(cell_counts().T))
    (folder / "barcodes.tsv").write_text("\n".join(cell_frame()["cell_id"]) + "\n")
    kinds = ["Gene Expression"] * len(GENES) + ["Negative Control Probe"]
    rows = [f"ENSG{i:011d}\t{n}\t{k}\n" for i, (n, k) in enumerate(zip([*GENES, CONTROLS[0]], kinds, strict=True))]
    (folder / "features.tsv").write_text("".join(rows))
    for path in list(folder.iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    (run.folder / "cell_feature_matrix.h5").unlink()
    sdata = run.read(source="cells")
    assert_counts(table_of(sdata), expected)
    assert sdata.tables["table"].var["gene_ids"].str.startswith("ENSG").all()


def test_squares_larger_than_the_image(run: Run) -> None:
    with pytest.raises(sl.DataError, match="No square within the image has 1 counts.*smaller squares with `pool_um=`"):
        run.read(pool_um=5000)


def test_recognised_by_its_manifest(run: Run, tmp_path: Path) -> None:
    assert _xenium.recognise(run.folder)
    assert _xenium.recognise(run.folder / "experiment.xenium")
    assert not _xenium.recognise(tmp_path)


# -- geometry ---------------------------------------------------------------------------------------------------------
@settings(max_examples=12, deadline=None)
@given(
    scale=st.floats(0.5, 4),
    turn=st.floats(0, 2 * np.pi),
    mirrored=st.booleans(),
    shift=st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000)),
)
def test_any_similarity_gives_the_same_squares(
    tmp_path_factory: pytest.TempPathFactory, scale: float, turn: float, mirrored: bool, shift: tuple[float, float]
) -> None:
    matrix = similarity(scale, turn, mirrored=mirrored, shift=shift)
    folder = tmp_path_factory.mktemp("run")
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": PIXEL_UM}))
    frame = transcript_frame(600)
    frame[["x_location", "y_location"]] = to_um(frame[["he_x", "he_y"]].to_numpy(), matrix)
    frame.drop(columns=["he_x", "he_y"]).to_parquet(folder / "transcripts.parquet")
    mpp = PIXEL_UM * scale
    sdata = sl.io.read_xenium(folder, picture(), matrix, pool_um=73.0 * mpp, section="s")
    assert_counts(table_of(sdata), brute_force(frame, 73.0))
    # The centre of a square, taken back to µm, is the middle of the transcripts' own square.
    table = sdata.tables["table"]
    centres = to_um(table.obsm["spatial"], matrix)
    nearest = np.hypot(*(centres[:, None] - frame[["x_location", "y_location"]].to_numpy()[None]).T).min(axis=0)
    assert (nearest <= 73.0 * mpp * np.sqrt(0.5) * (1 + 1e-9)).all()


def test_crops_show_where_transcripts_lie(run: Run) -> None:
    sdata = run.read()
    sl.pp.pair_crops(sdata, crop_um=POOL_UM, crop_px=73)
    table = sdata.tables["table"]
    assert table.obs["crop_ok"].any()
    squares = sdata.shapes["Region_1_spots_crops"].loc[table.obs["spot_id"]]
    np.testing.assert_allclose(squares.area, SIDE**2)
    image = picture()
    dots = []
    for box in squares.bounds.round().astype(int).to_numpy():
        x0, y0, x1, y1 = box.clip(0)
        dots.append((image[y0:y1, x0:x1, 0] < 100).sum())
    # The squares with a dot are those with the clusters of transcripts.
    epcam = np.asarray(table[:, "EPCAM"].X.todense()).ravel()
    assert np.corrcoef(dots, epcam)[0, 1] > 0.95
    best = np.argsort(epcam)[-3:]
    for centre in CENTRES:
        square = np.floor(centre / SIDE).astype(int)
        hit = (table.obs["array_col"] == square[0]) & (table.obs["array_row"] == square[1])
        assert hit.to_numpy()[best].any()


# -- scale and direction ----------------------------------------------------------------------------------------------
def test_scale_that_the_file_contradicts(run: Run) -> None:
    write_image(run.image, mpp=0.5)
    with pytest.raises(
        sl.ScaleError, match=r"0.2741 µm per pixel by the alignment, 0.5 by the image file.*`mpp=0.2741`"
    ):
        run.read()
    with pytest.warns(sl.SealstWarning, match="image file states 0.5 µm per pixel, the alignment and `mpp` say 0.2741"):
        sdata = run.read(mpp=0.27)
    assert mpp_of(sdata.images["Region_1_he"]) == pytest.approx(MPP)


def test_given_scale_that_contradicts_the_alignment(run: Run) -> None:
    with pytest.raises(sl.ScaleError, match="0.2741 µm per pixel by the alignment, 0.3 by `mpp`.*Leave out `mpp`"):
        run.read(mpp=0.3)


def test_alignment_in_the_wrong_direction_by_scale(run: Run) -> None:
    run.align(np.linalg.inv(MATRIX))
    with pytest.raises(sl.ScaleError, match=r"The inverse of the alignment would give 0.2741.*wrong direction"):
        run.read()


@pytest.mark.parametrize("source", ["transcripts", "cells"])
def test_alignment_in_the_wrong_direction_by_position(run: Run, source: str) -> None:
    run.align(np.linalg.inv(MATRIX))
    write_image(run.image, mpp=None)
    with pytest.raises(sl.ScaleError, match=rf"{source} lie outside .*inside when the alignment is inverted.*Explorer"):
        run.read(source=source)


def test_alignment_of_another_image(run: Run) -> None:
    moved = MATRIX.copy()
    moved[:2, 2] += 5000
    run.align(moved)
    with pytest.raises(sl.ScaleError, match="transcripts lie outside the H&E image.*Does the alignment belong"):
        run.read()


def test_image_of_a_part_of_the_section(run: Run) -> None:
    small = picture()[:150, :150]
    with pytest.raises(sl.ScaleError, match="`max_outside`"):
        run.read(image=small, alignment=MATRIX)
    sdata = run.read(image=small, alignment=MATRIX, max_outside=1.0)
    assert sdata.tables["table"].obs["array_row"].max() <= 150 // SIDE


# -- against another reader -------------------------------------------------------------------------------------------
def test_agrees_with_spatialdata_io(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = pytest.importorskip("spatialdata_io")
    with zipfile.ZipFile(run.folder / "cells.zarr.zip", "w") as store:
        store.writestr("zarr.json", json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    other = reader.xenium(
        run.folder,
        cells_boundaries=False,
        nucleus_boundaries=False,
        cells_labels=False,
        nucleus_labels=False,
        morphology_mip=False,
        morphology_focus=False,
        transcripts=True,
        cells_as_circles=False,
    )
    points = other.points["transcripts"].compute()
    from spatialdata.transformations import get_transformation

    # Both elements to "global", the pixels of the morphology image, and from there to the H&E.
    to_global = get_transformation(other.points["transcripts"], "global").to_affine_matrix(("x", "y"), ("x", "y"))
    image = next(other.images[k] for k in other.images if "he_image" in k)
    he_to_global = get_transformation(image, "global").to_affine_matrix(("x", "y"), ("x", "y"))
    pixels = apply_affine(np.linalg.inv(he_to_global) @ to_global, points[["x", "y"]].to_numpy())
    names = points["feature_name"].astype(str).to_numpy()
    frame = pd.DataFrame({"he_x": pixels[:, 0], "he_y": pixels[:, 1], "feature_name": names, "qv": points["qv"]})
    assert_counts(table_of(run.read()), brute_force(frame))
    # Cells: the same matrix, pooled by the same centroids.
    cells = other.tables["table"]
    centroids = apply_affine(np.linalg.inv(MATRIX), cells.obsm["spatial"] / PIXEL_UM)
    pooled = pd.DataFrame(cells.X.toarray(), columns=cells.var_names)
    rows, cols = (centroids[:, 1] // SIDE).astype(int), (centroids[:, 0] // SIDE).astype(int)
    centred = ((cols + 0.5) * SIDE < WIDTH) & ((rows + 0.5) * SIDE < HEIGHT)
    expected = pooled[centred].groupby([rows[centred], cols[centred]]).sum().astype(int)
    assert_counts(table_of(run.read(source="cells")), expected[expected.sum(axis=1) > 0])


# -- what is refused --------------------------------------------------------------------------------------------------
def edited(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Run], dict[str, Any]]:
    def apply(run: Run) -> dict[str, Any]:
        run.transcripts(change(transcript_frame()))
        return {}

    return apply


def cut(name: str, keep: float = 0.6) -> Callable[[Run], dict[str, Any]]:
    def apply(run: Run) -> dict[str, Any]:
        path = run.folder / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        return {}

    return apply


def gone(name: str, **options: Any) -> Callable[[Run], dict[str, Any]]:
    def apply(run: Run) -> dict[str, Any]:
        (run.folder / name).unlink()
        return options

    return apply


def alignment_text(text: str) -> Callable[[Run], dict[str, Any]]:
    def apply(run: Run) -> dict[str, Any]:
        run.alignment.write_text(text)
        return {}

    return apply


def alignment_matrix(matrix: np.ndarray) -> Callable[[Run], dict[str, Any]]:
    def apply(run: Run) -> dict[str, Any]:
        run.align(matrix)
        return {}

    return apply


def manifest(**facts: Any) -> Callable[[Run], dict[str, Any]]:
    def apply(run: Run) -> dict[str, Any]:
        run.manifest(**facts)
        return {}

    return apply


def cut_gzip(run: Run) -> dict[str, Any]:
    run.transcripts(transcript_frame(), "transcripts.csv.gz")
    return cut("transcripts.csv.gz")(run)


def text_in_csv(run: Run) -> dict[str, Any]:
    run.transcripts(transcript_frame().astype({"qv": object}).assign(qv="high"), "transcripts.csv")
    return {}


def not_gzip(run: Run) -> dict[str, Any]:
    run.transcripts(transcript_frame().head(0))
    (run.folder / "transcripts.parquet").rename(run.folder / "transcripts.csv.gz")
    return {}


def damaged_matrix(path: Path, part: str, at: int, value: int) -> dict[str, Any]:
    with h5py.File(path, "r+") as file:
        file["matrix"][part][at] = value
    return {"source": "cells"}


def foreign_cells(run: Run) -> dict[str, Any]:
    cells = cell_frame()
    cells.assign(cell_id=[f"zz{i}" for i in range(len(cells))]).to_parquet(run.folder / "cells.parquet")
    return {"source": "cells"}


def twice(run: Run) -> dict[str, Any]:
    pd.concat([cell_frame(), cell_frame().head(1)]).to_parquet(run.folder / "cells.parquet")
    return {}


def h5_without_barcodes(run: Run) -> dict[str, Any]:
    with h5py.File(run.folder / "cell_feature_matrix.h5", "a") as file:
        del file["matrix/barcodes"]
    return {"source": "cells"}


def second_image(run: Run) -> dict[str, Any]:
    write_image(run.folder / "t_he_image.ome.tif")
    return {}


def bad_utf8(run: Run) -> dict[str, Any]:
    frame = transcript_frame().drop(columns=["he_x", "he_y"])
    frame["feature_name"] = b"\xff\xfe"
    pa.parquet.write_table(pa.Table.from_pandas(frame), run.folder / "transcripts.parquet")
    return {}


STRETCHED = MATRIX @ np.diag([1.05, 1.0, 1.0])
FLAT = MATRIX @ np.diag([1.0, 0.0, 1.0])
BAD: dict[str, tuple[Callable[[Run], dict[str, Any]], str]] = {
    "no folder": (lambda r: {"path": r.folder / "x"}, r"No experiment\.xenium in '/.*/x'"),
    "no manifest": (gone("experiment.xenium"), r"No experiment\.xenium in .*output folder of a run"),
    "manifest cut": (cut("experiment.xenium"), r"experiment\.xenium' is damaged: it is no JSON"),
    "manifest without scale": (manifest(region_name="r"), r"no usable 'pixel_size' \(found None\).*0\.2125"),
    "manifest with text as scale": (manifest(pixel_size="0.2"), r"no usable 'pixel_size' \(found '0\.2'\)"),
    "manifest with zero scale": (manifest(pixel_size=0), r"no usable 'pixel_size' \(found 0\)"),
    "no transcripts": (gone("transcripts.parquet"), r"No transcripts in .*'transcripts\.csv\.gz'.*`source='cells'`"),
    "transcripts cut": (cut("transcripts.parquet"), r"transcripts\.parquet could not be read, it is damaged"),
    "transcripts gzip cut": (cut_gzip, r"transcripts\.csv\.gz could not be read, it is damaged"),
    "transcripts not gzip": (not_gzip, r"transcripts\.csv\.gz could not be read"),
    "text for quality": (text_in_csv, r"transcripts\.csv could not be read.*high"),
    "names not text": (bad_utf8, r"transcripts\.parquet could not be read"),
    "column missing": (
        edited(lambda f: f.drop(columns="qv")),
        r"transcripts\.parquet lacks the column\(s\) 'qv'; found: 'transcript_id'",
    ),
    "nothing above the quality": (lambda r: {"min_qv": 99.0}, r"no transcript of a gene \(.*low quality \d+.*`min_qv`"),
    "only controls": (edited(lambda f: f[~f["is_gene"]]), r"no transcript of a gene \(.*controls \d\d+"),
    "no rows": (edited(lambda f: f.head(0)), "no transcript of a gene"),
    "no positions": (edited(lambda f: f.assign(x_location=np.nan)), r"no transcript of a gene.*without position \d+"),
    "no image": (gone("s_he_image.ome.tif"), r"Expected one H&E image '\*he_image\.ome\.tif' .* found none.*`image=`"),
    "two images": (second_image, r"found 's_he_image\.ome\.tif', 't_he_image\.ome\.tif'"),
    "image cut": (cut("s_he_image.ome.tif", 0.2), r"s_he_image\.ome\.tif"),
    "no alignment": (gone("s_he_imagealignment.csv"), r"Expected one alignment.*found none.*`alignment='identity'`"),
    "alignment elsewhere": (lambda r: {"alignment": "x.csv"}, r"`alignment`: no file at 'x\.csv' \(looked for '/"),
    "alignment with header": (
        alignment_text("a,b,c\n1,0,0\n0,1,0\n0,0,1\n"),
        "a header, but it begins 'a,b,c'",
    ),
    "keypoints": (
        alignment_text("fixedX,fixedY,alignmentX,alignmentY\n1,2,3,4\n"),
        "it begins 'fixedX,fixedY.*not the keypoints",
    ),
    "alignment empty": (alignment_text(""), r"3 x 3 matrix of finite numbers, found shape \(0,\)"),
    "alignment of two rows": (
        alignment_text("1,0,0\n0,1,0\n"),
        r"3 x 3 matrix .*, found shape \(2, 3\)",
    ),
    "alignment with a hole": (alignment_text("1,0,\n0,1,0\n0,0,1\n"), "it begins '1,0,'"),
    "alignment transposed": (alignment_matrix(MATRIX.T), r"last row of 0, 0, 1, found \[900"),
    "alignment stretched": (alignment_matrix(STRETCHED), r"by 1\.35\d* in one direction and 1\.29 in the other"),
    "alignment singular": (alignment_matrix(FLAT), r"by 1\.29 in one direction and 0 in the other"),
    "alignment of words": (lambda r: {"alignment": np.full((3, 3), "x")}, "`alignment` must hold numbers, found array"),
    "cells cut": (cut("cells.parquet"), r"cells\.parquet could not be read, it is damaged"),
    "cells twice": (twice, r"cells\.parquet: cell id\(s\) 'aaaa0000-1' occur twice"),
    "damaged indices": (
        lambda r: damaged_matrix(r.folder / "cell_feature_matrix.h5", "indices", 0, 10**6),
        r"sparse matrix in cell_feature_matrix\.h5 \(matrix\) is damaged: `indices` hold 1000000, outside 0 to 4",
    ),
    "no matrix": (gone("cell_feature_matrix.h5", source="cells"), "`source='cells'` needs cell_feature_matrix.h5"),
    "no cells": (gone("cells.parquet", source="cells"), r"needs cell_feature_matrix\.h5 and one of 'cells\.parquet'"),
    "matrix without barcodes": (h5_without_barcodes, r"cell_feature_matrix\.h5 could not be read"),
    "foreign cells": (foreign_cells, r"its ids begin 'zz0', 'zz1', 'zz2', those of the matrix 'aaaa0000-1'"),
    "quality of cells": (lambda r: {"source": "cells", "min_qv": 10}, "counted at 20. Use `source='transcripts'`"),
    "other source": (lambda r: {"source": "bins"}, "`source` must be one of 'transcripts', 'cells'"),
    "side of zero": (lambda r: {"pool_um": 0}, "`pool_um` must be a positive number"),
    "few counts": (lambda r: {"min_counts": 10**6}, "No square within the image has 1000000 counts"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(run: Run, case: str) -> None:
    prepare, message = BAD[case]
    with pytest.raises(sl.DataError, match=message):
        run.read(**prepare(run))


def test_rows_without_position_are_left_out(run: Run) -> None:
    frame = transcript_frame()
    frame.loc[frame.index[:40], "y_location"] = np.nan
    run.transcripts(frame)
    used = (frame["qv"] >= 20) & frame["is_gene"]
    with pytest.warns(sl.SealstWarning, match=f"{used[:40].sum()} rows have no position"):
        sdata = run.read()
    assert_counts(table_of(sdata), brute_force(frame.iloc[40:]))


def test_damaged_gzip_is_not_read_in_part(run: Run) -> None:
    # All lines are there, the check sum is not.
    run.transcripts(transcript_frame(), "transcripts.csv")
    plain = (run.folder / "transcripts.csv").read_bytes()
    (run.folder / "transcripts.csv").unlink()
    (run.folder / "transcripts.csv.gz").write_bytes(gzip.compress(plain)[:-8])
    with pytest.raises(sl.DataError, match="damaged"):
        run.read()


@pytest.mark.parametrize("turn", [0.0, 0.3])
def test_a_reversed_alignment_is_refused_although_most_lies_inside(run: Run, turn: float) -> None:
    matrix = similarity(1.02, turn, mirrored=False, shift=(60.0, -40.0))
    pixels = np.random.default_rng(5).uniform([0, 0], [WIDTH, HEIGHT], (3000, 2))
    frame = transcript_frame().iloc[:3000].drop(columns=["he_x", "he_y"])
    frame[["x_location", "y_location"]] = to_um(pixels, matrix)
    run.transcripts(frame.assign(feature_name="EPCAM", is_gene=True, qv=40.0))
    write_image(run.image, mpp=None)
    run.align(matrix)
    assert run.read().tables["table"].uns["sealst"]["read_xenium"]["outside_image"] == 0
    inverse = np.linalg.inv(matrix)
    back = apply_affine(np.linalg.inv(inverse), to_um(pixels, matrix) / PIXEL_UM)
    inside = ((back >= 0) & (back < [WIDTH, HEIGHT])).all(axis=1).mean()
    assert 0.5 < inside < 0.95, "most lies inside although the direction is wrong"
    run.align(inverse)
    with pytest.raises(sl.ScaleError, match="it is given in the wrong direction"):
        run.read()


def test_much_outside_the_image_is_said(run: Run) -> None:
    frame = transcript_frame()
    frame.loc[frame.index[:600], "x_location"] += 10_000
    run.transcripts(frame)
    with pytest.warns(sl.SealstWarning, match="lie outside the H&E image .* and are left out"):
        run.read()


# -- cells ------------------------------------------------------------------------------------------------------------
def cell_id(i: int) -> str:
    """Name of a cell as version 1.3 and later write it: 8 digits to the base of 16, from a to p."""
    return "".join("abcdefghijklmnop"[int(digit, 16)] for digit in f"{i:08x}") + "-1"


def write_cells(run: Run) -> gpd.GeoSeries:
    """Add cells to a run, in the layout of version 3; returns their outlines in pixels of the H&E."""
    folder, cells = run.folder, cell_frame()
    n, ids = len(cells), [cell_id(300 + i) for i in range(len(cells))]
    um, he = cells[["x_centroid", "y_centroid"]].to_numpy(), cells[["he_x", "he_y"]].to_numpy()
    angle = np.linspace(0, 2 * np.pi, 13)
    ring = np.column_stack([np.cos(angle), np.sin(angle)])
    for name, radius in (("cell", 5.0), ("nucleus", 2.5)):
        vertices = (um[:, None] + radius * ring).reshape(-1, 2).astype(np.float32)
        frame = pd.DataFrame({"cell_id": np.repeat(ids, 13), "vertex_x": vertices[:, 0], "vertex_y": vertices[:, 1]})
        frame["label_id"] = np.repeat(np.arange(1, n + 1, dtype=np.int32), 13)
        frame.to_parquet(folder / f"{name}_boundaries.parquet")
    run.manifest(pixel_size=PIXEL_UM, region_name="Region 1", analysis_sw_version="xenium-3.0.0.15", run_name="run")
    cells = cells.drop(columns=["he_x", "he_y"]).assign(cell_id=ids, cell_area=78.5, nucleus_area=20.0)
    cells.to_parquet(folder / "cells.parquet")
    write_matrix(folder / "cell_feature_matrix.h5", cell_counts(), ids)
    with zarr.storage.ZipStore(folder / "cells.zarr.zip", mode="w") as store:
        root = zarr.create_group(store, zarr_format=2)
        root["cell_id"] = np.column_stack([np.arange(n) + 300, np.ones(n)]).astype(np.uint32)
        summary = root.create_array("cell_summary", data=np.zeros((n, 2)))
        summary.attrs["column_names"] = ["z_level", "nucleus_count"]
        for i in (0, 1):
            root[f"polygon_sets/{i}/cell_index"] = np.arange(n, dtype=np.uint32)
    return gpd.GeoSeries(shapely.buffer(shapely.points(he), 5.0 / MPP), index=ids)


def local_model() -> sl.models.SealModel:
    """A model that predicts single patches, somehow."""
    rng, genes = np.random.default_rng(0), GENES[:3]
    panel = sl.GenePanel(tuple(genes), np.ones(3), np.ones(3))
    model = sl.models.SealModel(
        sl.models.build_encoder("sealst-tiny"), panel, crop=sl.models.CropSpec(112.0, 112),
        adapter=sl.models.LoraParams(n_blocks=1), gene_encoder=sl.models.GeneVAEParams(hidden=(8,)),
        head=sl.models.HeadParams(8),
    )  # fmt: skip
    weight = rng.normal(0, 0.02, (model.encoder.spec.width, 3)).astype(np.float32)
    model.local = LocalHead(weight, np.zeros(3, dtype=np.float32), "patients", 0.1, 100, "none")
    return model


def test_cells_beside_the_squares(run: Run) -> None:
    outlines = write_cells(run)
    sdata = run.read(cells=True)
    table = sdata.tables["Region_1_cells_table"]
    assert list(table.obs["cell_id"]) == list(outlines.index)
    assert list(table.var_names) == GENES
    np.testing.assert_array_equal(table.X.toarray(), cell_counts()[:, : len(GENES)])
    np.testing.assert_allclose(table.obsm["spatial"], cell_frame()[["he_x", "he_y"]], atol=1e-3)
    assert table.obs["patient"].unique().tolist() == ["Region_1"]
    np.testing.assert_allclose(
        sdata.shapes["Region_1_cells"].area, 12 * np.sin(np.pi / 6) / 2 * (5 / MPP) ** 2, rtol=1e-3
    )
    # Squares are what they are without.
    assert_counts(table_of(sdata), table_of(run.read()))


def test_cells_agree_with_spatialdata_io_and_are_embedded_beside_their_counts(run: Run, tmp_path: Path) -> None:
    reader = pytest.importorskip("spatialdata_io")
    write_cells(run)
    theirs = reader.xenium(
        run.folder, cells_labels=False, nucleus_labels=False, morphology_mip=False, morphology_focus=False,
        transcripts=False, aligned_images=False,
    )  # fmt: skip
    theirs.images["he_image"] = reader.xenium_aligned_image(run.image, run.alignment)
    set_transformation(theirs.images["he_image"], Scale([MPP, MPP], axes=("x", "y")), "um")
    theirs.tables["table"].obs["region"] = pd.Categorical(["cell_boundaries"] * 120)
    theirs.set_table_annotates_spatialelement("table", "cell_boundaries", region_key="region", instance_key="cell_id")
    ours, model = run.read(cells=True), local_model()
    a, b = theirs.tables["table"], ours.tables["Region_1_cells_table"]
    assert list(a.obs["cell_id"]) == list(b.obs["cell_id"])
    assert list(a.var_names) == list(b.var_names)
    np.testing.assert_array_equal(a.X.toarray(), b.X.toarray())
    for sdata, at in ((theirs, "cell_boundaries"), (ours, "Region_1_cells")):
        image = "he_image" if at == "cell_boundaries" else None
        sl.tl.embed(sdata, model, at=at, image_key=image)
        sl.tl.predict(sdata, model, at=at, image_key=image)
    assert set(theirs.tables) == {"table"}
    assert set(ours.tables) == {"table", "Region_1_cells_table"}
    assert b.obsm["X_seal"].shape == (120, 256)
    assert np.isfinite(b.obsm["X_seal"]).all()
    # Theirs has no pyramid, so crops are made smaller in one step.
    np.testing.assert_allclose(a.obsm["X_seal"], b.obsm["X_seal"], atol=0.03)
    np.testing.assert_allclose(a.obsm["seal_expression"], b.obsm["seal_expression"], atol=0.03)
    assert list(b.obsm["seal_expression"]) == GENES[:3]
    # A nucleus has an id of its own, and no table.
    sl.tl.embed(theirs, model, at="nucleus_boundaries", image_key="he_image")
    assert theirs.tables["nucleus_boundaries_table"].obsm["X_seal"].shape == (120, 256)
    ours.write(tmp_path / "s.zarr")
    again = SpatialData.read(tmp_path / "s.zarr").tables["Region_1_cells_table"]
    np.testing.assert_array_equal(again.obsm["X_seal"], b.obsm["X_seal"])


@pytest.mark.parametrize("layout", ["3", "1"])
def test_nuclei_beside_cells(run: Run, layout: str) -> None:
    cells = write_cells(run)
    path = run.folder / "nucleus_boundaries.parquet"
    frame, ids = pd.read_parquet(path), list(cells.index)
    expected = gpd.GeoSeries(shapely.buffer(shapely.centroid(cells.to_numpy()), 2.5 / MPP), index=ids)
    if layout == "3":
        # The second nucleus is of the first cell, the last one of none; a nucleus has a label of its own.
        frame["cell_id"] = frame["cell_id"].replace({ids[1]: ids[0], ids[-1]: None})
        expected[ids[0]] = expected[ids[0]].union(expected[ids[1]])
        expected = expected.drop([ids[1], ids[-1]])
        frame.to_parquet(path)
    else:
        path.unlink()
        frame.drop(columns="label_id").to_csv(run.folder / "nucleus_boundaries.csv.gz", index=False)
    sdata = run.read(cells=True, nuclei=True)
    found = sdata.shapes["Region_1_nuclei"]
    assert list(found.index) == list(expected.index)
    # Twelve corners for a circle.
    overlap = shapely.area(shapely.intersection(found.geometry.to_numpy(), expected.to_numpy()))
    assert (overlap > 0.95 * shapely.area(expected.to_numpy())).all()
    assert (shapely.area(found.geometry.to_numpy()) < 1.01 * shapely.area(expected.to_numpy())).all()
    assert list(sdata.shapes["Region_1_cells"].index) == ids
    assert set(run.read(cells=True).shapes) == {"Region_1_spots", "Region_1_cells"}
    sl.tl.embed(sdata, "sealst-tiny", at="Region_1_nuclei", crop_um=112)
    table = sdata.tables["Region_1_nuclei_table"]
    assert list(table.obs["instance_id"]) == list(expected.index)
    assert np.isfinite(table.obsm["X_seal"]).all()
    # Nuclei are smaller than cells.
    sl.tl.embed(sdata, "sealst-tiny", at="Region_1_cells", crop_um=112)
    own = sdata.tables["Region_1_cells_table"]
    rows = own.obs["cell_id"].isin(expected.index).to_numpy()
    assert not np.allclose(own.obsm["X_seal"][rows], table.obsm["X_seal"], atol=1e-3)


def test_nuclei_that_are_not_there(run: Run) -> None:
    write_cells(run)
    (run.folder / "nucleus_boundaries.parquet").unlink()
    with pytest.raises(sl.DataError, match=r"nuclei=True.*nucleus_boundaries\.parquet"):
        run.read(nuclei=True)


def test_cells_in_any_layout(run: Run) -> None:
    write_cells(run)
    expected = run.read(cells=True)
    path = run.folder / "cell_boundaries.parquet"
    frame = pd.read_parquet(path).drop(columns="label_id")
    frame.assign(cell_id=frame["cell_id"].str.encode("utf-8")).to_parquet(path)
    for _ in range(2):
        found = run.read(cells=True)
        assert found.shapes["Region_1_cells"].index.equals(expected.shapes["Region_1_cells"].index)
        assert shapely.equals_exact(
            found.shapes["Region_1_cells"].geometry, expected.shapes["Region_1_cells"].geometry, 1e-3
        ).all()
        path.unlink(missing_ok=True)
        frame.to_csv(run.folder / "cell_boundaries.csv.gz", index=False)


def test_cells_that_lack_counts_or_outlines_are_left_out(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    outlines = write_cells(run)
    path = run.folder / "cell_boundaries.parquet"
    frame = pd.read_parquet(path)
    other = frame[frame["cell_id"] == outlines.index[5]].assign(cell_id=cell_id(9))
    pd.concat([frame[frame["cell_id"] != outlines.index[0]], other]).to_parquet(path)
    with caplog.at_level(logging.INFO, logger="sealst"):
        table = run.read(cells=True).tables["Region_1_cells_table"]
    assert list(table.obs["cell_id"]) == list(outlines.index[1:])
    entry = table.uns["sealst"]["read_xenium"]
    assert (entry["cells_without_outline"], entry["outlines_without_counts"]) == (1, 1)
    assert "1 without an outline and 1 outlines without counts" in caplog.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("absent", r"cells=True.*cell_boundaries\.parquet"),
        ("columns", "vertex_y"),
        ("bytes", "damaged or incomplete"),
        ("short", "damaged or incomplete"),
        ("nan", "without a position"),
        ("other", "no cell with counts has an outline"),
    ],
)
def test_outlines_that_are_refused(run: Run, damage: str, message: str) -> None:
    write_cells(run)
    path = run.folder / "cell_boundaries.parquet"
    frame = pd.read_parquet(path)
    if damage == "absent":
        path.unlink()
    elif damage == "bytes":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        made = {
            "columns": frame.drop(columns="vertex_y"),
            "short": frame.iloc[:15],
            "nan": frame.assign(vertex_x=frame["vertex_x"].where(frame.index != 40)),
            "other": frame.assign(cell_id="b" + frame["cell_id"]),
        }
        made[damage].to_parquet(path)
    with pytest.raises(sl.DataError, match=message):
        run.read(cells=True)
