"""Pathways ranked between regions: equal to scipy, readable by scanpy."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import stats

from sealst._errors import DataError, MissingKeyError, OrderError, SealstWarning
from sealst.tl._pathways.rank import rank_pathways

PATHWAYS = ["HYPOXIA", "TGFB", "EMT", "P53"]
KEY = "seal_rank_pathways"


@pytest.fixture
def table() -> ad.AnnData:
    """Four patients, three regions; hypoxia is high in tumour, whatever the patient's own level."""
    rng = np.random.default_rng(0)
    label = np.repeat(["tumour", "stroma", "fat"], [24, 24, 12])
    patient = np.tile(["p1", "p2", "p3", "p4"], 15)
    x = rng.normal(size=(60, 4)) + 5 * (np.tile(np.arange(4), 15) - 1.5)[:, None]
    x[:24, 0] += 2
    obs = pd.DataFrame({"label": label, "patient": patient}, index=[f"s{i}" for i in range(60)])
    obs["diagnosis"] = np.where(np.isin(patient, ["p1", "p2"]), "good", "bad")
    table = ad.AnnData(np.zeros((60, 1), dtype=np.float32), obs=obs)
    table.obsm["seal_pathways"] = pd.DataFrame(x, index=table.obs_names, columns=PATHWAYS)
    return table


def sides(table: ad.AnnData, group: str, reference: str = "rest") -> tuple[pd.DataFrame, pd.DataFrame]:
    inside = table.obs["label"] == group
    other = ~inside if reference == "rest" else table.obs["label"] == reference
    return table.obsm["seal_pathways"][inside], table.obsm["seal_pathways"][other]


# -- over spots -------------------------------------------------------------------------------------------------------
def test_spots_by_wilcoxon(table: ad.AnnData) -> None:
    result = rank_pathways(table, "label")
    assert result["group"].unique().tolist() == ["fat", "stroma", "tumour"]
    for (group, pathway), row in result.set_index(["group", "pathway"]).iterrows():
        a, b = (side[pathway] for side in sides(table, group))
        expected = stats.mannwhitneyu(a, b, use_continuity=False, method="asymptotic").pvalue
        assert row["pval"] == pytest.approx(expected)
        assert row["difference"] == pytest.approx(a.mean() - b.mean())
        assert (row["n"], row["n_reference"], row["design"]) == (len(a), len(b), "spots")
    for _, part in result.groupby("group"):
        np.testing.assert_allclose(part["pval_adj"], stats.false_discovery_control(part["pval"]))
        assert part["score"].is_monotonic_decreasing


def test_spots_by_t_test_with_a_reference(table: ad.AnnData) -> None:
    result = rank_pathways(table, "label", groups="tumour", reference="fat", method="t-test").set_index("pathway")
    a, b = sides(table, "tumour", "fat")
    expected = stats.ttest_ind(a, b, equal_var=False)
    np.testing.assert_allclose(result.loc[PATHWAYS, "pval"], expected.pvalue)
    np.testing.assert_allclose(result.loc[PATHWAYS, "score"], expected.statistic, rtol=1e-5)


def test_scanpy_reads_it(table: ad.AnnData) -> None:
    result = rank_pathways(table, "label", groups=["tumour", "fat"])
    frame = sc.get.rank_genes_groups_df(table, None, key=KEY)
    assert frame["names"].tolist() == result["pathway"].tolist()
    np.testing.assert_array_equal(frame["scores"], result["score"])
    np.testing.assert_array_equal(frame["pvals_adj"], result["pval_adj"])
    assert frame["logfoldchanges"].isna().all()
    strict = sc.get.rank_genes_groups_df(table, "tumour", key=KEY, pval_cutoff=result["pval_adj"].min() * 1.01)
    assert len(strict) == 1
    assert table.uns[KEY]["params"]["groupby"] == "label"
    sc.pl.rank_genes_groups(table, key=KEY, show=False)
    plt.close("all")


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(table: ad.AnnData, tmp_path: Path, suffix: str) -> None:
    table.obs["label"] = table.obs["label"].replace("fat", "fat/other")
    result = rank_pathways(table, "label")
    path = tmp_path / f"t.{suffix}"
    (table.write_h5ad if suffix == "h5ad" else table.write_zarr)(path)
    back = (ad.read_h5ad if suffix == "h5ad" else ad.read_zarr)(path)
    assert sc.get.rank_genes_groups_df(back, None, key=KEY)["names"].tolist() == result["pathway"].tolist()


def test_spots_without_score_or_group_are_left_out(table: ad.AnnData) -> None:
    table.obsm["seal_pathways"].iloc[3] = np.nan
    table.obs.loc["s30", "label"] = None
    result = rank_pathways(table, "label", groups="tumour")
    assert result[["n", "n_reference"]].drop_duplicates().to_numpy().tolist() == [[23, 35]]
    part = table[table.obs["label"].notna() & table.obsm["seal_pathways"]["TGFB"].notna()].copy()
    pd.testing.assert_frame_equal(rank_pathways(part, "label", groups="tumour"), result)


def test_groups_need_not_be_text_nor_spots_be_unique(table: ad.AnnData) -> None:
    named = rank_pathways(table, "label")
    table.obs["number"] = table.obs["label"].map({"fat": 0, "stroma": 1, "tumour": 2}).astype("category")
    table.obs_names = ["s"] * 60
    table.obsm["seal_pathways"].index = table.obs_names
    found = rank_pathways(table, "number", key_added="again")
    assert found["group"].unique().tolist() == ["0", "1", "2"]
    np.testing.assert_allclose(found["score"], named["score"])


