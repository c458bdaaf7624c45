from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealst._core.genes.panel import GenePanel
from sealst._errors import PanelError

GENES = ("EPCAM", "VIM", "CD3E", "ACTB")
AVAILABLE = np.array([[1, 1, 1, 1], [1, 0, 0, 1]], dtype=bool)


def joined(availability=AVAILABLE, sections=("whole", "targeted"), **options) -> GenePanel:
    numbers = np.arange(1, 5, dtype=np.float32)
    return GenePanel(GENES, numbers, numbers, sections=sections, availability=availability, **options)


def test_coverage_counts_genes_per_section() -> None:
    table = joined().coverage()
    assert table["genes"].to_dict() == {"whole": 4, "targeted": 2}
    assert table["share"].to_dict() == {"whole": 1.0, "targeted": 0.5}
    assert joined(None).coverage()["genes"].to_dict() == {"whole": 4, "targeted": 4}


def test_availability_of_everything_is_none_and_does_not_change_the_fingerprint() -> None:
    assert joined(np.ones((2, 4))).availability is None
    assert joined().fingerprint == joined(None).fingerprint
    with pytest.raises(ValueError, match="read-only"):
        joined().availability[0, 0] = False


def test_subset_keeps_the_columns_asked() -> None:
    part = joined().subset(["VIM", "ACTB"])
    np.testing.assert_array_equal(part.availability, [[True, True], [False, True]])
    assert joined().subset(["ACTB", "EPCAM"]).availability is None


def test_tsv_round_trip(tmp_path) -> None:
    joined().to_tsv(tmp_path / "a.tsv")
    back = GenePanel.from_tsv(tmp_path / "a.tsv")
    np.testing.assert_array_equal(back.availability, AVAILABLE)
    assert back.sections == ("whole", "targeted")
    assert back.fingerprint == joined().fingerprint
    text = (tmp_path / "a.tsv").read_text()
    assert "\nVIM\t\t2.0\t2.0\t10\n" in text
    # A panel whose sections measure everything is written as it always was.
    joined(None).to_tsv(tmp_path / "b.tsv")
    assert "\ngene\tensembl\tmean\tstd\n" in (tmp_path / "b.tsv").read_text()
    assert GenePanel.from_tsv(tmp_path / "b.tsv").availability is None


@pytest.mark.parametrize(("old", "new"), [("\t10\n", "\t1\n"), ("\t10\n", "\t1x\n"), ("\t10\n", "\t101\n")])
def test_damaged_digits_are_refused(tmp_path, old, new) -> None:
    path = tmp_path / "a.tsv"
    joined().to_tsv(path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(PanelError, match=r"line 9: column 'measured' must have a 0 or 1 for each of the 2 sections"):
        GenePanel.from_tsv(path)


def test_a_gene_that_no_section_measures_is_refused(tmp_path) -> None:
    with pytest.raises(PanelError, match=r"1 gene\(s\) are measured in none of the sections: 'CD3E'"):
        joined([[1, 1, 0, 1], [1, 0, 0, 1]])
    with pytest.raises(PanelError, match=r"`availability` must be \(sections, genes\), \(2, 4\), found \(1, 4\)"):
        joined([[1, 1, 1, 1]])
    joined().to_tsv(tmp_path / "a.tsv")
    text = (tmp_path / "a.tsv").read_text().replace("\t10\n", "\t00\n", 1)
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(PanelError, match="a.tsv: 1 gene.s. are measured in none"):
        GenePanel.from_tsv(tmp_path / "a.tsv")


@settings(max_examples=80, deadline=None)
@given(st.permutations([*GENES, "TP53", "KRT8", "epcam2"]), st.integers(0, 7), st.booleans())
def test_measured_says_what_extract_found(order, n, lower) -> None:
    panel = joined()
    names = [name.lower() if lower else name for name in order[:n]]
    expected = np.array([g in {name.upper() for name in names} for g in GENES])
    np.testing.assert_array_equal(panel.measured(names), expected)
    x = np.random.default_rng(n).random((3, n), dtype=np.float32) + 10
    if not expected.any():
        with pytest.raises(PanelError, match="Only 0 of the panel's 4 genes"):
            panel.extract(x, names, min_shared=0.0)
        return
    out = panel.extract(x, names, min_shared=0.0, warn_missing=False)
    # Measured genes hold what was measured (above 10), absent ones the mean, which is 0 after standardisation.
    np.testing.assert_array_equal((out > 9).all(0), expected)
    np.testing.assert_array_equal(((out - panel.mean) / panel.std)[:, ~expected], 0)
    for column, gene in zip(np.flatnonzero(expected), np.array(GENES)[expected], strict=True):
        np.testing.assert_array_equal(out[:, column], x[:, [name.upper() for name in names].index(gene)])


def test_a_symbol_in_two_spellings_is_not_measured():
    from sealst import GenePanel

    panel = GenePanel(("GEN0", "GEN1"), [1, 1], [1, 1])
    assert list(panel.measured(["GEN0", "gen0", "Gen1"])) == [False, True]
