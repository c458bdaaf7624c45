from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import tifffile
from anndata import AnnData
from spatialdata import SpatialData

import sealst as sl
from sealst._section import image_levels, mpp_of
from sealst.io._hest import samples as _hest

GENES = ["EPCAM", "VIM", "CD3E", "KRT8"]
EXTRA = ["NegControlProbe_00042", "VIM"]
MPP = 1.0
WIDTH, HEIGHT = 900, 700
N_ROWS, N_COLS = 5, 7
TITLE = "A study of breast"
PITCH = {"Visium": 100.0, "Spatial Transcriptomics": 200.0, "Xenium": 100.0, "Visium HD": 128.0}
SPOT = {"Visium": 55.0, "Spatial Transcriptomics": 100.0, "Xenium": 100.0, "Visium HD": 128.0}


def positions(technology: str, pitch_px: float) -> tuple[np.ndarray, np.ndarray]:
    row, col = (a.ravel() for a in np.divmod(np.arange(N_ROWS * N_COLS), N_COLS))
    if technology != "Visium":
        return np.column_stack([row, col]), np.column_stack([col, row]) * pitch_px + 60.0
    xy = np.column_stack([(col + row % 2 / 2) * pitch_px, row * pitch_px * np.sqrt(0.75)]) + 60.0
    return np.column_stack([row, 2 * col + row % 2]), xy


def facts_of(technology: str, **changes: Any) -> dict[str, Any]:
    facts = {
        "id": "TENX1",
        "dataset_title": TITLE,
        "patient": "Patient 3",
        "organ": "Breast",
        "disease_state": "Cancer",
        "species": "Homo sapiens",
        "st_technology": technology,
        "oncotree_code": float("nan"),
        "inter_spot_dist": {"Visium": 100.0, "Spatial Transcriptomics": 200.0, "Visium HD": 2.0}.get(technology),
        "spot_diameter": {"Visium": 55.0, "Spatial Transcriptomics": 100.0, "Visium HD": 2.0}.get(technology),
        "pixel_size_um_embedded": 0.25,
        "pixel_size_um_estimated": MPP,
        "fullres_px_width": WIDTH,
        "fullres_px_height": HEIGHT,
    }
    return facts | changes


def picture(xy: np.ndarray) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), (230, 180, 200), dtype=np.uint8)
    # A dark dot at the spot whose counts stand out.
    x, y = xy[10].round().astype(int)
    image[y - 5 : y + 5, x - 5 : x + 5] = (20, 10, 90)
    return image


class Data:
    """A folder of HEST-1k with one sample; every part can be replaced before reading."""

    def __init__(self, root: Path, technology: str = "Visium") -> None:
        self.root = root
        for name in ("st", "wsis", "metadata", "patches"):
            (root / name).mkdir(parents=True, exist_ok=True)
        self.array, self.xy = positions(technology, PITCH[technology] / MPP)
        self.ids = [f"{r:03d}x{c:03d}" for r, c in self.array]
        self.counts = np.random.default_rng(0).poisson(3.0, (len(self.xy), len(GENES) + len(EXTRA)))
        self.counts[10, 0] = 500
        self.facts(**facts_of(technology))
        self.table(self.adata())
        self.slide()
        self.patches()

    def adata(self) -> AnnData:
        obs = pd.DataFrame({"in_tissue": 1, "array_row": self.array[:, 0], "array_col": self.array[:, 1]})
        obs["pxl_col_in_fullres"], obs["pxl_row_in_fullres"] = self.xy.T
        var = pd.DataFrame({"gene_ids": [f"ENSG{i:011d}" for i in range(len(GENES + EXTRA))]}, index=GENES + EXTRA)
        table = AnnData(sp.csr_matrix(self.counts.astype(np.float32)), obs=obs.set_index(pd.Index(self.ids)), var=var)
        table.obsm["spatial"] = self.xy
        table.uns["spatial"] = {"ST": {"images": {}, "scalefactors": {"spot_diameter_fullres": 400.0}}}
        return table

    def table(self, adata: AnnData) -> None:
        adata.write_h5ad(self.root / "st" / "TENX1.h5ad")

    def facts(self, **facts: Any) -> None:
        (self.root / "metadata" / "TENX1.json").write_text(json.dumps(facts))

    def slide(self, image: np.ndarray | None = None, *, mpp: float = MPP) -> None:
        tifffile.imwrite(
            self.root / "wsis" / "TENX1.tif",
            picture(self.xy) if image is None else image,
            photometric="rgb",
            tile=(128, 128),
            resolution=(1e4 / mpp, 1e4 / mpp),
            resolutionunit="CENTIMETER",
        )

    def patches(
        self, *, keep: slice = slice(3, None), shift: float | np.ndarray | None = None, ids: list[str] | None = None
    ) -> None:
        half = 56.0 / MPP if shift is None else shift
        with h5py.File(self.root / "patches" / "TENX1.h5", "w") as file:
            names = self.ids[keep] if ids is None else ids
            file["barcode"] = np.array(names, dtype="S").reshape(-1, 1)
            file["coords"] = (self.xy[keep] - half).astype(int)
            file["img"] = np.zeros((len(names), 2, 2, 3), dtype=np.uint8)

    def read(self, **changes: Any) -> SpatialData:
        return sl.io.read_hest(**({"path": self.root} | changes))


