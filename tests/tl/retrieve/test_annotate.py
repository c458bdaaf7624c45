"""Annotation: the labels of the profiles that an image looks like."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import sealst as sl
from sealst._core.genes.panel import GenePanel
from sealst._core.search.queries import nearest_votes
from sealst._core.seeds import seeded
from sealst._errors import DataError, MissingKeyError, OrderError, PanelError, SealstWarning
from sealst.models import CropSpec, GeneVAEParams, LoraParams, SealModel, build_encoder
from sealst.tl._retrieve import annotate as _annotate
from sealst.tl._retrieve.annotate import annotate

GENES = ("ERBB2", "EPCAM", "KRT8", "KRT18", "CD3E", "CD8A", "COL1A1", "COL3A1", "VIM", "MKI67", "ACTB", "GAPDH")
LABELS = ("tumour", "T/NK", "stroma")
NO_CROP = [4, 11]


@pytest.fixture(scope="module")
def model() -> SealModel:
    rng = np.random.default_rng(0)
    panel = GenePanel(GENES, mean=rng.uniform(1, 2, 12), std=rng.uniform(0.3, 1, 12))
    with seeded(0):
        return SealModel(
            build_encoder("vit_tiny_patch16_224", pretrained=False),
            panel,
            crop=CropSpec(64, 32),
            adapter=LoraParams(),
            gene_encoder=GeneVAEParams(hidden=(256,)),
        )


def profiles(model: SealModel, kinds: np.ndarray, seed: int) -> np.ndarray:
    """Profiles of three kinds, each high in four genes."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 0.3, (len(kinds), 12)) + 3 * (np.arange(12) // 4 == kinds[:, None])
    return np.clip(model.panel.mean + model.panel.std * z, 0, None).astype(np.float32)


def make_reference(model: SealModel, n: int = 60, seed: int = 1, name: str = "ref") -> ad.AnnData:
    kinds = np.arange(n) % 3
    table = ad.AnnData(sp.csr_matrix((n, 12), dtype=np.float32))
    table.var_names, table.obs_names = GENES, [f"{name}_{i}" for i in range(n)]
    table.obs["region"] = pd.Categorical([LABELS[i] for i in kinds], categories=[*LABELS, "unused"])
    table.layers["context"] = sp.csr_matrix(profiles(model, kinds, seed))
    return table


@pytest.fixture
def reference(model: SealModel) -> ad.AnnData:
    return make_reference(model)


@pytest.fixture
def table(model: SealModel) -> ad.AnnData:
    """Two sections of ten spots whose images are embedded where their profiles are."""
    section = np.repeat(["s1", "s2"], 10)
    ids = [str(i) for i in range(20)]
    obs = pd.DataFrame(
        {"section": section, "spot_id": ids}, index=[f"{s}_{i}" for s, i in zip(section, ids, strict=True)]
    )
    table = ad.AnnData(np.zeros((20, 1), np.float32), obs=obs)
    table.obs["spots"] = pd.Categorical(section + "_spots")
    z = model.embed_genes(profiles(model, np.arange(20) % 3, seed=2))
    z[NO_CROP] = np.nan
    table.obsm["X_seal"] = z
    facts = {"crop_um": 64.0, "crop_px": 32, "coordinate_system": "global", "min_inside": 0.5}
    crops = {f"{s}_spots": facts | {"image_key": f"{s}_he", "shapes_key": f"{s}_spots_crops"} for s in ("s1", "s2")}
    table.uns["spatialdata_attrs"] = {"region": list(crops), "region_key": "spots", "instance_key": "spot_id"}
    made = {"model": model.fingerprint, "modality": "image", "crops": {k: dict(v) for k, v in crops.items()}}
    table.uns["sealst"] = {"crops": crops, "embed": {"X_seal": made}}
    return table


def truth(table: ad.AnnData) -> np.ndarray:
    return np.array(LABELS)[np.arange(table.n_obs) % 3]


def state(table: ad.AnnData) -> tuple[list[str], list[str], list[str]]:
    return list(table.obs), list(table.obsm), list(table.uns["sealst"])


