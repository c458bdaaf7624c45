"""Retrieval: what a query finds where the right answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import sealst as sl
from sealst._core.genes.panel import GenePanel
from sealst._core.scores.metrics import signature_auroc
from sealst._core.seeds import seeded
from sealst._errors import DataError, MissingKeyError, OrderError, PanelError, SealstWarning
from sealst.models import CropSpec, GeneVAEParams, LoraParams, SealModel, build_encoder
from sealst.tl._embed.embed import embed
from sealst.tl._retrieve.retrieve import retrieve

GENES = ("ERBB2", "EPCAM", "KRT8", "KRT18", "CD3E", "CD8A", "COL1A1", "COL3A1", "VIM", "MKI67", "ACTB", "GAPDH")
PX, PER_SECTION, PITCH_PX, MPP = 32, 30, 200.0, 0.5
NO_CROP = [4, 33]


@pytest.fixture(scope="module")
def model() -> SealModel:
    rng = np.random.default_rng(0)
    panel = GenePanel(GENES, mean=rng.uniform(1, 2, len(GENES)), std=rng.uniform(0.3, 1, len(GENES)))
    with seeded(0):
        return SealModel(
            build_encoder("vit_tiny_patch16_224", pretrained=False),
            panel,
            crop=CropSpec(64, PX),
            adapter=LoraParams(),
            gene_encoder=GeneVAEParams(hidden=(1024,)),
        )


@pytest.fixture(scope="module")
def profiles(model: SealModel) -> np.ndarray:
    """Expression of every spot, log1p-CP10k."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(2 * PER_SECTION, len(GENES)))
    return np.clip(model.panel.mean + model.panel.std * z, 0, None).astype(np.float32)


