"""Genes that are asked of a model, without the model."""

from __future__ import annotations

import numpy as np
import pytest

import sealst as sl
from sealst._core.genes.asked import check_asked, genes_in
from sealst._core.genes.names import human_symbols, human_table


@pytest.mark.parametrize(
    "name", ["ERBB2", "her2", "NGL", "SEPT2", "TP53", "MLL", "no_gene", "ENSG00000141736", "1", "."]
)
def test_a_name_is_looked_up_without_the_whole_table(name):
    assert human_symbols(name) == human_table().lookup(name)


def test_what_is_asked_of_a_file_is_what_the_panel_says(tmp_path):
    panel = sl.GenePanel(("EPCAM", "ERBB2", "VIM"), np.ones(3), np.ones(3), sections=("a",))
    panel.to_tsv(tmp_path / "panel.tsv")
    assert genes_in(tmp_path / "panel.tsv") == panel.genes
    assert genes_in(tmp_path / "nothing.tsv") == ()
    check_asked(["epcam", " VIM "], panel.genes)
    assert panel.subset([" vim "]).genes == ("VIM",)
    with pytest.raises(sl.PanelError) as of_panel:
        panel.subset(["HER2"])
    with pytest.raises(
        sl.PanelError, match="1 gene.s. are not in the panel of 3: 'HER2'; near names: 'ERBB2'"
    ) as asked:
        check_asked(["HER2"], genes_in(tmp_path / "panel.tsv"))
    assert str(asked.value) == str(of_panel.value)
    with pytest.raises(sl.PanelError, match="of `query` are not in the model's panel of 3: '7'.*lists the panel"):
        check_asked({7: 1.0}, panel.genes, query=True)
