from __future__ import annotations

import logging

import numpy as np
import pytest

import sealst as sl


def targeted(ready, *, section: str, patient: str, seed: int, drop=("EPCAM", "KRT8")):
    """A section that does not measure some genes."""
    sdata = ready(section=section, patient=patient, seed=seed)
    table = sdata.tables["table"]
    sdata.tables["table"] = table[:, ~table.var_names.isin(drop)].copy()
    return sdata


@pytest.fixture
def mixed(ready):
    return [ready(section="whole", patient="p1"), targeted(ready, section="panel", patient="p2", seed=1)]


@pytest.mark.filterwarnings("ignore:The key")
def test_whole_and_targeted_sections_train_together(mixed, ready, finetune, caplog, tmp_path):
    panel = sl.pp.select_genes(mixed, criterion=["EPCAM", "KRT8", "VIM"], min_sections=1)
    held = [ready(section="c", patient="p3", seed=2), targeted(ready, section="d", patient="p4", seed=3)]
    with caplog.at_level(logging.INFO, logger="sealst"):
        model = finetune(mixed, panel=panel, validation=held)
    assert "Section 'panel' measures 1 of the panel's 3 genes; its spots do not count for the others." in caplog.text
    assert np.isfinite(model.history["train_loss"]).all()
    assert model.history.loc[model.history["stage"] == "align", "val_pearson"].notna().all()
    model.save(tmp_path / "model")
    back = sl.models.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(back.panel.availability, [[True, True, True], [False, False, True]])
    # A new section gets all genes, whatever its own panel measures; measured expression as input keeps its guard.
    copied = sl.tl.predict(held[1], model, copy=True).tables["table"]
    assert np.isfinite(copied.obsm["seal_expression"][["EPCAM", "KRT8", "VIM"]]).all().all()
    with pytest.raises(sl.PanelError, match="Only 1 of the panel's 3 genes .*at least 50% are needed"):
        sl.tl.embed(held[1], model, modality="gene")


@pytest.mark.filterwarnings("ignore:The key")
def test_without_a_joined_panel_too_few_genes_are_still_refused(mixed, finetune):
    panel = sl.pp.select_genes(mixed[:1], criterion=["EPCAM", "KRT8", "VIM"])
    with pytest.raises(sl.PanelError, match="Only 1 of the panel's 3 genes .*at least 50%"):
        finetune(mixed, panel=panel)


@pytest.mark.filterwarnings("ignore:The key")
def test_evaluation_leaves_out_what_a_section_lacks(mixed, ready, finetune, caplog):
    panel = sl.pp.select_genes(mixed, criterion=["EPCAM", "KRT8", "VIM", "ACTB"], min_sections=1)
    model = finetune(mixed, panel=panel)
    held = [ready(section="c", patient="p3", seed=2), targeted(ready, section="d", patient="p4", seed=3)]
    sets = {"both": ["EPCAM", "VIM"], "lacking": ["EPCAM"], "measured": ["VIM"]}
    with caplog.at_level(logging.INFO, logger="sealst"):
        table = sl.tl.evaluate(mixed, model, test=held, genes=sets).table
    assert "Section 'd' measures 2 of the 4 genes; the others are not scored." in caplog.text
    score = table[table["metric"] == "pearson"].set_index(["section", "method", "genes"])["value"].sort_index()
    methods = score.index.get_level_values("method").unique()
    assert len(methods) == 7
    for method in methods:
        assert score["c", method].notna().all()
        assert np.isnan(score["d", method, "lacking"])
        assert score["d", method, "both"] == score["d", method, "measured"]
    # EPCAM is learned from the one training section that measures it, not from fills.
    assert score["c", "colour + ridge", "lacking"] > 0.4
    assert table.loc[table["metric"] == "R@10", "value"].notna().all()
    default = sl.tl.evaluate(mixed, model, test=held[0], n_genes=3).table
    assert set(default.loc[default["metric"] == "pearson", "genes"]) == {"hvg3", "heg3"}
    # A gene that no training section measures cannot be fitted by the others, so no method is scored on it.
    lacking = sl.tl.evaluate(mixed[1], model, test=held[0], genes={"lacking": ["EPCAM"]}).table
    score = lacking[lacking["metric"] == "pearson"].set_index("method")["value"]
    assert score.isna().all()


@pytest.mark.filterwarnings("ignore:The key")
@pytest.mark.parametrize("joined", [False, True])
def test_default_gene_sets_where_training_sections_share_no_gene(ready, finetune, joined):
    first = targeted(ready, section="one", patient="p1", seed=1, drop=("EPCAM", "KRT8", "ACTB", "ERBB2"))
    second = targeted(ready, section="two", patient="p2", seed=2, drop=("VIM", "COL1A1", "CD3E", "MS4A1"))
    whole, held = ready(section="whole", patient="p3"), ready(section="held", patient="p4", seed=4)
    sections = [first, second] if joined else [whole]
    panel = sl.pp.select_genes(sections, criterion=["EPCAM", "VIM", "KRT8", "CD3E"], min_sections=1)
    model = finetune(sections, panel=panel)
    table = sl.tl.evaluate([first, second], model, test=held, n_genes=4).table
    assert set(table.loc[table["metric"] == "pearson", "genes"]) == {"hvg4", "heg4"}
