from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st

import sealst as sl

MORE = [f"KRT{i}" for i in (5, 6, 7, 8, 14, 18, 19)]


def counts(names, *, n: int = 6, seed: int = 0, kind=sp.csr_matrix, **var) -> AnnData:
    x = np.random.default_rng(seed).poisson(3, (n, len(names))).astype(np.float32)
    table = AnnData(kind(x), layers={"raw": kind(x + 1)}, var=pd.DataFrame(var, index=list(names)))
    table.obs_names = [f"s{i}" for i in range(n)]
    return table


def dense(x) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, np.asarray])
def test_names_become_current_and_columns_of_one_gene_are_summed(kind) -> None:
    table = counts(["ACTB", "SEPT2", "ENSG00000141736.4", "ERBB2", "BLANK_1", "ACTB", *MORE], kind=kind)
    x, raw = dense(table.X).copy(), dense(table.layers["raw"]).copy()
    assert sl.pp.harmonize_genes(table) is None
    assert list(table.var_names) == ["ACTB", "SEPTIN2", "ERBB2", *MORE]
    for new, old in ((table.X, x), (table.layers["raw"], raw)):
        np.testing.assert_array_equal(dense(new)[:, 0], old[:, 0] + old[:, 5])
        np.testing.assert_array_equal(dense(new)[:, 1], old[:, 1])
        np.testing.assert_array_equal(dense(new)[:, 2], old[:, 2] + old[:, 3])
        np.testing.assert_array_equal(dense(new)[:, 3:], old[:, 6:])
    assert table.X.dtype == np.float32
    assert list(table.var["gene_original"][:3]) == ["ACTB", "SEPT2", "ENSG00000141736.4;ERBB2"]
    assert list(table.var["ensembl"][:3]) == ["ENSG00000075624", "ENSG00000168385", "ENSG00000141736"]
    entry = table.uns["sealst"]["harmonize_genes"]
    assert (entry["n_before"], entry["n_after"], entry["n_summed"], entry["n_dropped"]) == (13, 10, 2, 1)
    assert (entry["n_previous"], entry["n_ensembl"], entry["species"], entry["to"]) == (1, 1, "human", "symbol")
    sl.pp.harmonize_genes(table)
    assert list(table.var_names) == ["ACTB", "SEPTIN2", "ERBB2", *MORE]


def test_a_gene_measured_beside_its_earlier_name_stays_apart_unless_asked() -> None:
    table = counts(["SEPT2", "SEPTIN2", "TARS", *MORE])
    with pytest.warns(sl.SealstWarning, match=r"1 column\(s\) keep their old name.*'SEPT2'.*`sum_aliases=True`"):
        apart = sl.pp.harmonize_genes(table, copy=True)
    assert list(apart.var_names[:3]) == ["SEPT2", "SEPTIN2", "TARS1"]
    # The name is all that is known of it: not the id of the gene it stands beside.
    assert list(apart.var["ensembl"][:2]) == ["", "ENSG00000168385"]
    joined = sl.pp.harmonize_genes(table, sum_aliases=True, copy=True)
    assert list(joined.var_names[:2]) == ["SEPTIN2", "TARS1"]
    np.testing.assert_array_equal(dense(joined.X)[:, 0], dense(table.X)[:, :2].sum(1))
    assert joined.var["gene_original"].iloc[0] == "SEPT2;SEPTIN2"


def test_two_earlier_names_of_one_gene_stay_apart() -> None:
    table = pd.DataFrame({"symbol": ["NEW"], "previous": ["OLD1|OLD2"]})
    with pytest.warns(sl.SealstWarning, match=r"2 column\(s\) keep"):
        apart = sl.pp.harmonize_genes(counts(["OLD1", "OLD2", *MORE]), gene_table=table, copy=True)
    assert list(apart.var_names[:2]) == ["OLD1", "OLD2"]


def test_two_species_in_one_table_are_not_merged_by_spelling() -> None:
    table = counts(["EPCAM", "Epcam", "Vim", *MORE])
    with pytest.warns(sl.SealstWarning, match="20% of the gene names are spelled like those of mouse .*two species"):
        out = sl.pp.harmonize_genes(table, copy=True)
    assert list(out.var_names[:3]) == ["EPCAM", "Epcam", "Vim"]
    few = sl.pp.harmonize_genes(counts(["Epcam", *MORE, "ACTB", "GAPDH", "VIM"]), copy=True)
    assert few.var_names[0] == "EPCAM"


