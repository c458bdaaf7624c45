from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
import spatialdata as sd
from anndata import AnnData, concat

import sealst as sl
from sealst.pp._genes import survey

N_GENES = 60
GENES = [f"GENE{i:02d}" for i in range(N_GENES)]
XY = np.array([[c, r] for r in range(8) for c in range(8)]) * 100.0


def section(
    name: str = "s1", *, seed: int = 0, genes: list[str] = GENES, counts: np.ndarray | None = None, **normalize
):
    """64 spots on a square grid; every sixth gene differs between the left and the right half."""
    if counts is None:
        rng = np.random.default_rng(seed)
        rate = np.tile(np.geomspace(2, 20, len(genes)), (len(XY), 1))
        rate[XY[:, 0] > 350, ::6] *= 8
        counts = rng.poisson(rate)
    table = AnnData(counts.astype(np.float32), obs={"section": [name] * len(counts)}, var={"gene": genes})
    table.obs_names = [f"{name}_{i}" for i in range(len(counts))]
    table.var_names = genes
    table.obsm["spatial"] = XY[: len(counts)]
    sl.pp.normalize(table, **normalize)
    return table


def as_spatialdata(table: AnnData) -> sd.SpatialData:
    name = str(table.obs["section"].iloc[0])
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    counts, xy = table.layers["counts"], table.obsm["spatial"]
    sdata = sl.io.from_arrays(image, counts, xy, genes=table.var_names, mpp=1.0, spot_um=55, section=name)
    sl.pp.normalize(sdata)
    return sdata


def test_hvg_are_those_of_scanpy_in_order_of_rank() -> None:
    sections = [section("a", seed=1), section("b", seed=2)]
    panel = sl.pp.select_genes(sections, 15, layer="lognorm")

    joint = concat(sections)
    light = AnnData(joint.layers["lognorm"], obs=joint.obs[["section"]].astype("category"), var=joint.var)
    reference = sc.pp.highly_variable_genes(light, n_top_genes=15, flavor="seurat", batch_key="section", inplace=False)
    assert set(panel.genes) == set(reference.index[reference["highly_variable"]])
    ranks = reference.loc[list(panel.genes), ["highly_variable_nbatches", "dispersions_norm"]]
    assert ranks.equals(ranks.sort_values(list(ranks), ascending=False))
    assert len(set(panel.genes) & set(GENES[::6])) >= 9


def test_names_that_sections_share_are_kept_once() -> None:
    sections = [section("a", seed=1), section("b", seed=2), section("c", genes=GENES[::-1])]
    first, second, other = survey(sections, "lognorm", "table")
    assert first.columns is second.columns
    assert first.names is second.names
    assert first.ensembl is second.ensembl
    assert (first.name, second.name) == ("a", "b")
    assert not np.array_equal(first.total, second.total)
    assert other.columns["GENE00"] == N_GENES - 1


def test_included_genes_come_first_and_count() -> None:
    sections = [section("a", seed=1), section("b", seed=2)]
    plain = sl.pp.select_genes(sections, 10).genes
    assert "GENE01" not in plain
    panel = sl.pp.select_genes(sections, 10, include=["gene01", plain[3]])
    assert panel.genes == ("GENE01", plain[3], *[g for g in plain if g != plain[3]][:8])
    with pytest.raises(sl.PanelError, match="1 of 1 listed genes are not in every section: 'NOPE'"):
        sl.pp.select_genes(sections, 10, include=["NOPE"])
    with pytest.raises(sl.PanelError, match="`include` names 'GENE01' more than once"):
        sl.pp.select_genes(sections, 10, include=["GENE01", "gene01"])
    with pytest.raises(sl.DataError, match="`include` names 3 genes, more than `n_genes` = 2"):
        sl.pp.select_genes(sections, 2, include=GENES[:3])
    with pytest.raises(sl.DataError, match=r"must be a list of genes, found 'GENE01'; use \['GENE01'\]"):
        sl.pp.select_genes(sections, 2, include="GENE01")
    with pytest.raises(sl.DataError, match="with a list as `criterion` put them into the list"):
        sl.pp.select_genes(sections, criterion=GENES[:3], include=GENES[4:5])