@pytest.fixture
def data(tmp_path: Path) -> Data:
    return Data(tmp_path / "hest")


# -- what is read -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("technology", PITCH)
def test_counts_positions_and_spots(tmp_path: Path, technology: str) -> None:
    data = Data(tmp_path / "hest", technology)
    sdata = data.read(sample_id="TENX1")
    table = sdata.tables["table"]
    raw = anndata.read_h5ad(data.root / "st" / "TENX1.h5ad")
    expected = pd.DataFrame(raw.X.toarray(), columns=GENES + EXTRA).drop(columns=EXTRA[0])
    expected = expected.T.groupby(level=0, sort=False).sum().T
    assert list(table.var_names) == GENES
    np.testing.assert_array_equal(table.X.toarray(), expected[GENES])
    assert list(table.var["gene_ids"]) == [f"ENSG{i:011d}" for i in range(4)]
    np.testing.assert_array_equal(table.obsm["spatial"], data.xy)
    np.testing.assert_array_equal(table.obs[["array_row", "array_col"]], data.array)
    assert list(table.obs["spot_id"]) == data.ids
    spots = sdata.shapes["TENX1_spots"]
    if technology in ("Visium", "Spatial Transcriptomics"):
        assert spots["radius"].to_numpy() == pytest.approx(SPOT[technology] / MPP / 2)
    else:
        np.testing.assert_allclose(spots.area, (SPOT[technology] / MPP) ** 2)
    facts = {"patient": f"{TITLE}: patient3", "section": "TENX1", "organ": "breast", "technology": technology}
    assert table.obs[list(facts)].drop_duplicates().to_dict("records") == [facts]
    entry = table.uns["sealst"]["read_hest"]
    assert (entry["control_features"], entry["genes_summed"]) == (1, 1)
    assert (entry["mpp"], entry["mpp_source"], entry["pitch_um"]) == (MPP, "metadata", PITCH[technology])
    assert entry["pitch_px"] == pytest.approx(PITCH[technology] / MPP)
    assert entry["species"] == "Homo sapiens"
    assert "oncotree_code" not in entry
    assert mpp_of(sdata.images["TENX1_he"]) == MPP
    np.testing.assert_array_equal(image_levels(sdata.images["TENX1_he"])[0].transpose("y", "x", "c"), picture(data.xy))


def test_crops_show_the_spot(data: Data, tmp_path: Path) -> None:
    sdata = data.read()
    sl.pp.pair_crops(sdata, crop_um=112)
    table = sdata.tables["table"]
    assert table.obs["crop_ok"].all()
    x0, y0, x1, y1 = sdata.shapes["TENX1_spots_crops"].bounds.to_numpy()[int(table[:, "EPCAM"].X.argmax())]
    crop = picture(data.xy)[round(y0) : round(y1), round(x0) : round(x1), 0]
    assert crop.shape == (112, 112)
    dark = np.argwhere(crop < 100).mean(axis=0)
    np.testing.assert_allclose(dark, [55.5, 55.5], atol=1)
    sdata.write(tmp_path / "s.zarr")


