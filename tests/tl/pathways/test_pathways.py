"""Pathway scores: equal to decoupler and to least squares, whatever else is in the table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import decoupler as dc
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import linregress

import sealst as sl
from sealst._errors import DataError, OrderError, PanelError, SealstWarning
from sealst.tl._pathways import pathways as _pathways
from sealst.tl._pathways.pathways import pathways, score_sets

GENES = [f"GENE{i}" for i in range(40)]
NO_CROP = [2, 7]
#: methods of decoupler that need nothing optional; some compile for ten seconds and more
METHODS = [
    pytest.param(m, marks=pytest.mark.slow) if m in ("aucell", "gsva", "ora", "waggr") else m
    for m in dc.mt.show()["name"]
    if m not in ("mdt", "udt")
]


def make_net() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    edges = [
        (f"SET{k}", GENES[i], w)
        for k in range(4)
        for i, w in zip(rng.choice(40, 8, False), rng.normal(size=8), strict=True)
    ]
    return pd.DataFrame(edges, columns=["source", "target", "weight"])


def make_table(n: int = 12) -> ad.AnnData:
    """A section's table: measured counts, and predictions that are NaN for spots without a crop."""
    rng = np.random.default_rng(0)
    table = ad.AnnData(sp.csr_matrix(rng.poisson(3, (n, 40)).astype(np.float32)))
    table.var_names, table.obs_names = GENES, [f"s1_{i}" for i in range(n)]
    table.obs["section"] = "s1"
    table.layers["lognorm"] = table.X.log1p()
    predicted = rng.gamma(2, 1, (n, 40)).astype(np.float32)
    predicted[NO_CROP] = np.nan
    table.obsm["seal_expression"] = pd.DataFrame(predicted, index=table.obs_names, columns=GENES)
    return table


@pytest.fixture
def table() -> ad.AnnData:
    return make_table()


@pytest.fixture
def net() -> pd.DataFrame:
    return make_net()


@pytest.fixture
def messages() -> Iterator[list[str]]:
    found: list[str] = []

    class _Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = _Handler()
    logging.getLogger("sealst").addHandler(handler)
    yield found
    logging.getLogger("sealst").removeHandler(handler)


def predicted_rows(table: ad.AnnData) -> pd.DataFrame:
    return table.obsm["seal_expression"].drop(index=table.obs_names[NO_CROP])


# -- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
def test_equals_a_direct_call(table: ad.AnnData, net: pd.DataFrame, method: str) -> None:
    pathways(table, net, method=method)
    scores, padj = getattr(dc.mt, method)(predicted_rows(table), net)
    found = table.obsm["seal_pathways"]
    assert found.index.equals(table.obs_names)
    assert found.iloc[NO_CROP].isna().to_numpy().all()
    pd.testing.assert_frame_equal(found.loc[scores.index, scores.columns], scores, check_names=False, rtol=1e-10)
    assert ("seal_pathways_padj" in table.obsm) == (padj is not None)
    if padj is not None:
        stored = table.obsm["seal_pathways_padj"]
        assert stored.iloc[NO_CROP].isna().to_numpy().all()
        pd.testing.assert_frame_equal(stored.loc[padj.index, padj.columns], padj, check_names=False, rtol=1e-10)


def test_ulm_is_the_t_value_of_a_least_squares_fit(table: ad.AnnData, net: pd.DataFrame) -> None:
    pathways(table, net)
    for name in ("SET0", "SET3"):
        weights = net[net["source"] == name].set_index("target")["weight"].reindex(GENES).fillna(0)
        for spot in predicted_rows(table).index[:4]:
            fit = linregress(weights, table.obsm["seal_expression"].loc[spot].astype(float))
            np.testing.assert_allclose(table.obsm["seal_pathways"].loc[spot, name], fit.slope / fit.stderr, rtol=1e-6)


@pytest.mark.parametrize("dense", [False, True])
def test_measured_expression(table: ad.AnnData, net: pd.DataFrame, dense: bool) -> None:
    lognorm = table.to_df("lognorm")
    if dense:
        table.layers["lognorm"] = lognorm.to_numpy()
    pathways(table, net, source="measured")
    scores, _ = dc.mt.ulm(lognorm, net)
    pd.testing.assert_frame_equal(table.obsm["measured_pathways"], scores, check_names=False, rtol=1e-10)
    assert "seal_pathways" not in table.obsm


def test_a_spot_without_counts_changes_nothing(table: ad.AnnData, net: pd.DataFrame) -> None:
    pathways(table, net, source="measured", key_added="before")
    x = table.layers["lognorm"].toarray()
    x[5] = 0
    table.layers["lognorm"] = sp.csr_matrix(x)
    pathways(table, net, source="measured", key_added="after")
    after = table.obsm["after"]
    assert after.iloc[5].isna().all()
    assert after.index.equals(table.obs_names)
    others = table.obs_names.drop("s1_5")
    pd.testing.assert_frame_equal(after.loc[others], table.obsm["before"].loc[others], rtol=1e-12)