# -- over replicates --------------------------------------------------------------------------------------------------
def test_patients_are_paired(table: ad.AnnData) -> None:
    result = rank_pathways(table, "label", groups="tumour", replicate_key="patient").set_index("pathway")
    means = [side.groupby(table.obs["patient"]).mean() for side in sides(table, "tumour")]
    expected = stats.ttest_rel(*means)
    np.testing.assert_allclose(result.loc[PATHWAYS, "score"], expected.statistic)
    np.testing.assert_allclose(result.loc[PATHWAYS, "pval"], expected.pvalue)
    assert set(result["design"]) == {"paired"}
    assert set(result["n"]) == set(result["n_reference"]) == {4}
    assert result.index[0] == "HYPOXIA"
    assert result.loc["HYPOXIA", "pval_adj"] < 0.05 < result.loc["EMT", "pval_adj"]


def test_patients_of_one_side_only_are_not_paired(table: ad.AnnData) -> None:
    table.obs.loc[(table.obs["label"] == "tumour") & (table.obs["patient"] == "p4"), "label"] = None
    result = rank_pathways(table, "label", groups="tumour", replicate_key="patient")
    assert result[["n", "n_reference"]].drop_duplicates().to_numpy().tolist() == [[3, 3]]


def test_patients_with_one_group_each_are_not_paired(table: ad.AnnData) -> None:
    result = rank_pathways(table, "diagnosis", groups="bad", replicate_key="patient").set_index("pathway")
    means = table.obsm["seal_pathways"].groupby(table.obs["patient"]).mean()
    expected = stats.ttest_ind(means.loc[["p3", "p4"]], means.loc[["p1", "p2"]], equal_var=False)
    np.testing.assert_allclose(result.loc[PATHWAYS, "pval"], expected.pvalue)
    assert set(result["design"]) == {"unpaired"}


def test_too_few_patients(table: ad.AnnData) -> None:
    one = table[table.obs["patient"] == "p1"].copy()
    with pytest.raises(DataError, match=r"Group 'fat' lies in replicate\(s\) 'p1', its reference in 'p1': 1 hold both"):
        rank_pathways(one, "label", replicate_key="patient")
    assert KEY not in one.uns


# -- what is refused --------------------------------------------------------------------------------------------------
def test_single_spots(table: ad.AnnData) -> None:
    table.obs.loc["s0", "label"] = "vessel"
    with pytest.warns(SealstWarning, match=r"Group\(s\) 'vessel' of 'label' have a single spot; they are not ranked"):
        result = rank_pathways(table, "label")
    assert "vessel" not in set(result["group"])
    with pytest.raises(DataError, match=r"Group\(s\) 'vessel' of 'label' have a single scored spot"):
        rank_pathways(table, "label", groups=["vessel"])
    with pytest.raises(DataError, match="The reference 'vessel' has a single scored spot"):
        rank_pathways(table, "label", reference="vessel", groups="fat")


def test_numbers_are_no_groups_until_they_are_categories(table: ad.AnnData) -> None:
    table.obs["array_row"] = np.arange(60) // 20
    with pytest.raises(DataError, match=r"`.obs\['array_row'\]` holds numbers \(int64\).*\.astype\(\"category\"\)"):
        rank_pathways(table, "array_row")
    table.obs["array_row"] = table.obs["array_row"].astype("category")
    assert set(rank_pathways(table, "array_row")["group"]) == {"0", "1", "2"}
    table.obs["on_tissue"] = np.arange(60) < 20
    assert set(rank_pathways(table, "on_tissue")["group"]) == {"False", "True"}


def test_bad_input(table: ad.AnnData) -> None:
    with pytest.raises(DataError, match="`method` must be one of 'wilcoxon', 't-test'.*found 'logreg'"):
        rank_pathways(table, "label", method="logreg")
    with pytest.raises(MissingKeyError, match=r"'region' not found in `.obs`; found: 'label'"):
        rank_pathways(table, "region")
    with pytest.raises(MissingKeyError, match=r"'donor' not found in `.obs`"):
        rank_pathways(table, "label", replicate_key="donor")
    with pytest.raises(OrderError, match=r"'measured_pathways' not found in `.obsm`.*`sl.tl.pathways`"):
        rank_pathways(table, "label", key="measured_pathways")
    with pytest.raises(DataError, match=r"`groups` names 'lung'; `.obs\['label'\]` has 'fat', 'stroma', 'tumour'"):
        rank_pathways(table, "label", groups=["lung", "fat"])
    with pytest.raises(
        DataError, match=r"`reference` must be 'rest' or one of 'fat', 'stroma', 'tumour', found 'lung'"
    ):
        rank_pathways(table, "label", reference="lung")
    with pytest.raises(DataError, match="`groups` names nothing to compare with 'fat'"):
        rank_pathways(table, "label", groups="fat", reference="fat")
    table.obs["one"] = "x"
    with pytest.raises(DataError, match=r"has the group\(s\) 'x' among scored spots; 2 are needed"):
        rank_pathways(table, "one")
    table.obsm["array"] = table.obsm["seal_pathways"].to_numpy()
    with pytest.raises(DataError, match="must be a DataFrame with named pathways, found ndarray"):
        rank_pathways(table, "label", key="array")
    assert KEY not in table.uns
