from __future__ import annotations

import gzip

import pandas as pd
import pytest

from sealst._core.genes.names import (
    ensembl_id,
    genes_of_date,
    human_table,
    is_mangled,
    load_table,
    parse_table,
    resolve,
)
from sealst._errors import DataError


@pytest.fixture(scope="module")
def table():
    frame = pd.DataFrame(
        {
            "symbol": ["MARCHF1", "MTARC1", "SEPTIN2", "ERBB2", "CCL2", "EPRS1", "QARS1", "DELEC1"],
            "ensembl": ["ENSG00000145416", "ENSG00000186205", "ENSG00000168385", "ENSG00000141736|ENSG00000900001",
                        "ENSG00000108691", "", "", ""],
            "previous": ["MARCH1", "MARC1", "SEPT2", "NGL", "SCYA2", "EPRS|QARS", "QARS", "DEC1"],
            "aliases": ["", "", "", "HER2|NEU", "MCP1", "", "", "NEU"],
        }
    )  # fmt: skip
    return parse_table(frame, source="test")


def kinds(names, table, **options):
    return [(one.symbol, one.kind) for one in resolve(names, table, **options)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ERBB2", ("ERBB2", "current")),
        ("Erbb2", ("ERBB2", "case")),
        ("MARCH1", ("MARCHF1", "previous")),
        ("HER2", ("ERBB2", "alias")),
        ("NEU", ("NEU", "ambiguous")),
        ("QARS", ("QARS", "ambiguous")),
        ("ENSG00000141736.14", ("ERBB2", "ensembl")),
        ("ENSG00000900001", ("ERBB2", "ensembl")),
        ("ENSG00000777777.2", ("ENSG00000777777", "unknown")),
        ("BLANK_0001", ("BLANK_0001", "control")),
        ("FOO1", ("FOO1", "unknown")),
        ("2-Sep", ("SEPTIN2", "excel")),
        ("2021-09-02 00:00:00", ("SEPTIN2", "excel")),
        ("Dec-01", ("DELEC1", "excel")),
        ("1-Mar", ("1-Mar", "mangled")),
        ("44257", ("44257", "mangled")),
    ],
)
def test_a_name_is_understood_only_where_one_gene_is_meant(table, name, expected) -> None:
    assert kinds([name], table) == [expected]


def test_a_date_is_the_gene_that_is_left(table) -> None:
    assert genes_of_date("1-Mar", table) == ["MARCHF1", "MTARC1"]
    assert kinds(["1-Mar", "MARC1"], table)[0] == ("MARCHF1", "excel")
    assert kinds(["MARCHF1", "1-Mar"], table)[1] == ("MTARC1", "excel")
    # Two columns of one date are two genes; which is which cannot be told.
    assert kinds(["1-Mar", "1-Mar"], table) == [("1-Mar", "mangled")] * 2


def test_ids_of_the_data_decide(table) -> None:
    ids = ["ENSG00000186205", "ENSG00000141736", ""]
    assert kinds(["1-Mar", "CCL2", "MCP1"], table, ids=ids) == [
        ("MTARC1", "ensembl"),
        # The id is that of ERBB2, whatever the name.
        ("ERBB2", "ensembl"),
        ("CCL2", "alias"),
    ]


def test_spelling_is_left_where_asked(table) -> None:
    assert kinds(["Erbb2", "Ccl2"], table, fold_case=False) == [("Erbb2", "unknown"), ("Ccl2", "unknown")]


def test_without_a_table_only_forms_are_recognised() -> None:
    names = ["ENSMUSG00000000001.5", "Epcam", "BLANK_1", "1-Mar"]
    assert [k for _, k in kinds(names, None)] == ["unknown", "unknown", "control", "mangled"]
    assert kinds(names, None)[0][0] == "ENSMUSG00000000001"


