from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sealst._core.genes.names import is_control
from sealst._core.genes.panel import GenePanel
from sealst._errors import PanelError, SealstWarning


@pytest.fixture
def panel() -> GenePanel:
    return GenePanel(
        ("EPCAM", "VIM", "CD3E", "C1orf112"),
        np.array([1.0, 0.5, 0.1, 0.2]),
        np.array([0.6, 0.4, 0.3, 0.2]),
        ensembl=("ENSG00000119888", "", "ENSG00000198851", "ENSG00000000460"),
        target_sum=5e3,
        layer="lognorm",
        sections=("A1, upper", "B4"),
    )


def same(a: GenePanel, b: GenePanel) -> bool:
    facts = ("genes", "ensembl", "target_sum", "layer", "species", "sections", "fingerprint")
    return all(getattr(a, f) == getattr(b, f) for f in facts) and bool(
        np.array_equal(a.mean, b.mean) and np.array_equal(a.std, b.std)
    )


# --- building ---------------------------------------------------------------------------------------------------------


def test_statistics_are_read_only_float32(panel: GenePanel) -> None:
    assert panel.mean.dtype == panel.std.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        panel.mean[0] = 2


def test_the_panel_does_not_share_memory_with_its_input() -> None:
    mean = np.ones(1, dtype=np.float32)
    panel = GenePanel(("VIM",), mean, mean)
    mean[0] = 7
    assert panel.mean[0] == 1


@pytest.mark.parametrize(
    ("genes", "mean", "std", "match"),
    [
        ((), [], [], "at least one gene"),
        (("VIM", "vim"), [1, 1], [1, 1], "'vim' occurs twice .*'VIM'"),
        (("VIM", " "), [1, 1], [1, 1], "Gene 2 of the panel"),
        (("VIM\tX",), [1], [1], "Gene 1 of the panel"),
        (("VIM",), [1, 2], [1], r"`mean` must have one value per gene, \(1,\)"),
        (("VIM",), [np.nan], [1], "`mean` holds NaN"),
        (("VIM", "EPCAM"), [1, 1], [1, 0], "`std` must be above 0.*'EPCAM'"),
    ],
)
def test_unusable_panels_are_refused(genes, mean, std, match) -> None:
    with pytest.raises(PanelError, match=match):
        GenePanel(genes, np.array(mean, dtype=float), np.array(std, dtype=float))


def test_ensembl_and_target_sum_are_checked() -> None:
    with pytest.raises(PanelError, match="`ensembl` has 2 ids"):
        GenePanel(("VIM",), [1.0], [1.0], ensembl=("a", "b"))
    with pytest.raises(PanelError, match="`target_sum` must be a positive number"):
        GenePanel(("VIM",), [1.0], [1.0], target_sum=0)


def test_repr_is_short_and_html_is_escaped(panel: GenePanel) -> None:
    assert repr(panel).startswith("GenePanel(4 genes: EPCAM, VIM, CD3E, C1orf112; layer='lognorm'")
    assert len(panel) == 4
    assert "&lt;b&gt;" in GenePanel(("<b>",), [1.0], [1.0])._repr_html_()


def test_fingerprint_sees_genes_order_and_numbers(panel: GenePanel) -> None:
    def build(genes=panel.genes, mean=panel.mean, std=panel.std) -> str:
        return GenePanel(genes, mean, std).fingerprint

    base = build()
    assert len(base) == 16
    assert int(base, 16) >= 0
    assert base == panel.fingerprint
    nudged = np.nextafter(panel.mean, 2, dtype=np.float32)
    assert len({base, build(genes=panel.genes[::-1]), build(mean=nudged), build(std=nudged)}) == 4


# --- aligning ---------------------------------------------------------------------------------------------------------


def test_subset_keeps_order_asked_and_facts(panel: GenePanel) -> None:
    part = panel.subset(["cd3e", "EPCAM"])
    assert part.genes == ("CD3E", "EPCAM")
    assert part.ensembl == ("ENSG00000198851", "ENSG00000119888")
    np.testing.assert_array_equal(part.mean, panel.mean[[2, 0]])
    assert (part.layer, part.target_sum, part.sections) == (panel.layer, panel.target_sum, panel.sections)


