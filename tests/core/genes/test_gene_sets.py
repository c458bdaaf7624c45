"""Gene sets: every form is read alike, and what cannot be meant is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sealst._core.genes.sets import as_net, overlap, restrict
from sealst._errors import DataError

SETS = {"LUMINAL": ["ESR1", "GATA3", "FOXA1"], "IMMUNE RESPONSE": ["CD3E", "CD8A"]}
EDGES = pd.DataFrame(
    [(s, g, 1.0) for s, genes in SETS.items() for g in genes],
    columns=["source", "target", "weight"],
)
GMT = "LUMINAL\thttp://a b\tESR1\tGATA3\tFOXA1\n\nIMMUNE RESPONSE\t\tCD3E\tCD8A\t\n"


def write(path: Path, text: str) -> Path:
    data = text.encode("utf-8-sig")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def same(net: pd.DataFrame, expected: pd.DataFrame = EDGES) -> None:
    pd.testing.assert_frame_equal(net, expected, check_dtype=False)
    assert net["weight"].dtype == np.float64


@pytest.mark.parametrize("name", ["sets.gmt", "sets.v1.2.gmt.gz", "SETS.GMT"])
def test_gmt(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, GMT)
    same(as_net(path))
    same(as_net(str(path)))


@pytest.mark.parametrize(("name", "sep"), [("net.csv", ","), ("net.tsv", "\t"), ("net.csv.gz", ","), ("net.csv", ";")])
def test_tables(tmp_path: Path, name: str, sep: str) -> None:
    weights = np.array([1.5, -2, 0.25, 1, 3e-3])
    weighted = EDGES.assign(weight=weights, pmid=1)
    same(as_net(write(tmp_path / name, weighted.to_csv(sep=sep, index=False))), EDGES.assign(weight=weights))
    plain = EDGES[["target", "source"]].to_csv(sep=sep, index=False)
    same(as_net(write(tmp_path / name, plain)))


def test_frames_and_mappings() -> None:
    same(as_net(SETS))
    same(as_net(EDGES.drop(columns="weight").astype("category")))
    same(as_net(EDGES.set_axis([7, 7, 7, 0, 1])))


def test_input_is_not_changed() -> None:
    net = EDGES.assign(target=EDGES["target"].str.lower())
    before = net.copy(deep=True)
    same(as_net(net))
    pd.testing.assert_frame_equal(net, before)


def test_genes_are_upper_cased_and_equal_edges_kept_once() -> None:
    net = pd.DataFrame({"source": ["a"] * 4, "target": [" Epcam", "EPCAM", "Vim ", "EPCAM"], "weight": [2, 2, 1, 2]})
    assert as_net(net).to_dict("list") == {"source": ["a", "a"], "target": ["EPCAM", "VIM"], "weight": [2.0, 1.0]}


def test_names_that_look_like_missing_values_stay_names(tmp_path: Path) -> None:
    net = as_net(write(tmp_path / "net.csv", "source,target\nNA,nan\nNA,NULL\n"))
    assert net["source"].tolist() == ["NA", "NA"]
    assert net["target"].tolist() == ["NAN", "NULL"]


def test_overlap_counts_by_hand() -> None:
    seen = overlap(as_net(SETS), ["esr1", "Foxa1", "VIM", "KRT8"])
    assert seen.index.tolist() == ["LUMINAL", "IMMUNE RESPONSE"]
    assert seen["size"].tolist() == [3, 2]
    assert seen["found"].tolist() == [2, 0]
    assert seen.dtypes.tolist() == [np.int64, np.int64]


def test_restrict_takes_the_spelling_at_hand() -> None:
    kept = restrict(as_net(SETS), ["Esr1", "gata3", "GATA3", "cd3e", "Cd3e", "VIM"])
    assert kept["target"].tolist() == ["Esr1", "GATA3", "cd3e"]
    assert kept["source"].tolist() == ["LUMINAL", "LUMINAL", "IMMUNE RESPONSE"]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (
            pd.DataFrame({"geneset": ["a"], "genesymbol": ["B"]}),
            r"no column 'source', 'target'; found: 'geneset'.*rename",
        ),
        (EDGES.iloc[:0], "holds no gene sets"),
        (EDGES.assign(target=["A", None, "B", " ", "C"]), r"2 empty value\(s\) in column 'target' \(first in row 1\)"),
        (EDGES.assign(source=["A", "a", "B", "b", ""]), r"1 empty value\(s\) in column 'source' \(first in row 4\)"),
        (EDGES.assign(weight=[1, 2, "x", 1, 1]), r"1 weight\(s\) that are not finite numbers, first 'x' in row 2"),
        (EDGES.assign(weight=[1, 2, 1, np.inf, np.nan]), r"2 weight\(s\).*first 'inf' in row 3"),
        (EDGES.assign(weight=[1, 2, 1, 0, 0]), r"Every weight is 0 in gene set\(s\) 'IMMUNE RESPONSE'"),
        (
            pd.DataFrame({"source": ["s", "s"], "target": ["vim", "VIM"], "weight": [1, 2]}),
            r"1 edge\(s\).*different weights, e.g. 'VIM' in 's'.*drop_duplicates",
        ),
    ],
)
def test_bad_frames(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_net(frame)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.gmt",
            "LUMINAL ESR1 GATA3\n",
            r"a.gmt, line 1: expected a name, a description and genes.*'LUMINAL ESR1 GATA3'",
        ),
        ("a.gmt", "A\tx\tESR1\nB\tx\n", r"line 2: expected a name"),
        ("a.gmt", "A\tx\tESR1\nB\tx\tVIM\nA\tx\tVIM\n", r"line 3: gene set 'A' occurs twice, first in line 1"),
        ("a.gmt", "\n", "holds no gene sets"),
        ("a.csv", "", r"a.csv could not be read as a table: No columns"),
        ("a.csv", "source,target\n", "holds no gene sets"),
        ("a.csv", "source,target,weight\na,B,\n", r"1 weight\(s\) that are not finite numbers, first '' in row 0"),
        ("a.csv", "source|target\na|B\n", r"no column 'source', 'target'"),
        ("a.xlsx", "x", "neither a known resource nor a file of gene sets. Pass a DataFrame"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        as_net(path)


def test_damaged_and_absent_files(tmp_path: Path) -> None:
    packed = gzip.compress((GMT * 50).encode())
    (tmp_path / "cut.gmt.gz").write_bytes(packed[:-20])
    (tmp_path / "text.gmt.gz").write_text(GMT)
    (tmp_path / "latin.gmt").write_bytes("A\tx\tESR1\tM\xfc\n".encode("latin-1"))
    packing, text = "is not a gzip file, or damaged", r"is no UTF-8 text \(byte 10 is 0xfc"
    for name, said in [("cut.gmt.gz", packing), ("text.gmt.gz", packing), ("latin.gmt", text)]:
        with pytest.raises(DataError, match=rf"{name}' {said}"):
            as_net(tmp_path / name)
    with pytest.raises(DataError, match=r"No file '.*absent.gmt' with gene sets"):
        as_net(tmp_path / "absent.gmt")
    with pytest.raises(
        DataError, match=r"No file 'absent.txt' with gene sets \(looked for '.*a .gmt, .csv or .tsv file"
    ):
        as_net("absent.txt")


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="`net` must hold gene sets, found list. Pass a DataFrame"):
        as_net([("a", "B")])  # type: ignore[arg-type]
    with pytest.raises(DataError, match="'a' maps to a string"):
        as_net({"a": "EPCAM"})