def test_to_ensembl_and_back() -> None:
    table = counts(["ACTB", "NOTAGENE1", "ERBB2"])
    sl.pp.harmonize_genes(table, to="ensembl")
    assert list(table.var_names) == ["ENSG00000075624", "NOTAGENE1", "ENSG00000141736"]
    sl.pp.harmonize_genes(table)
    assert list(table.var_names) == ["ACTB", "NOTAGENE1", "ERBB2"]
    assert table.uns["sealst"]["harmonize_genes"]["n_without_ensembl"] == 1


def test_ids_beside_the_names_are_evidence() -> None:
    ids = ["ENSG00000186205.3", *[""] * len(MORE)]
    table = counts(["1-Mar", *MORE], gene_ids=ids)
    sl.pp.harmonize_genes(table)
    assert table.var_names[0] == "MTARC1"
    assert table.var["ensembl"].iloc[0] == "ENSG00000186205"


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_dates_that_stand_for_two_genes_are_reported_and_never_summed() -> None:
    table = counts(["1-Mar", "1-Mar", "2-Sep", "44257", *MORE])
    with pytest.warns(sl.SealstWarning, match=r"3 name\(s\) are dates or numbers.*'1-Mar', '1-Mar', '44257'"):
        out = sl.pp.harmonize_genes(table, copy=True)
    assert list(out.var_names[:4]) == ["1-Mar", "1-Mar-1", "SEPTIN2", "44257"]
    np.testing.assert_array_equal(dense(out.X), dense(table.X))


def test_a_table_of_the_user_brings_aliases_and_other_species(tmp_path) -> None:
    table = counts(["HER2", "MCP1", *MORE])
    aliases = pd.DataFrame({"symbol": ["ERBB2", "CCL2"], "aliases": ["HER2|NEU", "MCP1"]})
    assert list(sl.pp.harmonize_genes(table, gene_table=aliases, copy=True).var_names[:2]) == ["ERBB2", "CCL2"]
    mouse = tmp_path / "mouse.tsv"
    mouse.write_text("symbol\tensembl\nEpcam\tENSMUSG00000045394\nMarchf1\tENSMUSG00000036469\n")
    out = sl.pp.harmonize_genes(counts(["ENSMUSG00000045394.9", "Vim"]), gene_table=mouse, species="mouse", copy=True)
    assert list(out.var_names) == ["Epcam", "Vim"]
    assert out.uns["sealst"]["harmonize_genes"]["table"] == "mouse.tsv"


def test_mouse_keeps_its_spelling_without_a_table() -> None:
    table = counts(["Epcam", "Vim", "BLANK_1"])
    sl.pp.harmonize_genes(table, species="mouse")
    assert list(table.var_names) == ["Epcam", "Vim"]
    assert list(table.var["ensembl"]) == ["", ""]


@pytest.mark.parametrize(
    ("names", "options", "match"),
    [
        (["Epcam", "Vim", "Krt8"], {}, "100% of the gene names are spelled like those of mouse .*'Epcam'.*'mouse'"),
        (["ENSMUSG00000045394", "ACTB"], {"to": "ensembl"}, None),
        (["ENSMUSG00000045394", "ENSMUSG00000036469"], {}, "like those of mouse .*'ENSMUSG00000045394'"),
        (["EPCAM", "VIM"], {"species": "mouse"}, r"like those of human .*'EPCAM'.*str.capitalize\(\)"),
        (["Epcam", "Vim"], {"species": "mouse", "to": "ensembl"}, "only with a table: pass `table="),
        (["ENSMUSG00000045394"], {"species": "mouse"}, "The names are Ensembl ids; .*`to='ensembl'`"),
        (["ACTB", " "], {}, r"1 empty gene names in `table.var_names` \(first at column 1\)"),
        (["BLANK_1", "BLANK_2"], {}, "All 2 columns are control probes .*no gene is left"),
        (["ACTB"], {"to": "entrez"}, "`to` must be one of 'symbol', 'ensembl'"),
    ],
)
def test_names_that_cannot_be_brought_together_are_refused(names, options, match) -> None:
    table = counts(names)
    if match is None:
        with pytest.warns(sl.SealstWarning, match="two species"):
            sl.pp.harmonize_genes(table, **options)
        return
    with pytest.raises(sl.DataError, match=match):
        sl.pp.harmonize_genes(table, **options)
    assert list(table.var_names) == names
    assert "sealst" not in table.uns


