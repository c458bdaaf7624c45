from __future__ import annotations

import pytest

from sealst._core.genes import names as module
from sealst._core.genes.names import human_table, near_names

PANEL = ["ERBB2", "HERC2", "MKI67", "CCN2", "EPCAM", "Vim"]


@pytest.mark.parametrize(
    ("asked", "first"),
    [("HER2", "ERBB2"), ("her-2/neu", "ERBB2"), ("Ki-67", "MKI67"), ("CTGF", "CCN2"), ("Vimentin", "Vim")],
)
def test_a_proteins_name_and_an_earlier_symbol_lead_to_the_gene(asked: str, first: str) -> None:
    assert near_names([asked], PANEL)[0] == first


def test_spelling_comes_after_what_is_sure() -> None:
    assert near_names(["HER2"], PANEL) == ["ERBB2", "HERC2"]
    assert near_names(["EPCAN"], PANEL) == ["EPCAM"]
    assert near_names(["HER2"], ["KRT5"]) == []
    assert near_names(["TISSUE_CLAS"], ["tissue_class", "Tissue_Class"]) == ["tissue_class"]


def test_the_proteins_genes_are_current_symbols() -> None:
    current = human_table().current
    assert all(symbol in current for symbol in module._PROTEINS.values())
    # Thyroid transcription factor 1 to a pathologist; the symbol is another gene's.
    assert [name for name in module._PROTEINS if name in current] == ["TTF1"]