def test_ids_that_several_genes_claim_are_no_evidence() -> None:
    ids = ["ENSG00000000001", "ENSG00000000001|ENSG00000000002", "ENSG00000000002"]
    table = parse_table(pd.DataFrame({"symbol": ["A1", "B1", "C1"], "ensembl": ids}), source="test")
    assert table.by_id == {"ENSG00000000002": "C1"}
    assert table.ensembl["B1"] == ("ENSG00000000001", "ENSG00000000002")


def test_versions_are_cut_and_other_names_are_no_ids() -> None:
    assert ensembl_id("ENSMUSG00000000001.5") == "ENSMUSG00000000001"
    assert ensembl_id("ENSG00000141736.14_PAR_Y") == "ENSG00000141736"
    assert ensembl_id("ENST00000141736") == ensembl_id("ENSA") == ""


@pytest.mark.parametrize("name", ["SEPT2", "MARCH1", "7SK", "H4C3", "MT-CO1", "HLA-A", "6-Foo", "KRT8", "C1orf112"])
def test_symbols_are_no_dates(name: str) -> None:
    assert not is_mangled(name)


def test_the_packages_table_knows_renamed_genes() -> None:
    table = human_table()
    assert table.source.startswith("HGNC 20")
    assert len(table.current) > 40_000
    names = ["SEPT2", "TARS", "C1ORF112", "ENSG00000188389", "H2AFX", "epcam"]
    assert [one.symbol for one in resolve(names, table)] == ["SEPTIN2", "TARS1", "FIRRM", "PDCD1", "H2AX", "EPCAM"]
    assert table.ensembl["ERBB2"] == ("ENSG00000141736",)
    assert table.ensembl["HLA-A"][0] == "ENSG00000206503"


def test_files_are_read_whatever_their_separator(tmp_path) -> None:
    tsv, csv, packed = tmp_path / "a.tsv", tmp_path / "a.csv", tmp_path / "a.tsv.gz"
    # As HGNC writes it: quoted lists, further columns, a sign for comments inside a name.
    head = "hgnc_id\tsymbol\tname\talias_symbol\tprev_symbol\tensembl_gene_id\n"
    text = head + 'HGNC:1\tA1\tgene #1\t"X|Y"\t\tENSG00000000001\n'
    tsv.write_text(text)
    packed.write_bytes(gzip.compress(("# version: 1\n" + text).encode()))
    csv.write_text("symbol,aliases\nA1,X|Y\n")
    for path in (tsv, csv, packed):
        assert load_table(path).lookup("y") == ("A1",)
    assert load_table(str(packed)).by_id == {"ENSG00000000001": "A1"}


@pytest.mark.parametrize(
    ("frame", "match"),
    [
        ({"gene": ["A"]}, "has no column 'symbol'; found 'gene'"),
        ({"symbol": ["A"]}, "has symbols only; add 'ensembl', 'previous' or 'aliases'"),
        ({"symbol": ["A", " "], "aliases": ["", ""]}, r"1 rows without symbol \(first: row 2\)"),
        ({"symbol": ["A", "a"], "aliases": ["", ""]}, "Symbols occur twice .*'A'"),
        ({"symbol": ["A"], "ensembl": ["ENST00000000001"]}, "gives 'A' the Ensembl ids 'ENST00000000001'"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(frame, match) -> None:
    with pytest.raises(DataError, match=match):
        load_table(pd.DataFrame(frame))


def test_a_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match="is not a file. Name a TSV or CSV"):
        load_table(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("symbol", "ensembl"),
    [
        ("CD99", "ENSG00000002586"),
        ("IL3RA", "ENSG00000185291"),
        ("CRLF2", "ENSG00000205755"),
        ("ERBB2", "ENSG00000141736"),
    ],
)
def test_the_packaged_table_gives_the_usual_id_first(symbol, ensembl) -> None:
    packaged = human_table()
    assert packaged.ensembl[symbol][0] == ensembl
    assert [one.symbol for one in resolve([f"{ensembl}.14"], packaged)] == [symbol]