def test_subset_refuses_unknown_genes(panel: GenePanel) -> None:
    with pytest.raises(PanelError, match=r"1 gene\(s\) are not in the panel of 4: 'KRT8'"):
        panel.subset(["VIM", "KRT8"])


def test_align_matches_upper_cased_symbols(panel: GenePanel) -> None:
    columns, missing = panel.align(["vim", "TP53", "Epcam", "C1ORF112"])
    np.testing.assert_array_equal(columns, [2, 0, -1, 3])
    assert missing == ("CD3E",)


def test_align_prefers_the_panel_spelling() -> None:
    panel = GenePanel(("VIM",), [1.0], [1.0])
    assert panel.align(["Vim", "VIM"]).columns.tolist() == [1]
    assert panel.align(["Vim", "vim"]).columns.tolist() == [0]


def test_align_refuses_a_gene_that_occurs_twice(panel: GenePanel) -> None:
    with pytest.raises(PanelError, match="'VIM' occurs twice"):
        panel.align(["VIM", "EPCAM", "VIM"])
    assert panel.align(["TP53", "TP53", "VIM"]).columns.tolist() == [-1, 2, -1, -1]


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.coo_array])
def test_extract_orders_columns_and_fills_with_the_mean(panel: GenePanel, kind) -> None:
    x = np.array([[5.0, 1.0, 2.0], [0.0, 3.0, 0.0]])
    with pytest.warns(SealstWarning, match="2 of the panel's 4 genes are missing .*'CD3E', 'C1orf112'"):
        out = panel.extract(kind(x), ["TP53", "VIM", "EPCAM"])
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, np.float32([[2, 1, 0.1, 0.2], [0, 3, 0.1, 0.2]]))


def test_extract_undoes_any_permutation_of_columns(panel: GenePanel) -> None:
    rng = np.random.default_rng(0)
    x = rng.random((5, 4), dtype=np.float32)
    for _ in range(5):
        order = rng.permutation(4)
        np.testing.assert_array_equal(panel.extract(x[:, order], [panel.genes[i] for i in order]), x)


def test_extract_refuses_too_few_genes(panel: GenePanel) -> None:
    with pytest.raises(PanelError, match=r"Only 1 of the panel's 4 genes are among the 2 names; at least 50%.*'EPCAM'"):
        panel.extract(np.ones((1, 2)), ["VIM", "TP53"])
    with pytest.warns(SealstWarning, match="3 of the panel's 4"):
        panel.extract(np.ones((1, 2)), ["VIM", "TP53"], min_shared=0.25)


def test_extract_refuses_no_shared_gene_whatever_min_shared(panel: GenePanel) -> None:
    with pytest.raises(PanelError, match="Only 0 of the panel's 4 genes"):
        panel.extract(np.ones((1, 1)), ["TP53"], min_shared=0.0)


def test_extract_hints_at_ensembl_ids(panel: GenePanel) -> None:
    with pytest.raises(PanelError, match="The names are Ensembl ids.*gene_symbols"):
        panel.extract(np.ones((1, 2)), ["ENSG00000141510", "ENSG00000119888.12"])


def test_extract_refuses_shapes_that_do_not_fit(panel: GenePanel) -> None:
    with pytest.raises(PanelError, match=r"`x` must be \(n, 3\), one column per name, found \(2, 2\)"):
        panel.extract(np.ones((2, 2)), ["VIM", "EPCAM", "CD3E"])


# --- files ------------------------------------------------------------------------------------------------------------


def test_tsv_round_trip_keeps_everything(panel: GenePanel, tmp_path) -> None:
    path = tmp_path / "panel.tsv"
    panel.to_tsv(path)
    assert same(GenePanel.from_tsv(path), panel)
    assert [p.name for p in tmp_path.iterdir()] == ["panel.tsv"]