def test_a_protein_in_place_of_its_gene_is_told_so() -> None:
    table = section(genes=["ERBB2", "KRT5", "VIM"])
    with pytest.raises(sl.PanelError, match="near names: 'ERBB2'"):
        sl.pp.select_genes([table], 3, include=["HER2"])


def test_heg_are_ranked_by_mean() -> None:
    sections = [section("a", seed=1), section("b", seed=2)]
    panel = sl.pp.select_genes(sections, 7, criterion="heg")
    mean = np.vstack([s.layers["lognorm"].toarray() for s in sections]).mean(0)
    assert list(panel.genes) == [GENES[i] for i in np.argsort(-mean)[:7]]


@pytest.mark.parametrize("criterion", ["hvg", "heg"])
def test_ties_go_by_name(criterion: str) -> None:
    counts = np.random.default_rng(0).poisson(np.geomspace(2, 20, 40), (len(XY), 40))
    counts[:, :10] = counts[:, :1]
    genes = list(np.random.default_rng(1).permutation(GENES[:40]))
    panel = sl.pp.select_genes([section(genes=genes, counts=counts)], 40, criterion=criterion)
    tied = [g for g in panel.genes if g in genes[:10]]
    assert tied == sorted(genes[:10])


@pytest.mark.parametrize("layer", ["context", "lognorm"])
def test_statistics_are_those_of_all_spots_in_the_layer(layer: str) -> None:
    sections = [section("a", seed=1), section("b", seed=2)]
    panel = sl.pp.select_genes(sections, 12, layer=layer)
    columns = [GENES.index(g) for g in panel.genes]
    values = np.vstack([s.layers[layer].toarray()[:, columns] for s in sections]).astype(float)
    np.testing.assert_allclose(panel.mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(panel.std, values.std(0), rtol=1e-5)
    assert (panel.layer, panel.sections, panel.species) == (layer, ("a", "b"), "human")


@pytest.mark.parametrize("criterion", ["hvg", "heg"])
def test_selection_does_not_depend_on_the_order_of_sections_or_columns(criterion: str) -> None:
    a, b = section("a", seed=1), section("b", seed=2)
    shuffled = b[:, np.random.default_rng(0).permutation(N_GENES)].copy()
    first = sl.pp.select_genes([a, b], 20, criterion=criterion)
    second = sl.pp.select_genes([shuffled, a], 20, criterion=criterion)
    assert first.genes == second.genes
    np.testing.assert_allclose(first.mean, second.mean, rtol=1e-6)


def test_one_data_set_may_hold_several_sections() -> None:
    a, b = section("a", seed=1), section("b", seed=2)
    joint = sd.concatenate([as_spatialdata(a), as_spatialdata(b)], concatenate_tables=True)
    # Concatenation drops the record of who wrote the layers.
    with pytest.raises(sl.DataError, match="holds 'lognorm', 'context', which `sl.pp.normalize` did not write"):
        sl.pp.normalize(joint)
    for key in ("lognorm", "context"):
        del joint.tables["table"].layers[key]
    sl.pp.normalize(joint)
    panel, reference = sl.pp.select_genes([joint], 20), sl.pp.select_genes([a, b], 20)
    assert panel.genes == reference.genes
    assert panel.sections == ("a", "b")
    assert panel.fingerprint == reference.fingerprint


def test_genes_match_across_sections_by_upper_cased_symbol() -> None:
    a = section("a", seed=1)
    b = section("b", seed=2, genes=[g.lower() for g in GENES[:30]] + [f"OTHER{i}" for i in range(30)])
    with pytest.warns(sl.SealstWarning, match=r"60 genes were asked for, 30 are available \(30 in all 2 section"):
        panel = sl.pp.select_genes([a, b], 60)
    assert set(panel.genes) == set(GENES[:30])


def test_control_probes_and_ambiguous_names_are_left_out() -> None:
    names = ["BLANK_0001", "NegControlProbe_1", "Gene05", *GENES[3:]]
    panel = sl.pp.select_genes([section(genes=names)], 10, criterion="heg", min_spots=0)
    with pytest.warns(sl.SealstWarning, match="are available"):
        everything = sl.pp.select_genes([section(genes=names)], 60, min_spots=0)
    assert len(panel) == 10
    assert set(everything.genes) == set(GENES[3:]) - {"GENE05"}


def test_rare_genes_are_left_out_by_their_share_over_all_sections() -> None:
    rng = np.random.default_rng(0)
    counts = [rng.poisson(5.0, (len(XY), 4)) + 1 for _ in range(2)]
    counts[0][:, 0] = 0
    counts[0][:6, 0] = 3  # 6 of 128 spots: 4.7 %
    counts[1][:, 0] = 0
    counts[0][:, 1] = 0  # absent in one section, everywhere in the other: 50 %
    sections = [section(n, genes=GENES[:4], counts=c) for n, c in zip("ab", counts, strict=True)]
    assert set(sl.pp.select_genes(sections, 3).genes) == {"GENE01", "GENE02", "GENE03"}
    assert "GENE00" in sl.pp.select_genes(sections, 4, min_spots=0.04).genes
    with pytest.warns(sl.SealstWarning, match=r"4 genes were asked for, 2 are available \(4 in all 2 section.*60%"):
        assert set(sl.pp.select_genes(sections, 4, min_spots=0.6).genes) == {"GENE02", "GENE03"}


@pytest.mark.parametrize("n_genes", [1, 2, 3])
def test_tiny_gene_sets_work(n_genes: int) -> None:
    panel = sl.pp.select_genes([section(genes=GENES[:n_genes])], n_genes)
    assert set(panel.genes) == set(GENES[:n_genes])


def test_a_list_keeps_its_order_and_skips_the_filters() -> None:
    counts = np.random.default_rng(0).poisson(5.0, (len(XY), N_GENES))
    counts[:, 4] = 0
    panel = sl.pp.select_genes([section(counts=counts)], criterion=["gene10", "GENE04", "GENE02"])
    assert panel.genes == ("GENE10", "GENE04", "GENE02")
    assert (panel.mean[1], panel.std[1]) == (0.0, 1.0)


def test_facts_of_the_normalisation_are_kept() -> None:
    table = section(target_sum=5e3)
    table.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(N_GENES)]
    panel = sl.pp.select_genes([table], 5, species="mouse")
    assert (panel.target_sum, panel.species) == (5e3, "mouse")
    assert panel.ensembl == tuple(f"ENSG{GENES.index(g):011d}" for g in panel.genes)