def test_who_has_a_patch(data: Data) -> None:
    table = data.read().tables["table"]
    assert table.obs["in_patches"].dtype == bool
    assert list(np.flatnonzero(~table.obs["in_patches"])) == [0, 1, 2]
    entry = table.uns["sealst"]["read_hest"]
    assert (entry["patches"], entry["patches_without_spot"]) == (len(data.ids) - 3, 0)
    assert entry["patch_coordinates"] == "top left"
    data.patches(shift=0.0)
    assert data.read().tables["table"].uns["sealst"]["read_hest"]["patch_coordinates"] == "centre"
    assert "in_patches" not in data.read(patches=False).tables["table"].obs
    (data.root / "patches" / "TENX1.h5").unlink()
    assert "in_patches" not in data.read().tables["table"].obs


def test_patches_without_a_spot_are_counted(data: Data) -> None:
    data.patches(keep=slice(0, 3), ids=[data.ids[0], data.ids[1], "gone"])
    table = data.read().tables["table"]
    assert table.uns["sealst"]["read_hest"]["patches_without_spot"] == 1
    assert table.obs["in_patches"].sum() == 2


def test_positions_from_the_columns(data: Data) -> None:
    adata = data.adata()
    del adata.obsm["spatial"]
    data.table(adata)
    np.testing.assert_allclose(data.read().tables["table"].obsm["spatial"], data.xy)


def test_spots_without_position_are_left_out(data: Data) -> None:
    adata = data.adata()
    adata.obsm["spatial"] = np.where(np.arange(len(data.xy))[:, None] < 2, np.nan, data.xy)
    data.table(adata)
    with pytest.warns(sl.SealstWarning, match="2 of 35 spots have no finite coordinates"):
        table = data.read().tables["table"]
    assert list(table.obs["spot_id"]) == data.ids[2:]
    np.testing.assert_array_equal(table.X.toarray()[:, 0], data.counts[2:, 0])