@settings(max_examples=40, deadline=None)
@given(arrays(np.float32, 3, elements=st.floats(min_value=2**-100, max_value=2**100, width=32)))
def test_tsv_round_trip_is_exact_in_float32(tmp_path_factory, values) -> None:
    path = tmp_path_factory.mktemp("panel") / "panel.tsv"
    panel = GenePanel(("NA", "MARCH1", "1"), values, values[::-1])
    panel.to_tsv(path)
    back = GenePanel.from_tsv(path)
    assert back.genes == panel.genes
    assert back.mean.tobytes() == panel.mean.tobytes()
    assert back.std.tobytes() == panel.std.tobytes()


def test_tsv_without_comments_is_read_with_defaults(tmp_path) -> None:
    path = tmp_path / "panel.tsv"
    path.write_text("# my panel: made by hand\ngene\tensembl\tmean\tstd\nVIM\t\t0.5\t0.25\n")
    panel = GenePanel.from_tsv(path)
    assert (panel.genes, panel.ensembl, panel.layer, panel.target_sum) == (("VIM",), (), "context", 1e4)


def test_a_failed_write_leaves_the_old_file(panel: GenePanel, tmp_path, monkeypatch) -> None:
    path = tmp_path / "panel.tsv"
    panel.to_tsv(path)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        panel.subset(["VIM"]).to_tsv(path)
    monkeypatch.undo()
    assert same(GenePanel.from_tsv(path), panel)
    assert [p.name for p in tmp_path.iterdir()] == ["panel.tsv"]


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("\nVIM\t\t0.5\t", "\nVIM\t\tx\t", r"line 9 is damaged, .*`mean` must be a number, found 'x'"),
        ("\t0.5\t", "\tnan\t", r"line 9 is damaged, .*`mean` must be a number, found 'nan'"),
        ("\nVIM\t\t0.5\t", "\nVIM\t0.5\t", r"line 9: expected 4 columns, found 3"),
        ("\nVIM\t", "\n\t", r"line 9 is damaged, .*`gene` must be text, found None"),
        ("gene\tensembl\tmean", "gene\tensembl\tavg", r"line 7: expected the columns 'gene', 'ensembl', 'mean', 'std'"),
        ("# target_sum: 5000.0", "# target_sum: 5e", r"line 3: 'target_sum' must be a JSON value, found '5e'"),
        ("# sections: [", '# sections: "A1" #', r"line 4: 'sections' must be a JSON value"),
        ('# layer: "lognorm"', "# layer: 3", r"line 2 is damaged, .*`layer` must be text, found 3"),
        ("\t0.5\t", "\t0.25\t", r"fingerprint .*Restore the file"),
        ("\nVIM\t", "\nEPCAM\t", r"panel.tsv: Gene 'EPCAM' occurs twice"),
    ],
)
def test_damaged_tsv_names_line_and_column(panel: GenePanel, tmp_path, old, new, match) -> None:
    path = tmp_path / "panel.tsv"
    panel.to_tsv(path)
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    with pytest.raises(PanelError, match=match):
        GenePanel.from_tsv(path)


@pytest.mark.parametrize(("keep", "match"), [(9, r"line 9: the file ends after 2 of 4 genes"), (6, "line 7: expected")])
def test_truncated_tsv_is_refused(panel: GenePanel, tmp_path, keep, match) -> None:
    path = tmp_path / "panel.tsv"
    panel.to_tsv(path)
    path.write_text("\n".join(path.read_text().split("\n")[:keep]) + "\n")
    with pytest.raises(PanelError, match=match):
        GenePanel.from_tsv(path)


# --- control probes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "BLANK_0069",
        "Blank-12",
        "NegControlProbe_00042",
        "NegControlCodeword_0502",
        "antisense_SCRIB",
        "UnassignedCodeword_0001",
        "DeprecatedCodeword_0318",
        "Intergenic_Region_1229",
        "NegPrb3",
        "Negative12",
        "SystemControl7",
        "ERCC-00002",
        "__ambiguous[ACTB+ACTG1]",
    ],
)
def test_control_probes_are_known(name: str) -> None:
    assert is_control(name)


@pytest.mark.parametrize("name", ["ERCC1", "ERCC6L2", "ERCC-1", "NEGR1", "BLNK", "CTRL", "AMBP", "UNC13A", "NELFA"])
def test_genes_that_look_like_controls_are_kept(name: str) -> None:
    assert not is_control(name)