def test_mouse_symbols_called_human_are_reported() -> None:
    table = section(genes=[f"Gene{i}" for i in range(N_GENES)])
    with pytest.warns(sl.SealstWarning, match="spelled like mouse symbols .*species='mouse'"):
        sl.pp.select_genes([table], 5)


def test_the_panel_fits_the_data_it_came_from() -> None:
    table = section()
    panel = sl.pp.select_genes([table], 20)
    x = panel.extract(table.layers["context"], table.var_names)
    scaled = (x - panel.mean) / panel.std
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(scaled.std(0), 1, rtol=1e-4)


def test_nothing_is_written() -> None:
    table = section()
    before = (list(table.var), list(table.uns["sealst"]), list(table.layers))
    sl.pp.select_genes([table], 5)
    assert before == (list(table.var), list(table.uns["sealst"]), list(table.layers))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_genes": 0}, sl.DataError, "`n_genes` must be a whole number, 1 or more, found 0"),
        ({"n_genes": -5}, sl.DataError, "`n_genes` must be a whole number, 1 or more, found -5"),
        ({"n_genes": 10.5}, sl.DataError, "`n_genes` must be a whole number, 1 or more, found 10.5"),
        ({"criterion": "svg"}, sl.DataError, "`criterion` must be 'hvg', 'heg' or a list of genes, found 'svg'"),
        ({"criterion": []}, sl.PanelError, "`criterion` is an empty list"),
        ({"criterion": ["GENE01", "gene01"]}, sl.PanelError, r"`criterion` names 'GENE01' more than once"),
        ({"criterion": ["GENE01", "BLANK_1"]}, sl.PanelError, "names control probes: 'BLANK_1'"),
        (
            {"criterion": ["GENE01", "TP53", "KRT8"]},
            sl.PanelError,
            r"2 of 3 listed genes are not in every section: 'TP53' \(not in 's1'\); 'KRT8'",
        ),
        ({"layer": "counts"}, sl.DataError, "`layer` must be one of 'context', 'lognorm', found 'counts'"),
        ({"min_spots": 2}, sl.DataError, "`min_spots` must lie between 0 and 1, found 2"),
        ({"table_key": "cells"}, sl.MissingKeyError, "'cells' not found in `sdata.tables`"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, match) -> None:
    with pytest.raises(error, match=match):
        sl.pp.select_genes([as_spatialdata(section())], **arguments)