def test_counts_in_a_layer(data: Data) -> None:
    adata = data.adata()
    adata.layers["raw"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    data.table(adata)
    with pytest.raises(sl.DataError, match=r"TENX1\.h5ad does not hold raw counts.*`layer=`"):
        data.read()
    np.testing.assert_array_equal(data.read(layer="raw").tables["table"].X.toarray()[:, 0], data.counts[:, 0])


def test_dense_counts_and_odd_arrays(data: Data) -> None:
    adata = data.adata()
    adata.X = data.counts.astype(np.uint16)
    adata.obs["array_row"] = "row"
    data.table(adata)
    table = data.read().tables["table"]
    np.testing.assert_array_equal(table.X.toarray()[:, 0], data.counts[:, 0])
    assert "array_row" not in table.obs


def test_ids_follow_their_genes(data: Data) -> None:
    # With the control probe in front, every gene has another column.
    adata = data.adata()[:, ::-1].copy()
    data.table(adata)
    table = data.read().tables["table"]
    assert list(table.var_names) == ["VIM", "KRT8", "CD3E", "EPCAM"]
    assert [int(i[4:]) for i in table.var["gene_ids"]] == [5, 3, 2, 0]
    np.testing.assert_array_equal(table[:, "EPCAM"].X.toarray().ravel(), data.counts[:, 0])


def test_own_names(data: Data) -> None:
    obs = data.read(section="s", patient="p", organ="Skin").tables["table"].obs
    assert obs[["section", "patient", "organ"]].iloc[0].tolist() == ["s", "p", "Skin"]


@pytest.mark.parametrize(
    ("patient", "expected"),
    [("patient 3", "patient3"), (float("nan"), "unknownpatient"), ("   ", "unknownpatient"), (None, "unknownpatient")],
)
def test_patients_stay_apart_by_study(data: Data, patient: Any, expected: str) -> None:
    data.facts(**facts_of("Visium", patient=patient))
    assert data.read().tables["table"].obs["patient"].iloc[0] == f"{TITLE}: {expected}"


def test_where_samples_are_found(data: Data, tmp_path: Path) -> None:
    assert data.read(path=data.root / "st" / "TENX1.h5ad").tables["table"].obs["section"].iloc[0] == "TENX1"
    data.adata().write_h5ad(data.root / "st" / "NCBI5.h5ad")
    with pytest.raises(sl.DataError, match=r"`sample_id` is None; '.*st' holds 'NCBI5', 'TENX1'"):
        data.read()
    assert _hest.recognise(data.root)
    assert _hest.recognise(data.root / "st" / "TENX1.h5ad")
    assert not _hest.recognise(data.root / "st")
    assert not _hest.recognise(tmp_path / "x.h5ad")


# -- metadata ---------------------------------------------------------------------------------------------------------
def test_metadata_from_the_table_of_all_samples(data: Data, caplog: pytest.LogCaptureFixture) -> None:
    expected = data.read().tables["table"]
    (data.root / "metadata" / "TENX1.json").unlink()
    old = facts_of("Visium", patient="wrong")
    pd.DataFrame([old]).to_csv(data.root / "HEST_v1_0_2.csv", index=False)
    pd.DataFrame([facts_of("Visium", id="TENX10"), facts_of("Visium")]).to_csv(
        data.root / "HEST_v1_1_0.csv", index=False
    )
    with caplog.at_level(logging.INFO, logger="sealst"):
        table = data.read().tables["table"]
    assert "the metadata come from HEST_v1_1_0.csv" in caplog.text
    pd.testing.assert_frame_equal(table.obs, expected.obs)
    assert table.uns["sealst"]["read_hest"] == expected.uns["sealst"]["read_hest"]


def test_without_metadata(data: Data) -> None:
    (data.root / "metadata" / "TENX1.json").unlink()
    with (
        pytest.warns(sl.SealstWarning, match="No metadata of TENX1"),
        pytest.raises(sl.ScaleError, match=r"technology of the sample is 'not stated'.*Pass `spot_um=`"),
    ):
        data.read()
    with pytest.warns(sl.SealstWarning, match="No metadata of TENX1"):
        sdata = data.read(spot_um=55, pitch_um=100)
    obs = sdata.tables["table"].obs
    assert obs[["patient", "organ", "technology"]].iloc[0].tolist() == ["TENX1", "unknown", "unknown"]
    assert mpp_of(sdata.images["TENX1_he"]) == pytest.approx(MPP)
    # Without a pitch, the file's own scale is what there is.
    with pytest.warns(sl.SealstWarning, match="No metadata"):
        entry = data.read(spot_um=55).tables["table"].uns["sealst"]["read_hest"]
    assert entry["mpp_source"] == "image file"
    assert "pitch_um" not in entry


# -- scale ------------------------------------------------------------------------------------------------------------
def test_squares_pooled_at_another_size(tmp_path: Path) -> None:
    data = Data(tmp_path / "hest", "Xenium")
    data.facts(**facts_of("Xenium", pixel_size_um_estimated=0.5839))
    data.slide(mpp=0.5839)
    with pytest.raises(
        sl.ScaleError,
        match=r"0\.5839 .*by the metadata, 1 by the pitch of 100 px.*58\.39 µm apart, not 100: pass `pitch_um=58\.39`",
    ):
        data.read(patches=False)
    sdata = data.read(pitch_um=58.39, patches=False)
    np.testing.assert_allclose(sdata.shapes["TENX1_spots"].area, 100**2, rtol=1e-3)
    assert mpp_of(sdata.images["TENX1_he"]) == 0.5839
    with pytest.warns(sl.SealstWarning, match=r"the metadata states 0\.5839.*`mpp` and the pitch of the spots say 1"):
        sdata = data.read(mpp=1.0)
    assert mpp_of(sdata.images["TENX1_he"]) == 1.0


def test_given_scale_that_the_pitch_contradicts(data: Data) -> None:
    with pytest.raises(sl.ScaleError, match=r"0\.5 µm per pixel by `mpp`, 1 by the pitch of 100 px for 100 µm"):
        data.read(mpp=0.5)


def test_scale_of_the_file_is_only_compared(data: Data) -> None:
    data.slide(mpp=0.25)
    with pytest.warns(
        sl.SealstWarning, match=r"the image file states 0\.25 .*metadata and the pitch of the spots say 1"
    ):
        sdata = data.read()
    assert mpp_of(sdata.images["TENX1_he"]) == MPP


def test_pitch_and_diameter_exchanged(tmp_path: Path) -> None:
    # Some legacy arrays have spots of 110 µm at 150 µm; the metadata hold the two the other way round.
    data = Data(tmp_path / "hest", "Spatial Transcriptomics")
    data.facts(
        **facts_of("Spatial Transcriptomics", inter_spot_dist=110.0, spot_diameter=150.0, pixel_size_um_estimated=0.75)
    )
    data.slide(mpp=0.75)
    sdata = data.read(patches=False)
    entry = sdata.tables["table"].uns["sealst"]["read_hest"]
    assert (entry["pitch_um"], entry["spot_um"]) == (150, 110)
    assert sdata.shapes["TENX1_spots"]["radius"].to_numpy() == pytest.approx(110 / 0.75 / 2)
    data.facts(
        **facts_of("Spatial Transcriptomics", inter_spot_dist=110.0, spot_diameter=150.0, pixel_size_um_estimated=0.55)
    )
    with pytest.raises(sl.ScaleError, match=r"0\.55 µm per pixel by the metadata, 0\.75 by the pitch"):
        data.read()


# -- what is refused --------------------------------------------------------------------------------------------------
def changed(change: Callable[[AnnData], Any]) -> Callable[[Data], dict[str, Any]]:
    def apply(data: Data) -> dict[str, Any]:
        adata = data.adata()
        data.table(change(adata) or adata)
        return {}

    return apply


def no_positions(adata: AnnData) -> None:
    del adata.obsm["spatial"], adata.obs["pxl_col_in_fullres"]


def three_columns(adata: AnnData) -> None:
    adata.obsm["spatial"] = np.ones((adata.n_obs, 3))


def words(adata: AnnData) -> None:
    adata.obsm["spatial"] = pd.DataFrame({"x": "a", "y": "b"}, index=adata.obs_names)


def all_lost(adata: AnnData) -> None:
    adata.obsm["spatial"] = np.full((adata.n_obs, 2), np.nan)


def only_controls(adata: AnnData) -> AnnData:
    return adata[:, adata.var_names == EXTRA[0]].copy()


def no_counts(adata: AnnData) -> AnnData:
    return AnnData(obs=adata.obs, var=adata.var, obsm=dict(adata.obsm))


def cut(name: str, keep: float = 0.5) -> Callable[[Data], dict[str, Any]]:
    def apply(data: Data) -> dict[str, Any]:
        path = data.root / name
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
        return {}

    return apply


def without_slide(data: Data) -> dict[str, Any]:
    (data.root / "wsis" / "TENX1.tif").rename(data.root / "wsis" / "TENX2.tif")
    return {}


def small_slide(data: Data) -> dict[str, Any]:
    data.slide(picture(data.xy)[::2, ::2].copy())
    return {}


def stated(**changes: Any) -> Callable[[Data], dict[str, Any]]:
    def apply(data: Data) -> dict[str, Any]:
        data.facts(**facts_of("Visium", **changes))
        return {}

    return apply


def json_list(data: Data) -> dict[str, Any]:
    (data.root / "metadata" / "TENX1.json").write_text("[1]")
    return {}


def broken_csv(data: Data) -> dict[str, Any]:
    (data.root / "metadata" / "TENX1.json").unlink()
    (data.root / "HEST_v1_1_0.csv").write_text("a;b\n1\n")
    return {}


def foreign_patches(data: Data) -> dict[str, Any]:
    data.patches(ids=[f"AAC{i}-1" for i in range(len(data.ids) - 3)])
    return {}


def misplaced_patches(data: Data) -> dict[str, Any]:
    data.patches(shift=np.random.default_rng(1).uniform(0, 300, (len(data.ids) - 3, 2)))
    return {}


def smaller_patches(data: Data) -> dict[str, Any]:
    data.patches(shift=28.0)
    return {}


def patches_without_barcodes(data: Data) -> dict[str, Any]:
    with h5py.File(data.root / "patches" / "TENX1.h5", "a") as file:
        del file["barcode"]
    return {}


def damaged_index(data: Data) -> dict[str, Any]:
    with h5py.File(data.root / "st" / "TENX1.h5ad", "r+") as file:
        file["X/indices"][0] = 10**6
    return {}


def fewer_coordinates(data: Data) -> dict[str, Any]:
    with h5py.File(data.root / "patches" / "TENX1.h5", "a") as file:
        del file["coords"]
        file["coords"] = np.zeros((2, 2))
    return {}


BAD: dict[str, tuple[Callable[[Data], dict[str, Any]], str]] = {
    "no folder": (lambda d: {"path": d.root / "x"}, r"No table 'st/<id>\.h5ad' in '/.*/x'"),
    "other id": (lambda d: {"sample_id": "TENX2"}, r"`sample_id` is 'TENX2'; '.*' holds 'TENX1'"),
    "table and other id": (
        lambda d: {"path": d.root / "st" / "TENX1.h5ad", "sample_id": "TENX2"},
        "is the table of 'TENX1', but `sample_id` is 'TENX2'",
    ),
    "no slide": (without_slide, r"slide of TENX1 is missing: no '.*TENX1\.tif' \(the folder holds 'TENX2\.tif'\)"),
    "slide cut": (cut("wsis/TENX1.tif", 0.001), r"TENX1\.tif"),
    "slide of another size": (small_slide, r"TENX1\.tif has 450 x 350 px, the metadata say 900 x 700: it is a resized"),
    "index outside": (
        damaged_index,
        r"st/TENX1\.h5ad could not be read, .*damaged: `indices` hold 1000000, outside 0 to \d+",
    ),
    "table cut": (cut("st/TENX1.h5ad"), r"st/TENX1\.h5ad could not be read, it is damaged"),
    "no positions": (changed(no_positions), r"no `\.obsm\['spatial'\]` .*no columns 'pxl_col_in_fullres'"),
    "positions of three": (changed(three_columns), r"must be \(spots, 2\), found \(35, 3\)"),
    "words for positions": (changed(words), r"`obsm\['spatial'\]` must hold numbers, found"),
    "no finite positions": (changed(all_lost), "none of the 35 spots has finite coordinates"),
    "only controls": (changed(only_controls), "holds no genes; its 1 features begin 'NegControlProbe_00042'"),
    "no counts": (changed(no_counts), "has no `.X`; name the layer"),
    "metadata cut": (cut("metadata/TENX1.json"), r"TENX1\.json' is damaged: it is no JSON"),
    "metadata not an object": (json_list, r"metadata/TENX1\.json is damaged, .*: `it` must be a mapping, found \["),
    "metadata table broken": (broken_csv, r"HEST_v1_1_0\.csv could not be read"),
    "unknown technology": (stated(st_technology="Stereo-seq"), "technology of the sample is 'stereo-seq'"),
    "contradictory scale": (stated(pixel_size_um_estimated=0.5), r"0\.5 .*metadata, 1 by the pitch.*`mpp=1`"),
    "patches of another sample": (foreign_patches, r"none of the spots: its barcodes begin 'AAC0-1'.*`patches=False`"),
    "patches elsewhere": (misplaced_patches, r"of 32 patches lie elsewhere than the spots of the same barcode"),
    "patches of another scale": (smaller_patches, r"patches begin 28(\.\d+)?, 28.* half of 112 µm is 56 px at 1 µm"),
    "patches cut": (cut("patches/TENX1.h5"), r"patches/TENX1\.h5 could not be read"),
    "patches without barcodes": (patches_without_barcodes, r"patches/TENX1\.h5 could not be read.*barcode"),
    "patches with fewer coordinates": (fewer_coordinates, r"has 32 barcodes, but coords of shape \(2, 2\)"),
    "negative scale": (lambda d: {"mpp": -1}, "`mpp` must be a positive number"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(data: Data, case: str) -> None:
    prepare, message = BAD[case]
    with pytest.raises(sl.DataError, match=message):
        data.read(**prepare(data))


def test_a_layer_that_is_absent(data: Data) -> None:
    with pytest.raises(sl.MissingKeyError, match=r"'raw' not found in the layers of TENX1\.h5ad"):
        data.read(layer="raw")
