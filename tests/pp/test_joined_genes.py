from __future__ import annotations

import logging

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData, concat

import sealst as sl

GENES = [f"GENE{i:02d}" for i in range(40)]
XY = np.array([[c, r] for r in range(6) for c in range(6)]) * 100.0


def section(name: str, *, seed: int, genes=GENES, scale: float = 1.0, dead=()) -> AnnData:
    """36 spots; every fifth gene differs between the left and the right half."""
    rate = np.tile(np.geomspace(2, 20, len(GENES)), (len(XY), 1)) * scale
    rate[XY[:, 0] > 250, ::5] *= 8
    counts = np.random.default_rng(seed).poisson(rate)[:, [GENES.index(g.upper()) for g in genes]]
    counts[:, [list(genes).index(g) for g in dead]] = 0
    table = AnnData(counts.astype(np.float32), obs={"section": [name] * len(counts)}, var={"gene": list(genes)})
    table.obs_names = [f"{name}_{i}" for i in range(len(counts))]
    table.var_names = list(genes)
    table.obsm["spatial"] = XY
    sl.pp.normalize(table)
    return table


@pytest.fixture(scope="module")
def _mixed() -> list[AnnData]:
    return [section("a", seed=1), section("b", seed=2), section("t", seed=3, genes=GENES[::4])]


@pytest.fixture
def mixed(_mixed) -> list[AnnData]:
    """Two whole transcriptomes and a targeted panel of ten genes."""
    return [table.copy() for table in _mixed]


def test_where_all_sections_measure_all_genes_the_option_changes_nothing() -> None:
    sections = [section("a", seed=1), section("b", seed=2), section("c", seed=3)]
    reference = concat(sections)
    light = AnnData(reference.layers["lognorm"], obs=reference.obs[["section"]].astype("category"), var=reference.var)
    table = sc.pp.highly_variable_genes(light, n_top_genes=12, flavor="seurat", batch_key="section", inplace=False)
    expected = table.sort_values(["highly_variable_nbatches", "dispersions_norm"], ascending=False).index[:12]
    for least in (None, 1, 0.5):
        panel = sl.pp.select_genes(sections, 12, min_sections=least)
        assert panel.genes == tuple(expected)
        assert panel.availability is None


@pytest.mark.parametrize(
    ("criterion", "least", "n"),
    [("hvg", None, 10), ("hvg", 3, 10), ("heg", 1.0, 10), ("hvg", 2, 40), ("heg", 0.5, 40), ("hvg", 0.01, 40)],
)
def test_genes_of_enough_sections_are_candidates(mixed, criterion, least, n) -> None:
    with pytest.warns(sl.SealstWarning, match=f"{n} are available"):
        panel = sl.pp.select_genes(mixed, 99, criterion=criterion, min_sections=least, min_spots=0)
    assert set(panel.genes) == set(GENES if n == 40 else GENES[::4])
    assert panel.coverage()["genes"].to_dict() == {"a": n, "b": n, "t": 10}


def test_statistics_are_those_of_the_spots_whose_section_measures_the_gene(mixed) -> None:
    panel = sl.pp.select_genes(mixed, criterion=["GENE04", "GENE01"], min_sections=1)
    for gene, mean, std in zip(panel.genes, panel.mean, panel.std, strict=True):
        values = np.concatenate([s[:, gene].layers["context"].toarray().ravel() for s in mixed if gene in s.var_names])
        assert len(values) == (108 if gene == "GENE04" else 72)
        np.testing.assert_allclose([mean, std], [values.mean(), values.std()], rtol=1e-5)
    np.testing.assert_array_equal(panel.availability, [[True, True], [True, True], [True, False]])


def test_the_share_of_spots_and_the_mean_are_over_measuring_sections() -> None:
    """A gene with counts in every spot of the one section that has it is not called rare."""
    sections = [section("a", seed=1, genes=GENES[:20]), section("t", seed=2, genes=GENES[10:])]
    panel = sl.pp.select_genes(sections, 5, criterion="heg", min_sections=1, min_spots=0.9)
    means = {g: np.concatenate([s[:, g].layers["lognorm"].toarray() for s in sections if g in s.var_names]).mean()
             for g in GENES}  # fmt: skip
    assert list(panel.genes) == sorted(means, key=means.get, reverse=True)[:5]