def test_what_is_no_list_of_sections_is_refused() -> None:
    with pytest.raises(sl.DataError, match="`sections` is empty; at least one section is needed"):
        sl.pp.select_genes([])
    with pytest.raises(TypeError, match=r"`sections` must be SpatialData or AnnData, or a list of them, found dict"):
        sl.pp.select_genes({})


def test_sections_that_are_not_normalised_are_refused() -> None:
    raw = section("b")
    del raw.layers["lognorm"]
    with pytest.raises(sl.OrderError, match=r"Section 'b' is not normalised. Run `sl.pp.normalize"):
        sl.pp.select_genes([section("a"), raw])


def test_an_absent_context_layer_is_refused() -> None:
    table = section(context=False)
    with pytest.raises(sl.OrderError, match="Layer 'context' not found in `.layers`; found: 'counts', 'lognorm'"):
        sl.pp.select_genes([table], 5)
    assert len(sl.pp.select_genes([table], 5, layer="lognorm")) == 5


def test_sections_normalised_differently_are_refused() -> None:
    a, b = section("a"), section("b", target_sum=100)
    with pytest.raises(sl.DataError, match="different `target_sum` .'a': 10000, 'b': 100"):
        sl.pp.select_genes([a, b])
    c = section("c", context_weight=0.3)
    with pytest.raises(sl.DataError, match="different `context_weight` .'a': 0.5, 'c': 0.3"):
        sl.pp.select_genes([a, c])
    assert len(sl.pp.select_genes([a, c], 5, layer="lognorm")) == 5


def test_sections_without_a_common_gene_are_refused() -> None:
    b = section("b", genes=[f"ENSG{i:011d}" for i in range(N_GENES)])
    with pytest.raises(sl.PanelError, match="No gene is found in all 2 sections .'a': 'GENE00'.*'b': 'ENSG0000"):
        sl.pp.select_genes([section("a"), b])


def test_sections_of_one_name_are_refused() -> None:
    with pytest.raises(sl.DataError, match=r"Section name\(s\) 's1' occur twice in `sections`"):
        sl.pp.select_genes([section(), section(seed=1)])


def test_duplicate_names_are_refused() -> None:
    table = section()
    table.var_names = ["A", "A", *GENES[2:]]
    with pytest.raises(sl.DataError, match="Duplicate gene names in `var_names` of section 's1': 'A'"):
        sl.pp.select_genes([table])


def test_no_gene_in_enough_spots_is_refused() -> None:
    counts = np.eye(len(XY), N_GENES, dtype=int)
    counts[:, 0] = 0
    with pytest.warns(sl.SealstWarning, match="have no counts"):
        table = section(counts=counts)
    with pytest.raises(
        sl.PanelError, match=r"None of the 60 shared genes has counts in 5% of the spots \(highest .*1\.6%"
    ):
        sl.pp.select_genes([table])


def test_expression_that_is_no_number_is_named() -> None:
    table = section("odd")
    table.layers["lognorm"].data[5] = np.nan
    with pytest.raises(sl.DataError, match=r"`.layers\['lognorm'\]` of section 'odd' holds NaN or infinite values"):
        sl.pp.select_genes([table], n_genes=10)