def test_genes_that_are_zero_everywhere_count_as_absent(table: ad.AnnData, net: pd.DataFrame) -> None:
    expression = predicted_rows(table)
    silent = net.loc[net["source"] == "SET0", "target"].iloc[:2]
    expression = expression.assign(**dict.fromkeys(silent, 0.0))
    result = score_sets(expression, net)
    assert result.overlap.loc["SET0", ["size", "found"]].tolist() == [8, 6]
    pd.testing.assert_frame_equal(result.scores, dc.mt.ulm(expression, net)[0], check_names=False, rtol=1e-10)


@pytest.mark.parametrize("method", ["ulm", "aucell", "gsva"])
def test_blocks_of_spots_change_nothing(net: pd.DataFrame, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expression = predicted_rows(make_table())
    whole = score_sets(expression, net, method=method)
    monkeypatch.setattr(_pathways, "_BLOCK", 3 * 40)
    parts = score_sets(expression, net, method=method)
    pd.testing.assert_frame_equal(parts.scores, whole.scores, rtol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_which_methods_look_across_spots(net: pd.DataFrame, method: str) -> None:
    expression = predicted_rows(make_table())
    alone, _ = getattr(dc.mt, method)(expression.iloc[:3], net)
    among, _ = getattr(dc.mt, method)(expression, net)
    assert np.allclose(alone, among.iloc[:3]) == (method not in _pathways._ACROSS_SPOTS)


def test_names_of_spots_need_not_be_unique(net: pd.DataFrame) -> None:
    expression = predicted_rows(make_table())
    twice = pd.concat([expression, expression.iloc[:2]])
    scores = score_sets(twice, net).scores.to_numpy()
    np.testing.assert_allclose(scores[-2:], scores[:2])
    np.testing.assert_allclose(scores[:-2], score_sets(expression, net).scores.to_numpy())


def test_score_sets_keeps_rows_and_input(table: ad.AnnData, net: pd.DataFrame) -> None:
    expression = table.obsm["seal_expression"]
    before = expression.copy(deep=True)
    result = score_sets(expression, net, method="zscore", tmin=3)
    assert result.scores.index.equals(expression.index)
    assert result.scores.iloc[NO_CROP].isna().to_numpy().all()
    assert result.padj is not None
    pd.testing.assert_frame_equal(expression, before)


# -- genes and gene sets ----------------------------------------------------------------------------------------------
def test_genes_match_in_any_case(table: ad.AnnData, net: pd.DataFrame) -> None:
    pathways(table, net)
    lower = table.copy()
    lower.obsm["seal_expression"] = lower.obsm["seal_expression"].rename(columns=str.lower)
    pathways(lower, net.assign(target=net["target"].str.title()))
    pd.testing.assert_frame_equal(lower.obsm["seal_pathways"], table.obsm["seal_pathways"])


def test_forms_of_a_net(table: ad.AnnData, net: pd.DataFrame, tmp_path: Path) -> None:
    plain = net[["source", "target"]]
    sets = plain.groupby("source")["target"].apply(list).to_dict()
    gmt, csv = tmp_path / "sets.gmt", tmp_path / "sets.csv.gz"
    gmt.write_text("".join("\t".join([name, "-", *genes]) + "\n" for name, genes in sets.items()))
    plain.to_csv(csv, index=False)
    forms: list[Any] = [plain, sets, gmt, str(gmt), csv, pd.concat([plain, plain])]
    results = [score_sets(table.obsm["seal_expression"], form).scores for form in forms]
    for other in results[1:]:
        pd.testing.assert_frame_equal(other, results[0])


def test_small_sets_are_named_and_left_out(table: ad.AnnData, net: pd.DataFrame, messages: list[str]) -> None:
    rare = pd.DataFrame({"source": "RARE", "target": [*GENES[:3], "X1", "X2", "X3"], "weight": 1.0})
    absent = pd.DataFrame({"source": "ABSENT", "target": ["X1", "X2"], "weight": 1.0})
    with pytest.warns(
        SealstWarning, match=r"2 of 6 gene sets.*fewer than 5 genes.*RARE \(3 of 6\)', 'ABSENT \(0 of 2\)"
    ):
        pathways(table, pd.concat([net, rare, absent]))
    assert list(table.obsm["seal_pathways"]) == ["SET0", "SET1", "SET2", "SET3"]
    assert any("4 of 6 gene sets scored on 40 genes" in m and "median 100 %" in m for m in messages)
    entry = table.uns["sealst"]["pathways"]["seal_pathways"]
    assert entry["set"].tolist() == ["SET0", "SET1", "SET2", "SET3", "RARE", "ABSENT"]
    assert entry["size"].tolist() == [8, 8, 8, 8, 6, 2]
    assert entry["found"].tolist() == [8, 8, 8, 8, 3, 0]
    assert entry["scored"].tolist() == [True] * 4 + [False] * 2
    pathways(table, pd.concat([net, rare]), tmin=3)
    assert "RARE" in table.obsm["seal_pathways"]


def test_a_set_of_every_gene_is_left_out(table: ad.AnnData, net: pd.DataFrame) -> None:
    everything = pd.DataFrame({"source": "ALL", "target": GENES, "weight": 1.0})
    with pytest.warns(SealstWarning, match=r"or with all.*'ALL \(40 of 40\)'"):
        pathways(table, pd.concat([net, everything]))
    assert "ALL" not in table.obsm["seal_pathways"]
    assert table.obsm["seal_pathways"].drop(index=table.obs_names[NO_CROP]).notna().to_numpy().all()


def test_no_set_left(table: ad.AnnData, net: pd.DataFrame) -> None:
    with pytest.raises(PanelError, match=r"None of the 4 gene sets.*at least 9 genes.*among the 40 at hand.*8 of 8 in"):
        pathways(table, net, tmin=9)
    ensembl = net.assign(target="ENSG" + net["target"])
    with pytest.raises(PanelError, match=r"the most are 0 of 8.*The names at hand begin 'GENE0'"):
        pathways(table, ensembl)


# -- writing ----------------------------------------------------------------------------------------------------------
def test_writes_nothing_else_and_copies(table: ad.AnnData, net: pd.DataFrame) -> None:
    before = set(table.obsm), dict(table.uns)
    result = pathways(table, net, copy=True)
    assert result is not None
    assert (set(table.obsm), dict(table.uns)) == before
    assert set(result.obsm) - before[0] == {"seal_pathways", "seal_pathways_padj"}
    entry = result.uns["sealst"]["pathways"]["seal_pathways"]
    assert (entry["source"], entry["slot"], entry["method"], entry["tmin"]) == (
        "predicted",
        "seal_expression",
        "ulm",
        5,
    )
    assert (entry["net"], entry["n_genes"]) == ("DataFrame", 40)
    assert pathways(table, net) is None


def test_scores_of_other_predictions_have_a_name_of_their_own(table: ad.AnnData, net: pd.DataFrame) -> None:
    table.obsm["mine"] = table.obsm["seal_expression"]
    pathways(table, net, expression_key="mine")
    assert {"mine_pathways", "mine_pathways_padj"} <= set(table.obsm)
    assert "seal_pathways" not in table.obsm


def test_p_values_of_an_earlier_method_do_not_stay(table: ad.AnnData, net: pd.DataFrame) -> None:
    pathways(table, net, method="ulm")
    pathways(table, net, method="aucell")
    assert "seal_pathways_padj" not in table.obsm
    pathways(table, net, method="mlm", key_added="other")
    assert set(table.uns["sealst"]["pathways"]) == {"seal_pathways", "other"}


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_round_trip(table: ad.AnnData, net: pd.DataFrame, tmp_path: Path, suffix: str, messages: list[str]) -> None:
    pathways(table, net.replace({"source": {"SET0": "IL-2/STAT5 signalling (é)"}}))
    assert list(table.obsm["seal_pathways"])[0] == "IL-2_STAT5 signalling (é)"
    assert any("'/' becomes '_' in the names of 1 gene set" in m for m in messages)
    path = tmp_path / f"table.{suffix}"
    (table.write_h5ad if suffix == "h5ad" else table.write_zarr)(path)
    back = (ad.read_h5ad if suffix == "h5ad" else ad.read_zarr)(path)
    pd.testing.assert_frame_equal(back.obsm["seal_pathways"], table.obsm["seal_pathways"])
    entry, written = (t.uns["sealst"]["pathways"]["seal_pathways"] for t in (back, table))
    assert set(entry) == set(written)
    for name, value in written.items():
        np.testing.assert_array_equal(entry[name], value)


def test_names_that_collide_on_disk(table: ad.AnnData, net: pd.DataFrame) -> None:
    with pytest.raises(DataError, match=r"Gene sets 'A/B' would be stored with '_' for '/'.*rename them"):
        pathways(table, net.replace({"source": {"SET0": "A/B", "SET1": "A_B"}}))


def test_spatialdata_round_trip(net: pd.DataFrame, tmp_path: Path) -> None:
    import spatialdata

    rng = np.random.default_rng(0)
    sdata = sl.io.from_arrays(
        np.zeros((64, 64, 3), dtype=np.uint8), rng.poisson(3, (6, 40)), rng.uniform(5, 60, (6, 2)),
        genes=GENES, mpp=1, spot_um=5, section="s1",
    )  # fmt: skip
    table = sdata.tables["table"]
    table.layers["lognorm"] = table.X.log1p()
    pathways(sdata, net, source="measured")
    sdata.write(tmp_path / "s.zarr")
    back = spatialdata.read_zarr(tmp_path / "s.zarr").tables["table"]
    pd.testing.assert_frame_equal(back.obsm["measured_pathways"], table.obsm["measured_pathways"], check_names=False)


# -- bad input --------------------------------------------------------------------------------------------------------
def test_order_of_calls(table: ad.AnnData, net: pd.DataFrame) -> None:
    del table.obsm["seal_expression"], table.layers["lognorm"]
    with pytest.raises(
        OrderError, match=r"'seal_expression' not found.*sl.tl.predict\(sdata, model\).*source='measured'"
    ):
        pathways(table, net)
    with pytest.raises(OrderError, match=r"'lognorm' not found.*sl.pp.normalize"):
        pathways(table, net, source="measured")


def test_bad_options(table: ad.AnnData, net: pd.DataFrame) -> None:
    with pytest.raises(DataError, match="`source` must be one of 'predicted', 'measured', found 'raw'"):
        pathways(table, net, source="raw")
    with pytest.raises(DataError, match="`method` must be one of 'aucell',.*'ulm'.*found 'ssgsea'"):
        pathways(table, net, method="ssgsea")
    with pytest.raises(DataError, match="`tmin` must be a positive number, found 0"):
        pathways(table, net, tmin=0)
    with pytest.raises(DataError, match="`method` must be one of"):
        score_sets(table.obsm["seal_expression"], net, method="decouple")


def test_bad_expression(table: ad.AnnData, net: pd.DataFrame) -> None:
    frame = table.obsm["seal_expression"]
    table.obsm["array"] = frame.to_numpy()
    with pytest.raises(DataError, match=r"`.obsm\['array'\]` must be a DataFrame with named genes, found ndarray"):
        pathways(table, net, expression_key="array")
    table.obsm["part"] = frame.copy()
    table.obsm["part"].iloc[0, 3] = np.nan
    with pytest.raises(DataError, match=r"1 row\(s\) of the expression are NaN in some genes only"):
        pathways(table, net, expression_key="part")
    table.obsm["nothing"] = frame * np.nan
    with pytest.raises(DataError, match="No spot has expression to score: all 12 rows"):
        pathways(table, net, expression_key="nothing")
    with pytest.raises(DataError, match="Duplicate gene names in the expression: 'GENE0'"):
        score_sets(frame.rename(columns={"GENE1": "GENE0"}), net)
    assert set(table.obsm) == {"seal_expression", "array", "part", "nothing"}


def test_redundant_sets_for_a_joint_model(table: ad.AnnData, net: pd.DataFrame) -> None:
    again = net[net["source"] == "SET0"].assign(source="COPY")
    with pytest.raises(DataError, match=r"'mlm' cannot score these 5 gene sets.*Singular matrix.*method='ulm'"):
        pathways(table, pd.concat([net, again]), method="mlm")
    assert "seal_pathways" not in table.obsm


def test_a_method_whose_package_is_absent(table: ad.AnnData, net: pd.DataFrame) -> None:
    if find_spec("xgboost") is not None:
        pytest.skip("xgboost is installed")
    with pytest.raises(DataError, match=r"'udt' needs a package that is not installed \(xgboost.*decoupler\[full\]"):
        pathways(table, net, method="udt")
    assert "seal_pathways" not in table.obsm


# -- decoupler's own gene sets ----------------------------------------------------------------------------------------
def test_resource_by_name(table: ad.AnnData, net: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dc.op, "hallmark", lambda: net.drop(columns="weight"))
    pathways(table, "hallmark")
    assert table.uns["sealst"]["pathways"]["seal_pathways"]["net"] == "hallmark"
    assert list(table.obsm["seal_pathways"]) == ["SET0", "SET1", "SET2", "SET3"]


def test_resource_offline(table: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline() -> None:
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr(dc.op, "progeny", offline)
    with pytest.raises(
        DataError, match=r"not download.*'progeny' \(ConnectionError: Name or service not known\).*offline.*GMT"
    ):
        pathways(table, "progeny")
    assert "seal_pathways" not in table.obsm


def test_resources_exist() -> None:
    for name in _pathways.RESOURCES:
        assert callable(getattr(dc.op, name))


def test_unknown_resource(table: ad.AnnData) -> None:
    with pytest.raises(
        DataError, match=r"'reactome', neither a known resource nor a file.*Resources known by name: 'coll"
    ):
        pathways(table, "reactome")