def test_a_small_panel_does_not_win_with_everything_it_measures() -> None:
    """A targeted section calls the same share of its genes variable as the others do."""
    only = [f"GENE{i:02d}" for i in (2, 3, 6, 7, 8, 11)]
    whole = [g for g in GENES if g not in only]
    sections = [section(name, seed=i, genes=whole) for i, name in enumerate("abcd")]
    sections.append(section("t", seed=9, genes=[*only, "GENE05"]))
    panel = sl.pp.select_genes(sections, 8, min_sections=1)
    # None of the genes that only the small panel has varies; GENE05 varies wherever it is measured.
    assert not set(panel.genes) & set(only)
    assert "GENE05" in panel.genes


def test_a_gene_without_counts_in_a_targeted_section_works() -> None:
    sections = [section("a", seed=1), section("t", seed=2, genes=["GENE05", "GENE06"], dead=["GENE05"])]
    panel = sl.pp.select_genes(sections, 40, min_sections=1)
    assert len(panel) == 40


def test_order_of_sections_and_case_do_not_matter(mixed) -> None:
    first = sl.pp.select_genes(mixed, 15, min_sections=1)
    mixed[2].var_names = [g.lower() for g in mixed[2].var_names]
    second = sl.pp.select_genes(mixed[::-1], 15, min_sections=1)
    assert first.genes == second.genes
    assert second.coverage().loc["t"].equals(first.coverage().loc["t"])


def test_listed_genes_respect_the_option(mixed) -> None:
    with pytest.raises(sl.PanelError, match=r"1 of 2 listed genes are not in every section: 'GENE01' \(not in 't'\)"):
        sl.pp.select_genes(mixed, criterion=["GENE00", "GENE01"])
    assert sl.pp.select_genes(mixed, criterion=["GENE00", "GENE01"], min_sections=2).genes == ("GENE00", "GENE01")
    with pytest.raises(sl.PanelError, match=r"not in 1 of 3 sections: 'TP53' \(not in 'a', 'b', 't'\)"):
        sl.pp.select_genes(mixed, criterion=["GENE00", "TP53"], min_sections=1)


def test_a_section_that_measures_no_chosen_gene_is_refused(mixed) -> None:
    with pytest.raises(sl.PanelError, match=r"Section\(s\) 't' measure none of the 2 genes chosen"):
        sl.pp.select_genes(mixed, criterion=["GENE01", "GENE02"], min_sections=1)


@pytest.mark.parametrize("least", [0, 4, -1, True, 0.0, 1.5, "2", float("nan")])
def test_other_values_are_refused(mixed, least) -> None:
    with pytest.raises(sl.DataError, match="`min_sections` must be None, a whole number from 1 to 3 .*, or a share"):
        sl.pp.select_genes(mixed, 5, min_sections=least)


def test_a_share_is_not_rounded_up_by_accident() -> None:
    sections = [section(f"s{i}", seed=i, genes=GENES if i < 3 else GENES[:5]) for i in range(10)]
    assert len(sl.pp.select_genes(sections, 20, min_sections=0.3)) == 20


def test_sections_are_opened_one_after_the_other(mixed) -> None:
    """Any sequence will do, also one that opens its sections when asked."""
    from collections.abc import Sequence

    class Lazy(Sequence):
        def __init__(self) -> None:
            self.opened, self.kept = 0, {}

        def __len__(self) -> int:
            return len(mixed)

        def __getitem__(self, i):
            if i not in self.kept:
                self.kept = {i: mixed[i].copy()}
                self.opened += 1
            return self.kept[i]

    lazy = Lazy()
    assert sl.pp.select_genes(lazy, 12, min_sections=1).fingerprint == (
        sl.pp.select_genes(mixed, 12, min_sections=1).fingerprint
    )
    # Three passes over three sections, one of them open at a time.
    assert lazy.opened == 9


def test_coverage_is_logged_and_ids_are_gathered_over_sections(mixed, caplog) -> None:
    mixed[1].var["gene_ids"] = [f"ENSG{i:011d}" for i in range(40)]
    mixed[2].var["ensembl"] = [f"ENSG9{i:010d}" for i in range(10)]
    with caplog.at_level(logging.INFO, logger="sealst"):
        panel = sl.pp.select_genes(mixed, criterion=["GENE01", "GENE04"], min_sections=1)
    assert "Of 2 genes measure: 'a' 2, 'b' 2, 't' 1." in caplog.text
    assert panel.ensembl == ("ENSG00000000001", "ENSG00000000004")