# -- what is found ----------------------------------------------------------------------------------------------------
def test_known_labels_are_found(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    assert annotate(table, model, reference, labels="region") is None
    known = np.setdiff1d(np.arange(20), NO_CROP)
    found = table.obs["seal_annotation"]
    assert list(found.cat.categories) == list(LABELS)
    assert (found.to_numpy()[known] == truth(table)[known]).all()
    assert found.isna().to_numpy().nonzero()[0].tolist() == NO_CROP
    votes = table.obsm["seal_annotation_votes"]
    assert list(votes) == ["tumour", "T_NK", "stroma"]
    assert votes.index.equals(table.obs_names)
    np.testing.assert_allclose(votes.sum(axis=1).to_numpy()[known], 1)
    np.testing.assert_array_equal(table.obs["seal_annotation_confidence"], votes.max(axis=1))
    entry = table.uns["sealst"]["annotate"]["seal_annotation"]
    assert entry["label"].tolist() == list(LABELS)
    assert entry["n_profiles"].tolist() == [20, 20, 20]
    assert (entry["labels"], entry["k"], entry["balance"], entry["model"]) == ("region", 15, False, model.fingerprint)


def test_votes_come_from_the_gene_embeddings(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    annotate(table, model, reference, labels="region", n_neighbors=40, temperature=0.3, balance=True)
    z = model.embed_genes(reference.layers["context"].toarray())
    known = np.setdiff1d(np.arange(20), NO_CROP)
    options = {"n_labels": 3, "n_neighbors": 40, "temperature": 0.3, "balance": True}
    expected = nearest_votes(table.obsm["X_seal"][known], z, np.arange(60) % 3, **options)
    np.testing.assert_allclose(table.obsm["seal_annotation_votes"].to_numpy()[known], expected, atol=1e-6)


def test_balance_helps_a_rare_label(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    rare = reference[np.flatnonzero((np.arange(60) % 3 != 1) | (np.arange(60) < 6))].copy()
    options = {"labels": "region", "n_neighbors": 42, "temperature": np.inf}
    annotate(table, model, rare, **options)
    annotate(table, model, rare, **options, balance=True, key_added="even")
    assert (table.obs["seal_annotation"] != "T/NK").all()
    # All profiles vote: equal prior weights leave equal shares.
    np.testing.assert_allclose(table.obsm["even_votes"].dropna(), 1 / 3)


def test_regions_labelled_one_by_one_end_as_labelled_at_once(
    model: SealModel, table: ad.AnnData, reference: ad.AnnData
) -> None:
    whole = annotate(table, model, reference, labels="region", copy=True)
    for name in ("s2_spots", "s1_spots"):
        annotate(table, model, reference, labels="region", region=name)
    pd.testing.assert_frame_equal(table.obsm["seal_annotation_votes"], whole.obsm["seal_annotation_votes"])
    pd.testing.assert_series_equal(table.obs["seal_annotation"], whole.obs["seal_annotation"])
    # Labels of another vote are not mixed in.
    annotate(table, model, reference, labels="region", region="s2_spots", n_neighbors=3)
    assert table.obs["seal_annotation"].iloc[:10].isna().all()


def test_a_section_of_a_plain_table_is_labelled_alone(
    model: SealModel, table: ad.AnnData, reference: ad.AnnData
) -> None:
    del table.uns["spatialdata_attrs"]
    entry = table.uns["sealst"]["embed"]["X_seal"]
    entry.pop("crops")
    annotate(table, model, reference, labels="region", region="s2")
    assert table.obs["seal_annotation"].iloc[:10].isna().all()
    assert table.obs["seal_annotation"].iloc[10:].notna().any()


def test_several_references_are_one(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    parts = [reference[:25].copy(), reference[25:, ::-1].copy()]
    annotate(table, model, parts, labels="region")
    annotate(table, model, reference, labels="region", key_added="one")
    pd.testing.assert_frame_equal(table.obsm["seal_annotation_votes"], table.obsm["one_votes"], rtol=1e-5)


def test_blocks_of_profiles_change_nothing(
    model: SealModel, table: ad.AnnData, reference: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate(table, model, reference, labels="region", key_added="whole")
    monkeypatch.setattr(_annotate, "_BLOCK", 7)
    annotate(table, model, reference, labels="region")
    pd.testing.assert_frame_equal(table.obsm["seal_annotation_votes"], table.obsm["whole_votes"], rtol=1e-5)


def test_unlabelled_and_empty_profiles_are_left_out(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    reference.obs.loc[["ref_0", "ref_3"], "region"] = None
    reference.layers["context"][1] = 0
    annotate(table, model, reference, labels="region")
    assert table.uns["sealst"]["annotate"]["seal_annotation"]["n_profiles"].tolist() == [18, 19, 20]


def test_single_cells_are_read_without_context(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    cells = reference.copy()
    cells.layers["lognorm"] = cells.layers.pop("context")
    annotate(table, model, [reference, cells], labels="region")
    layers = table.uns["sealst"]["annotate"]["seal_annotation"]["layers"]
    assert layers.tolist() == ["context", "lognorm"]
    with pytest.raises(OrderError, match=r"Layer 'context' not found.*sl.pp.normalize"):
        annotate(table, model, cells, labels="region", layer="context")


def test_missing_genes_take_the_mean(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    with pytest.warns(SealstWarning, match=r"2 of the panel's 12 genes are missing and take the panel's mean"):
        annotate(table, model, reference[:, 2:].copy(), labels="region")
    assert table.obs["seal_annotation"].notna().sum() == 18
    with pytest.raises(PanelError, match="of the panel's 12 genes"):
        annotate(table, model, reference[:, :3].copy(), labels="region", key_added="few")


# -- where it is written ----------------------------------------------------------------------------------------------
def test_copy_and_region(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    before = state(table)
    result = annotate(table, model, reference, labels="region", region="s2_spots", copy=True, key_added="x")
    assert state(table) == before
    assert result is not None
    assert result.obs["x"].iloc[:10].isna().all()
    assert result.obs["x"].iloc[10:].notna().sum() == 9
    assert set(result.obsm) == {"X_seal", "x_votes"}


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(model: SealModel, table: ad.AnnData, reference: ad.AnnData, tmp_path: Path, suffix: str) -> None:
    annotate(table, model, reference, labels="region")
    path = tmp_path / f"t.{suffix}"
    (table.write_h5ad if suffix == "h5ad" else table.write_zarr)(path)
    back = (ad.read_h5ad if suffix == "h5ad" else ad.read_zarr)(path)
    pd.testing.assert_frame_equal(back.obsm["seal_annotation_votes"], table.obsm["seal_annotation_votes"])
    assert (back.obs["seal_annotation"].dropna() == table.obs["seal_annotation"].dropna()).all()


def test_after_embed(ready, model: SealModel) -> None:
    section, other = ready(section="new", patient="p9"), ready(section="other", patient="p8", seed=3).tables["table"]
    other.obs["half"] = np.where(np.arange(other.n_obs) % 6 < 3, "left", "right")
    with seeded(0):
        trained = SealModel(
            build_encoder("vit_tiny_patch16_224", pretrained=False),
            sl.pp.select_genes([other], n_genes=8),
            crop=CropSpec(64, 32),
            adapter=LoraParams(),
            gene_encoder=GeneVAEParams(hidden=(16,)),
        )
    sl.tl.embed(section, trained)
    sl.tl.annotate(section, trained, other, labels="half")
    assert section.tables["table"].obs["seal_annotation"].notna().all()


# -- what is refused --------------------------------------------------------------------------------------------------
def test_spots_of_the_reference_itself(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    reference.obs_names = [*table.obs_names[:3], *reference.obs_names[3:]]
    with pytest.warns(SealstWarning, match=r"3 spots to be labelled have profiles of the same name.*'s1_0', 's1_1'"):
        annotate(table, model, reference, labels="region")


def test_bad_references(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    before = state(table)
    with pytest.raises(MissingKeyError, match=r"'celltype' not found in `reference.obs`; found: 'region'.*`labels=`"):
        annotate(table, model, reference, labels="celltype")
    with pytest.raises(MissingKeyError, match=r"'region' not found in `reference\[1\].obs`"):
        annotate(table, model, [reference, ad.AnnData(np.ones((2, 1)))], labels="region")
    with pytest.raises(DataError, match="`reference` is empty"):
        annotate(table, model, [], labels="region")
    with pytest.raises(DataError, match=r"holds the label\(s\) 'tumour'; at least 2"):
        annotate(table, model, reference[reference.obs["region"] == "tumour"].copy(), labels="region")
    with pytest.raises(DataError, match="`n_neighbors` must be a whole number from 1 to the 60 labelled"):
        annotate(table, model, reference, labels="region", n_neighbors=61)
    with pytest.raises(DataError, match="`temperature` must be a positive number"):
        annotate(table, model, reference, labels="region", temperature=-1.0)
    clash = reference.copy()
    clash.obs["region"] = clash.obs["region"].cat.rename_categories({"stroma": "T_NK"})
    with pytest.raises(DataError, match=r"Labels 'T/NK' would be stored with '_' for '/', but these names"):
        annotate(table, model, clash, labels="region")
    reference.uns["sealst"] = {"normalize": {"target_sum": 1e6}}
    with pytest.raises(PanelError, match=r"normalised to 1e\+06 counts per spot, the panel's is 10000"):
        annotate(table, model, reference, labels="region")
    assert state(table) == before


def test_bad_embeddings(model: SealModel, table: ad.AnnData, reference: ad.AnnData) -> None:
    with pytest.raises(TypeError, match="`model` must be a SealModel, found str"):
        annotate(table, "uni", reference, labels="region")  # type: ignore[arg-type]
    with pytest.raises(OrderError, match=r"No embeddings: 'X_other' not found.*sl.tl.embed"):
        annotate(table, model, reference, labels="region", key="X_other")
    table.obsm["X_seal"] = np.full_like(table.obsm["X_seal"], np.nan)
    with pytest.raises(DataError, match=r"No spot has an embedding; see `.obs\['crop_reason'\]`"):
        annotate(table, model, reference, labels="region")