def make_table(model: SealModel, embedding: np.ndarray) -> ad.AnnData:
    """Two sections of 5 x 6 spots, 100 µm apart, whose images are embedded as given."""
    n = 2 * PER_SECTION
    section = np.repeat(["s1", "s2"], PER_SECTION)
    ids = [str(i % PER_SECTION) for i in range(n)]
    obs = pd.DataFrame(
        {"section": section, "spot_id": ids}, index=[f"{s}_{i}" for s, i in zip(section, ids, strict=True)]
    )
    obs["region"] = pd.Categorical(obs["section"] + "_spots")
    table = ad.AnnData(np.zeros((n, 1), dtype=np.float32), obs=obs)
    position = np.arange(n) % PER_SECTION
    table.obsm["spatial"] = np.column_stack([position % 5, position // 5]) * PITCH_PX
    table.obsm["X_seal"] = np.where(np.isin(np.arange(n), NO_CROP)[:, None], np.nan, embedding).astype(np.float32)
    facts = {"crop_um": 64.0, "crop_px": PX, "um_per_unit": MPP, "coordinate_system": "global", "min_inside": 0.5}
    crops = {f"{s}_spots": facts | {"image_key": f"{s}_he", "shapes_key": f"{s}_spots_crops"} for s in ("s1", "s2")}
    table.uns["spatialdata_attrs"] = {"region": list(crops), "region_key": "region", "instance_key": "spot_id"}
    made = {
        "X_seal": {"model": model.fingerprint, "modality": "image", "crops": {k: dict(v) for k, v in crops.items()}}
    }
    table.uns["sealst"] = {"crops": crops, "embed": made}
    return table


@pytest.fixture
def table(model: SealModel, profiles: np.ndarray) -> ad.AnnData:
    return make_table(model, model.embed_genes(profiles))


def known(table: ad.AnnData) -> np.ndarray:
    return np.setdiff1d(np.arange(table.n_obs), NO_CROP)


def stored(table: ad.AnnData, key: str = "seal_similarity") -> dict[str, Any]:
    return table.uns["sealst"]["retrieve"][key]


# -- profiles, spots, images ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("row", [0, 17, 45])
def test_a_profile_finds_its_own_spot(model: SealModel, table: ad.AnnData, profiles: np.ndarray, row: int) -> None:
    assert retrieve(table, model, pd.Series(profiles[row], index=GENES)) is None
    assert table.obs["seal_similarity_rank"].iloc[row] == 1
    assert table.obs["seal_similarity"].iloc[row] == pytest.approx(1, abs=1e-6)
    assert stored(table)["hits"][0] == table.obs_names[row]
    assert stored(table)["kind"] == "profile"


def test_similarity_is_the_cosine(model: SealModel, table: ad.AnnData, profiles: np.ndarray) -> None:
    retrieve(table, model, pd.Series(profiles[8], index=GENES))
    z = model.embed_genes(profiles).astype(float)
    expected = z @ z[8] / np.linalg.norm(z, axis=1) / np.linalg.norm(z[8])
    rows = known(table)
    np.testing.assert_allclose(table.obs["seal_similarity"].to_numpy()[rows], expected[rows], atol=1e-6)


def test_order_and_case_of_a_profile_do_not_matter(model: SealModel, table: ad.AnnData, profiles: np.ndarray) -> None:
    profile = pd.Series(profiles[3], index=GENES)
    retrieve(table, model, profile)
    shuffled = profile.sample(frac=1, random_state=0).rename(index=str.lower)
    retrieve(table, model, pd.concat([shuffled, pd.Series({"OTHER1": 5.5, "OTHER2": 0.3})]), key_added="again")
    np.testing.assert_allclose(table.obs["again"], table.obs["seal_similarity"], atol=1e-6)


def test_missing_genes_of_a_profile_take_the_mean(model: SealModel, table: ad.AnnData, profiles: np.ndarray) -> None:
    profile = pd.Series(profiles[3], index=GENES, name="my spot")
    with pytest.warns(SealstWarning, match=r"2 of the panel's 12 genes are missing.*'CD3E', 'VIM'"):
        retrieve(table, model, profile.drop(["CD3E", "VIM"]))
    assert stored(table)["missing"].tolist() == ["CD3E", "VIM"]
    assert stored(table)["query"] == "my spot: profile of 10 genes"
    filled = profile.copy()
    filled[["CD3E", "VIM"]] = model.panel.mean[[4, 8]]
    retrieve(table, model, filled, key_added="filled")
    np.testing.assert_allclose(table.obs["filled"], table.obs["seal_similarity"], atol=1e-6)
    assert "missing" not in stored(table, "filled")


def test_an_image_finds_its_own_crop(model: SealModel) -> None:
    crops = np.random.default_rng(2).integers(0, 255, (2 * PER_SECTION, 1, 1, 3), dtype=np.uint8)
    crops = np.ascontiguousarray(np.broadcast_to(crops, (2 * PER_SECTION, PX, PX, 3)))
    crops[:, ::7] //= 2
    table = make_table(model, model.embed_images(crops))
    retrieve(table, model, crops[21])
    assert stored(table)["kind"] == "image"
    assert stored(table)["hits"][0] == "s1_21"
    assert table.obs["seal_similarity"].iloc[21] == pytest.approx(1, abs=1e-5)


def test_a_spot_is_most_like_itself_but_not_its_own_hit(model: SealModel, table: ad.AnnData) -> None:
    retrieve(table, model, "s2_7", kind="spot", n_hits=3)
    assert table.obs.loc["s2_7", "seal_similarity_rank"] == 1
    order = table.obs["seal_similarity"].sort_values(ascending=False).index
    assert stored(table)["hits"].tolist() == order[1:4].tolist()
    retrieve(table, model, "s2_7", kind="spot", n_hits=1000)
    assert len(stored(table)["hits"]) == len(known(table)) - 1
    # Asked from another section, it is not among those that are ranked.
    retrieve(table, model, "s2_7", kind="spot", n_hits=3, region="s1_spots")
    assert len(stored(table)["hits"]) == 3
    assert all(name.startswith("s1") for name in stored(table)["hits"])


# -- genes and signatures ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gene", GENES)
def test_a_gene_finds_the_spots_that_express_it(
    model: SealModel, table: ad.AnnData, profiles: np.ndarray, gene: str
) -> None:
    retrieve(table, model, gene)
    rows, measured = known(table), profiles[:, GENES.index(gene)]
    assert signature_auroc(table.obs["seal_similarity"].to_numpy()[rows], measured[rows], top_fraction=0.2) > 0.9
    assert stored(table)["genes"].tolist() == [gene]
    assert (stored(table)["query"], stored(table)["kind"]) == (gene, "gene")


def test_a_signature_finds_the_spots_that_score_high(model: SealModel, table: ad.AnnData, profiles: np.ndarray) -> None:
    retrieve(table, model, {"COL1A1": 2, "COL3A1": 1, "epcam": -1})
    scaled = (profiles - model.panel.mean) / model.panel.std
    score = 2 * scaled[:, 6] + scaled[:, 7] - scaled[:, 1]
    rows, similarity = known(table), table.obs["seal_similarity"].to_numpy()
    assert signature_auroc(similarity[rows], score[rows]) > 0.9
    assert stored(table)["query"] == "-EPCAM, COL1A1, COL3A1"
    np.testing.assert_allclose(stored(table)["weights"], np.array([-1, 2, 1]) / np.sqrt(6))
    retrieve(table, model, pd.Series({"COL1A1": 20, "COL3A1": 10, "EPCAM": -10}), kind="signature", key_added="same")
    np.testing.assert_allclose(table.obs["same"], table.obs["seal_similarity"])


def test_direction_query_by_hand(model: SealModel, table: ad.AnnData) -> None:
    retrieve(table, model, ["CD3E", "cd8a", "CD3E"], n_std=4)
    mean, std = model.panel.mean.astype(float), model.panel.std
    raised = mean.copy()
    raised[[4, 5]] += 4 / np.sqrt(2) * std[[4, 5]]
    start, end = model.embed_genes(np.stack([mean, raised])).astype(float)
    query = end / np.linalg.norm(end) - start / np.linalg.norm(start)
    z = table.obsm["X_seal"].astype(float)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    for part in (slice(0, PER_SECTION), slice(PER_SECTION, None)):
        z[part] -= np.nanmean(z[part], axis=0)
    expected = z @ query / np.linalg.norm(z, axis=1) / np.linalg.norm(query)
    np.testing.assert_allclose(table.obs["seal_similarity"], expected, atol=1e-5)
    assert stored(table)["n_std"] == 4


def test_forms_of_a_gene_query(model: SealModel, table: ad.AnnData) -> None:
    forms: list[Any] = ["ERBB2", ["erbb2"], ("ERBB2",), {"ERBB2": 7.0}, pd.Index(["ERBB2"])]
    for i, form in enumerate(forms):
        retrieve(table, model, form, key_added=f"f{i}")
        np.testing.assert_allclose(table.obs[f"f{i}"], table.obs["f0"])
    retrieve(table, model, np.array(["ERBB2"]), kind="gene", key_added="array")
    np.testing.assert_allclose(table.obs["array"], table.obs["f0"])


# -- what is written --------------------------------------------------------------------------------------------------
def test_ranks_and_spots_without_a_crop(model: SealModel, table: ad.AnnData) -> None:
    before = set(table.obs)
    retrieve(table, model, "VIM")
    assert set(table.obs) - before == {"seal_similarity", "seal_similarity_rank"}
    columns = table.obs[["seal_similarity", "seal_similarity_rank"]]
    assert (columns.dtypes == np.float64).all()
    assert columns.iloc[NO_CROP].isna().to_numpy().all()
    rest = columns.iloc[known(table)]
    assert sorted(rest["seal_similarity_rank"]) == list(range(1, len(rest) + 1))
    assert rest.sort_values("seal_similarity_rank")["seal_similarity"].is_monotonic_decreasing
    assert rest["seal_similarity"].between(-1, 1).all()
    np.testing.assert_array_equal(stored(table)["similarities"], sorted(rest["seal_similarity"], reverse=True)[:10])


def test_equal_spots_share_their_rank(model: SealModel, table: ad.AnnData, profiles: np.ndarray) -> None:
    table.obsm["X_seal"][[1, 2, 3]] = table.obsm["X_seal"][0]
    retrieve(table, model, pd.Series(profiles[0], index=GENES))
    assert table.obs["seal_similarity_rank"].iloc[:4].tolist() == [2.5] * 4
    assert stored(table)["hits"][:4].tolist() == ["s1_0", "s1_1", "s1_2", "s1_3"]


def test_region(model: SealModel, table: ad.AnnData) -> None:
    retrieve(table, model, "VIM", region="s2_spots")
    assert table.obs["seal_similarity_rank"].iloc[:PER_SECTION].isna().all()
    assert table.obs["seal_similarity_rank"].max() == PER_SECTION - 1
    assert all(name.startswith("s2") for name in stored(table)["hits"])


@pytest.mark.parametrize("query", ["VIM", {"VIM": 2.5, "EPCAM": -0.5}], ids=["gene", "signature"])
def test_regions_asked_one_by_one_end_as_asked_at_once(model: SealModel, table: ad.AnnData, query: Any) -> None:
    whole = retrieve(table, model, query, n_hits=5, copy=True)
    for name in ("s2_spots", "s1_spots"):
        retrieve(table, model, query, n_hits=5, region=name)
    for column in ("seal_similarity", "seal_similarity_rank"):
        pd.testing.assert_series_equal(table.obs[column], whole.obs[column])
    # The hits of each, best first.
    entry = stored(table)
    assert entry["sections"].tolist().count("s1") == entry["sections"].tolist().count("s2") == 5
    assert entry["hits"][0] == stored(whole)["hits"][0]
    assert (np.diff(entry["similarities"]) <= 0).all()
    # A search of all regions replaces them.
    retrieve(table, model, query, n_hits=5)
    assert stored(table)["hits"].tolist() == stored(whole)["hits"].tolist()


def test_another_question_leaves_nothing_of_the_one_before(model: SealModel, table: ad.AnnData) -> None:
    retrieve(table, model, "VIM", region="s1_spots")
    retrieve(table, model, "EPCAM", region="s2_spots")
    assert table.obs["seal_similarity"].iloc[:PER_SECTION].isna().all()
    assert set(stored(table)["sections"]) == {"s2"}
    # Nor do crops that are others now.
    retrieve(table, model, "EPCAM", region="s1_spots")
    table.uns["sealst"]["crops"]["s1_spots"]["crop_px"] = 2 * PX
    retrieve(table, model, "EPCAM", region="s2_spots")
    assert table.obs["seal_similarity"].iloc[:PER_SECTION].isna().all()


def barcoded(table: ad.AnnData) -> ad.AnnData:
    """The two sections with the same barcodes, as two Visium slides have them."""
    table.obs_names = [f"AAAC{i % PER_SECTION}-1" for i in range(table.n_obs)]
    return table


def test_the_region_says_which_spot_of_a_name_asks(model: SealModel, table: ad.AnnData) -> None:
    z = table.obsm["X_seal"] / np.linalg.norm(table.obsm["X_seal"], axis=1, keepdims=True)
    barcoded(table)
    for name, row in (("s1_spots", 5), ("s2_spots", PER_SECTION + 5)):
        retrieve(table, model, "AAAC5-1", kind="spot", region=name)
        mine = (table.obs["region"] == name).to_numpy()
        np.testing.assert_allclose(table.obs["seal_similarity"][mine], (z @ z[row])[mine], atol=1e-5)
        assert "AAAC5-1" not in stored(table)["hits"]
    # Another spot of the name is another question.
    assert table.obs["seal_similarity"].iloc[:PER_SECTION].isna().all()
    with pytest.raises(sl.DataError, match=r"'AAAC5-1' is a spot of 2 sections; say which with `region=`: 's1_spots'"):
        retrieve(table, model, "AAAC5-1", kind="spot")


def test_hits_say_of_which_section_they_are(model: SealModel, table: ad.AnnData) -> None:
    retrieve(barcoded(table), model, "VIM", n_hits=2 * PER_SECTION)
    entry = stored(table)
    for hit, section, region, similarity in zip(
        entry["hits"], entry["sections"], entry["regions"], entry["similarities"], strict=True
    ):
        assert region == f"{section}_spots"
        row = np.flatnonzero((table.obs_names == hit) & (table.obs["section"] == section))
        assert table.obs["seal_similarity"].iloc[row].tolist() == [similarity]


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_results_of_regions_in_turn_are_stored(
    model: SealModel, table: ad.AnnData, tmp_path: Path, suffix: str
) -> None:
    retrieve(table, model, "VIM", region="s1_spots")
    getattr(table, f"write_{suffix}")(tmp_path / "t")
    again = getattr(ad, f"read_{suffix}")(tmp_path / "t")
    retrieve(again, model, "VIM", region="s2_spots")
    assert set(stored(again)["sections"]) == {"s1", "s2"}
    assert set(again.obs["section"][again.obs["seal_similarity"].notna()]) == {"s1", "s2"}


def test_hits_keep_their_distance(model: SealModel, table: ad.AnnData) -> None:
    retrieve(table, model, "VIM", n_hits=60, suppress_um=150)
    hits = table.obs_names.get_indexer(stored(table)["hits"])
    xy, section = table.obsm["spatial"][hits] * MPP, table.obs["section"].to_numpy()[hits]
    apart = np.linalg.norm(xy[:, None] - xy[None], axis=2) + 1e9 * (section[:, None] != section[None])
    assert apart[~np.eye(len(hits), dtype=bool)].min() >= 150
    assert 10 < len(hits) < 40
    # Nothing is hidden from the ranking.
    assert table.obs["seal_similarity_rank"].notna().sum() == len(known(table))
    retrieve(table, model, "VIM", n_hits=60, suppress_um=100, key_added="touching")
    assert len(stored(table, "touching")["hits"]) == len(known(table))
    assert stored(table, "touching")["suppress_um"] == 100


def test_scale_of_each_section_counts(model: SealModel, table: ad.AnnData) -> None:
    for entry in (table.uns["sealst"]["crops"], table.uns["sealst"]["embed"]["X_seal"]["crops"]):
        entry["s2_spots"]["um_per_unit"] = 1.0  # spots are 200 µm apart there
    retrieve(table, model, "VIM", n_hits=60, suppress_um=150)
    found = pd.Series(stored(table)["hits"]).str[:2].value_counts()
    assert found["s2"] == PER_SECTION - 1
    assert found["s1"] < PER_SECTION / 2


def test_unknown_positions_are_named_where_they_are_needed(model: SealModel, table: ad.AnnData) -> None:
    for entry in (table.uns["sealst"]["crops"], table.uns["sealst"]["embed"]["X_seal"]["crops"]):
        entry["s2_spots"]["um_per_unit"] = float("nan")
    with pytest.raises(
        sl.DataError, match=r"`suppress_um` needs the positions of spots, but those in `.obsm\['spatial'\]`"
    ):
        retrieve(table, model, "VIM", suppress_um=150)
    assert "retrieve" not in table.uns["sealst"]
    retrieve(table, model, "VIM")


def test_a_spot_without_embedding_needs_no_position(model: SealModel, table: ad.AnnData) -> None:
    left_out = np.flatnonzero(~np.isfinite(table.obsm["X_seal"]).all(axis=1))
    assert len(left_out)
    retrieve(table, model, "VIM", suppress_um=150)
    hits = list(stored(table)["hits"])
    table.obsm["spatial"][left_out] = np.nan
    retrieve(table, model, "VIM", suppress_um=150)
    assert list(stored(table)["hits"]) == hits


def test_a_spot_keeps_its_neighbours_from_the_hits(model: SealModel, table: ad.AnnData) -> None:
    retrieve(table, model, "s1_12", kind="spot", n_hits=60, suppress_um=101)
    assert not {"s1_12", "s1_11", "s1_13", "s1_7", "s1_17"} & set(stored(table)["hits"])


def test_copy_and_key_added(model: SealModel, table: ad.AnnData) -> None:
    before = table.copy()
    result = retrieve(table, model, "VIM", key_added="vim", copy=True)
    assert result is not None
    assert list(table.obs) == list(before.obs)
    assert "retrieve" not in table.uns["sealst"]
    assert {"vim", "vim_rank"} <= set(result.obs)
    retrieve(result, model, "ERBB2")
    assert stored(result, "vim")["query"] == "VIM"
    assert stored(result)["query"] == "ERBB2"
    assert stored(result)["model"] == model.fingerprint


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(model: SealModel, table: ad.AnnData, profiles: np.ndarray, tmp_path: Path, suffix: str) -> None:
    retrieve(table, model, {"VIM": 1, "ERBB2": -2})
    retrieve(table, model, "s1_0", kind="spot", key_added="spot", region="s1_spots", n_hits=100)
    with pytest.warns(SealstWarning, match="missing"):
        retrieve(table, model, pd.Series(profiles[0], index=GENES).drop("VIM"), key_added="profile", suppress_um=10)
    path = tmp_path / f"t.{suffix}"
    (table.write_h5ad if suffix == "h5ad" else table.write_zarr)(path)
    back = (ad.read_h5ad if suffix == "h5ad" else ad.read_zarr)(path)
    pd.testing.assert_frame_equal(back.obs, table.obs, check_dtype=False, check_categorical=False)
    for name in ("seal_similarity", "spot", "profile"):
        assert set(stored(back, name)) == set(stored(table, name))
        for key, value in stored(table, name).items():
            np.testing.assert_array_equal(stored(back, name)[key], value)
    # Provenance that was read back still tells that embeddings and crops fit.
    retrieve(back, model, "VIM")


def test_after_embed_on_a_real_section(model: SealModel) -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    xy = np.array([(x, y) for x in (48, 144, 240, 336) for y in (48, 144, 240, 336)], dtype=float)
    sdata = sl.io.from_arrays(
        image, rng.poisson(3, (16, 12)), xy, genes=GENES, mpp=0.5, spot_um=55, section="s1"
    )  # fmt: skip
    sl.pp.pair_crops(sdata, crop_um=64, crop_px=PX)
    with pytest.raises(OrderError, match=r"'X_seal' not found.*sl.tl.embed\(sdata, model\)"):
        retrieve(sdata, model, "VIM")
    embed(sdata, model, progress=False)
    table = sdata.tables["table"]
    retrieve(sdata, model, "s1_5", kind="spot")
    assert table.obs.loc["s1_5", "seal_similarity_rank"] == 1
    crop = image[80:208, 80:208]  # 64 µm around (144, 144)
    retrieve(sdata, model, np.ascontiguousarray(crop.reshape(PX, 4, PX, 4, 3).mean((1, 3)).astype(np.uint8)))
    assert stored(table)["hits"][0] == "s1_5"
    sl.pp.pair_crops(sdata, crop_um=80, crop_px=PX)
    with pytest.raises(OrderError, match=r"made from other crops of 's1_spots'.*sl.tl.embed"):
        retrieve(sdata, model, "VIM")


# -- bad input --------------------------------------------------------------------------------------------------------
def image_of(shape: tuple[int, ...], dtype: Any = np.uint8) -> np.ndarray:
    return np.zeros(shape, dtype=dtype)


BAD = [
    ("KRT81", {}, PanelError, r"1 gene\(s\).*'KRT81'; near names: .*'KRT18', 'KRT8'.*`model.panel.genes`"),
    ("HALLMARK_HYPOXIA", {}, PanelError, r"not in the model's panel.*A gene set is asked by its name with `net=`"),
    (["ERBB2", "FOO"], {}, PanelError, r"not in the model's panel of 12: 'FOO'"),
    ("s1_3", {}, PanelError, r"'s1_3' is no gene of the panel but the name of a spot; ask with `kind='spot'`"),
    ([], {}, DataError, "names no gene"),
    ({}, {}, DataError, "names no gene"),
    ({"ERBB2": 0}, {}, DataError, "finite and not all 0"),
    ([1, 2], {}, DataError, "must hold names, found '1', '2'"),
    (["ERBB2"], {"kind": "signature"}, DataError, "must map genes to weights, found list"),
    (pd.Series(dtype=float), {}, DataError, "The profile is empty"),
    (pd.Series(0.0, index=GENES), {}, DataError, "is 0 in every gene"),
    (pd.Series(3, index=GENES), {}, DataError, r"looks like counts \(highest value 3"),
    (pd.Series(57.5, index=GENES), {}, DataError, r"looks like counts \(highest value 57.5, log1p-CP10k reaches 9.21"),
    (pd.Series(-0.5, index=GENES), {}, DataError, r"12 negative, infinite or missing values, e.g. of 'ERBB2'"),
    (pd.Series([0.5] * 11 + [np.nan], index=GENES), {}, DataError, r"1 negative.*e.g. of 'GAPDH'.*np.log1p"),
    (pd.Series({"VIM": 1.5}), {}, PanelError, r"Only 1 of the panel's 12 genes.*are a signature: pass a dict"),
    (image_of((PX, PX, 3), float), {}, DataError, r"must be a uint8 array \(height, width, 3\), found float64"),
    (image_of((PX, PX, 4)), {}, DataError, r"found uint8 \(32, 32, 4\). Drop an alpha"),
    (image_of((PX, PX)), {}, DataError, r"found uint8 \(32, 32\)"),
    (image_of((PX, 40, 3)), {}, DataError, r"The image is 40 x 32 px, the model needs 32 x 32.*a square of 64 µm"),
    (np.array(["VIM"]), {}, DataError, "genes go into a list"),
    ("s9_1", {"kind": "spot"}, MissingKeyError, r"'s9_1' not found in `.obs_names`"),
    (["s1_1"], {"kind": "spot"}, DataError, "must be one name in `.obs_names`, found list"),
    ("s1_4", {"kind": "spot"}, DataError, r"Spot 's1_4' has no crop.*crop_reason"),
    (3.5, {}, TypeError, "`query` must be a gene, a list of genes.*found float"),
    (
        "VIM",
        {"kind": "text"},
        DataError,
        "`kind` must be one of 'gene', 'signature', 'pathway', 'profile', 'image', 'spot'",
    ),
    ("VIM", {"n_std": 0}, DataError, "`n_std` must be a positive number, found 0"),
    ("VIM", {"n_hits": 0}, DataError, "`n_hits` must be a positive number, found 0"),
    ("VIM", {"suppress_um": -1}, DataError, "`suppress_um` must be a distance in µm of at least 0, found -1"),
    ("VIM", {"region": "s3_spots"}, MissingKeyError, "'s3_spots' not found in the table's regions"),
]


@pytest.mark.parametrize(("query", "options", "error", "message"), BAD, ids=range(len(BAD)))
def test_bad_queries_write_nothing(
    model: SealModel, table: ad.AnnData, query: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    columns, uns = list(table.obs), set(table.uns["sealst"])
    with pytest.raises(error, match=message):
        retrieve(table, model, query, **options)
    assert (list(table.obs), set(table.uns["sealst"])) == (columns, uns)


def test_embeddings_of_this_model_are_needed(model: SealModel, table: ad.AnnData) -> None:
    made = table.uns["sealst"]["embed"]["X_seal"]
    made["model"] = "0123456789abcdef"
    with pytest.raises(OrderError, match=rf"'0123456789abcdef', this model is '{model.fingerprint}'. Run `sl.tl.embed"):
        retrieve(table, model, "VIM")
    del table.uns["sealst"]["embed"]
    with pytest.raises(OrderError, match=r'made by an unknown model.*anndata.concat\(..., uns_merge="unique"\)'):
        retrieve(table, model, "VIM")
    with pytest.raises(
        OrderError, match=r"'X_other' not found in `.obsm`; found: 'spatial', 'X_seal'.*key_added='X_other'"
    ):
        retrieve(table, model, "VIM", key="X_other")
    with pytest.raises(TypeError, match=r"`model` must be a SealModel, found str.*`sl.models.load\('runs/model'\)`"):
        retrieve(table, "runs/model", "VIM")  # type: ignore[arg-type]


def test_joined_tables_are_searched_as_one(model: SealModel, table: ad.AnnData) -> None:
    parts = []
    for name in ("s1", "s2"):
        one = table[table.obs["section"] == name].copy()
        one.uns["spatialdata_attrs"]["region"] = f"{name}_spots"
        for crops in (one.uns["sealst"]["crops"], one.uns["sealst"]["embed"]["X_seal"]["crops"]):
            for other in set(crops) - {f"{name}_spots"}:
                del crops[other]
        parts.append(one)
    joined = ad.concat(parts, uns_merge="unique")
    for one in (table, joined):
        retrieve(one, model, "VIM", suppress_um=150)
    np.testing.assert_allclose(joined.obs["seal_similarity"], table.obs["seal_similarity"])
    assert stored(joined)["hits"].tolist() == stored(table)["hits"].tolist()
    with pytest.raises(OrderError, match=r"by an unknown model, or by several.*uns_merge"):
        retrieve(ad.concat(parts), model, "VIM")
    parts[1].uns["sealst"]["embed"]["X_seal"]["model"] = "0123456789abcdef"
    with pytest.raises(OrderError, match=r"by an unknown model, or by several"):
        retrieve(ad.concat(parts, uns_merge="unique"), model, "VIM")


def test_embeddings_must_fit(model: SealModel, table: ad.AnnData) -> None:
    table.obsm["X_seal"] = table.obsm["X_seal"][:, :7]
    with pytest.raises(DataError, match=r"must be \(n_obs, 192\), found \(60, 7\)"):
        retrieve(table, model, "VIM")
    table.obsm["X_seal"] = np.full((60, 192), np.nan, dtype=np.float32)
    with pytest.raises(DataError, match="No spot has an embedding"):
        retrieve(table, model, "VIM")


def test_spacing_needs_positions(model: SealModel, table: ad.AnnData) -> None:
    del table.obsm["spatial"]
    with pytest.raises(MissingKeyError, match=r"`suppress_um` needs positions: 'spatial' not found"):
        retrieve(table, model, "VIM", suppress_um=100)
    retrieve(table, model, "VIM")