def test_normalised_tables_are_refused() -> None:
    table = counts(["ACTB", *MORE])
    sl.pp.normalize(table, context=False)
    with pytest.raises(sl.OrderError, match="already ran on this table: its layers 'lognorm' cannot be summed"):
        sl.pp.harmonize_genes(table)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_layers_that_are_no_counts_are_not_summed() -> None:
    table = counts(["ACTB", "ACTB", *MORE])
    table.layers["scaled"] = table.X * 0.37
    with pytest.raises(sl.DataError, match="Columns of layer 'scaled' would be summed .*not whole numbers"):
        sl.pp.harmonize_genes(table)
    assert table.n_vars == 9
    # Without columns to sum, any layer is renamed and cut.
    single = table[:, 1:].copy()
    sl.pp.harmonize_genes(single)
    np.testing.assert_allclose(dense(single.layers["scaled"]), dense(table.layers["scaled"])[:, 1:])


def test_spatialdata_gets_a_new_table_and_still_validates(toy_section, tmp_path, caplog) -> None:
    sdata = toy_section()
    before = sdata.tables["table"]
    names = ["SEPT2", "KRT8", "VIM", "COL1A1", "CD3E", "MS4A1", "BLANK_1", "ACTB"]
    before.var_names = names
    with caplog.at_level(logging.INFO, logger="sealst"):
        copied = sl.pp.harmonize_genes(sdata, copy=True).tables["table"]
        assert list(sdata.tables["table"].var_names) == names
        assert sl.pp.harmonize_genes(sdata) is None
    after = sdata.tables["table"]
    assert list(after.var_names) == list(copied.var_names) == ["SEPTIN2", *names[1:6], "ACTB"]
    assert "8 columns, now 7 genes named by symbol: 6 current" in caplog.text
    sl.pp.normalize(sdata)
    sdata.write(tmp_path / "section.zarr")
    assert sl.pp.select_genes([sdata], 3).ensembl[0].startswith("ENSG")


NAMES = st.lists(
    st.sampled_from(["ACTB", "SEPT2", "SEPTIN2", "Epcam", "EPCAM", "ENSG00000141736.4", "ERBB2", "QARS", "1-Mar",
                     "BLANK_1", "FOO", "foo", *MORE]), min_size=1, max_size=20,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore::sealst.SealstWarning")
@settings(max_examples=60, deadline=None)
@given(NAMES, st.booleans(), st.sampled_from(["symbol", "ensembl"]))
def test_no_count_is_lost_and_no_name_occurs_twice(names, sum_aliases, to) -> None:
    table = counts(["GAPDH", *MORE, *MORE, *names])
    control = np.array([name.startswith("BLANK") for name in table.var_names])
    out = sl.pp.harmonize_genes(table, sum_aliases=sum_aliases, to=to, copy=True)
    assert out.var_names.is_unique
    assert dense(out.X).sum() == dense(table.X)[:, ~control].sum()
    old = {part for cell in out.var["gene_original"] for part in cell.split(";")}
    assert old == set(table.var_names[~control])


def test_an_id_decides_against_a_symbol_that_is_another_genes_now() -> None:
    # An old annotation: AK3 was AK4's name, AK3L1 was AK3's.
    table = counts(["AK3", "AK3L1"], gene_ids=["ENSG00000162433", "ENSG00000147853"])
    before = dense(table.X)
    sl.pp.harmonize_genes(table)
    assert list(table.var_names) == ["AK4", "AK3"]
    np.testing.assert_array_equal(dense(table.X), before)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_sums_do_not_overflow(dtype) -> None:
    table = counts(["ENSG00000141736.1", "ENSG00000141736.2"])
    table.X = np.full((6, 2), 120, dtype=dtype)
    sl.pp.harmonize_genes(table)
    np.testing.assert_array_equal(dense(table.X).ravel(), 240)


def test_the_advice_for_normalised_tables_works() -> None:
    table = counts(["ACTB", "ERBB2", "EPCAM", "VIM"])
    sl.pp.normalize(table, context=False)
    del table.layers["lognorm"]
    sl.pp.harmonize_genes(table)
    sl.pp.normalize(table, context=False)
    assert "lognorm" in table.layers
